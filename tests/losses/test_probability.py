"""What is particular to losses of probabilities; what every loss owes is in conformance/."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64

BINARY = jaxent.binary_cross_entropy
CATEGORICAL = jaxent.categorical_cross_entropy
LIKELIHOOD = jaxent.negative_log_likelihood
BRIER = jaxent.brier_score


def distributions(seed=0, shape=(50, 6)):
    """Distributions and a class each, all of them float32."""
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.ones(shape[-1]), size=shape[:-1]).astype(np.float32)
    return probs, generator.integers(shape[-1], size=shape[:-1]).astype(np.int32)


def one_hot(labels, classes):
    return (np.arange(classes) == labels[..., None]).astype(np.float32)


def value_and_slopes(loss, *arguments, **keywords):
    """Losses and the gradients of their sum in the real arguments, eagerly and compiled."""
    places = tuple(i for i, a in enumerate(arguments) if a.dtype.kind != "i")

    def total(*arguments):
        losses = loss(*arguments, **keywords)
        return jnp.sum(losses), losses

    graded = jax.value_and_grad(total, places, has_aux=True)
    results = [jax.tree.map(np.asarray, way(*arguments)) for way in (graded, jax.jit(graded))]
    np.testing.assert_array_equal(results[0][0][1], loss(*arguments, **keywords))
    for eager, compiled in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(eager, compiled, rtol=1e-6)
    (_, losses), slopes = results[1]
    return losses, slopes


# --- the figures of the texts ---------------------------------------------------------------------


def test_a_photo_of_a_bird():
    """A model that says 0.99 pays little, one that says 0.05 pays much."""
    assert BINARY(0.99, 1) == pytest.approx(0.01, abs=1e-4)
    assert BINARY(0.05, 1) == pytest.approx(2.9957, abs=1e-4)
    assert float(BINARY(0.05, 1)) == pytest.approx(3.0, abs=5e-3)


def test_an_example_of_three_classes():
    probs, labels = np.array([0.4, 0.4, 0.2], np.float32), np.array([0, 1, 0])
    assert CATEGORICAL(probs, labels) == pytest.approx(0.916, abs=5e-4)


def test_hard_labels_leave_one_term_of_the_two():
    probs = np.linspace(0, 1, 41, dtype=np.float32)[1:-1]
    np.testing.assert_allclose(BINARY(probs, 1), -np.log(probs), rtol=1e-6)
    np.testing.assert_allclose(BINARY(probs, 0), -np.log1p(-probs), rtol=1e-6)
    for end in (0, 1):
        assert BINARY(float(end), end) == 0.0
    yes, no = np.asarray(BINARY(probs, 1)), np.asarray(BINARY(probs, 0))
    assert (np.diff(yes) < 0).all()
    assert (np.diff(no) > 0).all()


def test_a_good_and_a_bad_classifier_by_their_means():
    labels = np.array([1, 0, 1, 1, 0])
    good = np.array([0.9, 0.1, 0.8, 0.95, 0.2], np.float32)
    bad = np.array([0.3, 0.6, 0.4, 0.5, 0.9], np.float32)
    of_good, of_bad = (jaxent.mean(BINARY(probs, labels)) for probs in (good, bad))
    assert of_good == pytest.approx(-np.mean(np.log([0.9, 0.9, 0.8, 0.95, 0.8])), rel=1e-6)
    assert of_bad == pytest.approx(-np.mean(np.log([0.3, 0.4, 0.4, 0.5, 0.1])), rel=1e-6)
    assert of_good < 0.2 < 1.0 < of_bad
    targets = one_hot(labels, 2)
    as_pairs = (jaxent.mean(CATEGORICAL(np.stack([1 - p, p], -1), targets)) for p in (good, bad))
    for pair, single in zip(as_pairs, (of_good, of_bad), strict=True):
        assert pair == pytest.approx(float(single), rel=1e-6)


# --- one quantity under several names -------------------------------------------------------------


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_one_hot_and_integer_forms_agree_to_the_last_bit(classes):
    probs, labels = distributions(classes, (200, classes))
    soft = np.asarray(CATEGORICAL(probs, one_hot(labels, classes)))
    integer = np.asarray(LIKELIHOOD(jnp.log(probs), labels))
    np.testing.assert_array_equal(soft, integer)
    np.testing.assert_allclose(
        soft, -np.log(np.take_along_axis(probs, labels[:, None], -1)[:, 0]), rtol=1e-6
    )

    def of_probabilities(probs):
        return jnp.sum(LIKELIHOOD(jnp.log(probs), labels))

    _, (slope, _) = value_and_slopes(CATEGORICAL, probs, one_hot(labels, classes))
    np.testing.assert_allclose(slope, jax.grad(of_probabilities)(probs), rtol=1e-6)


def test_binary_is_the_two_class_case():
    generator = np.random.default_rng(1)
    # Of 24 binary digits behind the point, so that 1 - p is exact.
    probs = (generator.integers(1, 2**24, size=200) / 2.0**24).astype(np.float32)
    labels = (generator.integers(2**12, size=200) / 2.0**12).astype(np.float32)
    value, (slope, label_slope) = value_and_slopes(BINARY, probs, labels)
    pairs, targets = (np.stack([1 - a, a], -1) for a in (probs, labels))
    pair_value, (pair_slope, pair_label_slope) = value_and_slopes(CATEGORICAL, pairs, targets)
    np.testing.assert_allclose(value, pair_value, rtol=1e-6)
    scale = np.abs(pair_slope).max()
    np.testing.assert_allclose(slope, pair_slope[:, 1] - pair_slope[:, 0], atol=1e-6 * scale)
    differences = pair_label_slope[:, 1] - pair_label_slope[:, 0]
    np.testing.assert_allclose(label_slope, differences, rtol=1e-6, atol=2e-6)


def test_forms_of_logits_agree_where_probabilities_can_say_it():
    generator = np.random.default_rng(2)
    logits = (4 * generator.normal(size=(100, 6))).astype(np.float32)
    _, labels = distributions(2, (100, 6))
    soft, _ = distributions(3, (100, 6))
    probs, log_probs = jax.nn.softmax(logits), jax.nn.log_softmax(logits)
    expected = jaxent.softmax_cross_entropy_with_integer_labels(logits, labels)
    scale = float(jnp.max(expected))
    np.testing.assert_allclose(LIKELIHOOD(log_probs, labels), expected, atol=1e-6 * scale)
    np.testing.assert_allclose(CATEGORICAL(probs, one_hot(labels, 6)), expected, atol=1e-6 * scale)
    np.testing.assert_allclose(
        CATEGORICAL(probs, soft), jaxent.softmax_cross_entropy(logits, soft), rtol=2e-6
    )
    single, yes = logits[:, 0], soft[:, 0]
    expected = jaxent.sigmoid_binary_cross_entropy(single, yes)
    np.testing.assert_allclose(BINARY(jax.nn.sigmoid(single), yes), expected, rtol=1e-4)
    pairs = np.stack([np.zeros_like(single), single], -1)
    targets = np.stack([1 - yes, yes], -1)
    np.testing.assert_allclose(CATEGORICAL(jax.nn.softmax(pairs), targets), expected, rtol=1e-4)


def test_classes_of_a_multi_label_problem_are_independent():
    probs, _ = distributions(4, (4, 3))
    labels = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [1, 1, 1]])
    changed = probs.copy()
    changed[:, 1] *= 0.5
    before, after = np.asarray(BINARY(probs, labels)), np.asarray(BINARY(changed, labels))
    assert before.shape == (4, 3)
    np.testing.assert_array_equal(before[:, [0, 2]], after[:, [0, 2]])
    assert (before[:, 1] != after[:, 1]).all()


# --- no epsilon -----------------------------------------------------------------------------------


def test_an_epsilon_in_the_logarithm_is_swallowed_and_ours_is_not_needed():
    """NumPy's log(p + 1e-15), in float32: no different from log(p) where p counts for something."""
    epsilon = np.float32(1e-15)
    for p in (1e-7, 0.1, 1 - 2**-24, 1.0):
        p = np.float32(p)
        assert np.log(p + epsilon) == np.log(p)
        # 1 - p + epsilon is 0 at p = 1, so the epsilon does not even save it from -inf.
    with np.errstate(divide="ignore"):
        assert np.log(np.float32(1) + epsilon - np.float32(1)) == -np.inf
    # Where it does make a difference, the result is wrong.
    tiny = np.float32(1e-20)
    assert -np.log(tiny + epsilon) == pytest.approx(34.54, abs=0.01)
    assert BINARY(tiny, 1) == pytest.approx(46.0517, rel=1e-6)
    # So is the gradient: -1e15 at 0 instead of minus infinity, and off by half at the epsilon.
    assert -1 / (epsilon + epsilon) == pytest.approx(-0.5e15)
    assert jax.grad(BINARY)(epsilon, 1) == pytest.approx(-1e15, rel=1e-6)


