"""The loss of an estimated value that may not move far, and sums of discounted differences."""

import jax
import jax.numpy as jnp

from jaxent._float.tangents import Pair
from jaxent._float.two_part import finite_two_diff


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
    chosen = jnp.where(uses_clipped, clipped, error)
    return (0.5 * chosen) * chosen


def _difference(a: jax.Array, b: jax.Array) -> Pair:
    """The rounded difference and its rounding error, which has no derivative."""
    high, low = finite_two_diff(a, b)
    return high, jax.lax.stop_gradient(low)


def discounted_sums(terms: jax.Array, decays: jax.Array, ends: jax.Array) -> jax.Array:
    """The sums y[t] = terms[t] + decays[t] * y[t + 1] along the last axis, from 0 after its end.

    Where `ends` holds nothing that comes later counts, whatever it is.
    """

    def combine(
        later: tuple[jax.Array, ...], earlier: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, ...]:
        (later_term, later_decay, later_end), (term, decay, end) = later, earlier
        rest = jnp.where(end, 0.0, later_term)
        return term + decay * rest, jnp.where(end, 0.0, decay * later_decay), end | later_end

    given = (terms, decays, ends)
    return jax.lax.associative_scan(combine, given, reverse=True, axis=terms.ndim - 1)[0]
