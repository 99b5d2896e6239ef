"""CTC: what the contract table does not say about sequences, labels, paddings and alignments."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from mpmath import mp

import jaxent
from conformance import ctc, oracle

FUNCTIONS = (jaxent.ctc_loss, jaxent.ctc_loss_with_forward_probs)


def batch(frames, labels, classes=6, size=4, seed=0):
    """Sequences of several lengths, padded on the right as optax wants it."""
    generator = np.random.default_rng(seed)
    logits = 2 * generator.normal(size=(size, frames, classes)).astype(np.float32)
    lengths = generator.integers(2 * labels, frames + 1, size=size)
    counts = generator.integers(0, labels + 1, size=size)
    return (
        jnp.asarray(logits),
        jnp.asarray(np.arange(frames) >= lengths[:, None], jnp.float32),
        jnp.asarray(generator.integers(1, classes, size=(size, labels)), jnp.int32),
        jnp.asarray(np.arange(labels) >= counts[:, None], jnp.float32),
    )


def of_one(logits, labels, **options):
    """The loss of one sequence without padding."""
    logits, labels = jnp.asarray(logits, jnp.float32)[None], jnp.asarray(labels, jnp.int32)[None]
    no_frame, no_label = jnp.zeros(logits.shape[:2], bool), jnp.zeros(labels.shape, bool)
    return jaxent.ctc_loss(logits, no_frame, labels, no_label, **options)[0]


@functools.partial(jax.jit, static_argnums=0)
def losses_and_slopes(loss, logits, *rest):
    def total(logits):
        losses = loss(logits, *rest)
        return jnp.sum(losses), losses

    slopes, losses = jax.grad(total, has_aux=True)(logits)
    return losses, slopes


# --- the numbers ----------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(("frames", "classes"), [(36, 6), (37, 6), (37, 600)])
def test_agrees_with_optax(frames, classes):
    """With frames that make no whole number of segments, and with few classes or many."""
    arguments = batch(frames, 8, classes=classes)
    losses, slopes = losses_and_slopes(jaxent.ctc_loss, *arguments)
    expected, expected_slopes = losses_and_slopes(optax.ctc_loss, *arguments)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(slopes, expected_slopes, atol=1e-4)


@pytest.mark.thorough
def test_is_exact_over_fifty_frames():
    generator = np.random.default_rng(3)
    labels = [1, 1, 2, 3, 2, 2, 1, 3]
    sure = np.repeat([1, 0, 1, 2, 3, 2, 0, 2, 1, 3], 5)
    plain = generator.normal(size=(50, 4))
    cases = {
        "plain": plain,
        "wide": 20 * plain,
        "sure": plain + 30 * np.eye(4)[sure],
        "nearly sure": plain + 9 * np.eye(4)[sure],
    }
    slope = jax.jit(jax.value_and_grad(lambda logits: of_one(logits, labels)))
    for name, logits in cases.items():
        logits = logits.astype(np.float32)
        with mp.workdps(60):
            probs = [oracle.softmax(row)[0] for row in oracle.exact(logits)]
            truth, expected = ctc.forward_backward(probs, labels, 0)
            size = np.abs(probs) + np.abs(np.subtract(probs, expected))
        value, gradient = slope(logits)
        assert oracle.ulps(value, truth, np.float32) <= 8, name
        assert np.max(oracle.scaled_ulps(gradient, expected, size, np.float32)) <= 64, name


def test_the_two_truths_agree():
    """Writing down every alignment, and the sweep over the states by Graves et al."""
    logits = oracle.exact(np.random.default_rng(0).normal(size=(4, 3)))
    probs = [oracle.softmax(row)[0] for row in logits]
    for labels in ([], [1], [2, 1], [1, 1], [2, 2, 1]):
        value, slopes, _ = ctc.enumerated(probs, labels, 0)
        other, other_slopes = ctc.forward_backward(probs, labels, 0)
        np.testing.assert_allclose(float(value), float(other), rtol=1e-12)
        np.testing.assert_allclose(
            np.array(slopes, float), np.array(other_slopes, float), atol=1e-12
        )


def test_a_sure_frame_keeps_its_loss():
    value, slope = jax.jit(jax.value_and_grad(lambda logits: of_one(logits, [1])))(
        jnp.asarray([[0.0, 20.0, 0.0]])
    )
    np.testing.assert_allclose(value, 4.1223074e-9, rtol=1e-6)
    np.testing.assert_allclose(slope, [[2.0611537e-9, -4.1223074e-9, 2.0611537e-9]], rtol=1e-6)


@pytest.mark.thorough
def test_is_never_negative_where_optax_is():
    """Many sure frames, whose probabilities round to more than 1 (optax #1771)."""
    true = np.tile([1, 0, 2, 0], 50)
    margins = np.linspace(9, 18, 40)[:, None, None]
    logits = jnp.asarray(np.eye(3)[true][None] * margins, jnp.float32)
    labels = jnp.tile(jnp.asarray([1, 2], jnp.int32), (40, 50))
    arguments = logits, jnp.zeros((40, 200)), labels, jnp.zeros((40, 100))
    losses = np.asarray(jax.jit(jaxent.ctc_loss)(*arguments))
    assert (losses > 0).all()
    assert (np.diff(losses) < 0).all()
    assert (np.asarray(jax.jit(optax.ctc_loss)(*arguments)) <= 0).any()


@pytest.mark.thorough
def test_second_derivatives_across_stored_frames():
    logits, *rest = batch(37, 3, size=2)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=logits.shape), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def bend(loss, logits):
        def slope(logits):
            return jax.grad(lambda x: jnp.sum(loss(x, *rest)))(logits)

        return jax.jvp(slope, (logits,), (direction,))[1]

    expected = bend(optax.ctc_loss, logits)
    np.testing.assert_allclose(bend(jaxent.ctc_loss, logits), expected, atol=3e-5)


