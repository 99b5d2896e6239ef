"""Cross-entropy of softmax over the last axis: against one class, or against a distribution."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.sums import blocked_sum, safe_reciprocal
from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._kernels.softmax import (
    log_sum_over_top,
    max_and_log_sum_over_max,
    max_and_shift,
    softmax,
    softmax_jvp,
    subtract_mean,
    subtract_total,
)
from jaxent._parallel import AxisName, class_count, pmax, psum, take_label

# Cross-entropy against one class per row.


def _share(x: jax.Array, class_mask: jax.Array | None, axis_name: AxisName) -> jax.Array:
    """1/K per class [..., V], with K the number of classes that exist, and 0 at the others."""
    if class_mask is None:
        return jnp.full(x.shape, 1.0 / class_count(x.shape[-1], axis_name), x.dtype)
    number = psum(jnp.sum(class_mask, axis=-1, dtype=x.dtype, keepdims=True), axis_name)
    return jnp.where(class_mask, 1.0 / jnp.maximum(number, 1.0), 0.0)


def _is_label(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a class is the label of its row, [..., V], and a zero to put in its place.

    Inside a loop the compiler would move what depends on no data out of it, as a buffer of the
    size of x that is then read in every round. The barrier ties classes and zero to the labels.
    """
    classes, zero = jnp.arange(x.shape[-1], dtype=labels.dtype), jnp.zeros((), x.dtype)
    classes, labels, zero = jax.lax.optimization_barrier((classes, labels, zero))
    return classes.reshape(*[1] * labels.ndim, -1) == labels[..., None], zero


def _smoothed_distance(x, label_logit, top, smoothing, class_mask, axis_name) -> jax.Array:
    """Mean distance of the logits to the top under the smoothed target.

    Distances are taken at half size: the difference of two finite logits may overflow.
    """
    to_label = 0.5 * top - 0.5 * label_logit
    if smoothing is None:
        return 2.0 * to_label
    share = _share(x, class_mask, axis_name)
    distances = 0.5 * top[..., None] - 0.5 * x
    to_all = psum(jnp.sum(jnp.where(share > 0.0, distances, 0.0) * share, axis=-1), axis_name)
    # What weighs nothing may be infinite; if it is not, it has a derivative by the smoothing.
    to_label = jnp.where((smoothing == 1.0) & (to_label == jnp.inf), 0.0, to_label)
    to_all = jnp.where((smoothing == 0.0) & (to_all == jnp.inf), 0.0, to_all)
    return 2.0 * ((1.0 - smoothing) * to_label + smoothing * to_all)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def label_cross_entropy(
    x, labels, smoothing=None, class_mask=None, axis_name: AxisName = None
) -> jax.Array:
    """-sum(t log softmax(x)) over the last axis, t = (1-e) onehot(labels) + e/K.

    Args:
        x: logits [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
        smoothing: e, a scalar, or None for 0.
        class_mask: [..., V] booleans, or None for all; K counts them.
        axis_name: the axis that the classes are split over, see `across`.

    Returns:
        [...] losses.
    """
    top, shift = max_and_shift(x, axis_name)
    others = jnp.sum(
        jnp.exp(jnp.minimum(x - shift[..., None], drop_label_bound(x, labels))), axis=-1
    )
    others = psum(others, axis_name)
    return _label_parts(x, labels, smoothing, class_mask, axis_name, top, shift, others)[0]


def _label_parts(
    x, labels, smoothing, class_mask, axis_name, top, shift, others
) -> tuple[jax.Array, ...]:
    """The loss of `label_cross_entropy`, and the label's logit and term."""
    label_logit = take_label(x, labels, axis_name)
    label_term, top_term = jnp.exp(label_logit - shift), jnp.exp(top - shift)
    excess = log_sum_over_top(others, label_term, top_term, label_logit == top)
    distance = _smoothed_distance(x, label_logit, top, smoothing, class_mask, axis_name)
    return distance + excess, label_logit, label_term


