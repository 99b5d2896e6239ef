"""The contract rows of jaxent._variants."""

import functools
from collections.abc import Iterator
from typing import Any

import families
import ml_dtypes
import numpy as np
import optax
import truth_variants
from contract_row import CLASS, DISTRIBUTION, LOGITS, YES_OR_NO, Argument, Row
from families import Family

import jaxent

# Worst error allowed, in units in the last place; scaled where the truth is a difference.
FOCAL_VALUE, FOCAL_GRADIENT = 8, 10
LABEL_VALUE, LABEL_GRADIENT = 8, 10
POLY_VALUE, POLY_GRADIENT = 8, 8
ORDINAL_VALUE, ORDINAL_GRADIENT = 4, 8

# Far enough apart for differences of slopes to be a measure of the curvature.
CUTPOINTS = Argument(
    "logits",
    lambda rng, leading, classes: (
        np.cumsum(1 + rng.exponential(size=(*leading, classes)), -1) - classes / 2
    ),
)


def cutpoints(dtype: Any, num_cutpoints: int, rows: int = 2) -> Iterator[Family]:
    """Log-odds [rows, cutpoints] that do not decrease, and one of the classes between them."""
    generator = np.random.default_rng([num_cutpoints, 5])
    for name, logits, labels in _cutpoints(generator, num_cutpoints, rows, dtype):
        largest = float(ml_dtypes.finfo(dtype).max)
        is_finite = np.isfinite(logits)
        given = np.where(is_finite, np.clip(logits, -largest, largest), logits).astype(dtype)
        # A class without any room costs +inf.
        ends = np.full((len(given), 1), np.inf)
        edges = np.concatenate([-ends, given.astype(np.float64), ends], -1)
        at = np.arange(len(given))
        has_room = edges[at, labels] < edges[at, labels + 1]
        widest = np.nanargmax(np.diff(np.clip(edges, -1e300, 1e300), axis=-1), axis=-1)
        yield Family(name, (given, np.where(has_room, labels, widest).astype(np.int32)))


def _cutpoints(generator, num_cutpoints, rows, dtype) -> Iterator[tuple]:
    shape = (rows, num_cutpoints)
    info = ml_dtypes.finfo(dtype)

    def spread(scale=1.0):
        gaps = generator.exponential(size=shape)
        return scale * (np.cumsum(gaps, -1) - gaps.sum(-1, keepdims=True) * generator.random())

    def any_class():
        return generator.integers(num_cutpoints + 1, size=rows)

    def split(center, gap):
        """Cutpoints that lie around a gap, with the class whose gap it is."""
        labels = any_class()
        steps = np.arange(num_cutpoints) - labels[:, None] + 0.5
        edges = np.where(steps < 0, -0.5, 0.5)
        return center + gap * edges + 0.1 * min(gap, 1) * (steps - edges), labels

    for scale in families.SCALES:
        yield f"scale {scale:g}", spread(scale), any_class()
        logits = spread(scale)
        yield f"scale {scale:g}, likely", logits, (logits < 0).sum(-1)
    for margin in families.MARGINS:
        for offset in (0, 1, -3):
            yield f"sure by {margin} at {offset}", *split(offset, 2 * margin)
        for center in (margin, -margin):
            yield f"wrong by {center}", *split(center, 1)
            yield f"one end at {center}", *split(center, abs(center) + 3)
    for gap in (1e-1, 1e-3, 1e-6):
        for center in (0, 0.3, 10, -40, 300):
            yield f"apart by {gap:g} at {center}", *split(center, gap)
    for center in (0.7, -20, 300):
        logits, labels = split(center, 1)
        low = np.array(center, dtype)
        for row, label in zip(logits, labels, strict=True):
            if 0 < label < num_cutpoints:
                row[label - 1 : label + 1] = low, np.nextafter(low, np.array(np.inf, dtype))
        yield f"neighbours at {center}", np.sort(logits, -1), labels
    at = np.arange(num_cutpoints)
    yield "ties", np.round(spread()), any_class()
    yield "first impossible", np.where(at == 0, -np.inf, spread()), any_class()
    yield "last impossible", np.where(at == num_cutpoints - 1, np.inf, spread()), any_class()
    share = np.sort(generator.uniform(-1, 1, size=shape), -1)
    # Smaller gaps than the smallest normal number may be flushed to none.
    tiny = float(info.smallest_normal) * np.cumsum(1 + generator.exponential(size=shape), -1)
    for name, logits in (("huge", float(info.max) * share), ("tiny", tiny), ("minus tiny", -tiny)):
        yield name, np.sort(logits, -1), any_class()
        yield f"{name} and ordinary", np.sort(np.where(at % 2, logits, share), -1), any_class()
    yield "zeros", 0 * share, any_class()


def _focal(**options) -> Row:
    return Row(
        jaxent.sigmoid_focal_loss,
        (LOGITS, YES_OR_NO),
        truth_variants.sigmoid_focal_loss,
        families.binary_targets,
        FOCAL_VALUE,
        FOCAL_GRADIENT,
        options,
        functools.partial(optax.losses.sigmoid_focal_loss, **options),
        curvature_scale=functools.partial(truth_variants.sigmoid_focal_curvature_scale, **options),
    )


def _poly(**options) -> Row:
    return Row(
        jaxent.poly_loss_cross_entropy,
        (LOGITS, DISTRIBUTION),
        truth_variants.poly_loss_cross_entropy,
        families.soft_labels,
        POLY_VALUE,
        POLY_GRADIENT,
        options,
        functools.partial(optax.losses.poly_loss_cross_entropy, **options),
        curvature_scale=functools.partial(truth_variants.poly_curvature_scale, **options),
        vocabulary_inputs=families.few_soft_labels,
    )


def _label(function, truth, kind, **options) -> Row:
    scale = truth_variants.label_curvature_scale(kind)
    return Row(
        function,
        (LOGITS, CLASS),
        truth,
        families.integer_labels,
        LABEL_VALUE,
        LABEL_GRADIENT,
        options,
        curvature_scale=functools.partial(scale, **options),
    )


_softmax_focal = functools.partial(
    _label,
    jaxent.softmax_focal_loss,
    truth_variants.softmax_focal_loss,
    truth_variants.focal_of,
)
_generalized = functools.partial(
    _label,
    jaxent.generalized_cross_entropy,
    truth_variants.generalized_cross_entropy,
    truth_variants.generalized_of,
)
_symmetric = functools.partial(
    _label,
    jaxent.symmetric_cross_entropy,
    truth_variants.symmetric_cross_entropy,
    truth_variants.symmetric_of,
)

ROWS = (
    _focal(gamma=0.5),
    _focal(gamma=2.0, alpha=0.25),
    # Over whole vocabularies this one speaks for all functions of the cross-entropy.
    _softmax_focal(gamma=2.0)._replace(vocabulary_inputs=families.few_integer_labels),
    _softmax_focal(gamma=0.5),
    _generalized(q=0.7),
    _generalized(q=1.0),
    _symmetric(),
    _poly(epsilon=2.0),
    _poly(epsilon=-1.0)._replace(vocabulary_inputs=None),
    Row(
        jaxent.ordinal_cross_entropy,
        (CUTPOINTS, CLASS),
        truth_variants.ordinal_cross_entropy,
        cutpoints,
        ORDINAL_VALUE,
        ORDINAL_GRADIENT,
        masks_classes=False,
        extra_classes=1,
    ),
)
NOT_LOSSES: dict[str, str] = {}
