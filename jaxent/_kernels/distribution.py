"""Entropies of distributions, and distances between two of them, from their probabilities.

Every value is a sum of terms of one sign, each with relative accuracy: 0 log 0 is 0, and what is
quadratic in a difference is computed from that difference. A derivative that is infinite where the
value is finite is given as 0, so that no chain rule meets 0 * inf; so is every derivative along a
class that neither of two distributions has. Subnormal numbers count as 0, since some processors
take them for that.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float.series import polynomial, terms_for
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._float.two_part import split_number
from jaxent._kernels.softmax import pivot_entry, sum_classes


def is_zero(p: jax.Array) -> jax.Array:
    """Whether an entry is too small to divide by; false for NaN."""
    return p < float(jnp.finfo(p.dtype).smallest_normal)


def log_or_zero(p: jax.Array) -> jax.Array:
    """log(p), and 0 with derivative 0 where p is 0."""
    return jnp.log(jnp.where(is_zero(p), 1.0, p))


def enlarged(p: jax.Array) -> jax.Array:
    """Probabilities times a power of two, so that differences of small ones are not subnormal."""
    return p * 2.0 ** (jnp.finfo(p.dtype).maxexp // 2)


def rest_of(log_p: jax.Array) -> jax.Array:
    """1 - sum(exp(log_p)) over the last axis, the largest of them subtracted exactly."""
    classes = jnp.arange(log_p.shape[-1]).reshape(*[1] * (log_p.ndim - 1), -1)
    on_top = classes == jnp.argmax(log_p, axis=-1, keepdims=True)
    top = jnp.sum(jnp.where(on_top, log_p, 0.0), axis=-1)
    return -jnp.expm1(top) - jnp.sum(jnp.where(on_top, 0.0, jnp.exp(log_p)), axis=-1)


# One distribution.


@jax.custom_jvp
def shannon(p: jax.Array) -> jax.Array:
    """-sum(p * log(p)) over the last axis."""
    return blocked_sum(p * (0.0 - log_or_zero(p)))


@shannon.defjvp
def _shannon_jvp(primals, tangents):
    (p,), (p_dot,) = primals, tangents
    slope = jnp.where(is_zero(p), 0.0, -1.0 - log_or_zero(p))
    return shannon(p), jnp.sum(slope * p_dot, axis=-1)


@jax.custom_jvp
def bernoulli_entropy(p: jax.Array) -> jax.Array:
    """-(p * log(p) + (1 - p) * log(1 - p)) per element."""
    rest = 1.0 - p
    surprise_of_rest = 0.0 - log1p(-jnp.where(rest > 0.0, p, 0.0))
    return p * (0.0 - log_or_zero(p)) + rest * surprise_of_rest


@bernoulli_entropy.defjvp
def _bernoulli_entropy_jvp(primals, tangents):
    (p,), (p_dot,) = primals, tangents
    return bernoulli_entropy(p), _log_odds_against(p) * p_dot


@jax.custom_jvp
def _log_odds_against(p: jax.Array) -> jax.Array:
    """log((1 - p) / p), and 0 where p is 0 or 1."""
    inner = _uncertain(p)
    # 1 - 2p is exact from 1/4 on; near 1/2 the two logarithms would cancel.
    near = jnp.abs(inner - 0.5) <= 0.25
    odds = jnp.where(near, (1.0 - 2.0 * inner) / inner, 0.0)
    return jnp.where(near, log1p(odds), log1p(-inner) - jnp.log(inner))


@_log_odds_against.defjvp
def _log_odds_against_jvp(primals, tangents):
    (p,), (p_dot,) = primals, tangents
    inner = _uncertain(p)
    slope_dot = p_dot / inner / (inner - 1.0)
    return _log_odds_against(p), jnp.where(is_zero(p) | (p == 1.0), 0.0, slope_dot)


def _uncertain(p: jax.Array) -> jax.Array:
    """`p`, and 1/2 where it is 0 or 1."""
    return jnp.where(is_zero(p) | (p == 1.0), 0.5, p)


# Kullback-Leibler.


def _not_barely_negative(value: jax.Array, size: jax.Array, slack: float) -> jax.Array:
    """`value`, and 0 where it is negative by no more than `slack` of the size of its terms."""
    return jnp.where((value < 0.0) & (value >= -slack * size), 0.0, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def kullback_leibler(log_p: jax.Array, targets: jax.Array, slack: float) -> jax.Array:
    """sum(targets * (log(targets) - log_p)) over the last axis.

    Inputs that were rounded may be off by a relative `slack`. A result that is negative by no more
    than such errors explain is 0; derivatives are not concerned.
    """
    log_targets = log_or_zero(targets)
    seen = jnp.where(is_zero(targets), 0.0, log_p)
    size = jnp.sum(targets * (1.0 + jnp.abs(log_targets) + jnp.abs(seen)), axis=-1)
    value = blocked_sum(targets * (log_targets - seen))
    return _not_barely_negative(value, size, slack)


@functools.partial(kullback_leibler.defjvp, symbolic_zeros=True)
def _kullback_leibler_jvp(slack, primals, tangents):
    log_p, targets = primals
    log_p_dot, targets_dot = tangents
    value = kullback_leibler(log_p, targets, slack)
    absent = is_zero(targets)
    slope = jnp.where(absent, 0.0, log_or_zero(targets) - jnp.where(absent, 0.0, log_p) + 1.0)
    value_dot = dot_tangent(slope, targets_dot) - dot_tangent(targets, log_p_dot)
    return value, broadcast_tangent(value_dot, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def log_kullback_leibler(log_p: jax.Array, log_targets: jax.Array, slack: float) -> jax.Array:
    """sum(t * (log_targets - log_p)) over the last axis, t = exp(log_targets).

    Barely negative results are 0, as in `kullback_leibler`.
    """
    targets, difference = _log_ratio_to_targets(log_p, log_targets)
    seen_p, seen_targets = (jnp.where(targets > 0.0, a, 0.0) for a in (log_p, log_targets))
    size = jnp.sum(targets * (1.0 + jnp.abs(seen_p) + jnp.abs(seen_targets)), axis=-1)
    return _not_barely_negative(blocked_sum(targets * difference), size, slack)


def _log_ratio_to_targets(log_p, log_targets) -> tuple[jax.Array, jax.Array]:
    """The targets and log(targets / p), 0 where there is no target."""
    targets = jnp.exp(log_targets)
    absent = is_zero(targets)
    difference = jnp.where(absent, 0.0, log_targets) - jnp.where(absent, 0.0, log_p)
    return jnp.where(absent, 0.0, targets), difference


@functools.partial(log_kullback_leibler.defjvp, symbolic_zeros=True)
def _log_kullback_leibler_jvp(slack, primals, tangents):
    log_p, log_targets = primals
    log_p_dot, log_targets_dot = tangents
    value = log_kullback_leibler(log_p, log_targets, slack)
    targets, difference = _log_ratio_to_targets(log_p, log_targets)
    slope = targets * (difference + 1.0)
    value_dot = dot_tangent(slope, log_targets_dot) - dot_tangent(targets, log_p_dot)
    return value, broadcast_tangent(value_dot, value)


# Jensen-Shannon.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def jensen_shannon(a: jax.Array, b: jax.Array, slack: float) -> jax.Array:
    """Mean divergence of a and b from their mean, over the last axis; symmetric bit for bit.

    A result above log(2) by no more than the relative `slack` of rounded inputs is log(2).
    """
    # Products and sums may be contracted: sorted, they are so in one way.
    small, large = jnp.minimum(a, b), jnp.maximum(a, b)
    total = small + large
    spread = _spread(large, small)
    is_near = spread < 0.5
    # sum of spread**2k / (k (2k - 1)), which is (1+u) log(1+u) + (1-u) log(1-u).
    count = terms_for(a.dtype, 10, 24)
    near = jnp.square(jnp.where(is_near, spread, 0.0))
    series = polynomial(near, [1.0 / (k * (2 * k - 1)) for k in range(1, count + 1)])
    far = 0.5 * (small * _log_share(small, large) + large * _log_share(large, small))
    value = blocked_sum(jnp.where(is_near, 0.25 * total * near * series, far))
    most = math.log(2.0)
    return jnp.where((value > most) & (value <= most * (1.0 + slack)), most, value)


def _spread(a: jax.Array, b: jax.Array) -> jax.Array:
    """(a - b) / (a + b), and 0 where both are 0."""
    a, b = enlarged(a), enlarged(b)
    total = jnp.where(is_zero(a + b), 1.0, a + b)
    return (a - b) / total


@functools.partial(jensen_shannon.defjvp, symbolic_zeros=True)
def _jensen_shannon_jvp(slack, primals, tangents):
    a, b = primals
    a_dot, b_dot = tangents
    value = jensen_shannon(a, b, slack)
    value_dot = dot_tangent(_log_share(a, b), a_dot) + dot_tangent(_log_share(b, a), b_dot)
    return value, broadcast_tangent(0.5 * value_dot, value)


@jax.custom_jvp
def _log_share(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(2a / (a + b)) per element, and 0 where a is 0."""
    present = jnp.where(is_zero(a), 1.0, a)
    total = jnp.where(is_zero(a), 1.0, a + b)
    spread = jnp.where(is_zero(a), 0.0, _spread(a, b))
    is_near = jnp.abs(spread) < 0.5
    near = log1p(jnp.where(is_near, spread, 0.0))
    return jnp.where(is_near, near, jnp.log(2.0 * (present / total)))


