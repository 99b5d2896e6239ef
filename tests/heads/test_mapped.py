"""Heads that `jax.vmap` maps over sequences, and loops over micro-batches: values and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from heads.compiled import temporaries

BATCH, TIME, FEATURES, CLASSES = 3, 5, 4, 7
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels


def by_rows(hidden, kernel, labels):
    mask = labels % 3 > 0
    return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=mask, sweep="rows")


def per_row(hidden, kernel, labels):
    losses = jaxent.linear_softmax_cross_entropy(
        hidden, kernel, labels, sweep="rows", reduction="none", chunk_size=3
    )
    return jnp.mean(losses)


def weighted_closure(hidden, kernel, labels):
    def loss_fn(logits):
        return cross_entropy(logits, labels)

    weights = 1.0 + jnp.arange(labels.size, dtype=hidden.dtype)
    return jaxent.linear_loss(loss_fn, hidden, kernel, weights=weights)


def distillation(hidden, kernel, labels):
    return jaxent.linear_kl_divergence(
        hidden, kernel, 2.0 * hidden, kernel, labels=labels, label_weight=0.5
    )


def contrast(hidden, kernel, labels):
    return jaxent.info_nce(hidden, kernel.T, 1.0, labels=labels)


LOSSES = {
    "rows": by_rows,
    "one loss per row": per_row,
    "closure": weighted_closure,
    "distillation": distillation,
    "contrast": contrast,
}


def problem(batch=BATCH, time=TIME, features=FEATURES, classes=CLASSES):
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (batch, time, features))
    kernel = jax.random.normal(keys[1], (features, classes)) / features**0.5
    return hidden, kernel, jax.random.randint(keys[2], (batch, time), 0, classes)


def mapped(loss, labels):
    def mean(hidden, kernel):
        return jnp.mean(jax.vmap(loss, (0, None, 0))(hidden, kernel, labels))

    return mean


def one_by_one(loss, labels):
    def mean(hidden, kernel):
        pairs = zip(hidden, labels, strict=True)
        return jnp.mean(jnp.stack([loss(h, kernel, y) for h, y in pairs]))

    return mean


def grad(function):
    return jax.grad(function, (0, 1))


def hessian_vector_product(function):
    def product(*arguments):
        return jax.jvp(grad(function), arguments, arguments)[1]

    return product


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("transform", [grad, hessian_vector_product])
@pytest.mark.parametrize(
    "name",
    ["rows", *(pytest.param(n, marks=pytest.mark.thorough) for n in LOSSES if n != "rows")],
)
def test_derivatives_of_a_mapped_head_are_those_of_its_calls(name, transform):
    hidden, kernel, labels = problem()
    ours, theirs = (
        jax.jit(transform(make(LOSSES[name], labels)))(hidden, kernel)
        for make in (mapped, one_by_one)
    )
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=0.0, atol=2e-6 * float(jnp.max(jnp.abs(b))))


def test_values_of_a_head_that_is_mapped_twice():
    hidden, kernel, labels = problem()
    of_one = jax.vmap(by_rows, (0, None, 0))
    doubled = jax.vmap(of_one, (0, None, None))(jnp.stack([hidden, hidden]), kernel, labels)
    np.testing.assert_allclose(doubled[1], of_one(hidden, kernel, labels), rtol=1e-6)


def test_a_mapped_kernel_has_a_gradient_for_each():
    hidden, kernel, labels = problem()
    kernels = jnp.stack([kernel, 2.0 * kernel, -kernel])
    gradients = jax.vmap(jax.grad(by_rows, 1))(hidden, kernels, labels)
    alone = jax.grad(by_rows, 1)(hidden[1], kernels[1], labels[1])
    np.testing.assert_allclose(gradients[1], alone, rtol=1e-5, atol=1e-6)
    of_total = jax.grad(lambda k: jnp.sum(jax.vmap(by_rows)(hidden, k, labels)))(kernels)
    np.testing.assert_allclose(of_total, gradients, rtol=1e-5, atol=1e-6)


# Large enough for the kernel's gradient and the logits to outweigh what is left.
LARGE = {"batch": 16, "time": 64, "features": 384, "classes": 6000}


def memory(function, *arguments):
    value_and_grad = jax.jit(jax.value_and_grad(function, (0, 1)))
    return temporaries(value_and_grad.lower(*arguments).compile())


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("name", ["rows", "one loss per row", "distillation"])
def test_a_mapped_head_needs_no_more_memory_than_a_flat_one(name):
    hidden, kernel, labels = problem(**LARGE)

    def flat(hidden, kernel):
        return LOSSES[name](hidden.reshape(-1, hidden.shape[-1]), kernel, labels.reshape(-1))

    of_mapped = memory(mapped(LOSSES[name], labels), hidden, kernel)
    assert of_mapped < 1.5 * memory(flat, hidden, kernel)


def test_a_loop_keeps_a_gradient_of_the_kernel_a_step_unless_the_step_is_checkpointed():
    """What docs/scaling.md says of a loop that is differentiated from outside."""
    hidden, kernel, labels = problem(**LARGE)

    def looped(step):
        def mean(hidden, kernel):
            losses = jax.lax.map(lambda pair: step(pair[0], kernel, pair[1]), (hidden, labels))
            return jnp.mean(losses)

        return mean

    kernel_bytes = 4 * kernel.size
    assert memory(looped(by_rows), hidden, kernel) > 16 * kernel_bytes
    assert memory(looped(jax.checkpoint(by_rows)), hidden, kernel) < 4 * kernel_bytes
