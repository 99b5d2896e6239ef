"""How often the true class is among the largest logits."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks, _parallel
from jaxent._float.tangents import Arrays, Dual
from jaxent._parallel import AxisName


@_checks.public
def accuracy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    k: int = 1,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Whether the true class is among the k largest logits, 1 or 0 for each example.

    .. math:: a = \big[ \, |\{ j : x_j > x_y \}| + |\{ j < y : x_j = x_y \}| < k \, \big]

    A measure with gradient 0, and the accuracy is its `jaxent.mean`. Of equal logits the first
    ones count, as for `jnp.argmax` and `jax.lax.top_k`. No logits are sorted. Through a head:
    `top_class == labels` of `jaxent.linear_softmax`.

    Args:
        logits: Logits, or what grows with them, such as probabilities, `[..., V]`.
        labels: Index of the true class, integers `[...]`; a flat index into several axes.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        k: How many classes are predicted, a Python number from 1 to V.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        1 or 0 for each example, without a unit, `[...]`, float32 (float64 for float64 inputs). A
        class with a logit of `-inf` is impossible, so it is not predicted.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, labels = jnp.array([[3.0, 1.0, 2.0], [0.0, 4.0, 1.0]]), jnp.array([0, 2])
        >>> print(jaxent.accuracy(logits, labels))
        [1. 0.]
        >>> print(jaxent.accuracy(logits, labels, k=2))
        [1. 1.]

    References:
        Russakovsky et al., `ImageNet <https://arxiv.org/abs/1409.0575>`_, 2015, section 4.1.
    """
    remedy = "for one target per class pass the index of the largest."
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, remedy, axis_name
    )
    _checks.check_positive_integer("k", k)
    local = math.prod(given.array.shape[each] for each in given.axes)
    classes = _parallel.class_count(local, axis_name)
    _checks.require(
        k <= classes,
        f"`k` {k} must be at most the number of classes, {classes}, of `logits` "
        f"{_checks.describe(given.array)}.",
    )
    return _is_among_top(*given, k=int(k), axis_name=axis_name)


@functools.partial(jax.jit, static_argnames=("axes", "k", "axis_name"), inline=True)
def _is_among_top(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    k: int,
    axis_name: AxisName,
) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    x = jax.lax.stop_gradient(rows.values)
    at_label = _parallel.take_label(x, rows.labels, axis_name)
    is_possible = at_label > -jnp.inf
    at_label = jnp.where(is_possible, at_label, 0.0)  # no difference of infinities
    classes = jax.lax.broadcasted_iota(x.dtype, x.shape, x.ndim - 1)
    is_earlier = jnp.sign(rows.labels[..., None].astype(x.dtype) - classes)
    # By signs, since of comparisons XLA for CPUs writes an array of the size of the logits.
    is_before = jnp.maximum(jnp.sign(2.0 * jnp.sign(x - at_label[..., None]) + is_earlier), 0.0)
    rank = _parallel.psum(jnp.sum(is_before, axis=-1), axis_name)
    is_right = (rank < k) & is_possible
    # Of NaN as well, which is not below infinity.
    is_valid = _parallel.all_over(jnp.max(x, axis=-1) < jnp.inf, axis_name)
    # A selection: of a boolean XLA makes one of the product, too, in which NaN times 0 is 0.
    results = jnp.where(rows.valid & is_valid, is_right.astype(x.dtype), jnp.nan)
    results = _masks.zero_where_masked(results, rows.example_mask)
    return _with_zero_slope(results, rows.values, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _with_zero_slope(results: jax.Array, logits: jax.Array, axis_name: AxisName) -> jax.Array:
    """The results [...]; their derivative by the logits [..., V] is 0, and NaN where they are."""
    del logits, axis_name
    return results


@_with_zero_slope.defjvp
def _with_zero_slope_jvp(axis_name: AxisName, primals: Arrays, tangents: Arrays) -> Dual:
    results, _ = primals
    slope = jnp.where(jnp.isnan(results), results, 0.0)
    return results, slope * _parallel.psum(jnp.sum(tangents[1], axis=-1), axis_name)
