"""The inputs that break losses: every family of logits and of targets that has broken one.

A family is a name and rows of NumPy inputs in a given dtype, the same ones on every run. Rows of
different families have the same number of classes, so that `together` can lay them in one batch
and one compiled program tests them all; `rows` says how many examples each family gets (tests
take one or two, a benchmark many).
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

SCALES = (0.1, 1.0, 10.0, 100.0, 1e4)
MARGINS = (5, 10, 15, 16, 17, 20, 30, 40, 60, 80)
OFFSETS = (0, 300, -300, 100, 80)
TARGET_KINDS = (
    "one-hot",
    "near one-hot",
    "Dirichlet",
    "sparse",
    "uniform",
    "not normalised",
    "none",
)


class Family(NamedTuple):
    """Rows of inputs of one kind: each array's first axis counts the examples."""

    name: str
    arrays: tuple[np.ndarray, ...]


def together(families: Iterable[Family]) -> tuple[list[str], tuple[np.ndarray, ...]]:
    """All families as one batch, and the name of the family each row came from."""
    families = list(families)
    names = [family.name for family in families for _ in family.arrays[0]]
    return names, tuple(map(np.concatenate, zip(*[f.arrays for f in families], strict=True)))


# --- softmax: one true class ----------------------------------------------------------------------


def integer_labels(dtype: Any, num_classes: int, rows: int = 1) -> Iterator[Family]:
    """Logits [rows, classes] with a true class [rows] each: right, wrong, tied and impossible."""
    generator = np.random.default_rng([num_classes, rows])
    yield from _cast(_plain(generator, num_classes, rows), dtype)
    yield from _cast(_margins(generator, num_classes, rows), dtype)
    yield from _cast(_impossible(generator, num_classes, rows), dtype)
    yield from _cast(_ties(generator, num_classes, rows), dtype)
    yield from _cast(_extremes(generator, num_classes, rows, dtype), dtype)
    yield from _near_ties(generator, num_classes, rows, dtype)


def logits_only(dtype: Any, num_classes: int, rows: int = 1) -> Iterator[Family]:
    """The same logits without their labels."""
    for family in integer_labels(dtype, num_classes, rows):
        yield Family(family.name, family.arrays[:1])


def few_integer_labels(dtype: Any, num_classes: int) -> Iterator[Family]:
    """A handful of rows that between them hold the worst of it, for vocabularies of any size.

    Their logits are drawn from a thousand values, which spares the oracle most of its work.
    """
    generator = np.random.default_rng(num_classes)
    values = generator.normal(size=1000)
    scaled, rest, ties = generator.choice(values, size=(3, num_classes))
    labels = generator.integers(num_classes, size=3)
    rest[labels[1]] = rest.max() + 25
    ties[generator.random(num_classes) < 0.2] = -np.inf
    ties[labels[2]] = ties.max()
    for name, row, label in zip(
        ("scale 3", "ahead by 25 at 300", "ties and impossible classes"),
        (3 * scaled, rest + 300, ties),
        labels,
        strict=True,
    ):
        yield Family(name, (row[None].astype(dtype), np.array([label], np.int32)))


def few_logits_only(dtype: Any, num_classes: int) -> Iterator[Family]:
    """The same handful without their labels."""
    for family in few_integer_labels(dtype, num_classes):
        yield Family(family.name, family.arrays[:1])


def few_soft_labels(dtype: Any, num_classes: int) -> Iterator[Family]:
    """The same handful with a distribution each: nearly sure, and sparse."""
    generator = np.random.default_rng(num_classes)
    kinds = ("near one-hot", "one-hot", "sparse")
    for kind, family in zip(kinds, few_integer_labels(dtype, num_classes), strict=True):
        logits, labels = family.arrays
        targets = targets_of_kind(kind, generator, labels, num_classes)
        targets = np.where(np.isneginf(logits.astype(np.float64)), 0.0, targets)
        yield Family(f"{kind}, {family.name}", (logits, targets.astype(dtype)))


