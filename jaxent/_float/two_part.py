"""Numbers in two parts: a rounded one, and what rounding took from it."""

import jax
import jax.numpy as jnp


def two_diff(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - b of finite numbers, and what rounding took from it (Knuth's two-sum)."""
    difference = a - b
    moved = difference - a
    return difference, (a - (difference - moved)) - (b + moved)


def finite_two_diff(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`two_diff` of any numbers: nothing is missing from a difference that is not finite."""
    difference = a - b
    is_finite = jnp.abs(difference) < jnp.inf
    a, b = (jnp.where(is_finite, each, 0.0) for each in (a, b))
    return difference, two_diff(a, b)[1]


def exp_two_part(high: jax.Array, low: jax.Array) -> jax.Array:
    """exp(high + low) of a difference and its rounding error, as exp(high) (1 + low)."""
    # A larger error belongs to a number whose exponential is 0 or infinite.
    return jnp.exp(high) * (1.0 + jnp.clip(low, -0.5, 0.5))


def exp_minus_abs(high: jax.Array, low: jax.Array) -> jax.Array:
    """exp(-|high + low|)."""
    is_positive = high >= 0.0
    return exp_two_part(jnp.where(is_positive, -high, high), jnp.where(is_positive, -low, low))