# --- alignments that cannot be --------------------------------------------------------------------


@pytest.mark.thorough
def test_too_few_frames_cost_infinity_without_a_gradient():
    """One frame less than the labels take, and just as many."""
    labels = jnp.array([[1, 2, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 2, 2]])
    pads, needed = labels == 0, np.array([2, 3, 1, 6])
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 3)), jnp.float32)
    for missing in (0, 1):
        frames = jnp.asarray(np.arange(6) >= needed[:, None] - missing)
        with jax.debug_nans(True):
            losses, slopes = losses_and_slopes(jaxent.ctc_loss, logits, frames, labels, pads)
        assert (np.isposinf(losses) if missing else np.isfinite(losses)).all()
        np.testing.assert_array_equal(np.any(slopes, axis=(1, 2)), not missing)


@pytest.mark.thorough
def test_impossible_classes():
    """No blank, and so no repeat."""
    logits = jnp.zeros((2, 3, 3)).at[..., 0].set(-jnp.inf)
    arguments = jnp.zeros((2, 3)), jnp.array([[1, 2], [1, 1]]), jnp.zeros((2, 2))
    with jax.debug_nans(True):
        losses, slopes = losses_and_slopes(jaxent.ctc_loss, logits, *arguments)
    np.testing.assert_allclose(losses, [-np.log(2 / 8), np.inf], rtol=1e-6)
    np.testing.assert_array_equal(slopes[..., 0], 0.0)
    np.testing.assert_array_equal(slopes[1], 0.0)


@pytest.mark.thorough
def test_a_loss_beyond_the_range_is_infinite():
    logits = jnp.asarray([[[1.5e38, -1.5e38]] * 2, [[3e38, -3e38]] * 2], jnp.float32)
    arguments = jnp.array([[0, 1], [0, 0]]), jnp.array([[1], [1]]), jnp.zeros((2, 1))
    with jax.debug_nans(True):
        losses, slopes = losses_and_slopes(jaxent.ctc_loss, logits, *arguments)
    np.testing.assert_allclose(losses, [3e38, np.inf], rtol=1e-6)
    np.testing.assert_array_equal(slopes, [[[1.0, -1.0], [0.0, 0.0]], np.zeros((2, 2))])


