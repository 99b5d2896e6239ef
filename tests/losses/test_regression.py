"""What is particular to the regression losses; what every loss owes is in conformance/."""

import math
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent
from conformance.case import with_float64

OF_ERRORS = (
    jaxent.squared_error,
    jaxent.l2_loss,
    jaxent.absolute_error,
    jaxent.huber_loss,
    jaxent.log_cosh,
    jaxent.quantile_loss,
)
of_errors = pytest.mark.parametrize("loss", OF_ERRORS, ids=lambda loss: loss.__name__)


def value_and_slope(loss, predictions, *rest, **options):
    """Losses and the gradient of their sum in the predictions, compiled as one program."""

    def total(x):
        losses = loss(x, *rest, **options)
        return jnp.sum(losses), losses

    (_, losses), slope = jax.jit(jax.value_and_grad(total, has_aux=True))(predictions)
    return np.asarray(losses), np.asarray(slope)


def curvature(loss, x, **options):
    """Second derivatives of the loss of errors x [n], forward over reverse."""
    return np.asarray(jax.jit(jax.vmap(jax.hessian(lambda e: loss(e, **options))))(x))


def examples(seed=0, shape=(20,)):
    generator = np.random.default_rng(seed)
    return tuple((3 * generator.normal(size=(2, *shape))).astype(np.float32))


# --- the comparison of the texts ------------------------------------------------------------------


def best_constant(loss, targets, **options):
    """The number that predicts all targets with the smallest mean loss, from a fine grid."""
    grid = np.linspace(0, 20, 2001, dtype=np.float32)
    losses = loss(grid[:, None], targets[None], **options)
    return grid[np.argmin(np.asarray(losses).mean(-1))]


def test_an_outlier_moves_the_mean_but_not_the_median_and_huber_lies_between():
    clean = np.array([1.0, 2.0, 3.0, 4.0, 5.0], np.float32)
    spoiled = np.array([1.0, 2.0, 3.0, 4.0, 90.0], np.float32)
    for targets, mean in ((clean, 3.0), (spoiled, 20.0)):
        assert best_constant(jaxent.squared_error, targets) == pytest.approx(mean, abs=0.02)
        assert best_constant(jaxent.absolute_error, targets) == pytest.approx(3.0, abs=0.02)
    # Four errors of c - 1 to c - 4 against one that pulls with delta, however far it is.
    assert best_constant(jaxent.huber_loss, clean, delta=4.0) == pytest.approx(3.0, abs=0.02)
    assert best_constant(jaxent.huber_loss, spoiled, delta=4.0) == pytest.approx(3.5, abs=0.02)


def test_the_pinball_finds_quantiles():
    targets = np.linspace(0, 20, 101, dtype=np.float32)
    for quantile in (0.1, 0.5, 0.9):
        found = best_constant(jaxent.quantile_loss, targets, quantile=quantile)
        assert np.mean(targets < found) <= quantile <= np.mean(targets <= found)


# --- losses of errors -----------------------------------------------------------------------------


@of_errors
def test_predictions_alone_are_errors(loss):
    predictions, targets = examples()
    errors = predictions - targets
    np.testing.assert_array_equal(loss(errors), loss(errors, 0.0))
    np.testing.assert_allclose(loss(predictions, targets), loss(errors), rtol=1e-6)


@of_errors
def test_integer_targets_are_numbers(loss):
    predictions, _ = examples()
    targets = np.arange(20)
    np.testing.assert_array_equal(
        loss(predictions, targets), loss(predictions, targets.astype(np.float32))
    )


@of_errors
def test_infinite_errors_cost_infinitely_much_and_undefined_ones_are_nan(loss):
    predictions = np.array([np.inf, -np.inf, 1.0, np.inf], np.float32)
    targets = np.array([1.0, 1.0, np.inf, np.inf], np.float32)
    value, slope = value_and_slope(loss, predictions, targets)
    np.testing.assert_array_equal(value, [np.inf, np.inf, np.inf, np.nan])
    np.testing.assert_array_equal(np.sign(slope), [1.0, -1.0, -1.0, np.nan])


