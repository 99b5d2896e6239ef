"""Angles between vectors on the last axis, of any length and however nearly parallel.

1 - cos(a, b) cancels where the vectors are nearly parallel, and so does the difference of two unit
vectors, which are rounded. The part of b that is perpendicular to a does not, if the projection is
subtracted in exact products, and the projection of what is left once more.
"""

import functools
import operator
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import safe_reciprocal
from jaxent._float.tangents import Arrays, Dual, Pair, Tangents, broadcast_tangent, dot_tangent
from jaxent._float.two_part import exact_products

# Scales: powers of two that bring vectors into a range where squares neither overflow nor vanish.


def power_of_two_near(size: jax.Array) -> jax.Array:
    """A power of two near a size >= 0, normal as is its reciprocal; 1 for a size of 0."""
    info = jnp.finfo(size.dtype)
    # Of zeros known at compile time XLA would multiply the large scales first: 0 * inf is NaN.
    size = jnp.where(size == 0.0, 1.0, size)
    normal = jnp.clip(size, float(info.tiny), 2.0 ** (info.maxexp - 2))
    return jax.lax.reduce_precision(normal, info.nexp, 0)


def unit_scale(x: jax.Array) -> jax.Array:
    """A power of two for each row, [..., 1]: times it, the largest entry is near 1."""
    largest = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), axis=-1, keepdims=True)
    return 1.0 / power_of_two_near(largest)


def _needs_no_scale(square: jax.Array) -> jax.Array:
    """Whether vectors of these squared lengths can all be multiplied as they are."""
    return jnp.all((square > 2.0**-12) & (square < 2.0**60))


# Two vectors, and the part of one that is perpendicular to the other.


def _subtract_product(b: jax.Array, factor: jax.Array, a: jax.Array) -> jax.Array:
    """The difference b - factor * a, as if it were rounded only once."""
    return functools.reduce(operator.sub, exact_products(factor, a), b)


def _drop_last_bit(x: jax.Array) -> jax.Array:
    """`x` rounded to one binary digit less than its dtype has."""
    info = jnp.finfo(x.dtype)
    return jax.lax.reduce_precision(x, info.nexp, info.nmant - 1)


# Above this |cosine| differences of unit vectors, and 1 - cosine, lose more than a digit or two.
_NEARLY_PARALLEL = 0.7


class _Vectors(NamedTuple):
    """Vectors, and what they are divided by: the length, or the floor if that is larger."""

    given: jax.Array  # [..., V]
    scale: jax.Array  # [..., 1], a power of two
    inverse_square: jax.Array  # [..., 1], 1 / |scaled|**2, 0 for zeros
    inverse_length: jax.Array  # [..., 1], 1 / |scaled|, 0 for zeros
    length_ratio: jax.Array  # [..., 1], length / divisor: 1, or less for vectors below the floor
    inverse_divisor: Pair  # [..., 1], 1 / divisor as the product of two factors

    def scaled(self) -> jax.Array:
        """The vectors in a range where squares and products are safe.

        A method, since XLA would write a field to memory where a branch uses it.
        """
        return self.given * self.scale

    def units(self) -> jax.Array:
        """The vectors over their lengths."""
        return self.scaled() * self.inverse_length

    def is_above_floor(self) -> jax.Array:
        """Whether a vector is divided by its own length, [..., 1]."""
        return self.length_ratio == 1.0

    def divide(self, x: jax.Array) -> jax.Array:
        """`x` over the divisor, in two steps that stay in range."""
        return x * self.inverse_divisor[0] * self.inverse_divisor[1]


