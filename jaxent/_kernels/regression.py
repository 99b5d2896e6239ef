"""Losses of real numbers: of the error of a prediction, of counts, and of normal distributions.

An error is a difference of two inputs, which is rounded once; where a loss would multiply that
half unit, what was rounded off is put back.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.series import expm1_minus_x, polynomial
from jaxent._float.tangents import broadcast_tangent, scale_tangent
from jaxent._float.two_part import two_diff
from jaxent._kernels.sigmoid import absolute

# Errors: Huber's compromise, the pinball, and the logarithm of the hyperbolic cosine.


def _half_error(predictions: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half of predictions - targets, rounded, and what was rounded off (Knuth's exact sum).

    The difference of two numbers may overflow, that of their halves does not. Where the square
    does, what was rounded off is left out.
    """
    half, lost = two_diff(0.5 * predictions, 0.5 * targets)
    return half, jnp.where(jnp.abs(half) < 2.0 ** (jnp.finfo(half.dtype).maxexp / 2), lost, 0.0)


def _along_error(slope: jax.Array, predictions_dot, targets_dot) -> jax.Array | float:
    """`slope * (predictions_dot - targets_dot)`, or as much of it as is differentiated."""
    return scale_tangent(slope, predictions_dot) + scale_tangent(-slope, targets_dot)


@jax.custom_jvp
def half_square(error: jax.Array) -> jax.Array:
    """error^2 / 2, which may be finite where the square is not."""
    # XLA for CPUs sums this faster than error * (error / 2). Behind the barrier stands a half that
    # the compiler cannot multiply with the 2 before it squares the error.
    half = jax.lax.optimization_barrier(jnp.full((), 0.5, error.dtype)) * error
    return 2.0 * (half * half)


# JAX would add two halves of the slope, in a pass of its own.
half_square.defjvps(lambda error_dot, _, error: error * error_dot)


@jax.custom_jvp
def huber(predictions: jax.Array, targets: jax.Array, delta: jax.Array) -> jax.Array:
    """e**2 / 2 for errors |e| <= delta, and delta * (|e| - delta / 2) beyond, per element.

    Both are q * (|e| - q / 2) with q = min(|e|, delta), which overflows only where the loss does.
    """
    half, lost = _half_error(predictions, targets)
    size = jnp.abs(half)
    limited = 2.0 * jnp.minimum(size, 0.5 * delta)
    loss = 2.0 * (limited * (size - 0.25 * limited))
    slope = 2.0 * jnp.where(half < 0.0, -limited, limited)
    # Nothing was lost of an infinite error, whose slope may be infinite.
    return jnp.where(lost == 0.0, loss, loss + slope * lost)


@functools.partial(huber.defjvp, symbolic_zeros=True)
def _huber_jvp(primals, tangents):
    predictions, targets, delta = primals
    predictions_dot, targets_dot, delta_dot = tangents
    loss = huber(predictions, targets, delta)
    error = predictions - targets
    slope = jnp.minimum(jnp.maximum(error, -delta), delta)
    loss_dot = _along_error(slope, predictions_dot, targets_dot)
    if not isinstance(delta_dot, SymbolicZero):
        loss_dot += jnp.maximum(jnp.abs(error) - delta, 0.0) * delta_dot
    return loss, broadcast_tangent(loss_dot, loss)


@jax.custom_jvp
def pinball(
    predictions: jax.Array, targets: jax.Array, below: jax.Array, above: jax.Array
) -> jax.Array:
    """The size of each error, times `below` or `above`: where the prediction lies."""
    half = 0.5 * predictions - 0.5 * targets
    return jnp.abs(half) * (2.0 * jnp.where(half > 0.0, above, below))


@functools.partial(pinball.defjvp, symbolic_zeros=True)
def _pinball_jvp(primals, tangents):
    predictions, targets, below, above = primals
    predictions_dot, targets_dot, below_dot, above_dot = tangents
    loss = pinball(predictions, targets, below, above)
    error = predictions - targets
    # The sign of NaN is NaN, and that of 0 is 0, which lies between the slopes on its two sides.
    slope = jnp.sign(error) * jnp.where(error > 0.0, above, below)
    loss_dot = _along_error(slope, predictions_dot, targets_dot)
    loss_dot += scale_tangent(jnp.maximum(-error, 0.0), below_dot)
    loss_dot += scale_tangent(jnp.maximum(error, 0.0), above_dot)
    return loss, broadcast_tangent(loss_dot, loss)


