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
        ("losses", {"axis": 1}),
        ("losses", {"axis": (0, -1)}),
        ("losses", {"axis": ()}),
        ("losses", {"axis": 0.0}),
        ("segment_ids", {"segment_ids": np.zeros((4, 1), np.int32), "num_segments": 2}),
        ("segment_ids", {"segment_ids": np.zeros(1, np.int32), "num_segments": 2}),
        ("segment_ids", {"segment_ids": np.zeros(4, np.float32), "num_segments": 2}),
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


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_segments": 2}, "`num_segments` is given without `segment_ids`"),
        ({"segment_ids": np.zeros(4, np.int32)}, "`num_segments` must be a positive integer.*None"),
        ({"total_weight": np.ones(4, np.float32)}, r"`total_weight` float32\[4\].*scalar"),
        ({"total_weight": 1j}, "`total_weight` must be real"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_words(given, words):
    with pytest.raises(jaxent.ArgumentError, match=words):
        jaxent.mean(np.ones(4, np.float32), **given)
    with pytest.raises(jaxent.ArgumentError, match=r"`num_segments`.*static_argnames"):
        jax.jit(lambda n: jaxent.mean(np.ones(2), segment_ids=np.zeros(2, int), num_segments=n))(3)


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


# --- along axes, in segments, over a given weight -------------------------------------------------


@pytest.mark.parametrize("axis", [0, -1, (2, 0), (0, 1, 2), None])
def test_means_along_axes_are_those_of_numpy(axis):
    losses, where, weights = batch(3, (3, 4, 5))
    where[:, 1], where[0], where[..., 2] = False, False, False  # some means are of nothing
    kept = np.where(where, weights, 0).astype(np.float64)
    total, weight = (kept * losses).sum(axis), kept.sum(axis)
    mean = np.divide(total, weight, out=np.zeros_like(total), where=weight != 0)
    losses[~where] = np.nan
    halves = jaxent.sum_and_weight(losses, where, weights, axis=axis)
    results = jaxent.mean(losses, where, weights, axis=axis), *halves
    for ours, truth in zip(results, (mean, total, weight), strict=True):
        assert ours.shape == truth.shape
        np.testing.assert_allclose(ours, truth, rtol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(jaxent.mean(x, where, weights, axis=axis)))(losses)
    over = kept.sum(axis, keepdims=True)
    np.testing.assert_allclose(slope, kept / np.where(over == 0, 1, over), rtol=1e-6)


def test_an_axis_of_size_0_has_means_of_nothing():
    np.testing.assert_array_equal(jaxent.mean(np.zeros((3, 0), np.float32), axis=1), np.zeros(3))
    assert jaxent.mean(np.zeros((3, 0), np.float32), axis=0).shape == (0,)


def by_segments(losses, counts, weights, ids, num_segments):
    """Sums and weights [rows, segments], one example at a time, in float64."""
    sums = np.zeros((2, len(losses), num_segments))
    for row, place in np.argwhere(counts):
        weight = np.float64(weights[row, place])
        sums[:, row, ids[row, place]] += weight * np.array([losses[row, place], 1.0])
    return sums


def packed(seed=5, rows=3, length=9, num_segments=4):
    """Losses whose segments 1 and 2 are there, 0 is masked, and 3 is in the first row alone."""
    generator = np.random.default_rng(seed)
    losses, _, weights = batch(seed, (rows, length))
    ids = generator.integers(num_segments - 1, size=(rows, length)).astype(np.int32)
    ids[0, -2:] = num_segments - 1
    return losses, ids > 0, weights, ids, num_segments


def test_segments_are_summed_one_by_one():
    losses, where, weights, ids, number = packed()
    sums, over = by_segments(losses, where, weights, ids, number)
    means = np.divide(sums, over, out=np.zeros_like(sums), where=over != 0)
    spoiled = np.where(where, losses, np.nan).astype(np.float32)
    elsewhere = np.where(where, ids, -7)  # a number that does not count may be anything
    options = {"segment_ids": elsewhere, "num_segments": number}
    for axis, join in ((-1, lambda x: x), (1, lambda x: x), (None, lambda x: x.sum(0))):
        given = (spoiled, where, weights)
        total, weight = jaxent.sum_and_weight(*given, axis=axis, **options)
        np.testing.assert_allclose(total, join(sums), rtol=1e-6)
        np.testing.assert_allclose(weight, join(over), rtol=1e-6)
    for way in (jaxent.mean, jax.jit(jaxent.mean, static_argnames=("axis", "num_segments"))):
        np.testing.assert_allclose(way(*given, axis=-1, **options), means, rtol=1e-6)
    # Along the first axis, and in another order of the axes.
    turned = jaxent.mean(
        spoiled.T, where.T, weights.T, axis=0, segment_ids=elsewhere.T, num_segments=number
    )
    np.testing.assert_allclose(turned, means, rtol=1e-6)
    assert not means[:, 0].any()  # nothing counts there


def test_a_sequence_of_nothing_changes_no_mean_of_means():
    losses, where, _, ids, number = packed()
    options = {"axis": -1, "segment_ids": ids, "num_segments": number}
    weight = jaxent.sum_and_weight(losses, where, **options)[1]
    ours = jaxent.mean(jaxent.mean(losses, where, **options), where=weight > 0)
    sequences = [
        losses[row][ids[row] == segment].astype(np.float64).mean()
        for row in range(len(ids))
        for segment in range(1, number)
        if (ids[row] == segment).any()
    ]
    np.testing.assert_allclose(ours, np.mean(sequences), rtol=1e-6)
    more = jaxent.mean(losses, where, **{**options, "num_segments": 99})
    np.testing.assert_allclose(jnp.sum(more), np.sum(sequences), rtol=1e-6)


def test_gradients_of_segments_are_shares_of_their_weights():
    losses, where, weights, ids, number = packed()
    _, over = by_segments(losses, where, weights, ids, number)
    cotangent = np.random.default_rng(0).normal(size=over.shape).astype(np.float32)

    def total(losses, weights):
        options = {"axis": -1, "segment_ids": ids, "num_segments": number}
        return jnp.sum(cotangent * jaxent.mean(losses, where, weights, **options))

    with jax.debug_nans(True):
        slope = jax.jit(jax.grad(total))(jnp.where(where, losses, 0.0), weights)
    of_segment = np.take_along_axis(cotangent / np.where(over == 0, 1, over), ids, 1)
    np.testing.assert_allclose(slope, np.where(where, weights * of_segment, 0), rtol=1e-5)
    tangent = jax.jvp(total, (losses, weights), (np.ones_like(losses), np.zeros_like(weights)))[1]
    np.testing.assert_allclose(tangent, np.asarray(slope, np.float64).sum(), rtol=1e-4)
    modes = [
        jax.jit(outer(jax.grad(total, 1), 1))(losses, weights) for outer in (jax.jacfwd, jax.jacrev)
    ]  # means are no linear function of the weights
    np.testing.assert_allclose(*modes, rtol=1e-4, atol=1e-6)
    assert np.abs(modes[0]).max() > 0.1


@pytest.mark.parametrize("bad", [-1, 4, 2**31 - 1])
def test_a_segment_out_of_range_is_nan_in_its_row_and_no_other(bad):
    losses, where, _, ids, number = packed()
    place = np.argwhere(where[1])[0, 0]
    ids[1, place] = bad
    options = {"axis": -1, "segment_ids": ids, "num_segments": number}
    for result in (
        jaxent.mean(losses, where, **options),
        *jaxent.sum_and_weight(losses, where, **options),
    ):
        assert np.isnan(result[1]).all()
        assert np.isfinite(result[::2]).all()
    slope = jax.grad(lambda x: jnp.sum(jaxent.mean(x, where, **options)))(losses)
    assert np.isnan(slope[1][where[1]]).all()
    assert np.isfinite(slope[::2]).all()
    with_all = {**options, "axis": None}
    assert np.isnan(jaxent.mean(losses, where, **with_all)).all()


def test_segments_of_every_integer_dtype_and_of_16_bits():
    losses, where, weights, ids, number = packed()
    options = {"axis": -1, "num_segments": number}
    expected = jaxent.mean(losses, where, weights, segment_ids=ids, **options)
    for dtype in (np.uint8, np.int8, np.uint32):
        result = jaxent.mean(losses, where, weights, segment_ids=ids.astype(dtype), **options)
        np.testing.assert_array_equal(result, expected)
    half = losses.astype(ml_dtypes.bfloat16)
    result = jaxent.mean(half, where, segment_ids=ids, **options)
    assert result.dtype == np.float32
    wide = jaxent.mean(half.astype(np.float32), where, segment_ids=ids, **options)
    np.testing.assert_array_equal(result, wide)
    with with_float64():
        for dtype in (np.float32, np.float64):
            given = losses.astype(dtype), where, weights.astype(dtype)
            assert jaxent.mean(*given, segment_ids=ids, **options).dtype == dtype


def test_segments_under_vmap_and_over_any_number_of_rows():
    losses, where, weights, ids, number = packed()

    def means(losses, where, weights, ids):
        options = {"axis": -1, "segment_ids": ids, "num_segments": number}
        return jaxent.mean(losses, where, weights, **options)

    given = losses, where, weights, ids
    expected = means(*given)
    np.testing.assert_allclose(jax.vmap(means)(*given), expected, rtol=1e-6)
    (rows,) = jax.export.symbolic_shape("rows")
    shapes = [jax.ShapeDtypeStruct((rows, 9), array.dtype) for array in given]
    stored = jax.export.export(jax.jit(means))(*shapes)
    np.testing.assert_allclose(stored.call(*given), expected, rtol=1e-6)


def test_booleans_are_0_and_1():
    right = np.array([True, False, True, True])
    where = np.array([True, True, False, True])
    for way in (jaxent.mean, jax.jit(jaxent.mean)):
        result = way(right, where)
        assert (result.dtype, float(result)) == (np.float32, np.float32(2 / 3))
    assert jaxent.sum_and_weight(right) == (3.0, 4.0)


def test_a_given_weight_divides_in_place_of_what_counts():
    """As of a batch that comes in parts: their shares add up to its mean."""
    losses, where, weights = batch(6, (12,))
    number = int(where.sum())
    parts = [slice(i, i + 4) for i in (0, 4, 8)]
    for total_weight in (number, np.float32(number), np.int32(number)):
        shares = [jaxent.mean(losses[p], where[p], total_weight=total_weight) for p in parts]
        np.testing.assert_allclose(sum(shares), jaxent.mean(losses, where), rtol=1e-6)
    lengths = np.array([2.0, 5.0, 0.5], np.float32)
    square = losses.reshape(3, 4), where.reshape(3, 4), weights.reshape(3, 4)
    result = jaxent.mean(*square, axis=-1, total_weight=lengths)
    total, _ = jaxent.sum_and_weight(*square, axis=-1)
    np.testing.assert_allclose(result, total / lengths, rtol=1e-6)
    slope = jax.grad(lambda x: jaxent.mean(x, where, total_weight=number))(losses)
    np.testing.assert_allclose(slope, where / number, rtol=1e-6)
    assert jaxent.mean(losses, where=False, total_weight=0) == 0.0
    with with_float64():
        wide = np.float64(3)
        assert jaxent.mean(losses, total_weight=jnp.asarray(wide)).dtype == np.float64
