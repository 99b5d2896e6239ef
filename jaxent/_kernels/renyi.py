"""Renyi's entropies and divergences of an order alpha, from probabilities.

What has a limit at alpha = 1 is written with `deformed_log`, of exponent e = alpha - 1. A
divergence is a sum of `power_divergence_terms`: none of them is negative, and they are of second
order where the two distributions agree, so that nothing cancels.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float.limits import clip_to_finite, is_zero, log_or_zero
from jaxent._float.series import accurate_expm1
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Tangents,
    broadcast_tangent,
    define_jvp,
    dot_tangent,
)
from jaxent._float.two_part import add_all, exact_products, precise_sum
from jaxent._kernels.softmax import pivot_entry, subtract_mean, sum_classes
from jaxent._kernels.tsallis import (
    deformed_log,
    has_finite_power_grad,
    power,
    power_divergence_terms,
)

# Entropy.

# From here on 1 - alpha / (alpha - 1) is a difference of nearly equal numbers.
_LARGE_EXPONENT = 3.0


def renyi_entropy(p: jax.Array, alpha: float) -> jax.Array:
    """log(sum(p**alpha) / sum(p)) / (1 - alpha) over the last axis, and its limits."""
    if math.isinf(alpha):
        return 0.0 - jnp.log(jnp.max(p, axis=-1))
    return _renyi_entropy(p, alpha)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _renyi_entropy(p: jax.Array, alpha: float) -> jax.Array:
    stats = _entropy_stats(p, alpha)
    return ((0.0 - jnp.log(stats.top)) + stats.excess)[..., 0]


class _EntropyStats(NamedTuple):
    """What the entropy of an order and its derivatives are made of."""

    total: jax.Array  # [..., 1]
    top: jax.Array  # [..., 1], the largest probability
    over_top: jax.Array  # [..., V], p / top
    mean_power: jax.Array  # [..., 1], of over_top**(alpha - 1) under p
    excess: jax.Array  # [..., 1], entropy less -log(top), the entropy of order infinity


def _entropy_stats(p: jax.Array, alpha: float) -> _EntropyStats:
    """Sums over powers of p / top, none of which overflows."""
    exponent = alpha - 1.0
    total = blocked_sum(p)[..., None]
    total = jnp.where(is_zero(total), 1.0, total)
    top = jnp.max(p, axis=-1, keepdims=True)
    top = jnp.where(is_zero(top), 1.0, top)
    # A compiler may multiply by the reciprocal of the top, which would not give 1 there.
    over_top = jnp.where(p == top, 1.0, p / top)
    # (1 - mean_power) / exponent, as a sum of terms that are not negative.
    deformed = blocked_sum((p / total) * (0.0 - deformed_log(over_top, exponent)))[..., None]
    if exponent == 0.0:
        return _EntropyStats(total, top, over_top, jnp.ones_like(total), deformed)
    mean_power = blocked_sum((p / total) * power(over_top, exponent))[..., None]
    is_far = exponent * deformed > 0.5
    near = log1p(jnp.where(is_far, 0.0, -exponent * deformed))
    far = jnp.log(jnp.where(is_far & (mean_power > 0.0), mean_power, 1.0))
    excess = 0.0 - jnp.where(is_far, far, near) / exponent
    return _EntropyStats(total, top, over_top, mean_power, excess)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _renyi_entropy_grad(p: jax.Array, alpha: float) -> jax.Array:
    """-(1 + alpha `_centered_power`) / sum(p), and 0 where p**alpha has no finite derivative."""
    exponent = alpha - 1.0
    stats = _entropy_stats(p, alpha)
    if exponent >= _LARGE_EXPONENT:
        # The same, without the difference of 1 and alpha / (alpha - 1).
        relative_power = power(stats.over_top, exponent) / stats.mean_power
        return (1.0 - alpha * relative_power) / exponent / stats.total
    centered = _centered_power(stats, exponent)
    if exponent > 0.0:
        centered = jnp.where(is_zero(p), -1.0 / exponent, centered)
    grad = -(1.0 + alpha * centered) / stats.total
    return jnp.where(has_finite_power_grad(p, alpha), grad, 0.0)


define_jvp(_renyi_entropy, _renyi_entropy_grad, product=dot_tangent)


def _centered_power(stats: _EntropyStats, exponent: float) -> jax.Array:
    """(p**e / mean(p**e) - 1) / e, whose mean under p is 0; for e = 0 log(p) less its mean."""
    log_relative = log_or_zero(stats.over_top) + stats.excess
    if exponent == 0.0:
        return log_relative
    relative_power = power(stats.over_top, exponent) / stats.mean_power
    return accurate_expm1(exponent * log_relative, relative_power) / exponent


@_renyi_entropy_grad.defjvp
def _renyi_entropy_grad_jvp(alpha: float, primals: Arrays, tangents: Arrays) -> Dual:
    (p,), (p_dot,) = primals, tangents
    exponent = alpha - 1.0
    stats, grad = _entropy_stats(p, alpha), _renyi_entropy_grad(p, alpha)
    value_dot = jnp.sum(grad * p_dot, axis=-1, keepdims=True)
    total_dot = jnp.sum(p_dot, axis=-1, keepdims=True)
    relative_power = jnp.where(is_zero(p), 0.0, power(stats.over_top, exponent) / stats.mean_power)
    power_grad = power(stats.over_top, exponent - 1.0) / stats.mean_power / stats.top
    if exponent >= _LARGE_EXPONENT:
        power_dot = _large_power_jvp(p, p_dot, stats, relative_power, exponent)
        power_dot = jnp.where(p * relative_power > 0.0, power_dot, power_grad * p_dot)
        grad_dot = alpha * power_dot + total_dot / stats.total / exponent
        return grad, -grad_dot / stats.total
    power_dot = clip_to_finite(power_grad) * p_dot + relative_power * value_dot
    grad_dot = -(grad * total_dot + alpha * power_dot) / stats.total
    return grad, jnp.where(has_finite_power_grad(p, alpha), grad_dot, 0.0)


def _large_power_jvp(
    p: jax.Array,
    p_dot: jax.Array,
    stats: _EntropyStats,
    relative_power: jax.Array,
    exponent: float,
) -> jax.Array:
    """The tangent of p**e / mean(p**e) over e, less a term of the total, where it is positive.

    With the weights w = p**alpha over their sum it is that power times d log(p), less its mean
    under w, less 1 / e of that mean. The power of a class that has nearly all of w does not change.
    """
    weights = p * relative_power / stats.total
    log_dot = jnp.where(weights > 0.0, p_dot / jnp.where(weights > 0.0, p, 1.0), 0.0)
    of_mean = sum_classes(weights * log_dot) / exponent
    return relative_power * (subtract_mean(weights, log_dot) - of_mean)


# Divergence.


def renyi_divergence(a: jax.Array, b: jax.Array, alpha: float) -> jax.Array:
    """log(sum(a**alpha b**(1 - alpha))) / (alpha - 1) of a and b over their totals."""
    if alpha == 0.0:
        return _renyi_divergence_of_order_zero(a, b)
    if math.isinf(alpha):
        return _renyi_divergence_of_order_infinity(a, b)
    if alpha < 0.5:
        # Orders alpha and 1 - alpha have the same sum; the larger order is better conditioned.
        return alpha / (1.0 - alpha) * _renyi_divergence(b, a, 1.0 - alpha)
    return _renyi_divergence(a, b, alpha)


def _renyi_divergence_of_order_zero(a: jax.Array, b: jax.Array) -> jax.Array:
    """-log of the fraction of b where a is positive."""
    is_outside = is_zero(a)
    inside = jnp.sum(jnp.where(is_outside, 0.0, b), axis=-1)
    outside = jnp.sum(jnp.where(is_outside, b, 0.0), axis=-1)
    odds = outside / jnp.where(is_zero(inside), 1.0, inside)
    return jnp.where(is_zero(inside), jnp.inf, log1p(jnp.where(is_zero(inside), 0.0, odds)))


def _renyi_divergence_of_order_infinity(a: jax.Array, b: jax.Array) -> jax.Array:
    """The largest log(a / b), of a and b over their totals."""
    both = ~is_zero(a) & ~is_zero(b)
    safe_a, safe_b = (jnp.where(both, x, 1.0) for x in (a, b))
    log_ratios = jnp.where(both, _log_ratio(safe_a, safe_b, safe_a - safe_b), -jnp.inf)
    of_totals = _log_ratio(jnp.sum(a, -1), jnp.sum(b, -1), jnp.sum(a - b, -1))
    value = jnp.maximum(jnp.max(log_ratios, axis=-1) - of_totals, 0.0)
    return jnp.where(jnp.any(~is_zero(a) & is_zero(b), axis=-1), jnp.inf, value)


@jax.custom_jvp
def _log_ratio(a: jax.Array, b: jax.Array, difference: jax.Array) -> jax.Array:
    """log(a / b) with relative accuracy, given a - b."""
    is_near = jnp.abs(difference) <= 0.5 * b
    near = log1p(jnp.where(is_near, difference / b, 0.0))
    return jnp.where(is_near, near, jnp.log(jnp.where(is_near, 1.0, a / b)))


@_log_ratio.defjvp
def _log_ratio_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    a, b, _ = primals
    a_dot, b_dot, _ = tangents
    return _log_ratio(*primals), a_dot / a - b_dot / b


class _Pair(NamedTuple):
    """Two distributions over their totals."""

    total_a: jax.Array  # [..., 1]
    total_b: jax.Array  # [..., 1]
    a: jax.Array  # [..., V]
    b: jax.Array  # [..., V]
    has_a: jax.Array  # [..., V], where a is positive
    has_b: jax.Array  # [..., V], where b is positive
    both: jax.Array  # [..., V], where both are positive
    ratio: jax.Array  # [..., V], a / b, and 1 where not both are positive
    log_ratio: jax.Array  # [..., V], log(a / b), and 0 where not both are positive


def _normalize_pair(a: jax.Array, b: jax.Array) -> _Pair:
    """Both over their totals, and the logarithm of their ratio with relative accuracy."""
    totals = [blocked_sum(x)[..., None] for x in (a, b)]
    total_a, total_b = (jnp.where(is_zero(total), 1.0, total) for total in totals)
    has_a, has_b = ~is_zero(a), ~is_zero(b)
    both = has_a & has_b
    safe_a, safe_b = (jnp.where(both, x, 1.0) for x in (a, b))
    ratio = jnp.where(both, safe_a / safe_b * (total_b / total_a), 1.0)
    # Near 1 the ratio comes from a difference, less the part common to all classes.
    difference, is_accurate = _scaled_difference(a, b, total_a / total_b)
    relative = log_fraction_jvp(b, total_b, difference, exact=True) * (total_b / total_a)
    is_near = both & is_accurate & (jnp.abs(relative) < 0.5)
    log_ratio = jnp.where(is_near, log1p(jnp.where(is_near, relative, 0.0)), jnp.log(ratio))
    a, b = a / total_a, b / total_b
    return _Pair(total_a, total_b, a, b, has_a, has_b, both, ratio, log_ratio)


def _scaled_difference(a: jax.Array, b: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - scale * b as if rounded once, and where it is accurate.

    Totals that differ by roundings count as equal: the scale is 1.
    """
    info = jnp.finfo(a.dtype)
    is_one = jnp.abs(scale - 1.0) <= 16.0 * float(info.eps)
    scale = jnp.where(is_one, 1.0, scale)
    result, error = add_all(a, *exact_products(-scale, b))
    # Below this, products of the lower digits are subnormal.
    least = float(info.tiny) * 2.0 ** (info.nmant + 2)
    is_accurate = is_one | ((a > least) & (b > least))
    return jnp.where(is_one, a - b, result + error), is_accurate


