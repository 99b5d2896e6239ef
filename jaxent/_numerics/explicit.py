"""Mesh axes with shardings in types: what cannot be typed is left to the partitioner.

Over explicit axes JAX types the result of every operation with its sharding, and refuses those for
which it would have to choose: an entry of a row that is sharded, rows that are cut and joined, a
product over a sharded axis. Here such a computation runs as if the axes were automatic, and only
what comes out has a sharding in its type again.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec


def as_automatic(function: Callable[..., Any], *arguments: Any, like: jax.Array, axes: int) -> Any:
    """`function(*arguments)`, with the explicit axes of the mesh in context made automatic.

    Args:
        function: of trees of arrays; it closes over no array.
        *arguments: what it is applied to.
        like: an array whose first axes are those of all results, which are sharded as it is.
        axes: the number of them; 0 for results that are numbers.
    """
    mesh = jax.sharding.get_abstract_mesh()
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in kinds if kind == AxisType.Explicit)
    if not explicit:
        return function(*arguments)
    spec = PartitionSpec(*jax.typeof(like).sharding.spec[:axes])
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=spec)(*arguments)


def entry_at(x: jax.Array, labels: jax.Array) -> jax.Array:
    """The entry of each row at its label; at the class nearest to a label that is none."""
    return as_automatic(_entry_at, x, labels, like=labels, axes=labels.ndim)


def _entry_at(x: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")[..., 0]
