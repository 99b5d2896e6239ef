"""Products with tangents, for rules that skip arguments which are not differentiated.

A rule with `symbolic_zeros=True` is told which arguments those are. Skipping them is not only
faster: an infinite derivative times a tangent that is merely zero would be NaN.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._parallel import AxisName, psum

Tangent = jax.Array | SymbolicZero


def scale_tangent(coefficient: jax.Array, tangent: Tangent) -> jax.Array | float:
    """`coefficient * tangent`, or 0 for an argument that is not differentiated."""
    return 0.0 if isinstance(tangent, SymbolicZero) else coefficient * tangent


def dot_tangent(
    coefficient: jax.Array, tangent: Tangent, axis_name: AxisName = None
) -> jax.Array | float:
    """`sum(coefficient * tangent)` over the last axis, or 0, as in `scale_tangent`."""
    if isinstance(tangent, SymbolicZero):
        return 0.0
    return psum(jnp.sum(coefficient * tangent, axis=-1), axis_name)


def broadcast_tangent(tangent: jax.Array | float, primal: jax.Array) -> jax.Array:
    """A tangent of the shape and dtype of its primal."""
    return jnp.broadcast_to(jnp.asarray(tangent, primal.dtype), primal.shape)


def combine_tangents(primal: jax.Array, *terms: tuple[jax.Array, Tangent]) -> jax.Array:
    """The sum of coefficient * tangent over terms, of the shape of `primal`.

    Nothing is added for an argument that is not differentiated: the transpose of the 0 of
    `scale_tangent` is a sum over all elements, which is NaN where two losses are infinite.
    """
    products = [
        coefficient * dot for coefficient, dot in terms if not isinstance(dot, SymbolicZero)
    ]
    return broadcast_tangent(functools.reduce(operator.add, products), primal)
