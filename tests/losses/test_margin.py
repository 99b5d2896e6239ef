"""What is particular to the losses of margins; what every loss owes is in conformance/."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from conformance import margin, oracle
from conformance.case import with_float64

OF_SIGNS = (jaxent.hinge_loss, jaxent.perceptron_loss)
OF_CLASSES = (
    jaxent.multiclass_hinge_loss,
    jaxent.multiclass_perceptron_loss,
    jaxent.multiclass_sparsemax_loss,
)


def slope(loss, scores, *rest, **keywords):
    return jax.grad(lambda scores: jnp.sum(loss(scores, *rest, **keywords)))(jnp.asarray(scores))


def one_hot(label, classes):
    return (np.arange(classes) == label).astype(np.float32)


# --- one score ------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", OF_SIGNS)
def test_signs_of_every_dtype_are_the_same(loss):
    scores = np.array([-2.0, -0.5, 0.25, 3.0], np.float32)
    signs = np.array([1, -1, 1, -1], np.int8)
    expected = loss(scores, signs)
    for dtype in (np.int32, np.float32, jnp.bfloat16):
        np.testing.assert_array_equal(loss(scores, signs.astype(dtype)), expected)


@pytest.mark.parametrize("loss", OF_SIGNS)
@pytest.mark.parametrize("target", [0, 2, -2, 0.5, -0.999, math.nan, math.inf])
def test_what_is_no_sign_is_loud(loss, target):
    scores, targets = jnp.array([0.5, 0.5]), jnp.array([1.0, target])
    where = jnp.array([True, False])
    for result in (loss(scores, targets), slope(loss, scores, targets)):
        np.testing.assert_array_equal(np.isnan(result), [False, True])
    for result in (
        loss(scores, targets, where),
        slope(loss, scores, targets, where=where),
        jax.grad(lambda targets: jnp.sum(loss(scores, targets, where)))(targets),
    ):
        assert result[1] == 0.0
    assert np.isnan(loss(scores, np.array([0, 0]))).all()


@pytest.mark.parametrize("loss", OF_SIGNS)
def test_an_infinite_score_is_right_or_wrong(loss):
    scores = jnp.array([math.inf, -math.inf])
    np.testing.assert_array_equal(loss(scores, jnp.array([1.0, -1.0])), [0.0, 0.0])
    np.testing.assert_array_equal(loss(scores, jnp.array([-1.0, 1.0])), [math.inf, math.inf])
    right = jax.grad(lambda signs: jnp.sum(loss(scores, signs)))(jnp.array([1.0, -1.0]))
    np.testing.assert_array_equal(right, [0.0, 0.0])
    np.testing.assert_array_equal(slope(loss, scores, jnp.array([1, 1])), [0.0, -1.0])


def test_float_signs_have_the_derivative_of_the_product():
    scores, signs = jnp.array([0.5, 3.0, -2.0]), jnp.array([1.0, 1.0, 1.0])
    of_signs = jax.grad(lambda signs: jnp.sum(jaxent.hinge_loss(scores, signs)))(signs)
    np.testing.assert_array_equal(of_signs, [-0.5, 0.0, 2.0])


def test_pieces_share_the_slope_where_they_meet():
    np.testing.assert_array_equal(
        slope(jaxent.hinge_loss, np.array([1.0, -1.0], np.float32), np.array([1, -1])), [-0.5, 0.5]
    )
    np.testing.assert_array_equal(
        slope(jaxent.perceptron_loss, np.zeros(2, np.float32), np.array([1, -1])), [-0.5, 0.5]
    )


@pytest.mark.parametrize("label", [2, -1, 0.5, math.nan, math.inf])
def test_what_is_no_label_of_the_binary_sparsemax_is_loud(label):
    logits, labels = jnp.array([0.5, 0.5]), jnp.array([1.0, label])
    where = jnp.array([True, False])
    for result in (
        jaxent.sparsemax_loss(logits, labels),
        slope(jaxent.sparsemax_loss, logits, labels),
    ):
        np.testing.assert_array_equal(np.isnan(result), [False, True])
    masked = slope(jaxent.sparsemax_loss, logits, labels, where=where)
    np.testing.assert_array_equal(masked, [-0.25, 0.0])


def test_binary_sparsemax_is_that_of_two_classes():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=40).astype(np.float32)
    labels = generator.integers(2, size=40)
    pairs = np.stack([np.zeros_like(logits), logits], axis=-1)
    expected = jaxent.multiclass_sparsemax_loss(pairs, labels)
    for given in (labels, labels == 1, labels.astype(np.float32)):
        np.testing.assert_allclose(jaxent.sparsemax_loss(logits, given), expected, rtol=1e-6)
    np.testing.assert_allclose(
        slope(jaxent.sparsemax_loss, logits, labels),
        slope(jaxent.multiclass_sparsemax_loss, pairs, labels)[:, 1],
        rtol=1e-6,
    )


def test_nothing_is_differentiated_along_the_labels_of_sparsemax():
    of_labels = jax.grad(lambda labels: jnp.sum(jaxent.sparsemax_loss(jnp.ones(2), labels)))
    np.testing.assert_array_equal(of_labels(jnp.array([0.0, 1.0])), [0.0, 0.0])


# --- classes --------------------------------------------------------------------------------------


def test_two_classes_are_one_sign():
    generator = np.random.default_rng(1)
    scores = generator.normal(size=30).astype(np.float32)
    labels = generator.integers(2, size=30)
    pairs = np.stack([np.zeros_like(scores), scores], axis=-1)
    for of_classes, of_signs in zip(OF_CLASSES, OF_SIGNS, strict=False):
        np.testing.assert_allclose(of_classes(pairs, labels), of_signs(scores, 2 * labels - 1))


def test_a_hinge_that_is_nearly_closed_keeps_its_digits():
    """1 + 0.1 - 1.0999999 in this order is off by a tenth."""
    scores = np.array([0.1, np.nextafter(np.float32(1.1), np.float32(0))], np.float32)
    exact = 1.0 + np.float64(scores[0]) - np.float64(scores[1])
    assert exact > 0
    np.testing.assert_allclose(jaxent.multiclass_hinge_loss(scores, 1), exact, rtol=1e-7)


def test_hinge_of_scores_that_are_far_apart_overflows_only_where_it_must():
    scores = np.array([3e38, 2e38, -3e38], np.float32)
    np.testing.assert_allclose(jaxent.multiclass_hinge_loss(scores, 1), 1e38, rtol=1e-6)
    assert jaxent.multiclass_hinge_loss(scores, 0) == 0.0
    assert jaxent.multiclass_hinge_loss(scores, 2) == math.inf


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (jaxent.multiclass_hinge_loss, [-1.0, 0.25, 0.25, 0.25, 0.25]),
        (jaxent.multiclass_perceptron_loss, [-0.8, 0.2, 0.2, 0.2, 0.2]),
        (jaxent.multiclass_sparsemax_loss, [-0.8, 0.2, 0.2, 0.2, 0.2]),
    ],
)
def test_training_can_start_from_equal_scores(loss, expected):
    for level in (0.0, -7.5, 1e30):
        scores = np.full(5, level, np.float32)
        np.testing.assert_allclose(slope(loss, scores, 0), expected, rtol=1e-6)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("loss", OF_CLASSES)
def test_impossible_classes(loss):
    scores = np.array([[1.0, -np.inf, 3.0], [-np.inf, 2.0, -np.inf]], np.float32)
    labels = np.array([0, 1])
    kept = loss(scores[0, [0, 2]], 0), loss(np.array([2.0], np.float32), 0)
    with jax.debug_nans(True):
        np.testing.assert_array_equal(loss(scores, labels), np.stack(kept))
        slopes = slope(loss, scores, labels)
        assert (slopes[~np.isfinite(scores)] == 0.0).all()
        assert (loss(scores, np.array([1, 0])) == np.inf).all()
        slopes = slope(loss, scores, np.array([1, 0]))
    assert (slopes[~np.isfinite(scores)] == 0.0).all()
    np.testing.assert_allclose(slopes[[0, 1], [2, 1]], 1.0)
    # Without any possible class there is no loss.
    assert np.isnan(loss(np.full(3, -np.inf, np.float32), 0))


@pytest.mark.parametrize("loss", OF_CLASSES)
def test_a_margin_of_one_costs_exactly_nothing(loss):
    scores = np.array([[5.0, 4.0, 3.9], [1e30, 0.0, -1e30]], np.float32)
    np.testing.assert_array_equal(loss(scores, np.zeros(2, np.int32)), [0.0, 0.0])


# --- sparsemax ------------------------------------------------------------------------------------


def test_the_gradient_of_sparsemax_is_a_projection():
    generator = np.random.default_rng(2)
    scores = generator.normal(size=(200, 30)).astype(np.float32) * np.logspace(-3, 1, 200)[:, None]
    scores = scores.astype(np.float32)
    labels = generator.integers(30, size=200)
    p = slope(jaxent.multiclass_sparsemax_loss, scores, labels) + jax.nn.one_hot(labels, 30)
    assert (p >= 0.0).all()
    np.testing.assert_allclose(p.sum(-1), 1.0, rtol=1e-6)
    support = np.sum(np.asarray(p) > 1e-6, axis=-1)
    assert support.min() == 1
    assert support.max() == 30
    # Inside the support, distances stay what they are.
    top = np.argmax(scores, axis=-1, keepdims=True)
    lag = np.take_along_axis(scores, top, -1) - scores
    kept = np.take_along_axis(np.asarray(p), top, -1) - np.asarray(p)
    np.testing.assert_allclose(np.where(p > 1e-6, kept, 0), np.where(p > 1e-6, lag, 0), atol=1e-6)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 1e-12])
def test_sparsemax_of_a_class_that_is_nearly_1_ahead(size):
    """Two classes share 1 - t and t with t = size / 2, and the loss is t squared."""
    # About 1 the grid of numbers is coarser than size, but not about 0 and -1 + size.
    with with_float64():
        scores = jnp.array([0.0, -1.0 + size])
        exact = (float(scores[1]) + 1.0) / 2
        np.testing.assert_allclose(
            jaxent.multiclass_sparsemax_loss(scores, 0), exact**2, rtol=1e-14
        )
        gradient = slope(jaxent.multiclass_sparsemax_loss, scores, 0)
        np.testing.assert_allclose(gradient, [-exact, exact], rtol=1e-14)


@pytest.mark.parametrize(
    "kind", ["falling", "geometric", "harmonic", "random", "two levels", "one ahead"]
)
def test_the_threshold_is_found_whatever_the_scores(kind):
    """Scores of which ever fewer are in the support, so that there are many steps."""
    count = np.arange(2000)
    scores = {
        "falling": -count / 100.0,
        "geometric": -(1.0 - 0.99**count),
        "harmonic": -np.log1p(count),
        "random": np.random.default_rng(3).gumbel(size=2000),
        "two levels": np.where(count % 7 == 0, 0.0, -1e-3),
        # What each of the others has is less than a rounding of the threshold would leave it.
        "one ahead": np.where(count == 5, 0.4, 1e-5 * np.sin(count)),
    }[kind].astype(np.float32)
    label = np.array([11], np.int32)
    truth = oracle.batch(margin.multiclass_sparsemax_loss, scores[None], label)
    both = jax.jit(jax.value_and_grad(jaxent.multiclass_sparsemax_loss))
    value, gradient = both(scores, label[0])
    errors = oracle.ulps(value[None], truth.value, np.float32)
    assert errors.max() <= 4
    scale = truth.gradient_scales[0]
    errors = oracle.scaled_ulps(gradient[None], truth.gradients[0], scale, np.float32)
    assert errors.max() <= 4


@pytest.mark.thorough
def test_the_plain_formulas_of_sparsemax_have_the_right_slopes():
    """Before JAX 0.11 a scan drops the rule of the gradient, and its formulas are differentiated.

    In the first row one class holds more than half, in the second none does.
    """
    scores = jnp.array([[3.0, 2.5, 0.0, -1.0], [0.3, 0.1, 0.2, -2.0]])
    expected = np.zeros((2, 4, 4), np.float32)
    expected[0, :2, :2] = np.eye(2) - 1 / 2
    expected[1, :3, :3] = np.eye(3) - 1 / 3

    def scanned(rows, label):
        labels = jnp.full(2, label)

        def add(total, rows):
            return total + jnp.sum(jaxent.multiclass_sparsemax_loss(rows, labels)), None

        return jax.lax.scan(add, jnp.float32(0.0), rows[None])[0]

    for label in range(4):
        hessian = jax.jit(jax.hessian(scanned), static_argnums=1)(scores, label)
        blocks = jnp.stack([hessian[0, :, 0], hessian[1, :, 1]])
        np.testing.assert_allclose(blocks, expected, atol=1e-6)


def test_no_matrix_of_classes_by_classes():
    """The slope along a direction is found without the Jacobian, and nothing is sorted."""
    scores, labels = jnp.zeros((2, 512)), jnp.zeros(2, jnp.int32)

    def along(scores):
        slopes = functools.partial(slope, jaxent.multiclass_sparsemax_loss)
        return jax.jvp(lambda scores: slopes(scores, labels), (scores,), (scores,))

    program = str(jax.make_jaxpr(along)(scores))
    assert "512,512" not in program
    assert " sort[" not in program
    assert " sort[" in str(jax.make_jaxpr(jnp.sort)(scores))


@pytest.mark.parametrize("loss", OF_CLASSES)
def test_float_labels_are_refused_with_the_remedy(loss):
    with pytest.raises(AssertionError, match="index of the true class"):
        loss(jnp.zeros((2, 3)), jnp.zeros(2))
