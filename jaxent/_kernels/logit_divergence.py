"""Entropies of softmax and sigmoid, and divergences between two of them.

Divergences are quadratic in the difference of their arguments, so that every plain formula loses
them in rounding when the two are nearly equal. Here everything comes from log(p / q) per class:

* It is a difference of differences of logits, and these are exact as pairs of numbers. What is
  not exact is the ratio of the two normalisers, one error for the whole row. Since p and q have
  the same total, that error is known from what p - q sums to, and it is taken away.
* A divergence is then a sum over the classes of terms that are non-negative on their own, the
  distances of a convex function to its tangents. Such a sum is insensitive to what is left of the
  common error.

Sizes are handled in eighths where logits may be as large as their dtype allows: a difference of
differences of logits may overflow.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._compat import log1p
from jaxent._float.series import expm1_minus_x
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._float.two_part import two_diff
from jaxent._kernels.sigmoid import absolute, sigmoid
from jaxent._kernels.softmax import (
    fold_into_pivot,
    max_and_log_sum_over_max,
    pivot_entry,
    softmax,
    softmax_jvp,
    subtract_mean,
    subtract_total,
    sum_classes,
)
from jaxent._parallel import AxisName, any_over, psum

# Small parts: functions of one number.


def _near(ratio: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where |ratio| < 1, the range of the series, and the ratio there, 0 elsewhere."""
    near = absolute(ratio) < 1.0
    return near, jnp.where(near, ratio, 0.0)


def _tanh_half(ratio: jax.Array) -> jax.Array:
    """tanh(ratio / 2) = (p - q) / (p + q), where ratio = log(p / q)."""
    near, small = _near(ratio)
    rise = small + expm1_minus_x(small)
    decay = jnp.exp(-absolute(ratio))
    far = (1.0 - decay) / (1.0 + decay)
    return jnp.where(near, rise / (rise + 2.0), jnp.where(ratio >= 0.0, far, -far))


def _finite(x: jax.Array) -> jax.Array:
    """Infinities as the largest finite numbers."""
    largest = float(jnp.finfo(x.dtype).max)
    return jnp.clip(x, -largest, largest)


def _bounded(part: jax.Array, parts: float = 8.0) -> jax.Array:
    """`parts * part` without overflow: cut to a range beyond which exp(-|x|) is 0 for sure."""
    limit = _beyond(part) / parts
    return parts * jnp.clip(part, -limit, limit)


def _beyond(x: jax.Array) -> float:
    return -2.0 * math.log(float(jnp.finfo(x.dtype).tiny))


def _divergence_terms(p: jax.Array, q: jax.Array, eighth: jax.Array) -> jax.Array:
    """The terms p - q - q log(p / q) of the classes, from an eighth of log(p / q).

    They sum to KL(q || p), since p and q have the same total, and none is negative.
    """
    ratio = _bounded(eighth)
    near, small = _near(ratio)
    decay = jnp.exp(-absolute(ratio))
    above = p * (1.0 - (1.0 + absolute(ratio)) * decay)
    below = (8.0 * q) * (absolute(eighth) - 0.125 * (1.0 - decay))
    return jnp.where(near, q * expm1_minus_x(small), jnp.where(ratio >= 0.0, above, below))


# Small parts: linear maps of rows.


def _impossible(x: jax.Array) -> jax.Array:
    return x == -jnp.inf


def _verdict(axis_name: AxisName, *arrays: jax.Array) -> jax.Array:
    """1, or NaN for a row that has no possible class and so no distribution, [...]."""
    exists = [any_over(jnp.any(~_impossible(x), axis=-1), axis_name) for x in arrays]
    one = jnp.ones((), arrays[0].dtype)
    return jnp.where(functools.reduce(jnp.logical_and, exists), one, jnp.nan)


