"""Losses of preferences that need no pairs of answers, or no reference."""

from __future__ import annotations

import math
import numbers
from fractions import Fraction

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._float.tangents import Pair
from jaxent._float.two_part import split_number
from jaxent._kernels import odds, preference


@_checks.public
def kto_loss(
    policy_log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    desirable: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 0.1,
    reference_point: ArrayLike = 0.0,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
) -> jax.Array:
    r"""Kahneman-Tversky optimisation: answers that are good or bad, without pairs.

    .. math:: \ell = t \lambda_D\, \sigma(-x) + (1 - t) \lambda_U\, \sigma(x), \qquad
        x = \beta\, (\pi - \rho - z)

    Gains and losses count less the farther they are from z. For pairs: `dpo_loss`.

    Args:
        policy_log_probs: Log-probabilities :math:`\pi` of answers in nats (sums over tokens).
        reference_log_probs: Those under the reference, :math:`\rho`, of the same rank, or a scalar.
        desirable: Whether an answer is good, t: boolean or probability, of that rank, or a scalar.
        where: Mask of the answers, of the same rank, or a scalar.
        beta: How strongly the policy is tied to the reference, :math:`\beta > 0`, finite; a scalar.
        reference_point: The divergence z of policy from reference in nats, a number or an array of
            the same rank, which the paper estimates from answers to other questions, and replaces
            by 0 if negative. No gradient flows through it.
        desirable_weight: Weight :math:`\lambda_D \ge 0` of good answers, finite; a scalar.
        undesirable_weight: Weight :math:`\lambda_U \ge 0` of bad answers, finite; a scalar.

    Returns:
        One loss per answer, in units of value, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> policy, reference = jnp.array([-99.0, -99.0, -90.0]), jnp.array([-99.0, -399.0, -100.0])
        >>> print(jaxent.kto_loss(policy, reference, jnp.array([True, True, False])))
        [5.000000e-01 9.357623e-14 7.310586e-01]

    References:
        Ethayarajh et al., `KTO <https://arxiv.org/abs/2402.01306>`_, 2024.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    for option, weight in weights.items():
        _checks.check_closed_interval(option, weight, 0.0, math.inf)
        _checks.check_finite(option, weight)
    where, arrays = _masks.mask_elements(
        where,
        **_as_floating(policy_log_probs=policy_log_probs, reference_log_probs=reference_log_probs),
        reference_point=_checks.as_real("reference_point", reference_point),
        desirable=_checks.as_real("desirable", desirable),
    )
    arrays[-1] = intervals.clip_rounding(arrays[-1])
    scale = as_pair("beta", beta, compute_dtype(*arrays))
    scalars = [_checks.as_scalar(option, weight) for option, weight in weights.items()]
    losses = _masks.apply_elementwise(_kahneman_tversky, arrays, *scale, *scalars)
    return _masks.zero_where_masked(losses, where)


@_checks.public
def orpo_loss(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    weight: ArrayLike = 0.1,
) -> jax.Array:
    r"""Odds-ratio preference optimisation: fine-tuning and preference at once, no reference.

    .. math:: \ell = -\log p_w + \lambda \log \Big( 1 + \frac{p_l (1 - p_w)}{p_w (1 - p_l)} \Big)

    Means are over the tokens of an answer. Without the first term: `simpo_loss`. A rejected answer
    that is certain costs `+inf`, with an infinite gradient and no second derivatives.

    Args:
        chosen_log_probs: Mean log-probabilities :math:`\log p_w \le 0` of chosen answers, in nats.
        rejected_log_probs: Those of rejected answers, :math:`\log p_l`, of that rank, or a scalar.
        where: Mask of the pairs, of the same rank, or a scalar.
        weight: Weight :math:`\lambda > 0` of the second term, the odds ratio, finite; a scalar.

    Returns:
        One loss per pair in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> chosen, rejected = jnp.array([-1.0, -1e-9]), jnp.array([-1.0, -2.0])
        >>> print(jaxent.orpo_loss(chosen, rejected))
        [1.0693147e+00 1.0156518e-09]

    References:
        Hong et al., `ORPO <https://arxiv.org/abs/2403.07691>`_, 2024.
    """
    _checks.check_open_interval("weight", weight, 0.0, math.inf)
    given = _as_floating(chosen_log_probs=chosen_log_probs, rejected_log_probs=rejected_log_probs)
    where, arrays = _masks.mask_elements(where, **given)
    arrays = [intervals.clip_rounding(array, intervals.NON_POSITIVE) for array in arrays]
    weight = _checks.as_scalar("weight", weight)
    return _masks.zero_where_masked(_masks.apply_elementwise(_odds_ratio, arrays, weight), where)


@_checks.public
def simpo_loss(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 2.0,
    margin: ArrayLike = 1.0,
) -> jax.Array:
    r"""Simple preference optimisation: the mean log-probability is the reward, no reference.

    .. math:: \ell = -\log \sigma\big( \beta\, (\pi_w - \pi_l) - \gamma \big)

    Args:
        chosen_log_probs: Mean log-probabilities :math:`\pi_w` of chosen answers' tokens, in nats.
        rejected_log_probs: Those of rejected answers, :math:`\pi_l`, of the same rank, or a scalar.
        where: Mask of the pairs, of the same rank, or a scalar.
        beta: Scale :math:`\beta > 0` of the rewards, finite; a scalar.
        margin: Margin :math:`\gamma \ge 0` of the rewards, a scalar; the paper takes 0.3 to 1.6.

    Returns:
        One loss per pair in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> chosen, rejected = jnp.array([-1.0, -0.5]), jnp.array([-1.5, -16.0])
        >>> print(jaxent.simpo_loss(chosen, rejected))
        [6.931472e-01 9.357623e-14]

    References:
        Meng, Xia, Chen, `SimPO <https://arxiv.org/abs/2405.14734>`_, 2024.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    _checks.check_closed_interval("margin", margin, 0.0, math.inf)
    _checks.check_finite("margin", margin)
    given = _as_floating(chosen_log_probs=chosen_log_probs, rejected_log_probs=rejected_log_probs)
    where, arrays = _masks.mask_elements(where, **given)
    dtype = compute_dtype(*arrays)
    options = (*as_pair("beta", beta, dtype), *as_pair("margin", margin, dtype))
    losses = _masks.apply_elementwise(_simple_preference, arrays, *options)
    return _masks.zero_where_masked(losses, where)


