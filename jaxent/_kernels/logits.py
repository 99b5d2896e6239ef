"""Maps of logits to logits, element by element; an infinite logit stays what it is."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.tangents import broadcast_tangent, scale_tangent


def _finite(x: jax.Array) -> jax.Array:
    """`x` with a harmless 0 in place of infinities, which no derivative sees."""
    return jnp.where(jnp.isinf(x), 0.0, x)


@jax.custom_jvp
def scale_by_temperature(x: jax.Array, temperature: jax.Array) -> jax.Array:
    """`x / temperature`."""
    return jnp.where(jnp.isinf(x), x, _finite(x) / temperature)


@functools.partial(scale_by_temperature.defjvp, symbolic_zeros=True)
def _scale_by_temperature_jvp(primals, tangents):
    x, temperature = primals
    x_dot, temperature_dot = tangents
    result = scale_by_temperature(x, temperature)
    # One division after the other: the square of a temperature may be out of range.
    change = scale_tangent(_is_finite(x), x_dot) - scale_tangent(_finite(result), temperature_dot)
    return result, broadcast_tangent(change / temperature, result)


def _is_finite(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.isinf(x), 0.0, 1.0).astype(x.dtype)


def _ratio(x: jax.Array, cap: jax.Array) -> jax.Array:
    """`x / cap` for use in derivatives, of which nothing is left beyond 1000."""
    return jnp.clip(_finite(x) / cap, -1000.0, 1000.0)


@jax.custom_jvp
def soft_cap(x: jax.Array, cap: jax.Array) -> jax.Array:
    """`cap * tanh(x / cap)`, never beyond the cap."""
    return jnp.where(jnp.isinf(x), x, cap * _tanh(_finite(x) / cap))


def _tanh(u: jax.Array) -> jax.Array:
    """The hyperbolic tangent; XLA's of float64 goes beyond 1 in some releases."""
    is_small = jnp.abs(u) < 1.0
    decay = jnp.exp(-2.0 * jnp.where(is_small, 1.0, jnp.abs(u)))
    large = jnp.sign(u) * ((1.0 - decay) / (1.0 + decay))
    return jnp.where(is_small, jnp.tanh(jnp.where(is_small, u, 0.0)), large)


def _decay(x: jax.Array, cap: jax.Array) -> jax.Array:
    """exp(-2 |x| / cap), which is to inherit nothing of the rounding of a large x / cap.

    The whole part of the quotient is split off, and its multiple of the cap is subtracted exactly:
    half of the digits of the cap leave room for those of a small integer.
    """
    info = jnp.finfo(x.dtype)
    size = jnp.abs(_finite(x))
    whole = jnp.floor(jnp.minimum(size / cap, -0.5 * math.log(float(info.tiny))))
    high = jax.lax.reduce_precision(cap, info.nexp, info.nmant // 2)
    rest = (size - whole * high) - whole * (cap - high)
    # The selection also keeps the compiler from making one exponential of the two.
    coarse = jnp.where(jnp.isinf(x), 0.0, jnp.exp(-2.0 * whole))
    return coarse * jnp.exp(-2.0 * (rest / cap))


@functools.partial(soft_cap.defjvp, symbolic_zeros=True)
def _soft_cap_jvp(primals, tangents):
    x, cap = primals
    x_dot, cap_dot = tangents
    result = soft_cap(x, cap)
    result_dot = scale_tangent(_slope(x, cap), x_dot)
    if not isinstance(cap_dot, SymbolicZero):
        result_dot += _cap_slope(x, cap) * cap_dot
    return result, broadcast_tangent(result_dot, result)


@jax.custom_jvp
def _slope(x: jax.Array, cap: jax.Array) -> jax.Array:
    """1 - tanh(x / cap)**2, without the cancellation."""
    decay = _decay(x, cap)
    return 4.0 * decay / jnp.square(1.0 + decay)


@functools.partial(_slope.defjvp, symbolic_zeros=True)
def _slope_jvp(primals, tangents):
    x, cap = primals
    x_dot, cap_dot = tangents
    slope, ratio = _slope(x, cap), _ratio(x, cap)
    bend = -2.0 * slope * _tanh(ratio)
    change = scale_tangent(bend, x_dot) - scale_tangent(bend * ratio, cap_dot)
    return slope, broadcast_tangent(change / cap, slope)


@jax.custom_jvp
def _cap_slope(x: jax.Array, cap: jax.Array) -> jax.Array:
    """tanh(u) - u / cosh(u)**2 for u = x / cap, which is of the order of u**3."""
    ratio, decay = _ratio(x, cap), _decay(x, cap)
    is_small = jnp.abs(ratio) < 1.0
    near = 2.0 * jnp.where(is_small, ratio, 0.0)
    square = jnp.square(near)
    # sinh(w) - w = w**3 / 6 (1 + w**2 / 20 (1 + w**2 / 42 (1 + ...))).
    series = jnp.ones_like(square)
    for order in range(10, 1, -1):
        series = 1.0 + square / (2.0 * order * (2.0 * order + 1.0)) * series
    small = 0.5 * _slope(x, cap) * near * (square / 6.0 * series)
    far = jnp.where(is_small, 1.0, jnp.abs(ratio))
    large = ((1.0 - decay) * (1.0 + decay) - 4.0 * far * decay) / jnp.square(1.0 + decay)
    return jnp.where(is_small, small, jnp.sign(ratio) * large)


@_cap_slope.defjvp
def _cap_slope_jvp(primals, tangents):
    x, cap = primals
    x_dot, cap_dot = tangents
    ratio = _ratio(x, cap)
    bend = 2.0 * ratio * _tanh(ratio) * _slope(x, cap)
    return _cap_slope(x, cap), bend * ((x_dot - ratio * cap_dot) / cap)
