"""Functions of the logarithm of a ratio of two probabilities, accurate near 0 and far from it.

Of a ratio that may be out of range an eighth of the logarithm is given: logits may be as large as
their dtype allows, and a difference of differences of such numbers would overflow.
"""

import math

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float.limits import multiply_clipped
from jaxent._float.series import expm1_minus_x_near_0, tanh
from jaxent._kernels.sigmoid import absolute


def within_series(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where |x| < 1, the range of the series of exp, and x there, 0 elsewhere."""
    is_near = absolute(x) < 1.0
    return is_near, jnp.where(is_near, x, 0.0)


def tanh_half(log_ratio: jax.Array) -> jax.Array:
    """tanh(log_ratio / 2), which is (p - q) / (p + q) for log_ratio = log(p / q)."""
    return tanh(0.5 * log_ratio)


def kl_terms(p: jax.Array, q: jax.Array, eighth: jax.Array) -> jax.Array:
    """The terms q log(q / p) - q + p of KL(q || p), from an eighth of log(p / q).

    They sum to KL(q || p), since p and q have the same total, and none is negative.
    """
    log_ratio = multiply_clipped(8.0, eighth)
    is_near, near = within_series(log_ratio)
    decay = jnp.exp(-absolute(log_ratio))
    above = p * (1.0 - (1.0 + absolute(log_ratio)) * decay)
    below = (8.0 * q) * (absolute(eighth) - 0.125 * (1.0 - decay))
    return jnp.where(
        is_near, q * expm1_minus_x_near_0(near), jnp.where(log_ratio >= 0.0, above, below)
    )


def log_mixture(log_ratio: jax.Array, weight: float) -> jax.Array:
    """log(weight exp(log_ratio) + 1 - weight): the mixture of p and q over q."""
    complement, far = 1.0 - weight, 40.0
    decrease = weight * -jnp.expm1(jnp.minimum(log_ratio, 0.0))
    is_small = decrease < 0.5
    below = jnp.where(
        is_small,
        log1p(jnp.where(is_small, -decrease, 0.0)),
        jnp.log(complement + weight * jnp.exp(jnp.minimum(log_ratio, 0.0))),
    )
    near = jnp.log1p(weight * jnp.expm1(jnp.clip(log_ratio, 0.0, far)))
    above = jnp.where(log_ratio < far, near, log_ratio + math.log(weight))
    return jnp.where(log_ratio < 0.0, below, above)
