"""Non-negative numbers of any size: a mantissa times a power of 256 with an exponent of its own.

Products of thousands of probabilities leave the range of every dtype. Their logarithms do not, but
each rounding of a logarithm of -1000 is a relative error a thousand times as large, and a sum of
such numbers takes exponentials and logarithms. Here a sum takes shifts and additions and is as
accurate as a sum of ordinary numbers. Exponents are constants, so the derivatives are those of the
mantissas.

Exponents are floating-point multiples of 1/8 (one power of two), so sums of many of them are exact.
Their range is that of the logarithms of the dtype. Only beyond 2**21 in float32 does a sum of
exponents lose powers of two. The logarithms of such numbers, about 1e7, are known to within 1, and
so the numbers to within a factor.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._float.dtypes import integer_dtype
from jaxent._float.two_part import LOG_2, two_diff

_LOG_256 = 8.0 * math.log(2.0)


class Scaled(NamedTuple):
    """The numbers `mantissa * 256**exponent`; 0 has the exponent `zero_exponent`."""

    mantissa: jax.Array  # [...]
    exponent: jax.Array  # [...]


def zero_exponent(dtype: jnp.dtype) -> float:
    """The exponent of 0, low enough for every sum, of which twice is still finite."""
    return -0.25 * float(jnp.finfo(dtype).max)


def as_scaled(values: jax.Array) -> Scaled:
    """Ordinary numbers >= 0 as scaled ones."""
    return Scaled(
        values, jnp.where(values > 0.0, 0.0, zero_exponent(values.dtype)).astype(values.dtype)
    )


def power_of_256(exponent: jax.Array) -> jax.Array:
    """256**exponent for exponents of at most 15; 0 where that is below the range of the dtype."""
    info = jnp.finfo(exponent.dtype)
    places = jnp.maximum(8.0 * exponent + (info.maxexp - 1), 0.0)
    places = places.astype(integer_dtype(exponent.dtype)) << info.nmant
    return jax.lax.bitcast_convert_type(places, exponent.dtype)


def leading_exponent(numbers: Scaled) -> jax.Array:
    """The exponent of the largest power of two in each number, log2(number) / 8 rounded down."""
    info = jnp.finfo(numbers.mantissa.dtype)
    mantissa = jax.lax.stop_gradient(numbers.mantissa)
    places = jax.lax.bitcast_convert_type(mantissa, integer_dtype(mantissa.dtype)) >> info.nmant
    places = places.astype(mantissa.dtype) - (info.maxexp - 1)
    return numbers.exponent + 0.125 * places


def add(*terms: Scaled) -> Scaled:
    """The sum of the terms, with a mantissa from 1 to twice their number."""
    exponent = functools.reduce(jnp.maximum, map(leading_exponent, terms))
    mantissas = [term.mantissa * power_of_256(term.exponent - exponent) for term in terms]
    return Scaled(functools.reduce(jnp.add, mantissas), exponent)


def sum_last_axis(terms: Scaled) -> Scaled:
    """The sum over the last axis, with a mantissa from 1 to twice the number of terms."""
    exponent = jnp.max(leading_exponent(terms), axis=-1, keepdims=True)
    mantissa = jnp.sum(terms.mantissa * power_of_256(terms.exponent - exponent), axis=-1)
    return Scaled(mantissa, exponent[..., 0])


def multiply(a: Scaled, b: Scaled) -> Scaled:
    """The product; its mantissa is the product of the mantissas."""
    exponent = jnp.maximum(a.exponent + b.exponent, zero_exponent(a.exponent.dtype))
    return Scaled(a.mantissa * b.mantissa, exponent)


def divide(a: Scaled, b: Scaled) -> Scaled:
    """The quotient, and 0 for 0 / 0; its mantissa is the quotient of the mantissas."""
    is_nonzero = b.mantissa != 0.0
    exponent = jnp.maximum(a.exponent - b.exponent, zero_exponent(a.exponent.dtype))
    exponent = jnp.where(is_nonzero, exponent, zero_exponent(a.exponent.dtype))
    return Scaled(a.mantissa / jnp.where(is_nonzero, b.mantissa, 1.0), exponent)


def reciprocal(value: jax.Array) -> Scaled:
    """1 / value of an ordinary number >= 0, and 0 for 0."""
    exponent = leading_exponent(as_scaled(value))
    is_nonzero = value != 0.0
    mantissa = jnp.where(is_nonzero, value, 1.0) * power_of_256(
        jnp.where(is_nonzero, -exponent, 0.0)
    )
    exponent = jnp.where(is_nonzero, -exponent, zero_exponent(value.dtype))
    return Scaled(jnp.where(is_nonzero, 1.0 / mantissa, 0.0), exponent)


def neg_log(number: Scaled) -> jax.Array:
    """-log of a number; +inf, with derivative 0, for 0."""
    # A mantissa in [1/2, 1), so that both terms are >= 0 for numbers below 1.
    exponent = leading_exponent(number) + 0.125
    is_nonzero = number.mantissa != 0.0
    mantissa = jnp.where(is_nonzero, number.mantissa, 1.0)
    mantissa *= power_of_256(jnp.where(is_nonzero, number.exponent - exponent, 0.0))
    return jnp.where(is_nonzero, -jnp.log(mantissa) - exponent * _LOG_256, jnp.inf)


def exp_diff(x: jax.Array, shift: jax.Array) -> Scaled:
    """exp(x - shift), and 0 where x is -inf.

    Args:
        x: of any size, at most about `shift`; -inf for zero.
        shift: finite.
    """
    is_nonzero = x != -jnp.inf
    # Halves, since the difference of two finite numbers may overflow.
    half, rounded_off = two_diff(0.5 * jnp.where(is_nonzero, x, shift), 0.5 * shift)
    exponent = jax.lax.stop_gradient(half) * (2.0 / _LOG_256)
    is_coarse = jnp.abs(exponent) > 2.0**20
    exponent = jnp.where(is_coarse, exponent, 0.125 * jnp.round(8.0 * exponent))
    rounded_off = jnp.where(is_coarse, 0.0, jax.lax.stop_gradient(rounded_off))
    mantissa = jnp.exp(_subtract_power(half, exponent, is_coarse) + 2.0 * rounded_off)
    exponent = jnp.where(is_nonzero, exponent, zero_exponent(x.dtype))
    return Scaled(
        jnp.where(is_nonzero, mantissa, 0.0), jnp.maximum(exponent, zero_exponent(x.dtype))
    )


def _subtract_power(half: jax.Array, exponent: jax.Array, is_coarse: jax.Array) -> jax.Array:
    """2 * half - log(256**exponent), of the size of log(2) / 2.

    The three parts of log(2) are subtracted one after the other; multiples of the first two are
    exact. Where the exponent is coarse, nothing is known of the difference but its derivative.
    """
    high, middle, low = LOG_2[half.dtype.itemsize]
    places = jnp.where(is_coarse, 0.0, 8.0 * exponent)
    half = half - jnp.where(is_coarse, jax.lax.stop_gradient(half), 0.0)
    return ((2.0 * half - places * high) - places * middle) - places * low
