"""The truth of the variants of cross-entropy: their definitions, in as many digits as it takes."""

from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import oracle
from mpmath import mp, mpf
from oracle import Number, Truth

# --- focal losses of yes/no targets ---------------------------------------------------------------


def sigmoid_focal_loss(
    logit: Number, label: Number, *, alpha: float | None = None, gamma: float = 2.0
) -> Truth:
    """``alpha_t w^gamma c`` with ``w = (1-t) p + t (1-p)`` and c the cross-entropy."""
    parts = _focal_parts(logit, label, gamma)
    weight, cost, rates, yes_cost, no_cost, p_yes, p_no = parts
    share, share_slope = mpf(1), mpf(0)
    if alpha is not None:
        share, share_slope = alpha * label + (1 - mpf(alpha)) * (1 - label), 2 * mpf(alpha) - 1
    slope_terms = (
        (1 - label) * p_yes,
        -label * p_no,
        gamma * rates[0] * (1 - label) * cost,
        -gamma * rates[0] * label * cost,
    )
    label_terms = (-logit, gamma * rates[1] * p_no * cost, -gamma * rates[1] * p_yes * cost)
    label_sizes = (yes_cost, no_cost, *label_terms[1:])
    value = share * weight * cost
    gradients = (
        share * weight * mpmath.fsum(slope_terms),
        share * weight * mpmath.fsum(label_terms) + share_slope * weight * cost,
    )
    scales = (
        share * weight * _size(slope_terms),
        share * weight * _size(label_sizes) + weight * cost,
    )
    if alpha is None:
        scales = (scales[0], weight * _size(label_sizes))
    return Truth(value, gradients, value, scales)


def _focal_parts(logit: Number, label: Number, gamma: float) -> tuple:
    p_yes, p_no = 1 / (1 + mpmath.exp(-logit)), 1 / (1 + mpmath.exp(logit))
    yes_cost, no_cost = -mpmath.log(p_yes), -mpmath.log(p_no)
    wrong = (1 - label) * p_yes + label * p_no
    cost = label * yes_cost + (1 - label) * no_cost
    return wrong**gamma, cost, (p_yes * p_no / wrong, 1 / wrong), yes_cost, no_cost, p_yes, p_no


def sigmoid_focal_curvature_scale(
    logits: np.ndarray, labels: np.ndarray, *, alpha: float | None = None, gamma: float = 2.0
) -> np.ndarray:
    """The absolute terms of ``(w^gamma c)''``, by the product rule."""

    def scale(logit: Number, label: Number) -> Number:
        weight, cost, (rate, _), _, _, p_yes, p_no = _focal_parts(logit, label, gamma)
        slope = (1 - label) * p_yes + label * p_no  # w itself, and the size of c'
        share = 1 if alpha is None else alpha * label + (1 - mpf(alpha)) * (1 - label)
        rate *= abs(1 - 2 * label)
        bend = abs(rate) * (p_yes + p_no)
        return (
            share
            * weight
            * (
                p_yes * p_no
                + 2 * gamma * rate * slope
                + gamma * cost * (gamma * rate**2 + rate**2 + bend)
            )
        )

    with mp.workdps(oracle.digits_for(logits, labels)):
        pairs = zip(oracle.exact(logits), oracle.exact(labels), strict=True)
        return np.array([scale(*pair) for pair in pairs], dtype=object)


# --- functions of the cross-entropy against one class ---------------------------------------------


def softmax_focal_loss(logits: Sequence[Number], label: int, *, gamma: float = 2.0) -> Truth:
    """``(1 - p)^gamma (-log p)`` of the probability of the label."""
    return _of_label(logits, label, focal_of, gamma=gamma)


def generalized_cross_entropy(logits: Sequence[Number], label: int, *, q: float = 0.7) -> Truth:
    """``(1 - p^q) / q``."""
    return _of_label(logits, label, generalized_of, q=q)


def symmetric_cross_entropy(logits: Sequence[Number], label: int, **options: float) -> Truth:
    """``-alpha log p - beta log_zero (1 - p)``."""
    return _of_label(logits, label, symmetric_of, **options)


def focal_of(p: Number, gamma: float = 2.0) -> tuple[Number, Number, Number]:
    """The loss as a function of p, with F' and the absolute terms of F'' in ``L = -log p``."""
    if p == 0 or p == 1:
        return (mpf("inf"), mpf(1), mpf(0)) if p == 0 else (mpf(0), mpf(0), mpf(0))
    cost, wrong = -mpmath.log(p), 1 - p
    mean = cost * p / wrong
    bend = gamma * wrong ** (gamma - 1) * p * (2 + gamma * mean + cost / wrong)
    return wrong**gamma * cost, wrong**gamma * (1 + gamma * mean), bend


def generalized_of(p: Number, q: float = 0.7) -> tuple[Number, Number, Number]:
    order = mpf(q)
    return (1 - p**order) / order, p**order, order * p**order


def symmetric_of(
    p: Number, alpha: float = 0.1, beta: float = 1.0, log_zero: float = -4.0
) -> tuple[Number, Number, Number]:
    weight, reverse = mpf(alpha), -mpf(beta) * mpf(log_zero)
    cost = mpf("inf") if p == 0 else -mpmath.log(p)
    forward = weight * cost if weight else mpf(0)
    return forward + reverse * (1 - p), weight + reverse * p, reverse * p


