"""What is particular to the softmax losses; what every loss owes is in conformance/."""

import contextlib
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jaxent
from conformance import oracle, softmax
from conformance.case import with_float64

INTEGER = jaxent.softmax_cross_entropy_with_integer_labels
SOFT = jaxent.softmax_cross_entropy

# The compiler of the oldest supported JAX writes down what later ones keep inside a loop.
FUSES = jax.__version_info__ >= (0, 10)


def rows(seed=0, shape=(6, 5), scale=3.0, dtype=np.float32):
    generator = np.random.default_rng(seed)
    logits = (scale * generator.normal(size=shape)).astype(dtype)
    return logits, generator.integers(shape[-1], size=shape[:-1]).astype(np.int32)


def one_hot(labels, classes, dtype=np.float32):
    return (np.arange(classes) == labels[..., None]).astype(dtype)


def value_and_slope(loss, logits, *rest, where=None, **options):
    """Losses and the gradient of their sum, from one program in which numbers are static."""
    static = tuple((k, v) for k, v in options.items() if isinstance(v, float))
    traced = {k: v for k, v in options.items() if not isinstance(v, float)}
    return tuple(map(np.asarray, _program(loss, static)(logits, rest, where, traced)))


@functools.cache
def _program(loss, static):
    def value_and_slope(logits, rest, where, traced):
        def total(x):
            losses = loss(x, *rest, where=where, **dict(static), **traced)
            return jnp.sum(losses), losses

        (_, losses), slope = jax.value_and_grad(total, has_aux=True)(logits)
        return losses, slope

    return jax.jit(value_and_slope)


# --- exactness where the model is sure ------------------------------------------------------------


def test_a_sure_model_still_has_a_loss_and_a_gradient():
    logits, label = np.array([20, 0, 0], np.float32), np.int32(0)
    for loss, target in ((INTEGER, label), (SOFT, one_hot(label, 3))):
        value, slope = value_and_slope(loss, logits, target)
        assert value == np.float32(4.122307236380938e-09)
        np.testing.assert_allclose(slope, [-4.1223072e-09, 2.0611536e-09, 2.0611536e-09], rtol=3e-7)


def test_bfloat16_logits_give_a_float32_loss():
    logits = np.array([6, 0], ml_dtypes.bfloat16)
    value, slope = value_and_slope(INTEGER, logits, 0)
    assert value.dtype == np.float32
    assert value == pytest.approx(2.4756852e-3, rel=1e-6)
    assert slope.dtype == ml_dtypes.bfloat16
    assert float(slope[0]) == pytest.approx(-2.4726e-3, rel=4e-3)


@pytest.mark.parametrize("margin", [17, 30, 60, 69, 77])
def test_no_small_loss_is_rounded_to_zero(margin):
    """Down to losses of 1e-30 and below, at any offset."""
    truth = math.log1p(math.exp(-margin))
    for offset in (0, 300, -300):
        logits = np.array([margin + offset, offset], np.float32)
        value, slope = value_and_slope(INTEGER, logits, 0)
        np.testing.assert_allclose(value, truth, rtol=1e-6)
        np.testing.assert_allclose(slope, [-truth, truth], rtol=1e-6)


@pytest.mark.parametrize("loss", [INTEGER, SOFT])
def test_sure_rows_of_every_small_size(loss):
    """Rows into which no vector fits, and programs that differ only in the number of classes.

    Two exponentials of one number may differ by a bit if two loops compute them, so whoever tells
    the top class by comparing them is wrong now and then. And one release of JAX runs the constants
    of the program for 12 classes in the program for 15, if there are rows enough.
    """
    for classes in (2, 3, 4, 6, 8, 12, 15, 17):
        logits, _ = rows(classes, (3, 401, classes))
        logits = (logits * np.array([5, 15, 30], np.float32)[:, None, None]).reshape(-1, classes)
        labels = logits.argmax(-1).astype(np.int32)
        exact = logits.astype(np.float64)
        others = np.exp(exact - exact.max(-1, keepdims=True)) * (1 - one_hot(labels, classes))
        truth = np.log1p(others.sum(-1))
        counts = truth > 1e-33
        assert counts.sum() > 300
        target = labels if loss is INTEGER else one_hot(labels, classes)
        value = np.asarray(loss(logits, target))
        np.testing.assert_allclose(value[counts], truth[counts], rtol=1e-6)
        assert (value >= 0).all()


