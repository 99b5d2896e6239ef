"""The cases of the losses of margins: references, hard inputs and bars.

Where linear pieces meet, the gradient is shared evenly among them. A second derivative does not
exist there: its scale is infinite.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import optax.losses
from mpmath import mp, mpf

import jaxent
from conformance import oracle
from conformance.case import CLASS, LOGITS, Argument, Case
from conformance.inputs import SCALES, Family, integer_labels
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


_INF = mpf("inf")


def _of_score(value: Number, slope: Number) -> Truth:
    return Truth(value, (slope,), value, (slope,))


def _ramp(gap: Number) -> tuple[Number, Number]:
    """``max(gap, 0)`` and its derivative."""
    return max(gap, mpf(0)), (1 + mpmath.sign(gap)) / 2


# --- one score ------------------------------------------------------------------------------------


def hinge_loss(score: Number, sign: int) -> Truth:
    value, slope = _ramp(1 - sign * score)
    return _of_score(value, -sign * slope)


def perceptron_loss(score: Number, sign: int) -> Truth:
    value, slope = _ramp(-sign * score)
    return _of_score(value, -sign * slope)


def sparsemax_loss(score: Number, label: int) -> Truth:
    """The loss of the two classes ``[0, x]``, whose difference is what counts."""
    sign = 1 - 2 * label
    behind = sign * score
    if behind >= 1:
        return _of_score(behind, mpf(sign))
    share = max(behind + 1, mpf(0)) / 2
    return _of_score(share**2, sign * share)


# --- classes --------------------------------------------------------------------------------------


def _of_classes(value: Number, slopes: list[Number], scales: list[Number] | None = None) -> Truth:
    return Truth(value, (slopes,), value, (slopes if scales is None else scales,))


def multiclass_hinge_loss(scores: Sequence[Number], label: int, margin: int = 1) -> Truth:
    """``max(0, max over the others of x_j + 1 - x_y)``."""
    others = [score for index, score in enumerate(scores) if index != label]
    best = max(others, default=-_INF)
    if best == -_INF:
        return _of_classes(mpf(0), [mpf(0)] * len(scores))
    gap = best + margin - scores[label]
    count = others.count(best)
    share = mpf(0) if gap < 0 else mpf(1) / (count if gap > 0 else count + 1)
    slopes = [share if score == best else mpf(0) for score in scores]
    slopes[label] = -count * share if scores[label] > -_INF else mpf(0)
    return _of_classes(max(gap, mpf(0)), slopes)


def multiclass_perceptron_loss(scores: Sequence[Number], label: int) -> Truth:
    """``max x_j - x_y``."""
    return multiclass_hinge_loss(scores, label, margin=0)


def sparsemax(scores: Sequence[Number]) -> tuple[list[Number], Number]:
    """The projection onto the distributions, and its threshold, from the sorted scores."""
    total, threshold = mpf(0), -_INF
    for count, score in enumerate(sorted(scores, reverse=True), 1):
        total += score
        if score == -_INF or 1 + count * score <= total:
            break
        threshold = (total - 1) / count
    return [max(score - threshold, mpf(0)) for score in scores], threshold


def multiclass_sparsemax_loss(scores: Sequence[Number], label: int) -> Truth:
    """``sum p_j x_j + (1 - sum p_j^2) / 2 - x_y`` with p the projection of x.

    What a class gets is a difference of a score and a threshold, which is as good as the total of
    those it is computed from, over their number.
    """
    p, threshold = sparsemax(scores)
    mean = mpmath.fsum(share * score for share, score in zip(p, scores, strict=True) if share)
    value = mean + (1 - mpmath.fsum(share**2 for share in p)) / 2 - scores[label]
    term = _term(p)
    slopes = list(p)
    scales = [
        share + term if x >= threshold else mpf(0) for share, x in zip(p, scores, strict=True)
    ]
    slopes[label] = p[label] - 1 if scores[label] > -_INF else mpf(0)
    scales[label] = slopes[label]
    return _of_classes(value, slopes, scales)


def _term(p: list[Number]) -> Number:
    """The mean of what all but a class with more than half have, and half of the others."""
    rest = 1 - max(p)
    count = sum(share > 0 for share in p)
    return (rest if rest < mpf(1) / 2 else mpf(1)) / count


# --- second derivatives ---------------------------------------------------------------------------


def sign_jumps(margin: float) -> Callable[..., np.ndarray]:
    def scale(scores: np.ndarray, signs: np.ndarray) -> np.ndarray:
        return np.where(signs * scores.astype(np.float64) == margin, np.inf, 1.0)

    return scale


def binary_sparsemax_jumps(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    del labels
    return np.where(np.abs(scores.astype(np.float64)) == 1.0, np.inf, 1.0)


def class_jumps(margin: int) -> Callable[..., np.ndarray]:
    def jumps(scores: Sequence[Number], label: int) -> bool:
        others = [score for index, score in enumerate(scores) if index != label]
        best = max(others)
        return others.count(best) > 1 or best + margin == scores[label]

    return _scale(jumps)


def _sparsemax_jumps(scores: Sequence[Number], label: int) -> bool:
    del label
    p, threshold = sparsemax(scores)
    slack = mpf(10) ** -6 * _term(p)
    return any(abs(score - threshold) <= slack for score in scores)


def _scale(jumps: Callable[[Sequence[Number], int], bool]) -> Callable[..., np.ndarray]:
    """1 for each second derivative of a row, and infinite where it jumps."""

    def scale(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with mp.workdps(oracle.digits_for(scores)):
            rows = zip(oracle.exact(scores), labels.tolist(), strict=True)
            sizes = np.array([np.inf if jumps(row, label) else 1.0 for row, label in rows])
        classes = scores.shape[-1]
        return np.broadcast_to(sizes[:, None, None], (len(sizes), classes, classes))

    return scale


sparsemax_jumps = _scale(_sparsemax_jumps)


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place. A hinge rounds once and its slope is exact, but
# for what several classes share. What sparsemax gives to a class is a difference; see its truth.
HINGE_VALUE, HINGE_GRADIENT = 0.51, 0
CLASS_HINGE_VALUE, CLASS_HINGE_GRADIENT = 1, 1
SPARSEMAX_VALUE, SPARSEMAX_GRADIENT = 4, 4
BINARY_VALUE, BINARY_GRADIENT = 2, 1

OUTPUTS, BINARY_LOGITS, SCORES = (
    Argument(name, LOGITS.make) for name in ("predictor_outputs", "logits", "scores")
)
SIGNS = Argument(
    "targets", lambda rng, leading, classes: 2 * rng.integers(2, size=(*leading, classes)) - 1
)
YES_OR_NO = Argument(
    "labels", lambda rng, leading, classes: rng.integers(2, size=(*leading, classes))
)


# --- one score ------------------------------------------------------------------------------------


def _signed(marks: tuple[int, int]) -> Callable[[Any], Iterator[Family]]:
    """Scores [rows] of every size, at the margins and beside them, with each of two marks."""

    def inputs(dtype: Any) -> Iterator[Family]:
        generator = np.random.default_rng(20)
        info = ml_dtypes.finfo(dtype)
        step, largest = float(info.eps), float(info.max)
        powers = 10.0 ** -np.arange(1, 25)
        numbers = {
            **{f"scale {scale:g}": scale * generator.normal(size=20) for scale in SCALES},
            "beside 1": 1 + step * np.array([-8, -3, -2, -1, -0.5, 0, 1, 2, 3, 50]),
            "near 1": np.concatenate([1 - powers[:8], 1 + powers[:8]]),
            "near 0": powers,
            "zeros": np.array([0.0, -0.0]),
            "huge": largest * np.array([1.0, 0.3, 1e-3]),
            "smallest": float(info.smallest_normal) * np.array([1.0, 2.0, 100.0]),
        }
        for name, scores in numbers.items():
            both = np.concatenate([scores, -scores]).astype(dtype)
            for mark in marks:
                yield Family(f"{name}, {mark}", (both, np.full(len(both), mark, np.int32)))

    return inputs


# --- classes --------------------------------------------------------------------------------------


def races(dtype: Any, classes: int, rows: int = 1) -> Iterator[Family]:
    """Scores [rows, classes] with a true class [rows] each, about 1 ahead of others or behind."""
    yield from _ordinary_labels(dtype, classes, rows)
    generator = np.random.default_rng([classes, rows, 21])
    labels = generator.integers(classes, size=rows).astype(np.int32)
    at_label = np.arange(classes) == labels[:, None]
    spread = generator.uniform(size=(rows, classes))
    for offset in (0.0, 0.7, 300.0):
        for gap in (1.0, 1e-1, 1e-3, 1e-5, 1e-6, 1e-7, -1e-6, -1e-3):
            # The label is ahead of the best by 1, less the gap; others are behind by as much.
            behind = (gap - 1.0) - abs(gap) * np.where(spread < spread.max() * 0.9, spread, 0.0)
            scores = np.where(at_label, 0.0, behind) + offset
            yield _classes(f"ahead by 1 less {gap:g} at {offset:g}", scores, labels, dtype)
    for size in (1e-1, 1e-2, 1e-4, 1e-6):
        for offset in (0.0, 5.0):
            yield _classes(f"within {size:g} at {offset:g}", size * spread + offset, labels, dtype)
    falling = -np.broadcast_to(np.arange(classes) / 2.0, (rows, classes))
    yield _classes("half a step apart", falling, labels, dtype)
    yield _classes("a step apart", 2 * falling, labels, dtype)
    halves = 1.0 - 2.0 ** -np.arange(classes)
    yield _classes("ever closer", -np.broadcast_to(halves, (rows, classes)), labels, dtype)
    yield _classes("ever closer to 1", np.broadcast_to(halves, (rows, classes)), labels, dtype)
    two = np.where(generator.random((rows, classes)) < 0.5, 0.0, -0.5) + 1e-4 * spread
    yield _classes("two levels", two, labels, dtype)


def _ordinary_labels(dtype: Any, classes: int, rows: int) -> Iterator[Family]:
    """Without subnormal numbers: processors that take them for 0 cannot tell which is best."""
    for family in integer_labels(dtype, classes, rows):
        if family.name not in ("subnormal", "huge negative and tiny"):
            yield family


def _classes(name: str, scores: np.ndarray, labels: np.ndarray, dtype: Any) -> Family:
    return Family(name, (scores.astype(dtype), labels))


def few_races(dtype: Any, classes: int) -> Iterator[Family]:
    """Two rows for vocabularies of any size, made of a thousand values: one class ahead, or none.

    Most classes have a share where they are close to each other.
    """
    generator = np.random.default_rng(classes)
    values = generator.uniform(size=1000)
    close = 0.01 / classes * generator.choice(values, size=classes)
    far = generator.choice(6.0 * values, size=classes)
    ahead = np.where(np.arange(classes) == 7, 6.9, far)
    label = np.array([7], np.int32)
    yield _classes("all close", 1.0 + close[None], label, dtype)
    yield _classes("nearly 1 ahead", ahead[None], label, dtype)


def _leniently(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Optax mixes integers and floats, which strict dtype promotion forbids."""

    def peer(*arguments: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return loss(*map(jnp.asarray, arguments))

    return peer


_score_case = functools.partial(
    Case, value_ulps=HINGE_VALUE, gradient_ulps=HINGE_GRADIENT, hard_inputs=_signed((-1, 1))
)
_classes_case = functools.partial(
    Case,
    arguments=(SCORES, CLASS),
    hard_inputs=races,
    value_ulps=CLASS_HINGE_VALUE,
    gradient_ulps=CLASS_HINGE_GRADIENT,
    vocabulary_inputs=few_races,
)

CASES: tuple[Case, ...] = (
    _score_case(
        jaxent.hinge_loss,
        (OUTPUTS, SIGNS),
        hinge_loss,
        hessian_scale=sign_jumps(1.0),
        peer=_leniently(optax.losses.hinge_loss),
    ),
    _score_case(
        jaxent.perceptron_loss,
        (OUTPUTS, SIGNS),
        perceptron_loss,
        hessian_scale=sign_jumps(0.0),
        peer=_leniently(optax.losses.perceptron_loss),
    ),
    Case(
        jaxent.sparsemax_loss,
        (BINARY_LOGITS, YES_OR_NO),
        sparsemax_loss,
        _signed((0, 1)),
        BINARY_VALUE,
        BINARY_GRADIENT,
        hessian_scale=binary_sparsemax_jumps,
        peer=optax.losses.sparsemax_loss,
    ),
    _classes_case(
        jaxent.multiclass_hinge_loss,
        truth=multiclass_hinge_loss,
        hessian_scale=class_jumps(1),
        peer=optax.losses.multiclass_hinge_loss,
    ),
    _classes_case(
        jaxent.multiclass_perceptron_loss,
        truth=multiclass_perceptron_loss,
        hessian_scale=class_jumps(0),
        peer=optax.losses.multiclass_perceptron_loss,
    ),
    _classes_case(
        jaxent.multiclass_sparsemax_loss,
        truth=multiclass_sparsemax_loss,
        value_ulps=SPARSEMAX_VALUE,
        gradient_ulps=SPARSEMAX_GRADIENT,
        hessian_scale=sparsemax_jumps,
        peer=_leniently(optax.losses.multiclass_sparsemax_loss),
    ),
)
NOT_LOSSES = {"make_fenchel_young_loss": "losses/test_fenchel_young.py"}
