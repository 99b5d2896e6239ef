"""The code length of a text under the model: every token of it, each from what comes before."""

import itertools
from collections.abc import Iterable, Iterator

import jax
import numpy as np

import jaxent
from jaxent.demo import mesh as meshes
from jaxent.demo.model import Parameters, hidden_states
from jaxent.demo.vocabulary import BOUNDARY

# A window scores `SCORED` tokens and reads as many before them, so that all tokens but the first
# ones of the stream are scored with a real past. No token is scored twice and none is left out.
SCORED = 512


def windows(stream: np.ndarray) -> range:
    """The windows that together score all tokens of the stream but the first, which is given."""
    return range(-(-(len(stream) - 1) // SCORED))


def scored_tokens(window: int) -> slice:
    """Which of the tokens after the first a window scores."""
    return slice(window * SCORED, (window + 1) * SCORED)


def score(
    parameters: Parameters, stream: np.ndarray, windows: Iterable[int]
) -> Iterator[np.ndarray]:
    """For each window, the cost of each of its tokens in nats."""
    mesh, windows = meshes.of(parameters), iter(windows)
    together = meshes.windows_at_once(mesh)
    while some := list(itertools.islice(windows, together)):
        # Each device has its window; devices that are left over score the last window once more.
        filled = [_filled_up(stream, window) for window in some]
        filled += filled[-1:] * (together - len(some))
        inputs, labels, real = map(np.stack, zip(*filled, strict=True))
        costs = _costs(parameters, *meshes.put_windows(mesh, inputs, labels, real))
        for cost, counts in zip(meshes.on_host(costs)[: len(some)], real, strict=False):
            yield cost[counts]


@jax.jit
def _costs(
    parameters: Parameters, inputs: jax.Array, labels: jax.Array, real: jax.Array
) -> jax.Array:
    """The losses of the second half of each row of inputs, 0 for labels that are not real."""
    return jaxent.linear_softmax_cross_entropy(
        hidden_states(parameters, inputs)[:, -SCORED:],
        parameters["words"],
        labels,
        bias=parameters["bias"],
        vocab_axis=0,
        where=real,
        reduction="none",
    )


def _filled_up(stream: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs with their past, labels, and which labels are real, in the shape of a whole window."""
    labels = stream[1:][scored_tokens(window)]
    first = window * SCORED
    missing = SCORED - len(labels)
    past = stream[max(0, first - SCORED) : first]
    inputs = np.pad(
        np.concatenate([past, stream[first : first + len(labels)]]),
        (SCORED - len(past), missing),
        constant_values=BOUNDARY,
    )
    labels = np.pad(labels, (0, missing), constant_values=-1)
    return inputs, labels, labels >= 0
