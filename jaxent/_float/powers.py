"""Powers of numbers in [0, 1], and products of which one factor may be 0 and the other infinite."""

import jax
import jax.numpy as jnp


def static_or_traced(number: float | None, array: jax.Array | None) -> float | jax.Array:
    """An exponent that is given as a constant of the program, or else as a scalar array."""
    if array is not None:
        return array
    assert number is not None
    return number


def power(base: jax.Array, exponent: float | jax.Array) -> jax.Array:
    """base**exponent for 0 <= base <= 1; cheap for a small multiple of 1/2 from 0 up."""
    is_number = isinstance(exponent, float)
    if is_number and 0.0 <= exponent <= 8.0 and (2.0 * exponent).is_integer():
        whole = jax.lax.integer_pow(base, int(exponent))
        return whole if exponent.is_integer() else whole * jnp.sqrt(base)
    return jax.lax.pow(base, jnp.full(base.shape, exponent, base.dtype))


def zero_safe_product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product a * b, and 0 where either is 0, even if the other is infinite."""
    is_zero = (a == 0.0) | (b == 0.0)
    return jnp.where(is_zero, 0.0, a) * jnp.where(is_zero, 0.0, b)
