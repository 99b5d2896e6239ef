"""The cases of the entropies and divergences of logits: references, hard inputs and bars.

The slopes here are of the form ``p_j (w_j - sum_i p_i w_i)``, a sum of differences to the other
classes. Their scale is the sum of the absolute terms: the class's own, ``p_j (1 - p_j) |w_j|``, and
those of the others, ``p_j p_i |w_i|``.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import ml_dtypes
import mpmath
import numpy as np
import optax
from mpmath import mp, mpf

import jaxent
from conformance import inputs, oracle
from conformance.case import LOGITS, Argument, Case
from conformance.inputs import Family
from conformance.oracle import Number, Truth, each

# --- references -----------------------------------------------------------------------------------


Numbers = Sequence[Number]

# A term of a second derivative that is too small for a float32 costs an entry 2**-126, however
# large that is; a few of them cost 16 units in the last place of this.
_FLUSHED = mpf(2) ** -104


def softmax_entropy(logits: Numbers) -> Truth:
    """``-sum p_j log p_j``, with ``0 log 0 = 0``."""
    p, normalizer = oracle.softmax(logits)
    surprise = each(lambda x: normalizer - x, logits)
    value = _mean(p, surprise)
    slope = each(lambda p, surprise: p and p * (surprise - value), p, surprise)
    return Truth(value, (slope,), value, (_scale(p, _distances(logits)),))


def softmax_entropy_hessian_scale(logits: np.ndarray) -> np.ndarray:
    """The absolute terms of the second derivatives: ``-C + [j=k] g_j - p_j g_k - g_j p_k``.

    C is the covariance of the classes and g the gradient.
    """

    def scale(row: Numbers) -> list[list[Number]]:
        p, _ = oracle.softmax(row)
        return _sum(_covariance(p), _bend(p, _scale(p, _distances(row))))

    return _each_row(scale, logits)


def softmax_kl_divergence(logits: Numbers, target_logits: Numbers) -> Truth:
    """``sum t_j log(t_j / p_j)``, with t the target's softmax and ``0 log 0 = 0``.

    Where it is infinite, the slope in the target is the limit as the impossible logits fall, and
    an impossible class has no slope in the logits.
    """
    p, _ = oracle.softmax(logits)
    t, _ = oracle.softmax(target_logits)
    ratios = each(_log_ratio, t, _log_softmax(target_logits), _log_softmax(logits))
    value = _mean(t, ratios)
    difference = each(lambda p, t: p - t, p, t)
    slope = each(lambda x, d: d if mpmath.isfinite(x) else mpf(0), logits, difference)
    own = each(lambda t, d: (1 - t) * abs(d), t, difference)
    total = mpmath.fsum(map(abs, difference))
    scale = each(lambda own, t, d: own + t * (total - abs(d)), own, t, difference)
    if mpmath.isinf(value):
        target_slope = each(lambda t, r: t and mpf("inf" if r == value else "-inf"), t, ratios)
        return Truth(value, (slope, target_slope), value, (scale, target_slope))
    centred = each(lambda r: r - value, ratios)
    target_slope = each(lambda t, c: t * c, t, centred)
    return Truth(value, (slope, target_slope), value, (scale, _scale(t, centred)))


def softmax_jensen_shannon(logits_a: Numbers, logits_b: Numbers, beta: float = 0.5) -> Truth:
    """``b sum p_j log(p_j / m_j) + (1-b) sum q_j log(q_j / m_j)``, with ``m = b p + (1-b) q``."""
    p, _ = oracle.softmax(logits_a)
    q, _ = oracle.softmax(logits_b)
    first = mpf(beta)
    pairs = ((p, _gains(p, q, first), first), (q, _gains(q, p, 1 - first), 1 - first))
    value = mpmath.fsum(share * _mean(weights, gains) for weights, gains, share in pairs)
    slopes = tuple(_share_of_covariance(weights, gains, share) for weights, gains, share in pairs)
    scales = tuple(
        [share * scale for scale in _scale(weights, gains)] for weights, gains, share in pairs
    )
    return Truth(value, slopes, value, scales)


def softmax_jensen_shannon_hessian_scale(
    logits_a: np.ndarray, logits_b: np.ndarray, beta: float = 0.5
) -> np.ndarray:
    """The absolute terms of ``P diag(h) P'`` with ``P = 1 - p 1'``, and of what bends the slope.

    Some are products of three small numbers, of which a processor may flush one.
    """

    def scale(a: Numbers, b: Numbers) -> list[list[Number]]:
        p, _ = oracle.softmax(a)
        q, _ = oracle.softmax(b)
        first, second = mpf(beta), 1 - mpf(beta)
        shared = [
            s and first * s * (second * t) / (first * s + second * t)
            for s, t in zip(p, q, strict=True)
        ]
        classes = range(len(p))
        maps = [[1 - p[j] if i == j else p[j] for i in classes] for j in classes]
        straight = [
            [mpmath.fsum(maps[j][i] * shared[i] * maps[k][i] for i in classes) for k in classes]
            for j in classes
        ]
        slope_scale = [first * scale for scale in _scale(p, _gains(p, q, first))]
        lost = [[_FLUSHED for _ in classes] for _ in classes]
        return _sum(lost, _sum(straight, _bend(p, slope_scale)))

    return _each_row(scale, logits_a, logits_b)


def sigmoid_entropy(logit: Number) -> Truth:
    """``-p log p - (1-p) log(1-p)``; every scale is the quantity's own size."""
    yes, no = _yes(logit), _yes(-logit)
    value = -(yes and yes * mpmath.log(yes)) - (no and no * mpmath.log(no))
    slope = yes and no and -logit * yes * no
    return Truth(value, (slope,), value, (slope,))


