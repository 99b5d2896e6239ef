"""`dtype` of heads: a float32 kernel in products of 16 bits, with a float32 gradient."""

import collections
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from heads.compiled import temporaries

N, D, V = 29, 8, 37


def arrays():
    generator = np.random.default_rng(0)
    hidden = jnp.asarray(generator.normal(size=(N, D)), jnp.bfloat16)
    kernel = jnp.asarray(generator.normal(size=(D, V)) / D**0.5, jnp.float32)
    return hidden, kernel, generator.integers(V, size=N)


def by(sweep, **options):
    loss = jaxent.linear_softmax_cross_entropy
    return lambda h, k, y, **o: loss(h, k, y, sweep=sweep, **options, **o)


def contrast(loss, *arguments):
    return lambda h, k, y, **o: loss(h, k.T[:N], *arguments, labels=y % N, **o)


LOSSES = {
    "rows": by("rows"),
    "columns": by("columns"),
    "linear_loss": functools.partial(
        jaxent.linear_loss, jaxent.softmax_cross_entropy_with_integer_labels
    ),
    "linear_softmax": lambda *a, **o: jnp.mean(jaxent.linear_softmax(*a, **o).entropy),
    "linear_log_prob": lambda *a, **o: jnp.mean(jaxent.linear_log_prob(*a, **o).log_prob),
    "linear_kl_divergence": lambda h, k, y, **o: jaxent.linear_kl_divergence(
        h, k, h[:, ::-1], k, labels=y, label_weight=0.5, **o
    ),
    "linear_jensen_shannon": lambda h, k, y, **o: jaxent.linear_jensen_shannon(
        h, k, h[:, ::-1], k, **o
    ),
    "linear_top_k_kl_divergence": lambda h, k, y, **o: jaxent.linear_top_k_kl_divergence(
        h, k, jnp.full((N, 1), -0.5), y[:, None], **o
    ),
    "info_nce": contrast(jaxent.info_nce, 0.3),
    "clip_loss": lambda h, k, y, **o: jaxent.clip_loss(h, k.T[:N], -1.0, **o),
    "sigmoid_contrastive_loss": contrast(jaxent.sigmoid_contrastive_loss, -1.0, -2.0),
}


def products(jaxpr, found):
    """How often products of which operands are taken, in a program and in what it calls."""
    for each in jaxpr.eqns:
        if each.primitive.name == "dot_general":
            found[tuple(str(v.aval.dtype) for v in (*each.invars, *each.outvars))] += 1
        for value in jax.tree.leaves(tuple(each.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                products(inner, found)
    return found


@pytest.mark.parametrize("name", LOSSES)
def test_products_are_those_of_a_kernel_of_16_bits_and_its_gradient_is_not_rounded(name):
    hidden, kernel, labels = arrays()
    function = functools.partial(LOSSES[name], hidden)
    with_dtype = functools.partial(function, dtype=jnp.bfloat16)
    trace = jax.jit(jax.value_and_grad(with_dtype)).trace(kernel, labels)
    found = products(trace.jaxpr.jaxpr, collections.Counter())
    assert set(found) == {("bfloat16", "bfloat16", "float32")}, found
    value, gradient = jax.jit(jax.value_and_grad(with_dtype))(kernel, labels)
    rounded = kernel.astype(jnp.bfloat16)
    expected, coarse = jax.jit(jax.value_and_grad(function))(rounded, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert gradient.dtype == jnp.float32
    scale = float(jnp.max(jnp.abs(gradient)))
    np.testing.assert_allclose(gradient, coarse.astype(jnp.float32), rtol=2**-7, atol=2e-3 * scale)
    # Bits that a gradient of 16 bits does not have.
    assert jnp.any(gradient != gradient.astype(jnp.bfloat16).astype(jnp.float32))


@pytest.mark.parametrize("sweep", ["rows", "columns"])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_errs_by_the_roundings_of_operands_alone(sweep, dtype):
    hidden, kernel, labels = arrays()
    operand = np.asarray(kernel.astype(dtype), np.float64)
    logits = np.asarray(hidden.astype(dtype), np.float64) @ operand
    log_p = logits - np.log(np.sum(np.exp(logits), axis=1, keepdims=True))
    slope = (np.exp(log_p) - np.eye(V)[labels]) / N
    of_kernel = np.asarray(hidden, np.float64).T @ slope
    function = functools.partial(LOSSES[sweep], dtype=dtype)
    value, (of_hidden, grad) = jax.value_and_grad(function, (0, 1))(hidden, kernel, labels)
    np.testing.assert_allclose(value, -np.mean(log_p[np.arange(N), labels]), rtol=1e-6)
    assert (of_hidden.dtype, grad.dtype) == (jnp.bfloat16, jnp.float32)
    assert np.linalg.norm(grad - of_kernel) < float(jnp.finfo(dtype).eps) * np.linalg.norm(
        of_kernel
    )


@pytest.mark.parametrize("sweep", ["rows", "columns"])
def test_takes_no_more_memory_than_a_kernel_of_16_bits_and_a_float32_gradient(sweep):
    rows, features, classes = 1024, 512, 16384

    def bytes_of(kernel_dtype, **options):
        shapes = ((rows, features), jnp.bfloat16), ((features, classes), kernel_dtype)
        given = [jax.ShapeDtypeStruct(*each) for each in (*shapes, ((rows,), jnp.int32))]
        function = jax.value_and_grad(functools.partial(LOSSES[sweep], **options), (0, 1))
        program = jax.jit(function).lower(*given).compile()
        memory: Any = program.memory_analysis()
        return temporaries(program) + memory.output_size_in_bytes

    most = bytes_of(jnp.bfloat16) + 4 * features * classes
    assert bytes_of(jnp.float32, dtype=jnp.bfloat16) < most


@pytest.mark.parametrize("dtype", ["int32", "float8_e4m3fn", "float64", "half of it", 3.0])
def test_a_dtype_that_products_cannot_be_taken_in_is_refused(dtype):
    hidden, kernel, labels = arrays()
    for name, loss in LOSSES.items():
        with pytest.raises(jaxent.ArgumentError, match="`dtype` must be floating point") as caught:
            loss(hidden, kernel, labels, dtype=dtype)
        assert name not in vars(jaxent) or str(caught.value).startswith(f"jaxent.{name}: ")
