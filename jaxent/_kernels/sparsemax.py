"""Sparsemax losses: the score of the truth against the projection of the scores.

Sparsemax is the Euclidean projection of a row of scores x onto the distributions,

    p[j] = max(0, x[j] - tau),  with the threshold tau for which sum(p) = 1.

A class with p > 1/2 is the pivot of its row. Scores are then measured from 1 below the highest,
so that 1 - p of the pivot and the p of the others are sums of terms of one sign.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Pair,
    Tangents,
    broadcast_tangent,
    define_jvp,
    dot_tangent,
)
from jaxent._float.two_part import two_diff
from jaxent._kernels.margin import one_or_nan, other_classes_bound
from jaxent._parallel import take_local_label

# Two classes: yes and no.


@jax.custom_jvp
def sparse_plus(x: jax.Array) -> jax.Array:
    """0 up to -1, (x + 1)**2 / 4 from -1 to 1, and x beyond, per element.

    It is `jax.nn.sparse_plus`, but for that one's NaN gradients at huge and infinite x.
    """
    inner = jnp.clip(x, -1.0, 1.0)
    return jnp.where(x < 1.0, jnp.square(0.5 * (inner + 1.0)), x)


@jax.custom_jvp
def _sparse_sigmoid(x: jax.Array) -> jax.Array:
    """The derivative of `sparse_plus`: (x + 1) / 2 between 0 and 1."""
    return 0.5 * (jnp.clip(x, -1.0, 1.0) + 1.0)


define_jvp(sparse_plus, _sparse_sigmoid)
define_jvp(_sparse_sigmoid, lambda x: jnp.where(jnp.abs(x) < 1.0, 0.5, 0.0).astype(x.dtype))


# Many classes: the threshold.


class _Threshold(NamedTuple):
    """The threshold of each row: tau / 4 = top - drop + offset + correction."""

    top: jax.Array  # [...], a quarter of the highest score
    drop: jax.Array  # [...], 1/4 in a row with a pivot, else 0
    offset: jax.Array  # [...]
    correction: jax.Array  # [...], the digits that the offset does not hold

    @property
    def has_pivot(self) -> jax.Array:
        return self.drop > 0.0


def _quarter(x: jax.Array) -> jax.Array:
    """The scores over 4, whose differences are all finite; -inf becomes less than any of them."""
    return jnp.maximum(0.25 * x, -0.5 * float(jnp.finfo(x.dtype).max))


def _quarter_excess(x: jax.Array, threshold: _Threshold) -> jax.Array:
    """(x - tau) / 4 of one score [...] per row, with relative accuracy."""
    difference, rounded_off = two_diff(_quarter(x), threshold.top)
    excess, rest = two_diff(difference, -threshold.drop)
    return (excess - threshold.offset) + ((rounded_off + rest) - threshold.correction)


def _quarter_probs(x: jax.Array, threshold: _Threshold) -> jax.Array:
    """The probabilities over 4, p / 4 = max(0, x - tau) / 4, [..., V]."""
    by_class = _Threshold(*(number[..., None] for number in threshold))
    return jnp.maximum(_quarter_excess(x, by_class), 0.0)


def _one_unless_pivot(x: jax.Array, threshold: _Threshold) -> jax.Array:
    """0 at the pivot of each row and 1 at the other classes, [..., V]."""
    below_top = jnp.ceil(jnp.minimum(threshold.top[..., None] - _quarter(x), 1.0))
    return jax.lax.stop_gradient(jnp.maximum(below_top, 1.0 - 4.0 * threshold.drop[..., None]))


def _newton_step(x: jax.Array, threshold: _Threshold) -> tuple[jax.Array, jax.Array]:
    """Newton's step for tau / 4, and the number of classes with p > 0.

    It solves sum(p) = 1, or, in a row with a pivot, sum(p of the others) = 1 - p of the pivot.
    """
    quarter_probs = _quarter_probs(x, threshold)
    count = jnp.sum(jax.lax.stop_gradient(quarter_probs) > 0.0, axis=-1, dtype=x.dtype)
    surplus = blocked_sum(_one_unless_pivot(x, threshold) * quarter_probs) - jnp.where(
        threshold.has_pivot, threshold.offset, 0.25
    )
    return surplus / jnp.maximum(count, 1.0), count


def _find_threshold(x: jax.Array) -> _Threshold:
    """The threshold of each row, by Newton's method from below.

    sum(p) is convex and piecewise linear in tau, so the steps never pass the solution and end when
    no more classes fall to p = 0. They are few: each halves the surplus or the number of classes.
    Only the highest score and one last step are differentiated; their derivative is that of tau.
    """
    fixed = jax.lax.stop_gradient(x)
    top = _quarter(jnp.max(fixed, axis=-1))
    zero = jnp.zeros_like(top)
    # At the tau for which the highest score has p = 1/2.
    at_half = _Threshold(top, zero, zero - 0.125, zero)
    has_pivot = blocked_sum(_quarter_probs(fixed, at_half)) < 0.25
    start = _Threshold(
        top, jnp.where(has_pivot, 0.25, zero), jnp.where(has_pivot, 0.0, at_half.offset), zero
    )

    def take_step(
        state: tuple[_Threshold, jax.Array, jax.Array],
    ) -> tuple[_Threshold, jax.Array, jax.Array]:
        threshold, count, _ = state
        step, new_count = _newton_step(fixed, threshold)
        threshold = threshold._replace(offset=threshold.offset + step)
        return threshold, new_count, new_count < count

    def is_unfinished(state: tuple[_Threshold, jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(state[-1])

    infinite = jnp.full_like(top, jnp.inf)
    found, _, _ = jax.lax.while_loop(is_unfinished, take_step, (start, infinite, infinite > 0.0))
    found = jax.lax.stop_gradient(found)._replace(top=_quarter(jnp.max(x, axis=-1)))
    return found._replace(correction=_newton_step(x, found)[0])


# Many classes: the loss.


@jax.custom_jvp
def multiclass_sparsemax(x: jax.Array, labels: jax.Array) -> jax.Array:
    """max(sum(p * x) + (1 - sum(p**2)) / 2 over distributions p) - x[label], over the last axis.

    It is computed as |p - one_hot(label)|**2 / 2 + max(0, tau - x[label]), which does not cancel.

    Args:
        x: scores [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
    """
    return _loss_and_probs(x, labels).loss


class _LossAndProbs(NamedTuple):
    """The loss, and what its gradient is made of."""

    loss: jax.Array  # [...]
    quarter_probs: jax.Array  # [..., V]
    label_complement: jax.Array  # [...], 1 - p[label]
    factor: jax.Array  # [...], 1, or NaN for rows without a finite score


def _loss_and_probs(x: jax.Array, labels: jax.Array) -> _LossAndProbs:
    threshold = _find_threshold(x)
    quarter_probs = _quarter_probs(x, threshold)
    score = take_local_label(x, labels)
    label_excess = _quarter_excess(score, threshold)
    is_pivot = threshold.has_pivot & (_quarter(score) == threshold.top)
    quarter_label = jnp.maximum(label_excess, 0.0)
    label_complement = 4.0 * jnp.where(
        is_pivot, threshold.offset + threshold.correction, 0.25 - quarter_label
    )
    # (p / 4)**2 of all classes but the label. That of the pivot comes last, since it may be nearly
    # the whole sum.
    squares = blocked_sum(_one_unless_pivot(x, threshold) * jnp.square(quarter_probs))
    quarter_pivot = jnp.where(
        threshold.has_pivot, (threshold.drop - threshold.offset) - threshold.correction, 0.0
    )
    squares += jnp.where(is_pivot, 0.0, jnp.square(quarter_pivot) - jnp.square(quarter_label))
    half_squares = 8.0 * squares + 0.5 * jnp.square(label_complement)
    loss = half_squares + 4.0 * jnp.maximum(-label_excess, 0.0)
    factor = one_or_nan(jnp.max(x, axis=-1))
    loss = jnp.where(score == -jnp.inf, jnp.inf, loss) * factor
    return _LossAndProbs(loss, quarter_probs, label_complement, factor)


@jax.custom_jvp
def _loss_and_grad(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`multiclass_sparsemax` and its gradient in x [..., V], with one search for the threshold."""
    loss, quarter_probs, label_complement, factor = _loss_and_probs(x, labels)
    at_label = jnp.where(take_local_label(x, labels) == -jnp.inf, 0.0, -label_complement)
    is_label = other_classes_bound(x, labels) < 0.0
    grad = jnp.where(is_label, at_label[..., None], 4.0 * quarter_probs)
    return loss, grad * factor[..., None]


@functools.partial(multiclass_sparsemax.defjvp, symbolic_zeros=True)
def _multiclass_sparsemax_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    loss, grad = _loss_and_grad(*primals)
    return loss, broadcast_tangent(dot_tangent(grad, tangents[0]), loss)


@functools.partial(_loss_and_grad.defjvp, symbolic_zeros=True)
def _loss_and_grad_jvp(primals: Arrays, tangents: Tangents) -> tuple[Pair, Pair]:
    x, labels = primals
    x_dot, _ = tangents
    loss, grad = _loss_and_grad(x, labels)
    if isinstance(x_dot, SymbolicZero):
        return (loss, grad), (jnp.zeros_like(loss), jnp.zeros_like(grad))
    is_positive = (_quarter_probs(x, _find_threshold(x)) > 0.0).astype(x.dtype)
    weights = is_positive / jnp.maximum(jnp.sum(is_positive, axis=-1, keepdims=True), 1.0)
    grad_dot = is_positive * x_dot - weights * jnp.sum(is_positive * x_dot, axis=-1, keepdims=True)
    return (loss, grad), (jnp.sum(grad * x_dot, axis=-1), grad_dot)
