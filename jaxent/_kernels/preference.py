"""Margins between answers from their log-probabilities, and losses that are functions of them.

Log-probabilities of sequences are in the hundreds, and an exponential of their difference turns
its rounding error into a relative error of that size. So a margin is a pair of numbers, `high` and
the rounding error `low` that is missing from it. Only `high` has a derivative.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.series import tanh
from jaxent._float.tangents import Arrays, Pair, Tangents, combine_tangents, define_jvp
from jaxent._float.two_part import exact_products, exp_minus_abs, fast_two_sum, two_diff, two_sum


def constant_pair(value: float, dtype: jnp.dtype) -> Pair:
    """A number that the dtype holds, as a pair."""
    return jnp.full((), value, dtype), jnp.zeros((), dtype)


def margin(
    a: jax.Array, b: jax.Array, c: jax.Array, d: jax.Array, *, scale: Pair, offset: Pair
) -> Pair:
    """The pair of scale * ((a - b) - (c - d)) - offset.

    Scale and offset are pairs as well. An infinite log-probability makes the margin infinite;
    several that contradict each other make it NaN.
    """
    high, low = _margin(a, b, c, d, *scale, *offset)
    return high, jax.lax.stop_gradient(low)


@jax.custom_jvp
def _margin(
    a: jax.Array,
    b: jax.Array,
    c: jax.Array,
    d: jax.Array,
    scale: jax.Array,
    scale_low: jax.Array,
    offset: jax.Array,
    offset_low: jax.Array,
) -> Pair:
    numbers = (a, b, c, d)
    is_finite = functools.reduce(jnp.logical_and, [jnp.abs(x) < jnp.inf for x in numbers])
    # Quarters, since a difference of differences may overflow where its multiple does not.
    a_4, b_4, c_4, d_4 = (jnp.where(is_finite, 0.25 * x, 0.0) for x in numbers)
    left, left_low = two_diff(a_4, b_4)
    right, right_low = two_diff(c_4, d_4)
    high, low = two_diff(left, right)
    high, low = fast_two_sum(high, low + (left_low - right_low))
    plain = jnp.where(is_finite, 4.0 * (high * scale), scale * ((a - b) - (c - d)))
    # Plain arithmetic says what comes of a product that overflows, or of a scale of NaN.
    is_exact = jnp.abs(plain) < 0.5 * float(jnp.finfo(plain.dtype).max)
    high, low = (jnp.where(is_exact, x, 0.0) for x in (high, low))
    first, second, third, fourth = exact_products(high, scale)
    product, error = two_sum(first, second + third)
    error += fourth + (low * scale + high * scale_low)
    product, product_low = two_diff(product, 0.25 * offset)
    high, low = fast_two_sum(product, product_low + (error - 0.25 * offset_low))
    return jnp.where(is_exact, 4.0 * high, plain - offset), jnp.where(is_exact, 4.0 * low, 0.0)


@functools.partial(_margin.defjvp, symbolic_zeros=True)
def _margin_jvp(primals: Arrays, tangents: Tangents) -> tuple[Pair, Pair]:
    a, b, c, d, scale, *_ = primals
    *number_dots, scale_dot, _, offset_dot, _ = tangents
    high, low = _margin(*primals)
    one_or_nan = jnp.where(high == high, 1.0, jnp.nan).astype(high.dtype)
    grad = scale * one_or_nan
    terms = [*zip((grad, -grad, -grad, grad), number_dots, strict=True), (-one_or_nan, offset_dot)]
    if not isinstance(scale_dot, SymbolicZero):
        terms.append(((a - b) - (c - d), scale_dot))
    return (high, low), (combine_tangents(high, *terms), jnp.zeros_like(low))


# Functions of a pair x = high + low.


@jax.custom_jvp
def sigmoid_of_pair(high: jax.Array, low: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x))."""
    e = exp_minus_abs(high, low)
    return jnp.where(high >= 0.0, 1.0, e) / (1.0 + e)


@jax.custom_jvp
def _sigmoid_of_pair_grad(high: jax.Array, low: jax.Array) -> jax.Array:
    e = exp_minus_abs(high, low)
    return e / jnp.square(1.0 + e)


define_jvp(sigmoid_of_pair, _sigmoid_of_pair_grad, None)
define_jvp(
    _sigmoid_of_pair_grad,
    lambda high, low: -(_sigmoid_of_pair_grad(high, low) * tanh(0.5 * high)),
    None,
)


@jax.custom_jvp
def cross_entropy_of_pair(
    high: jax.Array, low: jax.Array, yes: jax.Array, no: jax.Array
) -> jax.Array:
    """Yes * softplus(-x) + no * softplus(x), for weights yes, no >= 0.

    The weight of an answer that is impossible at an infinite x may be 0.
    """
    weight = jnp.where(high >= 0.0, no, yes)
    abs_x = jnp.where(weight == 0.0, 0.0, jnp.where(high >= 0.0, high + low, -(high + low)))
    return abs_x * weight + (yes + no) * jnp.log1p(exp_minus_abs(high, low))


def _cross_entropy_of_pair_grad(
    high: jax.Array, low: jax.Array, yes: jax.Array, no: jax.Array
) -> jax.Array:
    return no * sigmoid_of_pair(high, low) - yes * sigmoid_of_pair(-high, -low)


def _cost_of_yes(high: jax.Array, low: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    return cross_entropy_of_pair(high, low, jnp.ones_like(yes), jnp.zeros_like(no))


def _cost_of_no(high: jax.Array, low: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    return cross_entropy_of_pair(high, low, jnp.zeros_like(yes), jnp.ones_like(no))


define_jvp(cross_entropy_of_pair, _cross_entropy_of_pair_grad, None, _cost_of_yes, _cost_of_no)


def square_of_pair(high: jax.Array, low: jax.Array) -> jax.Array:
    """The square x**2."""
    return high * (high + 2.0 * low)


def hinge_of_pair(high: jax.Array, low: jax.Array) -> jax.Array:
    """max(0, -x), whose derivative at 0 is 0."""
    return jnp.where(high >= 0.0, 0.0, -(high + low))
