"""Lists of scores: the cost of pairs in the wrong order, and of an order as a whole."""

import functools

import jax
import jax.numpy as jnp

from jaxent._float.sums import fraction, safe_reciprocal
from jaxent._float.tangents import broadcast_tangent, scale_tangent
from jaxent._kernels.preference import exact_difference, pair_cross_entropy
from jaxent._kernels.softmax import log_sum_over_top


def _fixed_if_infinite(scores: jax.Array) -> jax.Array:
    """The scores; those that are infinite stay so, and have no gradient."""
    is_infinite = jnp.abs(scores) == jnp.inf
    return jnp.where(is_infinite, jax.lax.stop_gradient(scores), scores)


def _difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - b, and what rounding took from it, which has no derivative.

    In an exponential the rest counts as much as the difference is large.
    """
    _, rest = exact_difference(*map(jax.lax.stop_gradient, (a, b)))
    return a - b, rest


def pair_costs(scores: jax.Array, weights: jax.Array) -> jax.Array:
    """weights[i, j] * log(1 + exp(scores[j] - scores[i])) for all pairs of the last axis, summed.

    Weights are [..., list, list] and not negative. Scores that are infinite alike are equal.
    """
    scores = _fixed_if_infinite(scores)
    ahead, behind = jnp.broadcast_arrays(scores[..., :, None], scores[..., None, :])
    is_alike = (ahead == behind) & (jnp.abs(ahead) == jnp.inf)
    margins = _difference(*(jnp.where(is_alike, 0.0, each) for each in (ahead, behind)))
    costs = pair_cross_entropy(*margins, weights, jnp.zeros_like(weights))
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
    # Sums of what is left, each in units of its own largest term.
    terms = _exponential(scores, top)
    next_top = jnp.concatenate([top[..., 1:], top[..., -1:]], axis=-1)
    decay = _exponential(jnp.minimum(next_top, top), top)
    _, totals = jax.lax.associative_scan(_joined, (decay, terms), reverse=True, axis=axis)
    after = jnp.concatenate([totals[..., 1:], jnp.zeros_like(totals[..., :1])], axis=-1)
    return _choice_cost(scores, decay * after, top)


def _exponential(x: jax.Array, top: jax.Array) -> jax.Array:
    """exp(x - top) for x <= top."""
    difference, rest = _difference(x, top)
    return jnp.exp(difference) * (1.0 + jnp.clip(rest, -0.5, 0.5))


def _joined(later, earlier):
    """Two pieces of a list as one: by how much it decays in all, and its total."""
    later_decay, later_total = later
    decay, total = earlier
    return decay * later_decay, total + decay * later_total


@jax.custom_jvp
def _choice_cost(score: jax.Array, rest: jax.Array, top: jax.Array) -> jax.Array:
    """log(1 + rest / exp(score - top)), where `top` is the largest score, and that of the rest.

    The derivative is taken along score and rest.
    """
    term = _exponential(score, top)
    # At half size: the difference of two finite scores may overflow.
    distance = jnp.where(term + rest == 0.0, 0.0, 2.0 * (0.5 * top - 0.5 * score))
    return distance + log_sum_over_top(rest, term, jnp.ones_like(term), score == top)


@functools.partial(_choice_cost.defjvp, symbolic_zeros=True)
def _choice_cost_jvp(primals, tangents):
    score, rest, top = primals
    cost, term = _choice_cost(*primals), _exponential(score, top)
    moved = scale_tangent(safe_reciprocal(term + rest), tangents[1]) - scale_tangent(
        fraction(rest, term), tangents[0]
    )
    return cost, broadcast_tangent(moved, cost)