# --- the two forms are one ------------------------------------------------------------------------


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("classes", [2, 3, 10, 1000])
def test_one_hot_and_integer_forms_agree(classes):
    for scale in (0.1, 1.0, 3.0, 10.0, 100.0):
        logits, labels = rows(classes, (200, classes), scale)
        value, slope = value_and_slope(INTEGER, logits, labels)
        soft_value, soft_slope = value_and_slope(SOFT, logits, one_hot(labels, classes))
        # Whether a subnormal is flushed depends on the program it is in.
        np.testing.assert_allclose(value, soft_value, rtol=1e-6, atol=1.2e-38)
        np.testing.assert_allclose(slope, soft_slope, rtol=1e-6, atol=1.2e-38)


@pytest.mark.parametrize("smoothing", [0.1, 1.0])
def test_smoothed_forms_agree(smoothing):
    logits, labels = rows()
    integer = value_and_slope(INTEGER, logits, labels, label_smoothing=smoothing)
    soft = value_and_slope(SOFT, logits, one_hot(labels, 5), label_smoothing=smoothing)
    by_hand = (1 - smoothing) * one_hot(labels, 5) + smoothing / 5
    for result in (soft, value_and_slope(SOFT, logits, by_hand.astype(np.float32))):
        np.testing.assert_allclose(integer[0], result[0], rtol=1e-6)
        np.testing.assert_allclose(integer[1], result[1], atol=2e-7)


# --- label smoothing ------------------------------------------------------------------------------


def test_no_smoothing_is_no_smoothing_given():
    logits, labels = rows()
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):
        plain = value_and_slope(loss, logits, target)
        zero = value_and_slope(loss, logits, target, label_smoothing=0.0)
        traced = value_and_slope(loss, logits, target, label_smoothing=np.float32(0.0))
        for a, b, c in zip(plain, zero, traced, strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_allclose(a, c, rtol=1e-6)


def test_smoothing_counts_the_classes_that_exist():
    logits, labels = np.zeros((1, 4), np.float32), np.array([1], np.int32)
    logits[0, 1] = 2.0
    exists = np.array([[True, True, False, True]])
    targets = np.array([0.1, 0.8, 0.1])
    truth = np.sum(targets * (np.log(2 + np.exp(2.0)) - np.array([0.0, 2.0, 0.0])))
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 4))):
        value = loss(logits, target, where=exists, label_smoothing=0.3)
        np.testing.assert_allclose(value, truth, rtol=1e-6)


def test_smoothing_may_be_traced_and_differentiated():
    logits, labels = rows()
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):

        def total(smoothing, loss=loss, target=target):
            return jnp.sum(loss(logits, target, label_smoothing=smoothing))

        value, slope = jax.jit(jax.value_and_grad(total))(0.1)
        np.testing.assert_allclose(value, total(0.1), rtol=1e-6)
        own = np.take_along_axis(logits, labels[:, None], -1)[:, 0]
        np.testing.assert_allclose(slope, np.sum(own - logits.mean(-1)), rtol=1e-5)
        # Linear in the smoothing, so its second derivative is zero, and finite.
        assert jax.jit(jax.hessian(total))(0.1) == 0.0


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, np.nan])
def test_traced_smoothing_out_of_range_is_nan(smoothing):
    logits, labels = rows()
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):
        result = jax.jit(lambda e, loss=loss, t=target: loss(logits, t, label_smoothing=e))(
            np.float32(smoothing)
        )
        assert np.isnan(result).all()


