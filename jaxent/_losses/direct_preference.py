"""Direct preference optimisation, from log-probabilities of pairs of answers."""

from __future__ import annotations

import math
import numbers
from fractions import Fraction
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._float.tangents import Pair
from jaxent._kernels import preference
from jaxent._losses.preference import as_pair


@_checks.public
def dpo_loss(
    policy_chosen_log_probs: ArrayLike,
    policy_rejected_log_probs: ArrayLike,
    reference_chosen_log_probs: ArrayLike,
    reference_rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 0.1,
    label_smoothing: ArrayLike = 0.0,
    variant: Literal["sigmoid", "robust", "hinge", "ipo"] = "sigmoid",
    nll_weight: ArrayLike = 0.0,
) -> jax.Array:
    r"""Direct preference optimisation: the policy is to prefer what people preferred.

    .. math:: \ell = -(1 - \epsilon) \log \sigma(\beta m) - \epsilon \log \sigma(-\beta m), \qquad
        m = (\pi_w - \pi_l) - (\rho_w - \rho_l)

    The margin m is by how much more than the reference the policy prefers answer w to answer l.
    Log-probabilities are sums over the tokens of an answer (for "ipo" also means). With references
    of 0.0 and `nll_weight=1.0` it is contrastive preference optimisation, CPO. What people log
    beside it: `jaxent.preference_rewards`.

    Args:
        policy_chosen_log_probs: Those of the chosen answers, :math:`\pi_w`, in nats, any shape.
        policy_rejected_log_probs: Of the rejected, :math:`\pi_l`, of that rank, or a scalar.
        reference_chosen_log_probs: Those under the reference, :math:`\rho_w`, likewise.
        reference_rejected_log_probs: Those under the reference, :math:`\rho_l`, likewise.
        where: Mask of the pairs, of the same rank, or a scalar.
        beta: How strongly the policy is tied to the reference, :math:`\beta > 0`, finite; a scalar.
        label_smoothing: Fraction :math:`\epsilon` in [0, 0.5) of wrong labels; only for "sigmoid"
            and "robust".
        variant: "sigmoid", "hinge" :math:`\max(0, 1 - \beta m)`, "ipo" :math:`(m - 1/(2 \beta))^2`,
            or "robust", whose mean over wrong labels too is that of "sigmoid" over right ones:
            :math:`((\epsilon - 1) \log \sigma(\beta m) + \epsilon \log \sigma(-\beta m)) /
            (1 - 2 \epsilon)`, which may be negative.
        nll_weight: Weight :math:`\ge 0` of :math:`-\pi_w`, which is added; finite, a scalar.

    Returns:
        In nats, scaled margins ("hinge") or squared nats ("ipo"), float32 or float64.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> chosen, rejected = jnp.array([-1.75, -1.75]), jnp.array([-1.75, -301.75])
        >>> print(jaxent.dpo_loss(chosen, rejected, -2.0, -2.0))
        [6.931472e-01 9.357623e-14]

    References:
        Rafailov et al., `DPO <https://arxiv.org/abs/2305.18290>`_, 2023; `IPO
        <https://arxiv.org/abs/2310.12036>`_, `hinge <https://arxiv.org/abs/2309.06657>`_,
        `label smoothing <https://ericmitchell.ai/cdpo.pdf>`_, `robust
        <https://arxiv.org/abs/2403.00409>`_, `CPO <https://arxiv.org/abs/2401.08417>`_.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    _checks.check_one_of("variant", variant, ("sigmoid", "robust", "hinge", "ipo"))
    _check_smoothing(label_smoothing, variant)
    _checks.check_closed_interval("nll_weight", nll_weight, 0.0, math.inf)
    _checks.check_finite("nll_weight", nll_weight)
    where, arrays = _mask_pairs(
        where,
        policy_chosen_log_probs,
        policy_rejected_log_probs,
        reference_chosen_log_probs,
        reference_rejected_log_probs,
    )
    dtype = arrays[0].dtype
    scale = as_pair("beta", beta, dtype)
    if variant == "hinge":
        losses = _masks.apply_elementwise(_hinge, arrays, *scale)
    elif variant == "ipo":
        # A fraction, since the square would amplify the rounding error of a Python float.
        is_number = isinstance(beta, numbers.Real)
        goal = 1 / (2 * Fraction(float(beta))) if is_number else 0.5 / jnp.asarray(beta)
        options = (scale[0], *as_pair("beta", goal, dtype))
        losses = _masks.apply_elementwise(_identity, arrays, *options)
    else:
        kernel, smoothing = _smoothed_sigmoid, label_smoothing
        if variant == "robust":
            kernel, smoothing = _robust_sigmoid, _robust_weight(label_smoothing)
        smoothing = _checks.as_scalar("label_smoothing", smoothing)
        losses = _masks.apply_elementwise(kernel, arrays, *scale, smoothing)
    if (weight := _checks.as_scalar_unless("nll_weight", nll_weight, 0.0)) is not None:
        losses = losses + _masks.apply_elementwise(_weighted_nll, arrays[:1], weight)
    return _masks.zero_where_masked(losses, where)


class PreferenceRewards(NamedTuple):
    """What `preference_rewards` gives of each pair: rewards and margins in nats, and 1 or 0."""

    chosen: jax.Array  # [...]
    rejected: jax.Array  # [...]
    margins: jax.Array  # [...]
    accuracies: jax.Array  # [...]


@_checks.public
def preference_rewards(
    policy_chosen_log_probs: ArrayLike,
    policy_rejected_log_probs: ArrayLike,
    reference_chosen_log_probs: ArrayLike,
    reference_rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 0.1,
) -> PreferenceRewards:
    r"""The rewards that a policy implies: what is logged beside `jaxent.dpo_loss` and its kind.

    .. math:: r_w = \beta\, (\pi_w - \rho_w), \quad r_l = \beta\, (\pi_l - \rho_l), \quad
        m = r_w - r_l, \quad a = [m > 0]

    Without a reference, as in CPO and SimPO, pass 0.0. Each is for `jaxent.mean` with `where`.

    Args:
        policy_chosen_log_probs: Those of the chosen answers, :math:`\pi_w`, in nats, any shape.
        policy_rejected_log_probs: Of the rejected, :math:`\pi_l`, of that rank, or a scalar.
        reference_chosen_log_probs: Those under the reference, :math:`\rho_w`, likewise.
        reference_rejected_log_probs: Those under the reference, :math:`\rho_l`, likewise.
        where: Mask of the pairs, of the same rank, or a scalar; all is 0 where it is False.
        beta: That of the loss, :math:`\beta > 0`, finite; a scalar.

    Returns:
        Rewards of the chosen and of the rejected answers, and margins, in nats, and accuracies: 1
        or 0 for each pair, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> chosen, rejected = jnp.array([-10.0, -20.0]), jnp.array([-30.0, -25.0])
        >>> rewards = jaxent.preference_rewards(chosen, rejected, -20.0, -30.0)
        >>> print(rewards.margins, rewards.accuracies)
        [ 1.  -0.5] [1. 0.]

    References:
        Rafailov et al., `DPO <https://arxiv.org/abs/2305.18290>`_, 2023.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    where, arrays = _mask_pairs(
        where,
        policy_chosen_log_probs,
        policy_rejected_log_probs,
        reference_chosen_log_probs,
        reference_rejected_log_probs,
    )
    policy_w, policy_l, reference_w, reference_l = arrays = jnp.broadcast_arrays(*arrays)
    zero = jnp.zeros_like(policy_w)
    scale = as_pair("beta", beta, zero.dtype)
    chosen, rejected, margins = (
        _masks.zero_where_masked(_masks.apply_elementwise(_reward, given, *scale), where)
        for given in (
            [policy_w, zero, reference_w, zero],
            [policy_l, zero, reference_l, zero],
            arrays,
        )
    )
    is_right = jnp.where(margins > 0.0, 1.0, 0.0).astype(zero.dtype)
    accuracies = intervals.nan_where_invalid(is_right, margins == margins)
    return PreferenceRewards(chosen, rejected, margins, accuracies)


