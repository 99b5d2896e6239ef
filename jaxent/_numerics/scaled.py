"""Non-negative numbers of any size: a mantissa times a power of two that has its own place.

Products of thousands of probabilities leave the range of every dtype. Their logarithms do not, but
a logarithm of a thousand carries a thousand times the rounding of the number, at every step, and a
sum of such numbers takes exponentials and logarithms. Here a sum takes shifts and additions, is as
accurate as one of ordinary numbers, and its derivatives are those of the mantissas: exponents are
constants.

The exponents are floating point, in bytes (256 to the power of the exponent), and multiples of an
eighth: so sums of many of them are exact, and their range is that of the logarithms of the dtype.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._numerics.elementary import two_part_difference
from jaxent._numerics.ground import reciprocal

_BYTE = 8.0 * math.log(2.0)
# log(2) in parts of a third of the digits of a dtype, by its size in bytes.
_LOG_2 = {
    4: (177 / 2**8, 114 / 2**16, 1.4286068203094173e-06),
    8: (90852 / 2**17, 24543 / 2**34, 1.619851018665656e-11),
}


class Scaled(NamedTuple):
    """The numbers `mantissa * 256**exponent`; zeros have the lowest exponent of all."""

    mantissa: jax.Array
    exponent: jax.Array


def lowest(dtype: jnp.dtype) -> float:
    """The exponent of zero, twice of which is still a number."""
    return -0.25 * float(jnp.finfo(dtype).max)


def constant(values: jax.Array) -> Scaled:
    """Zeros and ones."""
    return Scaled(values, jnp.where(values > 0.0, 0.0, lowest(values.dtype)).astype(values.dtype))


def normalized(mantissa: jax.Array, exponent: jax.Array) -> Scaled:
    """The same numbers with mantissas in [1, 2), or 0."""
    info = jnp.finfo(mantissa.dtype)
    places = _bits(jax.lax.stop_gradient(mantissa)) >> info.nmant
    factor = jax.lax.bitcast_convert_type(
        (2 * (info.maxexp - 1) - places) << info.nmant, mantissa.dtype
    )
    places = (places - (info.maxexp - 1)).astype(mantissa.dtype)
    exponent = jnp.maximum(exponent + 0.125 * places, lowest(mantissa.dtype))
    return Scaled(mantissa * factor, exponent)


def power(exponent: jax.Array) -> jax.Array:
    """256**exponent for an exponent of at most 0, and 0 where it is beneath the range."""
    info = jnp.finfo(exponent.dtype)
    places = jnp.maximum(8.0 * exponent + (info.maxexp - 1), 0.0)
    places = places.astype(_integers(exponent.dtype)) << info.nmant
    return jax.lax.bitcast_convert_type(places, exponent.dtype)


def total(*terms: Scaled) -> Scaled:
    """The sum of the terms, whose mantissa has yet to be normalised."""
    exponent = terms[0].exponent
    for term in terms[1:]:
        exponent = jnp.maximum(exponent, term.exponent)
    mantissa = terms[0].mantissa * power(terms[0].exponent - exponent)
    for term in terms[1:]:
        mantissa += term.mantissa * power(term.exponent - exponent)
    return Scaled(mantissa, exponent)


def product(a: Scaled, b: Scaled) -> Scaled:
    return normalized(a.mantissa * b.mantissa, a.exponent + b.exponent)


def minus_log(number: Scaled) -> jax.Array:
    """-log of a number, +inf for 0, where the derivative is 0."""
    exists = number.mantissa > 0.0
    half = jnp.where(exists, 0.5 * number.mantissa, 0.5)
    # Both parts have one sign for numbers below 1/2.
    result = -jnp.log(half) - (number.exponent + 0.125) * _BYTE
    return jnp.where(exists | jnp.isnan(number.mantissa), result, jnp.inf)


def ratio(x: jax.Array, shift: jax.Array, total: jax.Array) -> Scaled:
    """exp(x - shift) / total; 0 where x is -inf or the total is 0.

    Args:
        x: of any size, at most about `shift`; -inf for zero.
        shift: finite.
        total: a sum of such exponentials.
    """
    exists = x != -jnp.inf
    x = jnp.where(exists, x, shift)
    # Of half the size, for the difference of two finite numbers may overflow.
    half, lost = two_part_difference(0.5 * x, 0.5 * shift)
    exponent = jax.lax.stop_gradient(half) * (2.0 / _BYTE)
    is_coarse = jnp.abs(exponent) > 2.0**20
    exponent = jnp.where(is_coarse, exponent, 0.125 * jnp.round(8.0 * exponent))
    lost = jnp.where(is_coarse, 0.0, jax.lax.stop_gradient(lost))
    mantissa = jnp.exp(_rest(half, exponent, is_coarse) + 2.0 * lost)
    mantissa = jnp.where(exists, mantissa, 0.0) * reciprocal(total)
    exponent = jnp.where(mantissa > 0.0, exponent, lowest(x.dtype))
    return normalized(mantissa, exponent)


def _rest(half: jax.Array, exponent: jax.Array, is_coarse: jax.Array) -> jax.Array:
    """What the exponent leaves of `2 half`, of the size of log(2) / 2.

    The logarithm of 2 is subtracted in three parts, of which the first two have few digits, so
    that their multiples are exact. A number so large that it says nothing about the rest keeps its
    derivative only.
    """
    high, middle, low = _LOG_2[half.dtype.itemsize]
    places = jnp.where(is_coarse, 0.0, 8.0 * exponent)
    half = half - jnp.where(is_coarse, jax.lax.stop_gradient(half), 0.0)
    return ((2.0 * half - places * high) - places * middle) - places * low


def _bits(values: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(values, _integers(values.dtype))


def _integers(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.int64 if dtype == jnp.float64 else jnp.int32)
