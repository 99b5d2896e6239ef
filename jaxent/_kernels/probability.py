"""Losses of probabilities in [0, 1], without a hidden epsilon.

A weight of 0 silences its term whatever the probability is: 0 log 0 is 0. A probability of 0 that
has a weight costs +inf. A derivative that is infinite where the value is finite is given as 0, so
that no chain rule meets 0 * inf.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._compat import log1p
from jaxent._float.sums import blocked_sum
from jaxent._float.tangents import broadcast_tangent, dot_tangent, scale_tangent
from jaxent._parallel import take_local_label

# Processors may take a subnormal number for 0, or have a wrong logarithm for it; as an integer its
# bits count the multiples of the smallest subnormal number that it is.


def _lifted(p: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`p` as a normal number or 0, and whether it had to be multiplied for that."""
    size = jax.lax.abs(p)
    bits = jax.lax.bitcast_convert_type(size, jnp.int64 if p.dtype == jnp.float64 else jnp.int32)
    is_subnormal = (bits > 0) & (bits < 1 << jnp.finfo(p.dtype).nmant)
    return jnp.where(is_subnormal, bits.astype(p.dtype), size), is_subnormal


def _exponent(dtype: jnp.dtype) -> int:
    """The smallest subnormal number is 2 to minus this."""
    return jnp.finfo(dtype).nmant - jnp.finfo(dtype).minexp


def _over(x: jax.Array, p: jax.Array) -> jax.Array:
    """`x / p`, linear in x."""
    lifted, is_subnormal = _lifted(p)
    # In two steps, since the whole power is out of range.
    first = _exponent(p.dtype) // 2
    quotient = x / lifted
    for exponent in (first, _exponent(p.dtype) - first):
        quotient *= jnp.where(is_subnormal, 2.0**exponent, 1.0).astype(p.dtype)
    return quotient


def _is_zero(p: jax.Array) -> jax.Array:
    return _lifted(p)[0] == 0.0


def _surprise(p: jax.Array) -> jax.Array:
    """-log(p) in nats; +inf at 0."""
    lifted, is_subnormal = _lifted(p)
    lift = jnp.where(is_subnormal, _exponent(p.dtype) * math.log(2.0), 0.0).astype(p.dtype)
    return lift - jnp.log(lifted)


# Against one target per class.


@jax.custom_jvp
def categorical_cross_entropy(p: jax.Array, targets: jax.Array) -> jax.Array:
    """-sum(targets * log(p)) over the last axis, for targets >= 0 of any total."""
    # The second selection keeps the compiler from rounding logarithm and product as one: the cost
    # of a target of 1 is the logarithm to the last bit.
    costs = jnp.where(targets == 0.0, 0.0, _surprise(_used(p, targets)))
    return blocked_sum(targets * costs)


def _used(p: jax.Array, targets: jax.Array) -> jax.Array:
    """`p` where it has a target, and a harmless 1 elsewhere."""
    return jnp.where(targets == 0.0, 1.0, p)


def _meets(p: jax.Array, targets: jax.Array) -> jax.Array:
    """Where p and its target are both 0: the slope along the target is infinite there."""
    return (targets == 0.0) & _is_zero(p)


@functools.partial(categorical_cross_entropy.defjvp, symbolic_zeros=True)
def _categorical_cross_entropy_jvp(primals, tangents):
    p, targets = primals
    p_dot, targets_dot = tangents
    loss = categorical_cross_entropy(p, targets)
    loss_dot = dot_tangent(_categorical_slope(p, targets), p_dot)
    if not isinstance(targets_dot, SymbolicZero):
        loss_dot += dot_tangent(_target_slope(p, targets), targets_dot)
    return loss, broadcast_tangent(loss_dot, loss)


@jax.custom_jvp
def _categorical_slope(p: jax.Array, targets: jax.Array) -> jax.Array:
    return -_over(targets, _used(p, targets))


@functools.partial(_categorical_slope.defjvp, symbolic_zeros=True)
def _categorical_slope_jvp(primals, tangents):
    p, targets = primals
    p_dot, targets_dot = tangents
    slope, slope_dot = _categorical_slope(p, targets), 0.0
    if not isinstance(p_dot, SymbolicZero):
        # The tangent is divided first: 1 / p**2 may overflow, and a tangent of 0 has to stay 0.
        slope_dot -= slope * _over(p_dot, _used(p, targets))
    if not isinstance(targets_dot, SymbolicZero):
        slope_dot -= _over_unless(_meets(p, targets), targets_dot, p)
    return slope, broadcast_tangent(slope_dot, slope)


@jax.custom_jvp
def _target_slope(p: jax.Array, targets: jax.Array) -> jax.Array:
    return _surprise(jnp.where(_meets(p, targets), 1.0, p))


@_target_slope.defjvp
def _target_slope_jvp(primals, tangents):
    p, targets = primals
    return _target_slope(p, targets), -_over_unless(_meets(p, targets), tangents[0], p)


def _over_unless(exempt: jax.Array, x: jax.Array, p: jax.Array) -> jax.Array:
    """`x / p`, and 0 where it is exempt."""
    return jnp.where(exempt, 0.0, _over(x, jnp.where(exempt, 1.0, p)))


