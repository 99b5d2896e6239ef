"""`jax.export` with a symbolic leading size, of every public function.

A program is exported for any number of rows, stored, loaded, and run on some number of rows. There
it gives what a call gives.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

import jaxent
from calls import (
    CALLS,
    CLASSES,
    FEATURES,
    TIME,
    Arrays,
    Rows,
    floating,
    gradients,
    pairs,
    plain,
    same_for_all,
)
from public import FUNCTIONS


def symbolic_arguments(make: Callable[[Rows], Arrays]) -> list[jax.ShapeDtypeStruct]:
    """Descriptions of the arguments, whose axes that grow with the rows are all `rows`."""
    (rows,) = export.symbolic_shape("rows")
    pairs = zip(make(Rows(6)), make(Rows(7)), strict=True)
    return [
        jax.ShapeDtypeStruct(
            [rows if few != many else few for few, many in zip(a.shape, b.shape, strict=True)],
            a.dtype,
        )
        for a, b in pairs
    ]


def assert_runs_when_loaded(
    function: Callable[..., Any], make: Callable[[Rows], Arrays], counts: tuple[int, ...]
) -> None:
    stored = export.export(jax.jit(function))(*symbolic_arguments(make)).serialize()
    loaded = export.deserialize(stored)
    for count in counts:
        arguments = make(Rows(count))
        ours, theirs = loaded.call(*arguments), jax.jit(function)(*arguments)
        assert floating(ours)
        for one, other in zip(floating(ours), floating(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


def test_every_public_function_is_in_the_table():
    assert sorted(CALLS) == sorted(FUNCTIONS)


@pytest.mark.thorough(beyond=24)
@pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_for_any_number_of_rows(name):
    assert_runs_when_loaded(plain(name), CALLS[name].make, (6,))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_for_any_number_of_rows(name):
    assert_runs_when_loaded(gradients(plain(name)), CALLS[name].make, (6, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"sweep": "rows", "chunk_size": 3, "shift": 1},
        {"sweep": "columns", "block_size": 2, "reduction": "none"},
    ],
    ids=["rows", "columns"],
)
def test_heads_of_chunks_that_do_not_divide_the_rows(options):
    kernel = same_for_all(FEATURES, CLASSES)

    def loss(hidden, labels, where):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=where, **options)

    def make(rows):
        return rows.normal(TIME, FEATURES), rows.labels(TIME), rows.labels(TIME, classes=3) > 0

    assert_runs_when_loaded(gradients(loss), make, (7,))


@pytest.mark.thorough
def test_classes_are_as_many_as_rows_of_embeddings():
    def loss(images, texts):
        return jaxent.clip_loss(images, texts, 0.5, normalize=True)

    assert_runs_when_loaded(gradients(loss), lambda rows: pairs(rows)[:2], (7, 1))
