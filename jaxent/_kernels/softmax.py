"""Softmax over the last axis, its derivatives, and its normaliser."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._compat import drops_rules_in_scans
from jaxent._float.sums import blocked_sum, safe_reciprocal, wait_on_cpu
from jaxent._float.tangents import Arrays, Dual, Pair
from jaxent._parallel import AxisName, class_count, pmax, psum


def coarse_shift(top: jax.Array, size: int) -> jax.Array:
    """A shift c near the maximum: sum(exp(x - c)) is in range, and x - c has no rounding error.

    It is 0 while -4 < top <= limit, where the sum of `size` exponentials neither overflows nor
    loses a term that counts. Above, it is a multiple of 4 that follows the maximum: the difference
    of two floating point numbers within a factor of two of each other is exact. Below, it is a
    multiple of 4 at most as large as the maximum, so that no difference is larger than x itself.
    """
    size = size if isinstance(size, int) else 2**31  # an exported program may learn it later
    info = jnp.finfo(top.dtype)
    limit = math.log(float(info.max)) - 2.1 - math.log(size)
    # From 2^21 on (2^50 in float64) top - limit is rounded, from 2^25 on so far down that
    # exponentials overflow: there the shift is the maximum.
    limit = jnp.where(top < 2.0 ** (info.nmant - 2), limit, 0.0)
    above = 4.0 * jnp.ceil(jnp.maximum(top - limit, 0.0) / 4.0)
    below = 4.0 * jnp.ceil(jnp.minimum(top, 0.0) / 4.0)
    return above + below


def max_and_shift(x: jax.Array, axis_name: AxisName = None) -> tuple[jax.Array, jax.Array]:
    """The maximum over the last axis, 0 where it is -inf (-inf - -inf is NaN), and its shift."""
    top = pmax(jax.lax.stop_gradient(jnp.max(x, axis=-1)), axis_name)
    top = jnp.where(top == -jnp.inf, 0.0, top)
    return top, coarse_shift(top, class_count(x.shape[-1], axis_name))


def log_sum_over_top(
    others: jax.Array, left_out: jax.Array, top_term: jax.Array, on_top: jax.Array | bool
) -> jax.Array:
    """log((others + left_out) / top_term), accurate near 0 where `on_top`.

    Elsewhere callers add to it a distance to the maximum that is larger than the result.

    Args:
        others: the sum of all terms but one, [...].
        left_out: that one term.
        top_term: the largest term.
        on_top: whether the term left out is the largest.
    """
    terms = others + left_out
    # This must be right as it stands where JAX drops rules, see `drops_rules_in_scans`: `change` is
    # 0, with the derivative of the term on top.
    constant = jax.lax.stop_gradient(left_out)
    change = left_out - constant
    result = jnp.where(
        on_top,
        jnp.log1p((others + change) / jnp.where(on_top, constant, 1.0)),
        jnp.log(terms / top_term),
    )
    return jnp.where(terms > 0.0, result, jnp.where(jnp.isnan(terms), jnp.nan, 0.0))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Probabilities over the last axis; 0 where x is -inf, also if all of the row is."""
    _, shift = max_and_shift(x, axis_name)
    terms = jnp.exp(x - shift[..., None])
    return terms * safe_reciprocal(psum(jnp.sum(terms, axis=-1), axis_name))[..., None]


@softmax.defjvp
def _softmax_rule(axis_name: AxisName, primals: Arrays, tangents: Arrays) -> Dual:
    (x,), (x_dot,) = primals, tangents
    p = softmax(x, axis_name)
    return p, softmax_jvp(p, x_dot, axis_name)


