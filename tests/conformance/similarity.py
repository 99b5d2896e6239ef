"""The cases of the similarities of vectors: references, hard inputs and bars.

A slope is what one unit vector has perpendicular to another, over a length. Its entries are
differences of which no rounding of a unit vector may take part: an ulp of an entry is that of the
entry itself, or of the whole perpendicular part times the vector's own share in the entry. Angles
are resolved down to 2**-50: beneath, nothing is asked of their relative accuracy.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import optax
from mpmath import mp, mpf

import jaxent
from conformance import oracle
from conformance.case import Argument, Case
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


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


def hessian_scale(first: np.ndarray, second: np.ndarray) -> np.ndarray:
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


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place; what an ulp is of, the references say.
VALUE, GRADIENT = 8, 8

FACTORS = (1.0, 3.0, -1.0, -0.7, 1000.0)


def vector_pairs(dtype: Any, size: int) -> Iterator[Family]:
    """Two vectors [1, size] each: any, nearly or exactly parallel, of no length, of any length."""
    generator = np.random.default_rng([size, 11])
    info = ml_dtypes.finfo(dtype)
    largest, smallest = float(info.max), float(info.smallest_normal)
    normal = functools.partial(generator.normal, size=(1, size))
    first = np.arange(size) == 0

    def family(name: str, a: np.ndarray, b: np.ndarray) -> Family:
        cut = (np.clip(x, -largest, largest).astype(dtype) for x in (a, b))
        return Family(name, tuple(cut))

    for scale in (1e-3, 0.3, 1.0, 30.0, 1e3):
        yield family(f"scale {scale:g}", scale * normal(), normal())
        yield family(f"scale {scale:g}, also of the other", normal(), scale * normal())
    for factor in FACTORS:
        for angle in (0.3, 1e-2, 1e-4, 1e-6):
            a = normal()
            yield family(f"{angle:g} from {factor:g} times", a, factor * (a + angle * normal()))
        a = normal().astype(dtype)
        b = np.nextafter(a, np.array(np.inf, dtype))
        yield Family(f"next to {factor:g} times", (a, (b * np.array(factor, dtype)).astype(dtype)))
        whole = np.round(8 * normal()) + first
        yield family(f"{factor:g} times whole numbers", whole, np.round(factor) * whole)
        yield family(f"{factor:g} times, one entry", 3.0 * first[None], factor * first[None])
        heavy = 1.3 * first + 1e-5 * normal()
        yield family(f"{factor:g} times, one heavy entry", heavy, factor * heavy + 1e-7 * normal())
    even = normal() * (np.arange(size) % 2 == 0)
    odd = normal() * (np.arange(size) % 2 == 1)
    yield family("no entry in common", even, odd)
    yield family("almost no entry in common", even + 1e-6 * odd, odd)
    yield family("all equal", np.full((1, size), 2.0), np.full((1, size), 0.3))
    for name, a, b in (
        ("no first", 0 * normal(), normal()),
        ("no second", normal(), 0 * normal()),
        ("none", 0 * normal(), 0 * normal()),
    ):
        yield family(name, a, b)
    share = generator.uniform(0.1, 1.0, size=(1, size)) * generator.choice([-1, 1], (1, size))
    tiny = 100 * smallest * (share + np.sign(share))
    for name, a, b in (
        ("huge", share * largest, normal()),
        ("both huge", share * largest, np.flip(share, 1) * largest),
        ("nearly parallel and huge", share * largest, share * largest * (1 + 1e-3 * normal())),
        ("tiny", tiny, normal()),
        ("huge and tiny", share * largest, tiny),
        ("tiny of the other", normal(), tiny),
        ("huge but for one", np.where(first, normal(), share * largest), normal()),
        ("tiny but for one", np.where(first, normal(), tiny), np.where(first, tiny, normal())),
    ):
        yield family(name, a, b)


def _vectors(name: str) -> Argument:
    return Argument(name, lambda rng, leading, size: 2 * rng.normal(size=(*leading, size)))


_row = functools.partial(
    Case,
    arguments=(_vectors("predictions"), _vectors("targets")),
    hard_inputs=vector_pairs,
    value_ulps=VALUE,
    gradient_ulps=GRADIENT,
    hessian_scale=hessian_scale,
)
_similarity = functools.partial(
    _row, jaxent.cosine_similarity, truth=cosine_similarity, is_nonnegative=False
)
_distance = functools.partial(_row, jaxent.cosine_distance, truth=cosine_distance)

CASES = (
    _similarity(peer=optax.cosine_similarity),
    _distance(peer=optax.cosine_distance),
    _similarity(options={"epsilon": 2.0}),
    _distance(options={"epsilon": 2.0}),
)
NOT_LOSSES: dict[str, str] = {}
