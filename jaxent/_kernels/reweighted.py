"""Cross-entropies that weigh an example by how likely its label is already, and their kin."""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._float.two_part import two_diff
from jaxent._kernels.cross_entropy import label_cross_entropy
from jaxent._kernels.sigmoid import absolute, sigmoid, softplus
from jaxent._kernels.soft_cross_entropy import soft_cross_entropy
from jaxent._kernels.softmax import (
    max_and_log_sum_over_max,
    max_and_shift,
    softmax_and_complement,
    sum_classes,
)
from jaxent._parallel import AxisName, psum, take_label


def _known(number: float | None, array: jax.Array | None) -> Any:
    """An exponent, given as a constant of the program or as an array."""
    return number if array is None else array


def _power(base: jax.Array, exponent: float | jax.Array) -> jax.Array:
    """base**exponent for 0 <= base <= 1; cheap for a small multiple of 1/2 from 0 up."""
    is_number = isinstance(exponent, float)
    if is_number and 0.0 <= exponent <= 8.0 and (2.0 * exponent).is_integer():
        whole = jax.lax.integer_pow(base, int(exponent))
        return whole if exponent.is_integer() else whole * jnp.sqrt(base)
    return jax.lax.pow(base, jnp.full(base.shape, exponent, base.dtype))


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    """The product, and 0 where either is, however large the other."""
    is_zero = (a == 0.0) | (b == 0.0)
    return jnp.where(is_zero, 0.0, a) * jnp.where(is_zero, 0.0, b)


def _tiny(x: jax.Array) -> float:
    """The smallest normal number: what is below may be flushed to 0, and has no inverse."""
    return float(jnp.finfo(x.dtype).tiny)


def _alternating(u: jax.Array, weight: Callable[[int], int]) -> jax.Array:
    """The sum over n of weight(n) (-u)**n / (n + 2)! for 0 <= u <= 1."""
    total = jnp.zeros_like(u)
    for n in reversed(range(10 if u.dtype == jnp.float32 else 18)):
        total = weight(n) / math.factorial(n + 2) - u * total
    return total


def _beyond(x: jax.Array) -> jax.Array:
    """How far x exceeds 1 - exp(-x), for x >= 0: half of the square of a small one."""
    is_small = x < 1.0
    small, large = jnp.where(is_small, x, 0.0), jnp.where(is_small, 1.0, x)
    series = jnp.square(small) * _alternating(small, lambda n: 1)
    return jnp.where(is_small, series, (large - 1.0) + jnp.exp(-large))


def _fall(x: jax.Array) -> jax.Array:
    """1 - exp(-x) for x >= 0, where expm1 of the compiler for CPUs loses two bits."""
    is_small = x < 0.5
    small = jnp.where(is_small, x, 0.0)
    return jnp.where(is_small, small - _beyond(small), 1.0 - jnp.exp(-x))


