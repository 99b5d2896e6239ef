"""Losses of mutually exclusive classes, from logits."""

import functools
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks, _parallel
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
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy between softmax of the logits and one true class per example.

    .. math::
        \ell = \log \sum_j e^{x_j} - \sum_j t_j x_j, \qquad
        t_j = (1 - \epsilon)\,[j = y] + \epsilon / K

    It is computed as :math:`(x_{max} - x_y) + \log(1 + \sum_{j \ne y} e^{x_j - x_y})` where y is on
    top, which keeps its relative accuracy down to the smallest numbers of the dtype. Smoothing
    makes no one-hot matrix.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
        labels: Index of the true class, integers of the shape of the examples `[...]`. An index
            outside `[0, V)`, negative ones included, makes that example NaN unless it is masked.
        axis: The class axis. Given several, a label is a flat index into them, in their order.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; a label that points to a class that
            does not is out of range, and an example without classes is masked.
        label_smoothing: The share :math:`\epsilon` in [0, 1] of the target that is spread evenly
            over all K classes that exist. A number, or a scalar array (NaN if out of range).
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits` and a class mask are then one
            block; labels count all classes (of several `axis`, the first is split). None for none.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 for float64 logits). Masked
        examples have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `label_smoothing` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> labels = jnp.array([0, 1])
        >>> print(jaxent.softmax_cross_entropy_with_integer_labels(logits, labels))
        [4.1223074e-09 1.4076060e+00]

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 6.2.2.3. Label smoothing:
        Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
        2015, section 7.
    """
    remedy = "for one target per class use `jaxent.softmax_cross_entropy`."
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, remedy, axis_name
    )
    smoothing = _smoothing(label_smoothing)
    return _integer_label_losses(*given[:3], smoothing, given.axes, axis_name)


@_checks.public
def softmax_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy between softmax of the logits and a distribution over the classes.

    .. math::
        \ell = \sum_j t_j \Big( \log \sum_k e^{x_k} - x_j \Big), \qquad
        t_j = (1 - \epsilon)\, y_j + \epsilon / K

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class:
            it counts 0 against a target of 0, and `+inf` against a positive one.
        labels: Targets, one per class, of the rank of `logits`; real, non-negative, of any total
            (1 for a distribution). A negative target makes that example NaN unless it is masked.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; logits and targets of the others
            are ignored, and an example without classes is masked.
        label_smoothing: The share :math:`\epsilon` in [0, 1] of the target that is spread evenly
            over all K classes that exist. A number, or a scalar array (NaN if out of range).
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits`, `labels` and a class mask are
            then one block. None for none.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 if any input is). Masked
        examples have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `label_smoothing` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.1, 0.6, 0.3]])
        >>> print(jaxent.softmax_cross_entropy(logits, labels))
        [4.1223074e-09 1.2076060e+00]

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 3.13. Label smoothing:
        Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
        2015, section 7.
    """
    return _soft_cross_entropy(logits, labels, axis, where, label_smoothing, axis_name)


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

    In optax only the function of this name takes 0 of an impossible class as 0. Here both do.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class:
            it counts 0 against a target of 0, and `+inf` against a positive one.
        labels: Targets, one per class, of the rank of `logits`; real, non-negative, of any total
            (1 for a distribution). A negative target makes that example NaN unless it is masked.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; logits and targets of the others
            are ignored, and an example without classes is masked.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits`, `labels` and a class mask are
            then one block. None for none.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 if any input is). Masked
        examples have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([0.0, 0.0, -jnp.inf])
        >>> print(jaxent.safe_softmax_cross_entropy(logits, jnp.array([0.5, 0.5, 0.0])))
        0.6931472

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 3.13.
    """
    return _soft_cross_entropy(logits, labels, axis, where, 0.0, axis_name)


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

    Add a small multiple of it, 1e-4 say, to a softmax cross-entropy.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, or a tuple of such axes. `logits` and a class mask are then one block. None for
            none.

    Returns:
        One penalty per example in nats squared, shape `[...]`, float32 (float64 for float64
        logits), differentiable. Masked examples have value 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

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


def _soft_cross_entropy(logits, labels, axis, where, label_smoothing, axis_name) -> jax.Array:
    _checks.check_mesh_axis(axis_name)
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_real("labels", labels)
    axes = _checks.normalize_axes("logits", logits, axis)
    smoothing = _smoothing(label_smoothing)
    _checks.check_broadcastable(logits=logits, labels=labels)
    _checks.check_same_classes(axes, logits=logits, labels=labels)
    where = _masks.check_mask(where, axes, {"logits": logits, "labels": labels})
    return _soft_label_losses(logits, labels, where, smoothing, axes, axis_name)


@functools.partial(jax.jit, static_argnames=("axes", "axis_name"), inline=True)
def _integer_label_losses(logits, labels, where, smoothing, axes, axis_name) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    if smoothing is not None:
        smoothing, proper = _proper_smoothing(smoothing, rows.values.dtype)
        valid = proper if rows.example_mask is None else proper | ~rows.example_mask
        rows = rows._replace(valid=rows.valid & valid)
    given = rows.values, rows.labels, smoothing, rows.class_mask
    return rows.losses(cross_entropy.label_cross_entropy(*given, axis_name))


@functools.partial(jax.jit, static_argnames=("axes", "axis_name"), inline=True)
def _soft_label_losses(logits, labels, where, smoothing, axes, axis_name) -> jax.Array:
    dtype = compute_dtype(logits, labels)
    x, class_mask, example_mask = _masks.mask_rows(
        logits.astype(dtype), where, axes, _masks.LOGITS, axis_name
    )
    targets = _masks.move_classes_last(jnp.broadcast_to(labels, labels.shape or logits.shape), axes)
    targets = targets.astype(dtype)
    shape = jnp.broadcast_shapes(
        x.shape, targets.shape, (1,) if example_mask is None else (*example_mask.shape, 1)
    )
    x, targets = jnp.broadcast_to(x, shape), jnp.broadcast_to(targets, shape)
    if smoothing is not None:
        smoothing, proper = _proper_smoothing(smoothing, dtype)
        if class_mask is None:
            count = _parallel.class_count(shape[-1], axis_name)
        else:
            count = _parallel.psum(jnp.sum(class_mask, -1, dtype=dtype, keepdims=True), axis_name)
        targets = (1.0 - smoothing) * targets + smoothing / jnp.maximum(
            jnp.asarray(count, dtype), 1.0
        )
        targets *= jnp.where(proper, 1.0, jnp.nan).astype(dtype)
    if class_mask is not None:
        targets = jnp.where(class_mask, targets, 0.0)
    if example_mask is not None:
        targets = jnp.where(example_mask[..., None], targets, 0.0)
    return _masks.zero_where_masked(
        soft_cross_entropy.soft_cross_entropy(x, targets, axis_name), example_mask
    )


def _smoothing(value: ArrayLike) -> jax.Array | None:
    """The smoothing as a scalar array, or None where it is known to be 0."""
    _checks.check_closed_interval("label_smoothing", value, 0.0, 1.0)
    if isinstance(value, numbers.Real) and value == 0:
        return None
    return _checks.as_scalar("label_smoothing", value)


def _proper_smoothing(smoothing: jax.Array, dtype) -> tuple[jax.Array, jax.Array]:
    """The smoothing in the dtype of the computation, and whether it lies in [0, 1]."""
    smoothing = smoothing.astype(dtype)
    proper = (smoothing >= 0.0) & (smoothing <= 1.0)
    return jnp.where(proper, smoothing, 0.0), proper
