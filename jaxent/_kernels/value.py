"""The loss of an estimated value that may not move far, and advantages of what was done."""

import jax
import jax.numpy as jnp

from jaxent._float.tangents import Arrays, Pair
from jaxent._float.two_part import finite_two_diff
from jaxent._kernels.regression import half_square


def clipped_half_square(
    value: jax.Array, old: jax.Array, target: jax.Array, clip: jax.Array, clip_low: jax.Array
) -> jax.Array:
    """The larger one of e**2 / 2 for e = value - target and for value clipped to old +- clip.

    Between the two, where they are equal, the derivative is that of the first.
    """
    moved, moved_low = _difference(value, old)
    is_above = (moved - clip) + (moved_low - clip_low) > 0.0
    is_inside = ~is_above & ((moved + clip) + (moved_low + clip_low) >= 0.0)
    step, step_low = (jnp.where(is_above, part, -part) for part in (clip, clip_low))
    apart, apart_low = _difference(old, target)
    # Of old + step - target, a difference of nearly equal numbers keeps its digits.
    clipped, clipped_low = _difference(apart, -step)
    clipped += clipped_low + (apart_low + step_low)
    error = value - target
    # The one that is NaN, if one is.
    uses_clipped = ~(is_inside | (jnp.abs(clipped) <= jnp.abs(error)) | jnp.isnan(error))
    return half_square(jnp.where(uses_clipped, clipped, error))


def _difference(a: jax.Array, b: jax.Array) -> Pair:
    """The rounded difference and its rounding error, which has no derivative."""
    high, low = finite_two_diff(a, b)
    return high, jax.lax.stop_gradient(low)


def advantages(
    rewards: jax.Array,
    values: jax.Array,
    counts: jax.Array,
    ends: jax.Array,
    last: jax.Array,
    discount: jax.Array,
    decay: jax.Array,
) -> jax.Array:
    """Sums of temporal differences that follow each step [..., T], each times discount * decay.

    Steps that do not count are passed over; after one that ends an episode nothing counts, whatever
    it is. `last` [...] or a scalar is the value after the last step.
    """

    def step(later: Pair, now: Arrays) -> tuple[Pair, jax.Array]:
        advantage, following = later
        reward, value, is_counted, is_end = now
        rest = jnp.where(is_end, 0.0, decay * advantage + following)
        here = (reward + discount * rest) - value
        kept = (jnp.where(is_counted, here, advantage), jnp.where(is_counted, value, following))
        return kept, jnp.where(is_counted, here, 0.0)

    given = tuple(jnp.moveaxis(array, -1, 0) for array in (rewards, values, counts, ends))
    nothing = jnp.zeros_like(values[..., :1].sum(axis=-1))
    # Eight steps at once: on accelerators each turn of a loop costs more than its arithmetic.
    _, found = jax.lax.scan(step, (nothing, nothing + last), given, reverse=True, unroll=8)
    return jnp.moveaxis(found, 0, -1)
