"""jaxent.make_fenchel_young_loss: optax's meaning, the contract's manners."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax.losses
import pytest

import jaxent

# It has more signatures than optax's type of such a function allows.
logsumexp: Any = jax.scipy.special.logsumexp


def scores_and_targets(shape=(4, 5), dtype=np.float32):
    generator = np.random.default_rng(0)
    scores = generator.normal(size=shape).astype(dtype)
    return scores, generator.dirichlet(np.ones(shape[-1]), size=shape[:-1]).astype(dtype)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize("shape", [(5,), (4, 5), (2, 3, 5), (0, 5)])
def test_it_is_the_loss_of_optax(shape):
    scores, targets = scores_and_targets(shape)
    ours = jaxent.make_fenchel_young_loss(logsumexp)
    theirs = optax.losses.make_fenchel_young_loss(logsumexp)
    assert ours(scores, targets).shape == shape[:-1]
    np.testing.assert_allclose(ours(scores, targets), theirs(scores, targets), rtol=1e-5)
    slopes = (jax.grad(lambda *a: jnp.sum(loss(*a)), (0, 1)) for loss in (ours, theirs))  # noqa: B023
    for a, b in zip(*(slope(scores, targets) for slope in slopes), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_its_special_cases_are_exact_losses():
    scores, targets = scores_and_targets()
    labels = np.array([0, 3, 4, 1])
    of_logsumexp = jaxent.make_fenchel_young_loss(logsumexp)
    np.testing.assert_allclose(
        of_logsumexp(scores, targets), jaxent.softmax_cross_entropy(scores, targets), rtol=1e-5
    )
    # The loss of the other, at class 0, plus the score of that class is its maximum.
    of_sparsemax = jaxent.make_fenchel_young_loss(
        lambda row: jaxent.multiclass_sparsemax_loss(row, 0) + row[0]
    )
    np.testing.assert_allclose(
        of_sparsemax(scores, jax.nn.one_hot(labels, 5)),
        jaxent.multiclass_sparsemax_loss(scores, labels),
        rtol=1e-5,
    )


def test_axes_of_size_1_are_those_of_every_example():
    scores, targets = scores_and_targets()
    loss = jaxent.make_fenchel_young_loss(logsumexp)
    theirs = optax.losses.make_fenchel_young_loss(logsumexp)
    for given in ((scores, targets[:1]), (scores[:1], targets)):
        np.testing.assert_allclose(loss(*given), theirs(*given), rtol=1e-5)


def test_impossible_classes_count_only_against_their_targets():
    """A product of 0 and -inf is NaN, in optax as well."""
    scores, targets = jnp.array([0.0, -jnp.inf, 1.0]), jnp.array([0.25, 0.0, 0.75])
    loss = jaxent.make_fenchel_young_loss(logsumexp)
    kept = np.array([0, 2])
    with jax.debug_nans(True):
        value, slopes = jax.value_and_grad(loss, (0, 1))(scores, targets)
        expected = jax.value_and_grad(loss, (0, 1))(scores[kept], targets[kept])
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    for slope, of_kept in zip(slopes, expected[1], strict=True):
        np.testing.assert_allclose(slope[kept], of_kept, rtol=1e-6)
        assert slope[1] == 0.0
    assert loss(scores, jnp.array([0.25, 0.75, 0.0])) == jnp.inf


def test_other_arguments_go_to_the_function():
    """In optax positional ones fail: its function is vectorised over one argument alone."""

    def max_fun(row, temperature, *, power=1):
        return temperature * logsumexp(row / temperature) ** power

    scores, targets = scores_and_targets()
    loss = jaxent.make_fenchel_young_loss(max_fun)
    expected = 2.0 * jaxent.softmax_cross_entropy(scores / 2.0, targets)
    np.testing.assert_allclose(loss(scores, targets, 2.0), expected, rtol=1e-5)
    squared = 2.0 * jax.nn.logsumexp(scores / 2.0, axis=-1) ** 2 - np.sum(scores * targets, -1)
    np.testing.assert_allclose(loss(scores, targets, 2.0, power=2), squared, rtol=1e-5)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16])
def test_half_precision_is_computed_in_float32(dtype):
    scores, targets = scores_and_targets(dtype=dtype)
    loss = jaxent.make_fenchel_young_loss(logsumexp)
    result = loss(scores, targets)
    assert result.dtype == np.float32
    high = loss(scores.astype(np.float32), targets.astype(np.float32))
    np.testing.assert_array_equal(result, high)
    slope = jax.grad(lambda scores: jnp.sum(loss(scores, targets)))(jnp.asarray(scores))
    assert slope.dtype == dtype


@pytest.mark.thorough
def test_integer_targets_and_transformations():
    scores, _ = scores_and_targets()
    targets = np.eye(5, dtype=np.int32)[:4]
    loss = jaxent.make_fenchel_young_loss(logsumexp)
    expected = loss(scores, targets)
    np.testing.assert_allclose(jax.jit(loss)(scores, targets), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(loss)(scores, targets), expected, rtol=1e-6)
    hessian = jax.hessian(lambda row: loss(row, targets[0]))(scores[0])
    p = jax.nn.softmax(scores[0])
    np.testing.assert_allclose(hessian, np.diag(p) - np.outer(p, p), atol=1e-6)


@pytest.mark.parametrize(
    ("scores", "targets", "word"),
    [
        (np.zeros((4, 5), np.int32), np.zeros((4, 5)), "scores"),
        (np.zeros((4, 5), np.float32), np.zeros((4, 1), np.float32), "targets"),
        (np.zeros((4, 5), np.float32), np.zeros(5, np.float32), "targets"),
        (np.zeros((4, 5), np.float32), np.zeros(4, np.int32), "one_hot"),
        (np.zeros((), np.float32), np.zeros((), np.float32), "one rank"),
        (np.zeros((4, 5), np.float32), np.zeros((4, 5), np.complex64), "targets"),
    ],
)
def test_what_does_not_fit_is_refused(scores, targets, word):
    loss = jaxent.make_fenchel_young_loss(logsumexp)
    with pytest.raises(AssertionError, match=rf"make_fenchel_young_loss.*\b{word}\b"):
        jax.eval_shape(loss, scores, targets)


def test_functions_that_do_not_fit_are_refused():
    no_function: Any = "logsumexp"
    with pytest.raises(AssertionError, match="max_fun"):
        jaxent.make_fenchel_young_loss(no_function)
    with pytest.raises(AssertionError, match=r"scalar.*float32\[5\]"):
        jaxent.make_fenchel_young_loss(jax.nn.softmax)(*scores_and_targets())


def test_it_keeps_the_signature_of_optax():
    ours, theirs = (
        inspect.signature(module.make_fenchel_young_loss(logsumexp))
        for module in (jaxent, optax.losses)
    )
    assert [(p.name, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.kind) for p in theirs.parameters.values()
    ]
