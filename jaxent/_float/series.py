"""Polynomials and power series."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def polynomial(x: jax.Array, coefficients: Sequence[float]) -> jax.Array:
    """The polynomial with these coefficients, the constant one first."""
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def terms_for(dtype: jnp.dtype, single: int, double: int) -> int:
    """How many terms of a series the dtype needs."""
    return double if dtype == jnp.float64 else single


def expm1_minus_x(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x for |x| <= 1, which the subtraction would lose near 0."""
    last = terms_for(x.dtype, 12, 19)
    return x * x * polynomial(x, [1.0 / math.factorial(n) for n in range(2, last + 1)])


def exp_remainder(x: jax.Array) -> jax.Array:
    """exp(-x) - (1 - x) for x >= 0: about x**2 / 2 near 0."""
    is_small = x < 1.0
    small, large = jnp.where(is_small, x, 0.0), jnp.where(is_small, 1.0, x)
    return jnp.where(is_small, expm1_minus_x(-small), (large - 1.0) + jnp.exp(-large))


def one_minus_exp(x: jax.Array) -> jax.Array:
    """1 - exp(-x) for x >= 0; XLA's expm1 loses two bits of it on CPUs."""
    is_small = x < 0.5
    small = jnp.where(is_small, x, 0.0)
    return jnp.where(is_small, small - exp_remainder(small), 1.0 - jnp.exp(-x))
