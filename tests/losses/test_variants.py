"""What is particular to the variants of cross-entropy; what all owe is in conformance/."""

import functools
import itertools
import math
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import mpmath
import numpy as np
import optax
import pytest

import jaxent
from conformance import oracle, variants
from conformance.case import with_float64
from jaxent._float.series import one_minus_exp

CROSS_ENTROPY = jaxent.softmax_cross_entropy_with_integer_labels
FUNCTIONS_OF_ONE_CLASS = (
    jaxent.softmax_focal_loss,
    jaxent.generalized_cross_entropy,
    jaxent.symmetric_cross_entropy,
)
BFLOAT16 = ml_dtypes.bfloat16
# More exponents than those of the contract table, small and large.
GAMMAS = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 5.0, 100.0)


def rows(seed=0, shape=(6, 5), scale=3.0):
    generator = np.random.default_rng(seed)
    logits = (scale * generator.normal(size=shape)).astype(np.float32)
    return logits, generator.integers(shape[-1], size=shape[:-1]).astype(np.int32)


def distributions(seed=1, shape=(6, 5)):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), shape[0]).astype(np.float32)


def as_array(number):
    """An option that is not known when the program is made."""
    return np.asarray(number, np.float32)


def softmax(logits):
    exponentials = np.exp(logits.astype(np.float64))
    return exponentials / exponentials.sum(-1, keepdims=True)


def cutpoints(shape=(6, 4)):
    generator = np.random.default_rng(2)
    logits = np.sort(3 * generator.normal(size=shape), -1).astype(np.float32)
    return logits, generator.integers(shape[-1] + 1, size=shape[:-1]).astype(np.int32)


def derivatives(loss, logits, *rest, **options):
    """The losses, their gradients and their second derivatives, one by one, from one program."""

    def each(x, *rest):
        def alone(x):
            return loss(x, *rest, **options)

        return alone(x), jax.grad(alone)(x), jax.jacfwd(jax.grad(alone))(x)

    return tuple(map(np.asarray, jax.jit(jax.vmap(each))(logits, *rest)))


def alike(actual, expected, rtol=1e-6):
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol * np.abs(e).max())


# --- each is a neighbour of plain cross-entropy ---------------------------------------------------


@pytest.mark.thorough
def test_focal_losses_with_gamma_0_are_cross_entropy():
    logits, labels = rows(shape=(40, 5), scale=10)
    targets = np.random.default_rng(1).random(logits.shape).astype(np.float32)
    pairs = (
        (jaxent.softmax_focal_loss, CROSS_ENTROPY, labels),
        (jaxent.sigmoid_focal_loss, jaxent.sigmoid_binary_cross_entropy, targets),
    )
    for focal, plain, target in pairs:
        np.testing.assert_array_equal(focal(logits, target, gamma=0.0), plain(logits, target))
        traced = focal(logits, target, gamma=as_array(0.0))
        np.testing.assert_allclose(traced, plain(logits, target), rtol=1e-6)
    alike(
        derivatives(jaxent.softmax_focal_loss, logits, labels, gamma=0.0),
        derivatives(CROSS_ENTROPY, logits, labels),
    )


@pytest.mark.thorough
def test_noise_robust_losses_reach_cross_entropy():
    logits, labels = rows(shape=(40, 5), scale=10)
    plain = derivatives(CROSS_ENTROPY, logits, labels)
    alike(derivatives(jaxent.generalized_cross_entropy, logits, labels, q=0.0), plain)
    alike(derivatives(jaxent.symmetric_cross_entropy, logits, labels, alpha=1, beta=0), plain)
    third = derivatives(jaxent.symmetric_cross_entropy, logits, labels, alpha=1 / 3, beta=0.0)
    alike(third, [part / 3 for part in plain])
    for q in (1e-3, 1e-6, 1e-12, 1e-30, 1e-40):
        near = jaxent.generalized_cross_entropy(logits, labels, q=q)
        np.testing.assert_allclose(near, plain[0], rtol=20 * q + 1e-6)
        traced = jaxent.generalized_cross_entropy(logits, labels, q=as_array(q))
        np.testing.assert_allclose(traced, near, rtol=1e-6)


