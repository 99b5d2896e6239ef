"""The truth of the losses of preferences and policies: the formulas of the papers."""

import math
from collections.abc import Sequence

import mpmath
from mpmath import mpf
from oracle import Number, Truth

# What scales a slope that jumps: there either side is as right as the other.
JUMP = mpf("inf")
NEAR = 1e-6


def _softplus(x: Number) -> Number:
    return mpmath.log(1 + mpmath.exp(x))


def _sigmoid(x: Number) -> Number:
    return 1 / (1 + mpmath.exp(-x))


def _weighted(weight: Number, cost: Number) -> Number:
    return mpf(0) if weight == 0 else weight * cost


def _along(signs: Sequence[int], slope: Number) -> tuple[Number, ...]:
    """Slopes along numbers that come with these signs in what the loss depends on."""
    return tuple(sign * slope for sign in signs)


def dpo_loss(
    policy_chosen: Number,
    policy_rejected: Number,
    reference_chosen: Number,
    reference_rejected: Number,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
    variant: str = "sigmoid",
) -> Truth:
    margin = (policy_chosen - policy_rejected) - (reference_chosen - reference_rejected)
    strength, signs = mpf(beta), (1, -1, -1, 1)
    reward = strength * margin
    if variant == "hinge":
        value = max(mpf(0), 1 - reward)
        slopes = _along(signs, -strength if value else mpf(0))
        return Truth(value, slopes, value, slopes)
    if variant == "ipo":
        off = margin - 1 / (2 * strength)
        slopes = _along(signs, 2 * off)
        return Truth(off**2, slopes, off**2, slopes)
    wrong = mpf(label_smoothing)
    value = (1 - wrong) * _softplus(-reward) + _weighted(wrong, _softplus(reward))
    down, up = (1 - wrong) * _sigmoid(-reward), wrong * _sigmoid(reward)
    slopes, scales = (_along(signs, strength * slope) for slope in (up - down, up + down))
    return Truth(value, slopes, value, scales)


def kto_loss(
    policy: Number,
    reference: Number,
    desirable: Number,
    *,
    beta: float = 0.1,
    reference_point: float = 0.0,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Truth:
    """``w_good (1 - sigmoid(x))`` of a good answer, ``w_bad (1 - sigmoid(-x))`` of a bad one."""
    strength = mpf(beta)
    reward = strength * (policy - reference - mpf(reference_point))
    of_good = mpf(desirable_weight) * _sigmoid(-reward)
    of_bad = mpf(undesirable_weight) * _sigmoid(reward)
    value = desirable * of_good + (1 - desirable) * of_bad
    slope = strength * _sigmoid(reward) * _sigmoid(-reward)
    down = slope * desirable * mpf(desirable_weight)
    up = slope * (1 - desirable) * mpf(undesirable_weight)
    return Truth(
        value,
        (up - down, down - up, of_good - of_bad),
        value,
        (up + down, up + down, of_good + of_bad),
    )


def orpo_loss(chosen: Number, rejected: Number, *, weight: float = 0.1) -> Truth:
    """``-log p_w - weight log sigmoid(log odds(p_w) - log odds(p_l))``."""

    def log_odds(log_p: Number) -> Number:
        return log_p - mpmath.log(1 - mpmath.exp(log_p))

    cost = _softplus(log_odds(rejected) - log_odds(chosen))
    value = mpf(weight) * cost - chosen
    pull, push = _odds_slopes(chosen, rejected)
    slopes = (-1 - mpf(weight) * pull, mpf(weight) * push)
    return Truth(value, slopes, value, slopes)


def _odds_slopes(chosen: Number, rejected: Number) -> tuple[Number, Number]:
    """How fast the second term falls with the chosen one, and rises with the rejected one.

    Both are ``sigmoid(log odds(p_l) - log odds(p_w)) / (1 - p)``, multiplied out.
    """
    doubt, other_doubt = 1 - mpmath.exp(chosen), 1 - mpmath.exp(rejected)
    pull = 1 / (doubt + mpmath.exp(chosen - rejected) * other_doubt)
    return pull, pull * doubt / other_doubt


def orpo_curvature_scale(chosen: Number, rejected: Number, *, weight: float = 0.1) -> Number:
    """The absolute terms of the second derivative, the slope times 1 less the slope."""
    pull, _ = _odds_slopes(chosen, rejected)
    other = mpmath.exp(chosen - rejected) * (1 - mpmath.exp(rejected))
    return mpf(weight) * pull**2 * (other + mpmath.exp(chosen))


def simpo_loss(
    chosen: Number, rejected: Number, *, beta: float = 2.0, margin: float = 1.0
) -> Truth:
    strength = mpf(beta)
    lead = strength * (chosen - rejected) - mpf(margin)
    value, slopes = _softplus(-lead), _along((1, -1), -strength * _sigmoid(-lead))
    return Truth(value, slopes, value, slopes)


def policy_gradient_loss(
    log_prob: Number,
    old_log_prob: Number,
    advantage: Number,
    *,
    clip: float | tuple[float, float] = 0.2,
    dual_clip: float | None = None,
    reference_log_probs: float | None = None,
    kl_weight: float = 0.0,
) -> Truth:
    """``-min(r A, clip(r) A)``, no more than ``-dual_clip A``, and the divergence."""
    below, above = clip if isinstance(clip, tuple) else (clip, clip)
    ratio = mpmath.exp(log_prob - old_log_prob)
    lower, upper = mpf(0), 1 + mpf(above)
    if advantage < 0:
        lower, upper = 1 - mpf(below), mpf(dual_clip or math.inf)
    used = lower if ratio < lower else upper if ratio > upper else ratio
    slope = advantage * ratio if used == ratio else mpf(0)
    slopes, value = _along((-1, 1), slope), -advantage * used
    scale = JUMP if is_near_a_clip(ratio, (lower, upper)) else abs(slope)
    spread, moved = mpf(0), mpf(0)
    if reference_log_probs is not None:
        apart = mpf(reference_log_probs) - log_prob
        spread = mpf(kl_weight) * (mpmath.exp(apart) - 1 - apart)
        moved = mpf(kl_weight) * (mpmath.exp(apart) - 1)
    return Truth(
        value + spread,
        (slopes[0] - moved, slopes[1], -used),
        abs(value) + spread,
        (scale + abs(moved), scale, used),
    )


def is_near_a_clip(ratio: Number, bounds: Sequence[Number]) -> bool:
    return any(0 < bound < mpmath.inf and abs(ratio / bound - 1) < NEAR for bound in bounds)
