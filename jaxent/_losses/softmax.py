"""Losses of mutually exclusive classes, from logits."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks, _parallel
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import cross_entropy, soft_cross_entropy, softmax
from jaxent._parallel import AxisName


@_checks.public
def softmax_cross_entropy_with_integer_labels(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy between softmax of the logits and one true class per example.

    .. math:: \ell = -\sum_j t_j \log p_j + z \Big( \log \sum_j e^{x_j} \Big)^2, \qquad
        t_j = (1 - \epsilon)\, [j = y] + \epsilon / K

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`; p is their softmax.
        labels: Index of the true class, integers `[...]`; a flat index into several axes.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        label_smoothing: Fraction :math:`\epsilon` in [0, 1] of the target, spread over K classes.
        z_loss: The weight :math:`z \ge 0` of the squared log-normaliser, a scalar.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> print(jaxent.softmax_cross_entropy_with_integer_labels(logits, jnp.array([0, 1])))
        [4.1223074e-09 1.4076060e+00]

    References:
        Goodfellow et al., *Deep Learning*, 2016; Szegedy et al., `Inception
        <https://arxiv.org/abs/1512.00567>`_, 2015.
    """
    remedy = "for one target per class use `jaxent.softmax_cross_entropy`."
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, remedy, axis_name
    )
    options = _as_options(label_smoothing, z_loss)
    return _integer_label_losses(*given[:3], options, given.axes, axis_name)


@_checks.public
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy between softmax of the logits and a distribution over the classes.

    .. math:: \ell = -\sum_j t_j \log p_j + z \Big( \log \sum_j e^{x_j} \Big)^2, \qquad
        t_j = (1 - \epsilon)\, y_j + \epsilon / K

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`; p is their softmax.
        labels: Targets, `[..., V]`, non-negative, of any total (1 for a distribution).
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        label_smoothing: Fraction :math:`\epsilon` in [0, 1] of the target, spread over K classes.
        z_loss: The weight :math:`z \ge 0` of the squared log-normaliser, a scalar.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.1, 0.6, 0.3]])
        >>> print(jaxent.softmax_cross_entropy(jnp.array([[20.0, 0, 0], [0, 1, 2]]), labels))
        [4.1223074e-09 1.2076060e+00]

    References:
        Goodfellow et al., *Deep Learning*, 2016; Szegedy et al., `Inception
        <https://arxiv.org/abs/1512.00567>`_, 2015.
    """
    return _soft_cross_entropy(logits, labels, axis, where, label_smoothing, z_loss, axis_name)


@_checks.public
def safe_softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Another name of `jaxent.softmax_cross_entropy`, which is safe, for those from optax.

    .. math:: \ell = \sum_j t_j \Big( \log \sum_k e^{x_k} - x_j \Big)

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        labels: Targets, `[..., V]`, non-negative, of any total (1 for a distribution).
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([0.0, 0.0, -jnp.inf])
        >>> print(jaxent.safe_softmax_cross_entropy(logits, jnp.array([0.5, 0.5, 0.0])))
        0.6931472

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 3.13.
    """
    return _soft_cross_entropy(logits, labels, axis, where, 0.0, 0.0, axis_name)