def test_poly_loss_with_epsilon_0_is_cross_entropy():
    logits, _ = rows(shape=(40, 5), scale=10)
    labels = distributions(shape=(40, 5))
    alike(
        derivatives(jaxent.poly_loss_cross_entropy, logits, labels, epsilon=0.0),
        derivatives(jaxent.softmax_cross_entropy, logits, labels),
    )


def test_two_classes_in_an_order_are_yes_and_no():
    logits = rows(shape=(30, 1), scale=20)[0]
    for label in (0, 1):
        ordinal = jaxent.ordinal_cross_entropy(logits, np.full(30, label, np.int32))
        at_most_0 = jaxent.sigmoid_binary_cross_entropy(logits[:, 0], 1.0 - label)
        np.testing.assert_allclose(ordinal, at_most_0, rtol=1e-6)


# --- focal losses ---------------------------------------------------------------------------------


@pytest.mark.thorough
def test_focal_loss_of_two_classes_is_that_of_one_logit():
    logits = rows(shape=(50,), scale=10)[0]
    labels = np.arange(50) % 2
    pair = np.stack([np.zeros_like(logits), logits], -1)
    for gamma in (0.5, 1.3, 2.0):
        one = derivatives(jaxent.sigmoid_focal_loss, logits, labels.astype(np.float32), gamma=gamma)
        two = derivatives(jaxent.softmax_focal_loss, pair, labels.astype(np.int32), gamma=gamma)
        alike(one, (two[0], two[1][:, 1], two[2][:, 1, 1]), rtol=2e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("gamma", GAMMAS)
def test_focal_losses_are_finite_at_every_logit_and_gamma(gamma):
    """Where optax has none: its loss of a sure logit is not a number, or its gradient is not."""
    numbers = [0.0, 1e-40, 1e-30, 1.0, 17.0, 50.0, 88.0, 100.0, 150.0, 300.0, 1e4, 1e30, 1e38]
    logits = np.array([sign * x for x in numbers for sign in (1, -1)], np.float32)
    targets = np.array([0.0, 1.0, 0.5, 1e-6, 1e-30, 1 - 6e-8], np.float32)
    x, t = (grid.ravel() for grid in np.meshgrid(logits, targets))
    pair = np.stack([np.zeros_like(x), x], -1)
    labels = (t > 0.5).astype(np.int32)
    for exponent in (gamma, as_array(gamma)):
        for results in (
            derivatives(jaxent.sigmoid_focal_loss, x, t, gamma=exponent),
            derivatives(jaxent.softmax_focal_loss, pair, labels, gamma=exponent),
        ):
            assert all(np.isfinite(result).all() for result in results)


@pytest.mark.thorough
def test_what_optax_makes_of_sure_logits():
    """The reason for the test above; should it fail one day, then optax has become better."""
    logits = np.array([np.inf, 1e38, 3e38], np.float32)
    theirs = jax.grad(lambda x: jnp.sum(optax.losses.sigmoid_focal_loss(x, jnp.ones(3))))
    ours = jax.grad(lambda x: jnp.sum(jaxent.sigmoid_focal_loss(x, np.ones(3, np.float32))))
    assert np.isnan(theirs(logits)).any()
    np.testing.assert_array_equal(ours(logits), 0.0)


def test_infinite_logits_cost_nothing_or_everything():
    logits = np.array([np.inf, -np.inf, np.inf, -np.inf, np.inf, -np.inf], np.float32)
    labels = np.array([1.0, 0.0, 0.0, 1.0, 0.5, 1e-30], np.float32)
    for gamma in (0.25, 0.5, 2.0, 100.0, as_array(3.0)):
        value, slope, curvature = derivatives(
            jaxent.sigmoid_focal_loss, logits, labels, gamma=gamma
        )
        np.testing.assert_array_equal(value, [0, 0, np.inf, np.inf, np.inf, np.inf])
        expected = [0, 0, 1, -1, 0.5 * 0.5**gamma, 0 if gamma > 1.5 else -(1e-30 ** (1 + gamma))]
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-37)
        np.testing.assert_array_equal(curvature, 0.0)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("gamma", GAMMAS)
