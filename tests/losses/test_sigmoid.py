"""What is particular to the sigmoid losses; what every loss owes is in conformance/."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64

LOSS = jaxent.sigmoid_binary_cross_entropy


def value_and_slope(logits, labels, **options):
    """Losses and the gradient of their sum in the logits, compiled as one program."""

    def total(x):
        losses = LOSS(x, labels, **options)
        return jnp.sum(losses), losses

    (_, losses), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(logits)
    return np.asarray(losses), np.asarray(slope)


def examples(seed=0, shape=(20,)):
    generator = np.random.default_rng(seed)
    logits = (4 * generator.normal(size=shape)).astype(np.float32)
    return logits, generator.random(shape).astype(np.float32)


def test_the_figures_of_the_texts():
    """A photo of a bird: the model says 0.99, or 0.05."""
    for probability, figure in ((0.99, 0.01), (0.05, 2.9957)):
        logit = math.log(probability / (1 - probability))
        assert LOSS(logit, 1.0) == pytest.approx(figure, abs=1e-4)
        assert LOSS(-logit, 0.0) == pytest.approx(figure, abs=1e-4)


@pytest.mark.parametrize("margin", [17, 30, 60, 77])
def test_no_small_loss_is_rounded_to_zero(margin):
    truth = math.log1p(math.exp(-margin))
    for sign, label in ((1, 1.0), (-1, 0.0)):
        value, slope = value_and_slope(np.float32(sign * margin), label)
        np.testing.assert_allclose(value, truth, rtol=1e-6)
        np.testing.assert_allclose(slope, -sign * truth, rtol=1e-6)


def test_a_single_logit_is_two_classes_of_which_one_is_at_zero():
    logits, labels = examples()
    pair = np.stack([np.zeros_like(logits), logits], -1)
    targets = np.stack([1 - labels, labels], -1)
    np.testing.assert_allclose(
        LOSS(logits, labels), jaxent.softmax_cross_entropy(pair, targets), rtol=1e-6
    )
    hard = (labels > 0.5).astype(np.int32)
    value, slope = value_and_slope(logits, hard)
    integer = jaxent.softmax_cross_entropy_with_integer_labels
    np.testing.assert_allclose(value, integer(pair, hard), rtol=1e-6)
    pair_slope = jax.grad(lambda x: jnp.sum(integer(x, hard)))(pair)
    np.testing.assert_allclose(slope, pair_slope[:, 1], rtol=1e-6)


def test_hard_labels_leave_one_term_of_the_two():
    logits, _ = examples()
    np.testing.assert_allclose(LOSS(logits, 1.0), np.logaddexp(0, -logits), rtol=1e-6)
    np.testing.assert_allclose(LOSS(logits, 0.0), np.logaddexp(0, logits), rtol=1e-6)


def test_labels_may_be_booleans_or_integers():
    logits, labels = examples()
    hard = labels > 0.5
    expected = LOSS(logits, hard.astype(np.float32))
    for dtype in (bool, np.int32, np.uint8):
        np.testing.assert_array_equal(LOSS(logits, hard.astype(dtype)), expected)


def test_infinite_logits_are_certain_not_nan():
    logits = np.array([np.inf, -np.inf, np.inf, -np.inf, np.inf], np.float32)
    labels = np.array([1.0, 0.0, 0.0, 1.0, 0.5], np.float32)
    for options in ({}, {"pos_weight": 2.0}):
        value, slope = value_and_slope(logits, labels, **options)
        np.testing.assert_array_equal(value, [0.0, 0.0, np.inf, np.inf, np.inf])
        weight = options.get("pos_weight", 1.0)
        np.testing.assert_array_equal(slope, [0.0, 0.0, 1.0, -weight, 0.5])


def test_targets_outside_0_and_1_are_nan():
    logits = np.zeros(4, np.float32)
    value, slope = value_and_slope(logits, np.array([-0.1, 1.1, np.nan, 1.0], np.float32))
    np.testing.assert_array_equal(np.isnan(value), [True, True, True, False])
    np.testing.assert_array_equal(np.isnan(slope), [True, True, True, False])


def test_smoothing_pulls_labels_to_one_half():
    logits, labels = examples()
    for smoothing in (0.1, 0.5, 1.0):
        smoothed = ((1 - smoothing) * labels + smoothing / 2).astype(np.float32)
        np.testing.assert_allclose(
            LOSS(logits, labels, label_smoothing=smoothing), LOSS(logits, smoothed), rtol=1e-6
        )
    value, slope = value_and_slope(logits, labels, label_smoothing=np.float32(0.1))
    expected = value_and_slope(logits, labels, label_smoothing=0.1)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(slope, expected[1], atol=1e-7)


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, np.nan])
def test_traced_smoothing_out_of_range_is_nan(smoothing):
    logits, labels = examples()
    result = jax.jit(lambda e: LOSS(logits, labels, label_smoothing=e))(np.float32(smoothing))
    assert np.isnan(result).all()


def test_a_positive_weight_repeats_the_positive_examples():
    logits, labels = examples()
    hard = (labels > 0.5).astype(np.float32)
    weighted = LOSS(logits, hard, pos_weight=3.0)
    np.testing.assert_allclose(weighted, np.where(hard, 3.0, 1.0) * LOSS(logits, hard), rtol=1e-6)
    np.testing.assert_allclose(
        LOSS(logits, labels, pos_weight=1.0), LOSS(logits, labels), rtol=1e-6
    )


def test_a_positive_weight_per_class_needs_the_rank_of_the_logits():
    logits, labels = examples(shape=(4, 3))
    weights = np.array([1.0, 2.0, 5.0], np.float32)
    each = [LOSS(logits[:, j], labels[:, j], pos_weight=float(weights[j])) for j in range(3)]
    result = LOSS(logits, labels, pos_weight=weights[None])
    np.testing.assert_allclose(result, np.stack(each, -1), rtol=1e-6)
    with pytest.raises(AssertionError, match=r"sigmoid_binary_cross_entropy.*pos_weight"):
        LOSS(logits, labels, pos_weight=weights)


def test_negative_positive_weights_are_nan():
    logits, labels = examples(shape=(3,))
    weights = np.array([-1.0, 0.0, np.nan], np.float32)
    result = LOSS(logits, labels, pos_weight=weights)
    np.testing.assert_array_equal(np.isnan(result), [True, False, True])


def test_options_do_not_change_the_dtype_of_the_loss():
    """A Python number is float64 where that exists; it must not drag float32 logits along."""
    logits, labels = examples()
    with with_float64():
        for options in ({}, {"pos_weight": 2.0}, {"label_smoothing": 0.1}):
            assert LOSS(logits, labels, **options).dtype == np.float32
            assert LOSS(logits, 1.0, **options).dtype == np.float32
            assert LOSS(logits.astype(np.float64), labels, **options).dtype == np.float64


def test_it_is_symmetric():
    """Exchanging yes and no turns the sign of the logit."""
    logits, labels = examples()
    hard = (labels > 0.5).astype(np.float32)
    value, slope = value_and_slope(logits, hard)
    mirrored, mirrored_slope = value_and_slope(-logits, 1 - hard)
    np.testing.assert_array_equal(value, mirrored)
    np.testing.assert_array_equal(slope, -mirrored_slope)


def test_classes_are_independent():
    """Multi-label: one loss for each class of each example, whatever the others are."""
    logits, labels = examples(shape=(4, 3))
    changed = logits.copy()
    changed[:, 1] += 5
    before, after = np.asarray(LOSS(logits, labels)), np.asarray(LOSS(changed, labels))
    assert before.shape == (4, 3)
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (before[:, 1] != after[:, 1]).all()


def test_the_slope_along_the_target_is_minus_the_logit():
    """To the last bit, also where the costs of yes and no are nearly equal."""
    logits = np.array([0.0, 1e-30, -1e-10, 1e-7, 0.3, -50.0, 1e30], np.float32)
    for target in (0.0, 0.3, 1.0):
        labels = np.full_like(logits, target)
        slope = jax.grad(lambda y: jnp.sum(LOSS(logits, y)))(labels)
        np.testing.assert_array_equal(slope, -logits)
