"""The main job on eight devices: what it trains and scores is what one device would."""

import jax
import numpy as np
import pytest

from jaxent.demo import corpus, mesh, scoring, training
from jaxent.demo.text import Split, TextFile
from project.test_demo import SOURCE, losses_of_a_run

STEPS = 3
# A vocabulary that two devices cannot share evenly.
SMALL = corpus.prepare(Split([TextFile("a", SOURCE[:9000])], [TextFile("b", SOURCE[9000:])]), 401)


def run(shape: tuple[int, int], head: str) -> tuple[list[float], np.ndarray, str]:
    """The losses of some steps, the costs of the held-out words before them, and the program."""
    start = training.start(mesh.make(shape), 0, SMALL.log_frequencies, STEPS)
    with jax.numpy_dtype_promotion("standard"):  # Schedules of optax mix integers and floats.
        program = training.compile_step(head, start, 8, 32)
    stream = SMALL.held_out[:1100]  # Three windows: fewer than devices, or not a multiple.
    costs = list(scoring.score(start.parameters, stream, scoring.windows(stream)))
    losses = losses_of_a_run(program, start, SMALL.training, windows=8)
    return losses, np.concatenate(costs), program.as_text() or ""


@pytest.fixture(scope="module")
def on_one_device() -> tuple[list[float], np.ndarray, str]:
    return run((1, 1), "streamed")


@pytest.mark.parametrize(("shape", "head"), [((4, 2), "streamed"), ((2, 4), "plain")], ids=str)
def test_losses_are_those_of_one_device(shape, head, on_one_device):
    losses, costs, program = run(shape, head)
    expected_losses, expected_costs, _ = on_one_device
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(losses, expected_losses, rtol=3e-5)
    np.testing.assert_allclose(costs, expected_costs, rtol=1e-4, atol=1e-5)
    assert "all-reduce" in program
    assert "all-gather" not in program


def test_the_table_of_words_is_split_and_filled_up():
    devices = mesh.make((4, 2))
    start = training.start(devices, 0, SMALL.log_frequencies, STEPS)
    alone = training.start(mesh.make((1, 1)), 0, SMALL.log_frequencies, STEPS)
    words = start.parameters["words"]
    assert words.shape == (402, 128)
    assert {shard.data.shape for shard in words.addressable_shards} == {(201, 128)}
    np.testing.assert_array_equal(words[:401], alone.parameters["words"])
    assert start.parameters["bias"][401] == -np.inf
    held = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(start.state)]
    whole = [leaf.nbytes for leaf in jax.tree.leaves(start.state)]
    assert sum(held) < sum(whole)