def test_identities_between_neighbours():
    predictions, targets = examples()
    square = np.asarray(jaxent.squared_error(predictions, targets))
    size = np.asarray(jaxent.absolute_error(predictions, targets))
    np.testing.assert_array_equal(jaxent.l2_loss(predictions, targets), 0.5 * square)
    np.testing.assert_array_equal(jaxent.quantile_loss(predictions, targets), 0.5 * size)
    np.testing.assert_allclose(
        jaxent.huber_loss(predictions, targets, delta=1e3), 0.5 * square, rtol=1e-6
    )
    np.testing.assert_allclose(
        jaxent.huber_loss(predictions, targets, delta=1e-6), 1e-6 * size, rtol=1e-5
    )
    np.testing.assert_allclose(size**2, square, rtol=1e-6)


def test_huber_where_optax_is_wrong():
    """Tiny errors have a gradient, and at delta 1000 the gradient is the error or delta."""
    error = np.float32(1e-8)
    assert value_and_slope(jaxent.huber_loss, error)[1] == error
    errors = np.array([1e-30, 0.3, 999.0, 1001.0, -3e38], np.float32)
    value, slope = value_and_slope(jaxent.huber_loss, errors, delta=1000.0)
    np.testing.assert_array_equal(slope, np.clip(errors, -1000.0, 1000.0))
    np.testing.assert_allclose(value[1:4], [0.045, 499000.5, 501000.0], rtol=1e-6)
    assert value[4] == np.inf


def test_huber_is_finite_where_the_error_overflows():
    predictions, targets = np.array([3e38, -3e38], np.float32), np.array([-3e38, 3e38], np.float32)
    value, slope = value_and_slope(jaxent.huber_loss, predictions, targets, delta=0.5)
    np.testing.assert_allclose(value, 3e38, rtol=1e-6)
    np.testing.assert_array_equal(slope, [0.5, -0.5])


def test_half_of_a_square_is_finite_where_the_square_is_not():
    error = np.float32(2.5e19)
    assert jaxent.squared_error(error) == np.inf
    np.testing.assert_allclose(jaxent.l2_loss(error), 3.125e38, rtol=1e-6)


def test_huber_has_a_derivative_in_delta():
    errors = np.array([0.5, 2.0, -5.0], np.float32)
    slope = jax.jit(jax.grad(lambda delta: jnp.sum(jaxent.huber_loss(errors, delta=delta))))
    np.testing.assert_allclose(slope(np.float32(1.5)), 0.5 + 3.5, rtol=1e-6)


@pytest.mark.parametrize("size", [1e-15, 1e-4, 0.99, 1.01, 30.0])
def test_log_cosh_in_both_of_its_regimes(size):
    truth = size**2 / 2 if size < 1e-3 else math.log(math.cosh(size))
    value, slope = value_and_slope(jaxent.log_cosh, np.array([size, -size], np.float32))
    np.testing.assert_allclose(value, truth, rtol=1e-6)
    np.testing.assert_allclose(slope, [math.tanh(size), -math.tanh(size)], rtol=1e-6)
    bend = curvature(jaxent.log_cosh, np.array([size], np.float32))
    np.testing.assert_allclose(bend, 1 / math.cosh(size) ** 2, rtol=1e-5)


def test_log_cosh_of_tiny_and_huge_errors():
    value = np.asarray(jaxent.log_cosh(np.array([1e-4, 1e30, -3e38], np.float32)))
    np.testing.assert_allclose(value, [5e-9, 1e30, 3e38], rtol=1e-6)
    assert optax.log_cosh(jnp.float32(1e-4)) == 0.0  # what there is to beat


def test_the_curvature_of_log_cosh_sees_what_the_error_was_rounded_by():
    generator = np.random.default_rng(0)
    predictions = generator.uniform(16, 20, size=50).astype(np.float32)
    targets = -generator.uniform(0.5, 16, size=50).astype(np.float32)
    bend = jax.jit(jax.vmap(jax.hessian(jaxent.log_cosh)))(predictions, targets)
    truth = 1 / np.cosh(predictions.astype(np.float64) - targets.astype(np.float64)) ** 2
    np.testing.assert_allclose(bend, truth, rtol=1e-6)


def test_third_derivatives_of_log_cosh():
    third = jax.grad(jax.grad(jax.grad(jaxent.log_cosh)))
    for x in (0.3, 2.0):
        truth = -2 * math.tanh(x) / math.cosh(x) ** 2
        np.testing.assert_allclose(third(np.float32(x)), truth, rtol=1e-5)


