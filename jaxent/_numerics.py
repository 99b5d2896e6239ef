"""Primitives with exact values and exact derivative rules; they know no loss and check nothing.

Every primitive works on the last axis, in the dtype it is given (float32 or float64), and is
accurate in relative error. Three ideas carry all of them:

* **A coarse shift.** exp(x - m) inherits the rounding of x - m: 32 units in the last place when x
  and m are 80 apart. Here the shift is a multiple of a power of two, zero for ordinary logits, and
  chosen such that x - shift is exact for every term that still counts. Nothing is paid for it.
* **One term is left out.** log-sum-exp minus the label's logit cancels. The sum over the *other*
  classes does not: log1p(others / label) keeps losses of 1e-30 alive, and the gradient at the
  label is -others / total instead of p - 1.
* **A symmetric curvature.** The Jacobian of softmax, diag(p) - p p', is applied with its heavy
  class as the pivot, in a form that is its own transpose, so that forward over reverse and
  reverse over reverse are equally accurate.

A rule that needs a derivative of a derivative gets it from primitives of this file, which makes
every order of differentiation accurate.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """float64 if any argument is float64, else float32: nothing is computed in 16 bits.

    A Python number takes the dtype of the others, also where float64 is enabled.
    """
    is_double = any(array.dtype == jnp.float64 and not array.weak_type for array in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def along(coefficient: jax.Array, tangent) -> jax.Array | float:
    """`coefficient * tangent`, or nothing at all for an argument that is not differentiated.

    The distinction matters for more than speed: an infinite coefficient times a zero that stands
    for "not differentiated" would be NaN.
    """
    return 0.0 if isinstance(tangent, SymbolicZero) else coefficient * tangent


def summed_along(coefficient: jax.Array, tangent) -> jax.Array | float:
    """`sum(coefficient * tangent)` over the last axis, or nothing, as in `along`."""
    return 0.0 if isinstance(tangent, SymbolicZero) else jnp.sum(coefficient * tangent, axis=-1)


def _shift(top: jax.Array, size: int) -> jax.Array:
    """A shift near enough to the maximum for exp, coarse enough for x - shift to be exact.

    It is 0 while -8 <= top <= limit, where the sum of `size` exponentials can neither overflow nor
    lose a term that counts. Outside, it is a multiple of 4 or 16 that follows the maximum, and a
    difference of two floating point numbers within a factor of two of each other is exact.
    """
    limit = math.log(float(jnp.finfo(top.dtype).max)) - 2.1 - math.log(size)
    above = 4.0 * jnp.ceil(jnp.maximum(top - limit, 0.0) / 4.0)
    below = 16.0 * jnp.floor(jnp.minimum(top + 8.0, 0.0) / 16.0)
    return above + below


def _top_and_shift(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum over the last axis, 0 where it is -inf to keep NaN away, and its shift."""
    top = jax.lax.stop_gradient(jnp.max(x, axis=-1))
    top = jnp.where(top == -jnp.inf, 0.0, top)
    return top, _shift(top, x.shape[-1])


def _log_total(others: jax.Array, left_out: jax.Array, top_term: jax.Array, on_top) -> jax.Array:
    """log((others + left_out) / top_term), accurate near 0 if what was left out is on top.

    `others` is the sum of all terms but one, `left_out` that one, `top_term` the largest. Where
    the one left out is not `on_top`, callers add a distance to the top that outweighs the result.
    """
    total = others + left_out
    # `motion` is zero, with the derivative that the term on top has in the logarithm. JAX before
    # 0.11 drops the rules of this file where a scan is part of another rule; what is left must be
    # right as well.
    fixed = jax.lax.stop_gradient(left_out)
    motion = left_out - fixed
    log_total = jnp.where(
        on_top,
        jnp.log1p((others + motion) / jnp.where(on_top, fixed, 1.0)),
        jnp.log(total / top_term),
    )
    return jnp.where(total > 0.0, log_total, jnp.where(jnp.isnan(total), jnp.nan, 0.0))