def test_smoothing_puts_mass_on_impossible_classes_that_exist():
    logits, labels = rows()
    logits[:, 4], labels = -np.inf, labels % 4
    exists = np.array([[True, True, True, True, False]])
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):
        infinite, slope = value_and_slope(loss, logits, target, label_smoothing=0.1)
        assert np.isposinf(infinite).all()
        assert np.isfinite(slope).all()
        np.testing.assert_array_equal(slope[:, 4], 0.0)
        finite, slope = value_and_slope(loss, logits, target, label_smoothing=0.1, where=exists)
        assert np.isfinite(finite).all()
        np.testing.assert_array_equal(slope[:, 4], 0.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_no_one_hot_is_made(smoothing):
    """Whatever is of the logits' size stays inside fused loops: no such buffer but the gradient."""
    shape = 64, 20_000
    logits = jax.ShapeDtypeStruct(shape, np.float32)
    labels = jax.ShapeDtypeStruct(shape[:1], np.int32)
    size = 4 * math.prod(shape)

    def loss(x, y):
        return jnp.sum(INTEGER(x, y, label_smoothing=smoothing))

    def scratch(function):
        memory = jax.jit(function).lower(logits, labels).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert scratch(loss) < (size / 10 if FUSES else 2.1 * size)
    assert scratch(jax.value_and_grad(loss)) < 1.1 * size

    def with_one_hot(x, y):
        targets = jax.lax.optimization_barrier(jax.nn.one_hot(y, shape[1], dtype=x.dtype))
        return jnp.sum(SOFT(x, targets))

    assert scratch(with_one_hot) > 0.9 * size


# --- the class axes -------------------------------------------------------------------------------


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("axis", [(2, 1), (-1, 0), (0, 1, 2)])
def test_several_class_axes_are_read_as_optax_reads_them(axis):
    shape = (2, 3, 4)
    logits = rows(0, shape)[0]
    axes = tuple(a % 3 for a in axis)
    examples = tuple(size for a, size in enumerate(shape) if a not in axes)
    classes = math.prod(shape[a] for a in axes)
    labels = np.random.default_rng(1).integers(classes, size=examples).astype(np.int32)
    expected = optax.softmax_cross_entropy_with_integer_labels(logits, labels, axis=axis)
    np.testing.assert_allclose(INTEGER(logits, labels, axis=axis), expected, rtol=1e-6)
    targets = rows(2, shape)[0]
    targets = np.exp(targets) / np.exp(targets).sum(axes, keepdims=True)
    expected = optax.softmax_cross_entropy(logits, targets, axis=axis)
    np.testing.assert_allclose(SOFT(logits, targets, axis=axis), expected, rtol=1e-6)


def test_no_axis_means_all_of_them():
    logits = rows(0, (2, 3))[0]
    targets = np.full((2, 3), 1 / 6, np.float32)
    np.testing.assert_allclose(
        SOFT(logits, targets, axis=None), SOFT(logits.ravel(), targets.ravel()), rtol=1e-6
    )
    np.testing.assert_allclose(
        jaxent.z_loss(logits, axis=None), jaxent.z_loss(logits.ravel()), rtol=1e-6
    )


# --- soft labels ----------------------------------------------------------------------------------


def test_the_figure_of_the_texts():
    prediction = np.array([0.4, 0.4, 0.2], np.float32)
    loss = SOFT(np.log(prediction), np.array([0, 1, 0], np.float32))
    assert loss == pytest.approx(0.916, abs=5e-4)


def test_targets_of_another_total_scale_the_loss():
    logits, labels = rows()
    targets = one_hot(labels, 5)
    value, slope = value_and_slope(SOFT, logits, targets)
    for factor in (0.0, 0.25, 8.0):
        scaled = value_and_slope(SOFT, logits, np.float32(factor) * targets)
        np.testing.assert_allclose(scaled[0], factor * value, rtol=1e-6)
        np.testing.assert_allclose(scaled[1], factor * slope, rtol=1e-6)


@pytest.mark.parametrize("mass", [1e-20, 5e-26, 4e-27])
def test_a_tiny_mass_on_a_sure_class_keeps_its_digits(mass):
    logits, targets = np.array([10.0, 0.0], np.float32), np.array([mass, 0.0], np.float32)
    value, slope = value_and_slope(SOFT, logits, targets)
    exact = float(targets[0]) * math.log1p(math.exp(-10.0))
    np.testing.assert_allclose(value, exact, rtol=5e-7)
    exact = float(targets[0]) / (1.0 + math.exp(10.0))
    np.testing.assert_allclose(slope, [-exact, exact], rtol=5e-7)
    assert SOFT(np.array([30.0], np.float32), targets[:1]) == 0.0


def test_mass_on_a_masked_class_is_ignored():
    logits = np.array([[1.0, 2.0, np.nan]], np.float32)
    targets = np.array([[0.5, 0.25, 0.25]], np.float32)
    exists = np.array([[True, True, False]])
    expected = SOFT(logits[:, :2], targets[:, :2])
    np.testing.assert_allclose(SOFT(logits, targets, where=exists), expected, rtol=1e-6)


def test_negative_targets_are_nan():
    logits = rows(0, (2, 3))[0]
    targets = np.array([[1.5, -0.5, 0.0], [0.2, 0.3, 0.5]], np.float32)
    value, slope = value_and_slope(SOFT, logits, targets)
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    assert np.isnan(slope[0]).any()
    assert np.isfinite(slope[1]).all()


def test_targets_may_be_integers_or_booleans():
    logits, labels = rows()
    targets = one_hot(labels, 5)
    for dtype in (np.int32, np.uint8, bool):
        np.testing.assert_array_equal(SOFT(logits, targets.astype(dtype)), SOFT(logits, targets))


def test_a_target_of_zero_on_an_impossible_class_costs_nothing():
    logits = np.array([[1.0, -np.inf, 0.0], [-np.inf, -np.inf, 7.0]], np.float32)
    targets = np.array([[0.5, 0.0, 0.5], [0.0, 0.0, 1.0]], np.float32)
    value, slope = value_and_slope(SOFT, logits, targets)
    np.testing.assert_allclose(value, [math.log(1 + math.e) - 0.5, 0.0], rtol=1e-6)
    half = 1 / (1 + math.exp(-1)) - 0.5
    np.testing.assert_allclose(slope, [[half, 0.0, -half], [0, 0, 0]], rtol=1e-6)
    targets[0] = [0.5, 0.25, 0.25]
    np.testing.assert_array_equal(SOFT(logits, targets), [np.inf, 0.0])


def test_a_row_without_a_possible_class_is_never_an_ordinary_number():
    logits = np.full((1, 3), -np.inf, np.float32)
    for loss, target in ((INTEGER, np.array([0])), (SOFT, np.full((1, 3), 1 / 3, np.float32))):
        assert not np.isfinite(loss(logits, target)).any()
        assert loss(logits, target, where=np.array([False])) == 0.0
    assert not np.isfinite(jaxent.z_loss(logits)).any()


# --- the log-normaliser ---------------------------------------------------------------------------


def test_z_loss_is_the_square_of_the_log_normalizer():
    logits = rows()[0]
    truth = oracle.batch(softmax.z_loss, logits)
    value, slope = value_and_slope(jaxent.z_loss, logits)
    np.testing.assert_allclose(value, truth.value.astype(float), rtol=1e-6)
    np.testing.assert_allclose(slope, truth.gradients[0].astype(float), rtol=1e-6)
    assert jaxent.z_loss(np.zeros(2, np.float32)) == pytest.approx(math.log(2) ** 2, rel=1e-7)


def test_z_loss_has_a_gradient():
    """A well-known hand-written version has none, and regularises nothing."""
    _, slope = value_and_slope(jaxent.z_loss, rows()[0])
    assert (np.abs(slope).max(-1) > 1e-3).all()


def test_z_loss_keeps_its_digits_where_it_vanishes():
    """Normalised logits: what is left of log(sum(p)) is rounding, and no more than rounding."""
    logits = np.log(np.random.default_rng(0).dirichlet(np.ones(10), size=20)).astype(np.float32)
    truth = oracle.batch(softmax.z_loss, logits)
    errors = oracle.scaled_ulps(jaxent.z_loss(logits), truth.value, truth.value_scale, np.float32)
    assert errors.max() <= 4


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}], ids=str)
def test_a_weight_of_the_z_loss_adds_that_much_of_it(options):
    logits, labels = rows()
    logits[0, 1] = -np.inf
    labels[0] = 0
    exists = np.ones((6, 5), bool)
    exists[0, 1] = exists[3, (labels[3] + 1) % 5] = False
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):
        both = value_and_slope(loss, logits, target, where=exists, z_loss=0.25, **options)
        alone = value_and_slope(loss, logits, target, where=exists, **options)
        penalty = value_and_slope(jaxent.z_loss, logits, where=exists)
        for result, a, b in zip(both, alone, penalty, strict=True):
            np.testing.assert_allclose(result, a + 0.25 * b, rtol=2e-6, atol=2e-7)