def test_kinks_have_slope_0_and_no_curvature():
    for loss in (jaxent.absolute_error, jaxent.quantile_loss):
        assert value_and_slope(loss, np.array([0.0, -0.0], np.float32))[1].tolist() == [0.0, 0.0]
        np.testing.assert_array_equal(curvature(loss, np.array([-2.0, 0.0, 2.0], np.float32)), 0.0)
    bend = curvature(jaxent.huber_loss, np.array([-2.0, -0.5, 0.0, 0.5, 2.0], np.float32))
    np.testing.assert_array_equal(bend, [0.0, 1.0, 1.0, 1.0, 0.0])


def test_the_sides_of_the_pinball():
    value, slope = value_and_slope(
        jaxent.quantile_loss, np.array([2.0, -2.0], np.float32), quantile=0.9
    )
    np.testing.assert_allclose(value, [0.2, 1.8], rtol=2e-7)
    np.testing.assert_allclose(slope, [0.1, -0.9], rtol=1e-7)
    traced = jax.jit(lambda q: jaxent.quantile_loss(np.array([2.0, -2.0], np.float32), quantile=q))
    np.testing.assert_allclose(traced(np.float32(0.9)), [0.2, 1.8], rtol=1e-6)
    in_quantile = jax.jacfwd(traced)(np.float32(0.9))
    np.testing.assert_allclose(in_quantile, [-2.0, 2.0], rtol=1e-6)


# --- likelihoods ----------------------------------------------------------------------------------


def test_poisson_probabilities_sum_to_1():
    counts = np.arange(60)
    for log_rate in (-20.0, -1.0, 0.0, 1.5, 3.0):
        surprise = np.asarray(jaxent.poisson_nll(log_rate, counts[None], full=True), np.float64)
        assert np.exp(-surprise).sum() == pytest.approx(1.0, abs=1e-6)
        for count in (0, 1, 2, 7, 8, 9, 30):
            truth = math.exp(log_rate) - count * log_rate + math.lgamma(count + 1)
            assert surprise[0, count] == pytest.approx(truth, rel=1e-5)


def test_the_factorial_changes_no_gradient():
    log_rates, _ = examples()
    counts = np.arange(20, dtype=np.float32)
    plain, slope = value_and_slope(jaxent.poisson_nll, log_rates, counts)
    whole, same = value_and_slope(jaxent.poisson_nll, log_rates, counts, full=True)
    np.testing.assert_array_equal(slope, same)
    factorials = np.array([math.lgamma(count + 1) for count in range(20)])
    np.testing.assert_allclose(whole - plain, factorials, atol=2e-5 * np.abs(plain).max())


@pytest.mark.parametrize("count", [1e3, 1e6, 1e9])
def test_large_counts_do_not_cancel(count):
    """At the right rate what is left is half of log(2 pi t), though the terms are t log t."""
    log_rate = np.float32(math.log(count))
    off = float(log_rate) - math.log(count)
    truth = 0.5 * math.log(2 * math.pi * count) + 1 / (12 * count) + count * off**2 / 2
    np.testing.assert_allclose(
        jaxent.poisson_nll(log_rate, np.float32(count), full=True), truth, rtol=1e-4
    )


def test_rates_of_0_and_counts_that_are_none():
    log_rates = np.array([-np.inf, -np.inf, 0.0, 0.0, np.inf, np.inf], np.float32)
    counts = np.array([0.0, 2.0, -1.0, -1e-30, 3.0, 1e30], np.float32)
    expected = [0.0, np.inf, np.nan, np.nan, np.inf, np.inf]
    for full in (False, True):
        value, slope = value_and_slope(jaxent.poisson_nll, log_rates, counts, full=full)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(slope, [0.0, -2.0, np.nan, np.nan, np.inf, np.inf])


def test_a_gaussian_of_variance_1_is_half_of_the_squared_error():
    means, targets = examples()
    value, slope = value_and_slope(jaxent.gaussian_nll, means, targets, 1.0)
    expected, same = value_and_slope(jaxent.l2_loss, means, targets)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_array_equal(slope, same)
    whole = jaxent.gaussian_nll(means, targets, 1.0, full=True)
    np.testing.assert_allclose(whole, value + 0.5 * math.log(2 * math.pi), rtol=1e-6)


