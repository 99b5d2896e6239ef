"""A probability outside [0, 1] by a rounding counts as the end, one further outside makes NaN."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxent

# The loss as a function of one argument [rows, 2] whose first class is at an end of its interval,
# and the ends of that interval.
HALF = np.array([0.5, 0.5], np.float32)
FIRST = np.array([1.0, 0.0], np.float32)
ENDS = {
    "binary_cross_entropy": (lambda p: jaxent.binary_cross_entropy(p, FIRST), (0, 1)),
    "binary_cross_entropy of labels": (lambda t: jaxent.binary_cross_entropy(HALF, t), (0, 1)),
    "categorical_cross_entropy": (lambda p: jaxent.categorical_cross_entropy(p, FIRST), (0, 1)),
    "categorical_cross_entropy of labels": (
        lambda t: jaxent.categorical_cross_entropy(HALF, t),
        (0,),
    ),
    "brier_score": (lambda p: jaxent.brier_score(p, FIRST), (0, 1)),
    "brier_score of labels": (lambda t: jaxent.brier_score(HALF, t), (0, 1)),
    "cross_entropy": (lambda t: jaxent.cross_entropy(t, HALF), (0, 1)),
    "cross_entropy of predictions": (lambda q: jaxent.cross_entropy(HALF, q), (0, 1)),
    "entropy": (jaxent.entropy, (0, 1)),
    "binary_entropy": (jaxent.binary_entropy, (0, 1)),
    "renyi_entropy": (lambda p: jaxent.renyi_entropy(p, alpha=2.0), (0, 1)),
    "tsallis_entropy": (lambda p: jaxent.tsallis_entropy(p, alpha=2.0), (0, 1)),
    "jensen_shannon_divergence": (
        lambda p: jaxent.jensen_shannon_divergence(p, HALF),
        (0, 1),
    ),
    "total_variation": (lambda p: jaxent.total_variation(p, HALF), (0, 1)),
    "hellinger": (lambda p: jaxent.hellinger(p, HALF), (0, 1)),
    "renyi_divergence": (lambda p: jaxent.renyi_divergence(p, HALF, alpha=2.0), (0,)),
    "mutual_information": (
        lambda p: jaxent.mutual_information(jnp.stack([p, 1.0 - jnp.clip(p, 0.0, 1.0)], -1)),
        (0,),
    ),
    "kl_divergence of targets": (lambda t: jaxent.kl_divergence(jnp.log(HALF), t), (0,)),
    "kl_divergence": (lambda q: jaxent.kl_divergence(q, FIRST), (-0.0,)),
    "kl_divergence_with_log_targets": (
        lambda t: jaxent.kl_divergence_with_log_targets(jnp.log(HALF), t),
        (-0.0,),
    ),
    "negative_log_likelihood": (lambda q: jaxent.negative_log_likelihood(q, 0), (-0.0,)),
    "sigmoid_binary_cross_entropy": (
        lambda t: jaxent.sigmoid_binary_cross_entropy(HALF, t),
        (0, 1),
    ),
    "sigmoid_focal_loss": (lambda t: jaxent.sigmoid_focal_loss(HALF, t), (0, 1)),
    "kto_loss of desirable": (lambda t: jaxent.kto_loss(-HALF, -FIRST, t), (0, 1)),
    "smooth_labels": (lambda t: jaxent.smooth_labels(t, 0.1), (0,)),
    "logit_adjustment": (lambda p: jaxent.logit_adjustment(HALF, p, -1.0), (0,)),
    "binary_dice_loss of targets": (
        lambda t: jaxent.binary_dice_loss(HALF[None], t[None]),
        (0, 1),
    ),
    "binary_dice_loss": (
        lambda p: jaxent.binary_dice_loss(p[None], FIRST[None], apply_sigmoid=False),
        (0, 1),
    ),
}
CASES = [(name, end) for name, (_, ends) in ENDS.items() for end in ends]


def at(end, dtype, roundings):
    """Both classes, the first one a few roundings beyond the end."""
    sign = 1.0 if end == 1 or np.signbit(end) else -1.0
    eps = float(jnp.finfo(dtype).eps)
    other = -40.0 if np.signbit(end) else 1.0 - end
    return jnp.array([end + sign * roundings * eps, other], jnp.float32).astype(dtype)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(("name", "end"), CASES)
def test_a_rounding_outside_counts_as_the_end(name, end):
    loss, _ = ENDS[name]

    @jax.jit
    def value_and_grad(x):
        return loss(x), jax.grad(lambda x: jnp.sum(loss(x)))(x)

    for dtype in (np.float32, ml_dtypes.bfloat16):
        expected = jax.tree.map(np.asarray, value_and_grad(at(end, dtype, 0)))
        for roundings in (1, 4):
            found = value_and_grad(at(end, dtype, roundings))
            for a, e in zip(jax.tree.leaves(found), expected, strict=True):
                np.testing.assert_array_equal(np.asarray(a), e)
    assert jnp.isnan(loss(at(end, np.float32, 1e5))).any()


def test_is_measured_in_the_dtype_of_the_argument():
    wide = jnp.array([1.01, 0.0], jnp.float32)
    assert jnp.isnan(jaxent.binary_cross_entropy(wide, FIRST)[0])
    assert jaxent.binary_cross_entropy(wide.astype(jnp.bfloat16), FIRST)[0] == 0.0
    targets = np.array([1.0, 0.0], np.float32)
    assert jaxent.brier_score(jnp.array([1.01, 0.0], jnp.bfloat16), targets) == 0.0


def test_the_examples_of_the_issue():
    assert jaxent.binary_cross_entropy(1.0000001, 1.0) == 0.0
    assert jax.grad(jaxent.binary_cross_entropy)(1.0000001, 1.0) == -1.0
    assert jnp.isnan(jaxent.binary_cross_entropy(1.00001, 1.0))


def test_probabilities_of_groups_of_classes_have_a_loss():
    rng = np.random.default_rng(0)
    p = jax.nn.softmax(jnp.asarray(20 * rng.normal(size=(2000, 7)), jnp.float32))
    group = jnp.sum(p[:, :6], axis=1)
    assert jnp.max(group) > 1.0
    losses, slopes = jax.vmap(jax.value_and_grad(jaxent.binary_cross_entropy))(group, group > 0.5)
    assert jnp.isfinite(losses).all()
    assert jnp.isfinite(slopes).all()


def test_the_calibration_of_an_averaged_ensemble_is_a_number():
    rng = np.random.default_rng(0)
    logits = 30 * rng.normal(size=(3, 500, 5))
    p = jnp.mean(jax.nn.softmax(jnp.asarray(logits, jnp.float32)), axis=0)
    p = jnp.where(p == jnp.max(p, axis=-1, keepdims=True), p + 2e-7, p)
    assert jnp.max(p) > 1.0
    error = jaxent.expected_calibration_error(p, jnp.zeros(500, jnp.int32))
    assert 0.0 < error < 1.0