def _plain(generator, num_classes, rows) -> Iterator[Family]:
    for scale in SCALES:
        logits = scale * generator.normal(size=(rows, num_classes))
        yield Family(f"scale {scale:g}", (logits, _labels(generator, logits)))
        yield Family(f"scale {scale:g}, right", (logits, logits.argmax(-1).astype(np.int32)))


def _margins(generator, num_classes, rows) -> Iterator[Family]:
    for offset in OFFSETS:
        for margin in MARGINS:
            logits = generator.normal(size=(rows, num_classes))
            labels = _labels(generator, logits)
            others = _others_maximum(logits, labels)
            for name, sign in (("ahead", 1), ("behind", -1)):
                moved = logits.copy()
                moved[np.arange(rows), labels] = others + sign * margin
                yield Family(f"{name} by {margin} at {offset}", (moved + offset, labels))


def _impossible(generator, num_classes, rows) -> Iterator[Family]:
    logits = 3 * generator.normal(size=(rows, num_classes))
    labels = _labels(generator, logits)
    at_label = np.arange(num_classes) == labels[:, None]
    some = generator.random((rows, num_classes)) < 0.4
    yield Family("some impossible", (np.where(some & ~at_label, -np.inf, logits), labels))
    yield Family("all others impossible", (np.where(at_label, logits, -np.inf), labels))
    yield Family("label impossible", (np.where(at_label, -np.inf, logits), labels))
    ahead = np.where(at_label, logits.max(-1, keepdims=True) + 20, logits)
    yield Family("ahead, some impossible", (np.where(some & ~at_label, -np.inf, ahead), labels))


def _ties(generator, num_classes, rows) -> Iterator[Family]:
    for level in (0.0, 3.5, -1000.0):
        logits = np.full((rows, num_classes), level)
        yield Family(f"all equal {level:g}", (logits, _labels(generator, logits)))
    logits = generator.normal(size=(rows, num_classes))
    labels = _labels(generator, logits)
    at_label = np.arange(num_classes) == labels[:, None]
    top = logits.max(-1, keepdims=True)
    another = np.arange(num_classes) == ((labels + 1) % num_classes)[:, None]
    yield Family("label tied at the top", (np.where(at_label, top, logits), labels))
    yield Family("others tied at the top", (np.where(another & ~at_label, top, logits), labels))
    half = np.arange(num_classes) % 2 == 0
    yield Family("half tied at the top", (np.where(half, top, logits), labels))
    yield Family("half tied far behind", (np.where(half & ~at_label, top - 40, logits), labels))
    yield Family("small integers", (np.round(2 * logits), labels))


def _near_ties(generator, num_classes, rows, dtype) -> Iterator[Family]:
    for center in (1.0, 1000.0):
        logits = (generator.normal(size=(rows, num_classes)) - center).astype(dtype)
        labels = _labels(generator, logits)
        second = (labels + 1) % num_classes
        index = np.arange(rows)
        for name, nudge in (("just ahead", np.inf), ("just behind", -np.inf)):
            near = logits.copy()
            near[index, second] = np.array(center, dtype)
            near[index, labels] = np.nextafter(near[index, second], np.array(nudge, dtype))
            yield Family(f"{name} of another at {center:g}", (near, labels))


def _extremes(generator, num_classes, rows, dtype) -> Iterator[Family]:
    info = ml_dtypes.finfo(dtype)
    largest, smallest = float(info.max), float(info.smallest_normal)
    share = generator.uniform(0.1, 1.0, size=(rows, num_classes))
    labels = _labels(generator, share)
    sign = generator.choice([-1.0, 1.0], size=share.shape)
    tiny = smallest * generator.uniform(0.001, 10, size=share.shape)
    mixed = np.where(generator.random(share.shape) < 0.5, share * largest, tiny)
    normal = generator.normal(size=share.shape)
    at_label = np.arange(num_classes) == labels[:, None]
    for name, logits in {
        "huge": share * largest,
        "huge negative": -share * largest,
        "huge of both signs": sign * share * largest / 4,
        "huge and tiny": mixed,
        "huge negative and tiny": -mixed,
        "subnormal": sign * tiny,
        "zeros of both signs": 0.0 * sign,
        "largest number at the label": np.where(at_label, largest, normal),
        "most negative number at the label": np.where(at_label, -largest, normal),
        "all largest": np.full(share.shape, largest),
        "all most negative": np.full(share.shape, -largest),
    }.items():
        yield Family(name, (logits, labels))


