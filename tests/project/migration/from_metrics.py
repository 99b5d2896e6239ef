"""The rows of scikit-learn and torchmetrics, which measure and do not train."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from project.migration.case import Case, f32, i32

PROBS = f32([0.5, 0.25, 0.25], [0.1, 0.8, 0.1], [0.0, 0.0, 1.0], [0.3, 0.3, 0.4])
OTHERS = f32([0.3, 0.3, 0.4], [0.2, 0.7, 0.1], [0.05, 0.05, 0.9], [0.1, 0.2, 0.7])
LABELS = i32(0, 1, 2, 0)
SCORES = f32([2.0, 0.5, -1.0], [0.0, 0.5, 0.75], [-2.0, -3.0, 4.0], [0.0, 0.0, 0.0])
WEIGHTS = f32(1.0, 0.5, 2.0, 0.0)
P, Y = f32(0.9, 0.2, 0.5, 0.4), i32(1, 0, 1, 1)
X, T = f32(-4.0, -0.3, 0.5, 3.0), f32(1.0, 0.0, 2.0, 3.0)
RATES, COUNTS = f32(0.5, 2.0, 4.0, 1e-3), f32(0.0, 3.0, 4.0, 1.0)
TABLE = np.array([[5, 1, 0], [2, 0, 7]])
SIDES = tuple(np.repeat(np.arange(n), TABLE.sum(1 - a)) for a, n in enumerate(TABLE.shape))

SCIKIT_LEARN = (
    Case(
        "`log_loss(y, p)`",
        "classes, with sample_weight",
        (PROBS, LABELS, WEIGHTS),
        lambda p, y, w: jaxent.mean(
            jaxent.categorical_cross_entropy(p, jax.nn.one_hot(y, 3)), weights=w
        ),
        lambda sk, p, y, w: sk.log_loss(y, p, sample_weight=w),
        "value",
    ),
    Case(
        "`log_loss(y, p)`",
        "yes and no",
        (P, Y),
        lambda p, y: jaxent.mean(jaxent.binary_cross_entropy(p, y)),
        lambda sk, p, y: sk.log_loss(y, p),
        "value",
    ),
    Case(
        "`log_loss(y, p)`",
        "certain and wrong",
        (f32([0.0, 1.0], [0.0, 1.0]), i32(0, 1)),
        lambda p, y: jaxent.mean(jaxent.categorical_cross_entropy(p, jax.nn.one_hot(y, 2))),
        lambda sk, p, y: sk.log_loss(y, p),
        "nothing",
        value=np.inf,
        differentiable=False,
    ),
    Case(
        "`brier_score_loss(y, p)`",
        "yes and no",
        (P, Y),
        lambda p, y: jaxent.mean(jaxent.squared_error(p, y)),
        lambda sk, p, y: sk.brier_score_loss(y, p),
        "value",
    ),
    Case(
        "`brier_score_loss(y, p)`",
        "classes",
        (PROBS, LABELS),
        lambda p, y: jaxent.mean(jaxent.brier_score(p, jax.nn.one_hot(y, 3))),
        lambda sk, p, y: sk.brier_score_loss(y, p),
        "value",
    ),
    Case(
        "`hinge_loss(y, x)`",
        "yes and no",
        (X, i32(0, 1, 1, 0)),
        lambda x, y: jaxent.mean(jaxent.hinge_loss(x, 2 * y - 1)),
        lambda sk, x, y: sk.hinge_loss(y, x),
        "value",
    ),
    Case(
        "`hinge_loss(y, x)`",
        "classes",
        (SCORES, LABELS),
        lambda x, y: jaxent.mean(jaxent.multiclass_hinge_loss(x, y)),
        lambda sk, x, y: sk.hinge_loss(y, x),
        "value",
    ),
    Case(
        "`mean_squared_error`, `mean_absolute_error`",
        "squared, with sample_weight",
        (X, T, WEIGHTS),
        lambda x, t, w: jaxent.mean(jaxent.squared_error(x, t), weights=w),
        lambda sk, x, t, w: sk.mean_squared_error(t, x, sample_weight=w),
        "value",
    ),
    Case(
        "`mean_squared_error`, `mean_absolute_error`",
        "absolute",
        (X, T),
        lambda x, t: jaxent.mean(jaxent.absolute_error(x, t)),
        lambda sk, x, t: sk.mean_absolute_error(t, x),
        "value",
    ),
    Case(
        "`mean_pinball_loss(alpha=a)`",
        "mean",
        (X, T),
        lambda x, t: jaxent.mean(jaxent.quantile_loss(x, t, quantile=0.9)),
        lambda sk, x, t: sk.mean_pinball_loss(t, x, alpha=0.9),
        "value",
    ),
    Case(
        "`mean_poisson_deviance`",
        "mean",
        (RATES, COUNTS),
        lambda r, t: jaxent.mean(
            2 * jaxent.generalized_kl_divergence(jnp.log(r)[:, None], t[:, None])
        ),
        lambda sk, r, t: sk.mean_poisson_deviance(t, r),
        "value",
    ),
    Case(
        "`mutual_info_score`",
        "a table of counts",
        (TABLE.astype(np.float32),),
        lambda table: jaxent.mutual_information(table / jnp.sum(table)),
        lambda sk, table: sk.mutual_info_score(None, None, contingency=table),
        "value",
    ),
)


def dice_of_classes(p: jax.Array, t: jax.Array) -> jax.Array:
    p, t = (jnp.moveaxis(a, 1, -1).astype(jnp.float32) for a in (p, t))
    return 1 - jaxent.dice_loss(p, t, smooth=0.0, apply_softmax=False, reduction="none")


REGIONS = i32([[1, 1, 0, 0], [0, 0, 1, 1]], [[1, 0, 0, 0], [0, 1, 1, 1]])
TRUE_REGIONS = i32([[1, 0, 0, 0], [0, 1, 1, 1]], [[1, 1, 0, 0], [0, 0, 1, 1]])

TORCHMETRICS = (
    Case(
        "`perplexity(x, y)`",
        "ignore_index",
        (SCORES[None], i32([0, -100, 2, 1])),
        lambda x, y: jaxent.perplexity(
            jaxent.mean(
                jaxent.softmax_cross_entropy_with_integer_labels(x, y, where=y != -100),
                where=y != -100,
            )
        ),
        lambda tm, x, y: tm.text.perplexity(x, y, ignore_index=-100),
    ),
    Case(
        "`perplexity(x, y)`",
        "a probability that underflows",
        (f32([[110.0, 0.0, 0.0]] * 2)[0][None], i32([0, 1])),
        lambda x, y: jaxent.perplexity(
            jaxent.mean(jaxent.softmax_cross_entropy_with_integer_labels(x, y))
        ),
        lambda tm, x, y: tm.text.perplexity(x, y),
        "nothing",
        value=np.exp(55.0),
    ),
    Case(
        "`multiclass_calibration_error`",
        "confidences inside the bins",
        (f32([0.95, 0.05], [0.15, 0.85], [0.35, 0.65], [0.25, 0.75]), i32(0, 1, 1, 0)),
        lambda p, y: jaxent.expected_calibration_error(p, y, 10),
        lambda tm, p, y: tm.classification.multiclass_calibration_error(p, y, 2, n_bins=10),
        "value",
    ),
    Case(
        "`multiclass_calibration_error`",
        "a confidence on the border of two bins",
        (f32([0.5, 0.5], [0.25, 0.75]), i32(1, 1)),
        lambda p, y: jaxent.expected_calibration_error(p, y, 2),
        lambda tm, p, y: tm.classification.multiclass_calibration_error(p, y, 2, n_bins=2),
        "nothing",
        differentiable=False,
        value=0.375,
    ),
    Case(
        "`kl_divergence(p, q)`",
        "mean",
        (OTHERS, PROBS),
        lambda q, p: jaxent.mean(jaxent.categorical_cross_entropy(q, p) - jaxent.entropy(p)),
        lambda tm, q, p: tm.kl_divergence(p, q),
        "value",
    ),
    Case(
        "`kl_divergence(log_p, log_q, log_prob=True)`",
        "mean",
        (np.log(OTHERS), np.log(OTHERS[::-1])),
        lambda q, p: jaxent.mean(jaxent.kl_divergence_with_log_targets(q, p)),
        lambda tm, q, p: tm.kl_divergence(p, q, log_prob=True),
    ),
    Case(
        "`jensen_shannon_divergence(p, q)`",
        "mean",
        (OTHERS, OTHERS[::-1].copy()),
        lambda p, q: jaxent.mean(jaxent.jensen_shannon_divergence(p, q)),
        lambda tm, p, q: tm.regression.jensen_shannon_divergence(p, q),
        "value",
    ),
    Case(
        "`multiclass_hinge_loss(x, y)`",
        "a softmax comes first",
        (SCORES, LABELS),
        lambda x, y: jaxent.mean(jaxent.multiclass_hinge_loss(jax.nn.softmax(x), y)),
        lambda tm, x, y: tm.classification.multiclass_hinge_loss(x, y, num_classes=3),
        "value",
    ),
    Case(
        "`mean_squared_error`, `mean_absolute_error`, `log_cosh_error`",
        "squared",
        (X, T),
        lambda x, t: jaxent.mean(jaxent.squared_error(x, t)),
        lambda tm, x, t: tm.mean_squared_error(x, t),
    ),
    Case(
        "`mean_squared_error`, `mean_absolute_error`, `log_cosh_error`",
        "absolute",
        (X, T),
        lambda x, t: jaxent.mean(jaxent.absolute_error(x, t)),
        lambda tm, x, t: tm.mean_absolute_error(x, t),
        "value",
    ),
    Case(
        "`mean_squared_error`, `mean_absolute_error`, `log_cosh_error`",
        "log_cosh",
        (X, T),
        lambda x, t: jaxent.mean(jaxent.log_cosh(x, t)),
        lambda tm, x, t: tm.regression.log_cosh_error(x, t),
    ),
    Case(
        "`mean_squared_error`, `mean_absolute_error`, `log_cosh_error`",
        "an error of 100, where log_cosh overflows",
        (f32(100.0), f32(0.0)),
        lambda x, t: jaxent.mean(jaxent.log_cosh(x, t)),
        lambda tm, x, t: tm.regression.log_cosh_error(x, t),
        "nothing",
        value=100.0 - np.log(2.0),
        gradient=[1.0],
    ),
    Case(
        "`cosine_similarity(x, t)`",
        "the sum, its default",
        (SCORES[:3], OTHERS[:3]),
        lambda x, t: jnp.sum(jaxent.cosine_similarity(x, t)),
        lambda tm, x, t: tm.cosine_similarity(x, t),
    ),
    Case(
        "`dice_score`",
        "of each image and class",
        (REGIONS, TRUE_REGIONS),
        dice_of_classes,
        lambda tm, p, t: importlib.import_module(tm.__name__ + ".segmentation").dice_score(
            p, t, 2, average="none", input_format="one-hot"
        ),
        "value",
    ),
    Case(
        "`dice_score`",
        "a class that is nowhere",
        (i32([[1, 1], [0, 0]]), i32([[1, 1], [0, 0]])),
        dice_of_classes,
        lambda tm, p, t: importlib.import_module(tm.__name__ + ".segmentation").dice_score(
            p, t, 2, average="none", input_format="one-hot"
        ),
        "nothing",
        value=[[1.0, 1.0]],
        differentiable=False,
    ),
)
