"""The contract rows of the losses of embeddings, and their hard inputs."""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax
import truth_embedding
from contract_row import Argument, Row
from contract_whole import Arrays, Hidden, Whole
from families import Family

import jaxent

# Worst error allowed, in units in the last place; what an ulp is of, truth_embedding says.
NTXENT_VALUE, NTXENT_GRADIENT = 2, 2
SUPERVISED_VALUE, SUPERVISED_GRADIENT = 2, 2
CIRCLE_VALUE, CIRCLE_GRADIENT = 4, 4
TRIPLET_VALUE, TRIPLET_GRADIENT = 8, 8


# --- batches of embeddings ------------------------------------------------------------------------


def batches(dtype: Any) -> Iterator[Family]:
    """Batches [1, 5, 3] with labels [1, 5]: any, alike, opposite, of no length, of any length."""
    generator = np.random.default_rng(12)
    largest = float(ml_dtypes.finfo(dtype).max)
    least = 100 * float(ml_dtypes.finfo(dtype).smallest_normal)
    groups = {
        "pairs": (0, 0, 1, 1, 2),
        "three": (4, 4, 4, -1, -1),
        "all alone": (0, 1, 2, 3, 4),
        "all together": (7, 7, 7, 7, 7),
    }

    def family(name: str, embeddings: np.ndarray, group: str = "pairs") -> Family:
        within = np.clip(embeddings, -largest, largest).astype(dtype)
        return Family(f"{name}, {group}", (within[None], np.array([groups[group]], np.int32)))

    def normal() -> np.ndarray:
        return generator.normal(size=(5, 3))

    one = generator.normal(size=(1, 3))
    member = np.array([[0], [0], [1], [1], [2]])
    for group in groups:
        yield family("any", normal(), group)
        yield family(
            "of other lengths", normal() * 10.0 ** np.array([[-2], [-1], [0], [1], [2]]), group
        )
        yield family("near each other", one + 0.1 * normal(), group)
        yield family("identical", np.repeat(one, 5, 0), group)
        yield family("some of no length", normal() * (np.arange(5) % 2)[:, None], group)
    yield family("as they should be", np.eye(3)[member[:, 0]] + 1e-3 * normal())
    yield family("exactly as they should be", np.eye(3)[member[:, 0]])
    yield family("as they should not be", np.eye(3)[[0, 1, 0, 1, 2]])
    yield family("opposite", one * np.array([[1], [-1], [1], [-1], [1]]))
    yield family("opposite to all others", one * np.array([[1], [1], [-1], [-1], [-2]]))
    yield family("none of any length", 0 * normal())
    share = generator.uniform(0.1, 1, (5, 3)) * generator.choice([-1, 1], (5, 3))
    yield family("huge", share * largest)
    # Not so far apart that an exponential is as tiny, which 1 / length would make large again.
    yield family("tiny", np.sign(one) * (1 + 0.3 * share) * least)
    mixed = np.array([[largest], [least], [1], [1], [1]])
    yield family("huge and tiny", np.sign(one) * (1 + 0.3 * share) / 2 * mixed)


def _make(generator: np.random.Generator) -> Arrays:
    return generator.normal(size=(5, 3)), np.array([3, 3, 0, 0, 3])


def _hide(generator: np.random.Generator, arguments: Arrays) -> Hidden:
    embeddings, labels = arguments
    where = np.arange(5) != generator.integers(5)
    return _hidden(embeddings, labels, where)


def _hide_all(arguments: Arrays) -> Hidden:
    embeddings, labels = arguments
    return _hidden(embeddings, labels, np.zeros(5, bool))


def _hidden(embeddings: np.ndarray, labels: np.ndarray, where: np.ndarray) -> Hidden:
    elements = np.broadcast_to(~where[:, None], embeddings.shape), ~where
    return Hidden((embeddings, labels), {"where": where}, elements)


def _optax_ntxent(*arguments: Any, **options: Any) -> jax.Array:
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return optax.losses.ntxent(*arguments, **options)


_batch = functools.partial(Whole, make=_make, hard_inputs=batches, hide=_hide, hide_all=_hide_all)
_ntxent = functools.partial(
    _batch,
    jaxent.ntxent,
    truth=truth_embedding.ntxent,
    value_ulps=NTXENT_VALUE,
    gradient_ulps=NTXENT_GRADIENT,
)
_circle = functools.partial(
    _batch,
    jaxent.circle_loss,
    truth=truth_embedding.circle_loss,
    value_ulps=CIRCLE_VALUE,
    gradient_ulps=CIRCLE_GRADIENT,
    # Its weights are constants of the gradient, of which differences of gradients know nothing.
    has_curvature=False,
)

