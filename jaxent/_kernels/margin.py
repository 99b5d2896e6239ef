"""Hinge and perceptron losses: by how much a score falls short of what it has to exceed.

They are piecewise linear. Where pieces meet, the gradient is split evenly among them, as JAX does
for a maximum: equal scores, from which training may start, are such a point.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.tangents import (
    Arrays,
    Dual,
    Tangents,
    broadcast_tangent,
    dot_tangent,
    scale_tangent,
)
from jaxent._float.two_part import two_diff
from jaxent._kernels.cross_entropy import drop_label_bound
from jaxent._parallel import take_local_label

# One score and a sign.


def margin_violation(x: jax.Array, signs: jax.Array, margin: float) -> jax.Array:
    """By how much signs * x falls short of the margin, per element; negative beyond it."""
    # No 0 - signs * x: XLA would write the constant 0 to memory, since other sums use it too.
    return margin - signs * x if margin else -(signs * x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def hinge(x: jax.Array, signs: jax.Array, margin: float) -> jax.Array:
    """max(margin - signs * x, 0) per element, for signs of 1 and -1."""
    return jnp.maximum(margin_violation(x, signs, margin), 0.0)


@functools.partial(hinge.defjvp, symbolic_zeros=True)
def _hinge_jvp(margin: float, primals: Arrays, tangents: Tangents) -> Dual:
    x, signs = primals
    x_dot, signs_dot = tangents
    # 0, 1, or 1/2 where the two pieces meet; NaN for NaN.
    step = 0.5 + 0.5 * jnp.sign(margin_violation(x, signs, margin))
    loss, loss_dot = hinge(x, signs, margin), scale_tangent(-signs * step, x_dot)
    if not isinstance(signs_dot, SymbolicZero):
        loss_dot -= step * jnp.where(step == 0.0, 0.0, x) * signs_dot
    return loss, broadcast_tangent(loss_dot, loss)


# The score of the true class and the best of the others.


def other_classes_bound(x: jax.Array, labels: jax.Array) -> jax.Array:
    """A bound for min(x, .) [..., V]: -inf at the label of each row, inf at the other classes."""
    return jnp.inf * drop_label_bound(x, labels)


def one_or_nan(top: jax.Array) -> jax.Array:
    """1 for a finite highest score of a row, and NaN otherwise: then no class can be compared."""
    return jnp.where(jnp.abs(top) < jnp.inf, jnp.ones_like(top), jnp.nan)


def _violation_grad(
    x: jax.Array, labels: jax.Array, best: jax.Array, violation: jax.Array, factor: jax.Array
) -> jax.Array:
    """The gradient [..., V] of max(violation, 0), for violation = best - x[label] + constant.

    Classes that tie for the best score get equal fractions of it.
    """
    bound = other_classes_bound(x, labels)
    is_best = jnp.minimum(x, bound) == best[..., None]
    count = jnp.sum(is_best, axis=-1, dtype=x.dtype)
    total = jnp.where(
        violation > 0.0,
        1.0,
        # The constant 0 is one more maximal term.
        jnp.where(violation == 0.0, count / (count + 1.0), 0.0),
    )
    total *= factor
    each = total / jnp.maximum(count, 1.0)
    at_label = jnp.where(take_local_label(x, labels) == -jnp.inf, 0.0, -total)
    others = jnp.where(is_best, each[..., None], 0.0 * each[..., None])
    return jnp.where(bound < 0.0, at_label[..., None], others)


@jax.custom_jvp
def multiclass_perceptron(x: jax.Array, labels: jax.Array) -> jax.Array:
    """max(x) - x[label] over the last axis.

    Args:
        x: scores [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
    """
    top = jnp.max(x, axis=-1)
    return (top - take_local_label(x, labels)) * one_or_nan(top)


@functools.partial(multiclass_perceptron.defjvp, symbolic_zeros=True)
def _multiclass_perceptron_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, labels = jax.lax.stop_gradient(primals)
    top = jnp.max(x, axis=-1)
    violation = top - take_local_label(x, labels)
    grad = _violation_grad(x, labels, top, violation, one_or_nan(top))
    loss = multiclass_perceptron(*primals)
    return loss, broadcast_tangent(dot_tangent(grad, tangents[0]), loss)


class _RunnerUp(NamedTuple):
    """What the score of the label is compared with."""

    best: jax.Array  # [...], the highest score of the other classes
    violation: jax.Array  # [...], 1 + best - x[label]
    factor: jax.Array  # [...], 1, or NaN for rows without a finite score


def _runner_up(x: jax.Array, labels: jax.Array) -> _RunnerUp:
    best = jnp.max(jnp.minimum(x, other_classes_bound(x, labels)), axis=-1)
    own = take_local_label(x, labels)
    finite_best, finite_own = (jnp.where(jnp.isinf(score), 0.0, score) for score in (best, own))
    # Rounding errors are added back, since 1 + best - own may be small. Halves of the scores,
    # since the difference of two finite scores may overflow.
    half, rounded_off = two_diff(0.5 * finite_best, 0.5 * finite_own)
    half_violation, rest = two_diff(half, jnp.full_like(half, -0.5))
    violation = 2.0 * (half_violation + (rounded_off + rest))
    violation = jnp.where(best == -jnp.inf, -jnp.inf, violation)
    violation = jnp.where(own == -jnp.inf, jnp.inf, violation)
    return _RunnerUp(best, violation, one_or_nan(jnp.maximum(best, own)))


@jax.custom_jvp
def multiclass_hinge(x: jax.Array, labels: jax.Array) -> jax.Array:
    """max(0, 1 + max(x[j] for j != label) - x[label]) over the last axis.

    Args:
        x: scores [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
    """
    runner_up = _runner_up(x, labels)
    return jnp.maximum(runner_up.violation, 0.0) * runner_up.factor


@functools.partial(multiclass_hinge.defjvp, symbolic_zeros=True)
def _multiclass_hinge_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, labels = jax.lax.stop_gradient(primals)
    grad = _violation_grad(x, labels, *_runner_up(x, labels))
    loss = multiclass_hinge(*primals)
    return loss, broadcast_tangent(dot_tangent(grad, tangents[0]), loss)