@_checks.public
def z_loss(
    logits: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""The squared log-normaliser of the logits, which keeps them from drifting.

    .. math:: z = \Big( \log \sum_j e^{x_j} \Big)^2

    A small multiple of it, 1e-4 say, is added to a softmax cross-entropy: by the `z_loss=1e-4` of
    `jaxent.softmax_cross_entropy_with_integer_labels` it costs next to nothing.

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One penalty per example in nats squared, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.z_loss(jnp.array([[0.0, 0.0], [3.0, -40.0]])))
        [0.48045304 9.        ]

    References:
        Chowdhery et al., `PaLM <https://arxiv.org/abs/2204.02311>`_, 2022, section 5; Zoph et al.,
        `ST-MoE <https://arxiv.org/abs/2202.08906>`_, 2022, equation 5.
    """
    logits = _checks.as_floating("logits", logits)
    return _masks.apply_per_example(
        softmax.squared_log_normalizer,
        {"logits": logits},
        (_masks.LOGITS,),
        axis,
        where,
        axis_name,
    )


def _soft_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
    label_smoothing: ArrayLike,
    z_loss: ArrayLike,
    axis_name: AxisName,
) -> jax.Array:
    _checks.check_mesh_axis(axis_name)
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_real("labels", labels)
    axes = _checks.normalize_axes("logits", logits, axis)
    options = _as_options(label_smoothing, z_loss)
    _checks.check_targets("logits", logits, "labels", labels)
    _checks.check_broadcastable(logits=logits, labels=labels)
    _checks.check_same_classes(axes, logits=logits, labels=labels)
    where = _masks.check_mask(where, axes, {"logits": logits, "labels": labels})
    return _soft_label_losses(logits, labels, where, options, axes, axis_name)


Options = tuple[jax.Array | None, jax.Array | None]


def _as_options(label_smoothing: ArrayLike, z_loss: ArrayLike) -> Options:
    """Smoothing and weight of the z-loss as scalar arrays, None where they are known to be 0."""
    _checks.check_closed_interval("label_smoothing", label_smoothing, 0.0, 1.0)
    _checks.check_finite("z_loss", z_loss)
    _checks.check_closed_interval("z_loss", z_loss, 0.0, math.inf)
    return (
        _checks.as_scalar_unless("label_smoothing", label_smoothing, 0.0),
        _checks.as_scalar_unless("z_loss", z_loss, 0.0),
    )


@functools.partial(jax.jit, static_argnames=("axes", "axis_name"), inline=True)
def _integer_label_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    options: Options,
    axes: tuple[int, ...],
    axis_name: AxisName,
) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    valid: list[jax.Array | None] = []
    for option, high in zip(options, (1.0, math.inf), strict=True):
        if option is not None:
            option, is_valid = intervals.valid_option(option, rows.values.dtype, 0.0, high)
            if rows.example_mask is not None:
                is_valid |= ~rows.example_mask
            rows = rows.valid_only_if(is_valid)
        valid.append(option)
    smoothing, z_weight = valid
    return rows.losses(
        cross_entropy.label_cross_entropy(
            rows.values, rows.labels, smoothing, rows.class_mask, axis_name, z_weight
        )
    )


@functools.partial(jax.jit, static_argnames=("axes", "axis_name"), inline=True)
def _soft_label_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    options: Options,
    axes: tuple[int, ...],
    axis_name: AxisName,
) -> jax.Array:
    smoothing, z_weight = options
    dtype = compute_dtype(logits, labels)
    x, class_mask, example_mask = _masks.mask_rows(
        logits.astype(dtype), where, axes, _masks.LOGITS, axis_name
    )
    labels = jnp.broadcast_to(labels, labels.shape or logits.shape)
    targets = _masks.move_classes_last(labels, axes).astype(dtype)
    mask_shape = (1,) if example_mask is None else (*example_mask.shape, 1)
    shape = jnp.broadcast_shapes(x.shape, targets.shape, mask_shape)
    x, targets = jnp.broadcast_to(x, shape), jnp.broadcast_to(targets, shape)
    if smoothing is not None:
        targets = _smooth(targets, smoothing, class_mask, axis_name)
    if class_mask is not None:
        targets = jnp.where(class_mask, targets, 0.0)
    if example_mask is not None:
        targets = jnp.where(example_mask[..., None], targets, 0.0)
    is_valid = None
    if z_weight is not None:
        z_weight, is_valid = intervals.valid_option(z_weight, dtype, 0.0, math.inf)
    losses = soft_cross_entropy.soft_cross_entropy(x, targets, axis_name, z_weight)
    if is_valid is not None:
        losses = intervals.nan_where_invalid(losses, is_valid)
    return _masks.zero_where_masked(losses, example_mask)


def _smooth(
    targets: jax.Array, smoothing: jax.Array, class_mask: jax.Array | None, axis_name: AxisName
) -> jax.Array:
    """(1-e) t + e/K for the K classes that count, [..., V]; NaN where e is not in [0, 1]."""
    dtype = targets.dtype
    smoothing, is_valid = intervals.valid_option(smoothing, dtype, 0.0, 1.0)
    if class_mask is None:
        count = _parallel.class_count(targets.shape[-1], axis_name)
    else:
        count = _parallel.psum(jnp.sum(class_mask, -1, dtype=dtype, keepdims=True), axis_name)
    uniform = smoothing / jnp.maximum(jnp.asarray(count, dtype), 1.0)
    return intervals.nan_where_invalid((1.0 - smoothing) * targets + uniform, is_valid)
