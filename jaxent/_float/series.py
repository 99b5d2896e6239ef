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
