"""Cross-entropies, divergences and distances of distributions, from their probabilities."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._kernels import divergence, probability
from jaxent._losses.distributions import (
    as_floating_and_real,
    check_base,
    in_base,
    rounding_tolerance,
)

_UNIT_INTERVALS = (intervals.UNIT_INTERVAL, intervals.UNIT_INTERVAL)


@_checks.public
def cross_entropy(
    targets: ArrayLike,
    predictions: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Cross-entropy of two distributions: the mean code length under the wrong code.

    .. math:: H(t, q) = -\sum_j t_j \log q_j = H(t) + D(t \Vert q)

    Args:
        targets: **The true distribution, first and not second as everywhere else**, `[..., V]`.
        predictions: The other distribution, probabilities in [0, 1], of the rank of `targets`.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `targets`).
        base: Base of the logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        Cross-entropies in nats (bits for base 2), `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> targets, predictions = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5])
        >>> print(jaxent.cross_entropy(targets, predictions, base=2))
        1.75

    References:
        Good, `Rational Decisions <https://doi.org/10.1111/j.2517-6161.1952.tb00104.x>`_, 1952.
    """
    arrays = as_floating_and_real(targets=targets, predictions=predictions)
    check_base(base)
    fills = (_masks.TARGETS, _masks.PROBABILITIES)
    nats = _masks.apply_per_example(
        _cross_entropy, arrays, fills, axis, where, intervals=_UNIT_INTERVALS
    )
    return in_base(nats, base)


def _cross_entropy(targets: jax.Array, p: jax.Array) -> jax.Array:
    return probability.categorical_cross_entropy(p, targets)


@_checks.public
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of log-predictions from target probabilities.

    .. math:: D(t \Vert q) = \sum_j t_j (\log t_j - \log q_j)

    Inputs are rounded, so that the sum may be -1e-8 for equal distributions. A negative result that
    8 roundings of each input explain is 0. From logits, use `softmax_kl_divergence`; it and
    `jensen_shannon_divergence` keep their relative accuracy where the two nearly agree.

    Args:
        log_predictions: Log-probabilities in nats, `[..., V]`, floating point; above 0 is NaN.
        targets: Probabilities, of the rank of `log_predictions`; non-negative, of any total.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `log_predictions`).

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_predictions = jnp.log(jnp.array([0.25, 0.75, 0.0]))
        >>> print(jaxent.kl_divergence(log_predictions, jnp.array([0.5, 0.5, 0.0])))
        0.143841

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    arrays = as_floating_and_real(log_predictions=log_predictions, targets=targets)
    return _masks.apply_per_example(
        divergence.kl_divergence,
        arrays,
        (_masks.LOGITS, _masks.TARGETS),
        axis,
        where,
        intervals=(intervals.NON_POSITIVE, intervals.FINITE_NON_NEGATIVE),
        tolerance=rounding_tolerance(*arrays.values()),
    )


@_checks.public
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of log-predictions from log-probabilities of the targets.

    .. math:: D(t \Vert q) = \sum_j t_j (\log t_j - \log q_j)

    As in `kl_divergence`, a negative result that 8 roundings of each input explain is 0. From
    logits, use `softmax_kl_divergence`, which is exact where the two nearly agree.

    Args:
        log_predictions: Log-probabilities in nats, `[..., V]`, floating point; above 0 is NaN.
        log_targets: Log-probabilities in nats, of the rank of `log_predictions`, real, likewise.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `log_predictions`).

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_predictions, log_targets = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
        >>> print(jaxent.kl_divergence_with_log_targets(log_predictions, log_targets))
        0.14384104

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    arrays = as_floating_and_real(log_predictions=log_predictions, log_targets=log_targets)
    return _masks.apply_per_example(
        divergence.kl_divergence_with_log_targets,
        arrays,
        (_masks.LOGITS, _masks.LOGITS),
        axis,
        where,
        intervals=(intervals.NON_POSITIVE, intervals.NON_POSITIVE),
        tolerance=rounding_tolerance(*arrays.values()),
    )


