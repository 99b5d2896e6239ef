"""Divergences between the softmaxes of two rows of logits, accurate where the two nearly agree.

Such a divergence is quadratic in the difference of p and q, so that a plain formula loses it to
rounding. Here everything comes from log(p / q) of each class:

* It is a difference of differences of logits, which two-part numbers hold exactly. Only the ratio
  of the two normalisers is rounded, one error for the whole row. Since p and q have the same total,
  sum(p - q) tells that error, and it is subtracted.
* A divergence is then a sum of terms that are not negative: how far a convex function lies above
  its tangents. Such a sum hardly depends on what is left of the common error.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._compat import log1p
from jaxent._float.limits import exp_limit, multiply_clipped
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import Arrays, Dual, Tangent, Tangents, broadcast_tangent, dot_tangent
from jaxent._float.two_part import two_diff
from jaxent._kernels.log_ratio import kl_terms, log_mixture, tanh_half
from jaxent._kernels.sigmoid import absolute
from jaxent._kernels.softmax import (
    fold_into_pivot,
    max_and_log_sum_over_max,
    max_and_others,
    nan_where_empty,
    pivot_entry,
    softmax,
    softmax_jvp,
    softmax_second_jvp,
    subtract_mean,
    subtract_total,
    sum_classes,
)
from jaxent._parallel import AxisName, any_over, psum

# Two rows of logits beside each other.


class _Comparison(NamedTuple):
    """Two softmaxes, and the logarithm of their ratio."""

    p: jax.Array  # [..., V], softmax(a)
    q: jax.Array  # [..., V], softmax(b)
    eighth: jax.Array  # [..., V], log(p / q) / 8; 0 where both are 0
    one_or_nan_p: jax.Array  # [...], 1, or NaN where a has no possible class
    one_or_nan_q: jax.Array  # [...], the same of b


class _Rows(NamedTuple):
    """What the comparison of two rows of logits needs to know of them, [...] each."""

    top_a: jax.Array
    top_b: jax.Array
    shift_a: jax.Array
    shift_b: jax.Array
    total_a: jax.Array  # the sum of exp(a - shift_a), or 1 before it is known
    total_b: jax.Array
    log_ratio: jax.Array  # log(total_a / total_b), less the distances of tops and shifts
    error: jax.Array  # of that


def _compare(a: jax.Array, b: jax.Array, axis_name: AxisName, again: bool = False) -> _Comparison:
    """log(p / q): exact differences of logits, less the ratio of normalisers, less its error.

    If it is computed `again`, nothing [..., V] is shared with another comparison of the same.
    """
    of_a, of_b = max_and_others(a, axis_name), max_and_others(b, axis_name)
    total_a, total_b = 1.0 + of_a.others, 1.0 + of_b.others  # over their largest terms
    zero = jnp.zeros_like(total_a)
    rows = _Rows(
        top_a=of_a.top,
        top_b=of_b.top,
        shift_a=of_a.shift,
        shift_b=of_b.shift,
        total_a=jnp.exp(of_a.top - of_a.shift),
        total_b=jnp.exp(of_b.top - of_b.shift),
        log_ratio=zero,
        error=zero,
    )
    terms_a, terms_b, eighth = _compare_classes(a, b, rows)
    # Near 1 the logarithm of the ratio comes from (A - B) / (A + B), and that difference from the
    # differences of the classes.
    surplus = (terms_a + terms_b) * tanh_half(multiply_clipped(8.0, eighth))
    ratio = psum(blocked_sum(surplus), axis_name) / (total_a + total_b)
    is_near = absolute(ratio) < 0.5
    near = jnp.where(is_near, ratio, 0.0)
    log_ratio = jnp.where(
        is_near, log1p(near) - log1p(-near), jnp.log1p(of_a.others) - jnp.log1p(of_b.others)
    )
    rows = rows._replace(
        total_a=rows.total_a * total_a, total_b=rows.total_b * total_b, log_ratio=log_ratio
    )
    # Both totals are 1, so what is left of sum(p - q) is the error; exactly where p and q agree.
    p, q, eighth = _compare_classes(a, b, rows)
    surplus = (p + q) * tanh_half(multiply_clipped(8.0, eighth))
    rows = rows._replace(error=psum(blocked_sum(surplus), axis_name))
    if again:
        rows = _Rows(*jax.lax.optimization_barrier(tuple(rows)))
    p, q, eighth = _compare_classes(a, b, rows)
    return _Comparison(p, q, eighth, nan_where_empty(of_a), nan_where_empty(of_b))


def _compare_classes(
    a: jax.Array, b: jax.Array, rows: _Rows
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The terms of both rows over their totals, and an eighth of the logarithm of their ratio.

    The barrier makes what follows another computation than that of an earlier call: XLA would keep
    what both need in buffers [..., V].
    """
    rows = _Rows(*jax.lax.optimization_barrier(tuple(rows)))
    is_zero_p, is_zero_q = _is_impossible(a), _is_impossible(b)
    has_zero = is_zero_p | is_zero_q
    difference, error = _eighth_of_difference(
        jnp.where(has_zero, rows.top_a[..., None], a),
        jnp.where(has_zero, rows.top_b[..., None], b),
        rows.top_a,
        rows.top_b,
    )
    at_zero = 0.125 * exp_limit(a.dtype) * (is_zero_q.astype(a.dtype) - is_zero_p.astype(a.dtype))
    eighth = (difference - 0.125 * rows.log_ratio[..., None]) + error
    eighth = jnp.where(has_zero, at_zero, eighth - 0.125 * rows.error[..., None])
    terms_a = jnp.exp(a - rows.shift_a[..., None]) * (1.0 / rows.total_a)[..., None]
    terms_b = jnp.exp(b - rows.shift_b[..., None]) * (1.0 / rows.total_b)[..., None]
    return terms_a, terms_b, eighth


