"""Overlaps of regions of an image: sums over pixels, and what losses and weights make of them."""

import functools
import math

import jax
import jax.numpy as jnp

from jaxent._float.limits import is_zero
from jaxent._float.tangents import Arrays, Dual, Tangents, combine_tangents
from jaxent._kernels.softmax import softmax_jvp


def sum_over_pixels(values: jax.Array) -> jax.Array:
    """The sum of [..., pixels, classes] over the pixels, in up to 64 partial sums.

    They make it fast where classes are few, and keep the rounding errors of large images small.
    """
    *leading, pixels, classes = values.shape
    lanes = math.gcd(pixels, 64)
    rows = values.reshape(*leading, pixels // lanes, lanes * classes)
    return jnp.sum(jnp.sum(rows, axis=-2).reshape(*leading, lanes, classes), axis=-2)


@jax.custom_jvp
def root(x: jax.Array, degree: jax.Array) -> jax.Array:
    """x**(1 / degree) for x >= 0; at 0 all derivatives count as 0."""
    positive = jnp.where(is_zero(x), 1.0, x)
    return jnp.where(is_zero(x), 0.0, jnp.power(positive, 1.0 / degree))


@functools.partial(root.defjvp, symbolic_zeros=True)
def _root_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, degree = primals
    x_dot, degree_dot = tangents
    positive, result = jnp.where(is_zero(x), 1.0, x), root(x, degree)
    grad_degree = -(result / degree) * (jnp.log(positive) / degree)
    grad_x = result / (degree * positive)
    return result, combine_tangents(result, (grad_x, x_dot), (grad_degree, degree_dot))


@jax.custom_jvp
def normalize_weights(values: jax.Array) -> jax.Array:
    """Values >= 0 over their sum along the last axis; values of 0 have no derivative."""
    return values / jnp.sum(values, axis=-1, keepdims=True)


@normalize_weights.defjvp
def _normalize_weights_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (values,), (values_dot,) = primals, tangents
    p = normalize_weights(values)
    return p, softmax_jvp(p, values_dot / jnp.where(values == 0.0, 1.0, values))