def _bend(p: jax.Array, slope: jax.Array, x_dot: jax.Array, axis_name: AxisName) -> jax.Array:
    """How slope = curvature(p, w) changes with p = softmax(x) while w stays: symmetric in x_dot."""
    along_slope, along_p = sum_classes(slope * x_dot, axis_name), sum_classes(p * x_dot, axis_name)
    return slope * x_dot - p * along_slope - slope * along_p


# Entropy.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_entropy(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """-sum(p log p) over the last axis, p = softmax(x); NaN for a row without a possible class."""
    _, excess = max_and_log_sum_over_max(x, axis_name)
    distance = softmax(x, axis_name) * _distance_to_top(x, axis_name)
    return (excess + psum(blocked_sum(distance), axis_name)) * _verdict(axis_name, x)


@softmax_entropy.defjvp
def _softmax_entropy_jvp(axis_name, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    slope_dot = dot_tangent(_softmax_entropy_slope(x, axis_name), x_dot, axis_name)
    return softmax_entropy(x, axis_name), slope_dot


def _distance_to_top(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """max(x) - x where it counts, and 0 where the probability is 0 and the distance may be inf."""
    top, _ = max_and_log_sum_over_max(x, axis_name)
    return jnp.where(softmax(x, axis_name) > 0.0, top[..., None] - x, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_entropy_slope(x: jax.Array, axis_name: AxisName) -> jax.Array:
    slope = softmax_jvp(softmax(x, axis_name), _distance_to_top(x, axis_name), axis_name)
    return slope * _verdict(axis_name, x)[..., None]


@_softmax_entropy_slope.defjvp
def _softmax_entropy_slope_jvp(axis_name, primals, tangents):
    (x,), (x_dot,) = primals, tangents
    p, slope = softmax(x, axis_name), _softmax_entropy_slope(x, axis_name)
    slope_dot = _bend(p, slope, x_dot, axis_name) - softmax_jvp(p, x_dot, axis_name)
    return slope, slope_dot


# Two distributions beside each other.


class _Comparison(NamedTuple):
    p: jax.Array  # [..., V], softmax(a)
    q: jax.Array  # [..., V], softmax(b)
    eighth: jax.Array  # [..., V], log(p / q) / 8; 0 where both are impossible
    overlap: jax.Array  # [...], 1 where p = q, 0 where no class has both


def _contrast(a, b, pivot_a, pivot_b) -> tuple[jax.Array, jax.Array]:
    """An eighth of (a - b) - (pivot_a - pivot_b), for pivots [...], as a number and its rest."""
    difference, rest = two_diff(0.125 * a, 0.125 * b)
    pivot, pivot_rest = two_diff(0.125 * pivot_a, 0.125 * pivot_b)
    contrast, lost = two_diff(difference, pivot[..., None])
    return contrast, lost + (rest - pivot_rest[..., None])


def _compare(a: jax.Array, b: jax.Array, axis_name: AxisName) -> _Comparison:
    p, q = softmax(a, axis_name), softmax(b, axis_name)
    top_a, excess_a = max_and_log_sum_over_max(a, axis_name)
    top_b, excess_b = max_and_log_sum_over_max(b, axis_name)
    gone_a, gone_b = _impossible(a), _impossible(b)
    gone = gone_a | gone_b
    contrast, rest = _contrast(
        jnp.where(gone, top_a[..., None], a), jnp.where(gone, top_b[..., None], b), top_a, top_b
    )
    sided = 0.125 * _beyond(a) * (gone_b.astype(a.dtype) - gone_a.astype(a.dtype))
    # The normalisers beside each other: (total_a - total_b) / (total_a + total_b), each relative
    # to its top. Only where they are far apart may they be computed one by one.
    total_a, total_b = jnp.exp(excess_a), jnp.exp(excess_b)
    share_a, share_b = (part / (total_a + total_b) for part in (total_a, total_b))
    weights = share_a[..., None] * p + share_b[..., None] * q
    leaning = weights * _tanh_half(_bounded(jnp.where(gone, sided, contrast + rest)))
    tilt = psum(blocked_sum(leaning), axis_name)
    near = absolute(tilt) < 0.5
    small = jnp.where(near, tilt, 0.0)
    level = jnp.where(near, log1p(small) - log1p(-small), excess_a - excess_b)
    eighth = (contrast - 0.125 * level[..., None]) + rest
    # What is left of their error: one step of Newton's method towards p and q of equal total,
    # where they share enough mass for it; elsewhere the divergence is large and needs none.
    share = _tanh_half(_bounded(jnp.where(gone, sided, eighth)))
    surplus = psum(blocked_sum((p + q) * share), axis_name)
    overlap = psum(blocked_sum(0.5 * (p + q) * (1.0 - share * share)), axis_name)
    enough = overlap > 0.25
    step = jnp.where(enough, surplus / jnp.where(enough, overlap, 1.0), 0.0)
    return _Comparison(p, q, jnp.where(gone, sided, eighth - 0.125 * step[..., None]), overlap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_difference(a: jax.Array, b: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """softmax(a) - softmax(b), however near the two are to each other or to certainty."""
    p, q, eighth, _ = _compare(a, b, axis_name)
    difference = (p + q) * _tanh_half(_bounded(eighth))
    return fold_into_pivot(difference, (p > 0.5) & (q > 0.5), axis_name)


@functools.partial(softmax_difference.defjvp, symbolic_zeros=True)
def _softmax_difference_jvp(axis_name, primals, tangents):
    (a, b), (a_dot, b_dot) = primals, tangents
    difference = softmax_difference(a, b, axis_name)
    difference_dot = _curvature_along(softmax(a, axis_name), a_dot, axis_name)
    difference_dot -= _curvature_along(softmax(b, axis_name), b_dot, axis_name)
    return difference, broadcast_tangent(difference_dot, difference)


def _curvature_along(p: jax.Array, x_dot, axis_name: AxisName) -> jax.Array | float:
    """`curvature(p, x_dot)`, or nothing for an argument that is not differentiated."""
    return 0.0 if isinstance(x_dot, SymbolicZero) else softmax_jvp(p, x_dot, axis_name)


# Kullback-Leibler.


def _costs_infinity(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """Classes that are impossible although the target expects them, [..., V]."""
    return _impossible(x) & ~_impossible(target_x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_kl_divergence(
    x: jax.Array, target_x: jax.Array, axis_name: AxisName = None
) -> jax.Array:
    """KL(softmax(target_x) || softmax(x)) over the last axis.

    inf where a class that the target expects is impossible; NaN without a target distribution.
    """
    p, q, eighth, _ = _compare(x, target_x, axis_name)
    divergence = psum(blocked_sum(_divergence_terms(p, q, eighth)), axis_name)
    infinite = any_over(jnp.any(_costs_infinity(x, target_x), axis=-1), axis_name)
    return (divergence + jnp.where(infinite, jnp.inf, 0.0)) * _verdict(axis_name, target_x)


@functools.partial(softmax_kl_divergence.defjvp, symbolic_zeros=True)
def _softmax_kl_divergence_jvp(axis_name, primals, tangents):
    x, target_x = primals
    x_dot, target_dot = tangents
    divergence = softmax_kl_divergence(x, target_x, axis_name)
    verdict = _verdict(axis_name, target_x)[..., None]
    divergence_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        difference = softmax_difference(x, target_x, axis_name)
        slope = jnp.where(_impossible(x), 0.0, difference) * verdict
        divergence_dot += dot_tangent(slope, x_dot, axis_name)
    if not isinstance(target_dot, SymbolicZero):
        slope = _kl_target_slope(x, target_x, axis_name) * verdict
        slope += _infinite_slope(x, target_x, axis_name)
        divergence_dot += dot_tangent(slope, target_dot, axis_name)
    return divergence, broadcast_tangent(divergence_dot, divergence)


def _infinite_slope(x: jax.Array, target_x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The part of the slope in the targets that is infinite: to expect the impossible costs more.

    It is the limit of the slope as the logits of the impossible classes fall.
    """
    costs = _costs_infinity(x, target_x)
    some = any_over(jnp.any(costs, axis=-1, keepdims=True), axis_name)
    saves = some & ~costs & ~_impossible(target_x)
    return jnp.where(costs, jnp.inf, 0.0) - jnp.where(saves, jnp.inf, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _kl_target_slope(x: jax.Array, target_x: jax.Array, axis_name: AxisName) -> jax.Array:
    """curvature(softmax(target_x), target_x - x), for differences of any size, near or large.

    Classes that are impossible in one of the two count as equal to the pivot.
    """
    q = softmax(target_x, axis_name)
    gone = _impossible(x) | _impossible(target_x)
    (top_x, _), (top_target, _) = (
        max_and_log_sum_over_max(each, axis_name) for each in (x, target_x)
    )
    is_pivot = (q > 0.5) & ~gone
    some = any_over(jnp.any(is_pivot, axis=-1), axis_name)
    pivot, target_pivot = (
        jnp.where(some, pivot_entry(each, is_pivot, axis_name)[..., 0], top)
        for each, top in ((x, top_x), (target_x, top_target))
    )
    contrast, rest = _contrast(
        jnp.where(gone, pivot[..., None], x),
        jnp.where(gone, target_pivot[..., None], target_x),
        pivot,
        target_pivot,
    )
    mean = sum_classes(q * (contrast + rest), axis_name)
    centred = (contrast - mean) + rest
    # The mean may be far larger than what is left, and its rounding as large.
    centred -= sum_classes(q * centred, axis_name)
    return fold_into_pivot((-8.0 * q) * centred, is_pivot, axis_name)


@functools.partial(_kl_target_slope.defjvp, symbolic_zeros=True)
def _kl_target_slope_jvp(axis_name, primals, tangents):
    x, target_x = primals
    x_dot, target_dot = tangents
    q, slope = softmax(target_x, axis_name), _kl_target_slope(x, target_x, axis_name)
    slope_dot = _curvature_along(q, target_dot, axis_name) - _curvature_along(q, x_dot, axis_name)
    if not isinstance(target_dot, SymbolicZero):
        slope_dot += _bend(q, slope, target_dot, axis_name)
    return slope, broadcast_tangent(slope_dot, slope)


# Jensen-Shannon.


def _log_mixture(ratio: jax.Array, weight: float) -> jax.Array:
    """log(weight exp(ratio) + 1 - weight): the mixture of two numbers beside the second of them."""
    rest, far = 1.0 - weight, 40.0
    fall = weight * -jnp.expm1(jnp.minimum(ratio, 0.0))
    slight = fall < 0.5
    below = jnp.where(
        slight,
        log1p(jnp.where(slight, -fall, 0.0)),
        jnp.log(rest + weight * jnp.exp(jnp.minimum(ratio, 0.0))),
    )
    near = jnp.log1p(weight * jnp.expm1(jnp.clip(ratio, 0.0, far)))
    above = jnp.where(ratio < far, near, ratio + math.log(weight))
    return jnp.where(ratio < 0.0, below, above)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def softmax_jensen_shannon(
    a: jax.Array, b: jax.Array, beta: float, axis_name: AxisName = None
) -> jax.Array:
    """The sum beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, p = softmax(a).

    q is softmax(b), and beta lies strictly between 0 and 1. NaN where one of the rows has no
    possible class.
    """
    p, q, eighth, _ = _compare(a, b, axis_name)
    ratio = _bounded(eighth)
    mixture = beta * p + (1.0 - beta) * q
    of_p = _divergence_terms(mixture, p, 0.125 * _log_mixture(-ratio, 1.0 - beta))
    of_q = _divergence_terms(mixture, q, 0.125 * _log_mixture(ratio, beta))
    # Nothing on paper exceeds the entropy of the weights; rounding would.
    most = -(beta * math.log(beta) + (1.0 - beta) * math.log1p(-beta))
    both = psum(blocked_sum(beta * of_p + (1.0 - beta) * of_q), axis_name)
    return jnp.minimum(both, most) * _verdict(axis_name, a, b)


@functools.partial(softmax_jensen_shannon.defjvp, symbolic_zeros=True)
def _softmax_jensen_shannon_jvp(beta, axis_name, primals, tangents):
    a, b = primals
    a_dot, b_dot = tangents
    divergence, divergence_dot = softmax_jensen_shannon(a, b, beta, axis_name), 0.0
    if not isinstance(a_dot, SymbolicZero):
        slope = _jensen_shannon_slope(a, b, beta, axis_name)
        divergence_dot += dot_tangent(slope, a_dot, axis_name)
    if not isinstance(b_dot, SymbolicZero):
        slope = _jensen_shannon_slope(b, a, 1.0 - beta, axis_name)
        divergence_dot += dot_tangent(slope, b_dot, axis_name)
    return divergence, broadcast_tangent(divergence_dot, divergence)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _jensen_shannon_slope(
    a: jax.Array, b: jax.Array, beta: float, axis_name: AxisName
) -> jax.Array:
    """Derivative in a: beta curvature(p, log(p / m)).

    Where p and q have little in common, log(p / m) is nearly -log(beta) wherever p is; what counts
    is what it lacks, and a constant means nothing to the curvature.
    """
    p, _, eighth, overlap = _compare(a, b, axis_name)
    ratio = _bounded(eighth)
    odds, far = (1.0 - beta) / beta, 40.0
    lack = jnp.where(
        ratio > -far,
        jnp.log1p(odds * jnp.exp(-jnp.maximum(ratio, -far))),
        math.log(odds) - ratio,
    )
    enough = (overlap > 0.25)[..., None]
    weight = jnp.where(enough, -_log_mixture(-ratio, 1.0 - beta), -lack)
    slope = beta * softmax_jvp(p, jnp.where(_impossible(a), 0.0, weight), axis_name)
    return slope * _verdict(axis_name, a, b)[..., None]


@functools.partial(_jensen_shannon_slope.defjvp, symbolic_zeros=True)
def _jensen_shannon_slope_jvp(beta, axis_name, primals, tangents):
    a, b = primals
    a_dot, b_dot = tangents
    p, q = softmax(a, axis_name), softmax(b, axis_name)
    slope = _jensen_shannon_slope(a, b, beta, axis_name)
    mixture = beta * p + (1.0 - beta) * q
    shared = beta * p * ((1.0 - beta) * q / jnp.where(mixture > 0.0, mixture, 1.0))
    slope_dot = 0.0
    if not isinstance(a_dot, SymbolicZero):
        slope_dot += subtract_total(p, shared * subtract_mean(p, a_dot, axis_name), axis_name)
        slope_dot += _bend(p, slope, a_dot, axis_name)
    if not isinstance(b_dot, SymbolicZero):
        slope_dot -= subtract_total(p, shared * subtract_mean(q, b_dot, axis_name), axis_name)
    return slope, broadcast_tangent(slope_dot, slope)


# Yes or no.


@jax.custom_jvp
def sigmoid_entropy(x: jax.Array) -> jax.Array:
    """-p log p - (1 - p) log(1 - p) per element, p = sigmoid(x)."""
    size = absolute(_finite(x))
    return jnp.log1p(jnp.exp(-size)) + size * sigmoid(-size)


@sigmoid_entropy.defjvp
def _sigmoid_entropy_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return sigmoid_entropy(x), _sigmoid_entropy_slope(x) * x_dot


def _variance(x: jax.Array) -> jax.Array:
    return sigmoid(x) * sigmoid(-x)


@jax.custom_jvp
def _sigmoid_entropy_slope(x: jax.Array) -> jax.Array:
    return -(_finite(x) * _variance(x))


@_sigmoid_entropy_slope.defjvp
def _sigmoid_entropy_slope_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    slope = _sigmoid_entropy_slope(x)
    return slope, -(_variance(x) + slope * _tanh_half(x)) * x_dot


def _log_sigmoid_ratio(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """An eighth of log(sigmoid(x) / sigmoid(target_x))."""
    # Halves, since the difference may overflow; only a difference below 1 is used.
    half = 0.5 * x - 0.5 * target_x
    near, small = _near(_bounded(half, 2.0))
    fall = -small + expm1_minus_x(-small)
    by_series = -log1p(sigmoid(-target_x) * fall)
    distance = 0.125 * jnp.maximum(-target_x, 0.0) - 0.125 * jnp.maximum(-x, 0.0)
    excess = jnp.log1p(jnp.exp(-absolute(target_x))) - jnp.log1p(jnp.exp(-absolute(x)))
    return jnp.where(near, 0.125 * by_series, distance + 0.125 * excess)


def _is_sure(x: jax.Array) -> jax.Array:
    return absolute(x) == jnp.inf


@jax.custom_jvp
def sigmoid_kl_divergence(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """KL between yes/no with probability sigmoid(target_x), and with sigmoid(x), per element."""
    infinite = _is_sure(x) & (x != target_x)
    x, target_x = _finite(x), _finite(target_x)
    yes = _divergence_terms(sigmoid(x), sigmoid(target_x), _log_sigmoid_ratio(x, target_x))
    no = _divergence_terms(sigmoid(-x), sigmoid(-target_x), _log_sigmoid_ratio(-x, -target_x))
    return yes + no + jnp.where(infinite, jnp.inf, 0.0)


@functools.partial(sigmoid_kl_divergence.defjvp, symbolic_zeros=True)
def _sigmoid_kl_divergence_jvp(primals, tangents):
    x, target_x = primals
    x_dot, target_dot = tangents
    divergence, divergence_dot = sigmoid_kl_divergence(x, target_x), 0.0
    if not isinstance(x_dot, SymbolicZero):
        divergence_dot += sigmoid_difference(x, target_x) * x_dot
    if not isinstance(target_dot, SymbolicZero):
        # Where the model is sure and the target is not, the slope is as infinite as the divergence.
        infinite = _is_sure(x) & ~_is_sure(target_x)
        beyond = jnp.where(infinite, -x, 0.0)
        divergence_dot += (_sigmoid_target_slope(x, target_x) + beyond) * target_dot
    return divergence, broadcast_tangent(divergence_dot, divergence)


@jax.custom_jvp
def sigmoid_difference(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """sigmoid(x) - sigmoid(target_x)."""
    higher, lower = jnp.maximum(x, target_x), jnp.minimum(x, target_x)
    half = 0.5 * _finite(x) - 0.5 * _finite(target_x)
    rise = sigmoid(higher) * sigmoid(-lower) * -jnp.expm1(-absolute(_bounded(half, 2.0)))
    return jnp.where(half >= 0.0, rise, -rise)


@functools.partial(sigmoid_difference.defjvp, symbolic_zeros=True)
def _sigmoid_difference_jvp(primals, tangents):
    (x, target_x), (x_dot, target_dot) = primals, tangents
    difference = sigmoid_difference(x, target_x)
    difference_dot = scale_tangent(_variance(x), x_dot) - scale_tangent(
        _variance(target_x), target_dot
    )
    return difference, broadcast_tangent(difference_dot, difference)


@jax.custom_jvp
def _sigmoid_target_slope(x: jax.Array, target_x: jax.Array) -> jax.Array:
    half = 0.5 * _finite(target_x) - 0.5 * _finite(x)
    return 2.0 * (_variance(target_x) * half)


@functools.partial(_sigmoid_target_slope.defjvp, symbolic_zeros=True)
def _sigmoid_target_slope_jvp(primals, tangents):
    x, target_x = primals
    x_dot, target_dot = tangents
    slope, variance = _sigmoid_target_slope(x, target_x), _variance(target_x)
    slope_dot = scale_tangent(variance - slope * _tanh_half(target_x), target_dot) - scale_tangent(
        variance, x_dot
    )
    return slope, broadcast_tangent(slope_dot, slope)