@pytest.mark.thorough
def test_nothing_costs_nothing():
    assert of_one(np.zeros((0, 3)), []) == 0.0
    assert of_one(np.zeros((5, 1)), []) == 0.0  # a blank is all there can be
    nothing = jnp.zeros((0, 4, 3)), jnp.zeros((0, 4)), jnp.zeros((0, 2), int), jnp.zeros((0, 2))
    assert [result.shape for result in jaxent.ctc_loss_with_forward_probs(*nothing)] == [
        (0,),
        (4, 0, 3),
        (4, 0, 2),
    ]
    assert jax.grad(lambda x: jnp.sum(jaxent.ctc_loss(x, *nothing[1:])))(nothing[0]).size == 0
    short = jnp.zeros((2, 0, 3)), jnp.zeros((2, 0)), jnp.ones((2, 1), int), jnp.array([[0], [1]])
    losses, blank, label = jaxent.ctc_loss_with_forward_probs(*short)
    np.testing.assert_array_equal(losses, [np.inf, 0.0])
    assert (blank.shape, label.shape) == ((0, 2, 2), (0, 2, 1))


# --- paddings and labels --------------------------------------------------------------------------


@pytest.mark.thorough
def test_padding_of_any_dtype_at_any_place():
    generator = np.random.default_rng(4)
    logits = generator.normal(size=(1, 6, 4)).astype(np.float32)
    labels = np.array([[1, 1, 3]], np.int32)
    alone = (logits, np.zeros((1, 6)), labels, np.zeros((1, 3)))
    expected = losses_and_slopes(jaxent.ctc_loss, *alone)
    forward = jaxent.ctc_loss_with_forward_probs(*alone)
    frames, places = [1, 2, 4, 5, 7, 8], [1, 3, 4]  # of nine, and of six
    wide = np.full((1, 9, 4), np.nan, np.float32)
    wide[:, 3] = np.inf
    wide[:, frames] = logits
    given = np.array([[-100, 0, 99, 0, 0, 0]], np.int32)
    given[:, places] = labels
    frame_pads, label_pads = np.ones((1, 9)), np.ones((1, 6))
    frame_pads[:, frames], label_pads[:, places] = 0, 0
    padded = (wide, frame_pads.astype(bool), given, label_pads.astype(bool))
    losses, slopes = losses_and_slopes(jaxent.ctc_loss, *padded)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    np.testing.assert_allclose(slopes[:, frames], expected[1], atol=1e-6)
    assert not np.delete(slopes, frames, axis=1).any()
    for dtype in (np.int8, np.float16):
        same = jaxent.ctc_loss(wide, frame_pads.astype(dtype), given, label_pads.astype(dtype))
        np.testing.assert_allclose(same, losses, rtol=1e-6)
    _, blank, label = jaxent.ctc_loss_with_forward_probs(*padded)
    np.testing.assert_allclose(blank[frames[:-1], :, :4], forward[1][:-1], rtol=1e-5)
    np.testing.assert_allclose(label[frames, :, :3], forward[2], rtol=1e-5)
    np.testing.assert_array_equal(label[3], label[2])  # a padded frame repeats what was
    np.testing.assert_array_equal(np.exp(blank[0, 0]), np.eye(7)[0])
    assert np.isneginf(label[..., 3:]).all()


@pytest.mark.thorough
def test_bad_labels_and_paddings_are_loud():
    logits, frames, labels, pads = batch(8, 3, size=6)
    pads = jnp.zeros_like(pads)
    bad = labels.at[1, 0].set(-1).at[2, 1].set(6).at[3, 2].set(0).at[4, 0].set(-100)
    nan = np.array([False, True, True, True, True, False])
    losses, slopes = losses_and_slopes(jaxent.ctc_loss, logits, frames, bad, pads)
    np.testing.assert_array_equal(np.isnan(losses), nan)
    np.testing.assert_array_equal(np.isnan(slopes).any((1, 2)), nan)
    where = jnp.asarray(~nan)
    masked = jaxent.ctc_loss(logits, frames, bad, pads, where=where)
    np.testing.assert_allclose(masked, np.where(nan, 0.0, losses), rtol=1e-6)
    for result in jaxent.ctc_loss_with_forward_probs(logits, frames, bad, pads)[1:]:
        np.testing.assert_array_equal(np.isnan(result).all((0, 2)), nan)
    for value in (0.5, 2.0, -1.0, np.nan):
        for position in (1, 3):
            arguments = [logits, frames, labels, pads]
            arguments[position] = arguments[position].at[2, 0].set(value)
            found = np.isnan(jaxent.ctc_loss(*arguments))
            np.testing.assert_array_equal(found, np.arange(6) == 2)