def _is_impossible(x: jax.Array) -> jax.Array:
    return x == -jnp.inf


def _eighth_of_difference(
    a: jax.Array, b: jax.Array, pivot_a: jax.Array, pivot_b: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """An eighth of (a - b) - (pivot_a - pivot_b) for pivots [...], rounded, and the rounding error.

    It is log(p / q) less that of the pivots.
    """
    difference, error = two_diff(0.125 * a, 0.125 * b)
    pivot, pivot_error = two_diff(0.125 * pivot_a, 0.125 * pivot_b)
    result, last_error = two_diff(difference, pivot[..., None])
    return result, last_error + (error - pivot_error[..., None])


def _softmax_jvp(p: jax.Array, x_dot: Tangent, axis_name: AxisName) -> jax.Array | float:
    """`softmax_jvp`, or 0 for an argument that is not differentiated."""
    return 0.0 if isinstance(x_dot, SymbolicZero) else softmax_jvp(p, x_dot, axis_name)


# Kullback-Leibler.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def softmax_kl_divergence(
    x: jax.Array, target_x: jax.Array, axis_name: AxisName = None
) -> jax.Array:
    """KL(softmax(target_x) || softmax(x)) over the last axis.

    inf where a class that the target has is impossible; NaN for a target without possible classes.
    """
    pair = _compare(x, target_x, axis_name)
    terms = kl_terms(pair.p, pair.q, pair.eighth)
    terms = jnp.where(_is_target_only(x, target_x), jnp.inf, terms)
    return psum(blocked_sum(terms), axis_name) * pair.one_or_nan_q


def _is_target_only(x: jax.Array, target_x: jax.Array) -> jax.Array:
    """Classes that the target has and that are impossible otherwise, [..., V]."""
    return _is_impossible(x) & ~_is_impossible(target_x)


