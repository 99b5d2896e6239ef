"""Cross-entropy of softmax over the last axis against a distribution per row."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import blocked_sum, safe_reciprocal
from jaxent._float.tangents import Arrays, Dual, Pair, Tangents, broadcast_tangent, dot_tangent
from jaxent._kernels.softmax import (
    log_sum_over_top,
    max_and_log_sum_over_max,
    max_and_shift,
    softmax,
    softmax_jvp,
    subtract_mean,
    subtract_total,
    sum_classes,
)
from jaxent._parallel import AxisName, pmax, psum


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def soft_cross_entropy(x: jax.Array, targets: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """-sum(targets * log softmax(x)) over the last axis, for targets >= 0 of any total.

    A target of 0 on a logit of -inf counts 0; a negative target makes the row NaN.

    A class with more than half of the target's mass is called heavy, and its term is left out of
    the sum of exponentials. If it has the largest logit, the rest of the sum decides the loss. If
    another class has, or none is heavy, the distances to the maximum are at least half of the loss.

    Selections are written as bounds, and no two sums share an intermediate result or a constant:
    such code XLA for CPUs fuses into the sums, where it would else write buffers [..., V].
    """
    top, shift = max_and_shift(x, axis_name)
    mass = psum(blocked_sum(targets), axis_name)
    half, steepness = _half_mass(jax.lax.stop_gradient(mass))
    drop_heavy = (half[..., None] - jax.lax.stop_gradient(targets)) * steepness[..., None] + 2.0**10
    others = psum(blocked_sum(jnp.exp(jnp.minimum(x - shift[..., None], drop_heavy))), axis_name)
    return _loss_from_others(x, targets, axis_name, top, shift, mass, half, steepness, others)[0]


def _half_mass(mass: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half of the target's mass, and the factor that makes a bound for exponents of t - half.

    The bound of `soft_cross_entropy` exceeds every x - shift where t <= half, and is far below all
    that count where t > half, if only by a rounding. Where the mass is so small (3e-27 in float32)
    that the factor would overflow, no class is heavy: half is given as 1, which no target exceeds.
    """
    info = jnp.finfo(mass.dtype)
    counts = ~(mass < 2.0 ** (info.nmant + 17 - info.maxexp))
    half = jnp.where(counts, 0.5 * mass, 1.0)
    return half, 2.0 ** (info.nmant + 15) / half


