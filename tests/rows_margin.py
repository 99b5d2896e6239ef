"""The contract rows of jaxent._margin, and the inputs that break losses of margins."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax.losses
import truth_margin as truth
from contract_row import CLASS, LOGITS, Argument, Row
from families import SCALES, Family, integer_labels

import jaxent

# Worst error allowed, in units in the last place. A hinge rounds once and its slope is exact, but
# for what several classes share. What sparsemax gives to a class is a difference; see its truth.
HINGE_VALUE, HINGE_GRADIENT = 0.51, 0
CLASS_HINGE_VALUE, CLASS_HINGE_GRADIENT = 1, 1
SPARSEMAX_VALUE, SPARSEMAX_GRADIENT = 4, 4
BINARY_VALUE, BINARY_GRADIENT = 2, 1

OUTPUTS, BINARY_LOGITS, SCORES = (
    Argument(name, LOGITS.make) for name in ("predictor_outputs", "logits", "scores")
)
SIGNS = Argument(
    "targets", lambda rng, leading, classes: 2 * rng.integers(2, size=(*leading, classes)) - 1
)
YES_OR_NO = Argument(
    "labels", lambda rng, leading, classes: rng.integers(2, size=(*leading, classes))
)


# --- one score ------------------------------------------------------------------------------------


def _signed(marks: tuple[int, int]) -> Callable[[Any], Iterator[Family]]:
    """Scores [rows] of every size, at the margins and beside them, with each of two marks."""

    def inputs(dtype: Any) -> Iterator[Family]:
        generator = np.random.default_rng(20)
        info = ml_dtypes.finfo(dtype)
        step, largest = float(info.eps), float(info.max)
        powers = 10.0 ** -np.arange(1, 25)
        numbers = {
            **{f"scale {scale:g}": scale * generator.normal(size=20) for scale in SCALES},
            "beside 1": 1 + step * np.array([-8, -3, -2, -1, -0.5, 0, 1, 2, 3, 50]),
            "near 1": np.concatenate([1 - powers[:8], 1 + powers[:8]]),
            "near 0": powers,
            "zeros": np.array([0.0, -0.0]),
            "huge": largest * np.array([1.0, 0.3, 1e-3]),
            "smallest": float(info.smallest_normal) * np.array([1.0, 2.0, 100.0]),
        }
        for name, scores in numbers.items():
            both = np.concatenate([scores, -scores]).astype(dtype)
            for mark in marks:
                yield Family(f"{name}, {mark}", (both, np.full(len(both), mark, np.int32)))

    return inputs


# --- classes --------------------------------------------------------------------------------------


def races(dtype: Any, classes: int, rows: int = 1) -> Iterator[Family]:
    """Scores [rows, classes] with a true class [rows] each, about 1 ahead of others or behind."""
    yield from _ordinary_labels(dtype, classes, rows)
    generator = np.random.default_rng([classes, rows, 21])
    labels = generator.integers(classes, size=rows).astype(np.int32)
    at_label = np.arange(classes) == labels[:, None]
    spread = generator.uniform(size=(rows, classes))
    for offset in (0.0, 0.7, 300.0):
        for gap in (1.0, 1e-1, 1e-3, 1e-5, 1e-6, 1e-7, -1e-6, -1e-3):
            # The label is ahead of the best by 1, less the gap; others are behind by as much.
            behind = (gap - 1.0) - abs(gap) * np.where(spread < spread.max() * 0.9, spread, 0.0)
            scores = np.where(at_label, 0.0, behind) + offset
            yield _classes(f"ahead by 1 less {gap:g} at {offset:g}", scores, labels, dtype)
    for size in (1e-1, 1e-2, 1e-4, 1e-6):
        for offset in (0.0, 5.0):
            yield _classes(f"within {size:g} at {offset:g}", size * spread + offset, labels, dtype)
    falling = -np.broadcast_to(np.arange(classes) / 2.0, (rows, classes))
    yield _classes("half a step apart", falling, labels, dtype)
    yield _classes("a step apart", 2 * falling, labels, dtype)
    halves = 1.0 - 2.0 ** -np.arange(classes)
    yield _classes("ever closer", -np.broadcast_to(halves, (rows, classes)), labels, dtype)
    yield _classes("ever closer to 1", np.broadcast_to(halves, (rows, classes)), labels, dtype)
    two = np.where(generator.random((rows, classes)) < 0.5, 0.0, -0.5) + 1e-4 * spread
    yield _classes("two levels", two, labels, dtype)


def _ordinary_labels(dtype: Any, classes: int, rows: int) -> Iterator[Family]:
    """Without subnormal numbers: processors that take them for 0 cannot tell which is best."""
    for family in integer_labels(dtype, classes, rows):
        if family.name not in ("subnormal", "huge negative and tiny"):
            yield family


def _classes(name: str, scores: np.ndarray, labels: np.ndarray, dtype: Any) -> Family:
    return Family(name, (scores.astype(dtype), labels))


def few_races(dtype: Any, classes: int) -> Iterator[Family]:
    """Two rows for vocabularies of any size, made of a thousand values: one class ahead, or none.

    Most classes have a share where they are close to each other.
    """
    generator = np.random.default_rng(classes)
    values = generator.uniform(size=1000)
    close = 0.01 / classes * generator.choice(values, size=classes)
    far = generator.choice(6.0 * values, size=classes)
    ahead = np.where(np.arange(classes) == 7, 6.9, far)
    label = np.array([7], np.int32)
    yield _classes("all close", 1.0 + close[None], label, dtype)
    yield _classes("nearly 1 ahead", ahead[None], label, dtype)


def _leniently(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Optax mixes integers and floats, which strict dtype promotion forbids."""

    def peer(*arguments: jax.Array) -> jax.Array:
        with jax.numpy_dtype_promotion("standard"):
            return loss(*map(jnp.asarray, arguments))

    return peer


