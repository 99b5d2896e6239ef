"""The recipes of docs/scaling.md on eight devices: what one device prints, loses and learns."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxent
from project.documents import examples, run

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
EXAMPLES = examples(PAGE)
ACCUMULATION, MULTI_STEPS, UNDER_JIT, IN_SHARD_MAP, HEAD, VOCABULARY, PADDING = EXAMPLES

# By now JAX has its eight devices; what is on no mesh is on one of them.


def assert_close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=2e-6)


@jax.jit
def loss_and_gradient(kernel, features, labels, real):
    """Of the plain mean over all the rows that count."""

    def mean(kernel):
        logits = features @ kernel
        losses = jaxent.softmax_cross_entropy_with_integer_labels(logits, labels, where=real)
        return jaxent.mean(losses, where=real)

    return jax.value_and_grad(mean)(kernel)


def trained(kernel, optimizer, features, labels, real, *, steps=3):
    """The last loss and the kernel after some steps on all the rows at once."""
    state, loss = optimizer.init(kernel), jnp.nan
    update = jax.jit(optimizer.update)
    for _ in range(steps):
        loss, gradient = loss_and_gradient(kernel, features, labels, real)
        updates, state = update(gradient, state, kernel)
        kernel = optax.apply_updates(kernel, updates)
    return loss, kernel


@pytest.fixture(scope="module")
def left():
    """The names that each recipe leaves, once it has printed what the page says."""
    kept = {}

    def names_of(example):
        if example not in kept:
            output, kept[example] = run(example)
            assert output == example.expected
        return kept[example]

    return names_of


def test_there_are_devices_to_run_on():
    assert jax.device_count() == 8


@pytest.mark.parametrize("example", [ACCUMULATION, MULTI_STEPS], ids=["scan", "MultiSteps"])
def test_micro_batches_train_as_one_batch_does(example, left):
    names = left(example)
    rows = names["features"], names["labels"], names["real"]
    with jax.numpy_dtype_promotion("standard"):  # For optax.
        loss, kernel = trained(jnp.zeros((8, 5)), optax.adam(0.1), *rows)
    assert_close(names["loss"], loss)
    assert_close(names["kernel"], kernel)


def test_the_mean_of_their_means_trains_otherwise(left):
    names = left(ACCUMULATION)
    rows = names["features"], names["labels"], names["real"]
    optimizer = optax.MultiSteps(optax.adam(0.1), every_k_schedule=4)
    kernel, update = jnp.zeros((8, 5)), jax.jit(optimizer.update)
    state = optimizer.init(kernel)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(3):
            for micro_batch in zip(*rows, strict=True):
                _, gradient = loss_and_gradient(kernel, *micro_batch)
                updates, state = update(gradient, state, kernel)
                kernel = optax.apply_updates(kernel, updates)
    assert np.abs(kernel - names["kernel"]).max() > 0.05


@pytest.mark.parametrize("example", [UNDER_JIT, IN_SHARD_MAP], ids=["jit", "shard_map"])
def test_means_over_devices_are_means_over_rows(example, left):
    names = left(example)
    rows = names["features"], names["labels"], names["real"]
    kernel = jax.random.normal(jax.random.key(2), (8, 5))
    loss, gradient = loss_and_gradient(kernel, *rows)
    assert_close(names["loss"], loss)
    assert_close(names["gradient"], gradient)
    # And the same after some steps, of which only the derivative is the recipe's.
    optimizer, learned = optax.sgd(0.5), kernel
    state = optimizer.init(kernel)
    step = jax.jit(names["loss_and_gradient"])
    for _ in range(3):
        loss, gradient = step(learned, *rows)
        updates, state = optimizer.update(gradient, state)
        learned = optax.apply_updates(learned, updates)
    expected_loss, expected = trained(kernel, optimizer, *rows)
    assert_close(loss, expected_loss)
    assert_close(learned, expected)


def test_a_head_trains_alike_in_every_layout(left):
    names = left(HEAD)
    hidden, labels = names["hidden"].reshape(64, 32), names["labels"].reshape(64)
    with jax.numpy_dtype_promotion("standard"):
        _, kernel = trained(jnp.zeros((32, 96)), optax.adam(0.05), hidden, labels, labels >= 0)
    assert names["mesh"].devices.shape == (4, 2)
    assert len(names["trained"]) == 5
    for learned in names["trained"].values():
        assert_close(learned, kernel)


def test_a_split_vocabulary_in_shard_map_changes_nothing(left):
    names = left(VOCABULARY)
    rows = names["hidden"], names["labels"], names["real"]
    expected = loss_and_gradient(names["kernel"], *rows)
    for result in names["results"]:
        for got, want in zip(result, expected, strict=True):
            assert_close(got, want)


def test_padding_of_the_vocabulary_changes_no_gradient(left):
    names = left(PADDING)
    slope, slope_with_bias = (jax.jit(jax.grad(names[n])) for n in ("loss_of", "loss_with_bias"))
    gradient = slope(names["kernel"])
    masked = slope(names["padded"], class_where=names["exists"])
    biased = slope_with_bias(names["padded"])
    assert masked.shape == (32, 96)
    for padded in (masked, biased):
        assert_close(padded[:, :93], gradient)
        np.testing.assert_array_equal(padded[:, 93:], 0.0)
