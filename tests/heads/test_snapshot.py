"""A loss that reads values from outside has today's result, and is traced again only if needed."""

import functools
import sys
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from jaxent._heads import rows
from jaxent._heads.snapshot import take_snapshot

cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels
HERE = sys.modules[__name__]
HIDDEN = jnp.cos(jnp.arange(35.0)).reshape(7, 5)
KERNEL = jnp.sin(jnp.arange(55.0)).reshape(5, 11)
LABELS = jnp.arange(7)

# What the losses read.

NUMBER, ARRAY, NUMPY, PAIR = 1.0, jnp.float32(1.0), np.ones(()), (1.0, "name")
TABLE = {"tau": 1.0}
CONFIG = types.SimpleNamespace(tau=1.0)
MODULE: Any = types.ModuleType("settings_of_a_user")
MODULE.tau = 1.0
TRACER = None


class Settings:
    tau = 1.0


def scaled(logits):
    return logits / NUMBER


def doubled(logits):
    return 2.0 * logits


def reads_a_number(logits, labels):
    return cross_entropy(logits / NUMBER, labels)


def reads_an_array(logits, labels):
    return cross_entropy(logits / ARRAY, labels)


def reads_a_numpy_array(logits, labels):
    return cross_entropy(logits / NUMPY, labels)


def reads_a_tuple(logits, labels):
    return cross_entropy(logits / PAIR[0], labels)


def reads_a_table(logits, labels):
    return cross_entropy(logits / TABLE["tau"], labels)


def reads_an_object(logits, labels):
    return cross_entropy(logits / CONFIG.tau, labels)


def reads_a_class(logits, labels):
    return cross_entropy(logits / Settings.tau, labels)


def reads_a_module(logits, labels):
    return cross_entropy(logits / MODULE.tau, labels)


def calls_a_function(logits, labels):
    return cross_entropy(scaled(logits), labels)


def calls_what_is_replaced(logits, labels):
    return cross_entropy(doubled(logits), labels)


def maps_a_function(logits, labels):
    return cross_entropy(jax.vmap(scaled)(logits), labels)


def has_a_function_inside(logits, labels):
    return cross_entropy((lambda x: x / NUMBER)(logits), labels)


def looks_it_up(logits, labels):
    return cross_entropy(logits / globals()["NUMBER"], labels)


def has_a_default(logits, labels, table=TABLE):
    return cross_entropy(logits / table["tau"], labels)


def imports_it(logits, labels):
    import settings_of_a_user  # pyright: ignore[reportMissingImports]

    return cross_entropy(logits / settings_of_a_user.tau, labels)


def reads_a_tracer(logits, labels):
    return cross_entropy(logits / TRACER, labels)


@jax.custom_jvp
def ruled(logits):
    return logits / NUMBER


ruled.defjvp(lambda primals, tangents: (ruled(*primals), tangents[0] / NUMBER))


def calls_a_rule(logits, labels):
    return cross_entropy(ruled(logits), labels)


# How what they read changes.


def set_number(patch):
    patch.setattr(HERE, "NUMBER", 2.0)


def set_in(thing):
    def change(patch):
        patch.setattr(thing, "tau", 2.0)

    return change


CASES = {
    reads_a_number: set_number,
    reads_an_array: lambda patch: patch.setattr(HERE, "ARRAY", jnp.float32(2.0)),
    reads_a_numpy_array: lambda patch: patch.setattr(HERE, "NUMPY", np.full((), 2.0)),
    reads_a_tuple: lambda patch: patch.setattr(HERE, "PAIR", (2.0, "name")),
    reads_a_table: lambda patch: patch.setitem(TABLE, "tau", 2.0),
    reads_an_object: set_in(CONFIG),
    reads_a_class: set_in(Settings),
    reads_a_module: set_in(MODULE),
    calls_a_function: set_number,
    calls_what_is_replaced: lambda patch: patch.setattr(HERE, "doubled", lambda x: 3.0 * x),
    maps_a_function: set_number,
    has_a_function_inside: set_number,
    looks_it_up: set_number,
    has_a_default: lambda patch: patch.setitem(TABLE, "tau", 2.0),
    imports_it: set_in(MODULE),
    functools.partial(reads_a_number): set_number,
    calls_a_rule: set_number,
}


def value_and_grads(loss):
    return jax.value_and_grad(loss, (0, 1))(HIDDEN, KERNEL)