def test_errors_of_focal_losses_grow_with_gamma_only(gamma):
    """4 units in the last place for a small one, and as many as gamma beyond."""
    logits, labels = (
        np.concatenate(arrays)
        for arrays in zip(
            *(family.arrays for family in variants.inputs.binary_targets(np.float32)),
            strict=True,
        )
    )
    for exponent in (gamma, as_array(gamma)):
        value, slope, _ = derivatives(jaxent.sigmoid_focal_loss, logits, labels, gamma=exponent)
        truth = oracle.batch(variants.sigmoid_focal_loss, logits, labels, gamma=gamma)
        bar = 4 + 2 * gamma
        for result, expected, scale in (
            (value, truth.value, truth.value_scale),
            (slope, truth.gradients[0], truth.gradient_scales[0]),
        ):
            errors = oracle.scaled_ulps(result, expected, scale, np.float32)
            assert errors.max() <= bar, (logits[errors.argmax()], labels[errors.argmax()])


def test_alpha_weighs_yes_against_no():
    logits, _ = rows()
    labels = distributions()
    plain = jaxent.sigmoid_focal_loss(logits, labels)
    weighted = jaxent.sigmoid_focal_loss(logits, labels, alpha=0.25)
    np.testing.assert_allclose(weighted, plain * (0.25 * labels + 0.75 * (1 - labels)), rtol=1e-6)
    each = np.full((1, 5), 0.25, np.float32)
    alone = jaxent.sigmoid_focal_loss(logits, labels, alpha=each)
    np.testing.assert_allclose(alone, weighted, rtol=1e-6)
    np.testing.assert_array_equal(jaxent.sigmoid_focal_loss(logits, 0.0, alpha=1.0), 0.0)
    bad = jaxent.sigmoid_focal_loss(logits, labels, alpha=np.array([[0.5, -0.1, 2, np.nan, 1]]))
    np.testing.assert_array_equal(np.isnan(bad), [[False, True, True, True, False]] * 6)


def test_labels_outside_0_and_1_are_nan_in_value_and_gradients():
    labels = np.array([-0.1, 1.1, np.nan, 1.0], np.float32)

    def total(x, t):
        losses = jaxent.sigmoid_focal_loss(x, t)
        return jnp.sum(losses), losses

    slopes, losses = jax.grad(total, (0, 1), has_aux=True)(np.zeros(4, np.float32), labels)
    for result in (losses, *slopes):
        np.testing.assert_array_equal(np.isnan(result), [True, True, True, False])


@pytest.mark.thorough
def test_gamma_has_a_gradient():
    logits, labels = rows(shape=(8, 2), scale=2)
    targets = np.arange(8) % 3 / 2
    step = 1e-4
    with with_float64():
        wide = logits.astype(np.float64)
        for loss, arguments in (
            (jaxent.softmax_focal_loss, (wide, labels)),
            (jaxent.sigmoid_focal_loss, (wide[:, 0], targets)),
        ):

            def of(gamma, loss=loss, arguments=arguments):
                return loss(*arguments, gamma=gamma)

            for gamma in (0.3, 1.0, 2.5):
                found = jax.jacfwd(of)(jnp.float64(gamma))
                expected = (of(gamma + step) - of(gamma - step)) / (2 * step)
                np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