def _loss_from_others(
    x: jax.Array,
    targets: jax.Array,
    axis_name: AxisName,
    top: jax.Array,
    shift: jax.Array,
    mass: jax.Array,
    half: jax.Array,
    steepness: jax.Array,
    others: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The loss from the sum of exp(x - shift) over all classes but the heavy one.

    Returns:
        [...] losses, and exp(x - shift) of the heavy class, 0 where there is none.
    """
    # The barrier follows the sum over the others: else both would share their operands after all.
    half, steepness, shift_again, _ = jax.lax.optimization_barrier(
        (half, steepness, shift, jax.lax.stop_gradient(others))
    )
    keep_heavy = (jax.lax.stop_gradient(targets) - half[..., None]) * steepness[..., None] - 2.0**11
    heavy_logit = jnp.max(jnp.minimum(x - shift_again[..., None], keep_heavy), axis=-1)
    # On a device without the heavy class the exponential is 0.
    heavy_term, top_term = psum(jnp.exp(heavy_logit), axis_name), jnp.exp(top - shift)
    is_top = pmax(heavy_logit, axis_name) == top - shift
    excess = log_sum_over_top(others, heavy_term, top_term, is_top)

    # The limit is finite, inf or NaN where the target is 0, positive or negative: so 0 * inf cannot
    # arise, and a negative target makes NaN. Distances are halved: they may overflow.
    huge = 2.0 ** (jnp.finfo(x.dtype).maxexp - 1)
    limit = jnp.sqrt(jax.lax.stop_gradient(targets) * huge) * huge + float(jnp.finfo(x.dtype).max)
    half_top = 0.5 * top
    distance = jnp.sum(targets * jnp.minimum(half_top[..., None] - 0.5 * x, limit), axis=-1)
    return 2.0 * psum(distance, axis_name) + mass * excess, heavy_term


@functools.partial(soft_cross_entropy.defjvp, symbolic_zeros=True)
def _soft_cross_entropy_jvp(axis_name: AxisName, primals: Arrays, tangents: Tangents) -> Dual:
    x, targets = primals
    x_dot, targets_dot = tangents
    loss, grad = _loss_and_grad_x(x, targets, axis_name)
    loss_dot = dot_tangent(grad, x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += dot_tangent(_neg_log_prob(x, targets, axis_name), targets_dot, axis_name)
    return loss, broadcast_tangent(loss_dot, loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _loss_and_grad_x(
    x: jax.Array, targets: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
    """`soft_cross_entropy` [...] and its gradient in x [..., V], from one set of exponentials."""
    top, shift = max_and_shift(x, axis_name)
    mass = psum(blocked_sum(targets), axis_name)
    half, steepness = _half_mass(mass)
    # What elementwise operations and sums share would be written to a buffer [..., V].
    half, half_again, steepness, zero = jax.lax.optimization_barrier(
        (half, half, steepness, jnp.zeros_like(mass))
    )
    is_heavy = targets > half[..., None]
    terms = jnp.where(is_heavy, zero[..., None], jnp.exp(x - shift[..., None]))
    others = psum(blocked_sum(terms), axis_name)
    loss, heavy_term = _loss_from_others(
        x, targets, axis_name, top, shift, mass, half_again, steepness, others
    )
    # A bound that drops the heavy target; it exceeds a target near half of any mass.
    drop_heavy = (half_again[..., None] - targets) * 2.0 ** (jnp.finfo(x.dtype).nmant + 15)
    drop_heavy += 2.0 * half_again[..., None]
    light_mass = psum(blocked_sum(jnp.maximum(jnp.minimum(targets, drop_heavy), 0.0)), axis_name)

    scale = safe_reciprocal(others + heavy_term)
    grad = jnp.where(
        is_heavy,
        (light_mass * (heavy_term * scale))[..., None] - targets * (others * scale)[..., None],
        mass[..., None] * (terms * scale[..., None]) - targets,
    )
    grad = jnp.where(x == -jnp.inf, zero[..., None], grad)
    return loss, jnp.where(jnp.isnan(loss)[..., None], jnp.nan, grad)


@functools.partial(_loss_and_grad_x.defjvp, symbolic_zeros=True)
def _loss_and_grad_x_jvp(
    axis_name: AxisName, primals: Arrays, tangents: Tangents
) -> tuple[Pair, Pair]:
    x, targets = primals
    x_dot, targets_dot = tangents
    loss, grad = _loss_and_grad_x(x, targets, axis_name)
    p = softmax(x, axis_name)
    loss_dot, grad_dot = dot_tangent(grad, x_dot, axis_name), 0.0
    if not isinstance(x_dot, SymbolicZero):
        mass = sum_classes(targets, axis_name)
        grad_dot = mass * softmax_jvp(p, x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += dot_tangent(_neg_log_prob(x, targets, axis_name), targets_dot, axis_name)
        grad_dot -= jnp.where(x == -jnp.inf, 0.0, subtract_total(p, targets_dot, axis_name))
    return (loss, grad), (broadcast_tangent(loss_dot, loss), broadcast_tangent(grad_dot, grad))


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _neg_log_prob(x: jax.Array, targets: jax.Array, axis_name: AxisName) -> jax.Array:
    """-log softmax(x), the gradient of `soft_cross_entropy` with respect to the targets.

    It is 0 rather than inf at an impossible class whose target is 0.
    """
    top, excess = max_and_log_sum_over_max(x, axis_name)
    is_unused = (targets == 0.0) & (x == -jnp.inf)
    neg_log_prob = (top[..., None] - x) + excess[..., None]
    return jnp.where(is_unused, 0.0, jnp.where(targets < 0.0, jnp.nan, neg_log_prob))


@_neg_log_prob.defjvp
def _neg_log_prob_jvp(axis_name: AxisName, primals: Arrays, tangents: Arrays) -> Dual:
    x, targets = primals
    x_dot, _ = tangents
    x_dot = jnp.where(x == -jnp.inf, 0.0, x_dot)
    result_dot = -subtract_mean(softmax(x, axis_name), x_dot, axis_name)
    return _neg_log_prob(x, targets, axis_name), result_dot