@_checks.public
def jensen_shannon_divergence(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Mean Kullback-Leibler divergence of two distributions from their mean.

    .. math:: J(a, b) = \frac{D(a \Vert m) + D(b \Vert m)}{2}, \qquad m = \frac{a + b}{2}

    It is symmetric bit for bit, 0 for equal distributions, and at most log 2 (8 roundings of each
    input do not count). From logits: `softmax_jensen_shannon`.

    Args:
        probs_a: Probabilities in [0, 1], `[..., V]`, floating point, of any total.
        probs_b: The other distribution, probabilities in [0, 1], of the rank of `probs_a`.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs_a`).
        base: Base of the logarithm, a Python number above 1; None for nats, 2 for bits.

    Returns:
        Divergences in nats (bits for base 2), `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_b = jnp.array([[0.0, 1.0], [0.5001, 0.4999]])
        >>> print(jaxent.jensen_shannon_divergence(jnp.array([[1.0, 0.0], [0.5, 0.5]]), probs_b))
        [6.931472e-01 5.000169e-09]

    References:
        Lin, `Divergence Measures <https://doi.org/10.1109/18.61115>`_, 1991, section 4.
    """
    arrays = as_floating_and_real(probs_a=probs_a, probs_b=probs_b)
    check_base(base)
    nats = _masks.apply_per_example(
        divergence.jensen_shannon_divergence,
        arrays,
        (_masks.PROBABILITIES, _masks.PROBABILITIES),
        axis,
        where,
        intervals=_UNIT_INTERVALS,
        tolerance=rounding_tolerance(*arrays.values()),
    )
    return in_base(nats, base)


@_checks.public
def total_variation(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Total variation distance: how much mass has to move to make one distribution the other.

    .. math:: d(a, b) = \tfrac{1}{2} \sum_j |a_j - b_j|

    Args:
        probs_a: Probabilities in [0, 1], `[..., V]`, floating point, of any total.
        probs_b: The other distribution, probabilities in [0, 1], of the rank of `probs_a`.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs_a`).

    Returns:
        One distance per example in units of probability, `[...]`, float32 (float64 for float64
        inputs). Where the two are equal the derivative is 0.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a, probs_b = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.75, 0.0])
        >>> print(jaxent.total_variation(probs_a, probs_b))
        0.5

    References:
        Levin, Peres, *Markov Chains and Mixing Times*, 2017, section 4.1.
    """
    arrays = as_floating_and_real(probs_a=probs_a, probs_b=probs_b)
    kernel, fills = divergence.total_variation, (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(kernel, arrays, fills, axis, where, intervals=_UNIT_INTERVALS)


@_checks.public
def hellinger(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Hellinger distance: the Euclidean distance of the square roots of two distributions.

    .. math:: h(a, b) = \sqrt{\tfrac{1}{2} \sum_j \big( \sqrt{a_j} - \sqrt{b_j} \big)^2}

    Args:
        probs_a: Probabilities in [0, 1], `[..., V]`, floating point, of any total.
        probs_b: The other distribution, probabilities in [0, 1], of the rank of `probs_a`.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs_a`).

    Returns:
        One distance per example, `[...]`, in units in which disjoint distributions are 1 apart,
        float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a = jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> print(jaxent.hellinger(probs_a, jnp.array([[0.0, 1.0], [0.5001, 0.4999]])))
        [1.000000e+00 7.071188e-05]

    References:
        van der Vaart, *Asymptotic Statistics*, 1998, section 14.5.
    """
    arrays = as_floating_and_real(probs_a=probs_a, probs_b=probs_b)
    kernel, fills = divergence.hellinger, (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(kernel, arrays, fills, axis, where, intervals=_UNIT_INTERVALS)
