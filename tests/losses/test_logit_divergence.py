"""What is particular to entropies and divergences of logits; the rest is in conformance/."""

import functools
import math

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest

import jaxent
from conformance import logit_divergence, oracle
from conformance.inputs import together

KL = jaxent.softmax_kl_divergence
JENSEN_SHANNON = jaxent.softmax_jensen_shannon
ENTROPY = jaxent.softmax_entropy


def pairs(seed=0, shape=(50, 7), scale=3.0):
    generator = np.random.default_rng(seed)
    return (scale * generator.normal(size=(2, *shape))).astype(np.float32)


def slopes(loss, *arguments):
    """The gradients of the sum of the losses in every argument, from one compiled program."""
    return tuple(map(np.asarray, _program(loss, len(arguments))(*arguments)))


@functools.cache
def _program(loss, count):
    return jax.jit(jax.grad(lambda *a: jnp.sum(loss(*a)), tuple(range(count))))


def softmax(logits):
    return np.asarray(jax.nn.softmax(logits))


# --- the figures of the texts ---------------------------------------------------------------------


def test_a_coin_is_less_uncertain_than_a_die():
    assert ENTROPY(jnp.zeros(2)) / math.log(2) == pytest.approx(1.0, rel=1e-7)
    assert ENTROPY(jnp.zeros(6)) / math.log(2) == pytest.approx(2.585, abs=1e-4)
    assert jaxent.sigmoid_entropy(0.0) / math.log(2) == pytest.approx(1.0, rel=1e-7)


def test_uncertainty_is_greatest_at_one_half():
    logits = np.linspace(-5, 5, 1001, dtype=np.float32)
    entropy = np.asarray(jaxent.sigmoid_entropy(logits))
    (slope,) = slopes(jaxent.sigmoid_entropy, logits)
    assert logits[entropy.argmax()] == 0.0
    np.testing.assert_array_equal(np.sign(slope), -np.sign(logits))


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_equal_logits_have_the_entropy_of_their_number(classes):
    for level in (0.0, -40.0, 300.0, 1e30):
        logits = np.full((classes,), level, np.float32)
        np.testing.assert_allclose(ENTROPY(logits), math.log(classes), rtol=2e-7)
        np.testing.assert_allclose(slopes(ENTROPY, logits)[0], 0.0, atol=1e-9)


# --- identities -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_cross_entropy_is_entropy_and_divergence():
    """H(t, p) = H(t) + KL(t || p), in the values and in the gradients of the logits."""
    logits, target_logits = pairs()
    targets = softmax(target_logits)
    cross_entropy = jaxent.softmax_cross_entropy(logits, targets)
    parts = ENTROPY(target_logits) + KL(logits, target_logits)
    np.testing.assert_allclose(parts, cross_entropy, rtol=1e-6)
    slope = slopes(lambda x: jaxent.softmax_cross_entropy(x, targets), logits)[0]
    np.testing.assert_allclose(slopes(KL, logits, target_logits)[0], slope, atol=2e-7)


def test_the_slope_of_a_divergence_is_the_difference_of_the_probabilities():
    logits, target_logits = pairs(1)
    slope, target_slope = slopes(KL, logits, target_logits)
    p, t = softmax(logits), softmax(target_logits)
    np.testing.assert_allclose(slope, p - t, atol=2e-7)
    ratio = np.log(t) - np.log(p)
    expected = t * (ratio - np.sum(t * ratio, -1, keepdims=True))
    np.testing.assert_allclose(target_slope, expected, atol=2e-6)


@pytest.mark.thorough
def test_divergence_from_a_number_is_entropy_missing_to_its_greatest():
    """KL(p || uniform) = log V - H(p)."""
    logits, _ = pairs(2)
    missing = math.log(7) - ENTROPY(logits)
    np.testing.assert_allclose(KL(np.zeros_like(logits), logits), missing, rtol=1e-5)
    uniform = np.zeros_like(logits)
    np.testing.assert_allclose(KL(logits, 0.0), KL(logits, uniform), rtol=1e-6)
    np.testing.assert_allclose(
        JENSEN_SHANNON(logits, 0.0), JENSEN_SHANNON(logits, uniform), rtol=1e-6
    )


