"""The information that two variables share, and units of information."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import entropy as entropy_kernels
from jaxent._kernels import mutual_information as mutual_information_kernels
from jaxent._losses.distributions import check_base, have_totals, in_base


@_checks.public
def mutual_information(
    joint: ArrayLike,
    axis: tuple[int, int] = (-2, -1),
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Mutual information of two variables, from their joint distribution or a table of counts.

    .. math:: I(x; y) = \sum_{jk} p_{jk} \log \frac{p_{jk}}{p_{j \cdot}\, p_{\cdot k}}, \qquad
        p_{jk} = n_{jk} \Big/ \sum_{lm} n_{lm}

    Args:
        joint: Non-negative numbers, `[..., J, K]`, real. A total of 0 or infinity gives NaN. Counts
            above 2**24 are rounded to float32: pass such counts as float64.
        axis: The axes of the two variables; exactly two.
        where: Mask of the examples `[...]`, or of the cells (the shape of `joint`).
        base: Base of the logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        Numbers in nats (bits for base 2), `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> counts = jnp.array([[[50, 0], [0, 50]], [[25, 25], [25, 25]]])
        >>> print(jaxent.mutual_information(counts, base=2))
        [1. 0.]

    References:
        Cover, Thomas, *Elements of Information Theory*, 2006, section 2.3.
    """
    joint = _checks.as_real("joint", joint)
    axes = _checks.normalize_axes("joint", joint, axis)
    _checks.require(
        len(axes) == 2,
        f"`axis` {axis} of `joint` {_checks.describe(joint)} must name two axes, one for each "
        "variable.",
    )
    check_base(base)
    nats = _masks.apply_per_example(
        _mutual_information,
        {"joint": joint},
        (_masks.PROBABILITIES,),
        axes,
        where,
        intervals=(intervals.NON_NEGATIVE,),
        is_valid=have_totals,
        row_count=joint.shape[axes[0]],
    )
    return in_base(nats, base)


def _mutual_information(cells: jax.Array, *, row_count: int) -> jax.Array:
    joint = cells.reshape(*cells.shape[:-1], row_count, -1)
    return mutual_information_kernels.mutual_information(joint)


@_checks.public
def perplexity(cross_entropy: ArrayLike, *, base: float | None = None) -> jax.Array:
    r"""Perplexity: the number of equally likely classes that would be as hard to predict.

    .. math:: \operatorname{perplexity} = b^{H}

    Take the mean of the cross-entropies first (`jaxent.mean`), and the perplexity of that.

    Args:
        cross_entropy: Cross-entropies in nats (bits for base 2), any shape, floating point.
        base: Base of their logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        Perplexities in units of classes, of that shape, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.perplexity(jnp.array([0.0, 3.0]), base=2))
        [1. 8.]

    References:
        Jelinek et al., `Perplexity <https://doi.org/10.1121/1.2016299>`_, 1977.
    """
    check_base(base)
    given = _checks.as_floating("cross_entropy", cross_entropy)
    return _perplexity(given, None if base is None or base == math.e else float(base))


@functools.partial(jax.jit, static_argnames="base", inline=True)
def _perplexity(cross_entropy: jax.Array, base: float | None) -> jax.Array:
    return entropy_kernels.perplexity(cross_entropy.astype(compute_dtype(cross_entropy)), base)


@_checks.public
def nats_to_bits(nats: ArrayLike) -> jax.Array:
    r"""Information in bits, from nats.

    .. math:: \operatorname{bits} = \operatorname{nats} / \log 2

    Args:
        nats: Amounts of information in nats, any shape, floating point.

    Returns:
        The same in bits, of the shape of `nats`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.nats_to_bits(jnp.log(jnp.array([2.0, 8.0]))))
        [1. 3.]

    References:
        Cover, Thomas, *Elements of Information Theory*, 2006, section 2.1.
    """
    nats = _checks.as_floating("nats", nats)
    return in_base(nats.astype(compute_dtype(nats)), 2)


@_checks.public
def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike) -> jax.Array:
    r"""Bits that a model needs per byte of a text, which compares models across tokenizers.

    .. math:: \operatorname{bits\ per\ byte} = \frac{\operatorname{nats}}{n \log 2}

    Args:
        nats: Total cross-entropy of each text in nats (the sum over its tokens), floating point.
        num_bytes: The number n > 0 of bytes of each text, real, of the rank of `nats`, or a scalar.

    Returns:
        One number per text in bits per byte, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.bits_per_byte(jnp.array([693.1472, 100.0]), jnp.array([1000, 80])))
        [1.        1.8033688]

    References:
        Gao et al., `The Pile <https://arxiv.org/abs/2101.00027>`_, 2020, section 3.1.
    """
    nats = _checks.as_floating("nats", nats)
    num_bytes = _checks.as_real("num_bytes", num_bytes)
    _checks.check_broadcastable(nats=nats, num_bytes=num_bytes)
    return _masks.apply_elementwise(_bits_per_byte, (nats, num_bytes))


def _bits_per_byte(nats: jax.Array, num_bytes: jax.Array) -> jax.Array:
    is_valid = num_bytes > 0.0
    bits = in_base(nats / jnp.where(is_valid, num_bytes, 1.0), 2)
    return intervals.nan_where_invalid(bits, is_valid)
