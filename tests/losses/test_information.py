"""Information: identities, figures, edges, and what is no loss of examples."""

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxent
from conformance import information, oracle
from conformance.case import with_float64

ORDERS = (0.0, 1e-7, 0.25, 0.5, 0.9, 1.0 - 1e-7, 1.0, 1.0 + 1e-7, 1.5, 2.0, 10.0, math.inf)
ENTROPIES = {
    "entropy": jaxent.entropy,
    "renyi": functools.partial(jaxent.renyi_entropy, alpha=2),
    "tsallis": functools.partial(jaxent.tsallis_entropy, alpha=2),
}
DISTANCES = {
    "jensen_shannon": jaxent.jensen_shannon_divergence,
    "total_variation": jaxent.total_variation,
    "hellinger": jaxent.hellinger,
    **{
        f"renyi {alpha:g}": functools.partial(jaxent.renyi_divergence, alpha=alpha)
        for alpha in (0.5, 1.0, 2.0)
    },
}
# Each with the number of its arguments.
WITH_BASE: tuple[tuple[Callable[..., Any], int], ...] = (
    (jaxent.entropy, 1),
    (jaxent.binary_entropy, 1),
    (functools.partial(jaxent.renyi_entropy, alpha=2), 1),
    (jaxent.cross_entropy, 2),
    (jaxent.jensen_shannon_divergence, 2),
    (jaxent.mutual_information, 1),
    (jaxent.perplexity, 1),
)
WITH_ORDER: tuple[tuple[Callable[..., Any], int], ...] = (
    (jaxent.renyi_entropy, 1),
    (jaxent.tsallis_entropy, 1),
    (jaxent.renyi_divergence, 2),
)


def distributions(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.dirichlet(np.ones(shape[-1]), size=shape[:-1]).astype(dtype)


def slopes(function, *arrays) -> tuple[np.ndarray, ...]:
    """The gradients of the sum of the results in every argument."""
    gradient = jax.grad(lambda *a: jnp.sum(function(*a)), tuple(range(len(arrays))))
    return tuple(map(np.asarray, jax.jit(gradient)(*arrays)))


# --- figures --------------------------------------------------------------------------------------


def test_a_coin_and_a_die():
    entropy = functools.partial(jaxent.entropy, base=2)
    assert entropy(jnp.full(2, 0.5)) == 1.0
    np.testing.assert_allclose(entropy(jnp.full(6, 1 / 6)), 2.584962500721156, rtol=2e-7)
    np.testing.assert_allclose(entropy(jnp.array([0.5, 0.5, 0.0])), 1.0)


def test_entropy_of_a_yes_or_no_peaks_at_one_bit():
    p = np.linspace(0, 1, 1001, dtype=np.float32)
    bits = np.asarray(jaxent.binary_entropy(p, base=2))
    assert bits[500] == 1.0 == bits.max()
    assert np.argmax(bits) == 500
    assert slopes(jaxent.binary_entropy, p)[0][500] == 0.0
    np.testing.assert_array_equal(bits[[0, -1]], 0.0)
    pairs = np.stack([p, 1 - p], -1)
    np.testing.assert_allclose(bits, jaxent.entropy(pairs, base=2), rtol=5e-6)


def test_cross_entropy_in_bits_and_in_nats():
    targets, predictions = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5])
    assert jaxent.cross_entropy(targets, predictions, base=2) == 1.75
    nats = jaxent.cross_entropy(targets, predictions)
    np.testing.assert_allclose(nats, 1.75 * math.log(2), rtol=2e-7)
    np.testing.assert_allclose(jaxent.nats_to_bits(nats), 1.75, rtol=2e-7)


# --- identities -----------------------------------------------------------------------------------


