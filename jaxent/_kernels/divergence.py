"""How far two distributions are apart, from their probabilities.

Every value is a sum of terms of one sign, each with relative accuracy: 0 log 0 is 0, and what is
quadratic in a difference is computed from that difference. A derivative that is infinite where the
value is finite is given as 0, so that no chain rule multiplies 0 by infinity; so is every
derivative in a class that neither of the two has.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float.dtypes import smallest_normal
from jaxent._float.limits import is_zero, log_or_zero, zero_or_inf
from jaxent._float.series import polynomial, terms_for
from jaxent._float.sums import blocked_sum, compute_if_any
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Tangents,
    broadcast_tangent,
    define_jvp,
    dot_tangent,
    scale_tangent,
)
from jaxent._kernels.softmax import pivot_entry, sum_classes

# Kullback-Leibler.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def kl_divergence(log_p: jax.Array, targets: jax.Array, tolerance: float) -> jax.Array:
    """sum(targets (log(targets) - log_p)) over the last axis.

    Inputs that were rounded have relative errors of up to `tolerance`. A negative result that such
    errors explain is 0; derivatives do not change.
    """
    return _kl_divergence(log_p, targets, tolerance, _logs_of_targets)


def _kl_divergence(
    log_p: jax.Array,
    targets: jax.Array,
    tolerance: float,
    terms: Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]],
) -> jax.Array:
    """The divergence from what `terms` makes of the targets, in arithmetic that CPUs fuse."""
    t, log_t, bound = terms(targets)
    value = blocked_sum(t * jnp.minimum(log_t - log_p, bound))

    def size(log_p: jax.Array, targets: jax.Array) -> jax.Array:
        t, log_t, bound = terms(targets)
        return jnp.sum(t * (1.0 + jnp.abs(log_t) + jnp.minimum(jnp.abs(log_p), bound)), axis=-1)

    smallest = -tolerance * compute_if_any(value < 0.0, size, log_p, targets)
    return jnp.where((value < 0.0) & (value >= smallest), 0.0, value)


def _logs_of_targets(targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Targets, their logarithms, finite at 0, and a bound for what they multiply, 0 at 0."""
    log_targets = jnp.log(jnp.maximum(targets, smallest_normal(targets.dtype)))
    return targets, log_targets, zero_or_inf(targets)