@pytest.mark.thorough
def test_blank_may_be_any_class_and_log_epsilon_nothing():
    logits, frames, labels, pads = batch(8, 2)
    expected = jaxent.ctc_loss(logits, frames, labels, pads)
    moved = jnp.roll(logits, -1, axis=-1)
    options = {"blank_id": 5, "log_epsilon": -3.0}
    result = jaxent.ctc_loss(moved, frames, labels - 1, pads, **options)
    np.testing.assert_allclose(result, expected, rtol=1e-6)


# --- forward probabilities ------------------------------------------------------------------------


@pytest.mark.thorough
def test_forward_probabilities_are_those_of_optax():
    logits, frames, labels, pads = batch(9, 3)
    pads = jnp.zeros_like(pads)  # what optax puts behind the labels is of no meaning

    def by(function):
        def total(logits):
            _, blank, label = function(logits, frames, labels, pads)
            # Weights, and nothing of what is impossible.
            terms = (jnp.where(each > -1e4, each, 0.0) for each in (blank, label))
            return sum(jnp.sum(jnp.sin(1.0 + jnp.arange(float(t.size))) * t.ravel()) for t in terms)

        return function(logits, frames, labels, pads), jax.grad(total)(logits)

    ours, slope = by(jaxent.ctc_loss_with_forward_probs)
    theirs, their_slope = by(optax.ctc_loss_with_forward_probs)
    for mine, their in zip(ours, theirs, strict=True):
        assert mine.shape == their.shape
        possible = their > -1e4
        np.testing.assert_allclose(mine[possible], their[possible], rtol=1e-5)
        np.testing.assert_array_equal(mine[~possible], -np.inf)
    np.testing.assert_allclose(slope, their_slope, rtol=1e-3, atol=1e-4)


@pytest.mark.thorough
def test_forward_probabilities_are_at_most_one():
    logits = jnp.zeros((1, 30, 3)).at[..., 0].set(12.0)
    labels = jnp.ones((1, 1), jnp.int32)
    results = jaxent.ctc_loss_with_forward_probs(
        logits, jnp.zeros((1, 30)), labels, jnp.zeros((1, 1))
    )
    assert all((result <= 0).all() for result in results[1:])
    masked = jaxent.ctc_loss_with_forward_probs(
        logits * jnp.nan, jnp.ones((1, 30)), labels, jnp.zeros((1, 1)), where=jnp.array([False])
    )
    assert not any(result.any() for result in masked)


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_refuses_what_does_not_fit(function):
    good = {
        "logits": jnp.zeros((2, 5, 4)),
        "logit_paddings": jnp.zeros((2, 5)),
        "labels": jnp.ones((2, 3), jnp.int32),
        "label_paddings": jnp.zeros((2, 3)),
    }
    for name, bad in (
        ("logits", jnp.zeros((5, 4))),
        ("logits", jnp.zeros((2, 5, 0))),
        ("logits", jnp.zeros((2, 5, 4), int)),
        ("logit_paddings", jnp.zeros((2, 4))),
        ("logit_paddings", jnp.zeros((1, 5))),
        ("labels", jnp.ones((3,), jnp.int32)),
        ("labels", jnp.ones((3, 3), jnp.int32)),
        ("labels", jnp.ones((2, 3))),
        ("label_paddings", jnp.zeros((2, 4))),
        ("blank_id", 4),
        ("blank_id", -1),
        ("blank_id", 0.0),
        ("where", jnp.ones((2, 5), bool)),
        ("where", jnp.ones((2,))),
    ):
        with pytest.raises(AssertionError, match=rf"{function.__name__}: .*`{name}`"):
            function(**{**good, name: bad})