def test_cross_entropy_is_entropy_and_divergence():
    targets, predictions = distributions(50, 7), distributions(50, 7, seed=1)

    def parts(t, q):
        return jaxent.entropy(t) + jaxent.kl_divergence(jnp.log(q), t)

    whole = jaxent.cross_entropy(targets, predictions)
    np.testing.assert_allclose(whole, parts(targets, predictions), rtol=2e-6)
    for one, other in zip(
        slopes(jaxent.cross_entropy, targets, predictions),
        slopes(parts, targets, predictions),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_hard_targets_have_no_entropy_of_their_own():
    predictions = distributions(5, 5)
    one_hot = np.eye(5, dtype=np.float32)
    expected = jaxent.cross_entropy(one_hot, predictions)
    np.testing.assert_array_equal(jaxent.entropy(one_hot), 0.0)
    np.testing.assert_array_equal(jaxent.kl_divergence(np.log(predictions), one_hot), expected)
    with np.errstate(divide="ignore"):
        logs = np.log(one_hot)
    both = jaxent.kl_divergence_with_log_targets(np.log(predictions), logs)
    np.testing.assert_array_equal(both, expected)


def test_jensen_shannon_is_symmetric_and_at_most_log_2():
    a, b = distributions(2000, 7), distributions(2000, 7, seed=1)
    a[:100] = np.eye(7, dtype=np.float32)[np.arange(100) % 7]
    b[50:150] = np.eye(7, dtype=np.float32)[np.arange(100) % 7]
    # Disjoint, of which rounded totals are above 1.
    here = np.arange(7) < 3
    a[200:900], b[200:900] = (
        np.where(side, x, 0) / x[:, side].sum(-1, keepdims=True)
        for side, x in ((here, a[200:900]), (~here, b[200:900]))
    )
    for dtype in (np.float32, ml_dtypes.bfloat16):
        x, y = a.astype(dtype), b.astype(dtype)
        there, back = jaxent.jensen_shannon_divergence(x, y), jaxent.jensen_shannon_divergence(y, x)
        np.testing.assert_array_equal(there, back)
        assert np.max(there) <= np.float32(math.log(2))
        assert np.max(jaxent.jensen_shannon_divergence(x, y, base=2)) <= 1.0
    far = jaxent.jensen_shannon_divergence(jnp.array([2.0, 0.0]) / 3, jnp.array([0.0, 1.0]))
    np.testing.assert_allclose(far, 5 / 6 * math.log(2), rtol=2e-7)


def test_divergence_of_order_one_half_is_the_overlap():
    a, b = distributions(50, 7), distributions(50, 7, seed=1)
    overlap = np.sum(np.sqrt(a.astype(np.float64) * b), -1)
    half = jaxent.renyi_divergence(a, b, alpha=0.5)
    np.testing.assert_allclose(half, -2 * np.log(overlap), rtol=2e-6)
    distance = np.asarray(jaxent.hellinger(a, b))
    np.testing.assert_allclose(distance**2, 1 - overlap, rtol=2e-6)


def test_distances_bound_each_other():
    a, b = distributions(500, 7), distributions(500, 7, seed=1)
    variation, hellinger = jaxent.total_variation(a, b), jaxent.hellinger(a, b)
    divergence = jaxent.renyi_divergence(a, b, alpha=1)
    assert np.all(variation <= np.sqrt(divergence / 2))
    assert np.all(np.square(hellinger) <= variation)
    assert np.all(variation <= math.sqrt(2) * hellinger)


@pytest.mark.thorough
def test_mutual_information_of_counts_above_2_24_wants_them_in_float64():
    counts = np.array([[2**24 + 1, 2**24], [2**24, 2**24 + 1]])
    with with_float64():
        assert jaxent.mutual_information(counts) == 0.0
        exact = jaxent.mutual_information(counts.astype(np.float64))
    # The chance of agreement is 1/2 + h: the information is 2 h^2 and smaller terms.
    np.testing.assert_allclose(exact, 2.0 * (0.25 / (2**24 + 0.5)) ** 2, rtol=1e-12)


def test_mutual_information_is_what_entropies_share():
    joint = distributions(40, 12).reshape(40, 3, 4)
    entropies = jaxent.entropy(joint.sum(-1)) + jaxent.entropy(joint.sum(-2))
    expected = entropies - jaxent.entropy(joint.reshape(40, 12))
    np.testing.assert_allclose(jaxent.mutual_information(joint), expected, atol=1e-6)
    product = joint.sum(-1)[:, :, None] * joint.sum(-2)[:, None, :]
    divergence = jaxent.renyi_divergence(joint, product, axis=(1, 2), alpha=1)
    np.testing.assert_allclose(jaxent.mutual_information(joint), divergence, rtol=1e-5)


@pytest.mark.thorough
def test_orders_are_ordered():
    a, b = distributions(50, 7), distributions(50, 7, seed=1)
    entropies = np.stack([jaxent.renyi_entropy(a, alpha=alpha) for alpha in ORDERS])
    divergences = np.stack([jaxent.renyi_divergence(a, b, alpha=alpha) for alpha in ORDERS])
    assert np.all(np.diff(entropies, axis=0) <= 1e-6)
    assert np.all(np.diff(divergences, axis=0) >= -1e-6)
    np.testing.assert_allclose(entropies[0], math.log(7), rtol=1e-6)
    np.testing.assert_allclose(entropies[-1], -np.log(a.max(-1)), rtol=1e-6)
    np.testing.assert_array_equal(divergences[0], 0.0)
    np.testing.assert_allclose(divergences[-1], np.log((a / b).max(-1)), rtol=1e-5)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("step", [0.0, 1e-3, -1e-3, 1e-7, -1e-7])
def test_order_one_is_joined_smoothly(step):
    """To first order in the step, with a slope in alpha of at most 20 on these inputs."""
    a, b = distributions(20, 7), distributions(20, 7, seed=1)
    a, b = (0.9 * x + np.float32(0.1 / 7) for x in (a, b))
    log_b = jnp.log(b)
    slack = 20 * abs(step) + 2e-6
    renyi = functools.partial(jaxent.renyi_entropy, alpha=1 + step)
    tsallis = functools.partial(jaxent.tsallis_entropy, alpha=1 + step)
    divergence = functools.partial(jaxent.renyi_divergence, alpha=1 + step)
    shannon = jaxent.entropy(a)
    for entropy in (renyi, tsallis):
        np.testing.assert_allclose(entropy(a), shannon, rtol=slack)
    centred = [g - (g * a).sum(-1, keepdims=True) for g in slopes(jaxent.entropy, a)]
    for entropy in (renyi, tsallis):
        (slope,) = slopes(entropy, a)
        # On distributions only what differs between classes counts.
        slope = slope - (slope * a).sum(-1, keepdims=True)
        np.testing.assert_allclose(slope, centred[0], atol=slack * 3)
    np.testing.assert_allclose(divergence(a, b), jaxent.kl_divergence(log_b, a), rtol=slack)
    mine = slopes(divergence, a, b)
    theirs = slopes(lambda a, b: jaxent.kl_divergence(jnp.log(b), a), a, b)
    for one, other in zip(mine, theirs, strict=True):
        one, other = (x - (x * w).sum(-1, keepdims=True) for x, w in ((one, a), (other, a)))
        np.testing.assert_allclose(one, other, atol=slack * 3 + 2e-5)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("alpha", ORDERS[1:-1])
def test_every_order_is_exact(alpha):
    """Also where the table of the contract has no row; nearly equal pairs are among these."""
    families = [
        family
        for family in information.pairs(np.float32, 4, 1e-6)
        if family.name.startswith(("Dirichlet 1 ", "Dirichlet 1,", "Dirichlet 10 ", "zeros", "one"))
    ]
    a, b = (np.concatenate(arrays) for arrays in zip(*[f.arrays for f in families], strict=True))
    names = [family.name for family in families for _ in family.arrays[0]]
    for function, of, given in (
        (jaxent.renyi_divergence, information.renyi_divergence, (a, b)),
        (jaxent.renyi_entropy, information.renyi_entropy, (a,)),
        (jaxent.tsallis_entropy, information.tsallis_entropy, (a,)),
    ):
        truth = oracle.batch(of, *given, alpha=alpha)
        loss = functools.partial(function, alpha=alpha)
        # Powers of a rounded ratio have alpha times its error.
        bar = 8 * max(1.0, alpha / 2)
        errors = oracle.scaled_ulps(
            jax.jit(loss)(*given), truth.value, truth.value_scale, np.float32
        )
        assert errors.max() <= bar, (names[errors.argmax()], errors.max())
        for index, slope in enumerate(slopes(loss, *given)):
            errors = oracle.scaled_ulps(
                slope, truth.gradients[index], truth.gradient_scales[index], np.float32
            ).max(-1)
            assert errors.max() <= bar, (index, names[errors.argmax()], errors.max())


@pytest.mark.parametrize("scale", [0.7, 1e-6, 1e3, 1e8])
def test_probabilities_against_counts_are_exact(scale):
    """The divergence is one of shares, however far the totals are from each other."""
    a = np.array([[0.2, 0.3, 0.5], [0.2, 0.3, 0.5], [0.7, 0.2, 0.1]], np.float32)
    b = np.array(
        [[0.26, 0.62, 0.12], [0.2001, 0.3001, 0.4998], [0.7002, 0.2001, 0.0997]], np.float32
    )
    b *= np.float32(scale)
    divergence = functools.partial(jaxent.renyi_divergence, alpha=1.0)
    for given in ((a, b), (b, a)):
        truth = oracle.batch(information.renyi_divergence, *given, alpha=1.0)
        found = (divergence(*given), *slopes(divergence, *given))
        expected = (truth.value, *truth.gradients)
        scales = (truth.value_scale, *truth.gradient_scales)
        for one, right, size in zip(found, expected, scales, strict=True):
            assert oracle.scaled_ulps(one, right, size, np.float32).max() <= 16


@pytest.mark.parametrize("alpha", [2.5, 300.0, 1e6])
def test_large_orders_of_tsallis_have_exact_gradients(alpha):
    p = np.array([[0.5, 0.3, 0.2], [0.999, 0.0005, 0.0005], [1.0, 0.0, 0.0]], np.float32)
    (slope,) = slopes(functools.partial(jaxent.tsallis_entropy, alpha=alpha), p)
    powers = p.astype(np.float64) ** (alpha - 1)
    size = (1 + alpha * powers) / (alpha - 1)
    error = np.abs(slope - (1 - alpha * powers) / (alpha - 1))
    assert (error <= 4 * np.finfo(np.float32).eps * size).all()


@pytest.mark.thorough
def test_extreme_orders_do_not_overflow():
    a = jnp.array([[0.5, 0.5, 0.0], [1e-30, 1.0, 0.0]])
    b = jnp.array([[1e-30, 0.5, 0.5], [0.5, 0.5, 0.0]])
    for alpha in (50.0, 1000.0, 1e6):
        divergence = functools.partial(jaxent.renyi_divergence, alpha=alpha)
        entropy = functools.partial(jaxent.renyi_entropy, alpha=alpha)
        with jax.debug_nans(True):
            worst = jaxent.renyi_divergence(a, b, alpha=math.inf)
            np.testing.assert_allclose(divergence(a, b), worst, rtol=2 / alpha + 1e-6)
            least = jaxent.renyi_entropy(b, alpha=math.inf)
            np.testing.assert_allclose(entropy(b), least, rtol=2 / alpha + 1e-6)
            for slope in (*slopes(divergence, a, b), *slopes(entropy, b)):
                assert np.isfinite(slope).all()


@pytest.mark.parametrize("alpha", [2.0, 30.0, 250.0, 1e4])
def test_large_orders_of_entropy_have_exact_derivatives(alpha):
    """The power of a class with nearly all of the sum cancels in every derivative."""
    p = np.array([[0.5, 0.3, 0.2]], np.float32)
    entropy = functools.partial(jaxent.renyi_entropy, alpha=alpha)
    truth = oracle.batch(information.renyi_entropy, p, alpha=alpha)
    (slope,) = slopes(entropy, p)
    assert oracle.ulps(slope, truth.gradients[0], np.float32).max() <= 16
    bend = np.asarray(jax.jit(jax.hessian(entropy))(p[0]))
    expected = oracle.hessian(information.renyi_entropy, p, alpha=alpha)
    assert oracle.ulps(bend.ravel(), expected.ravel(), np.float32).max() <= 16


def test_second_derivatives_of_large_orders_for_any_total():
    """The entropy of c p is that of p less log(c), so its second derivatives are 1 / c**2 times."""
    p = np.array([0.5, 0.3, 0.2], np.float32)
    bend = jax.jit(jax.hessian(functools.partial(jaxent.renyi_entropy, alpha=5.0)))
    np.testing.assert_allclose(bend(0.25 * p), 16.0 * bend(p), rtol=2e-6)


@pytest.mark.parametrize("alpha", [10.0, 250.0, 1000.0])
def test_gradients_of_large_orders_of_entropy_of_nearly_equal_classes(alpha):
    """As far as docs/numerics.md promises."""
    p = np.array([[0.335, 0.333, 0.332], [0.3, 0.4, 0.3]], np.float32)
    (slope,) = slopes(functools.partial(jaxent.renyi_entropy, alpha=alpha), p)
    truth = oracle.batch(information.renyi_entropy, p, alpha=alpha)
    sizes = truth.gradient_scales[0]
    errors = oracle.scaled_ulps(slope, truth.gradients[0], sizes, np.float32)
    assert errors.max() <= max(16, alpha / 2)


@pytest.mark.parametrize("alpha", [10.0, 50.0, 200.0])
def test_derivatives_of_large_orders_between_unlike_distributions(alpha):
    """As far as docs/numerics.md promises."""
    a, b = np.array([0.9, 0.1, 1e-5], np.float32), np.array([1e-4, 0.1, 0.9], np.float32)
    divergence = functools.partial(jaxent.renyi_divergence, alpha=alpha)
    truth = oracle.batch(information.renyi_divergence, a[None], b[None], alpha=alpha)
    for slope, expected in zip(slopes(divergence, a, b), truth.gradients, strict=True):
        expected = np.asarray(expected, np.float64).ravel()
        assert np.abs(slope - expected).max() <= alpha * 5e-7 * np.abs(expected).max()
    bend = np.asarray(jax.jit(jax.hessian(divergence))(a, b)).ravel()
    expected = oracle.hessian(information.renyi_divergence, a[None], b[None], alpha=alpha)
    expected = np.asarray(expected, np.float64).ravel()
    assert np.abs(bend - expected).max() <= alpha**2 * 5e-7 * np.abs(expected).max()


def test_limits_have_gradients():
    a, b = jnp.array([0.5, 0.25, 0.25, 0.0]), jnp.array([0.25, 0.25, 0.25, 0.25])
    of_a, of_b = slopes(functools.partial(jaxent.renyi_divergence, alpha=math.inf), a, b)
    np.testing.assert_allclose(of_a, [1.0, -1.0, -1.0, -1.0])
    np.testing.assert_allclose(of_b, [-3.0, 1.0, 1.0, 1.0])
    of_a, of_b = slopes(functools.partial(jaxent.renyi_divergence, alpha=0), a, b)
    np.testing.assert_array_equal(of_a, 0.0)
    np.testing.assert_allclose(of_b, [-1 / 3, -1 / 3, -1 / 3, 1.0], rtol=1e-6)
    (slope,) = slopes(functools.partial(jaxent.renyi_entropy, alpha=math.inf), a)
    np.testing.assert_allclose(slope, [-2.0, 0.0, 0.0, 0.0])


# --- signs ----------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_divergences_of_distributions_are_never_negative(dtype):
    wide = distributions(4000, 10, dtype=np.float64)
    generator = np.random.default_rng(3)
    # Without the rule for results barely below 0 some would be.
    p, log_p = (x.astype(dtype).astype(np.float64) for x in (wide, np.log(wide)))
    assert (np.sum(p * (np.log(p) - log_p), -1) < 0).any()
    for change in (0.0, 1e-7, 1e-4, 1e-2):
        other = wide * (1 + change * generator.normal(size=wide.shape))
        other /= other.sum(-1, keepdims=True)
        a, b = wide.astype(dtype), other.astype(dtype)
        log_a, log_b = (np.log(x).astype(dtype) for x in (wide, other))
        assert np.min(jaxent.kl_divergence(log_b, a)) >= 0
        assert np.min(jaxent.kl_divergence_with_log_targets(log_b, log_a)) >= 0
        for distance in DISTANCES.values():
            assert np.min(distance(a, b)) >= 0


def test_what_is_clearly_negative_stays():
    targets, log_p = jnp.array([0.5, 0.4]), jnp.log(jnp.array([0.6, 0.5]))
    expected = 0.5 * math.log(0.5 / 0.6) + 0.4 * math.log(0.4 / 0.5)
    np.testing.assert_allclose(jaxent.kl_divergence(log_p, targets), expected, rtol=1e-6)
    both = jaxent.kl_divergence_with_log_targets(log_p, jnp.log(targets))
    np.testing.assert_allclose(both, expected, rtol=1e-6)


def test_barely_negative_results_keep_their_gradients():
    targets = jnp.array([1 / 3, 1 / 3, 1 / 3])
    log_p = jnp.log(targets) + 1e-7
    assert jaxent.kl_divergence(log_p, targets) == 0.0
    of_log_p, of_targets = slopes(jaxent.kl_divergence, log_p, targets)
    np.testing.assert_array_equal(of_log_p, -targets)
    np.testing.assert_allclose(of_targets, 1.0, rtol=1e-6)


# --- edges ----------------------------------------------------------------------------------------


def test_an_impossible_class_without_target_costs_nothing():
    log_p, targets = jnp.array([-jnp.inf, 0.0]), jnp.array([0.0, 1.0])
    with jax.debug_nans(True):
        assert jaxent.kl_divergence(log_p, targets) == 0.0
        of_log_p, of_targets = slopes(jaxent.kl_divergence, log_p, targets)
        np.testing.assert_array_equal(of_log_p, [0.0, -1.0])
        np.testing.assert_array_equal(of_targets, [0.0, 1.0])
        assert jaxent.kl_divergence(log_p, targets[::-1]) == jnp.inf
        assert jaxent.kl_divergence_with_log_targets(log_p, log_p) == 0.0
        assert jaxent.kl_divergence_with_log_targets(log_p, log_p[::-1]) == jnp.inf
    assert slopes(jaxent.kl_divergence, log_p, targets[::-1])[1][0] == jnp.inf


@pytest.mark.thorough
@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, np.inf])
def test_what_is_no_probability_makes_the_example_nan(bad):
    p = distributions(3, 4)
    wrong = p.copy()
    wrong[1, 2] = bad
    for entropy in ENTROPIES.values():
        np.testing.assert_array_equal(np.isnan(entropy(wrong)), [False, True, False])
        assert np.isnan(slopes(entropy, wrong)[0][1]).all()
    for name, distance in {**DISTANCES, "cross": jaxent.cross_entropy}.items():
        if name.startswith("renyi") and bad == 1.1:
            continue
        for given in ((wrong, p), (p, wrong)):
            np.testing.assert_array_equal(np.isnan(distance(*given)), [False, True, False])
            for slope in slopes(distance, *given):
                np.testing.assert_array_equal(np.isnan(slope).all(-1), [False, True, False])
    hit = np.isnan(jaxent.binary_entropy(wrong))
    assert hit[1, 2]
    assert hit.sum() == 1


