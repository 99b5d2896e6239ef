"""Focal losses: cross-entropies times a power of the probability of a wrong answer.

No rule differentiates that power, since its base may be 0.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.dtypes import smallest_normal
from jaxent._float.powers import power, static_or_traced, zero_safe_product
from jaxent._float.series import one_minus_exp
from jaxent._float.tangents import Arrays, Dual, Pair, Tangents, broadcast_tangent, scale_tangent
from jaxent._kernels.sigmoid import absolute

# The focal loss of a logit x and a target t is w**gamma c, with c the cross-entropy and w the
# probability of the wrong answer. Its derivative in x is w**gamma (c' + gamma c w'/w).


class _SigmoidTerms(NamedTuple):
    """Terms of the focal loss of a logit and a target, of their shape; derivatives are in |x|.

    The answer that the logit favours has the probability p_top and the target t_top, the other one
    the target t_other; e = exp(-|x|) and total = t_other + t_top e.
    """

    abs_x: jax.Array
    e: jax.Array
    p_top: jax.Array  # sigmoid(|x|)
    c: jax.Array
    c_grad: jax.Array  # c'
    w: jax.Array  # p_top total
    log_w: jax.Array
    log_w_grad: jax.Array  # w'/w
    c_log_w_grad: jax.Array  # c w'/w
    other_fraction: jax.Array  # t_other / total
    top_fraction: jax.Array  # t_top e / total
    c_over_total: jax.Array
    ce_over_total: jax.Array


def _sigmoid_terms(x: jax.Array, target: jax.Array) -> _SigmoidTerms:
    """The terms for a logit and the target of "yes" in [0, 1]."""
    abs_x = absolute(x)
    e = jnp.exp(-abs_x)
    p_top = 1.0 / (1.0 + e)
    is_yes = x >= 0.0
    t_other, t_top = (
        jnp.where(is_yes, 1.0 - target, target),
        jnp.where(is_yes, target, 1.0 - target),
    )
    log1p_e = jnp.log1p(e)
    c = jnp.where(t_other == 0.0, 0.0, abs_x) * t_other + log1p_e
    total = t_other + t_top * e
    # Where t_other is 0, e is left out of the quotients, where it cancels: it may be 0 as well.
    is_sure = t_other < smallest_normal(x.dtype)
    divisor = jnp.where(is_sure, 1.0, total)
    e_over_total = jnp.where(is_sure, 1.0, e / divisor)
    ce_over_total = zero_safe_product(e_over_total, c)
    # This is p_top (t_other - t_top); those two are rounded, and their difference would cancel.
    factor = p_top * jnp.where(is_yes, 1.0 - 2.0 * target, 2.0 * target - 1.0)
    has_e = e >= smallest_normal(x.dtype)
    sure_c_over_e = jnp.where(has_e, log1p_e, 1.0) / jnp.where(has_e, e, 1.0)
    return _SigmoidTerms(
        abs_x=abs_x,
        e=e,
        p_top=p_top,
        c=c,
        c_grad=p_top * (t_other - t_top * e),
        w=total * p_top,
        log_w=jnp.where(is_sure, -abs_x, jnp.log(divisor)) - log1p_e,
        log_w_grad=factor * e_over_total,
        c_log_w_grad=factor * ce_over_total,
        other_fraction=jnp.where(is_sure, 0.0, t_other / divisor),
        top_fraction=t_top * e_over_total,
        c_over_total=jnp.where(is_sure, sure_c_over_e, c / divisor),
        ce_over_total=ce_over_total,
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def sigmoid_focal_loss(
    number: float | None, x: jax.Array, target: jax.Array, gamma: jax.Array | None = None
) -> jax.Array:
    """The focal loss per element of a logit and a target in [0, 1].

    The exponent is `number`, which costs less, or the scalar array `gamma` if that is None.
    """
    terms = _sigmoid_terms(x, target)
    weight = power(terms.w, static_or_traced(number, gamma))
    # The weight of an infinite loss is positive on paper, and may still have underflowed.
    is_infinite = terms.c == jnp.inf
    return jnp.where(is_infinite, jnp.inf, weight * jnp.where(is_infinite, 0.0, terms.c))


@functools.partial(sigmoid_focal_loss.defjvp, symbolic_zeros=True)
def _sigmoid_focal_loss_jvp(number: float | None, primals: Arrays, tangents: Tangents) -> Dual:
    x, target, gamma = primals
    x_dot, target_dot, gamma_dot = tangents
    loss = sigmoid_focal_loss(number, x, target, gamma)
    loss_dot = scale_tangent(_sigmoid_focal_loss_grad(number, x, target, gamma), x_dot)
    if not isinstance(target_dot, SymbolicZero):
        through_c, through_w = _sigmoid_focal_loss_grad_target(number, x, target, gamma)
        # Two products, since the sum of the coefficients may overflow where neither product does.
        exponent = jax.lax.stop_gradient(static_or_traced(number, gamma))
        loss_dot += through_c * target_dot + through_w * (exponent * target_dot)
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        loss_dot += zero_safe_product(loss, _log_w(x, target)) * gamma_dot
    return loss, broadcast_tangent(loss_dot, loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sigmoid_focal_loss_grad(
    number: float | None, x: jax.Array, target: jax.Array, gamma: jax.Array | None
) -> jax.Array:
    exponent = static_or_traced(number, gamma)
    terms = _sigmoid_terms(x, target)
    grad = power(terms.w, exponent) * (terms.c_grad + exponent * terms.c_log_w_grad)
    return jnp.where(x >= 0.0, grad, -grad)


@functools.partial(_sigmoid_focal_loss_grad.defjvp, symbolic_zeros=True)
def _sigmoid_focal_loss_grad_jvp(number: float | None, primals: Arrays, tangents: Tangents) -> Dual:
    x, target, gamma = primals
    x_dot, target_dot, gamma_dot = tangents
    exponent = static_or_traced(number, gamma)
    grad = _sigmoid_focal_loss_grad(number, x, target, gamma)
    terms = _sigmoid_terms(x, target)
    weight = power(terms.w, exponent)
    grad_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        p_other = terms.e * terms.p_top  # sigmoid(-|x|)
        c_log_w_hessian = terms.c_log_w_grad * (
            exponent * terms.log_w_grad + p_other - terms.other_fraction
        )
        through_w = 2.0 * terms.log_w_grad * terms.c_grad + c_log_w_hessian
        grad_dot += weight * (p_other * terms.p_top + exponent * through_w) * x_dot
    if not isinstance(target_dot, SymbolicZero):
        grad_dot += _grad_x_target(exponent, terms) * target_dot
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        c_log_w_grad = jnp.where(x >= 0.0, terms.c_log_w_grad, -terms.c_log_w_grad)
        grad_dot += (zero_safe_product(grad, terms.log_w) + weight * c_log_w_grad) * gamma_dot
    return grad, broadcast_tangent(grad_dot, grad)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _sigmoid_focal_loss_grad_target(
    number: float | None, x: jax.Array, target: jax.Array, gamma: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """The derivatives in the target through c, and through w**gamma but for the factor gamma.

    They are w**gamma (-x) and w**gamma c dw/dt / w. Here and below, dw/dt = -tanh(x / 2), which is
    -+p_top (1 - e), is constant in t. The rule gives the first one the derivatives of the whole
    sum, that in the factor gamma as well.
    """
    terms = _sigmoid_terms(x, target)
    weight = _unflushed_weight(terms, static_or_traced(number, gamma))
    through_c = zero_safe_product(weight, terms.abs_x)
    through_w = zero_safe_product(weight, terms.c_over_total) * one_minus_exp(terms.abs_x)
    is_yes = x >= 0.0
    return jnp.where(is_yes, -through_c, through_c), jnp.where(is_yes, -through_w, through_w)


@functools.partial(_sigmoid_focal_loss_grad_target.defjvp, symbolic_zeros=True)
def _sigmoid_focal_loss_grad_target_jvp(
    number: float | None, primals: Arrays, tangents: Tangents
) -> tuple[Pair, Pair]:
    x, target, gamma = primals
    x_dot, target_dot, gamma_dot = tangents
    exponent = static_or_traced(number, gamma)
    through_c, through_w = _sigmoid_focal_loss_grad_target(number, x, target, gamma)
    terms = _sigmoid_terms(x, target)
    grad_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        grad_dot += _grad_x_target(exponent, terms) * x_dot
    if not isinstance(target_dot, SymbolicZero):
        grad_dot += _grad_target_target(exponent, terms) * target_dot
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        grad = through_c + gamma * through_w
        grad_dot += (zero_safe_product(grad, terms.log_w) + through_w) * gamma_dot
    dots = broadcast_tangent(grad_dot, through_c), jnp.zeros_like(through_w)
    return (through_c, through_w), dots


@jax.custom_jvp
def _log_w(x: jax.Array, target: jax.Array) -> jax.Array:
    """log(w), with a rule for the second derivatives of the focal loss in gamma."""
    return _sigmoid_terms(x, target).log_w


@functools.partial(_log_w.defjvp, symbolic_zeros=True)
def _log_w_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    x, target = primals
    terms = _sigmoid_terms(x, target)
    log_w_dot = scale_tangent(jnp.where(x >= 0.0, terms.log_w_grad, -terms.log_w_grad), tangents[0])
    log_w_dot += scale_tangent(-jnp.tanh(0.5 * x) * jnp.exp(-terms.log_w), tangents[1])
    return terms.log_w, broadcast_tangent(log_w_dot, terms.log_w)


def _grad_target_target(exponent: float | jax.Array, terms: _SigmoidTerms) -> jax.Array:
    """The second derivative of the focal loss in the target.

    It is gamma w**gamma r (2 |x| + (gamma - 1) c r) with r = |dw/dt| / w: the second derivatives of
    w and c in t are 0. For gamma < 1 the second term takes away little more than half of the first.
    w**gamma r is formed as one power, since a quotient may underflow, or have no inverse.
    """
    p_difference = one_minus_exp(terms.abs_x)
    weight = _unflushed_weight(terms, exponent - 1.0) * (terms.p_top * p_difference)
    weight = zero_safe_product(jnp.full_like(weight, exponent), weight)
    c_r = _finite_c_over_total(terms) * p_difference
    return 2.0 * zero_safe_product(weight, terms.abs_x + 0.5 * ((exponent - 1.0) * c_r))


def _grad_x_target(exponent: float | jax.Array, terms: _SigmoidTerms) -> jax.Array:
    """The second derivative of the focal loss in the logit and the target."""
    c_over_total = _finite_c_over_total(terms)
    c_term = terms.p_top * (terms.other_fraction - terms.top_fraction)
    c_term += c_over_total * terms.top_fraction
    w_term = exponent * (c_over_total * terms.log_w_grad) + c_term
    through_w = zero_safe_product(terms.log_w_grad, terms.abs_x)
    through_w += w_term * one_minus_exp(terms.abs_x)
    through_w += terms.ce_over_total
    return -zero_safe_product(_unflushed_weight(terms, exponent), 1.0 + exponent * through_w)


def _finite_c_over_total(terms: _SigmoidTerms) -> jax.Array:
    """The quotient c / total, but 0 where it is infinite: others may be 0, or of the other sign."""
    return jnp.where(terms.c_over_total == jnp.inf, 0.0, terms.c_over_total)


def _unflushed_weight(terms: _SigmoidTerms, exponent: float | jax.Array) -> jax.Array:
    """w**exponent, also where w is too small for a normal number and its power is not."""
    size = zero_safe_product(jnp.full_like(terms.abs_x, exponent), terms.abs_x)
    is_small = terms.w < smallest_normal(terms.w.dtype)
    weight = power(jnp.where(is_small, 1.0, terms.w), exponent)
    return jnp.where(is_small, jnp.exp(-size), weight)


# The focal loss of one class of many is a function of its cross-entropy c = -log(p).


class _SoftmaxTerms(NamedTuple):
    """Terms of the focal loss of a label, of the shape of its cross-entropy."""

    w: jax.Array  # 1 - p
    inverse_w: jax.Array  # 1 / w, or 0 where that may overflow
    c_over_w: jax.Array  # from 1 up; 0 where p is 0
    log_w: jax.Array  # or 0 where w is 0


def _softmax_terms(c: jax.Array, p: jax.Array) -> _SoftmaxTerms:
    w = one_minus_exp(c)
    is_small = w < smallest_normal(c.dtype)
    divisor = jnp.where(is_small, 1.0, w)
    possible_c = jnp.where(p == 0.0, 0.0, c)
    is_unlikely = p < 0.5
    return _SoftmaxTerms(
        w=w,
        inverse_w=jnp.where(is_small, 0.0, 1.0 / divisor),
        c_over_w=jnp.where(is_small, 1.0, possible_c / divisor),
        log_w=jnp.where(is_unlikely, jnp.log1p(-jnp.where(is_unlikely, p, 0.0)), jnp.log(divisor)),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def softmax_focal_loss(
    number: float | None, c: jax.Array, p: jax.Array, gamma: jax.Array | None = None
) -> jax.Array:
    """(1 - p)**gamma c of a cross-entropy c and its p = exp(-c), which the derivatives need.

    The exponent is `number`, which costs less, or the scalar array `gamma` if that is None.
    """
    del p
    return power(one_minus_exp(c), static_or_traced(number, gamma)) * c


@functools.partial(softmax_focal_loss.defjvp, symbolic_zeros=True)
def _softmax_focal_loss_jvp(number: float | None, primals: Arrays, tangents: Tangents) -> Dual:
    c, p, gamma = primals
    c_dot, _, gamma_dot = tangents
    loss = softmax_focal_loss(number, c, p, gamma)
    loss_dot = scale_tangent(_softmax_focal_loss_grad(number, c, p, gamma), c_dot)
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        loss_dot += zero_safe_product(loss, _softmax_terms(c, p).log_w) * gamma_dot
    return loss, broadcast_tangent(loss_dot, loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _softmax_focal_loss_grad(
    number: float | None, c: jax.Array, p: jax.Array, gamma: jax.Array | None
) -> jax.Array:
    """w**gamma (1 + gamma c p / w), the derivative in c."""
    exponent = static_or_traced(number, gamma)
    terms = _softmax_terms(c, p)
    return power(terms.w, exponent) * (1.0 + exponent * (p * terms.c_over_w))


@functools.partial(_softmax_focal_loss_grad.defjvp, symbolic_zeros=True)
def _softmax_focal_loss_grad_jvp(number: float | None, primals: Arrays, tangents: Tangents) -> Dual:
    c, p, gamma = primals
    c_dot, _, gamma_dot = tangents
    exponent = static_or_traced(number, gamma)
    grad = _softmax_focal_loss_grad(number, c, p, gamma)
    terms = _softmax_terms(c, p)
    weight, cp_over_w = power(terms.w, exponent), p * terms.c_over_w
    grad_dot = 0.0
    if not isinstance(c_dot, SymbolicZero):
        factor = 2.0 + exponent * cp_over_w - terms.c_over_w
        grad_dot += exponent * (weight * terms.inverse_w) * p * factor * c_dot
    if not (gamma is None or isinstance(gamma_dot, SymbolicZero)):
        grad_dot += (zero_safe_product(grad, terms.log_w) + weight * cp_over_w) * gamma_dot
    return grad, broadcast_tangent(grad_dot, grad)