_of_score = functools.partial(
    Row, value_ulps=HINGE_VALUE, gradient_ulps=HINGE_GRADIENT, hard_inputs=_signed((-1, 1))
)
_of_classes = functools.partial(
    Row,
    arguments=(SCORES, CLASS),
    hard_inputs=races,
    value_ulps=CLASS_HINGE_VALUE,
    gradient_ulps=CLASS_HINGE_GRADIENT,
    vocabulary_inputs=few_races,
)

ROWS: tuple[Row, ...] = (
    _of_score(
        jaxent.hinge_loss,
        (OUTPUTS, SIGNS),
        truth.hinge_loss,
        curvature_scale=truth.sign_jumps(1.0),
        peer=_leniently(optax.losses.hinge_loss),
    ),
    _of_score(
        jaxent.perceptron_loss,
        (OUTPUTS, SIGNS),
        truth.perceptron_loss,
        curvature_scale=truth.sign_jumps(0.0),
        peer=_leniently(optax.losses.perceptron_loss),
    ),
    Row(
        jaxent.sparsemax_loss,
        (BINARY_LOGITS, YES_OR_NO),
        truth.sparsemax_loss,
        _signed((0, 1)),
        BINARY_VALUE,
        BINARY_GRADIENT,
        curvature_scale=truth.binary_sparsemax_jumps,
        peer=optax.losses.sparsemax_loss,
    ),
    _of_classes(
        jaxent.multiclass_hinge_loss,
        truth=truth.multiclass_hinge_loss,
        curvature_scale=truth.class_jumps(1),
        peer=optax.losses.multiclass_hinge_loss,
    ),
    _of_classes(
        jaxent.multiclass_perceptron_loss,
        truth=truth.multiclass_perceptron_loss,
        curvature_scale=truth.class_jumps(0),
        peer=optax.losses.multiclass_perceptron_loss,
    ),
    _of_classes(
        jaxent.multiclass_sparsemax_loss,
        truth=truth.multiclass_sparsemax_loss,
        value_ulps=SPARSEMAX_VALUE,
        gradient_ulps=SPARSEMAX_GRADIENT,
        curvature_scale=truth.sparsemax_jumps,
        peer=_leniently(optax.losses.multiclass_sparsemax_loss),
    ),
)
NOT_LOSSES = {"make_fenchel_young_loss": "test_fenchel_young.py"}