@pytest.mark.parametrize("bad", [-0.1, np.nan, np.inf])
def test_what_is_no_target_makes_the_divergence_nan(bad):
    p = distributions(3, 4)
    wrong, wrong_logs = p.copy(), np.log(p)
    wrong[1, 2] = wrong_logs[1, 2] = bad
    cases = [(jaxent.kl_divergence, (np.log(p), wrong))]
    if bad != -0.1:
        cases += [(jaxent.kl_divergence, (wrong_logs, p))]
        cases += [(jaxent.kl_divergence_with_log_targets, (wrong_logs, np.log(p)))]
        cases += [(jaxent.kl_divergence_with_log_targets, (np.log(p), wrong_logs))]
    for function, given in cases:
        np.testing.assert_array_equal(np.isnan(function(*given)), [False, True, False])
        for slope in slopes(function, *given):
            assert np.isnan(slope[1, 2])
            assert np.isfinite(slope[[0, 2]]).all()


@pytest.mark.thorough
def test_subnormal_probabilities_count_as_zero():
    zero = distributions(1, 4)
    zero[0, 0] = 0.0
    subnormal = zero.copy()
    subnormal[0, 0] = 1e-40
    other = distributions(1, 4, seed=1)
    with jax.debug_nans(True):
        for entropy in ENTROPIES.values():
            np.testing.assert_array_equal(entropy(subnormal), entropy(zero))
            np.testing.assert_array_equal(slopes(entropy, subnormal)[0], slopes(entropy, zero)[0])
            assert np.isfinite(jax.hessian(lambda p: entropy(p)[0])(subnormal)).all()  # noqa: B023
        for distance in DISTANCES.values():
            for x in (subnormal, zero):
                np.testing.assert_allclose(distance(x, other), distance(zero, other), rtol=1e-6)
                for slope, expected in zip(
                    slopes(distance, x, other), slopes(distance, zero, other), strict=True
                ):
                    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_a_distribution_without_mass_has_no_renyi_divergence():
    nothing, p = jnp.zeros((1, 3)), distributions(1, 3)
    for given in ((nothing, p), (p, nothing)):
        assert np.isnan(jaxent.renyi_divergence(*given, alpha=2)).all()
    assert np.isnan(jaxent.renyi_entropy(nothing, alpha=2)).all()
    assert jaxent.entropy(nothing) == 0.0


