"""Losses of log-probabilities: margins of preferences, ratios of policies, and odds.

Log-probabilities of sequences are numbers in the hundreds, and what is learned from them are
exponentials of their differences, which multiply whatever rounding left in those by their size.
Here a difference is a pair of numbers, `high` and the `low` that rounding took from it: the
exponential of the pair is exp(high) (1 + low). Only `high` carries a derivative.
"""

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.series import expm1_minus_x
from jaxent._float.tangents import broadcast_tangent
from jaxent._float.two_part import two_diff
from jaxent._kernels.sigmoid import absolute


def _moved(result: jax.Array, *terms: tuple[jax.Array, Any]) -> jax.Array:
    """The sum of coefficient * tangent, without those of what is not differentiated.

    Not `along`, whose 0 for those would be transposed to a sum over all elements: of +inf and
    -inf, where two losses are infinite.
    """
    moved = [slope * dot for slope, dot in terms if not isinstance(dot, SymbolicZero)]
    return broadcast_tangent(functools.reduce(operator.add, moved), result)


# Pairs.


def exact_difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - b, and what rounding took from it: nothing where it is not finite."""
    is_finite = jnp.abs(a - b) < jnp.inf
    _, rest = two_diff(jnp.where(is_finite, a, 0.0), jnp.where(is_finite, b, 0.0))
    return a - b, rest


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The leading half of the digits of x, and the other half: products of halves are exact."""
    info = jnp.finfo(x.dtype)
    leading = jax.lax.reduce_precision(x, info.nexp, info.nmant // 2)
    return leading, x - leading


@jax.custom_jvp
def _margin(a, b, c, d, scale, scale_rest, offset, offset_rest) -> tuple[jax.Array, jax.Array]:
    numbers = (a, b, c, d)
    is_finite = functools.reduce(jnp.logical_and, [jnp.abs(x) < jnp.inf for x in numbers])
    # Quarters, since a difference of differences may overflow where its multiple does not.
    first, second, third, fourth = (jnp.where(is_finite, 0.25 * x, 0.0) for x in numbers)
    left, left_rest = two_diff(first, second)
    right, right_rest = two_diff(third, fourth)
    difference, rest = two_diff(left, right)
    difference, rest = _normalised(difference, rest + (left_rest - right_rest))
    plain = jnp.where(is_finite, 4.0 * (difference * scale), scale * ((a - b) - (c - d)))
    # Not where the product overflows, or the scale is NaN: so callers say that there is no result.
    is_exact = jnp.abs(plain) < 0.5 * float(jnp.finfo(plain.dtype).max)
    difference, rest = (jnp.where(is_exact, x, 0.0) for x in (difference, rest))
    (top, bottom), (scale_top, scale_bottom) = _split(difference), _split(scale)
    # Minus a product, since differences are what there is.
    product, lost = two_diff(top * scale_top, -(top * scale_bottom + bottom * scale_top))
    lost += bottom * scale_bottom + (rest * scale + difference * scale_rest)
    product, product_lost = two_diff(product, 0.25 * offset)
    high, low = _normalised(product, product_lost + (lost - 0.25 * offset_rest))
    return jnp.where(is_exact, 4.0 * high, plain - offset), jnp.where(is_exact, 4.0 * low, 0.0)


def _normalised(high: jax.Array, low: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same sum with `low` below the last place of `high`."""
    total = high + low
    return total, low - (total - high)


@functools.partial(_margin.defjvp, symbolic_zeros=True)
def _margin_jvp(primals, tangents):
    a, b, c, d, scale, _, _, _ = primals
    *number_dots, scale_dot, _, offset_dot, _ = tangents
    high, low = _margin(*primals)
    verdict = jnp.where(high == high, 1.0, jnp.nan).astype(high.dtype)
    slope = scale * verdict
    terms = [*zip((slope, -slope, -slope, slope), number_dots, strict=True), (-verdict, offset_dot)]
    if not isinstance(scale_dot, SymbolicZero):
        terms.append(((a - b) - (c - d), scale_dot))
    return (high, low), (_moved(high, *terms), jnp.zeros_like(low))


def margin(
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    d: jax.Array,
    scale: tuple[jax.Array, jax.Array],
    offset: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """The pair of scale * ((a - b) - (c - d)) - offset.

    Scale and offset come as a number and what rounding took from it. An infinite log-probability
    makes the margin infinite; several that contradict each other make it NaN.
    """
    high, low = _margin(a, b, c, d, *scale, *offset)
    return high, jax.lax.stop_gradient(low)


# Functions of a pair.


def _exponential(high: jax.Array, low: jax.Array) -> jax.Array:
    """exp(high + low)."""
    # A larger rest belongs to a number whose exponential is 0 or infinite.
    return jnp.exp(high) * (1.0 + jnp.clip(low, -0.5, 0.5))


def _decay(high: jax.Array, low: jax.Array) -> jax.Array:
    """exp(-|high + low|)."""
    return _exponential(-absolute(high), jnp.where(high >= 0.0, -low, low))


@jax.custom_jvp
def sigmoid_of_pair(high: jax.Array, low: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)) with x = high + low."""
    decay = _decay(high, low)
    return jnp.where(high >= 0.0, 1.0, decay) / (1.0 + decay)


@sigmoid_of_pair.defjvp
def _sigmoid_of_pair_jvp(primals, tangents):
    return sigmoid_of_pair(*primals), _sigmoid_slope(*primals) * tangents[0]


@jax.custom_jvp
def _sigmoid_slope(high: jax.Array, low: jax.Array) -> jax.Array:
    decay = _decay(high, low)
    return decay / jnp.square(1.0 + decay)


@_sigmoid_slope.defjvp
def _sigmoid_slope_jvp(primals, tangents):
    high, low = primals
    slope, size = _sigmoid_slope(high, low), absolute(high)
    tanh = -jnp.expm1(-size) / (1.0 + jnp.exp(-size))
    return slope, -(slope * jnp.where(high >= 0.0, tanh, -tanh)) * tangents[0]


@jax.custom_jvp
def pair_cross_entropy(high: jax.Array, low: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Yes * softplus(-x) + no * softplus(x) with x = high + low, for weights yes, no >= 0.

    The weight of an answer that is impossible at an infinite x may be 0.
    """
    distance = jnp.where(high >= 0.0, no, yes)
    size = jnp.where(distance == 0.0, 0.0, jnp.where(high >= 0.0, high + low, -(high + low)))
    return size * distance + (yes + no) * jnp.log1p(_decay(high, low))


@functools.partial(pair_cross_entropy.defjvp, symbolic_zeros=True)
def _pair_cross_entropy_jvp(primals, tangents):
    high, low, yes, no = primals
    high_dot, _, yes_dot, no_dot = tangents
    loss = pair_cross_entropy(high, low, yes, no)
    slope = no * sigmoid_of_pair(high, low) - yes * sigmoid_of_pair(-high, -low)
    terms = [(slope, high_dot)]
    one, none = jnp.ones_like(yes), jnp.zeros_like(yes)
    for dot, of_yes, of_no in ((yes_dot, one, none), (no_dot, none, one)):
        if not isinstance(dot, SymbolicZero):
            terms.append((pair_cross_entropy(high, low, of_yes, of_no), dot))
    return loss, _moved(loss, *terms)


def square_of_pair(high: jax.Array, low: jax.Array) -> jax.Array:
    """(high + low)**2."""
    return high * (high + 2.0 * low)


def shortfall(high: jax.Array, low: jax.Array) -> jax.Array:
    """max(0, -(high + low)), with slope 0 at 0."""
    return jnp.where(high >= 0.0, 0.0, -(high + low))


# Ratios of two policies.


@jax.custom_jvp
def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """exp(a - b)."""
    high, low = exact_difference(a, b)
    return _exponential(high, low)


@functools.partial(_ratio.defjvp, symbolic_zeros=True)
def _ratio_jvp(primals, tangents):
    ratio = _ratio(*primals)
    return ratio, _moved(ratio, (ratio, tangents[0]), (-ratio, tangents[1]))


@jax.custom_jvp
def clipped_ratio(a: jax.Array, b: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """exp(a - b) cut to [lower, upper]; at either end its slope is still that of the ratio."""
    ratio = _ratio(a, b)
    return jnp.where(ratio < lower, lower, jnp.where(ratio > upper, upper, ratio))


@functools.partial(clipped_ratio.defjvp, symbolic_zeros=True)
def _clipped_ratio_jvp(primals, tangents):
    a, b, lower, upper = primals
    a_dot, b_dot, lower_dot, upper_dot = tangents
    result = clipped_ratio(a, b, lower, upper)
    slope = _unclipped_ratio(a, b, lower, upper)
    below, above = (beyond.astype(result.dtype) for beyond in _is_clipped(a, b, lower, upper))
    terms = ((slope, a_dot), (-slope, b_dot), (below, lower_dot), (above, upper_dot))
    return result, _moved(result, *terms)


def _is_clipped(a, b, lower, upper) -> tuple[jax.Array, jax.Array]:
    ratio = _ratio(a, b)
    return ratio < lower, ratio > upper


@jax.custom_jvp
def _unclipped_ratio(a: jax.Array, b: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """exp(a - b) where it lies in [lower, upper], and 0 elsewhere, however large it is there."""
    is_below, is_above = _is_clipped(a, b, lower, upper)
    return jnp.where(is_below | is_above, 0.0, _ratio(a, b))


@functools.partial(_unclipped_ratio.defjvp, symbolic_zeros=True)
def _unclipped_ratio_jvp(primals, tangents):
    ratio = _unclipped_ratio(*primals)
    return ratio, _moved(ratio, (ratio, tangents[0]), (-ratio, tangents[1]))


@jax.custom_jvp
def ratio_excess(a: jax.Array, b: jax.Array) -> jax.Array:
    """exp(d) - 1 - d with d = a - b: what a ratio exceeds its logarithm and 1 by, never below 0."""
    high, low = exact_difference(a, b)
    small = jnp.where(high > 1.0, 0.0, high)
    is_near = jnp.abs(small) <= 1.0
    series = expm1_minus_x(jnp.where(is_near, small, 0.0))
    excess = jnp.where(is_near, series, jnp.expm1(small) - small) + jnp.expm1(small) * low
    # Beyond 1000 the exponential is infinite, against which nothing else counts.
    above = _exponential(high, low) - (1.0 + jnp.minimum(high, 1000.0))
    return jnp.where(high > 1.0, above, excess)


@functools.partial(ratio_excess.defjvp, symbolic_zeros=True)
def _ratio_excess_jvp(primals, tangents):
    excess, slope = ratio_excess(*primals), _ratio_change(*primals)
    return excess, _moved(excess, (slope, tangents[0]), (-slope, tangents[1]))


@jax.custom_jvp
def _ratio_change(a: jax.Array, b: jax.Array) -> jax.Array:
    """exp(a - b) - 1."""
    high, low = exact_difference(a, b)
    small = jnp.where(high > 1.0, 0.0, high)
    change = jnp.expm1(small) + jnp.exp(small) * low
    return jnp.where(high > 1.0, _exponential(high, low) - 1.0, change)


@functools.partial(_ratio_change.defjvp, symbolic_zeros=True)
def _ratio_change_jvp(primals, tangents):
    ratio = _ratio(*primals)
    return _ratio_change(*primals), _moved(ratio, (ratio, tangents[0]), (-ratio, tangents[1]))


# Odds.
#
# The odds of a probability are 1 / expm1(u), with u = -log(p) its surprise.


def _surprise_distance(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """By how much the chosen one surprises more, as a pair; 0 where both are impossible."""
    is_same = chosen == rejected
    return exact_difference(jnp.where(is_same, 0.0, rejected), jnp.where(is_same, 0.0, chosen))


def _doubt(log_p: jax.Array) -> jax.Array:
    """1 - p, and 0 rather than -0 for a certain answer, since it divides."""
    return 0.0 - jnp.expm1(log_p)


def _settled(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Whether odds are not both infinite, 1 or 0, and log-probabilities that are not both 0."""
    both = (chosen == 0.0) & (rejected == 0.0)
    live = jnp.where(both, 0.0, 1.0).astype(chosen.dtype)
    return live, jnp.where(both, -1.0, chosen), jnp.where(both, -1.0, rejected)


@jax.custom_jvp
def odds_ratio_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """log(1 + odds(rejected) / odds(chosen)) for log-probabilities <= 0.

    A certain answer that is rejected costs +inf. Two certain ones are as good as each other, and
    so are two impossible ones: they cost log(2).
    """
    _, chosen, rejected = _settled(chosen, rejected)
    distance, low = _surprise_distance(chosen, rejected)
    is_more = distance >= 0.0
    of_chosen, of_rejected = _doubt(chosen), _doubt(rejected)
    # The ratio of the odds or its inverse, which is at most 1: neither overflows.
    larger = jnp.where(is_more, of_chosen, of_rejected)
    share = jnp.where(is_more, of_rejected, of_chosen) / larger
    size = jnp.where(is_more, distance - jnp.log(jnp.where(is_more, share, 1.0)) + low, 0.0)
    return size + jnp.log1p(_decay(distance, low) * share)


@functools.partial(odds_ratio_loss.defjvp, symbolic_zeros=True)
def _odds_ratio_loss_jvp(primals, tangents):
    loss = odds_ratio_loss(*primals)
    slopes = (_chosen_slope(*primals), _rejected_slope(*primals))
    return loss, _moved(loss, *zip(slopes, tangents, strict=True))


class _Parts(NamedTuple):
    """exp(u) and expm1(u) of both surprises, and 1, all over the larger exp(u)."""

    chosen: jax.Array
    rejected: jax.Array
    chosen_less: jax.Array
    rejected_less: jax.Array
    one: jax.Array

    def share(self, part: jax.Array) -> jax.Array:
        """What a part is of the sum of the two expm1(u)."""
        return part / (self.chosen_less + self.rejected_less)


def _parts(chosen: jax.Array, rejected: jax.Array) -> _Parts:
    distance, low = _surprise_distance(chosen, rejected)
    decay, is_more = _decay(distance, low), distance >= 0.0
    a, b = jnp.where(is_more, 1.0, decay), jnp.where(is_more, decay, 1.0)
    one = jnp.exp(jnp.minimum(chosen, rejected))
    return _Parts(a, b, a * _doubt(chosen), b * _doubt(rejected), one)


@jax.custom_jvp
def _chosen_slope(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    live, *settled = _settled(chosen, rejected)
    parts = _parts(*settled)
    return -live * parts.share(parts.chosen)


@functools.partial(_chosen_slope.defjvp, symbolic_zeros=True)
def _chosen_slope_jvp(primals, tangents):
    _, *settled = _settled(*primals)
    parts, slope = _parts(*settled), _chosen_slope(*primals)
    bend = slope * parts.share(parts.one - parts.rejected_less)
    cross = slope * parts.share(parts.rejected)
    return slope, _moved(slope, (bend, tangents[0]), (cross, tangents[1]))


@jax.custom_jvp
def _rejected_slope(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    live, *settled = _settled(chosen, rejected)
    parts, doubt = _parts(*settled), _doubt(settled[1])
    # Not the share of `chosen_less` over the doubt: a compiler makes one division of the two, by
    # a product that may be too small.
    return live / (doubt + doubt * (parts.rejected_less / parts.chosen_less))


@functools.partial(_rejected_slope.defjvp, symbolic_zeros=True)
def _rejected_slope_jvp(primals, tangents):
    _, *settled = _settled(*primals)
    parts, slope = _parts(*settled), _rejected_slope(*primals)
    rest = parts.share(parts.rejected_less)
    odds = jnp.exp(settled[1]) / _doubt(settled[1])
    bend = slope * (rest + (1.0 + rest) * odds)
    cross = _chosen_slope(*primals) * parts.share(parts.rejected)
    return slope, _moved(slope, (cross, tangents[0]), (bend, tangents[1]))
