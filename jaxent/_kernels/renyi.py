"""Entropies and divergences of an order alpha, and the mutual information, from probabilities.

Two ideas carry them. Everything that has a limit at alpha = 1 is written with the deformed
logarithm (x**e - 1) / e, e = alpha - 1, which becomes log(x) smoothly. And a divergence is a sum of
Bregman terms, which are non-negative and of second order where the two distributions agree, so
that nothing of it is lost between terms of either sign.

Conventions at 0 are those of `jaxent._numerics.distribution`.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float import two_part
from jaxent._float.series import polynomial, terms_for
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import broadcast_tangent, dot_tangent
from jaxent._kernels.distribution import is_zero, log_or_zero
from jaxent._kernels.softmax import pivot_entry

# Powers.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def power(p: jax.Array, exponent: float) -> jax.Array:
    """p**exponent for p >= 0; at p = 0 it is 0 for a negative exponent too, and 1 for 0."""
    if exponent == 0.0:
        return jnp.ones_like(p)
    present = jnp.where(is_zero(p), 1.0, p)
    # What rounding takes from the exponent would be multiplied by a logarithm.
    rounded, error = two_part.split_number(exponent, p.dtype)
    result = jnp.power(present, rounded)
    if error:
        result *= jnp.exp(error * jnp.log(present))
    return jnp.where(is_zero(p), 0.0, result)


@power.defjvp
def _power_jvp(exponent, primals, tangents):
    (p,), (p_dot,) = primals, tangents
    if exponent == 0.0:
        return power(p, exponent), jnp.zeros_like(p_dot)
    return power(p, exponent), exponent * _finite(power(p, exponent - 1.0)) * p_dot


def _finite(x: jax.Array) -> jax.Array:
    """What is beyond the range of the dtype at its end, so that it may be multiplied by 0."""
    return jnp.minimum(x, float(jnp.finfo(x.dtype).max))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def deformed_log(p: jax.Array, order: float) -> jax.Array:
    """(p**order - 1) / order, log(p) for order 0; at p = 0 it is 0 where it would be infinite."""
    log_p = log_or_zero(p)
    if order == 0.0:
        return log_p
    # Near 1 the power and 1 would cancel, elsewhere the exponential would magnify roundings.
    is_near = jnp.abs(order * log_p) < 0.5
    near = jnp.expm1(jnp.where(is_near, order * log_p, 0.0))
    result = jnp.where(is_near, near, power(p, order) - 1.0) / order
    return jnp.where(is_zero(p), -1.0 / order if order > 0.0 else 0.0, result)


@deformed_log.defjvp
def _deformed_log_jvp(order, primals, tangents):
    (p,), (p_dot,) = primals, tangents
    return deformed_log(p, order), _finite(power(p, order - 1.0)) * p_dot


def _slope_exists(p: jax.Array, alpha: float) -> jax.Array:
    """Where p**alpha has a finite derivative."""
    return jnp.ones_like(p, dtype=bool) if alpha > 1.0 else ~is_zero(p)


# Tsallis.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def tsallis(p: jax.Array, alpha: float) -> jax.Array:
    """sum(p - p**alpha) / (alpha - 1) over the last axis."""
    return blocked_sum(p * (0.0 - deformed_log(p, alpha - 1.0)))


@tsallis.defjvp
def _tsallis_jvp(alpha, primals, tangents):
    (p,), (p_dot,) = primals, tangents
    if alpha > 2.0:
        slope = (1.0 - alpha * power(p, alpha - 1.0)) / (alpha - 1.0)
    else:
        slope = -1.0 - alpha * deformed_log(p, alpha - 1.0)
    slope = jnp.where(_slope_exists(p, alpha), slope, 0.0)
    return tsallis(p, alpha), jnp.sum(slope * p_dot, axis=-1)


# Renyi entropy.


def renyi_entropy(p: jax.Array, alpha: float) -> jax.Array:
    """log(sum(p**alpha) / sum(p)) / (1 - alpha) over the last axis, and its limits."""
    if math.isinf(alpha):
        return 0.0 - jnp.log(jnp.max(p, axis=-1))
    return _renyi_entropy(p, alpha)


class _Spectrum(NamedTuple):
    """What the entropy of an order and its derivatives are made of."""

    total: jax.Array  # [..., 1]
    top: jax.Array  # [..., 1], the largest probability
    shares: jax.Array  # [..., V], probabilities over the largest
    mean: jax.Array  # [..., 1], of shares**(alpha - 1)
    excess: jax.Array  # [..., 1], how far the entropy exceeds -log(top)


def _spectrum(p: jax.Array, alpha: float) -> _Spectrum:
    order = alpha - 1.0
    total = blocked_sum(p)[..., None]
    total = jnp.where(is_zero(total), 1.0, total)
    top = jnp.max(p, axis=-1, keepdims=True)
    top = jnp.where(is_zero(top), 1.0, top)
    # A division by what is common to the row may become a product with its reciprocal.
    shares = jnp.where(p == top, 1.0, p / top)
    # At least 0, and a sum of terms of one sign.
    below = blocked_sum((p / total) * (0.0 - deformed_log(shares, order)))[..., None]
    if order == 0.0:
        return _Spectrum(total, top, shares, jnp.ones_like(total), below)
    mean = blocked_sum((p / total) * power(shares, order))[..., None]
    is_far = order * below > 0.5
    near = log1p(jnp.where(is_far, 0.0, -order * below))
    far = jnp.log(jnp.where(is_far & (mean > 0.0), mean, 1.0))
    return _Spectrum(total, top, shares, mean, 0.0 - jnp.where(is_far, far, near) / order)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _renyi_entropy(p: jax.Array, alpha: float) -> jax.Array:
    parts = _spectrum(p, alpha)
    return ((0.0 - jnp.log(parts.top)) + parts.excess)[..., 0]


@_renyi_entropy.defjvp
def _renyi_entropy_jvp(alpha, primals, tangents):
    (p,), (p_dot,) = primals, tangents
    slope_dot = jnp.sum(_renyi_entropy_slope(p, alpha) * p_dot, axis=-1)
    return _renyi_entropy(p, alpha), slope_dot


def _relative_shares(parts: _Spectrum, order: float) -> jax.Array:
    """(r - 1) / order with r = p**order over its mean: 0 on average."""
    distance = log_or_zero(parts.shares) + parts.excess
    if order == 0.0:
        return distance
    is_near = jnp.abs(order * distance) < 0.5
    near = jnp.expm1(jnp.where(is_near, order * distance, 0.0))
    return jnp.where(is_near, near, power(parts.shares, order) / parts.mean - 1.0) / order


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _renyi_entropy_slope(p: jax.Array, alpha: float) -> jax.Array:
    order = alpha - 1.0
    parts = _spectrum(p, alpha)
    excess = _relative_shares(parts, order)
    if order > 0.0:
        excess = jnp.where(is_zero(p), -1.0 / order, excess)
    slope = -(1.0 + alpha * excess) / parts.total
    return jnp.where(_slope_exists(p, alpha), slope, 0.0)


@_renyi_entropy_slope.defjvp
def _renyi_entropy_slope_jvp(alpha, primals, tangents):
    (p,), (p_dot,) = primals, tangents
    order = alpha - 1.0
    parts, slope = _spectrum(p, alpha), _renyi_entropy_slope(p, alpha)
    value_dot = jnp.sum(slope * p_dot, axis=-1, keepdims=True)
    total_dot = jnp.sum(p_dot, axis=-1, keepdims=True)
    relative = jnp.where(is_zero(p), 0.0, power(parts.shares, order) / parts.mean)
    bend = _finite(power(parts.shares, order - 1.0) / parts.mean / parts.top) * p_dot
    slope_dot = -(slope * total_dot + alpha * (bend + relative * value_dot)) / parts.total
    return slope, jnp.where(_slope_exists(p, alpha), slope_dot, 0.0)


# Renyi divergence.


def renyi_divergence(a: jax.Array, b: jax.Array, alpha: float) -> jax.Array:
    """log(sum(a**alpha * b**(1 - alpha))) / (alpha - 1) of a and b over their totals."""
    if alpha == 0.0:
        return _hartley_divergence(a, b)
    if math.isinf(alpha):
        return _worst_log_ratio(a, b)
    if alpha < 0.5:
        # An order and its complement are the same sum; the larger one is the better conditioned.
        return alpha / (1.0 - alpha) * _renyi_divergence(b, a, 1.0 - alpha)
    return _renyi_divergence(a, b, alpha)


def _hartley_divergence(a: jax.Array, b: jax.Array) -> jax.Array:
    """-log of the mass of b where a is positive."""
    absent = is_zero(a)
    seen = jnp.sum(jnp.where(absent, 0.0, b), axis=-1)
    unseen = jnp.sum(jnp.where(absent, b, 0.0), axis=-1)
    odds = unseen / jnp.where(is_zero(seen), 1.0, seen)
    return jnp.where(is_zero(seen), jnp.inf, log1p(jnp.where(is_zero(seen), 0.0, odds)))


def _worst_log_ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    common = ~is_zero(a) & ~is_zero(b)
    safe_a, safe_b = (jnp.where(common, x, 1.0) for x in (a, b))
    ratios = jnp.where(common, _log_ratio(safe_a, safe_b, safe_a - safe_b), -jnp.inf)
    of_totals = _log_ratio(jnp.sum(a, -1), jnp.sum(b, -1), jnp.sum(a - b, -1))
    value = jnp.maximum(jnp.max(ratios, axis=-1) - of_totals, 0.0)
    return jnp.where(jnp.any(~is_zero(a) & is_zero(b), axis=-1), jnp.inf, value)


@jax.custom_jvp
def _log_ratio(a: jax.Array, b: jax.Array, difference: jax.Array) -> jax.Array:
    """log(a / b) with relative accuracy, given a - b."""
    is_near = jnp.abs(difference) <= 0.5 * b
    near = log1p(jnp.where(is_near, difference / b, 0.0))
    return jnp.where(is_near, near, jnp.log(jnp.where(is_near, 1.0, a / b)))


@_log_ratio.defjvp
def _log_ratio_jvp(primals, tangents):
    a, b, _ = primals
    a_dot, b_dot, _ = tangents
    return _log_ratio(*primals), a_dot / a - b_dot / b


def _bregman(a, b, log_ratio, ratio, alpha: float) -> jax.Array:
    """The excess a * ((a/b)**e - 1) / e + b - a over 0, e = alpha - 1 >= -1/2, given a / b."""
    order, scale = alpha - 1.0, max(1.0, alpha)
    size = scale * jnp.abs(log_ratio)
    is_near = size < (3.0 if alpha < 1.0 else 2.0)
    x = jnp.where(is_near, size, 0.0)
    # From the smaller of the two on, (nearly) all terms of the series have one sign.
    orders = range(2, terms_for(a.dtype, 20, 32))
    rising = [_geometric(alpha / scale, 1.0 / scale, k) / math.factorial(k) for k in orders]
    falling = [
        (scale**-k - (-order / scale) ** (k - 1) / scale) / math.factorial(k) for k in orders
    ]
    near = jnp.where(log_ratio > 0.0, b * polynomial(x, rising), a * polynomial(x, falling)) * (
        x * x
    )
    far = a * deformed_log(jnp.where(is_near, 1.0, ratio), order) + (b - a)
    return jnp.where(is_near, near, far)


def _geometric(x: float, y: float, count: int) -> float:
    """The sum x y**(n-1) + x**2 y**(n-2) + ... + x**(n-1) y, with n the count."""
    return sum(x**k * y ** (count - k) for k in range(1, count))


class _Pair(NamedTuple):
    """What the divergence of an order >= 1/2 and its derivatives are made of."""

    total_a: jax.Array  # [..., 1]
    total_b: jax.Array  # [..., 1]
    a: jax.Array  # [..., V], normalised
    b: jax.Array  # [..., V], normalised
    common: jax.Array  # [..., V], where both are positive
    log_ratio: jax.Array  # [..., V], log(a / b), 0 where not common
    tilt: jax.Array  # [..., V], (a / b)**(alpha - 1) over its mean under a, 0 where not common
    ratio: jax.Array  # [..., V], a / b, 1 where not common
    log_mean: jax.Array  # [..., 1], of (a / b)**(alpha - 1)
    value: jax.Array  # [..., 1]


def _pair(a: jax.Array, b: jax.Array, alpha: float) -> _Pair:
    order = alpha - 1.0
    totals = [blocked_sum(x)[..., None] for x in (a, b)]
    total_a, total_b = (jnp.where(is_zero(total), 1.0, total) for total in totals)
    has_a, has_b = ~is_zero(a), ~is_zero(b)
    common = has_a & has_b
    safe_a, safe_b = (jnp.where(common, x, 1.0) for x in (a, b))
    ratio = jnp.where(common, safe_a / safe_b * (total_b / total_a), 1.0)
    # Near 1, from the difference: what is common to all classes is taken out of that.
    difference, is_kept = _scaled_difference(a, b, total_a / total_b)
    excess = _share_change(b, total_b, difference, two_part.precise_sum) * (total_b / total_a)
    is_near = common & is_kept & (jnp.abs(excess) < 0.5)
    log_ratio = jnp.where(is_near, log1p(jnp.where(is_near, excess, 0.0)), jnp.log(ratio))
    a, b = a / total_a, b / total_b

    # Above this the mean of the powers may be out of range.
    limit = 60.0
    top = jnp.max(order * log_ratio, axis=-1, keepdims=True)
    is_large = top > limit
    capped = jnp.where(is_large, 1.0, ratio)
    terms = jnp.where(common, _bregman(a, b, log_ratio, capped, alpha), jnp.where(has_b, b, 0.0))
    if alpha < 1.0:
        terms = jnp.where(has_a & ~has_b, a * (alpha / (1.0 - alpha)), terms)
    value = blocked_sum(terms)[..., None]
    if order == 0.0:
        log_mean, tilt = jnp.zeros_like(value), jnp.ones_like(a)
    else:
        is_disjoint = ~jnp.any(common, axis=-1, keepdims=True)
        powers = jnp.where(common, power(capped, order), 0.0)
        shrunk = jnp.where(common, jnp.exp(order * log_ratio - jnp.maximum(top, limit)), 0.0)
        mean, shrunk_mean = (blocked_sum(a * x)[..., None] for x in (powers, shrunk))
        is_far = order * value < -0.5
        log_mean = jnp.where(
            is_far,
            jnp.log(jnp.where(is_far & (mean > 0.0), mean, 1.0)),
            log1p(jnp.where(is_far, 0.0, order * value)),
        )
        large = top + jnp.log(jnp.where(is_large, shrunk_mean, 1.0))
        log_mean = jnp.where(is_large, large, log_mean)
        value = jnp.where(is_disjoint, jnp.inf, log_mean / order)
        tilt = powers / jnp.where(mean > 0.0, mean, 1.0)
        tilt = jnp.where(is_large, jnp.exp(order * log_ratio - log_mean), tilt)
    if alpha >= 1.0:
        is_infinite = jnp.any(has_a & ~has_b, axis=-1, keepdims=True)
        value = jnp.where(is_infinite, jnp.inf, value)
        if alpha > 1.0:
            log_mean = jnp.where(is_infinite, jnp.inf, log_mean)
            tilt = jnp.where(is_infinite, 0.0, tilt)
    tilt = jnp.where(common, tilt, 0.0)
    return _Pair(total_a, total_b, a, b, common, log_ratio, tilt, ratio, log_mean, value)


def _scaled_difference(a: jax.Array, b: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference a - scale * b as if rounded once, and where it can be trusted.

    Totals that differ by roundings are as good as equal: the scale is 1.
    """
    info = jnp.finfo(a.dtype)
    is_one = jnp.abs(scale - 1.0) <= 16.0 * float(info.eps)
    scale = jnp.where(is_one, 1.0, scale)
    result, error = two_part.add_all(a, *two_part.exact_products(-scale, b))
    # Below this products of the lower halves are subnormal.
    least = float(info.tiny) * 2.0 ** (info.nmant + 2)
    is_kept = is_one | ((a > least) & (b > least))
    return jnp.where(is_one, a - b, result + error), is_kept


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _renyi_divergence(a: jax.Array, b: jax.Array, alpha: float) -> jax.Array:
    return _pair(a, b, alpha).value[..., 0]


