"""The truth of angles between vectors, from their definition; see oracle.py.

A slope is what one unit vector has perpendicular to another, over a length. Its entries are
differences of which no rounding of a unit vector may take part: an ulp of an entry is that of the
entry itself, or of the whole perpendicular part times the vector's own share in the entry. Angles
are resolved down to 2**-50: beneath, nothing is asked of their relative accuracy.
"""

from collections.abc import Sequence

import mpmath
import numpy as np
import oracle
from mpmath import mp, mpf
from oracle import Number, Truth

Numbers = Sequence[Number]

_LEAST_ANGLE = mpf(2) ** -50


def cosine_similarity(a: Numbers, b: Numbers, *, epsilon: float = 0.0) -> Truth:
    """``<a, b> / sqrt(max(|a|^2, e) max(|b|^2, e))``, and 0 where a length is 0."""
    over_a, over_b = _over(a, epsilon), _over(b, epsilon)
    products = [x * y * over_a * over_b for x, y in zip(a, b, strict=True)]
    slope, scale = _slope(a, b, epsilon)
    target_slope, target_scale = _slope(b, a, epsilon)
    return Truth(
        mpmath.fsum(products),
        (slope, target_slope),
        mpmath.fsum(map(abs, products)),
        (scale, target_scale),
    )


def cosine_distance(a: Numbers, b: Numbers, *, epsilon: float = 0.0) -> Truth:
    """``1 - cosine_similarity``; of its own scale, but for a difference to 1 beneath a floor."""
    similarity = cosine_similarity(a, b, epsilon=epsilon)
    value = 1 - similarity.value
    slopes = tuple([-slope for slope in slopes] for slopes in similarity.gradients)
    beneath = not (_is_free(a, epsilon) and _is_free(b, epsilon))
    scale = 1 + abs(similarity.value) if beneath else value + _LEAST_ANGLE**2
    return Truth(value, slopes, scale, similarity.gradient_scales)


def curvature_scale(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The absolute terms of ``-(q_j u_k + u_j q_k + c ([j=k] - u_j u_k)) / |a|^2``."""

    def scale(a: Numbers, b: Numbers) -> list[list[Number]]:
        over, size = _over(a, 0), range(len(a))
        u = [abs(x) * over for x in a]
        q = [abs(x) for x in _beside(a, b)]
        c = abs(mpmath.fsum(x * y for x, y in zip(a, b, strict=True))) * over * _over(b, 0)
        return [
            [(q[j] * u[k] + u[j] * q[k] + c * ((j == k) + u[j] * u[k])) * over**2 for k in size]
            for j in size
        ]

    with mp.workdps(oracle.digits_for(first, second)):
        rows = [scale(a, b) for a, b in zip(*map(oracle.exact, (first, second)), strict=True)]
        return np.array(rows, dtype=object)


def _slope(a: Numbers, b: Numbers, epsilon: float) -> tuple[list[Number], list[Number]]:
    """The gradient of the similarity along a, and its scale."""
    over_a, over_b = _over(a, epsilon), _over(b, epsilon)
    if not _is_free(a, epsilon):
        slope = [y * over_b * over_a for y in b]
        return slope, slope
    beside = _beside(a, b)
    share = over_b / _over(b, 0) if any(b) else mpf(0)
    sine = mpmath.sqrt(mpmath.fsum(x**2 for x in beside)) + _LEAST_ANGLE
    return (
        [q * share * over_a for q in beside],
        [
            (abs(q) + abs(x) * over_a * sine) * share * over_a
            for q, x in zip(beside, a, strict=True)
        ],
    )


def _beside(a: Numbers, b: Numbers) -> list[Number]:
    """What the unit vector of b has perpendicular to a."""
    over_a, over_b = _over(a, 0), _over(b, 0)
    cosine = mpmath.fsum(x * y for x, y in zip(a, b, strict=True)) * over_a * over_b
    return [y * over_b - cosine * x * over_a for x, y in zip(a, b, strict=True)]


def _over(x: Numbers, epsilon: float) -> Number:
    """1 over the length, or over the root of the floor; 0 for no length."""
    square = max(_square(x), mpf(epsilon))
    return 1 / mpmath.sqrt(square) if square else mpf(0)


def _is_free(x: Numbers, epsilon: float) -> bool:
    """Whether the length is above the floor."""
    square = _square(x)
    return square > 0 and square >= epsilon


def _square(x: Numbers) -> Number:
    return mpmath.fsum(entry**2 for entry in x)
