"""Entropies: of probabilities, and of distributions that logits describe."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._kernels import entropy as entropy_kernels
from jaxent._losses.distributions import check_base, in_base
from jaxent._parallel import AxisName


@_checks.public
def entropy(
    probs: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Entropy of a distribution: how unpredictable its outcomes are.

    .. math:: H(p) = -\sum_j p_j \log p_j

    From logits: `softmax_entropy`. Per element, of yes or no: `binary_entropy`.

    Args:
        probs: Probabilities in [0, 1], `[..., V]`, floating point, of any total.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs`).
        base: Base of the logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        Entropies in nats (bits for base 2), `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.entropy(jnp.array([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]), base=2))
        [1.        1.5849625]

    References:
        Shannon, `A Mathematical Theory of Communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948, section 6.
    """
    arrays = {"probs": _checks.as_floating("probs", probs)}
    check_base(base)
    fills, accepted = (_masks.PROBABILITIES,), (intervals.UNIT_INTERVAL,)
    kernel = entropy_kernels.entropy
    nats = _masks.apply_per_example(kernel, arrays, fills, axis, where, intervals=accepted)
    return in_base(nats, base)


@_checks.public
def binary_entropy(
    probs: ArrayLike, where: ArrayLike | None = None, *, base: float | None = None
) -> jax.Array:
    r"""Element-wise entropy of a yes/no outcome, from the probability of "yes".

    .. math:: H(p) = -p \log p - (1 - p) \log(1 - p)

    From logits: `sigmoid_entropy`.

    Args:
        probs: Probabilities of "yes" in [0, 1], any shape, floating point.
        where: Mask of the elements, of the rank of `probs`, or a scalar.
        base: Base of the logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        One entropy per element in nats (bits for base 2), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.binary_entropy(jnp.array([0.5, 0.11, 1.0]), base=2))
        [1.        0.4999158 0.       ]

    References:
        Cover, Thomas, *Elements of Information Theory*, 2006, section 2.1.
    """
    probs = _checks.as_floating("probs", probs)
    check_base(base)
    where, arrays = _masks.mask_elements(where, probs=probs)
    nats = _masks.apply_elementwise(_binary_entropy, list(map(intervals.clip_rounding, arrays)))
    return _masks.zero_where_masked(in_base(nats, base), where)


def _binary_entropy(p: jax.Array) -> jax.Array:
    is_valid = (p >= 0.0) & (p <= 1.0)
    return intervals.nan_where_invalid(entropy_kernels.binary_entropy(p), is_valid)


@_checks.public
def softmax_entropy(
    logits: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Entropy of softmax of the logits: how unsure a model is.

    .. math:: H = -\sum_j p_j \log p_j, \qquad p = \mathrm{softmax}(x)

    From probabilities: `entropy`. Without logits `[..., V]`: `linear_log_prob`.

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`. With no possible class: NaN.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One entropy per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.softmax_entropy(jnp.array([[0.0, 0.0], [30.0, 0.0], [2.0, -jnp.inf]])))
        [6.9314718e-01 2.9008634e-12 0.0000000e+00]

    References:
        Shannon, `A Mathematical Theory of Communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948, section 6.
    """
    arrays = {"logits": _checks.as_floating("logits", logits)}
    fills = (_masks.LOGITS,)
    return _masks.apply_per_example(_softmax_entropy, arrays, fills, axis, where, axis_name)


def _softmax_entropy(x: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    return _masks.constant_where_impossible(entropy_kernels.softmax_entropy, (x,), axis_name)


@_checks.public
def sigmoid_entropy(logits: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Element-wise entropy of a yes/no answer whose log-odds are the logit.

    .. math:: H = -p \log p - (1 - p) \log (1 - p), \qquad p = \sigma(x)

    From probabilities: `binary_entropy`.

    Args:
        logits: Log-odds of "yes" in nats, any shape. An infinite one is certain: entropy 0.
        where: Mask of the elements, of the rank of `logits`, or a scalar.

    Returns:
        One entropy per element in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.sigmoid_entropy(jnp.array([0.0, 2.0, -40.0, jnp.inf])))
        [6.9314718e-01 3.6533386e-01 1.7418252e-16 0.0000000e+00]

    References:
        Shannon, `A Mathematical Theory of Communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948, section 6 and figure 7.
    """
    logits = _checks.as_floating("logits", logits)
    where, arrays = _masks.mask_elements(where, logits=logits)
    entropies = _masks.apply_elementwise(entropy_kernels.sigmoid_entropy, arrays)
    return _masks.zero_where_masked(entropies, where)
