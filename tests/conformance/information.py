"""The cases of the entropies and divergences of probabilities: references, hard inputs and bars.

A derivative that is infinite where the value is finite is given as 0, and so is one along a class
that neither of two distributions has. Outside its domain
nothing is defined: the second derivatives at the edge come out as NaN, which asks for nothing.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import optax.losses
from mpmath import mp, mpf

import jaxent
from conformance import oracle
from conformance.case import Argument, Case
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


Numbers = Sequence[Number]
Matrix = list[list[Number]]

_NAN, _INF = mpf("nan"), mpf("inf")


def _on_distributions(truth: Callable[..., Truth]) -> Callable[..., Truth]:
    """NaN where an entry is negative."""

    @functools.wraps(truth)
    def of(*arrays: Numbers, **options) -> Truth:
        if any(p < 0 for array in arrays for p in array):
            nothing = tuple([_NAN] * len(array) for array in arrays)
            return Truth(_NAN, nothing, _NAN, nothing)
        return truth(*arrays, **options)

    return of


def _truth(value, gradients, value_scale=None, gradient_scales=None, unit: Number = 1) -> Truth:
    """All in another unit; scales are by default the quantities themselves."""
    value_scale = value if value_scale is None else value_scale
    gradient_scales = gradients if gradient_scales is None else gradient_scales
    slopes, scales = (
        tuple([slope / unit for slope in array] for array in given)
        for given in (gradients, gradient_scales)
    )
    return Truth(value / unit, slopes, value_scale / unit, scales)


def _unit(base: float | None) -> Number:
    return mpf(1) if base is None else mpmath.log(mpf(base))


# --- entropies ------------------------------------------------------------------------------------


@_on_distributions
def entropy(probs: Numbers, base: float | None = None) -> Truth:
    """``-sum p log p``."""
    logs = [mpmath.log(p) if p else mpf(0) for p in probs]
    value = -mpmath.fsum(p * log for p, log in zip(probs, logs, strict=True))
    slopes = [-(1 + log) if p else mpf(0) for p, log in zip(probs, logs, strict=True)]
    scales = [1 + abs(log) if p else mpf(0) for p, log in zip(probs, logs, strict=True)]
    return _truth(value, (slopes,), gradient_scales=(scales,), unit=_unit(base))


def binary_entropy(p: Number, base: float | None = None) -> Truth:
    """``-p log p - (1-p) log(1-p)``; nothing is scaled."""
    if p < 0 or p > 1:
        return Truth(_NAN, (_NAN,), _NAN, (_NAN,))
    if p in (0, 1):
        return Truth(mpf(0), (mpf(0),), mpf(0), (mpf(0),))
    value = (-p * mpmath.log(p) - (1 - p) * mpmath.log(1 - p)) / _unit(base)
    slope = mpmath.log((1 - p) / p) / _unit(base)
    return Truth(value, (slope,), value, (slope,))


@_on_distributions
def tsallis_entropy(probs: Numbers, *, alpha: float) -> Truth:
    """``sum (p - p^alpha) / (alpha - 1)``."""
    order = mpf(alpha)
    logs = [_deformed_log(p, order - 1) for p in probs]
    terms = [-p * log if p else mpf(0) for p, log in zip(probs, logs, strict=True)]
    slopes = [-1 - order * log for log in logs]
    scales = [1 + order * abs(log) for log in logs]
    exists = [p > 0 or order > 1 for p in probs]
    slopes, scales = (_where(exists, s) for s in (slopes, scales))
    return _truth(mpmath.fsum(terms), (slopes,), gradient_scales=(scales,))


@_on_distributions
def renyi_entropy(probs: Numbers, *, alpha: float, base: float | None = None) -> Truth:
    """``log(sum p^alpha / sum p) / (1 - alpha)``."""
    order, total = mpf(alpha) - 1, mpmath.fsum(probs)
    if order:
        powers = mpmath.fsum(p ** mpf(alpha) for p in probs if p)
        value = -mpmath.log(powers / total) / order
    else:
        value = -mpmath.fsum(p * mpmath.log(p) for p in probs if p) / total
    above = value + mpmath.log(max(probs))
    slopes, scales = [], []
    for p in probs:
        if not p:
            slopes.append(1 / order / total if alpha > 1 else mpf(0))
            scales.append(slopes[-1])
            continue
        share, distance = mpmath.log(p / max(probs)), mpmath.log(p) + value
        excess = _expm1(order, distance)
        slopes.append(-(1 + alpha * excess) / total)
        # Near the mean the excess is a difference of logarithms.
        near = abs(order * distance) < 0.5
        parts = (abs(share) + above) * mpmath.exp(order * distance) if near else mpf(0)
        scales.append((1 + alpha * max(parts, abs(excess))) / total)
    return _truth(value, (slopes,), gradient_scales=(scales,), unit=_unit(base))


def entropy_hessian_scale(probs: np.ndarray, *, alpha: float) -> np.ndarray:
    """The absolute terms of the second derivatives of Renyi's entropy."""

    def scale(row: Numbers) -> Matrix:
        here = renyi_entropy(row, alpha=alpha)
        total, slopes = mpmath.fsum(row), here.gradient_scales[0]
        order = mpf(alpha) - 1
        tilts = [mpmath.exp(order * (mpmath.log(p) + here.value)) if p else mpf(0) for p in row]
        return [
            [
                (abs(s) + alpha * r * ((1 / p if p and j == k else 0) + abs(t))) / total
                for k, t in enumerate(slopes)
            ]
            for j, (p, r, s) in enumerate(zip(row, tilts, slopes, strict=True))
        ]

    return _each_row(scale, probs)


