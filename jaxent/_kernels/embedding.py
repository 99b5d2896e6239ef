"""Vectors of unit length, losses of the similarities among them, and differences of distances."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import safe_reciprocal
from jaxent._float.tangents import broadcast_tangent, dot_tangent
from jaxent._kernels.sigmoid import softplus
from jaxent._kernels.similarity import over_unit, power_of_two
from jaxent._kernels.soft_cross_entropy import soft_cross_entropy
from jaxent._kernels.softmax import log_normalizer


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


class _Distances(NamedTuple):
    """Two distances from an anchor, in a unit of each row's own, [..., 1] all of them."""

    units: tuple[jax.Array, jax.Array]  # powers of two, of points and of their differences
    near: jax.Array  # to the positive
    far: jax.Array  # to the negative

    def between(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The difference of two points in the unit of the distances."""
        over = 1.0 / self.units[0]
        return (x * over - y * over) * (1.0 / self.units[1])


def _powers(x: jax.Array, exponent: float) -> jax.Array:
    """x**exponent for x >= 0, where 0 has no power but 0."""
    if exponent == int(exponent) and 0 <= exponent <= 8:
        return jax.lax.integer_pow(x, int(exponent))
    is_zero = x == 0.0
    return jnp.where(is_zero, 0.0, jnp.power(jnp.where(is_zero, 1.0, x), exponent))


def _root(x: jax.Array, degree: float) -> jax.Array:
    """x**(1 / degree) for x >= 0."""
    if degree in (1.0, 2.0):
        return jnp.sqrt(x) if degree == 2.0 else x
    is_zero = x == 0.0
    x = jnp.where(is_zero, 1.0, x)
    # A step of Newton's undoes the rounding of 1 / degree, which a power far from 1 multiplies.
    root = jnp.power(x, 1.0 / degree)
    root -= root * (_powers(root, degree) / x - 1.0) / degree
    return jnp.where(is_zero, 0.0, root)


def _distances(degree: float, differences, floor: jax.Array) -> tuple[jax.Array, ...]:
    """The lengths of the differences, [..., 1]."""
    totals = (
        jnp.sum(_powers(jnp.abs(x), degree), axis=-1, keepdims=True) + _powers(floor, degree)
        for x in differences
    )
    return tuple(_root(x, degree) for x in totals)


def _measured(degree: float, a, p, n, floor) -> _Distances:
    """The distances from a to p and to n, in units of 1 if all of them are of ordinary size."""
    if degree != 2.0:
        return _scaled(degree, a, p, n, floor)
    near, far = _distances(degree, (a - p, a - n), floor)
    ones = jnp.ones_like(near)
    # No square nor the sum of them was anywhere near the ends of the range.
    low, high = 2.0**-30, 2.0**30
    is_plain = jnp.all((near > low) & (near < high) & (far > low) & (far < high))
    return jax.lax.cond(
        is_plain,
        lambda: _Distances((ones, ones), near, far),
        lambda: _scaled(degree, a, p, n, floor),
    )


def _scaled(degree: float, a, p, n, floor) -> _Distances:
    def largest(*arrays):
        return functools.reduce(
            jnp.maximum, (jnp.max(jnp.abs(x), axis=-1, keepdims=True) for x in arrays)
        )

    # Differences of the largest numbers would overflow, those of tiny ones are to stay.
    is_huge = largest(a, p, n) > 2.0 ** (jnp.finfo(a.dtype).maxexp - 4)
    unit = jnp.where(is_huge, 16.0, 1.0).astype(a.dtype)
    over = 1.0 / unit
    near, far = a * over - p * over, a * over - n * over
    inner = power_of_two(jnp.maximum(largest(near, far), floor * over))
    distances = _distances(
        degree, (near * (1.0 / inner), far * (1.0 / inner)), floor * over / inner
    )
    return _Distances((unit, inner), *distances)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def distance_gap(degree: float, anchors, positives, negatives, floor) -> jax.Array:
    """|a - p| - |a - n| over the last axis, |x| the root of sum(|x|**degree) + floor**degree.

    The floor is a constant >= 0; a distance of 0 has no gradient.
    """
    found = _measured(degree, anchors, positives, negatives, floor)
    # Products, of which the compiler makes no quotient by a product beyond the range.
    return ((found.near - found.far) * found.units[1] * found.units[0])[..., 0]


@functools.partial(distance_gap.defjvp, symbolic_zeros=True)
def _distance_gap_jvp(degree, primals, tangents):
    gap = distance_gap(degree, *primals)
    slopes = _slopes(degree, *primals)
    moves = [dot_tangent(*each) for each in zip(slopes, tangents[:3], strict=True)]
    return gap, broadcast_tangent(sum(moves), gap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _slopes(degree: float, a, p, n, floor) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `distance_gap` in the three points."""
    found = _measured(degree, a, p, n, floor)
    toward_p = _direction(degree, found.between(a, p), found.near)
    toward_n = _direction(degree, found.between(a, n), found.far)
    return toward_p - toward_n, -toward_p, toward_n


def _direction(degree: float, x: jax.Array, distance: jax.Array) -> jax.Array:
    """The gradient of the distance along x."""
    if degree == 2.0:
        return x * safe_reciprocal(distance)
    return jnp.sign(x) * _powers(jnp.abs(x) * safe_reciprocal(distance), degree - 1.0)


@functools.partial(_slopes.defjvp, symbolic_zeros=True)
def _slopes_jvp(degree, primals, tangents):
    a, p, n, _ = primals
    found = _measured(degree, *primals)
    a_dot, p_dot, n_dot = (
        jnp.zeros_like(x) if isinstance(dot, SymbolicZero) else dot
        for x, dot in zip((a, p, n), tangents[:3], strict=True)
    )

    def bend(x, distance, x_dot):
        x_dot = x_dot * safe_reciprocal(distance) / found.units[1] / found.units[0]
        direction = _direction(degree, x, distance)
        along = direction * jnp.sum(direction * x_dot, axis=-1, keepdims=True)
        if degree == 2.0:
            return x_dot - along
        weight = _powers(jnp.abs(x) * safe_reciprocal(distance), degree - 2.0)
        return (degree - 1.0) * (weight * x_dot - along)

    of_p = bend(found.between(a, p), found.near, a_dot - p_dot)
    of_n = bend(found.between(a, n), found.far, a_dot - n_dot)
    return _slopes(degree, *primals), (of_p - of_n, -of_p, of_n)
