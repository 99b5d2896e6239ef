"""Angles between vectors on the last axis, of any length and however nearly parallel.

One minus a cosine cancels, and so does the difference of two unit vectors, which have been rounded.
What a vector has beside its projection on another does not, if the projection is subtracted in
exact products, and once more for what the rounding of the first left over.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import safe_reciprocal
from jaxent._float.tangents import broadcast_tangent, dot_tangent


def power_of_two(size: jax.Array) -> jax.Array:
    """A power of two near a size >= 0, ordinary as is its reciprocal; 1 for a size of 0."""
    info = jnp.finfo(size.dtype)
    # Of zeros that it knows of, the compiler would multiply the squares of a large factor first.
    size = jnp.where(size == 0.0, 1.0, size)
    ordinary = jnp.clip(size, float(info.tiny), 2.0 ** (info.maxexp - 2))
    return jax.lax.reduce_precision(ordinary, info.nexp, 0)


def is_ordinary(square: jax.Array) -> jax.Array:
    """Whether all rows of these squared lengths can be multiplied without scaling them first."""
    return jnp.all((square > 2.0**-12) & (square < 2.0**60))


def over_unit(x: jax.Array) -> jax.Array:
    """1 over a power of two for each row [..., 1], near its largest entry."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    return 1.0 / power_of_two(largest)


def _split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The leading half of the digits and the rest; products of such halves are exact."""
    info = jnp.finfo(x.dtype)
    high = jax.lax.reduce_precision(x, info.nexp, (info.nmant - 1) // 2)
    return high, x - high


def _beyond(b: jax.Array, factor: jax.Array, a: jax.Array) -> jax.Array:
    """The difference b - factor * a as if it were rounded only once."""
    (high, low), (a_high, a_low) = _split(factor), _split(a)
    return (((b - high * a_high) - high * a_low) - low * a_high) - low * a_low


# The cosine from which differences of unit vectors, and from 1, lose more than a digit or two.
_NARROW = 0.7


class _Vectors(NamedTuple):
    """Rows, and what they are divided by."""

    given: jax.Array  # [..., V]
    over_unit: jax.Array  # [..., 1], a power of two
    over_square: jax.Array  # [..., 1], 1 over the square of the length of `rows`, 0 for zeros
    over_length: jax.Array  # [..., 1], 1 over the length of `rows`, 0 for zeros
    share: jax.Array  # [..., 1], of the length in the divisor: 1, or less beneath the floor
    over: tuple[jax.Array, jax.Array]  # [..., 1], 1 over the divisor in two factors

    def rows(self) -> jax.Array:
        """The vectors in a range where squares and products are safe.

        A field would be a buffer where a branch uses it.
        """
        return self.given * self.over_unit

    def units(self) -> jax.Array:
        return self.rows() * self.over_length

    def is_free(self) -> jax.Array:
        """Whether a vector is divided by its own length, [..., 1]."""
        return self.share == 1.0

    def divided(self, x: jax.Array) -> jax.Array:
        """`x` over the divisor, in two steps that stay in range."""
        return x * self.over[0] * self.over[1]


def _pair(
    a: jax.Array, b: jax.Array, floor: jax.Array | None
) -> tuple[_Vectors, _Vectors, jax.Array]:
    """Both vectors, and the product [..., 1] of their rows.

    The units are 1 if all rows are of ordinary size, which spares two passes for their maxima.
    """

    def products(a, b):
        return tuple(jnp.sum(x * y, axis=-1, keepdims=True) for x, y in ((a, a), (b, b), (a, b)))

    def scaled():
        units = over_unit(a), over_unit(b)
        return *units, *products(a * units[0], b * units[1])

    plain = products(a, b)
    ones = (jnp.ones_like(plain[0]), jnp.ones_like(plain[1]))
    a_unit, b_unit, a_square, b_square, product = jax.lax.cond(
        is_ordinary(plain[0]) & is_ordinary(plain[1]), lambda: (*ones, *plain), scaled
    )
    return _vectors(a, a_unit, a_square, floor), _vectors(b, b_unit, b_square, floor), product


def _vectors(given, over_unit, square, floor: jax.Array | None) -> _Vectors:
    length = jnp.sqrt(square)
    over_length = safe_reciprocal(length)
    share, over = jnp.ones_like(length), (over_length, over_unit)
    if floor is not None:
        least = jnp.where(floor > 0.0, floor, jnp.ones_like(floor))
        # A length beyond the range of the dtype is beyond the floor as well.
        reached = jnp.minimum(length * (1.0 / (over_unit * least)), 1.0)
        share = jnp.where(floor > 0.0, reached, share)
        over = (
            jnp.where(share == 1.0, over_length, 1.0 / least),
            jnp.where(share == 1.0, over_unit, 1.0),
        )
    return _Vectors(given, over_unit, safe_reciprocal(square), over_length, share, over)


def _cosine(a: _Vectors, b: _Vectors, product: jax.Array) -> jax.Array:
    return jnp.clip(product * a.over_length * b.over_length, -1.0, 1.0)


def _perpendicular(a: _Vectors, b: _Vectors, product: jax.Array) -> jax.Array:
    """The part of b's unit vector that is perpendicular to a, accurate relative to its own size.

    Nothing at all is left of a multiple of a by a number of the dtype.
    """
    rows, others = a.rows(), b.rows()

    def along(x):
        return jnp.sum(rows * x, axis=-1, keepdims=True) * a.over_square

    factor = product * a.over_square
    factor += along(_beyond(others, factor, rows))
    rest = _beyond(others, factor, rows)
    for _ in range(2):
        rest -= along(rest) * rows
    return rest * b.over_length


@jax.custom_jvp
def cosine_similarity(a: jax.Array, b: jax.Array, floor: jax.Array | None = None) -> jax.Array:
    """<a, b> / (|a| |b|) over the last axis, where no length is taken for less than `floor`.

    The floor is a constant; without one a vector of zeros has similarity 0 to everything.
    """
    first, second, product = _pair(a, b, floor)
    return (_cosine(first, second, product) * (first.share * second.share))[..., 0]


@jax.custom_jvp
def cosine_distance(a: jax.Array, b: jax.Array, floor: jax.Array | None = None) -> jax.Array:
    """1 - `cosine_similarity`, without the cancellation."""
    first, second, product = _pair(a, b, floor)
    cosine = _cosine(first, second, product)
    share = first.share * second.share
    whole = 1.0 - cosine * share
    is_narrow = (cosine > _NARROW) & (share == 1.0)

    def narrow():
        square = jnp.sum(jnp.square(_perpendicular(first, second, product)), -1, keepdims=True)
        return jnp.where(is_narrow, square / (1.0 + cosine), whole)

    return jax.lax.cond(jnp.any(is_narrow), narrow, lambda: whole)[..., 0]


@functools.partial(cosine_similarity.defjvp, symbolic_zeros=True)
def _cosine_similarity_jvp(primals, tangents):
    similarity = cosine_similarity(*primals)
    return similarity, broadcast_tangent(_along_slopes(primals, tangents), similarity)


@functools.partial(cosine_distance.defjvp, symbolic_zeros=True)
def _cosine_distance_jvp(primals, tangents):
    distance = cosine_distance(*primals)
    return distance, broadcast_tangent(-_along_slopes(primals, tangents), distance)


def _along_slopes(primals, tangents) -> jax.Array | float:
    slopes = _slopes(*primals)
    return dot_tangent(slopes[0], tangents[0]) + dot_tangent(slopes[1], tangents[1])


@jax.custom_jvp
def _slopes(a: jax.Array, b: jax.Array, floor: jax.Array | None):
    """The gradients of `cosine_similarity` in both arguments."""
    first, second, product = _pair(a, b, floor)
    cosine = _cosine(first, second, product)

    def slopes(relative: Callable) -> tuple[jax.Array, jax.Array]:
        first_slope, second_slope = _beneath_floors(first, second, *relative())
        return first.divided(first_slope), second.divided(second_slope)

    return jax.lax.cond(
        jnp.any(jnp.abs(cosine) > _NARROW),
        lambda: slopes(lambda: _narrow_slopes(first, second, product, cosine)),
        lambda: slopes(lambda: _wide_slopes(first, second, cosine)),
    )


def _narrow_slopes(a: _Vectors, b: _Vectors, product, cosine) -> tuple[jax.Array, jax.Array]:
    """What each vector's unit has perpendicular to the other: first of b, then of a."""
    beside = _perpendicular(a, b, product)
    # The same seen from the other vector, without a second projection.
    square = jnp.sum(jnp.square(beside), axis=-1, keepdims=True)
    return beside, square * a.units() - cosine * beside