# Arguments.


def _mask_pairs(
    where: ArrayLike | None, *log_probs: ArrayLike
) -> tuple[jax.Array | None, list[jax.Array]]:
    """The mask, and in one dtype those of the policy and the reference, chosen and rejected."""
    names = [
        f"{model}_{answer}_log_probs"
        for model in ("policy", "reference")
        for answer in ("chosen", "rejected")
    ]
    given = {
        name: _checks.as_floating(name, array) for name, array in zip(names, log_probs, strict=True)
    }
    where, arrays = _masks.mask_elements(where, **given)
    dtype = compute_dtype(*arrays)
    return where, [array.astype(dtype) for array in arrays]


def _check_smoothing(smoothing: ArrayLike, variant: str) -> None:
    is_number = isinstance(smoothing, numbers.Real)
    _checks.require(
        not is_number or 0.0 <= float(smoothing) < 0.5,
        f"`label_smoothing` must be at least 0 and less than 0.5, got {smoothing}.",
    )
    _checks.require(
        variant in ("sigmoid", "robust") or (is_number and float(smoothing) == 0.0),
        f'`label_smoothing` is for `variant="sigmoid"` or "robust" only, not for {variant!r}.',
    )


def _robust_weight(smoothing: ArrayLike) -> ArrayLike:
    """The quotient smoothing / (1 - 2 smoothing), rounded once where it is a number."""
    if isinstance(smoothing, numbers.Real):
        exact = Fraction(float(smoothing))
        return float(exact / (1 - 2 * exact))
    smoothing = _checks.as_scalar("label_smoothing", smoothing)
    return smoothing / (1.0 - 2.0 * smoothing)


