"""How far measures are apart that need not have the same total: Bregman's divergence.

Its terms are distances of a convex function to its tangents, none of them negative, and a sum of
such terms loses nothing. What a term is made of is log(q / t), which may be far smaller than log(q)
and log(t): a power of two is taken out of t, whose logarithm is subtracted exactly.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jaxent._float.series import expm1_minus_x
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._float.two_part import LOG_2
from jaxent._kernels.distribution import is_zero


def _power_and_rest(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """For x = 2**k * m, normal and positive: k, and m which is about 1."""
    info = jnp.finfo(x.dtype)
    integer = jnp.int64 if x.dtype == jnp.float64 else jnp.int32
    root = np.sqrt(np.array(0.5, x.dtype)).view(integer)
    bits = jax.lax.bitcast_convert_type(jax.lax.stop_gradient(x), integer)
    # Of the largest numbers one more factor stays with m: its inverse would not be normal.
    power = jnp.minimum((bits - root) >> info.nmant, info.maxexp - 2)
    inverse = jax.lax.bitcast_convert_type((info.maxexp - 1 - power) << info.nmant, x.dtype)
    return power.astype(x.dtype), x * inverse


def _log_ratio_to(log_q: jax.Array, present: jax.Array) -> jax.Array:
    """log(q / present), for normal and positive numbers."""
    power, rest = _power_and_rest(present)
    high, middle, low = LOG_2[present.dtype.itemsize]
    return ((log_q - power * (high + middle)) - power * low) - jnp.log(rest)


def _present(targets: jax.Array) -> jax.Array:
    """Targets with a smallest number in place of zeros."""
    return jnp.maximum(targets, float(jnp.finfo(targets.dtype).smallest_normal))


@jax.custom_jvp
def generalized_kullback_leibler(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """sum(targets * log(targets / q) - targets + q) over the last axis, for targets >= 0.

    It is inf where q is 0 and its target is not. A target of NaN makes the row NaN.
    """
    present, q = _present(targets), jnp.exp(log_q)
    ratio = _log_ratio_to(log_q, present)
    near = present * expm1_minus_x(jnp.clip(ratio, -1.0, 1.0))
    # Not even an infinite q is less than what is subtracted, which is not to overflow.
    far = q - jnp.minimum(present * (1.0 + ratio), float(jnp.finfo(q.dtype).max))
    terms = jnp.where(jnp.abs(ratio) <= 1.0, near, far)
    return blocked_sum(jnp.where(is_zero(targets), q, terms))


@functools.partial(generalized_kullback_leibler.defjvp, symbolic_zeros=True)
def _generalized_kullback_leibler_jvp(primals, tangents):
    log_q_dot, targets_dot = tangents
    value_dot = 0.0
    if not isinstance(log_q_dot, SymbolicZero):
        value_dot += dot_tangent(_surplus(*primals), log_q_dot)
    if not isinstance(targets_dot, SymbolicZero):
        value_dot -= dot_tangent(_log_ratio(*primals), targets_dot)
    value = generalized_kullback_leibler(*primals)
    return value, broadcast_tangent(value_dot, value)


@jax.custom_jvp
def _surplus(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """The difference q - targets; near 1 of both, what they are more than 1 is better known."""
    small = jnp.clip(log_q, -1.0, 1.0)
    by_excess = (small + expm1_minus_x(small)) + (1.0 - targets)
    return jnp.where(jnp.abs(log_q) <= 1.0, by_excess, jnp.exp(log_q) - targets)


@functools.partial(_surplus.defjvp, symbolic_zeros=True)
def _surplus_jvp(primals, tangents):
    surplus = _surplus(*primals)
    log_q_dot, targets_dot = tangents
    moved = scale_tangent(jnp.exp(primals[0]), log_q_dot) - scale_tangent(
        jnp.ones_like(surplus), targets_dot
    )
    return surplus, broadcast_tangent(moved, surplus)


@jax.custom_jvp
def _log_ratio(log_q: jax.Array, targets: jax.Array) -> jax.Array:
    """log(q / targets), and 0 where there is no target."""
    return jnp.where(is_zero(targets), 0.0, _log_ratio_to(log_q, _present(targets)))


@functools.partial(_log_ratio.defjvp, symbolic_zeros=True)
def _log_ratio_jvp(primals, tangents):
    log_q, targets = primals
    log_q_dot, targets_dot = tangents
    absent, ratio = is_zero(targets), _log_ratio(log_q, targets)
    exists = jnp.where(absent, jnp.zeros_like(ratio), 1.0)
    inverse = exists / jnp.where(absent, 1.0, targets)
    return ratio, broadcast_tangent(
        scale_tangent(exists, log_q_dot) - scale_tangent(inverse, targets_dot), ratio
    )
