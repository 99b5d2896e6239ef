"""The contract rows of jaxent._preference, and inputs that break losses of log-probabilities."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import truth_preference
from contract_row import Argument, Row
from families import SCALES, Family
from mpmath import mp
from rows_regression import one_shape

import jaxent

# Worst error allowed, in units in the last place: of the quantity itself, except where it is a
# difference (a slope of smoothed or mixed labels, a surrogate with a divergence).
SIGMOID_VALUE, SIGMOID_GRADIENT = 4, 4
HINGE_VALUE, HINGE_GRADIENT = 1, 1
IPO_VALUE, IPO_GRADIENT = 2, 1
KTO_VALUE, KTO_GRADIENT = 4, 5
ORPO_VALUE, ORPO_GRADIENT = 4, 5
SURROGATE_VALUE, SURROGATE_GRADIENT = 4, 4

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


def _orpo_curvature_scale(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    with mp.workdps(oracle.digits_for(*arrays)):
        rows = zip(*map(oracle.exact, arrays), strict=True)
        scales = [truth_preference.orpo_curvature_scale(*row, **options) for row in rows]
    return np.array(scales, dtype=object)


def _ipo_curvature_scale(*arrays: np.ndarray) -> np.ndarray:
    """2 everywhere, but where the margin is infinite there are no differences to tell it by."""
    is_finite = np.all([np.isfinite(array) for array in arrays], axis=0)
    return np.where(is_finite, 2.0, np.inf)


def _clip_curvature_scale(*arrays: np.ndarray, **options: Any) -> np.ndarray:
    """That of the slope: the second derivative of a ratio is the ratio, and it jumps alike."""
    truth = oracle.batch(truth_preference.policy_gradient_loss, *arrays, **options)
    return truth.gradient_scales[0]


def _divergence_curvature_scale(*arrays: np.ndarray) -> np.ndarray:
    """The same with the ratio of the reference, whose slope is 0 where they agree."""
    apart = _WITH_DIVERGENCE["reference_log_probs"] - arrays[0].astype(np.float64)
    with np.errstate(over="ignore"):
        ratio = _WITH_DIVERGENCE["kl_weight"] * np.exp(apart)
    return _clip_curvature_scale(*arrays, **_WITH_DIVERGENCE) + ratio


_dpo = functools.partial(
    Row,
    jaxent.dpo_loss,
    PAIRS,
    truth_preference.dpo_loss,
    pairs,
    value_ulps=SIGMOID_VALUE,
    gradient_ulps=SIGMOID_GRADIENT,
)
_kto = functools.partial(
    Row,
    jaxent.kto_loss,
    ANSWERS,
    truth_preference.kto_loss,
    answers,
    value_ulps=KTO_VALUE,
    gradient_ulps=KTO_GRADIENT,
)
_surrogate = functools.partial(
    Row,
    jaxent.policy_gradient_loss,
    TOKENS,
    truth_preference.policy_gradient_loss,
    hard_inputs=tokens,
    value_ulps=SURROGATE_VALUE,
    gradient_ulps=SURROGATE_GRADIENT,
    is_nonnegative=False,
)

ROWS: tuple[Row, ...] = (
    _dpo(),
    _dpo(options={"beta": 0.3, "label_smoothing": 0.1}),
    _dpo(
        value_ulps=HINGE_VALUE,
        gradient_ulps=HINGE_GRADIENT,
        options={"variant": "hinge"},
    ),
    _dpo(
        value_ulps=IPO_VALUE,
        gradient_ulps=IPO_GRADIENT,
        options={"variant": "ipo"},
        curvature_scale=_ipo_curvature_scale,
    ),
    _kto(),
    _kto(options={"reference_point": 1.25, "desirable_weight": 1.33, "undesirable_weight": 0.7}),
    Row(
        jaxent.orpo_loss,
        MEANS,
        truth_preference.orpo_loss,
        log_probabilities,
        ORPO_VALUE,
        ORPO_GRADIENT,
        curvature_scale=_orpo_curvature_scale,
    ),
    Row(
        jaxent.simpo_loss,
        MEANS,
        truth_preference.simpo_loss,
        means,
        SIGMOID_VALUE,
        SIGMOID_GRADIENT,
    ),
    _surrogate(curvature_scale=_clip_curvature_scale),
    _surrogate(
        options={"clip": (0.2, 0.28), "dual_clip": 3.0},
        curvature_scale=functools.partial(_clip_curvature_scale, clip=(0.2, 0.28), dual_clip=3.0),
    ),
    _surrogate(
        hard_inputs=tokens_beside(-1.5),
        options=_WITH_DIVERGENCE,
        curvature_scale=_divergence_curvature_scale,
    ),
)
NOT_LOSSES: dict[str, str] = {}
