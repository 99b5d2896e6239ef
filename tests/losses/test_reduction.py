"""Means that say nothing about nothing, hide no NaN, and add up over the parts of a batch."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64

BOTH = [jaxent.mean, jaxent.sum_and_weight]


def batch(seed=0, shape=(8,)):
    generator = np.random.default_rng(seed)
    losses = generator.exponential(size=shape).astype(np.float32)
    where = generator.random(shape) < 0.6
    where.flat[:2] = [True, False]
    weights = generator.exponential(size=shape).astype(np.float32)
    return losses, where, weights


@pytest.mark.parametrize("shape", [(8,), (3, 4), (2, 3, 2), ()])
def test_the_mean_is_a_weighted_mean_of_what_counts(shape):
    losses, where, weights = batch(shape=(8,)) if shape == () else batch(shape=shape)
    if shape == ():
        losses, where, weights = losses[0], where[0], weights[0]
    kept = np.where(where, weights, 0)
    np.testing.assert_allclose(jaxent.mean(losses), np.mean(losses), rtol=1e-6)
    np.testing.assert_allclose(jaxent.mean(losses, where), np.mean(losses[where]), rtol=1e-6)
    np.testing.assert_allclose(
        jaxent.mean(losses, where, weights), np.sum(kept * losses) / np.sum(kept), rtol=1e-6
    )
    total, weight = jaxent.sum_and_weight(losses, where, weights)
    np.testing.assert_allclose(total, np.sum(kept * losses), rtol=1e-6)
    np.testing.assert_allclose(weight, np.sum(kept), rtol=1e-6)


def test_the_weight_of_unweighted_losses_is_their_number():
    losses, where, _ = batch()
    assert jaxent.sum_and_weight(losses)[1] == 8.0
    assert jaxent.sum_and_weight(losses, where)[1] == float(where.sum())


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(
    ("losses", "options"),
    [
        (np.zeros(0, np.float32), {}),
        (np.zeros((3, 0), np.float32), {}),
        (np.ones(4, np.float32), {"where": np.zeros(4, bool)}),
        (np.ones(4, np.float32), {"where": False}),
        (np.ones(4, np.float32), {"weights": np.zeros(4, np.float32)}),
        (np.full(4, np.nan, np.float32), {"where": np.zeros(4, bool)}),
        (np.full(4, np.inf, np.float32), {"where": np.zeros(4, bool)}),
    ],
)
def test_nothing_is_zero_and_has_no_gradient(losses, options):
    def mean(x):
        return jaxent.mean(x, **options)

    for value, slope in (
        jax.value_and_grad(mean)(losses),
        jax.jit(jax.value_and_grad(mean))(losses),
    ):
        assert value == 0.0
        np.testing.assert_array_equal(slope, np.zeros_like(losses))
    assert jax.jvp(mean, (losses,), (np.ones_like(losses),))[1] == 0.0
    total, weight = jaxent.sum_and_weight(losses, **options)
    assert (total, weight) == (0.0, 0.0)
    with jax.debug_nans(True):
        jax.jit(jax.value_and_grad(mean))(losses)


def test_no_weight_has_no_gradient_either():
    losses, _, _ = batch()
    slope = jax.grad(lambda w: jaxent.mean(losses, None, w))(np.zeros(8, np.float32))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("seed", range(3))
def test_halves_add_up_across_micro_batches(seed):
    losses, where, weights = batch(seed, (12,))
    where[4:8] = False  # a part in which nothing counts
    whole = jaxent.mean(losses, where, weights)
    parts = [
        jaxent.sum_and_weight(*(array[i : i + 4] for array in (losses, where, weights)))
        for i in (0, 4, 8)
    ]
    total, weight = (sum(halves) for halves in zip(*parts, strict=True))
    np.testing.assert_allclose(total / weight, whole, rtol=1e-6)
    # Means of the parts do not, which is why there is a function for it.
    means = [
        jaxent.mean(losses[i : i + 4], where[i : i + 4], weights[i : i + 4]) for i in (0, 4, 8)
    ]
    assert abs(np.mean(means) - whole) > 1e-3


def test_halves_add_up_in_a_scan():
    losses, where, weights = batch(1, (3, 4))

    def step(sums, part):
        return jax.tree.map(jnp.add, sums, jaxent.sum_and_weight(*part)), None

    start = (jnp.float32(0), jnp.float32(0))
    (total, weight), _ = jax.lax.scan(step, start, (losses, where, weights))
    np.testing.assert_allclose(total / weight, jaxent.mean(losses, where, weights), rtol=1e-6)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_real_nan_is_not_hidden_and_a_masked_one_is(function, value):
    losses, where, weights = batch()
    losses[1] = value  # masked
    assert np.isfinite(function(losses, where, weights)).all()
    expected = function(np.where(where, losses, 0), where, weights)
    np.testing.assert_array_equal(function(losses, where, weights), expected)
    losses[0] = value  # counts
    for way in (function, jax.jit(function)):
        assert not np.isfinite(np.ravel(way(losses, where, weights))[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_is_not_a_mask(value):
    losses = np.array([1.0, value], np.float32)
    weights = np.array([1.0, 0.0], np.float32)
    assert np.isnan(jaxent.mean(losses, None, weights))
    assert np.isnan(jaxent.mean(losses[1:], None, weights[1:]))
    assert np.isnan(jaxent.sum_and_weight(losses, None, weights)[0])


@pytest.mark.parametrize("function", BOTH)
def test_a_masked_weight_may_hold_anything(function):
    losses, where, weights = batch()
    weights[~where] = np.nan
    assert np.isfinite(function(losses, where, weights)).all()


def test_gradients_are_the_shares_of_the_weights():
    losses, where, weights = batch()
    losses[~where] = np.nan
    share = np.where(where, weights, 0) / np.sum(weights[where])
    mean, slope = jax.value_and_grad(jaxent.mean)(losses, where, weights)
    np.testing.assert_allclose(slope, share, rtol=1e-6)
    np.testing.assert_array_equal(slope[~where], 0.0)
    _, tangent = jax.jvp(
        lambda x: jaxent.mean(x, where, weights), (losses,), (np.ones_like(losses),)
    )
    np.testing.assert_allclose(tangent, 1.0, rtol=1e-6)
    to_weights = jax.grad(jaxent.mean, 2)(losses, where, weights)
    by_hand = np.where(where, (np.where(where, losses, 0) - mean) / np.sum(weights[where]), 0)
    np.testing.assert_allclose(to_weights, by_hand, rtol=1e-5, atol=1e-7)
    total_slope = jax.grad(lambda x: jaxent.sum_and_weight(x, where, weights)[0])(losses)
    np.testing.assert_allclose(total_slope, np.where(where, weights, 0), rtol=1e-6)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_summed_in_float32(dtype):
    losses = np.full(4096, 1.0078125, dtype)  # in bfloat16 the sum would stop growing at 256
    for function in BOTH:
        assert all(r.dtype == np.float32 for r in jax.tree.leaves(function(losses)))
    assert jaxent.mean(losses) == float(losses[0])
    assert jaxent.sum_and_weight(losses)[0] == 4096 * float(losses[0])
    weights = np.full(4096, 3, dtype)
    assert jaxent.mean(losses, None, weights) == float(losses[0])
    assert jax.grad(jaxent.mean)(losses).dtype == dtype


def test_float64_stays_float64_and_float32_stays_float32():
    losses, where, weights = batch()
    with with_float64():
        for dtype in (np.float32, np.float64):
            given = losses.astype(dtype), where, weights.astype(dtype)
            assert jaxent.mean(*given).dtype == dtype
            assert jaxent.mean(given[0], where, 2.0).dtype == dtype
            assert jaxent.mean(given[0], where, np.ones(8, np.int32)).dtype == dtype
            assert all(half.dtype == dtype for half in jaxent.sum_and_weight(*given))


def test_weights_may_be_integers_booleans_or_one_number():
    losses, where, _ = batch()
    counts = np.array([0, 1, 2, 3, 4, 5, 6, 7])
    expected = jaxent.mean(losses, where, counts.astype(np.float32))
    for dtype in (np.int32, np.uint8):
        np.testing.assert_array_equal(jaxent.mean(losses, where, counts.astype(dtype)), expected)
    np.testing.assert_allclose(
        jaxent.mean(losses, None, where), jaxent.mean(losses, where), rtol=1e-6
    )
    np.testing.assert_allclose(
        jaxent.mean(losses, where, 3.0), jaxent.mean(losses, where), rtol=1e-6
    )
    total, weight = jaxent.sum_and_weight(losses, where, 2)
    np.testing.assert_allclose(total, 2 * losses[where].sum(), rtol=1e-6)
    assert weight == 2.0 * float(where.sum())


@pytest.mark.parametrize("function", BOTH)
def test_masks_and_weights_of_one_rank_broadcast(function):
    losses, _, _ = batch(shape=(3, 4))
    row = np.array([[True, False, True, True]])
    column = np.array([[1.0], [2.0], [0.5]], np.float32)
    kept = np.repeat(row, 3, 0) * np.repeat(column, 4, 1)
    total = np.sum(kept * losses)
    expected = total / np.sum(kept) if function is jaxent.mean else (total, np.sum(kept))
    np.testing.assert_allclose(function(losses, row, column), expected, rtol=1e-6)


@pytest.mark.parametrize("function", BOTH)
@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("where", {"where": np.ones((4, 1), bool)}),
        ("where", {"where": np.ones(3, bool)}),
        ("where", {"where": np.ones(4, np.float32)}),
        ("where", {"where": np.ones(4, np.int32)}),
        ("weights", {"weights": np.ones((4, 1), np.float32)}),
        ("weights", {"weights": np.ones(3, np.float32)}),
        ("weights", {"weights": np.ones(4, np.complex64)}),
        ("losses", {"losses": np.ones(4, np.int32)}),
        ("losses", {"losses": np.ones(1, np.float32), "weights": np.ones(4, np.float32)}),
        ("losses", {"losses": np.float32(1.0), "where": np.ones(4, bool)}),
    ],
)
def test_what_does_not_fit_is_refused_in_words(function, name, given):
    arguments = {"losses": np.ones(4, np.float32), **given}
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(lambda: function(**arguments))
    message = str(failure.value)
    assert f"jaxent.{function.__name__}" in message
    assert f"`{name}`" in message
    assert str(arguments[name].dtype) in message


@pytest.mark.parametrize("function", BOTH)
def test_lists_and_numbers_are_taken(function):
    np.testing.assert_array_equal(
        function([1.0, 3.0, 8.0], [True, True, False], [3.0, 1.0, 1.0]),
        function(*map(np.array, ([1.0, 3.0, 8.0], [True, True, False], [3.0, 1.0, 1.0]))),
    )
    assert jax.tree.leaves(function(2.0))[0] == 2.0


@pytest.mark.thorough
def test_under_every_transformation():
    losses, where, weights = batch(shape=(3, 4))
    kept = np.where(where, weights, 0)
    expected = np.sum(kept * losses, -1) / np.sum(kept, -1)
    np.testing.assert_allclose(jax.vmap(jaxent.mean)(losses, where, weights), expected, rtol=1e-6)
    rows = jax.lax.map(lambda part: jaxent.mean(*part), (losses, where, weights))
    np.testing.assert_allclose(rows, expected, rtol=1e-6)
    with jax.checking_leaks():
        jax.make_jaxpr(jax.grad(jaxent.mean))(losses, where, weights)
    curvature = jax.hessian(jaxent.mean)(losses[0], where[0], weights[0])
    np.testing.assert_array_equal(curvature, 0.0)
    remade = jax.grad(jax.checkpoint(jaxent.mean))(losses, where, weights)
    np.testing.assert_allclose(remade, jax.grad(jaxent.mean)(losses, where, weights), rtol=1e-6)


def test_a_masked_nan_of_16_bits_stops_no_debugger():
    losses, where = jnp.array([1, np.nan], jnp.bfloat16), np.array([True, False])
    with jax.debug_nans(True):
        assert jaxent.mean(losses, where=where) == 1.0
        slope = jax.grad(lambda x: jaxent.mean(x, where=where))(losses)
    np.testing.assert_array_equal(np.asarray(slope, np.float32), [1.0, 0.0])


def test_weights_that_are_all_zero_have_no_gradient():
    slope = jax.grad(lambda w: jaxent.mean(jnp.array([1.0, 2.0]), weights=w))(jnp.zeros(2))
    np.testing.assert_array_equal(slope, 0.0)
