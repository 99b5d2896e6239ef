"""The rows of PyTorch."""

import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from project.migration.case import Case, f32, i32

# Classes on the last axis; of sure, undecided, large and far apart logits.
LOGITS = f32([8.0, 0.0, -3.0, 1.0], [0.5, 0.5, 0.5, 0.5], [60.0, 58.0, -60.0, 59.0], [0, 1, 0, -2])
LABELS = i32(1, 2, 0, 3)
CLASS_WEIGHTS = f32(1.0, 4.0, 0.25, 2.0)
PROBS = f32([0.7, 0.1, 0.1, 0.1], [0, 1, 0, 0], [0.25, 0.25, 0.25, 0.25], [0, 0, 0.5, 0.5])
X = f32(-4.0, -0.3, 0.0, 0.5, 2.0, 30.0)
Y = f32(1.0, 0.0, 1.0, 0.25, 1.0, 0.0)
P = f32(0.9, 0.2, 1e-3, 0.5, 0.999, 0.4)
SIGNS = f32(1, -1, 1, -1, 1, -1)
WEIGHTS = f32(0.5, 2.0, 1.0, 0.0, 3.0, 1.0)
VECTORS = f32([3.0, 4.0, 0.0], [1e-3, 0.0, 2e-3], [-1.0, 5.0, 2.0])
OTHERS = f32([4.0, 3.0, 1.0], [1.0, 1.0, -1.0], [1.0, -5.0, 0.5])
FAR = f32([3.0, 4.5, 0.5], [9.0, 0.0, 0.0], [-1.0, 4.0, 2.0])
FRAMES = np.random.default_rng(7).normal(size=(2, 6, 4)).astype(np.float32) * np.float32(3.0)
LINES, FRAME_COUNTS, LINE_LENGTHS = i32([1, 1, 3], [2, 0, 0]), i32(6, 4), i32(3, 1)


