"""The cases of the losses of embeddings: references, hard inputs and bars.

Similarities are sums of rounded products, each off by an ulp of 1 or so. A loss and its slopes are
judged by what that does to them, besides by their own size: `value_scale` has the slope along every
similarity added to the value.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_dtypes
import mpmath
import numpy as np
import optax
from mpmath import mp, mpf

import jaxent
from conformance import oracle
from conformance.case import Argument, Arrays, Case, Hidden, WholeCase
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


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


def triplet_hessian_scale(degree: float, eps: float) -> Callable[..., np.ndarray]:
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


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place; what an ulp is of, the references say.
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


_batch = functools.partial(
    WholeCase, make=_make, hard_inputs=batches, hide=_hide, hide_all=_hide_all
)
_ntxent = functools.partial(
    _batch,
    jaxent.ntxent,
    truth=ntxent,
    value_ulps=NTXENT_VALUE,
    gradient_ulps=NTXENT_GRADIENT,
)
_circle = functools.partial(
    _batch,
    jaxent.circle_loss,
    truth=circle_loss,
    value_ulps=CIRCLE_VALUE,
    gradient_ulps=CIRCLE_GRADIENT,
    # Its weights are constants of the gradient, of which differences of gradients know nothing.
    has_curvature=False,
)

WHOLE_CASES = (
    _ntxent(peer=_optax_ntxent),
    _ntxent(options={"temperature": 0.01}),
    _batch(
        jaxent.supervised_contrastive_loss,
        truth=supervised_contrastive_loss,
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


def _triplet(degree: float, margin: float, eps: float, **keywords: Any) -> Case:
    given = {"norm_degree": degree, "margin": margin, "eps": eps}
    defaults = {"norm_degree": 2, "margin": 1.0, "eps": 1e-6}
    return Case(
        jaxent.triplet_margin_loss,
        (_point("anchors", 1.0), _point("positives", 3.0), _point("negatives", 1.0)),
        triplet_margin_loss,
        value_ulps=TRIPLET_VALUE,
        gradient_ulps=TRIPLET_GRADIENT,
        options={} if given == defaults else given,
        hessian_scale=triplet_hessian_scale(degree, eps),
        **keywords,
    )


CASES = (
    _triplet(2, 1.0, 1e-6, hard_inputs=triplets, peer=optax.losses.triplet_margin_loss),
    _triplet(2, 0.0, 0.0, hard_inputs=distinct_triplets),
    _triplet(3, 0.5, 0.0, hard_inputs=distinct_triplets),
    _triplet(1, 1.0, 1e-6, hard_inputs=distinct_triplets),
)
NOT_LOSSES: dict[str, str] = {}
