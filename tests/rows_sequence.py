"""The contract rows of losses of sequences."""

import functools
from collections.abc import Iterator
from typing import Any

import families
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import truth_sequence
from contract_whole import Arrays, Hidden, Whole
from families import Family

import jaxent

# Worst error allowed, in units in the last place, scaled where the truth is a difference.
VALUE, GRADIENT = 8, 8

BATCH, FRAMES, LABELS, CLASSES = 2, 4, 2, 4
SHAPE = (BATCH, FRAMES, CLASSES)


def _make(generator: np.random.Generator) -> Arrays:
    """The second sequence has one label less, as optax wants it: at the end."""
    return (
        2 * generator.normal(size=SHAPE),
        _padded(FRAMES, FRAMES),
        generator.integers(1, CLASSES, size=(BATCH, LABELS)),
        _padded(LABELS, LABELS - 1),
    )


def _padded(size: int, second: int) -> np.ndarray:
    return np.arange(size) >= np.array([[size], [second]])


def _hide(generator: np.random.Generator, arguments: Arrays) -> Hidden:
    """A frame and a label of the first sequence, and all of the second."""
    logits, _, labels, _ = arguments
    no_frame, no_label = np.zeros((BATCH, FRAMES), bool), np.zeros((BATCH, LABELS), bool)
    no_frame[0, generator.integers(FRAMES)] = True
    no_label[0, generator.integers(LABELS)] = True
    second = np.arange(BATCH)[:, None] == 1
    return Hidden(
        (logits, no_frame, labels, no_label),
        {"where": np.array([True, False])},
        (
            np.broadcast_to((no_frame | second)[..., None], SHAPE),
            np.broadcast_to(second, no_frame.shape),
            no_label | second,
            np.broadcast_to(second, no_label.shape),
        ),
    )


def _hide_all(arguments: Arrays) -> Hidden:
    everywhere = tuple(np.ones(array.shape, bool) for array in arguments)
    return Hidden(arguments, {"where": np.zeros(BATCH, bool)}, everywhere)


def _hard_inputs(dtype: Any) -> Iterator[Family]:
    generator = np.random.default_rng(5)
    largest = float(ml_dtypes.finfo(dtype).max)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    for name, logits, labels in _logits(generator, largest, smallest):
        for paddings in ("none", "some"):
            calls = logits.shape[0]
            padded = np.zeros((calls, BATCH, FRAMES), bool), np.zeros((calls, BATCH, LABELS), bool)
            if paddings == "some":
                padded = tuple(generator.random(each.shape) < 0.3 for each in padded)
            within = np.where(np.isinf(logits), logits, np.clip(logits, -largest, largest))
            yield Family(
                f"{name}, {paddings} padded", (within.astype(dtype), padded[0], labels, padded[1])
            )


def _logits(generator, largest: float, smallest: float) -> Iterator[tuple]:
    def labels(calls: int) -> np.ndarray:
        return generator.integers(1, CLASSES, size=(calls, BATCH, LABELS)).astype(np.int32)

    def normal(calls: int) -> np.ndarray:
        return generator.normal(size=(calls, *SHAPE))

    for scale in families.SCALES:
        yield f"scale {scale:g}", scale * normal(4), labels(4)
    for offset in (300.0, -300.0):
        yield f"offset {offset:g}", 10 * normal(2) + offset, labels(2)
    for margin in families.MARGINS:
        for kind in ("sure", "sure of two"):
            true = labels(2)
            lead = _alignments(generator, true, kind == "sure of two")
            yield f"{kind} by {margin}", normal(2) + margin * lead, true
    impossible = normal(6)
    impossible[generator.random(impossible.shape) < 0.3] = -np.inf
    yield "impossible classes", impossible, labels(6)
    yield "nothing possible", np.full((1, *SHAPE), -np.inf), labels(1)
    yield "zeros", np.zeros((2, *SHAPE)), labels(2)
    # Four frames of which may just be impossible without a loss beyond the range.
    huge = 0.24 * largest
    yield "huge", huge * generator.choice([0.0, 0.3, 1.0], size=(3, *SHAPE)), labels(3)
    yield "huge of either sign", huge * (generator.random((3, *SHAPE)) - 0.5), labels(3)
    yield "tiny", smallest * normal(2), labels(2)
    yield "a repeat without room", normal(1), np.full((1, BATCH, LABELS), 1, np.int32)


def _alignments(generator, labels: np.ndarray, of_two: bool) -> np.ndarray:
    """1 at the classes of an alignment, and at those of another if there are to be two."""
    lead = np.zeros((len(labels), *SHAPE))
    for index in np.ndindex(labels.shape[:2]):
        first, second = labels[index]
        ways = [(first, 0, second, 0), (0, first, 0, second), (first, first, 0, second)]
        for way in generator.permutation(ways)[: 1 + of_two]:
            lead[(*index, np.arange(FRAMES), way)] = 1.0
    return lead


def _with_float_paddings(peer):
    """Optax multiplies by the paddings, in the dtype of the logits."""

    def loss(logits, logit_paddings, labels, label_paddings, **options):
        paddings = (jnp.asarray(p, logits.dtype) for p in (logit_paddings, label_paddings))
        return peer(logits, next(paddings), labels, next(paddings), **options)

    return loss


_whole = functools.partial(
    Whole,
    make=_make,
    truth=truth_sequence.ctc_loss,
    hard_inputs=_hard_inputs,
    value_ulps=VALUE,
    gradient_ulps=GRADIENT,
    hide=_hide,
    hide_all=_hide_all,
)

ROWS = ()
NOT_LOSSES = {}
WHOLES = (
    _whole(jaxent.ctc_loss, peer=_with_float_paddings(optax.ctc_loss)),
    _whole(
        jaxent.ctc_loss_with_forward_probs,
        peer=_with_float_paddings(optax.ctc_loss_with_forward_probs),
        result=lambda results: results[0],
    ),
)
