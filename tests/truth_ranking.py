"""The truth of losses of lists, from their definitions; see oracle.py.

A call is several lists, and its loss the mean of theirs. A slope is a sum of what draws an item up
and what draws it down: an ulp of it is that of the sum of their absolute values.
"""

from collections.abc import Callable, Sequence

import mpmath
import oracle
from mpmath import mpf
from oracle import Number, Truth

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
    truth = oracle.softmax_cross_entropy(scores, labels)
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
