"""The rows of losses of images: ordinary ones, what hides pixels, and hard inputs."""

import functools
import inspect
from collections.abc import Iterator
from typing import Any

import jax
import ml_dtypes
import numpy as np
import optax.losses
import truth_segmentation
from contract_row import Row
from contract_whole import Arrays, Hidden, Whole
from families import Family

import jaxent

# Worst error allowed, in units in the last place; what an ulp is of, truth_segmentation says.
DICE_VALUE, DICE_GRADIENT = 4, 8
# The logarithm of the loss multiplies what rounding takes from the exponent.
FOCAL_VALUE, FOCAL_GRADIENT = 16, 16
LOVASZ_VALUE, LOVASZ_GRADIENT = 4, 8

IMAGES, PIXELS, CLASSES = 2, 4, 3
# Earlier releases add half as much smoothing.
OPTAX_HAS_IT = "alpha" in inspect.signature(optax.losses.dice_loss).parameters


# --- ordinary arguments ---------------------------------------------------------------------------


def logits_and_shares(generator: np.random.Generator) -> Arrays:
    shape = (IMAGES, PIXELS, CLASSES)
    return 2 * generator.normal(size=shape), generator.random(shape)


def shares_and_labels(generator: np.random.Generator) -> Arrays:
    # Of few digits: they add up to 1 in every dtype.
    shares = generator.multinomial(64, np.full(CLASSES, 1 / CLASSES), size=(IMAGES, PIXELS)) / 64
    return shares, _one_hot(generator.integers(CLASSES, size=(IMAGES, PIXELS)))


def scores_and_shares(generator: np.random.Generator) -> Arrays:
    return 2 * generator.normal(size=(IMAGES, PIXELS)), generator.random((IMAGES, PIXELS))


def scores_and_marks(generator: np.random.Generator) -> Arrays:
    scores, shares = scores_and_shares(generator)
    return scores, (shares > 0.5).astype(int)


def logits_and_labels(generator: np.random.Generator) -> Arrays:
    logits, _ = logits_and_shares(generator)
    return logits, generator.integers(CLASSES, size=(IMAGES, PIXELS))


def _one_hot(labels: np.ndarray) -> np.ndarray:
    return (np.arange(CLASSES) == labels[..., None]).astype(float)


# --- what does not count --------------------------------------------------------------------------


def hide_pixels(generator: np.random.Generator, arguments: Arrays) -> Hidden:
    where = generator.random((IMAGES, PIXELS)) < 0.6
    where[0, 0], where[1, 1] = True, False
    return _hidden(where, arguments)


def hide_images(arguments: Arrays) -> Hidden:
    return _hidden(np.zeros((IMAGES, PIXELS), bool), arguments)


def hide_classes(generator: np.random.Generator, arguments: Arrays) -> Hidden:
    where = generator.random((IMAGES, PIXELS, CLASSES)) < 0.7
    where[..., 0], where[0, :, 1] = True, False
    return _hidden(where, arguments)


def _hidden(where: np.ndarray, arguments: Arrays) -> Hidden:
    elements = (
        np.broadcast_to(~(where if where.ndim == a.ndim else where[..., None]), a.shape)
        for a in arguments
    )
    return Hidden(arguments, {"where": where}, tuple(elements))


# --- hard inputs ----------------------------------------------------------------------------------


def one_region(dtype: Any) -> Iterator[Family]:
    """Scores [1, IMAGES, PIXELS] with what is true of them: right, wrong, empty, full, in part."""
    generator = np.random.default_rng(5)
    largest = float(ml_dtypes.finfo(dtype).max)
    smallest = float(ml_dtypes.finfo(dtype).smallest_normal)
    shape = (1, IMAGES, PIXELS)
    normal = functools.partial(generator.normal, size=shape)
    marks = (generator.random(shape) < 0.5).astype(float)
    marks[..., :2] = 0.0, 1.0
    side = 2 * marks - 1
    scores = {f"scale {scale:g}": scale * normal() for scale in (0.1, 1.0, 10.0, 100.0)}
    scores |= {f"right by {size}": side * (size + normal()) for size in (5, 20, 40, 70)}
    scores |= {f"wrong by {size}": -side * (size + normal()) for size in (5, 20, 40, 70)}
    scores |= {
        "zeros": 0.0 * side,
        "tiny": smallest * normal(),
        "huge and right": side * largest * generator.uniform(0.1, 1.0, size=shape),
        "certain and right": side * np.inf,
        "certain, one wrong": side * np.where(np.arange(PIXELS) == 1, -np.inf, np.inf),
    }
    for name, logits in scores.items():
        for kind, targets in {
            "hard": marks,
            "soft": generator.random(shape),
            "nearly hard": np.clip(marks, 1e-6, 1 - 1e-6),
            "nothing there": 0.0 * marks,
            "everything": 0.0 * marks + 1.0,
        }.items():
            yield Family(f"{name}, {kind}", (logits.astype(dtype), targets.astype(dtype)))