@pytest.mark.thorough
def test_jensen_shannon_is_the_mean_of_two_divergences_to_the_mixture():
    logits_a, logits_b = pairs(3)
    log_p, log_q = jax.nn.log_softmax(logits_a), jax.nn.log_softmax(logits_b)
    mixture = jnp.logaddexp(log_p, log_q)
    expected = (KL(mixture, logits_a) + KL(mixture, logits_b)) / 2
    np.testing.assert_allclose(JENSEN_SHANNON(logits_a, logits_b), expected, rtol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("beta", [0.1, 0.9])
def test_shares_of_the_mixture(beta):
    loss = functools.partial(JENSEN_SHANNON, beta=beta)
    truth = functools.partial(logit_divergence.softmax_jensen_shannon, beta=beta)
    _, (a, b) = together(list(logit_divergence.logit_pairs(np.float32, 3))[::4])
    exact = oracle.batch(truth, a, b)
    results = np.asarray(loss(a, b)), *slopes(loss, a, b)
    truths = (
        (exact.value, exact.value_scale),
        *zip(exact.gradients, exact.gradient_scales, strict=True),
    )
    for result, (expected, scale) in zip(results, truths, strict=True):
        assert np.max(oracle.scaled_ulps(result, expected, scale, np.float32)) <= 16


@pytest.mark.thorough
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_mixed_derivatives_with_unequal_shares(outer):
    """The covariance of what the two have in common, as each of them sees it."""
    beta = 0.2
    loss = functools.partial(JENSEN_SHANNON, beta=beta)
    a, b = pairs(shape=(4, 5))
    mixed = jax.vmap(outer(jax.jacrev(loss), 1))(a, b)
    p, q = (softmax(logits)[:, None] for logits in (a, b))
    shared = beta * (1 - beta) * p * q / (beta * p + (1 - beta) * q)
    centred_p, centred_q = (np.eye(5)[None] - np.swapaxes(x, 1, 2) for x in (p, q))
    expected = -np.einsum("nji,nki->njk", centred_p * shared, centred_q)
    np.testing.assert_allclose(mixed, expected, atol=1e-6)


def test_a_weight_may_be_tiny():
    """1 - (1 - 1e-20) is 0, and its logarithm was asked for."""
    a, b = np.array([[1.0, -2.0, 0.5]], np.float32), np.array([[-1.0, 2.0, 0.3]], np.float32)
    truth = oracle.batch(logit_divergence.softmax_jensen_shannon, a, b, beta=1e-20)
    loss = functools.partial(JENSEN_SHANNON, beta=1e-20)
    value, slopes = jax.value_and_grad(lambda a, b: jnp.sum(loss(a, b)), (0, 1))(a, b)
    assert oracle.ulps(value, truth.value[0], np.float32).max() <= 4
    for slope, expected in zip(slopes, truth.gradients, strict=True):
        assert oracle.ulps(slope, expected, np.float32).max() <= 8


@pytest.mark.parametrize("beta", [0, 1, -0.1, 1.1, math.nan, jnp.array(0.5)])
def test_shares_are_numbers_between_0_and_1(beta):
    with pytest.raises(AssertionError, match=r"softmax_jensen_shannon: `beta` must be a number"):
        JENSEN_SHANNON(*pairs(), beta=beta)


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [1e-6, 1e-3, 0.1, 3.0, 100.0])
def test_jensen_shannon_is_symmetric_and_at_most_log_2(noise):
    logits_a, difference = pairs(4, shape=(1000, 5))
    logits_b = logits_a + np.float32(noise) * difference
    value, mirrored = JENSEN_SHANNON(logits_a, logits_b), JENSEN_SHANNON(logits_b, logits_a)
    np.testing.assert_allclose(value, mirrored, rtol=1e-6)
    slope, other = slopes(JENSEN_SHANNON, logits_a, logits_b)
    mirrored_other, mirrored_slope = slopes(JENSEN_SHANNON, logits_b, logits_a)
    largest = np.abs(slope).max()
    np.testing.assert_allclose(slope, mirrored_slope, atol=1e-6 * largest)
    np.testing.assert_allclose(other, mirrored_other, atol=1e-6 * largest)
    assert (np.asarray(value) <= np.float32(math.log(2))).all()


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(
    ("sigmoid_form", "softmax_form", "count"),
    [(jaxent.sigmoid_entropy, ENTROPY, 1), (jaxent.sigmoid_kl_divergence, KL, 2)],
)
def test_yes_or_no_is_softmax_over_two_classes(sigmoid_form, softmax_form, count):
    logits = list(pairs(5, shape=(200,)))[:count]
    two_classes = [np.stack([np.zeros_like(x), x], -1) for x in logits]
    np.testing.assert_allclose(sigmoid_form(*logits), softmax_form(*two_classes), rtol=1e-6)
    expected = slopes(softmax_form, *two_classes)
    for slope, pair_slope in zip(slopes(sigmoid_form, *logits), expected, strict=True):
        np.testing.assert_allclose(slope, pair_slope[:, 1], rtol=1e-6)


