"""Losses of one true class for labels that may be wrong: a bad label does limited harm."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._kernels import cross_entropy, robust
from jaxent._parallel import AxisName

_REMEDY = "for one target per class use `jaxent.softmax_cross_entropy`."


@_checks.public
def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    q: ArrayLike = 0.7,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""A bounded loss between cross-entropy and absolute error, for labels that may be wrong.

    .. math:: \ell = (1 - p_y^q) / q, \qquad p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        labels: Index y of the true class, integers `[...]`; a flat index into several axes.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        q: The exponent in [0, 1], a scalar: 0 is cross-entropy, and 1 is :math:`1 - p_y`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        Losses `[...]`, in nats for q = 0, no unit for 1, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 0.0, 90.0]])
        >>> print(jaxent.generalized_cross_entropy(logits, jnp.array([0, 1])))
        [4.1223074e-09 1.4285715e+00]

    References:
        Zhang, Sabuncu, `Generalized Cross Entropy <https://arxiv.org/abs/1805.07836>`_, 2018.
    """
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, _REMEDY, axis_name
    )
    number, traced = _checks.number_or_scalar("q", q, 0.0, 1.0)
    return _generalized_losses(*given, axis_name, number=number, q=traced)


@_checks.public
def symmetric_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike = 0.1,
    beta: ArrayLike = 1.0,
    log_zero: ArrayLike = -4.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy in both directions between prediction and label, which may be wrong.

    .. math:: \ell = -\alpha \log p_y - \beta A \sum_{j \ne y} p_j, \qquad p = \mathrm{softmax}(x)

    The second term swaps prediction and label, with A in the place of log 0.

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        labels: Index y of the true class, integers `[...]`; a flat index into several axes.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        alpha: Weight of the cross-entropy, at least 0, finite; a scalar.
        beta: Weight of the reverse cross-entropy, at least 0, finite; a scalar.
        log_zero: A in nats, at most 0, finite; a scalar.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> print(jaxent.symmetric_cross_entropy(logits, jnp.array([0, 1])))
        [1.6901460e-08 3.1618466e+00]

    References:
        Wang et al., `Symmetric Cross Entropy <https://arxiv.org/abs/1908.06112>`_, 2019.
    """
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, _REMEDY, axis_name
    )
    options = {"alpha": alpha, "beta": beta, "log_zero": log_zero}
    for option, value in options.items():
        low, high = (-math.inf, 0.0) if option == "log_zero" else (0.0, math.inf)
        _checks.check_closed_interval(option, value, low, high)
        _checks.check_finite(option, value)
    arrays = {option: _checks.as_scalar(option, value) for option, value in options.items()}
    return _symmetric_losses(*given, axis_name, **arrays)


@functools.partial(jax.jit, static_argnames=("axes", "axis_name", "number"), inline=True)
def _generalized_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    axis_name: AxisName,
    number: float | None,
    q: jax.Array | None,
) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    dtype = rows.values.dtype
    if q is not None:
        q, is_valid = intervals.valid_option(q, dtype, 0.0, 1.0)
        rows = rows.valid_only_if(is_valid)
    c = cross_entropy.label_cross_entropy(rows.values, rows.labels, axis_name=axis_name)
    p_to_q = robust.label_power(number, rows.values, rows.labels, q, axis_name)
    q = jnp.asarray(number, dtype) if q is None else q
    return rows.losses(robust.generalized_cross_entropy(c, p_to_q, q))


@functools.partial(jax.jit, static_argnames=("axes", "axis_name"), inline=True)
def _symmetric_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    axis_name: AxisName,
    alpha: jax.Array,
    beta: jax.Array,
    log_zero: jax.Array,
) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    dtype = rows.values.dtype
    alpha, is_alpha_valid = intervals.valid_option(alpha, dtype, 0.0, math.inf)
    beta, is_beta_valid = intervals.valid_option(beta, dtype, 0.0, math.inf)
    log_zero, is_log_zero_valid = intervals.valid_option(log_zero, dtype, -math.inf, 0.0)
    for is_valid in (is_alpha_valid, is_beta_valid, is_log_zero_valid):
        rows = rows.valid_only_if(is_valid)
    c = cross_entropy.label_cross_entropy(rows.values, rows.labels, axis_name=axis_name)
    p = robust.label_power(1.0, rows.values, rows.labels, None, axis_name)
    # Without a weight even an infinite cross-entropy counts 0.
    forward = alpha * jnp.where((alpha == 0.0) & (c == jnp.inf), 0.0, c)
    complement = robust.generalized_cross_entropy(c, p, jnp.ones((), dtype))
    return rows.losses(forward - beta * log_zero * complement)