class _DivergenceStats(NamedTuple):
    """What the divergence of an order >= 1/2 and its derivatives are made of."""

    log_mean_power: jax.Array  # [..., 1], of (a / b)**(alpha - 1) under a
    relative_power: jax.Array  # [..., V], that power over its mean, 0 where not both are positive
    value: jax.Array  # [..., 1], the divergence


# exp of more than this may be out of range after it is summed.
_MAX_LOG_POWER = 60.0


def _divergence_stats(pair: _Pair, alpha: float) -> _DivergenceStats:
    """The divergence log(mean((a / b)**e)) / e, e = alpha - 1, and what its derivatives need."""
    exponent = alpha - 1.0
    max_log_power = jnp.max(exponent * pair.log_ratio, axis=-1, keepdims=True)
    ratio = jnp.where(max_log_power > _MAX_LOG_POWER, 1.0, pair.ratio)
    value = _power_divergence(pair, ratio, alpha)
    if exponent == 0.0:
        log_mean, relative = jnp.zeros_like(value), jnp.ones_like(pair.a)
    else:
        log_mean, relative = _mean_power(pair, ratio, max_log_power, exponent * value, exponent)
        is_disjoint = ~jnp.any(pair.both, axis=-1, keepdims=True)
        value = jnp.where(is_disjoint, jnp.inf, log_mean / exponent)
    if alpha >= 1.0:
        is_infinite = jnp.any(pair.has_a & ~pair.has_b, axis=-1, keepdims=True)
        value = jnp.where(is_infinite, jnp.inf, value)
        if alpha > 1.0:
            log_mean = jnp.where(is_infinite, jnp.inf, log_mean)
            relative = jnp.where(is_infinite, 0.0, relative)
    return _DivergenceStats(log_mean, jnp.where(pair.both, relative, 0.0), value)