def test_a_weight_of_the_z_loss_may_be_traced_and_differentiated():
    logits, labels = rows()
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):

        @jax.jit
        def derivatives(weight, x, loss=loss, target=target):
            total = lambda weight, x: jnp.sum(loss(x, target, z_loss=weight))  # noqa: E731
            return jax.grad(total)(weight, x), jax.jacfwd(jax.grad(total, 1))(weight, x)

        slope, mixed = derivatives(0.1, logits)
        value, of_logits = value_and_slope(jaxent.z_loss, logits)
        np.testing.assert_allclose(slope, value.sum(), rtol=1e-5)
        np.testing.assert_allclose(mixed, of_logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("weight", [-0.1, np.inf, np.nan])
def test_a_weight_of_the_z_loss_out_of_range_is_refused_or_nan(weight):
    logits, labels = rows()
    keep = np.arange(6) != 2
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):
        with pytest.raises(AssertionError, match="`z_loss`"):
            loss(logits, target, z_loss=weight)
        result, slope = value_and_slope(loss, logits, target, where=keep, z_loss=jnp.array(weight))
        for array in (result, slope):
            assert np.isnan(array[keep]).all()
            np.testing.assert_array_equal(array[~keep], 0.0)


def test_a_weighted_z_loss_of_huge_logits_neither_overflows_nor_is_lost():
    logits, labels = np.array([[1e20, 0.0], [3e38, 3e38]], np.float32), np.zeros(2, np.int32)
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 2))):
        value, _ = value_and_slope(loss, logits[:1], target[:1], z_loss=1e-4)
        np.testing.assert_allclose(value, 1e36, rtol=1e-6)
        _, slope = value_and_slope(loss, logits[1:], target[1:], z_loss=1.0)
        np.testing.assert_allclose(slope, 3e38, rtol=1e-6)