def regions(dtype: Any) -> Iterator[Family]:
    """Logits [1, IMAGES, PIXELS, CLASSES] with targets alike, of which class 2 may be absent."""
    generator = np.random.default_rng(6)
    shape = (1, IMAGES, PIXELS, CLASSES)
    labels = generator.integers(2, size=shape[:-1])
    labels[..., :2] = 0, 1
    for name, logits in _logits(dtype, labels):
        for kind, targets in {
            "one-hot": _one_hot(labels),
            "soft": generator.dirichlet(np.ones(CLASSES), size=shape[:-1]),
            "of any total": generator.random(shape),
            "nothing there": np.zeros(shape),
        }.items():
            yield Family(f"{name}, {kind}", (logits, targets.astype(dtype)))


def _logits(dtype: Any, labels: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    generator = np.random.default_rng(7)
    largest = float(ml_dtypes.finfo(dtype).max)
    true, shape = _one_hot(labels), (*labels.shape, CLASSES)
    false = np.roll(true, 1, axis=-1)
    normal = functools.partial(generator.normal, size=shape)
    for scale in (0.1, 1.0, 10.0, 100.0):
        yield f"scale {scale:g}", (scale * normal()).astype(dtype)
    for size in (5, 20, 40, 70):
        yield f"right by {size}", (size * true + normal()).astype(dtype)
        yield f"wrong by {size}", (size * false + normal()).astype(dtype)
        yield f"right by {size} at 300", (size * true + normal() + 300).astype(dtype)
    last = np.arange(CLASSES) == CLASSES - 1
    yield "last class impossible", np.where(last, -np.inf, 4 * normal()).astype(dtype)
    yield "only the true class possible", np.where(true > 0, normal(), -np.inf).astype(dtype)
    yield "all equal", np.full(shape, 2.5).astype(dtype)
    yield "huge", (largest * generator.uniform(-1, 1, size=shape)).astype(dtype)


def moderate(families, dtype: Any) -> Iterator[Family]:
    """Without those that predict nothing at all, to the last digit."""
    for family in families(dtype):
        if not any(word in family.name for word in ("huge", "certain", "70", "100", "impossible")):
            yield family


def shares_of_pixels(dtype: Any) -> Iterator[Family]:
    """Probabilities in place of logits, rounded: any, nearly certain, certain."""
    generator = np.random.default_rng(8)
    shape = (1, IMAGES, PIXELS, CLASSES)
    labels = generator.integers(CLASSES, size=shape[:-1])
    true = _one_hot(labels)
    for name, shares in {
        "any": generator.dirichlet(np.ones(CLASSES), size=shape[:-1]),
        "sparse": generator.dirichlet(np.full(CLASSES, 0.05), size=shape[:-1]),
        "right": true,
        "wrong": np.roll(true, 1, axis=-1),
        "nearly right": 0.999 * true + 0.001 / CLASSES,
    }.items():
        yield Family(name, (shares.astype(dtype), true.astype(dtype)))


def marked(dtype: Any) -> Iterator[Family]:
    """Scores [1, IMAGES, PIXELS] with booleans as integers: margins, ties, empty and full."""
    for family in one_region(dtype):
        # Margins of 1 that differ by less than a rounding are equal, and their order is not.
        if not any(word in family.name for word in ("soft", "nearly", "certain", "tiny")):
            logits, targets = family.arrays
            yield Family(family.name, (logits, targets.astype(np.int32)))
    whole = np.array([[[1.0, -1.0, 1.0, -1.0], [0.5, 0.5, 0.5, -0.5]]])
    for kind, targets in {"mixed": [[1, 0, 0, 1], [1, 1, 0, 0]], "all": [[1] * 4] * 2}.items():
        yield Family(f"ties, {kind}", (whole.astype(dtype), np.array([targets], np.int32)))
    near = np.nextafter(np.array(1.0, dtype), np.array([0.0, 2.0, 0.0, 2.0], dtype))
    near = np.broadcast_to(near, (1, IMAGES, PIXELS))
    yield Family("at the margin", (near, np.array([[[1, 1, 1, 0], [1, 1, 1, 1]]], np.int32)))


def _has_hidden_ties(name: str, dtype: Any) -> bool:
    """Whether pixels may be equally wrong, on paper, with different logits.

    Then a rounding decides about their order, and so about the gradient.
    """
    of_two = "last class impossible" in name and np.dtype(dtype).itemsize < 4
    return name == "all equal" or "at 300" in name or of_two


def labelled(dtype: Any) -> Iterator[Family]:
    """Logits [1, IMAGES, PIXELS, CLASSES] with labels, of which not all classes need be there."""
    generator = np.random.default_rng(9)
    for kind, labels in {
        "all classes": np.array([[[0, 1, 2, 1], [2, 1, 0, 0]]]),
        "two classes": np.array([[[0, 1, 1, 1], [2, 2, 0, 0]]]),
        "one class": np.array([[[1, 1, 1, 1], [0, 0, 0, 0]]]),
    }.items():
        for name, logits in _logits(dtype, labels):
            if not _has_hidden_ties(name, dtype):
                yield Family(f"{name}, {kind}", (logits, labels.astype(np.int32)))
        # Pixels that are alike to the last digit.
        pixel = (3 * generator.normal(size=CLASSES)).astype(dtype)
        same = np.broadcast_to(pixel, (1, IMAGES, PIXELS, CLASSES))
        yield Family(f"ties, {kind}", (same, labels.astype(np.int32)))


def _generalized_of_optax(*arguments: Any, **options: Any) -> jax.Array:
    with jax.numpy_rank_promotion("allow"):
        return optax.losses.multiclass_generalized_dice_loss(*arguments, **options)


# --- rows -----------------------------------------------------------------------------------------

_dice = functools.partial(
    Whole,
    jaxent.dice_loss,
    make=logits_and_shares,
    truth=truth_segmentation.dice_loss,
    hard_inputs=regions,
    value_ulps=DICE_VALUE,
    gradient_ulps=DICE_GRADIENT,
    hide=hide_pixels,
    hide_all=hide_images,
    peer=optax.losses.dice_loss if OPTAX_HAS_IT else None,
)
_tversky = functools.partial(
    Whole,
    jaxent.tversky_loss,
    make=logits_and_shares,
    truth=functools.partial(truth_segmentation.dice_loss, alpha=0.3, beta=0.7),
    hard_inputs=regions,
    value_ulps=DICE_VALUE,
    gradient_ulps=DICE_GRADIENT,
    hide=hide_pixels,
    hide_all=hide_images,
)

WHOLES: tuple[Whole, ...] = (
    _dice(),
    _dice(hide=hide_classes, options={"alpha": 0.3, "beta": 0.8, "smooth": 0.25}),
    _dice(hard_inputs=functools.partial(moderate, regions), options={"smooth": 0.0}),
    _dice(
        make=shares_and_labels,
        hard_inputs=shares_of_pixels,
        options={"apply_softmax": False},
        peer=None,
        has_curvature=False,  # differences step to what is no distribution
    ),
    Whole(
        jaxent.binary_dice_loss,
        scores_and_shares,
        truth_segmentation.binary_dice_loss,
        one_region,
        DICE_VALUE,
        DICE_GRADIENT,
        hide=hide_pixels,
        hide_all=hide_images,
        peer=optax.losses.binary_dice_loss if OPTAX_HAS_IT else None,
    ),
    Whole(
        jaxent.multiclass_generalized_dice_loss,
        logits_and_shares,
        truth_segmentation.multiclass_generalized_dice_loss,
        regions,
        DICE_VALUE,
        DICE_GRADIENT,
        hide=hide_pixels,
        hide_all=hide_images,
        peer=_generalized_of_optax if OPTAX_HAS_IT else None,
    ),
    _tversky(),
    _tversky(
        value_ulps=FOCAL_VALUE,
        gradient_ulps=FOCAL_GRADIENT,
        hard_inputs=functools.partial(moderate, regions),
        options={"gamma": 4 / 3},
    ),
    Whole(
        jaxent.lovasz_hinge,
        scores_and_marks,
        truth_segmentation.lovasz_hinge,
        marked,
        LOVASZ_VALUE,
        LOVASZ_GRADIENT,
        hide=hide_pixels,
        hide_all=hide_images,
        has_curvature=False,
    ),
    *(
        Whole(
            jaxent.lovasz_softmax,
            logits_and_labels,
            truth_segmentation.lovasz_softmax,
            labelled,
            LOVASZ_VALUE,
            LOVASZ_GRADIENT,
            options={"classes": classes},
            hide=hide_pixels,
            hide_all=hide_images,
        )
        for classes in ("present", "all")
    ),
)
ROWS: tuple[Row, ...] = ()
NOT_LOSSES = dict.fromkeys((whole.name for whole in WHOLES), "test_segmentation.py")