def _power_divergence(pair: _Pair, ratio: jax.Array, alpha: float) -> jax.Array:
    """(mean(ratio**e) - 1) / e under a, e = alpha - 1, as a sum of non-negative terms [..., 1]."""
    a, b = pair.a, pair.b
    terms = power_divergence_terms(a, b, pair.log_ratio, ratio, alpha)
    terms = jnp.where(pair.both, terms, jnp.where(pair.has_b, b, 0.0))
    if alpha < 1.0:
        terms = jnp.where(pair.has_a & ~pair.has_b, a * (alpha / (1.0 - alpha)), terms)
    return blocked_sum(terms)[..., None]


def _mean_power(
    pair: _Pair,
    ratio: jax.Array,
    max_log_power: jax.Array,
    mean_minus_one: jax.Array,
    exponent: float,
) -> tuple[jax.Array, jax.Array]:
    """The logarithm of the mean of ratio**e under a [..., 1], and ratio**e over that mean [..., V].

    The mean less 1 is given, accurate near 0. Powers that are too large are divided by the largest.
    """
    is_large = max_log_power > _MAX_LOG_POWER
    log_power = exponent * pair.log_ratio
    powers = jnp.where(pair.both, power(ratio, exponent), 0.0)
    scaled = jnp.exp(log_power - jnp.maximum(max_log_power, _MAX_LOG_POWER))
    scaled = jnp.where(pair.both, scaled, 0.0)
    mean, scaled_mean = (blocked_sum(pair.a * x)[..., None] for x in (powers, scaled))
    is_far = mean_minus_one < -0.5
    log_mean = jnp.where(
        is_far,
        jnp.log(jnp.where(is_far & (mean > 0.0), mean, 1.0)),
        log1p(jnp.where(is_far, 0.0, mean_minus_one)),
    )
    large = max_log_power + jnp.log(jnp.where(is_large, scaled_mean, 1.0))
    log_mean = jnp.where(is_large, large, log_mean)
    relative = powers / jnp.where(mean > 0.0, mean, 1.0)
    return log_mean, jnp.where(is_large, jnp.exp(log_power - log_mean), relative)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _renyi_divergence(a: jax.Array, b: jax.Array, alpha: float) -> jax.Array:
    """`renyi_divergence` of an order from 1/2, finite."""
    return _divergence_stats(_normalize_pair(a, b), alpha).value[..., 0]


