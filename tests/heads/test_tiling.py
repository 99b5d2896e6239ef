"""How the rows of a head are divided into tiles: every row once, and on its own device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from jaxent._heads import tiling


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("shape", [(24,), (4, 6), (2, 3, 8), (3, 2, 5, 4)])
def test_rows_of_any_leading_axes_come_back_and_stay_on_their_devices(shape, devices):
    rows = jnp.arange(np.prod(shape)).reshape(shape)
    plan = tiling.make_tiling(shape, 7, devices)
    line = tiling.to_line(plan, rows)
    tiles = tiling.to_tiles(plan, line, pad_with_rows=True)
    np.testing.assert_array_equal(tiling.from_line(plan, tiling.from_tiles(plan, tiles)), rows)

    # Sharded over the last axis, device d has an equal part of every line of `rows`.
    if len(shape) > 1:
        parts = np.split(np.asarray(rows), plan.outer_shards, axis=-1)
        found = np.asarray(line).reshape(plan.outer_shards, -1)
        for part, of_device in zip(parts, found, strict=True):
            np.testing.assert_array_equal(of_device, part.ravel())
    # Sharded over the axes before, it has an equal part of the line, and of every tile.
    length = np.prod(shape[:-1] if len(shape) > 1 else shape)
    assert plan.line_shards == np.gcd(length, devices)


def test_rows_that_do_not_fill_the_tiles_of_columns_count_once():
    """On a CPU a tile has 1,024 rows of 1,024 classes."""
    keys = jax.random.split(jax.random.key(0))
    hidden, kernel = jax.random.normal(keys[0], (1031, 2)), jax.random.normal(keys[1], (2, 1024))
    labels = jnp.arange(1031) % 1024

    def gradients(sweep):
        def loss(hidden, kernel):
            return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, sweep=sweep)

        return jax.jit(jax.grad(loss, (0, 1)))(hidden, kernel)

    for one, other in zip(gradients("rows"), gradients("columns"), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-8)