@functools.partial(_renyi_divergence.defjvp, symbolic_zeros=True)
def _renyi_divergence_jvp(alpha, primals, tangents):
    value = _renyi_divergence(*primals, alpha)
    slopes = _renyi_divergence_slopes(*primals, alpha)
    value_dot = sum(dot_tangent(*pair) for pair in zip(slopes, tangents, strict=True))
    return value, broadcast_tangent(value_dot, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _renyi_divergence_slopes(a: jax.Array, b: jax.Array, alpha: float):
    """The derivatives of the divergence with respect to a and b, [..., V] each."""
    order = alpha - 1.0
    pair = _pair(a, b, alpha)
    has_a, has_b = ~is_zero(a), ~is_zero(b)
    is_infinite = pair.value == jnp.inf
    if order == 0.0:
        excess = pair.log_ratio - pair.value
    else:
        excess = _minus_one(order * pair.log_ratio - pair.log_mean, pair.tilt) / order
    excess_b = _minus_one(alpha * pair.log_ratio - pair.log_mean, pair.tilt * pair.ratio)

    # Where one of the two is 0: constants of the normalisation, or no finite derivative.
    only_a, only_b = has_a & ~has_b, has_b & ~has_a
    excess = jnp.where(pair.common, excess, 0.0)
    excess = jnp.where(only_a if alpha < 1.0 else only_b, -1.0 / order if order else 0.0, excess)
    excess_b = jnp.where(pair.common, excess_b, jnp.where(only_b, -1.0, 0.0))
    if alpha >= 1.0:
        to_infinity = jnp.where(only_a, jnp.inf, 0.0)
    else:
        to_infinity = jnp.where(only_b, -jnp.inf, 0.0)
    slope_a = jnp.where(is_infinite, to_infinity, alpha * excess / pair.total_a)
    from_infinity = jnp.where(only_a, -jnp.inf, 0.0)
    return slope_a, jnp.where(is_infinite, from_infinity, -excess_b / pair.total_b)


def _minus_one(exponent: jax.Array, exponential: jax.Array) -> jax.Array:
    """exp(exponent) - 1, given the exponential as well."""
    is_near = jnp.abs(exponent) < 0.5
    return jnp.where(is_near, jnp.expm1(jnp.where(is_near, exponent, 0.0)), exponential - 1.0)


@_renyi_divergence_slopes.defjvp
def _renyi_divergence_slopes_jvp(alpha, primals, tangents):
    (a, b), (a_dot, b_dot) = primals, tangents
    order = alpha - 1.0
    pair, slopes = _pair(a, b, alpha), _renyi_divergence_slopes(a, b, alpha)
    is_finite = pair.value < jnp.inf
    slope_a, slope_b = (jnp.where(is_finite, slope, 0.0) for slope in slopes)
    value_dot = jnp.sum(slope_a * a_dot + slope_b * b_dot, axis=-1, keepdims=True)
    total_dots = [jnp.sum(x, axis=-1, keepdims=True) for x in (a_dot, b_dot)]
    moved = _share_change(a, pair.total_a, a_dot)
    moved -= _share_change(b, pair.total_b, b_dot)
    bend_a = jnp.where(pair.common, pair.tilt * (moved - value_dot), 0.0)
    bend_b = pair.tilt * pair.ratio * (alpha * moved - order * value_dot)
    if alpha == 2.0:
        # The one order whose curvature at a = 0 is neither 0 nor infinite.
        starts = is_zero(a) & ~is_zero(b)
        mean_b = pair.total_a * jnp.exp(pair.log_mean) * jnp.where(starts, pair.b, 1.0)
        bend_a += jnp.where(starts & is_finite, a_dot / jnp.where(is_finite, mean_b, 1.0), 0.0)
    bend_b = jnp.where(pair.common, bend_b, 0.0)
    slope_a_dot = (alpha * bend_a - slope_a * total_dots[0]) / pair.total_a
    slope_b_dot = -(bend_b + slope_b * total_dots[1]) / pair.total_b
    return slopes, tuple(jnp.where(is_finite, dot, 0.0) for dot in (slope_a_dot, slope_b_dot))


def _share_change(p: jax.Array, total: jax.Array, change: jax.Array, add=jnp.sum) -> jax.Array:
    """The relative change of p / total to first order, where p is positive; linear in the change.

    A class with more than half of the mass is the pivot: what it has in common with the others
    cancels before anything is summed. If the total becomes c times as large, the relative change
    is exactly 1/c of the result.
    """
    relative = jnp.where(is_zero(p), 0.0, change / jnp.where(is_zero(p), 1.0, p))
    # More than half by more than the rounding of totals, so that there are never two.
    heavy = p > (0.5 + 2.0 * float(jnp.finfo(p.dtype).eps)) * total
    of_pivot = pivot_entry(relative, heavy)
    others = jnp.where(heavy, 0.0, change - p * of_pivot)
    of_total = add(others, axis=-1)[..., None] / total
    return jnp.where(heavy, 0.0, relative - of_pivot) - of_total


# Mutual information.


class _Table(NamedTuple):
    """A joint distribution [..., K, M] and how its cells stand to independence."""

    total: jax.Array  # [..., 1, 1]
    of_rows: jax.Array  # [..., K, 1], sums
    of_columns: jax.Array  # [..., 1, M], sums
    log_ratio: jax.Array  # [..., K, M], log of joint over product, 0 in empty cells
    value: jax.Array  # [..., 1, 1], the mutual information


def _table(joint: jax.Array) -> _Table:
    # Scaled by a power of two to a total in [1/2, 1).
    plain = jnp.sum(joint, axis=(-2, -1), keepdims=True)
    exponent = jnp.frexp(jnp.where(is_zero(plain), 1.0, plain))[1]
    cells = jnp.ldexp(joint, -exponent)
    rows, columns = two_part.exact_sum(cells), two_part.exact_sum(cells.swapaxes(-2, -1))
    rows, columns = (tuple(x[..., None] for x in rows), tuple(x[..., None, :] for x in columns))
    total = _exact_total(rows[0][..., 0], rows[1][..., 0])
    difference = _difference_of_products(cells, total, rows, columns)

    whole, of_rows, of_columns = (high + low for high, low in (total, rows, columns))
    whole, of_rows, of_columns = (
        jnp.where(is_zero(x), 1.0, x) for x in (whole, of_rows, of_columns)
    )
    common = ~is_zero(cells)
    ratio = jnp.where(common, cells / of_rows * (whole / of_columns), 1.0)
    product = of_rows * of_columns
    is_near = common & (jnp.abs(ratio - 1.0) < 0.5) & ~is_zero(product)
    near = log1p(jnp.where(is_near, difference / jnp.where(is_near, product, 1.0), 0.0))
    log_ratio = jnp.where(is_near, near, jnp.log(ratio))
    independent = ((rows[0] + rows[1]) / whole) * ((columns[0] + columns[1]) / whole)
    terms = _bregman(cells / whole, independent, log_ratio, ratio, 1.0)
    terms = jnp.where(common, terms, independent)
    value = two_part.precise_sum(terms.reshape(*terms.shape[:-2], -1))[..., None, None]
    of_rows, of_columns, whole = (jnp.ldexp(x, exponent) for x in (of_rows, of_columns, whole))
    return _Table(whole, of_rows, of_columns, log_ratio, value)


def _exact_total(x: jax.Array, error: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sum over the last axis of numbers that are two each, as [..., 1, 1]."""
    high, low = two_part.exact_sum(x)
    return high[..., None, None], (low + jnp.sum(error, axis=-1))[..., None, None]


def _difference_of_products(x, whole, rows, columns) -> jax.Array:
    """X * whole - rows * columns, all but x as two numbers each, as if without rounding."""
    products = zip(
        two_part.exact_products(x, whole[0]),
        two_part.exact_products(-rows[0], columns[0]),
        strict=True,
    )
    result, error = two_part.add_all(*itertools.chain(*products))
    error += (x * whole[1] - rows[0] * columns[1]) - rows[1] * columns[0]
    return result + error


@jax.custom_jvp
def mutual_information(joint: jax.Array) -> jax.Array:
    """sum(p * log(p * total / (row * column))) over the last two axes, p over its total."""
    return _table(joint).value[..., 0, 0]


@mutual_information.defjvp
def _mutual_information_jvp(primals, tangents):
    (joint,), (joint_dot,) = primals, tangents
    slope = _mutual_information_slope(joint)
    return mutual_information(joint), jnp.sum(slope * joint_dot, axis=(-2, -1))


@jax.custom_jvp
def _mutual_information_slope(joint: jax.Array) -> jax.Array:
    table = _table(joint)
    return jnp.where(is_zero(joint), 0.0, (table.log_ratio - table.value) / table.total)


@_mutual_information_slope.defjvp
def _mutual_information_slope_jvp(primals, tangents):
    (joint,), (joint_dot,) = primals, tangents
    table, slope = _table(joint), _mutual_information_slope(joint)
    # The tangent of log(cell / row) - log(column / total).
    in_row = _share_change(joint, table.of_rows, joint_dot)
    is_empty = jnp.all(is_zero(joint), axis=-2, keepdims=True)
    columns = jnp.where(is_empty, 0.0, table.of_columns)
    columns_dot = jnp.sum(joint_dot, axis=-2, keepdims=True)
    in_total = _share_change(columns, table.total, columns_dot)
    value_dot = jnp.sum(slope * joint_dot, axis=(-2, -1), keepdims=True)
    total_dot = jnp.sum(joint_dot, axis=(-2, -1), keepdims=True)
    slope_dot = ((in_row - in_total) - value_dot - slope * total_dot) / table.total
    return slope, jnp.where(is_zero(joint), 0.0, slope_dot)