def sigmoid_entropy_hessian_scale(logits: np.ndarray) -> np.ndarray:
    """The absolute terms of ``-p (1-p) (1 - x tanh(x/2))``."""

    def scale(x: Number) -> Number:
        variance = _yes(x) * _yes(-x)
        return variance and variance * (1 + x * mpmath.tanh(x / 2))

    return _each_row(scale, logits)


def sigmoid_kl_divergence(logit: Number, target_logit: Number) -> Truth:
    """``t log(t / p) + (1-t) log((1-t) / (1-p))``; every scale is the quantity's own size."""
    p, t = _yes(logit), _yes(target_logit)
    not_p, not_t = _yes(-logit), _yes(-target_logit)
    value = _expected_log_ratio(t, p) + _expected_log_ratio(not_t, not_p)
    slope = p - t
    target_slope = t and not_t and t * not_t * (target_logit - logit)
    return Truth(value, (slope, target_slope), value, (slope, target_slope))


# --- small parts ----------------------------------------------------------------------------------


def _log_softmax(logits: Numbers) -> list[Number]:
    _, normalizer = oracle.softmax(logits)
    return each(lambda x: x - normalizer, logits)


def _log_ratio(p: Number, log_p: Number, log_q: Number) -> Number:
    return log_p - log_q if p else mpf(0)


def _gains(p: Numbers, q: Numbers, share: Number) -> list[Number]:
    """``log(p / m)``, m the mixture of p, with that share, and q; 0 where it has no weight."""
    return each(lambda p, q: mpmath.log(p / (share * p + (1 - share) * q)) if p else mpf(0), p, q)


def _mean(p: Numbers, w: Numbers) -> Number:
    return mpmath.fsum(each(lambda p, w: p and p * w, p, w))


def _share_of_covariance(p: Numbers, w: Numbers, share: Number) -> list[Number]:
    mean = _mean(p, w)
    return each(lambda p, w: p and share * p * (w - mean), p, w)


def _scale(p: Numbers, w: Numbers) -> list[Number]:
    """The absolute terms of ``p_j (w_j - sum_i p_i w_i)``."""
    total = _mean(p, each(abs, w))
    return each(lambda p, w: p and p * ((1 - p) * abs(w) + total - p * abs(w)), p, w)


def _distances(logits: Numbers) -> list[Number]:
    top = max(logits)
    return each(lambda x: top - x, logits)


def _covariance(p: Numbers) -> list[list[Number]]:
    pairs = list(enumerate(p))
    return [[s * (1 - s) if j == k else s * t for k, t in pairs] for j, s in pairs]


def _bend(p: Numbers, slope_scale: Numbers) -> list[list[Number]]:
    """The absolute terms of ``[j=k] g_j - p_j g_k - g_j p_k``."""
    pairs = list(enumerate(zip(p, slope_scale, strict=True)))
    return [
        [(g if j == k else 0) + abs(p) * h + g * abs(q) for k, (q, h) in pairs]
        for j, (p, g) in pairs
    ]


