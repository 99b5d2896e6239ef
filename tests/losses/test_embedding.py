"""Losses of embeddings: beside optax, beside their definitions, and where those have no answer."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent
from conformance.case import with_float64
from heads.compiled import buffers

OF_BATCHES = (jaxent.ntxent, jaxent.supervised_contrastive_loss, jaxent.circle_loss)
each_loss = pytest.mark.parametrize("loss", OF_BATCHES, ids=lambda f: f.__name__)


def batch(size=8, features=5, groups=3, seed=0):
    generator = np.random.default_rng(seed)
    embeddings = generator.normal(size=(size, features)).astype(np.float32)
    return embeddings, generator.integers(groups, size=size)


def cosines(embeddings):
    units = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    return units @ units.T


def total(loss, **options):
    return lambda *arguments: jnp.sum(loss(*arguments, **options))


# --- what they are --------------------------------------------------------------------------------


def test_supervised_contrast_is_softmax_cross_entropy_over_the_others():
    embeddings, labels = batch()
    losses = jaxent.supervised_contrastive_loss(embeddings, labels, temperature=0.3)
    others = ~np.eye(8, dtype=bool)
    alike = (labels[:, None] == labels) & others
    targets = alike / np.maximum(alike.sum(1, keepdims=True), 1)
    expected = jaxent.softmax_cross_entropy(
        (cosines(embeddings) / 0.3).astype(np.float32), targets.astype(np.float32), where=others
    )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_pairs_without_further_positives_are_one_loss():
    """With two of a kind, a positive competes with the negatives and itself in both losses."""
    embeddings, _ = batch()
    labels = np.arange(8) // 2
    mean = jnp.mean(jaxent.supervised_contrastive_loss(embeddings, labels, temperature=0.07))
    np.testing.assert_allclose(jaxent.ntxent(embeddings, labels), mean, rtol=2e-6)


def test_circle_loss_is_its_double_sum():
    embeddings, labels = batch()
    m, gamma = 0.4, 10.0
    s = cosines(embeddings.astype(np.float64))
    losses = jaxent.circle_loss(embeddings, labels, margin=m, gamma=gamma)
    for i, loss in enumerate(losses):
        negatives = s[i, labels != labels[i]]
        positives = s[i, (labels == labels[i]) & (np.arange(8) != i)]
        push = np.exp(gamma * np.maximum(negatives + m, 0) * (negatives - m))
        pull = np.exp(-gamma * np.maximum(1 + m - positives, 0) * (positives - 1 + m))
        np.testing.assert_allclose(loss, np.log1p(push.sum() * pull.sum()), rtol=1e-5)


def test_circle_loss_pushes_in_proportion_to_its_weights():
    """Along one negative: the slope is its share times gamma (s + m), not gamma 2 s."""
    m, gamma, s = 0.25, 20.0, 0.6
    turned = jnp.array([[1.0, 0.0], [1.0, 0.0], [s, np.sqrt(1 - s**2)]], jnp.float32)
    labels = jnp.array([0, 0, 1])

    def first(angle):
        moved = jnp.stack([jnp.cos(angle), jnp.sin(angle)])
        points = turned.at[2].set(moved)
        return jaxent.circle_loss(points, labels, margin=m, gamma=gamma)[0]

    angle = jnp.arccos(jnp.float32(s))
    loss, slope = jax.value_and_grad(first)(angle)
    share = -np.expm1(-loss)
    np.testing.assert_allclose(slope, -share * gamma * (s + m) * np.sin(angle), rtol=1e-5)


# --- where optax has no answer --------------------------------------------------------------------


@pytest.mark.thorough
def test_pairs_that_have_found_each_other_have_a_gradient():
    """With a temperature of 0.01 nothing is left of the negatives beside the positive."""
    generator = np.random.default_rng(0)
    pairs = np.repeat(generator.normal(size=(8, 64)), 2, axis=0)
    embeddings = (pairs + 0.1 * generator.normal(size=pairs.shape)).astype(np.float32)
    labels = jnp.arange(16) // 2
    loss, slope = jax.jit(jax.value_and_grad(jaxent.ntxent))(embeddings, labels, 0.01)
    with with_float64():
        ours = jax.jit(jax.value_and_grad(jaxent.ntxent))
        exact = ours(embeddings.astype(np.float64), labels, 0.01)
    np.testing.assert_allclose(loss, exact[0], rtol=1e-4)
    np.testing.assert_allclose(slope, exact[1], atol=1e-4 * np.abs(exact[1]).max())
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        gradient = jax.jit(jax.value_and_grad(optax.losses.ntxent))
        theirs = gradient(jnp.asarray(embeddings), labels, 0.01)
    assert theirs[0] == 0.0
    assert np.isnan(theirs[1]).all()


@pytest.mark.thorough(beyond=2)
@each_loss
def test_points_that_are_one_and_points_without_length(loss):
    labels = np.array([0, 0, 1, 1])
    for point in ([1.0, 2.0, 3.0], [0.0, 0.0, 0.0]):
        embeddings = jnp.asarray([point] * 4, jnp.float32)
        with jax.debug_nans(True):
            value, slope = jax.jit(jax.value_and_grad(total(loss)))(embeddings, labels)
        assert value > 0.0
        np.testing.assert_allclose(slope, 0.0, atol=1e-4 * value)


@pytest.mark.thorough(beyond=2)
@each_loss
def test_nobody_to_be_found(loss):
    embeddings, _ = batch()
    for size, labels in ((8, np.arange(8)), (1, np.zeros(1, int))):
        value, slope = jax.jit(jax.value_and_grad(total(loss)))(embeddings[:size], labels)
        assert value == 0.0
        assert not slope.any()


@pytest.mark.parametrize("loss", [jaxent.ntxent, jaxent.circle_loss])
def test_nobody_to_be_told_from(loss):
    embeddings, _ = batch()
    value, slope = jax.jit(jax.value_and_grad(total(loss)))(embeddings, np.zeros(8, int))
    assert value == 0.0
    assert not slope.any()


def test_a_loss_of_nearly_nothing_is_not_nothing():
    embeddings = jnp.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    labels = jnp.array([0, 0, 1, 1])
    expected = 2 * np.exp(-2 / 0.07)
    np.testing.assert_allclose(jaxent.ntxent(embeddings, labels), expected, rtol=1e-5)
    supervised = jaxent.supervised_contrastive_loss(embeddings, labels, temperature=0.07)
    np.testing.assert_allclose(supervised, expected, rtol=1e-5)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.thorough(beyond=1)
@each_loss
def test_a_masked_embedding_is_as_if_it_were_not_there(loss):
    embeddings, labels = batch()
    where = np.arange(8) % 4 != 1
    poisoned = np.where(where[:, None], embeddings, np.nan)
    losses = np.asarray(loss(poisoned, labels, where=where))
    kept = loss(embeddings[where], labels[where])
    if losses.ndim:
        assert not losses[~where].any()
        losses = losses[where]
    np.testing.assert_allclose(losses, kept, rtol=2e-6)
    slope = jax.jit(jax.grad(total(loss, where=where)))(poisoned, labels)
    assert not slope[~where].any()
    alone = jax.jit(jax.grad(total(loss)))(embeddings[where], labels[where])
    np.testing.assert_allclose(slope[where], alone, rtol=1e-4, atol=1e-5)


@each_loss
def test_labels_may_be_any_integers(loss):
    embeddings, labels = batch()
    expected = loss(embeddings, labels)
    ends = np.array([-(2**62), 2**62, -1])
    for names in (ends, np.array([7, 255, 0], np.uint8), jnp.array([-100, 3, 2**31 - 1])):
        np.testing.assert_array_equal(loss(embeddings, names[labels]), expected)
    np.testing.assert_array_equal(loss(embeddings, ends[labels].tolist()), expected)
    for refused in (labels.astype(np.float32), labels[:7], labels[:, None]):
        with pytest.raises(AssertionError, match=f"{loss.__name__}.*`labels`"):
            loss(embeddings, refused)
    for refused in (embeddings[0], embeddings[None], embeddings[:0], embeddings[:, :0]):
        with pytest.raises(AssertionError, match=f"{loss.__name__}.*`embeddings`"):
            loss(refused, labels)
    with pytest.raises(AssertionError, match=f"{loss.__name__}.*`where`"):
        loss(embeddings, labels, where=np.ones((8, 5), bool))


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize(
    ("loss", "option"),
    [
        (jaxent.ntxent, "temperature"),
        (jaxent.supervised_contrastive_loss, "temperature"),
        (jaxent.circle_loss, "gamma"),
        (jaxent.circle_loss, "margin"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_options_out_of_range(loss, option):
    embeddings, labels = batch()
    for value in (float("inf"), float("nan"), *(() if option == "margin" else (0, -0.1))):
        with pytest.raises(AssertionError, match=f"{loss.__name__}.*`{option}`"):
            loss(embeddings, labels, **{option: value})
        traced: Any = {option: jnp.float32(value)}
        assert np.isnan(loss(embeddings, labels, **traced)).all()
        assert np.isnan(jax.grad(total(loss, **traced))(embeddings, labels)).any(1).all()


def test_a_traced_scale_out_of_range_is_nan():
    embeddings, labels = batch()
    assert np.isnan(jaxent.circle_loss(embeddings, labels, gamma=jnp.float32(0.0))).all()


def test_the_temperature_can_be_learned():
    embeddings, labels = batch()

    def loss(temperature):
        return jaxent.ntxent(embeddings, labels, temperature)

    slope = jax.grad(loss)(jnp.float32(0.5))
    with with_float64():
        embeddings = embeddings.astype(np.float64)
        exact = [loss(jnp.float64(0.5 + step)) for step in (1e-6, -1e-6)]
        np.testing.assert_allclose(slope, (exact[0] - exact[1]) / 2e-6, rtol=1e-5)


@each_loss
def test_what_is_not_finite_is_loud_even_without_pairs(loss):
    embeddings = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, jnp.inf]])
    assert np.isnan(loss(embeddings, np.arange(3))).all()


def test_no_array_holds_the_features_of_every_pair():
    embeddings, labels = batch(6, 5)
    arguments = jnp.asarray(embeddings), jnp.asarray(labels)
    program = jax.jit(jax.grad(jaxent.ntxent)).lower(*arguments).compile()
    assert buffers(program, 6, 6)
    assert not buffers(program, 6, 6, 5)


# --- triplets -------------------------------------------------------------------------------------


def by_definition(anchors, positives, negatives, k=2.0, margin=1.0, eps=1e-6):
    def distance(x):
        return (jnp.sum(jnp.abs(x) ** k, -1) + eps) ** (1 / k)

    return jnp.maximum(distance(anchors - positives) - distance(anchors - negatives) + margin, 0)


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("degree", [1, 1.5, 2, 2.5, 4, 7])
def test_every_degree_by_its_definition(degree):
    points = np.random.default_rng(0).normal(size=(3, 20, 6)).astype(np.float32)
    ours = total(jaxent.triplet_margin_loss, norm_degree=degree)
    theirs = total(by_definition, k=degree)
    for of in (ours, jax.jit(ours)):
        np.testing.assert_allclose(of(*points), theirs(*points), rtol=1e-6)
    slopes = jax.jit(jax.grad(ours, (0, 1, 2)))(*points)
    for slope, expected in zip(slopes, jax.grad(theirs, (0, 1, 2))(*points), strict=True):
        np.testing.assert_allclose(slope, expected, atol=2e-6)


def test_odd_degrees_take_the_size_of_a_difference():
    """A power of the difference itself may be negative, and its root NaN: so it is in optax."""
    a, p, n = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.full((1, 2), 2.0)
    loss = jaxent.triplet_margin_loss(a, p, n, norm_degree=3, margin=3.0)
    np.testing.assert_allclose(loss, 2 ** (1 / 3) - 16 ** (1 / 3) + 3, rtol=1e-6)
    assert np.isnan(optax.losses.triplet_margin_loss(a, p, n, norm_degree=3, margin=3.0)).all()


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("degree", [1, 1.5, 2, 3])
def test_triplets_of_one_point_without_eps(degree):
    points: Any = [jnp.ones((2, 3)).at[0].set(0.0)] * 3
    loss: Any = functools.partial(
        jaxent.triplet_margin_loss, norm_degree=degree, eps=0.0, margin=0.5
    )
    with jax.debug_nans(True):
        np.testing.assert_array_equal(loss(*points), 0.5)
        slopes = jax.grad(total(loss), (0, 1, 2))(*points)
        bends = jax.jit(jax.hessian(total(loss), (0, 1, 2)))(*points)
    for each in jax.tree.leaves((slopes, bends)):
        assert not each.any()


def test_distances_of_every_size():
    a = jnp.zeros((4, 3))
    p = jnp.array([[3.0, 0.0, 4.0]]) * jnp.array([[1e37], [1e-30], [1.0], [1e25]])
    n = jnp.array([[0.0, 2.0, 0.0]]) * jnp.array([[1e37], [1e-30], [1.0], [1e25]])
    loss = functools.partial(jaxent.triplet_margin_loss, eps=0.0, margin=0.0)
    np.testing.assert_allclose(loss(a, p, n), [3e37, 3e-30, 3.0, 3e25], rtol=1e-6)
    slopes = jax.grad(total(loss), (1, 2))(a, p, n)
    np.testing.assert_allclose(slopes[0], np.tile([[0.6, 0.0, 0.8]], (4, 1)), rtol=1e-6)
    np.testing.assert_array_equal(slopes[1], np.tile([[0.0, -1.0, 0.0]], (4, 1)))
    anchor = jnp.full((1, 2), 3e38)
    np.testing.assert_array_equal(jaxent.triplet_margin_loss(anchor, -anchor, -anchor), 1.0)


def test_options_of_triplets():
    points: Any = [jnp.ones((2, 3))] * 3
    loss: Any = jaxent.triplet_margin_loss
    for option, values in {
        "norm_degree": (0.5, 0, -1, float("inf"), float("nan"), jnp.float32(2.0), "two"),
        "margin": (float("inf"), float("nan"), jnp.ones(3), jnp.ones((2, 1))),
        "eps": (-1e-9, float("inf"), jnp.ones(2)),
    }.items():
        for value in values:
            with pytest.raises(AssertionError, match=f"triplet_margin_loss.*`{option}`"):
                loss(*points, **{option: value})
    for option, value in (
        *(("margin", bad) for bad in (np.inf, -np.inf, np.nan)),
        *(("eps", bad) for bad in (-1.0, np.nan)),
    ):
        traced: Any = {option: jnp.float32(value)}
        assert np.isnan(loss(*points, **traced)).all()
        assert np.isnan(jax.grad(total(loss, **traced))(*points)).all()
    slope = jax.grad(lambda margin: jnp.sum(loss(*points, margin=margin)))(jnp.float32(0.3))
    np.testing.assert_allclose(slope, 2.0)


@pytest.mark.thorough
def test_a_margin_for_each_triplet():
    a, p, n = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    margin = np.array([1.0, 2.0, np.nan, 0.5], np.float32)
    where = np.arange(4) != 2
    loss = functools.partial(jaxent.triplet_margin_loss, a, p, n)
    expected = optax.losses.triplet_margin_loss(a, p, n, margin=margin)
    np.testing.assert_allclose(loss(margin=margin), expected, rtol=1e-6)
    np.testing.assert_allclose(
        loss(margin=margin, where=where), np.where(where, expected, 0), rtol=1e-6
    )
    for mask in (None, where):
        of_margins = total(lambda margin, mask=mask: loss(margin=margin, where=mask))
        slope = jax.grad(of_margins)(jnp.asarray(margin))
        missing = np.nan if mask is None else 0.0
        np.testing.assert_array_equal(slope, np.where(where, expected > 0, missing))


def test_booleans_are_two_labels():
    embeddings, _ = batch(6, 5)
    labels = np.array([True, False, True, True, False, False])
    for loss in (jaxent.ntxent, jaxent.supervised_contrastive_loss, jaxent.circle_loss):
        for given in (labels, jnp.asarray(labels)):
            np.testing.assert_array_equal(
                loss(embeddings, given), loss(embeddings, labels.astype(int))
            )
