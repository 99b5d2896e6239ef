"""The cases of the losses of ranked lists: references, hard inputs and bars.

A call is several lists, and its loss the mean of theirs. A slope is a sum of what draws an item up
and what draws it down: an ulp of it is that of the sum of their absolute values.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import optax.losses
from mpmath import mpf

import jaxent
from conformance import oracle, softmax
from conformance.case import Arrays, Case, Hidden, WholeCase
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


Lists = Sequence[Sequence[Number]]


def ranking_softmax_loss(scores: Lists, labels: Lists) -> Truth:
    """The mean of ``-sum y log softmax(s)``."""
    return _mean(_softmax, scores, labels)


def pairwise_logistic_loss(scores: Lists, labels: Lists) -> Truth:
    """The mean of ``sum over y_i > y_j of log(1 + exp(s_j - s_i))``."""
    return _mean(_pairs, scores, labels)


def listmle_loss(scores: Lists, labels: Lists) -> Truth:
    """The mean of ``sum over k of log sum over l >= k of exp(s_l) - s_k``, by falling labels."""
    return _mean(_order, scores, labels)


def _softmax(scores: Sequence[Number], labels: Sequence[Number]) -> Truth:
    truth = softmax.softmax_cross_entropy(scores, labels)
    slope, by_label = truth.gradients
    # An item that is not there has no surprise.
    by_label = [g if mpmath.isfinite(g) else mpf(0) for g in by_label]
    scale, _ = truth.gradient_scales
    return Truth(truth.value, (slope, by_label), truth.value_scale, (scale, by_label))


def _pairs(scores: Sequence[Number], labels: Sequence[Number]) -> Truth:
    value, slope, scale = mpf(0), [mpf(0)] * len(scores), [mpf(0)] * len(scores)
    for i, j in ((i, j) for i, y in enumerate(labels) for j, z in enumerate(labels) if y > z):
        difference = scores[j] - scores[i] if scores[i] != scores[j] else mpf(0)
        odds = mpmath.exp(difference)
        value += mpmath.log(1 + odds) if mpmath.isfinite(odds) else difference
        moved = 1 / (1 + 1 / odds) if odds else mpf(0)
        for item, sign in ((i, -1), (j, 1)):
            if mpmath.isfinite(scores[item]):
                slope[item], scale[item] = slope[item] + sign * moved, scale[item] + moved
    nothing = [mpf(0)] * len(scores)
    return Truth(value, (slope, nothing), value, (scale, nothing))


def _order(scores: Sequence[Number], labels: Sequence[Number]) -> Truth:
    value, slope, scale = mpf(0), [mpf(0)] * len(scores), [mpf(0)] * len(scores)
    order = sorted(range(len(scores)), key=lambda i: -labels[i])
    for place, chosen in enumerate(order):
        left = order[place:]
        if all(scores[i] == -mpmath.inf for i in left):
            break
        p, normalizer = oracle.softmax([scores[i] for i in left])
        value += normalizer - scores[chosen]
        for i, share in zip(left, p, strict=True):
            if mpmath.isfinite(scores[i]):
                moved = share if i != chosen else share - 1
                slope[i], scale[i] = slope[i] + moved, scale[i] + abs(moved)
    nothing = [mpf(0)] * len(scores)
    return Truth(value, (slope, nothing), value, (scale, nothing))


def _mean(truth: Callable[..., Truth], scores: Lists, labels: Lists) -> Truth:
    every = [truth(*one) for one in zip(scores, labels, strict=True)]
    count = len(every)

    def mean(numbers) -> Number:
        return mpmath.fsum(numbers) / count

    def parts(gradients) -> tuple:
        return tuple(
            [[g / count for g in one] for one in of] for of in zip(*gradients, strict=True)
        )

    return Truth(
        mean(t.value for t in every),
        parts([t.gradients for t in every]),
        mean(t.value_scale for t in every),
        parts([t.gradient_scales for t in every]),
    )


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place; what an ulp is of, the references say.
SOFTMAX_VALUE, SOFTMAX_GRADIENT = 4, 4
PAIR_VALUE, PAIR_GRADIENT = 4, 4
ORDER_VALUE, ORDER_GRADIENT = 4, 4

LISTS, ITEMS = 2, 5


def scores_and_relevance(generator: np.random.Generator) -> Arrays:
    shape = (LISTS, ITEMS)
    # No ties and no zeros: a step away from these the loss is another, or none.
    relevance = generator.random(shape).argsort(axis=-1) + 1.0
    return 2 * generator.normal(size=shape), relevance


def hide_items(generator: np.random.Generator, arguments: Arrays) -> Hidden:
    where = generator.random((LISTS, ITEMS)) < 0.6
    where[0, :2], where[1, 1] = True, False
    return Hidden(arguments, {"where": where}, (~where,) * 2)


def hide_lists(arguments: Arrays) -> Hidden:
    where = np.zeros((LISTS, ITEMS), bool)
    return Hidden(arguments, {"where": where}, (~where,) * 2)


def lists(dtype: Any) -> Iterator[Family]:
    """Scores [1, LISTS, ITEMS] with relevance: any, in the right order, in the wrong one, ties."""
    generator = np.random.default_rng(12)
    largest = float(ml_dtypes.finfo(dtype).max)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    shape = (1, LISTS, ITEMS)
    normal = functools.partial(generator.normal, size=shape)
    down = np.broadcast_to(np.arange(ITEMS)[::-1], shape) - 2.0
    scores = {f"scale {scale:g}": scale * normal() for scale in (0.1, 1.0, 10.0, 100.0, 1e4)}
    for step in (1, 5, 15, 20, 30, 70):
        scores[f"right by {step}"] = step * down + normal()
        scores[f"wrong by {step}"] = -step * down + normal()
        scores[f"right by {step} at 300"] = step * down + normal() + 300
    for step in (5, 20, 40, 80):
        top = np.arange(ITEMS) == 0
        scores[f"first ahead by {step}"] = step * top + normal()
        scores[f"first behind by {step}"] = -step * top + normal()
    last = np.arange(ITEMS) >= ITEMS - 2
    scores |= {
        "all equal": 0.0 * down,
        "all equal at -1000": 0.0 * down - 1000,
        "whole numbers": np.round(2 * normal()),
        "tiny": smallest * normal(),
        "huge": largest * generator.uniform(-0.02, 0.02, size=shape),
        "last two impossible": np.where(last, -np.inf, normal()),
        "only the first possible": np.where(np.arange(ITEMS) == 0, normal(), -np.inf),
    }
    for name, logits in scores.items():
        for kind, labels in {
            "falling": down + 2,
            "one relevant": (down == 2).astype(float),
            "ties": np.round(down / 2 + 1),
            "none relevant": 0.0 * down,
        }.items():
            # Nothing is relevant that is not possible: that would cost infinitely much.
            labels = np.where(np.isneginf(logits), 0.0, labels)
            yield Family(f"{name}, {kind}", (logits.astype(dtype), labels.astype(dtype)))


_row = functools.partial(
    WholeCase,
    make=scores_and_relevance,
    hide=hide_items,
    hide_all=hide_lists,
)

WHOLE_CASES: tuple[WholeCase, ...] = (
    _row(
        jaxent.ranking_softmax_loss,
        truth=ranking_softmax_loss,
        hard_inputs=lists,
        value_ulps=SOFTMAX_VALUE,
        gradient_ulps=SOFTMAX_GRADIENT,
        peer=optax.losses.ranking_softmax_loss,
    ),
    _row(
        jaxent.pairwise_logistic_loss,
        truth=pairwise_logistic_loss,
        hard_inputs=lists,
        value_ulps=PAIR_VALUE,
        gradient_ulps=PAIR_GRADIENT,
    ),
    _row(
        jaxent.listmle_loss,
        truth=listmle_loss,
        hard_inputs=lists,
        value_ulps=ORDER_VALUE,
        gradient_ulps=ORDER_GRADIENT,
    ),
)
CASES: tuple[Case, ...] = ()
NOT_LOSSES = dict.fromkeys(
    ("listmle_loss", "pairwise_logistic_loss", "ranking_softmax_loss"), "losses/test_ranking.py"
)
