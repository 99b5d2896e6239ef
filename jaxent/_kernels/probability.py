"""Losses of probabilities in [0, 1], without a hidden epsilon.

A term of weight 0 counts 0 whatever the probability is: 0 log 0 is 0. A probability of 0 with a
positive weight costs +inf. A derivative that is infinite where the value is finite is given as 0,
so that no chain rule forms 0 * inf.
"""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._compat import log1p
from jaxent._float.limits import divide, is_exactly_zero, neg_log
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Tangents,
    broadcast_tangent,
    define_jvp,
    dot_tangent,
)
from jaxent._parallel import take_local_label


def _divide_unless(is_excluded: jax.Array, x: jax.Array, p: jax.Array) -> jax.Array:
    """`x / p`, and 0 where it is excluded."""
    return jnp.where(is_excluded, 0.0, divide(x, jnp.where(is_excluded, 1.0, p)))


# Against one target per class.


@jax.custom_jvp
def categorical_cross_entropy(p: jax.Array, targets: jax.Array) -> jax.Array:
    """-sum(targets * log(p)) over the last axis, for targets >= 0 of any total."""
    # The second selection keeps XLA from rounding logarithm and product as one: the cost of a
    # target of 1 is the logarithm to the last bit.
    costs = jnp.where(targets == 0.0, 0.0, neg_log(_one_where_unused(p, targets)))
    return blocked_sum(targets * costs, long_from=2**9)


def _one_where_unused(p: jax.Array, targets: jax.Array) -> jax.Array:
    """`p`, and 1 where its target is 0."""
    return jnp.where(targets == 0.0, 1.0, p)


def _are_both_zero(p: jax.Array, targets: jax.Array) -> jax.Array:
    """Where p and its target are 0: there the derivative in the target is infinite."""
    return (targets == 0.0) & is_exactly_zero(p)


@jax.custom_jvp
def _categorical_grad_p(p: jax.Array, targets: jax.Array) -> jax.Array:
    """-targets / p."""
    return -divide(targets, _one_where_unused(p, targets))


@functools.partial(_categorical_grad_p.defjvp, symbolic_zeros=True)
def _categorical_grad_p_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    p, targets = primals
    p_dot, targets_dot = tangents
    grad, grad_dot = _categorical_grad_p(p, targets), 0.0
    if not isinstance(p_dot, SymbolicZero):
        # The tangent is divided first: 1 / p**2 may overflow, and a tangent of 0 has to stay 0.
        grad_dot -= grad * divide(p_dot, _one_where_unused(p, targets))
    if not isinstance(targets_dot, SymbolicZero):
        grad_dot -= _divide_unless(_are_both_zero(p, targets), targets_dot, p)
    return grad, broadcast_tangent(grad_dot, grad)


@jax.custom_jvp
def _categorical_grad_targets(p: jax.Array, targets: jax.Array) -> jax.Array:
    """-log(p), and 0 where p and its target are 0."""
    return neg_log(jnp.where(_are_both_zero(p, targets), 1.0, p))


@_categorical_grad_targets.defjvp
def _categorical_grad_targets_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    p, targets = primals
    grad_dot = -_divide_unless(_are_both_zero(p, targets), tangents[0], p)
    return _categorical_grad_targets(p, targets), grad_dot


define_jvp(
    categorical_cross_entropy, _categorical_grad_p, _categorical_grad_targets, product=dot_tangent
)


def squared_distance(p: jax.Array, targets: jax.Array) -> jax.Array:
    """sum((p - targets)**2) over the last axis."""
    return blocked_sum(jnp.square(p - targets))


@jax.custom_jvp
def negative_log_likelihood(log_p: jax.Array, labels: jax.Array) -> jax.Array:
    """-log_p at the label of each row, [...]; callers deal with labels outside [0, V)."""
    # A difference, so that certainty costs 0 and not -0.
    return 0.0 - take_local_label(log_p, labels)