# log(cosh(x)) / x**2 and tanh(x) / x as polynomials in x**2 over [0, 1], interpolated at Chebyshev
# points: off by 6e-10 and 4e-10 in float32, by 1e-18 in float64.
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
_TANH = {
    jnp.dtype(jnp.float32): (
        0.9999999996302252,
        -0.3333332732799648,
        0.1333317115678341,
        -0.053951196443121074,
        0.021778231247328757,
        -0.008582589511472276,
        0.0030649014406912275,
        -0.0008332162391078529,
        0.00011958780648308118,
    ),
    jnp.dtype(jnp.float64): (
        1.0,
        -0.33333333333333276,
        0.13333333333327796,
        -0.053968253966135686,
        0.021869488493379986,
        -0.008863235003976634,
        0.003592123754707519,
        -0.0014558100278309679,
        0.000589927073142048,
        -0.00023882227381263088,
        9.620826517827719e-05,
        -3.803813942672595e-05,
        1.4255370716114515e-05,
        -4.741598314640336e-06,
        1.2639921304306404e-06,
        -2.3105100745815075e-07,
        2.1067070069354262e-08,
    ),
}


@jax.custom_jvp
def log_cosh(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """log(cosh(e)) of each error e: e**2 / 2 near 0, |e| - log(2) far away."""
    size = absolute(predictions - targets)
    square = jnp.square(jnp.minimum(size, 1.0))
    near = square * polynomial(square, _LOG_COSH[size.dtype])
    far = (size - math.log(2.0)) + jnp.log1p(jnp.exp(-2.0 * size))
    return jnp.where(size < 1.0, near, far)


@functools.partial(log_cosh.defjvp, symbolic_zeros=True)
def _log_cosh_jvp(primals, tangents):
    loss = log_cosh(*primals)
    return loss, broadcast_tangent(_along_error(_tanh(*primals), *tangents), loss)


@jax.custom_jvp
def _tanh(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    error = predictions - targets
    inner = jnp.clip(error, -1.0, 1.0)
    near = inner * polynomial(jnp.square(inner), _TANH[error.dtype])
    decay = jnp.exp(-2.0 * absolute(error))
    far = (1.0 - decay) / (1.0 + decay)
    return jnp.where(jnp.abs(error) < 1.0, near, jnp.where(error >= 0.0, far, -far))


@functools.partial(_tanh.defjvp, symbolic_zeros=True)
def _tanh_jvp(primals, tangents):
    slope = _tanh(*primals)
    return slope, broadcast_tangent(_along_error(_squared_sech(*primals), *tangents), slope)


@jax.custom_jvp
def _squared_sech(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """1 - tanh(e)**2, of which nothing would be left where tanh is nearly 1.

    The exponential would enlarge what was rounded off the error.
    """
    half, lost = _half_error(predictions, targets)
    decay = jnp.exp(-4.0 * absolute(half))
    restored = 1.0 - 4.0 * jnp.where(half >= 0.0, lost, -lost)
    return (4.0 * decay / jnp.square(1.0 + decay)) * jnp.where(decay < 0.5, restored, 1.0)


@functools.partial(_squared_sech.defjvp, symbolic_zeros=True)
def _squared_sech_jvp(primals, tangents):
    bend = _squared_sech(*primals)
    return bend, broadcast_tangent(_along_error(-2.0 * _tanh(*primals) * bend, *tangents), bend)


# Normal distributions.


@jax.custom_jvp
def _ratio(error: jax.Array, variances: jax.Array) -> jax.Array:
    """Error over variance, with a derivative that never squares the variance."""
    return error / variances


@functools.partial(_ratio.defjvp, symbolic_zeros=True)
def _ratio_jvp(primals, tangents):
    error, variances = primals
    error_dot, variances_dot = tangents
    ratio = _ratio(error, variances)
    moved = scale_tangent(jnp.ones_like(ratio), error_dot) - scale_tangent(ratio, variances_dot)
    return ratio, broadcast_tangent(moved / variances, ratio)


@jax.custom_jvp
def gaussian(means: jax.Array, targets: jax.Array, variances: jax.Array) -> jax.Array:
    """(log(v) + e**2 / v) / 2 per element, for errors e and variances v > 0.

    Half errors, since the difference of two finite numbers may overflow.
    """
    half = 0.5 * means - 0.5 * targets
    return 0.5 * jnp.log(variances) + 2.0 * (half * _ratio(half, variances))


@functools.partial(gaussian.defjvp, symbolic_zeros=True)
def _gaussian_jvp(primals, tangents):
    means, targets, variances = primals
    means_dot, targets_dot, variances_dot = tangents
    loss = gaussian(means, targets, variances)
    ratio = _ratio(0.5 * means - 0.5 * targets, variances)
    loss_dot = _along_error(2.0 * ratio, means_dot, targets_dot)
    if not isinstance(variances_dot, SymbolicZero):
        # A difference of squares, since the reciprocal of a large variance may be subnormal.
        scale = 1.0 / jnp.sqrt(variances)
        slope = 0.5 * (scale - 2.0 * ratio) * (scale + 2.0 * ratio)
        loss_dot += slope * variances_dot
    return loss, broadcast_tangent(loss_dot, loss)


# Counts.

# Up to this count the loss does not cancel; from the other on Stirling's series needs few terms.
_FEW, _MANY = 1.5, 8.0
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
# The Bernoulli numbers B(2), B(4), ..., and what they are in log(t!) * t and in its derivative.
_BERNOULLI = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_STIRLING = tuple(value / (2 * k * (2 * k - 1)) for k, value in enumerate(_BERNOULLI, 1))
_STIRLING_SLOPE = tuple(value / (2 * k) for k, value in enumerate(_BERNOULLI, 1))


def _shifted(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A shift of x that keeps exp(x - shift) finite a little longer, and exp(-shift), exp(shift).

    The difference of exp(x) and what a count puts against it may be finite where exp(x) is not.
    """
    is_large = x > math.log(float(jnp.finfo(x.dtype).max)) - 1.0
    one = jnp.ones_like(x)
    shift = jnp.where(is_large, 8.0, 0.0 * one)
    return shift, jnp.where(is_large, math.exp(-8.0), one), jnp.where(is_large, math.exp(8.0), one)


@jax.custom_jvp
def poisson(x: jax.Array, counts: jax.Array) -> jax.Array:
    """exp(x) - counts * x per element, for counts >= 0; a count of 0 on x = -inf costs 0."""
    shift, small, large = _shifted(x)
    # Beyond 1000 the exponential is infinite, against which nothing else counts.
    cost = (counts * small) * jnp.where(counts == 0.0, 0.0, jnp.minimum(x, 1000.0))
    return (jnp.exp(x - shift) - cost) * large


@functools.partial(poisson.defjvp, symbolic_zeros=True)
def _poisson_jvp(primals, tangents):
    x, counts = primals
    x_dot, counts_dot = tangents
    loss = poisson(x, counts)
    return loss, broadcast_tangent(
        scale_tangent(_poisson_slope(x, counts), x_dot) + scale_tangent(-x, counts_dot), loss
    )


@jax.custom_jvp
def _poisson_slope(x: jax.Array, counts: jax.Array) -> jax.Array:
    """exp(x) - counts."""
    shift, small, large = _shifted(x)
    return (jnp.exp(x - shift) - counts * small) * large


@_poisson_slope.defjvp
def _poisson_slope_jvp(primals, tangents):
    x, counts = primals
    x_dot, counts_dot = tangents
    return _poisson_slope(x, counts), jnp.exp(x) * x_dot - counts_dot


@jax.custom_jvp
def poisson_surprise(x: jax.Array, counts: jax.Array) -> jax.Array:
    """exp(x) - counts * x + log(counts!) per element, for real counts >= 0.

    The logarithm of a large factorial cancels most of counts * x where the rate exp(x) is about
    right. There the loss is counts * (exp(d) - 1 - d) with d = x - log(counts), plus what
    log(counts!) is more than counts * log(counts) - counts.
    """
    few, more = jnp.minimum(counts, _FEW), jnp.maximum(counts, _FEW)
    log_more, rate = jnp.log(more), jnp.exp(x)
    distance = x - log_more
    near = more * _exponential_excess(jnp.minimum(distance, 1.0))
    # An infinite rate outweighs the rest.
    off = jnp.where(rate < jnp.inf, more * (jnp.clip(distance, 1.0, 200.0) + 1.0), 0.0)
    of_more = jnp.where(distance < 1.0, near, rate - off) + _factorial_excess(more, log_more)
    return jnp.where(counts < _FEW, poisson(x, few) + _log_small_factorial(few), of_more)


@functools.partial(poisson_surprise.defjvp, symbolic_zeros=True)
def _poisson_surprise_jvp(primals, tangents):
    x, counts = primals
    x_dot, counts_dot = tangents
    loss_dot = scale_tangent(_poisson_slope(x, counts), x_dot)
    if not isinstance(counts_dot, SymbolicZero):
        loss_dot += _count_slope(x, counts) * counts_dot
    loss = poisson_surprise(x, counts)
    return loss, broadcast_tangent(loss_dot, loss)


@jax.custom_jvp
def _count_slope(x: jax.Array, counts: jax.Array) -> jax.Array:
    """The derivative of log(counts!), which is digamma(1 + counts), minus x."""
    few, many = jnp.minimum(counts, _MANY), jnp.maximum(counts, _MANY)
    inverse = 1.0 / many
    square = jnp.square(inverse)
    rest = 0.5 * inverse - square * polynomial(square, _STIRLING_SLOPE)
    return jnp.where(counts < _MANY, jax.lax.digamma(1.0 + few) - x, (jnp.log(many) - x) + rest)


@_count_slope.defjvp
def _count_slope_jvp(primals, tangents):
    x, counts = primals
    x_dot, counts_dot = tangents
    bend = jax.lax.polygamma(jnp.ones_like(counts), 1.0 + counts)
    return _count_slope(x, counts), bend * counts_dot - x_dot


def _exponential_excess(u: jax.Array) -> jax.Array:
    """exp(u) - 1 - u >= 0, without cancellation where u is small."""
    is_small = jnp.abs(u) < 0.6
    series = expm1_minus_x(jnp.where(is_small, u, 0.0))
    return jnp.where(is_small, series, jnp.expm1(u) - u)


def _log_small_factorial(counts: jax.Array) -> jax.Array:
    """log(counts!) for 0 <= counts <= 1.5, where it has zeros at 0 and 1."""
    below = counts < 0.5
    offset = jnp.where(below, counts, counts - 1.0)
    factor = jnp.log1p(jnp.where(below, counts, 0.0))
    return offset * polynomial(offset, _LOG_GAMMA) - factor


def _factorial_excess(counts: jax.Array, log_counts: jax.Array) -> jax.Array:
    """log(counts!) - counts * log(counts) + counts for counts >= 1.5: nearly a logarithm.

    For many it is the rest of Stirling's series. For fewer, factors are split off the factorial,
    each over the count to keep the sum small, until it is that of a number in [0.5, 1.5].
    """
    few, many = jnp.minimum(counts, _MANY), jnp.maximum(counts, _MANY)
    left, ratio = few, jnp.ones_like(few)
    for _ in range(int(_MANY) - 1):
        is_far = left > _FEW
        ratio = jnp.where(is_far, ratio * (left / few), ratio)
        left = jnp.where(is_far, left - 1.0, left)
    offset = left - 1.0
    of_few = few + (jnp.log(ratio) - left * jnp.minimum(log_counts, math.log(_MANY)))
    of_few += offset * polynomial(offset, _LOG_GAMMA)
    inverse = 1.0 / many
    series = inverse * polynomial(jnp.square(inverse), _STIRLING)
    of_many = 0.5 * (log_counts + math.log(2.0 * math.pi)) + series
    return jnp.where(counts < _MANY, of_few, of_many)
