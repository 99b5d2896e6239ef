"""Class axes, class masks and example masks, the same for every loss.

`mask_rows` and `mask_labelled_rows` turn a loss's arguments into rows [..., V] for a kernel, with a
harmless number wherever something is masked; `zero_where_masked` and `MaskedLabelledRows.losses`
turn the kernel's results [...] into losses. `apply_per_example` does both. `mask_elements` and
`apply_elementwise` serve losses without a class axis.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _parallel
from jaxent._float.dtypes import compute_dtype
from jaxent._float.intervals import (
    Interval,
    all_in_interval,
    clip_outside,
    nan_tangent_where_invalid,
    nan_value_where_invalid,
    nan_where_invalid,
    rounding_outside,
)
from jaxent._float.tangents import Arrays, Dual


class Fill(NamedTuple):
    """The numbers that replace what is masked."""

    masked_class: float  # at a masked class
    masked_example: float  # at every class of a masked example


LOGITS = Fill(-math.inf, 0.0)
PROBABILITIES = Fill(0.0, 1.0)
TARGETS = Fill(0.0, 0.0)


class MaskedRows(NamedTuple):
    """An array with its classes on the last axis, and what of it counts."""

    values: jax.Array  # [..., V], filled where masked
    class_mask: jax.Array | None  # [..., V], or None for all classes
    example_mask: jax.Array | None  # [...], or None for all examples


def mask_rows(
    array: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    fill: Fill,
    axis_name: _parallel.AxisName = None,
) -> MaskedRows:
    """Rows for a kernel, in which `fill` replaces whatever is masked.

    It is a selection, so its transpose makes the gradients of what is masked exactly 0.
    """
    values = move_classes_last(array, axes)
    if where is None:
        return MaskedRows(values, None, None)
    if where.ndim < array.ndim:
        example_mask = jnp.broadcast_to(where, where.shape or values.shape[:-1])
        return MaskedRows(
            jnp.where(example_mask[..., None], values, fill.masked_example), None, example_mask
        )
    class_mask = move_classes_last(
        jnp.broadcast_to(where, jnp.broadcast_shapes(where.shape, array.shape)), axes
    )
    example_mask = _parallel.any_over(jnp.any(class_mask, axis=-1), axis_name)
    number = jnp.where(example_mask, fill.masked_class, fill.masked_example)[..., None]
    number = number.astype(values.dtype)
    return MaskedRows(jnp.where(class_mask, values, number), class_mask, example_mask)


class MaskedLabelledRows(NamedTuple):
    """Rows with the index of a class each, all of one leading shape."""

    values: jax.Array  # [..., V], filled where masked
    labels: jax.Array  # [...], 0 where masked; counted from the first class of this device
    class_mask: jax.Array | None  # [..., V], or None for all classes
    example_mask: jax.Array | None  # [...], or None for all examples
    valid: jax.Array  # [...]: the label is a class that counts, or the example is masked

    def valid_only_if(self, condition: jax.Array) -> "MaskedLabelledRows":
        """The same rows, valid only where `condition` holds as well."""
        return self._replace(valid=self.valid & condition)

    def losses(self, results: jax.Array) -> jax.Array:
        """Results with NaN where not valid, and 0 where the example is masked."""
        return zero_where_masked(nan_where_invalid(results, self.valid), self.example_mask)


def mask_labelled_rows(
    array: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    fill: Fill,
    axis_name: _parallel.AxisName = None,
) -> MaskedLabelledRows:
    """Rows and integer labels for a kernel, in the dtype of the computation."""
    x, class_mask, example_mask = mask_rows(
        array.astype(compute_dtype(array)), where, axes, fill, axis_name
    )
    labels = widen_labels(labels)
    shape = jnp.broadcast_shapes(
        x.shape[:-1], labels.shape, () if example_mask is None else example_mask.shape
    )
    x = jnp.broadcast_to(x, (*shape, x.shape[-1]))
    labels = jnp.broadcast_to(labels, shape)
    if example_mask is not None:
        labels = jnp.where(example_mask, labels, 0)
    valid = (labels >= 0) & (labels < _parallel.class_count(x.shape[-1], axis_name))
    labels = _parallel.local_labels(labels, x.shape[-1], axis_name)
    if class_mask is not None:
        class_mask = jnp.broadcast_to(class_mask, x.shape)
        at_label = _parallel.take_label(class_mask, labels, axis_name)
        valid &= at_label if example_mask is None else at_label | ~example_mask
    return MaskedLabelledRows(x, labels, class_mask, example_mask, valid)


def widen_labels(labels: jax.Array) -> jax.Array:
    """Labels in a dtype that holds every class index; what does not fit turns negative."""
    return labels.astype(jnp.int64 if labels.dtype.itemsize > 4 else jnp.int32)


def constant_where_impossible(
    kernel: Callable[..., jax.Array],
    logits: tuple[jax.Array, ...],
    axis_name: _parallel.AxisName = None,
    **options: Any,
) -> jax.Array:
    """`kernel` of logits [..., V], without a derivative where one of them has no possible class.

    Its value there, NaN or +inf, can then be selected away: a selection of the result alone would
    leave 0 times NaN in the gradient.
    """
    # The maximum, and no search for a finite logit: kernels need it anyhow.
    is_possible = [
        ~(_parallel.pmax(jnp.max(jax.lax.stop_gradient(x), axis=-1), axis_name) == -jnp.inf)
        for x in logits
    ]
    has_classes = functools.reduce(jnp.logical_and, is_possible)
    results = kernel(
        *(_zero_tangent_unless(x, has_classes) for x in logits), axis_name=axis_name, **options
    )
    return jnp.where(has_classes, results, jax.lax.stop_gradient(results))


@jax.custom_jvp
def _zero_tangent_unless(x: jax.Array, condition: jax.Array) -> jax.Array:
    """`x` [..., V], with tangents 0 in the rows where the condition [...] does not hold."""
    del condition
    return x


@_zero_tangent_unless.defjvp
def _zero_tangent_unless_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    x, condition = primals
    return x, jnp.where(condition[..., None], tangents[0], 0.0)


def scale_loss(weight: jax.Array, losses: jax.Array) -> jax.Array:
    """`weight * losses`, and 0 for a weight of 0 on a loss of +inf."""
    return weight * jnp.where((weight == 0.0) & (losses == jnp.inf), 0.0, losses)


def zero_where_masked(losses: jax.Array, example_mask: jax.Array | None) -> jax.Array:
    """Losses with 0 where the example is masked."""
    return losses if example_mask is None else jnp.where(example_mask, losses, 0.0)


def move_classes_last(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """The class axes moved to the end, in their order, and flattened into one."""
    last = tuple(range(array.ndim - len(axes), array.ndim))
    if axes != last:
        array = jnp.moveaxis(array, axes, last)
    return array if len(axes) == 1 else array.reshape(*array.shape[: last[0]], -1)


def example_struct(array: jax.Array, axes: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    """Shape and dtype of one number per example."""
    shape = tuple(size for axis, size in enumerate(array.shape) if axis not in axes)
    return jax.ShapeDtypeStruct(shape, array.dtype)


def check_mask(
    where: ArrayLike | None,
    axes: tuple[int, ...],
    arrays: Mapping[str, jax.Array],
    labels: jax.Array | None = None,
) -> jax.Array | None:
    """`where` as an array, refused unless it fits the examples or the classes of the first array.

    Args:
        where: the mask as given.
        axes: the class axes.
        arrays: the arguments with classes, by name; the first speaks for all of them.
        labels: one per example, if there are any; they broadcast with the examples.
    """
    if where is None:
        return None
    where = _checks.as_boolean("where", where)
    name, array = next(iter(arrays.items()))
    example_rank = array.ndim - len(axes)
    _checks.require(
        where.ndim in (0, example_rank, array.ndim),
        f"`where` {_checks.describe(where)} must have the rank of the examples, {example_rank}, "
        f"or of `{name}` {_checks.describe(array)}; add the missing axes with `[..., None]`.",
    )
    examples: dict[str, _checks.Shaped] = {
        f"the examples of `{name}`": example_struct(a, axes) for name, a in arrays.items() if a.ndim
    }
    if labels is not None:
        examples["labels"] = labels
    if where.ndim == array.ndim:
        _checks.require(
            all(where.shape[a] in (1, array.shape[a]) for a in axes),
            f"`where` {_checks.describe(where)} must have the classes of `{name}` "
            f"{_checks.describe(array)} along axis {axes}, or size 1 there.",
        )
        _checks.check_broadcastable(where=where, **arrays)
        examples["the examples of `where`"] = example_struct(where, axes)
        _checks.check_broadcastable(**examples)
    else:
        _checks.check_broadcastable(where=where, **examples)
    return where


class LabelledArguments(NamedTuple):
    """Checked arguments of a loss with integer labels."""

    array: jax.Array
    labels: jax.Array
    where: jax.Array | None
    axes: tuple[int, ...]


def check_order(name: str, array: ArrayLike, labels: ArrayLike) -> None:
    """Refuses labels that come before what they are the labels of."""
    if not (hasattr(array, "dtype") and hasattr(labels, "dtype")):
        return
    array, labels = _checks.as_array(name, array), _checks.as_array("labels", labels)
    _checks.require(
        not jnp.issubdtype(array.dtype, jnp.integer)
        or not jnp.issubdtype(labels.dtype, jnp.floating),
        f"`{name}` {_checks.describe(array)} and `labels` {_checks.describe(labels)} are swapped; "
        f"pass `{name}` first.",
    )


def check_labelled_arguments(
    name: str,
    array: ArrayLike,
    labels: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
    remedy: str,
    axis_name: _parallel.AxisName = None,
) -> LabelledArguments:
    """Arguments of a loss whose targets are class indices, refused where they do not fit.

    Args:
        name: what `array` is called.
        array: floating point, with the class axis.
        labels: integers, one per example, or a scalar.
        axis: the class axis or axes as given.
        where: the mask as given.
        remedy: what to use for labels that are no integers.
        axis_name: the mesh axis that the classes are split over, as given.
    """
    _checks.check_mesh_axis(axis_name)
    check_order(name, array, labels)
    array = _checks.as_floating(name, array)
    labels = _checks.as_integer("labels", labels, remedy)
    axes = _checks.normalize_axes(name, array, axis)
    if labels.ndim > 0:
        _checks.check_labels_shape(labels, example_struct(array, axes).shape, name, array)
    return LabelledArguments(array, labels, check_mask(where, axes, {name: array}, labels), axes)


def apply_per_example(
    kernel: Callable[..., jax.Array],
    arrays: Mapping[str, jax.Array],
    fills: tuple[Fill, ...],
    axis: _checks.Axis,
    where: ArrayLike | None,
    axis_name: _parallel.AxisName = None,
    *,
    intervals: tuple[Interval | None, ...] = (),
    is_valid: Callable[..., jax.Array] | None = None,
    **options: Any,
) -> jax.Array:
    """One number per example from arguments that have a class axis or are scalars.

    Args:
        kernel: maps arrays [..., V] in one dtype to [...]; a function of a module, since the
            compiled program is cached by it.
        arrays: the arguments by name; the first one has the class axis.
        fills: what replaces the masked classes and examples in each of them.
        axis: the class axis or axes as given.
        where: the mask as given.
        axis_name: the mesh axis that the classes are split over, if the kernel takes one.
        intervals: where the numbers of each array must lie, None for anywhere: a rounding outside
            counts as the end, anything further makes the result NaN.
        is_valid: maps the same arrays to booleans [...]: False makes the result NaN.
        **options: hashable keywords of the kernel; numbers in them are constants.
    """
    _checks.check_mesh_axis(axis_name)
    first = next(iter(arrays))
    axes = _checks.normalize_axes(first, arrays[first], axis)
    if "labels" in arrays:
        _checks.check_targets(first, arrays[first], "labels", arrays["labels"])
    _checks.check_broadcastable(**arrays)
    _checks.check_same_classes(axes, **arrays)
    where = check_mask(where, axes, arrays)
    if axis_name is not None:
        options["axis_name"] = axis_name
    static = tuple(sorted(options.items()))
    return _apply_per_example(
        kernel, intervals, is_valid, tuple(arrays.values()), where, fills, axes, axis_name, static
    )


@functools.partial(
    jax.jit,
    static_argnames=("kernel", "intervals", "is_valid", "fills", "axes", "axis_name", "options"),
    inline=True,
)
def _apply_per_example(
    kernel: Callable[..., jax.Array],
    intervals: tuple[Interval | None, ...],
    is_valid: Callable[..., jax.Array] | None,
    arrays: tuple[jax.Array, ...],
    where: jax.Array | None,
    fills: tuple[Fill, ...],
    axes: tuple[int, ...],
    axis_name: _parallel.AxisName,
    options: tuple[tuple[str, Any], ...],
) -> jax.Array:
    dtype = compute_dtype(*arrays)
    full = [jnp.broadcast_to(array, array.shape or arrays[0].shape) for array in arrays]
    rows = [
        mask_rows(array.astype(dtype), where, axes, fill, axis_name)
        for array, fill in zip(full, fills, strict=True)
    ]
    shape = jnp.broadcast_shapes(*(each.values.shape for each in rows))
    values = [jnp.broadcast_to(each.values, shape) for each in rows]
    bounded: list[tuple[jax.Array, Interval]] = []
    for number, interval in enumerate(intervals):
        if interval is not None:
            tolerance = rounding_outside(interval, arrays[number].dtype)
            given, values[number] = (
                values[number],
                clip_outside(values[number], interval, tolerance),
            )
            # CPUs keep clipped numbers in buffers if they are compared; a TPU takes another pass
            # over numbers of 16 bits if those are compared as they are given.
            is_short = arrays[number].dtype.itemsize < 4
            compared = (
                (values[number], interval) if is_short else (given, interval.widened(tolerance))
            )
            bounded.append(compared)
    if bounded:
        inside = [interval.holds(each, each) for each, interval in bounded]
        is_inside = functools.reduce(jnp.logical_and, inside)
        values = [nan_tangent_where_invalid(each, is_inside) for each in values]
    results = kernel(*values, **dict(options))
    if bounded:
        checks = [all_in_interval(each, interval, axis_name) for each, interval in bounded]
        results = nan_value_where_invalid(results, functools.reduce(jnp.logical_and, checks))
    if is_valid is not None:
        results = nan_where_invalid(results, is_valid(*values))
    return zero_where_masked(results, rows[0].example_mask)


# What replaces a masked element; 0 in the arguments not named here.
_MASKED_ELEMENT = {"probs": 0.5, "variances": 1.0, "pos_weight": 1.0, "alpha": 0.5}


def mask_elements(
    where: ArrayLike | None, **arrays: jax.Array
) -> tuple[jax.Array | None, list[jax.Array]]:
    """The mask of an element-wise loss, and its arguments with harmless numbers where masked.

    Arguments that do not broadcast, with the mask or among themselves, are refused. The losses are
    for `zero_where_masked`.
    """
    if where is None:
        _checks.check_broadcastable(**arrays)
        return None, list(arrays.values())
    where = _checks.as_boolean("where", where)
    _checks.check_broadcastable(**arrays, where=where)
    return where, [
        # Of the dtype of the array, and as weak where that is a Python number.
        jnp.where(where, array, jax.lax.full_like(array, _MASKED_ELEMENT.get(name, 0), shape=()))
        for name, array in arrays.items()
    ]


@functools.partial(jax.jit, static_argnames="kernel", inline=True)
def apply_elementwise(
    kernel: Callable[..., jax.Array], arrays: Sequence[jax.Array], *options: jax.Array
) -> jax.Array:
    """`kernel` of arrays in one shape and dtype, and of scalars in that dtype."""
    dtype = compute_dtype(*arrays)
    shape = jnp.broadcast_shapes(*(array.shape for array in arrays))
    values = [jnp.broadcast_to(array.astype(dtype), shape) for array in arrays]
    return kernel(*values, *(option.astype(dtype) for option in options))