@pytest.mark.thorough
def test_divergences_of_orders_where_one_is_zero():
    a, b = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.0, 0.5, 0.5])
    with jax.debug_nans(True):
        for alpha in (1.0, 2.0, 10.0, math.inf):
            assert jaxent.renyi_divergence(a, b, alpha=alpha) == jnp.inf
        np.testing.assert_allclose(jaxent.renyi_divergence(a, b, alpha=0), math.log(2), rtol=1e-6)
        np.testing.assert_allclose(
            jaxent.renyi_divergence(a, b, alpha=0.5), 2 * math.log(2), rtol=1e-6
        )
        disjoint = jaxent.renyi_divergence(jnp.array([1.0, 0.0]), jnp.array([0.0, 1.0]), alpha=0.5)
        assert disjoint == jnp.inf
        of_a, of_b = slopes(functools.partial(jaxent.renyi_divergence, alpha=2), a, b)
    np.testing.assert_array_equal(of_a, [jnp.inf, 0.0, 0.0])
    np.testing.assert_array_equal(of_b, [-jnp.inf, 0.0, 0.0])


@pytest.mark.thorough
def test_a_masked_class_is_gone_from_both():
    a, b = distributions(3, 5), distributions(3, 5, seed=1)
    exists = np.array([True, True, False, True, False])
    for distance in DISTANCES.values():
        expected = distance(a[:, exists], b[:, exists])
        spoiled = np.where(exists, a, np.nan)
        np.testing.assert_allclose(distance(spoiled, b, where=exists[None]), expected, rtol=1e-6)