def softmax_jvp(p: jax.Array, x_dot: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """(diag(p) - p p') x_dot without cancellation, as a chain of maps that is its own transpose."""
    return subtract_total(p, p * subtract_pivot(x_dot, p > 0.5, axis_name), axis_name)


def softmax_second_jvp(
    p: jax.Array, p_dot: jax.Array, x_dot: jax.Array, axis_name: AxisName = None
) -> jax.Array:
    """The second derivative of softmax along w and x_dot, given p_dot = softmax_jvp(p, w)."""
    mean_dot, mean = sum_classes(p_dot * x_dot, axis_name), sum_classes(p * x_dot, axis_name)
    return p_dot * x_dot - p * mean_dot - p_dot * mean


# The pivot of a row is the class with p > 1/2, if there is one. Entries of other classes count as
# differences to the pivot's, and its own entry as minus the sum of the others: so nothing cancels.
# Where there is no pivot, no 1 - p is small.


def sum_classes(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """The sum over the classes, [..., 1]."""
    return psum(jnp.sum(x, axis=-1, keepdims=True), axis_name)


def pivot_entry(x: jax.Array, is_pivot: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """The entry of each row at its pivot [..., 1], and 0 where it has none."""
    return sum_classes(jnp.where(is_pivot, x, 0.0), axis_name)


def subtract_pivot(x: jax.Array, is_pivot: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Entries of each row [..., V] less that of its pivot."""
    return jnp.where(is_pivot, 0.0, x - pivot_entry(x, is_pivot, axis_name))


def fold_into_pivot(x: jax.Array, is_pivot: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Rows [..., V] with minus the sum of the other entries at the pivot; the transpose of that."""
    others = jnp.where(is_pivot, 0.0, x)
    return others - jnp.where(is_pivot, sum_classes(others, axis_name), 0.0)


def subtract_mean(p: jax.Array, x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """Entries of each row [..., V] less their mean under p: x - sum(p x)."""
    x = subtract_pivot(x, p > 0.5, axis_name)
    return x - sum_classes(p * x, axis_name)


def subtract_total(p: jax.Array, x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """`x - p sum(x)`, whose rows sum to 0: the transpose of `subtract_mean`."""
    return fold_into_pivot(x - p * sum_classes(x, axis_name), p > 0.5, axis_name)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def softmax_and_complement(x: jax.Array, axis_name: AxisName = None) -> tuple[jax.Array, jax.Array]:
    """Probabilities over the last axis, and 1 - p of each, both with relative accuracy."""
    p = softmax(x, axis_name)
    is_pivot = _is_pivot(p)
    others = psum(blocked_sum(p * (1.0 - is_pivot)), axis_name)[..., None]
    return p, (1.0 - p) * (1.0 - is_pivot) + others * is_pivot


def _is_pivot(p: jax.Array) -> jax.Array:
    """1 where p > 1/2, and 0 elsewhere, in arithmetic, which XLA for CPUs fuses into sums."""
    return jnp.ceil(p - 0.5)


@softmax_and_complement.defjvp
def _softmax_and_complement_jvp(
    axis_name: AxisName, primals: Arrays, tangents: Arrays
) -> tuple[Pair, Pair]:
    (x,), (x_dot,) = primals, tangents
    p, complement = softmax_and_complement(x, axis_name)
    # Cheaper than `softmax_jvp`, since the complement of the pivot is known. Not p minus the
    # pivot's: XLA may contract that with the product that p is, which leaves a rounding.
    is_pivot = _is_pivot(p)
    pivot, others = p * is_pivot, p * (1.0 - is_pivot)
    of_others, of_pivot = (sum_classes(q * x_dot, axis_name) for q in (others, pivot))
    p_dot = others * (x_dot - of_others - of_pivot) + pivot * (complement * x_dot - of_others)
    return (p, complement), (p_dot, -p_dot)


class MaxAndOthers(NamedTuple):
    """Where a row of logits has its maximum, and the other exponentials over the largest, [...]."""

    top: jax.Array  # the maximum, 0 where it is -inf
    shift: jax.Array  # a number near it
    ties: jax.Array  # how many classes have it; 0 if all are impossible
    others: jax.Array  # the sum of exp(x - top) over all classes but one that has it


def max_and_others(x: jax.Array, axis_name: AxisName = None) -> MaxAndOthers:
    """The statistics of a softmax whose largest term is left out: so none of them cancels."""
    top, shift = max_and_shift(x, axis_name)
    if drops_rules_in_scans():
        top += _change_of_max(x, top, axis_name)
    terms = jnp.exp(x - shift[..., None])
    below = psum(blocked_sum(terms * is_below(x, top, top)), axis_name) / jnp.exp(top - shift)
    ties = x.shape[-1] - jnp.sum(is_below(x, top, below), axis=-1)
    ties = psum(ties, axis_name)
    return MaxAndOthers(top, shift, ties, below + jnp.maximum(ties - 1.0, 0.0))


def _change_of_max(x: jax.Array, top: jax.Array, axis_name: AxisName) -> jax.Array:
    """0, with the derivative of the maximum."""
    largest = jnp.max(x, axis=-1)
    constant = jax.lax.stop_gradient(largest)
    has_top = (constant == top) & (jnp.abs(constant) < jnp.inf)
    change = jnp.where(has_top, largest - constant, 0.0)
    return psum(change, axis_name) / jnp.maximum(psum(has_top.astype(x.dtype), axis_name), 1.0)


def inverse_sum(stats: MaxAndOthers) -> jax.Array:
    """1 / sum(exp(x - shift)), [...]."""
    return 1.0 / ((1.0 + stats.others) * jnp.exp(stats.top - stats.shift))


def nan_where_empty(stats: MaxAndOthers) -> jax.Array:
    """A factor per example [...]: 1, or NaN for a row without a possible class."""
    return jnp.where(stats.ties == 0.0, jnp.nan, 1.0).astype(stats.top.dtype)


def is_below(x: jax.Array, top: jax.Array, before: jax.Array) -> jax.Array:
    """1 below the maximum and 0 at it, [..., V], in arithmetic that CPUs fuse into sums.

    On CPUs it shares nothing, the number 1 included, with what `before` was computed from.
    """
    top, one = wait_on_cpu(before, top, jnp.ones_like(top))
    return jnp.ceil(jnp.minimum(top[..., None] - x, one[..., None]))


def max_and_log_sum_over_max(
    x: jax.Array, axis_name: AxisName = None
) -> tuple[jax.Array, jax.Array]:
    """The maximum over the last axis and how far the log-normaliser exceeds it, both accurate."""
    top, shift = max_and_shift(x, axis_name)
    terms = jnp.exp(x - shift[..., None])
    top_term = jnp.exp(top - shift)
    # Of several largest terms all but one stay in the sum, whichever that is.
    largest = jnp.where(x < top[..., None], 0.0, terms)
    smaller = psum(jnp.sum(terms - largest, axis=-1), axis_name)
    others = smaller + (psum(jnp.sum(largest, axis=-1), axis_name) - top_term)
    return top, log_sum_over_top(others, top_term, top_term, jnp.ones_like(top, dtype=bool))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_normalizer(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """log(sum(exp(x))) over the last axis; -inf if every entry is."""
    stats = max_and_others(x, axis_name)
    log_z = stats.top + jnp.log1p(stats.others)
    return jnp.where(stats.ties == 0.0, -jnp.inf, log_z)


@log_normalizer.defjvp
def _log_normalizer_jvp(axis_name: AxisName, primals: Arrays, tangents: Arrays) -> Dual:
    (x,), (x_dot,) = primals, tangents
    result_dot = psum(jnp.sum(softmax(x, axis_name) * x_dot, axis=-1), axis_name)
    return log_normalizer(x, axis_name), result_dot


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def squared_log_normalizer(x: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """log(sum(exp(x)))**2 over the last axis."""
    return jnp.square(log_normalizer(x, axis_name))


@squared_log_normalizer.defjvp
def _squared_log_normalizer_jvp(axis_name: AxisName, primals: Arrays, tangents: Arrays) -> Dual:
    (x,), (x_dot,) = primals, tangents
    grad = _squared_log_normalizer_grad(x, axis_name)
    result_dot = psum(jnp.sum(grad * x_dot, axis=-1), axis_name)
    return squared_log_normalizer(x, axis_name), result_dot


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _squared_log_normalizer_grad(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """2 log(Z) p, [..., V]."""
    # The probability comes first: twice the log-normaliser may overflow where the result does not.
    return 2.0 * (softmax(x, axis_name) * log_normalizer_or_zero(x, axis_name))


@_squared_log_normalizer_grad.defjvp
def _squared_log_normalizer_grad_jvp(
    axis_name: AxisName, primals: Arrays, tangents: Arrays
) -> Dual:
    (x,), (x_dot,) = primals, tangents
    grad_dot = softmax_and_z_jvp(softmax(x, axis_name), x_dot, 0.0, 1.0, x, axis_name)
    return _squared_log_normalizer_grad(x, axis_name), grad_dot


def softmax_and_z_jvp(
    p: jax.Array,
    x_dot: jax.Array,
    mass: jax.Array | float,
    z_weight: jax.Array | float,
    x: jax.Array,
    axis_name: AxisName,
) -> jax.Array:
    """The tangent of m p + 2 z log(Z) p, of which p = softmax(x), along x_dot."""
    # The factor 2 is split into 8 and 1/4, before and after `softmax_jvp`, so that neither this nor
    # its transpose forms twice the log-normaliser, which may overflow.
    p_dot = softmax_jvp(p, 8.0 * x_dot, axis_name)
    p_dot *= 0.125 * mass + 0.25 * (z_weight * log_normalizer_or_zero(x, axis_name))
    return p_dot + 2.0 * z_weight * (p * sum_classes(p * x_dot, axis_name))


def log_normalizer_or_zero(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """The log-normaliser [..., 1], and 0 where all classes are impossible: there is no gradient."""
    log_z = log_normalizer(x, axis_name)
    return jnp.where(log_z == -jnp.inf, 0.0, log_z)[..., None]
