"""The cases of the losses of probabilities: references, hard inputs and bars.

A derivative that is infinite where the loss is finite, along a target of 0 that meets a
probability of 0, is given as 0.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
from mpmath import mpf

import jaxent
from conformance import inputs
from conformance.case import CLASS, DISTRIBUTION, YES_OR_NO, Argument, Case
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


def binary_cross_entropy(p: Number, label: Number) -> Truth:
    """``-(y log p + (1-y) log(1-p))``; every scale is the quantity's own size."""
    value = _cost(label, p) + _cost(1 - label, 1 - p)
    if label in (0, 1):
        slope = 1 / (1 - p) if label == 0 else -1 / p
    else:
        slope = (p - label) / (p * (1 - p))
    label_slope = mpf(0) if p == label and p in (0, 1) else mpmath.log(1 - p) - mpmath.log(p)
    return Truth(value, (slope, label_slope), value, (slope, label_slope))


def categorical_cross_entropy(probs: Sequence[Number], labels: Sequence[Number]) -> Truth:
    """``-sum t_j log p_j``, with ``0 log 0 = 0``."""
    pairs = list(zip(probs, labels, strict=True))
    value = mpmath.fsum(_cost(target, p) for p, target in pairs)
    slopes = [-target / p if target else mpf(0) for p, target in pairs]
    label_slopes = [-mpmath.log(p) if p or target else mpf(0) for p, target in pairs]
    return Truth(value, (slopes, label_slopes), value, (slopes, label_slopes))


def negative_log_likelihood(log_probs: Sequence[Number], label: int) -> Truth:
    """``-log p_y``."""
    value = -log_probs[label]
    slopes = [mpf(-1) if index == label else mpf(0) for index in range(len(log_probs))]
    return Truth(value, (slopes,), value, (slopes,))


def brier_score(probs: Sequence[Number], labels: Sequence[Number]) -> Truth:
    """``sum (p_j - t_j)^2``."""
    errors = [p - target for p, target in zip(probs, labels, strict=True)]
    value = mpmath.fsum(error**2 for error in errors)
    slopes, label_slopes = [2 * error for error in errors], [-2 * error for error in errors]
    return Truth(value, (slopes, label_slopes), value, (slopes, label_slopes))


def _cost(target: Number, p: Number) -> Number:
    return -target * mpmath.log(p) if target else mpf(0)


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place of the quantity itself: nothing is scaled.
# The sums stay within 3; the oldest JAX adds up a thousand classes one after the other.
BINARY_VALUE, BINARY_GRADIENT = 4, 4
CATEGORICAL_VALUE, CATEGORICAL_GRADIENT = 8, 2
LIKELIHOOD_VALUE, LIKELIHOOD_GRADIENT = 0, 0
BRIER_VALUE, BRIER_GRADIENT = 8, 1

# Away from the ends, where differences of slopes are no measure of a curvature.
PROBS = Argument("probs", lambda rng, leading, classes: rng.uniform(0.2, 0.95, (*leading, classes)))
LOG_PROBS = Argument(
    "log_probs",
    lambda rng, leading, classes: np.log(rng.dirichlet(np.full(classes, 5.0), size=leading) * 0.98),
)


def probabilities(dtype: Any, num_classes: int) -> Iterator[Family]:
    """Distributions [rows, classes] and a class each: from logits, and from the ends of [0, 1].

    Where the class has probability 0 no loss is finite; there the smallest number takes its place.
    """
    info = ml_dtypes.finfo(dtype)
    smallest = float(info.smallest_normal)
    generator = np.random.default_rng([num_classes, 2])
    for family in inputs.integer_labels(np.float64, num_classes):
        logits, labels = family.arrays
        exponentials = np.exp(logits - np.nan_to_num(logits.max(-1, keepdims=True)))
        probs = (exponentials / exponentials.sum(-1, keepdims=True)).astype(dtype)
        if family.name != "huge":
            at_label = np.arange(num_classes) == labels[:, None]
            least = np.array(smallest, dtype)
            yield Family(family.name, (np.where(at_label & (probs < least), least, probs), labels))
    shape = (3, num_classes)
    labels = generator.integers(num_classes, size=3).astype(np.int32)
    share = generator.uniform(0.4, 1.0, size=shape)
    for name, probs in {
        "not normalised": share,
        "smallest normal numbers": smallest * (1 + 9 * share),
        "subnormal": smallest * share,
        "all certain": np.ones(shape),
        "just below 1": 1 - float(info.eps) * np.round(4 * share) / 2,
        "all alike": np.full(shape, 1 / num_classes),
        "powers of ten": 10.0 ** -generator.integers(0, 7, size=shape),
    }.items():
        yield Family(name, (probs.astype(dtype), labels))