def label_curvature_scale(kind: Callable[..., tuple]) -> Callable[..., np.ndarray]:
    """The absolute terms of the second derivatives of a function F of the cross-entropy L.

    They are F'' L_j L_k + F' L_jk, of which only F'' is a difference.
    """

    def scales(logits: np.ndarray, labels: np.ndarray, **options: float) -> np.ndarray:
        with mp.workdps(oracle.digits_for(logits)):
            rows = zip(oracle.exact(logits), labels.tolist(), strict=True)
            return np.array([scale(row, label, **options) for row, label in rows], dtype=object)

    def scale(logits: Sequence[Number], label: int, **options: float) -> list:
        probabilities = _softmax(logits)
        _, slope, bend = kind(probabilities[label], **options)
        lift = [1 - p if j == label else p for j, p in enumerate(probabilities)]
        if not probabilities[label]:
            lift[label] = mpf(0)
        return [
            [
                bend * a * b + slope * p * (1 - p if j == k else q)
                for k, (b, q) in enumerate(zip(lift, probabilities, strict=True))
            ]
            for j, (a, p) in enumerate(zip(lift, probabilities, strict=True))
        ]

    return scales


def _of_label(
    logits: Sequence[Number], label: int, kind: Callable[..., tuple], **options: float
) -> Truth:
    probabilities = _softmax(logits)
    value, slope, _ = kind(probabilities[label], **options)
    gradient = [slope * p for p in probabilities]
    # An impossible class stays one however its logit moves.
    is_possible = mpmath.isfinite(logits[label])
    gradient[label] = -slope * (1 - probabilities[label]) if is_possible else mpf(0)
    return Truth(value, (gradient,), value, (gradient,))


def _softmax(logits: Sequence[Number]) -> list[Number]:
    exponentials = [mpmath.exp(logit) for logit in logits]
    total = mpmath.fsum(exponentials)
    return [each / total for each in exponentials]


def _size(terms: Sequence[Number]) -> Number:
    return mpmath.fsum(map(abs, terms))


# --- the poly loss --------------------------------------------------------------------------------


def poly_loss_cross_entropy(
    logits: Sequence[Number], labels: Sequence[Number], *, epsilon: float = 2.0
) -> Truth:
    """``sum t (-log p + epsilon (1 - p))`` with ``0 * inf = 0``, for epsilon from -1 up."""
    probabilities = _softmax(logits)
    costs = [-mpmath.log(p) + epsilon * (1 - p) if p else mpf("inf") for p in probabilities]
    value = mpmath.fsum(t * cost for t, cost in zip(labels, costs, strict=True) if t)
    weights = [t * (1 + epsilon * p) for t, p in zip(labels, probabilities, strict=True)]
    total = mpmath.fsum(weights)
    gradient, scale = [], []
    for logit, weight, p in zip(logits, weights, probabilities, strict=True):
        up, down = (total - weight) * p, weight * (1 - p)
        is_possible = mpmath.isfinite(logit)
        gradient.append(up - down if is_possible else mpf(0))
        scale.append(up + down if is_possible else mpf(0))
    return Truth(value, (gradient, costs), value, (scale, costs))


def poly_curvature_scale(
    logits: np.ndarray, labels: np.ndarray, *, epsilon: float = 2.0
) -> np.ndarray:
    """The absolute terms of the derivatives of ``sum t_j (1 + epsilon p_j) (p_k - [j=k])``."""

    def scale(row: Sequence[Number], targets: Sequence[Number]) -> list:
        probabilities = _softmax(row)
        classes = range(len(row))
        lift = [[1 - p if j == k else p for k, p in enumerate(probabilities)] for j in classes]
        weights = [t * p for t, p in zip(targets, probabilities, strict=True)]
        total = mpmath.fsum(targets) + epsilon * mpmath.fsum(weights)
        return [
            [
                total * probabilities[k] * lift[k][m]
                + abs(epsilon) * mpmath.fsum(weights[j] * lift[j][k] * lift[j][m] for j in classes)
                for m in classes
            ]
            for k in classes
        ]

    with mp.workdps(oracle.digits_for(logits, labels)):
        rows = zip(oracle.exact(logits), oracle.exact(labels), strict=True)
        return np.array([scale(*row) for row in rows], dtype=object)


# --- classes in an order --------------------------------------------------------------------------


def ordinal_cross_entropy(logits: Sequence[Number], label: int) -> Truth:
    """``-log(sigmoid(high) - sigmoid(low))``.

    The difference is written as a product, ``sigmoid(high) sigmoid(-low) (1 - exp(low - high))``:
    at logits of 1e38 no number of digits would do.
    """
    gradient = [mpf(0)] * len(logits)
    cost, between = mpf(0), mpf(1)
    has_low, has_high = label > 0, label < len(logits)
    low = logits[label - 1] if has_low else -mpmath.inf
    high = logits[label] if has_high else mpmath.inf
    has_low, has_high = mpmath.isfinite(low), mpmath.isfinite(high)
    if has_low and has_high:
        between = -mpmath.expm1(low - high)
        cost -= mpmath.log(between)
    if has_low:
        cost += mpmath.log(1 + mpmath.exp(low))
        gradient[label - 1] = _rise(low) / (_rise(high) if has_high else 1) / between
    if has_high:
        cost += mpmath.log(1 + mpmath.exp(-high))
        gradient[label] = -_rise(-high) / (_rise(-low) if has_low else 1) / between
    return Truth(cost, (gradient,), cost, (gradient,))


def _rise(logit: Number) -> Number:
    return 1 / (1 + mpmath.exp(-logit))
