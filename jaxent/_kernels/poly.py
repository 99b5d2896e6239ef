"""Poly loss: the cross-entropy plus a multiple epsilon of 1 - p.

A negative epsilon, down to -1, is written as 1 + epsilon cross-entropies and -epsilon of
c - (1 - p), with c = -log(p), so that no term is negative.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.powers import zero_safe_product
from jaxent._float.series import expm1_minus_x
from jaxent._float.tangents import Arrays, Dual, Tangents, broadcast_tangent, dot_tangent
from jaxent._kernels.soft_cross_entropy import soft_cross_entropy
from jaxent._kernels.softmax import (
    max_and_log_sum_over_max,
    softmax_and_complement,
    sum_classes,
)
from jaxent._parallel import AxisName, psum


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def poly_cross_entropy(
    x: jax.Array,
    targets: jax.Array,
    above: jax.Array | None,
    below: jax.Array | None,
    axis_name: AxisName = None,
) -> jax.Array:
    """sum(targets * (c + epsilon * (1 - p))) over the last axis, with p = exp(-c) = softmax(x).

    Args:
        x: logits [..., V].
        targets: [..., V], at least 0, of any total.
        above: the positive part of epsilon, a scalar array, or None if epsilon is negative.
        below: the negative part, or None if it is positive.
        axis_name: the mesh axis that the classes are split over.
    """
    loss = soft_cross_entropy(x, targets, axis_name)
    if below is not None:
        remainder = targets * expm1_minus_x(-_neg_log_prob(x, targets, axis_name))
        loss = zero_safe_product(1.0 + below, loss)
        loss -= below * psum(jnp.sum(remainder, axis=-1), axis_name)
    if above is not None:
        loss += above * _expected_complement(x, targets, axis_name)
    return loss


@functools.partial(poly_cross_entropy.defjvp, symbolic_zeros=True)
def _poly_cross_entropy_jvp(axis_name: AxisName, primals: Arrays, tangents: Tangents) -> Dual:
    x, targets, above, below = primals
    x_dot, targets_dot, above_dot, below_dot = tangents
    loss = poly_cross_entropy(x, targets, above, below, axis_name)
    grad = _poly_cross_entropy_grad(x, targets, above, below, axis_name)
    loss_dot = dot_tangent(grad, x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        grad_targets = _poly_cross_entropy_grad_targets(x, targets, above, below, axis_name)
        loss_dot += dot_tangent(grad_targets, targets_dot, axis_name)
    for part, part_dot in ((above, above_dot), (below, below_dot)):
        if not (part is None or isinstance(part_dot, SymbolicZero)):
            loss_dot += _expected_complement(x, targets, axis_name) * part_dot
    return loss, broadcast_tangent(loss_dot, loss)


def _poly_cross_entropy_grad(
    x: jax.Array,
    targets: jax.Array,
    above: jax.Array | None,
    below: jax.Array | None,
    axis_name: AxisName,
) -> jax.Array:
    """The derivative in the logits, [..., V].

    It is that of the cross-entropy with the targets times 1 + epsilon p. It needs no rule of its
    own, since the softmax and the complement have one.
    """
    p, complement = softmax_and_complement(x, axis_name)
    factor = 1.0 if below is None else 1.0 + below
    weights = targets * (complement + (factor if above is None else factor + above) * p)
    others = jnp.where(
        p > 0.5,
        sum_classes(jnp.where(p > 0.5, 0.0, weights), axis_name),
        sum_classes(weights, axis_name) - weights,
    )
    return jnp.where(x == -jnp.inf, 0.0, p * others - complement * weights)


def _poly_cross_entropy_grad_targets(
    x: jax.Array,
    targets: jax.Array,
    above: jax.Array | None,
    below: jax.Array | None,
    axis_name: AxisName,
) -> jax.Array:
    """The derivative in the targets, [..., V], 0 at an impossible class without a target."""
    c = _neg_log_prob(x, targets, axis_name)
    grad = c
    if below is not None:
        grad = zero_safe_product(1.0 + below, c) - below * expm1_minus_x(-c)
    if above is not None:
        complement = softmax_and_complement(x, axis_name)[1]
        grad += above * jnp.where(_has_no_term(x, targets), 0.0, complement)
    return grad


def _neg_log_prob(x: jax.Array, targets: jax.Array, axis_name: AxisName) -> jax.Array:
    """-log softmax(x) over the last axis, but 0 at an impossible class without a target."""
    top, excess = max_and_log_sum_over_max(x, axis_name)
    is_zero = _has_no_term(x, targets)
    distance = top[..., None] - jnp.where(is_zero, 0.0, x)
    return jnp.where(is_zero, 0.0, distance + excess[..., None])


def _has_no_term(x: jax.Array, targets: jax.Array) -> jax.Array:
    """Where a class is impossible and has no target, so that it counts 0."""
    return (targets == 0.0) & (x == -jnp.inf)


def _expected_complement(x: jax.Array, targets: jax.Array, axis_name: AxisName) -> jax.Array:
    """sum(targets * (1 - p)) over the last axis."""
    complement = softmax_and_complement(x, axis_name)[1]
    return psum(jnp.sum(targets * complement, axis=-1), axis_name)