@functools.partial(_renyi_divergence.defjvp, symbolic_zeros=True)
def _renyi_divergence_jvp(alpha: float, primals: Arrays, tangents: Tangents) -> Dual:
    (a, b), (a_dot, b_dot) = primals, tangents
    value = _renyi_divergence(a, b, alpha)
    grad_a, grad_b = _renyi_divergence_grads(a, b, alpha)
    value_dot = dot_tangent(grad_a, a_dot) + dot_tangent(grad_b, b_dot)
    return value, broadcast_tangent(value_dot, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _renyi_divergence_grads(
    a: jax.Array, b: jax.Array, alpha: float
) -> tuple[jax.Array, jax.Array]:
    """The derivatives in a and in b, [..., V] each."""
    exponent = alpha - 1.0
    pair = _normalize_pair(a, b)
    stats = _divergence_stats(pair, alpha)
    is_infinite = stats.value == jnp.inf
    if exponent == 0.0:
        centered_a = pair.log_ratio - stats.value
    else:
        log_relative = exponent * pair.log_ratio - stats.log_mean_power
        centered_a = accurate_expm1(log_relative, stats.relative_power) / exponent
    log_relative = alpha * pair.log_ratio - stats.log_mean_power
    centered_b = accurate_expm1(log_relative, stats.relative_power * pair.ratio)

    only_a, only_b = pair.has_a & ~pair.has_b, pair.has_b & ~pair.has_a
    # Where one of the two is 0, only the totals count, or there is no finite derivative.
    centered_a = jnp.where(pair.both, centered_a, 0.0)
    at_zero = only_a if alpha < 1.0 else only_b
    centered_a = jnp.where(at_zero, -1.0 / exponent if exponent else 0.0, centered_a)
    centered_b = jnp.where(pair.both, centered_b, jnp.where(only_b, -1.0, 0.0))
    if alpha >= 1.0:
        infinite_a = jnp.where(only_a, jnp.inf, 0.0)
    else:
        infinite_a = jnp.where(only_b, -jnp.inf, 0.0)
    grad_a = jnp.where(is_infinite, infinite_a, alpha * centered_a / pair.total_a)
    infinite_b = jnp.where(only_a, -jnp.inf, 0.0)
    return grad_a, jnp.where(is_infinite, infinite_b, -centered_b / pair.total_b)


@_renyi_divergence_grads.defjvp
def _renyi_divergence_grads_jvp(
    alpha: float, primals: Arrays, tangents: Arrays
) -> tuple[Arrays, Arrays]:
    (a, b), (a_dot, b_dot) = primals, tangents
    exponent = alpha - 1.0
    pair = _normalize_pair(a, b)
    stats, grads = _divergence_stats(pair, alpha), _renyi_divergence_grads(a, b, alpha)
    is_finite = stats.value < jnp.inf
    grad_a, grad_b = (jnp.where(is_finite, grad, 0.0) for grad in grads)
    value_dot = jnp.sum(grad_a * a_dot + grad_b * b_dot, axis=-1, keepdims=True)
    total_a_dot, total_b_dot = (jnp.sum(x, axis=-1, keepdims=True) for x in (a_dot, b_dot))
    log_ratio_dot = log_fraction_jvp(a, pair.total_a, a_dot)
    log_ratio_dot -= log_fraction_jvp(b, pair.total_b, b_dot)
    relative_dot = stats.relative_power * (log_ratio_dot - value_dot)
    power_a_dot = jnp.where(pair.both, relative_dot, 0.0)
    power_b_dot = stats.relative_power * pair.ratio
    power_b_dot *= alpha * log_ratio_dot - exponent * value_dot
    if alpha == 2.0:
        # Only this order has a second derivative at a = 0 that is neither 0 nor infinite.
        only_b = is_zero(a) & ~is_zero(b)
        mean_b = pair.total_a * jnp.exp(stats.log_mean_power)
        mean_b *= jnp.where(only_b, pair.b, 1.0)
        at_zero = a_dot / jnp.where(is_finite, mean_b, 1.0)
        power_a_dot += jnp.where(only_b & is_finite, at_zero, 0.0)
    power_b_dot = jnp.where(pair.both, power_b_dot, 0.0)
    grad_a_dot = (alpha * power_a_dot - grad_a * total_a_dot) / pair.total_a
    grad_b_dot = -(power_b_dot + grad_b * total_b_dot) / pair.total_b
    return grads, tuple(jnp.where(is_finite, x, 0.0) for x in (grad_a_dot, grad_b_dot))


def log_fraction_jvp(
    p: jax.Array, total: jax.Array, p_dot: jax.Array, *, exact: bool = False
) -> jax.Array:
    """The tangent of log(p / total) where p is positive, for the total [..., 1] of p.

    A class with more than half of the total is the pivot: what the others have in common with it
    cancels before anything is summed. If p_dot is a finite change that makes the total c times as
    large, p / total changes by exactly 1/c of the result, relative to itself. An exact sum is as
    good as rounded once.
    """
    relative = jnp.where(is_zero(p), 0.0, p_dot / jnp.where(is_zero(p), 1.0, p))
    # More than half by more than the rounding of the total, so that there are never two.
    is_pivot = p > (0.5 + 2.0 * float(jnp.finfo(p.dtype).eps)) * total
    of_pivot = pivot_entry(relative, is_pivot)
    others = jnp.where(is_pivot, 0.0, p_dot - p * of_pivot)
    sum_of_others = precise_sum(others) if exact else jnp.sum(others, axis=-1)
    return jnp.where(is_pivot, 0.0, relative - of_pivot) - sum_of_others[..., None] / total
