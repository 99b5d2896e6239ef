"""Losses of the similarities among embeddings, and differences of distances."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import safe_reciprocal
from jaxent._float.tangents import Arrays, Dual, Tangents, broadcast_tangent, dot_tangent
from jaxent._kernels.sigmoid import softplus
from jaxent._kernels.similarity import power_of_two_near, unit_scale
from jaxent._kernels.soft_cross_entropy import soft_cross_entropy
from jaxent._kernels.softmax import log_normalizer

# Similarities of all pairs.


def normalize(x: jax.Array) -> jax.Array:
    """Each row over its length, whatever that is; a row of zeros stays, and has no gradient."""
    scaled = x * unit_scale(x)
    square = jnp.sum(jnp.square(scaled), axis=-1, keepdims=True)
    is_zero = square == 0.0
    return scaled * jnp.where(is_zero, 0.0, jax.lax.rsqrt(jnp.where(is_zero, 1.0, square)))


def cross_entropy_of_pairs(x: jax.Array, positive: jax.Array, negative: jax.Array) -> jax.Array:
    """log(1 + sum(exp(x[i, k] - x[i, j]) over the negatives k)) of each positive (i, j), else 0.

    Args:
        x: [..., N, N] logits.
        positive: [..., N, N] booleans.
        negative: [..., N, N] booleans; a row may have none.
    """
    log_negatives = log_normalizer(jnp.where(negative, x, -jnp.inf))[..., None]
    return softplus(jnp.where(positive, log_negatives - x, -jnp.inf))


def mean_cross_entropy_of_positives(
    x: jax.Array, positive: jax.Array, pair_mask: jax.Array
) -> jax.Array:
    """Cross-entropy of each row's softmax with a uniform target over its positives, [..., N].

    It is 0 for a row without positives.

    Args:
        x: [..., N, N] logits.
        positive: [..., N, N] booleans.
        pair_mask: [..., N, N] booleans, the pairs that are part of the softmax.
    """
    has_positive = jnp.any(positive, axis=-1)
    # A row without positives gets finite logits, so that no derivative of it is NaN.
    fill = jnp.where(has_positive, -jnp.inf, 0.0).astype(x.dtype)[..., None]
    count = jnp.sum(positive, axis=-1, dtype=x.dtype)
    loss = soft_cross_entropy(jnp.where(pair_mask, x, fill), positive.astype(x.dtype))
    return loss / jnp.maximum(count, 1.0)


def softplus_of_pairs(
    x: jax.Array, y: jax.Array, positive: jax.Array, negative: jax.Array
) -> jax.Array:
    """log(1 + sum(exp(x) over the positives) * sum(exp(y) over the negatives)), [..., N]."""
    log_positives = log_normalizer(jnp.where(positive, x, -jnp.inf))
    log_negatives = log_normalizer(jnp.where(negative, y, -jnp.inf))
    return softplus(log_positives + log_negatives)


# Distances in the norm of a degree, |x| = sum(|x|**degree)**(1 / degree).


def _power(x: jax.Array, exponent: float) -> jax.Array:
    """x**exponent for x >= 0, and 0 for x = 0, whatever the exponent."""
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
    # One step of Newton's method removes the rounding error of 1 / degree, which is magnified where
    # the root is far from 1.
    root = jnp.power(x, 1.0 / degree)
    root -= root * (_power(root, degree) / x - 1.0) / degree
    return jnp.where(is_zero, 0.0, root)


def _norms(
    degree: float, differences: tuple[jax.Array, jax.Array], floor: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """(sum(|x|**degree) + floor**degree)**(1 / degree) of both differences, [..., 1]."""

    def norm(x: jax.Array) -> jax.Array:
        total = jnp.sum(_power(jnp.abs(x), degree), axis=-1, keepdims=True)
        return _root(total + _power(floor, degree), degree)

    near, far = differences
    return norm(near), norm(far)


def _norm_grad(degree: float, x: jax.Array, norm: jax.Array) -> jax.Array:
    """The gradient of the norm of x, [..., V]."""
    if degree == 2.0:
        return x * safe_reciprocal(norm)
    return jnp.sign(x) * _power(jnp.abs(x) * safe_reciprocal(norm), degree - 1.0)


# Triplets of an anchor, a positive and a negative.


class _Distances(NamedTuple):
    """Two distances from an anchor, each [..., 1] and divided by both scales."""

    scales: tuple[jax.Array, jax.Array]  # powers of two: of the points, and of their differences
    near: jax.Array  # from anchor to positive
    far: jax.Array  # from anchor to negative

    def scaled_difference(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The difference of two points over both scales."""
        point_factor = 1.0 / self.scales[0]
        return (x * point_factor - y * point_factor) * (1.0 / self.scales[1])


