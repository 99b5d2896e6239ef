"""The expected calibration error, against a loop in NumPy and against cases known by hand."""

import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64

ECE = jaxent.expected_calibration_error


def by_loop(probs, labels, num_bins, counts=None):
    """The definition, one bin and one example at a time."""
    total, number = 0.0, 0
    forecasts = list(zip(probs.max(-1), probs.argmax(-1) == labels, strict=True))
    for m in range(num_bins):
        low, high = (np.float32(end / num_bins) for end in (m, m + 1))
        hits, confidences = 0, 0.0
        for index, (confidence, is_hit) in enumerate(forecasts):
            if low < confidence <= high and (counts is None or counts[index]):
                hits += int(is_hit)
                confidences += float(confidence)
                number += 1
        total += abs(hits - confidences)
    return total / number


def forecasts(seed=0, rows=300, classes=4):
    generator = np.random.default_rng(seed)
    probs = generator.dirichlet(np.ones(classes), size=rows).astype(np.float32)
    return probs, generator.integers(classes, size=rows).astype(np.int32)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("num_bins", [1, 2, 10, 15, 100])
def test_it_is_the_loop(num_bins):
    for classes in (2, 4, 10):
        probs, labels = forecasts(classes, classes=classes)
        expected = by_loop(probs, labels, num_bins)
        result = ECE(probs, labels, num_bins)
        assert result.shape == ()
        assert result.dtype == np.float32
        assert not result.weak_type
        np.testing.assert_allclose(result, expected, rtol=1e-5)
        compiled = jax.jit(ECE, static_argnums=2)(probs, labels, num_bins)
        np.testing.assert_allclose(compiled, expected, rtol=1e-5)
    np.testing.assert_allclose(ECE(probs, labels), by_loop(probs, labels, 15), rtol=1e-5)


def test_bins_include_their_upper_ends():
    """0.2, 0.4, ... are the ends of bins in any number of them that has such ends."""
    tenths = np.arange(1, 11)
    confidence = (tenths / 10).astype(np.float32)
    # Of many classes, so that even 0.1 may be the largest.
    probs = np.zeros((10, 20), np.float32)
    probs[:, 0] = confidence
    probs[:, 1:] = ((1 - confidence) / 19)[:, None]
    right = np.zeros(10, np.int32)
    # One bin for each, of which every one is right: the mean gap. Ends one bin off would pair some.
    np.testing.assert_allclose(ECE(probs, right, 10), np.mean(1 - tenths / 10), rtol=1e-6)
    # A wrong 0.4 and a right 0.5 offset each other in one bin of ten, if they fell into it.
    labels = np.where(tenths % 2, 0, 1)
    expected = np.mean(np.abs((labels == 0) - tenths / 10))
    np.testing.assert_allclose(ECE(probs, labels, 10), expected, rtol=1e-6)
    above = np.nextafter(confidence[:5], np.float32(1))
    probs[:5, 0] = above
    pairs = np.abs((labels == 0) - tenths / 10)
    assert by_loop(probs, labels, 10) == pytest.approx(float(ECE(probs, labels, 10)), rel=1e-6)
    assert abs(float(ECE(probs, labels, 10)) - pairs.mean()) > 0.01


def test_yes_and_no_go_in_as_two_classes():
    chances, happened = np.array([0.9, 0.8, 0.3, 0.1], np.float32), np.array([1, 0, 0, 1])
    probs = np.stack([1 - chances, chances], -1)
    # Confidences 0.9 right, 0.8 wrong, 0.7 right, 0.9 wrong; 0.9 and 0.9 share a bin.
    np.testing.assert_allclose(ECE(probs, happened, 10), (0.8 + 0.8 + 0.3) / 4, rtol=1e-6)


def test_a_calibrated_and_an_overconfident_model():
    generator = np.random.default_rng(1)
    probs, _ = forecasts(2, 20000, 3)
    outcomes = (generator.random((20000, 1)) > probs.cumsum(-1)[:, :2]).sum(-1)
    assert ECE(probs, outcomes) < 0.02
    sharp = probs**3 / (probs**3).sum(-1, keepdims=True)
    assert ECE(sharp, outcomes) > 0.1


def test_it_stays_exact_over_many_examples():
    probs, labels = forecasts(3, 200_000, 2)
    wide = probs.astype(np.float64)
    bins = np.ceil(wide.max(-1) * 15).astype(int)
    gaps = (wide.argmax(-1) == labels) - wide.max(-1)
    expected = sum(abs(gaps[bins == m].sum()) for m in range(1, 16)) / len(labels)
    np.testing.assert_allclose(ECE(probs, labels), expected, rtol=2e-5)


