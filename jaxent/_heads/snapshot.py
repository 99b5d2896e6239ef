"""What a function reads from outside, so that its compiled program is used only while that holds.

`jax.jit` finds a program again by the function, not by the numbers that the function reads from its
module or closes over. If such a number changes, the program still has the old one. A snapshot
therefore compares by code and by all that the code reads: functions by their own code, numbers and
words by value. Whatever can change unseen (an array, a dictionary, an object) has no snapshot.
"""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import dataclasses
import dis
import functools
import sys
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import numpy as np

# Their modules and classes are taken for constant; a function of theirs may still hold a user's.
_LIBRARIES = sys.stdlib_module_names | {
    *("jax", "jaxlib", "jaxent"),
    *("chex", "ml_dtypes", "numpy", "optax"),
}
_CONSTANTS = (bool, int, float, complex, str, bytes, type(None), type(...))
_HIDE_NAMES = {"__import__", "eval", "exec", "getattr", "globals", "vars"}
_IMPORT = dis.opmap["IMPORT_NAME"]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A function, equal to every other of the same code that reads the same."""

    function: Callable[..., Any] = dataclasses.field(compare=False)
    reads: tuple[Hashable, ...]


class _ChangesUnseenError(Exception):
    """A function reads something that may be the same object and yet not the same value."""


def take_snapshot(function: Callable[..., Any]) -> Snapshot | None:
    """The function with all that it reads; None if some of that may change unseen."""
    try:
        return Snapshot(function, tuple(_reads(function, frozenset(), set())))
    except _ChangesUnseenError:
        return None


def _reads(value: Any, names: frozenset[str], seen: set[int]) -> Iterator[Hashable]:
    """What a value is known by, and all that it reads in turn.

    Args:
        value: any object.
        names: all names in the code that reads it, those of attributes included.
        seen: the ids of functions that have been looked at.
    """
    if type(value) in _CONSTANTS or isinstance(value, np.generic):
        yield type(value), repr(value)
    elif type(value) is tuple:
        yield tuple, len(value)
        for item in value:
            yield from _reads(item, names, seen)
    elif isinstance(value, types.ModuleType):
        yield value
        if not _is_library(value.__name__):
            for name in sorted(names & vars(value).keys()):
                yield name
                yield from _reads(vars(value)[name], names, seen)
    elif isinstance(value, types.FunctionType):
        yield from _reads_of_function(value, seen)
    elif isinstance(value, functools.partial):
        yield functools.partial, tuple(value.keywords)
        yield from _reads((value.func, value.args, *value.keywords.values()), names, seen)
    elif isinstance(value, jax.custom_jvp):
        yield jax.custom_jvp, tuple(value.nondiff_argnums)
        yield from _reads((value.fun, value.jvp), names, seen)
    elif _is_library(type(value).__module__) and hasattr(value, "__wrapped__"):
        yield value
        yield from _reads(value.__wrapped__, names, seen)
    elif _is_constant_of_library(value):
        yield value
    else:
        raise _ChangesUnseenError


def _is_constant_of_library(value: Any) -> bool:
    """Whether a value is a builtin function bound to no object, or a library's class or dtype."""
    if isinstance(value, types.BuiltinFunctionType):
        return value.__self__ is None or isinstance(value.__self__, types.ModuleType)
    if isinstance(value, type):
        return _is_library(value.__module__)
    return isinstance(value, np.ufunc | np.dtype)


def _reads_of_function(function: types.FunctionType, seen: set[int]) -> Iterator[Hashable]:
    """The code of a function, its defaults and closure, and its globals if it is no library's."""
    code = function.__code__
    yield code
    if id(function) in seen:
        return
    seen.add(id(function))
    names = frozenset(_names(code))
    keywords = function.__kwdefaults__ or {}
    yield tuple(keywords)
    yield from _reads((function.__defaults__, *keywords.values()), names, seen)
    for cell in function.__closure__ or ():
        yield from _reads(_contents(cell), names, seen)
    if _is_library(function.__globals__.get("__name__", "")):
        return
    if names & _HIDE_NAMES or _imports(code):
        raise _ChangesUnseenError
    for name in sorted(names & (function.__globals__.keys() | vars(function).keys())):
        yield name
        if name in vars(function):
            raise _ChangesUnseenError
        yield from _reads(function.__globals__[name], names, seen)


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not yet assigned
        return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code, and that of all functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    """All names of globals and attributes in a code."""
    for each in _codes(code):
        yield from each.co_names


def _imports(code: types.CodeType) -> bool:
    """Whether a code imports: what it reads then has no name among its globals."""
    return any(_IMPORT in each.co_code[::2] for each in _codes(code))


def _is_library(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _LIBRARIES