def with_targets(dtype: Any, num_classes: int) -> Iterator[Family]:
    """The same with every kind of target, none of them on a class of probability 0."""
    generator = np.random.default_rng([num_classes, 3])
    kinds = inputs.TARGET_KINDS if num_classes <= 16 else (None,)
    for family in probabilities(dtype, num_classes):
        probs, labels = family.arrays
        for kind in kinds:
            kind = kind or inputs.TARGET_KINDS[generator.integers(len(inputs.TARGET_KINDS))]
            targets = inputs.targets_of_kind(kind, generator, labels, num_classes)
            targets = np.where(probs.astype(np.float64) == 0, 0.0, targets)
            yield Family(f"{kind}, {family.name}", (probs, targets.astype(dtype)))


def with_probable_targets(dtype: Any, num_classes: int) -> Iterator[Family]:
    """The same with targets in [0, 1], and with targets that the probabilities nearly reach."""
    for family in with_targets(dtype, num_classes):
        probs, targets = family.arrays
        yield Family(family.name, (probs, np.minimum(targets, np.array(1, dtype))))
    for family in probabilities(dtype, num_classes):
        probs, _ = family.arrays
        yield Family(f"equal, {family.name}", (probs, probs))
        # Not at the bottom, where the difference would be lost as a subnormal number.
        is_normal = probs.astype(np.float64) > 4 * float(ml_dtypes.finfo(dtype).smallest_normal)
        below = np.where(is_normal, np.nextafter(probs, np.array(0, dtype)), probs)
        yield Family(f"next, {family.name}", (probs, below))


def log_probabilities(dtype: Any, num_classes: int) -> Iterator[Family]:
    for family in probabilities(np.float64, num_classes):
        probs, labels = family.arrays
        with np.errstate(divide="ignore"):
            yield Family(family.name, (np.log(probs).astype(dtype), labels))


def yes_or_no(dtype: Any) -> Iterator[Family]:
    """Probabilities [rows] from one end of [0, 1] to the other, with targets of every kind.

    A certain answer comes with no target against it: that costs +inf.
    """
    generator = np.random.default_rng(4)
    info = ml_dtypes.finfo(dtype)
    smallest, step = float(info.smallest_normal), float(info.eps) / 2
    numbers = {
        "any": generator.random(12),
        "tiny": smallest * np.array([1, 3, 100, 0.9, 0.5]),
        "small": 10.0 ** -np.arange(1.0, 6),
        "nearly 1": 1 - step * np.array([1, 2, 3, 10, 50]),
        "around a half": 0.5 + step * np.array([-4, -1, 0, 2, 4]),
        "quarters": np.array([0.25, 0.75]) + step * np.array([[-1], [0], [2]]),
        "0": np.zeros(1),
        "1": np.ones(1),
    }
    for name, given in numbers.items():
        probs = given.ravel().astype(dtype)
        one = np.ones_like(probs)
        for target in (0.0, 1.0, 0.5, 1e-6, 1 - 1e-6, None):
            targets = generator.random(len(probs)) if target is None else target * one
            kind = "any" if target is None else f"{target:g}"
            if name not in ("0", "1") or kind == name:
                yield Family(f"{name}, target {kind}", (probs, targets.astype(dtype)))
        if name != "tiny":
            yield Family(f"{name}, target alike", (probs, probs))
        if name not in ("tiny", "0", "1"):
            for way, end in (("below", 0 * one), ("above", one)):
                yield Family(f"{name}, target just {way}", (probs, np.nextafter(probs, end)))


CASES = (
    Case(
        jaxent.binary_cross_entropy,
        (PROBS, YES_OR_NO),
        binary_cross_entropy,
        yes_or_no,
        BINARY_VALUE,
        BINARY_GRADIENT,
    ),
    Case(
        jaxent.categorical_cross_entropy,
        (PROBS, DISTRIBUTION),
        categorical_cross_entropy,
        with_targets,
        CATEGORICAL_VALUE,
        CATEGORICAL_GRADIENT,
    ),
    Case(
        jaxent.negative_log_likelihood,
        (LOG_PROBS, CLASS),
        negative_log_likelihood,
        log_probabilities,
        LIKELIHOOD_VALUE,
        LIKELIHOOD_GRADIENT,
    ),
    Case(
        jaxent.brier_score,
        (PROBS, DISTRIBUTION),
        brier_score,
        with_probable_targets,
        BRIER_VALUE,
        BRIER_GRADIENT,
    ),
)
NOT_LOSSES = {
    "class_balanced_weights": "losses/test_labels.py",
    "expected_calibration_error": "losses/test_calibration.py",
    "logit_adjustment": "losses/test_labels.py",
    "smooth_labels": "losses/test_labels.py",
    "soft_cap": "losses/test_labels.py",
    "temperature_scaling": "losses/test_labels.py",
}