@functools.partial(kl_divergence.defjvp, symbolic_zeros=True)
def _kl_divergence_jvp(tolerance: float, primals: Arrays, tangents: Tangents) -> Dual:
    log_p, targets = primals
    log_p_dot, targets_dot = tangents
    value, no_target = kl_divergence(log_p, targets, tolerance), is_zero(targets)
    grad = log_or_zero(targets) - jnp.where(no_target, 0.0, log_p) + 1.0
    grad = jnp.where(no_target, 0.0, grad)
    value_dot = dot_tangent(grad, targets_dot) - dot_tangent(targets, log_p_dot)
    return value, broadcast_tangent(value_dot, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def kl_divergence_with_log_targets(
    log_p: jax.Array, log_targets: jax.Array, tolerance: float
) -> jax.Array:
    """sum(t (log_targets - log_p)) over the last axis, t = exp(log_targets).

    Negative results that rounding explains are 0, as in `kl_divergence`.
    """
    return _kl_divergence(log_p, log_targets, tolerance, _exp_of_log_targets)


def _exp_of_log_targets(log_targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same as `_logs_of_targets`, from the logarithms."""
    low = math.log(smallest_normal(log_targets.dtype))
    finite = jnp.maximum(log_targets, 2.0 * low)
    # CPUs would keep an exponential with two uses in a buffer. So the bound comes from logarithms,
    # and this exponential is not written as that of the derivatives is.
    return jnp.exp(finite), finite, zero_or_inf(jnp.maximum(finite - low, 0.0))


def _targets_and_log_ratio(log_p: jax.Array, log_targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The targets, and log(targets / p) with 0 where there is no target."""
    targets = jnp.exp(log_targets)
    no_target = is_zero(targets)
    log_ratio = jnp.where(no_target, 0.0, log_targets) - jnp.where(no_target, 0.0, log_p)
    return jnp.where(no_target, 0.0, targets), log_ratio


@functools.partial(kl_divergence_with_log_targets.defjvp, symbolic_zeros=True)
def _kl_divergence_with_log_targets_jvp(
    tolerance: float, primals: Arrays, tangents: Tangents
) -> Dual:
    log_p, log_targets = primals
    log_p_dot, log_targets_dot = tangents
    value = kl_divergence_with_log_targets(log_p, log_targets, tolerance)
    targets, log_ratio = _targets_and_log_ratio(log_p, log_targets)
    grad = targets * (log_ratio + 1.0)
    value_dot = dot_tangent(grad, log_targets_dot) - dot_tangent(targets, log_p_dot)
    return value, broadcast_tangent(value_dot, value)


def remaining_probability(log_p: jax.Array) -> jax.Array:
    """1 - sum(exp(log_p)) over the last axis, the largest of them subtracted exactly."""
    classes = jnp.arange(log_p.shape[-1]).reshape(*[1] * (log_p.ndim - 1), -1)
    is_top = classes == jnp.argmax(log_p, axis=-1, keepdims=True)
    top = jnp.sum(jnp.where(is_top, log_p, 0.0), axis=-1)
    return -jnp.expm1(top) - jnp.sum(jnp.where(is_top, 0.0, jnp.exp(log_p)), axis=-1)


# Jensen-Shannon.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def jensen_shannon_divergence(a: jax.Array, b: jax.Array, tolerance: float) -> jax.Array:
    """Mean divergence of a and b from their mean, over the last axis; symmetric bit for bit.

    A result above log(2) that relative errors of the inputs up to `tolerance` explain is log(2).
    """
    # A compiler may contract a product and a sum. Sorted, they are the same for (a, b) and (b, a).
    small, large = jnp.minimum(a, b), jnp.maximum(a, b)
    total = small + large
    u = _relative_difference(large, small)
    is_near = u < 0.5
    # The sum of u**2k / (k (2k - 1)) is (1 + u) log(1 + u) + (1 - u) log(1 - u).
    count = terms_for(a.dtype, 10, 24)
    square = jnp.square(jnp.where(is_near, u, 0.0))
    series = polynomial(square, [1.0 / (k * (2 * k - 1)) for k in range(1, count + 1)])
    far = 0.5 * (
        small * _log_ratio_to_mean(small, large) + large * _log_ratio_to_mean(large, small)
    )
    value = blocked_sum(jnp.where(is_near, 0.25 * total * square * series, far))
    most = math.log(2.0)
    return jnp.where((value > most) & (value <= most * (1.0 + tolerance)), most, value)


def _relative_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """(a - b) / (a + b), and 0 where both are 0."""
    a, b = _scale_up(a), _scale_up(b)
    total = jnp.where(is_zero(a + b), 1.0, a + b)
    return (a - b) / total


def _scale_up(p: jax.Array) -> jax.Array:
    """Probabilities times a power of two, so that differences of small ones are not subnormal."""
    return p * 2.0 ** (jnp.finfo(p.dtype).maxexp // 2)


@functools.partial(jensen_shannon_divergence.defjvp, symbolic_zeros=True)
def _jensen_shannon_divergence_jvp(tolerance: float, primals: Arrays, tangents: Tangents) -> Dual:
    (a, b), (a_dot, b_dot) = primals, tangents
    value = jensen_shannon_divergence(a, b, tolerance)
    value_dot = dot_tangent(_log_ratio_to_mean(a, b), a_dot)
    value_dot += dot_tangent(_log_ratio_to_mean(b, a), b_dot)
    return value, broadcast_tangent(0.5 * value_dot, value)


@jax.custom_jvp
def _log_ratio_to_mean(a: jax.Array, b: jax.Array) -> jax.Array:
    """log(2a / (a + b)) per element, and 0 where a is 0."""
    positive = jnp.where(is_zero(a), 1.0, a)
    total = jnp.where(is_zero(a), 1.0, a + b)
    u = jnp.where(is_zero(a), 0.0, _relative_difference(a, b))
    is_near = jnp.abs(u) < 0.5
    near = log1p(jnp.where(is_near, u, 0.0))
    return jnp.where(is_near, near, jnp.log(2.0 * (positive / total)))


@_log_ratio_to_mean.defjvp
def _log_ratio_to_mean_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (a, b), (a_dot, b_dot) = primals, tangents
    total = jnp.where(is_zero(a + b), 1.0, a + b)
    from_a = jnp.where(is_zero(a), 0.0, b / total * a_dot / jnp.where(is_zero(a), 1.0, a))
    from_b = jnp.where(is_zero(a + b), 0.0, b_dot / total)
    return _log_ratio_to_mean(a, b), from_a - from_b


# Total variation.


@jax.custom_jvp
def total_variation(a: jax.Array, b: jax.Array) -> jax.Array:
    """sum(|a - b|) / 2 over the last axis, with derivative 0 where a equals b."""
    return 0.5 * blocked_sum(jnp.abs(a - b))


@total_variation.defjvp
def _total_variation_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (a, b), (a_dot, b_dot) = primals, tangents
    sign = _sign_of_difference(a, b)
    return total_variation(a, b), 0.5 * jnp.sum(sign * (a_dot - b_dot), axis=-1)


def _sign_of_difference(a: jax.Array, b: jax.Array) -> jax.Array:
    """1, 0 or -1 where a is above, at or below b, also where a - b is subnormal."""
    return (a > b).astype(a.dtype) - (a < b).astype(a.dtype)


# Hellinger.


@jax.custom_jvp
def hellinger(a: jax.Array, b: jax.Array) -> jax.Array:
    """sqrt(sum((sqrt(a) - sqrt(b))**2) / 2) over the last axis."""
    return _distance_and_direction(a, b)[0]


def _distance_and_direction(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`hellinger`, and sqrt(a) - sqrt(b) [..., V] scaled to length 1, or 0 where a equals b."""
    a, b = _scale_up(a), _scale_up(b)
    roots = jnp.sqrt(a) + jnp.sqrt(b)
    difference = jnp.where(roots > 0.0, (a - b) / jnp.where(roots > 0.0, roots, 1.0), 0.0)
    # Divided by the largest: squares of small numbers may be out of range.
    largest = jnp.max(jnp.abs(difference), axis=-1, keepdims=True)
    largest = jnp.where(is_zero(largest), 0.0, largest)
    scaled = jnp.where(largest > 0.0, difference / jnp.where(largest > 0.0, largest, 1.0), 0.0)
    square = blocked_sum(jnp.square(scaled))
    direction = scaled / jnp.sqrt(jnp.where(square > 0.0, square, 1.0))[..., None]
    # The root of what `_scale_up` multiplied by.
    largest = largest[..., 0] / 2.0 ** (jnp.finfo(a.dtype).maxexp // 4)
    return largest * jnp.sqrt(0.5 * square), direction


@jax.custom_jvp
def _hellinger_grad_a(a: jax.Array, b: jax.Array) -> jax.Array:
    """The derivative of `hellinger` in a: direction / sqrt(8a), and 0 where a equals b or is 0."""
    return _divide_by_root(_distance_and_direction(a, b)[1], a)


def _divide_by_root(x: jax.Array, a: jax.Array) -> jax.Array:
    """`x / sqrt(8a)`, and 0 where a is 0."""
    positive = jnp.where(is_zero(a), 1.0, a)
    return jnp.where(is_zero(a), 0.0, math.sqrt(0.125) * x / jnp.sqrt(positive))


@functools.partial(_hellinger_grad_a.defjvp, symbolic_zeros=True)
def _hellinger_grad_a_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    (a, b), (a_dot, b_dot) = primals, tangents
    grad = _hellinger_grad_a(a, b)
    value, direction = _distance_and_direction(a, b)
    is_apart = ~is_zero(value)[..., None]
    inverse = jnp.where(is_apart, 1.0 / jnp.where(is_apart, value[..., None], 1.0), 0.0)
    # The tangent of (sqrt(a) - sqrt(b)) / sqrt(2), the vector whose length is the distance.
    vector_dot = scale_tangent(_divide_by_root(jnp.ones_like(a), a), a_dot)
    vector_dot -= scale_tangent(_divide_by_root(jnp.ones_like(b), b), b_dot)
    direction_dot = _orthogonal_part(broadcast_tangent(vector_dot, a), direction) * inverse
    positive = jnp.where(is_zero(a), 1.0, a)
    grad_dot = _divide_by_root(direction_dot, a)
    grad_dot -= 0.5 * (grad * scale_tangent(1.0 / positive, a_dot))
    return grad, broadcast_tangent(grad_dot, grad)


define_jvp(hellinger, _hellinger_grad_a, lambda a, b: _hellinger_grad_a(b, a), product=dot_tangent)


def _orthogonal_part(x: jax.Array, direction: jax.Array) -> jax.Array:
    """`x` less its component along a unit vector; linear in x, and its own transpose.

    An entry that makes up most of the direction is the pivot: its result comes from the squares of
    the others, since 1 minus its own square would cancel.
    """
    squares = jnp.square(direction)
    is_pivot = squares > 0.5
    rest = sum_classes(jnp.where(is_pivot, 0.0, squares))
    of_pivot = pivot_entry(direction * x, is_pivot)
    of_others = sum_classes(jnp.where(is_pivot, 0.0, direction * x))
    at_pivot = rest * x - direction * of_others
    return jnp.where(is_pivot, at_pivot, x - direction * (of_pivot + of_others))
