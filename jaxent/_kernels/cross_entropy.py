"""Cross-entropy of softmax over the last axis against one class per row."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import safe_reciprocal
from jaxent._float.tangents import (
    Dual,
    Pair,
    Tangents,
    broadcast_tangent,
    dot_tangent,
    scale_tangent,
)
from jaxent._kernels.softmax import (
    coarse_shift,
    log_normalizer_or_zero,
    log_sum_over_top,
    max_and_shift,
    softmax,
    softmax_and_z_jvp,
    softmax_jvp,
)
from jaxent._parallel import AxisName, class_count, pmax, psum, take_label

# Logits, labels, smoothing, mask of the classes and weight of the z-loss.
Primals = tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def label_cross_entropy(
    x: jax.Array,
    labels: jax.Array,
    smoothing: jax.Array | None = None,
    class_mask: jax.Array | None = None,
    axis_name: AxisName = None,
    z_weight: jax.Array | None = None,
) -> jax.Array:
    """-sum(t log softmax(x)) + z log(sum(exp(x)))**2 over the last axis.

    The target is t = (1-e) onehot(labels) + e/K.

    Args:
        x: logits [..., V]; -inf at masked classes.
        labels: [...] integers in [0, V); callers deal with others.
        smoothing: e, a scalar, or None for 0.
        class_mask: [..., V] booleans, or None for all; K counts them.
        axis_name: the mesh axis that the classes are split over.
        z_weight: z, a scalar, or None for 0.

    Returns:
        [...] losses.
    """
    top, shift = max_and_shift(x, axis_name)
    others = jnp.sum(
        jnp.exp(jnp.minimum(x - shift[..., None], drop_label_bound(x, labels))), axis=-1
    )
    row = _row_sums(take_label(x, labels, axis_name), top, shift, psum(others, axis_name))
    return _loss_of_row(x, row, smoothing, class_mask, axis_name, z_weight)


def drop_label_bound(x: jax.Array, labels: jax.Array) -> jax.Array:
    """A bound for exponents [..., V] that drops the label's term: -2048 there, >= 2048 elsewhere.

    XLA for CPUs fuses a minimum into the sum, but not a selection, which takes twice the time and a
    buffer [..., V]. An iota in floating point is exact up to 2**24 classes;
    how many they are may be open where a program is exported.
    """
    size = x.shape[-1]
    if not isinstance(size, int) or size > 2**24:
        return jnp.where(_is_label_and_zero(x, labels)[0], -jnp.inf, jnp.inf).astype(x.dtype)
    # Without the barrier XLA for CPUs in JAX 0.12 mixes up iotas of different programs.
    numbers = 64 * jnp.arange(x.shape[-1], dtype=x.dtype), 64 * labels.astype(x.dtype)
    classes, own = jax.lax.optimization_barrier(numbers)
    offset = classes.reshape(*[1] * labels.ndim, -1) - own[..., None]
    return offset * offset - 2.0**11


def _is_label_and_zero(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a class is the label of its row, [..., V], and the number 0.

    Both depend on the labels by a barrier: inside a loop XLA would move them out of it, as buffers
    of the size of x that every round reads again.
    """
    classes, zero = jnp.arange(x.shape[-1], dtype=labels.dtype), jnp.zeros((), x.dtype)
    classes, labels, zero = jax.lax.optimization_barrier((classes, labels, zero))
    return classes.reshape(*[1] * labels.ndim, -1) == labels[..., None], zero


def _uniform_target(x: jax.Array, class_mask: jax.Array | None, axis_name: AxisName) -> jax.Array:
    """1/K at each of the K classes that count, 0 at the others, [..., V]; a scalar if all do."""
    if class_mask is None:
        return jnp.asarray(1.0 / class_count(x.shape[-1], axis_name), x.dtype)
    number = psum(jnp.sum(class_mask, axis=-1, dtype=x.dtype, keepdims=True), axis_name)
    return jnp.where(class_mask, 1.0 / jnp.maximum(number, 1.0), 0.0)


class _RowSums(NamedTuple):
    """What the loss of a row is made of, [...]."""

    top: jax.Array  # the largest logit
    label_logit: jax.Array
    label_term: jax.Array  # exp(label_logit - shift)
    others: jax.Array  # the sum of exp(x - shift) over all classes but the label
    excess: jax.Array  # how far the log-normaliser exceeds the largest logit