def _sum(a: Sequence[Numbers], b: Sequence[Numbers]) -> list[list[Number]]:
    return [[s + t for s, t in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]


def _each_row(function, *arrays: np.ndarray) -> np.ndarray:
    with mp.workdps(oracle.digits_for(*arrays)):
        columns = [oracle.exact(array) for array in arrays]
        return np.array([function(*row) for row in zip(*columns, strict=True)], dtype=object)


def _yes(logit: Number) -> Number:
    return 1 / (1 + mpmath.exp(-logit))


def _expected_log_ratio(t: Number, p: Number) -> Number:
    if not t:
        return mpf(0)
    return t * mpmath.log(t / p) if p else mpf("inf")


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place. The scale of a value is the value itself; that
# of a slope is the sum of the absolute terms it is made of.
ENTROPY_VALUE, ENTROPY_GRADIENT = 8, 8
KL_VALUE, KL_GRADIENT = 8, 8
JENSEN_SHANNON_VALUE, JENSEN_SHANNON_GRADIENT = 8, 16
SIGMOID_ENTROPY_VALUE, SIGMOID_ENTROPY_GRADIENT = 4, 4
SIGMOID_KL_VALUE, SIGMOID_KL_GRADIENT = 8, 8

PAIRS = ("equal", "shifted", "near 1e-6", "near 1e-3", "near 0.1", "unlike", "alike", "swapped")


# --- hard inputs ----------------------------------------------------------------------------------


def logit_pairs(dtype: Any, num_classes: int, rows: int = 1) -> Iterator[Family]:
    """Every family of logits beside others: the same, moved as a whole, near, and unlike.

    Both may be sure of one class to different degrees, or each of its own; an impossible class is
    so for both, except in the families that are about that.
    """
    generator = np.random.default_rng([num_classes, rows, 2])
    for family in inputs.integer_labels(dtype, num_classes, rows):
        logits, labels = family.arrays
        for kind in PAIRS if num_classes <= 16 else (PAIRS[generator.integers(len(PAIRS))],):
            others = _beside(kind, generator, logits.astype(np.float64), labels)
            yield Family(f"{kind}, {family.name}", (logits, _cut(others, dtype)))
    yield from _impossible_pairs(dtype, num_classes, generator, rows)


def few_logit_pairs(dtype: Any, num_classes: int) -> Iterator[Family]:
    """A handful of pairs for vocabularies of any size, with few distinct values."""
    generator = np.random.default_rng(num_classes)
    noise = generator.normal(size=7)
    few = inputs.few_logits_only(dtype, num_classes)
    for size, family in zip((1e-3, 0.1, 1.0), few, strict=True):
        (logits,) = family.arrays
        others = logits.astype(np.float64) + size * noise[np.arange(num_classes) % 7]
        yield Family(f"near {size:g}, {family.name}", (logits, _cut(others, dtype)))


def log_odds(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Logits [rows] of every size, infinite ones too."""
    for family in inputs.binary_targets(dtype, rows):
        if family.name.endswith("target 0"):
            yield Family(family.name, family.arrays[:1])
    sure = np.array([np.inf, -np.inf, 1.5, -1.6])
    yield Family("sure", (sure.astype(dtype),))


def log_odds_pairs(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Logits [rows] of every size beside others: the same, near, alike, unlike, and sure."""
    generator = np.random.default_rng([rows, 3])
    for family in log_odds(dtype, rows):
        (logits,) = family.arrays
        exact = logits.astype(np.float64)
        if family.name == "sure":
            continue
        noise = generator.normal(size=exact.shape)
        for kind, others in {
            "equal": exact,
            **{f"near {size:g}": exact + size * noise for size in (1e-6, 1e-3, 0.1, 1.0, 10.0)},
            "near in proportion": exact * (1 + 1e-3 * noise),
            "alike": exact / 2,
            "unlike": -exact,
            "unsure": 0.0 * exact,
            "a third": np.resize(10.0 * noise, exact.shape),
        }.items():
            yield Family(f"{kind}, {family.name}", (logits, _cut(others, dtype)))
    finite = np.array([-80.0, -1.0, 0.0, 3.0, 90.0])
    for sign in (1.0, -1.0):
        sure = np.full_like(finite, sign * np.inf)
        yield Family("sure of what may be", (sure.astype(dtype), finite.astype(dtype)))
        yield Family("may be what is sure", (finite.astype(dtype), sure.astype(dtype)))


def _beside(kind: str, generator, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    noise = generator.normal(size=logits.shape)
    with np.errstate(invalid="ignore"):
        match kind.split():
            case ["equal"]:
                return logits
            case ["shifted"]:
                return logits + generator.choice([0.5, 3.0, -300.0])
            case ["near", size]:
                return logits + float(size) * noise
            case ["unlike"]:
                return np.where(np.isneginf(logits), logits, 3.0 * noise)
            case ["alike"]:
                # As sure, and the more so of the same class.
                at_label = np.arange(logits.shape[-1]) == labels[:, None]
                ahead = generator.choice(inputs.MARGINS)
                return logits + np.where(at_label, ahead * (np.abs(logits) < 1e6), noise)
            case ["swapped"]:
                return np.where(np.isneginf(logits), logits, np.flip(logits, -1).clip(-3e38))
    raise ValueError(kind)


def _impossible_pairs(dtype, num_classes, generator, rows) -> Iterator[Family]:
    shape = (rows, num_classes)
    logits, others = 3 * generator.normal(size=(2, *shape))
    first, last = np.arange(num_classes) == 0, np.arange(num_classes) == num_classes - 1
    for name, a, b in (
        ("impossible, yet expected", np.where(first, -np.inf, logits), others),
        ("expected ahead by 40", np.where(first, -np.inf, logits), others + 40.0 * first),
        ("expected behind by 300", np.where(first, -np.inf, logits), others - 300.0 * first),
        ("possible, not expected", logits, np.where(first, -np.inf, others)),
        ("possible ahead by 40", logits + 40.0 * first, np.where(first, -np.inf, others)),
        ("possible behind by 40", logits - 40.0 * first, np.where(first, -np.inf, logits)),
        ("either impossible", np.where(first, -np.inf, logits), np.where(last, -np.inf, others)),
        ("only one expected", logits, np.where(first, others, -np.inf)),
        ("only one possible and expected", *[np.where(first, logits, -np.inf)] * 2),
        ("nothing in common", np.where(first, logits, -np.inf), np.where(first, -np.inf, others)),
    ):
        yield Family(name, (_cut(a, dtype), _cut(b, dtype)))


def _cut(logits: np.ndarray, dtype: Any) -> np.ndarray:
    """In the dtype asked for, within its range but for what is impossible."""
    largest = float(ml_dtypes.finfo(dtype).max)
    within = np.clip(logits, -largest, largest)
    return np.where(np.isneginf(logits), logits, within).astype(dtype)


# --- rows -----------------------------------------------------------------------------------------


def _logits(name: str) -> Argument:
    return LOGITS._replace(name=name)


def _optax_kl(logits, target_logits):
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(target_logits))


CASES = (
    Case(
        jaxent.softmax_entropy,
        (LOGITS,),
        softmax_entropy,
        inputs.logits_only,
        ENTROPY_VALUE,
        ENTROPY_GRADIENT,
        vocabulary_inputs=inputs.few_logits_only,
        hessian_scale=softmax_entropy_hessian_scale,
    ),
    Case(
        jaxent.softmax_kl_divergence,
        (LOGITS, _logits("target_logits")),
        softmax_kl_divergence,
        logit_pairs,
        KL_VALUE,
        KL_GRADIENT,
        peer=_optax_kl,
        vocabulary_inputs=few_logit_pairs,
    ),
    Case(
        jaxent.softmax_jensen_shannon,
        (_logits("logits_a"), _logits("logits_b")),
        softmax_jensen_shannon,
        logit_pairs,
        JENSEN_SHANNON_VALUE,
        JENSEN_SHANNON_GRADIENT,
        vocabulary_inputs=few_logit_pairs,
        hessian_scale=softmax_jensen_shannon_hessian_scale,
    ),
    Case(
        jaxent.sigmoid_entropy,
        (LOGITS,),
        sigmoid_entropy,
        log_odds,
        SIGMOID_ENTROPY_VALUE,
        SIGMOID_ENTROPY_GRADIENT,
        hessian_scale=sigmoid_entropy_hessian_scale,
    ),
    Case(
        jaxent.sigmoid_kl_divergence,
        (LOGITS, _logits("target_logits")),
        sigmoid_kl_divergence,
        log_odds_pairs,
        SIGMOID_KL_VALUE,
        SIGMOID_KL_GRADIENT,
    ),
)
NOT_LOSSES: dict[str, str] = {}
