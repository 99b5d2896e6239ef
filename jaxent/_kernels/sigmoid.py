"""The sigmoid, its integral, and the cross-entropy of independent yes/no classes."""

import jax
import jax.numpy as jnp

from jaxent._float.tangents import Arrays, Pair, define_jvp


def absolute(x: jax.Array) -> jax.Array:
    """|x| with derivative 1 at 0, where JAX has 0: the formulas below take 0 as positive."""
    return jnp.where(x >= 0.0, x, -x)


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)), accurate in both tails, as is its derivative."""
    decay = jnp.exp(-absolute(x))
    return jnp.where(x >= 0.0, 1.0, decay) / (1.0 + decay)


def sigmoid_grad(x: jax.Array) -> jax.Array:
    """sigmoid(x) sigmoid(-x), the derivative of sigmoid."""
    return sigmoid(x) * sigmoid(-x)


define_jvp(sigmoid, sigmoid_grad)


@jax.custom_jvp
def sigmoid_and_complement(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sigmoid(x) and sigmoid(-x), with one exponential."""
    decay = jnp.exp(-absolute(x))
    larger = 1.0 / (1.0 + decay)
    smaller = decay * larger
    return jnp.where(x >= 0.0, larger, smaller), jnp.where(x >= 0.0, smaller, larger)


@sigmoid_and_complement.defjvp
def _sigmoid_and_complement_jvp(primals: Arrays, tangents: Arrays) -> tuple[Pair, Pair]:
    (x,), (x_dot,) = primals, tangents
    p_dot = sigmoid_grad(x) * x_dot
    return sigmoid_and_complement(x), (p_dot, -p_dot)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)): minus the log-probability of "no" at logit x."""
    return jnp.where(x >= 0.0, x, 0.0) + jnp.log1p(jnp.exp(-absolute(x)))


define_jvp(softplus, sigmoid)


@jax.custom_jvp
def binary_cross_entropy(x: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """`yes softplus(-x) + no softplus(x)` per element, for weights yes, no >= 0.

    A weight of 0 on an infinite cost counts 0.
    """
    wrong = jnp.where(x >= 0.0, no, yes)
    size = absolute(x)
    distance = jnp.where(wrong == 0.0, 0.0, size)
    return distance * wrong + (yes + no) * jnp.log1p(jnp.exp(-size))


def _binary_cross_entropy_grad_x(x: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    return no * sigmoid(x) - yes * sigmoid(-x)


define_jvp(
    binary_cross_entropy,
    _binary_cross_entropy_grad_x,
    lambda x, yes, no: softplus(-x),
    lambda x, yes, no: softplus(x),
)


@jax.custom_jvp
def target_cross_entropy(x: jax.Array, target: jax.Array) -> jax.Array:
    """`binary_cross_entropy` against targets t in [0, 1]; its derivative in t is -x."""
    return binary_cross_entropy(x, target, 1.0 - target)


define_jvp(
    target_cross_entropy,
    lambda x, target: _binary_cross_entropy_grad_x(x, target, 1.0 - target),
    lambda x, target: -x,
)
