"""Margins: by how much a score, or the score of a class, is ahead of what it has to beat.

Hinges are piecewise linear. Where pieces meet, the slope is shared evenly among them, as JAX does
for a maximum: all-equal scores, from which training may start, are such a place.

Sparsemax is the Euclidean projection of a row of scores onto the distributions: what lies above a
threshold that leaves a total of 1. Plain sums lose what little the losers hold where one class has
nearly all. Here they are measured from what is 1 below the top, so that the shares of the losers
and their total come as sums of terms of one sign.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._float.two_part import two_diff
from jaxent._kernels.cross_entropy import drop_label_bound
from jaxent._parallel import take_local_label

# One score.


def _lack(x: jax.Array, signs: jax.Array, margin: float) -> jax.Array:
    """The margin less signs * x; a constant 0 would be written out, as another sum uses it too."""
    return margin - signs * x if margin else -(signs * x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def hinge(x: jax.Array, signs: jax.Array, margin: float) -> jax.Array:
    """max(margin - signs * x, 0) per element, for signs of 1 and -1."""
    return jnp.maximum(_lack(x, signs, margin), 0.0)


@functools.partial(hinge.defjvp, symbolic_zeros=True)
def _hinge_jvp(margin, primals, tangents):
    x, signs = primals
    x_dot, signs_dot = tangents
    # 0, 1/2 where the two pieces meet, or 1; NaN for NaN.
    active = 0.5 + 0.5 * jnp.sign(_lack(x, signs, margin))
    loss, loss_dot = hinge(x, signs, margin), scale_tangent(-signs * active, x_dot)
    if not isinstance(signs_dot, SymbolicZero):
        loss_dot -= active * jnp.where(active == 0.0, 0.0, x) * signs_dot
    return loss, broadcast_tangent(loss_dot, loss)


@jax.custom_jvp
def sparse_plus(x: jax.Array) -> jax.Array:
    """0 up to -1, (x + 1)**2 / 4 from there to 1, and x beyond, per element."""
    inner = jnp.clip(x, -1.0, 1.0)
    return jnp.where(x < 1.0, jnp.square(0.5 * (inner + 1.0)), x)


@sparse_plus.defjvp
def _sparse_plus_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return sparse_plus(x), _sparse_sigmoid(x) * x_dot


@jax.custom_jvp
def _sparse_sigmoid(x: jax.Array) -> jax.Array:
    return 0.5 * (jnp.clip(x, -1.0, 1.0) + 1.0)


@_sparse_sigmoid.defjvp
def _sparse_sigmoid_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return _sparse_sigmoid(x), jnp.where(jnp.abs(x) < 1.0, 0.5, 0.0) * x_dot


# The score of a class against the best of the others.


def _label_mask(x: jax.Array, labels: jax.Array) -> jax.Array:
    """-inf at the label of each row and inf elsewhere, [..., V]: for a minimum."""
    return jnp.inf * drop_label_bound(x, labels)


def _verdict(top: jax.Array) -> jax.Array:
    """1, or NaN for a row whose highest score is no number: there is nothing to compare."""
    return jnp.where(jnp.abs(top) < jnp.inf, jnp.ones_like(top), jnp.nan)


def _shared_slope(x, labels, best, gap, verdict) -> jax.Array:
    """The gradient of max(gap, 0): the other classes that are best share what the label lacks."""
    mask = _label_mask(x, labels)
    leads = jnp.minimum(x, mask) == best[..., None]
    count = jnp.sum(leads, axis=-1, dtype=x.dtype)
    # At a gap of 0 there is one more maximal term, which has no slope.
    share = jnp.where(gap > 0.0, 1.0, jnp.where(gap == 0.0, count / (count + 1.0), 0.0)) * verdict
    each = share / jnp.maximum(count, 1.0)
    at_label = jnp.where(take_local_label(x, labels) == -jnp.inf, 0.0, -share)
    others = jnp.where(leads, each[..., None], 0.0 * each[..., None])
    return jnp.where(mask < 0.0, at_label[..., None], others)


@jax.custom_jvp
def label_lag(x: jax.Array, labels: jax.Array) -> jax.Array:
    """max(x) - x[label] over the last axis.

    Args:
        x: scores [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
    """
    top = jnp.max(x, axis=-1)
    return (top - take_local_label(x, labels)) * _verdict(top)


@functools.partial(label_lag.defjvp, symbolic_zeros=True)
def _label_lag_jvp(primals, tangents):
    x, labels = jax.lax.stop_gradient(primals)
    top = jnp.max(x, axis=-1)
    gap = top - take_local_label(x, labels)
    slope = _shared_slope(x, labels, top, gap, _verdict(top))
    loss = label_lag(*primals)
    return loss, broadcast_tangent(dot_tangent(slope, tangents[0]), loss)


class _Race(NamedTuple):
    best: jax.Array  # [...], the highest score but the label's
    gap: jax.Array  # [...], best + 1 - the label's score
    verdict: jax.Array  # [...], 1 or NaN


def _race(x: jax.Array, labels: jax.Array) -> _Race:
    best = jnp.max(jnp.minimum(x, _label_mask(x, labels)), axis=-1)
    own = take_local_label(x, labels)
    one, other = (jnp.where(jnp.isinf(score), 0.0, score) for score in (best, own))
    # Scores that are about 1 apart leave little, of which no digit may be lost. Half sizes, since
    # the difference of two finite scores may overflow.
    half, lost = two_diff(0.5 * one, 0.5 * other)
    rise, rest = two_diff(half, jnp.full_like(half, -0.5))
    gap = 2.0 * (rise + (lost + rest))
    gap = jnp.where(best == -jnp.inf, -jnp.inf, gap)
    gap = jnp.where(own == -jnp.inf, jnp.inf, gap)
    return _Race(best, gap, _verdict(jnp.maximum(best, own)))


@jax.custom_jvp
def label_hinge(x: jax.Array, labels: jax.Array) -> jax.Array:
    """max(0, 1 + max(x[j] for j != label) - x[label]) over the last axis.

    Args:
        x: scores [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
    """
    race = _race(x, labels)
    return jnp.maximum(race.gap, 0.0) * race.verdict


@functools.partial(label_hinge.defjvp, symbolic_zeros=True)
def _label_hinge_jvp(primals, tangents):
    x, labels = jax.lax.stop_gradient(primals)
    slope = _shared_slope(x, labels, *_race(x, labels))
    loss = label_hinge(*primals)
    return loss, broadcast_tangent(dot_tangent(slope, tangents[0]), loss)


# Sparsemax.


class _Cut(NamedTuple):
    """Where the projection cuts each row, in quarters of the scores: level + rest above the base.

    The base is the highest score, or 1 below it where that class holds more than half.
    """

    top: jax.Array  # [...]
    base: jax.Array  # [...], 0 or a quarter
    level: jax.Array  # [...]
    rest: jax.Array  # [...], what is too small to be part of the level

    @property
    def is_heavy(self) -> jax.Array:
        return self.base > 0.0


def _quarters(x: jax.Array) -> jax.Array:
    """Scores in quarters, of which all differences are finite; -inf is below all that are."""
    return jnp.maximum(0.25 * x, -0.5 * float(jnp.finfo(x.dtype).max))


def _height(x: jax.Array, cut: _Cut) -> jax.Array:
    """How far scores are above the cut, in quarters, with relative accuracy."""
    distance, lost = two_diff(_quarters(x), cut.top)
    above, rest = two_diff(distance, -cut.base)
    return (above - cut.level) + ((lost + rest) - cut.rest)


def _heights(x: jax.Array, cut: _Cut) -> jax.Array:
    """The same for all classes of each row, 0 below the cut."""
    return jnp.maximum(_height(x, _Cut(*(part[..., None] for part in cut))), 0.0)


def _without_heavy(x: jax.Array, cut: _Cut) -> jax.Array:
    """0 at a class that holds more than half and 1 elsewhere, [..., V]."""
    below_top = jnp.ceil(jnp.minimum(cut.top[..., None] - _quarters(x), 1.0))
    return jax.lax.stop_gradient(jnp.maximum(below_top, 1.0 - 4.0 * cut.base[..., None]))


def _step(x: jax.Array, cut: _Cut) -> tuple[jax.Array, jax.Array]:
    """By how much to raise the cut if no class falls below it, and how many are above it.

    It is Newton's step. What the others hold is what a heavy class lacks.
    """
    heights = _heights(x, cut)
    count = jnp.sum(jax.lax.stop_gradient(heights) > 0.0, axis=-1, dtype=x.dtype)
    surplus = blocked_sum(_without_heavy(x, cut) * heights) - jnp.where(
        cut.is_heavy, cut.level, 0.25
    )
    return surplus / jnp.maximum(count, 1.0), count


def _cut(x: jax.Array) -> _Cut:
    """The cut of each row, by Newton's method from below.

    The sum it solves for is convex and piecewise linear in the cut, so that the steps never pass
    the solution, and end there when no more classes fall out: after a few, since every step halves
    what is missing or the slope. Nothing is differentiated but the top, from which the cut is
    measured, and one last step, whose derivative is that of the solution.
    """
    fixed = jax.lax.stop_gradient(x)
    top = _quarters(jnp.max(fixed, axis=-1))
    nothing = jnp.zeros_like(top)
    at_half = _Cut(top, nothing, nothing - 0.125, nothing)
    is_heavy = blocked_sum(_heights(fixed, at_half)) < 0.25
    start = _Cut(
        top, jnp.where(is_heavy, 0.25, nothing), jnp.where(is_heavy, 0.0, at_half.level), nothing
    )

    def raised(state):
        cut, count, _ = state
        step, fewer = _step(fixed, cut)
        return cut._replace(level=cut.level + step), fewer, fewer < count

    def is_moving(state):
        return jnp.any(state[-1])

    most = jnp.full_like(top, jnp.inf)
    found, _, _ = jax.lax.while_loop(is_moving, raised, (start, most, most > 0.0))
    found = jax.lax.stop_gradient(found)._replace(top=_quarters(jnp.max(x, axis=-1)))
    return found._replace(rest=_step(x, found)[0])


@jax.custom_jvp
def label_sparsemax(x: jax.Array, labels: jax.Array) -> jax.Array:
    """max(sum(p * x) + (1 - sum(p**2)) / 2 over distributions p) - x[label], over the last axis.

    With the maximal p it is half of the squared distance of p from the label's distribution, and
    by how much the label's score is below the cut, if it is: nothing in it cancels.

    Args:
        x: scores [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
    """
    return _sparsemax_parts(x, labels)[0]


def _sparsemax_parts(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    """The loss, the distribution in quarters, what it gives to other classes, and a verdict."""
    cut = _cut(x)
    heights = _heights(x, cut)
    score = take_local_label(x, labels)
    height = _height(score, cut)
    on_top = cut.is_heavy & (_quarters(score) == cut.top)
    inside = jnp.maximum(height, 0.0)
    others = 4.0 * jnp.where(on_top, cut.level + cut.rest, 0.25 - inside)
    # Of all classes but the label; the square of a heavy one may be all but everything.
    squares = blocked_sum(_without_heavy(x, cut) * jnp.square(heights))
    top_height = jnp.where(cut.is_heavy, (cut.base - cut.level) - cut.rest, 0.0)
    squares += jnp.where(on_top, 0.0, jnp.square(top_height) - jnp.square(inside))
    loss = (8.0 * squares + 0.5 * jnp.square(others)) + 4.0 * jnp.maximum(-height, 0.0)
    verdict = _verdict(jnp.max(x, axis=-1))
    loss = jnp.where(score == -jnp.inf, jnp.inf, loss) * verdict
    return loss, heights, others, verdict


@jax.custom_jvp
def _label_sparsemax_and_slope(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`label_sparsemax` and its gradient with respect to x, [..., V], from one cut."""
    loss, heights, others, verdict = _sparsemax_parts(x, labels)
    at_label = jnp.where(take_local_label(x, labels) == -jnp.inf, 0.0, -others)
    slope = jnp.where(_label_mask(x, labels) < 0.0, at_label[..., None], 4.0 * heights)
    return loss, slope * verdict[..., None]


@functools.partial(label_sparsemax.defjvp, symbolic_zeros=True)
def _label_sparsemax_jvp(primals, tangents):
    loss, slope = _label_sparsemax_and_slope(*primals)
    return loss, broadcast_tangent(dot_tangent(slope, tangents[0]), loss)


@functools.partial(_label_sparsemax_and_slope.defjvp, symbolic_zeros=True)
def _label_sparsemax_and_slope_jvp(primals, tangents):
    x, labels = primals
    loss, slope = _label_sparsemax_and_slope(x, labels)
    if isinstance(tangents[0], SymbolicZero):
        return (loss, slope), (jnp.zeros_like(loss), jnp.zeros_like(slope))
    above = (_heights(x, _cut(x)) > 0.0).astype(x.dtype)
    share = above / jnp.maximum(jnp.sum(above, axis=-1, keepdims=True), 1.0)
    slope_dot = above * tangents[0] - share * jnp.sum(above * tangents[0], axis=-1, keepdims=True)
    return (loss, slope), (jnp.sum(slope * tangents[0], axis=-1), slope_dot)
