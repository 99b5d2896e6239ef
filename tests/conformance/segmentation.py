"""The cases of the losses of segmentations: references, hard inputs and bars.

An image is a list of pixels, a pixel a list of classes, and a call a list of images, whose losses
are summed. Slopes along logits are sums over pairs of classes: an ulp of one is that of the sum of
their absolute terms.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import ml_dtypes
import mpmath
import numpy as np
import optax.losses
from mpmath import mpf

import jaxent
from conformance import oracle
from conformance.case import Arrays, Case, Hidden, WholeCase
from conformance.inputs import Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


Pixels = Sequence[Sequence[Number]]


def dice_loss(images: Sequence[Pixels], targets: Sequence[Pixels], **options) -> Truth:
    """The sum over images of the mean over classes of ``1 - (TP + s) / (TP + a FP + b FN + s)``."""
    share = mpf(1) / len(images[0][0])
    every = [
        _dice(image, target, share, **options)
        for image, target in zip(images, targets, strict=True)
    ]
    return _summed(every)


def binary_dice_loss(images, targets, *, apply_sigmoid: bool = True, **options) -> Truth:
    """The same of pixels that are numbers."""
    pixels = [[[pixel] for pixel in image] for image in images], [[[t] for t in i] for i in targets]
    truth = dice_loss(*pixels, apply_softmax=apply_sigmoid, **options)

    def flat(gradients):
        return tuple([[pixel[0] for pixel in image] for image in images] for images in gradients)

    return Truth(truth.value, flat(truth.gradients), truth.value_scale, flat(truth.gradient_scales))


def multiclass_generalized_dice_loss(images, targets, **options) -> Truth:
    """The mean of the losses of each class, weighted by ``1 / (f^2 + 1e-7)``."""
    size, classes = len(images), range(len(images[0][0]))
    counts = [mpmath.fsum(t[c] for target in targets for t in target) for c in classes]
    rarity = [1 / (f**2 + mpf("1e-7")) for f in counts]
    total = mpmath.fsum(rarity)
    weights = [r / total / size for r in rarity]
    every = [
        _dice(image, target, weights, **options)
        for image, target in zip(images, targets, strict=True)
    ]
    of_class = [
        mpmath.fsum(_class_losses(i, t, **options)[c] for i, t in zip(images, targets, strict=True))
        for c in classes
    ]
    truth = _summed(every)
    by_weight = [
        (
            mpmath.fsum(weights[k] * (of_class[c] - of_class[k]) for k in classes),
            mpmath.fsum(weights[k] * (of_class[c] + of_class[k]) for k in classes if k != c),
        )
        for c in classes
    ]
    moved, scale = (
        [-2 * f * r**2 / total * d[i] for f, r, d in zip(counts, rarity, by_weight, strict=True)]
        for i in (0, 1)
    )

    def plus(gradients, extra):
        return [
            [[g + e for g, e in zip(p, extra, strict=True)] for p in image] for image in gradients
        ]

    gradients = (truth.gradients[0], plus(truth.gradients[1], moved))
    scales = (truth.gradient_scales[0], plus(truth.gradient_scales[1], [-s for s in scale]))
    return Truth(truth.value, gradients, truth.value_scale, scales)


def lovasz_hinge(images: Sequence[Sequence[Number]], labels: Sequence[Sequence[int]]) -> Truth:
    """The Lovász extension of the Jaccard loss at the hinge errors of each image, summed."""
    value, gradients = mpf(0), []
    for image, truths in zip(images, labels, strict=True):
        signs = [2 * label - 1 for label in truths]
        errors = [1 - sign * logit for sign, logit in zip(signs, image, strict=True)]
        steps = _jaccard_steps(errors, truths)
        value += mpmath.fsum(
            step * error for step, error in zip(steps, errors, strict=True) if error > 0
        )
        rows = zip(steps, signs, errors, strict=True)
        gradients.append([-sign * step if error > 0 else mpf(0) for step, sign, error in rows])
    return Truth(value, (gradients,), value, (gradients,))


def lovasz_softmax(images: Sequence[Pixels], labels, *, classes: str = "present") -> Truth:
    """The mean over classes of the extension at ``|[y = c] - p_c|``, summed over images."""
    value, gradients, scales = mpf(0), [], []
    for image, truths in zip(images, labels, strict=True):
        probabilities = [oracle.softmax(pixel)[0] for pixel in image]
        every = range(len(image[0]))
        chosen = [c for c in every if classes == "all" or c in truths]
        slopes = [[mpf(0) for _ in every] for _ in image]
        for c in chosen:
            is_true = [int(label == c) for label in truths]
            errors = [
                1 - p[c] if true else p[c] for p, true in zip(probabilities, is_true, strict=True)
            ]
            steps = _jaccard_steps(errors, is_true)
            value += mpmath.fsum(s * e for s, e in zip(steps, errors, strict=True)) / len(chosen)
            for pixel, (step, true) in enumerate(zip(steps, is_true, strict=True)):
                slopes[pixel][c] = (-step if true else step) / len(chosen)
        along = [_along_logits(p, u, u) for p, u in zip(probabilities, slopes, strict=True)]
        gradients.append([slope for slope, _ in along])
        scales.append([scale for _, scale in along])
    return Truth(value, (gradients,), value, (scales,))


def _jaccard_steps(errors: Sequence[Number], is_true: Sequence[int]) -> list[Number]:
    """What each pixel adds to ``|M| / |true or M|`` in decreasing order of the errors."""
    steps, before, wrong, union = [mpf(0)] * len(errors), mpf(0), 0, sum(is_true)
    for pixel in sorted(range(len(errors)), key=lambda i: -errors[i]):
        wrong, union = wrong + 1, union + (not is_true[pixel])
        after = mpf(wrong) / union
        steps[pixel], before = after - before, after
    return steps


# Overlaps.


def _parts(image: Pixels, apply_softmax: bool) -> tuple[Pixels, Callable]:
    """The probabilities, and the slopes along the predictions given those along them."""
    if not apply_softmax:
        return image, lambda p, slopes, scales: (slopes, scales)
    if len(image[0]) == 1:
        ps = [[1 / (1 + mpmath.exp(-pixel[0]))] for pixel in image]
        return ps, lambda p, slopes, scales: tuple(
            [
                u * p[0] / (1 + mpmath.exp(mpmath.log(p[0] / (1 - p[0]))))
                if 0 < p[0] < 1
                else mpf(0)
                for u in each
            ]
            for each in (slopes, scales)
        )
    return [oracle.softmax(pixel)[0] for pixel in image], _along_logits


def _along_logits(p, slopes, scales) -> tuple[list[Number], list[Number]]:
    """``p_j sum_k p_k (u_j - u_k)`` for each class, and its absolute terms."""
    every = range(len(p))
    return (
        [p[j] * mpmath.fsum(p[k] * (slopes[j] - slopes[k]) for k in every) for j in every],
        [
            p[j] * mpmath.fsum(p[k] * (abs(scales[j]) + abs(scales[k])) for k in every if k != j)
            for j in every
        ],
    )


def _sums(ps: Pixels, targets: Pixels, c: int) -> tuple[Number, Number, Number]:
    pairs = [(p[c], t[c]) for p, t in zip(ps, targets, strict=True)]
    return (
        mpmath.fsum(p * t for p, t in pairs),
        mpmath.fsum(p * (1 - t) for p, t in pairs),
        mpmath.fsum((1 - p) * t for p, t in pairs),
    )


def _class_losses(image, targets, *, smooth=1.0, alpha=0.5, beta=0.5, apply_softmax=True) -> list:
    ps, _ = _parts(image, apply_softmax)
    losses = []
    for c in range(len(image[0])):
        hits, extra, missed = _sums(ps, targets, c)
        total = hits + mpf(alpha) * extra + mpf(beta) * missed + mpf(smooth)
        losses.append(1 - (hits + mpf(smooth)) / total if total else mpf(0))
    return losses


def _dice(
    image, targets, weights, *, smooth=1.0, alpha=0.5, beta=0.5, gamma=1.0, apply_softmax=True
) -> Truth:
    smooth, alpha, beta, gamma = map(mpf, (smooth, alpha, beta, gamma))
    ps, along = _parts(image, apply_softmax)
    classes = range(len(image[0]))
    weights = weights if isinstance(weights, list) else [weights] * len(classes)
    value, slopes = mpf(0), {c: [] for c in classes}
    for c in classes:
        hits, extra, missed = _sums(ps, targets, c)
        gone, kept = alpha * extra + beta * missed, hits + smooth
        total = gone + kept
        loss = gone / total if total else mpf(0)
        powered = loss ** (1 / gamma) if loss else mpf(0)
        value += weights[c] * powered
        factor = weights[c] * (powered / loss / gamma / total**2 if loss else mpf(0))
        if gamma == 1:
            factor = weights[c] / total**2 if total else mpf(0)
        for p, t in zip(ps, targets, strict=True):
            p, t = p[c], t[c]
            of_p = factor * (kept * alpha * (1 - t)), factor * (kept * beta * t + gone * t)
            of_t = factor * kept * beta * (1 - p), factor * (kept * alpha * p + gone * p)
            slopes[c].append((of_p[0] - of_p[1], sum(of_p), of_t[0] - of_t[1], sum(of_t)))
    rows = range(len(image))
    moved = [
        along(ps[i], [slopes[c][i][0] for c in classes], [slopes[c][i][1] for c in classes])
        for i in rows
    ]
    gradients = [m[0] for m in moved], [[slopes[c][i][2] for c in classes] for i in rows]
    scales = [m[1] for m in moved], [[slopes[c][i][3] for c in classes] for i in rows]
    return Truth(value, gradients, value, scales)


def _summed(every: Sequence[Truth]) -> Truth:
    """The truth of a sum of images."""
    return Truth(
        mpmath.fsum(t.value for t in every),
        tuple(list(g) for g in zip(*(t.gradients for t in every), strict=True)),
        mpmath.fsum(t.value_scale for t in every),
        tuple(list(g) for g in zip(*(t.gradient_scales for t in every), strict=True)),
    )


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place; what an ulp is of, the references say.
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

_dice_case = functools.partial(
    WholeCase,
    jaxent.dice_loss,
    make=logits_and_shares,
    truth=dice_loss,
    hard_inputs=regions,
    value_ulps=DICE_VALUE,
    gradient_ulps=DICE_GRADIENT,
    hide=hide_pixels,
    hide_all=hide_images,
    peer=optax.losses.dice_loss if OPTAX_HAS_IT else None,
)
_tversky = functools.partial(
    WholeCase,
    jaxent.tversky_loss,
    make=logits_and_shares,
    truth=functools.partial(dice_loss, alpha=0.3, beta=0.7),
    hard_inputs=regions,
    value_ulps=DICE_VALUE,
    gradient_ulps=DICE_GRADIENT,
    hide=hide_pixels,
    hide_all=hide_images,
)

WHOLE_CASES: tuple[WholeCase, ...] = (
    _dice_case(),
    _dice_case(hide=hide_classes, options={"alpha": 0.3, "beta": 0.8, "smooth": 0.25}),
    _dice_case(hard_inputs=functools.partial(moderate, regions), options={"smooth": 0.0}),
    _dice_case(
        make=shares_and_labels,
        hard_inputs=shares_of_pixels,
        options={"apply_softmax": False},
        peer=None,
        has_curvature=False,  # differences step to what is no distribution
    ),
    WholeCase(
        jaxent.binary_dice_loss,
        scores_and_shares,
        binary_dice_loss,
        one_region,
        DICE_VALUE,
        DICE_GRADIENT,
        hide=hide_pixels,
        hide_all=hide_images,
        peer=optax.losses.binary_dice_loss if OPTAX_HAS_IT else None,
    ),
    WholeCase(
        jaxent.multiclass_generalized_dice_loss,
        logits_and_shares,
        multiclass_generalized_dice_loss,
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
    WholeCase(
        jaxent.lovasz_hinge,
        scores_and_marks,
        lovasz_hinge,
        marked,
        LOVASZ_VALUE,
        LOVASZ_GRADIENT,
        hide=hide_pixels,
        hide_all=hide_images,
        has_curvature=False,
    ),
    *(
        WholeCase(
            jaxent.lovasz_softmax,
            logits_and_labels,
            lovasz_softmax,
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
CASES: tuple[Case, ...] = ()
NOT_LOSSES = dict.fromkeys((whole.name for whole in WHOLE_CASES), "losses/test_segmentation.py")