# --- mutual information ---------------------------------------------------------------------------


def tables(rows: int, columns: int) -> dict[str, np.ndarray]:
    """Joint distributions and counts, from independent to one row for each column."""
    generator = np.random.default_rng([rows, columns])
    margins = [generator.dirichlet(np.full(size, 5.0)) for size in (rows, columns)]
    one_cell = np.full((rows, columns), 1e-7)
    one_cell[0, 0] = 1
    found = {
        "Dirichlet": generator.dirichlet(np.ones(rows * columns)).reshape(rows, columns),
        "sparse": generator.exponential(size=(rows, columns))
        * (generator.random((rows, columns)) < 0.5)
        + 0.01 * np.eye(rows, columns),
        "counts": generator.integers(1, 50, size=(rows, columns)).astype(float),
        "large counts": 3e4 * generator.integers(0, 50, size=(rows, columns)),
        "one cell": one_cell,
        "one for one": np.eye(rows, columns),
    }
    for change in (0.1, 1e-3, 1e-6):
        noise = generator.normal(size=(rows, columns))
        found[f"changed by {change:g}"] = np.outer(*margins) * (1 + change * noise)
    return {name: joint.astype(np.float32) for name, joint in found.items()}


@pytest.mark.thorough
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 4), (7, 5)])
def test_mutual_information_is_exact(rows, columns):
    given = tables(rows, columns)
    joint = np.stack(list(given.values()))
    flat = joint.reshape(len(joint), -1)
    truth = oracle.batch(information.mutual_information, flat, rows=rows)
    losses = jax.jit(jaxent.mutual_information)(joint)
    (slope,) = slopes(jaxent.mutual_information, joint)
    value_errors = oracle.scaled_ulps(losses, truth.value, truth.value_scale, np.float32)
    slope_errors = oracle.scaled_ulps(
        slope.reshape(flat.shape), truth.gradients[0], truth.gradient_scales[0], np.float32
    )
    assert value_errors.max() <= 4, dict(zip(given, value_errors, strict=True))
    # A logarithm near 0 in the midst of others of 1e-6 has but 48 digits to come from.
    kept = np.array(["1e-06" not in name for name in given])
    assert slope_errors[kept].max() <= 8, dict(zip(given, slope_errors.max(-1), strict=True))
    with with_float64():
        again = np.asarray(jaxent.mutual_information(joint.astype(np.float64)))
        errors = oracle.scaled_ulps(again, truth.value, truth.value_scale, np.float64)
        assert errors.max() <= 4


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("outer", [jax.jacfwd, jax.jacrev])
def test_mutual_information_has_exact_curvature(outer):
    joint = np.stack(list(tables(2, 3).values()))
    flat = joint.reshape(len(joint), -1)
    truth = oracle.hessian(information.mutual_information, flat, rows=2).swapaxes(1, 2)
    scale = information.information_hessian_scale(flat, rows=2)

    def of_cells(cells):
        return jaxent.mutual_information(cells.reshape(2, 3))

    with jax.debug_nans(True):
        found = np.asarray(jax.jit(jax.vmap(outer(jax.jacrev(of_cells))))(flat))
    errors = oracle.scaled_ulps(found, truth, scale, np.float32)
    errors = np.where((truth != truth) & np.isfinite(found), 0.0, errors)
    assert errors.max() <= 16