def _prepare(
    a: jax.Array, b: jax.Array, floor: jax.Array | None
) -> tuple[_Vectors, _Vectors, jax.Array]:
    """Both vectors, and the inner product [..., 1] of the scaled ones.

    The scales are 1 if all lengths are ordinary, which saves two passes for the largest entries.
    """

    def products(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(jnp.sum(x * y, axis=-1, keepdims=True) for x, y in ((a, a), (b, b), (a, b)))

    def with_scales() -> tuple[jax.Array, ...]:
        scales = unit_scale(a), unit_scale(b)
        return *scales, *products(a * scales[0], b * scales[1])

    unscaled = products(a, b)
    ones = (jnp.ones_like(unscaled[0]), jnp.ones_like(unscaled[1]))
    a_scale, b_scale, a_square, b_square, product = jax.lax.cond(
        _needs_no_scale(unscaled[0]) & _needs_no_scale(unscaled[1]),
        lambda: (*ones, *unscaled),
        with_scales,
    )
    return (
        _with_divisor(a, a_scale, a_square, floor),
        _with_divisor(b, b_scale, b_square, floor),
        product,
    )


def _with_divisor(
    given: jax.Array, scale: jax.Array, square: jax.Array, floor: jax.Array | None
) -> _Vectors:
    length = jnp.sqrt(square)
    inverse_length = safe_reciprocal(length)
    length_ratio, inverse_divisor = jnp.ones_like(length), (inverse_length, scale)
    if floor is not None:
        positive_floor = jnp.where(floor > 0.0, floor, jnp.ones_like(floor))
        # A length that overflows is above the floor as well.
        ratio = jnp.minimum(length * (1.0 / (scale * positive_floor)), 1.0)
        length_ratio = jnp.where(floor > 0.0, ratio, length_ratio)
        inverse_divisor = (
            jnp.where(length_ratio == 1.0, inverse_length, 1.0 / positive_floor),
            jnp.where(length_ratio == 1.0, scale, 1.0),
        )
    inverse_square = safe_reciprocal(square)
    return _Vectors(given, scale, inverse_square, inverse_length, length_ratio, inverse_divisor)


def _cosine(a: _Vectors, b: _Vectors, product: jax.Array) -> jax.Array:
    return jnp.clip(product * a.inverse_length * b.inverse_length, -1.0, 1.0)


def _perpendicular(a: _Vectors, b: _Vectors, product: jax.Array) -> jax.Array:
    """The part of b's unit vector that is perpendicular to a, accurate relative to its own size.

    It is exactly 0 where b is a times a number of the dtype.
    """
    a_scaled, b_scaled = a.scaled(), b.scaled()

    def coefficient(x: jax.Array) -> jax.Array:
        """<a, x> / <a, a>."""
        return jnp.sum(a_scaled * x, axis=-1, keepdims=True) * a.inverse_square

    # Rounded, so that no use of the factor contracts a product and the sum: what is subtracted
    # below would otherwise not be what is corrected.
    factor = _drop_last_bit(product * a.inverse_square)
    factor += _drop_last_bit(coefficient(_subtract_product(b_scaled, factor, a_scaled)))
    rest = _subtract_product(b_scaled, factor, a_scaled)
    for _ in range(2):
        rest -= coefficient(rest) * a_scaled
    return rest * b.inverse_length


# Similarity and distance.


@jax.custom_jvp
def cosine_similarity(a: jax.Array, b: jax.Array, floor: jax.Array | None = None) -> jax.Array:
    """<a, b> / (max(|a|, floor) * max(|b|, floor)) over the last axis; the floor is a constant.

    Without a floor a vector of zeros has similarity 0 to everything.
    """
    first, second, product = _prepare(a, b, floor)
    cosine = _cosine(first, second, product)
    return (cosine * (first.length_ratio * second.length_ratio))[..., 0]


@jax.custom_jvp
def cosine_distance(a: jax.Array, b: jax.Array, floor: jax.Array | None = None) -> jax.Array:
    """1 - `cosine_similarity`, without the cancellation."""
    first, second, product = _prepare(a, b, floor)
    cosine = _cosine(first, second, product)
    length_ratio = first.length_ratio * second.length_ratio
    plain = 1.0 - cosine * length_ratio
    is_nearly_parallel = (cosine > _NEARLY_PARALLEL) & (length_ratio == 1.0)

    def accurate() -> jax.Array:
        # sin**2 / (1 + cos) = 1 - cos.
        sine = _perpendicular(first, second, product)
        square = jnp.sum(jnp.square(sine), -1, keepdims=True)
        return jnp.where(is_nearly_parallel, square / (1.0 + cosine), plain)

    return jax.lax.cond(jnp.any(is_nearly_parallel), accurate, lambda: plain)[..., 0]


@functools.partial(cosine_similarity.defjvp, symbolic_zeros=True)
def _cosine_similarity_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    similarity = cosine_similarity(*primals)
    return similarity, broadcast_tangent(_similarity_dot(primals, tangents), similarity)


@functools.partial(cosine_distance.defjvp, symbolic_zeros=True)
def _cosine_distance_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    distance = cosine_distance(*primals)
    return distance, broadcast_tangent(-_similarity_dot(primals, tangents), distance)


def _similarity_dot(primals: Arrays, tangents: Tangents) -> jax.Array | float:
    grads = _similarity_grads(*primals)
    return dot_tangent(grads[0], tangents[0]) + dot_tangent(grads[1], tangents[1])


@jax.custom_jvp
def _similarity_grads(a: jax.Array, b: jax.Array, floor: jax.Array | None) -> Pair:
    """The gradients of `cosine_similarity` in both vectors."""
    first, second, product = _prepare(a, b, floor)
    cosine = _cosine(first, second, product)

    def grads(perpendiculars: Callable[[], Pair]) -> Pair:
        first_grad, second_grad = _grads_times_divisors(first, second, *perpendiculars())
        return first.divide(first_grad), second.divide(second_grad)

    return jax.lax.cond(
        jnp.any(jnp.abs(cosine) > _NEARLY_PARALLEL),
        lambda: grads(lambda: _accurate_perpendiculars(first, second, product, cosine)),
        lambda: grads(lambda: _plain_perpendiculars(first, second, cosine)),
    )


def _accurate_perpendiculars(
    a: _Vectors, b: _Vectors, product: jax.Array, cosine: jax.Array
) -> Pair:
    """The part of b's unit vector perpendicular to a, and of a's perpendicular to b."""
    of_b = _perpendicular(a, b, product)
    # The other one follows from it, which saves a second projection.
    square = jnp.sum(jnp.square(of_b), axis=-1, keepdims=True)
    return of_b, square * a.units() - cosine * of_b


def _plain_perpendiculars(a: _Vectors, b: _Vectors, cosine: jax.Array) -> Pair:
    """The same where neither difference cancels."""
    return b.units() - cosine * a.units(), a.units() - cosine * b.units()


def _grads_times_divisors(
    a: _Vectors, b: _Vectors, b_perpendicular: jax.Array, a_perpendicular: jax.Array
) -> Pair:
    """The gradients of the similarity in both vectors, each times the divisor of its vector.

    A vector below the floor is divided by a constant, so its gradient is all of the other vector.
    """
    return (
        jnp.where(a.is_above_floor(), b_perpendicular, b.units()) * b.length_ratio,
        jnp.where(b.is_above_floor(), a_perpendicular, a.units()) * a.length_ratio,
    )


@functools.partial(_similarity_grads.defjvp, symbolic_zeros=True)
def _similarity_grads_jvp(primals: Arrays, tangents: Tangents) -> tuple[Pair, Pair]:
    a, b, floor = primals
    first, second, product = _prepare(a, b, floor)
    pair, cosine = (first, second), _cosine(first, second, product)
    perpendiculars = _accurate_perpendiculars(first, second, product, cosine)
    grads = _grads_times_divisors(first, second, *perpendiculars)
    similarity = cosine * (first.length_ratio * second.length_ratio)
    # Tangents over divisors: all that follows is of their size, until it is divided once more.
    dots = [
        jnp.zeros_like(each.given) if isinstance(dot, SymbolicZero) else each.divide(dot)
        for each, dot in zip(pair, tangents[:2], strict=True)
    ]
    similarity_dot = jnp.sum(grads[0] * dots[0] + grads[1] * dots[1], axis=-1, keepdims=True)
    divided = [each.units() * each.length_ratio for each in pair]
    radial = [
        jnp.sum(u * dot, axis=-1, keepdims=True) for u, dot in zip(divided, dots, strict=True)
    ]
    tangential = [
        jnp.where(each.is_above_floor(), dot - u * r, dot)
        for each, dot, u, r in zip(pair, dots, divided, radial, strict=True)
    ]
    grads_dot = []
    for i, each in enumerate(pair):
        from_own = divided[i] * similarity_dot + similarity * tangential[i] + grads[i] * radial[i]
        grad_dot = tangential[1 - i] - jnp.where(each.is_above_floor(), from_own, 0.0)
        grads_dot.append(each.divide(grad_dot))
    return _similarity_grads(*primals), (grads_dot[0], grads_dot[1])
