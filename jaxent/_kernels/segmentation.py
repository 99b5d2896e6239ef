"""Regions of an image: probabilities beside their complements, shares, and Jaccard weights."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxent._float.tangents import broadcast_tangent, scale_tangent
from jaxent._kernels.sigmoid import absolute, sigmoid
from jaxent._kernels.softmax import softmax_jvp


@jax.custom_jvp
def sigmoid_and_complement(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The probability of "yes" per element, and that of "no"."""
    decay = jnp.exp(-absolute(x))
    larger = 1.0 / (1.0 + decay)
    smaller = decay * larger
    return jnp.where(x >= 0.0, larger, smaller), jnp.where(x >= 0.0, smaller, larger)


@sigmoid_and_complement.defjvp
def _sigmoid_and_complement_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    moved = sigmoid(x) * sigmoid(-x) * x_dot
    return sigmoid_and_complement(x), (moved, -moved)


def share(part: jax.Array, rest: jax.Array) -> jax.Array:
    """Part / (part + rest) of numbers >= 0; 0, with derivatives 0, where both are."""
    info = jnp.finfo(part.dtype)
    total = jax.lax.stop_gradient(part + rest)
    is_empty = total < float(info.smallest_normal)
    # Brought to a total near 1, so that no power of it leaves the range.
    scale = 1.0 / jnp.clip(total, float(info.smallest_normal), 2.0 ** (info.maxexp - 4))
    scale = jnp.where(is_empty, 0.0, scale)
    return _share(part * scale, jnp.where(is_empty, 1.0, rest * scale))


@jax.custom_jvp
def _share(part: jax.Array, rest: jax.Array) -> jax.Array:
    return part / (part + rest)


@functools.partial(_share.defjvp, symbolic_zeros=True)
def _share_jvp(primals, tangents):
    part, rest = primals
    part_dot, rest_dot = tangents
    ours, theirs = _share(part, rest), _share(rest, part)
    moved = scale_tangent(theirs, part_dot) - scale_tangent(ours, rest_dot)
    return ours, broadcast_tangent(moved, ours) / (part + rest)


@jax.custom_jvp
def root(x: jax.Array, degree: jax.Array) -> jax.Array:
    """X to the power of 1 / degree for x >= 0; at 0 every derivative counts as 0."""
    is_zero = x < float(jnp.finfo(x.dtype).smallest_normal)
    return jnp.where(is_zero, 0.0, jnp.power(jnp.where(is_zero, 1.0, x), 1.0 / degree))


@functools.partial(root.defjvp, symbolic_zeros=True)
def _root_jvp(primals, tangents):
    x, degree = primals
    x_dot, degree_dot = tangents
    is_zero = x < float(jnp.finfo(x.dtype).smallest_normal)
    positive, power = jnp.where(is_zero, 1.0, x), root(x, degree)
    of_degree = -(power / degree) * (jnp.log(positive) / degree)
    moved = scale_tangent(power / (degree * positive), x_dot) + scale_tangent(of_degree, degree_dot)
    return power, broadcast_tangent(moved, power)


@jax.custom_jvp
def normalized(values: jax.Array) -> jax.Array:
    """Values >= 0 over their sum along the last axis; what is 0 is fixed."""
    return values / jnp.sum(values, axis=-1, keepdims=True)


@normalized.defjvp
def _normalized_jvp(primals, tangents):
    (values,), (values_dot,) = primals, tangents
    p = normalized(values)
    return p, softmax_jvp(p, values_dot / jnp.where(values == 0.0, 1.0, values))


def sum_over_pixels(values: jax.Array) -> jax.Array:
    """The sum of [..., pixels, classes] over the pixels, in many lanes.

    That is fast where classes are few, and keeps the roundings of large images from adding up.
    """
    *leading, pixels, classes = values.shape
    lanes = math.gcd(pixels, 64)
    rows = values.reshape(*leading, pixels // lanes, lanes * classes)
    return jnp.sum(jnp.sum(rows, axis=-2).reshape(*leading, lanes, classes), axis=-2)


def lovasz_extension(errors: jax.Array, order: jax.Array, is_true: jax.Array) -> jax.Array:
    """The Lovasz extension of the Jaccard loss over the last axis, for errors >= 0.

    It is the sum of the errors, each times what its pixel adds to the Jaccard loss of the pixels
    before it: the number of wrong pixels over that of wrong or true ones.

    Args:
        errors: how wrong each pixel is, [..., pixels].
        order: any number that decreases where the errors do; the gradient is that of this order.
        is_true: whether a pixel belongs to the region, [..., pixels].
    """
    indices = jax.lax.broadcasted_iota(jnp.int32, errors.shape, errors.ndim - 1)
    _, true, places = jax.lax.sort(
        (-jax.lax.stop_gradient(order), is_true.astype(jnp.int32), indices),
        dimension=-1,
        num_keys=1,
        is_stable=True,
    )
    true_so_far = jnp.cumsum(true, axis=-1, dtype=jnp.int32)
    total = true_so_far[..., -1:]
    left = (total - (true_so_far - true)).astype(errors.dtype)
    false_before = jax.lax.broadcasted_iota(jnp.int32, true.shape, true.ndim - 1) - (
        true_so_far - true
    )
    union = (total + false_before).astype(errors.dtype)
    # A true pixel is one more in the set; another is also one more in the union. In front of an
    # empty region the first one makes the whole difference.
    safe = jnp.maximum(union, 1.0)
    of_false = jnp.where(union == 0.0, 1.0, left / safe / (union + 1.0))
    steps = jnp.where(true == 1, 1.0 / safe, of_false)
    in_order = jnp.take_along_axis(errors, places, axis=-1)
    # No part of an infinite error is nothing.
    costs = steps * jnp.where((steps == 0.0) & (in_order == jnp.inf), 0.0, in_order)
    return jnp.sum(costs, axis=-1)
