"""Transforms of targets, class frequencies and logits: what they compute and how they behave."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import optax
import pytest
from mpmath import mp, mpf

import jaxent
from conformance import oracle
from conformance.case import with_float64

HALF_DTYPES = (ml_dtypes.bfloat16, np.float16)
LABELS = np.array([[0, 1, 0, 0], [0.5, 0, 0.25, 0.25]], np.float32)
LOGITS = np.array([[1.5, -2.0, 0.25, 40.0], [3.0, 3.0, -80.0, 0.0]], np.float32)
COUNTS = np.array([[1000, 100, 10, 1], [5, 0, 7, 54321]], np.int32)

# Each transform of one array: what it is called with, and whether its entries are independent.
TRANSFORMS = {
    "smooth_labels": (lambda x: jaxent.smooth_labels(x, 0.1), LABELS),
    "class_balanced_weights": (jaxent.class_balanced_weights, COUNTS.astype(np.float32)),
    "logit_adjustment": (
        lambda x: jaxent.logit_adjustment(x, np.array([0.5, 0.3, 0.2, 0.0], np.float32), 0.5),
        LOGITS,
    ),
    "soft_cap": (lambda x: jaxent.soft_cap(x, 30.0), LOGITS),
    "temperature_scaling": (lambda x: jaxent.temperature_scaling(x, 2.5), LOGITS),
}
everyone = pytest.mark.parametrize("name", TRANSFORMS)


def errors(actual, truth, scale=None, dtype=np.float32):
    """Errors in units in the last place, of the truth or of a scale."""
    truth = np.array(truth, dtype=object)
    scale = truth if scale is None else np.array(scale, dtype=object)
    return np.max(oracle.scaled_ulps(actual, truth, scale, dtype))


def close(actual, expected):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=1e-6)


# --- what all of them owe -------------------------------------------------------------------------


@pytest.mark.thorough(beyond=2)
@everyone
def test_one_result_under_every_transformation(name):
    function, given = TRANSFORMS[name]
    expected = np.asarray(function(given))
    assert expected.shape == given.shape
    for way in (
        jax.jit(function),
        jax.vmap(function),
        jax.checkpoint(function),
        lambda x: jax.lax.scan(lambda _, row: (None, function(row)), None, x)[1],
    ):
        close(way(given), expected)
    close(function(given.tolist()), expected)


@pytest.mark.thorough(beyond=1)
@everyone
def test_one_derivative_under_every_transformation(name):
    function, given = TRANSFORMS[name]
    weights = np.random.default_rng(0).normal(size=given.shape).astype(np.float32)

    def total(x):
        return jnp.sum(jnp.where(jnp.isfinite(function(x)), weights * function(x), 0.0))

    with jax.debug_nans(True):
        slope = np.asarray(jax.grad(total)(given))
        close(jax.jit(jax.grad(total))(given), slope)
        tangent = jax.jvp(total, (given,), (weights,))[1]
        forward, reverse = (outer(jax.grad(total))(given) for outer in (jax.jacfwd, jax.jacrev))
    np.testing.assert_allclose(tangent, np.sum(slope * weights), rtol=1e-5)
    size = max(1e-30, float(np.abs(reverse).max()))
    np.testing.assert_allclose(forward, reverse, atol=3e-6 * size)


@everyone
def test_dtypes(name):
    function, given = TRANSFORMS[name]
    for dtype in HALF_DTYPES:
        low = given.astype(dtype)
        assert function(low).dtype == np.float32
        close(function(low), np.asarray(function(low.astype(np.float32)), np.float64))
    with with_float64():
        assert function(given).dtype == np.float32
        double = function(given.astype(np.float64))
        assert double.dtype == np.float64
        np.testing.assert_allclose(double, function(given), rtol=2e-6)


@everyone
def test_a_nan_is_not_hidden(name):
    function, given = TRANSFORMS[name]
    for value in (np.nan, -1.0 if name in ("smooth_labels", "class_balanced_weights") else np.nan):
        spoiled = given.copy()
        spoiled[1, 2] = value
        result = np.asarray(function(spoiled))
        assert np.isnan(result[1, 2])
        assert not np.isnan(result[0]).any()
        if name in ("smooth_labels", "class_balanced_weights"):
            slope = jax.grad(lambda x: jnp.sum(function(x)))(spoiled)
            assert np.isnan(slope[1]).any()


@everyone
def test_complex_numbers_are_refused(name):
    function, given = TRANSFORMS[name]
    with pytest.raises(AssertionError, match=rf"jaxent\.{name}:.*complex64\[2,4\]"):
        function(given.astype(np.complex64))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jaxent.smooth_labels(LABELS, 1.5), r"smooth_labels: `alpha`.*1\.5"),
        (lambda: jaxent.smooth_labels(LABELS, -0.1), r"smooth_labels: `alpha`.*-0\.1"),
        (lambda: jaxent.smooth_labels(LABELS, LABELS), r"smooth_labels: `alpha`.*\[2,4\]"),
        (lambda: jaxent.smooth_labels(LABELS, 0.1, axis=2), "smooth_labels: `axis` 2"),
        (
            lambda: jaxent.smooth_labels(LABELS, 0.1, where=np.ones(4, bool)),
            r"smooth_labels.*bool\[4\]",
        ),
        (lambda: jaxent.smooth_labels(LABELS, 0.1, where=LABELS), "smooth_labels: `where`"),
        (lambda: jaxent.class_balanced_weights(3), r"class_balanced_weights: `counts` int32\[\]"),
        (lambda: jaxent.class_balanced_weights(COUNTS, 1.0), r"class_balanced_weights: `beta`.*1"),
        (lambda: jaxent.class_balanced_weights(COUNTS, -0.1), "class_balanced_weights: `beta`"),
        (lambda: jaxent.class_balanced_weights(COUNTS, math.nan), "class_balanced_weights: `beta`"),
        (
            lambda: jaxent.logit_adjustment(LOGITS, np.ones(3, np.float32)),
            r"logit_adjustment.*class_priors.*float32\[",
        ),
        (
            lambda: jaxent.logit_adjustment(LOGITS, np.ones((1, 1), np.float32)),
            r"logit_adjustment.*class_priors.*float32\[1,1\]",
        ),
        (
            lambda: jaxent.logit_adjustment(LOGITS, np.ones((1, 1, 4), np.float32)),
            r"logit_adjustment.*class_priors.*\[1,1,4\]",
        ),
        (lambda: jaxent.logit_adjustment(LOGITS, 0.5), "logit_adjustment: `class_priors`"),
        (lambda: jaxent.logit_adjustment(LOGITS, LOGITS[0], axis=5), "logit_adjustment: `axis` 5"),
        (lambda: jaxent.logit_adjustment(LOGITS, LOGITS, LOGITS), "logit_adjustment: `tau`"),
        (lambda: jaxent.soft_cap(LOGITS, 0.0), "soft_cap: `cap`.*0"),
        (lambda: jaxent.soft_cap(LOGITS, -30), "soft_cap: `cap`.*-30"),
        (lambda: jaxent.soft_cap(LOGITS, math.inf), "soft_cap: `cap`.*inf"),
        (lambda: jaxent.soft_cap(LOGITS.astype(np.int32), 30.0), r"soft_cap: `logits`.*int32"),
        (lambda: jaxent.temperature_scaling(LOGITS, 0), "temperature_scaling: `temperature`.*0"),
        (lambda: jaxent.temperature_scaling(LOGITS, LOGITS), "temperature_scaling: `temperature`"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(call, message):
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(call)
    assert re.search(message, str(failure.value)), str(failure.value)


@pytest.mark.parametrize(
    ("function", "beyond"),
    [
        (lambda x: jaxent.smooth_labels(LABELS, x), (-0.1, 1.1, np.nan)),
        (lambda x: jaxent.class_balanced_weights(COUNTS, x), (-0.1, 1.0, np.nan)),
        (lambda x: jaxent.soft_cap(LOGITS, x), (0.0, -1.0, np.inf, np.nan)),
        (lambda x: jaxent.temperature_scaling(LOGITS, x), (0.0, -1.0, np.inf, np.nan)),
    ],
)
def test_traced_numbers_out_of_range_give_nan(function, beyond):
    for value in map(np.float32, beyond):
        assert np.isnan(jax.jit(function)(value)).all()
        assert np.isnan(jax.jit(jax.jacrev(function))(value)).all()
    close(jax.jit(function)(np.float32(0.75)), np.asarray(function(0.75), np.float64))


# --- smoothing ------------------------------------------------------------------------------------


def test_smoothing_agrees_with_optax():
    for alpha in (0.0, 0.1, 1.0):
        close(jaxent.smooth_labels(LABELS, alpha), optax.smooth_labels(jnp.asarray(LABELS), alpha))
        close(
            jaxent.smooth_labels(LABELS.T, alpha, axis=0),
            optax.smooth_labels(jnp.asarray(LABELS), alpha).T,
        )
    hard = LABELS > 0.5
    for dtype in (bool, np.int32):
        result = jaxent.smooth_labels(hard.astype(dtype), 0.2)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, jaxent.smooth_labels(hard.astype(np.float32), 0.2))


def test_smoothing_is_exact():
    alpha = float(np.float32(0.1))
    truth = [[(1 - mpf(alpha)) * float(t) + mpf(alpha) / 4 for t in row] for row in LABELS]
    assert errors(jaxent.smooth_labels(LABELS, np.float32(0.1)), truth) <= 2


def test_only_classes_that_exist_are_given_mass():
    exists = np.array([[True, True, False, True]])
    labels = np.where(exists, LABELS, np.nan)
    result = np.asarray(jaxent.smooth_labels(labels, 0.3, where=exists))
    close(result[0], [0.1, 0.8, 0.0, 0.1])
    np.testing.assert_array_equal(result[:, 2], 0.0)
    slope = jax.jacrev(lambda x: jaxent.smooth_labels(x, 0.3, where=exists))(labels)
    assert np.isfinite(slope).all()
    np.testing.assert_array_equal(slope[..., 2], 0.0)
    nothing = jaxent.smooth_labels(labels, 0.3, where=np.zeros((2, 4), bool))
    np.testing.assert_array_equal(nothing, 0.0)


def test_masked_examples_have_no_targets():
    labels = np.stack([LABELS[0], np.full(4, np.nan, np.float32)])
    where = np.array([True, False])
    result = jaxent.smooth_labels(labels, 0.1, where=where)
    np.testing.assert_array_equal(result[1], 0.0)
    close(result[0], jaxent.smooth_labels(LABELS[0], 0.1))
    np.testing.assert_array_equal(jaxent.smooth_labels(labels.T, 0.1, 0, where), result.T)
    np.testing.assert_array_equal(jaxent.smooth_labels(labels, 0.1, where=False), 0.0)


def test_smoothing_over_several_axes():
    labels = np.arange(24, dtype=np.float32).reshape(2, 3, 4) / 24
    close(jaxent.smooth_labels(labels, 0.5, axis=(0, 2)), 0.5 * labels + 0.5 / 8)
    close(jaxent.smooth_labels(labels, 0.5, axis=None), 0.5 * labels + 0.5 / 24)
    where = np.array([True, False, True])
    expected = np.where(where[:, None], 0.5 * labels + 0.5 / 8, 0)
    close(jaxent.smooth_labels(labels, 0.5, (0, 2), where), expected)


def test_smoothed_labels_are_what_the_losses_smooth():
    exists = np.array([[True, True, False, True]])
    labels = np.where(exists, LABELS, 0.0)
    for where in (None, exists):
        smoothed = jaxent.smooth_labels(labels, 0.1, where=where)
        close(
            jaxent.softmax_cross_entropy(LOGITS, smoothed, where=where),
            jaxent.softmax_cross_entropy(LOGITS, labels, where=where, label_smoothing=0.1),
        )


# --- class weights --------------------------------------------------------------------------------


def balanced(counts, beta):
    """The weights of one row from their definition."""
    raw = [(1 - beta) / (1 - beta**n) if n else mpf(0) for n in map(int, counts)]
    mean = mpmath.fsum(raw) / sum(n > 0 for n in map(int, counts))
    return [weight / mean for weight in raw]


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.9, 0.999, 0.9999999, 1 - 1e-12])
def test_class_weights_are_exact(beta):
    with mp.workdps(60):
        truth = [balanced(row, mpf(beta)) for row in COUNTS]
    result = np.asarray(jaxent.class_balanced_weights(COUNTS, beta))
    assert errors(result, truth) <= 8
    np.testing.assert_allclose(np.sum(result, -1) / np.sum(COUNTS > 0, -1), 1.0, rtol=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.999, 1 - 2**-20])
def test_a_traced_beta_gives_the_same_weights(beta):
    beta = np.float32(beta)
    with mp.workdps(60):
        truth = [balanced(row, mpf(float(beta))) for row in COUNTS]
    assert errors(jax.jit(jaxent.class_balanced_weights)(COUNTS, beta), truth) <= 8


def test_class_weights_between_alike_and_inverse():
    counts = np.array([1, 10, 100, 0])
    close(jaxent.class_balanced_weights(counts, 0), [1, 1, 1, 0])
    inverse = np.array([1, 0.1, 0.01, 0])
    close(jaxent.class_balanced_weights(counts, 1 - 1e-13), 3 * inverse / inverse.sum())
    np.testing.assert_array_equal(jaxent.class_balanced_weights(np.zeros(3, np.int32)), 0.0)
    assert np.isnan(jaxent.class_balanced_weights(np.array([3, -1, 2]))).all()


def test_class_weights_have_a_gradient_along_beta():
    function = functools.partial(jaxent.class_balanced_weights, COUNTS[0])
    for beta in (0.3, 0.9):
        slope = jax.jacrev(function)(np.float32(beta))
        with mp.workdps(60):
            truth = [
                mpmath.diff(lambda b, i=i: balanced(COUNTS[0], b)[i], mpf(float(np.float32(beta))))
                for i in range(4)
            ]
        np.testing.assert_allclose(slope, np.array(truth, float), rtol=1e-4, atol=1e-6)
    assert np.isfinite(jax.jacrev(function)(np.float32(0))).all()


# --- priors ---------------------------------------------------------------------------------------


def test_priors_are_added_as_logarithms():
    priors = np.array([0.7, 0.2, 0.0999, 1e-30], np.float32)
    for tau in (1.0, 0.5, 0.0, -1.0):
        result = jaxent.logit_adjustment(LOGITS, priors, tau)
        with mp.workdps(60):
            shifts = [mpf(tau) * mpmath.log(mpf(float(p))) for p in priors]
            truth = [
                [mpf(float(x)) + s for x, s in zip(row, shifts, strict=True)] for row in LOGITS
            ]
            scale = [
                [abs(mpf(float(x))) + abs(s) for x, s in zip(row, shifts, strict=True)]
                for row in LOGITS
            ]
        assert errors(result, truth, scale) <= 2
        np.testing.assert_array_equal(jax.jit(jaxent.logit_adjustment)(LOGITS, priors, tau), result)


def test_priors_may_lie_along_any_axis_and_differ_by_example():
    priors = np.array([0.5, 0.2, 0.2, 0.1], np.float32)
    expected = jaxent.logit_adjustment(LOGITS, priors)
    np.testing.assert_array_equal(jaxent.logit_adjustment(LOGITS.T, priors, axis=0).T, expected)
    np.testing.assert_array_equal(jaxent.logit_adjustment(LOGITS, priors[None]), expected)
    each = np.stack([priors, priors[::-1]])
    result = jaxent.logit_adjustment(LOGITS, each)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], jaxent.logit_adjustment(LOGITS[1], each[1]))


def test_small_priors_have_gradients_and_their_logarithms_hessians():
    """The border of what docs/numerics.md says about second derivatives in priors."""
    logits, priors = jnp.array([0.3, 0.1, -0.2]), jnp.array([0.5, 0.5, 1e-8])
    cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels

    def loss(priors):
        return cross_entropy(jaxent.logit_adjustment(logits, priors), 0)

    def loss_of_logarithms(log_priors):
        return cross_entropy(logits + log_priors, 0)

    terms = np.exp(np.asarray(logits, np.float64))
    total = (terms * np.asarray(priors, np.float64)).sum()
    np.testing.assert_allclose(jax.grad(loss)(priors)[2], terms[2] / total, rtol=2e-6)
    probability = terms[2] * 1e-8 / total
    bend = jax.hessian(loss_of_logarithms)(jnp.log(priors))[2, 2]
    np.testing.assert_allclose(bend, probability * (1 - probability), rtol=2e-6)
    # In the priors themselves nothing is left of -(terms / total)**2 here.
    assert jax.hessian(loss)(priors)[2, 2] < -2.0


def test_counts_do_for_priors():
    counts = np.array([70, 20, 9, 1])
    loss = jaxent.softmax_cross_entropy_with_integer_labels
    labels = np.array([1, 2])
    adjusted = (jaxent.logit_adjustment(LOGITS, p) for p in (counts, counts / np.float32(100)))
    np.testing.assert_allclose(*(loss(x, labels) for x in adjusted), rtol=2e-6)


def test_a_class_that_never_occurs_is_impossible():
    priors = np.array([0.5, 0.5, 0.0, 0.0], np.float32)
    logits = LOGITS.copy()
    logits[0, 0] = -np.inf
    result = np.asarray(jaxent.logit_adjustment(logits, priors))
    impossible = np.array([[True, False, True, True], [False, False, True, True]])
    np.testing.assert_array_equal(np.isneginf(result), impossible)

    def total(logits, priors, tau):
        adjusted = jaxent.logit_adjustment(logits, priors, tau)
        return jnp.sum(jaxent.softmax_cross_entropy_with_integer_labels(adjusted, np.array([1, 0])))

    with jax.debug_nans(True):
        slopes = jax.grad(total, (0, 1, 2))(logits, priors, np.float32(1))
    np.testing.assert_array_equal(slopes[0][impossible], 0.0)
    np.testing.assert_array_equal(slopes[1][2:], 0.0)
    assert np.isfinite(slopes[2])
    with jax.debug_nans(True):
        np.testing.assert_array_equal(jaxent.logit_adjustment(logits, priors, 0.0), logits)
        corrected = np.asarray(jaxent.logit_adjustment(logits, priors, -1.0))
    np.testing.assert_array_equal(np.isposinf(corrected), [[False, False, True, True]] * 2)
    assert np.isneginf(corrected[0, 0])


def test_a_negative_prior_is_nan():
    priors = np.array([0.5, -0.1, np.nan, 0.1], np.float32)
    result = jaxent.logit_adjustment(LOGITS, priors)
    np.testing.assert_array_equal(np.isnan(result), [[False, True, True, False]] * 2)
    slope = jax.grad(lambda x: jnp.sum(jaxent.logit_adjustment(x, priors)))(LOGITS)
    np.testing.assert_array_equal(np.isnan(slope), [[False, True, True, False]] * 2)


# --- cap and temperature --------------------------------------------------------------------------


def cap_truths(x, cap):
    """The capped logit and its derivatives: by x, by the cap, and the three second ones."""
    u = x / cap
    tanh, slope = mpmath.tanh(u), mpmath.sech(u) ** 2
    bend = -2 * slope * tanh / cap
    return cap * tanh, slope, tanh - u * slope, bend, -u * bend, u**2 * bend


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("cap", [0.1, 7.3, 30.0, 1000.0])
def test_the_cap_is_exact_with_its_first_and_second_derivatives(dtype, cap):
    generator = np.random.default_rng(0)
    cap = dtype(cap)
    sizes = np.repeat([1e-6, 1e-3, 0.1, 0.5, 1, 3, 10, 20], 12)
    ratios = np.clip(sizes * generator.normal(size=sizes.size), -40, 40)
    logits = (ratios * float(cap)).astype(dtype)
    slope, cap_slope = jax.grad(jaxent.soft_cap), jax.grad(jaxent.soft_cap, 1)

    @jax.jit
    def everything(logits, cap):
        each = jax.vmap(
            lambda x: (
                jaxent.soft_cap(x, cap),
                slope(x, cap),
                cap_slope(x, cap),
                jax.grad(slope)(x, cap),
                jax.jacfwd(slope, 1)(x, cap),
                jax.grad(cap_slope, 1)(x, cap),
            )
        )
        return each(logits)

    with with_float64():
        results = list(map(np.asarray, everything(logits, cap)))
    with mp.workdps(80):
        truths = [cap_truths(mpf(float(x)), mpf(float(cap))) for x in logits]
    for index, (result, bar) in enumerate(zip(results, (6, 8, 8, 10, 10, 10), strict=True)):
        assert result.dtype == dtype
        assert errors(result, [truth[index] for truth in truths], dtype=dtype) <= bar, index


def test_the_cap_holds_and_infinite_logits_pass():
    logits = np.array([3e38, 1e4, 600.0, -600.0, -3e38, np.inf, -np.inf], np.float32)
    with jax.debug_nans(True):
        for cap in (1e-3, 30.0, 5e37):
            result = np.asarray(jaxent.soft_cap(logits, cap))
            assert (np.abs(result[:5]) <= np.float32(cap)).all()
            np.testing.assert_array_equal(result[5:], [np.inf, -np.inf])
            for argument in (0, 1):
                slope = jax.jacrev(jaxent.soft_cap, argument)(logits, np.float32(cap))
                assert np.isfinite(slope).all()
                np.testing.assert_array_equal(slope[5:], 0.0)
    np.testing.assert_allclose(result[0], 5e37 * math.tanh(6), rtol=1e-6)


def test_tiny_logits_pass_the_cap_unchanged():
    logits = 10.0 ** -np.arange(3.0, 34).astype(np.float32)
    close(jaxent.soft_cap(logits, 1.0), np.tanh(logits.astype(np.float64)))
    close(jax.vmap(jax.grad(lambda x: jaxent.soft_cap(x, 1.0)))(logits[4:]), 1.0)


@pytest.mark.parametrize("transform", [jaxent.soft_cap, jaxent.temperature_scaling])
def test_impossible_classes_stay_impossible_on_the_way_to_a_loss(transform):
    logits = np.where(LOGITS < 0, -np.inf, LOGITS)

    def total(logits, number):
        loss = jaxent.softmax_cross_entropy_with_integer_labels
        return jnp.sum(loss(transform(logits, number), np.array([0, 1])))

    with jax.debug_nans(True):
        slopes = jax.grad(total, (0, 1))(logits, np.float32(2))
        bends = [
            outer(jax.grad(total))(logits, np.float32(2)) for outer in (jax.jacfwd, jax.jacrev)
        ]
    np.testing.assert_array_equal(slopes[0][np.isneginf(logits)], 0.0)
    assert all(np.isfinite(result).all() for result in (*slopes, *bends))


def test_a_temperature_divides():
    for temperature in (1e-30, 0.3, 1.0, 7.0, 1e30):
        temperature = np.float32(temperature)
        logits = (LOGITS * min(float(temperature), 1.0)).astype(np.float32)
        x, t = logits.astype(np.float64), float(temperature)
        close(jaxent.temperature_scaling(logits, temperature), x / t)

        def total(x, t):
            return jnp.sum(jaxent.temperature_scaling(x, t))

        close(jax.grad(total)(logits, temperature), np.full(x.shape, 1 / t))
        with np.errstate(over="ignore"):
            expected = np.float64(np.float32(-np.sum(x / t) / t))
        np.testing.assert_allclose(jax.grad(total, 1)(logits, temperature), expected, rtol=2e-6)
    bend = jax.hessian(lambda t: jaxent.temperature_scaling(np.float32(3), t))(np.float32(2))
    close(bend, 2 * 3 / 2**3)


@pytest.mark.thorough
def test_the_temperature_is_found_by_its_gradient():
    """Logits that are twice too large: the loss is least at a temperature of 2."""
    generator = np.random.default_rng(3)
    honest = generator.normal(size=(2000, 3)).astype(np.float32)
    targets = np.asarray(jax.nn.softmax(honest))

    def held_out(temperature):
        scaled = jaxent.temperature_scaling(2 * honest, temperature)
        return jaxent.mean(jaxent.softmax_cross_entropy(scaled, targets))

    assert abs(jax.grad(held_out)(np.float32(2))) < 1e-6
    assert jax.grad(held_out)(np.float32(1.9)) < -1e-3
    assert jax.grad(held_out)(np.float32(2.1)) > 1e-3


def test_smoothing_takes_a_mask_of_more_examples():
    where = np.array([True, False, True])
    smooth = jaxent.smooth_labels(np.array([[1, 0]], np.float32), 0.1, where=where)
    np.testing.assert_allclose(smooth, [[0.95, 0.05], [0, 0], [0.95, 0.05]], rtol=1e-6)


def test_no_classes_and_priors_of_another_length_are_refused():
    with pytest.raises(AssertionError, match=r"counts.*\[0\]"):
        jaxent.class_balanced_weights(np.zeros(0, np.float32))
    with pytest.raises(AssertionError, match=r"class_priors.*\[1\].*\[2,4\]"):
        jaxent.logit_adjustment(np.zeros((2, 4), np.float32), np.array([0.25], np.float32))
