"""The ends of a dtype's range: numbers that are too small to divide by, or too large to multiply.

Subnormal numbers count as 0, since many processors take them for that. The exception is the
probability of what happened, which must not cost infinity: `neg_log` and `divide` read its bits.
"""

import math

import jax
import jax.numpy as jnp

from jaxent._float.dtypes import integer_dtype, smallest_normal


def is_zero(x: jax.Array) -> jax.Array:
    """Whether an entry of `x >= 0` is too small to divide by; False for NaN."""
    return x < smallest_normal(x.dtype)


def log_or_zero(x: jax.Array) -> jax.Array:
    """log(x), and 0 with derivative 0 where x is 0."""
    return jnp.log(jnp.where(is_zero(x), 1.0, x))


def zero_or_inf(x: jax.Array) -> jax.Array:
    """0 where an entry of `x >= 0` is 0, inf elsewhere, in arithmetic that CPUs fuse into sums.

    It bounds what x multiplies, so that 0 * inf does not arise.
    """
    is_positive = jnp.floor(jnp.minimum(x / smallest_normal(x.dtype), 1.0))
    return is_positive / (1.0 - is_positive)


def _scale_up_subnormal(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """|x| as a normal number or 0, and whether that is |x| over the smallest normal number."""
    size, info = jax.lax.abs(x), jnp.finfo(x.dtype)
    # The bits of a subnormal number, read as an integer, count the smallest of them.
    bits = jax.lax.bitcast_convert_type(size, integer_dtype(x.dtype))
    is_subnormal = (bits > 0) & (bits < 1 << info.nmant)
    scaled = bits.astype(x.dtype) * 2.0**-info.nmant
    return jnp.where(is_subnormal, scaled, size), is_subnormal


def is_exactly_zero(x: jax.Array) -> jax.Array:
    """Whether an entry of `x >= 0` is 0 and not a subnormal number."""
    return _scale_up_subnormal(x)[0] == 0.0


def neg_log(x: jax.Array) -> jax.Array:
    """-log(x) for x >= 0, +inf at 0; for a subnormal x as well."""
    normal, is_subnormal = _scale_up_subnormal(x)
    log_scale = jnp.where(is_subnormal, -math.log(smallest_normal(x.dtype)), 0.0)
    return log_scale.astype(x.dtype) - jnp.log(normal)


def divide(a: jax.Array, x: jax.Array) -> jax.Array:
    """`a / x` for x >= 0, linear in a; for a subnormal x as well."""
    normal, is_subnormal = _scale_up_subnormal(x)
    scale = jnp.where(is_subnormal, 1.0 / smallest_normal(x.dtype), 1.0)
    return a / normal * scale.astype(x.dtype)


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
