"""Losses of images beside what the table holds: identities, edges, masks and refusals."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
import pytest

import jaxent
from conformance.case import with_float64
from conformance.segmentation import OPTAX_HAS_IT

SHAPE = (3, 4, 4, 5)


@pytest.fixture
def logits():
    return jnp.asarray(2 * np.random.default_rng(0).normal(size=SHAPE), jnp.float32)


@pytest.fixture
def labels():
    return jnp.asarray(np.random.default_rng(1).integers(SHAPE[-1], size=SHAPE[:-1]), jnp.int32)


@pytest.fixture
def targets(labels):
    return jax.nn.one_hot(labels, SHAPE[-1])


def close(actual, expected, rtol=2e-6):
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=1e-7)


def same(function, other, *arguments):
    """Two functions have one value and one gradient."""
    ours, theirs = (
        jax.jit(jax.value_and_grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), (0, 1)))(*arguments)
        for f in (function, other)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)


of_optax = pytest.mark.skipif(not OPTAX_HAS_IT, reason="an earlier optax, with another smoothing")


@pytest.mark.thorough(beyond=2)
@of_optax
@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "sum"},
        {"reduction": "none", "ignore_background": True},
        {"ignore_background": True, "smooth": 0.5},
        {"axis": (0, 1, 2)},
        {"axis": 1},
        {"axis": (-2, 1), "alpha": 0.2, "beta": 2.0},
        {"class_weights": np.array([1.0, 2.0, 0.0, 0.5, 3.0], np.float32), "reduction": "none"},
    ],
)
def test_options_of_dice_loss_are_those_of_optax(logits, targets, options):
    with jax.numpy_rank_promotion("allow"):
        same(
            lambda x, t: jaxent.dice_loss(x, t, **options),
            lambda x, t: optax.losses.dice_loss(x, t, **options),
            logits,
            targets,
        )


@of_optax
def test_ignored_background_of_the_generalized_loss_is_that_of_optax(logits, targets):
    with jax.numpy_rank_promotion("allow"):
        same(
            lambda x, t: jaxent.multiclass_generalized_dice_loss(x, t, ignore_background=True),
            lambda x, t: optax.losses.multiclass_generalized_dice_loss(
                x, t, ignore_background=True
            ),
            logits,
            targets,
        )


@pytest.mark.thorough
def test_what_optax_rounds_away():
    """Nearly perfect regions: optax returns 0, or less, and a gradient of noise."""
    targets = jnp.array([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    logits = 20.0 * (2 * targets - 1)
    loss, slope = jax.value_and_grad(lambda x: jaxent.dice_loss(x, targets)[0])(logits)
    wrong = np.exp(-40.0)
    # Each class has one of its sums from either side: FN and FP of one class add up to 3 wrongs.
    expected = np.mean([1.5 * wrong / 3, 1.5 * wrong / 2])
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    assert optax.losses.dice_loss(logits, targets)[0] <= 0.0
    assert (np.asarray(slope) * np.asarray(targets * 2 - 1) < 0).all()


def test_forms_of_one_region_agree(logits):
    x = logits[..., 0]
    marks = x > 0.3
    expected = jaxent.binary_dice_loss(x, marks)
    pairs = itertools.product((x, x[..., None]), (marks, marks[..., None]))
    for predictions, targets in pairs:
        close(jaxent.binary_dice_loss(predictions, targets), expected)
        if predictions.ndim == 4 or targets.ndim == 4:
            close(jaxent.dice_loss(predictions, targets), expected)
    shares = jax.nn.sigmoid(x)
    close(jaxent.binary_dice_loss(shares, marks, apply_sigmoid=False), expected)
    close(jaxent.tversky_loss(x[..., None], marks, alpha=0.5, beta=0.5), expected)
    for dtype in (jnp.int32, jnp.uint8, jnp.bfloat16, jnp.float32):
        close(jaxent.binary_dice_loss(x, marks.astype(dtype)), expected)


def test_probabilities_agree_with_logits(logits, targets):
    close(
        jaxent.dice_loss(jax.nn.softmax(logits), targets, apply_softmax=False),
        jaxent.dice_loss(logits, targets),
    )


def test_what_is_no_distribution_is_nan_under_jit(logits, targets):
    shares = jax.nn.softmax(logits)
    loss = jax.jit(lambda p: jaxent.dice_loss(p, targets, apply_softmax=False))
    bad = shares.at[0, 0, 0, 0].add(1e-3).at[1, 0, 0].set(jnp.array([-0.5, 1.5, 0.0, 0.0, 0.0]))
    np.testing.assert_array_equal(np.isnan(loss(bad)), [True, True, False])
    slope = jax.grad(lambda p: jnp.sum(loss(p)))(bad)
    np.testing.assert_array_equal(np.isnan(slope).any((1, 2, 3)), [True, True, False])
    assert np.isfinite(loss(shares.at[0, 0, 0, 0].add(5e-6))).all()
    assert np.isfinite(loss(shares.astype(jnp.bfloat16))).all()
    one = jnp.array([[0.5, 1.2], [0.5, 0.2]])
    losses = jaxent.binary_dice_loss(one, jnp.ones((2, 2)), apply_sigmoid=False)
    np.testing.assert_array_equal(np.isnan(losses), [True, False])


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("bad", [-1e-3, 1.001, -1.0, 2.0, np.inf])
def test_targets_that_are_no_shares_are_nan_for_their_image(logits, targets, bad):
    given = targets.at[1, 2, 3, 0].set(bad)
    losses = jaxent.dice_loss(logits, given, ignore_background=True)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, False])
    assert np.isnan(jaxent.multiclass_generalized_dice_loss(logits, given))
    where = jnp.ones(SHAPE[:-1], bool).at[1, 2, 3].set(False)
    assert np.isfinite(jaxent.dice_loss(logits, given, where=where)).all()


@pytest.mark.thorough
def test_nothing_predicted_and_nothing_there_costs_nothing():
    logits, targets = jnp.full((1, 4), -jnp.inf), jnp.zeros((1, 4))

    def loss(x):
        return jnp.sum(jaxent.binary_dice_loss(x, targets, smooth=0.0))

    with jax.debug_nans(True):
        assert loss(logits) == 0.0
        np.testing.assert_array_equal(jax.grad(loss)(logits), 0.0)
        np.testing.assert_array_equal(jax.hessian(loss)(logits), 0.0)
    # Next to nothing, where nothing is there, is all wrong.
    assert loss(jnp.full((1, 4), -80.0)) == 1.0


@pytest.mark.thorough
def test_masked_pixels_are_as_if_they_were_not_there(logits, targets):
    kept = np.array([0, 2, 3])
    where = jnp.zeros(SHAPE[1], bool).at[kept].set(True)[None, :, None]
    for loss in (jaxent.dice_loss, jaxent.multiclass_generalized_dice_loss, jaxent.tversky_loss):
        expected = loss(logits[:, kept], targets[:, kept])
        close(loss(logits, targets, where=where), expected)
        close(loss(logits, targets, where=where[..., None]), expected)


def test_masked_classes_are_as_if_they_were_not_there(logits, targets):
    kept = np.array([0, 1, 3])
    exists = jnp.zeros(SHAPE[-1], bool).at[kept].set(True)
    targets = jnp.where(exists[None, None, None], targets, 0.0)
    for loss in (jaxent.dice_loss, jaxent.multiclass_generalized_dice_loss):
        expected = loss(logits[..., kept], targets[..., kept])
        close(loss(logits, targets, where=exists[None, None, None]), expected)


@pytest.mark.thorough
def test_masked_classes_have_no_derivatives_in_the_generalized_weights(logits, targets):
    exists = jnp.arange(SHAPE[-1])[None, None, None] != 2

    def loss(targets, where):
        return jaxent.multiclass_generalized_dice_loss(logits[:1, :1, :1], targets, where=where)

    targets = targets[:1, :1, :1] / 2
    with jax.debug_nans(True):
        hessian = jax.jit(jax.jacfwd(jax.jacfwd(loss)))(targets, exists)
        assert jax.jit(loss)(targets, exists & False) == 0.0
    assert not hessian[..., 2, :, :, :, :].any()
    assert not hessian[..., 2].any()
    assert jnp.isfinite(hessian).all()
    assert hessian.any()


def test_images_that_do_not_count_are_not_in_the_generalized_mean(logits, targets):
    where = jnp.array([True, False, True])[:, None, None]
    close(
        jaxent.multiclass_generalized_dice_loss(logits, targets, where=where),
        jaxent.multiclass_generalized_dice_loss(logits[::2], targets[::2]),
    )


def test_an_absent_class_has_all_of_the_generalized_weight():
    targets = jnp.tile(jnp.array([1.0, 0.0]), (1, 6, 1))
    logits = jnp.zeros((1, 6, 2))
    absent = jaxent.dice_loss(logits, targets, reduction="none")[0, 1]
    close(jaxent.multiclass_generalized_dice_loss(logits, targets), absent)


def test_large_images_keep_their_digits():
    generator = np.random.default_rng(3)
    x = generator.normal(size=(1, 640, 520)).astype(np.float32)
    marks = generator.random(x.shape) < 0.2
    with with_float64():
        expected = jaxent.binary_dice_loss(x.astype(np.float64), marks)
        np.testing.assert_allclose(jaxent.binary_dice_loss(x, marks), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("option", "improper"),
    [("smooth", -1.0), ("alpha", -0.1), ("beta", np.nan), ("gamma", 0.0), ("gamma", -1.0)],
)
def test_improper_numbers_are_refused_or_nan(logits, targets, option, improper):
    with pytest.raises(AssertionError, match=option):
        jaxent.tversky_loss(logits, targets, **{option: improper})
    where = jnp.array([True, False, True])[:, None, None]
    losses = jax.jit(lambda v: jaxent.tversky_loss(logits, targets, where=where, **{option: v}))(
        jnp.float32(improper)
    )
    np.testing.assert_array_equal(np.isnan(losses), [True, False, True])
    assert losses[1] == 0.0


def test_bad_class_weights_are_nan(logits, targets):
    weights = jnp.ones(5).at[2].set(-1.0)
    assert np.isnan(jaxent.dice_loss(logits, targets, class_weights=weights)).all()


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"axis": 3}, "axis"),
        ({"axis": -1}, "axis"),
        ({"axis": (1, 1)}, "axis"),
        ({"axis": 1.0}, "axis"),
        ({"reduction": "max"}, "reduction"),
        ({"class_weights": np.ones(4)}, "class_weights"),
        ({"smooth": np.inf}, "smooth"),
        ({"where": np.ones(SHAPE, np.float32)}, "where"),
        ({"where": np.ones(SHAPE[1:-1], bool)}, "where"),
        ({"where": np.ones((3, 4, 5), bool)}, "where"),
    ],
)
def test_what_does_not_fit_is_refused(logits, targets, keywords, named):
    with pytest.raises(AssertionError, match=rf"dice_loss.*`{named}`"):
        jaxent.dice_loss(logits, targets, **keywords)


def test_class_indices_are_refused_with_the_remedy(logits, labels):
    with pytest.raises(AssertionError, match="one_hot"):
        jaxent.dice_loss(logits, labels)


# Lovász extensions.


def by_definition(errors, is_true):
    """The extension as the paper writes it, with the Jaccard index of each set."""
    order = np.argsort(-errors, kind="stable")
    true = is_true[order].astype(float)
    jaccard = 1 - (true.sum() - true.cumsum()) / (true.sum() + (1 - true).cumsum())
    return np.sum(errors[order] * np.diff(jaccard, prepend=0.0))


def test_lovasz_losses_are_the_papers(logits, labels):
    x, marks = np.asarray(logits[..., 0], np.float64), np.asarray(labels < 2)
    errors = np.maximum(1 - (2 * marks - 1) * x, 0)
    pairs = zip(errors.reshape(3, -1), marks.reshape(3, -1), strict=True)
    expected = [by_definition(*pair) for pair in pairs]
    close(jaxent.lovasz_hinge(logits[..., 0], marks), expected)
    p = np.asarray(jax.nn.softmax(logits.reshape(3, -1, 5)), np.float64)
    few = jnp.minimum(labels, 2)
    true = np.asarray(few).reshape(3, -1, 1) == np.arange(5)
    each = [
        [by_definition(np.abs(t - q)[:, c], t[:, c]) for c in range(5)]
        for t, q in zip(true, p, strict=True)
    ]
    close(jaxent.lovasz_softmax(logits, few, classes="all"), np.mean(each, axis=1))
    close(jaxent.lovasz_softmax(logits, few), np.mean(np.array(each)[:, :3], axis=1))
    moved = jnp.moveaxis(logits, -1, 1)
    close(jaxent.lovasz_softmax(moved, few, 1), jaxent.lovasz_softmax(logits, few))


def test_lovasz_softmax_of_hard_predictions_is_the_jaccard_loss(labels):
    predicted = jnp.roll(labels, 1, axis=1)
    hard = jnp.where(jax.nn.one_hot(predicted, 5) > 0, 0.0, -jnp.inf)
    both = [(predicted == c, labels == c) for c in range(5)]
    jaccard = [1 - jnp.sum(a & b, (1, 2)) / jnp.sum(a | b, (1, 2)) for a, b in both]
    close(jaxent.lovasz_softmax(hard, labels), np.mean(jaccard, axis=0))


def test_the_order_of_equal_errors_does_not_matter(labels):
    logits = jnp.round(jnp.linspace(-2, 2, labels.size)).reshape(3, -1)
    marks = (labels < 2).reshape(3, -1)
    mixed = np.random.default_rng(4).permutation(logits.shape[1])
    close(
        jaxent.lovasz_hinge(logits[:, mixed], marks[:, mixed]), jaxent.lovasz_hinge(logits, marks)
    )


def test_lovasz_hinge_bounds_the_jaccard_loss_and_takes_infinite_logits():
    logits = jnp.array([[jnp.inf, -jnp.inf, 2.0], [-jnp.inf, jnp.inf, jnp.inf], [3.0, -3.0, 0.5]])
    labels = jnp.array([[1, 0, 1], [1, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(jaxent.lovasz_hinge(logits, labels), [0.0, np.inf, 4.0])


def test_masked_pixels_do_not_count_for_lovasz(logits, labels):
    kept = np.array([1, 2])
    where = jnp.zeros(4, bool).at[kept].set(True)[None, :, None]
    poisoned = jnp.where(where, labels, -100)
    close(
        jaxent.lovasz_softmax(logits, poisoned, where=where),
        jaxent.lovasz_softmax(logits[:, kept], labels[:, kept]),
    )
    x, marks = jnp.where(where, logits[..., 0], jnp.nan), (labels < 2).astype(int)
    close(
        jaxent.lovasz_hinge(x, jnp.where(where, marks, 7), where=where),
        jaxent.lovasz_hinge(x[:, kept], marks[:, kept]),
    )


def test_bad_labels_are_nan_for_their_image(logits, labels):
    bad = labels.at[1, 0, 0].set(5)
    np.testing.assert_array_equal(
        np.isnan(jaxent.lovasz_softmax(logits, bad)), [False, True, False]
    )
    slopes = jax.grad(lambda x: jnp.sum(jaxent.lovasz_hinge(x, labels.at[0].set(2))))(
        logits[..., 0].at[:, 0, 0].set(9.0)
    )
    assert np.isnan(slopes[0]).any()


@pytest.mark.parametrize("shape", [(2,), (1, 1), (3, 4, 7)])
def test_lovasz_refuses_a_mask_of_another_shape(shape):
    logits, labels = jnp.zeros((3, 4, 5)), jnp.zeros((3, 4, 5), int)
    with pytest.raises(jaxent.ArgumentError, match="`where`"):
        jaxent.lovasz_hinge(logits, labels, where=jnp.ones(shape, bool))


def test_lovasz_refuses_what_has_no_images(logits, labels):
    for call in (
        lambda: jaxent.lovasz_hinge(logits[0, 0, :, 0], labels[0, 0]),
        lambda: jaxent.lovasz_softmax(logits[0, 0], labels[0, 0]),
        lambda: jaxent.lovasz_softmax(logits[..., 0], labels[0], axis=0),
    ):
        with pytest.raises(AssertionError, match="logits"):
            call()
    no_choice: Any = "some"
    with pytest.raises(AssertionError, match="classes"):
        jaxent.lovasz_softmax(logits, labels, classes=no_choice)