@functools.partial(softmax_kl_divergence.defjvp, symbolic_zeros=True)
def _softmax_kl_divergence_jvp(axis_name: AxisName, primals: Arrays, tangents: Tangents) -> Dual:
    x, target_x = primals
    x_dot, target_x_dot = tangents
    value, value_dot = softmax_kl_divergence(x, target_x, axis_name), 0.0
    one_or_nan = nan_where_empty(max_and_others(target_x, axis_name))[..., None]
    if not isinstance(x_dot, SymbolicZero):
        grad = _softmax_difference(x, target_x, axis_name)
        grad = jnp.where(_is_impossible(x), 0.0, grad) * one_or_nan
        value_dot += dot_tangent(grad, x_dot, axis_name)
    if not isinstance(target_x_dot, SymbolicZero):
        grad = _softmax_kl_grad_target_x(x, target_x, axis_name) * one_or_nan
        grad += _infinite_grad_target_x(x, target_x, axis_name)
        value_dot += dot_tangent(grad, target_x_dot, axis_name)
    return value, broadcast_tangent(value_dot, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _softmax_difference(a: jax.Array, b: jax.Array, axis_name: AxisName = None) -> jax.Array:
    """softmax(a) - softmax(b), accurate if the two nearly agree, and if both are nearly certain."""
    pair = _compare(a, b, axis_name, again=True)
    return (pair.p + pair.q) * tanh_half(multiply_clipped(8.0, pair.eighth))


@functools.partial(_softmax_difference.defjvp, symbolic_zeros=True)
def _softmax_difference_jvp(axis_name: AxisName, primals: Arrays, tangents: Tangents) -> Dual:
    (a, b), (a_dot, b_dot) = primals, tangents
    difference = _softmax_difference(a, b, axis_name)
    difference_dot = _softmax_jvp(softmax(a, axis_name), a_dot, axis_name)
    difference_dot -= _softmax_jvp(softmax(b, axis_name), b_dot, axis_name)
    return difference, broadcast_tangent(difference_dot, difference)


def _infinite_grad_target_x(x: jax.Array, target_x: jax.Array, axis_name: AxisName) -> jax.Array:
    """What is infinite in the gradient in `target_x`, and 0 elsewhere.

    It is the limit of the gradient as the logits of the impossible classes fall: +inf at those that
    the target has, -inf at its other classes.
    """
    is_target_only = _is_target_only(x, target_x)
    is_infinite = any_over(jnp.any(is_target_only, axis=-1, keepdims=True), axis_name)
    is_other = is_infinite & ~is_target_only & ~_is_impossible(target_x)
    return jnp.where(is_target_only, jnp.inf, 0.0) - jnp.where(is_other, jnp.inf, 0.0)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _softmax_kl_grad_target_x(x: jax.Array, target_x: jax.Array, axis_name: AxisName) -> jax.Array:
    """softmax_jvp(softmax(target_x), target_x - x), also where the two nearly agree.

    Classes that are impossible in one of the two count as equal to the pivot.
    """
    q = softmax(target_x, axis_name)
    has_zero = _is_impossible(x) | _is_impossible(target_x)
    (max_x, _), (max_target, _) = (
        max_and_log_sum_over_max(logits, axis_name) for logits in (x, target_x)
    )
    is_pivot = (q > 0.5) & ~has_zero
    has_pivot = any_over(jnp.any(is_pivot, axis=-1), axis_name)
    pivot_x, pivot_target = (
        jnp.where(has_pivot, pivot_entry(logits, is_pivot, axis_name)[..., 0], top)
        for logits, top in ((x, max_x), (target_x, max_target))
    )
    difference, error = _eighth_of_difference(
        jnp.where(has_zero, pivot_x[..., None], x),
        jnp.where(has_zero, pivot_target[..., None], target_x),
        pivot_x,
        pivot_target,
    )
    mean = sum_classes(q * (difference + error), axis_name)
    centered = (difference - mean) + error
    # The mean may be far larger than the result, and so may its rounding error.
    centered -= sum_classes(q * centered, axis_name)
    return fold_into_pivot((-8.0 * q) * centered, is_pivot, axis_name)


@functools.partial(_softmax_kl_grad_target_x.defjvp, symbolic_zeros=True)
def _softmax_kl_grad_target_x_jvp(axis_name: AxisName, primals: Arrays, tangents: Tangents) -> Dual:
    x, target_x = primals
    x_dot, target_x_dot = tangents
    q, grad = softmax(target_x, axis_name), _softmax_kl_grad_target_x(x, target_x, axis_name)
    grad_dot = _softmax_jvp(q, target_x_dot, axis_name) - _softmax_jvp(q, x_dot, axis_name)
    if not isinstance(target_x_dot, SymbolicZero):
        grad_dot += softmax_second_jvp(q, grad, target_x_dot, axis_name)
    return grad, broadcast_tangent(grad_dot, grad)


# Jensen-Shannon.


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def softmax_jensen_shannon(
    a: jax.Array, b: jax.Array, beta: float, axis_name: AxisName = None
) -> jax.Array:
    """The sum beta KL(p || m) + (1 - beta) KL(q || m), m = beta p + (1 - beta) q, 0 < beta < 1.

    p is softmax(a) and q is softmax(b). NaN where one of the two has no possible class.
    """
    pair = _compare(a, b, axis_name)
    p, q, log_ratio = pair.p, pair.q, multiply_clipped(8.0, pair.eighth)
    mixture = beta * p + (1.0 - beta) * q
    terms_p = kl_terms(mixture, p, 0.125 * log_mixture(-log_ratio, 1.0 - beta))
    terms_q = kl_terms(mixture, q, 0.125 * log_mixture(log_ratio, beta))
    # The entropy of the weights is the maximum on paper; rounding would exceed it.
    largest = -(beta * math.log(beta) + (1.0 - beta) * math.log1p(-beta))
    value = psum(blocked_sum(beta * terms_p + (1.0 - beta) * terms_q), axis_name)
    return jnp.minimum(value, largest) * (pair.one_or_nan_p * pair.one_or_nan_q)


@functools.partial(softmax_jensen_shannon.defjvp, symbolic_zeros=True)
def _softmax_jensen_shannon_jvp(
    beta: float, axis_name: AxisName, primals: Arrays, tangents: Tangents
) -> Dual:
    a, b = primals
    a_dot, b_dot = tangents
    value, value_dot = softmax_jensen_shannon(a, b, beta, axis_name), 0.0
    if not isinstance(a_dot, SymbolicZero):
        grad = _softmax_jensen_shannon_grad_a(a, b, (beta, 1.0 - beta), axis_name)
        value_dot += dot_tangent(grad, a_dot, axis_name)
    if not isinstance(b_dot, SymbolicZero):
        grad = _softmax_jensen_shannon_grad_a(b, a, (1.0 - beta, beta), axis_name)
        value_dot += dot_tangent(grad, b_dot, axis_name)
    return value, broadcast_tangent(value_dot, value)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _softmax_jensen_shannon_grad_a(
    a: jax.Array, b: jax.Array, betas: tuple[float, float], axis_name: AxisName
) -> jax.Array:
    """The product beta softmax_jvp(p, log(p / m)), for the weights of p and of q.

    Both weights are given, since 1 - (1 - beta) is 0 for a small one. Without enough overlap
    log(p / m) is nearly -log(beta) wherever p is. A constant changes nothing in `softmax_jvp`, so
    that log(beta p / m), which is nearly 0, takes its place.
    """
    pair = _compare(a, b, axis_name)
    p, log_ratio = pair.p, multiply_clipped(8.0, pair.eighth)
    (beta, rest), far = betas, 40.0
    # Odds beyond float32 would be infinite; from here on they only add a constant.
    odds = min(rest / beta, 2.0**100)
    log_mixture_over_beta_p = jnp.where(
        log_ratio > -far,
        jnp.log1p(odds * jnp.exp(-jnp.maximum(log_ratio, -far))),
        math.log(odds) - log_ratio,
    )
    # The overlap sum(2 p q / (p + q)) is 1 if p = q, and 0 if no class has both.
    overlaps = 0.5 * (p + pair.q) * (1.0 - jnp.square(tanh_half(log_ratio)))
    is_enough = sum_classes(overlaps, axis_name) > 0.25
    log_mixture_over_p = log_mixture(-log_ratio, rest)
    weights = jnp.where(is_enough, -log_mixture_over_p, -log_mixture_over_beta_p)
    grad = beta * softmax_jvp(p, jnp.where(_is_impossible(a), 0.0, weights), axis_name)
    return grad * (pair.one_or_nan_p * pair.one_or_nan_q)[..., None]


@functools.partial(_softmax_jensen_shannon_grad_a.defjvp, symbolic_zeros=True)
def _softmax_jensen_shannon_grad_a_jvp(
    betas: tuple[float, float], axis_name: AxisName, primals: Arrays, tangents: Tangents
) -> Dual:
    a, b = primals
    a_dot, b_dot = tangents
    (beta, rest), p, q = betas, softmax(a, axis_name), softmax(b, axis_name)
    grad, grad_dot = _softmax_jensen_shannon_grad_a(a, b, betas, axis_name), 0.0
    mixture = beta * p + rest * q
    product = beta * p * (rest * q / jnp.where(mixture > 0.0, mixture, 1.0))
    if not isinstance(a_dot, SymbolicZero):
        grad_dot += subtract_total(p, product * subtract_mean(p, a_dot, axis_name), axis_name)
        grad_dot += softmax_second_jvp(p, grad, a_dot, axis_name)
    if not isinstance(b_dot, SymbolicZero):
        grad_dot -= subtract_total(p, product * subtract_mean(q, b_dot, axis_name), axis_name)
    return grad, broadcast_tangent(grad_dot, grad)