def drop_label_bound(x: jax.Array, labels: jax.Array) -> jax.Array:
    """What leaves the label out of a sum of exponentials: far below 0 at it, far above elsewhere.

    A bound instead of a selection: the compiler for CPUs fuses it into the sum and writes no buffer
    of [rows, classes]. An iota in floating point is exact up to 2**24 classes.
    """
    if x.shape[-1] > 2**24:
        return jnp.where(_is_label(x, labels)[0], -jnp.inf, jnp.inf).astype(x.dtype)
    # Without the barrier XLA for CPUs in JAX 0.12 mixes up iotas of different programs.
    numbers = 64 * jnp.arange(x.shape[-1], dtype=x.dtype), 64 * labels.astype(x.dtype)
    classes, own = jax.lax.optimization_barrier(numbers)
    offset = classes.reshape(*[1] * labels.ndim, -1) - own[..., None]
    return offset * offset - 2.0**11


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _label_cross_entropy_and_slope(x, labels, smoothing, class_mask, axis_name):
    """`label_cross_entropy` and its gradient with respect to x, [..., V], from one set of terms."""
    top, shift = max_and_shift(x, axis_name)
    is_label, zero = _is_label(x, labels)
    terms = jnp.where(is_label, zero, jnp.exp(x - shift[..., None]))
    others = psum(jnp.sum(terms, axis=-1), axis_name)
    loss, label_logit, label_term = _label_parts(
        x, labels, smoothing, class_mask, axis_name, top, shift, others
    )

    # A NaN at the label is in no term; the scale carries it to the rest of the row.
    scale = safe_reciprocal(others + label_term)
    p, p_label, p_others = terms * scale[..., None], label_term * scale, others * scale
    if smoothing is None:
        slope, at_label = p, -p_others
    else:
        on_each = smoothing * _share(x, class_mask, axis_name)
        slope = jnp.where(x == -jnp.inf, 0.0, p - on_each)
        share = 1.0 / class_count(x.shape[-1], axis_name)
        if class_mask is not None:
            share = pmax(jnp.max(_share(x, class_mask, axis_name), axis=-1), axis_name)
        beside = smoothing - smoothing * share
        at_label = beside * p_label - (1.0 - beside) * p_others
    at_label = jnp.where(label_logit == -jnp.inf, 0.0, at_label)
    return loss, jnp.where(is_label, at_label[..., None], slope)


@functools.partial(label_cross_entropy.defjvp, symbolic_zeros=True)
def _label_cross_entropy_jvp(axis_name, primals, tangents):
    x, labels, smoothing, class_mask = primals
    x_dot, _, smoothing_dot, _ = tangents
    loss, slope = _label_cross_entropy_and_slope(x, labels, smoothing, class_mask, axis_name)
    loss_dot = dot_tangent(slope, x_dot, axis_name)
    if smoothing is not None:
        loss_dot += scale_tangent(_smoothing_slope(x, labels, class_mask, axis_name), smoothing_dot)
    return loss, broadcast_tangent(loss_dot, loss)


@functools.partial(_label_cross_entropy_and_slope.defjvp, symbolic_zeros=True)
def _label_cross_entropy_and_slope_jvp(axis_name, primals, tangents):
    x, labels, smoothing, class_mask = primals
    x_dot, _, smoothing_dot, _ = tangents
    loss, slope = _label_cross_entropy_and_slope(x, labels, smoothing, class_mask, axis_name)
    loss_dot, slope_dot = dot_tangent(slope, x_dot, axis_name), 0.0
    if not isinstance(x_dot, SymbolicZero):
        slope_dot = softmax_jvp(softmax(x, axis_name), x_dot, axis_name)
    if smoothing is not None:
        loss_dot += scale_tangent(_smoothing_slope(x, labels, class_mask, axis_name), smoothing_dot)
        # The derivative of that by the logits.
        apart = _is_label(x, labels)[0].astype(x.dtype) - _share(x, class_mask, axis_name)
        slope_dot += scale_tangent(jnp.where(x == -jnp.inf, 0.0, apart), smoothing_dot)
    return (loss, slope), (broadcast_tangent(loss_dot, loss), broadcast_tangent(slope_dot, slope))


