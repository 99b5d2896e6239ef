"""The cases of the losses of sequences: references, hard inputs and bars."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import optax
from mpmath import mpf

import jaxent
from conformance import inputs, oracle
from conformance.case import Arrays, Hidden, WholeCase
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


Rows = Sequence[Sequence[Number]]


def ctc_loss(
    logits: Sequence[Rows], logit_paddings, labels, label_paddings, *, blank_id: int = 0
) -> Truth:
    """The sum over the sequences of a call."""
    each = [
        _one(*sequence, blank_id)
        for sequence in zip(logits, logit_paddings, labels, label_paddings, strict=True)
    ]
    values, gradients, scales = zip(*each, strict=True)
    return Truth(sum(values), (list(gradients),), sum(values), (list(scales),))


def _one(logits: Rows, logit_paddings, labels, label_paddings, blank: int) -> tuple:
    """The loss, its gradient, and the scale of that."""
    frames = [t for t, padded in enumerate(logit_paddings) if not padded]
    labels = [label for label, padded in zip(labels, label_paddings, strict=True) if not padded]
    probs = [_softmax(logits[t]) for t in frames]
    value, slopes, scales = enumerated(probs, labels, blank)
    zero = [[mpf(0)] * len(row) for row in logits]
    gradient, scale = [list(row) for row in zero], [list(row) for row in zero]
    for t, slope, size in zip(frames, slopes, scales, strict=True):
        gradient[t], scale[t] = slope, size
    return value, gradient, scale


def _softmax(logits: Sequence[Number]) -> list[Number]:
    """No class has a probability where none is possible."""
    impossible = all(logit == -mpmath.inf for logit in logits)
    return [mpf(0)] * len(logits) if impossible else oracle.softmax(logits)[0]


def enumerated(probs: Rows, labels: Sequence[int], blank: int) -> tuple:
    """The loss, its gradient in the logits and the scale of that, from all strings of classes."""
    classes = range(len(probs[0])) if probs else range(0)
    nothing = [[mpf(0)] * len(classes) for _ in probs]
    right, wrong = [list(row) for row in nothing], [list(row) for row in nothing]
    success = mpf(0)
    for string in itertools.product(classes, repeat=len(probs)):
        chance = mpmath.fprod(row[k] for row, k in zip(probs, string, strict=True))
        spells = list(spelled(string, blank)) == list(labels)
        success += chance if spells else 0
        for t, k in enumerate(string):
            (right if spells else wrong)[t][k] += chance
    if success == 0:
        return mpf("inf"), nothing, nothing
    slopes = [
        [p - r / success for p, r in zip(*rows, strict=True)]
        for rows in zip(probs, right, strict=True)
    ]
    return -mpmath.log(success), slopes, _scales(probs, right, wrong, success)


def _scales(probs: Rows, right: Rows, wrong: Rows, success: Number) -> Rows:
    """The absolute terms: two probabilities, or what the two are short of if both are near.

    More likely right than wrong, the entry of a class is `p ((chance to fail with it) - (chance to
    fail)) / P`. The entry of a class with p > 1/2 is minus the sum of the others.
    """
    failure = mpmath.fsum(wrong[0]) if wrong else mpf(0)
    scales = []
    for p, r, w in zip(probs, right, wrong, strict=True):
        if success > 0.5:
            scale = [(each + mine * failure) / success for mine, each in zip(p, w, strict=True)]
        else:
            scale = [mine + each / success for mine, each in zip(p, r, strict=True)]
        total = mpmath.fsum(scale)
        scales.append([total - s if mine > 0.5 else s for mine, s in zip(p, scale, strict=True)])
    return scales


def spelled(string: Sequence[int], blank: int) -> Iterator[int]:
    """What is left of an alignment when repeats are merged and blanks taken out."""
    return (k for k, _ in itertools.groupby(string) if k != blank)


def forward_backward(probs: Rows, labels: Sequence[int], blank: int) -> tuple[Number, Rows]:
    """The loss and its gradient in the logits, for sequences too long to write everything down."""
    states = [blank, *(state for label in labels for state in (label, blank))]

    def previous(s: int, states: Sequence[int]) -> Iterator[int]:
        yield s
        if s > 0:
            yield s - 1
        if s > 1 and states[s] not in (blank, states[s - 2]):
            yield s - 2

    def sweep(probs: Rows, states: Sequence[int]) -> Rows:
        chances = [[p if s < 2 else mpf(0) for s, p in enumerate(probs[0][k] for k in states)]]
        for row in probs[1:]:
            before = chances[-1]
            chances.append(
                [
                    row[k] * mpmath.fsum(before[r] for r in previous(s, states))
                    for s, k in enumerate(states)
                ]
            )
        return chances

    forward = sweep(probs, states)
    backward = [row[::-1] for row in sweep(probs[::-1], states[::-1])[::-1]]
    success = mpmath.fsum(forward[-1][-2:])
    slopes = []
    for row, ahead, behind in zip(probs, forward, backward, strict=True):
        slope = list(row)
        for k, a, b in zip(states, ahead, behind, strict=True):
            slope[k] -= a * b / row[k] / success
        slopes.append(slope)
    return -mpmath.log(success), slopes


# --- bars and arguments ---------------------------------------------------------------------------

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

    for scale in inputs.SCALES:
        yield f"scale {scale:g}", scale * normal(4), labels(4)
    for offset in (300.0, -300.0):
        yield f"offset {offset:g}", 10 * normal(2) + offset, labels(2)
    for margin in inputs.MARGINS:
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
    WholeCase,
    make=_make,
    truth=ctc_loss,
    hard_inputs=_hard_inputs,
    value_ulps=VALUE,
    gradient_ulps=GRADIENT,
    hide=_hide,
    hide_all=_hide_all,
)

CASES = ()
NOT_LOSSES = {}
WHOLE_CASES = (
    _whole(jaxent.ctc_loss, peer=_with_float_paddings(optax.ctc_loss)),
    _whole(
        jaxent.ctc_loss_with_forward_probs,
        peer=_with_float_paddings(optax.ctc_loss_with_forward_probs),
        result=lambda results: results[0],
    ),
)
