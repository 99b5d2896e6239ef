"""`with_batching_rule`: a function whose rule for `jax.vmap` is written by hand.

`jax.custom_batching.custom_vmap` has no reverse mode. Here derivatives are those of the function,
and the rule is asked only if the mapped function is differentiated from outside: what `jax.vmap`
finds inside a derivative is the derivative's own program.
"""

# pyright: strict, reportUnknownMemberType=false

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import jax
from jax.interpreters import ad, batching, mlir

_T = TypeVar("_T")  # a tree of arrays
Arrays = Sequence[jax.Array]
Axes = Sequence[int | None]
FlatFunction = Callable[..., jax.Array]
FlatRule = Callable[[Arrays, Axes], jax.Array]


def with_batching_rule(
    function: Callable[[_T], jax.Array],
    rule: Callable[[_T, Any], jax.Array],
    arguments: _T,
) -> jax.Array:
    """`function(arguments)`, which `jax.vmap` maps by `rule(arguments, axes)`.

    Args:
        function: Maps a tree of arrays to an array. It closes over no arrays.
        rule: Maps the arguments and the axis that each of them is mapped over, a tree of the same
            structure with -1 for none, to the results along a first axis.
        arguments: A tree of arrays.
    """
    leaves = jax.tree.leaves(arguments)
    tree = cast(Any, jax.tree.structure(arguments))  # JAX has no type for the structure of a tree

    def flat(*leaves: jax.Array) -> jax.Array:
        return function(jax.tree.unflatten(tree, leaves))

    def flat_rule(leaves: Arrays, axes: Axes) -> jax.Array:
        numbers = [-1 if axis is None else axis for axis in axes]
        return rule(jax.tree.unflatten(tree, leaves), jax.tree.unflatten(tree, numbers))

    result = _primitive().bind(*leaves, function=flat, rule=flat_rule)
    return cast(jax.Array, result)


def _impl(*arrays: jax.Array, function: FlatFunction, rule: FlatRule) -> jax.Array:
    del rule
    return function(*arrays)


def _abstract_eval(*avals: Any, function: FlatFunction, rule: FlatRule) -> Any:
    del rule
    return jax.make_jaxpr(function)(*avals).out_avals[0]


def _jvp(
    primals: Arrays,
    tangents: Sequence[Any],  # jax.Array or ad.Zero
    *,
    function: FlatFunction,
    rule: FlatRule,
) -> tuple[jax.Array, jax.Array]:
    del rule
    trained = [i for i, dot in enumerate(tangents) if not isinstance(dot, ad.Zero)]

    def of_trained(*values: jax.Array) -> jax.Array:
        arrays = list(primals)
        for index, value in zip(trained, values, strict=True):
            arrays[index] = value
        return function(*arrays)

    return jax.jvp(of_trained, [primals[i] for i in trained], [tangents[i] for i in trained])


def _batch(
    arrays: Arrays, axes: Axes, *, function: FlatFunction, rule: FlatRule
) -> tuple[jax.Array, int]:
    del function
    return rule(arrays, axes), 0


@functools.cache
def _primitive() -> Any:
    """Made when it is needed: `jax.extend` imports Pallas, a quarter of the time of `jaxent`'s."""
    from jax.extend.core import Primitive

    primitive: Any = Primitive("with_batching_rule")
    primitive.def_impl(_impl)
    primitive.def_abstract_eval(_abstract_eval)
    ad.primitive_jvps[primitive] = _jvp
    batching.primitive_batchers[primitive] = _batch
    mlir.register_lowering(primitive, mlir.lower_fun(_impl, multiple_results=False))
    return primitive
