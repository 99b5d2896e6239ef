"""Lists of scores: the cost of pairs in the wrong order, and of an order as a whole."""

import functools

import jax
import jax.numpy as jnp

from jaxent._numerics.elementary import two_part_difference
from jaxent._numerics.ground import along, like, reciprocal
from jaxent._numerics.preference import pair_cross_entropy
from jaxent._numerics.segmentation import share
from jaxent._numerics.softmax import coarse_shift, log_total


def _fixed_if_infinite(scores: jax.Array) -> jax.Array:
    """The scores; those that are infinite stay so, and have no gradient."""
    is_infinite = jnp.abs(scores) == jnp.inf
    return jnp.where(is_infinite, jax.lax.stop_gradient(scores), scores)


def pair_costs(scores: jax.Array, weights: jax.Array) -> jax.Array:
    """weights[i, j] * log(1 + exp(scores[j] - scores[i])) for all pairs of the last axis, summed.

    Weights are [..., list, list] and not negative. Scores that are infinite alike are equal.
    """
    scores = _fixed_if_infinite(scores)
    ahead, behind = scores[..., :, None], scores[..., None, :]
    is_apart = ahead != behind
    ahead, behind = jnp.where(is_apart, ahead, 0.0), jnp.where(is_apart, behind, 0.0)
    difference = ahead - behind
    # What rounding takes from the difference would be multiplied by it in the exponential.
    is_finite = jnp.abs(difference) < jnp.inf
    fixed = (jax.lax.stop_gradient(jnp.where(is_finite, a, 0.0)) for a in (ahead, behind))
    _, low = two_part_difference(*fixed)
    costs = pair_cross_entropy(difference, low, weights, jnp.zeros_like(weights))
    return jnp.sum(costs, axis=(-2, -1))


def order_costs(scores: jax.Array) -> jax.Array:
    """log(sum(exp(scores[i:]))) - scores[i] for each i of the last axis.

    That is the cost of choosing the first of what is left, again and again. An impossible score of
    -inf costs nothing among others alike.
    """
    scores = _fixed_if_infinite(scores)
    axis = scores.ndim - 1
    top = jax.lax.cummax(jax.lax.stop_gradient(scores), axis=axis, reverse=True)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    shift = coarse_shift(top, scores.shape[-1])
    terms = jnp.exp(scores - shift)
    # Sums of what is left, each in units of its own shift, which decreases along the list.
    shift_after = jnp.concatenate([shift[..., 1:], shift[..., -1:]], axis=-1)
    decay = jnp.exp(jnp.minimum(shift_after - shift, 0.0))
    _, totals = jax.lax.associative_scan(_joined, (decay, terms), reverse=True, axis=axis)
    after = jnp.concatenate([totals[..., 1:], jnp.zeros_like(totals[..., :1])], axis=-1)
    return _choice_cost(scores, decay * after, top, shift)


def _joined(later, earlier):
    """Two pieces of a list as one: by how much it decays in all, and its total."""
    later_decay, later_total = later
    decay, total = earlier
    return decay * later_decay, total + decay * later_total


@jax.custom_jvp
def _choice_cost(score, rest, top, shift) -> jax.Array:
    """log(1 + rest / exp(score - shift)), where `top` is the largest score, and that of the rest.

    The derivative is taken along score and rest.
    """
    term = jnp.exp(score - shift)
    # At half size: the difference of two finite scores may overflow.
    distance = jnp.where(term + rest == 0.0, 0.0, 2.0 * (0.5 * top - 0.5 * score))
    return distance + log_total(rest, term, jnp.exp(top - shift), score == top)


@functools.partial(_choice_cost.defjvp, symbolic_zeros=True)
def _choice_cost_jvp(primals, tangents):
    score, rest, _, shift = primals
    cost, term = _choice_cost(*primals), jnp.exp(score - shift)
    moved = along(reciprocal(term + rest), tangents[1]) - along(share(rest, term), tangents[0])
    return cost, like(moved, cost)
