"""The ratio of the odds of two answers, from their log-probabilities.

The odds of a probability p are 1 / expm1(u), with u = -log(p).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._float.tangents import Arrays, Dual, Tangents, combine_tangents, define_jvp
from jaxent._float.two_part import exp_minus_abs, finite_two_diff


@jax.custom_jvp
def odds_ratio_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """log(1 + odds(rejected) / odds(chosen)) for log-probabilities <= 0.

    A certain answer that is rejected costs +inf. Two certain ones are as good as each other, and
    so are two impossible ones: they cost log(2).
    """
    _, chosen, rejected = _replace_certain_pairs(chosen, rejected)
    distance, low = _difference_of_u(chosen, rejected)
    is_more = distance >= 0.0
    chosen_complement, rejected_complement = _complement(chosen), _complement(rejected)
    # The smaller of 1 - p over the larger one, which cannot overflow.
    larger = jnp.where(is_more, chosen_complement, rejected_complement)
    ratio = jnp.where(is_more, rejected_complement, chosen_complement) / larger
    size = jnp.where(is_more, distance - jnp.log(jnp.where(is_more, ratio, 1.0)) + low, 0.0)
    return size + jnp.log1p(exp_minus_abs(distance, low) * ratio)


@jax.custom_jvp
def _odds_ratio_loss_grad_chosen(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    factor, chosen, rejected = _replace_certain_pairs(chosen, rejected)
    terms = _exp_terms(chosen, rejected)
    return -factor * terms.over_total(terms.exp_chosen)


@functools.partial(_odds_ratio_loss_grad_chosen.defjvp, symbolic_zeros=True)
def _odds_ratio_loss_grad_chosen_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    _, chosen, rejected = _replace_certain_pairs(*primals)
    terms, grad = _exp_terms(chosen, rejected), _odds_ratio_loss_grad_chosen(*primals)
    grad_chosen = grad * terms.over_total(terms.one - terms.expm1_rejected)
    grad_rejected = grad * terms.over_total(terms.exp_rejected)
    return grad, combine_tangents(grad, (grad_chosen, tangents[0]), (grad_rejected, tangents[1]))


@jax.custom_jvp
def _odds_ratio_loss_grad_rejected(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    factor, chosen, rejected = _replace_certain_pairs(chosen, rejected)
    terms, complement = _exp_terms(chosen, rejected), _complement(rejected)
    # Not (expm1_chosen / total) / complement: XLA makes one division of the two, by a product
    # that may underflow.
    return factor / (complement + complement * (terms.expm1_rejected / terms.expm1_chosen))


@functools.partial(_odds_ratio_loss_grad_rejected.defjvp, symbolic_zeros=True)
def _odds_ratio_loss_grad_rejected_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    _, chosen, rejected = _replace_certain_pairs(*primals)
    terms, grad = _exp_terms(chosen, rejected), _odds_ratio_loss_grad_rejected(*primals)
    fraction = terms.over_total(terms.expm1_rejected)
    odds = jnp.exp(rejected) / _complement(rejected)
    grad_rejected = grad * (fraction + (1.0 + fraction) * odds)
    grad_chosen = _odds_ratio_loss_grad_chosen(*primals) * terms.over_total(terms.exp_rejected)
    return grad, combine_tangents(grad, (grad_chosen, tangents[0]), (grad_rejected, tangents[1]))


define_jvp(odds_ratio_loss, _odds_ratio_loss_grad_chosen, _odds_ratio_loss_grad_rejected)


class _ExpTerms(NamedTuple):
    """exp(u) and expm1(u) of both answers, and 1, all over the larger exp(u)."""

    exp_chosen: jax.Array
    exp_rejected: jax.Array
    expm1_chosen: jax.Array
    expm1_rejected: jax.Array
    one: jax.Array

    def over_total(self, term: jax.Array) -> jax.Array:
        """A term over the sum of the two expm1(u)."""
        return term / (self.expm1_chosen + self.expm1_rejected)


def _exp_terms(chosen: jax.Array, rejected: jax.Array) -> _ExpTerms:
    distance, low = _difference_of_u(chosen, rejected)
    e, is_more = exp_minus_abs(distance, low), distance >= 0.0
    exp_chosen, exp_rejected = jnp.where(is_more, 1.0, e), jnp.where(is_more, e, 1.0)
    return _ExpTerms(
        exp_chosen=exp_chosen,
        exp_rejected=exp_rejected,
        expm1_chosen=exp_chosen * _complement(chosen),
        expm1_rejected=exp_rejected * _complement(rejected),
        one=jnp.exp(jnp.minimum(chosen, rejected)),
    )


def _difference_of_u(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By how much u of the chosen answer is larger, in two parts; 0 where both are infinite."""
    is_same = chosen == rejected
    return finite_two_diff(jnp.where(is_same, 0.0, rejected), jnp.where(is_same, 0.0, chosen))


def _complement(log_p: jax.Array) -> jax.Array:
    """1 - p, and 0 rather than -0 for a certain answer, since it divides."""
    return 0.0 - jnp.expm1(log_p)


def _replace_certain_pairs(
    chosen: jax.Array, rejected: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """1, or 0 where both answers are certain, and log-probabilities, which are -1 there."""
    is_certain = (chosen == 0.0) & (rejected == 0.0)
    factor = jnp.where(is_certain, 0.0, 1.0).astype(chosen.dtype)
    return factor, jnp.where(is_certain, -1.0, chosen), jnp.where(is_certain, -1.0, rejected)
