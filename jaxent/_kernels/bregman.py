"""The generalised Kullback-Leibler divergence, of measures that need not have the same total.

It is a Bregman divergence: a sum of terms that are not negative, each how far a convex function
lies above a tangent. A term is a function of log(q / t), which may be far smaller than log(q) and
log(t): a power of two is taken out of t, whose logarithm is subtracted exactly.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxent._float.dtypes import integer_dtype, smallest_normal
from jaxent._float.limits import is_zero
from jaxent._float.series import expm1_minus_x_near_0
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import define_jvp, dot_tangent, negative
from jaxent._float.two_part import LOG_2


def _exponent_and_mantissa(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For x = 2**k * m, normal and positive: k, and m which is about 1."""
    info = jnp.finfo(x.dtype)
    integer = integer_dtype(x.dtype)
    root = np.sqrt(np.array(0.5, x.dtype)).view(integer)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), integer)
    # The largest numbers keep one more factor 2 in m: the inverse of 2**k would not be normal.
    exponent = jnp.minimum((bits - root) >> info.nmant, info.maxexp - 2)
    inverse = jax.lax.bitcast_convert_type((info.maxexp - 1 - exponent) << info.nmant, x.dtype)
    return exponent.astype(x.dtype), x * inverse


def _log_ratio_of_positive(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """log(q / targets), for targets that are normal and positive."""
    exponent, mantissa = _exponent_and_mantissa(targets)
    high, middle, low = LOG_2[targets.dtype.itemsize]
    return ((log_q - exponent * (high + middle)) - exponent * low) - jnp.log(mantissa)


def _replace_zeros(targets: jax.Array) -> jax.Array:
    """Targets with the smallest normal number in place of 0."""
    return jnp.maximum(targets, smallest_normal(targets.dtype))


@jax.custom_jvp
def generalized_kl_divergence(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """sum(t log(t / q) - t + q) over the last axis, for targets t >= 0.

    It is inf where q is 0 and its target is not. A target of NaN makes the row NaN.
    """
    positive, q = _replace_zeros(targets), jnp.exp(log_q)
    log_ratio = _log_ratio_of_positive(log_q, positive)
    near = positive * expm1_minus_x_near_0(jnp.clip(log_ratio, -1.0, 1.0))
    # The minimum keeps inf - inf away where q is infinite.
    far = q - jnp.minimum(positive * (1.0 + log_ratio), float(jnp.finfo(q.dtype).max))
    terms = jnp.where(jnp.abs(log_ratio) <= 1.0, near, far)
    return blocked_sum(jnp.where(is_zero(targets), q, terms))


@jax.custom_jvp
def _difference(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """The difference q - t; for q near 1 as (q - 1) + (1 - t), which is more accurate."""
    near = jnp.clip(log_q, -1.0, 1.0)
    near = (near + expm1_minus_x_near_0(near)) + (1.0 - targets)
    return jnp.where(jnp.abs(log_q) <= 1.0, near, jnp.exp(log_q) - targets)


@jax.custom_jvp
def _log_ratio(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """log(q / targets), and 0 where there is no target."""
    return jnp.where(is_zero(targets), 0.0, _log_ratio_of_positive(log_q, _replace_zeros(targets)))


def _log_ratio_grad(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.where(is_zero(targets), jnp.zeros_like(log_q), 1.0)


def _log_ratio_grad_targets(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    return -_log_ratio_grad(log_q, targets) / jnp.where(is_zero(targets), 1.0, targets)


define_jvp(generalized_kl_divergence, _difference, negative(_log_ratio), product=dot_tangent)
define_jvp(
    _difference, lambda log_q, targets: jnp.exp(log_q), lambda log_q, targets: -jnp.ones_like(log_q)
)
define_jvp(_log_ratio, _log_ratio_grad, _log_ratio_grad_targets)