def focal_label_curvatures(x, t, gamma):
    """d2/dxdt and d2/dt2 of w**gamma c, each with the sum of its absolute terms."""
    x, t, gamma = (mpmath.mpf(float(number)) for number in (x, t, gamma))
    yes, no = 1 / (1 + mpmath.exp(-x)), 1 / (1 + mpmath.exp(x))
    wrong, cost = (1 - t) * yes + t * no, -t * mpmath.log(yes) - (1 - t) * mpmath.log(no)
    rate_x, rate_t, rate_xt = (1 - 2 * t) * yes * no / wrong, (no - yes) / wrong, -2 * yes * no
    cross = (
        -1,
        gamma * (yes - t) * rate_t,
        -gamma * x * rate_x,
        gamma * cost * rate_xt / wrong,
        gamma * (gamma - 1) * cost * rate_x * rate_t,
    )
    bend = (-2 * gamma * x * rate_t, gamma * (gamma - 1) * cost * rate_t**2)
    weight = wrong**gamma
    sums = [(mpmath.fsum(terms), mpmath.fsum(map(abs, terms))) for terms in (cross, bend)]
    return [(weight * total, weight * size) for total, size in sums]


@pytest.mark.thorough
@pytest.mark.parametrize("gamma", [0.0, 0.01, 1.0, 2.0, 3.3])
def test_second_derivatives_of_focal_loss_in_the_label(gamma):
    """Also at a logit of 0, at targets of 0 and 1, and where a power of w cannot be divided by w.

    Errors grow with the distance of gamma - 1 from 0, which is an exponent.
    """
    numbers = (0.0, 1e-7, 1e-3, -1e-3, 0.5, 5.0, -5.0, 12.0, 30.0, -60.0, 85.0)
    pairs = list(itertools.product(numbers, (0.0, 1e-6, 0.3, 0.5, 1.0)))
    x, t = np.array(pairs, np.float32).T
    gamma = float(np.float32(gamma))
    with mpmath.mp.workdps(120):
        truths = [focal_label_curvatures(*pair, gamma) for pair in zip(x, t, strict=True)]
        truths = np.array(truths, object)
        scales = np.maximum(truths[..., 1], 1e-34)  # what is next to underflow has few digits
        for inner, outer in ((jax.jacrev, jax.jacfwd), (jax.jacrev, jax.jacrev)):

            def alone(x, t, gamma=gamma):
                return jaxent.sigmoid_focal_loss(x, t, gamma=gamma)

            of_number = functools.partial(alone, gamma=gamma)
            fixed = jax.jit(jax.vmap(outer(inner(of_number, (0, 1)), (0, 1))))(x, t)
            every = outer(inner(alone, (0, 1, 2)), (0, 1, 2))
            three = jax.jit(jax.vmap(every, (0, 0, None)))(x, t, np.float32(gamma))
            # In the target and gamma the rules are right, and not exact.
            np.testing.assert_allclose(three[1][2], three[2][1], rtol=1e-4, atol=1e-6)
            for found in (fixed, three):
                assert np.isfinite(jax.tree.leaves(found)).all()
                entries = [(found[0][1], 0), (found[1][0], 0), (found[1][1], 1)]
                for result, kind in entries:
                    exact = np.array([mpmath.mpf(float(each)) for each in result], object)
                    errors = np.abs(exact - truths[:, kind, 0]) / scales[:, kind]
                    worst = errors.argmax()
                    assert errors[worst] <= 16 * 2.0**-23, (x[worst], t[worst], result[worst])


def test_gradients_in_gamma_are_finite_where_losses_are():
    logits = np.array([[0, 200], [0, -200], [-np.inf, 0], [0, 1e38]], np.float32)
    labels = np.array([1, 0, 1, 1], np.int32)
    for loss, arguments in (
        (jaxent.softmax_focal_loss, (logits, labels)),
        (jaxent.sigmoid_focal_loss, (logits[:, 1], np.array([1, 0, 1, 1], np.float32))),
    ):
        for gamma in (0.0, 0.5, 2.0):
            found = jax.jacfwd(lambda g: loss(*arguments, gamma=g))(np.float32(gamma))  # noqa: B023
            assert np.isfinite(found).all()


# --- losses for noisy labels ----------------------------------------------------------------------


