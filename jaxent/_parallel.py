"""Mesh axes: what classes that are split over devices need, inside `jax.shard_map` and outside.

Inside `jax.shard_map` a device holds one block of the classes. A kernel takes a sum, a maximum or
an entry over its own block and completes it here, with the name of the mesh axis that the classes
are split over, so formulas and derivative rules are the same on one device and on many. At most
one number per row is sent. Without a name (None) each function returns its argument.

`jax.lax.psum` knows its own transpose, so derivatives are right whether or not JAX tracks what
varies over devices (`check_vma`). Where it does not, a gradient taken inside `jax.shard_map` is
that of the sum over all devices.

With `jax.jit` and a mesh with explicit axes, JAX types every result with its sharding and refuses
operations for which it would have to choose one; `with_auto_axes` leaves those to the partitioner.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxent import _compat

AxisName = Hashable | tuple[Hashable, ...] | None


# Collectives over the axis that the classes are split over.


def psum(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The sum over all classes, from the sum over the classes of each device."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def pmax(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The maximum over all classes, from that of each device; a constant for derivatives."""
    return x if axis_name is None else jax.lax.pmax(jax.lax.stop_gradient(x), axis_name)


def any_over(condition: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether a condition holds for any class, from whether it does on each device."""
    return condition if axis_name is None else psum(condition.astype(jnp.int32), axis_name) > 0


def all_over(condition: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether a condition holds for all classes, from whether it does on each device."""
    return condition if axis_name is None else ~any_over(~condition, axis_name)


def class_count(size: int, axis_name: AxisName) -> int:
    """The number of all classes, of which each device has `size`."""
    return size if axis_name is None else size * jax.lax.axis_size(axis_name)


def local_labels(labels: jax.Array, size: int, axis_name: AxisName) -> jax.Array:
    """Class indices counted from the first of the `size` classes of this device.

    A label that is another device's class is then negative or at least `size`.
    """
    if axis_name is None:
        return labels
    return labels - size * jax.lax.axis_index(axis_name).astype(labels.dtype)


def take_label(x: jax.Array, labels: jax.Array, axis_name: AxisName) -> jax.Array:
    """The entry of each row at its local label; some number where no device has that class."""
    entry = take_local_label(x, labels)
    if axis_name is None:
        return entry
    is_local = (labels >= 0) & (labels < x.shape[-1])
    if entry.dtype == jnp.bool_:
        return any_over(entry & is_local, axis_name)
    return psum(jnp.where(is_local, entry, jnp.zeros((), entry.dtype)), axis_name)


# What JAX knows to vary over devices.


def varying_axes(tree: Any) -> frozenset[Hashable]:
    """The mesh axes that JAX knows any array of a tree to vary over."""
    return frozenset().union(*(_compat.varying_axes_of(array) for array in jax.tree.leaves(tree)))


def pvary(array: jax.Array, axes: frozenset[Hashable]) -> jax.Array:
    """The same array, known to vary over these mesh axes as well."""
    missing = tuple(axes - _compat.varying_axes_of(array))
    return _compat.pvary(array, missing) if missing else array


def match_varying(tree: Any, *others: Any) -> Any:
    """The arrays of a tree, known to vary over all mesh axes that any of them or `others` does.

    The carry of a loop must vary from the start over what it varies over in the end. An array that
    is the same on all devices is made to vary before the loop, so that its gradient is summed over
    the devices once, after it.
    """
    axes = varying_axes((tree, others))
    return jax.tree.map(lambda array: pvary(array, axes), tree)


def psum_extra_axes(
    x: jax.Array, axes: frozenset[Hashable], untracked: tuple[Hashable, ...]
) -> jax.Array:
    """The sum over the mesh axes that `x` varies over but for `axes`, and over `untracked`."""
    names = *(varying_axes(x) - axes), *untracked
    return jax.lax.psum(x, names) if names else x


def communication_axes(jaxpr: Any) -> tuple[Hashable, ...]:
    """The mesh axes that a program communicates over."""
    effects = [e for e in jaxpr.effects if type(e).__name__ == "NamedAxisEffect"]
    return tuple(sorted({effect.name for effect in effects}, key=str))


def untracked_axes(names: tuple[Hashable, ...]) -> tuple[Hashable, ...]:
    """Those of some mesh axes that JAX does not track (`check_vma=False`)."""
    return tuple(name for name in names if not varying_axes(jax.lax.axis_index(name)))


def zeros_like(description: jax.ShapeDtypeStruct) -> jax.Array:
    """Zeros of that shape and dtype, varying over the same mesh axes."""
    zeros = jnp.zeros(description.shape, description.dtype)
    return pvary(zeros, _compat.varying_axes_of(description))


# Meshes under `jax.jit`.


def with_auto_axes(
    function: Callable[..., Any], *arguments: Any, example: jax.Array, ndim: int
) -> Any:
    """`function(*arguments)`, with the explicit axes of the mesh in context made automatic.

    Args:
        function: a function of trees of arrays that closes over no array.
        *arguments: its arguments.
        example: an array whose first axes are those of all results, which are sharded as it is.
        ndim: the number of these axes; 0 for results that are scalars.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    if not explicit:
        return function(*arguments)
    spec = PartitionSpec(*jax.typeof(example).sharding.spec[:ndim])
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=spec)(*arguments)


def take_local_label(x: jax.Array, labels: jax.Array) -> jax.Array:
    """The entry of each row at its label; at the nearest class for a label that is none."""
    return with_auto_axes(_take_last_axis, x, labels, example=labels, ndim=labels.ndim)


def _take_last_axis(x: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")[..., 0]


def gather_axis(array: jax.Array, axis: int) -> jax.Array:
    """The same array, which the partitioner is not to divide along an axis.

    It then sends what each device lacks here, once, and not again wherever the array is used.
    """
    mesh = _largest_mesh(array)
    if _automatic_size(mesh) == 1:
        return array
    spec: list[Any] = [PartitionSpec.UNCONSTRAINED] * array.ndim
    spec[axis] = None
    sharding = NamedSharding(mesh, PartitionSpec(*spec))
    return jax.lax.with_sharding_constraint(array, sharding)


def device_count(*arrays: jax.Array) -> int:
    """How many devices the partitioner may divide arrays over: those of their largest mesh.

    Axes that `jax.shard_map` has made manual are divided already.
    """
    return _automatic_size(_largest_mesh(*arrays))


def _largest_mesh(*arrays: jax.Array) -> Any:
    """The largest mesh that is known of arrays, or that is in context."""
    meshes = [jax.typeof(array).sharding.mesh for array in arrays]
    return max([*meshes, jax.sharding.get_abstract_mesh()], key=_automatic_size)


def _automatic_size(mesh: Any) -> int:
    """The number of devices along the axes of a mesh that are not manual."""
    kinds = zip(mesh.axis_sizes, mesh.axis_types, strict=True)
    return math.prod(size for size, kind in kinds if kind != AxisType.Manual)
