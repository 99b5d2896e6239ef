"""The truth of the losses of margins, from their definitions; see oracle.py.

Where linear pieces meet, the gradient is shared evenly among them. A second derivative does not
exist there: its scale is infinite.
"""

from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import oracle
from mpmath import mp, mpf
from oracle import Number, Truth

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
