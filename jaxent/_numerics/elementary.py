"""Functions of one or two numbers, where those of JAX round too much."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def two_part_difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - b of finite numbers, and what rounding took from it (Knuth's two-sum)."""
    difference = a - b
    moved = difference - a
    return difference, (a - (difference - moved)) - (b + moved)


def polynomial(x: jax.Array, coefficients: Sequence[float]) -> jax.Array:
    """The polynomial with these coefficients, the constant one first."""
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def terms_for(dtype: jnp.dtype, single: int, double: int) -> int:
    """How many terms of a series the dtype needs."""
    return double if dtype == jnp.float64 else single


def log1p(x: jax.Array) -> jax.Array:
    """log(1 + x); before JAX 0.12 the one of XLA is off by 7 bits near -0.4 in float64."""
    if x.dtype != jnp.float64:
        return jnp.log1p(x)
    is_far = x < -0.25
    return jnp.where(is_far, jnp.log(1.0 + x), jnp.log1p(jnp.where(is_far, 0.0, x)))


def exponential_excess(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x for |x| <= 1, which the subtraction would lose near 0."""
    last = terms_for(x.dtype, 12, 19)
    return x * x * polynomial(x, [1.0 / math.factorial(n) for n in range(2, last + 1)])
