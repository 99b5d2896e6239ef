"""What the contract tables share: how results are compared, and how a loss is broken on purpose.

Every obligation names ways of breaking a loss that it must notice; most of them are made here.
"""

from collections.abc import Callable
from typing import Any

import jax
import ml_dtypes
import numpy as np

HALF_DTYPES = (ml_dtypes.bfloat16, np.float16)

Loss = Callable[..., Any]
Failure = type[BaseException] | tuple[type[BaseException], ...]


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