def test_agrees_with_optax_where_optax_is_right():
    logits, target_logits = pairs(6)
    theirs = optax.kl_divergence(jax.nn.log_softmax(logits), softmax(target_logits))
    np.testing.assert_allclose(KL(logits, target_logits), theirs, rtol=1e-5)


# --- nearly equal pairs ---------------------------------------------------------------------------


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
@pytest.mark.parametrize("loss", [KL, JENSEN_SHANNON])
def test_no_divergence_is_negative(loss, dtype):
    for steps in (1, 30, 1000):
        logits, difference = pairs(7, shape=(4000, 6), scale=5.0)
        noise = np.float32(steps * float(ml_dtypes.finfo(dtype).eps))
        others = (logits.astype(dtype).astype(np.float32) + noise * difference).astype(dtype)
        value = np.asarray(loss(logits.astype(dtype), others))
        differ = (logits.astype(dtype) != others).any(-1)
        assert (value >= 0).all()
        assert differ.sum() > 3000
        assert (value[~differ] == 0).all()


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("loss", [KL, JENSEN_SHANNON])
def test_what_is_added_to_all_logits_changes_nothing(loss):
    logits = np.random.default_rng(8).integers(-8, 8, size=(50, 6)).astype(np.float32)
    for constant in (1.0, -300.0):
        np.testing.assert_array_equal(loss(logits, logits + np.float32(constant)), 0.0)
        for slope in slopes(loss, logits, logits + np.float32(constant)):
            np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.thorough
def test_a_divergence_is_quadratic_in_a_small_difference():
    """KL(p + d || p) tends to d' C d / 2, and Jensen-Shannon to a quarter of that."""
    logits, direction = pairs(9, shape=(20, 5)).astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    variance = np.sum(p * direction**2, -1) - np.sum(p * direction, -1) ** 2
    x = logits.astype(np.float32)
    for size in (2.0**-6, 2.0**-9):
        y = (x + (size * direction)).astype(np.float32)
        half = size**2 * variance / 2
        np.testing.assert_allclose(KL(x, y), half, rtol=10 * size)
        np.testing.assert_allclose(JENSEN_SHANNON(x, y), half / 4, rtol=10 * size)


def test_near_and_sure_at_once():
    """Both models sure of one class, to degrees that differ by a tenth of a percent."""
    for margin in (10.0, 30.0, 70.0):
        logits = np.array([margin, 0.0, 0.0], np.float32)
        target_logits = np.array([margin + 2.0**-9, 0.0, 0.0], np.float32)
        with oracle.mp.workdps(120):
            truth = logit_divergence.softmax_kl_divergence(
                oracle.exact(logits), oracle.exact(target_logits)
            )
        np.testing.assert_allclose(KL(logits, target_logits), float(truth.value), rtol=5e-7)
        for slope, expected in zip(slopes(KL, logits, target_logits), truth.gradients, strict=True):
            np.testing.assert_allclose(slope, np.array(expected, float), rtol=5e-7)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("loss", [KL, JENSEN_SHANNON])