@pytest.mark.parametrize("c", [0.01, 2.0, 30.0])
def test_derivatives_in_q_of_any_size(c):
    """(1 - p**q) / q with p = exp(-c): near 0 a series in q c, elsewhere a difference."""
    sizes = np.array([1e-38, 1e-30, 1e-20, 1e-9, 1e-3, 0.1, 0.3, 0.7, 1.0], np.float32)
    logits = np.array([0.0, np.log(np.expm1(c))], np.float32)

    def loss(q):
        return jaxent.generalized_cross_entropy(logits, 0, q=q)

    slopes = jax.vmap(lambda q: (jax.grad(loss)(q), jax.grad(jax.grad(loss))(q)))(sizes)
    with mpmath.workdps(200):
        exact_c = mpmath.log1p(mpmath.exp(mpmath.mpf(float(logits[1]))))
        for q, *found in zip(map(mpmath.mpf, sizes.tolist()), *slopes, strict=True):
            value = (1 - mpmath.exp(-exact_c * q)) / q
            first = (exact_c * mpmath.exp(-exact_c * q) - value) / q
            second = (-(exact_c**2) * mpmath.exp(-exact_c * q) - 2 * first) / q
            np.testing.assert_allclose(found, [float(first), float(second)], rtol=1e-5)


@pytest.mark.parametrize("epsilon", [-0.5, 2.0])
def test_a_traced_weight_of_a_poly_loss_is_that_number(epsilon):
    logits, labels = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.2, 0.3, 0.5])
    found = jaxent.poly_loss_cross_entropy(logits, labels, epsilon=jnp.float32(epsilon))
    expected = jaxent.poly_loss_cross_entropy(logits, labels, epsilon=epsilon)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_differences_of_exponentials_have_derivatives_everywhere():
    """What is not selected must not overflow: its derivative times 0 would be NaN."""
    x = jnp.array([0.0, 0.3, 2.0, 1e4, 1e10, 1e30])
    np.testing.assert_allclose(jax.vmap(jax.grad(one_minus_exp))(x), jnp.exp(-x), rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 2.0, 3.7])
def test_second_derivatives_of_focal_loss_are_finite_at_every_logit(gamma):
    logits = np.array([-3e38, -1e30, -90, 0, 90, 1e30, 3e38], np.float32)
    x, t = np.meshgrid(logits, np.array([0.0, 1e-38, 0.5, 1.0], np.float32))

    def loss(x, t):
        return jaxent.sigmoid_focal_loss(x, t, gamma=gamma)

    for mixed in (jax.grad(jax.grad(loss, 0), 1), jax.grad(jax.grad(loss, 1), 0)):
        assert np.isfinite(jax.jit(jax.vmap(mixed))(x.ravel(), t.ravel())).all()


def test_generalized_cross_entropy_with_q_1_is_half_of_the_absolute_error():
    logits, labels = rows(shape=(50, 5))
    p = softmax(logits)
    distance = np.abs(p - np.eye(5)[labels]).sum(-1)
    found = jaxent.generalized_cross_entropy(logits, labels, q=1.0)
    np.testing.assert_allclose(found, distance / 2, rtol=1e-6)


@pytest.mark.thorough
def test_a_hopeless_label_has_a_small_gradient_and_not_none():
    """exp(-q L) from a rounded L is off by 1e-5 here, and for q = 1 the peers' 1 - p is 1."""
    logits = np.array([[60.3, 0.1], [-20.7, 39.9]], np.float32)
    for q in (0.3, 0.7, 1.0):
        slope = derivatives(jaxent.generalized_cross_entropy, logits, np.array([1, 0]), q=q)[1]
        for row, label, found in zip(logits, (1, 0), slope[:, 0], strict=True):
            own, other = (mpmath.mpf(float(row[i])) for i in (label, 1 - label))
            p = mpmath.exp(own - other) / (1 + mpmath.exp(own - other))
            truth = p ** mpmath.mpf(q) * (1 - p) * (1 if label else -1)
            assert found == pytest.approx(float(truth), rel=5e-7, abs=0)