@pytest.mark.thorough
def test_two_columns_of_half_the_mass_have_curvature():
    """Rounded sums of both may exceed half of the total."""
    joint = np.full((5, 2), 1e-7, np.float32)
    joint[[0, 1], [0, 1]] = 0.5
    (found, cross), *_ = jax.hessian(jaxent.mutual_information)(joint)[0, 0]
    np.testing.assert_allclose(found, -1.000005, rtol=2e-6)
    np.testing.assert_allclose(cross, 14.424917, rtol=2e-6)


@pytest.mark.thorough
def test_mutual_information_of_counts_masks_and_axes():
    counts = np.random.default_rng(0).integers(0, 9, size=(4, 3, 5))
    expected = np.asarray(jaxent.mutual_information(counts))
    real = counts.astype(np.float32)
    np.testing.assert_allclose(jaxent.mutual_information(real / 64), expected, rtol=1e-6)
    moved = np.moveaxis(real, (1, 2), (2, 0))
    np.testing.assert_allclose(jaxent.mutual_information(moved, (2, 0)), expected, rtol=1e-6)
    np.testing.assert_allclose(jaxent.mutual_information(real, (2, 1)), expected, rtol=1e-6)
    bits = jaxent.mutual_information(real, base=2)
    np.testing.assert_allclose(bits, expected / math.log(2), rtol=1e-6)

    live = np.array([True, False, True, False])
    spoiled = np.where(live[:, None, None], real, np.nan)
    masked = jaxent.mutual_information(spoiled, where=live)
    np.testing.assert_allclose(masked, np.where(live, expected, 0.0), rtol=1e-6)
    (slope,) = slopes(lambda x: jaxent.mutual_information(x, where=live), spoiled)
    np.testing.assert_array_equal(slope[~live], 0.0)
    exists = np.arange(5) < 4
    spoiled = np.where(exists, real, np.nan)
    kept = jaxent.mutual_information(spoiled, where=np.broadcast_to(exists, real.shape))
    np.testing.assert_allclose(kept, jaxent.mutual_information(real[..., :4]), rtol=1e-6)

    np.testing.assert_allclose(jax.vmap(jaxent.mutual_information)(real), expected, rtol=1e-6)
    half = jaxent.mutual_information(real.astype(ml_dtypes.bfloat16))
    assert half.dtype == np.float32
    np.testing.assert_allclose(half, expected, rtol=1e-6)