# --- Kullback-Leibler -----------------------------------------------------------------------------


@_on_distributions
def cross_entropy(targets: Numbers, predictions: Numbers, base: float | None = None) -> Truth:
    """``-sum t log q``."""
    costs = [-mpmath.log(q) if q else _INF for q in predictions]
    value = mpmath.fsum(t * cost for t, cost in _zip(targets, costs) if t)
    exists = [bool(t or q) for t, q in _zip(targets, predictions)]
    target_slopes = _where(exists, costs)
    slopes = [-(t / q if q else _INF) if t else mpf(0) for t, q in _zip(targets, predictions)]
    return _truth(value, (target_slopes, slopes), unit=_unit(base))


def _on_non_negative_targets(truth: Callable[..., Truth]) -> Callable[..., Truth]:
    """NaN where a target is negative."""

    @functools.wraps(truth)
    def of(log_predictions: Numbers, targets: Numbers) -> Truth:
        if any(t < 0 for t in targets):
            nothing = tuple([_NAN] * len(targets) for _ in range(2))
            return Truth(_NAN, nothing, _NAN, nothing)
        return truth(log_predictions, targets)

    return of


@_on_non_negative_targets
def kl_divergence(log_predictions: Numbers, targets: Numbers) -> Truth:
    """``sum t (log t - lp)``; 0 where it is below 0 by no more than roundings of the inputs."""
    pairs = _zip(log_predictions, targets)
    value = mpmath.fsum(t * (mpmath.log(t) - lp) for lp, t in pairs if t)
    scale = mpmath.fsum(t * (abs(mpmath.log(t)) + abs(lp)) for lp, t in pairs if t)
    slopes = [mpmath.log(t) - lp + 1 if t else mpf(0) for lp, t in pairs]
    scales = [abs(mpmath.log(t)) + abs(lp) + 1 if t else mpf(0) for lp, t in pairs]
    unlogged = [-t for _, t in pairs]
    size = scale + mpmath.fsum(t for _, t in pairs)
    value = _not_barely_negative(value, size, log_predictions, targets)
    return _truth(value, (unlogged, slopes), scale, (unlogged, scales))


def kl_divergence_with_log_targets(log_predictions: Numbers, log_targets: Numbers) -> Truth:
    """``sum t (lt - lp)``, each term with relative accuracy."""
    triples = [(lp, lt, mpmath.exp(lt)) for lp, lt in _zip(log_predictions, log_targets)]
    value = mpmath.fsum(t * (lt - lp) for lp, lt, t in triples if t)
    scale = mpmath.fsum(t * abs(lt - lp) for lp, lt, t in triples if t)
    slopes = [t * (lt - lp + 1) if t else mpf(0) for lp, lt, t in triples]
    scales = [t * (abs(lt - lp) + 1) if t else mpf(0) for lp, lt, t in triples]
    unlogged = [-t for *_, t in triples]
    size = mpmath.fsum(t * (1 + abs(lp) + abs(lt)) for lp, lt, t in triples if t)
    value = _not_barely_negative(value, size, log_predictions, log_targets)
    return _truth(value, (unlogged, slopes), scale, (unlogged, scales))