def test_symmetric_cross_entropy_adds_the_reverse():
    logits, labels = rows(shape=(50, 5))
    p = softmax(logits)
    target = np.eye(5)[labels]
    reverse = -(p * np.where(target == 1, 0.0, -4.0)).sum(-1)
    expected = 0.1 * np.asarray(CROSS_ENTROPY(logits, labels)) + reverse
    found = jaxent.symmetric_cross_entropy(logits, labels)
    np.testing.assert_allclose(found, expected, rtol=2e-6)
    scaled = jaxent.symmetric_cross_entropy(logits, labels, alpha=0.2, beta=4.0, log_zero=-2.0)
    np.testing.assert_allclose(scaled, 2 * expected, rtol=2e-6)


@pytest.mark.thorough
def test_an_impossible_label_costs_what_the_formula_says():
    logits = np.array([[0.0, -np.inf, 1.0]], np.float32)
    label = np.array([1], np.int32)
    costs = {
        (jaxent.softmax_focal_loss, ()): np.inf,
        (jaxent.generalized_cross_entropy, ()): 1 / 0.7,
        (jaxent.generalized_cross_entropy, (("q", 0.0),)): np.inf,
        (jaxent.symmetric_cross_entropy, ()): np.inf,
        (jaxent.symmetric_cross_entropy, (("alpha", 0.0),)): 4.0,
    }
    for (loss, options), cost in costs.items():
        value, slope, curvature = derivatives(loss, logits, label, **dict(options))
        np.testing.assert_allclose(value, [cost], rtol=1e-6)
        assert np.isfinite(slope).all()
        assert np.isfinite(curvature).all()
        assert slope[0, 1] == 0


@pytest.mark.thorough
def test_gradients_in_the_options_of_noise_robust_losses():
    logits, labels = rows(shape=(8, 3), scale=5)
    step = 1e-4
    with with_float64():
        wide = logits.astype(np.float64)

        def generalized(q):
            return jaxent.generalized_cross_entropy(wide, labels, q=q)

        for q in (1e-9, 0.05, 0.3, 0.9):
            low, high = max(q - step, 0.0), q + step
            expected = (generalized(high) - generalized(low)) / (high - low)
            found = jax.jacfwd(generalized)(jnp.float64(q))
            np.testing.assert_allclose(found, expected, rtol=2e-2 if q < step else 1e-5)

        for option, value in (("alpha", 0.1), ("beta", 1.0), ("log_zero", -4.0)):

            def symmetric(value, option=option):
                return jaxent.symmetric_cross_entropy(wide, labels, **{option: value})

            expected = (symmetric(value + step) - symmetric(value - step)) / (2 * step)
            found = jax.jacfwd(symmetric)(jnp.float64(value))
            np.testing.assert_allclose(found, expected, rtol=1e-6)


# --- poly loss ------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_poly_loss_with_epsilon_minus_1_keeps_what_is_left():
    """L - (1 - p) is about L**2 / 2: far below the last place of either."""
    logits = np.array([[12.0, 0.0], [17.0, 0.0], [30.0, 0.0]], np.float32)
    labels = np.array([[1.0, 0.0]] * 3, np.float32)
    loss = np.log1p(np.exp(-logits[:, 0].astype(np.float64)))
    for epsilon in (-1.0, as_array(-1.0)):
        value, slope, _ = derivatives(
            jaxent.poly_loss_cross_entropy, logits, labels, epsilon=epsilon
        )
        np.testing.assert_allclose(value, loss**2 / 2 - loss**3 / 6, rtol=2e-6)
        np.testing.assert_allclose(slope[:, 0], -(np.expm1(-loss) ** 2), rtol=2e-6)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("epsilon", [-3.0, -1.0, -0.4, 0.0, 2.0])