def test_mutual_information_refuses_and_calls_nan():
    axes: tuple[Any, ...] = (0, (0,), (0, 0), (0, 1, 2), (0, 5), None)
    for axis in axes:
        with pytest.raises(AssertionError, match=r"mutual_information: `axis`"):
            jaxent.mutual_information(jnp.ones((2, 3, 4)), axis)
    with pytest.raises(AssertionError, match=r"mutual_information: `joint` must be real"):
        jaxent.mutual_information(jnp.ones((2, 2), complex))
    joint = np.ones((5, 2, 2), np.float32)
    joint[1, 0, 0], joint[2, 0, 1], joint[3, 1, 1], joint[4] = -1, np.nan, np.inf, 0
    bad = np.arange(5) > 0
    np.testing.assert_array_equal(np.isnan(jaxent.mutual_information(joint)), bad)
    (slope,) = slopes(jaxent.mutual_information, joint)
    np.testing.assert_array_equal(np.isnan(slope).any((1, 2)), bad)
    assert jaxent.mutual_information(joint)[0] == 0.0


# --- bases, orders, units -------------------------------------------------------------------------


def test_bases_are_units():
    p, q = distributions(5, 4), distributions(5, 4, seed=1)
    bases: tuple[Any, ...] = (2, 10, 1.5, np.float32(3.5))
    for base in bases:
        for function in (
            jaxent.entropy,
            jaxent.binary_entropy,
            functools.partial(jaxent.renyi_entropy, alpha=2),
        ):
            expected = function(p) / math.log(base)
            np.testing.assert_allclose(function(p, base=base), expected, rtol=3e-7)
        for function in (jaxent.cross_entropy, jaxent.jensen_shannon_divergence):
            expected = function(p, q) / math.log(base)
            np.testing.assert_allclose(function(p, q, base=base), expected, rtol=3e-7)