def _distances(
    degree: float, a: jax.Array, p: jax.Array, n: jax.Array, floor: jax.Array
) -> _Distances:
    """The distances from a to p and to n, with scales of 1 if both are ordinary everywhere."""
    if degree != 2.0:
        return _scaled_distances(degree, a, p, n, floor)
    near, far = _norms(degree, (a - p, a - n), floor)
    ones = jnp.ones_like(near)
    # For distances in this range no square overflowed, and none that counts vanished.
    low, high = 2.0**-30, 2.0**30
    is_ordinary = jnp.all((near > low) & (near < high) & (far > low) & (far < high))
    return jax.lax.cond(
        is_ordinary,
        lambda: _Distances((ones, ones), near, far),
        lambda: _scaled_distances(degree, a, p, n, floor),
    )


def _scaled_distances(
    degree: float, a: jax.Array, p: jax.Array, n: jax.Array, floor: jax.Array
) -> _Distances:
    def largest(*arrays: jax.Array) -> jax.Array:
        return functools.reduce(
            jnp.maximum, (jnp.max(jnp.abs(x), axis=-1, keepdims=True) for x in arrays)
        )

    # Points are scaled only where their differences may overflow: small differences must stay.
    is_huge = largest(a, p, n) > 2.0 ** (jnp.finfo(a.dtype).maxexp - 4)
    point_scale = jnp.where(is_huge, 16.0, 1.0).astype(a.dtype)
    factor = 1.0 / point_scale
    near, far = a * factor - p * factor, a * factor - n * factor
    scale = power_of_two_near(jnp.maximum(largest(near, far), floor * factor))
    scaled = near * (1.0 / scale), far * (1.0 / scale)
    return _Distances((point_scale, scale), *_norms(degree, scaled, floor * factor / scale))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def distance_gap(
    degree: float, anchors: jax.Array, positives: jax.Array, negatives: jax.Array, floor: jax.Array
) -> jax.Array:
    """|a - p| - |a - n| over the last axis, |x| = (sum(|x|**degree) + floor**degree)**(1 / degree).

    The floor is a constant >= 0; a distance of 0 has no gradient.
    """
    found = _distances(degree, anchors, positives, negatives, floor)
    # One scale after the other: their product may overflow.
    return ((found.near - found.far) * found.scales[1] * found.scales[0])[..., 0]


@functools.partial(distance_gap.defjvp, symbolic_zeros=True)
def _distance_gap_jvp(degree: float, primals: Arrays, tangents: Tangents) -> Dual:
    gap = distance_gap(degree, *primals)
    grads = _distance_gap_grads(degree, *primals)
    terms = [dot_tangent(*each) for each in zip(grads, tangents[:3], strict=True)]
    return gap, broadcast_tangent(sum(terms), gap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _distance_gap_grads(
    degree: float, a: jax.Array, p: jax.Array, n: jax.Array, floor: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of `distance_gap` in the three points."""
    found = _distances(degree, a, p, n, floor)
    near_grad = _norm_grad(degree, found.scaled_difference(a, p), found.near)
    far_grad = _norm_grad(degree, found.scaled_difference(a, n), found.far)
    return near_grad - far_grad, -near_grad, far_grad


@functools.partial(_distance_gap_grads.defjvp, symbolic_zeros=True)
def _distance_gap_grads_jvp(
    degree: float, primals: Arrays, tangents: Tangents
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    a, p, n, _ = primals
    found = _distances(degree, *primals)
    a_dot, p_dot, n_dot = (
        jnp.zeros_like(x) if isinstance(dot, SymbolicZero) else dot
        for x, dot in zip((a, p, n), tangents[:3], strict=True)
    )

    def norm_grad_dot(x: jax.Array, norm: jax.Array, x_dot: jax.Array) -> jax.Array:
        """How the gradient of the norm of x changes with x."""
        x_dot = x_dot * safe_reciprocal(norm) / found.scales[1] / found.scales[0]
        grad = _norm_grad(degree, x, norm)
        radial = grad * jnp.sum(grad * x_dot, axis=-1, keepdims=True)
        if degree == 2.0:
            return x_dot - radial
        weight = _power(jnp.abs(x) * safe_reciprocal(norm), degree - 2.0)
        return (degree - 1.0) * (weight * x_dot - radial)

    near_dot = norm_grad_dot(found.scaled_difference(a, p), found.near, a_dot - p_dot)
    far_dot = norm_grad_dot(found.scaled_difference(a, n), found.far, a_dot - n_dot)
    grads = _distance_gap_grads(degree, *primals)
    return grads, (near_dot - far_dot, -near_dot, far_dot)
