"""What the contract tables share: how results are compared, and how a loss is broken on purpose.

Every obligation names ways of breaking a loss that it must notice; most of them are made here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import ml_dtypes
import numpy as np
import pytest

HALF_DTYPES = (ml_dtypes.bfloat16, np.float16)

Loss = Callable[..., Any]
Failure = type[BaseException] | tuple[type[BaseException], ...]


class Obligation(NamedTuple):
    """What a table holds its cases to, and ways of breaking a loss that must be noticed."""

    check: Callable[[Any], None]
    broken_by: tuple[Callable[[Loss], Loss], ...]
    fails_with: Failure
    applies: Callable[[Any], bool]


def new_table() -> tuple[list[Obligation], Callable]:
    """The obligations of a table, none yet, and the decorator by which checks are added."""
    table: list[Obligation] = []

    def obligation(
        *broken_by: Callable[[Loss], Loss],
        to: Callable[[Any], bool] = lambda _: True,
        fails_with: Failure = AssertionError,
    ):
        """Registers a check of the cases `to` which it applies, and what breaks a loss it sees."""

        def register(check: Callable[[Any], None]) -> Callable[[Any], None]:
            assert broken_by, f"nothing shows that {check.__name__} can fail"
            table.append(Obligation(check, broken_by, fails_with, to))
            return check

        return register

    return table, obligation


def ways_of_breaking(table: Sequence[Obligation]) -> list[Any]:
    """Parameters of a test: each obligation with each way of breaking a loss."""
    return [
        pytest.param(each, break_, id=f"{each.check.__name__}-{index}")
        for each in table
        for index, break_ in enumerate(each.broken_by)
    ]


def notices(each: Obligation, break_: Callable[[Loss], Loss], cases: Sequence[Any]) -> None:
    """Fails unless the obligation fails when the first loss it applies to is broken."""
    case = next(case for case in cases if each.applies(case))
    broken = functools.wraps(case.function)(break_(case.function))
    with pytest.raises(each.fails_with):
        each.check(case._replace(function=broken))


def require(case: Any, what: str, names: list[str], errors: np.ndarray, bar: float) -> None:
    """Fails if any error is above the bar, naming the families of the worst."""
    errors = errors.reshape(len(names), -1).max(-1)
    worst = ", ".join(f"{names[i]}: {errors[i]:.3g}" for i in np.argsort(-errors)[:5])
    assert errors.max() <= bar, (
        f"{case}: {what} is off by more than {bar} units in the last place in "
        f"{np.sum(errors > bar)} of {len(errors)} cases; worst: {worst}"
    )


# --- tools ----------------------------------------------------------------------------------------


def is_integer(array) -> bool:
    return array.dtype.kind in "iu"


def close(actual, expected, *, rtol=1e-6) -> None:
    """Equal to a few units in the last place, or to as much of the largest entry."""
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for a, e in pairs:
        a, e = np.asarray(a, np.float64), np.asarray(e, np.float64)
        size = np.max(np.abs(e), initial=0.0, where=np.isfinite(e))
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * size)


def altered(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = np.array(array)
    array[index] = value
    return array


def with_one(values: tuple, position: int, value: Any) -> tuple:
    return (*values[:position], value, *values[position + 1 :])


# --- ways of breaking a loss ----------------------------------------------------------------------


def after(change: Callable[[jax.Array], Any]) -> Callable[[Loss], Loss]:
    """Breaks a loss by changing its result."""
    return lambda loss: lambda *arguments, **keywords: change(loss(*arguments, **keywords))


def before(change: Callable[..., tuple]) -> Callable[[Loss], Loss]:
    """Breaks a loss by changing its arguments."""
    return lambda loss: lambda *arguments, **keywords: loss(*change(*arguments), **keywords)


def without(keyword: str) -> Callable[[Loss], Loss]:
    """Breaks a loss by ignoring one of its arguments."""
    return lambda loss: (
        lambda *arguments, **keywords: loss(
            *arguments, **{name: value for name, value in keywords.items() if name != keyword}
        )
    )


def instead(other: Loss) -> Callable[[Loss], Loss]:
    return lambda _: other


def first(change: Callable[[Any], Any]) -> Callable[[Loss], Loss]:
    return before(lambda logits, *rest: (change(logits), *rest))


def second(change: Callable[[Any], Any]) -> Callable[[Loss], Loss]:
    return before(lambda logits, labels, *rest: (logits, change(labels), *rest))


def without_forward_mode(loss: Loss) -> Loss:
    def broken(logits, *rest, **keywords):
        of_logits = jax.custom_vjp(lambda x: loss(x, *rest, **keywords))
        of_logits.defvjp(
            lambda x: jax.vjp(lambda x: loss(x, *rest, **keywords), x),
            lambda pullback, cotangent: pullback(cotangent),
        )
        return of_logits(logits)

    return broken


def without_curvature(loss: Loss) -> Loss:
    """First derivatives as they should be, second ones zero in forward over reverse."""

    def broken(logits, *rest, **keywords):
        fixed = jax.lax.stop_gradient(logits)
        value, tangent = jax.linearize(lambda x: loss(x, *rest, **keywords), fixed)
        return value + tangent(logits - fixed)

    return broken


_kept: list[Any] = []


def keeps_a_tracer(logits):
    _kept.append(logits + 0.0)
    return logits
