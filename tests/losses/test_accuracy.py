"""Top-k accuracy beside a sort in NumPy; the table of the contract has the rest."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent


def by_sort(logits, labels, k):
    """Whether the label is among the first k of a stable sort of the row; impossible ones last."""
    order = np.argsort(-logits.astype(np.float64), axis=-1, kind="stable")[..., :k]
    is_possible = np.take_along_axis(logits, labels[..., None], -1)[..., 0] > -np.inf
    return (order == labels[..., None]).any(-1) & is_possible


def rows(shape=(60,), classes=6, seed=0):
    """Logits of few different values, so that most rows have ties, and some impossible classes."""
    generator = np.random.default_rng(seed)
    logits = generator.integers(-2, 3, size=(*shape, classes)).astype(np.float32)
    logits[generator.random(logits.shape) < 0.2] = -np.inf
    return logits, generator.integers(classes, size=shape).astype(np.int32)


def test_it_is_the_sort_with_ties():
    logits, labels = rows()
    for k in range(1, 7):
        for way in (jaxent.accuracy, jax.jit(jaxent.accuracy, static_argnames="k")):
            result = way(logits, labels, k=k)
            assert result.dtype == np.float32
            np.testing.assert_array_equal(result, by_sort(logits, labels, k))
    np.testing.assert_array_equal(
        jaxent.accuracy(logits, labels), (logits.argmax(-1) == labels) & (logits.max(-1) > -np.inf)
    )


def test_the_first_k_are_those_of_top_k():
    logits = rows(seed=1)[0]
    logits[np.isneginf(logits)] = -9.0
    _, listed = jax.lax.top_k(logits, 3)
    for label in range(6):
        expected = (np.asarray(listed) == label).any(-1)
        result = jaxent.accuracy(logits, np.full(60, label, np.int32), k=3)
        np.testing.assert_array_equal(result, expected)


def test_masks_axes_and_the_mean():
    logits, labels = rows((5, 7), seed=2)
    where = np.random.default_rng(3).random((5, 7)) < 0.6
    expected = by_sort(logits, labels, 2)
    spoiled = np.where(where[..., None], logits, np.nan)
    bad = np.where(where, labels, -100)
    right = jaxent.accuracy(spoiled, bad, where=where, k=2)
    np.testing.assert_array_equal(right, expected & where)
    np.testing.assert_allclose(jaxent.mean(right, where), expected[where].mean(), rtol=1e-6)
    turned = jaxent.accuracy(np.moveaxis(logits, -1, 0), labels, axis=0, k=2)
    np.testing.assert_array_equal(turned, expected)
    flat = jaxent.accuracy(logits.reshape(5, 7, 2, 3), labels, axis=(-2, -1), k=2)
    np.testing.assert_array_equal(flat, expected)


def test_masked_classes_are_not_predicted():
    logits, labels = rows(seed=4)
    exists = np.arange(6) < 4
    labels %= 4
    spoiled = np.where(exists, logits, np.inf)
    result = jaxent.accuracy(spoiled, labels, where=np.broadcast_to(exists, (60, 6)), k=2)
    np.testing.assert_array_equal(result, by_sort(logits[:, :4], labels, 2))
    outside = jaxent.accuracy(logits, np.full(60, 5, np.int32), where=exists[None])
    assert np.isnan(outside).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_logit_is_nan_wherever_it_stands(value):
    logits, labels = rows((6,), seed=5)
    np.fill_diagonal(logits, value)
    assert np.isnan(jaxent.accuracy(logits, labels, k=6)).all()


def test_a_class_that_is_impossible_is_not_predicted():
    logits = np.full((2, 3), -np.inf, np.float32)
    logits[1, 2] = 0.0
    result = jaxent.accuracy(logits, np.array([0, 0]), k=3)
    np.testing.assert_array_equal(result, [0.0, 0.0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"k": 0}, "`k` must be a positive integer, got 0"),
        ({"k": 7}, r"`k` 7 must be at most the number of classes, 6, of `logits` float32\[60,6\]"),
        ({"k": 1.0}, "`k` must be a positive integer"),
        ({"labels": np.zeros((60, 6), np.float32)}, "`labels` must be integers.*largest"),
        ({"axis": 2}, "`axis` 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, words):
    logits, labels = rows()
    given = {"labels": labels, **change}
    with pytest.raises(jaxent.ArgumentError, match=rf"jaxent\.accuracy: .*{words}"):
        jaxent.accuracy(logits, given.pop("labels"), **given)


def test_no_logits_are_sorted_or_copied():
    """By ranks, since a sort of a vocabulary is dear on every chip."""
    given = jax.ShapeDtypeStruct((8, 512), jnp.float32), jax.ShapeDtypeStruct((8,), jnp.int32)
    program = jax.jit(lambda x, y: jaxent.accuracy(x, y, k=5)).lower(*given).compile()
    assert " sort(" not in str(program.as_text())
    memory = program.memory_analysis()
    # XLA of JAX 0.8 writes such an array for signs as well.
    assert jax.__version_info__ < (0, 10) or memory is None or memory.temp_size_in_bytes < 2 * 512
