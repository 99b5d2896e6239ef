"""The rows of Keras."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from project.migration.case import Case, f32, i32

LOGITS = f32([8.0, 0.0, -3.0, 1.0], [0.5, 0.5, 0.5, 0.5], [60.0, 58.0, 50.0, 59.0], [0, 1, 0, -2])
LABELS = i32(1, 2, 0, 3)
ONE_HOT = np.eye(4, dtype=np.float32)[LABELS]
TARGETS = f32([0.7, 0.1, 0.1, 0.1], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0.5, 0.5])
# Each row sums to 1, and none of those that matter is below the 1e-7 at which Keras cuts.
PROBS = f32(
    [0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.25, 0.0], [0.0625, 0.0625, 0.375, 0.5], [0, 0, 0, 1]
)
X = f32([-4.0, -0.3, 0.0], [0.5, 2.0, 12.0])
Y = f32([1.0, 0.0, 1.0], [0.0, 1.0, 0.0])
P = f32([0.9, 0.2, 1e-3], [0.5, 0.999, 0.4])
SIGNS = f32([1, -1, 1], [-1, 1, -1])
# Two images of 2 x 2 pixels and two classes.
MASKS = f32([[[1, 0], [1, 0]], [[0, 1], [1, 0]]], [[[0, 1], [0, 1]], [[0, 1], [0, 1]]])
PIXELS = f32(
    [[[0.9, 0.1], [0.3, 0.7]], [[0.5, 0.5], [1, 0]]], [[[0.2, 0.8], [0, 1]], [[0.6, 0.4], [0, 1]]]
)
UNIT = f32([1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.6, 0.8], [-1.0, 0.0])
GROUPS = i32(0, 0, 1, 1, 2)
FRAMES = np.random.default_rng(7).normal(size=(2, 6, 4)).astype(np.float32) * np.float32(3.0)
LINES = i32([1, 1, 3], [2, 0, 0])
EPS = 1e-7


def each(name: str, **options: Any) -> Any:
    """The losses of a class of Keras, one per example."""
    return lambda losses, x, y: getattr(losses, name)(reduction=None, **options)(y, x)


def mean(name: str, **options: Any) -> Any:
    """The mean that a class of Keras gives by default."""
    return lambda losses, x, y: getattr(losses, name)(**options)(y, x)


def log_odds(p: jax.Array) -> jax.Array:
    return jax.scipy.special.logit(jnp.clip(p, EPS, 1.0 - EPS))


def tversky_of_batch(p: jax.Array, t: jax.Array) -> jax.Array:
    pixels, truth = p.reshape(1, -1, 1), t.reshape(1, -1, 1)
    return jaxent.tversky_loss(pixels, truth, alpha=0.7, beta=0.2, smooth=0.0, apply_softmax=False)[
        0
    ]


def dice_of_batch(p: jax.Array, t: jax.Array) -> jax.Array:
    pixels, truth = p.reshape(1, -1), t.reshape(1, -1)
    return jaxent.binary_dice_loss(pixels, truth, smooth=0.0, apply_sigmoid=False)[0]


def dice_of_images(p: jax.Array, t: jax.Array) -> jax.Array:
    pixels, truth = p.reshape(len(p), -1), t.reshape(len(t), -1)
    return jaxent.binary_dice_loss(pixels, truth, smooth=0.0, apply_sigmoid=False)


def floored_hinge(scores: jax.Array, labels: jax.Array) -> jax.Array:
    return jaxent.multiclass_hinge_loss(jnp.pad(scores, ((0, 0), (0, 1))), labels)


def alignment(logits: jax.Array, lines: jax.Array) -> jax.Array:
    paddings = jnp.zeros(logits.shape[:2])
    return jaxent.ctc_loss(logits, paddings, lines, (lines == 0).astype(jnp.float32))


def circle(x: jax.Array, groups: jax.Array) -> jax.Array:
    losses = jaxent.circle_loss(x, groups, margin=0.4, gamma=80.0)
    return jaxent.mean(losses, where=losses > 0.0)


CASES = (
    Case(
        "`SparseCategoricalCrossentropy(from_logits=True)`",
        "losses",
        (LOGITS, LABELS),
        jaxent.softmax_cross_entropy_with_integer_labels,
        each("SparseCategoricalCrossentropy", from_logits=True),
    ),
    Case(
        "`SparseCategoricalCrossentropy(from_logits=True)`",
        "ignore_class, in the mean",
        (LOGITS, i32(1, -1, 0, 3)),
        lambda x, y: jaxent.mean(
            jaxent.softmax_cross_entropy_with_integer_labels(x, y, where=y != -1), where=y != -1
        ),
        mean("SparseCategoricalCrossentropy", from_logits=True, ignore_class=-1),
    ),
    Case(
        "`SparseCategoricalCrossentropy()`",
        "losses",
        (PROBS, i32(0, 1, 3, 3)),
        lambda p, y: jaxent.categorical_cross_entropy(p, jax.nn.one_hot(y, 4)),
        each("SparseCategoricalCrossentropy"),
        "value",
    ),
    Case(
        "`CategoricalCrossentropy(from_logits=True)`",
        "label_smoothing",
        (LOGITS, TARGETS),
        lambda x, t: jaxent.softmax_cross_entropy(x, t, label_smoothing=0.1),
        each("CategoricalCrossentropy", from_logits=True, label_smoothing=0.1),
    ),
    Case(
        "`CategoricalCrossentropy()`",
        "losses",
        (PROBS[[0, 2]], TARGETS[[0, 2]]),
        jaxent.categorical_cross_entropy,
        each("CategoricalCrossentropy"),
        "value",
    ),
    Case(
        "`CategoricalCrossentropy()`",
        "label_smoothing; Keras divides by the sum of the probabilities in its gradient too",
        (PROBS[:1], TARGETS[:1]),
        lambda p, t: jaxent.categorical_cross_entropy(
            p / jnp.sum(p, axis=-1, keepdims=True), jaxent.smooth_labels(t, 0.1)
        ),
        each("CategoricalCrossentropy", label_smoothing=0.1),
    ),
    Case(
        "`CategoricalCrossentropy()`",
        "a true class of probability 0",
        (f32([1.0, 0.0]), f32([0.0, 1.0])),
        jaxent.categorical_cross_entropy,
        each("CategoricalCrossentropy"),
        "nothing",
        value=[np.inf],
        gradient=[[0.0, -np.inf]],
    ),
    Case(
        "`BinaryCrossentropy(from_logits=True)`",
        "label_smoothing",
        (X, Y),
        lambda x, y: jnp.mean(
            jaxent.sigmoid_binary_cross_entropy(x, y, label_smoothing=0.1), axis=-1
        ),
        each("BinaryCrossentropy", from_logits=True, label_smoothing=0.1),
    ),
    Case(
        "`BinaryCrossentropy()`",
        "losses",
        (P, Y),
        lambda p, y: jnp.mean(jaxent.binary_cross_entropy(p, y), axis=-1),
        each("BinaryCrossentropy"),
    ),
    Case(
        "`BinaryCrossentropy()`",
        "certain and wrong",
        (f32([0.0]), f32([1.0])),
        jaxent.binary_cross_entropy,
        each("BinaryCrossentropy"),
        "nothing",
        value=[np.inf],
        gradient=[-np.inf],
    ),
    Case(
        "`BinaryFocalCrossentropy(from_logits=True)`",
        "losses",
        (X[:1], Y[:1]),
        lambda x, y: jnp.mean(jaxent.sigmoid_focal_loss(x, y), axis=-1),
        each("BinaryFocalCrossentropy", from_logits=True),
    ),
    Case(
        "`BinaryFocalCrossentropy(from_logits=True)`",
        "apply_class_balancing",
        (X[:1], Y[:1]),
        lambda x, y: jnp.mean(jaxent.sigmoid_focal_loss(x, y, alpha=0.25), axis=-1),
        each("BinaryFocalCrossentropy", from_logits=True, apply_class_balancing=True),
    ),
    Case(
        "`BinaryFocalCrossentropy(from_logits=True)`",
        "a wrong logit of 12, of which the probability keeps three digits",
        (f32([12.0]), f32([0.0])),
        lambda x, y: jnp.mean(jaxent.sigmoid_focal_loss(x, y), axis=-1),
        each("BinaryFocalCrossentropy", from_logits=True),
        "nothing",
        value=11.99985868,
    ),
    Case(
        "`BinaryFocalCrossentropy()`",
        "losses",
        (P, Y),
        lambda p, y: jnp.mean(jaxent.sigmoid_focal_loss(log_odds(p), y), axis=-1),
        each("BinaryFocalCrossentropy"),
    ),
    Case(
        "`CategoricalFocalCrossentropy(from_logits=True)`",
        "losses",
        (LOGITS, ONE_HOT),
        lambda x, t: 0.25 * jaxent.softmax_focal_loss(x, jnp.argmax(t, axis=-1)),
        each("CategoricalFocalCrossentropy", from_logits=True),
    ),
    Case(
        "`CategoricalFocalCrossentropy()`",
        "losses",
        (PROBS[:1], ONE_HOT[:1]),
        lambda p, t: (
            0.25
            * jaxent.softmax_focal_loss(
                jnp.log(jnp.clip(p, EPS, 1.0 - EPS)), jnp.argmax(t, axis=-1)
            )
        ),
        each("CategoricalFocalCrossentropy"),
    ),
    Case(
        "`CategoricalGeneralizedCrossEntropy(q)`",
        "losses",
        (LOGITS, LABELS),
        lambda x, y: jaxent.generalized_cross_entropy(x, y, q=0.5),
        lambda losses, x, y: losses.CategoricalGeneralizedCrossEntropy(q=0.5, reduction=None)(
            y, jax.nn.softmax(x)
        ),
    ),
    Case(
        "`KLDivergence`",
        "probabilities, with Keras' cut",
        (PROBS, TARGETS),
        lambda q, p: jaxent.kl_divergence(jnp.log(jnp.clip(q, EPS, 1.0)), jnp.clip(p, EPS, 1.0)),
        each("KLDivergence"),
    ),
    Case(
        "`KLDivergence`",
        "from logits, without a cut",
        (LOGITS, TARGETS),
        lambda x, p: jaxent.kl_divergence(jax.nn.log_softmax(x), p),
        lambda losses, x, p: losses.KLDivergence(reduction=None)(p, jax.nn.softmax(x)),
    ),
    Case(
        "`Poisson`",
        "rates, with Keras' epsilon",
        (f32([0.0, 0.5, 4.0], [1e-9, 0.0, 3.0]), f32([0, 3, 1], [2, 1, 0])),
        lambda rate, y: jnp.mean(jaxent.poisson_nll(jnp.log(rate + EPS), y) - EPS, axis=-1),
        each("Poisson"),
    ),
    Case(
        "`MeanSquaredError`, `MeanAbsoluteError`",
        "squared",
        (X, Y),
        lambda x, y: jnp.mean(jaxent.squared_error(x, y), axis=-1),
        each("MeanSquaredError"),
    ),
    Case(
        "`MeanSquaredError`, `MeanAbsoluteError`",
        "absolute",
        (X, Y),
        lambda x, y: jnp.mean(jaxent.absolute_error(x, y), axis=-1),
        each("MeanAbsoluteError"),
    ),
    Case(
        "`MeanSquaredLogarithmicError`",
        "losses",
        (f32([0.5, 3.0], [100.0, 2.0]), f32([0.0, 4.0], [90.0, 2.0])),
        lambda x, y: jnp.mean(jaxent.squared_error(jnp.log1p(x), jnp.log1p(y)), axis=-1),
        each("MeanSquaredLogarithmicError"),
        "value",
    ),
    Case(
        "`Huber`, `LogCosh`",
        "Huber",
        (X, Y),
        lambda x, y: jnp.mean(jaxent.huber_loss(x, y, delta=0.7), axis=-1),
        each("Huber", delta=0.7),
    ),
    Case(
        "`Huber`, `LogCosh`",
        "LogCosh",
        (X, Y),
        lambda x, y: jnp.mean(jaxent.log_cosh(x, y), axis=-1),
        each("LogCosh"),
    ),
    Case(
        "`Hinge`, `SquaredHinge`",
        "hinge",
        (X, SIGNS),
        lambda x, y: jnp.mean(jaxent.hinge_loss(x, y), axis=-1),
        each("Hinge"),
    ),
    Case(
        "`Hinge`, `SquaredHinge`",
        "hinge, of labels 0 and 1",
        (X, Y),
        lambda x, y: jnp.mean(jaxent.hinge_loss(x, 2 * y - 1), axis=-1),
        each("Hinge"),
    ),
    Case(
        "`Hinge`, `SquaredHinge`",
        "squared",
        (X, SIGNS),
        lambda x, y: jnp.mean(jnp.square(jaxent.hinge_loss(x, y)), axis=-1),
        each("SquaredHinge"),
    ),
    Case(
        "`CategoricalHinge`",
        "a rival of score 0 is always there",
        (f32([0.5, -2.0, -1.0], [-1.0, 3.0, 2.5], [4.0, 0.5, 0.25]), i32(0, 1, 0)),
        floored_hinge,
        lambda losses, x, y: losses.CategoricalHinge(reduction=None)(jax.nn.one_hot(y, 3), x),
    ),
    Case(
        "`CategoricalHinge`",
        "scores of rivals below 0",
        (f32([0.5, -2.0, -1.0]), i32(0)),
        jaxent.multiclass_hinge_loss,
        lambda losses, x, y: losses.CategoricalHinge(reduction=None)(jax.nn.one_hot(y, 3), x),
        "nothing",
        value=[0.0],
        gradient=[[0.0, 0.0, 0.0]],
    ),
    Case(
        "`CosineSimilarity`",
        "losses",
        (f32([3.0, 4.0, 0.0], [1e-3, 0.0, 2e-3]), f32([4.0, 3.0, 1.0], [1.0, 1.0, -1.0])),
        lambda a, b: -jaxent.cosine_similarity(a, b),
        each("CosineSimilarity"),
    ),
    Case(
        "`Dice`",
        "of the whole batch, the default",
        (PIXELS, MASKS),
        dice_of_batch,
        mean("Dice"),
    ),
    Case(
        "`Dice`",
        "axis=(1, 2, 3), one per image",
        (PIXELS, MASKS),
        dice_of_images,
        each("Dice", axis=(1, 2, 3)),
    ),
    Case(
        "`Dice`",
        "nothing there and nothing predicted",
        (f32([0.0, 0.0]), f32([0.0, 0.0])),
        dice_of_batch,
        mean("Dice"),
        "nothing",
        value=0.0,
        gradient=[[0.0, 0.0]],
    ),
    Case(
        "`Tversky(alpha=a, beta=b)`",
        "alpha and beta change places",
        (PIXELS, MASKS),
        tversky_of_batch,
        mean("Tversky", alpha=0.2, beta=0.7),
    ),
    Case("`CTC`", "losses", (FRAMES, LINES), alignment, each("CTC")),
    Case("`Circle`", "mean of what is not 0", (UNIT, GROUPS), circle, mean("Circle"), "value"),
    Case(
        "`Circle`",
        "Keras differentiates the weights of the pairs",
        (UNIT, GROUPS),
        lambda x, y: jaxent.circle_loss(x, y, margin=0.4, gamma=8.0),
        each("Circle", gamma=8.0),
        "nothing",
    ),
)
