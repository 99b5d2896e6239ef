"""Losses of the error of a prediction, and of normal distributions.

The error is a difference of two inputs, so it is rounded. Where a loss would magnify that rounding
error, the digits that were rounded off are added back.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.series import polynomial, tanh
from jaxent._float.tangents import Arrays, Dual, Tangents, combine_tangents, define_jvp, negative
from jaxent._float.two_part import two_diff
from jaxent._kernels.sigmoid import absolute

# Errors.


def _half_error(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(predictions - targets) / 2, rounded, and what was rounded off.

    The difference of two finite numbers may overflow, that of their halves does not. What was
    rounded off counts as 0 where the square of the half overflows.
    """
    half, rounded_off = two_diff(0.5 * predictions, 0.5 * targets)
    limit = 2.0 ** (jnp.finfo(half.dtype).maxexp / 2)
    return half, jnp.where(jnp.abs(half) < limit, rounded_off, 0.0)


@jax.custom_jvp
def half_square(error: jax.Array) -> jax.Array:
    """error**2 / 2, which may be finite where the square is not."""
    # XLA for CPUs sums this faster than error * (error / 2). The barrier keeps XLA from joining
    # the constants 1/2 and 2, with which the square would overflow.
    half = jax.lax.optimization_barrier(jnp.full((), 0.5, error.dtype)) * error
    return 2.0 * (half * half)


# By JAX's rule for products the gradient would be a sum of two halves, one more pass over memory.
half_square.defjvps(lambda error_dot, _, error: error * error_dot)


@jax.custom_jvp
def huber(predictions: jax.Array, targets: jax.Array, delta: jax.Array) -> jax.Array:
    """e**2 / 2 for errors |e| <= delta, and delta * (|e| - delta / 2) for larger ones, per element.

    Both are q * (|e| - q / 2) with q = min(|e|, delta), which overflows only where the loss does.
    """
    half, rounded_off = _half_error(predictions, targets)
    size = jnp.abs(half)
    limited = 2.0 * jnp.minimum(size, 0.5 * delta)
    loss = 2.0 * (limited * (size - 0.25 * limited))
    grad = 2.0 * jnp.where(half < 0.0, -limited, limited)
    # No product where nothing was rounded off: an infinite gradient times 0 is NaN.
    return jnp.where(rounded_off == 0.0, loss, loss + grad * rounded_off)


def _huber_grad(predictions: jax.Array, targets: jax.Array, delta: jax.Array) -> jax.Array:
    return jnp.clip(predictions - targets, -delta, delta)


define_jvp(
    huber,
    _huber_grad,
    negative(_huber_grad),
    lambda predictions, targets, delta: jnp.maximum(jnp.abs(predictions - targets) - delta, 0.0),
)


@jax.custom_jvp
def pinball(
    predictions: jax.Array, targets: jax.Array, below: jax.Array, above: jax.Array
) -> jax.Array:
    """|e| times `above` where the prediction is above the target, and times `below` elsewhere."""
    half = 0.5 * predictions - 0.5 * targets
    return jnp.abs(half) * (2.0 * jnp.where(half > 0.0, above, below))


@functools.partial(pinball.defjvp, symbolic_zeros=True)
def _pinball_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    predictions, targets, below, above = primals
    predictions_dot, targets_dot, below_dot, above_dot = tangents
    loss = pinball(predictions, targets, below, above)
    error = predictions - targets
    # 0 at an error of 0, between the derivatives on its two sides; NaN for NaN.
    grad = jnp.sign(error) * jnp.where(error > 0.0, above, below)
    return loss, combine_tangents(
        loss,
        (grad, predictions_dot),
        (-grad, targets_dot),
        (jnp.maximum(-error, 0.0), below_dot),
        (jnp.maximum(error, 0.0), above_dot),
    )