def smoothed(logits: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    targets = weights[None] * jaxent.smooth_labels(one_hot, 0.1)
    return jnp.sum(jaxent.softmax_cross_entropy(logits, targets)) / jnp.sum(weights[labels])


def alignment(logits: jax.Array) -> jax.Array:
    frame_paddings = jnp.arange(6)[None] >= jnp.asarray(FRAME_COUNTS)[:, None]
    label_paddings = jnp.arange(3)[None] >= jnp.asarray(LINE_LENGTHS)[:, None]
    frame_paddings, label_paddings = (
        a.astype(jnp.float32) for a in (frame_paddings, label_paddings)
    )
    return jaxent.ctc_loss(logits, frame_paddings, LINES, label_paddings)


def torch_alignment(f: Any, logits: Any, reduction: str) -> Any:
    torch: Any = importlib.import_module("torch")
    log_probs = f.log_softmax(logits, -1).transpose(0, 1)
    lines, counts, lengths = (torch.tensor(a) for a in (LINES, FRAME_COUNTS, LINE_LENGTHS))
    return f.ctc_loss(log_probs, lines, counts, lengths, reduction=reduction)


CASES = (
    Case(
        "`cross_entropy` with class indices",
        "losses",
        (LOGITS, LABELS),
        jaxent.softmax_cross_entropy_with_integer_labels,
        lambda f, x, y: f.cross_entropy(x, y, reduction="none"),
    ),
    Case(
        "`cross_entropy` with class indices",
        "classes on axis 1",
        (np.moveaxis(np.stack([LOGITS, LOGITS[::-1]]), -1, 1), np.stack([LABELS, LABELS])),
        lambda x, y: jaxent.softmax_cross_entropy_with_integer_labels(x, y, axis=1),
        lambda f, x, y: f.cross_entropy(x, y, reduction="none"),
    ),
    Case(
        "`cross_entropy` with class indices",
        "ignore_index and label_smoothing",
        (LOGITS, i32(1, -100, 0, 3)),
        lambda x, y: jaxent.mean(
            jaxent.softmax_cross_entropy_with_integer_labels(
                x, y, where=y != -100, label_smoothing=0.1
            ),
            where=y != -100,
        ),
        lambda f, x, y: f.cross_entropy(x, y, label_smoothing=0.1),
    ),
    Case(
        "`cross_entropy(weight=w)` with class indices",
        "mean",
        (LOGITS, LABELS, CLASS_WEIGHTS),
        lambda x, y, w: jaxent.mean(
            jaxent.softmax_cross_entropy_with_integer_labels(x, y), weights=w[y]
        ),
        lambda f, x, y, w: f.cross_entropy(x, y, w),
    ),
    Case(
        "`cross_entropy(weight=w, label_smoothing=e)`",
        "mean",
        (LOGITS, LABELS, CLASS_WEIGHTS),
        smoothed,
        lambda f, x, y, w: f.cross_entropy(x, y, w, label_smoothing=0.1),
    ),
    Case(
        "`cross_entropy(weight=w, label_smoothing=e)`",
        "weights given to the mean instead",
        (LOGITS, LABELS, CLASS_WEIGHTS),
        lambda x, y, w: jaxent.mean(
            jaxent.softmax_cross_entropy_with_integer_labels(x, y, label_smoothing=0.1),
            weights=w[y],
        ),
        lambda f, x, y, w: f.cross_entropy(x, y, w, label_smoothing=0.1),
        "nothing",
    ),
    Case(
        "`cross_entropy` with probabilities",
        "mean",
        (LOGITS, PROBS),
        lambda x, t: jaxent.mean(jaxent.softmax_cross_entropy(x, t)),
        lambda f, x, t: f.cross_entropy(x, t),
    ),
    Case(
        "`cross_entropy(weight=w)` with probabilities",
        "mean, with label_smoothing",
        (LOGITS, PROBS, CLASS_WEIGHTS),
        lambda x, t, w: jaxent.mean(
            jaxent.softmax_cross_entropy(x, w[None] * jaxent.smooth_labels(t, 0.1))
        ),
        lambda f, x, t, w: f.cross_entropy(x, t, w, label_smoothing=0.1),
    ),
    Case(
        "`cross_entropy(weight=w)` with probabilities",
        "mean",
        (LOGITS, PROBS, CLASS_WEIGHTS),
        lambda x, t, w: jaxent.mean(jaxent.softmax_cross_entropy(x, w[None] * t)),
        lambda f, x, t, w: f.cross_entropy(x, t, w),
    ),
    Case(
        "`linear_cross_entropy`",
        "mean",
        (VECTORS, f32([1, 0, 2], [0, 1, -1], [2, 2, 0], [-3, 1, 1]), i32(0, 3, 1)),
        lambda h, w, y: jaxent.linear_softmax_cross_entropy(h, w.T, y),
        lambda f, h, w, y: f.linear_cross_entropy(h, w, y),
    ),
    Case(
        "`nll_loss`",
        "log-probabilities",
        (np.log(f32([0.5, 0.25, 0.25], [1e-30, 0.5, 0.5], [1.0, 1e-9, 1e-9])), i32(2, 0, 0)),
        jaxent.negative_log_likelihood,
        lambda f, x, y: f.nll_loss(x, y, reduction="none"),
    ),
    Case(
        "`nll_loss`",
        "weight",
        (np.log(f32([0.5, 0.25, 0.25], [1e-30, 0.5, 0.5])), i32(2, 0), f32(1.0, 9.0, 0.25)),
        lambda x, y, w: jaxent.mean(jaxent.negative_log_likelihood(x, y), weights=w[y]),
        lambda f, x, y, w: f.nll_loss(x, y, w),
    ),
    Case(
        "`nll_loss`",
        "a score above 0",
        (f32([2.0, -1.0]), i32(0)),
        jaxent.negative_log_likelihood,
        lambda f, x, y: f.nll_loss(x, y, reduction="none"),
        "nothing",
        value=[np.nan],
    ),
    Case(
        "`binary_cross_entropy`",
        "losses",
        (P, Y),
        jaxent.binary_cross_entropy,
        lambda f, p, y: f.binary_cross_entropy(p, y, reduction="none"),
    ),
    Case(
        "`binary_cross_entropy`",
        "weight",
        (P, Y, WEIGHTS),
        lambda p, y, w: jaxent.mean(w * jaxent.binary_cross_entropy(p, y)),
        lambda f, p, y, w: f.binary_cross_entropy(p, y, w),
    ),
    Case(
        "`binary_cross_entropy`",
        "certain and wrong",
        (f32(0.0, 1.0), f32(1.0, 0.0)),
        jaxent.binary_cross_entropy,
        lambda f, p, y: f.binary_cross_entropy(p, y, reduction="none"),
        "nothing",
        value=[np.inf, np.inf],
        gradient=[-np.inf, np.inf],
    ),
    Case(
        "`binary_cross_entropy_with_logits`",
        "losses",
        (X, Y),
        jaxent.sigmoid_binary_cross_entropy,
        lambda f, x, y: f.binary_cross_entropy_with_logits(x, y, reduction="none"),
    ),
    Case(
        "`binary_cross_entropy_with_logits`",
        "weight and pos_weight of the classes",
        (X.reshape(3, 2), Y.reshape(3, 2), WEIGHTS.reshape(3, 2), f32(3.0, 0.5)),
        lambda x, y, w, positive: jaxent.mean(
            w * jaxent.sigmoid_binary_cross_entropy(x, y, pos_weight=positive[None])
        ),
        lambda f, x, y, w, positive: f.binary_cross_entropy_with_logits(
            x, y, w, pos_weight=positive
        ),
    ),
    Case(
        "`multilabel_soft_margin_loss(weight=w)`",
        "mean",
        (X.reshape(3, 2), Y.reshape(3, 2), f32(3.0, 0.5)),
        lambda x, y, w: jaxent.mean(w[None] * jaxent.sigmoid_binary_cross_entropy(x, y)),
        lambda f, x, y, w: f.multilabel_soft_margin_loss(x, y, w),
    ),
    Case(
        "`soft_margin_loss`",
        "losses",
        (X, SIGNS),
        lambda x, y: jaxent.sigmoid_binary_cross_entropy(x, (y + 1) / 2),
        lambda f, x, y: f.soft_margin_loss(x, y, reduction="none"),
    ),
    Case(
        "`kl_div(log_q, p)`",
        "batchmean",
        (np.log(f32([0.5, 0.25, 0.25], [1e-8, 0.5, 0.5])), f32([0.25, 0.75, 0.0], [0.2, 0.4, 0.4])),
        lambda x, p: jaxent.mean(jaxent.kl_divergence(x, p)),
        lambda f, x, p: f.kl_div(x, p, reduction="batchmean"),
    ),
    Case(
        "`kl_div(log_q, p)`",
        "its mean, over all elements",
        (np.log(f32([0.5, 0.5])), f32([1.0, 0.0])),
        lambda x, p: jaxent.mean(jaxent.kl_divergence(x, p)),
        lambda f, x, p: f.kl_div(x, p, reduction="mean"),
        "nothing",
        value=np.log(2.0),
        gradient=[[-1.0, 0.0]],
    ),
    Case(
        "`kl_div(log_q, log_p, log_target=True)`",
        "batchmean",
        (
            np.log(f32([0.5, 0.25, 0.25], [1e-8, 0.5, 0.5])),
            np.log(f32([0.25, 0.5, 0.25], [0.2, 0.4, 0.4])),
        ),
        lambda x, t: jaxent.mean(jaxent.kl_divergence_with_log_targets(x, t)),
        lambda f, x, t: f.kl_div(x, t, reduction="batchmean", log_target=True),
    ),
    Case(
        "`l1_loss`, `mse_loss`",
        "l1",
        (X, Y),
        jaxent.absolute_error,
        lambda f, x, y: f.l1_loss(x, y, reduction="none"),
    ),
    Case(
        "`l1_loss`, `mse_loss`",
        "mse",
        (X, Y),
        jaxent.squared_error,
        lambda f, x, y: f.mse_loss(x, y, reduction="none"),
    ),
    Case(
        "`huber_loss(delta=d)`",
        "losses",
        (X, Y),
        lambda x, y: jaxent.huber_loss(x, y, delta=0.4),
        lambda f, x, y: f.huber_loss(x, y, reduction="none", delta=0.4),
    ),
    Case(
        "`smooth_l1_loss(beta=b)`",
        "losses",
        (X, Y),
        lambda x, y: jaxent.huber_loss(x, y, delta=0.4) / 0.4,
        lambda f, x, y: f.smooth_l1_loss(x, y, reduction="none", beta=0.4),
    ),
    Case(
        "`smooth_l1_loss(beta=0)`",
        "losses",
        (X, Y),
        jaxent.absolute_error,
        lambda f, x, y: f.smooth_l1_loss(x, y, reduction="none", beta=0.0),
    ),
    Case(
        "`poisson_nll_loss`",
        "log-rates",
        (X, f32(0, 3, 1, 0, 9, 2)),
        jaxent.poisson_nll,
        lambda f, x, y: f.poisson_nll_loss(x, y, reduction="none"),
    ),
    Case(
        "`poisson_nll_loss`",
        "full=True is exact, not Stirling's",
        (f32(0.0), f32(2.0)),
        lambda x, y: jaxent.poisson_nll(x, y, full=True),
        lambda f, x, y: f.poisson_nll_loss(x, y, reduction="none", full=True),
        "nothing",
        value=[1.0 + np.log(2.0)],
        gradient=[-1.0],
    ),
    Case(
        "`poisson_nll_loss(log_input=False)`",
        "rates",
        (f32(0.0, 0.5, 4.0, 1e-9), f32(0, 3, 1, 2)),
        lambda r, y: jaxent.poisson_nll(jnp.log(r + 1e-8), y) - 1e-8,
        lambda f, r, y: f.poisson_nll_loss(r, y, log_input=False, reduction="none"),
    ),
    Case(
        "`gaussian_nll_loss`",
        "full=True",
        (f32(0.0, 1.0, -3.0), f32(0.5, 1.0, 9.0), f32(1e-3, 4.0, 1e3)),
        lambda m, y, v: jaxent.gaussian_nll(m, y, v, full=True),
        lambda f, m, y, v: f.gaussian_nll_loss(m, y, v, full=True, reduction="none"),
    ),
    Case(
        "`gaussian_nll_loss`",
        "small variances",
        (f32(0.0), f32(1e-4), f32(1e-8)),
        jaxent.gaussian_nll,
        lambda f, m, y, v: f.gaussian_nll_loss(m, y, v, reduction="none"),
        "nothing",
        value=[0.5 * (np.log(1e-8) + 1.0)],
        gradient=[-1e4],
    ),
    Case(
        "`margin_ranking_loss(margin=m)`",
        "a margin above 0",
        (X, Y, SIGNS),
        lambda a, b, y: 0.4 * jaxent.hinge_loss((a - b) / 0.4, y),
        lambda f, a, b, y: f.margin_ranking_loss(a, b, y, margin=0.4, reduction="none"),
    ),
    Case(
        "`margin_ranking_loss(margin=m)`",
        "a margin of 0, the default",
        (X, Y, SIGNS),
        lambda a, b, y: jaxent.perceptron_loss(a - b, y),
        lambda f, a, b, y: f.margin_ranking_loss(a, b, y, reduction="none"),
    ),
    Case(
        "`multi_margin_loss`",
        "two classes",
        (f32([0.5, 0.25], [3.0, 0.0], [-1.0, 2.0]), i32(0, 0, 0)),
        lambda x, y: jaxent.multiclass_hinge_loss(x, y) / 2,
        lambda f, x, y: f.multi_margin_loss(x, y, reduction="none"),
    ),
    Case(
        "`multi_margin_loss`",
        "more classes",
        (f32([1.0, 0.5, 0.75]), i32(0)),
        jaxent.multiclass_hinge_loss,
        lambda f, x, y: f.multi_margin_loss(x, y, reduction="none"),
        "nothing",
        value=[0.75],
        gradient=[[-1.0, 0.0, 1.0]],
    ),
    Case(
        "`triplet_margin_loss`",
        "eps=0",
        (VECTORS, OTHERS, FAR),
        lambda a, p, n: jaxent.triplet_margin_loss(a, p, n, eps=0.0),
        lambda f, a, p, n: f.triplet_margin_loss(a, p, n, eps=0.0, reduction="none"),
    ),
    Case(
        "`triplet_margin_loss`",
        "the default eps where two vectors are nearly the same",
        (f32([0.0, 0.0]), f32([1e-6, 0.0]), f32([0.0, 0.5])),
        jaxent.triplet_margin_loss,
        lambda f, a, p, n: f.triplet_margin_loss(a, p, n, reduction="none"),
        "nothing",
        value=[np.sqrt(1e-12 + 1e-6) - np.sqrt(0.25 + 1e-6) + 1.0],
    ),
    Case(
        "`cosine_similarity(eps=e)`",
        "vectors longer than the floor",
        (VECTORS, OTHERS),
        lambda a, b: jaxent.cosine_similarity(a, b, epsilon=1e-8**2),
        lambda f, a, b: f.cosine_similarity(a, b),
    ),
    Case(
        "`cosine_similarity(eps=e)`",
        "a vector shorter than the floor",
        (f32([1e-3, 0.0]), f32([1.0, 0.0])),
        lambda a, b: jaxent.cosine_similarity(a, b, epsilon=0.1**2),
        lambda f, a, b: f.cosine_similarity(a, b, eps=0.1),
        "value",
    ),
    Case(
        "`cosine_similarity(eps=e)`",
        "its gradient there: torch shrinks a length that no longer counts",
        (f32([1e-3, 0.0]), f32([1.0, 0.0])),
        lambda a, b: jaxent.cosine_similarity(a, b, epsilon=0.1**2),
        lambda f, a, b: f.cosine_similarity(a, b, eps=0.1),
        "nothing",
        value=[0.01],
        gradient=[[10.0, 0.0]],
    ),
    Case(
        "`cosine_embedding_loss(margin=m)`",
        "losses",
        (VECTORS, OTHERS, f32(1, -1, -1)),
        lambda a, b, y: jnp.where(
            y > 0,
            jaxent.cosine_distance(a, b),
            jnp.maximum(jaxent.cosine_similarity(a, b) + 0.5, 0.0),
        ),
        lambda f, a, b, y: f.cosine_embedding_loss(a, b, y, margin=-0.5, reduction="none"),
    ),
    Case(
        "`ctc_loss`",
        "losses",
        (FRAMES,),
        alignment,
        lambda f, x: torch_alignment(f, x, "none"),
    ),
    Case(
        "`ctc_loss`",
        "mean",
        (FRAMES,),
        lambda x: jaxent.mean(alignment(x) / jnp.asarray(LINE_LENGTHS, jnp.float32)),
        lambda f, x: torch_alignment(f, x, "mean"),
    ),
)