def test_masked_examples_do_not_count_whatever_they_hold():
    probs, labels = forecasts(4)
    where = np.random.default_rng(5).random(300) < 0.6
    expected = by_loop(probs, labels, 15, where)
    for poison in (np.nan, np.inf, -1.0):
        spoiled = np.where(where[:, None], probs, np.float32(poison))
        bad = np.where(where, labels, -100)
        np.testing.assert_allclose(ECE(spoiled, bad, where=where), expected, rtol=1e-5)
        given = jnp.asarray(spoiled)
        with jax.debug_nans(True):
            slope = jax.grad(lambda p: ECE(p, bad, where=where))(given)  # noqa: B023
        np.testing.assert_array_equal(slope[~where], 0.0)
        assert np.isfinite(slope).all()


def test_masked_classes_are_not_there():
    probs, labels = forecasts(6)
    labels = labels % 2
    exists = np.array([[True, True, False, False]])
    spoiled = np.where(exists, probs, np.nan)
    expected = by_loop(probs[:, :2], labels, 15)
    np.testing.assert_allclose(ECE(spoiled, labels, where=exists), expected, rtol=1e-5)
    assert np.isnan(ECE(probs, labels + 1, where=exists))


def test_where_nothing_counts_it_is_0():
    probs, labels = forecasts(7)
    assert ECE(probs, labels, where=False) == 0.0
    assert ECE(probs[:0], labels[:0]) == 0.0
    with jax.debug_nans(True):
        slope = jax.grad(lambda p: ECE(p, labels, where=False))(jnp.asarray(probs))
    np.testing.assert_array_equal(slope, 0.0)


@pytest.mark.parametrize("label", [-1, -100, 4, 2**31 - 1])
def test_a_label_out_of_range_is_nan(label):
    probs, labels = forecasts(8)
    labels[17] = label
    assert np.isnan(ECE(probs, labels))


@pytest.mark.parametrize("p", [-0.1, 1.5, np.nan, np.inf])
def test_a_probability_out_of_range_is_nan(p):
    probs, labels = forecasts(9)
    probs[17, 2] = p
    assert np.isnan(ECE(probs, labels))
    assert np.isnan(jax.grad(ECE)(jnp.asarray(probs), labels)[17]).any()


@pytest.mark.thorough
def test_axes_shapes_and_transformations():
    probs, labels = forecasts(10, 60)
    expected = float(ECE(probs, labels))
    cube, tags = probs.reshape(3, 20, 4), labels.reshape(3, 20)
    for result in (
        ECE(probs.T, labels, axis=0),
        ECE(cube, tags),
        ECE(np.moveaxis(cube, -1, 1), tags, axis=1),
        ECE(cube.reshape(3, 20, 2, 2), tags, axis=(2, 3)),
        ECE(probs.tolist(), labels.tolist()),
        ECE(probs, labels.astype(np.uint8)),
        jax.checkpoint(ECE)(probs, labels),
    ):
        assert float(result) == pytest.approx(expected, rel=1e-6)
    each = jax.vmap(ECE)(cube, tags)
    np.testing.assert_allclose(
        each, [ECE(*pair) for pair in zip(cube, tags, strict=True)], rtol=1e-6
    )


def test_the_gradient_moves_confidence_towards_accuracy():
    probs = np.array([[0.9, 0.1], [0.2, 0.8]], np.float32)
    slope = jax.grad(ECE)(probs, np.array([0, 0]))
    np.testing.assert_allclose(slope, [[-0.5, 0], [0, 0.5]], rtol=1e-6)


def test_dtypes():
    probs, labels = forecasts(11)
    for dtype in (ml_dtypes.bfloat16, np.float16):
        low = probs.astype(dtype)
        result = ECE(low, labels)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, ECE(low.astype(np.float32), labels), rtol=1e-6)
    with with_float64():
        assert ECE(probs, labels).dtype == np.float32
        assert ECE(probs.astype(np.float64), labels).dtype == np.float64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_bins": 0}, "`num_bins`.*0"),
        ({"num_bins": 2.5}, r"`num_bins`.*2\.5"),
        ({"num_bins": True}, "`num_bins`.*True"),
        ({"axis": 3}, r"`axis` 3.*float32\[6,4\]"),
        ({"where": np.ones(4, bool)}, r"`where` bool\[4\]"),
        ({"where": np.ones(6)}, "`where`.*boolean"),
        ({"labels": np.zeros((6, 4), np.int32)}, r"`labels` int32\[6,4\]"),
        ({"labels": np.zeros(6, np.float32)}, "`labels`.*index"),
        ({"probs": np.ones((6, 4), np.int32)}, "`probs`.*floating"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, message):
    probs, labels = forecasts(12, 6)
    given = {"probs": probs, "labels": labels, **change}
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(lambda: ECE(given.pop("probs"), given.pop("labels"), **given))
    text = str(failure.value)
    assert text.startswith("jaxent.expected_calibration_error: ")
    assert re.search(message, text), text