# --- softmax: a distribution over the classes -----------------------------------------------------


def soft_labels(dtype: Any, num_classes: int, rows: int = 1) -> Iterator[Family]:
    """Every family of logits with every kind of target, on the likely class and off it.

    No target lies on an impossible class, except in the families that are about that.
    """
    generator = np.random.default_rng([num_classes, rows, 1])
    kinds = TARGET_KINDS if num_classes <= 16 else (None,)
    for family in integer_labels(dtype, num_classes, rows):
        logits, labels = family.arrays
        for kind in kinds:
            kind = kind or TARGET_KINDS[generator.integers(len(TARGET_KINDS))]
            targets = targets_of_kind(kind, generator, labels, num_classes)
            if family.name != "label impossible":
                targets = np.where(np.isneginf(logits.astype(np.float64)), 0.0, targets)
            yield Family(f"{kind}, {family.name}", (logits, targets.astype(dtype)))


def targets_of_kind(kind: str, generator, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Targets [rows, classes] of one of `TARGET_KINDS`, float64."""
    shape = (len(labels), num_classes)
    one_hot = (np.arange(num_classes) == labels[:, None]).astype(np.float64)
    match kind:
        case "one-hot":
            return one_hot
        case "near one-hot":
            return (1 - 1e-6) * one_hot + 1e-6 / num_classes
        case "Dirichlet":
            return generator.dirichlet(np.ones(num_classes), size=len(labels))
        case "sparse":
            weights = generator.exponential(size=shape) * (generator.random(shape) < 0.3) + one_hot
            return weights / weights.sum(-1, keepdims=True)
        case "uniform":
            return np.full(shape, 1 / num_classes)
        case "not normalised":
            return 2 * generator.random(shape)
        case "none":
            return np.zeros(shape)
    raise ValueError(kind)


# --- sigmoid --------------------------------------------------------------------------------------


def binary_targets(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Logits [rows] of every size with targets [rows]: no, yes, nearly so, and in between."""
    generator = np.random.default_rng(rows)
    info = ml_dtypes.finfo(dtype)
    margins = np.array([*MARGINS, 1, 2, 0.5, 88, 100, 300], np.float64)
    numbers = {
        **{f"scale {scale:g}": scale * generator.normal(size=8 * rows) for scale in SCALES},
        "margins": np.concatenate([margins, -margins]),
        "zeros": np.array([0.0, -0.0]),
        "huge": float(info.max) * np.array([1, -1, 0.3, -0.3]),
        "tiny": float(info.smallest_normal) * np.array([1, -1, 10, 0.01, -0.01]),
        "near zero": 10.0 ** -np.arange(1, 8) * generator.choice([-1, 1], size=7),
    }
    for name, logits in numbers.items():
        for target in (0.0, 1.0, 0.5, 1e-6, 1 - 1e-6, None):
            targets = generator.random(len(logits)) if target is None else target
            targets = np.broadcast_to(targets, logits.shape)
            kind = "any" if target is None else f"{target:g}"
            with np.errstate(over="ignore"):
                yield Family(
                    f"{name}, target {kind}", (logits.astype(dtype), targets.astype(dtype))
                )


# --- small parts ----------------------------------------------------------------------------------


def _labels(generator, logits: np.ndarray) -> np.ndarray:
    return generator.integers(logits.shape[-1], size=len(logits)).astype(np.int32)


def _others_maximum(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    others = logits.copy()
    others[np.arange(len(labels)), labels] = -np.inf
    return others.max(-1)


def _cast(families: Iterable[Family], dtype: Any) -> Iterator[Family]:
    """In the dtype asked for; what its range cannot hold is cut to the range, not made infinite."""
    largest = float(ml_dtypes.finfo(dtype).max)
    for name, (logits, labels) in families:
        within = np.where(np.isneginf(logits), logits, np.clip(logits, -largest, largest))
        yield Family(name, (within.astype(dtype), labels))