@_log_share.defjvp
def _log_share_jvp(primals, tangents):
    (a, b), (a_dot, b_dot) = primals, tangents
    total = jnp.where(is_zero(a + b), 1.0, a + b)
    from_a = jnp.where(is_zero(a), 0.0, b / total * a_dot / jnp.where(is_zero(a), 1.0, a))
    from_b = jnp.where(is_zero(a + b), 0.0, b_dot / total)
    return _log_share(a, b), from_a - from_b


# Distances.


@jax.custom_jvp
def total_variation(a: jax.Array, b: jax.Array) -> jax.Array:
    """sum(|a - b|) / 2 over the last axis, with slope 0 where a equals b."""
    return 0.5 * blocked_sum(jnp.abs(a - b))


@total_variation.defjvp
def _total_variation_jvp(primals, tangents):
    (a, b), (a_dot, b_dot) = primals, tangents
    return total_variation(a, b), 0.5 * jnp.sum(_sign(a, b) * (a_dot - b_dot), axis=-1)


def _sign(a: jax.Array, b: jax.Array) -> jax.Array:
    """1, 0 or -1 where a is above, at or below b; their difference may be subnormal."""
    return (a > b).astype(a.dtype) - (a < b).astype(a.dtype)


@jax.custom_jvp
def hellinger(a: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(sum((sqrt(a) - sqrt(b))**2) / 2) over the last axis."""
    return _distance_and_direction(a, b)[0]


def _distance_and_direction(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`hellinger` and the difference of the square roots [..., V], scaled to length 1 or 0."""
    a, b = enlarged(a), enlarged(b)
    roots = jnp.sqrt(a) + jnp.sqrt(b)
    difference = jnp.where(roots > 0.0, (a - b) / jnp.where(roots > 0.0, roots, 1.0), 0.0)
    # Squares of small numbers may be out of range.
    largest = jnp.max(jnp.abs(difference), axis=-1, keepdims=True)
    largest = jnp.where(is_zero(largest), 0.0, largest)
    scaled = jnp.where(largest > 0.0, difference / jnp.where(largest > 0.0, largest, 1.0), 0.0)
    square = blocked_sum(jnp.square(scaled))
    direction = scaled / jnp.sqrt(jnp.where(square > 0.0, square, 1.0))[..., None]
    reduced = largest[..., 0] / 2.0 ** (jnp.finfo(a.dtype).maxexp // 4)
    return reduced * jnp.sqrt(0.5 * square), direction


@functools.partial(hellinger.defjvp, symbolic_zeros=True)
def _hellinger_jvp(primals, tangents):
    a, b = primals
    a_dot, b_dot = tangents
    value = hellinger(a, b)
    value_dot = dot_tangent(_hellinger_slope(a, b), a_dot)
    value_dot += dot_tangent(_hellinger_slope(b, a), b_dot)
    return value, broadcast_tangent(value_dot, value)


def _over_root(x: jax.Array, a: jax.Array) -> jax.Array:
    """`x / sqrt(8 a)`, and 0 where a is 0: x * d sqrt(a/2) / da."""
    present = jnp.where(is_zero(a), 1.0, a)
    return jnp.where(is_zero(a), 0.0, math.sqrt(0.125) * x / jnp.sqrt(present))


@jax.custom_jvp
def _hellinger_slope(a: jax.Array, b: jax.Array) -> jax.Array:
    """The derivative of `hellinger` with respect to a, 0 where a equals b or a is 0."""
    return _over_root(_distance_and_direction(a, b)[1], a)


@functools.partial(_hellinger_slope.defjvp, symbolic_zeros=True)
def _hellinger_slope_jvp(primals, tangents):
    a, b = primals
    a_dot, b_dot = tangents
    slope = _hellinger_slope(a, b)
    value, direction = _distance_and_direction(a, b)
    differ = ~is_zero(value)[..., None]
    inverse = jnp.where(differ, 1.0 / jnp.where(differ, value[..., None], 1.0), 0.0)
    moved = scale_tangent(_over_root(jnp.ones_like(a), a), a_dot)
    moved -= scale_tangent(_over_root(jnp.ones_like(b), b), b_dot)
    turned = _over_root(_perpendicular(direction, broadcast_tangent(moved, a)) * inverse, a)
    present = jnp.where(is_zero(a), 1.0, a)
    slope_dot = turned - 0.5 * (slope * scale_tangent(1.0 / present, a_dot))
    return slope, broadcast_tangent(slope_dot, slope)


def _perpendicular(direction: jax.Array, x: jax.Array) -> jax.Array:
    """The part of x that is perpendicular to a unit vector; linear in x, and symmetric.

    An entry that makes up most of the direction is the pivot: what is left of it is computed from
    the squares of the others.
    """
    squares = jnp.square(direction)
    is_pivot = squares > 0.5
    rest = sum_classes(jnp.where(is_pivot, 0.0, squares))
    of_pivot = pivot_entry(direction * x, is_pivot)
    of_others = sum_classes(jnp.where(is_pivot, 0.0, direction * x))
    at_pivot = rest * x - direction * of_others
    return jnp.where(is_pivot, at_pivot, x - direction * (of_pivot + of_others))


def raised(base: float | None, x: jax.Array) -> jax.Array:
    """`base` to the power x, per element; None is e."""
    if base is None:
        return jnp.exp(x)
    # What rounding takes from the base would be multiplied by x.
    rounded, error = split_number(base, x.dtype)
    return jnp.power(rounded, x) * jnp.exp(math.log1p(error / rounded) * x)