def test_poly_loss_agrees_with_its_formula(epsilon):
    logits, _ = rows(shape=(20, 5))
    labels = distributions(shape=(20, 5))
    p = softmax(logits)
    expected = (labels * (-np.log(p) + epsilon * (1 - p))).sum(-1)
    for given in (epsilon, as_array(epsilon)):
        found = jaxent.poly_loss_cross_entropy(logits, labels, epsilon=given)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)
    slope = jax.jacfwd(lambda e: jaxent.poly_loss_cross_entropy(logits, labels, epsilon=e))
    np.testing.assert_allclose(slope(as_array(epsilon)), (labels * (1 - p)).sum(-1), rtol=1e-5)


@pytest.mark.thorough
def test_poly_loss_of_an_impossible_class_is_infinite():
    logits = np.array([[0.0, -np.inf]], np.float32)
    labels = np.array([[0.5, 0.5]], np.float32)
    for epsilon in (-1.0, -0.5, 0.0, 2.0, as_array(-1.0)):
        value, slope, _ = derivatives(
            jaxent.poly_loss_cross_entropy, logits, labels, epsilon=epsilon
        )
        assert value == np.inf
        assert np.isfinite(slope).all()


# --- classes in an order --------------------------------------------------------------------------


def test_ordinal_probabilities_sum_to_1():
    logits, _ = cutpoints((50, 4))
    losses = [jaxent.ordinal_cross_entropy(logits, np.full(50, k, np.int32)) for k in range(5)]
    np.testing.assert_allclose(np.exp(-np.stack(losses)).sum(0), 1.0, rtol=1e-6)


def test_ordinal_loss_is_that_of_the_difference_of_two_sigmoids():
    logits, labels = cutpoints((50, 4))
    below = 1 / (1 + np.exp(-logits.astype(np.float64)))
    below = np.concatenate([np.zeros((50, 1)), below, np.ones((50, 1))], -1)
    p = below[np.arange(50), labels + 1] - below[np.arange(50), labels]
    np.testing.assert_allclose(jaxent.ordinal_cross_entropy(logits, labels), -np.log(p), rtol=1e-5)


def test_moving_all_cutpoints_moves_the_score():
    """The model of the textbook: thresholds that are shared, and one score for each example."""
    thresholds = np.array([-1.0, 0.5, 3.0], np.float32)
    scores = np.array([-2.0, 0.1, 4.0], np.float32)
    labels = np.array([0, 1, 3], np.int32)

    def loss(thresholds, scores):
        return jnp.sum(jaxent.ordinal_cross_entropy(thresholds[None] - scores[:, None], labels))

    by_threshold, by_score = jax.grad(loss, (0, 1))(thresholds, scores)
    assert float(jnp.sum(by_threshold)) == pytest.approx(-float(jnp.sum(by_score)), rel=1e-5)
    assert by_score[0] > 0 > by_score[2]


def test_an_empty_class_costs_infinity_and_an_order_that_decreases_is_nan():
    inf = np.inf
    logits = np.array(
        [[0, 0, 1], [-inf, 0, inf], [-inf, 0, inf], [inf, inf, inf], [-inf] * 3, [0, 1, 0.5]],
        np.float32,
    )
    labels = np.array([1, 0, 3, 1, 1, 0], np.int32)
    value, slope, _ = derivatives(jaxent.ordinal_cross_entropy, logits, labels)
    np.testing.assert_array_equal(value[:5], inf)
    np.testing.assert_array_equal(slope[0], [inf, -inf, 0])
    np.testing.assert_array_equal(slope[1:5], 0.0)
    assert np.isnan(value[5])
    assert np.isnan(slope[5]).all()
    for label in (0, 1, 2, 3):
        row = np.array([0, 1, np.nan], np.float32)
        assert np.isnan(jaxent.ordinal_cross_entropy(row, label))


