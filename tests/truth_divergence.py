"""The truth of entropies and divergences from logits, from their definitions; see oracle.py.

The slopes here are of the form ``p_j (w_j - sum_i p_i w_i)``, a sum of differences to the other
classes. Their scale is the sum of the absolute terms: the class's own, ``p_j (1 - p_j) |w_j|``, and
those of the others, ``p_j p_i |w_i|``.
"""

from collections.abc import Sequence

import mpmath
import numpy as np
import oracle
from mpmath import mp, mpf
from oracle import Number, Truth, each

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


def softmax_entropy_curvature_scale(logits: np.ndarray) -> np.ndarray:
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


def softmax_jensen_shannon_curvature_scale(
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


def sigmoid_entropy_curvature_scale(logits: np.ndarray) -> np.ndarray:
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
