"""Lists of scores: the cost of pairs in the wrong order, and of an order as a whole."""

import functools

import jax
import jax.numpy as jnp

from jaxent._float.sums import fraction, safe_reciprocal
from jaxent._float.tangents import Arrays, Dual, Tangents, broadcast_tangent, scale_tangent
from jaxent._float.two_part import exp_two_part, finite_two_diff
from jaxent._kernels.preference import cross_entropy_of_pair
from jaxent._kernels.softmax import log_sum_over_top


def pair_costs(scores: jax.Array, weights: jax.Array) -> jax.Array:
    """weights[i, j] * log(1 + exp(scores[j] - scores[i])) for all pairs of the last axis, summed.

    Weights are [..., list, list] and not negative. Two scores of the same infinity are equal.
    """
    scores = _stop_gradient_of_infinite(scores)
    better, worse = jnp.broadcast_arrays(scores[..., :, None], scores[..., None, :])
    is_same = (better == worse) & (jnp.abs(better) == jnp.inf)
    better, worse = (jnp.where(is_same, 0.0, each) for each in (better, worse))
    margins = _difference_and_error(better, worse)
    costs = cross_entropy_of_pair(*margins, weights, jnp.zeros_like(weights))
    return jnp.sum(costs, axis=(-2, -1))


def order_costs(scores: jax.Array) -> jax.Array:
    """log(sum(exp(scores[i:]))) - scores[i] for each i of the last axis.

    That is the cost of choosing the first item of those left, again and again. An impossible item,
    with a score of -inf, costs nothing where only impossible ones are left.
    """
    scores = _stop_gradient_of_infinite(scores)
    axis = scores.ndim - 1
    top = jax.lax.cummax(jax.lax.stop_gradient(scores), axis=axis, reverse=True)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    # Each sum is in units of its own largest term.
    terms = _exp_difference(scores, top)
    next_top = jnp.concatenate([top[..., 1:], top[..., -1:]], axis=-1)
    decay = _exp_difference(jnp.minimum(next_top, top), top)
    _, sums = jax.lax.associative_scan(_join_sums, (decay, terms), reverse=True, axis=axis)
    after = jnp.concatenate([sums[..., 1:], jnp.zeros_like(sums[..., :1])], axis=-1)
    return _choice_cost(scores, decay * after, top)


def _stop_gradient_of_infinite(scores: jax.Array) -> jax.Array:
    """The scores; those that are infinite have no gradient."""
    is_infinite = jnp.abs(scores) == jnp.inf
    return jnp.where(is_infinite, jax.lax.stop_gradient(scores), scores)


def _difference_and_error(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - b, and its rounding error, which has no derivative."""
    _, error = finite_two_diff(*map(jax.lax.stop_gradient, (a, b)))
    return a - b, error


def _exp_difference(x: jax.Array, top: jax.Array) -> jax.Array:
    """exp(x - top) for x <= top."""
    return exp_two_part(*_difference_and_error(x, top))


def _join_sums(
    later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Decay and sum of two neighbouring pieces of a list as those of one."""
    later_decay, later_sum = later
    decay, sum_ = earlier
    return decay * later_decay, sum_ + decay * later_sum


@jax.custom_jvp
def _choice_cost(score: jax.Array, rest: jax.Array, top: jax.Array) -> jax.Array:
    """log(1 + rest / exp(score - top)), with `top` the largest of the score and those of the rest.

    It is differentiated in score and rest alone.
    """
    term = _exp_difference(score, top)
    # Halves, since the difference of two finite scores may overflow.
    distance = jnp.where(term + rest == 0.0, 0.0, 2.0 * (0.5 * top - 0.5 * score))
    return distance + log_sum_over_top(rest, term, jnp.ones_like(term), score == top)


@functools.partial(_choice_cost.defjvp, symbolic_zeros=True)
def _choice_cost_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    score, rest, top = primals
    score_dot, rest_dot, _ = tangents
    cost, term = _choice_cost(*primals), _exp_difference(score, top)
    cost_dot = scale_tangent(safe_reciprocal(term + rest), rest_dot)
    cost_dot -= scale_tangent(fraction(rest, term), score_dot)
    return cost, broadcast_tangent(cost_dot, cost)
