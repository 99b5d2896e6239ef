"""The truth of losses of sequences: CTC by writing down every alignment there is."""

import itertools
from collections.abc import Iterator, Sequence

import mpmath
import oracle
from mpmath import mpf
from oracle import Number, Truth

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
