"""Ordered classes: the probability of an interval of the logistic distribution."""

import jax
import jax.numpy as jnp

from jaxent._float.series import one_minus_exp
from jaxent._float.tangents import Arrays, Dual
from jaxent._float.two_part import finite_two_diff
from jaxent._kernels.sigmoid import sigmoid, softplus


@jax.custom_jvp
def interval_cross_entropy(low: jax.Array, high: jax.Array) -> jax.Array:
    """-log(sigmoid(high) - sigmoid(low)) for low <= high, either of which may be infinite.

    The difference is sigmoid(high) sigmoid(-low) (1 - exp(low - high)), and the logarithm of each
    of these factors is free of cancellation.
    """
    width = _width_and_error(low, high)[0]
    is_narrow = width < 0.7
    narrow, wide = jnp.where(is_narrow, width, 1.0), jnp.where(is_narrow, 1.0, width)
    log_last = jnp.where(is_narrow, jnp.log(one_minus_exp(narrow)), jnp.log1p(-jnp.exp(-wide)))
    return softplus(-high) + softplus(low) - log_last


@interval_cross_entropy.defjvp
def _interval_cross_entropy_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (low, high), (low_dot, high_dot) = primals, tangents
    odds = _width_odds(low, high)
    # An infinite end has no gradient.
    grad_low = jnp.where(jnp.abs(low) == jnp.inf, 0.0, sigmoid(low) + odds)
    grad_high = jnp.where(jnp.abs(high) == jnp.inf, 0.0, sigmoid(-high) + odds)
    return interval_cross_entropy(low, high), grad_low * low_dot - grad_high * high_dot


def _width_and_error(low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The width high - low, 0 where they are equal, and its rounding error."""
    is_empty = low == high
    return finite_two_diff(jnp.where(is_empty, 0.0, high), jnp.where(is_empty, 0.0, low))


@jax.custom_jvp
def _width_odds(low: jax.Array, high: jax.Array) -> jax.Array:
    """1 / (exp(high - low) - 1)."""
    width, error = _width_and_error(low, high)
    odds = jnp.exp(-width) / one_minus_exp(width)
    finite_odds = jnp.where(odds == jnp.inf, 0.0, odds)
    return odds * (1.0 - (1.0 + finite_odds) * error)


@_width_odds.defjvp
def _width_odds_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (low, high), (low_dot, high_dot) = primals, tangents
    odds = _width_odds(low, high)
    # The tangent comes first: the square of the odds may overflow, and 0 times infinity is NaN.
    return odds, odds * ((1.0 + odds) * (low_dot - high_dot))