@_on_non_negative_targets
def generalized_kl_divergence(log_predictions: Numbers, targets: Numbers) -> Truth:
    """``sum t log(t/q) - t + q``, each term with relative accuracy.

    No better, though, than its log-prediction tells: by one rounding of that where it is small,
    and by one of the prediction itself elsewhere.
    """
    triples = [(lp, t, mpmath.exp(lp)) for lp, t in _zip(log_predictions, targets)]
    slopes = [mpmath.log(t) - lp if t else mpf(0) for lp, t, _ in triples]
    terms = [t * slope - t + q if t else q for (_, t, q), slope in _zip(triples, slopes)]
    surpluses = [q - t for _, t, q in triples]
    blurs = [min(abs(lp), mpf(1)) for lp, *_ in triples]
    scales = [
        (term + abs(surplus) * blur, abs(surplus) + q * blur, abs(slope) + blur)
        for term, surplus, slope, blur, (_, _, q) in zip(
            terms, surpluses, slopes, blurs, triples, strict=True
        )
    ]
    of_terms, of_surpluses, of_slopes = map(list, zip(*scales, strict=True))
    value, value_scale = mpmath.fsum(terms), mpmath.fsum(of_terms)
    return _truth(value, (surpluses, slopes), value_scale, (of_surpluses, of_slopes))


def _not_barely_negative(value: Number, size: Number, *arrays: Numbers) -> Number:
    """0 for what 8 roundings explain, in the dtype that the digits of the inputs tell."""
    bits = max((x.man.bit_length() for a in arrays for x in a if mpmath.isfinite(x)), default=1)
    precision = next((each for each in (8, 11, 24) if bits <= each), 53)
    return mpf(0) if -8 * mpf(2) ** (1 - precision) * size <= value < 0 else value


# --- Jensen-Shannon, Hellinger, total variation ---------------------------------------------------


@_on_distributions
def jensen_shannon_divergence(a: Numbers, b: Numbers, base: float | None = None) -> Truth:
    """The mean of ``sum a log(a/m)`` and ``sum b log(b/m)``; of distributions, at most log 2."""

    def gain(p: Number, q: Number) -> Number:
        return mpmath.log(2 * p / (p + q)) / 2 if p else mpf(0)

    value = mpmath.fsum(p * gain(p, q) + q * gain(q, p) for p, q in _zip(a, b))
    slopes = [gain(p, q) for p, q in _zip(a, b)], [gain(q, p) for p, q in _zip(a, b)]
    bound = mpmath.log(2)
    return _truth(value if value < bound else bound, slopes, unit=_unit(base))


@_on_distributions
def total_variation(a: Numbers, b: Numbers) -> Truth:
    """``sum |a - b| / 2``."""
    # The step of a difference is none: at the kink the slope is 0.
    differ = [abs(p - q) > mpf(10) ** -25 * p for p, q in _zip(a, b)]
    slopes = _where(differ, [mpmath.sign(p - q) / 2 for p, q in _zip(a, b)])
    value = mpmath.fsum(abs(p - q) for p, q in _zip(a, b)) / 2
    return _truth(value, (slopes, [-slope for slope in slopes]))


@_on_distributions
def hellinger(a: Numbers, b: Numbers) -> Truth:
    """``sqrt(sum (sqrt(a) - sqrt(b))^2 / 2)``."""
    value = mpmath.sqrt(sum((mpmath.sqrt(p) - mpmath.sqrt(q)) ** 2 for p, q in _zip(a, b)) / 2)

    def slope(p: Number, q: Number) -> Number:
        return (1 - mpmath.sqrt(q / p)) / (4 * value) if p and value else mpf(0)

    slopes = [slope(p, q) for p, q in _zip(a, b)], [slope(q, p) for p, q in _zip(a, b)]
    return _truth(value, slopes)


