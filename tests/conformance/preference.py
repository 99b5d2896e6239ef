"""The cases of the losses of preferences and policies: references, hard inputs and bars."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
from mpmath import mp, mpf

import jaxent
from conformance import oracle
from conformance.case import Argument, Case
from conformance.inputs import SCALES, Family
from conformance.oracle import Number, Truth
from conformance.regression import one_shape

# --- references -----------------------------------------------------------------------------------


# As near to a clip, in relative terms, a rounding decides on which side of it a ratio is.
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
    nll_weight: float = 0.0,
) -> Truth:
    if nll_weight:
        log_probs = (policy_chosen, policy_rejected, reference_chosen, reference_rejected)
        value, slopes, value_scale, scales, _ = dpo_loss(
            *log_probs, beta=beta, label_smoothing=label_smoothing, variant=variant
        )
        weight, cost = mpf(nll_weight), _weighted(mpf(nll_weight), -policy_chosen)
        slopes, scales = (slopes[0] - weight, *slopes[1:]), (abs(scales[0]) + weight, *scales[1:])
        return Truth(value + cost, slopes, value_scale + abs(cost), scales)
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
    if variant == "robust":
        part = wrong / (1 - 2 * wrong)
        value = _softplus(-reward) - part * reward
        slopes = _along(signs, -strength * (_sigmoid(-reward) + part))
        return Truth(value, slopes, _softplus(-reward) + abs(part * reward), slopes)
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


def orpo_hessian_scale(chosen: Number, rejected: Number, *, weight: float = 0.1) -> Number:
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
    rollout_log_probs: float | None = None,
    rollout_clip: float = 2.0,
) -> Truth:
    """``-min(r A, clip(r) A)``, no more than ``-dual_clip A``, and the divergence."""
    below, above = clip if isinstance(clip, tuple) else (clip, clip)
    ratio = mpmath.exp(log_prob - old_log_prob)
    lower, upper = mpf(0), 1 + mpf(above)
    if advantage < 0:
        lower, upper = 1 - mpf(below), mpf(dual_clip or math.inf)
    used = lower if ratio < lower else upper if ratio > upper else ratio
    unclipped = -advantage * ratio
    slope, other = (unclipped, mpf(0)) if used == ratio else (mpf(0), unclipped)
    value, is_near = -advantage * used, is_near_a_clip(ratio, (lower, upper))
    if rollout_log_probs is not None:
        weight: Number = mpmath.exp(old_log_prob - mpf(rollout_log_probs))
        weight = min(mpf(rollout_clip), weight)
        # Where it is 0 the advantage is as good as none.
        unclipped, slope, other = (weight and weight * x for x in (unclipped, slope, other))
        value, used = -advantage * (weight and weight * used), weight and weight * used
    other, scale = (other, abs(unclipped)) if is_near else (slope, abs(slope))
    spread, moved = mpf(0), mpf(0)
    if reference_log_probs is not None:
        apart = mpf(reference_log_probs) - log_prob
        spread = mpf(kl_weight) * (mpmath.exp(apart) - 1 - apart)
        moved = mpf(kl_weight) * (mpmath.exp(apart) - 1)
    # The policy that sampled the tokens is a constant.
    return Truth(
        value + spread,
        (slope - moved, mpf(0), -used),
        abs(value) + spread,
        (scale + abs(moved), mpf(0), used),
        (other - moved, mpf(0), -used),
    )


def is_near_a_clip(ratio: Number, bounds: Sequence[Number]) -> bool:
    return any(0 < bound < mpmath.inf and abs(ratio / bound - 1) < NEAR for bound in bounds)


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place: of the quantity itself, except where it is a
# difference (a slope of smoothed or mixed labels, a surrogate with a divergence).
SIGMOID_VALUE, SIGMOID_GRADIENT = 4, 4
HINGE_VALUE, HINGE_GRADIENT = 1, 1
IPO_VALUE, IPO_GRADIENT = 2, 1
KTO_VALUE, KTO_GRADIENT = 4, 5
ORPO_VALUE, ORPO_GRADIENT = 4, 5
SURROGATE_VALUE, SURROGATE_GRADIENT = 4, 4

_DUAL: dict[str, Any] = {"clip": (0.2, 0.28), "dual_clip": 3.0}
_DUAL |= {"rollout_log_probs": -1.2, "rollout_clip": 1.5}
_WITH_DIVERGENCE: dict[str, Any] = {
    "clip": (1.0, 0.3),
    "reference_log_probs": -1.5,
    "kl_weight": 0.3,
}
OFFSETS = (0.1, 1.0, 5.0, 15.0, 17.0, 40.0, 80.0)


def _about(name: str, center: float, spread: float) -> Argument:
    return Argument(
        name,
        lambda rng, leading, classes: center + spread * rng.normal(size=(*leading, classes)),
    )


def _below_0(name: str) -> Argument:
    return Argument(
        name, lambda rng, leading, classes: -rng.uniform(0.3, 3.0, size=(*leading, classes))
    )


PAIRS = tuple(
    _about(f"{who}_{which}_log_probs", -5.0, 2.0)
    for who in ("policy", "reference")
    for which in ("chosen", "rejected")
)
ANSWERS = (
    _about("policy_log_probs", -5.0, 2.0),
    _about("reference_log_probs", -5.0, 2.0),
    Argument(
        "desirable", lambda rng, leading, classes: rng.uniform(0.1, 0.9, size=(*leading, classes))
    ),
)
MEANS = (_below_0("chosen_log_probs"), _below_0("rejected_log_probs"))
# Some ratios are clipped, and none is near where it begins to be.
TOKENS = (
    Argument(
        "log_probs",
        lambda rng, leading, classes: (
            rng.choice([-1.0, -1.6], size=(*leading, classes))
            + rng.uniform(-0.02, 0.02, size=(*leading, classes))
        ),
    ),
    Argument(
        "old_log_probs",
        lambda rng, leading, classes: -1.05 + rng.uniform(-0.02, 0.02, size=(*leading, classes)),
    ),
    Argument(
        "advantages",
        lambda rng, leading, classes: (
            rng.choice([-1.0, 1.0], size=(*leading, classes))
            * rng.uniform(0.5, 1.5, size=(*leading, classes))
        ),
    ),
)


# --- inputs ---------------------------------------------------------------------------------------


def pairs(dtype: Any) -> Iterator[Family]:
    """Log-probabilities [rows] of chosen and rejected answers under policy and reference."""
    generator = np.random.default_rng(0)
    largest, smallest = _ends(dtype)
    base = -generator.uniform(20.0, 400.0, size=(4, 12))
    lead = np.repeat(np.array(OFFSETS), 2) * np.tile([10.0, -10.0], len(OFFSETS))
    share = generator.uniform(0.1, 1.0, size=(4, 8))
    sign = np.array([1.0, -1.0, -1.0, 1.0])[:, None]
    families: dict[str, Any] = {
        **{f"scale {scale:g}": scale * generator.normal(size=(4, 8)) for scale in SCALES},
        "sequences": base,
        "a policy near its reference": base[[0, 1, 0, 1]] + 0.1 * generator.normal(size=(4, 12)),
        "a policy nearer": base[[0, 1, 0, 1]] + 1e-3 * generator.normal(size=(4, 12)),
        "a policy that is its reference": base[[0, 1, 0, 1]],
        "leads": (-300.0 + lead, -300.0, -200.5, -200.25),
        "leads of long answers": (-3000.0 + lead, -3000.5, -2500.5, -2500.25),
        "tiny": 10.0 ** -generator.uniform(2.0, 20.0, size=(4, 8)),
        "huge": -largest * share,
        "huge, all one way": -largest * share * sign,
        "huge and ordinary": (-largest * share[0], -1.0, -2.0, -3.0),
        "subnormal": -smallest * share,
        "impossible under the policy": ([-np.inf], -1.0, -2.0, -3.0),
        "impossible when rejected": (-1.0, [-np.inf, -2.0], -2.0, [-1.0, -2.0]),
        "impossible under the reference": (-1.0, -2.0, [-np.inf, -1.0], [-3.0, -np.inf]),
    }
    for name, arrays in families.items():
        yield one_shape(name, tuple(arrays), dtype)


def finite_pairs(dtype: Any) -> Iterator[Family]:
    """Those without infinite losses, for a loss that may have either sign: their sum is NaN."""
    return (f for f in pairs(dtype) if "impossible" not in f.name and "huge" not in f.name)


def answers(dtype: Any) -> Iterator[Family]:
    """Log-probabilities under policy and reference, each of answers good, bad and in between."""
    for family in pairs(dtype):
        policy, _, reference, _ = family.arrays
        with np.errstate(invalid="ignore"):
            exists = np.isfinite(policy) | np.isfinite(reference)
        chances = np.resize([1.0, 0.0, 0.3], policy.shape).astype(dtype)
        yield Family(family.name, tuple(a[exists] for a in (policy, reference, chances)))


def means(dtype: Any) -> Iterator[Family]:
    """Mean log-probabilities per token of chosen and rejected answers, of any size."""
    for family in pairs(dtype):
        chosen, rejected, _, _ = family.arrays
        yield Family(family.name, (chosen, rejected))
    generator = np.random.default_rng(1)
    ordinary = np.repeat(np.array(OFFSETS), 2) * np.tile([1.0, -1.0], len(OFFSETS))
    yield one_shape("leads", (-90.0 + ordinary, -90.3), dtype)
    yield one_shape("any", tuple(-generator.exponential(size=(2, 20))), dtype)


def log_probabilities(dtype: Any) -> Iterator[Family]:
    """Those of them that are below 0, and certain answers that are chosen."""
    for family in means(dtype):
        yield from _uncertain(
            family.name, tuple(-abs(a.astype(np.float64)) for a in family.arrays), dtype
        )
    generator = np.random.default_rng(2)
    small = -(10.0 ** -generator.uniform(0.0, 25.0, size=(2, 20)))
    half = np.log(0.5) + 1e-3 * generator.normal(size=(2, 8))
    families = {
        "nearly certain": small,
        "nearly certain when chosen": (small[0], -1.0),
        "nearly certain when rejected": (-1.0, small[1]),
        "even odds": half,
        "certain": (0.0, [-1.0, -1e-3, -80.0]),
        "unlikely": -generator.uniform(80.0, 110.0, size=(2, 12)),
        "unlikely when chosen": (-generator.uniform(80.0, 110.0, size=8), -0.5),
    }
    for name, arrays in families.items():
        yield from _uncertain(name, tuple(arrays), dtype)


def _uncertain(name: str, arrays: tuple[Any, ...], dtype: Any) -> Iterator[Family]:
    """Those of a family in which what is rejected is neither certain nor subnormal."""
    chosen, rejected = one_shape(name, arrays, dtype).arrays
    fits = (rejected < -_ends(dtype)[1]) & ((chosen == 0) | (chosen < -_ends(dtype)[1]))
    if fits.any():
        yield Family(name, (chosen[fits], rejected[fits]))


def tokens(dtype: Any) -> Iterator[Family]:
    """Log-probabilities of tokens under two policies, with advantages of either sign."""
    generator = np.random.default_rng(3)
    largest, smallest = _ends(dtype)
    advantages = generator.normal(size=12)
    old = -generator.uniform(0.1, 20.0, size=12)
    families = {
        **{
            f"apart by {scale:g}": (old + scale * generator.normal(size=12), old, advantages)
            for scale in (0.0, 1e-4, 0.01, 0.3, 3.0, 30.0)
        },
        "at the clips": (np.log([[0.8], [1.2], [3.0]]) * np.ones((3, 2)), 0.0, [1.0, -1.0]),
        "no advantage": (old, [[-0.5], [-30.0], [-3000.0]], 0.0),
        "no advantage, impossible before": (-1.0, -np.inf, [0.0, 1.0]),
        "impossible now": (-np.inf, -1.0, [1.0, -1.0]),
        "ratios that overflow": (-1.0, [-500.0, -largest], [[1.0], [1e-3]]),
        "huge advantages": (old, old + 0.1, largest * generator.uniform(-0.1, 0.1, size=12)),
        "tiny advantages": (old, old + 0.1, smallest * generator.uniform(3, 30, size=12)),
        "huge": (-largest * np.array([1.0, 0.5, 0.1]), -1.0, [[1.0], [-1.0]]),
    }
    for name, arrays in families.items():
        flat = tuple(map(np.ravel, np.broadcast_arrays(*arrays)))
        yield one_shape(name, flat, dtype)


def tokens_beside(reference: float) -> Callable[[Any], Iterator[Family]]:
    """The same, and log-probabilities as near to that of the reference as can be."""

    def inputs(dtype: Any) -> Iterator[Family]:
        # There the divergence would be infinite for one reason or another.
        yield from (f for f in tokens(dtype) if "impossible now" not in f.name)
        apart = 10.0 ** -np.arange(0.0, 9.0) * np.array([[1.0], [-1.0]])
        near = (reference + np.concatenate([apart.ravel(), [0.0, 1.5, -85.0]])).astype(dtype)
        old = np.full(near.shape, reference).astype(dtype)
        for advantage in (0.0, 1.0):
            yield Family("near the reference", (near, old, np.full(near.shape, advantage, dtype)))

    return inputs


def _ends(dtype: Any) -> tuple[float, float]:
    info = ml_dtypes.finfo(dtype)
    return float(info.max), float(info.smallest_normal)


# --- rows -----------------------------------------------------------------------------------------


def _orpo_hessian_scale(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    with mp.workdps(oracle.digits_for(*arrays)):
        rows = zip(*map(oracle.exact, arrays), strict=True)
        scales = [orpo_hessian_scale(*row, **options) for row in rows]
    return np.array(scales, dtype=object)


def _ipo_hessian_scale(*arrays: np.ndarray) -> np.ndarray:
    """2 everywhere, but where the margin is infinite there are no differences to tell it by."""
    is_finite = np.all([np.isfinite(array) for array in arrays], axis=0)
    return np.where(is_finite, 2.0, np.inf)


def _clip_hessian_scale(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    """That of the slope: the second derivative of a ratio is the ratio."""
    truth = oracle.batch(policy_gradient_loss, *arrays, **options)
    return truth.gradient_scales[0]


def _other_clip_hessian(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    """The second derivative jumps where the slope does, between the same numbers."""
    truth = oracle.batch(policy_gradient_loss, *arrays, **options)
    assert truth.other_gradients is not None
    return truth.other_gradients[0]


def _divergence_hessian_scale(*arrays: np.ndarray) -> np.ndarray:
    """The same with the ratio of the reference, whose slope is 0 where they agree."""
    return _clip_hessian_scale(*arrays, **_WITH_DIVERGENCE) + _weighted_ratio(arrays[0])


def _other_divergence_hessian(*arrays: np.ndarray) -> np.ndarray:
    clip = _WITH_DIVERGENCE["clip"]
    return _other_clip_hessian(*arrays, clip=clip) + _weighted_ratio(arrays[0])


def _weighted_ratio(log_probs: np.ndarray) -> np.ndarray:
    apart = _WITH_DIVERGENCE["reference_log_probs"] - log_probs.astype(np.float64)
    with np.errstate(over="ignore"):
        return _WITH_DIVERGENCE["kl_weight"] * np.exp(apart)


_dpo = functools.partial(
    Case,
    jaxent.dpo_loss,
    PAIRS,
    dpo_loss,
    hard_inputs=pairs,
    value_ulps=SIGMOID_VALUE,
    gradient_ulps=SIGMOID_GRADIENT,
)
_kto = functools.partial(
    Case,
    jaxent.kto_loss,
    ANSWERS,
    kto_loss,
    answers,
    value_ulps=KTO_VALUE,
    gradient_ulps=KTO_GRADIENT,
)
_surrogate = functools.partial(
    Case,
    jaxent.policy_gradient_loss,
    TOKENS,
    policy_gradient_loss,
    hard_inputs=tokens,
    value_ulps=SURROGATE_VALUE,
    gradient_ulps=SURROGATE_GRADIENT,
    is_nonnegative=False,
    constants=("old_log_probs",),
)

CASES: tuple[Case, ...] = (
    _dpo(),
    _dpo(options={"beta": 0.3, "label_smoothing": 0.1}),
    _dpo(
        hard_inputs=finite_pairs,
        options={"variant": "robust", "label_smoothing": 0.1, "nll_weight": 0.3},
        is_nonnegative=False,
    ),
    _dpo(
        value_ulps=HINGE_VALUE,
        gradient_ulps=HINGE_GRADIENT,
        options={"variant": "hinge"},
    ),
    _dpo(
        value_ulps=IPO_VALUE,
        gradient_ulps=IPO_GRADIENT,
        options={"variant": "ipo"},
        hessian_scale=_ipo_hessian_scale,
    ),
    _kto(),
    _kto(options={"reference_point": 1.25, "desirable_weight": 1.33, "undesirable_weight": 0.7}),
    Case(
        jaxent.orpo_loss,
        MEANS,
        orpo_loss,
        log_probabilities,
        ORPO_VALUE,
        ORPO_GRADIENT,
        hessian_scale=_orpo_hessian_scale,
    ),
    Case(
        jaxent.simpo_loss,
        MEANS,
        simpo_loss,
        means,
        SIGMOID_VALUE,
        SIGMOID_GRADIENT,
    ),
    _surrogate(hessian_scale=_clip_hessian_scale, other_hessian=_other_clip_hessian),
    _surrogate(
        options=_DUAL,
        hessian_scale=functools.partial(_clip_hessian_scale, **_DUAL),
        other_hessian=functools.partial(_other_clip_hessian, **_DUAL),
    ),
    _surrogate(
        hard_inputs=tokens_beside(-1.5),
        options=_WITH_DIVERGENCE,
        hessian_scale=_divergence_hessian_scale,
        other_hessian=_other_divergence_hessian,
    ),
)
NOT_LOSSES: dict[str, str] = {}
