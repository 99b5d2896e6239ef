"""The truth of losses of embeddings, from their definitions; see oracle.py.

Similarities are sums of rounded products, each off by an ulp of 1 or so. A loss and its slopes are
judged by what that does to them, besides by their own size: `value_scale` has the slope along every
similarity added to the value.
"""

import functools
from collections.abc import Callable, Sequence

import mpmath
import numpy as np
import oracle
from mpmath import mp, mpf
from oracle import Number, Truth

Numbers = Sequence[Number]
Rows = Sequence[Numbers]
# The slope of a loss along a similarity, and its scale.
Pull = tuple[Number, Number]


def ntxent(embeddings: Rows, labels: Sequence[int], *, temperature: float = 0.07) -> Truth:
    """The mean over pairs i, j of a label of ``log(1 + sum_k exp((s_ik - s_ij) / t))``."""
    heat = mpf(temperature)

    def anchor(s: Numbers, alike: list[int], others: list[int]):
        value, pulls, mass = mpf(0), {}, {k: mpf(0) for k in others}
        for j in alike:
            terms = {k: mpmath.exp((s[k] - s[j]) / heat) for k in others}
            total = 1 + mpmath.fsum(terms.values())
            value += mpmath.log(total)
            pulls[j] = -(total - 1) / total / heat
            for k, term in terms.items():
                mass[k] += term / total / heat
        return value, {k: (pull, abs(pull) * (1 + 1 / heat)) for k, pull in (pulls | mass).items()}

    count = sum(labels.count(label) - 1 for label in labels)
    return _truth(embeddings, labels, anchor, 1 / mpf(max(count, 1)))


def supervised_contrastive_loss(
    embeddings: Rows, labels: Sequence[int], *, temperature: float = 0.1
) -> Truth:
    """The mean over j of ``log sum_k exp(s_ik / t) - s_ij / t``, summed over i."""
    heat = mpf(temperature)

    def anchor(s: Numbers, alike: list[int], others: list[int]):
        if not alike:
            return mpf(0), {}
        everyone = alike + others
        terms = {k: mpmath.exp(s[k] / heat) for k in everyone}
        total, share = mpmath.fsum(terms.values()), 1 / mpf(len(alike))
        value = mpmath.log(total) - share * mpmath.fsum(s[j] for j in alike) / heat
        pulls = {}
        for k in everyone:
            p, target = terms[k] / total, share if k in alike else mpf(0)
            size = (1 - target) * p + target * (1 - p)
            pulls[k] = (p - target) / heat, size / heat * (1 + 1 / heat)
        return value, pulls

    return _truth(embeddings, labels, anchor, mpf(1))


def circle_loss(
    embeddings: Rows, labels: Sequence[int], *, margin: float = 0.25, gamma: float = 256.0
) -> Truth:
    """``log(1 + sum_k exp(g a_k (s_ik - m)) sum_j exp(-g a_j (s_ij - 1 + m)))``, summed over i.

    The weights a are constants of the slopes.
    """
    m, g = mpf(margin), mpf(gamma)

    def anchor(s: Numbers, alike: list[int], others: list[int]):
        if not alike or not others:
            return mpf(0), {}
        ahead = {k: s[k] - m for k in others} | {j: 1 - m - s[j] for j in alike}
        weights = {k: max(s[k] + m, 0) for k in others} | {j: max(1 + m - s[j], 0) for j in alike}
        terms = {k: mpmath.exp(g * weights[k] * ahead[k]) for k in ahead}
        push, pull = (mpmath.fsum(terms[k] for k in group) for group in (others, alike))
        slope = push * pull / (1 + push * pull)
        # How far an ulp of every similarity moves the exponent, the sum of one of either group.
        steepest = mpmath.fsum(
            max(g * (weights[k] + abs(ahead[k])) for k in group) for group in (others, alike)
        )
        pulls = {}
        for k in ahead:
            share = slope * terms[k] / (push if k in others else pull) * g
            size = share * (weights[k] * (1 + steepest) + 1 + abs(ahead[k]))
            pulls[k] = (1 if k in others else -1) * share * weights[k], size
        return mpmath.log(1 + push * pull), pulls

    return _truth(embeddings, labels, anchor, mpf(1))


