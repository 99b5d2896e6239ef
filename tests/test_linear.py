"""The named losses through a linear head against the same losses of plain logits."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent

ROWS, FEATURES, CLASSES = 19, 7, 11


@pytest.fixture(scope="module")
def inputs():
    keys = jax.random.split(jax.random.key(0), 4)
    hidden = jax.random.normal(keys[0], (ROWS, FEATURES))
    kernel = jax.random.normal(keys[1], (FEATURES, CLASSES))
    bias = jax.random.normal(keys[2], (CLASSES,))
    labels = jax.random.randint(keys[3], (ROWS,), 0, CLASSES)
    return hidden, kernel, bias, labels


def plain(hidden, kernel, bias, labels, *, soft_cap=None, temperature=1.0, z_loss=0.0, **options):
    """The definition, with all logits at once."""
    logits = hidden @ kernel + bias[None]
    if soft_cap is not None:
        logits = soft_cap * jnp.tanh(logits / soft_cap)
    logits = logits / temperature
    losses = jaxent.softmax_cross_entropy_with_integer_labels(logits, labels, **options)
    return jnp.mean(losses + z_loss * jaxent.z_loss(logits))


OPTIONS = [
    {},
    {"label_smoothing": 0.1},
    {"z_loss": 0.01},
    {"soft_cap": 2.0},
    {"temperature": 0.7},
    {"label_smoothing": 0.2, "z_loss": 0.1, "soft_cap": 3.0, "temperature": 2.0},
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: "-".join(options) or "none")
def test_options_equal_their_definitions(inputs, options):
    hidden, kernel, bias, labels = inputs

    def streamed(hidden, kernel, bias):
        return jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, bias=bias, chunk_size=4, **options
        )

    def unfused(hidden, kernel, bias):
        return plain(hidden, kernel, bias, labels, **options)

    actual, expected = (
        jax.jit(jax.value_and_grad(f, (0, 1, 2)))(hidden, kernel, bias) for f in (streamed, unfused)
    )
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-7)


def test_options_may_be_traced_and_differentiated(inputs):
    hidden, kernel, bias, labels = inputs
    names = ("label_smoothing", "z_loss", "soft_cap", "temperature")
    values = tuple(map(jnp.float32, (0.1, 0.01, 3.0, 0.8)))

    def streamed(*values):
        return jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, bias=bias, chunk_size=4, **dict(zip(names, values, strict=True))
        )

    def unfused(*values):
        return plain(hidden, kernel, bias, labels, **dict(zip(names, values, strict=True)))

    for transform in (jax.value_and_grad, jax.hessian):
        actual, expected = (
            jax.jit(transform(f, (0, 1, 2, 3)))(*values) for f in (streamed, unfused)
        )
        for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, e, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    "improper", [{"temperature": 0.0}, {"soft_cap": -1.0}, {"label_smoothing": 1.5}]
)
def test_improper_options_are_refused_or_loud(inputs, improper):
    hidden, kernel, _, labels = inputs
    with pytest.raises(AssertionError, match=f"`{next(iter(improper))}` must"):
        jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **improper)
    traced = jax.tree.map(jnp.float32, improper)
    assert jnp.isnan(jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **traced))


def test_bad_labels_are_nan_unless_masked(inputs):
    hidden, kernel, _, labels = inputs
    for bad in (-1, -100, CLASSES):
        spoiled = labels.at[2].set(bad)
        value = jaxent.linear_softmax_cross_entropy(hidden, kernel, spoiled)
        assert jnp.isnan(value)
        losses = jaxent.linear_softmax_cross_entropy(hidden, kernel, spoiled, reduction="none")
        np.testing.assert_array_equal(jnp.isnan(losses), jnp.arange(ROWS) == 2)
        keep = jnp.arange(ROWS) != 2
        value, gradient = jax.value_and_grad(jaxent.linear_softmax_cross_entropy)(
            hidden.at[2].set(jnp.nan), kernel, spoiled, where=keep
        )
        expected = jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=keep)
        np.testing.assert_array_equal(value, expected)
        np.testing.assert_array_equal(gradient[2], 0.0)


def test_tiny_losses_survive_the_head():
    """A sure and right model: 4.122307e-09, where a float32 log-softmax says 0."""
    kernel = jnp.diag(jnp.full(3, 20.0))
    for reduction in ("mean", "none"):
        loss = jaxent.linear_softmax_cross_entropy(
            jnp.eye(3), kernel, jnp.arange(3), reduction=reduction
        )
        np.testing.assert_allclose(loss, 4.122307e-09, rtol=1e-6)


def test_a_tied_embedding_of_any_float_dtype(inputs):
    hidden, kernel, bias, labels = inputs
    expected = jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, bias=bias)
    tied = jaxent.linear_softmax_cross_entropy(hidden, kernel.T, labels, bias=bias, vocab_axis=0)
    np.testing.assert_allclose(tied, expected, rtol=1e-6)
    mixed, gradients = jax.value_and_grad(jaxent.linear_softmax_cross_entropy, (0, 1))(
        hidden.astype(jnp.bfloat16), kernel, labels, bias=bias
    )
    assert mixed.dtype == jnp.float32
    assert [g.dtype for g in gradients] == [jnp.bfloat16, jnp.float32]
    np.testing.assert_allclose(mixed, expected, rtol=1e-2)


def test_vocabularies_of_any_size_count_no_padding():
    """Equal logits: exactly log V, whatever V is."""
    for classes in (1, 2, 127, 128, 129, 32000, 32003):
        loss = jaxent.linear_softmax_cross_entropy(
            jnp.ones((3, 2)), jnp.zeros((2, classes)), jnp.zeros(3, jnp.int32)
        )
        np.testing.assert_allclose(loss, np.log(classes), rtol=1e-6)


def test_refusals_name_the_argument(inputs):
    hidden, kernel, _, labels = inputs
    for words, change in {
        "`labels`": {"labels": labels.astype(float)},
        "`labels` int32[18]": {"labels": labels[1:]},
        "`kernel`": {"kernel": kernel.T},
        "`z_loss`": {"z_loss": -1.0},
        "`reduction`": {"reduction": "avg"},
        "`chunk_size`": {"chunk_size": 1.5},
    }.items():
        given = {"hidden": hidden, "kernel": kernel, "labels": labels} | change
        data = [given.pop(name) for name in ("hidden", "kernel", "labels")]
        with pytest.raises(AssertionError, match=re.escape(words)) as error:
            jaxent.linear_softmax_cross_entropy(*data, **given)
        assert "jaxent.linear_softmax_cross_entropy: " in str(error.value)


def test_a_capped_head_is_the_dense_loss_of_capped_logits():
    """A class that is impossible stays so under the cap."""
    hidden, kernel, labels = jnp.eye(2, 3), jnp.ones((3, 4)), jnp.array([0, 1])
    bias = jnp.array([0.0, 0.0, 0.0, -jnp.inf])
    capped = jaxent.soft_cap(hidden @ kernel + bias[None], 2.0)
    dense = jaxent.mean(jaxent.softmax_cross_entropy_with_integer_labels(capped, labels))
    streamed = jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, bias=bias, soft_cap=2.0)
    np.testing.assert_allclose(streamed, dense, rtol=1e-6)


@pytest.mark.parametrize("option", ["soft_cap", "temperature", "z_loss"])
def test_options_that_are_infinite_are_refused_or_nan(option):
    hidden, kernel, labels = jnp.eye(2, 3), jnp.ones((3, 4)), jnp.array([0, 1])

    def loss(value):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **{option: value})

    with pytest.raises(AssertionError, match=option):
        loss(float("inf"))
    assert jnp.isnan(loss(jnp.array(jnp.inf)))
    assert jnp.isnan(loss(jnp.array(-1.0)))