# --- identities -----------------------------------------------------------------------------------


def test_a_common_offset_changes_nothing():
    """Exactly so, as long as adding it is exact."""
    logits = np.round(rows()[0] * 64) / np.float32(64)
    labels = rows()[1]
    value, slope = value_and_slope(INTEGER, logits, labels)
    for offset in (-300, 100, 1000):
        moved = value_and_slope(INTEGER, logits + np.float32(offset), labels)
        np.testing.assert_allclose(moved[0], value, rtol=1e-6)
        np.testing.assert_allclose(moved[1], slope, rtol=1e-6)


@pytest.mark.parametrize("loss", [INTEGER, SOFT])
def test_gradients_of_a_row_sum_to_zero(loss):
    logits, labels = rows(3, (50, 7))
    target = labels if loss is INTEGER else one_hot(labels, 7)
    for options in ({}, {"label_smoothing": 0.1}):
        _, slope = value_and_slope(loss, logits, target, **options)
        np.testing.assert_allclose(slope.sum(-1), 0.0, atol=3e-7)


def test_masks_of_both_shapes_commute():
    """Masking an example and masking all of its classes are one thing."""
    logits, labels = rows()
    examples = np.arange(6) % 2 == 0
    for loss, target in ((INTEGER, labels), (SOFT, one_hot(labels, 5))):
        by_example = value_and_slope(loss, logits, target, where=examples)
        by_class = value_and_slope(loss, logits, target, where=np.repeat(examples[:, None], 5, 1))
        for a, b in zip(by_example, by_class, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
            assert a[examples].all()
            np.testing.assert_array_equal(a[~examples], 0.0)


def test_every_pair_of_losses_is_linear_in_the_targets():
    """The soft form at a mixture of two labels is the mixture of the two integer forms."""
    logits, _ = rows(5, (1, 4))
    for first, second in itertools.combinations(range(4), 2):
        targets = np.zeros((1, 4), np.float32)
        targets[0, first], targets[0, second] = 0.25, 0.75
        labels = np.array([first], np.int32), np.array([second], np.int32)
        mixture = 0.25 * INTEGER(logits, labels[0]) + 0.75 * INTEGER(logits, labels[1])
        np.testing.assert_allclose(SOFT(logits, targets), mixture, rtol=1e-6)


# --- what must not pass silently ------------------------------------------------------------------


def test_a_class_mask_never_makes_more_classes():
    """A mask of five classes over logits of one would be a loss over five like ones."""
    exists = np.ones((3, 5), bool)
    for loss in (
        lambda x: INTEGER(x, np.array([0, 3, 4]), where=exists),
        lambda x: SOFT(x, np.ones((3, 1), np.float32), where=exists),
        lambda x: jaxent.softmax_entropy(x, where=exists),
        lambda x: jaxent.smooth_labels(x, 0.1, where=exists),
    ):
        with pytest.raises(AssertionError, match=r"where.*\[3,5\].*classes.*\[3,1\]"):
            loss(np.zeros((3, 1), np.float32))


def test_a_class_mask_and_labels_for_unlike_numbers_of_examples_are_refused():
    with pytest.raises(AssertionError, match="labels do not broadcast"):
        INTEGER(np.zeros((1, 4), np.float32), np.array([0, 1, 2]), where=np.ones((2, 4), bool))


@pytest.mark.parametrize("label", [2**32 + 1, 2**63, 2**31, -(2**32) + 1])
def test_labels_beyond_the_integers_of_jax_do_not_wrap(label):
    dtype = np.uint64 if label > 0 else np.int64
    logits = np.array([[0, 1, 5], [0, 1, 5]], np.float32)
    value = INTEGER(logits, np.array([label, 1 % 3], dtype))
    np.testing.assert_array_equal(np.isnan(value), [True, False])


# --- targets at the edge of a majority ------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "targets", "truth"),
    [
        ([200.0, 0.0], [0.5, 0.5], 100.0),
        ([200.0, 200.0, 0.0], [0.5, 0.5, 0.0], math.log(2)),
        ([300.0, 299.0, 0.0], [0.5, 0.25, 0.25], 75.25 + math.log1p(math.exp(-1))),
    ],
)
def test_half_of_the_mass_is_no_majority(logits, targets, truth):
    with with_float64():
        arrays = np.array(logits), np.array(targets)
        value, _ = value_and_slope(SOFT, *arrays)
        np.testing.assert_allclose(value, truth, rtol=1e-14)
        np.testing.assert_allclose(SOFT(*arrays), truth, rtol=1e-14)