def _long_sum(values: jax.Array) -> jax.Array:
    """The sum over the last axis, in blocks where it is long, so that roundings do not add up."""
    size, block = values.shape[-1], 512
    if size < 2**15:
        return jnp.sum(values, axis=-1)
    whole = size - size % block
    blocks = values[..., :whole].reshape(*values.shape[:-1], -1, block)
    # Without the barrier the compiler would make one sum of the two.
    partial = jax.lax.optimization_barrier(jnp.sum(blocks, axis=-1))
    return jnp.sum(partial, axis=-1) + jnp.sum(values[..., whole:], axis=-1)


def _reciprocal(total: jax.Array) -> jax.Array:
    """1 / total, and 0 for an empty sum: a row without a possible class has no probabilities."""
    return jnp.where(total == 0.0, 0.0, 1.0 / jnp.where(total == 0.0, 1.0, total))


# Softmax, its curvature and its normaliser.


@functools.partial(jax.custom_jvp)
def softmax(x: jax.Array) -> jax.Array:
    """Probabilities over the last axis; 0 where x is -inf, also if all of the row is."""
    _, shift = _top_and_shift(x)
    terms = jnp.exp(x - shift[..., None])
    return terms * _reciprocal(jnp.sum(terms, axis=-1))[..., None]


@softmax.defjvp
def _softmax_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    p = softmax(x)
    return p, curvature(p, x_dot)


def curvature(p: jax.Array, x_dot: jax.Array) -> jax.Array:
    """(diag(p) - p p') x_dot without cancellation, as a chain of maps that is its own transpose.

    A class with p > 1/2 serves as the pivot: its own entry is minus the sum of the others, and the
    others see only differences to it. Where there is none, no 1 - p is small.
    """
    heavy = p > 0.5
    centred = x_dot - jnp.sum(jnp.where(heavy, x_dot, 0.0), axis=-1, keepdims=True)
    centred = jnp.where(heavy, 0.0, centred)
    moved = p * centred - p * jnp.sum(p * centred, axis=-1, keepdims=True)
    light = jnp.where(heavy, 0.0, moved)
    return light - jnp.where(heavy, jnp.sum(light, axis=-1, keepdims=True), 0.0)


