"""The truth of the losses of probabilities, from their definitions; see oracle.py.

A derivative that is infinite where the loss is finite, along a target of 0 that meets a
probability of 0, is given as 0.
"""

from collections.abc import Sequence

import mpmath
from mpmath import mpf
from oracle import Number, Truth


def binary_cross_entropy(p: Number, label: Number) -> Truth:
    """``-(y log p + (1-y) log(1-p))``; every scale is the quantity's own size."""
    value = _cost(label, p) + _cost(1 - label, 1 - p)
    if label in (0, 1):
        slope = 1 / (1 - p) if label == 0 else -1 / p
    else:
        slope = (p - label) / (p * (1 - p))
    label_slope = mpf(0) if p == label and p in (0, 1) else mpmath.log(1 - p) - mpmath.log(p)
    return Truth(value, (slope, label_slope), value, (slope, label_slope))


def categorical_cross_entropy(probs: Sequence[Number], labels: Sequence[Number]) -> Truth:
    """``-sum t_j log p_j``, with ``0 log 0 = 0``."""
    pairs = list(zip(probs, labels, strict=True))
    value = mpmath.fsum(_cost(target, p) for p, target in pairs)
    slopes = [-target / p if target else mpf(0) for p, target in pairs]
    label_slopes = [-mpmath.log(p) if p or target else mpf(0) for p, target in pairs]
    return Truth(value, (slopes, label_slopes), value, (slopes, label_slopes))


def negative_log_likelihood(log_probs: Sequence[Number], label: int) -> Truth:
    """``-log p_y``."""
    value = -log_probs[label]
    slopes = [mpf(-1) if index == label else mpf(0) for index in range(len(log_probs))]
    return Truth(value, (slopes,), value, (slopes,))


def brier_score(probs: Sequence[Number], labels: Sequence[Number]) -> Truth:
    """``sum (p_j - t_j)^2``."""
    errors = [p - target for p, target in zip(probs, labels, strict=True)]
    value = mpmath.fsum(error**2 for error in errors)
    slopes, label_slopes = [2 * error for error in errors], [-2 * error for error in errors]
    return Truth(value, (slopes, label_slopes), value, (slopes, label_slopes))


def _cost(target: Number, p: Number) -> Number:
    return -target * mpmath.log(p) if target else mpf(0)
