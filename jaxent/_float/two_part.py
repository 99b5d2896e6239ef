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
