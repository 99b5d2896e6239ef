"""Cosines: where optax returns NaN or nothing but rounding, and what the contract leaves open."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent
from conformance import oracle, similarity
from conformance.case import with_float64

MEASURES = (jaxent.cosine_similarity, jaxent.cosine_distance)
each_measure = pytest.mark.parametrize("measure", MEASURES, ids=lambda f: f.__name__)


def both_slopes(measure, a, b, **options):
    return jax.grad(lambda a, b: jnp.sum(measure(a, b, **options)), (0, 1))(a, b)


@pytest.mark.thorough
def test_a_distance_below_the_rounding_of_one():
    a = jnp.array([[1.0, 0.0], [3.0, 4.0]])
    b = a + jnp.array([[0.0, 1e-6], [4e-5, -3e-5]])
    distances = jaxent.cosine_distance(a, b)
    np.testing.assert_allclose(distances, [5e-13, 5e-11], rtol=5e-3)
    assert not optax.cosine_distance(a, b).any()
    slopes = both_slopes(jaxent.cosine_distance, a, b)
    np.testing.assert_allclose(slopes[0][0], [0.0, -1e-6], rtol=1e-6)
    np.testing.assert_allclose(slopes[1][0], [-1e-12, 1e-6], rtol=1e-6)


@each_measure
def test_rows_of_ordinary_size_take_the_short_way_as_exactly(measure):
    """One row out of the ordinary sends its batch the long way; under vmap each goes its own."""
    families = list(similarity.vector_pairs(np.float32, 10))
    a, b = (np.concatenate(arrays) for arrays in zip(*(f.arrays for f in families), strict=True))
    truth = oracle.batch(getattr(similarity, measure.__name__), a, b)

    def one(a, b):
        return measure(a, b), *jax.grad(measure, (0, 1))(a, b)

    value, *slopes = jax.jit(jax.vmap(one))(a, b)
    assert oracle.scaled_ulps(value, truth.value, truth.value_scale, np.float32).max() <= 8
    for slope, exact, scale in zip(slopes, truth.gradients, truth.gradient_scales, strict=True):
        assert oracle.scaled_ulps(slope, exact, scale, np.float32).max() <= 8


@pytest.mark.thorough(beyond=1)
@each_measure
def test_vectors_of_zeros(measure):
    a, b = jnp.zeros((2, 3)), jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    expected = 0.0 if measure is jaxent.cosine_similarity else 1.0
    with jax.debug_nans(True):
        np.testing.assert_array_equal(measure(a, b), expected)
        np.testing.assert_array_equal(measure(b, a), expected)
        for slope in both_slopes(measure, a, b):
            assert not slope.any()
        curvature = jax.hessian(lambda a: jnp.sum(measure(a, b)))(a)
    assert not curvature.any()
    assert np.isnan(optax.cosine_similarity(a, b)).all()


@pytest.mark.thorough(beyond=1)
@each_measure
@pytest.mark.parametrize("epsilon", [0.0, 1e-3, 4.0, 1e4])
def test_the_floor_is_that_of_optax(measure, epsilon):
    a, b = np.random.default_rng(0).normal(size=(2, 20, 3)).astype(np.float32)
    theirs = functools.partial(getattr(optax, measure.__name__), epsilon=epsilon)
    ours = functools.partial(measure, epsilon=epsilon)
    np.testing.assert_allclose(ours(a, b), theirs(a, b), atol=3e-7)
    for slope, other in zip(both_slopes(ours, a, b), both_slopes(theirs, a, b), strict=True):
        np.testing.assert_allclose(slope, other, atol=1e-6 * np.abs(other).max())
    traced = jax.jit(lambda a, b, epsilon: measure(a, b, epsilon=epsilon))(a, b, epsilon)
    np.testing.assert_allclose(traced, ours(a, b), rtol=1e-6)


@each_measure
def test_zeros_above_a_floor_have_a_gradient(measure):
    a, b = jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]])
    slope, other = both_slopes(measure, a, b, epsilon=0.25)
    sign = 1 if measure is jaxent.cosine_similarity else -1
    np.testing.assert_allclose(slope, sign * np.array([[1.2, 1.6]]), rtol=1e-6)
    assert not other.any()


@pytest.mark.thorough(beyond=1)
@each_measure
def test_what_is_no_floor(measure):
    a = jnp.ones((2, 3))
    for epsilon in (-1e-6, float("inf"), float("nan")):
        with pytest.raises(AssertionError, match=f"{measure.__name__}.*`epsilon`"):
            measure(a, a, epsilon=epsilon)
        traced = jnp.float32(epsilon)
        assert np.isnan(measure(a, a, epsilon=traced)).all()
        assert np.isnan(both_slopes(measure, a, a, epsilon=traced)[0]).all()
    with pytest.raises(AssertionError, match="`epsilon` must be a scalar"):
        measure(a, a, epsilon=jnp.ones(2))
    slope = jax.grad(lambda epsilon: jnp.sum(measure(a, a, epsilon=epsilon)))(jnp.float32(9.0))
    assert slope == 0.0


@each_measure
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_loud(measure, bad):
    a = jnp.array([[1.0, 2.0], [bad, 0.0], [0.0, 1.0]])
    b = jnp.ones((3, 2))
    for arguments in ((a, b), (b, a)):
        np.testing.assert_array_equal(np.isnan(measure(*arguments)), [False, True, False])
        slopes = both_slopes(measure, *arguments)
        assert all(np.isnan(slope[1]).any() for slope in slopes)
        assert all(np.isfinite(slope[::2]).all() for slope in slopes)


def test_similarities_stay_within_their_bounds():
    a = np.random.default_rng(1).normal(size=(5000, 3)).astype(np.float32)
    for sign in (1.0, -1.0):
        similarity = jaxent.cosine_similarity(a, sign * a)
        assert np.abs(similarity).max() <= 1.0
        np.testing.assert_allclose(similarity, sign, rtol=3e-7)
    np.testing.assert_array_equal(jaxent.cosine_distance(a, a), 0.0)
    np.testing.assert_array_equal(jaxent.cosine_distance(a, -2.0 * a) <= 2.0, True)
    for slope in both_slopes(jaxent.cosine_distance, a, 4.0 * a):
        assert not slope.any()


def test_every_pair_by_axes_of_size_one():
    a, b = np.random.default_rng(2).normal(size=(2, 4, 6)).astype(np.float32)
    every = jaxent.cosine_similarity(a[None], b[:, None])
    lengths = np.linalg.norm(b, axis=1)[:, None] * np.linalg.norm(a, axis=1)
    np.testing.assert_allclose(every, b @ a.T / lengths, atol=3e-7)
    for refused in (b[0], np.float32(1.0), b[:, :1], b[:3]):
        with pytest.raises(AssertionError, match=r"cosine_similarity.*`targets`"):
            jaxent.cosine_similarity(a, refused)


def test_the_distance_of_doubles_is_that_of_singles():
    a, b = np.random.default_rng(3).normal(size=(2, 50, 8)).astype(np.float32)
    b = a + np.float32(1e-5) * b
    single = jaxent.cosine_distance(a, b)
    with with_float64():
        double = jaxent.cosine_distance(a.astype(np.float64), b.astype(np.float64))
    np.testing.assert_allclose(single, double, rtol=5e-7)
