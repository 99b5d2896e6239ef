"""The rows of losses of lists: ordinary ones, what hides items, and hard inputs."""

import functools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import optax.losses
import truth_ranking
from contract_row import Row
from contract_whole import Arrays, Hidden, Whole
from families import Family

import jaxent

# Worst error allowed, in units in the last place; what an ulp is of, truth_ranking says.
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
    Whole,
    make=scores_and_relevance,
    hide=hide_items,
    hide_all=hide_lists,
)

WHOLES: tuple[Whole, ...] = (
    _row(
        jaxent.ranking_softmax_loss,
        truth=truth_ranking.ranking_softmax_loss,
        hard_inputs=lists,
        value_ulps=SOFTMAX_VALUE,
        gradient_ulps=SOFTMAX_GRADIENT,
        peer=optax.losses.ranking_softmax_loss,
    ),
    _row(
        jaxent.pairwise_logistic_loss,
        truth=truth_ranking.pairwise_logistic_loss,
        hard_inputs=lists,
        value_ulps=PAIR_VALUE,
        gradient_ulps=PAIR_GRADIENT,
    ),
    _row(
        jaxent.listmle_loss,
        truth=truth_ranking.listmle_loss,
        hard_inputs=lists,
        value_ulps=ORDER_VALUE,
        gradient_ulps=ORDER_GRADIENT,
    ),
)
ROWS: tuple[Row, ...] = ()
NOT_LOSSES = dict.fromkeys(
    ("listmle_loss", "pairwise_logistic_loss", "ranking_softmax_loss"), "test_ranking.py"
)
