"""Ratios of the probabilities of two policies, exp(a - b), from log-probabilities a and b.

The rounding error of the difference, which the exponential would multiply, counts in each of them.
"""

import functools

import jax
import jax.numpy as jnp

from jaxent._float.series import expm1_minus_x
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Pair,
    Tangents,
    combine_tangents,
    define_jvp,
    negative,
)
from jaxent._float.two_part import (
    exact_products,
    exact_sum,
    exp_two_part,
    fast_two_sum,
    finite_two_diff,
)


@jax.custom_jvp
def _ratio(a: jax.Array, b: jax.Array) -> jax.Array:
    """exp(a - b)."""
    return exp_two_part(*finite_two_diff(a, b))


define_jvp(_ratio, _ratio, negative(_ratio))


@jax.custom_jvp
def clipped_ratio(a: jax.Array, b: jax.Array, lower: jax.Array, upper: jax.Array) -> jax.Array:
    """exp(a - b) clipped to [lower, upper]; at either end its derivative is still the ratio."""
    ratio = _ratio(a, b)
    return jnp.where(ratio < lower, lower, jnp.where(ratio > upper, upper, ratio))


@functools.partial(clipped_ratio.defjvp, symbolic_zeros=True)
def _clipped_ratio_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    a_dot, b_dot, lower_dot, upper_dot = tangents
    result = clipped_ratio(*primals)
    grad = _clipped_ratio_grad(*primals)
    is_below, is_above = (is_out.astype(result.dtype) for is_out in _is_clipped(*primals))
    terms = ((grad, a_dot), (-grad, b_dot), (is_below, lower_dot), (is_above, upper_dot))
    return result, combine_tangents(result, *terms)


def _is_clipped(
    a: jax.Array, b: jax.Array, lower: jax.Array, upper: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Whether the ratio is below `lower`, and whether it is above `upper`."""
    ratio = _ratio(a, b)
    return ratio < lower, ratio > upper


@jax.custom_jvp
def _clipped_ratio_grad(
    a: jax.Array, b: jax.Array, lower: jax.Array, upper: jax.Array
) -> jax.Array:
    """The ratio in [lower, upper], and 0 elsewhere, also where the ratio is infinite."""
    is_below, is_above = _is_clipped(a, b, lower, upper)
    return jnp.where(is_below | is_above, 0.0, _ratio(a, b))


define_jvp(_clipped_ratio_grad, _clipped_ratio_grad, negative(_clipped_ratio_grad), None, None)


@jax.custom_jvp
def divergence_estimate(a: jax.Array, b: jax.Array) -> jax.Array:
    """exp(d) - 1 - d with d = a - b, never below 0."""
    high, low = finite_two_diff(a, b)
    small = jnp.where(high > 1.0, 0.0, high)
    estimate = expm1_minus_x(small) + jnp.expm1(small) * low
    # From 1000 on the exponential is infinite, and d, which may be infinite too, does not count.
    above = exp_two_part(high, low) - (1.0 + jnp.minimum(high, 1000.0))
    return jnp.where(high > 1.0, above, estimate)


@jax.custom_jvp
def _ratio_minus_1(a: jax.Array, b: jax.Array) -> jax.Array:
    """exp(a - b) - 1."""
    high, low = finite_two_diff(a, b)
    small = jnp.where(high > 1.0, 0.0, high)
    result = jnp.expm1(small) + jnp.exp(small) * low
    return jnp.where(high > 1.0, exp_two_part(high, low) - 1.0, result)


define_jvp(divergence_estimate, _ratio_minus_1, negative(_ratio_minus_1))
define_jvp(_ratio_minus_1, _ratio, negative(_ratio))


@jax.custom_jvp
def mean_difference(a: jax.Array, b: jax.Array, counts: jax.Array) -> Pair:
    """The sum of a - b over the last axis, over the counts [...], and its rounding error.

    Only the first has a derivative.
    """
    differences, errors = finite_two_diff(a, b)
    plain = jnp.sum(differences, axis=-1) / counts
    is_finite = jnp.abs(plain) < jnp.inf
    total, error = exact_sum(jnp.where(is_finite[..., None], differences, 0.0))
    quotient = total / counts
    remainder = total
    for product in exact_products(quotient, counts):
        remainder -= product
    high, low = fast_two_sum(quotient, (remainder + (error + jnp.sum(errors, axis=-1))) / counts)
    return jnp.where(is_finite, high, plain), jnp.where(is_finite, low, 0.0)


@functools.partial(mean_difference.defjvp, symbolic_zeros=True)
def _mean_difference_jvp(primals: Arrays, tangents: Tangents) -> tuple[Pair, Pair]:
    a, b, counts = primals
    high, low = mean_difference(a, b, counts)
    one = jnp.ones_like(a)
    difference_dot = combine_tangents(a, (one, tangents[0]), (-one, tangents[1]))
    return (high, low), (jnp.sum(difference_dot, axis=-1) / counts, jnp.zeros_like(low))
