"""How a loss is run: as one compiled program, or by the interpreter.

Compiling takes most of the time that tests of JAX take. So a fast run (see level.py) compiles what
is said about numbers, as users do, and interprets what is said about transformations, masks and
shapes (see interpreter.py). A thorough run compiles everything.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from conformance import level
from conformance.case import Arrays, Batch, Case, WholeCase
from conformance.interpreter import interpret

AnyCase = Case | WholeCase

# What is compiled: "what is asked for", "everything" or "nothing".
_compiled_is = "what is asked for"


@contextlib.contextmanager
def compiling(what: str) -> Iterator[None]:
    """Nothing where a loss is broken on purpose; everything where the interpreter will not do."""
    global _compiled_is
    before, _compiled_is = _compiled_is, what
    try:
        yield
    finally:
        _compiled_is = before


def _is_compiled(asked_for: bool) -> bool:
    if _compiled_is == "what is asked for":
        return asked_for or level.is_thorough()
    return _compiled_is == "everything"


def may_compile() -> bool:
    return _compiled_is != "nothing"


def run(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of arrays returns: compiled in a thorough run, else interpreted."""
    if _is_compiled(False):
        return jax.jit(function)(*arguments)
    return interpret(function, *arguments)


# --- losses and their derivatives -----------------------------------------------------------------


def of_floats(case: AnyCase, arguments: Any, **keywords: Any) -> tuple[Callable, tuple]:
    """The loss as a function of the arguments that have gradients alone, and those."""
    positions = case.positions(arguments)

    def loss(*floats):
        given = list(arguments)
        for position, value in zip(positions, floats, strict=True):
            given[position] = value
        return case.loss(*given, **keywords)

    return loss, tuple(arguments[position] for position in positions)


def of_vector(case: AnyCase, arguments: Any) -> tuple[Callable, jax.Array]:
    """The sum of the losses as a function of those arguments laid end to end."""
    loss, floats = of_floats(case, arguments)
    ends = np.cumsum([np.size(value) for value in floats])[:-1]

    def of(vector):
        pieces = jnp.split(vector, ends)
        shaped = (p.reshape(np.shape(f)) for p, f in zip(pieces, floats, strict=True))
        return jnp.sum(loss(*shaped))

    return of, jnp.concatenate([jnp.ravel(value) for value in floats])


def gradients(case: AnyCase, arguments: Any, **keywords: Any) -> tuple[jax.Array, ...]:
    """The gradient of the sum of the losses in each argument that has one; to be traced."""
    loss, floats = of_floats(case, arguments, **keywords)
    return jax.grad(lambda *f: jnp.sum(loss(*f)), tuple(range(len(floats))))(*floats)


def hessians(case: Case, arguments: Any, outer: Callable) -> jax.Array:
    """Second derivatives of each example in its first argument, `outer` over reverse mode."""
    return jax.vmap(outer(jax.jacrev(case.loss)))(*arguments)


class Results(NamedTuple):
    """The losses and the gradients of their sum."""

    losses: np.ndarray
    gradients: Arrays


def results(case: AnyCase, arguments: Any, where: Any = None) -> Results:
    """The losses and their gradients by one program, which serves the next call alike."""
    return _results(_Keyed(case), _Array.several(arguments), _Array.several((where,)), _precision())


def every_result(case: AnyCase, arguments: Any, where: Any = None) -> dict[str, Results]:
    """The same with `jax.jit` and, in a thorough run, without."""
    found = {"with jit": results(case, arguments, where)}
    if level.is_thorough():
        keywords = {} if where is None else {"where": where}
        losses = np.asarray(case.loss(*arguments, **keywords))
        grads = gradients(case, arguments, **keywords)
        found["without jit"] = Results(losses, tuple(map(np.asarray, grads)))
    return found