def test_the_best_variance_is_the_squared_error():
    in_variance = jax.grad(jaxent.gaussian_nll, 2)
    assert in_variance(np.float32(1.0), np.float32(3.0), np.float32(4.0)) == 0.0
    assert in_variance(np.float32(1.0), np.float32(3.0), np.float32(3.9)) < 0.0
    # Tiny variances are not raised behind the caller's back.
    value, slope = value_and_slope(jaxent.gaussian_nll, np.float32(1e-10), 0.0, np.float32(1e-20))
    np.testing.assert_allclose(value, (1 - 20 * math.log(10)) / 2, rtol=1e-6)
    np.testing.assert_allclose(slope, 1e10, rtol=1e-6)


def test_variances_that_are_not_positive_are_nan():
    variances = np.array([0.0, -1.0, np.nan, 1.0], np.float32)
    value, slope = value_and_slope(jaxent.gaussian_nll, np.ones(4, np.float32), 0.0, variances)
    in_variance = jax.grad(lambda v: jnp.sum(jaxent.gaussian_nll(np.float32(1.0), 0.0, v)))
    for result in (value, slope, in_variance(variances)):
        np.testing.assert_array_equal(np.isnan(result), [True, True, True, False])


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("delta", [0.0, -1.0, math.inf, math.nan])
def test_a_delta_that_is_no_size_is_refused_or_nan(delta):
    errors, _ = examples()
    with pytest.raises(AssertionError, match=r"huber_loss.*`delta`"):
        jaxent.huber_loss(errors, delta=delta)
    value, slope = value_and_slope(jaxent.huber_loss, errors, delta=jnp.float32(delta))
    assert np.isnan(value).all()
    assert np.isnan(slope).all()


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, 90, math.nan])
def test_a_quantile_that_is_none_is_refused_or_nan(quantile):
    errors, _ = examples()
    with pytest.raises(AssertionError, match=r"quantile_loss.*`quantile`"):
        jaxent.quantile_loss(errors, quantile=quantile)
    value, slope = value_and_slope(jaxent.quantile_loss, errors, quantile=jnp.float32(quantile))
    assert np.isnan(value).all()
    assert np.isnan(slope).all()


def test_options_must_be_numbers_or_flags():
    errors, targets = examples()
    with pytest.raises(AssertionError, match=r"huber_loss.*`delta`.*\[20\]"):
        jaxent.huber_loss(errors, delta=targets)
    with pytest.raises(AssertionError, match=r"quantile_loss.*`quantile`.*\[20\]"):
        jaxent.quantile_loss(errors, quantile=targets)
    for loss, given in (
        (jaxent.poisson_nll, (errors, targets)),
        (jaxent.gaussian_nll, (errors, targets, 1.0)),
    ):
        with pytest.raises(AssertionError, match=rf"{loss.__name__}.*`full`"):
            loss(*given, full=cast("bool", "yes"))


def test_options_do_not_change_the_dtype_of_the_loss():
    errors, targets = examples()
    with with_float64():
        for wide, dtype in ((np.float32, np.float32), (np.float64, np.float64)):
            x = errors.astype(wide)
            for result in (
                jaxent.huber_loss(x, 0.5, delta=2.0),
                jaxent.quantile_loss(x, targets, quantile=0.9),
                jaxent.poisson_nll(x, 3, full=True),
                jaxent.gaussian_nll(x, 0.5, 2.0, full=True),
            ):
                assert result.dtype == dtype
        delta = jnp.float64(0.7)
        assert jaxent.huber_loss(errors, delta=delta).dtype == np.float32


@pytest.mark.parametrize(("variance", "is_finite"), [(1e-19, True), (1e-20, False)])
def test_derivatives_in_a_variance_leave_the_range_where_the_truth_does(variance, is_finite):
    def loss(variance):
        return jaxent.gaussian_nll(1.0, 0.0, variance)

    given, one = (jnp.float32(variance),), (jnp.float32(1.0),)
    truth = 0.5 / variance - 0.5 / variance**2
    truth = truth if is_finite else -math.inf
    np.testing.assert_allclose(jax.grad(loss)(*given), truth, rtol=1e-6)
    np.testing.assert_allclose(jax.jvp(loss, given, one)[1], truth, rtol=1e-6)