# Losses, element by element in one dtype. The first four arguments of each variant are pi_w, pi_l,
# rho_w and rho_l.


def _scaled_margin(log_probs: list[jax.Array], beta: jax.Array, beta_low: jax.Array) -> Pair:
    scale, zero = (intervals.positive(beta), beta_low), preference.constant_pair(0.0, beta.dtype)
    return preference.margin(*log_probs, scale=scale, offset=zero)


def _smoothed_sigmoid(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, beta_low, smoothing = arguments
    margin = _scaled_margin(log_probs, beta, beta_low)
    smoothing = intervals.nan_outside(smoothing, 0.0, 0.5, "[)")
    return preference.cross_entropy_of_pair(*margin, 1.0 - smoothing, smoothing)


def _robust_sigmoid(*arguments: jax.Array) -> jax.Array:
    """log(1 + exp(-x)) - weight * x: the same cross-entropy with targets outside [0, 1]."""
    *log_probs, beta, beta_low, weight = arguments
    margin = _scaled_margin(log_probs, beta, beta_low)
    weight = intervals.not_negative(weight)
    return preference.cross_entropy_of_pair(*margin, 1.0 + weight, -weight)


def _weighted_nll(log_probs: jax.Array, weight: jax.Array) -> jax.Array:
    return _masks.scale_loss(intervals.not_negative(weight), -log_probs)


def _reward(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, beta_low = arguments
    return _scaled_margin(log_probs, beta, beta_low)[0]


def _hinge(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, beta_low = arguments
    scale, one = (intervals.positive(beta), beta_low), preference.constant_pair(1.0, beta.dtype)
    return preference.hinge_of_pair(*preference.margin(*log_probs, scale=scale, offset=one))


def _identity(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, goal, goal_low = arguments
    one = preference.constant_pair(1.0, beta.dtype)
    offset = intervals.nan_where_invalid(goal, (beta > 0.0) & (beta < jnp.inf)), goal_low
    return preference.square_of_pair(*preference.margin(*log_probs, scale=one, offset=offset))
