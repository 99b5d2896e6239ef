"""The divergence between two yes/no answers with probabilities p = sigmoid(x), q = sigmoid(y)."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._compat import log1p
from jaxent._float.limits import clip_to_finite, multiply_clipped
from jaxent._float.series import expm1_minus_x_near_0
from jaxent._float.tangents import Arrays, Dual, Tangents, broadcast_tangent, define_jvp
from jaxent._kernels.log_ratio import kl_terms, tanh_half, within_series
from jaxent._kernels.sigmoid import absolute, sigmoid, sigmoid_grad


@jax.custom_jvp
def sigmoid_kl_divergence(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """KL between yes/no with probability sigmoid(target_x), and with sigmoid(x), per element."""
    is_infinite = _is_certain(x) & (x != target_x)
    x, target_x = clip_to_finite(x), clip_to_finite(target_x)
    yes = kl_terms(sigmoid(x), sigmoid(target_x), _eighth_of_log_ratio(x, target_x))
    no = kl_terms(sigmoid(-x), sigmoid(-target_x), _eighth_of_log_ratio(-x, -target_x))
    return yes + no + jnp.where(is_infinite, jnp.inf, 0.0)


def _is_certain(x: jax.Array) -> jax.Array:
    return absolute(x) == jnp.inf


def _eighth_of_log_ratio(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """log(sigmoid(x) / sigmoid(target_x)) / 8, for finite logits."""
    half = 0.5 * x - 0.5 * target_x
    is_near, near = within_series(multiply_clipped(2.0, half))
    expm1 = -near + expm1_minus_x_near_0(-near)
    by_series = -log1p(sigmoid(-target_x) * expm1)
    far = 0.125 * jnp.maximum(-target_x, 0.0) - 0.125 * jnp.maximum(-x, 0.0)
    rest = jnp.log1p(jnp.exp(-absolute(target_x))) - jnp.log1p(jnp.exp(-absolute(x)))
    return jnp.where(is_near, 0.125 * by_series, far + 0.125 * rest)


@functools.partial(sigmoid_kl_divergence.defjvp, symbolic_zeros=True)
def _sigmoid_kl_divergence_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, target_x = primals
    x_dot, target_x_dot = tangents
    value, value_dot = sigmoid_kl_divergence(x, target_x), 0.0
    if not isinstance(x_dot, SymbolicZero):
        value_dot += _sigmoid_difference(x, target_x) * x_dot
    if not isinstance(target_x_dot, SymbolicZero):
        # Where x is certain and the target is not, the gradient is as infinite as the divergence.
        is_infinite = _is_certain(x) & ~_is_certain(target_x)
        infinite = jnp.where(is_infinite, -x, 0.0)
        value_dot += (_sigmoid_kl_grad_target_x(x, target_x) + infinite) * target_x_dot
    return value, broadcast_tangent(value_dot, value)


@jax.custom_jvp
def _sigmoid_difference(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """sigmoid(x) - sigmoid(target_x)."""
    higher, lower = jnp.maximum(x, target_x), jnp.minimum(x, target_x)
    half = 0.5 * clip_to_finite(x) - 0.5 * clip_to_finite(target_x)
    one_minus_exp = -jnp.expm1(-absolute(multiply_clipped(2.0, half)))
    size = sigmoid(higher) * sigmoid(-lower) * one_minus_exp
    return jnp.where(half >= 0.0, size, -size)


define_jvp(
    _sigmoid_difference,
    lambda x, target_x: sigmoid_grad(x),
    lambda x, target_x: -sigmoid_grad(target_x),
)


@jax.custom_jvp
def _sigmoid_kl_grad_target_x(x: jax.Array, target_x: jax.Array) -> jax.Array:
    half = 0.5 * clip_to_finite(target_x) - 0.5 * clip_to_finite(x)
    return 2.0 * (sigmoid_grad(target_x) * half)


def _sigmoid_kl_second_grad_target_x(x: jax.Array, target_x: jax.Array) -> jax.Array:
    return sigmoid_grad(target_x) - _sigmoid_kl_grad_target_x(x, target_x) * tanh_half(target_x)


define_jvp(
    _sigmoid_kl_grad_target_x,
    lambda x, target_x: -sigmoid_grad(target_x),
    _sigmoid_kl_second_grad_target_x,
)