def _row_sums(
    label_logit: jax.Array, top: jax.Array, shift: jax.Array, others: jax.Array
) -> _RowSums:
    label_term, top_term = jnp.exp(label_logit - shift), jnp.exp(top - shift)
    excess = log_sum_over_top(others, label_term, top_term, label_logit == top)
    return _RowSums(top, label_logit, label_term, others, excess)


def _loss_of_row(
    x: jax.Array,
    row: _RowSums,
    smoothing: jax.Array | None,
    class_mask: jax.Array | None,
    axis_name: AxisName,
    z_weight: jax.Array | None,
) -> jax.Array:
    loss = _top_minus_target_mean(x, row, smoothing, class_mask, axis_name) + row.excess
    if z_weight is None:
        return loss
    # Not z times the square, which may overflow.
    log_z = row.top + row.excess
    return loss + (z_weight * log_z) * log_z


def _top_minus_target_mean(
    x: jax.Array,
    row: _RowSums,
    smoothing: jax.Array | None,
    class_mask: jax.Array | None,
    axis_name: AxisName,
) -> jax.Array:
    """max(x) - sum(t x) for the smoothed target t.

    All is computed at half size: the difference of two finite logits may overflow.
    """
    from_label = 0.5 * row.top - 0.5 * row.label_logit
    if smoothing is None:
        return 2.0 * from_label
    distances = 0.5 * row.top[..., None] - 0.5 * x
    uniform = _uniform_target(x, class_mask, axis_name)
    if class_mask is not None:
        distances = jnp.where(uniform > 0.0, distances, 0.0)
    from_mean = psum(jnp.sum(distances * uniform, axis=-1), axis_name)
    # Of two distances the one of weight 0 may be infinite, and 0 * inf is NaN. A finite one stays:
    # it is in the derivative with respect to the smoothing.
    from_label = jnp.where((smoothing == 1.0) & (from_label == jnp.inf), 0.0, from_label)
    from_mean = jnp.where((smoothing == 0.0) & (from_mean == jnp.inf), 0.0, from_mean)
    return 2.0 * ((1.0 - smoothing) * from_label + smoothing * from_mean)


@functools.partial(label_cross_entropy.defjvp, symbolic_zeros=True)
def _label_cross_entropy_jvp(axis_name: AxisName, primals: Primals, tangents: Tangents) -> Dual:
    x, labels, smoothing, class_mask, z_weight = primals
    loss, grad = _loss_and_grad(x, labels, smoothing, class_mask, axis_name, z_weight)
    loss_dot = _loss_dot(grad, axis_name, primals, tangents)
    return loss, broadcast_tangent(loss_dot, loss)


def _loss_dot(
    grad: jax.Array, axis_name: AxisName, primals: Primals, tangents: Tangents
) -> jax.Array | float:
    """The tangent of the loss, of which the gradient in the logits is known."""
    x, labels, smoothing, class_mask, z_weight = primals
    x_dot, _, smoothing_dot, _, z_dot = tangents
    loss_dot = dot_tangent(grad, x_dot, axis_name)
    if smoothing is not None:
        loss_dot += scale_tangent(_grad_smoothing(x, labels, class_mask, axis_name), smoothing_dot)
    if z_weight is not None and not isinstance(z_dot, SymbolicZero):
        loss_dot += jnp.square(log_normalizer_or_zero(x, axis_name)[..., 0]) * z_dot
    return loss_dot


