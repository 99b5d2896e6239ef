"""The sigmoid, its integral, and the cross-entropy of independent yes/no classes."""

import functools

import jax
import jax.numpy as jnp

from jaxent._float.tangents import Tangent, broadcast_tangent, scale_tangent


def absolute(x: jax.Array) -> jax.Array:
    """|x| with derivative 1 at 0, where JAX has 0: the formulas below take 0 as positive."""
    return jnp.where(x >= 0.0, x, -x)


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)), accurate in both tails, as is its derivative."""
    decay = jnp.exp(-absolute(x))
    return jnp.where(x >= 0.0, 1.0, decay) / (1.0 + decay)


@sigmoid.defjvp
def _sigmoid_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    p = sigmoid(x)
    return p, p * sigmoid(-x) * x_dot


def sigmoid_grad(x: jax.Array) -> jax.Array:
    """sigmoid(x) sigmoid(-x), the derivative of sigmoid."""
    return sigmoid(x) * sigmoid(-x)


@jax.custom_jvp
def sigmoid_and_complement(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """sigmoid(x) and sigmoid(-x), with one exponential."""
    decay = jnp.exp(-absolute(x))
    larger = 1.0 / (1.0 + decay)
    smaller = decay * larger
    return jnp.where(x >= 0.0, larger, smaller), jnp.where(x >= 0.0, smaller, larger)


@sigmoid_and_complement.defjvp
def _sigmoid_and_complement_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    (x,), (x_dot,) = primals, tangents
    p_dot = sigmoid_grad(x) * x_dot
    return sigmoid_and_complement(x), (p_dot, -p_dot)


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)): minus the log-probability of "no" at logit x."""
    return jnp.where(x >= 0.0, x, 0.0) + jnp.log1p(jnp.exp(-absolute(x)))


@softplus.defjvp
def _softplus_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (x,), (x_dot,) = primals, tangents
    return softplus(x), sigmoid(x) * x_dot


@jax.custom_jvp
def binary_cross_entropy(x: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """`yes softplus(-x) + no softplus(x)` per element, for weights yes, no >= 0.

    A weight of 0 on an infinite cost counts 0.
    """
    wrong = jnp.where(x >= 0.0, no, yes)
    size = absolute(x)
    distance = jnp.where(wrong == 0.0, 0.0, size)
    return distance * wrong + (yes + no) * jnp.log1p(jnp.exp(-size))


@functools.partial(binary_cross_entropy.defjvp, symbolic_zeros=True)
def _binary_cross_entropy_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[Tangent, ...]
) -> tuple[jax.Array, jax.Array]:
    x, yes, no = primals
    x_dot, yes_dot, no_dot = tangents
    grad_x = no * sigmoid(x) - yes * sigmoid(-x)
    loss = binary_cross_entropy(x, yes, no)
    loss_dot = (
        scale_tangent(grad_x, x_dot)
        + scale_tangent(softplus(-x), yes_dot)
        + scale_tangent(softplus(x), no_dot)
    )
    return loss, broadcast_tangent(loss_dot, loss)


@jax.custom_jvp
def target_cross_entropy(x: jax.Array, target: jax.Array) -> jax.Array:
    """`binary_cross_entropy` against targets t in [0, 1]; its derivative in t is -x."""
    return binary_cross_entropy(x, target, 1.0 - target)


@functools.partial(target_cross_entropy.defjvp, symbolic_zeros=True)
def _target_cross_entropy_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[Tangent, ...]
) -> tuple[jax.Array, jax.Array]:
    x, target = primals
    x_dot, target_dot = tangents
    grad_x = (1.0 - target) * sigmoid(x) - target * sigmoid(-x)
    loss = target_cross_entropy(x, target)
    return loss, broadcast_tangent(
        scale_tangent(grad_x, x_dot) + scale_tangent(-x, target_dot), loss
    )
