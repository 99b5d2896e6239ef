"""Cross-entropy of softmax over the last axis against a distribution per row."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import blocked_sum, wait_on_cpu
from jaxent._float.tangents import Arrays, Dual, Pair, Tangents, broadcast_tangent, dot_tangent
from jaxent._kernels.softmax import (
    MaxAndOthers,
    inverse_sum,
    is_below,
    log_normalizer_or_zero,
    max_and_log_sum_over_max,
    max_and_others,
    softmax,
    softmax_and_z_jvp,
    softmax_jvp,
    subtract_mean,
    subtract_total,
    sum_classes,
)
from jaxent._parallel import AxisName, psum

Primals = tuple[jax.Array, jax.Array, jax.Array | None]  # logits, targets, weight of the z-loss


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def soft_cross_entropy(
    x: jax.Array,
    targets: jax.Array,
    axis_name: AxisName = None,
    z_weight: jax.Array | None = None,
) -> jax.Array:
    """-sum(targets * log softmax(x)) over the last axis, for targets >= 0 of any total.

    With `z_weight`, a scalar, that times the squared log-normaliser is added. A target of 0 on a
    logit of -inf counts 0; a negative target makes the row NaN.

    It is the sum of targets times distances to the largest logit, and the target's mass times the
    log-normaliser over the largest logit. Neither is negative, so nothing cancels.
    """
    return _loss_and_sums(x, targets, axis_name, z_weight)[0]


def _loss_and_sums(
    x: jax.Array, targets: jax.Array, axis_name: AxisName, z_weight: jax.Array | None
) -> tuple[jax.Array, MaxAndOthers, jax.Array]:
    """The loss, the statistics of the logits, and the mass of the targets, [...]."""
    stats = max_and_others(x, axis_name)
    mass = psum(blocked_sum(targets), axis_name)
    # The limit is finite, inf or NaN where the target is 0, positive or negative: so 0 * inf cannot
    # arise, and a negative target makes NaN. It is arithmetic, which CPUs fuse into sums. Distances
    # are halved: they may overflow.
    huge = 2.0 ** (jnp.finfo(x.dtype).maxexp - 1)
    limit = jnp.sqrt(jax.lax.stop_gradient(targets) * huge) * huge + float(jnp.finfo(x.dtype).max)
    half_distance = jnp.minimum((0.5 * stats.top)[..., None] - 0.5 * x, limit)
    distance = psum(blocked_sum(targets * half_distance), axis_name)
    loss = 2.0 * distance + mass * jnp.log1p(stats.others)
    if z_weight is not None:
        # It is infinite where no class is possible. Not z times the square, which may overflow.
        log_z = jnp.where(stats.ties == 0.0, jnp.inf, stats.top + jnp.log1p(stats.others))
        log_z = jnp.where(z_weight == 0.0, 0.0, log_z)
        loss += (z_weight * log_z) * log_z
    return loss, stats, mass


@functools.partial(soft_cross_entropy.defjvp, symbolic_zeros=True)
def _soft_cross_entropy_jvp(axis_name: AxisName, primals: Primals, tangents: Tangents) -> Dual:
    x, targets, z_weight = primals
    loss, grad = _loss_and_grad_x(x, targets, axis_name, z_weight)
    loss_dot = _loss_dot(grad, axis_name, primals, tangents)
    return loss, broadcast_tangent(loss_dot, loss)


def _loss_dot(
    grad: jax.Array, axis_name: AxisName, primals: Primals, tangents: Tangents
) -> jax.Array | float:
    """The tangent of the loss, of which the gradient in the logits is known."""
    x, targets, z_weight = primals
    x_dot, targets_dot, z_dot = tangents
    loss_dot = dot_tangent(grad, x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += dot_tangent(_neg_log_prob(x, targets, axis_name), targets_dot, axis_name)
    if z_weight is not None and not isinstance(z_dot, SymbolicZero):
        loss_dot += jnp.square(log_normalizer_or_zero(x, axis_name)[..., 0]) * z_dot
    return loss_dot


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _loss_and_grad_x(
    x: jax.Array, targets: jax.Array, axis_name: AxisName, z_weight: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """`soft_cross_entropy` [...] and its gradient in x [..., V]."""
    loss, stats, mass = _loss_and_sums(x, targets, axis_name, z_weight)
    rest = psum(blocked_sum(targets * is_below(x, stats.top, loss)), axis_name)
    top, shift, scale = wait_on_cpu(rest, stats.top, stats.shift, inverse_sum(stats))
    p = jnp.exp(x - shift[..., None]) * scale[..., None]
    z = 1.0 + stats.others
    # At the largest logit what both terms have in common is left out.
    at_top = (rest / z)[..., None] - targets * (stats.others / z)[..., None]
    # Not mass * scale, which may underflow: the reciprocal of the sum may be as small as 2e-38.
    if z_weight is None:
        grad = mass[..., None] * p - targets
    else:
        # Twice the log-normaliser may overflow where its product with a probability does not.
        z_log_z = z_weight * (stats.top + jnp.log1p(stats.others))
        grad = 2.0 * (p * (0.5 * mass + z_log_z)[..., None]) - targets
        at_top += 2.0 * (z_log_z / z)[..., None]
    is_alone = (x == top[..., None]) & (stats.ties == 1.0)[..., None]
    grad = jnp.where(x == -jnp.inf, 0.0, jnp.where(is_alone, at_top, grad))
    return loss, jnp.where(jnp.isnan(loss)[..., None], jnp.nan, grad)


@functools.partial(_loss_and_grad_x.defjvp, symbolic_zeros=True)
def _loss_and_grad_x_jvp(
    axis_name: AxisName, primals: Primals, tangents: Tangents
) -> tuple[Pair, Pair]:
    x, targets, z_weight = primals
    x_dot, targets_dot, z_dot = tangents
    loss, grad = _loss_and_grad_x(x, targets, axis_name, z_weight)
    p = softmax(x, axis_name)
    loss_dot, grad_dot = _loss_dot(grad, axis_name, primals, tangents), 0.0
    if not isinstance(x_dot, SymbolicZero):
        mass = sum_classes(targets, axis_name)
        if z_weight is None:
            grad_dot = mass * softmax_jvp(p, x_dot, axis_name)
        else:
            grad_dot = softmax_and_z_jvp(p, x_dot, mass, z_weight, x, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        grad_dot -= jnp.where(x == -jnp.inf, 0.0, subtract_total(p, targets_dot, axis_name))
    if z_weight is not None and not isinstance(z_dot, SymbolicZero):
        grad_dot += 2.0 * (p * log_normalizer_or_zero(x, axis_name)) * z_dot
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
