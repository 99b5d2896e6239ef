"""Over the classes of one device, then over the devices that hold the others.

Inside `jax.shard_map` a device sees one block of the classes, and the partitioner is not there to
complete its sums. All that a primitive wants of a whole row is a sum over the classes, the largest
logit, or one entry. It takes that over its own block, hands it to a function of this file together
with the name of the mesh axis that the classes are split over, and goes on with what is then known
of the row. So the formulas and the rules of their derivatives are the same on one device and on
many, and there is one copy of them. (To build losses on merged statistics, as the sweep over
columns does, would be a second copy, and soft targets have no such statistics.) No more than one
number per row is ever sent. Without a name these functions return what they are given.

Derivatives are right however JAX counts the devices: the tangent of a sum over devices is the sum
of their tangents, and `jax.lax.psum` knows its transpose. Where JAX tracks what varies
(`check_vma=True`) a result that is the same on all devices is one number. Where it does not, it is
as many numbers as there are devices: a gradient taken *inside* is that of their sum.

Where JAX tracks what varies, the carry of a loop has to vary from the start over whatever axes it
varies over in the end, and what is the same on all devices is made to vary once, before the loop,
so that its gradient is summed over the devices once, after it (`alike`).

Labels are counted from the start of the block here, so that they are out of range where another
device has the class.
"""

from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from jaxent._numerics.explicit import entry_at

AxisName = Hashable | tuple[Hashable, ...] | None


def total(part: jax.Array, axis_name: AxisName) -> jax.Array:
    """The sum over all classes, from that over the classes of each device."""
    return part if axis_name is None else jax.lax.psum(part, axis_name)


def largest(part: jax.Array, axis_name: AxisName) -> jax.Array:
    """The largest of all classes, from that of each device; then it counts as a constant."""
    return part if axis_name is None else jax.lax.pmax(jax.lax.stop_gradient(part), axis_name)


def somewhere(part: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether it holds for any class, from whether it does on each device."""
    return part if axis_name is None else total(part.astype(jnp.int32), axis_name) > 0


def everywhere(part: jax.Array, axis_name: AxisName) -> jax.Array:
    """Whether it holds for all classes, from whether it does on each device."""
    return part if axis_name is None else ~somewhere(~part, axis_name)


def count(size: int, axis_name: AxisName) -> int:
    """How many classes there are, of which each device has `size`."""
    return size if axis_name is None else size * jax.lax.axis_size(axis_name)


def from_block(labels: jax.Array, size: int, axis_name: AxisName) -> jax.Array:
    """Indices of classes, counted from the first of the `size` classes of this device."""
    if axis_name is None:
        return labels
    return labels - size * jax.lax.axis_index(axis_name).astype(labels.dtype)


def entry(x: jax.Array, labels: jax.Array, axis_name: AxisName) -> jax.Array:
    """The entry of each row at its label; out of range of all devices, some number."""
    found = entry_at(x, labels)
    if axis_name is None:
        return found
    here = (labels >= 0) & (labels < x.shape[-1])
    if found.dtype == jnp.bool_:
        return somewhere(found & here, axis_name)
    return total(jnp.where(here, found, jnp.zeros((), found.dtype)), axis_name)


def named_in(jaxpr: Any) -> tuple[Hashable, ...]:
    """The axes that a program exchanges anything over, but for those that JAX keeps track of."""
    effects = [e for e in jaxpr.effects if type(e).__name__ == "NamedAxisEffect"]
    names = sorted({effect.name for effect in effects}, key=str)
    return tuple(name for name in names if not axes_of(jax.lax.axis_index(name)))


def beyond(part: jax.Array, axes: frozenset, untracked: tuple[Hashable, ...]) -> jax.Array:
    """The sum over devices of parts of what varies over `axes` alone, where it has such parts."""
    names = *(axes_of(part) - axes), *untracked
    return jax.lax.psum(part, names) if names else part


def axes_of(tree: Any) -> frozenset:
    """The mesh axes that JAX knows any of the arrays to vary over."""
    return frozenset().union(*(_varies_over(array) for array in jax.tree.leaves(tree)))


def alike(tree: Any, *others: Any) -> Any:
    """The same arrays, known to vary over all mesh axes that any of them or of the others does."""
    axes = axes_of((tree, others))
    return jax.tree.map(lambda array: varying(array, axes), tree)


def varying(array: jax.Array, axes: frozenset) -> jax.Array:
    """The same array, known to vary over these mesh axes as well."""
    missing = tuple(axes - _varies_over(array))
    if not missing:
        return array
    lax: Any = jax.lax
    if hasattr(lax, "pcast"):
        return lax.pcast(array, missing, to="varying")
    return lax.pvary(array, missing)  # before JAX 0.8


def _varies_over(array: Any) -> frozenset:
    # A description has no mesh to make a type of, if the axes are not all of one.
    kind: Any = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    # Its place in JAX has moved.
    manual = getattr(kind, "manual_axis_type", None)
    axes = getattr(kind, "vma", None) if manual is None else manual.varying
    return axes or frozenset()