@negative_log_likelihood.defjvp
def _negative_log_likelihood_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    log_p, labels = primals
    classes = jnp.arange(log_p.shape[-1], dtype=labels.dtype)
    is_label = classes.reshape(*[1] * labels.ndim, -1) == labels[..., None]
    # A product and not a selection: a cotangent of NaN makes the gradient of the whole row NaN.
    grad = jnp.where(is_label, -1.0, 0.0).astype(log_p.dtype)
    return negative_log_likelihood(log_p, labels), jnp.sum(grad * tangents[0], axis=-1)


# Yes or no.


@jax.custom_jvp
def bernoulli_cross_entropy(p: jax.Array, yes: jax.Array) -> jax.Array:
    """-(yes * log(p) + (1 - yes) * log(1 - p)) per element, for yes in [0, 1]."""
    no = 1.0 - yes
    cost_of_yes = neg_log(_one_where_unused(p, yes))
    cost_of_no = 0.0 - log1p(-jnp.where(no == 0.0, 0.0, p))
    return yes * cost_of_yes + no * cost_of_no


def _is_certain_and_right(p: jax.Array, yes: jax.Array) -> jax.Array:
    return _are_both_zero(p, yes) | ((p == 1.0) & (yes == 1.0))


def _used_probabilities(p: jax.Array, yes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The probabilities p of yes and 1 - p of no, and 1 where their target is 0."""
    return _one_where_unused(p, yes), jnp.where(yes == 1.0, 1.0, 1.0 - p)


@jax.custom_jvp
def _bernoulli_grad_p(p: jax.Array, yes: jax.Array) -> jax.Array:
    """(p - yes) / (p (1 - p)); the difference is rounded once, however near the two are."""
    p_yes, p_no = _used_probabilities(p, yes)
    difference = jnp.where(yes == 0.0, 1.0, jnp.where(yes == 1.0, -1.0, p - yes))
    return divide(difference, p_yes) / p_no


@functools.partial(_bernoulli_grad_p.defjvp, symbolic_zeros=True)
def _bernoulli_grad_p_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    p, yes = primals
    p_dot, yes_dot = tangents
    grad, grad_dot = _bernoulli_grad_p(p, yes), 0.0
    if not isinstance(p_dot, SymbolicZero):
        p_yes, p_no = _used_probabilities(p, yes)
        # Divided one by one: a square may overflow where the tangent is 0.
        grad_dot += divide(yes, p_yes) * divide(p_dot, p_yes)
        grad_dot += ((1.0 - yes) / p_no) * (p_dot / p_no)
    if not isinstance(yes_dot, SymbolicZero):
        grad_dot -= _divide_by_variance(yes_dot, p, yes)
    return grad, broadcast_tangent(grad_dot, grad)


@jax.custom_jvp
def _bernoulli_grad_yes(p: jax.Array, yes: jax.Array) -> jax.Array:
    """log((1 - p) / p), and 0 where the prediction is certain and right."""
    p = jnp.where(_is_certain_and_right(p, yes), 0.5, p)
    # The two logarithms cancel around 1/2, where 1 - 2p is exact.
    is_near_half = jnp.abs(p - 0.5) < 0.25
    near = jnp.where(is_near_half, p, 0.5)
    far = jnp.where(is_near_half, 0.5, p)
    return jnp.where(is_near_half, log1p((1.0 - 2.0 * near) / near), neg_log(far) + log1p(-far))


@_bernoulli_grad_yes.defjvp
def _bernoulli_grad_yes_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    p, yes = primals
    return _bernoulli_grad_yes(p, yes), -_divide_by_variance(tangents[0], p, yes)


define_jvp(bernoulli_cross_entropy, _bernoulli_grad_p, _bernoulli_grad_yes)


def _divide_by_variance(x: jax.Array, p: jax.Array, yes: jax.Array) -> jax.Array:
    """`x / (p (1 - p))`, and 0 where the prediction is certain and right."""
    is_excluded = _is_certain_and_right(p, yes)
    p = jnp.where(is_excluded, 0.5, p)
    return jnp.where(is_excluded, 0.0, divide(x, p) / (1.0 - p))
