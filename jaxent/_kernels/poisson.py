"""Losses of counts: the Poisson distribution of a log-rate, with and without its constant."""

import math

import jax
import jax.numpy as jnp

from jaxent._float.series import expm1_minus_x, polynomial
from jaxent._float.tangents import define_jvp

# Without the constant log(counts!).


def _exp_shift(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A shift of x, with exp(-shift) and exp(shift): 8 where exp(x) may overflow, else 0.

    exp(x) minus a term with the count may be finite where exp(x) is not.
    """
    is_large = x > math.log(float(jnp.finfo(x.dtype).max)) - 1.0
    one = jnp.ones_like(x)
    shift = jnp.where(is_large, 8.0, 0.0 * one)
    return shift, jnp.where(is_large, math.exp(-8.0), one), jnp.where(is_large, math.exp(8.0), one)


@jax.custom_jvp
def poisson_nll(x: jax.Array, counts: jax.Array) -> jax.Array:
    """exp(x) - counts * x per element, for counts >= 0; a count of 0 on x = -inf costs 0."""
    shift, exp_minus_shift, exp_shift = _exp_shift(x)
    # From 1000 on the exponential is infinite, so the other term may be anything finite.
    scaled_term = (counts * exp_minus_shift) * jnp.where(counts == 0.0, 0.0, jnp.minimum(x, 1000.0))
    return (jnp.exp(x - shift) - scaled_term) * exp_shift


@jax.custom_jvp
def _poisson_nll_grad_x(x: jax.Array, counts: jax.Array) -> jax.Array:
    """exp(x) - counts."""
    shift, exp_minus_shift, exp_shift = _exp_shift(x)
    return (jnp.exp(x - shift) - counts * exp_minus_shift) * exp_shift


define_jvp(poisson_nll, _poisson_nll_grad_x, lambda x, counts: -x)
define_jvp(
    _poisson_nll_grad_x, lambda x, counts: jnp.exp(x), lambda x, counts: -jnp.ones_like(counts)
)


# With it.

# Up to the first count exp(x) - counts * x + log(counts!) does not cancel; from the second on
# Stirling's series needs few terms.
_SMALL_COUNT, _LARGE_COUNT = 1.5, 8.0
_EULER_GAMMA = 0.5772156649015329
# zeta(k) - 1 for k = 2, 3, ...
_ZETA_MINUS_ONE = (
    0.6449340668482264,
    0.2020569031595943,
    0.08232323371113819,
    0.03692775514336993,
    0.01734306198444914,
    0.008349277381922827,
    0.00407735619794434,
    0.0020083928260822143,
    0.0009945751278180853,
    0.0004941886041194645,
    0.0002460865533080483,
    0.00012271334757848915,
    6.124813505870483e-05,
    3.058823630702049e-05,
    1.528225940865187e-05,
    7.637197637899763e-06,
    3.81729326499984e-06,
    1.908212716553939e-06,
    9.539620338727962e-07,
    4.769329867878064e-07,
    2.38450502727733e-07,
    1.1921992596531106e-07,
    5.960818905125948e-08,
    2.980350351465228e-08,
    1.4901554828365043e-08,
    7.45071178983543e-09,
)
# log(Gamma(2 + u)) / u, from the constant on.
_LOG_GAMMA = (
    1.0 - _EULER_GAMMA,
    *((-1.0) ** k * value / k for k, value in enumerate(_ZETA_MINUS_ONE, 2)),
)
# The Bernoulli numbers B(2), B(4), ..., and the coefficients that they give in Stirling's series of
# log(t!) and of its derivative.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_STIRLING = tuple(value / (2 * k * (2 * k - 1)) for k, value in enumerate(_BERNOULLI, 1))
_STIRLING_GRAD = tuple(value / (2 * k) for k, value in enumerate(_BERNOULLI, 1))


@jax.custom_jvp
def full_poisson_nll(x: jax.Array, counts: jax.Array) -> jax.Array:
    """exp(x) - counts * x + log(counts!) per element, for real counts >= 0.

    Near the right rate, counts * x and log(counts!) nearly cancel. There the loss is computed as
    counts * (exp(d) - 1 - d) + (log(counts!) - counts * log(counts) + counts), with the distance
    d = x - log(counts).
    """
    small, larger = jnp.minimum(counts, _SMALL_COUNT), jnp.maximum(counts, _SMALL_COUNT)
    log_larger, rate = jnp.log(larger), jnp.exp(x)
    distance = x - log_larger
    near = larger * expm1_minus_x(jnp.minimum(distance, 1.0))
    # Beside an infinite rate nothing else counts.
    rest = jnp.where(rate < jnp.inf, larger * (jnp.clip(distance, 1.0, 200.0) + 1.0), 0.0)
    of_larger = jnp.where(distance < 1.0, near, rate - rest)
    of_larger += _log_factorial_remainder(larger, log_larger)
    return jnp.where(
        counts < _SMALL_COUNT, poisson_nll(x, small) + _log_small_factorial(small), of_larger
    )


@jax.custom_jvp
def _full_poisson_nll_grad_counts(x: jax.Array, counts: jax.Array) -> jax.Array:
    """digamma(1 + counts) - x; the first is the derivative of log(counts!)."""
    small, large = jnp.minimum(counts, _LARGE_COUNT), jnp.maximum(counts, _LARGE_COUNT)
    inverse = 1.0 / large
    square = jnp.square(inverse)
    rest = 0.5 * inverse - square * polynomial(square, _STIRLING_GRAD)
    return jnp.where(
        counts < _LARGE_COUNT, jax.lax.digamma(1.0 + small) - x, (jnp.log(large) - x) + rest
    )


define_jvp(full_poisson_nll, _poisson_nll_grad_x, _full_poisson_nll_grad_counts)
define_jvp(
    _full_poisson_nll_grad_counts,
    lambda x, counts: -jnp.ones_like(x),
    lambda x, counts: jax.lax.polygamma(jnp.ones_like(counts), 1.0 + counts),
)


def _log_small_factorial(counts: jax.Array) -> jax.Array:
    """log(counts!) for 0 <= counts <= 1.5, accurate near its zeros 0 and 1."""
    is_near_zero = counts < 0.5
    offset = jnp.where(is_near_zero, counts, counts - 1.0)
    log_factor = jnp.log1p(jnp.where(is_near_zero, counts, 0.0))
    return offset * polynomial(offset, _LOG_GAMMA) - log_factor


def _log_factorial_remainder(counts: jax.Array, log_counts: jax.Array) -> jax.Array:
    """log(counts!) - counts * log(counts) + counts for counts >= 1.5.

    For large counts it is log(2 pi counts) / 2 and the rest of Stirling's series. From smaller ones
    factors are split off, counts! = counts * (counts - 1) * ... * left!, until left is in
    [0.5, 1.5]. Each is divided by the count, to keep the sum small.
    """
    small, large = jnp.minimum(counts, _LARGE_COUNT), jnp.maximum(counts, _LARGE_COUNT)
    left, product = small, jnp.ones_like(small)
    for _ in range(int(_LARGE_COUNT) - 1):
        goes_on = left > _SMALL_COUNT
        product = jnp.where(goes_on, product * (left / small), product)
        left = jnp.where(goes_on, left - 1.0, left)
    offset = left - 1.0
    of_small = small + (jnp.log(product) - left * jnp.minimum(log_counts, math.log(_LARGE_COUNT)))
    of_small += offset * polynomial(offset, _LOG_GAMMA)
    inverse = 1.0 / large
    series = inverse * polynomial(jnp.square(inverse), _STIRLING)
    of_large = 0.5 * (log_counts + math.log(2.0 * math.pi)) + series
    return jnp.where(counts < _LARGE_COUNT, of_small, of_large)
