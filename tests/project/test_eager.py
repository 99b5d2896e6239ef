"""Without `jax.jit`: a second call compiles nothing, and memory does not grow with the calls."""

import functools
import gc
import logging
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

import jaxent
from calls import CALLS, Rows, gradients, plain
from public import FUNCTIONS

TIMES = 200
STATM = Path("/proc/self/statm")
pytestmark = pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")

FUNCTION_OF_CALL = {name: plain(name) for name in FUNCTIONS} | {
    # A loss that is made anew is traced anew.
    "make_fenchel_young_loss": jaxent.make_fenchel_young_loss(jax.nn.logsumexp),
    **{
        f"linear_softmax_cross_entropy, {sweep}, {reduction}": functools.partial(
            jaxent.linear_softmax_cross_entropy, sweep=sweep, reduction=reduction
        )
        for sweep in ("rows", "columns")
        for reduction in ("mean", "none")
    },
}
# Sweeps differ in what would be compiled anew.
each = pytest.mark.parametrize(
    "call", sorted(FUNCTION_OF_CALL, key=lambda call: "," not in str(call))
)


def value_and_gradients(call: str) -> None:
    function, make = FUNCTION_OF_CALL[call], CALLS[call.partition(",")[0]].make
    arguments = [jnp.asarray(array) for array in make(Rows(6))]
    function(*arguments)
    gradients(function)(*arguments)


def resident_bytes() -> int:
    gc.collect()
    pages = int(STATM.read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.thorough(beyond=24)
@each
def test_a_second_call_compiles_nothing(call, caplog):
    value_and_gradients(call)
    with jax.log_compiles(), caplog.at_level(logging.WARNING, "jax"):
        value_and_gradients(call)
    assert not caplog.records, caplog.records[0].getMessage()


@pytest.mark.thorough
@pytest.mark.skipif(not STATM.exists(), reason="only Linux says how much memory is resident")
@each
def test_memory_does_not_grow_with_the_calls(call):
    # What is kept once for each operation is kept by then.
    for _ in range(100):
        value_and_gradients(call)
    before = resident_bytes()
    for _ in range(TIMES):
        value_and_gradients(call)
    # A program that is compiled again takes more than 1 MiB at every call.
    assert resident_bytes() - before < TIMES * 2**12
