"""Masked rows in the row sweep cost nothing: chunks without a row that counts are skipped."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from heads.compiled import temporaries

ROWS, FEATURES, CLASSES, CHUNK = 41, 5, 13, 4
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels
REDUCTIONS = ["mean", "sum", "none"]


def arrays(rows=ROWS, features=FEATURES, classes=CLASSES):
    generator = np.random.default_rng(rows)
    hidden = generator.normal(size=(rows, features)).astype(np.float32)
    kernel = generator.normal(size=(features, classes)).astype(np.float32) / features**0.5
    return hidden, kernel, generator.integers(classes, size=rows).astype(np.int32)


def counting(runs):
    """Cross-entropy that appends to `runs` whenever it is computed."""

    def loss(logits, labels):
        jax.debug.callback(lambda: runs.append(None))
        return cross_entropy(logits, labels)

    return loss


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("count", [0, 1, CHUNK, CHUNK + 1, ROWS])
def test_only_chunks_with_a_row_that_counts_are_computed(reduction, count):
    """`count` rows, taken from all over the place."""
    hidden, kernel, labels = arrays()
    where = np.zeros(ROWS, bool)
    where[np.random.default_rng(count).permutation(ROWS)[:count]] = True
    runs: list[None] = []

    @jax.jit
    def value_and_gradients(hidden, kernel, where):
        def total(hidden, kernel):
            losses = jaxent.linear_loss(
                counting(runs),
                *(hidden, kernel, labels),
                where=where,
                reduction=reduction,
                chunk_size=CHUNK,
            )
            return jnp.sum(losses)

        return jax.value_and_grad(total, (0, 1))(hidden, kernel)

    dirty = jnp.where(where[:, None], hidden, jnp.nan)
    value, (of_hidden, of_kernel) = value_and_gradients(dirty, kernel, where)
    jax.effects_barrier()
    # One loss per row is computed again in the backward pass.
    assert len(runs) == -(-count // CHUNK) * (2 if reduction == "none" else 1)

    def alone(hidden, kernel):
        return jnp.sum(cross_entropy(hidden @ kernel, labels[where]))

    expected, grads = jax.value_and_grad(alone, (0, 1))(hidden[where], kernel)
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    np.testing.assert_allclose(of_kernel, grads[1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(of_hidden[where], grads[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(of_hidden[~where], 0.0)


@pytest.mark.parametrize("shape", [(), (1,), (ROWS,), (6, 7), (2, 3, 5)])
def test_losses_return_to_their_rows(shape):
    count = int(np.prod(shape))
    hidden, kernel, labels = arrays(max(count, 1))
    where = np.asarray(np.random.default_rng(0).uniform(size=shape) < 0.3)
    hidden, labels = hidden.reshape(*shape, FEATURES), labels.reshape(shape)

    def losses(hidden):
        return jaxent.linear_loss(
            cross_entropy, hidden, kernel, labels, where=where, reduction="none", chunk_size=3
        )

    actual, tangent = jax.jit(lambda h: jax.jvp(losses, (h,), (jnp.cos(h),)))(hidden)
    plain = lambda h: jnp.where(where, cross_entropy(h @ kernel, labels), 0.0)  # noqa: E731
    expected, along = jax.jvp(plain, (hidden,), (jnp.cos(hidden),))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    np.testing.assert_allclose(tangent, along, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_mapped_masks_have_every_derivative_of_single_ones(reduction):
    """Masks of which no two leave the same number of chunks; the kernel is mapped or shared."""
    hidden, kernel, labels = arrays()
    where = np.random.default_rng(1).uniform(size=(3, ROWS)) < np.array([[0.0], [0.2], [1.0]])

    def total(hidden, kernel, where):
        losses = jaxent.linear_loss(
            cross_entropy, hidden, kernel, labels, where=where, reduction=reduction, chunk_size=5
        )
        return jnp.sum(jnp.square(losses))

    def every(hidden, kernel, where):
        gradient = jax.grad(total, (0, 1))
        along = jnp.sin(hidden), jnp.cos(kernel)
        return jax.jvp(lambda *a: gradient(*a, where), (hidden, kernel), along)

    kernels = jnp.stack([kernel, 2.0 * kernel, -kernel])
    of_kernels = jax.jit(jax.vmap(every, (None, 0, 0)))(hidden, kernels, where)
    shared = jax.jit(jax.vmap(every, (None, None, 0)))(hidden, kernel, where)
    alone = jax.jit(every)
    for index in range(3):
        for mapped, single in (
            (of_kernels, alone(hidden, kernels[index], where[index])),
            (shared, alone(hidden, kernel, where[index])),
        ):
            jax.tree.map(
                lambda a, b, i=index: np.testing.assert_allclose(
                    a[i], b, rtol=0.0, atol=3e-6 * max(1.0, float(np.max(np.abs(b))))
                ),
                mapped,
                single,
            )


def value_and_gradients(where, reduction):
    def total(hidden, kernel, labels, where):
        losses = jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, where=where, sweep="rows", reduction=reduction
        )
        return jnp.sum(losses)

    shapes = [((1024, 64), "float32"), ((64, 32768), "float32"), ((1024,), "int32")]
    given = [jax.ShapeDtypeStruct(*each) for each in shapes]
    mask = jax.ShapeDtypeStruct((1024,), bool) if where else None
    return jax.jit(jax.value_and_grad(total, (0, 1))).lower(*given, mask).compile()


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_without_a_mask_nothing_is_sorted_or_skipped_and_with_one_memory_does_not_grow(reduction):
    plain, masked = (value_and_gradients(where, reduction) for where in (False, True))
    for name in (" conditional(", " sort("):
        assert name not in str(plain.as_text())
        assert name in str(masked.as_text())
    assert temporaries(masked) <= 1.02 * temporaries(plain)
