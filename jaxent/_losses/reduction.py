"""From one loss per example to one number, or one per segment: means that add up."""

from __future__ import annotations

import functools
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._parallel import with_auto_axes


@_checks.public
def sum_and_weight(
    losses: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
) -> tuple[jax.Array, jax.Array]:
    r"""The two halves of a mean: the weighted sum of the losses, and the sum of the weights.

    .. math:: \Big(\sum_{i \in M} w_i \ell_i, \ \sum_{i \in M} w_i\Big)

    Unlike means, these add up over micro-batches and devices: sum both, then divide once.

    Args:
        losses: One loss per example in nats, any shape; booleans count as 0 and 1.
        where: Mask of the examples, of the rank of `losses`, or a scalar.
        weights: Real weights of the examples, of the rank of `losses`, or a scalar; None is 1.
            They are no mask: a weight of 0 on a NaN is NaN.
        axis: The axis, or axes, to sum over; None for all.
        segment_ids: The segment of each example, integers of the shape of `losses`, in any order;
            each segment has sums of its own. A negative one, or one from `num_segments` on, is NaN
            in all segments along these axes unless it is masked.
        num_segments: The number of segments, a Python number.

    Returns:
        Weighted sum in nats and total weight, of the axes that are left, then `[num_segments]` if
        there are segments; float32 (float64 for float64 inputs). Empty segments have 0 and 0.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> losses, where = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
        >>> print(*jaxent.sum_and_weight(losses, where))
        4.0 2.0

    References:
        Wikipedia, `Weighted mean <https://en.wikipedia.org/wiki/Weighted_arithmetic_mean>`_.
    """
    return _sum_and_weight(losses, where, weights, axis, segment_ids, num_segments)


@_checks.public
def mean(
    losses: ArrayLike,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] | None = None,
    segment_ids: ArrayLike | None = None,
    num_segments: int | None = None,
    total_weight: ArrayLike | None = None,
) -> jax.Array:
    r"""The weighted mean of the losses that count; 0, with zero gradient, if none does.

    .. math:: \sum_{i \in M} w_i \ell_i \Big/ \sum_{i \in M} w_i

    A mean over sequences of their means leaves out empty ones:
    `mean(mean(losses, where, axis=-1), where=where.any(-1))`. Packed rows do it with `segment_ids`,
    and with `weight > 0` of `jaxent.sum_and_weight` as the outer mask.

    Args:
        losses: One loss per example in nats, any shape; booleans count as 0 and 1.
        where: Mask of the examples, of the rank of `losses`, or a scalar.
        weights: Real weights of the examples, of the rank of `losses`, or a scalar; None is 1.
            They are no mask: a weight of 0 on a NaN is NaN.
        axis: The axis, or axes, to take the mean over; None for all.
        segment_ids: The segment of each example, integers of the shape of `losses`; each segment
            has a mean of its own, see `jaxent.sum_and_weight`.
        num_segments: The number of segments, a Python number.
        total_weight: What to divide by in place of the sum of the weights, a scalar or of the shape
            of the result: the weight of a batch of which this is a part, or a constant length.

    Returns:
        Means in nats of the axes that are left (a scalar if none is), then `[num_segments]` if
        there are segments; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.mean(jnp.array([1.0, 3.0, 8.0]), where=jnp.array([True, True, False])))
        2.0
        >>> print(jaxent.mean(jnp.array([1.0, 3.0]), weights=jnp.array([3.0, 1.0])))
        1.5
        >>> losses, packed = jnp.array([[1.0, 3.0, 5.0]]), jnp.array([[0, 0, 1]])
        >>> print(jaxent.mean(losses, axis=-1, segment_ids=packed, num_segments=3))
        [[2. 5. 0.]]

    References:
        Wikipedia, `Weighted mean <https://en.wikipedia.org/wiki/Weighted_arithmetic_mean>`_.
    """
    if total_weight is not None:
        total_weight = _checks.as_real("total_weight", total_weight)
    total, weight = _sum_and_weight(
        losses, where, weights, axis, segment_ids, num_segments, total_weight
    )
    if total_weight is None:
        return divide(total, weight)
    _checks.require(
        total_weight.shape in ((), total.shape),
        f"`total_weight` {_checks.describe(total_weight)} must be a scalar, or of the shape "
        f"{total.shape} of the means.",
    )
    return divide(total, total_weight.astype(total.dtype))


@functools.partial(jax.jit, inline=True)
def divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    """`total / weight`, and 0 without gradient for 0 / 0."""
    is_empty = (weight == 0.0) & (total == 0.0)
    return jnp.where(is_empty, 0.0, total / jnp.where(is_empty, 1.0, weight))


