"""Vectors of unit length, losses of the similarities among them, and differences of distances."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._numerics.cross_entropy import soft_cross_entropy
from jaxent._numerics.ground import like, reciprocal, summed_along
from jaxent._numerics.sigmoid import softplus
from jaxent._numerics.similarity import over_unit, power_of_two
from jaxent._numerics.softmax import log_normalizer


def unit(x: jax.Array) -> jax.Array:
    """Each row over its length, whatever that is; a row of zeros stays, and has no gradient."""
    rows = x * over_unit(x)
    square = jnp.sum(jnp.square(rows), axis=-1, keepdims=True)
    is_zero = square == 0.0
    return rows * jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, square)))


def paired_cross_entropy(x: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """-log(exp(x) / (exp(x) + sum of exp of the negatives of its row)) of positives, 0 elsewhere.

    Args:
        x: [..., N, N] logits.
        positive: [..., N, N] booleans.
        negative: [..., N, N] booleans; a row may have none.
    """
    against = log_normalizer(jnp.where(negative, x, -jnp.inf))[..., None]
    return softplus(jnp.where(positive, against - x, -jnp.inf))


def mean_cross_entropy(x: jax.Array, positive: jax.Array, exists: jax.Array) -> jax.Array:
    """Cross-entropy of each row's softmax with a target spread evenly over its positives, [..., N].

    It is 0 for a row without positives.
    """
    some = jnp.any(positive, axis=-1)
    # Of a row on which nothing depends no logit is impossible.
    filling = jnp.where(some, -jnp.inf, 0.0).astype(x.dtype)[..., None]
    count = jnp.sum(positive, axis=-1, dtype=x.dtype)
    loss = soft_cross_entropy(jnp.where(exists, x, filling), positive.astype(x.dtype))
    return loss / jnp.maximum(count, 1.0)


def pairwise_softplus(
    x: jax.Array, y: jax.Array, positive: jax.Array, negative: jax.Array
) -> jax.Array:
    """log(1 + sum of exp(x) over the positives * sum of exp(y) over the negatives), [..., N]."""
    pull = log_normalizer(jnp.where(positive, x, -jnp.inf))
    push = log_normalizer(jnp.where(negative, y, -jnp.inf))
    return softplus(pull + push)


# Triplets.


class _Gap(NamedTuple):
    """Two distances from an anchor, in a unit of each row's own, [..., 1] all of them."""

    scale: tuple[jax.Array, jax.Array]  # powers of two, of points and of their differences
    near: jax.Array  # the distance to the positive
    far: jax.Array  # the distance to the negative
    difference: jax.Array  # the first minus the second

    def between(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The difference of two points in the unit of the distances."""
        return (x * self.scale[0] - y * self.scale[0]) * self.scale[1]


def _powers(x: jax.Array, exponent: float) -> jax.Array:
    """x**exponent for x >= 0, where 0 has no power but 0."""
    if exponent == int(exponent) and 0 <= exponent <= 8:
        return jax.lax.integer_pow(x, int(exponent))
    is_zero = x == 0.0
    return jnp.where(is_zero, 0.0, jnp.power(jnp.where(is_zero, 1.0, x), exponent))


def _squares_gap(a, p, n, floor) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Squared Euclidean distances to p and to n, and the first minus the second as exactly."""
    near, far = a - p, a - n
    change = jnp.sum((n - p) * (near + far), axis=-1, keepdims=True)
    return (
        jnp.sum(jnp.square(near), axis=-1, keepdims=True) + floor * floor,
        jnp.sum(jnp.square(far), axis=-1, keepdims=True) + floor * floor,
        change,
    )


def _euclidean(scale, near_square, far_square, change) -> _Gap:
    near, far = jnp.sqrt(near_square), jnp.sqrt(far_square)
    return _Gap(scale, near, far, change * reciprocal(near + far))


def _gap(degree: float, a, p, n, floor) -> _Gap:
    if degree != 2.0:
        return _scaled_gap(degree, a, p, n, floor)
    near_square, _, change = _squares_gap(a, p, n, floor)
    far_square = near_square - change
    # Without overflow, nor cancellation in the line above.
    is_plain = jnp.all(
        (near_square > 2.0**-30)
        & (near_square < 2.0**60)
        & (change > -(2.0**60))
        & (change < 0.75 * near_square)
    )
    ones = (jnp.ones_like(near_square),) * 2
    return jax.lax.cond(
        is_plain,
        lambda: _euclidean(ones, near_square, far_square, change),
        lambda: _scaled_gap(degree, a, p, n, floor),
    )


def _scaled_gap(degree: float, a, p, n, floor) -> _Gap:
    def largest(*arrays):
        return functools.reduce(
            jnp.maximum, (jnp.max(jnp.abs(x), axis=-1, keepdims=True) for x in arrays)
        )

    # Differences of the largest numbers would overflow, those of tiny ones are to stay.
    points = jnp.where(largest(a, p, n) > 2.0 ** (jnp.finfo(a.dtype).maxexp - 4), 0.0625, 1.0)
    points = points.astype(a.dtype)
    a, p, n = a * points, p * points, n * points
    floor = floor * points
    over = 1.0 / power_of_two(jnp.maximum(largest(a - p, a - n), floor))
    scale, floor = (points, over), floor * over
    if degree == 2.0:
        return _euclidean(scale, *_squares_gap(a * over, p * over, n * over, floor))
    near, far = (
        _powers(
            jnp.sum(_powers(jnp.abs((a - x) * over), degree), axis=-1, keepdims=True)
            + _powers(floor, degree),
            1.0 / degree,
        )
        for x in (p, n)
    )
    return _Gap(scale, near, far, near - far)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def distance_gap(degree: float, anchors, positives, negatives, floor) -> jax.Array:
    """|a - p| - |a - n| over the last axis, |x| the root of sum(|x|**degree) + floor**degree.

    The floor is a constant >= 0; a distance of 0 has no gradient.
    """
    gap = _gap(degree, anchors, positives, negatives, floor)
    return (gap.difference / gap.scale[1] / gap.scale[0])[..., 0]


@functools.partial(distance_gap.defjvp, symbolic_zeros=True)
def _distance_gap_jvp(degree, primals, tangents):
    gap = distance_gap(degree, *primals)
    slopes = _slopes(degree, *primals)
    moves = [summed_along(*each) for each in zip(slopes, tangents[:3], strict=True)]
    return gap, like(sum(moves), gap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slopes(degree: float, a, p, n, floor) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `distance_gap` in the three points."""
    gap = _gap(degree, a, p, n, floor)
    toward_p = _direction(degree, gap.between(a, p), gap.near)
    toward_n = _direction(degree, gap.between(a, n), gap.far)
    if degree != 2.0:
        return toward_p - toward_n, -toward_p, toward_n
    # The difference of the two, without cancellation where p and n are near each other.
    is_longer = gap.near >= gap.far
    shorter = jnp.where(is_longer, toward_n, toward_p)
    over = reciprocal(jnp.where(is_longer, gap.near, gap.far))
    return (gap.between(n, p) - shorter * gap.difference) * over, -toward_p, toward_n


def _direction(degree: float, x: jax.Array, distance: jax.Array) -> jax.Array:
    """The gradient of the distance along x."""
    if degree == 2.0:
        return x * reciprocal(distance)
    return jnp.sign(x) * _powers(jnp.abs(x) * reciprocal(distance), degree - 1.0)


@functools.partial(_slopes.defjvp, symbolic_zeros=True)
def _slopes_jvp(degree, primals, tangents):
    a, p, n, _ = primals
    gap = _gap(degree, *primals)
    a_dot, p_dot, n_dot = (
        jnp.zeros_like(x) if isinstance(dot, SymbolicZero) else dot
        for x, dot in zip((a, p, n), tangents[:3], strict=True)
    )

    def bend(x, distance, x_dot):
        x_dot = x_dot * reciprocal(distance) * gap.scale[1] * gap.scale[0]
        direction = _direction(degree, x, distance)
        along = direction * jnp.sum(direction * x_dot, axis=-1, keepdims=True)
        if degree == 2.0:
            return x_dot - along
        weight = _powers(jnp.abs(x) * reciprocal(distance), degree - 2.0)
        return (degree - 1.0) * (weight * x_dot - along)

    of_p = bend(gap.between(a, p), gap.near, a_dot - p_dot)
    of_n = bend(gap.between(a, n), gap.far, a_dot - n_dot)
    return _slopes(degree, *primals), (of_p - of_n, -of_p, of_n)
