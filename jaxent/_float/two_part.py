"""Numbers in two parts: a rounded one, and what rounding took from it."""

import jax


def two_diff(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - b of finite numbers, and what rounding took from it (Knuth's two-sum)."""
    difference = a - b
    moved = difference - a
    return difference, (a - (difference - moved)) - (b + moved)