@pytest.mark.parametrize("total", [1e-34, 1e-30, 1e-27, 1e-25, 1e-20, 1e-2, 1e20, 1e30])
@pytest.mark.parametrize("at", [0, 80, 304])
def test_targets_of_any_total(total, at):
    logits, targets = np.array([2, 0, -1], np.float32), np.array([0.8, 0.1, 0.1])
    expected = value_and_slope(SOFT, logits, targets.astype(np.float32))
    # On paper it changes nothing; at 80 and 304 the sum of exponentials nearly overflows.
    logits += np.float32(at)
    scaled = (total * targets).astype(np.float32)
    value, slope = value_and_slope(SOFT, logits, scaled)
    # The inputs are rounded anew, and the smallest terms are subnormal.
    np.testing.assert_allclose(value / total, expected[0], rtol=1e-5)
    np.testing.assert_allclose(slope / total, expected[1], rtol=1e-4)
    np.testing.assert_allclose(SOFT(logits, scaled) / total, expected[0], rtol=1e-5)


@pytest.mark.thorough
def test_mixed_derivatives_survive_a_sure_class():
    logits, targets = np.array([40, 0, -1], np.float32), np.array([0.2, 0.5, 0.3], np.float32)
    truth = -(math.exp(-40) + math.exp(-41))
    for outer in (jax.jacfwd, jax.jacrev):
        of_target = outer(jax.grad(SOFT, 1), 0)(logits, targets)
        of_logit = outer(jax.grad(SOFT, 0), 1)(logits, targets)
        np.testing.assert_allclose([of_target[0, 0], of_logit[0, 0]], truth, rtol=1e-6)


