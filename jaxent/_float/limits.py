"""The ends of a dtype's range: numbers that are too small to divide by, or too large to multiply.

Subnormal numbers count as 0, since some processors take them for that.
"""

import math

import jax
import jax.numpy as jnp

from jaxent._float.dtypes import smallest_normal


def is_zero(x: jax.Array) -> jax.Array:
    """Whether an entry of `x >= 0` is too small to divide by; False for NaN."""
    return x < smallest_normal(x.dtype)


def log_or_zero(x: jax.Array) -> jax.Array:
    """log(x), and 0 with derivative 0 where x is 0."""
    return jnp.log(jnp.where(is_zero(x), 1.0, x))


def clip_to_finite(x: jax.Array) -> jax.Array:
    """`x` with the largest finite numbers in place of infinities, so that it may meet a 0."""
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest)


def exp_limit(dtype: jnp.dtype) -> float:
    """A number above which exp(-x) is 0 in this dtype."""
    return -2.0 * math.log(smallest_normal(dtype))


def multiply_clipped(factor: float, x: jax.Array) -> jax.Array:
    """`factor * x` without overflow: clipped to the range outside which exp(-|x|) is 0."""
    limit = exp_limit(x.dtype) / factor
    return factor * jnp.clip(x, -limit, limit)