def _sum_and_weight(
    losses: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    axis: int | tuple[int, ...] | None,
    segment_ids: ArrayLike | None,
    num_segments: int | None,
    total_weight: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    losses = _checks.as_array("losses", losses)
    if losses.dtype != jnp.bool_:
        losses = _checks.as_floating("losses", losses)
    weights = _checks.as_real("weights", 1.0 if weights is None else weights)
    where = _checks.as_boolean("where", True if where is None else where)
    shape = _checks.check_broadcastable(losses=losses, where=where, weights=weights)
    _checks.require(
        losses.shape == shape,
        f"`losses` {_checks.describe(losses)} must have the full shape {shape} of the mask and "
        "weights; broadcast it with `jnp.broadcast_to`.",
    )
    axes = _reduced_axes(losses, axis)
    given = (losses, weights) if total_weight is None else (losses, weights, total_weight)
    dtype = compute_dtype(*given)
    if segment_ids is None:
        _checks.require(
            num_segments is None, "`num_segments` is given without `segment_ids`; pass both."
        )
        return _sums(losses, where, weights, axes, dtype)
    segment_ids = _checks.as_integer("segment_ids", segment_ids, "number the segments from 0.")
    _checks.check_positive_integer("num_segments", num_segments)
    _checks.require(
        segment_ids.shape == losses.shape and losses.ndim > 0,
        f"`segment_ids` {_checks.describe(segment_ids)} must hold one number for each of `losses` "
        f"{_checks.describe(losses)}, which must have an axis.",
    )
    return _segment_sums(losses, where, weights, segment_ids, axes, dtype, num_segments)


def _reduced_axes(losses: jax.Array, axis: int | tuple[int, ...] | None) -> tuple[int, ...]:
    """`axis` as a tuple of non-negative axes; unlike that of classes it may have size 0."""
    if axis is None:
        return tuple(range(losses.ndim))
    given = axis if isinstance(axis, tuple) else (axis,)
    is_axis = [isinstance(a, numbers.Integral) and -losses.ndim <= a < losses.ndim for a in given]
    _checks.require(
        all(is_axis) and 0 < len(given) == len({a % losses.ndim for a in given}),
        f"`axis` {axis} must name axes of `losses` {_checks.describe(losses)}, each once.",
    )
    return tuple(int(a) % losses.ndim for a in given)


@functools.partial(jax.jit, static_argnames=("axes", "dtype"), inline=True)
def _sums(
    losses: jax.Array,
    where: jax.Array,
    weights: jax.Array,
    axes: tuple[int, ...],
    dtype: jnp.dtype,
) -> tuple[jax.Array, jax.Array]:
    products, weights = _weighted(losses, where, weights, dtype)
    return jnp.sum(products, axes), jnp.sum(weights, axes)


@functools.partial(jax.jit, static_argnames=("axes", "dtype", "num_segments"), inline=True)
def _segment_sums(
    losses: jax.Array,
    where: jax.Array,
    weights: jax.Array,
    segment_ids: jax.Array,
    axes: tuple[int, ...],
    dtype: jnp.dtype,
    num_segments: int,
) -> tuple[jax.Array, jax.Array]:
    products, weights = _weighted(losses, where, weights, dtype)
    counts = jnp.broadcast_to(where, losses.shape)
    arrays = [
        jnp.moveaxis(array, axes, range(-len(axes), 0))
        for array in (products, weights, _masks.widen_labels(segment_ids), counts)
    ]
    sums = functools.partial(_sum_each, rank=len(axes), num_segments=num_segments)
    return with_auto_axes(sums, *arrays, example=arrays[0], ndim=losses.ndim - len(axes))


def _sum_each(
    products: jax.Array,
    weights: jax.Array,
    ids: jax.Array,
    counts: jax.Array,
    rank: int,
    num_segments: int,
) -> tuple[jax.Array, jax.Array]:
    """Both summed over the last `rank` axes for each segment; NaN where an id is no segment."""

    def flat(array: jax.Array) -> jax.Array:
        return array.reshape(*array.shape[: array.ndim - rank], -1)

    ids = flat(ids)
    is_segment = (ids >= 0) & (ids < num_segments)
    is_valid = jnp.all(is_segment | ~flat(counts), axis=-1, keepdims=True)
    ids = jnp.where(is_segment, ids, 0)  # what does not count adds 0 to whichever segment
    segment_sum = functools.partial(jax.ops.segment_sum, num_segments=num_segments)
    for _ in ids.shape[:-1]:
        segment_sum = jax.vmap(segment_sum)
    totals = (segment_sum(flat(array), ids) for array in (products, weights))
    total, weight = (intervals.nan_where_invalid(each, is_valid) for each in totals)
    return total, weight


def _weighted(
    losses: jax.Array, where: jax.Array, weights: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """Products of weights and losses, and the weights, both 0 where masked."""
    weights = jnp.where(where, jnp.broadcast_to(weights.astype(dtype), losses.shape), 0.0)
    losses = jnp.where(where, losses.astype(dtype), 0.0)
    return weights * losses, weights