def loss_and_grad(
    x: jax.Array,
    labels: jax.Array,
    smoothing: jax.Array | None,
    class_mask: jax.Array | None,
    axis_name: AxisName,
    z_weight: jax.Array | None,
    transform: Callable[[jax.Array], jax.Array] | None = None,
) -> tuple[jax.Array, jax.Array]:
    """`label_cross_entropy` [...] and its gradient [..., V], from one set of exponentials.

    With an increasing map of logits to logits, `transform`, both are those of its results, and the
    gradient is that in x. The map is applied wherever a result is needed: none is kept.
    """
    top, shift = max_and_shift(x, axis_name)
    label_logit, logits = take_label(x, labels, axis_name), x
    if transform is not None:
        top, label_logit, logits = (
            jax.lax.stop_gradient(transform(top)),
            transform(label_logit),
            transform(x),
        )
        shift = coarse_shift(top, class_count(x.shape[-1], axis_name))
    is_label, zero = _is_label_and_zero(x, labels)
    terms = jnp.where(is_label, zero, jnp.exp(logits - shift[..., None]))
    others = psum(jnp.sum(terms, axis=-1), axis_name)
    row = _row_sums(label_logit, top, shift, others)
    if transform is not None and smoothing is not None:
        logits = transform(_read_again(x, others))
    loss = _loss_of_row(logits, row, smoothing, class_mask, axis_name, z_weight)
    if transform is not None:
        x = _read_again(x, loss)
        terms = jnp.exp(transform(x) - shift[..., None])

    # A NaN at the label is in none of the terms; the scale brings it to the whole row.
    scale = safe_reciprocal(others + row.label_term)
    p, p_label, p_others = terms * scale[..., None], row.label_term * scale, others * scale
    grad, grad_label = p, -p_others
    if smoothing is not None:
        on_each = 1.0 / class_count(x.shape[-1], axis_name)
        if class_mask is not None:
            on_each = pmax(jnp.max(_uniform_target(x, class_mask, axis_name), axis=-1), axis_name)
        t_others = smoothing - smoothing * on_each
        grad_label = t_others * p_label - (1.0 - t_others) * p_others
    if z_weight is not None:
        # Twice the log-normaliser may overflow where its product with a probability does not.
        z_log_z = z_weight * (row.top + row.excess)
        grad = 2.0 * (p * (0.5 + z_log_z)[..., None])
        grad_label += 2.0 * (p_label * z_log_z)
    if smoothing is not None:
        t_each = smoothing * _uniform_target(x, class_mask, axis_name)
        grad = jnp.where(x == -jnp.inf, zero, grad - t_each)
    grad_label = jnp.where(label_logit == -jnp.inf, 0.0, grad_label)
    grad = jnp.where(is_label, grad_label[..., None], grad)
    if transform is not None:
        grad *= jax.jvp(transform, (x,), (jnp.ones_like(x),))[1]
    return loss, grad


def _read_again(x: jax.Array, before: jax.Array) -> jax.Array:
    """`x`; on GPUs, which would keep it, nothing of it is shared with what `before` came from."""

    def wait(x: jax.Array, before: jax.Array) -> jax.Array:
        return jax.lax.optimization_barrier((x, before))[0]

    return jax.lax.platform_dependent(x, before, cuda=wait, rocm=wait, default=lambda x, _: x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _loss_and_grad(
    x: jax.Array,
    labels: jax.Array,
    smoothing: jax.Array | None,
    class_mask: jax.Array | None,
    axis_name: AxisName,
    z_weight: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    return loss_and_grad(x, labels, smoothing, class_mask, axis_name, z_weight)


@functools.partial(_loss_and_grad.defjvp, symbolic_zeros=True)
def _loss_and_grad_jvp(
    axis_name: AxisName, primals: Primals, tangents: Tangents
) -> tuple[Pair, Pair]:
    x, labels, smoothing, class_mask, z_weight = primals
    x_dot, _, smoothing_dot, _, z_dot = tangents
    loss, grad = _loss_and_grad(x, labels, smoothing, class_mask, axis_name, z_weight)
    loss_dot, grad_dot = _loss_dot(grad, axis_name, primals, tangents), 0.0
    p = softmax(x, axis_name)
    if not isinstance(x_dot, SymbolicZero):
        if z_weight is None:
            grad_dot = softmax_jvp(p, x_dot, axis_name)
        else:
            grad_dot = softmax_and_z_jvp(p, x_dot, 1.0, z_weight, x, axis_name)
    if smoothing is not None:
        one_hot = _is_label_and_zero(x, labels)[0].astype(x.dtype)
        difference = one_hot - _uniform_target(x, class_mask, axis_name)
        grad_dot += scale_tangent(jnp.where(x == -jnp.inf, 0.0, difference), smoothing_dot)
    if z_weight is not None and not isinstance(z_dot, SymbolicZero):
        grad_dot += 2.0 * (p * log_normalizer_or_zero(x, axis_name)) * z_dot
    return (loss, grad), (broadcast_tangent(loss_dot, loss), broadcast_tangent(grad_dot, grad))


def _grad_smoothing(
    x: jax.Array, labels: jax.Array, class_mask: jax.Array | None, axis_name: AxisName
) -> jax.Array:
    """The derivative of the loss with respect to the smoothing: x_label - mean(x)."""
    uniform = _uniform_target(x, class_mask, axis_name)
    label_logit = take_label(x, labels, axis_name)[..., None]
    differences = label_logit - jnp.where(uniform > 0.0, x, 0.0)
    return psum(jnp.sum(differences * uniform, axis=-1), axis_name)
