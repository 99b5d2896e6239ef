"""`linear_map`: a linear function with a transpose of its own, for `jax.custom_jvp` rules.

JAX transposes the tangents of a custom rule operation by operation. That is right, but it cannot
know that a cotangent may be rounded to 16 bits before a product, nor skip work for results that are
not used. Here the transpose is written by hand. `jax.custom_vjp` has no forward mode, and
`jax.custom_derivatives.linear_call` no batching rule.

Only the first transposition calls the transpose: all other transformations (second derivatives,
`vmap`) are those of the function itself, so JAX must be able to differentiate it.
"""

# pyright: strict, reportUnknownMemberType=false

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
from jax.interpreters import ad, batching, mlir

from jaxent import _parallel
from jaxent._compat import as_tangents

_R = TypeVar("_R")  # a tree of arrays: residuals
_V = TypeVar("_V")  # a tree of arrays: the operands that the function is linear in
Arrays = Sequence[jax.Array]
FlatFunction = Callable[..., list[jax.Array]]  # of the leaves of residuals and operands
FlatTranspose = Callable[[Arrays, list[jax.Array | None]], list[jax.Array]]


def linear_map(
    function: Callable[[_R, _V], Sequence[jax.Array]],
    transpose: Callable[[_R, tuple[jax.Array | None, ...]], Any],
    residuals: _R,
    operands: _V,
    compiled: Callable[[_R, _V], Sequence[jax.Array]] | None = None,
    vary_alike: bool = True,
) -> tuple[jax.Array, ...]:
    """`function(residuals, operands)`, transposed by `transpose(residuals, cotangents)`.

    Args:
        function: Maps residuals and operands to arrays, linear in the operands. It closes over no
            arrays.
        transpose: Maps residuals and one cotangent per result, None where nothing flows back, to a
            tree of cotangents with the structure of `operands`.
        residuals: A tree of arrays.
        operands: A tree of floating point arrays.
        compiled: A function with the same results that is run instead of `function` where no
            transformation is left, and so need not be differentiable.
        vary_alike: Whether all arrays are made to vary over the same mesh axes. If not, `transpose`
            must return cotangents that vary as the operands do.

    Returns:
        The results of `function`.
    """
    if vary_alike:
        residuals, operands = _parallel.match_varying((residuals, operands))
    residual_leaves, operand_leaves = jax.tree.leaves(residuals), jax.tree.leaves(operands)
    # JAX has no type for the structure of a tree.
    residuals_tree = cast(Any, jax.tree.structure(residuals))
    operands_tree = cast(Any, jax.tree.structure(operands))
    count = len(residual_leaves)

    def flatten(function: Callable[[_R, _V], Sequence[jax.Array]]) -> FlatFunction:
        def flat(*arrays: jax.Array) -> list[jax.Array]:
            residuals = jax.tree.unflatten(residuals_tree, arrays[:count])
            return list(function(residuals, jax.tree.unflatten(operands_tree, arrays[count:])))

        return flat

    def flat_transpose(arrays: Arrays, cotangents: list[jax.Array | None]) -> list[jax.Array]:
        residuals = jax.tree.unflatten(residuals_tree, arrays)
        return jax.tree.leaves(transpose(residuals, tuple(cotangents)))

    # Without `jax.jit`, what is called eagerly would be traced and compiled anew at every call.
    results = _bind(
        *residual_leaves,
        *operand_leaves,
        function=flatten(function),
        transpose=jax.jit(flat_transpose, inline=True),
        compiled=jax.jit(flatten(compiled or function), inline=True),
        residual_count=count,
    )
    return tuple(results)


def _bind(*arrays: jax.Array, **options: Any) -> list[jax.Array]:
    return cast(list[jax.Array], _primitive().bind(*arrays, **options))


def _impl(*arrays: jax.Array, compiled: FlatFunction, **_: Any) -> list[jax.Array]:
    return compiled(*arrays)


def _abstract_eval(*avals: Any, function: FlatFunction, **_: Any) -> list[Any]:
    return jax.make_jaxpr(function)(*avals).out_avals


def _jvp(
    primals: Arrays,
    tangents: Sequence[Any],  # jax.Array or ad.Zero
    *,
    function: FlatFunction,
    residual_count: int,
    **others: Any,
) -> tuple[list[jax.Array], list[jax.Array]]:
    """f(r, v) is linear in v, so its tangent is f(r, v_dot) + (df/dr) r_dot."""
    options = {"function": function, "residual_count": residual_count, **others}
    results = _bind(*primals, **options)
    is_zero = [isinstance(tangent, ad.Zero) for tangent in tangents]
    terms: list[Sequence[jax.Array]] = []
    if not all(is_zero[residual_count:]):
        dots: list[Any] = [ad.instantiate_zeros(dot) for dot in tangents[residual_count:]]
        terms.append(_bind(*primals[:residual_count], *dots, **options))
    indices = [index for index in range(residual_count) if not is_zero[index]]
    if indices:

        def of_residuals(*residuals: jax.Array) -> list[jax.Array]:
            arrays = list(primals)
            for index, residual in zip(indices, residuals, strict=True):
                arrays[index] = residual
            return function(*arrays)

        points, dots = [primals[i] for i in indices], [tangents[i] for i in indices]
        terms.append(jax.jvp(of_residuals, points, dots)[1])
    return results, [functools.reduce(operator.add, dots) for dots in zip(*terms, strict=True)]


def _transpose(
    cotangents: Sequence[Any],  # jax.Array or ad.Zero
    *arrays: Any,  # jax.Array, or ad.UndefinedPrimal for an operand that wants a cotangent
    transpose: FlatTranspose,
    residual_count: int,
    **_: Any,
) -> list[jax.Array | None]:
    flowing = [None if isinstance(ct, ad.Zero) else ct for ct in cotangents]
    results = transpose(arrays[:residual_count], flowing)
    pairs = zip(results, arrays[residual_count:], strict=True)
    wanted = (ct if ad.is_undefined_primal(operand) else None for ct, operand in pairs)
    return [*[None] * residual_count, *wanted]


def _batch(
    arrays: Arrays,
    axes: Sequence[int | None],
    *,
    function: FlatFunction,
    residual_count: int,
    **_: Any,
) -> tuple[list[jax.Array], list[int]]:
    mapped = functools.partial(jax.vmap(function, in_axes=tuple(axes)), *arrays[:residual_count])
    results = as_tangents(mapped, arrays[residual_count:])
    return results, [0] * len(results)


@functools.cache
def _primitive() -> Any:
    """Made when it is needed: `jax.extend` imports Pallas, a quarter of the time of `jaxent`'s."""
    from jax.extend.core import Primitive

    primitive: Any = Primitive("linear_map")
    primitive.multiple_results = True
    primitive.def_impl(_impl)
    primitive.def_abstract_eval(_abstract_eval)
    ad.primitive_jvps[primitive] = _jvp
    ad.primitive_transposes[primitive] = _transpose
    batching.primitive_batchers[primitive] = _batch
    mlir.register_lowering(primitive, mlir.lower_fun(_impl, multiple_results=True))
    return primitive