@pytest.mark.thorough
def test_second_derivatives_in_a_loop_at_large_logits():
    """JAX before 0.11 has no rule of ours left there, and a total of e^60 has no square."""
    logits = 20.0 * jax.random.normal(jax.random.key(0), (4, 24))
    labels = jax.random.randint(jax.random.key(1), (4,), 0, 24)
    direction = jnp.sin(jnp.arange(logits.size, dtype=logits.dtype)).reshape(logits.shape)
    loss = jaxent.softmax_cross_entropy_with_integer_labels

    def in_a_loop(logits):
        def add(total, row):
            return total + loss(row[0][None], row[1][None])[0], None

        return jax.lax.scan(add, jnp.zeros(()), (logits, labels))[0]

    def bend(total):
        return jax.jvp(jax.grad(total), (logits,), (direction,))[1]

    expected = bend(lambda x: jnp.sum(loss(x, labels)))
    np.testing.assert_allclose(bend(in_a_loop), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_logits_may_have_any_size(dtype):
    """From 2^28 to 2^31, where an ulp is 32 to 128, all losses were NaN, the soft one from 2^25."""
    context = with_float64() if dtype == "float64" else contextlib.nullcontext()
    with context:
        top = np.ldexp(
            np.array([[1.0], [1.37], [1.99]]), np.arange(jnp.finfo(dtype).maxexp)
        ).ravel()
        logits = jnp.asarray(np.stack([top, 0.5 * top, top], -1), dtype)
        labels = jnp.zeros(len(top), jnp.int32)
        targets = jnp.broadcast_to(jnp.array([[0.5, 0.0, 0.5]], dtype), logits.shape)
        is_far, bar = top >= 256, float(4 * jnp.finfo(dtype).eps)
        hard = jaxent.softmax_cross_entropy_with_integer_labels(logits, labels)
        soft = jaxent.softmax_cross_entropy(logits, targets)
        entropy = jaxent.softmax_entropy(logits)
        row = jaxent.linear_softmax(logits, jnp.eye(3, dtype=dtype), labels)
        for losses in (hard, soft, entropy, row.cross_entropy, row.entropy):
            np.testing.assert_allclose(losses[is_far], np.log(2), rtol=bar)
            assert np.isfinite(losses).all()
