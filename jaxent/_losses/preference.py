"""Losses of preferences and policies, from the log-probabilities of what a model said."""

import functools
import math
import numbers
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import sums
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import preference
from jaxent._losses import reduction

_Pair = tuple[jax.Array, jax.Array]


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
    variant: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
) -> jax.Array:
    r"""Direct preference optimisation: the policy is to prefer what people preferred.

    .. math::
        \ell = \begin{cases}
            -(1 - \epsilon) \log \sigma(\beta m) - \epsilon \log \sigma(-\beta m)
                & \text{sigmoid} \\
            \max(0,\, 1 - \beta m) & \text{hinge} \\
            \big( m - \tfrac{1}{2 \beta} \big)^2 & \text{ipo}
        \end{cases}
        \qquad m = (\pi_w - \pi_l) - (\rho_w - \rho_l)

    The margin :math:`m` says by how much more than the reference the policy prefers the chosen
    answer :math:`w` to the rejected one :math:`l`. It is formed without rounding, so that the loss
    of a large margin and of log-probabilities in the hundreds is right to the last digits.

    Args:
        policy_chosen_log_probs: Log-probabilities :math:`\pi_w` in nats of the chosen answers under
            the policy, one for each pair, any shape, floating point; 16-bit dtypes are computed in
            float32. They are sums over the tokens (for "ipo" means are also common).
        policy_rejected_log_probs: The same of the rejected answers, :math:`\pi_l`; these arguments
            have one rank, or are scalars.
        reference_chosen_log_probs: Those of the chosen answers under the reference, :math:`\rho_w`.
        reference_rejected_log_probs: Those of the rejected answers, :math:`\rho_l`. An infinite
            log-probability makes the margin infinite; several that contradict each other, as
            where an answer is impossible under policy and reference, make it NaN.
        where: Booleans of the same rank, or a scalar: True where the pair counts. None counts all.
        beta: How strongly the policy is held to the reference, :math:`\beta > 0`, finite. A number,
            or a scalar array (NaN if out of range).
        label_smoothing: The share :math:`\epsilon` in [0, 0.5) of pairs taken to be labelled the
            wrong way round (conservative DPO); only for "sigmoid". A number, or a scalar array
            (NaN if out of range).
        variant: Which loss of the margin: "sigmoid" is DPO, "hinge" that of SLiC with a reference,
            "ipo" identity preference optimisation, where `beta` is the regularisation.

    Returns:
        One loss per pair, of the common shape, float32 (float64 if any input is): in nats for
        "sigmoid", in units of the scaled margin for "hinge", in squared nats for "ipo". Masked
        pairs have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes, `beta`, `label_smoothing` or `variant` are
            refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> token_log_probs = jnp.array([[-0.5, -1.25, -9.0], [-0.25, -0.5, -1.0]])
        >>> is_answer = jnp.array([[True, True, False], [True, True, True]])
        >>> chosen = jnp.sum(token_log_probs, axis=-1, where=is_answer)
        >>> print(chosen)
        [-1.75 -1.75]
        >>> rejected, reference = jnp.array([-1.75, -301.75]), jnp.array([-2.0, -2.0])
        >>> print(jaxent.dpo_loss(chosen, rejected, reference, reference))
        [6.931472e-01 9.357623e-14]

    References:
        Rafailov et al., `Direct Preference Optimization <https://arxiv.org/abs/2305.18290>`_, 2023.
        Smoothing: Mitchell, `A note on DPO with noisy preferences
        <https://ericmitchell.ai/cdpo.pdf>`_, 2023. Hinge: Liu et al., `Statistical Rejection
        Sampling Improves Preference Optimization <https://arxiv.org/abs/2309.06657>`_, 2023. IPO:
        Azar et al., `A General Theoretical Paradigm to Understand Learning from Human Preferences
        <https://arxiv.org/abs/2310.12036>`_, 2023.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    _checks.check_one_of("variant", variant, ("sigmoid", "hinge", "ipo"))
    _check_smoothing(label_smoothing, variant)
    where, arrays = _log_probs(
        where,
        policy_chosen_log_probs=policy_chosen_log_probs,
        policy_rejected_log_probs=policy_rejected_log_probs,
        reference_chosen_log_probs=reference_chosen_log_probs,
        reference_rejected_log_probs=reference_rejected_log_probs,
    )
    parts = functools.partial(_parts, dtype=compute_dtype(*arrays))
    given = parts("beta", beta)
    if variant == "hinge":
        losses = _masks.apply_elementwise(_hinge, arrays, *given)
    elif variant == "ipo":
        # In Python's digits, as its rounding would otherwise be squared.
        is_number = isinstance(beta, numbers.Real)
        goal = 1 / (2 * Fraction(float(beta))) if is_number else 0.5 / jnp.asarray(beta)
        losses = _masks.apply_elementwise(_identity, arrays, given[0], *parts("beta", goal))
    else:
        smoothing = _checks.as_scalar("label_smoothing", label_smoothing)
        losses = _masks.apply_elementwise(_sigmoid_preference, arrays, *given, smoothing)
    return _masks.zero_where_masked(losses, where)


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

    .. math::
        \ell = t\, \lambda_D\, \sigma(-x) + (1 - t)\, \lambda_U\, \sigma(x), \qquad
        x = \beta\, (\pi - \rho - z)

    Gains and losses count less the farther they are from the reference point :math:`z`.

    Args:
        policy_log_probs: Log-probabilities :math:`\pi` in nats of the answers under the policy
            (sums over their tokens), any shape, floating point; 16-bit dtypes are computed in
            float32.
        reference_log_probs: Those under the reference, :math:`\rho`; the arguments have one rank,
            or are scalars. An infinite log-probability makes :math:`x` infinite, and two that
            contradict each other make it NaN.
        desirable: Whether the answer is a good one, :math:`t`: booleans, or chances in [0, 1].
            Others make their element NaN.
        where: Booleans of the same rank, or a scalar: True where the answer counts. None counts
            all.
        beta: How strongly the policy is held to the reference, :math:`\beta > 0`, finite. A number,
            or a scalar array (NaN if out of range).
        reference_point: The divergence :math:`z` of policy from reference in nats, which the paper
            estimates from answers to other questions, and cuts off below 0: a number, or an array
            of the same rank. No gradient flows through it.
        desirable_weight: Weight :math:`\lambda_D \ge 0` of good answers, finite. A number, or a
            scalar array (NaN if out of range).
        undesirable_weight: Weight :math:`\lambda_U \ge 0` of bad ones, likewise.

    Returns:
        One loss per answer in units of value, from 0 to the weight of the answer, of the common
        shape, float32 (float64 if any input is). Masked answers have loss 0 and gradient 0,
        whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes, `beta` or weights are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> policy, reference = jnp.array([-99.0, -99.0, -90.0]), jnp.array([-99.0, -399.0, -100.0])
        >>> print(jaxent.kto_loss(policy, reference, jnp.array([True, True, False])))
        [5.000000e-01 9.357623e-14 7.310586e-01]

    References:
        Ethayarajh et al., `KTO: Model Alignment as Prospect Theoretic Optimization
        <https://arxiv.org/abs/2402.01306>`_, 2024.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    for option, weight in weights.items():
        _checks.check_closed_interval(option, weight, 0.0, math.inf)
        _checks.check_finite(option, weight)
    where, arrays = _log_probs(
        where,
        policy_log_probs=policy_log_probs,
        reference_log_probs=reference_log_probs,
        reference_point=_checks.as_real("reference_point", reference_point),
        desirable=_checks.as_real("desirable", desirable),
    )
    scales = [_checks.as_scalar(option, weight) for option, weight in weights.items()]
    given = _parts("beta", beta, compute_dtype(*arrays))
    return _masks.zero_where_masked(
        _masks.apply_elementwise(_kahneman_tversky, arrays, *given, *scales), where
    )


@_checks.public
def orpo_loss(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    weight: ArrayLike = 0.1,
) -> jax.Array:
    r"""Odds-ratio preference optimisation: fine-tuning and preference at once, no reference.

    .. math::
        \ell = -\log p_w
            + \lambda \log \Big( 1 + \frac{\operatorname{odds}(p_l)}{\operatorname{odds}(p_w)}
            \Big), \qquad \operatorname{odds}(p) = \frac{p}{1 - p}

    The second term is minus the log-sigmoid of the difference of log-odds. It is computed without
    them, and is as exact for answers that are nearly certain.

    Args:
        chosen_log_probs: Log-probabilities :math:`\log p_w \le 0` in nats of the chosen answers,
            each the mean over its tokens, any shape, floating point; 16-bit dtypes are computed in
            float32. Positive ones make their element NaN.
        rejected_log_probs: The same of the rejected answers, :math:`\log p_l`, of the same rank, or
            a scalar. An answer that is certain (0) although rejected costs `+inf`. Two that are
            certain, like two that are equally likely, have the odds ratio 1.
        where: Booleans of the same rank, or a scalar: True where the pair counts. None counts all.
        weight: Weight :math:`\lambda > 0` of the odds ratio, finite. A number, or a scalar array
            (NaN if out of range).

    Returns:
        One loss per pair in nats, of the common shape, float32 (float64 if any input is). Masked
        pairs have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or `weight` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> token_log_probs = jnp.array([[-0.5, -1.5, -9.0], [-1e-9, -1e-9, -1e-9]])
        >>> is_answer = jnp.array([[True, True, False], [True, True, True]])
        >>> chosen = jnp.mean(token_log_probs, axis=-1, where=is_answer)
        >>> print(jaxent.orpo_loss(chosen, jnp.array([-1.0, -2.0])))
        [1.0693147e+00 1.0156518e-09]

    References:
        Hong, Lee, Thorne, `ORPO: Monolithic Preference Optimization without Reference Model
        <https://arxiv.org/abs/2403.07691>`_, 2024.
    """
    _checks.check_open_interval("weight", weight, 0.0, math.inf)
    where, arrays = _log_probs(
        where, chosen_log_probs=chosen_log_probs, rejected_log_probs=rejected_log_probs
    )
    given = _checks.as_scalar("weight", weight)
    return _masks.zero_where_masked(_masks.apply_elementwise(_odds_ratio, arrays, given), where)


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
        chosen_log_probs: Log-probabilities :math:`\pi_w` in nats of the chosen answers, each the
            mean over its tokens, any shape, floating point; 16-bit dtypes are computed in float32.
        rejected_log_probs: The same of the rejected answers, :math:`\pi_l`, of the same rank, or a
            scalar. An infinite log-probability makes the difference infinite, and two make it NaN.
        where: Booleans of the same rank, or a scalar: True where the pair counts. None counts all.
        beta: Scale :math:`\beta > 0` of the rewards, finite. A number, or a scalar array (NaN if
            out of range).
        margin: By how much, :math:`\gamma \ge 0`, the reward of the chosen answer is to exceed the
            other, finite; the paper tunes it from 0.3 to 1.6. A number, or a scalar array (NaN if
            out of range).

    Returns:
        One loss per pair in nats, of the common shape, float32 (float64 if any input is). Masked
        pairs have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes, `beta` or `margin` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> token_log_probs = jnp.array([[-0.5, -1.5, -9.0], [-0.25, -0.5, -0.75]])
        >>> is_answer = jnp.array([[True, True, False], [True, True, True]])
        >>> chosen = jnp.mean(token_log_probs, axis=-1, where=is_answer)
        >>> print(jaxent.simpo_loss(chosen, jnp.array([-1.5, -16.0])))
        [6.931472e-01 9.357623e-14]

    References:
        Meng, Xia, Chen, `SimPO: Simple Preference Optimization with a Reference-Free Reward
        <https://arxiv.org/abs/2405.14734>`_, 2024.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    _checks.check_closed_interval("margin", margin, 0.0, math.inf)
    _checks.check_finite("margin", margin)
    where, arrays = _log_probs(
        where, chosen_log_probs=chosen_log_probs, rejected_log_probs=rejected_log_probs
    )
    dtype = compute_dtype(*arrays)
    given = (*_parts("beta", beta, dtype), *_parts("margin", margin, dtype))
    return _masks.zero_where_masked(
        _masks.apply_elementwise(_simple_preference, arrays, *given), where
    )


@_checks.public
def policy_gradient_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    where: ArrayLike | None = None,
    *,
    clip: ArrayLike | tuple[ArrayLike, ArrayLike] = 0.2,
    dual_clip: ArrayLike | None = None,
    normalization: Literal["token", "sequence"] = "token",
    reference_log_probs: ArrayLike | None = None,
    kl_weight: ArrayLike = 0.0,
) -> jax.Array:
    r"""The clipped surrogate of PPO and GRPO for each token, or its mean over each sequence.

    .. math::
        \ell = -\min\big( r A,\ \operatorname{clip}(r, 1 - c_-, 1 + c_+)\, A \big)
            + \lambda\, \big( e^{\rho - \pi} - (\rho - \pi) - 1 \big), \qquad r = e^{\pi - \pi_0}

    Where the ratio :math:`r` is clipped the gradient is exactly 0, however large the ratio; at
    either end of the interval it is still that of the ratio. The second term is an unbiased
    estimate of the divergence from a reference that is never negative, exact near 0.

    Args:
        log_probs: Log-probabilities :math:`\pi` in nats of the tokens that were sampled, under the
            policy, [..., time] or any shape, floating point; 16-bit dtypes are computed in float32.
        old_log_probs: Those under the policy that sampled them, :math:`\pi_0`; the arguments have
            one rank, or are scalars.
        advantages: By how much each was better than expected, :math:`A`, real, in units of reward:
            [..., time], or [..., 1] for one per sequence (`advantages[:, None]` as in GRPO).
        where: Booleans of the same rank, or a scalar: True where the token counts. None counts all.
        clip: By how much the ratio may fall below and rise above 1 before it is clipped: one number
            in [0, 1] for both, or a pair, the first in [0, 1] and the second not negative.
            `(1.0, math.inf)` never clips. Numbers, or scalar arrays (NaN if out of range).
        dual_clip: From which ratio on a token with a negative advantage is clipped as well, above
            1, finite. None is never; otherwise a number, or a scalar array (NaN if out of range).
        normalization: "token" gives a loss per token, whose `jaxent.mean` over all tokens is that
            of PPO and DAPO; "sequence" each sequence's mean over its tokens that count, 0 if none
            does, whose `jaxent.mean` is that of GRPO.
        reference_log_probs: Log-probabilities :math:`\rho` under a reference, of the same rank, or
            None for no such term.
        kl_weight: Weight :math:`\lambda \ge 0` of the divergence, finite; needs
            `reference_log_probs`, which 0 leaves out. A number, or a scalar array (NaN if out of
            range).

    Returns:
        Losses in units of reward, float32 (float64 if any input is), of either sign: for "token"
        one per token, of the common shape; for "sequence" one per sequence, without the last axis.
        Masked tokens have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> old = jnp.log(jnp.array([[0.5, 0.25, 0.5], [0.5, 0.5, 0.5]]))
        >>> new = jnp.log(jnp.array([[0.75, 0.25, 0.5], [0.25, 0.5, 0.75]]))
        >>> advantages, where = jnp.array([1.0, -1.0]), jnp.array([[True] * 3, [True, True, False]])
        >>> given = (new, old, advantages[:, None], where)
        >>> losses = jaxent.policy_gradient_loss(*given, clip=0.25)
        >>> print(losses)
        [[-1.25 -1.   -1.  ]
         [ 0.75  1.    0.  ]]
        >>> print(jaxent.mean(losses, where))
        -0.3
        >>> print(jaxent.policy_gradient_loss(*given, clip=0.25, normalization="sequence"))
        [-1.0833334  0.875    ]

    References:
        Schulman et al., `Proximal Policy Optimization Algorithms
        <https://arxiv.org/abs/1707.06347>`_, 2017. Per sequence: Shao et al., `DeepSeekMath
        <https://arxiv.org/abs/2402.03300>`_, 2024. Per token, and a pair of clips: Yu et al., `DAPO
        <https://arxiv.org/abs/2503.14476>`_, 2025. Dual clip: Ye et al., `Mastering Complex Control
        in MOBA Games with Deep Reinforcement Learning <https://arxiv.org/abs/1912.09729>`_, 2019.
        Divergence: Schulman, `Approximating KL Divergence
        <http://joschu.net/blog/kl-approx.html>`_, 2020.
    """
    bounds = _clip_bounds(clip, dual_clip)
    _checks.check_one_of("normalization", normalization, ("token", "sequence"))
    given = {
        "log_probs": log_probs,
        "old_log_probs": old_log_probs,
        "advantages": _checks.as_real("advantages", advantages),
    }
    primitive = _surrogate
    if _is_used(reference_log_probs, kl_weight):
        primitive = _surrogate_and_divergence
        given["reference_log_probs"] = reference_log_probs
        bounds = (*bounds, _checks.as_scalar("kl_weight", kl_weight))
    where, arrays = _log_probs(where, **given)
    losses = _masks.zero_where_masked(_masks.apply_elementwise(primitive, arrays, *bounds), where)
    if normalization == "token":
        return losses
    _checks.require(
        losses.ndim > 0,
        f"`log_probs` {_checks.describe(losses)} must have a time axis for "
        '`normalization="sequence"`.',
    )
    return _sequence_means(losses, where)


# What is given.


def _log_probs(
    where: ArrayLike | None, **arrays: ArrayLike
) -> tuple[jax.Array | None, list[jax.Array]]:
    """The mask and the arrays; those whose name ends in `log_probs` must be floating point."""
    checked = {
        name: _checks.as_floating(name, array)
        if name.endswith("log_probs")
        else _checks.as_array(array)
        for name, array in arrays.items()
    }
    return _masks.mask_elements(where, **checked)


def _check_smoothing(smoothing: ArrayLike, variant: str) -> None:
    is_number = isinstance(smoothing, numbers.Real)
    _checks.require(
        not is_number or 0.0 <= float(smoothing) < 0.5,
        f"`label_smoothing` must be at least 0 and less than 0.5, got {smoothing}.",
    )
    _checks.require(
        variant == "sigmoid" or (is_number and float(smoothing) == 0.0),
        f'`label_smoothing` is for `variant="sigmoid"` only, not for {variant!r}.',
    )


def _parts(name: str, value: ArrayLike | Fraction, dtype: jnp.dtype) -> _Pair:
    """A number in that dtype, and what rounding took from it, of which an array says nothing."""
    if not isinstance(value, numbers.Real):
        value = _checks.as_scalar(name, value).astype(dtype)
        return value, jnp.zeros_like(value)
    exact = value if isinstance(value, Fraction) else Fraction(float(value))
    rounded = np.asarray(float(exact), dtype)
    if not np.isfinite(rounded):
        return jnp.asarray(rounded), jnp.zeros((), dtype)
    return jnp.asarray(rounded), jnp.asarray(float(exact - Fraction(float(rounded))), dtype)


def _clip_bounds(
    clip: ArrayLike | tuple[ArrayLike, ArrayLike], dual_clip: ArrayLike | None
) -> tuple[jax.Array, ...]:
    """The ends of the interval, and the other end for negative advantages."""
    _checks.require(
        not isinstance(clip, tuple) or len(clip) == 2,
        f"`clip` must be a number or a pair (below, above), got {clip}.",
    )
    below, above = clip if isinstance(clip, tuple) else (clip, clip)
    _checks.check_closed_interval("clip", below, 0.0, 1.0)
    _checks.check_closed_interval("clip", above, 0.0, math.inf if isinstance(clip, tuple) else 1.0)
    if dual_clip is not None:
        _checks.check_open_interval("dual_clip", dual_clip, 1.0, math.inf)
    # In Python's digits where they are numbers.
    return (
        _checks.as_scalar("clip", 1.0 - below),
        _checks.as_scalar("clip", 1.0 + above),
        _checks.as_scalar("dual_clip", math.inf if dual_clip is None else dual_clip),
    )


def _is_used(reference: ArrayLike | None, kl_weight: ArrayLike) -> bool:
    """Whether there is a divergence from the reference to be counted."""
    _checks.check_closed_interval("kl_weight", kl_weight, 0.0, math.inf)
    _checks.check_finite("kl_weight", kl_weight)
    is_weighted = not isinstance(kl_weight, numbers.Real) or float(kl_weight) > 0.0
    _checks.require(
        reference is not None or not is_weighted,
        "`kl_weight` needs `reference_log_probs`; pass them, or no weight.",
    )
    return is_weighted


# What is computed, element by element in one dtype.


def _positive(value: jax.Array) -> jax.Array:
    return _masks.nan_where_invalid(value, (value > 0.0) & (value < jnp.inf))


def _not_negative(value: jax.Array) -> jax.Array:
    return _masks.nan_where_invalid(value, (value >= 0.0) & (value < jnp.inf))


def _constant(value: float, like: jax.Array) -> _Pair:
    return jnp.full((), value, like.dtype), jnp.zeros((), like.dtype)


def _sigmoid_preference(policy_w, policy_l, reference_w, reference_l, beta, rest, smoothing):
    none = _constant(0.0, beta)
    scale = (_positive(beta), rest)
    pair = preference.margin(policy_w, policy_l, reference_w, reference_l, scale, none)
    smoothing = _masks.nan_where_invalid(smoothing, (smoothing >= 0.0) & (smoothing < 0.5))
    return preference.pair_cross_entropy(*pair, 1.0 - smoothing, smoothing)


def _hinge(policy_w, policy_l, reference_w, reference_l, beta, rest):
    one = _constant(1.0, beta)
    scale = (_positive(beta), rest)
    return preference.shortfall(
        *preference.margin(policy_w, policy_l, reference_w, reference_l, scale, one)
    )


def _identity(policy_w, policy_l, reference_w, reference_l, beta, goal, rest):
    one = _constant(1.0, beta)
    goal = _masks.nan_where_invalid(goal, (beta > 0.0) & (beta < jnp.inf))
    return preference.square_of_pair(
        *preference.margin(policy_w, policy_l, reference_w, reference_l, one, (goal, rest))
    )


def _kahneman_tversky(policy, reference, point, desirable, beta, rest, good, bad):
    point = jax.lax.stop_gradient(point)
    scale, none = (_positive(beta), rest), _constant(0.0, beta)
    high, low = preference.margin(policy, reference, point, jnp.zeros_like(point), scale, none)
    desirable = _masks.nan_where_invalid(desirable, (desirable >= 0.0) & (desirable <= 1.0))
    gain = desirable * _not_negative(good) * preference.sigmoid_of_pair(-high, -low)
    return gain + (1.0 - desirable) * _not_negative(bad) * preference.sigmoid_of_pair(high, low)


def _odds_ratio(chosen, rejected, weight):
    chosen, rejected = (
        _masks.nan_where_invalid(log_p, log_p <= 0.0) for log_p in (chosen, rejected)
    )
    return _positive(weight) * preference.odds_ratio_loss(chosen, rejected) - chosen


def _simple_preference(chosen, rejected, beta, rest, goal, goal_rest):
    none = jnp.zeros_like(chosen)
    scale, offset = (_positive(beta), rest), (_not_negative(goal), goal_rest)
    pair = preference.margin(chosen, rejected, none, none, scale, offset)
    return preference.pair_cross_entropy(*pair, *_constant(1.0, beta))


def _surrogate(log_probs, old_log_probs, advantages, lower, upper, cap):
    is_interval = (lower >= 0.0) & (lower <= 1.0) & (upper >= 1.0) & (cap > 1.0)
    is_worse = advantages < 0.0
    # Without an advantage a ratio means nothing, not even an infinite one.
    largest = jnp.where(advantages == 0.0, jnp.finfo(upper.dtype).max, jnp.inf)
    ratio = preference.clipped_ratio(
        log_probs,
        old_log_probs,
        jnp.where(is_worse, lower, 0.0),
        jnp.where(is_worse, cap, jnp.minimum(upper, largest.astype(upper.dtype))),
    )
    return _masks.nan_where_invalid(0.0 - advantages * ratio, is_interval)


def _surrogate_and_divergence(
    log_probs, old_log_probs, advantages, reference, lower, upper, cap, weight
):
    surrogate = _surrogate(log_probs, old_log_probs, advantages, lower, upper, cap)
    return surrogate + _not_negative(weight) * preference.ratio_excess(reference, log_probs)


@functools.partial(jax.jit, inline=True)
def _sequence_means(losses, where) -> jax.Array:
    counted = jnp.ones_like(losses) if where is None else where.astype(losses.dtype)
    counts = jnp.sum(jnp.broadcast_to(counted, losses.shape), axis=-1)
    return reduction.divide(sums.blocked_sum(losses), counts)