def _difference(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded difference, and what is missing from it: 0 if it is infinite."""
    rounded = a - b
    is_finite = jnp.abs(rounded) < jnp.inf
    a, b = (jnp.where(is_finite, each, 0.0) for each in (a, b))
    return rounded, two_diff(a, b)[1]


# The focal loss of a yes/no target: w**gamma c, with c the cross-entropy and w the probability of
# the wrong answer. Powers are never differentiated: the slope is w**gamma (c' + gamma w'/w c).


class _Focal(NamedTuple):
    """What the focal loss is made of. Derivatives are in |x|; e = exp(-|x|).

    The target's weight of the answer that the logit speaks against is `far`, that of the other
    `near`, and total = far + near e.
    """

    size: jax.Array  # |x|
    decay: jax.Array  # e
    settled: jax.Array  # sigmoid(|x|)
    loss: jax.Array  # c
    steepness: jax.Array  # c'
    wrong: jax.Array  # w = total sigmoid(|x|)
    log_wrong: jax.Array  # log(w)
    rate: jax.Array  # w'/w
    drift: jax.Array  # c w'/w
    far_share: jax.Array  # far / total
    near_share: jax.Array  # near e / total
    ratio: jax.Array  # c / total
    held: jax.Array  # c e / total


def _focal(x: jax.Array, target: jax.Array) -> _Focal:
    """The parts for `target`, the weight of "yes" in [0, 1]."""
    size = absolute(x)
    decay = jnp.exp(-size)
    settled = 1.0 / (1.0 + decay)
    is_yes = x >= 0.0
    far, near = jnp.where(is_yes, 1.0 - target, target), jnp.where(is_yes, target, 1.0 - target)
    excess = jnp.log1p(decay)
    loss = jnp.where(far == 0.0, 0.0, size) * far + excess
    total = far + near * decay
    # Without `far`, e cancels from the quotients; it may have underflowed.
    is_sure = far < _tiny(x)
    divisor = jnp.where(is_sure, 1.0, total)
    shrink = jnp.where(is_sure, 1.0, decay / divisor)
    held = _product(shrink, loss)
    # far - near; these two are rounded, and would cancel.
    lean = settled * jnp.where(is_yes, 1.0 - 2.0 * target, 2.0 * target - 1.0)
    has_decay = decay >= _tiny(x)
    sure_ratio = jnp.where(has_decay, excess, 1.0) / jnp.where(has_decay, decay, 1.0)
    return _Focal(
        size=size,
        decay=decay,
        settled=settled,
        loss=loss,
        steepness=settled * (far - near * decay),
        wrong=total * settled,
        log_wrong=jnp.where(is_sure, -size, jnp.log(divisor)) - excess,
        rate=lean * shrink,
        drift=lean * held,
        far_share=jnp.where(is_sure, 0.0, far / divisor),
        near_share=near * shrink,
        ratio=jnp.where(is_sure, sure_ratio, loss / divisor),
        held=held,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def focal_binary_cross_entropy(number: float | None, x, target, gamma=None) -> jax.Array:
    """The focal loss per element of a logit and a target in [0, 1].

    The exponent is `number`, which costs less, or the scalar array `gamma` if that is None.
    """
    parts = _focal(x, target)
    weight = _power(parts.wrong, _known(number, gamma))
    # The weight of an infinite loss is positive on paper, and may still have underflowed.
    is_infinite = parts.loss == jnp.inf
    return jnp.where(is_infinite, jnp.inf, weight * jnp.where(is_infinite, 0.0, parts.loss))


@functools.partial(focal_binary_cross_entropy.defjvp, symbolic_zeros=True)
def _focal_binary_cross_entropy_jvp(number, primals, tangents):
    x_dot, target_dot, gamma_dot = tangents
    loss = focal_binary_cross_entropy(number, *primals)
    loss_dot = scale_tangent(_focal_slope(number, *primals), x_dot)
    if not isinstance(target_dot, SymbolicZero):
        base, pull = _focal_label_slopes(number, *primals)
        # Apart, since their sum may overflow where what it is multiplied with does not.
        factor = jax.lax.stop_gradient(_known(number, primals[2]))
        loss_dot += base * target_dot + pull * (factor * target_dot)
    if not (primals[2] is None or isinstance(gamma_dot, SymbolicZero)):
        loss_dot += _focal_gamma_slope(*primals) * gamma_dot
    return loss, broadcast_tangent(loss_dot, loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _focal_slope(number, x, target, gamma) -> jax.Array:
    """The derivative of the focal loss in the logit."""
    exponent = _known(number, gamma)
    parts = _focal(x, target)
    slope = _power(parts.wrong, exponent) * (parts.steepness + exponent * parts.drift)
    return jnp.where(x >= 0.0, slope, -slope)


@functools.partial(_focal_slope.defjvp, symbolic_zeros=True)
def _focal_slope_jvp(number, primals, tangents):
    x, target, gamma = primals
    x_dot, target_dot, gamma_dot = tangents
    exponent = _known(number, gamma)
    slope = _focal_slope(number, x, target, gamma)
    parts = _focal(x, target)
    weight = _power(parts.wrong, exponent)
    slope_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        bell = parts.decay * parts.settled  # sigmoid(-|x|)
        turn = exponent * parts.rate + bell - parts.far_share
        bend = 2.0 * parts.rate * parts.steepness + parts.drift * turn
        slope_dot += weight * (bell * parts.settled + exponent * bend) * x_dot
    if not isinstance(target_dot, SymbolicZero):
        slope_dot += _focal_cross_slope(exponent, parts) * target_dot
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        slope_dot += _focal_gamma_of_slope(gamma, x, parts, slope) * gamma_dot
    return slope, broadcast_tangent(slope_dot, slope)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _focal_label_slopes(number, x, target, gamma) -> tuple[jax.Array, jax.Array]:
    """The derivative of the focal loss in the target, as a base plus gamma times a pull.

    It is w**gamma (-x + gamma c dw/dt / w). Here and below, dw/dt = -tanh(x / 2), which is
    -+(1 - e) sigmoid(|x|), is constant in t. The rule gives the base the derivatives of the whole
    sum, those through the factor gamma as well.
    """
    exponent = _known(number, gamma)
    parts = _focal(x, target)
    weight = _long_power(parts, exponent)
    base, pull = _product(weight, parts.size), _label_pull(parts, weight)
    return jnp.where(x >= 0.0, -base, base), jnp.where(x >= 0.0, -pull, pull)


@functools.partial(_focal_label_slopes.defjvp, symbolic_zeros=True)
def _focal_label_slopes_jvp(number, primals, tangents):
    x, target, gamma = primals
    x_dot, target_dot, gamma_dot = tangents
    exponent = _known(number, gamma)
    base, pull = _focal_label_slopes(number, x, target, gamma)
    parts = _focal(x, target)
    slope_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        slope_dot += _focal_cross_slope(exponent, parts) * x_dot
    if not isinstance(target_dot, SymbolicZero):
        slope_dot += _focal_label_curvature(exponent, parts) * target_dot
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        slope = base + gamma * pull
        slope_dot += _focal_gamma_of_label_slope(gamma, x, parts, slope) * gamma_dot
    return (base, pull), (broadcast_tangent(slope_dot, base), jnp.zeros_like(pull))


@jax.custom_jvp
def _focal_gamma_slope(x, target, gamma) -> jax.Array:
    """The derivative of the focal loss in gamma, w**gamma c log(w)."""
    return _product(focal_binary_cross_entropy(None, x, target, gamma), _focal(x, target).log_wrong)


@functools.partial(_focal_gamma_slope.defjvp, symbolic_zeros=True)
def _focal_gamma_slope_jvp(primals, tangents):
    x, target, gamma = primals
    x_dot, target_dot, gamma_dot = tangents
    result = _focal_gamma_slope(x, target, gamma)
    parts = _focal(x, target)
    result_dot = scale_tangent(_product(result, parts.log_wrong), gamma_dot)
    if not isinstance(x_dot, SymbolicZero):
        slope = _focal_slope(None, x, target, gamma)
        result_dot += _focal_gamma_of_slope(gamma, x, parts, slope) * x_dot
    if not isinstance(target_dot, SymbolicZero):
        base, pull = _focal_label_slopes(None, x, target, gamma)
        slope = base + gamma * pull
        result_dot += _focal_gamma_of_label_slope(gamma, x, parts, slope) * target_dot
    return result, broadcast_tangent(result_dot, result)


def _focal_gamma_of_slope(gamma, x, parts: _Focal, slope) -> jax.Array:
    """The second derivative of the focal loss, in gamma and the logit."""
    drift = jnp.where(x >= 0.0, parts.drift, -parts.drift)
    return _product(slope, parts.log_wrong) + _power(parts.wrong, gamma) * drift


def _focal_gamma_of_label_slope(gamma, x, parts: _Focal, slope) -> jax.Array:
    """The second derivative of the focal loss, in gamma and the target."""
    pull = _label_pull(_with_finite_ratio(parts), _long_power(parts, gamma))
    return _product(slope, parts.log_wrong) + jnp.where(x >= 0.0, -pull, pull)


def _focal_label_curvature(exponent, parts: _Focal) -> jax.Array:
    """The second derivative of the focal loss in the target.

    It is gamma w**gamma r (2 |x| + (gamma - 1) c r), with r = |dw/dt| / w. Neither w nor c bends
    in t. For gamma < 1 the second term takes away little more than half of the first. One power of
    w is gone with one r: their quotient may underflow, or have no inverse.
    """
    fall = _fall(parts.size)
    weight = _long_power(parts, exponent - 1.0) * (parts.settled * fall)
    weight = _product(jnp.full_like(weight, exponent), weight)
    bend = (exponent - 1.0) * (_with_finite_ratio(parts).ratio * fall)
    return 2.0 * _product(weight, parts.size + 0.5 * bend)


def _label_pull(parts: _Focal, weight) -> jax.Array:
    """The product of `weight` and c |dw/dt| / w."""
    return _product(weight, parts.ratio) * _fall(parts.size)


def _with_finite_ratio(parts: _Focal) -> _Focal:
    """The same but for an infinite ratio, which would meet a 0 or one of the other sign."""
    return parts._replace(ratio=jnp.where(parts.ratio == jnp.inf, 0.0, parts.ratio))


def _focal_cross_slope(exponent, parts: _Focal) -> jax.Array:
    """The second derivative of the focal loss, in the target and the logit."""
    ratio = _with_finite_ratio(parts).ratio
    turn = parts.settled * (parts.far_share - parts.near_share) + ratio * parts.near_share
    lever = exponent * ratio * parts.rate + turn
    pull = _product(parts.rate, parts.size) + lever * _fall(parts.size) + parts.held
    return -_long_power(parts, exponent) * (1.0 + exponent * pull)


def _long_power(parts: _Focal, exponent) -> jax.Array:
    """w**exponent also where w, but not its power, is too small for a floating point number."""
    size = _product(jnp.full_like(parts.size, exponent), parts.size)
    is_small = parts.wrong < _tiny(parts.wrong)
    power = _power(jnp.where(is_small, 1.0, parts.wrong), exponent)
    return jnp.where(is_small, jnp.exp(-size), power)


# Losses that are functions of the cross-entropy L = -log(p) against one class. Their derivatives
# take p from the logits: exp(-L) inherits the rounding of L, many units in the last place.


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 4))
def label_power(
    number: float | None, x, labels, exponent=None, axis_name: AxisName = None
) -> jax.Array:
    """softmax(x)[labels] to a power in [0, 1], over the last axis.

    The exponent is `number`, with all of its digits, or the scalar array `exponent` if that is
    None.

    That is exp(-exponent * distance) times a power of a quotient near 1, with the distance of the
    label to the top of the row as a sum of two numbers. The factors of the first product have half
    of the digits, so that it is exact.
    """
    exponent = _known(number, exponent)
    top, shift = max_and_shift(x, axis_name)
    terms = psum(jnp.sum(jnp.exp(x - shift[..., None]), axis=-1), axis_name)
    label_logit = take_label(x, labels, axis_name)
    is_possible = label_logit != -jnp.inf
    label_logit = jnp.where(is_possible, label_logit, top)
    # Quarters, since the difference of two finite logits may overflow.
    distance, error = _difference(0.25 * top, 0.25 * label_logit)
    coarse, fine = _halves(distance, x.dtype)
    scale, scale_fine = _halves(4.0 * exponent, x.dtype)
    large = scale * coarse
    small = scale * (fine + error) + scale_fine * distance
    # Beyond this the power is 0 in any case, and `small` need not be.
    small = jnp.where(large < 2.0**10, small, 0.0)
    quotient = jnp.exp(top - shift) / jnp.where(terms == 0.0, 1.0, terms)
    # The compiler would make one exponential of two.
    power = jnp.exp(-large) * (1.0 + jnp.expm1(-small)) * _power(quotient, exponent)
    return jnp.where(is_possible | (exponent == 0.0), power, 0.0)


def _halves(value: jax.Array | float, dtype) -> tuple:
    """Two numbers whose sum is `value`, the first with so few digits that products are exact."""
    info = jnp.finfo(dtype)
    digits = (info.nmant - 1) // 2
    if isinstance(value, float):
        fraction, power_of_two = math.frexp(value)
        coarse = math.ldexp(round(math.ldexp(fraction, digits)), power_of_two - digits)
    else:
        coarse = jax.lax.reduce_precision(value, info.nexp, digits)
    return coarse, value - coarse


@functools.partial(label_power.defjvp, symbolic_zeros=True)
def _label_power_jvp(number, axis_name, primals, tangents):
    x, labels, exponent = primals
    x_dot, _, exponent_dot = tangents
    power = label_power(number, x, labels, exponent, axis_name)

    def loss_of(x):
        return label_cross_entropy(x, labels, axis_name=axis_name)

    power_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        loss_dot = jax.jvp(loss_of, (x,), (x_dot,))[1]
        power_dot -= _known(number, exponent) * (power * loss_dot)
    if not (exponent is None or isinstance(exponent_dot, SymbolicZero)):
        power_dot -= _product(power, loss_of(x)) * exponent_dot
    return power, broadcast_tangent(power_dot, power)


class _Doubt(NamedTuple):
    """How unlikely the label is."""

    wrong: jax.Array  # w = 1 - p
    inverse: jax.Array  # 1 / w, or 0 where that may overflow
    ratio: jax.Array  # L / w, from 1 up; 0 where p is
    log_wrong: jax.Array  # log(w), or 0 where w is


def _doubt(loss: jax.Array, probability: jax.Array) -> _Doubt:
    wrong = _fall(loss)
    is_small = wrong < _tiny(loss)
    divisor = jnp.where(is_small, 1.0, wrong)
    kept = jnp.where(probability == 0.0, 0.0, loss)
    is_unlikely = probability < 0.5
    rest = jnp.where(is_unlikely, probability, 0.0)
    return _Doubt(
        wrong=wrong,
        inverse=jnp.where(is_small, 0.0, 1.0 / divisor),
        ratio=jnp.where(is_small, 1.0, kept / divisor),
        log_wrong=jnp.where(is_unlikely, jnp.log1p(-rest), jnp.log(divisor)),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def focal_of(number: float | None, loss, probability, gamma=None) -> jax.Array:
    """(1 - p)**gamma L of a cross-entropy L and its p = exp(-L).

    The exponent is `number`, which costs less, or the scalar array `gamma` if that is None.
    """
    del probability  # for the derivatives
    return _power(_fall(loss), _known(number, gamma)) * loss


@functools.partial(focal_of.defjvp, symbolic_zeros=True)
def _focal_of_jvp(number, primals, tangents):
    loss, probability, gamma = primals
    loss_dot, _, gamma_dot = tangents
    result = focal_of(number, loss, probability, gamma)
    result_dot = scale_tangent(_focal_of_slope(number, loss, probability, gamma), loss_dot)
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        result_dot += _product(result, _doubt(loss, probability).log_wrong) * gamma_dot
    return result, broadcast_tangent(result_dot, result)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _focal_of_slope(number, loss, probability, gamma) -> jax.Array:
    """w**gamma (1 + gamma L p / w), the derivative of `focal_of` in L."""
    exponent = _known(number, gamma)
    doubt = _doubt(loss, probability)
    return _power(doubt.wrong, exponent) * (1.0 + exponent * (probability * doubt.ratio))


@functools.partial(_focal_of_slope.defjvp, symbolic_zeros=True)
def _focal_of_slope_jvp(number, primals, tangents):
    loss, probability, gamma = primals
    loss_dot, _, gamma_dot = tangents
    exponent = _known(number, gamma)
    slope = _focal_of_slope(number, loss, probability, gamma)
    wrong, inverse, ratio, log_wrong = _doubt(loss, probability)
    weight, mean = _power(wrong, exponent), probability * ratio
    slope_dot = 0.0
    if not isinstance(loss_dot, SymbolicZero):
        bend = 2.0 + exponent * mean - ratio
        slope_dot += exponent * (weight * inverse) * probability * bend * loss_dot
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        slope_dot += (_product(slope, log_wrong) + weight * mean) * gamma_dot
    return slope, broadcast_tangent(slope_dot, slope)


@jax.custom_jvp
def truncated(loss: jax.Array, power: jax.Array, exponent: jax.Array) -> jax.Array:
    """(1 - p**q) / q of a cross-entropy L = -log(p) and p**q, for q in [0, 1]; L for q = 0."""
    del power  # for the derivatives
    # An infinite loss meets an exponent of 0.
    scaled = exponent * jnp.minimum(loss, float(jnp.finfo(loss.dtype).max))
    is_small = scaled < float(jnp.finfo(loss.dtype).eps) / 4.0
    divisor = jnp.where(exponent == 0.0, 1.0, exponent)
    return jnp.where(is_small, loss, _fall(scaled) / divisor)


@functools.partial(truncated.defjvp, symbolic_zeros=True)
def _truncated_jvp(primals, tangents):
    loss, power, exponent = primals
    loss_dot, _, exponent_dot = tangents
    result = truncated(loss, power, exponent)
    result_dot = scale_tangent(power, loss_dot)
    if not isinstance(exponent_dot, SymbolicZero):
        result_dot += _truncated_exponent_slope(loss, power, exponent, result) * exponent_dot
    return result, broadcast_tangent(result_dot, result)


def _truncated_exponent_slope(loss, power, exponent, result) -> jax.Array:
    """The derivative of `truncated` in q, (L p**q - result) / q, by a series where q L is small."""
    is_near = exponent * jnp.where(power == 0.0, 1.0, loss) < 1.0
    is_near &= power > 0.0
    near = jnp.where(is_near, loss, 0.0)
    series = jnp.square(near) * _alternating(exponent * near, lambda n: n + 1)
    divisor = jnp.where(exponent == 0.0, 1.0, exponent)
    far = jnp.where(is_near, 0.0, _product(loss, power) - jnp.where(is_near, 0.0, result))
    return jnp.where(is_near, -series, far / divisor)


# Cross-entropy plus a multiple of 1 - p. A negative multiple, down to -1, is a smaller one of
# the cross-entropy plus one of L - (1 - p), so that the terms are never negative.


def _is_unused(x: jax.Array, targets: jax.Array) -> jax.Array:
    return (targets == 0.0) & (x == -jnp.inf)


def _surprise(x: jax.Array, targets: jax.Array, axis_name: AxisName) -> jax.Array:
    """-log softmax(x) over the last axis, but 0 at an impossible class that has no target."""
    top, excess = max_and_log_sum_over_max(x, axis_name)
    unused = _is_unused(x, targets)
    return jnp.where(unused, 0.0, top[..., None] - jnp.where(unused, 0.0, x) + excess[..., None])


def _expected_rest(x: jax.Array, targets: jax.Array, axis_name: AxisName) -> jax.Array:
    return psum(jnp.sum(targets * softmax_and_complement(x, axis_name)[1], axis=-1), axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def poly_cross_entropy(
    x: jax.Array, targets: jax.Array, above, below, axis_name: AxisName = None
) -> jax.Array:
    """sum(targets * (L + epsilon * (1 - p))) over the last axis, with p = exp(-L) = softmax(x).

    Args:
        x: logits [..., V].
        targets: [..., V], at least 0, of any total.
        above: the positive part of epsilon, a scalar array, or None if epsilon is negative.
        below: the negative part, or None if it is positive.
        axis_name: the axis that the classes are split over, see `across`.
    """
    loss = soft_cross_entropy(x, targets, axis_name)
    if below is not None:
        beyond = jnp.sum(targets * _beyond(_surprise(x, targets, axis_name)), axis=-1)
        loss = _product(1.0 + below, loss) - below * psum(beyond, axis_name)
    if above is not None:
        loss += above * _expected_rest(x, targets, axis_name)
    return loss


@functools.partial(poly_cross_entropy.defjvp, symbolic_zeros=True)
def _poly_cross_entropy_jvp(axis_name, primals, tangents):
    x, targets, above, below = primals
    x_dot, targets_dot, above_dot, below_dot = tangents
    loss = poly_cross_entropy(x, targets, above, below, axis_name)
    loss_dot = dot_tangent(_poly_slope(x, targets, above, below, axis_name), x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        surprise = _poly_surprise(x, targets, above, below, axis_name)
        loss_dot += dot_tangent(surprise, targets_dot, axis_name)
    for part, part_dot in ((above, above_dot), (below, below_dot)):
        if not (part is None or isinstance(part_dot, SymbolicZero)):
            loss_dot += _expected_rest(x, targets, axis_name) * part_dot
    return loss, broadcast_tangent(loss_dot, loss)


def _poly_surprise(x, targets, above, below, axis_name) -> jax.Array:
    """The derivative of `poly_cross_entropy` in the targets [..., V], 0 for what is unused."""
    surprise = _surprise(x, targets, axis_name)
    result = surprise
    if below is not None:
        result = _product(1.0 + below, surprise) - below * _beyond(surprise)
    if above is not None:
        rest = softmax_and_complement(x, axis_name)[1]
        result += above * jnp.where(_is_unused(x, targets), 0.0, rest)
    return result


def _poly_slope(x, targets, above, below, axis_name) -> jax.Array:
    """The derivative of `poly_cross_entropy` in the logits, [..., V].

    It is that of the cross-entropy with the targets times 1 + epsilon p. What it is made of has
    accurate rules, and so does it.
    """
    p, rest = softmax_and_complement(x, axis_name)
    share = 1.0 if below is None else 1.0 + below
    weights = targets * (rest + (share if above is None else share + above) * p)
    others = jnp.where(
        p > 0.5,
        sum_classes(jnp.where(p > 0.5, 0.0, weights), axis_name),
        sum_classes(weights, axis_name) - weights,
    )
    return jnp.where(x == -jnp.inf, 0.0, p * others - rest * weights)


# The loss of an interval of the logistic distribution.


@jax.custom_jvp
def interval_loss(low: jax.Array, high: jax.Array) -> jax.Array:
    """-log(sigmoid(high) - sigmoid(low)) for low <= high, either of which may be infinite.

    sigmoid(high) sigmoid(-low) (1 - exp(low - high)) is the same difference, and each of the
    factors has its logarithm without a cancellation.
    """
    gap = _gap(low, high)[0]
    is_narrow = gap < 0.7
    narrow, wide = jnp.where(is_narrow, gap, 1.0), jnp.where(is_narrow, 1.0, gap)
    between = jnp.where(is_narrow, jnp.log(_fall(narrow)), jnp.log1p(-jnp.exp(-wide)))
    return softplus(-high) + softplus(low) - between


@interval_loss.defjvp
def _interval_loss_jvp(primals, tangents):
    (low, high), (low_dot, high_dot) = primals, tangents
    odds = _gap_odds(low, high)
    # An infinite end stays where it is.
    low_slope = jnp.where(jnp.abs(low) == jnp.inf, 0.0, sigmoid(low) + odds)
    high_slope = jnp.where(jnp.abs(high) == jnp.inf, 0.0, sigmoid(-high) + odds)
    return interval_loss(low, high), low_slope * low_dot - high_slope * high_dot


def _gap(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The difference of the ends, 0 where they are equal, and its rounding error."""
    is_empty = low == high
    return _difference(jnp.where(is_empty, 0.0, high), jnp.where(is_empty, 0.0, low))


@jax.custom_jvp
def _gap_odds(low: jax.Array, high: jax.Array) -> jax.Array:
    """1 / (exp(high - low) - 1)."""
    gap, error = _gap(low, high)
    odds = jnp.exp(-gap) / _fall(gap)
    kept = jnp.where(odds == jnp.inf, 0.0, odds)
    return odds * (1.0 - (1.0 + kept) * error)


@_gap_odds.defjvp
def _gap_odds_jvp(primals, tangents):
    (low, high), (low_dot, high_dot) = primals, tangents
    odds = _gap_odds(low, high)
    # In this order, since the square may overflow: 0 times infinity is no number.
    return odds, odds * ((1.0 + odds) * (low_dot - high_dot))
