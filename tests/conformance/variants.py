"""The cases of the variants of cross-entropy: references, hard inputs and bars."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import optax
from mpmath import mp, mpf

import jaxent
from conformance import inputs, oracle
from conformance.case import CLASS, DISTRIBUTION, LOGITS, YES_OR_NO, Argument, Case
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


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


def sigmoid_focal_hessian_scale(
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


def label_hessian_scale(kind: Callable[..., tuple]) -> Callable[..., np.ndarray]:
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


def poly_hessian_scale(
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


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place; scaled where the truth is a difference.
FOCAL_VALUE, FOCAL_GRADIENT = 8, 10
LABEL_VALUE, LABEL_GRADIENT = 8, 10
POLY_VALUE, POLY_GRADIENT = 8, 8
ORDINAL_VALUE, ORDINAL_GRADIENT = 4, 8

# Far enough apart for differences of slopes to be a measure of the curvature.
CUTPOINTS = Argument(
    "logits",
    lambda rng, leading, classes: (
        np.cumsum(1 + rng.exponential(size=(*leading, classes)), -1) - classes / 2
    ),
)


def cutpoints(dtype: Any, num_cutpoints: int, rows: int = 2) -> Iterator[Family]:
    """Log-odds [rows, cutpoints] that do not decrease, and one of the classes between them."""
    generator = np.random.default_rng([num_cutpoints, 5])
    for name, logits, labels in _cutpoints(generator, num_cutpoints, rows, dtype):
        largest = float(ml_dtypes.finfo(dtype).max)
        is_finite = np.isfinite(logits)
        given = np.where(is_finite, np.clip(logits, -largest, largest), logits).astype(dtype)
        # A class without any room costs +inf.
        ends = np.full((len(given), 1), np.inf)
        edges = np.concatenate([-ends, given.astype(np.float64), ends], -1)
        at = np.arange(len(given))
        has_room = edges[at, labels] < edges[at, labels + 1]
        widest = np.nanargmax(np.diff(np.clip(edges, -1e300, 1e300), axis=-1), axis=-1)
        yield Family(name, (given, np.where(has_room, labels, widest).astype(np.int32)))


def _cutpoints(generator, num_cutpoints, rows, dtype) -> Iterator[tuple]:
    shape = (rows, num_cutpoints)
    info = ml_dtypes.finfo(dtype)

    def spread(scale=1.0):
        gaps = generator.exponential(size=shape)
        return scale * (np.cumsum(gaps, -1) - gaps.sum(-1, keepdims=True) * generator.random())

    def any_class():
        return generator.integers(num_cutpoints + 1, size=rows)

    def split(center, gap):
        """Cutpoints that lie around a gap, with the class whose gap it is."""
        labels = any_class()
        steps = np.arange(num_cutpoints) - labels[:, None] + 0.5
        edges = np.where(steps < 0, -0.5, 0.5)
        return center + gap * edges + 0.1 * min(gap, 1) * (steps - edges), labels

    for scale in inputs.SCALES:
        yield f"scale {scale:g}", spread(scale), any_class()
        logits = spread(scale)
        yield f"scale {scale:g}, likely", logits, (logits < 0).sum(-1)
    for margin in inputs.MARGINS:
        for offset in (0, 1, -3):
            yield f"sure by {margin} at {offset}", *split(offset, 2 * margin)
        for center in (margin, -margin):
            yield f"wrong by {center}", *split(center, 1)
            yield f"one end at {center}", *split(center, abs(center) + 3)
    for gap in (1e-1, 1e-3, 1e-6):
        for center in (0, 0.3, 10, -40, 300):
            yield f"apart by {gap:g} at {center}", *split(center, gap)
    for center in (0.7, -20, 300):
        logits, labels = split(center, 1)
        low = np.array(center, dtype)
        for row, label in zip(logits, labels, strict=True):
            if 0 < label < num_cutpoints:
                row[label - 1 : label + 1] = low, np.nextafter(low, np.array(np.inf, dtype))
        yield f"neighbours at {center}", np.sort(logits, -1), labels
    at = np.arange(num_cutpoints)
    yield "ties", np.round(spread()), any_class()
    yield "first impossible", np.where(at == 0, -np.inf, spread()), any_class()
    yield "last impossible", np.where(at == num_cutpoints - 1, np.inf, spread()), any_class()
    share = np.sort(generator.uniform(-1, 1, size=shape), -1)
    # Smaller gaps than the smallest normal number may be flushed to none.
    tiny = float(info.smallest_normal) * np.cumsum(1 + generator.exponential(size=shape), -1)
    for name, logits in (("huge", float(info.max) * share), ("tiny", tiny), ("minus tiny", -tiny)):
        yield name, np.sort(logits, -1), any_class()
        yield f"{name} and ordinary", np.sort(np.where(at % 2, logits, share), -1), any_class()
    yield "zeros", 0 * share, any_class()


def _focal(**options) -> Case:
    return Case(
        jaxent.sigmoid_focal_loss,
        (LOGITS, YES_OR_NO),
        sigmoid_focal_loss,
        inputs.binary_targets,
        FOCAL_VALUE,
        FOCAL_GRADIENT,
        options,
        functools.partial(optax.losses.sigmoid_focal_loss, **options),
        hessian_scale=functools.partial(sigmoid_focal_hessian_scale, **options),
    )


def _poly(**options) -> Case:
    return Case(
        jaxent.poly_loss_cross_entropy,
        (LOGITS, DISTRIBUTION),
        poly_loss_cross_entropy,
        inputs.soft_labels,
        POLY_VALUE,
        POLY_GRADIENT,
        options,
        functools.partial(optax.losses.poly_loss_cross_entropy, **options),
        hessian_scale=functools.partial(poly_hessian_scale, **options),
        vocabulary_inputs=inputs.few_soft_labels,
    )


def _label(function, truth, kind, **options) -> Case:
    scale = label_hessian_scale(kind)
    return Case(
        function,
        (LOGITS, CLASS),
        truth,
        inputs.integer_labels,
        LABEL_VALUE,
        LABEL_GRADIENT,
        options,
        hessian_scale=functools.partial(scale, **options),
    )


_softmax_focal = functools.partial(
    _label,
    jaxent.softmax_focal_loss,
    softmax_focal_loss,
    focal_of,
)
_generalized = functools.partial(
    _label,
    jaxent.generalized_cross_entropy,
    generalized_cross_entropy,
    generalized_of,
)
_symmetric = functools.partial(
    _label,
    jaxent.symmetric_cross_entropy,
    symmetric_cross_entropy,
    symmetric_of,
)

CASES = (
    _focal(gamma=0.5),
    _focal(gamma=2.0, alpha=0.25),
    # Over whole vocabularies this one speaks for all functions of the cross-entropy.
    _softmax_focal(gamma=2.0)._replace(vocabulary_inputs=inputs.few_integer_labels),
    _softmax_focal(gamma=0.5),
    _generalized(q=0.7),
    _generalized(q=1.0),
    _symmetric(),
    _poly(epsilon=2.0),
    _poly(epsilon=-1.0)._replace(vocabulary_inputs=None),
    Case(
        jaxent.ordinal_cross_entropy,
        (CUTPOINTS, CLASS),
        ordinal_cross_entropy,
        cutpoints,
        ORDINAL_VALUE,
        ORDINAL_GRADIENT,
        masks_classes=False,
        extra_classes=1,
    ),
)
NOT_LOSSES: dict[str, str] = {}