def test_certain_cutpoints_leave_the_classes_between_them():
    logits = np.array([-np.inf, 0.3, np.inf], np.float32)
    for label, sign in ((1, 1), (2, -1)):
        value, slope, _ = derivatives(
            jaxent.ordinal_cross_entropy, logits[None], np.array([label], np.int32)
        )
        assert value[0] == pytest.approx(math.log1p(math.exp(-sign * 0.3)), rel=1e-6)
        np.testing.assert_array_equal(slope[0, [0, 2]], 0.0)


def test_an_order_has_no_class_mask():
    logits, labels = cutpoints()
    for mask in (np.ones((6, 4), bool), np.ones((6, 1), bool)):
        with pytest.raises(AssertionError, match=r"ordinal_cross_entropy: `where` bool\[6,.*order"):
            jaxent.ordinal_cross_entropy(logits, labels, where=mask)


# --- options --------------------------------------------------------------------------------------

REFUSED: dict[Any, dict[str, tuple[float, ...]]] = {
    jaxent.softmax_focal_loss: {"gamma": (-0.1, np.nan, np.inf)},
    jaxent.sigmoid_focal_loss: {"gamma": (-0.1, np.nan, np.inf), "alpha": (-0.1, 1.1, np.nan)},
    jaxent.generalized_cross_entropy: {"q": (-0.1, 1.1, np.nan)},
    jaxent.symmetric_cross_entropy: {
        "alpha": (-0.1, np.inf),
        "beta": (-1, np.nan),
        "log_zero": (0.1, -np.inf),
    },
    jaxent.poly_loss_cross_entropy: {"epsilon": (np.nan, np.inf)},
}


def arguments_of(loss):
    logits, labels = rows()
    takes_distributions = loss in (jaxent.sigmoid_focal_loss, jaxent.poly_loss_cross_entropy)
    return logits, distributions() if takes_distributions else labels


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(
    ("loss", "option"),
    [(loss, option) for loss, options in REFUSED.items() for option in options],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_options_out_of_range_are_refused_or_nan(loss, option):
    arguments = arguments_of(loss)
    for value in REFUSED[loss][option]:
        with pytest.raises(AssertionError, match=rf"{loss.__name__}: `{option}` must"):
            loss(*arguments, **{option: value})
        given = {option: as_array(value)}
        value_and_slope = jax.value_and_grad(lambda x, *rest: jnp.sum(loss(x, *rest, **given)))  # noqa: B023
        for result in value_and_slope(*arguments):
            assert np.isnan(result).all()
    if option != "alpha" or loss is not jaxent.sigmoid_focal_loss:
        with pytest.raises(AssertionError, match=rf"{loss.__name__}: `{option}` must be a scalar"):
            loss(*arguments, **{option: np.ones(6, np.float32)})


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("loss", [*FUNCTIONS_OF_ONE_CLASS, jaxent.poly_loss_cross_entropy])
def test_masked_examples_are_zero_even_under_a_bad_option(loss):
    (option, (bad, *_)), *_ = REFUSED[loss].items()
    logits, target = arguments_of(loss)
    where = np.arange(6) < 3

    def total(x):
        losses = loss(x, target, where=where, **{option: as_array(bad)})
        return jnp.sum(losses), losses

    slope, losses = jax.grad(total, has_aux=True)(logits)
    for result in (losses, slope):
        np.testing.assert_array_equal(result[3:], 0.0)
        assert np.isnan(result[:3]).all()


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("loss", REFUSED, ids=lambda loss: loss.__name__)
def test_options_do_not_change_the_dtype_of_the_loss(loss):
    """A Python number is float64 where that exists; it must not drag float32 logits along."""
    logits, target = arguments_of(loss)
    with with_float64():
        for option, dtype in itertools.product(REFUSED[loss], (np.float32, np.float64, BFLOAT16)):
            # Weights of elements are an input like the others if they are an array.
            is_input = option == "alpha" and loss is jaxent.sigmoid_focal_loss
            for value in (0.0,) if is_input else (0.0, np.zeros(())):
                result = loss(logits.astype(dtype), target, **{option: value})
                assert result.dtype == (np.float64 if dtype == np.float64 else np.float32)
