"""Entropies and divergences of an order alpha: Renyi's and Tsallis's."""

from __future__ import annotations

import math

import jax
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._kernels import renyi, tsallis
from jaxent._losses.distributions import (
    as_floating_and_real,
    as_order,
    check_base,
    have_totals,
    in_base,
)


@_checks.public
def renyi_entropy(
    probs: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    alpha: float,
    base: float | None = None,
) -> jax.Array:
    r"""Renyi's entropy of order alpha: how spread a distribution is, rare outcomes counting less.

    .. math:: H_\alpha(p) = \frac{1}{1 - \alpha} \log \frac{\sum_j p_j^\alpha}{\sum_j p_j}

    Order 0 is the logarithm of the number of possible classes (of a distribution), order 1
    Shannon's `entropy`, infinity :math:`-\log \max_j p_j`.

    Args:
        probs: Probabilities in [0, 1], `[..., V]`, floating point; a total of 0 gives NaN.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs`).
        alpha: The order, a Python number from 0 to infinity.
        base: Base of the logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        Entropies in nats (bits for base 2), `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([0.5, 0.25, 0.25])
        >>> print(jnp.stack([jaxent.renyi_entropy(probs, alpha=a, base=2) for a in (0, 1, 2)]))
        [1.5849625 1.5       1.4150375]

    References:
        Renyi, `Measures of Entropy <https://projecteuclid.org/euclid.bsmsp/1200512181>`_, 1961.
    """
    arrays = {"probs": _checks.as_floating("probs", probs)}
    order = as_order(alpha)
    check_base(base)
    kernel, fills = renyi.renyi_entropy, (_masks.PROBABILITIES,)
    nats = _masks.apply_per_example(
        kernel,
        arrays,
        fills,
        axis,
        where,
        intervals=(intervals.UNIT_INTERVAL,),
        is_valid=have_totals,
        alpha=order,
    )
    return in_base(nats, base)


@_checks.public
def renyi_divergence(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    alpha: float,
) -> jax.Array:
    r"""Renyi's divergence of order alpha of one distribution from another.

    .. math:: D_\alpha(a \Vert b) = \frac{1}{\alpha - 1} \log \sum_j
        \Big( \frac{a_j}{A} \Big)^{\alpha} \Big( \frac{b_j}{B} \Big)^{1 - \alpha}, \quad
        A = \sum_j a_j, \ B = \sum_j b_j

    Order 0 is minus the logarithm of the probability under b that a is positive, order 1 the
    Kullback-Leibler divergence, infinity the largest log-ratio. If the totals are about equal, it
    keeps its relative accuracy however near the two are. From orders of 10 on, gradients between
    unlike distributions are right to the order times 5e-7 of their largest entry.

    Args:
        probs_a: Non-negative numbers, `[..., V]`, floating point; a total of 0 or infinity: NaN.
        probs_b: The other distribution, of the rank of `probs_a`.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs_a`).
        alpha: The order, a Python number from 0 to infinity.

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a, probs_b = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])
        >>> orders = (0, 1, 2, float("inf"))
        >>> print(jnp.stack([jaxent.renyi_divergence(probs_a, probs_b, alpha=a) for a in orders]))
        [0.28768207 0.34657362 0.4054651  0.6931472 ]

    References:
        van Erven, Harremoes, `Renyi Divergence <https://arxiv.org/abs/1206.2459>`_, 2014; Renyi,
        `Measures of Entropy <https://projecteuclid.org/euclid.bsmsp/1200512181>`_, 1961, section 3.
    """
    arrays = as_floating_and_real(probs_a=probs_a, probs_b=probs_b)
    order = as_order(alpha)
    kernel, fills = renyi.renyi_divergence, (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(
        kernel,
        arrays,
        fills,
        axis,
        where,
        intervals=(intervals.NON_NEGATIVE, intervals.NON_NEGATIVE),
        is_valid=have_totals,
        alpha=order,
    )


@_checks.public
def tsallis_entropy(
    probs: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    alpha: float,
) -> jax.Array:
    r"""Tsallis' entropy of order alpha: Shannon's with a deformed logarithm.

    .. math:: S_\alpha(p) = \frac{\sum_j p_j - p_j^\alpha}{\alpha - 1}

    Order 1 is Shannon's `entropy`, order 2 the Gini impurity.

    Args:
        probs: Probabilities in [0, 1], `[..., V]`, floating point, of any total.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs`).
        alpha: The order, a finite Python number from 0.

    Returns:
        Entropies in units of probability (order 1: nats), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([0.5, 0.25, 0.25])
        >>> print(jnp.stack([jaxent.tsallis_entropy(probs, alpha=a) for a in (0, 1, 2)]))
        [2.        1.0397208 0.625    ]

    References:
        Tsallis, `Boltzmann-Gibbs Statistics <https://doi.org/10.1007/BF01016429>`_, 1988.
    """
    arrays = {"probs": _checks.as_floating("probs", probs)}
    order = as_order(alpha)
    _checks.require(order < math.inf, "`alpha` must be finite, got inf.")
    kernel, fills = tsallis.tsallis_entropy, (_masks.PROBABILITIES,)
    return _masks.apply_per_example(
        kernel, arrays, fills, axis, where, intervals=(intervals.UNIT_INTERVAL,), alpha=order
    )
