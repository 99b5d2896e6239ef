"""Heads without `jax.jit`: a second call compiles nothing, and memory does not grow."""

import gc
import logging
import os
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxent

HIDDEN = jnp.cos(jnp.arange(12.0)).reshape(4, 3)
KERNEL = jnp.sin(jnp.arange(15.0)).reshape(3, 5)
LABELS = jnp.arange(4)
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels
CALLS = 200
STATM = Path("/proc/self/statm")

Loss = Callable[[jax.Array, jax.Array], jax.Array]


def head(**options) -> Loss:
    def loss(hidden, kernel):
        losses = jaxent.linear_softmax_cross_entropy(hidden, kernel, LABELS, **options)
        return jnp.sum(losses)

    return loss


LOSSES: dict[str, Loss] = {
    "rows": head(sweep="rows"),
    "rows, none": head(sweep="rows", reduction="none"),
    "columns": head(sweep="columns"),
    "linear_loss": lambda h, w: jaxent.linear_loss(cross_entropy, h, w, LABELS),
    "linear_loss, none": lambda h, w: jnp.sum(
        jaxent.linear_loss(cross_entropy, h, w, LABELS, reduction="none")
    ),
    "linear_softmax": lambda h, w: jnp.sum(jaxent.linear_softmax(h, w, LABELS).entropy),
    "linear_log_prob": lambda h, w: jnp.sum(jaxent.linear_log_prob(h, w, LABELS).log_prob),
    "linear_kl_divergence": lambda h, w: jaxent.linear_kl_divergence(h, w, HIDDEN, KERNEL),
    "linear_jensen_shannon": lambda h, w: jaxent.linear_jensen_shannon(h, w, HIDDEN, KERNEL),
    "clip_loss": lambda h, w: jaxent.clip_loss(h, HIDDEN, 0.5) + 0.0 * jnp.sum(w),
}
QUICK = ("rows", "rows, none", "columns", "linear_loss")
every_head = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in QUICK else pytest.mark.thorough) for name in LOSSES],
)


def resident_bytes() -> int:
    gc.collect()
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@every_head
def test_a_second_call_compiles_nothing(name, caplog):
    value_and_grad = jax.value_and_grad(LOSSES[name], (0, 1))
    value_and_grad(HIDDEN, KERNEL)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        value_and_grad(HIDDEN, KERNEL)
    assert not caplog.records, caplog.records[0].getMessage()


@pytest.mark.thorough
@pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much memory is resident")
@pytest.mark.parametrize("name", LOSSES)
def test_memory_does_not_grow_with_the_calls(name):
    value_and_grad = jax.value_and_grad(LOSSES[name], (0, 1))
    for _ in range(20):
        value_and_grad(HIDDEN, KERNEL)
    before = resident_bytes()
    for _ in range(CALLS):
        value_and_grad(HIDDEN, KERNEL)
    # A program that is compiled again takes more than 1 MiB at every call.
    assert resident_bytes() - before < CALLS * 2**14