def dense(loss_fn):
    return value_and_grads(lambda hidden, kernel: jnp.mean(loss_fn(hidden @ kernel, LABELS)))


def through_a_head(loss_fn):
    return value_and_grads(lambda *head: jaxent.linear_loss(loss_fn, *head, LABELS))


def assert_close(actual, expected):
    for a, e in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=3e-6, atol=1e-7)


@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
@pytest.mark.parametrize("loss_fn", CASES, ids=lambda f: getattr(f, "__name__", "partial"))
def test_a_value_from_outside_is_todays(monkeypatch, loss_fn, is_jitted):
    monkeypatch.setitem(sys.modules, MODULE.__name__, MODULE)

    def streamed():
        call = functools.partial(through_a_head, loss_fn)
        return jax.jit(call)() if is_jitted else call()

    before = streamed()
    assert_close(before, dense(loss_fn))
    CASES[loss_fn](monkeypatch)
    after = streamed()
    assert_close(after, dense(loss_fn))
    assert abs(before[0] - after[0]) > 1e-3


@pytest.mark.parametrize("is_jitted", [False, True], ids=["eager", "jit"])
def test_a_global_that_is_differentiated_has_its_derivative(monkeypatch, is_jitted):
    def slope(reduced):
        def loss(tau):
            monkeypatch.setattr(HERE, "TRACER", tau)
            return reduced()

        grad = jax.grad(loss)
        return (jax.jit(grad) if is_jitted else grad)(1.7)

    expected = slope(lambda: jnp.mean(reads_a_tracer(HIDDEN @ KERNEL, LABELS)))
    assert abs(expected) > 1e-3
    for _ in range(2):
        actual = slope(lambda: jaxent.linear_loss(reads_a_tracer, HIDDEN, KERNEL, LABELS))
        np.testing.assert_allclose(actual, expected, rtol=3e-6)


def pure(logits, labels):
    return cross_entropy(jnp.tanh(logits), labels)


def make_loss(tau):
    return lambda logits, labels: cross_entropy(logits / tau, labels)


@pytest.mark.thorough(beyond=2)
@pytest.mark.parametrize(
    "loss_fn",
    [
        pure,
        reads_a_number,
        calls_a_function,
        cross_entropy,
        functools.partial(reads_a_number),
        calls_a_rule,
    ],
    ids=lambda f: getattr(f, "__name__", "partial"),
)
def test_the_program_is_kept_while_nothing_changes(monkeypatch, loss_fn):
    traces = count_traces(monkeypatch)
    for call in (jaxent.linear_loss, jax.grad(jaxent.linear_loss, 1)):
        call(loss_fn, HIDDEN, KERNEL, LABELS, chunk_size=3)
        before = len(traces)
        call(loss_fn, HIDDEN, KERNEL, LABELS, chunk_size=3)
        assert len(traces) == before


def test_a_new_function_of_the_same_code_and_values_finds_the_program(monkeypatch):
    traces = count_traces(monkeypatch)
    values = [
        jaxent.linear_loss(make_loss(tau), HIDDEN, KERNEL, LABELS, chunk_size=2)
        for tau in (3.0, 3.0, 4.0, 3.0, 3)
    ]
    assert len(traces) == 3
    assert values[0] == values[1] == values[3] == values[4] != values[2]


def count_traces(monkeypatch):
    """A list that grows whenever a program for a loss is traced."""
    traces, sweep_rows = [], rows.sweep_rows

    def counting(*arguments, **options):
        traces.append(None)
        return sweep_rows(*arguments, **options)

    monkeypatch.setattr(rows, "sweep_rows", counting)
    return traces


def test_what_may_change_unseen_has_no_snapshot():
    table, array = {}, np.zeros(2)
    for value in (table, array, jnp.zeros(2), object(), Settings, table.get):
        assert take_snapshot(lambda x, value=value: value) is None
        assert take_snapshot(make_loss(value)) is None
    for value in (1, -0.0, "word", None, (1, (2.0,)), jnp, jnp.float32, np.dtype("int8"), max):
        assert take_snapshot(lambda x, value=value: value) is not None


def test_snapshots_tell_numbers_apart_by_type_and_sign():
    keys = [take_snapshot(make_loss(value)) for value in (1, 1.0, True, 0.0, -0.0, np.float32(1))]
    assert len(set(keys)) == len(keys)
