"""Ways of breaking a loss on purpose: each must be noticed by the obligation that names it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Loss = Callable[..., Any]


class Way(NamedTuple):
    """How to break a loss, and the cases that it does break."""

    break_: Callable[[Loss], Loss]
    applies: Callable[[Any], bool]


def way(break_: "Callable[[Loss], Loss] | Way") -> Way:
    return break_ if isinstance(break_, Way) else Way(break_, lambda case: True)


def only(break_: Callable[[Loss], Loss], *, to: Callable[[Any], bool]) -> Way:
    """A way that breaks some of the cases alone."""
    return Way(break_, to)


def after(change: Callable[[jax.Array], Any]) -> Callable[[Loss], Loss]:
    """Breaks a loss by changing its result."""
    return lambda loss: lambda *arguments, **keywords: change(loss(*arguments, **keywords))


def before(change: Callable[..., tuple]) -> Callable[[Loss], Loss]:
    """Breaks a loss by changing its arguments."""
    return lambda loss: lambda *arguments, **keywords: loss(*change(*arguments), **keywords)


def first(change: Callable[[Any], Any]) -> Callable[[Loss], Loss]:
    return before(lambda logits, *rest: (change(logits), *rest))


def second(change: Callable[[Any], Any]) -> Callable[[Loss], Loss]:
    return before(lambda logits, labels, *rest: (logits, change(labels), *rest))


def without(keyword: str) -> Callable[[Loss], Loss]:
    """Breaks a loss by ignoring one of its arguments."""
    return lambda loss: (
        lambda *arguments, **keywords: loss(
            *arguments, **{name: value for name, value in keywords.items() if name != keyword}
        )
    )


def instead(other: Loss) -> Callable[[Loss], Loss]:
    return lambda _: other


def without_forward_mode(loss: Loss) -> Loss:
    def broken(logits, *rest, **keywords):
        of_logits = jax.custom_vjp(lambda x: loss(x, *rest, **keywords))
        of_logits.defvjp(
            lambda x: jax.vjp(lambda x: loss(x, *rest, **keywords), x),
            lambda pullback, cotangent: pullback(cotangent),
        )
        return of_logits(logits)

    return broken


def without_second_derivatives(loss: Loss) -> Loss:
    """First derivatives as they should be, second ones zero in forward over reverse."""

    def broken(logits, *rest, **keywords):
        fixed = jax.lax.stop_gradient(logits)
        value, tangent = jax.linearize(lambda x: loss(x, *rest, **keywords), fixed)
        return jax.tree.map(jnp.add, value, tangent(logits - fixed))

    return broken


def with_another_hessian(loss: Loss) -> Loss:
    """The value and the first derivatives as they should be, the second ones off by 1/50."""

    def broken(logits, *rest, **keywords):
        losses = loss(logits, *rest, **keywords)
        logits = jnp.asarray(logits)
        square = 0.01 * jnp.square(logits - jax.lax.stop_gradient(logits))
        if losses.ndim < square.ndim:
            square = jnp.sum(square, axis=-1)
        return losses + square.astype(losses.dtype)

    return broken


@jax.custom_jvp
def take_the_impossible_for_zero(logits):
    logits = jnp.asarray(logits)
    return jnp.where(logits == -jnp.inf, jnp.zeros_like(logits), logits)


@take_the_impossible_for_zero.defjvp
def _take_the_impossible_for_zero_jvp(primals, tangents):
    return take_the_impossible_for_zero(*primals), *tangents


_kept: list[Any] = []


def keep_a_tracer(logits):
    _kept.append(logits + 0.0)
    return logits


# --- small parts ----------------------------------------------------------------------------------


def altered(array: np.ndarray, index: Any, value: Any) -> np.ndarray:
    array = np.array(array)
    array[index] = value
    return array


def with_one(values: tuple, position: int, value: Any) -> tuple:
    return (*values[:position], value, *values[position + 1 :])


def is_integer(array: Any) -> bool:
    return array.dtype.kind in "iu"