@pytest.mark.parametrize("base", [0, 0.5, 1, -2, math.inf, math.nan, "2", jnp.array(2.0)])
def test_bases_that_are_none_are_refused(base):
    for function, count in WITH_BASE:
        with pytest.raises(AssertionError, match="`base` must be a finite number greater than 1"):
            function(*[jnp.full((2, 2), 0.5)] * count, base=base)


@pytest.mark.parametrize("alpha", [-1, -1e-9, math.nan, "1", jnp.array(2.0)])
def test_orders_that_are_none_are_refused(alpha):
    p = jnp.full(2, 0.5)
    for function, count in WITH_ORDER:
        with pytest.raises(AssertionError, match=f"{function.__name__}: `alpha` must be a number"):
            function(*[p] * count, alpha=alpha)
    with pytest.raises(AssertionError, match="`alpha` must be finite"):
        jaxent.tsallis_entropy(p, alpha=math.inf)


def test_perplexity():
    nats = jnp.array([0.0, math.log(50), 88.0, -1.0, jnp.nan])
    expected = [1.0, 50.0, math.exp(88), math.exp(-1), math.nan]
    np.testing.assert_allclose(jaxent.perplexity(nats), expected, rtol=4e-6)
    np.testing.assert_allclose(jax.grad(jaxent.perplexity)(2.0), math.exp(2), rtol=1e-6)
    # A base that float32 cannot hold, at an exponent that would show it.
    for base, x in itertools.product((2, 10, 2.7182818, 1.25), (0.0, 3.0, 30.0)):
        perplexity = functools.partial(jaxent.perplexity, base=base)
        np.testing.assert_allclose(perplexity(x), base**x, rtol=1e-6)
        slope = jax.grad(perplexity)(x)
        np.testing.assert_allclose(slope, math.log(base) * base**x, rtol=1e-6)
    uniform = jaxent.entropy(jnp.full(7, 1 / 7), base=2)
    np.testing.assert_allclose(jaxent.perplexity(uniform, base=2), 7, rtol=1e-6)
    assert jaxent.perplexity(np.ones(3, ml_dtypes.bfloat16)).dtype == np.float32
    with pytest.raises(AssertionError, match=r"perplexity: `cross_entropy` must be floating"):
        jaxent.perplexity(3)


def test_bits():
    np.testing.assert_allclose(jaxent.nats_to_bits(np.float32(math.log(1024))), 10, rtol=2e-7)
    np.testing.assert_allclose(jax.grad(jaxent.nats_to_bits)(1.0), 1 / math.log(2), rtol=2e-7)
    assert jaxent.nats_to_bits(np.ones(3, ml_dtypes.bfloat16)).dtype == np.float32
    with pytest.raises(AssertionError, match=r"nats_to_bits: `nats` must be floating"):
        jaxent.nats_to_bits(3)


def test_bits_per_byte():
    nats = jnp.array([[100.0, 200.0]])
    expected = np.array([[100.0, 200.0]]) / 50 / math.log(2)
    for num_bytes in (50, 50.0, jnp.array([[50, 50]]), np.array([[50]], np.int8)):
        np.testing.assert_allclose(jaxent.bits_per_byte(nats, num_bytes), expected, rtol=3e-7)
    bad = jaxent.bits_per_byte(nats, jnp.array([[0, -1]]))
    assert np.isnan(bad).all()
    (slope, _) = slopes(jaxent.bits_per_byte, nats, jnp.array([[0.0, 2.0]]))
    np.testing.assert_array_equal(np.isnan(slope), [[True, False]])
    with pytest.raises(AssertionError, match=r"bits_per_byte: arguments must have one rank"):
        jaxent.bits_per_byte(nats, jnp.ones(2))
    with with_float64():
        assert jaxent.bits_per_byte(np.ones(2), 3).dtype == np.float64


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_probabilities_for_log_probabilities_are_nan(dtype):
    p, t = (np.array(a, dtype) for a in ([[0.25, 0.75], [0.5, 0.5]], [[0.5, 0.5], [0.9, 0.1]]))
    assert jnp.isnan(jaxent.kl_divergence(p, t)).all()
    assert jnp.isnan(jaxent.kl_divergence_with_log_targets(p, np.log(t))).all()
    assert jnp.isnan(jaxent.kl_divergence_with_log_targets(np.log(p), t)).all()
    # Its predictions are of any size.
    assert jnp.isfinite(jaxent.generalized_kl_divergence(p, t)).all()


def test_the_rounding_of_large_logits_is_no_offence():
    log_q, targets = jnp.array([6e-5, -30.0]), jnp.array([1.0, 0.0])
    assert jaxent.kl_divergence(log_q, targets) == 0.0
    assert jaxent.negative_log_likelihood(log_q, 0) == 0.0