WHOLES = (
    _ntxent(peer=_optax_ntxent),
    _ntxent(options={"temperature": 0.01}),
    _batch(
        jaxent.supervised_contrastive_loss,
        truth=truth_embedding.supervised_contrastive_loss,
        value_ulps=SUPERVISED_VALUE,
        gradient_ulps=SUPERVISED_GRADIENT,
    ),
    _circle(),
    _circle(options={"margin": 0.4, "gamma": 8.0}),
)


# --- triplets -------------------------------------------------------------------------------------


def triplets(dtype: Any, size: int) -> Iterator[Family]:
    """Three vectors [1, size] each: any, near each other, the same, and of any length."""
    yield from distinct_triplets(dtype, size)
    generator = np.random.default_rng([size, 14])
    a, p = generator.normal(size=(2, 1, size)).astype(dtype)
    yield Family("positive at anchor", (a, a, p))
    yield Family("negative at anchor", (a, p, a))
    yield Family("all the same", (a, a, a))


def distinct_triplets(dtype: Any, size: int) -> Iterator[Family]:
    """Those in which no feature of the anchor is that of another."""
    generator = np.random.default_rng([size, 13])
    info = ml_dtypes.finfo(dtype)
    largest, least = float(info.max), 100 * float(info.smallest_normal)

    def normal() -> np.ndarray:
        return generator.normal(size=(1, size))

    def family(name: str, *points: np.ndarray) -> Family:
        return Family(name, tuple(np.clip(x, -largest, largest).astype(dtype) for x in points))

    for scale in (1e-3, 0.1, 1.0, 10.0, 1e3):
        yield family(f"scale {scale:g}", *(scale * normal() for _ in range(3)))
        yield family(f"scale {scale:g}, positive far", normal(), scale * normal(), normal())
        yield family(f"scale {scale:g}, negative far", normal(), normal(), scale * normal())
    a, p, n = normal(), normal(), normal()
    for step in (0.1, 0.01):
        yield family(f"positive {step:g} from anchor", a, a + step * (p + np.sign(p)), n)
        yield family(f"negative {step:g} from anchor", a, p, a + step * (n + np.sign(n)))
    yield family("positive at negative", a, p, p)
    yield family("opposite", a, 4 * a, -a)
    yield family("no anchor", 0 * a, p, n)
    sign = np.sign(normal())
    share = generator.uniform(0.1, 1.0, size=(3, 1, size))
    yield family("huge", *(sign * share * largest))
    yield family("huge, far apart", sign * share[0] * largest, -sign * share[1] * largest, n)
    yield family("tiny", *(sign * share * least * np.array([[[1]], [[-3]], [[20]]])))
    yield family("tiny and huge", sign * share[0] * least, p, sign * share[2] * largest)


def _point(name: str, spread: float) -> Argument:
    # Nearly all positives are farther from their anchors than negatives: losses that are 0 show
    # little.
    return Argument(name, lambda rng, leading, size: spread * rng.normal(size=(*leading, size)))


def _triplet(degree: float, margin: float, eps: float, **keywords: Any) -> Row:
    given = {"norm_degree": degree, "margin": margin, "eps": eps}
    defaults = {"norm_degree": 2, "margin": 1.0, "eps": 1e-6}
    return Row(
        jaxent.triplet_margin_loss,
        (_point("anchors", 1.0), _point("positives", 3.0), _point("negatives", 1.0)),
        truth_embedding.triplet_margin_loss,
        value_ulps=TRIPLET_VALUE,
        gradient_ulps=TRIPLET_GRADIENT,
        options={} if given == defaults else given,
        curvature_scale=truth_embedding.triplet_curvature_scale(degree, eps),
        **keywords,
    )


ROWS = (
    _triplet(2, 1.0, 1e-6, hard_inputs=triplets, peer=optax.losses.triplet_margin_loss),
    _triplet(2, 0.0, 0.0, hard_inputs=distinct_triplets),
    _triplet(3, 0.5, 0.0, hard_inputs=distinct_triplets),
    _triplet(1, 1.0, 1e-6, hard_inputs=distinct_triplets),
)
NOT_LOSSES: dict[str, str] = {}