# Arguments.


def _as_floating(**arrays: ArrayLike) -> dict[str, jax.Array]:
    """The arguments as arrays, refused unless they are floating point."""
    return {name: _checks.as_floating(name, array) for name, array in arrays.items()}


def as_pair(name: str, value: ArrayLike | Fraction, dtype: jnp.dtype) -> Pair:
    """An option in that dtype and its rounding error, which is not known of an array."""
    if not isinstance(value, numbers.Real):
        value = _checks.as_scalar(name, value).astype(dtype)
        return value, jnp.zeros_like(value)
    high, low = split_number(value if isinstance(value, Fraction) else float(value), dtype)
    return jnp.asarray(high, dtype), jnp.asarray(low, dtype)


# Losses, element by element in one dtype.


def _kahneman_tversky(
    policy: jax.Array,
    reference: jax.Array,
    point: jax.Array,
    desirable: jax.Array,
    beta: jax.Array,
    beta_low: jax.Array,
    desirable_weight: jax.Array,
    undesirable_weight: jax.Array,
) -> jax.Array:
    point = jax.lax.stop_gradient(point)
    scale, zero = (intervals.positive(beta), beta_low), preference.constant_pair(0.0, beta.dtype)
    log_probs = (policy, reference, point, jnp.zeros_like(point))
    high, low = preference.margin(*log_probs, scale=scale, offset=zero)
    desirable = intervals.nan_outside(desirable, 0.0, 1.0)
    good = desirable * intervals.not_negative(desirable_weight)
    bad = (1.0 - desirable) * intervals.not_negative(undesirable_weight)
    p_loss, p_gain = preference.sigmoid_of_pair(-high, -low), preference.sigmoid_of_pair(high, low)
    return good * p_loss + bad * p_gain


def _odds_ratio(chosen: jax.Array, rejected: jax.Array, weight: jax.Array) -> jax.Array:
    chosen, rejected = (intervals.nan_outside(x, -jnp.inf, 0.0) for x in (chosen, rejected))
    return intervals.positive(weight) * odds.odds_ratio_loss(chosen, rejected) - chosen


def _simple_preference(
    chosen: jax.Array,
    rejected: jax.Array,
    beta: jax.Array,
    beta_low: jax.Array,
    goal: jax.Array,
    goal_low: jax.Array,
) -> jax.Array:
    zero = jnp.zeros_like(chosen)
    scale, offset = (intervals.positive(beta), beta_low), (intervals.not_negative(goal), goal_low)
    margin = preference.margin(chosen, rejected, zero, zero, scale=scale, offset=offset)
    return preference.cross_entropy_of_pair(*margin, *preference.constant_pair(1.0, beta.dtype))
