"""The deformed logarithm, and what it makes: Tsallis's entropy and the power divergence.

The deformed logarithm (p**e - 1) / e, with e = alpha - 1 for an order alpha, tends smoothly to
log(p) for e to 0. What is written with it joins smoothly to Shannon's entropy and to the
Kullback-Leibler divergence at alpha = 1.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxent._float.limits import clip_to_finite, is_zero, log_or_zero
from jaxent._float.series import accurate_expm1, polynomial, terms_for
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import Arrays, Dual, define_jvp, dot_tangent
from jaxent._float.two_part import split_number


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def power(p: jax.Array, exponent: float) -> jax.Array:
    """p**exponent for p >= 0; at p = 0 it is 0 for a negative exponent too, and 1 for 0."""
    if exponent == 0.0:
        return jnp.ones_like(p)
    positive = jnp.where(is_zero(p), 1.0, p)
    # A logarithm multiplies the rounding error of the exponent.
    rounded, error = split_number(exponent, p.dtype)
    result = jnp.power(positive, rounded)
    if error:
        result *= jnp.exp(error * jnp.log(positive))
    return jnp.where(is_zero(p), 0.0, result)


@power.defjvp
def _power_jvp(exponent: float, primals: Arrays, tangents: Arrays) -> Dual:
    (p,), (p_dot,) = primals, tangents
    if exponent == 0.0:
        return power(p, exponent), jnp.zeros_like(p_dot)
    return power(p, exponent), exponent * clip_to_finite(power(p, exponent - 1.0)) * p_dot


def has_finite_power_grad(p: jax.Array, alpha: float) -> jax.Array:
    """Where p**alpha has a finite derivative, [..., V]."""
    return jnp.ones_like(p, dtype=bool) if alpha > 1.0 else ~is_zero(p)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def deformed_log(p: jax.Array, exponent: float) -> jax.Array:
    """(p**e - 1) / e, and log(p) for e = 0; at p = 0 it is 0 where it would be infinite."""
    log_p = log_or_zero(p)
    if exponent == 0.0:
        return log_p
    result = accurate_expm1(exponent * log_p, power(p, exponent)) / exponent
    return jnp.where(is_zero(p), -1.0 / exponent if exponent > 0.0 else 0.0, result)


define_jvp(deformed_log, lambda p, exponent: clip_to_finite(power(p, exponent - 1.0)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def tsallis_entropy(p: jax.Array, alpha: float) -> jax.Array:
    """sum(p - p**alpha) / (alpha - 1) over the last axis."""
    return blocked_sum(p * (0.0 - deformed_log(p, alpha - 1.0)))


def _tsallis_entropy_grad(p: jax.Array, alpha: float) -> jax.Array:
    if alpha > 2.0:
        grad = (1.0 - alpha * power(p, alpha - 1.0)) / (alpha - 1.0)
    else:
        grad = -1.0 - alpha * deformed_log(p, alpha - 1.0)
    return jnp.where(has_finite_power_grad(p, alpha), grad, 0.0)


define_jvp(tsallis_entropy, _tsallis_entropy_grad, product=dot_tangent)


def power_divergence_terms(
    a: jax.Array, b: jax.Array, log_ratio: jax.Array, ratio: jax.Array, alpha: float
) -> jax.Array:
    """The terms a deformed_log(a / b, e) + b - a, e = alpha - 1 >= -1/2; both ratios are given.

    None is negative, and they are quadratic in a - b where the two nearly agree. For alpha = 1
    they are those of the Kullback-Leibler divergence of a from b.
    """
    exponent, scale = alpha - 1.0, max(1.0, alpha)
    size = scale * jnp.abs(log_ratio)
    is_near = size < (3.0 if alpha < 1.0 else 2.0)
    x = jnp.where(is_near, size, 0.0)
    # Series around the smaller of a and b, of which (nearly) all terms have one sign.
    powers = range(2, terms_for(a.dtype, 20, 32))
    if_above = [_geometric_sum(alpha / scale, 1.0 / scale, k) / math.factorial(k) for k in powers]
    if_below = [
        (scale**-k - (-exponent / scale) ** (k - 1) / scale) / math.factorial(k) for k in powers
    ]
    above, below = b * polynomial(x, if_above), a * polynomial(x, if_below)
    near = jnp.where(log_ratio > 0.0, above, below) * (x * x)
    far = a * deformed_log(jnp.where(is_near, 1.0, ratio), exponent) + (b - a)
    return jnp.where(is_near, near, far)


def _geometric_sum(x: float, y: float, count: int) -> float:
    """The sum x y**(n-1) + x**2 y**(n-2) + ... + x**(n-1) y, with n the count."""
    return sum(x**k * y ** (count - k) for k in range(1, count))