# log(cosh(x)) / x**2 as a polynomial in x**2 over [0, 1], interpolated at Chebyshev points: off by
# 6e-10 in float32, by 1e-18 in float64.
_LOG_COSH = {
    jnp.dtype(jnp.float32): (
        0.49999999972287,
        -0.08333329776092006,
        0.022221464489357072,
        -0.006739799481724222,
        0.002161291898074673,
        -0.0006794099122033923,
        0.00017619862671795864,
        -2.561730309831305e-05,
    ),
    jnp.dtype(jnp.float64): (
        0.5,
        -0.08333333333333313,
        0.022222222222204716,
        -0.006746031745439467,
        0.002186948843058455,
        -0.0007386028466072547,
        0.00025657975920948954,
        -9.09856096555369e-05,
        3.276489941653655e-05,
        -1.1918687623522829e-05,
        4.331402571628952e-06,
        -1.5281848212875655e-06,
        4.924539882543482e-07,
        -1.3068157325434964e-07,
        2.4268051367700383e-08,
        -2.2764198082727952e-09,
    ),
}


@jax.custom_jvp
def log_cosh(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """log(cosh(e)) of each error e: about e**2 / 2 near 0, and |e| - log(2) far from it."""
    size = absolute(predictions - targets)
    square = jnp.square(jnp.minimum(size, 1.0))
    near = square * polynomial(square, _LOG_COSH[size.dtype])
    far = (size - math.log(2.0)) + jnp.log1p(jnp.exp(-2.0 * size))
    return jnp.where(size < 1.0, near, far)


@jax.custom_jvp
def _tanh(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """The hyperbolic tangent of the error."""
    return tanh(predictions - targets)


@jax.custom_jvp
def _squared_sech(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - tanh(e)**2 = sech(e)**2, without the cancellation where tanh(e) is nearly 1.

    The exponential would magnify the rounding error of e, so what was rounded off is added back.
    """
    half, rounded_off = _half_error(predictions, targets)
    decay = jnp.exp(-4.0 * absolute(half))
    correction = 1.0 - 4.0 * jnp.where(half >= 0.0, rounded_off, -rounded_off)
    return (4.0 * decay / jnp.square(1.0 + decay)) * jnp.where(decay < 0.5, correction, 1.0)


def _squared_sech_grad(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    return -2.0 * _tanh(predictions, targets) * _squared_sech(predictions, targets)


define_jvp(log_cosh, _tanh, negative(_tanh))
define_jvp(_tanh, _squared_sech, negative(_squared_sech))
define_jvp(_squared_sech, _squared_sech_grad, negative(_squared_sech_grad))


# Normal distributions.


@jax.custom_jvp
def _error_over_variance(error: jax.Array, variances: jax.Array) -> jax.Array:
    """The quotient, with a derivative that never squares the variance."""
    return error / variances


@functools.partial(_error_over_variance.defjvp, symbolic_zeros=True)
def _error_over_variance_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    error, variances = primals
    error_dot, variances_dot = tangents
    ratio = _error_over_variance(error, variances)
    terms = (jnp.ones_like(ratio), error_dot), (-ratio, variances_dot)
    return ratio, combine_tangents(ratio, *terms) / variances


@jax.custom_jvp
def gaussian_nll(means: jax.Array, targets: jax.Array, variances: jax.Array) -> jax.Array:
    """(log(v) + e**2 / v) / 2 per element, for errors e and variances v > 0."""
    # Halves, since the difference of two finite numbers may overflow.
    half = 0.5 * means - 0.5 * targets
    return 0.5 * jnp.log(variances) + 2.0 * (half * _error_over_variance(half, variances))


@functools.partial(gaussian_nll.defjvp, symbolic_zeros=True)
def _gaussian_nll_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    means, targets, variances = primals
    means_dot, targets_dot, variances_dot = tangents
    loss = gaussian_nll(means, targets, variances)
    half_ratio = _error_over_variance(0.5 * means - 0.5 * targets, variances)
    terms = [(2.0 * half_ratio, means_dot), (-2.0 * half_ratio, targets_dot)]
    if not isinstance(variances_dot, SymbolicZero):
        # (1 / v - (e / v)**2) / 2 as a product: 1 / v of a large variance may be subnormal.
        inverse_scale = 1.0 / jnp.sqrt(variances)
        grad = 0.5 * (inverse_scale - 2.0 * half_ratio) * (inverse_scale + 2.0 * half_ratio)
        terms.append((grad, variances_dot))
    return loss, combine_tangents(loss, *terms)