def _smoothing_slope(x, labels, class_mask, axis_name) -> jax.Array:
    """Derivative of the smoothed loss with respect to the smoothing: x_label - mean(x)."""
    share = _share(x, class_mask, axis_name)
    difference = take_label(x, labels, axis_name)[..., None] - jnp.where(share > 0.0, x, 0.0)
    return psum(jnp.sum(difference * share, axis=-1), axis_name)


# Cross-entropy against a distribution per row.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def soft_cross_entropy(x: jax.Array, targets: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """-sum(targets * log softmax(x)) over the last axis, for targets >= 0 of any total.

    A target of 0 on a logit of -inf counts 0; a negative target makes the row NaN.

    The term left out is that of the class that holds more than half of the target mass, if there
    is one. If that class is on top, the rest of the sum decides the loss. If another is, or none
    is heavy, the distances to the top make up at least half of the loss.

    Selections are bounds here, and no two sums share an intermediate result or a constant: that
    is what the compiler for CPUs fuses into sums instead of writing buffers of [rows, classes].
    """
    top, shift = max_and_shift(x, axis_name)
    mass = psum(blocked_sum(targets), axis_name)
    half, steep = _majority(jax.lax.stop_gradient(mass))
    light = (half[..., None] - jax.lax.stop_gradient(targets)) * steep[..., None] + 2.0**10
    others = psum(blocked_sum(jnp.exp(jnp.minimum(x - shift[..., None], light))), axis_name)
    return _soft_parts(x, targets, axis_name, top, shift, mass, half, steep, others)[0]


def _soft_parts(
    x, targets, axis_name, top, shift, mass, half, steep, others
) -> tuple[jax.Array, jax.Array]:
    """The loss of `soft_cross_entropy`, and the term of the heavy class."""
    # After the sum over the others, or it would share its operands with these after all.
    half, steep, below, _ = jax.lax.optimization_barrier(
        (half, steep, shift, jax.lax.stop_gradient(others))
    )
    heavy = (jax.lax.stop_gradient(targets) - half[..., None]) * steep[..., None] - 2.0**11
    heavy_logit = jnp.max(jnp.minimum(x - below[..., None], heavy), axis=-1)
    # On a device without the heavy class the term is 0.
    left_out, top_term = psum(jnp.exp(heavy_logit), axis_name), jnp.exp(top - shift)
    on_top = pmax(heavy_logit, axis_name) == top - shift
    excess = log_sum_over_top(others, left_out, top_term, on_top)

    # Finite, inf or NaN where the target is 0, positive or negative: so 0 * inf cannot arise, and
    # a negative target cannot pass. Half sizes, since two finite logits may be too far apart.
    huge = 2.0 ** (jnp.finfo(x.dtype).maxexp - 1)
    limit = jnp.sqrt(jax.lax.stop_gradient(targets) * huge) * huge + float(jnp.finfo(x.dtype).max)
    half_top = 0.5 * top
    distance = jnp.sum(targets * jnp.minimum(half_top[..., None] - 0.5 * x, limit), axis=-1)
    return 2.0 * psum(distance, axis_name) + mass * excess, left_out


def _majority(mass: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Half of the target mass, and a factor that makes a bound of how far a target is from it.

    The bound exceeds any shifted logit where a target is at most half, and is far below all that
    count where it is more, if only by a rounding. Of masses so small that the exact sum would not
    show no class is heavy: 1 is more than any of their targets.
    """
    info = jnp.finfo(mass.dtype)
    counts = ~(mass < 2.0 ** (-0.6 * info.maxexp))
    half = jnp.where(counts, 0.5 * mass, 1.0)
    return half, 2.0 ** (info.nmant + 15) / half


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _soft_cross_entropy_and_slope(x: jax.Array, targets: jax.Array, axis_name: AxisName):
    """`soft_cross_entropy` and its gradient with respect to x, from one set of terms."""
    top, shift = max_and_shift(x, axis_name)
    mass = psum(blocked_sum(targets), axis_name)
    half, steep = _majority(mass)
    # What elementwise operations and sums share would be written to a buffer of [rows, classes].
    half, beside, steep, zero = jax.lax.optimization_barrier(
        (half, half, steep, jnp.zeros_like(mass))
    )
    is_heavy = targets > half[..., None]
    terms = jnp.where(is_heavy, zero[..., None], jnp.exp(x - shift[..., None]))
    others = psum(blocked_sum(terms), axis_name)
    loss, left_out = _soft_parts(x, targets, axis_name, top, shift, mass, beside, steep, others)
    # The bound of a target near half is to exceed it, whatever the mass.
    light = (beside[..., None] - targets) * 2.0 ** (jnp.finfo(x.dtype).nmant + 15)
    light += 2.0 * beside[..., None]
    rest = psum(blocked_sum(jnp.maximum(jnp.minimum(targets, light), 0.0)), axis_name)

    scale = safe_reciprocal(others + left_out)
    slope = jnp.where(
        is_heavy,
        (rest * (left_out * scale))[..., None] - targets * (others * scale)[..., None],
        mass[..., None] * (terms * scale[..., None]) - targets,
    )
    slope = jnp.where(x == -jnp.inf, zero[..., None], slope)
    return loss, jnp.where(jnp.isnan(loss)[..., None], jnp.nan, slope)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _surprise(x: jax.Array, targets: jax.Array, axis_name: AxisName) -> jax.Array:
    """-log softmax(x), the gradient of `soft_cross_entropy` with respect to the targets.

    0 rather than inf at an impossible class that has no target either.
    """
    top, excess = max_and_log_sum_over_max(x, axis_name)
    unused = (targets == 0.0) & (x == -jnp.inf)
    surprise = (top[..., None] - x) + excess[..., None]
    return jnp.where(unused, 0.0, jnp.where(targets < 0.0, jnp.nan, surprise))