def squared_distance(p: jax.Array, targets: jax.Array) -> jax.Array:
    """sum((p - targets)**2) over the last axis."""
    return blocked_sum(jnp.square(p - targets))


@jax.custom_jvp
def negative_log_likelihood(log_p: jax.Array, labels: jax.Array) -> jax.Array:
    """-log_p at the label of each row, [...]; callers deal with labels outside [0, V)."""
    # A difference, so that certainty costs 0 and not -0.
    return 0.0 - take_local_label(log_p, labels)


@negative_log_likelihood.defjvp
def _negative_log_likelihood_jvp(primals, tangents):
    log_p, labels = primals
    classes = jnp.arange(log_p.shape[-1], dtype=labels.dtype)
    is_label = classes.reshape(*[1] * labels.ndim, -1) == labels[..., None]
    # A product and not a selection: a cotangent of NaN is meant for the whole row.
    slope = jnp.where(is_label, -1.0, 0.0).astype(log_p.dtype)
    return negative_log_likelihood(log_p, labels), jnp.sum(slope * tangents[0], axis=-1)


# Yes or no.


@jax.custom_jvp
def bernoulli_cross_entropy(p: jax.Array, yes: jax.Array) -> jax.Array:
    """-(yes * log(p) + (1 - yes) * log(1 - p)) per element, for yes in [0, 1]."""
    no = 1.0 - yes
    cost_of_yes = _surprise(_used(p, yes))
    cost_of_no = 0.0 - log1p(-jnp.where(no == 0.0, 0.0, p))
    return yes * cost_of_yes + no * cost_of_no


@functools.partial(bernoulli_cross_entropy.defjvp, symbolic_zeros=True)
def _bernoulli_cross_entropy_jvp(primals, tangents):
    p, yes = primals
    p_dot, yes_dot = tangents
    loss = bernoulli_cross_entropy(p, yes)
    loss_dot = scale_tangent(_bernoulli_slope(p, yes), p_dot)
    if not isinstance(yes_dot, SymbolicZero):
        loss_dot += _log_odds_of_no(p, yes) * yes_dot
    return loss, broadcast_tangent(loss_dot, loss)


def _chances(p: jax.Array, yes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The probabilities of yes and no where they have a target, and a harmless 1 elsewhere."""
    return _used(p, yes), jnp.where(yes == 1.0, 1.0, 1.0 - p)


def _is_certain(p: jax.Array, yes: jax.Array) -> jax.Array:
    """Where the prediction is certain and right."""
    return _meets(p, yes) | ((p == 1.0) & (yes == 1.0))


@jax.custom_jvp
def _bernoulli_slope(p: jax.Array, yes: jax.Array) -> jax.Array:
    """(p - yes) / (p (1 - p)): a single rounded difference, no matter how near the two are."""
    chance, chance_of_no = _chances(p, yes)
    excess = jnp.where(yes == 0.0, 1.0, jnp.where(yes == 1.0, -1.0, p - yes))
    return _over(excess, chance) / chance_of_no


@functools.partial(_bernoulli_slope.defjvp, symbolic_zeros=True)
def _bernoulli_slope_jvp(primals, tangents):
    p, yes = primals
    p_dot, yes_dot = tangents
    slope, slope_dot = _bernoulli_slope(p, yes), 0.0
    if not isinstance(p_dot, SymbolicZero):
        chance, chance_of_no = _chances(p, yes)
        # Divided one by one: a square may overflow where the tangent is 0.
        slope_dot += _over(yes, chance) * _over(p_dot, chance)
        slope_dot += ((1.0 - yes) / chance_of_no) * (p_dot / chance_of_no)
    if not isinstance(yes_dot, SymbolicZero):
        slope_dot -= _over_variance(p, yes, yes_dot)
    return slope, broadcast_tangent(slope_dot, slope)


@jax.custom_jvp
def _log_odds_of_no(p: jax.Array, yes: jax.Array) -> jax.Array:
    """log((1 - p) / p), the slope of the cross-entropy along its target."""
    settled = jnp.where(_is_certain(p, yes), 0.5, p)
    # The two logarithms cancel around 1/2, where 1 - 2p is exact.
    even = jnp.abs(settled - 0.5) < 0.25
    near = jnp.where(even, settled, 0.5)
    far = jnp.where(even, 0.5, settled)
    return jnp.where(even, log1p((1.0 - 2.0 * near) / near), _surprise(far) + log1p(-far))


@_log_odds_of_no.defjvp
def _log_odds_of_no_jvp(primals, tangents):
    p, yes = primals
    return _log_odds_of_no(p, yes), -_over_variance(p, yes, tangents[0])


def _over_variance(p: jax.Array, yes: jax.Array, x: jax.Array) -> jax.Array:
    """`x / (p (1 - p))`, and 0 where the prediction is certain and right."""
    exempt = _is_certain(p, yes)
    safe = jnp.where(exempt, 0.5, p)
    return jnp.where(exempt, 0.0, _over(x, safe) / (1.0 - safe))