def test_all_logits_moved_but_the_largest(loss):
    """The two differ in one class of a thousand, and it is the one that others are measured by."""
    logits = (0.01 * np.random.default_rng(15).normal(size=1000)).astype(np.float32)
    logits[3] = 0.5
    others = logits + np.float32(1.7) * (np.arange(1000) != 3)
    others[3] = 2.25
    with oracle.mp.workdps(60):
        truth = getattr(logit_divergence, loss.__name__)(oracle.exact(logits), oracle.exact(others))
    np.testing.assert_allclose(loss(logits, others), float(truth.value), rtol=1e-6)
    for slope, expected in zip(slopes(loss, logits, others), truth.gradients, strict=True):
        np.testing.assert_allclose(slope, np.array(expected, float), rtol=1e-5)


# --- certainty and impossibility ------------------------------------------------------------------


@pytest.mark.thorough
def test_to_expect_the_impossible_costs_infinity():
    logits = np.array([0.0, 1.0, -np.inf, 2.0], np.float32)
    target_logits = np.array([0.0, -np.inf, -50.0, 1.0], np.float32)
    assert KL(logits, target_logits) == np.inf
    slope, target_slope = slopes(KL, logits, target_logits)
    p, t = softmax(logits), softmax(target_logits)
    np.testing.assert_allclose(slope, np.where(np.isneginf(logits), 0.0, p - t), atol=1e-7)
    np.testing.assert_array_equal(target_slope, [-np.inf, 0.0, np.inf, -np.inf])
    assert np.isfinite(KL(target_logits, np.array([0.0, -np.inf, -np.inf, 1.0], np.float32)))
    assert np.isfinite(JENSEN_SHANNON(logits, target_logits))


@pytest.mark.thorough
def test_nothing_in_common_is_log_2_and_no_more():
    logits_a, logits_b = pairs(14, shape=(1000, 9))
    logits_a[:, 4:], logits_b[:, :4] = -np.inf, -np.inf
    value = np.asarray(JENSEN_SHANNON(logits_a, logits_b))
    np.testing.assert_allclose(value, math.log(2), rtol=3e-7)
    assert (value <= np.float32(math.log(2))).all()
    for slope in slopes(JENSEN_SHANNON, logits_a, logits_b):
        np.testing.assert_array_equal(slope, 0.0)


def test_unlike_models_keep_the_gradient_of_what_little_they_share():
    """Where p and q are apart by e^30, log(p / m) is log 2 to the last bit in every class."""
    logits_a = np.array([30.0, 30.5, 0.0, 0.0], np.float32)
    logits_b = np.array([0.0, 0.25, 30.0, 31.0], np.float32)
    with oracle.mp.workdps(120):
        truth = logit_divergence.softmax_jensen_shannon(
            oracle.exact(logits_a), oracle.exact(logits_b)
        )
    for slope, expected in zip(
        slopes(JENSEN_SHANNON, logits_a, logits_b), truth.gradients, strict=True
    ):
        np.testing.assert_allclose(slope, np.array(expected, float), rtol=1e-6)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("loss", [KL, JENSEN_SHANNON])
def test_without_a_distribution_there_is_no_divergence(loss):
    logits, target_logits = pairs(10, shape=(3, 4))
    target_logits[1] = -np.inf
    value = np.asarray(loss(logits, target_logits))
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    # A later selection can stop the NaN of the value, not one of the gradient.
    np.testing.assert_array_equal(slopes(loss, logits, target_logits)[0][1], 0.0)
    live = np.array([True, False, True])
    masked = np.asarray(loss(logits, target_logits, where=live))
    np.testing.assert_array_equal(masked, np.where(live, value, 0.0))


def test_without_a_distribution_there_is_no_entropy():
    logits = np.array([[0.0, 1.0], [-np.inf, -np.inf]], np.float32)
    np.testing.assert_array_equal(np.isnan(ENTROPY(logits)), [False, True])
    np.testing.assert_array_equal(slopes(ENTROPY, logits)[0][1], 0.0)
    assert ENTROPY(logits, where=np.array([True, False]))[1] == 0.0
    # A model without any class cannot match a target, which is worse than unknown.
    assert KL(logits[1], logits[0]) == np.inf