@_surprise.defjvp
def _surprise_jvp(axis_name, primals, tangents):
    x, targets = primals
    x_dot, _ = tangents
    x_dot = jnp.where(x == -jnp.inf, 0.0, x_dot)
    return _surprise(x, targets, axis_name), -subtract_mean(softmax(x, axis_name), x_dot, axis_name)


@functools.partial(soft_cross_entropy.defjvp, symbolic_zeros=True)
def _soft_cross_entropy_jvp(axis_name, primals, tangents):
    x, targets = primals
    x_dot, targets_dot = tangents
    loss, slope = _soft_cross_entropy_and_slope(x, targets, axis_name)
    loss_dot = dot_tangent(slope, x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += dot_tangent(_surprise(x, targets, axis_name), targets_dot, axis_name)
    return loss, broadcast_tangent(loss_dot, loss)


@functools.partial(_soft_cross_entropy_and_slope.defjvp, symbolic_zeros=True)
def _soft_cross_entropy_and_slope_jvp(axis_name, primals, tangents):
    x, targets = primals
    x_dot, targets_dot = tangents
    loss, slope = _soft_cross_entropy_and_slope(x, targets, axis_name)
    p = softmax(x, axis_name)
    loss_dot, slope_dot = dot_tangent(slope, x_dot, axis_name), 0.0
    if not isinstance(x_dot, SymbolicZero):
        mass = psum(jnp.sum(targets, axis=-1, keepdims=True), axis_name)
        slope_dot = mass * softmax_jvp(p, x_dot, axis_name)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += dot_tangent(_surprise(x, targets, axis_name), targets_dot, axis_name)
        slope_dot -= jnp.where(x == -jnp.inf, 0.0, subtract_total(p, targets_dot, axis_name))
    return (loss, slope), (broadcast_tangent(loss_dot, loss), broadcast_tangent(slope_dot, slope))