def hellinger_hessian_scale(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The two absolute terms of each second derivative, of which one is on the diagonal only."""

    def scale(a: Numbers, b: Numbers) -> Matrix:
        here = hellinger(a, b)
        if not here.value:
            return [[mpf(0)] * len(a) for _ in a]
        roots = [(mpmath.sqrt(p) - mpmath.sqrt(q)) / mpmath.sqrt(2) for p, q in _zip(a, b)]
        directions = [root / here.value for root in roots]
        steps = [1 / mpmath.sqrt(8 * p) if p else mpf(0) for p in a]
        rows = []
        for j, (p, slope) in enumerate(_zip(a, here.gradients[0])):
            row = []
            for k in range(len(a)):
                others = mpmath.fsum(d**2 for index, d in enumerate(directions) if index != j)
                turn = others if j == k else abs(directions[j] * directions[k])
                own = abs(slope) / (2 * p) if j == k and p else mpf(0)
                row.append(turn * steps[j] * steps[k] / here.value + own)
            rows.append(row)
        return rows

    return _each_row(scale, a, b)


# --- Renyi divergence, mutual information ---------------------------------------------------------


@_on_distributions
def renyi_divergence(a: Numbers, b: Numbers, *, alpha: float) -> Truth:
    """``log(sum a^alpha b^(1-alpha)) / (alpha - 1)`` of a and b over their totals."""
    order = mpf(alpha) - 1
    total_a, total_b = mpmath.fsum(a), mpmath.fsum(b)
    only_a = [p > 0 and not q for p, q in _zip(a, b)]
    only_b = [q > 0 and not p for p, q in _zip(a, b)]
    logs = [mpmath.log(p * total_b / (q * total_a)) if p and q else None for p, q in _zip(a, b)]
    disjoint = all(log is None for log in logs)
    if disjoint or (alpha >= 1 and any(only_a)):
        rising = [_INF if only and alpha >= 1 else mpf(0) for only in only_a]
        falling = [-_INF if only and alpha < 1 else mpf(0) for only in only_b]
        slopes = [up + down for up, down in _zip(rising, falling)]
        return _truth(_INF, (slopes, [-_INF if only else mpf(0) for only in only_a]))
    weighted = [(p / total_a, log) for p, log in _zip(a, logs) if log is not None]
    if order:
        log_mean = mpmath.log(mpmath.fsum(w * mpmath.exp(order * log) for w, log in weighted))
        value = log_mean / order
    else:
        log_mean, value = mpf(0), mpmath.fsum(w * log for w, log in weighted)

    def slope_a(index: int) -> tuple[Number, Number]:
        if (log := logs[index]) is not None:
            excess, scale = _excess(order, log, value)
            return alpha * excess / total_a, alpha * scale / total_a
        known = (only_a[index] and alpha < 1) or (only_b[index] and alpha > 1)
        constant = -alpha / order / total_a if known else mpf(0)
        return constant, constant

    def slope_b(index: int) -> tuple[Number, Number]:
        if (log := logs[index]) is not None:
            exponent = alpha * log - log_mean
            excess = mpmath.expm1(exponent)
            parts = (abs(alpha * log) + abs(log_mean)) * mpmath.exp(exponent)
            scale = parts if abs(exponent) < 0.5 else mpf(0)
            return -excess / total_b, max(scale, abs(excess)) / total_b
        constant = 1 / total_b if only_b[index] else mpf(0)
        return constant, constant

    pairs = [[of(index) for index in range(len(a))] for of in (slope_a, slope_b)]
    slopes, scales = (tuple([pair[i] for pair in column] for column in pairs) for i in (0, 1))
    return _truth(value, slopes, gradient_scales=scales)


def divergence_hessian_scale(a: np.ndarray, b: np.ndarray, *, alpha: float) -> np.ndarray:
    """The absolute terms of the second derivatives of Renyi's divergence."""

    def scale(a: Numbers, b: Numbers) -> Matrix:
        here = renyi_divergence(a, b, alpha=alpha)
        if not mpmath.isfinite(here.value):
            return [[mpf(0)] * len(a) for _ in a]
        total_a, total_b = mpmath.fsum(a), mpmath.fsum(b)
        order, slopes = mpf(alpha) - 1, here.gradient_scales[0]
        rows = []
        for j, (p, q, s) in enumerate(zip(a, b, slopes, strict=True)):
            tilt = mpf(0)
            if p and q:
                log = mpmath.log(p * total_b / (q * total_a))
                tilt = mpmath.exp(order * (log - here.value))
            moved = [
                abs((1 / p if p and j == k else 0) - 1 / total_a) + abs(t)
                for k, t in enumerate(slopes)
            ]
            rows.append([(alpha * tilt * move + abs(s)) / total_a for move in moved])
        return rows

    return _each_row(scale, a, b)


@_on_distributions
def mutual_information(cells: Numbers, *, rows: int, base: float | None = None) -> Truth:
    """``sum p log(p / (row * column))`` of the cells, row by row, over their total."""
    total, of_rows, of_columns = _margins(cells, rows)
    logs = [
        mpmath.log(n * total / (r * c)) if n else None
        for n, r, c in zip(cells, of_rows, of_columns, strict=True)
    ]
    value = mpmath.fsum(n * log for n, log in _zip(cells, logs) if log is not None) / total
    slopes = [mpf(0) if log is None else (log - value) / total for log in logs]
    scales = [mpf(0) if log is None else (abs(log) + value) / total for log in logs]
    return _truth(value, (slopes,), gradient_scales=(scales,), unit=_unit(base))


def information_hessian_scale(cells: np.ndarray, *, rows: int) -> np.ndarray:
    """The absolute terms of the second derivatives of the mutual information."""

    def scale(cells: Numbers) -> Matrix:
        slopes = mutual_information(cells, rows=rows).gradient_scales[0]
        total, of_rows, of_columns = _margins(cells, rows)
        width = len(cells) // rows

        def entry(j: int, k: int) -> Number:
            if not cells[j]:
                return mpf(0)
            in_row = abs((1 / cells[j] if j == k else 0) - 1 / of_rows[j])
            in_column = abs((1 / of_columns[j] if j % width == k % width else 0) - 1 / total)
            same_row = j // width == k // width
            return ((in_row if same_row else 0) + in_column + slopes[j] + slopes[k]) / total

        return [[entry(j, k) for k in range(len(cells))] for j in range(len(cells))]

    return _each_row(scale, cells)


# --- small parts ----------------------------------------------------------------------------------


def _margins(cells: Numbers, rows: int) -> tuple[Number, list[Number], list[Number]]:
    """The total, and for each cell the sums of its row and of its column."""
    width = len(cells) // rows
    of_rows = [mpmath.fsum(cells[row * width : (row + 1) * width]) for row in range(rows)]
    of_columns = [mpmath.fsum(cells[column::width]) for column in range(width)]
    indices = range(len(cells))
    return (
        mpmath.fsum(cells),
        [of_rows[index // width] for index in indices],
        [of_columns[index % width] for index in indices],
    )


def _deformed_log(p: Number, order: Number) -> Number:
    if not p:
        return -1 / order if order > 0 else mpf(0)
    return (p**order - 1) / order if order else mpmath.log(p)


def _expm1(order: Number, x: Number) -> Number:
    return mpmath.expm1(order * x) / order if order else x


def _excess(order: Number, log: Number, value: Number) -> tuple[Number, Number]:
    """``(exp(order (log - value)) - 1) / order`` and its scale, a difference where it is small."""
    excess, parts = _expm1(order, log - value), abs(log) + abs(value)
    if abs(order * (log - value)) < 0.5:
        parts *= mpmath.exp(order * (log - value))
        return excess, max(parts, abs(excess))
    return excess, abs(excess)


def _where(condition: Sequence[bool], numbers: Numbers) -> list[Number]:
    return [x if each else mpf(0) for each, x in zip(condition, numbers, strict=True)]


def _zip(a: Sequence, b: Sequence) -> list[tuple]:
    return list(zip(a, b, strict=True))


def _each_row(function: Callable[..., Matrix], *arrays: np.ndarray) -> np.ndarray:
    with mp.workdps(oracle.digits_for(*arrays)):
        columns = [oracle.exact(array) for array in arrays]
        return np.array([function(*row) for row in zip(*columns, strict=True)], dtype=object)


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place: of the sum of the absolute terms for the
# derivative of an entropy and for what KL is made of, of the quantity itself elsewhere.
ENTROPY_VALUE, ENTROPY_GRADIENT = 4, 4
BINARY_VALUE, BINARY_GRADIENT = 4, 4
RENYI_VALUE, RENYI_GRADIENT = 8, 8
TSALLIS_VALUE, TSALLIS_GRADIENT = 8, 8
CROSS_VALUE, CROSS_GRADIENT = 4, 4
KL_VALUE, KL_GRADIENT = 8, 4
GENERALIZED_VALUE, GENERALIZED_GRADIENT = 4, 4
SHANNON_VALUE, SHANNON_GRADIENT = 8, 4
VARIATION_VALUE, VARIATION_GRADIENT = 4, 0
HELLINGER_VALUE, HELLINGER_GRADIENT = 4, 8
DIVERGENCE_VALUE, DIVERGENCE_GRADIENT = 8, 8


def _ordinary(rng, leading, classes) -> np.ndarray:
    """Away from 0, where differences of slopes are no measure of a curvature."""
    return 0.5 * rng.dirichlet(np.ones(classes), size=leading) + 0.5 / classes


PROBS, PROBS_A, PROBS_B, TARGETS, PREDICTIONS = (
    Argument(name, _ordinary) for name in ("probs", "probs_a", "probs_b", "targets", "predictions")
)
LOG_PREDICTIONS, LOG_TARGETS = (
    Argument(name, lambda *given: np.log(_ordinary(*given)))
    for name in ("log_predictions", "log_targets")
)

# --- one distribution -----------------------------------------------------------------------------


def distributions(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Distributions [rows, classes] of every shape; entries below `least` are 0."""
    generator = np.random.default_rng([classes, 10])
    for name, probs in _shapes(generator, classes).items():
        probs = np.where(probs < least, 0.0, probs)
        yield Family(name, ((probs / probs.sum(-1, keepdims=True)).astype(dtype),))
    share = generator.uniform(0.1, 1.0, size=(2, classes))
    yield Family("not normalised", (share.astype(dtype),))
    small = max(least, 1e-30, float(ml_dtypes.finfo(dtype).smallest_normal))
    yield Family("all small", ((small * (1 + share)).astype(dtype),))
    yield Family("all certain", (np.ones((1, classes), dtype),))


def _shapes(generator, classes: int) -> dict[str, np.ndarray]:
    one_hot = (np.arange(classes) == generator.integers(classes)).astype(float)[None]
    sparse = generator.exponential(size=(2, classes)) * (generator.random((2, classes)) < 0.4)
    spread = 10.0 ** generator.uniform(-30, 0, size=(2, classes))
    return {
        **{
            f"Dirichlet {concentration:g}": generator.dirichlet(
                np.full(classes, concentration), size=2
            )
            for concentration in (0.02, 0.1, 1.0, 10.0, 1000.0)
        },
        "one-hot": one_hot,
        **{
            f"one-hot up to {rest:g}": (1 - rest) * one_hot + rest / classes
            for rest in (1e-2, 1e-6, 3e-7, 1e-12)
        },
        "uniform": np.full((1, classes), 1.0 / classes),
        "sparse": sparse + one_hot,
        "all magnitudes": spread + one_hot,
    }


def probabilities(dtype: Any) -> Iterator[Family]:
    """Probabilities [rows] from one end of [0, 1] to the other."""
    generator = np.random.default_rng(11)
    info = ml_dtypes.finfo(dtype)
    step, smallest = float(info.eps) / 2, float(info.smallest_normal)
    for name, probs in {
        "any": generator.random(60),
        "tiny": smallest * np.array([1, 3, 100]),
        "small": 10.0 ** -np.arange(1, 8),
        "nearly 1": 1 - step * np.array([1, 2, 3, 10, 50]),
        "around a half": 0.5 + step * np.arange(-8, 9),
        "near a half": 0.5 + 10.0 ** -np.arange(1, 7),
        "around the quarters": (
            np.array([[0.25], [0.75]]) + step * np.array([-4, -2, -1, 0, 2, 4])
        ).ravel(),
        "certain": np.array([0.0, 1.0]),
    }.items():
        yield Family(name, (probs.astype(dtype),))


def few_distributions(dtype: Any, classes: int) -> Iterator[Family]:
    """Two rows that between them hold the worst of it, for vocabularies of any size."""
    for name, (a, _) in _few_pairs(classes).items():
        yield Family(name, (a.astype(dtype),))


# --- two distributions ----------------------------------------------------------------------------

CHANGES = (0.1, 1e-3, 1e-6)


def pairs(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Pairs of distributions: far apart, alike, nearly alike, and with zeros in either or both."""
    generator = np.random.default_rng([classes, 12])
    shapes = {
        name: np.where(probs < least, 0.0, probs) / probs.sum(-1, keepdims=True)
        for name, probs in _shapes(generator, classes).items()
    }
    for (name, a), (other, b) in itertools.permutations(shapes.items(), 2):
        if generator.random() < 0.2:
            yield _pair(f"{name} and {other}", a[:1], b[:1], dtype)
    for name, a in shapes.items():
        yield _pair(f"{name}, equal", a, a, dtype)
        for change in CHANGES:
            b = a * (1 + change * generator.normal(size=a.shape).clip(-3, 3))
            b = b / b.sum(-1, keepdims=True)
            yield _pair(f"{name}, changed by {change:g}", a, b, dtype)
        yield _pair(f"{name}, its neighbour", a, _next(a, dtype), dtype)
    one_hot = np.eye(classes)[:1]
    near = (1 - 1e-6) * one_hot + 1e-6 / classes
    yield _pair("one-hot, unlike", one_hot, one_hot[:, ::-1], dtype)
    yield _pair("near one-hot, unlike", near, near[:, ::-1], dtype)
    here = np.arange(classes) % 2 == 0
    a, b = generator.dirichlet(np.ones(classes), size=(2, 1))
    half, other, rest = (
        np.where(side, x, 0.0) / x[:, side].sum() for side, x in ((here, a), (here, b), (~here, b))
    )
    yield _pair("disjoint", half, rest, dtype)
    yield _pair("zeros in the first", half, b, dtype)
    yield _pair("zeros in the second", a, rest, dtype)
    yield _pair("zeros in both", half, other, dtype)


def _pair(name: str, a: np.ndarray, b: np.ndarray, dtype: Any) -> Family:
    return Family(name, (a.astype(dtype), b.astype(dtype)))


def _next(a: np.ndarray, dtype: Any) -> np.ndarray:
    """Every other entry one step down."""
    a = a.astype(dtype)
    below = np.nextafter(a, np.array(0, dtype))
    is_normal = a.astype(np.float64) > 4 * float(ml_dtypes.finfo(dtype).smallest_normal)
    return np.where(is_normal & (np.arange(a.shape[-1]) % 2 == 0), below, a)


def finite_pairs(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Pairs of which the second has no zero where the first has none."""
    for name, (a, b) in pairs(dtype, classes, least):
        if not np.any((a > 0) & (b == 0)):
            yield Family(name, (a, b))


def log_pairs(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Log-predictions and targets, some of them not normalised."""
    for name, (a, b) in pairs(np.float64, classes, least):
        with np.errstate(divide="ignore"):
            yield Family(name, (np.log(b).astype(dtype), a.astype(dtype)))
    generator = np.random.default_rng([classes, 13])
    log_p, targets = np.abs(generator.normal(size=(2, 3, classes)))
    yield Family("not normalised", (-log_p.astype(dtype), targets.astype(dtype)))


def measures(dtype: Any, classes: int) -> Iterator[Family]:
    """Log-predictions and targets again, and such of every size that are near each other or far."""
    # Differences of smaller ones are subnormal.
    yield from log_pairs(dtype, classes, least=1e-30)
    generator = np.random.default_rng([classes, 14])
    most = float(ml_dtypes.finfo(dtype).max)
    for size in (0.0, 0.3, 1.0, -1.0, -7.0, 8.0, 0.9 * math.log(most), -0.9 * math.log(most)):
        log_p = (size + 0.1 * generator.normal(size=(1, classes))).astype(dtype)
        exact = np.exp(log_p.astype(np.float64))
        for change in (0.0, 1e-6, 1e-3, 0.3, 1.0, 1.1, 4.0):
            targets = exact * np.exp(change * generator.choice([-1.0, 1.0], size=classes))
            within = targets.clip(max=most).astype(dtype)
            yield Family(f"size {size:.3g}, {change:g} off", (log_p, within))
    wide = 40.0 * generator.normal(size=(2, classes)).clip(-2, 2)
    some = np.where(generator.random((2, classes)) < 0.5, 0.0, np.exp(wide[::-1]))
    if dtype != np.float16:
        yield Family("all magnitudes", (wide.astype(dtype), some.astype(dtype)))
    none = np.zeros((1, classes))
    yield Family("no target", (wide[:1].clip(max=5.0).astype(dtype), none.astype(dtype)))


def logs_of_both(dtype: Any, classes: int) -> Iterator[Family]:
    """The same with the logarithms of the targets."""
    for name, (log_p, targets) in log_pairs(np.float64, classes):
        with np.errstate(divide="ignore"):
            log_targets = np.minimum(np.log(targets), 0.0)
            yield Family(name, (log_p.astype(dtype), log_targets.astype(dtype)))


def few_pairs(dtype: Any, classes: int) -> Iterator[Family]:
    """Two pairs for vocabularies of any size."""
    for name, (a, b) in _few_pairs(classes).items():
        yield _pair(name, a, b, dtype)


def _few_pairs(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Made of a thousand values, which spares the oracle most of its work."""
    generator = np.random.default_rng(classes)
    a = generator.choice(generator.exponential(size=1000), size=(1, classes))
    b = generator.choice(generator.exponential(size=1000), size=(1, classes))
    heavy = np.where(np.arange(classes) == 7, 1e6 * a.sum(), a)
    near = np.where(a > 1.0, a * 1.001, a)
    return {
        "far apart": (a / a.sum(), b / b.sum()),
        "nearly alike, one class heavy": (heavy / heavy.sum(), near / heavy.sum() + heavy * 0),
    }


# Powers of these have derivatives within the range of the dtype.
_moderate = functools.partial(distributions, least=1e-12)
_moderate_pairs = functools.partial(pairs, least=1e-12)


def _two(function, of, inputs, value, gradient, **rest) -> Case:
    return Case(function, (PROBS_A, PROBS_B), of, inputs, value, gradient, **rest)


def _of_order(alpha: float) -> tuple[Case, ...]:
    """The rows of everything that has an order."""
    options = {"alpha": alpha}
    return (
        Case(
            jaxent.renyi_entropy,
            (PROBS,),
            renyi_entropy,
            _moderate,
            RENYI_VALUE,
            RENYI_GRADIENT,
            options,
            hessian_scale=functools.partial(entropy_hessian_scale, alpha=alpha),
        ),
        Case(
            jaxent.tsallis_entropy,
            (PROBS,),
            tsallis_entropy,
            _moderate,
            TSALLIS_VALUE,
            TSALLIS_GRADIENT,
            options,
        ),
        Case(
            jaxent.renyi_divergence,
            (PROBS_A, PROBS_B),
            renyi_divergence,
            _moderate_pairs,
            DIVERGENCE_VALUE,
            DIVERGENCE_GRADIENT,
            options,
            hessian_scale=functools.partial(divergence_hessian_scale, alpha=alpha),
        ),
    )


CASES: tuple[Case, ...] = (
    Case(
        jaxent.entropy,
        (PROBS,),
        entropy,
        distributions,
        ENTROPY_VALUE,
        ENTROPY_GRADIENT,
        vocabulary_inputs=few_distributions,
    ),
    Case(
        jaxent.binary_entropy,
        (PROBS,),
        binary_entropy,
        probabilities,
        BINARY_VALUE,
        BINARY_GRADIENT,
    ),
    Case(
        jaxent.cross_entropy,
        (TARGETS, PREDICTIONS),
        cross_entropy,
        finite_pairs,
        CROSS_VALUE,
        CROSS_GRADIENT,
    ),
    Case(
        jaxent.kl_divergence,
        (LOG_PREDICTIONS, TARGETS),
        kl_divergence,
        log_pairs,
        KL_VALUE,
        KL_GRADIENT,
        peer=optax.losses.kl_divergence,
        is_nonnegative=False,
    ),
    Case(
        jaxent.kl_divergence_with_log_targets,
        (LOG_PREDICTIONS, LOG_TARGETS),
        kl_divergence_with_log_targets,
        logs_of_both,
        KL_VALUE,
        KL_GRADIENT,
        peer=optax.losses.kl_divergence_with_log_targets,
        is_nonnegative=False,
    ),
    Case(
        jaxent.generalized_kl_divergence,
        (LOG_PREDICTIONS, TARGETS),
        generalized_kl_divergence,
        measures,
        GENERALIZED_VALUE,
        GENERALIZED_GRADIENT,
        # Optax 0.2.6 has it under its old name, which now warns.
        peer=getattr(optax.losses, "generalized_kl_divergence", None),
    ),
    _two(
        jaxent.jensen_shannon_divergence,
        jensen_shannon_divergence,
        pairs,
        SHANNON_VALUE,
        SHANNON_GRADIENT,
        vocabulary_inputs=few_pairs,
    ),
    _two(
        jaxent.total_variation,
        total_variation,
        pairs,
        VARIATION_VALUE,
        VARIATION_GRADIENT,
    ),
    _two(
        jaxent.hellinger,
        hellinger,
        pairs,
        HELLINGER_VALUE,
        HELLINGER_GRADIENT,
        hessian_scale=hellinger_hessian_scale,
    ),
    *_of_order(0.5),
    *_of_order(2.0),
)
NOT_LOSSES = {
    "convex_kl_divergence": "losses/test_bregman.py",  # another name of generalized_kl_divergence
    **dict.fromkeys(
        ("mutual_information", "perplexity", "nats_to_bits", "bits_per_byte"),
        "losses/test_information.py",
    ),
}