def test_sure_logits_of_yes_or_no():
    logits = np.array([np.inf, -np.inf, np.inf, 3.0, -np.inf, -200.0], np.float32)
    target_logits = np.array([np.inf, -np.inf, -np.inf, np.inf, 2.0, np.inf], np.float32)
    value = np.asarray(jaxent.sigmoid_kl_divergence(logits, target_logits))
    np.testing.assert_allclose(value, [0, 0, np.inf, 0.04858735, np.inf, 200.0], rtol=1e-6)
    slope, target_slope = slopes(jaxent.sigmoid_kl_divergence, logits, target_logits)
    np.testing.assert_allclose(slope, [0, 0, 1, -0.047425874, -0.8807971, -1], rtol=1e-6)
    np.testing.assert_array_equal(target_slope, [0, 0, 0, 0, np.inf, 0])
    np.testing.assert_array_equal(jaxent.sigmoid_entropy(logits[:3]), 0.0)
    np.testing.assert_array_equal(slopes(jaxent.sigmoid_entropy, logits[:3])[0], 0.0)


# --- second derivatives ---------------------------------------------------------------------------


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_curvature_in_the_target_is_exact(outer):
    """What the contract asks of the first argument, asked of the target."""
    logits, difference = pairs(11, shape=(24, 4))
    sizes = np.repeat(np.array([1e-4, 1e-2, 1.0, 10.0], np.float32), 6)[:, None]
    target_logits = logits + sizes * difference
    target_logits[::3, 1] += 25.0
    logits[::6, 1] += 24.0

    def of_target(target, logits):
        truth = logit_divergence.softmax_kl_divergence(logits, target)
        return truth._replace(gradients=truth.gradients[::-1])

    truth = oracle.hessian(of_target, target_logits, logits)
    p = softmax(target_logits).astype(np.float64)
    # The absolute terms, to a few digits: the covariance, and three with the gradient.
    identity = np.eye(4)
    ratio = (target_logits - logits).astype(np.float64)
    differences = np.abs(ratio[:, :, None] - ratio[:, None, :])
    slope = p * np.sum(p[:, None, :] * differences, -1)
    others = p @ (1 - identity)
    scale = p[:, :, None] * np.where(identity, others[:, None], p[:, None])
    scale += identity * slope[:, None]
    scale += p[:, :, None] * slope[:, None] + slope[:, :, None] * p[:, None]
    result = jax.jit(jax.vmap(outer(jax.jacrev(KL, 1), 1)))(logits, target_logits)
    assert oracle.scaled_ulps(result, truth, scale, np.float32).max() <= 16


@pytest.mark.thorough
def test_mixed_derivatives_are_the_covariance_of_the_target():
    """The gradient in the logits is p - t, so in the target it changes by minus the covariance."""
    logits, target_logits = pairs(12, shape=(5,))
    t = softmax(target_logits)
    expected = np.outer(t, t) - np.diag(t)
    for outer in (jax.jacfwd, jax.jacrev):
        mixed = outer(jax.jacrev(KL, 0), 1)(logits, target_logits)
        np.testing.assert_allclose(mixed, expected, atol=1e-7)


@pytest.mark.thorough
def test_third_derivatives_exist_in_every_mode():
    logits, target_logits = pairs(13, shape=(4,), scale=1.0)
    for loss, rest in ((ENTROPY, ()), (KL, (target_logits,)), (JENSEN_SHANNON, (target_logits,))):
        third = [outer(jax.hessian(loss))(logits, *rest) for outer in (jax.jacfwd, jax.jacrev)]
        step = np.float32(1e-2) * np.eye(4, dtype=np.float32)[0]
        ahead, behind = (jax.hessian(loss)(logits + s, *rest) for s in (step, -step))
        np.testing.assert_allclose(third[0], third[1], atol=1e-6)
        np.testing.assert_allclose(third[0][..., 0], (ahead - behind) / 2e-2, atol=1e-3)
