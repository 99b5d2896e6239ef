"""The contract rows of the angles between vectors, and their hard inputs."""

import functools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import optax
import truth_similarity
from contract_row import Argument, Row
from families import Family

import jaxent

# Worst error allowed, in units in the last place; what an ulp is of, truth_similarity says.
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
    Row,
    arguments=(_vectors("predictions"), _vectors("targets")),
    hard_inputs=vector_pairs,
    value_ulps=VALUE,
    gradient_ulps=GRADIENT,
    curvature_scale=truth_similarity.curvature_scale,
)
_similarity = functools.partial(
    _row, jaxent.cosine_similarity, truth=truth_similarity.cosine_similarity, is_nonnegative=False
)
_distance = functools.partial(_row, jaxent.cosine_distance, truth=truth_similarity.cosine_distance)

ROWS = (
    _similarity(peer=optax.cosine_similarity),
    _distance(peer=optax.cosine_distance),
    _similarity(options={"epsilon": 2.0}),
    _distance(options={"epsilon": 2.0}),
)
NOT_LOSSES: dict[str, str] = {}