def _truth(embeddings: Rows, labels: Sequence[int], anchor: Callable, share: Number) -> Truth:
    """The sum over all anchors, and its slopes along the embeddings.

    Args:
        embeddings: one a row.
        labels: one for each.
        anchor: of its similarities to all, the others of its label and those of other
            labels: its loss, and for some of the others the slope along their similarity.
        share: what each loss counts.
    """
    lengths = [mpmath.sqrt(mpmath.fsum(x**2 for x in row)) for row in embeddings]
    units = [
        [x / (length or 1) for x in row] for row, length in zip(embeddings, lengths, strict=True)
    ]
    everyone = range(len(labels))
    s = [[_dot(units[i], units[j]) for j in everyone] for i in everyone]
    value, value_scale = mpf(0), mpf(0)
    slopes = [[mpf(0)] * len(row) for row in embeddings]
    scales = [[mpf(0)] * len(row) for row in embeddings]
    for i in everyone:
        alike = [j for j in everyone if j != i and labels[j] == labels[i]]
        others = [k for k in everyone if labels[k] != labels[i]]
        loss, pulls = anchor(s[i], alike, others)
        value += share * loss
        value_scale += share * (loss + mpmath.fsum(abs(pull) for pull, _ in pulls.values()))
        for j, (pull, size) in pulls.items():
            for own, other in ((i, j), (j, i)):
                over = 1 / lengths[own] if lengths[own] else mpf(0)
                for d, (u, v) in enumerate(zip(units[own], units[other], strict=True)):
                    slopes[own][d] += share * pull * (v - s[i][j] * u) * over
                    scales[own][d] += share * size * (abs(v) + abs(s[i][j] * u)) * over
    return Truth(value, (slopes,), value_scale, (scales,))


def _dot(x: Numbers, y: Numbers) -> Number:
    return mpmath.fsum(a * b for a, b in zip(x, y, strict=True))


# --- triplets -------------------------------------------------------------------------------------


def triplet_margin_loss(
    anchor: Numbers,
    positive: Numbers,
    negative: Numbers,
    *,
    norm_degree: float = 2,
    margin: float = 1.0,
    eps: float = 1e-6,
) -> Truth:
    """``max(d(a, p) - d(a, n) + m, 0)``, each distance an absolute term of its own."""
    measure = functools.partial(_distance, degree=mpf(norm_degree), eps=mpf(eps))
    (near, toward), (far, away) = measure(anchor, positive), measure(anchor, negative)
    excess = near - far + mpf(margin)
    counts = 1 if excess > 0 else 0
    slopes = [
        [counts * (p - n) for p, n in zip(toward, away, strict=True)],
        [-counts * p for p in toward],
        [counts * n for n in away],
    ]
    scale = [counts * (abs(p) + abs(n)) for p, n in zip(toward, away, strict=True)]
    return Truth(
        max(excess, 0), tuple(slopes), near + far + abs(mpf(margin)), (scale, slopes[1], slopes[2])
    )


def triplet_curvature_scale(degree: float, eps: float) -> Callable[..., np.ndarray]:
    """The absolute terms of ``(k-1) / d ([i=j] r_i**(k-2) - u_i u_j)`` of both distances."""

    def scale(anchors: np.ndarray, positives: np.ndarray, negatives: np.ndarray) -> np.ndarray:
        with mp.workdps(oracle.digits_for(anchors, positives, negatives)):
            columns = map(oracle.exact, (anchors, positives, negatives))
            rows = [_bends(*row) for row in zip(*columns, strict=True)]
        return np.array(rows, dtype=object)

    def _bends(a: Numbers, p: Numbers, n: Numbers) -> list[list[Number]]:
        size = range(len(a))
        total = [[mpf(0) for _ in size] for _ in size]
        for other in (p, n):
            d, slope = _distance(a, other, mpf(degree), mpf(eps))
            over = 1 / d if d else mpf(0)
            ratios = [abs(x - y) * over for x, y in zip(a, other, strict=True)]
            for i in size:
                for j in size:
                    bend = abs(slope[i] * slope[j])
                    if i == j and (ratios[i] or degree == 2):
                        bend += ratios[i] ** (mpf(degree) - 2)
                    total[i][j] += (mpf(degree) - 1) * bend * over
        return total

    return scale


def _distance(x: Numbers, y: Numbers, degree: Number, eps: Number) -> tuple[Number, list[Number]]:
    """The distance, and its slope along x; 0 where the distance is."""
    differences = [a - b for a, b in zip(x, y, strict=True)]
    distance = (mpmath.fsum(abs(z) ** degree for z in differences) + eps) ** (1 / degree)
    if not distance:
        return distance, [mpf(0) for _ in differences]
    return distance, [mpmath.sign(z) * (abs(z) / distance) ** (degree - 1) for z in differences]
