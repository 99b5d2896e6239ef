"""Products with tangents, and rules of derivatives made of them.

A rule with `symbolic_zeros=True` is told which arguments are not differentiated. Skipping them is
not only faster: an infinite derivative times a tangent of zeros would be NaN.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._parallel import AxisName, psum

Tangent = jax.Array | SymbolicZero
Arrays = tuple[jax.Array, ...]
Pair = tuple[jax.Array, jax.Array]

# What the rule of a derivative is given, and the result with its tangent that it returns.
Tangents = tuple[Tangent, ...]
Dual = Pair
Grad = Callable[..., jax.Array]  # of the arguments of a function: its derivative in one of them


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


def define_jvp(
    function: jax.custom_jvp[Any],
    *grads: Grad | None,
    product: Callable[..., Any] = scale_tangent,
) -> None:
    """Gives a function its derivative: the sum over its arguments of gradient times tangent.

    Args:
        function: a `jax.custom_jvp`.
        *grads: the derivative in each array of `function`, of whose arguments it is a function
            itself; called where it is needed only. None for a constant.
        product: `dot_tangent` for a function of rows.
    """

    def jvp(*static_primals_tangents: Any) -> Dual:
        *static, primals, tangents = static_primals_tangents
        arguments = list(primals)
        for position, value in zip(function.nondiff_argnums, static, strict=True):
            arguments.insert(position, value)
        result = function(*arguments)
        terms = [
            product(grad(*arguments), dot)
            for grad, dot in zip(grads, tangents, strict=True)
            if grad is not None and not isinstance(dot, SymbolicZero)
        ]
        return result, broadcast_tangent(functools.reduce(operator.add, terms or [0.0]), result)

    function.defjvp(jvp, symbolic_zeros=True)


def negative(grad: Grad) -> Grad:
    """Minus a function: the derivative in b of a function of a - b, from that in a."""
    return lambda *arguments: -grad(*arguments)
