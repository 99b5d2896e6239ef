"""Focal losses: cross-entropies in which easy examples weigh little, for rare classes."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import cross_entropy, focal, robust, sigmoid
from jaxent._parallel import AxisName


@_checks.public
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> jax.Array:
    r"""Element-wise cross-entropy of yes/no targets in which easy elements weigh little.

    .. math:: \ell = \alpha_t\, (1 - p_t)^\gamma \big({-t} \log p - (1 - t) \log (1 - p)\big), \quad
        p = \sigma(x), \quad p_t = p t + (1 - p)(1 - t), \quad
        \alpha_t = \alpha t + (1 - \alpha)(1 - t)

    Second derivatives in `labels` and `gamma` are less exact, and may be infinite from a logit of
    87.

    Args:
        logits: Log-odds of "yes" in nats, any shape.
        labels: Targets t in [0, 1], real or boolean, of the rank of `logits`, or a scalar.
        where: Mask of the elements, of the rank of `logits`, or a scalar.
        alpha: Weight of "yes" in [0, 1] ("no": the rest), of that rank, or a scalar; None for none.
        gamma: How much easy elements are discounted, at least 0, finite, a number (fastest are
            small multiples of 1/2) or a scalar array.

    Returns:
        One loss per element in nats, of the common shape, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, labels = jnp.array([3.0, 0.0, -2.0]), jnp.array([1, 1, 1])
        >>> print(jaxent.sigmoid_focal_loss(logits, labels))
        [1.09283326e-04 1.73286796e-01 1.65007806e+00]

    References:
        Lin et al., `Focal Loss <https://arxiv.org/abs/1708.02002>`_, 2017, equations 4 and 5.
    """
    given = {
        "logits": _checks.as_floating("logits", logits),
        "labels": _checks.as_real("labels", labels),
    }
    if alpha is not None:
        _checks.check_closed_interval("alpha", alpha, 0.0, 1.0)
        given["alpha"] = _checks.as_real("alpha", alpha)
    number, traced = _checks.number_or_scalar("gamma", gamma, 0.0, math.inf)
    where, arrays = _masks.mask_elements(where, **given)
    losses = _sigmoid_focal_losses(*arrays, number=number, gamma=traced)
    return _masks.zero_where_masked(losses, where)


@_checks.public
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    gamma: ArrayLike = 2.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy against one true class per example, in which easy examples weigh little.

    .. math:: \ell = -(1 - p_y)^\gamma \log p_y, \qquad p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        labels: Index y of the true class, integers `[...]`; a flat index into several axes.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        gamma: How much easy examples are discounted, at least 0, a number or a scalar array.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> print(jaxent.softmax_focal_loss(logits, jnp.array([0, 1])))
        [7.7842223e-04 8.0294776e-01]

    References:
        Lin et al., `Focal Loss <https://arxiv.org/abs/1708.02002>`_, 2017; Mukhoti et al.,
        `Calibrating Deep Neural Networks <https://arxiv.org/abs/2002.09437>`_, 2020, section 4.
    """
    remedy = "for one target per class use `jaxent.softmax_cross_entropy`."
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, remedy, axis_name
    )
    number, traced = _checks.number_or_scalar("gamma", gamma, 0.0, math.inf)
    return _softmax_focal_losses(*given, axis_name, number=number, gamma=traced)


@functools.partial(jax.jit, static_argnames="number", inline=True)
def _sigmoid_focal_losses(
    logits: jax.Array,
    labels: jax.Array,
    alpha: jax.Array | None = None,
    *,
    number: float | None,
    gamma: jax.Array | None,
) -> jax.Array:
    given = [array for array in (logits, labels, alpha) if array is not None]
    dtype = compute_dtype(*given)
    shape = jnp.broadcast_shapes(*(array.shape for array in given))
    given = [logits, *map(intervals.clip_rounding, given[1:])]
    x, *weights = (jnp.broadcast_to(array.astype(dtype), shape) for array in given)
    target, *alphas = (intervals.nan_outside(weight, 0.0, 1.0) for weight in weights)
    if gamma is not None:
        gamma, is_valid = intervals.valid_option(gamma, dtype, 0.0, math.inf)
        x = intervals.nan_where_invalid(x, is_valid)
    if number == 0.0:
        losses = sigmoid.binary_cross_entropy(x, target, 1.0 - target)
    else:
        losses = focal.sigmoid_focal_loss(number, x, target, gamma)
    for each in alphas:
        losses *= each * target + (1.0 - each) * (1.0 - target)
    return losses


@functools.partial(jax.jit, static_argnames=("axes", "axis_name", "number"), inline=True)
def _softmax_focal_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    axis_name: AxisName,
    number: float | None,
    gamma: jax.Array | None,
) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    if gamma is not None:
        gamma, is_valid = intervals.valid_option(gamma, rows.values.dtype, 0.0, math.inf)
        rows = rows.valid_only_if(is_valid)
    c = cross_entropy.label_cross_entropy(rows.values, rows.labels, axis_name=axis_name)
    p = robust.label_power(1.0, rows.values, rows.labels, None, axis_name)
    return rows.losses(focal.softmax_focal_loss(number, c, p, gamma))
