"""What the losses of distributions share: which rows are valid, and options that they have."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks


def have_totals(*rows: jax.Array) -> jax.Array:
    """Whether the total of each row is positive and finite."""
    totals = [jnp.sum(p, axis=-1) for p in rows]
    are_valid = [(total > 0.0) & (total < jnp.inf) for total in totals]
    return functools.reduce(jnp.logical_and, are_valid)


def as_floating_and_real(**arrays: ArrayLike) -> dict[str, jax.Array]:
    """Two arguments as arrays by name: the first must be floating point, the second real."""
    (first, second) = arrays
    return {
        first: _checks.as_floating(first, arrays[first]),
        second: _checks.as_real(second, arrays[second]),
    }


def as_order(alpha: float) -> float:
    """The order of an entropy, refused unless it is a Python number from 0 on."""
    _checks.require(
        isinstance(alpha, numbers.Real) and alpha >= 0.0,
        f"`alpha` must be a number from 0 on, got {alpha!r}; it is a constant, not an array.",
    )
    return float(alpha)


def check_base(base: float | None) -> None:
    """Refuses the base of a logarithm unless it is None or a finite Python number above 1."""
    _checks.require(
        base is None or (isinstance(base, numbers.Real) and 1.0 < base < math.inf),
        f"`base` must be a finite number greater than 1, got {base!r}; "
        "pass None for nats or 2 for bits.",
    )


def in_base(nats: jax.Array, base: float | None) -> jax.Array:
    """Information in the unit of a base of the logarithm; None for nats."""
    return nats if base is None else nats / math.log(base)


def rounding_tolerance(*arrays: jax.Array) -> float:
    """The relative error that 8 roundings of the coarsest dtype among the arrays amount to."""
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    return 8.0 * max(float(jnp.finfo(dtype).eps) for dtype in floats)