def values(case: AnyCase, arguments: Any, **keywords: Any) -> np.ndarray:
    """The losses of arguments as they are, arrays, lists or numbers; eager in a thorough run."""
    if _is_compiled(False):
        return np.asarray(case.loss(*arguments, **keywords))
    return interpret(lambda: case.loss(*arguments, **keywords))


class BatchResults(NamedTuple):
    """What is said about a batch of hard inputs, and what passes to the backward pass."""

    losses: np.ndarray
    gradients: Arrays
    residuals: Arrays


def run_batch(case: Case, batch: Batch, *, compiled: bool = False) -> BatchResults:
    """Of each row of a batch; compiled in a thorough run or where it is asked for."""
    return _run_batch(case, batch, _trace_everything, compiled)


def run_calls(case: WholeCase, batch: Batch, *, compiled: bool = False) -> BatchResults:
    """Of each call of a batch, the sum of its losses."""
    return _run_batch(case, batch, _trace_calls, compiled)


def _run_batch(case: AnyCase, batch: Batch, trace: Callable, compiled: bool) -> BatchResults:
    rows = len(batch.names)
    # Few sizes, so that operations are compiled for few of them.
    index = np.arange(1 << (rows - 1).bit_length()) % rows
    arguments = tuple(array[index] for array in batch.arguments)
    found = _program(case, trace, compiled)(arguments, None)
    losses, grads, residuals = (tuple(map(np.asarray, jax.tree.leaves(each))) for each in found)
    return BatchResults(losses[0][:rows], tuple(grad[:rows] for grad in grads), residuals)


def _program(case: AnyCase, trace: Callable, compiled: bool) -> Callable[[Any, Any], Any]:
    if _is_compiled(compiled):
        return _compiled(_Keyed(case), trace)
    return functools.partial(interpret, functools.partial(trace, case))


def _trace_everything(case: AnyCase, arguments: Any, where: Any) -> tuple[Any, Any, Any]:
    """The losses, the gradients of their sum, and what the forward pass keeps for those."""
    keywords = {} if where is None else {"where": where}
    loss, floats = of_floats(case, arguments, **keywords)
    losses, backward = jax.vjp(loss, *floats)
    return losses, backward(jnp.ones_like(losses)), jax.tree.leaves(backward)


def _trace_calls(case: AnyCase, arguments: Any, where: None) -> tuple[Any, Any, Any]:
    """The same of calls along a first axis, of which each has one sum of losses."""

    def of_call(*call):
        losses, grads, kept = _trace_everything(case, call, where)
        return jnp.sum(losses), grads, kept

    return jax.vmap(of_call)(*arguments)


class _Keyed:
    """A case that is known by its function and options."""

    def __init__(self, case: AnyCase):
        self.case = case
        self._key = (case.function, tuple(case.options.items()))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Keyed) and self._key == other._key


class _Array:
    """An array that is known by what it holds."""

    def __init__(self, array: Any):
        self.array = array if array is None else np.asarray(array)
        self._key = None if array is None else (array.dtype.str, array.shape, array.tobytes())

    @classmethod
    def several(cls, arrays: Any) -> "tuple[_Array, ...]":
        return tuple(map(cls, arrays))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Array) and self._key == other._key


def _precision() -> bool:
    return jnp.result_type(float) == np.float64


@functools.lru_cache(maxsize=16)  # what the obligations of a case ask again and again
def _results(
    keyed: _Keyed, arguments: tuple[_Array, ...], where: tuple[_Array], _: bool
) -> Results:
    given = tuple(each.array for each in arguments)
    losses, grads, _ = _program(keyed.case, _trace_everything, False)(given, where[0].array)
    return Results(np.asarray(losses), tuple(map(np.asarray, grads)))


@functools.lru_cache(maxsize=2)  # what the obligations of a case share; two, for the peer's
def _compiled(keyed: _Keyed, trace: Callable) -> Callable[[Any, Any], Any]:
    return jax.jit(functools.partial(trace, keyed.case))