def _wide_slopes(a: _Vectors, b: _Vectors, cosine) -> tuple[jax.Array, jax.Array]:
    """The same where neither difference cancels."""
    return b.units() - cosine * a.units(), a.units() - cosine * b.units()


def _beneath_floors(a: _Vectors, b: _Vectors, a_slope, b_slope) -> tuple[jax.Array, jax.Array]:
    """The gradients times the divisors of their vectors.

    A vector beneath the floor is divided by a constant, and has all of the other as its gradient.
    """
    return (
        jnp.where(a.is_free(), a_slope, b.units()) * b.share,
        jnp.where(b.is_free(), b_slope, a.units()) * a.share,
    )


@functools.partial(_slopes.defjvp, symbolic_zeros=True)
def _slopes_jvp(primals, tangents):
    a, b, floor = primals
    first, second, product = _pair(a, b, floor)
    pair, cosine = (first, second), _cosine(first, second, product)
    slopes = _beneath_floors(first, second, *_narrow_slopes(first, second, product, cosine))
    similarity = cosine * (first.share * second.share)
    # All that follows is of the order of these relative moves, until it is divided once more.
    moves = [
        jnp.zeros_like(each.given) if isinstance(dot, SymbolicZero) else each.divided(dot)
        for each, dot in zip(pair, tangents[:2], strict=True)
    ]
    change = jnp.sum(slopes[0] * moves[0] + slopes[1] * moves[1], axis=-1, keepdims=True)
    units = [each.units() * each.share for each in pair]
    ahead = [jnp.sum(u * x, axis=-1, keepdims=True) for u, x in zip(units, moves, strict=True)]
    aside = [
        jnp.where(each.is_free(), x - u * along, x)
        for each, x, u, along in zip(pair, moves, units, ahead, strict=True)
    ]
    slopes_dot = []
    for i, each in enumerate(pair):
        turned = units[i] * change + similarity * aside[i] + slopes[i] * ahead[i]
        bend = aside[1 - i] - jnp.where(each.is_free(), turned, 0.0)
        slopes_dot.append(each.divided(bend))
    return _slopes(*primals), tuple(slopes_dot)