@pytest.mark.parametrize("exponent", [1, 3, 8, 15, 30, 37])
def test_the_loss_tends_to_0_with_the_error(exponent):
    """Value and gradient, down to the smallest normal numbers."""
    p = np.float32(10.0**-exponent)
    value, (slope, _) = value_and_slopes(BINARY, p, np.float32(0))
    assert value == pytest.approx(-math.log1p(-float(p)), rel=1e-6)
    assert slope == pytest.approx(1 / (1 - float(p)), rel=1e-6)


def test_certainty_costs_nothing_or_everything():
    probs = np.array([0, 1, 0, 1], np.float32)
    labels = np.array([0, 1, 1, 0], np.float32)
    value, (slope, label_slope) = value_and_slopes(BINARY, probs, labels)
    np.testing.assert_array_equal(value, [0, 0, np.inf, np.inf])
    np.testing.assert_array_equal(slope, [1, -1, -np.inf, np.inf])
    np.testing.assert_array_equal(label_slope, [0, 0, np.inf, -np.inf])
    assert not np.signbit(value).any()
    with jax.debug_nans(True):
        value_and_slopes(BINARY, probs, labels)
        for outer in (jax.jacfwd, jax.jacrev):
            bend = jax.vmap(outer(jax.grad(BINARY)))(probs[:2], labels[:2])
            np.testing.assert_array_equal(bend, [1, 1])