def _top_and_excess(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The maximum over the last axis and how far the log-normaliser exceeds it, both accurate."""
    top, shift = _top_and_shift(x)
    terms = jnp.exp(x - shift[..., None])
    top_term = jnp.exp(top - shift)
    # All of the terms on top but one stay in the sum, whichever that is.
    tied = jnp.where(x < top[..., None], 0.0, terms)
    others = jnp.sum(terms - tied, axis=-1) + (jnp.sum(tied, axis=-1) - top_term)
    return top, _log_total(others, top_term, top_term, jnp.ones_like(top, dtype=bool))


@jax.custom_jvp
def log_normalizer(x: jax.Array) -> jax.Array:
    """log(sum(exp(x))) over the last axis; -inf if every entry is."""
    top, excess = _top_and_excess(x)
    return jnp.where(jnp.all(x == -jnp.inf, axis=-1), -jnp.inf, top + excess)


@log_normalizer.defjvp
def _log_normalizer_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return log_normalizer(x), jnp.sum(softmax(x) * x_dot, axis=-1)


@jax.custom_jvp
def squared_log_normalizer(x: jax.Array) -> jax.Array:
    """log(sum(exp(x)))**2 over the last axis."""
    return jnp.square(log_normalizer(x))


@squared_log_normalizer.defjvp
def _squared_log_normalizer_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    slope_dot = jnp.sum(_squared_log_normalizer_slope(x) * x_dot, axis=-1)
    return squared_log_normalizer(x), slope_dot


def _possible_log_normalizer(x: jax.Array) -> jax.Array:
    """The log-normaliser [..., 1], and 0 for a row without a possible class: it has no gradient."""
    log_z = log_normalizer(x)
    return jnp.where(log_z == -jnp.inf, 0.0, log_z)[..., None]


@jax.custom_jvp
def _squared_log_normalizer_slope(x: jax.Array) -> jax.Array:
    # The probability comes first: twice the log-normaliser may overflow where the result does not.
    return 2.0 * (softmax(x) * _possible_log_normalizer(x))


@_squared_log_normalizer_slope.defjvp
def _squared_log_normalizer_slope_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    p = softmax(x)
    # The factor 2 as 8 and 1/4, on the two sides of the curvature, so that neither this nor its
    # transpose forms twice the log-normaliser.
    bend = curvature(p, 8.0 * x_dot) * (0.25 * _possible_log_normalizer(x))
    slope_dot = bend + 2.0 * p * jnp.sum(p * x_dot, axis=-1, keepdims=True)
    return _squared_log_normalizer_slope(x), slope_dot


# Cross-entropy against one class per row.


def _share(x: jax.Array, exists: jax.Array | None) -> jax.Array:
    """1/K per class [..., V], with K the number of classes that exist, and 0 at the others."""
    if exists is None:
        return jnp.full(x.shape, 1.0 / x.shape[-1], x.dtype)
    count = jnp.sum(exists, axis=-1, dtype=x.dtype, keepdims=True)
    return jnp.where(exists, 1.0 / jnp.maximum(count, 1.0), 0.0)


def _is_label(x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Whether a class is the label of its row, [..., V], and a zero to put in its place.

    Inside a loop the compiler would move what depends on no data out of it, as a buffer of the
    size of x that is then read in every round. The barrier ties classes and zero to the labels.
    """
    classes, zero = jnp.arange(x.shape[-1], dtype=labels.dtype), jnp.zeros((), x.dtype)
    classes, labels, zero = jax.lax.optimization_barrier((classes, labels, zero))
    return classes.reshape(*[1] * labels.ndim, -1) == labels[..., None], zero


def _label_logit(x: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, labels[..., None], axis=-1, mode="clip")[..., 0]


def _smoothed_distance(x, label_logit, top, smoothing, exists) -> jax.Array:
    """Mean distance of the logits to the top under the smoothed target.

    Distances are taken at half size: the difference of two finite logits may overflow.
    """
    to_label = 0.5 * top - 0.5 * label_logit
    if smoothing is None:
        return 2.0 * to_label
    share = _share(x, exists)
    distances = 0.5 * top[..., None] - 0.5 * x
    to_all = jnp.sum(jnp.where(share > 0.0, distances, 0.0) * share, axis=-1)
    # What weighs nothing may be infinite.
    to_label = jnp.where(smoothing < 1.0, to_label, 0.0)
    to_all = jnp.where(smoothing > 0.0, to_all, 0.0)
    return 2.0 * ((1.0 - smoothing) * to_label + smoothing * to_all)


@functools.partial(jax.custom_jvp)
def label_cross_entropy(x, labels, smoothing=None, exists=None) -> jax.Array:
    """-sum(t log softmax(x)) over the last axis, t = (1-e) onehot(labels) + e/K.

    Args:
        x: logits [..., V]; -inf at classes that do not exist.
        labels: [...] integers in [0, V); callers deal with others.
        smoothing: e, a scalar, or None for 0.
        exists: [..., V] booleans, or None for all; K counts them.

    Returns:
        [...] losses.
    """
    top, shift = _top_and_shift(x)
    # Arithmetic instead of a comparison: the compiler for CPUs fuses it into the sum and writes no
    # buffer of [rows, classes]. An iota in floating point is exact up to 2**24 classes.
    if x.shape[-1] <= 2**24:
        # Without the barrier XLA for CPUs in JAX 0.12 mixes up iotas of different programs.
        classes = jnp.arange(x.shape[-1], dtype=x.dtype), labels.astype(x.dtype)
        classes, numbers = jax.lax.optimization_barrier(classes)
        offset = classes.reshape(*[1] * labels.ndim, -1) - numbers[..., None]
        keep = jnp.minimum(offset * offset, 1.0)
    else:
        keep = 1.0 - _is_label(x, labels)[0].astype(x.dtype)
    others = jnp.sum(jnp.exp(x - shift[..., None]) * keep, axis=-1)
    label_logit = _label_logit(x, labels)
    distance = _smoothed_distance(x, label_logit, top, smoothing, exists)
    label_term, top_term = jnp.exp(label_logit - shift), jnp.exp(top - shift)
    return distance + _log_total(others, label_term, top_term, label_logit == top)


@jax.custom_jvp
def _label_cross_entropy_and_slope(x, labels, smoothing, exists):
    """`label_cross_entropy` and its gradient with respect to x, [..., V], from one set of terms."""
    top, shift = _top_and_shift(x)
    is_label, zero = _is_label(x, labels)
    terms = jnp.where(is_label, zero, jnp.exp(x - shift[..., None]))
    others = jnp.sum(terms, axis=-1)
    label_logit = _label_logit(x, labels)
    label_term = jnp.exp(label_logit - shift)
    distance = _smoothed_distance(x, label_logit, top, smoothing, exists)
    log_total = _log_total(others, label_term, jnp.exp(top - shift), label_logit == top)
    loss = distance + log_total

    # A NaN at the label is in no term; the scale carries it to the rest of the row.
    scale = _reciprocal(others + label_term)
    p, p_label, p_others = terms * scale[..., None], label_term * scale, others * scale
    if smoothing is None:
        slope, at_label = p, -p_others
    else:
        on_each = smoothing * _share(x, exists)
        slope = jnp.where(x == -jnp.inf, 0.0, p - on_each)
        share = 1.0 / x.shape[-1] if exists is None else jnp.max(_share(x, exists), axis=-1)
        beside = smoothing - smoothing * share
        at_label = beside * p_label - (1.0 - beside) * p_others
    at_label = jnp.where(label_logit == -jnp.inf, 0.0, at_label)
    return loss, jnp.where(is_label, at_label[..., None], slope)


@functools.partial(label_cross_entropy.defjvp, symbolic_zeros=True)
def _label_cross_entropy_jvp(primals, tangents):
    x, labels, smoothing, exists = primals
    x_dot, _, smoothing_dot, _ = tangents
    loss, slope = _label_cross_entropy_and_slope(x, labels, smoothing, exists)
    loss_dot = summed_along(slope, x_dot)
    if smoothing is not None:
        loss_dot += along(_smoothing_slope(x, labels, exists), smoothing_dot)
    return loss, _like(loss_dot, loss)


@functools.partial(_label_cross_entropy_and_slope.defjvp, symbolic_zeros=True)
def _label_cross_entropy_and_slope_jvp(primals, tangents):
    x, labels, smoothing, exists = primals
    x_dot, _, smoothing_dot, _ = tangents
    loss, slope = _label_cross_entropy_and_slope(x, labels, smoothing, exists)
    loss_dot = summed_along(slope, x_dot)
    slope_dot = 0.0 if isinstance(x_dot, SymbolicZero) else curvature(softmax(x), x_dot)
    if smoothing is not None:
        loss_dot += along(_smoothing_slope(x, labels, exists), smoothing_dot)
        if not isinstance(smoothing_dot, SymbolicZero):
            spread = jax.vjp(lambda logits: _smoothing_slope(logits, labels, exists), x)[1]
            slope_dot += spread(jnp.broadcast_to(smoothing_dot, loss.shape))[0]
    return (loss, slope), (_like(loss_dot, loss), _like(slope_dot, slope))


def _smoothing_slope(x, labels, exists) -> jax.Array:
    """Derivative of the smoothed loss with respect to the smoothing: x_label - mean(x)."""
    share = _share(x, exists)
    difference = _label_logit(x, labels)[..., None] - jnp.where(share > 0.0, x, 0.0)
    return jnp.sum(difference * share, axis=-1)


def _like(tangent: jax.Array | float, primal: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(tangent, primal.dtype), primal.shape)


# Cross-entropy against a distribution per row.


def _soft_parts(x: jax.Array, targets: jax.Array) -> tuple[jax.Array, ...]:
    """The loss of `soft_cross_entropy` and the sums that its gradient shares with it.

    The term left out is that of the class that holds more than half of the target mass, if there
    is one. If that class is on top, the rest of the sum decides the loss. If another is, or none
    is heavy, the distances to the top make up at least half of the loss.
    """
    top, shift = _top_and_shift(x)
    terms = jnp.exp(x - shift[..., None])
    # Indicators by arithmetic, which the compiler for CPUs fuses into sums: `heavy` is 1 at the
    # heavy class and 0 elsewhere; `limit` is finite, inf or NaN where the target is 0, positive
    # or negative, so that 0 * inf cannot arise and a negative target cannot pass.
    huge, largest = 2.0 ** (0.75 * jnp.finfo(x.dtype).maxexp), float(jnp.finfo(x.dtype).max)
    fixed = jax.lax.stop_gradient(targets)
    excess = fixed - 0.5 * jnp.sum(fixed, axis=-1, keepdims=True)
    heavy = jnp.minimum(jnp.maximum(excess, 0.0) * huge, 1.0)
    positive = jnp.minimum(jnp.sqrt(fixed) * huge, 1.0)
    limit = positive / (1.0 - positive) + largest
    # Half sizes, since the difference of two finite logits may overflow.
    distances = jnp.minimum(0.5 * top[..., None] - 0.5 * x, limit)
    distance = 2.0 * jnp.sum(targets * distances, axis=-1)
    others = _long_sum(terms * (1.0 - heavy))
    left_out = jnp.sum(terms * heavy, axis=-1)
    # The same term from two loops may differ in the last bits.
    top_term = jnp.exp(top - shift)
    on_top = left_out >= top_term * (1.0 - 4.0 * float(jnp.finfo(x.dtype).eps))
    log_total = _log_total(others, left_out, top_term, on_top)
    # Apart, or the sum over many small targets would be lost in a large one.
    rest = _long_sum(targets * (1.0 - heavy))
    mass = rest + jnp.sum(targets * heavy, axis=-1)
    loss = distance + mass * log_total
    return loss, terms, heavy, rest, mass, others, left_out


@jax.custom_jvp
def soft_cross_entropy(x: jax.Array, targets: jax.Array) -> jax.Array:
    """-sum(targets * log softmax(x)) over the last axis, for targets >= 0 of any total.

    A target of 0 on a logit of -inf counts 0; a negative target makes the row NaN.
    """
    return _soft_parts(x, targets)[0]


@jax.custom_jvp
def _soft_cross_entropy_and_slope(x: jax.Array, targets: jax.Array):
    """`soft_cross_entropy` and its gradient with respect to x, from one set of terms."""
    loss, terms, heavy, rest, mass, others, left_out = _soft_parts(x, targets)
    scale = _reciprocal(others + left_out)
    is_heavy = heavy > 0.0
    p = terms * scale[..., None]
    slope = jnp.where(
        is_heavy,
        rest[..., None] * p - targets * (others * scale)[..., None],
        mass[..., None] * p - targets,
    )
    slope = jnp.where(x == -jnp.inf, 0.0, slope)
    return loss, jnp.where(jnp.isnan(loss)[..., None], jnp.nan, slope)


@jax.custom_jvp
def _surprise(x: jax.Array, targets: jax.Array) -> jax.Array:
    """-log softmax(x), the gradient of `soft_cross_entropy` with respect to the targets.

    0 rather than inf at an impossible class that has no target either.
    """
    top, excess = _top_and_excess(x)
    unused = (targets == 0.0) & (x == -jnp.inf)
    surprise = (top[..., None] - x) + excess[..., None]
    return jnp.where(unused, 0.0, jnp.where(targets < 0.0, jnp.nan, surprise))


def _mean_difference(x: jax.Array, x_dot: jax.Array) -> jax.Array:
    return jnp.sum(softmax(x) * x_dot, axis=-1, keepdims=True) - x_dot


@_surprise.defjvp
def _surprise_jvp(primals, tangents):
    x, targets = primals
    x_dot, _ = tangents
    return _surprise(x, targets), _mean_difference(x, jnp.where(x == -jnp.inf, 0.0, x_dot))


@functools.partial(soft_cross_entropy.defjvp, symbolic_zeros=True)
def _soft_cross_entropy_jvp(primals, tangents):
    x, targets = primals
    x_dot, targets_dot = tangents
    loss, slope = _soft_cross_entropy_and_slope(x, targets)
    loss_dot = summed_along(slope, x_dot)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += summed_along(_surprise(x, targets), targets_dot)
    return loss, _like(loss_dot, loss)


@functools.partial(_soft_cross_entropy_and_slope.defjvp, symbolic_zeros=True)
def _soft_cross_entropy_and_slope_jvp(primals, tangents):
    x, targets = primals
    x_dot, targets_dot = tangents
    loss, slope = _soft_cross_entropy_and_slope(x, targets)
    p = softmax(x)
    loss_dot, slope_dot = summed_along(slope, x_dot), 0.0
    if not isinstance(x_dot, SymbolicZero):
        slope_dot = jnp.sum(targets, axis=-1, keepdims=True) * curvature(p, x_dot)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += summed_along(_surprise(x, targets), targets_dot)
        spread = p * jnp.sum(targets_dot, axis=-1, keepdims=True) - targets_dot
        slope_dot += jnp.where(x == -jnp.inf, 0.0, spread)
    return (loss, slope), (_like(loss_dot, loss), _like(slope_dot, slope))


# Cross-entropy of independent yes/no classes.


def _magnitude(x: jax.Array) -> jax.Array:
    """|x|, with the derivative at 0 that makes the two halves of the formulas below meet."""
    return jnp.where(x >= 0.0, x, -x)


@jax.custom_jvp
def sigmoid(x: jax.Array) -> jax.Array:
    """1 / (1 + exp(-x)), accurate in both tails, with a derivative that is too."""
    decay = jnp.exp(-_magnitude(x))
    return jnp.where(x >= 0.0, 1.0, decay) / (1.0 + decay)


@sigmoid.defjvp
def _sigmoid_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    p = sigmoid(x)
    return p, p * sigmoid(-x) * x_dot


@jax.custom_jvp
def softplus(x: jax.Array) -> jax.Array:
    """log(1 + exp(x)): minus the log-probability of "no" at logit x."""
    return jnp.where(x >= 0.0, x, 0.0) + jnp.log1p(jnp.exp(-_magnitude(x)))


@softplus.defjvp
def _softplus_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    return softplus(x), sigmoid(x) * x_dot


@jax.custom_jvp
def binary_cross_entropy(x: jax.Array, yes: jax.Array, no: jax.Array) -> jax.Array:
    """Yes * softplus(-x) + no * softplus(x) per element, for weights yes, no >= 0.

    The weight of an answer that is impossible at an infinite logit may be 0.
    """
    distance = jnp.where(x >= 0.0, no, yes)
    magnitude = _magnitude(x)
    far = jnp.where(distance == 0.0, 0.0, magnitude)
    return far * distance + (yes + no) * jnp.log1p(jnp.exp(-magnitude))


@functools.partial(binary_cross_entropy.defjvp, symbolic_zeros=True)
def _binary_cross_entropy_jvp(primals, tangents):
    x, yes, no = primals
    x_dot, yes_dot, no_dot = tangents
    slope = no * sigmoid(x) - yes * sigmoid(-x)
    loss = binary_cross_entropy(x, yes, no)
    loss_dot = along(slope, x_dot) + along(softplus(-x), yes_dot) + along(softplus(x), no_dot)
    return loss, _like(loss_dot, loss)
