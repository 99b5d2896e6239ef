"""`linear_map`: a linear function together with its transpose, for `jax.custom_jvp` rules.

JAX transposes the tangent of a custom rule by itself, operation by operation. That is right but
not always cheap: it cannot know that a cotangent is needed in 16 bits before a product, or drop
work for results that nobody used. Here the transpose is written by hand. `jax.custom_vjp` would
have no forward mode, and `jax.custom_derivatives.linear_call` cannot be mapped.

Only the first transposition uses it: whatever else is asked (second derivatives, `vmap`) falls
back to the function as it is written, so it must be differentiable by itself.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxent import _parallel

_linear_map = Primitive("linear_map")
_linear_map.multiple_results = True


def linear_map(
    function: Callable[[Any, Any], tuple],
    transpose: Callable[[Any, tuple], Any],
    residuals: Any,
    operands: Any,
    compiled: Callable[[Any, Any], tuple] | None = None,
) -> tuple:
    """`function(residuals, operands)`, transposed by `transpose(residuals, cotangents)`.

    Args:
        function: Maps two trees of arrays to a tuple of arrays, linear in the second. It closes
            over no arrays.
        transpose: Maps residuals and one cotangent per result, None where nothing flows back, to a
            tree of cotangents like `operands`.
        residuals: A tree of arrays.
        operands: A tree of floating point arrays.
        compiled: What is run instead of `function` where nothing transforms it any more: the same
            numbers in a way that could not be differentiated.

    Returns:
        The tuple of arrays.
    """
    residuals, operands = _parallel.match_varying((residuals, operands))
    leaves, structure = jax.tree.flatten(residuals)
    variables, layout = jax.tree.flatten(operands)

    def flat(function):
        def forward(*arrays):
            given = jax.tree.unflatten(structure, arrays[: len(leaves)])
            return list(function(given, jax.tree.unflatten(layout, arrays[len(leaves) :])))

        return forward

    def backward(arrays, cotangents):
        given = jax.tree.unflatten(structure, arrays)
        return jax.tree.leaves(transpose(given, tuple(cotangents)))

    results = _linear_map.bind(
        *leaves,
        *variables,
        forward=flat(function),
        backward=backward,
        compiled=flat(compiled or function),
        residuals=len(leaves),
    )
    return tuple(results)


@_linear_map.def_impl
def _evaluate(*arrays, forward, backward, compiled, residuals):
    del forward, backward, residuals
    return compiled(*arrays)


@_linear_map.def_abstract_eval
def _shapes(*arrays, forward, backward, compiled, residuals):
    del backward, compiled, residuals
    return jax.make_jaxpr(forward)(*arrays).out_avals


def _differentiate(primals, tangents, *, forward, residuals, **others):
    is_zero = [isinstance(tangent, ad.Zero) for tangent in tangents]
    options = {"forward": forward, "residuals": residuals, **others}
    values = _linear_map.bind(*primals, **options)
    parts = []
    if not all(is_zero[residuals:]):
        dots = map(ad.instantiate_zeros, tangents[residuals:])
        parts.append(_linear_map.bind(*primals[:residuals], *dots, **options))
    moving = [index for index in range(residuals) if not is_zero[index]]
    if moving:

        def along(*some):
            arrays = list(primals)
            for index, array in zip(moving, some, strict=True):
                arrays[index] = array
            return forward(*arrays)

        points = [primals[index] for index in moving]
        parts.append(jax.jvp(along, points, [tangents[index] for index in moving])[1])
    return values, [sum(dots[1:], dots[0]) for dots in zip(*parts, strict=True)]


def _map(arrays, axes, *, forward, backward, compiled, residuals):
    del backward, compiled
    mapped = jax.vmap(forward, in_axes=tuple(axes))
    # What is linear is its own tangent; as one, JAX before 0.8 can transpose its loops as well.
    variables = arrays[residuals:]
    origin = [jnp.zeros_like(array) for array in variables]
    along = functools.partial(mapped, *arrays[:residuals])
    _, results = jax.jvp(along, origin, list(variables))
    return results, [0] * len(results)


def _transpose(cotangents, *arrays, forward, backward, compiled, residuals):
    del forward, compiled
    flowing = [None if isinstance(ct, ad.Zero) else ct for ct in cotangents]
    results = backward(arrays[:residuals], flowing)
    wanted = map(ad.is_undefined_primal, arrays[residuals:])
    given_back = [ct if want else None for ct, want in zip(results, wanted, strict=True)]
    return [None] * residuals + given_back


ad.primitive_jvps[_linear_map] = _differentiate
ad.primitive_transposes[_linear_map] = _transpose
batching.primitive_batchers[_linear_map] = _map
mlir.register_lowering(_linear_map, mlir.lower_fun(_evaluate, multiple_results=True))