def test_0_log_0_is_0_and_log_0_is_not():
    probs = np.array([[0, 0.5, 0.5], [0, 0.5, 0.5]], np.float32)
    labels = np.array([[0, 0, 1], [0.5, 0, 0.5]], np.float32)
    with jax.debug_nans(True):
        value, (slope, label_slope) = value_and_slopes(CATEGORICAL, probs, labels)
    np.testing.assert_allclose(value, [math.log(2), np.inf], rtol=1e-6)
    np.testing.assert_array_equal(slope, [[0, 0, -2], [-np.inf, 0, -1]])
    half = np.float32(math.log(2))
    np.testing.assert_allclose(label_slope, [[0, half, half], [np.inf, half, half]], rtol=1e-6)


def test_an_impossible_true_class_costs_infinity():
    log_probs = np.array([[-np.inf, 0.0], [-np.inf, 0.0]], np.float32)
    with jax.debug_nans(True):
        value, (slope,) = value_and_slopes(LIKELIHOOD, log_probs, np.array([0, 1], np.int32))
    np.testing.assert_array_equal(value, [np.inf, 0])
    np.testing.assert_array_equal(slope, [[-1, 0], [0, -1]])
    assert not np.signbit(value).any()


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_subnormal_probabilities_are_no_zeros(dtype):
    """Processors flush them; the loss of one is finite all the same, and so may be its slope."""
    probs = np.array([1e-38, 5e-39, 1e-39, 2e-40], dtype)
    exact = probs.astype(np.float64)
    labels = np.ones_like(probs)
    value, (slope, _) = value_and_slopes(BINARY, probs, labels)
    np.testing.assert_allclose(value, -np.log(exact), rtol=1e-6)
    np.testing.assert_allclose(slope[:2].astype(np.float64), -1 / exact[:2], rtol=4e-3)
    assert np.isneginf(slope[2:].astype(np.float32)).all()
    alone, _ = value_and_slopes(CATEGORICAL, probs[:, None], labels[:, None])
    np.testing.assert_array_equal(alone, value)


def test_the_smallest_float64_is_no_zero():
    with with_float64():
        value, _ = value_and_slopes(BINARY, np.array([5e-324]), np.array([1.0]))
        assert value[0] == pytest.approx(1074 * math.log(2), rel=1e-15)


# --- what only values can tell --------------------------------------------------------------------


OUTSIDE = (-0.1, -1e-5, 1.1, 1.00001, np.nan, np.inf, -np.inf)


@pytest.mark.parametrize("outside", OUTSIDE)
def test_probabilities_and_targets_outside_0_and_1_are_nan(outside):
    probs, labels = np.full(3, 0.5, np.float32), np.ones(3, np.float32)
    for position in (0, 1):
        given = [probs.copy(), labels.copy()]
        given[position][1] = outside
        value, slopes = value_and_slopes(BINARY, *given)
        for result in (value, *slopes):
            np.testing.assert_array_equal(np.isnan(result), [False, True, False])


@pytest.mark.parametrize("outside", OUTSIDE)
@pytest.mark.parametrize("loss", [CATEGORICAL, BRIER])
def test_a_probability_outside_0_and_1_spoils_its_row(loss, outside):
    """Also where the target is 0 and the loss would not look at it; its own gradients are NaN."""
    probs, labels = distributions(5, (3, 4))
    targets = one_hot(labels, 4)
    place = (labels[1] + 1) % 4
    probs[1, place] = outside
    value, slopes = value_and_slopes(loss, probs, targets)
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    for slope in slopes:
        assert np.isnan(slope[1, place])
        assert np.isfinite(slope[[0, 2]]).all()
    where = np.array([True, False, True])
    masked, masked_slopes = value_and_slopes(loss, probs, targets, where=where)
    for result in (masked, *masked_slopes):
        assert np.isfinite(result).all()
        np.testing.assert_array_equal(result[1], 0)


