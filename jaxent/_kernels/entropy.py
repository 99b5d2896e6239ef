"""Entropies in nats, from probabilities and from logits, and the perplexity.

Every value is a sum of terms of one sign, each with relative accuracy, and 0 log 0 is 0. A
derivative that is infinite where the entropy is finite is given as 0, so that no chain rule
multiplies 0 by infinity.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float.limits import clip_to_finite, is_zero, log_or_zero
from jaxent._float.sums import blocked_sum, wait_on_cpu
from jaxent._float.tangents import Arrays, Dual, define_jvp, dot_tangent
from jaxent._float.two_part import split_number
from jaxent._kernels.log_ratio import tanh_half
from jaxent._kernels.sigmoid import absolute, sigmoid, sigmoid_grad
from jaxent._kernels.softmax import (
    MaxAndOthers,
    inverse_sum,
    max_and_others,
    nan_where_empty,
    softmax,
    softmax_jvp,
    softmax_second_jvp,
)
from jaxent._parallel import AxisName, psum

# From probabilities.


@jax.custom_jvp
def entropy(p: jax.Array) -> jax.Array:
    """-sum(p log(p)) over the last axis."""
    return blocked_sum(p * (0.0 - log_or_zero(p)))


define_jvp(
    entropy, lambda p: jnp.where(is_zero(p), 0.0, -1.0 - log_or_zero(p)), product=dot_tangent
)


@jax.custom_jvp
def binary_entropy(p: jax.Array) -> jax.Array:
    """-(p log(p) + (1 - p) log(1 - p)) per element."""
    complement = 1.0 - p
    neg_log_complement = 0.0 - log1p(-jnp.where(complement > 0.0, p, 0.0))
    return p * (0.0 - log_or_zero(p)) + complement * neg_log_complement


@jax.custom_jvp
def _binary_entropy_grad(p: jax.Array) -> jax.Array:
    """log((1 - p) / p), and 0 where p is 0 or 1."""
    p = _replace_certain(p)
    # 1 - 2p is exact from 1/4 on; near 1/2 the two logarithms would cancel.
    is_near = jnp.abs(p - 0.5) <= 0.25
    odds_minus_one = jnp.where(is_near, (1.0 - 2.0 * p) / p, 0.0)
    return jnp.where(is_near, log1p(odds_minus_one), log1p(-p) - jnp.log(p))


@_binary_entropy_grad.defjvp
def _binary_entropy_grad_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (p,), (p_dot,) = primals, tangents
    inner = _replace_certain(p)
    grad_dot = p_dot / inner / (inner - 1.0)
    return _binary_entropy_grad(p), jnp.where(is_zero(p) | (p == 1.0), 0.0, grad_dot)


define_jvp(binary_entropy, _binary_entropy_grad)


def _replace_certain(p: jax.Array) -> jax.Array:
    """`p` with 1/2 in place of 0 and 1."""
    return jnp.where(is_zero(p) | (p == 1.0), 0.5, p)


def perplexity(cross_entropy: jax.Array, base: float | None) -> jax.Array:
    """`base` to the power of a cross-entropy, per element; None is e."""
    if base is None:
        return jnp.exp(cross_entropy)
    # The cross-entropy multiplies the rounding error of the base.
    rounded, error = split_number(base, cross_entropy.dtype)
    correction = jnp.exp(math.log1p(error / rounded) * cross_entropy)
    return jnp.power(rounded, cross_entropy) * correction


# From logits.


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_entropy(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """-sum(p log(p)) over the last axis, p = softmax(x); NaN for a row without a possible class."""
    return _softmax_entropy(x, axis_name)[0]


def _softmax_entropy(
    x: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, MaxAndOthers, jax.Array]:
    """The entropy [...], what it comes from, and the mean distance to the maximum [...]."""
    stats = max_and_others(x, axis_name)
    top, shift = wait_on_cpu(stats.others, stats.top, stats.shift)
    distances = jnp.exp(x - shift[..., None]) * _distance_to_max(x, top)
    distance = psum(blocked_sum(distances), axis_name) * inverse_sum(stats)
    return (jnp.log1p(stats.others) + distance) * nan_where_empty(stats), stats, distance


def _distance_to_max(x: jax.Array, top: jax.Array) -> jax.Array:
    """max(x) - x, finite also where x is -inf, since it meets a probability of 0 there."""
    return jnp.minimum(top[..., None] - x, float(jnp.finfo(x.dtype).max))


@softmax_entropy.defjvp
def _softmax_entropy_jvp(
    axis_name: AxisName, primals: Arrays, tangents: Arrays
) -> tuple[jax.Array, jax.Array | float]:
    (x,), (x_dot,) = primals, tangents
    value, grad = _softmax_entropy_and_grad(x, axis_name)
    return value, dot_tangent(grad, x_dot, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax_entropy_and_grad(x: jax.Array, axis_name: AxisName) -> tuple[jax.Array, jax.Array]:
    value, stats, distance = _softmax_entropy(x, axis_name)
    top, shift = wait_on_cpu(distance, stats.top, stats.shift)
    p = jnp.exp(x - shift[..., None]) * (inverse_sum(stats) * nan_where_empty(stats))[..., None]
    return value, p * (_distance_to_max(x, top) - distance[..., None])


@_softmax_entropy_and_grad.defjvp
def _softmax_entropy_and_grad_jvp(
    axis_name: AxisName, primals: Arrays, tangents: Arrays
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array | float, jax.Array]]:
    (x,), (x_dot,) = primals, tangents
    value, grad = _softmax_entropy_and_grad(x, axis_name)
    p = softmax(x, axis_name)
    grad_dot = softmax_second_jvp(p, grad, x_dot, axis_name) - softmax_jvp(p, x_dot, axis_name)
    return (value, grad), (dot_tangent(grad, x_dot, axis_name), grad_dot)


@jax.custom_jvp
def sigmoid_entropy(x: jax.Array) -> jax.Array:
    """-p log(p) - (1 - p) log(1 - p) per element, p = sigmoid(x)."""
    size = absolute(clip_to_finite(x))
    return jnp.log1p(jnp.exp(-size)) + size * sigmoid(-size)


@jax.custom_jvp
def _sigmoid_entropy_grad(x: jax.Array) -> jax.Array:
    return -(clip_to_finite(x) * sigmoid_grad(x))


define_jvp(sigmoid_entropy, _sigmoid_entropy_grad)
define_jvp(
    _sigmoid_entropy_grad,
    lambda x: -(sigmoid_grad(x) + _sigmoid_entropy_grad(x) * tanh_half(x)),
)
