"""Non-negative numbers of any size: a mantissa times a power of two that has its own place.

Products of thousands of probabilities leave the range of every dtype. Their logarithms do not, but
a logarithm of a thousand carries a thousand times the rounding of the number, at every step, and a
sum of such numbers takes exponentials and logarithms. Here a sum takes shifts and additions, is as
accurate as one of ordinary numbers, and its derivatives are those of the mantissas: exponents are
constants.

The exponents are floating point, in bytes (256 to the power of the exponent), and multiples of an
eighth: so sums of many of them are exact, and their range is that of the logarithms of the dtype.
Only beyond 2**21 in float32, where a logarithm of 1e7 is known to 1, does a sum of exponents lose
powers of two: such a number keeps its logarithm, and its ratio to another to a factor of the like.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._float.two_part import LOG_2, two_diff

_BYTE = 8.0 * math.log(2.0)


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


def power(exponent: jax.Array) -> jax.Array:
    """256**exponent for an exponent of at most 15, and 0 where it is beneath the range."""
    info = jnp.finfo(exponent.dtype)
    places = jnp.maximum(8.0 * exponent + (info.maxexp - 1), 0.0)
    places = places.astype(_integers(exponent.dtype)) << info.nmant
    return jax.lax.bitcast_convert_type(places, exponent.dtype)


def top(numbers: Scaled) -> jax.Array:
    """The exponent of the largest power of two in each number."""
    info = jnp.finfo(numbers.mantissa.dtype)
    mantissa = jax.lax.stop_gradient(numbers.mantissa)
    places = jax.lax.bitcast_convert_type(mantissa, _integers(mantissa.dtype)) >> info.nmant
    places = places.astype(mantissa.dtype) - (info.maxexp - 1)
    return numbers.exponent + 0.125 * places


def total(*terms: Scaled) -> Scaled:
    """The sum of the terms, with a mantissa from 1 to twice their number."""
    exponent = functools.reduce(jnp.maximum, map(top, terms))
    mantissas = [term.mantissa * power(term.exponent - exponent) for term in terms]
    return Scaled(functools.reduce(jnp.add, mantissas), exponent)


def sum_of(terms: Scaled) -> Scaled:
    """The sum along the last axis, with a mantissa from 1 to twice the number of terms."""
    exponent = jnp.max(top(terms), axis=-1, keepdims=True)
    mantissa = jnp.sum(terms.mantissa * power(terms.exponent - exponent), axis=-1)
    return Scaled(mantissa, exponent[..., 0])


def product(a: Scaled, b: Scaled) -> Scaled:
    """The product, with the product of the mantissas."""
    exponent = jnp.maximum(a.exponent + b.exponent, lowest(a.exponent.dtype))
    return Scaled(a.mantissa * b.mantissa, exponent)


def quotient(a: Scaled, b: Scaled) -> Scaled:
    """The quotient, with that of the mantissas, and 0 for 0 / 0."""
    exists = b.mantissa != 0.0
    exponent = jnp.maximum(a.exponent - b.exponent, lowest(a.exponent.dtype))
    exponent = jnp.where(exists, exponent, lowest(a.exponent.dtype))
    return Scaled(a.mantissa / jnp.where(exists, b.mantissa, 1.0), exponent)


def reciprocal(value: jax.Array) -> Scaled:
    """One over a number that is not negative, and 0 for 0."""
    exponent = top(constant(value))
    exists = value != 0.0
    mantissa = jnp.where(exists, value, 1.0) * power(jnp.where(exists, -exponent, 0.0))
    exponent = jnp.where(exists, -exponent, lowest(value.dtype))
    return Scaled(jnp.where(exists, 1.0 / mantissa, 0.0), exponent)


def minus_log(number: Scaled) -> jax.Array:
    """-log of a number, +inf for 0, where the derivative is 0."""
    # With a mantissa below 1 both parts have one sign, for numbers below 1/2.
    exponent = top(number) + 0.125
    exists = number.mantissa != 0.0
    mantissa = jnp.where(exists, number.mantissa, 1.0)
    mantissa *= power(jnp.where(exists, number.exponent - exponent, 0.0))
    return jnp.where(exists, -jnp.log(mantissa) - exponent * _BYTE, jnp.inf)


def exponential(x: jax.Array, shift: jax.Array) -> Scaled:
    """exp(x - shift), and 0 where x is -inf.

    Args:
        x: of any size, at most about `shift`; -inf for zero.
        shift: finite.
    """
    exists = x != -jnp.inf
    # Of half the size, for the difference of two finite numbers may overflow.
    half, lost = two_diff(0.5 * jnp.where(exists, x, shift), 0.5 * shift)
    exponent = jax.lax.stop_gradient(half) * (2.0 / _BYTE)
    is_coarse = jnp.abs(exponent) > 2.0**20
    exponent = jnp.where(is_coarse, exponent, 0.125 * jnp.round(8.0 * exponent))
    lost = jnp.where(is_coarse, 0.0, jax.lax.stop_gradient(lost))
    mantissa = jnp.exp(_rest(half, exponent, is_coarse) + 2.0 * lost)
    exponent = jnp.where(exists, exponent, lowest(x.dtype))
    return Scaled(jnp.where(exists, mantissa, 0.0), jnp.maximum(exponent, lowest(x.dtype)))


def _rest(half: jax.Array, exponent: jax.Array, is_coarse: jax.Array) -> jax.Array:
    """What the exponent leaves of `2 half`, of the size of log(2) / 2.

    The logarithm of 2 is subtracted in three parts, of which the first two have few digits, so
    that their multiples are exact. A number so large that it says nothing about the rest keeps its
    derivative only.
    """
    high, middle, low = LOG_2[half.dtype.itemsize]
    places = jnp.where(is_coarse, 0.0, 8.0 * exponent)
    half = half - jnp.where(is_coarse, jax.lax.stop_gradient(half), 0.0)
    return ((2.0 * half - places * high) - places * middle) - places * low


def _integers(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.int64 if dtype == jnp.float64 else jnp.int32)