@pytest.mark.parametrize(("loss", "most"), [(CATEGORICAL, np.inf), (BRIER, 1.0)])
def test_targets_of_a_row_have_their_range(loss, most):
    probs, labels = distributions(6, (4, 3))
    targets = one_hot(labels, 3)
    targets[:, 0] = [-0.1, -1e-5, 1.5, np.nan]
    bad = np.array([True, True, most < 1.5, True])
    value, slopes = value_and_slopes(loss, probs, targets)
    for result in (value, *(slope.sum(-1) for slope in slopes)):
        np.testing.assert_array_equal(np.isnan(result), bad)


@pytest.mark.parametrize("outside", [1e-3, 0.5, np.inf, np.nan])
def test_a_positive_log_probability_spoils_its_row(outside):
    probs, labels = distributions(7, (3, 4))
    log_probs = np.log(probs)
    log_probs[1, (labels[1] + 1) % 4] = outside
    value, (slope,) = value_and_slopes(LIKELIHOOD, log_probs, labels)
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True, False])
    exists = np.ones((3, 4), bool)
    exists[1, (labels[1] + 1) % 4] = False
    assert np.isfinite(LIKELIHOOD(log_probs, labels, where=exists)).all()


def test_targets_may_be_booleans_or_integers():
    probs, labels = distributions(8, (5, 4))
    hard = one_hot(labels, 4)
    for loss, p in ((CATEGORICAL, probs), (BRIER, probs), (BINARY, probs)):
        expected = loss(p, hard)
        for dtype in (bool, np.int32, np.uint8):
            np.testing.assert_array_equal(loss(p, hard.astype(dtype)), expected)


def test_class_indices_are_refused_where_targets_are_asked_for():
    probs, labels = distributions(9, (5, 4))
    for loss in (CATEGORICAL, BRIER):
        with pytest.raises(AssertionError, match=rf"{loss.__name__}.*labels"):
            loss(probs, labels)
    with pytest.raises(AssertionError, match="categorical_cross_entropy"):
        LIKELIHOOD(np.log(probs), one_hot(labels, 4))


# --- second order ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "bend"),
    [(BINARY, lambda p, y: y / p**2 + (1 - y) / (1 - p) ** 2), (BRIER, lambda *_: 2.0)],
)
def test_curvature_along_the_probabilities(loss, bend):
    probs, labels = (np.array([0.3, 1e-12, 1 - 2**-20], np.float32) for _ in range(2))
    labels[1] = 0
    exact = [np.float64(a) for a in (probs, labels)]
    summed = functools.partial(lambda p: jnp.sum(loss(p, labels)))
    for outer in (jax.jacfwd, jax.jacrev):
        result = np.asarray(outer(jax.grad(summed))(probs))
        np.testing.assert_allclose(result, np.diag(np.broadcast_to(bend(*exact), 3)), rtol=1e-6)


def test_curvature_survives_where_the_square_of_a_probability_does_not():
    """1 / p**2 is out of range at 1e-25; a target of 1e-20 brings it back, and zeros stay zeros."""
    probs, labels = np.array([1e-25, 0.5], np.float32), np.array([1e-20, 1.0], np.float32)
    for outer in (jax.jacfwd, jax.jacrev):
        with jax.debug_nans(True):
            result = outer(jax.grad(CATEGORICAL))(probs, labels)
        np.testing.assert_allclose(result, [[1e30, 0], [0, 4]], rtol=1e-6)


# --- Brier ----------------------------------------------------------------------------------------


def test_brier_score_of_a_yes_no_forecast_is_twice_the_squared_error():
    probs = np.linspace(0, 1, 11, dtype=np.float32)
    pairs, happened = np.stack([1 - probs, probs], -1), np.array([[0, 1]])
    np.testing.assert_allclose(BRIER(pairs, happened), 2 * (1 - probs) ** 2, rtol=1e-6)


def test_brier_score_is_proper():
    """Its mean is least where the forecast is the distribution of what happens."""
    truth = np.array([0.5, 0.3, 0.2], np.float32)

    def mean_score(forecast):
        outcomes = jnp.eye(3, dtype=jnp.float32)
        return jnp.sum(truth * BRIER(jnp.broadcast_to(forecast, (3, 3)), outcomes))

    np.testing.assert_allclose(jax.grad(mean_score)(truth), 0.0 * truth, atol=2e-7)
    assert mean_score(np.array([0.4, 0.4, 0.2], np.float32)) > mean_score(truth)
