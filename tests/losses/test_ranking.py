"""Losses of lists beside what the table holds: weights, reductions, ties, edges."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
import pytest

import jaxent
from heads.compiled import temporaries

LOSSES = (jaxent.ranking_softmax_loss, jaxent.pairwise_logistic_loss, jaxent.listmle_loss)
everyone = pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)


@pytest.fixture
def lists():
    """Scores, relevance with ties, weights and a mask with an empty list, [5, 6]."""
    generator = np.random.default_rng(0)
    where = generator.random((5, 6)) < 0.7
    where[2], where[0] = False, True
    return (
        jnp.asarray(2 * generator.normal(size=(5, 6)), jnp.float32),
        jnp.asarray(generator.integers(3, size=(5, 6)), jnp.float32),
        jnp.asarray(generator.random((5, 6)), jnp.float32),
        jnp.asarray(where),
    )


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=3e-6, atol=1e-6)


def pairs_by_definition(scores, labels, weights):
    pairs = itertools.product(range(len(scores)), repeat=2)
    return sum(
        weights[i] * math.log1p(math.exp(scores[j] - scores[i]))
        for i, j in pairs
        if labels[i] > labels[j]
    )


def order_by_definition(scores, labels, weights):
    order = np.argsort(-labels, kind="stable")
    scores, weights = scores[order], weights[order]
    return sum(w * (math.log(np.exp(scores[i:]).sum()) - scores[i]) for i, w in enumerate(weights))


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("reduce_fn", [jnp.mean, jnp.sum, None, jaxent.mean])
@pytest.mark.parametrize("given", [(), ("weights",), ("where",), ("weights", "where")])
def test_softmax_loss_is_that_of_optax(lists, given, reduce_fn):
    scores, labels, weights, where = lists
    keywords = {name: {"weights": weights, "where": where}[name] for name in given}
    theirs = jnp.mean if reduce_fn is jaxent.mean else reduce_fn

    def both(scores, labels):
        return (
            jaxent.ranking_softmax_loss(scores, labels, reduce_fn=reduce_fn, **keywords),
            optax.losses.ranking_softmax_loss(scores, labels, reduce_fn=theirs, **keywords),
        )

    ours, expected = both(scores, labels)
    assert ours.dtype == jnp.float32
    close(ours, expected)
    slopes = (jax.grad(lambda *a, i=i: jnp.sum(both(*a)[i]))(scores, labels) for i in (0, 1))
    close(*slopes)


@pytest.mark.parametrize(
    ("loss", "definition"),
    [
        (jaxent.pairwise_logistic_loss, pairs_by_definition),
        (jaxent.listmle_loss, order_by_definition),
    ],
)
def test_losses_are_their_definitions_over_the_items_that_count(lists, loss, definition):
    scores, labels, weights, where = lists
    expected = [
        definition(*(np.asarray(each[row][where[row]], np.float64) for each in lists[:3]))
        for row in range(5)
    ]
    losses = loss(scores, labels, weights=weights, where=where, reduce_fn=None)
    close(losses, expected)
    close(loss(scores, labels, weights=weights, where=where), np.sum(expected) / 4)
    close(loss(scores, labels, weights=weights, where=where, reduce_fn=jnp.sum), np.sum(expected))


@pytest.mark.thorough(beyond=2)
@everyone
def test_weights_have_the_gradient_of_a_linear_loss(lists, loss):
    scores, labels, weights, where = lists
    slope = jax.grad(lambda w: loss(scores, labels, weights=w, where=where))(weights)
    close(jnp.sum(slope * weights), loss(scores, labels, weights=weights, where=where))
    np.testing.assert_array_equal(slope[~where], 0.0)


@pytest.mark.thorough(beyond=1)
@everyone
def test_masked_lists_and_items_may_hold_anything(lists, loss):
    scores, labels, weights, where = lists
    expected = loss(scores, labels, weights=weights, where=where, reduce_fn=None)
    poisoned = [jnp.where(where, each, jnp.nan) for each in (scores, labels, weights)]

    def total(scores, labels, weights):
        losses = loss(scores, labels, weights=weights, where=where, reduce_fn=None)
        return jnp.sum(losses), losses

    slopes, losses = jax.grad(total, (0, 1, 2), has_aux=True)(*poisoned)
    close(losses, expected)
    assert losses[2] == 0.0
    for slope in slopes:
        np.testing.assert_array_equal(slope[~where], 0.0)
        assert np.isfinite(slope).all()
    lists_only = jnp.array([True, False, True, True, True])
    close(
        loss(scores.at[1].set(jnp.nan), labels, where=lists_only),
        loss(scores[lists_only], labels[lists_only]),
    )


@pytest.mark.thorough(beyond=2)
@everyone
def test_the_mean_over_nothing_is_zero_and_hides_no_nan(lists, loss):
    scores, labels, _, where = lists
    nothing = jnp.zeros_like(where)
    value, slope = jax.value_and_grad(lambda x: loss(x, labels, where=nothing))(scores)
    assert value == 0.0
    np.testing.assert_array_equal(slope, 0.0)
    assert loss(jnp.zeros((0, 3)), jnp.zeros((0, 3))) == 0.0
    assert np.isnan(loss(scores.at[0, 0].set(jnp.nan), labels, where=where))
    assert np.isnan(loss(scores, labels.at[0, 0].set(jnp.nan), where=where))


@everyone
def test_negative_weights_are_nan_for_their_list(lists, loss):
    scores, labels, weights, _ = lists
    losses = loss(scores, labels, weights=weights.at[1, 2].set(-1.0), reduce_fn=None)
    np.testing.assert_array_equal(np.isnan(losses), np.arange(5) == 1)


@pytest.mark.thorough(beyond=2)
@everyone
def test_relevance_may_be_of_any_real_dtype(lists, loss):
    scores, labels, _, _ = lists
    expected = loss(scores, labels)
    for dtype in (jnp.int32, jnp.uint8, jnp.bfloat16):
        close(loss(scores, labels.astype(dtype)), expected)
    close(loss(scores, labels > 1), loss(scores, (labels > 1).astype(jnp.float32)))


def test_negative_relevance_is_nan_only_where_it_is_a_share(lists):
    scores, labels, _, _ = lists
    assert np.isnan(jaxent.ranking_softmax_loss(scores, labels - 1))
    for loss in LOSSES[1:]:
        close(loss(scores, labels - 1), loss(scores, labels))


def test_large_whole_numbers_keep_their_order():
    scores, labels = jnp.array([0.0, 5.0]), jnp.array([2**24, 2**24 + 1])
    np.testing.assert_allclose(jaxent.listmle_loss(scores, labels), math.log1p(math.exp(-5)), 1e-6)
    close(jaxent.pairwise_logistic_loss(scores, labels), math.log1p(math.exp(-5)))


def test_items_of_equal_relevance_are_drawn_in_the_order_given(lists):
    scores, labels, _, _ = lists
    finer = labels - jnp.arange(6)[None] / 100
    close(jaxent.listmle_loss(scores, labels), jaxent.listmle_loss(scores, finer))


def test_a_list_of_two_is_one_comparison():
    scores, labels = jnp.array([[20.0, 0.0], [-1.0, 4.0]]), jnp.array([[1, 0], [1, 0]])
    expected = [2.0611536e-9, 5.0067153]
    for loss in LOSSES:
        close(loss(scores, labels, reduce_fn=None), expected)
        np.testing.assert_allclose(loss(scores[0], labels[0]), expected[0], rtol=1e-6)


def test_orders_of_all_permutations_have_total_probability_one():
    scores = jnp.array([300.0, 299.0, 301.5, 298.0])
    orders = jnp.array(list(itertools.permutations(range(4))))
    losses = jaxent.listmle_loss(jnp.tile(scores, (24, 1)), orders, reduce_fn=None)
    np.testing.assert_allclose(np.exp(-losses).sum(), 1.0, rtol=1e-6)


@pytest.mark.thorough
def test_impossible_scores():
    scores = jnp.array([3.0, -jnp.inf, 1.0, -jnp.inf])
    right, wrong = jnp.array([3, 1, 2, 0]), jnp.array([3, 1, 0, 2])
    with jax.debug_nans(True):
        for loss in (jaxent.listmle_loss, jaxent.ranking_softmax_loss):
            relevance = jnp.where(scores > -jnp.inf, right, 0)
            value, slope = jax.value_and_grad(loss)(scores, relevance)
            assert np.isfinite(value)
            np.testing.assert_array_equal(slope[1::2], 0.0)
        for loss in LOSSES:
            value, slope = jax.value_and_grad(loss)(scores, wrong)
            assert value == np.inf
            assert not np.isnan(slope).any()


@pytest.mark.thorough
def test_long_lists_take_no_memory_for_pairs():
    scores = jnp.zeros((2, 4000))
    program = jax.jit(jax.grad(jaxent.listmle_loss)).lower(scores, scores).compile()
    assert temporaries(program) < 4e6


@pytest.mark.thorough(beyond=2)
@everyone
def test_what_does_not_fit_is_refused(lists, loss):
    scores, labels, weights, _where = lists
    refused = {
        "where": {"where": weights},
        "weights": {"weights": weights[:, :3]},
    }
    for name, keywords in refused.items():
        with pytest.raises(AssertionError, match=rf"{loss.__name__}.*`{name}`"):
            loss(scores, labels, **keywords)
    for shape in ((5, 5), (6,), (5, 1, 6)):
        with pytest.raises(AssertionError, match="labels"):
            loss(scores, jnp.zeros(shape))
    with pytest.raises(AssertionError, match="logits"):
        loss(jnp.float32(1.0), jnp.float32(1.0))
