"""What each position of a sequence predicts, against explicit loops, and trained through a loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent

SIDES = ["labels", "inputs"]


def by_loop(tokens, where, segment_ids, shift, where_of):
    """The definition, one position at a time."""
    labels, counts = np.full(tokens.shape, -1), np.zeros(tokens.shape, bool)
    for place in np.ndindex(tokens.shape):
        target = (*place[:-1], place[-1] + shift)
        if target[-1] >= tokens.shape[-1]:
            continue
        if segment_ids is not None and segment_ids[place] != segment_ids[target]:
            continue
        if where[target if where_of == "labels" else place]:
            labels[place], counts[place] = tokens[target], True
    return labels, counts


def packed(shape, seed=0):
    generator = np.random.default_rng(seed)
    tokens = generator.integers(100, size=shape).astype(np.int32)
    # Segments of random lengths, numbered from 1, and then padding of number 0.
    ids = 1 + np.cumsum(generator.random(shape) < 0.3, axis=-1)
    ids[..., shape[-1] - 2 :] = 0
    return tokens, generator.random(shape) < 0.7, ids.astype(np.int32)


@pytest.mark.parametrize("where_of", SIDES)
def test_it_is_the_loop(where_of):
    for shape, shift, has_segments in [
        ((9,), 1, True),
        ((3, 9), 1, True),
        ((3, 9), 2, True),
        ((3, 9), 1, False),
        ((2, 2, 5), 4, False),
        ((2, 2, 5), 5, False),
        ((3, 9), 50, True),
    ]:
        tokens, where, ids = packed(shape)
        ids = ids if has_segments else None
        options = {"segment_ids": ids, "shift": shift, "where_of": where_of}
        ours = jaxent.next_tokens(tokens, where, **options)
        for each, expected in zip(ours, by_loop(tokens, where, **options), strict=True):
            np.testing.assert_array_equal(each, expected)
        assert (ours[0].dtype, ours[1].dtype) == (np.int32, np.bool_)


def test_without_a_mask_all_tokens_but_the_first_are_labels():
    tokens, _, _ = packed((2, 6))
    labels, where = jaxent.next_tokens(tokens)
    np.testing.assert_array_equal(labels[:, :-1], tokens[:, 1:])
    np.testing.assert_array_equal(where, np.arange(6)[None].repeat(2, 0) < 5)
    for mask in (True, np.ones((1, 6), bool), np.ones((2, 1), bool)):
        np.testing.assert_array_equal(jaxent.next_tokens(tokens, mask)[1], where)
    assert not jaxent.next_tokens(tokens, False)[1].any()
    assert jaxent.next_tokens(tokens[:, :0])[0].shape == (2, 0)


def test_the_two_meanings_of_a_mask():
    """A prompt of two tokens: the answer is to be predicted, from the last token of the prompt."""
    tokens, answer = np.array([5, 6, 7, 8]), np.array([False, False, True, True])
    of_labels = jaxent.next_tokens(tokens, answer)[0]
    of_inputs = jaxent.next_tokens(tokens, answer, where_of="inputs")[0]
    np.testing.assert_array_equal(of_labels, [-1, 7, 8, -1])
    np.testing.assert_array_equal(of_inputs, [-1, -1, 8, -1])


def test_labels_hold_ids_of_every_dtype_and_none_wraps():
    for dtype in (np.uint8, np.int8, np.uint16, np.uint32, np.int32):
        tokens = np.array([3, 100, 7], dtype)
        labels, _ = jaxent.next_tokens(tokens, segment_ids=np.zeros(3, dtype))
        np.testing.assert_array_equal(labels, [100, 7, -1])
        assert labels.dtype == np.int32


@pytest.mark.parametrize("where_of", SIDES)
def test_packed_rows_train_as_their_sequences_do(where_of):
    tokens, where, ids = packed((2, 12), seed=3)
    tokens %= 5
    logits = np.random.default_rng(4).normal(size=(2, 12, 5)).astype(np.float32)
    cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels

    def of_packed(logits):
        labels, counts = jaxent.next_tokens(
            tokens, where & (ids > 0), segment_ids=ids, where_of=where_of
        )
        losses = cross_entropy(logits, labels, where=counts)
        return jaxent.mean(losses, where=counts)

    total, number = 0.0, 0
    for row, segment in {(r, s) for r in range(2) for s in ids[r] if s}:
        places = np.flatnonzero(ids[row] == segment)
        for place in places[:-1]:
            if where[row, place + (where_of == "labels")]:
                x = logits[row, place].astype(np.float64)
                total += np.log(np.sum(np.exp(x))) - x[tokens[row, place + 1]]
                number += 1
    assert number > 5
    np.testing.assert_allclose(of_packed(logits), total / number, rtol=1e-6)
    # A mask that is forgotten is seen.
    labels, _ = jaxent.next_tokens(tokens, where, segment_ids=ids)
    assert np.isnan(jaxent.mean(cross_entropy(logits, labels)))


def test_labels_and_mask_are_those_of_a_head_with_a_shift():
    tokens, where, _ = packed((3, 7))
    tokens %= 6
    generator = np.random.default_rng(1)
    hidden, kernel = (generator.normal(size=s).astype(np.float32) for s in ((3, 7, 4), (4, 6)))
    for shift in (1, 3):
        labels, counts = jaxent.next_tokens(tokens, where, shift=shift)
        ours, theirs = (
            jaxent.linear_softmax_cross_entropy(
                hidden, kernel, t, where=w, shift=s, reduction="none"
            )
            for t, w, s in ((labels, counts, 0), (tokens, where, shift))
        )
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_under_vmap_and_in_a_scan():
    tokens, where, ids = packed((4, 8))
    expected = jaxent.next_tokens(tokens, where, segment_ids=ids)

    def of_row(tokens, where, ids):
        return jaxent.next_tokens(tokens, where, segment_ids=ids)

    mapped = jax.vmap(of_row)(tokens, where, ids)
    scanned = jax.lax.scan(lambda _, row: (None, of_row(*row)), None, (tokens, where, ids))[1]
    for result in (mapped, scanned):
        for ours, theirs in zip(result, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tokens": np.ones(4, np.float32)}, "`tokens` must be integers"),
        ({"tokens": np.int32(3)}, r"`tokens` int32\[\] must have an axis"),
        ({"where": np.ones(3, bool)}, r"`where` bool\[3\]"),
        ({"where": np.ones((2, 4), bool)}, r"`where` bool\[2,4\]"),
        ({"where": np.ones(4, np.float32)}, "`where` must be boolean"),
        ({"segment_ids": np.ones((1, 4), np.int32)}, r"`segment_ids` int32\[1,4\]"),
        ({"segment_ids": np.ones(4, np.float32)}, "`segment_ids` must be integers"),
        ({"shift": 0}, "`shift` must be a positive integer, got 0"),
        ({"where_of": "rows"}, "`where_of` must be one of 'labels', 'inputs'"),
    ],
)
def test_what_does_not_fit_is_refused_in_words(change, words):
    given = {"tokens": np.arange(4, dtype=np.int32), **change}
    with pytest.raises(jaxent.ArgumentError, match=rf"jaxent\.next_tokens: .*{words}"):
        jax.eval_shape(lambda: jaxent.next_tokens(given.pop("tokens"), **given))
    with pytest.raises(jaxent.ArgumentError, match=r"`where` bool\[2,4\].*`tokens` int32\[1,4\]"):
        jaxent.next_tokens(jnp.zeros((1, 4), int), np.ones((2, 4), bool))
