"""Maps of logits to logits, element by element; an infinite logit stays what it is."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxent._float.series import tanh
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Tangents,
    broadcast_tangent,
    define_jvp,
    scale_tangent,
)
from jaxent._float.two_part import split


def _zero_where_infinite(x: jax.Array, number: jax.Array) -> jax.Array:
    """`x`, and 0, made of the finite `number`, where it is infinite.

    In a loop a constant 0 would be kept as an array of the size of x.
    """
    return jnp.where(jnp.isinf(x), 0.0 * number, x)


@jax.custom_jvp
def scale_by_temperature(x: jax.Array, temperature: jax.Array) -> jax.Array:
    """`x / T` for T > 0."""
    return jnp.where(jnp.isinf(x), x, _zero_where_infinite(x, temperature) / temperature)


@functools.partial(scale_by_temperature.defjvp, symbolic_zeros=True)
def _scale_by_temperature_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, temperature = primals
    x_dot, temperature_dot = tangents
    result = scale_by_temperature(x, temperature)
    is_finite = (~jnp.isinf(x)).astype(x.dtype)
    # One division after the other: the square of a temperature may be out of range.
    change = scale_tangent(is_finite, x_dot)
    change -= scale_tangent(_zero_where_infinite(result, temperature), temperature_dot)
    return result, broadcast_tangent(change / temperature, result)


@jax.custom_jvp
def soft_cap(x: jax.Array, cap: jax.Array) -> jax.Array:
    """`c tanh(x / c)` for c > 0, at most c in size."""
    return jnp.where(jnp.isinf(x), x, cap * tanh(_zero_where_infinite(x, cap) / cap))


def _exp_decay(x: jax.Array, cap: jax.Array) -> jax.Array:
    """exp(-2 |x| / c), without the rounding error of a large x / c.

    With n = floor(|x| / c) it is exp(-2 n) exp(-2 (|x| - n c) / c). The difference |x| - n c is
    exact: c is split into a part with half of its digits, whose product with n has no rounding
    error, and the rest.
    """
    info = jnp.finfo(x.dtype)
    size = jnp.abs(_zero_where_infinite(x, cap))
    whole = jnp.floor(jnp.minimum(size / cap, -0.5 * math.log(float(info.tiny))))
    high, low = split(cap)
    rest = (size - whole * high) - whole * low
    # The selection also keeps the compiler from making one exponential of the two.
    coarse = jnp.where(jnp.isinf(x), 0.0 * cap, jnp.exp(-2.0 * whole))
    return coarse * jnp.exp(-2.0 * (rest / cap))


def _bounded_ratio(x: jax.Array, cap: jax.Array) -> jax.Array:
    """`x / c` for the derivatives, which are 0 where it exceeds 1000."""
    return jnp.clip(_zero_where_infinite(x, cap) / cap, -1000.0, 1000.0)


@jax.custom_jvp
def _soft_cap_grad_x(x: jax.Array, cap: jax.Array) -> jax.Array:
    """1 - tanh(x / c)**2, without the cancellation."""
    decay = _exp_decay(x, cap)
    return 4.0 * decay / jnp.square(1.0 + decay)


@functools.partial(_soft_cap_grad_x.defjvp, symbolic_zeros=True)
def _soft_cap_grad_x_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, cap = primals
    x_dot, cap_dot = tangents
    grad, ratio = _soft_cap_grad_x(x, cap), _bounded_ratio(x, cap)
    by_ratio = -2.0 * grad * tanh(ratio)
    grad_dot = scale_tangent(by_ratio, x_dot) - scale_tangent(by_ratio * ratio, cap_dot)
    return grad, broadcast_tangent(grad_dot / cap, grad)


@jax.custom_jvp
def _soft_cap_grad_cap(x: jax.Array, cap: jax.Array) -> jax.Array:
    """tanh(u) - u / cosh(u)**2 for u = x / c, which is of the order of u**3."""
    ratio, decay = _bounded_ratio(x, cap), _exp_decay(x, cap)
    is_small = jnp.abs(ratio) < 1.0
    # The numerator (sinh(w) - w) / 2 for w = 2 u by its series,
    # sinh(w) - w = w**3 / 6 (1 + w**2 / 20 (1 + w**2 / 42 (1 + ...))).
    w = 2.0 * jnp.where(is_small, ratio, 0.0)
    square = jnp.square(w)
    series = jnp.ones_like(square)
    for order in range(10, 1, -1):
        series = 1.0 + square / (2.0 * order * (2.0 * order + 1.0)) * series
    small = 0.5 * _soft_cap_grad_x(x, cap) * w * (square / 6.0 * series)
    size = jnp.where(is_small, 1.0, jnp.abs(ratio))
    large = ((1.0 - decay) * (1.0 + decay) - 4.0 * size * decay) / jnp.square(1.0 + decay)
    return jnp.where(is_small, small, jnp.sign(ratio) * large)


@_soft_cap_grad_cap.defjvp
def _soft_cap_grad_cap_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    x, cap = primals
    x_dot, cap_dot = tangents
    ratio = _bounded_ratio(x, cap)
    by_ratio = 2.0 * ratio * tanh(ratio) * _soft_cap_grad_x(x, cap)
    return _soft_cap_grad_cap(x, cap), by_ratio * ((x_dot - ratio * cap_dot) / cap)


define_jvp(soft_cap, _soft_cap_grad_x, _soft_cap_grad_cap)
