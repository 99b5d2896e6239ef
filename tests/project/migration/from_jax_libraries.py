"""The rows of rax, distrax and t5x."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from project.migration.case import Case, f32, i32

SCORES = f32([8.0, 1.0, -2.0, 0.0], [1.0, 0.5, 1.5, 3.0])
NEAR = f32([3.0, 1.0, -2.0, 0.25], [1.0, 0.5, 1.5, 3.0])
RELEVANCE = f32([3.0, 1.0, 2.0, 0.0], [0.0, 1.0, 2.0, 3.0])
ITEMS = np.array([[True, True, True, False], [False, False, False, False]])
WEIGHTS = f32([0.5, 2.0, 1.0, 1.0], [1.0, 0.25, 3.0, 1.0])
X, Y = f32(-4.0, -0.3, 0.0, 2.0, 30.0), f32(1.0, 0.0, 1.0, 1.0, 0.0)


def pair_count(relevance: jax.Array) -> jax.Array:
    return jnp.sum(relevance[..., :, None] > relevance[..., None, :]).astype(jnp.float32)


def poly(x: jax.Array, relevance: jax.Array) -> jax.Array:
    targets = relevance / jnp.sum(relevance, axis=-1, keepdims=True)
    return jnp.mean(jaxent.poly_loss_cross_entropy(x, targets, epsilon=1.0))


RAX = (
    Case(
        "`softmax_loss`",
        "mean",
        (SCORES, RELEVANCE),
        jaxent.ranking_softmax_loss,
        lambda rax, x, y: rax.softmax_loss(x, y),
    ),
    Case(
        "`softmax_loss`",
        "where and weights, over a list without items",
        (SCORES, RELEVANCE, ITEMS, WEIGHTS),
        lambda x, y, m, w: jaxent.ranking_softmax_loss(x, y, where=m, weights=w),
        lambda rax, x, y, m, w: rax.softmax_loss(x, y, where=m, weights=w),
        "value",
    ),
    Case(
        "`listmle_loss`",
        "mean",
        (SCORES, RELEVANCE),
        jaxent.listmle_loss,
        lambda rax, x, y: rax.listmle_loss(x, y),
    ),
    Case(
        "`pairwise_logistic_loss`",
        "sum",
        (SCORES, RELEVANCE, WEIGHTS),
        lambda x, y, w: jaxent.pairwise_logistic_loss(x, y, weights=w, reduce_fn=jnp.sum),
        lambda rax, x, y, w: rax.pairwise_logistic_loss(x, y, weights=w, reduce_fn=jnp.sum),
    ),
    Case(
        "`pairwise_logistic_loss`",
        "mean over the pairs",
        (SCORES, RELEVANCE),
        lambda x, y: jaxent.pairwise_logistic_loss(x, y, reduce_fn=jnp.sum) / pair_count(y),
        lambda rax, x, y: rax.pairwise_logistic_loss(x, y),
    ),
    Case(
        "`pairwise_logistic_loss`",
        "mean, which ours takes over the lists",
        (f32([2.0, 0.0, 1.0]), f32([1.0, 0.0, 0.0])),
        jaxent.pairwise_logistic_loss,
        lambda rax, x, y: rax.pairwise_logistic_loss(x, y),
        "nothing",
        value=np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0)),
    ),
    Case(
        "`pointwise_sigmoid_loss`",
        "mean",
        (NEAR, RELEVANCE),
        lambda x, y: jnp.mean(jaxent.sigmoid_binary_cross_entropy(x, jnp.clip(y, 0.0, 1.0))),
        lambda rax, x, y: rax.pointwise_sigmoid_loss(x, y),
    ),
    Case(
        "`pointwise_sigmoid_loss`",
        "the gradient at a score of 0",
        (f32(0.0), f32(0.0)),
        lambda x, y: jnp.mean(jaxent.sigmoid_binary_cross_entropy(x, y)),
        lambda rax, x, y: rax.pointwise_sigmoid_loss(x, y),
        "nothing",
        value=np.log(2.0),
        gradient=[0.5],
    ),
    Case(
        "`pointwise_mse_loss`",
        "mean, where",
        (SCORES, RELEVANCE, ITEMS),
        lambda x, y, m: jaxent.mean(jaxent.squared_error(x, y, m), where=m),
        lambda rax, x, y, m: rax.pointwise_mse_loss(x, y, where=m),
    ),
    Case(
        "`poly1_softmax_loss`",
        "labels that sum to 1",
        (SCORES, RELEVANCE),
        poly,
        lambda rax, x, y: rax.poly1_softmax_loss(x, y / jnp.sum(y, axis=-1, keepdims=True)),
    ),
)

LOGITS = f32([8.0, 0.0, -3.0, 1.0], [0.5, 0.5, 0.5, 0.5], [60.0, 58.0, -30.0, 59.0])
OTHERS = f32([1.0, 0.0, 2.0, 1.0], [8.0, 0.0, -3.0, 1.0], [0.0, 0.0, 1.0, 0.0])
LABELS = i32(1, 2, 0)
PROBS = f32([0.5, 0.25, 0.125, 0.125], [0.25, 0.5, 0.125, 0.125])

DISTRAX = (
    Case(
        "`Categorical(logits).log_prob(y)`",
        "log-probabilities",
        (LOGITS, LABELS),
        lambda x, y: -jaxent.softmax_cross_entropy_with_integer_labels(x, y),
        lambda d, x, y: d.Categorical(x).log_prob(y),
    ),
    Case(
        "`Categorical(logits).log_prob(y)`",
        "a label out of range",
        (LOGITS[:1], i32(-1)),
        lambda x, y: -jaxent.softmax_cross_entropy_with_integer_labels(x, y),
        lambda d, x, y: d.Categorical(x).log_prob(y),
        "nothing",
        value=[np.nan],
    ),
    Case(
        "`Categorical(logits).entropy()`",
        "entropies",
        (LOGITS,),
        jaxent.softmax_entropy,
        lambda d, x: d.Categorical(x).entropy(),
    ),
    Case(
        "`Categorical(probs=p).entropy()`",
        "entropies",
        (PROBS,),
        jaxent.entropy,
        lambda d, p: d.Categorical(probs=p).entropy(),
        "value",
    ),
    Case(
        "`Categorical(probs=p).entropy()`",
        "the gradient goes through its division by the sum",
        (PROBS,),
        lambda p: jaxent.entropy(p / jnp.sum(p, axis=-1, keepdims=True)),
        lambda d, p: d.Categorical(probs=p).entropy(),
    ),
    Case(
        "`Categorical(p).kl_divergence(Categorical(q))`",
        "the reference comes second",
        (LOGITS, OTHERS),
        lambda p, q: jaxent.softmax_kl_divergence(q, p),
        lambda d, p, q: d.Categorical(p).kl_divergence(d.Categorical(q)),
    ),
    Case(
        "`Categorical(p).cross_entropy(Categorical(q))`",
        "the reference comes second",
        (OTHERS, LOGITS),
        lambda q, p: jaxent.softmax_cross_entropy(q, jax.nn.softmax(p)),
        lambda d, q, p: d.Categorical(p).cross_entropy(d.Categorical(q)),
    ),
    Case(
        "`Bernoulli(logits).log_prob(y)`",
        "log-probabilities",
        (X, Y),
        lambda x, y: -jaxent.sigmoid_binary_cross_entropy(x, y),
        lambda d, x, y: d.Bernoulli(x).log_prob(y),
    ),
    Case(
        "`Bernoulli(logits).entropy()`",
        "entropies",
        (X[:-1],),
        jaxent.sigmoid_entropy,
        lambda d, x: d.Bernoulli(x).entropy(),
    ),
    Case(
        "`Bernoulli(p).kl_divergence(Bernoulli(q))`",
        "the reference comes second",
        (X[:-1], f32(3.0, -0.4, 1.0, 5.0)),
        lambda p, q: jaxent.sigmoid_kl_divergence(q, p),
        lambda d, p, q: d.Bernoulli(p).kl_divergence(d.Bernoulli(q)),
    ),
    Case(
        "`Normal(m, s).log_prob(x)`",
        "log-densities",
        (f32(0.0, 1.0, -3.0), f32(0.03, 2.0, 30.0), f32(0.5, 1.0, 9.0)),
        lambda m, s, x: -jaxent.gaussian_nll(m, x, s**2, full=True),
        lambda d, m, s, x: d.Normal(m, s).log_prob(x),
    ),
    Case(
        "`Softmax(logits, t).log_prob(y)`",
        "log-probabilities",
        (LOGITS, LABELS),
        lambda x, y: (
            -jaxent.softmax_cross_entropy_with_integer_labels(jaxent.temperature_scaling(x, 2.0), y)
        ),
        lambda d, x, y: d.Softmax(x, 2.0).log_prob(y),
    ),
)


def weighted(x: jax.Array, labels: jax.Array, weights: jax.Array) -> jax.Array:
    """`compute_weighted_cross_entropy(label_smoothing=0.1, z_loss=1e-2)`."""
    smoothing = 0.1 * 4 / 3
    targets = jaxent.smooth_labels(jax.nn.one_hot(labels, 4), smoothing)
    losses = jaxent.kl_divergence(jax.nn.log_softmax(x), targets) + 1e-2 * jaxent.z_loss(x)
    return jaxent.sum_and_weight(losses, weights=weights)[0]


T5X = (
    Case(
        "`cross_entropy_with_logits(x, t, z)`",
        "losses, the first of its results",
        (LOGITS, PROBS[[0, 1, 0]]),
        lambda x, t: jaxent.softmax_cross_entropy(x, t) + 1e-2 * jaxent.z_loss(x),
        lambda losses, x, t: losses.cross_entropy_with_logits(x, t, 1e-2)[0],
    ),
    Case(
        "`compute_weighted_cross_entropy`",
        "weights",
        (LOGITS, LABELS, f32(1.0, 0.0, 2.0)),
        lambda x, y, w: jaxent.sum_and_weight(
            jaxent.softmax_cross_entropy_with_integer_labels(x, y), weights=w
        )[0],
        lambda losses, x, y, w: losses.compute_weighted_cross_entropy(x, y, w)[0],
    ),
    Case(
        "`compute_weighted_cross_entropy(label_smoothing=e, z_loss=z)`",
        "the entropy of the smoothed labels is taken off",
        (LOGITS, LABELS, f32(1.0, 0.0, 2.0)),
        weighted,
        lambda losses, x, y, w: losses.compute_weighted_cross_entropy(x, y, w, 0.1, 1e-2)[0],
    ),
)
