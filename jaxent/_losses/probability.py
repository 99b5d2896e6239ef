"""Losses of probabilities and log-probabilities, with no hidden epsilon."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import probability


@_checks.public
def binary_cross_entropy(
    probs: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise cross-entropy between the probability of "yes" and a yes/no target.

    .. math:: \ell = -y \log p - (1 - y) \log(1 - p)

    Certain and wrong costs `+inf`. From logits, finite: `sigmoid_binary_cross_entropy`.

    Args:
        probs: Probabilities of "yes" in [0, 1], any shape.
        labels: Targets in [0, 1], real or boolean, of the rank of `probs`, or a scalar.
        where: Mask of the elements, of the rank of `probs`, or a scalar.

    Returns:
        One loss per element in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs, labels = jnp.array([0.99, 0.05, 1e-30]), jnp.array([1, 1, 0])
        >>> print(jaxent.binary_cross_entropy(probs, labels))
        [1.0050327e-02 2.9957323e+00 1.0000000e-30]

    References:
        Good, `Rational Decisions <https://doi.org/10.1111/j.2517-6161.1952.tb00104.x>`_, 1952.
    """
    probs = _checks.as_floating("probs", probs)
    labels = _checks.as_real("labels", labels)
    where, arrays = _masks.mask_elements(where, probs=probs, labels=labels)
    return _masks.zero_where_masked(_binary_losses(*arrays), where)


@_checks.public
def categorical_cross_entropy(
    probs: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Cross-entropy between the probabilities of the classes and a distribution over them.

    .. math:: \ell = -\sum_j t_j \log p_j

    A probability of 0 under a positive target costs `+inf`. From logits: `softmax_cross_entropy`.

    Args:
        probs: Probabilities in [0, 1], `[..., V]`, of any total.
        labels: Targets, `[..., V]`, non-negative, of any total (1 for a distribution).
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs`).

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([[0.4, 0.4, 0.2], [0.0, 0.5, 0.5]])
        >>> print(jaxent.categorical_cross_entropy(probs, jnp.array([[0, 1, 0], [0, 0, 1]])))
        [0.9162907 0.6931472]

    References:
        Good, `Rational Decisions <https://doi.org/10.1111/j.2517-6161.1952.tb00104.x>`_, 1952.
    """
    kernel = probability.categorical_cross_entropy
    return _apply_to_targets(kernel, intervals.NON_NEGATIVE, probs, labels, axis, where)


@_checks.public
def negative_log_likelihood(
    log_probs: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Minus the log-probability of the one true class of each example.

    .. math:: \ell = -\log p_y

    From logits: `softmax_cross_entropy_with_integer_labels`.

    Args:
        log_probs: Log-probabilities in nats, at most 0, `[..., V]`, of any total.
        labels: Index of the true class, integers `[...]`; a flat index into several axes.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `log_probs`).

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_probs = jnp.log(jnp.array([[0.4, 0.4, 0.2], [0.25, 0.5, 0.25]]))
        >>> print(jaxent.negative_log_likelihood(log_probs, jnp.array([1, 2])))
        [0.9162907 1.3862944]

    References:
        Bishop, *Pattern Recognition and Machine Learning*, 2006, section 4.3.4.
    """
    remedy = "for one target per class use `jaxent.categorical_cross_entropy`."
    given = _masks.check_labelled_arguments("log_probs", log_probs, labels, axis, where, remedy)
    return _labelled_losses(given.array, given.labels, given.where, given.axes)


@_checks.public
def brier_score(
    probs: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Squared distance between the probabilities of the classes and their targets.

    .. math:: \ell = \sum_j (p_j - t_j)^2

    Args:
        probs: Probabilities in [0, 1], `[..., V]`, of any total.
        labels: Targets in [0, 1], `[..., V]`, real or boolean.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs`).

    Returns:
        Scores in squared units of probability, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([[0.75, 0.25, 0.0], [0.25, 0.25, 0.5]])
        >>> print(jaxent.brier_score(probs, jnp.array([[1, 0, 0], [1, 0, 0]])))
        [0.125 0.875]

    References:
        Brier, `Verification of Forecasts
        <https://doi.org/10.1175/1520-0493(1950)078%3C0001:VOFEIT%3E2.0.CO;2>`_, 1950.
    """
    kernel = probability.squared_distance
    return _apply_to_targets(kernel, intervals.UNIT_INTERVAL, probs, labels, axis, where)


def _apply_to_targets(
    kernel: Callable[[jax.Array, jax.Array], jax.Array],
    interval: intervals.Interval,
    probs: ArrayLike,
    labels: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
) -> jax.Array:
    """`kernel` of rows of probabilities and one target per class, which lies in the interval."""
    arrays = {
        "probs": _checks.as_floating("probs", probs),
        "labels": _checks.as_real("labels", labels),
    }
    fills = (_masks.PROBABILITIES, _masks.TARGETS)
    accepted = (intervals.UNIT_INTERVAL, interval)
    return _masks.apply_per_example(kernel, arrays, fills, axis, where, intervals=accepted)


@functools.partial(jax.jit, inline=True)
def _binary_losses(probs: jax.Array, labels: jax.Array) -> jax.Array:
    dtype = compute_dtype(probs, labels)
    shape = jnp.broadcast_shapes(probs.shape, labels.shape)
    given = map(intervals.clip_rounding, (probs, labels))
    p, yes = (jnp.broadcast_to(array.astype(dtype), shape) for array in given)
    valid = (p >= 0.0) & (p <= 1.0) & (yes >= 0.0) & (yes <= 1.0)
    return intervals.nan_where_invalid(probability.bernoulli_cross_entropy(p, yes), valid)


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _labelled_losses(
    log_probs: jax.Array, labels: jax.Array, where: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
    log_probs = intervals.clip_rounding(log_probs, intervals.NON_POSITIVE)
    rows = _masks.mask_labelled_rows(log_probs, labels, where, axes, _masks.LOGITS)
    rows = rows.valid_only_if(intervals.all_in_interval(rows.values, intervals.NON_POSITIVE))
    return rows.losses(probability.negative_log_likelihood(rows.values, rows.labels))
