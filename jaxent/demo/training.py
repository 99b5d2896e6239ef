"""The training step, its loss through the streamed head or from plain logits, and its batches."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

import jaxent
from jaxent.demo import mesh as meshes
from jaxent.demo.model import Parameters, hidden_states, initialise

WINDOW = 512
BATCH = 2
# Rows of logits that exist at a time. A batch this small would otherwise be a single chunk; so few
# rows stay in a processor's cache, and need little memory.
_CHUNK = 128
_PEAK_LEARNING_RATE = 0.006


class Start(NamedTuple):
    """Parameters and the optimizer's state before the first step, and how many will follow.

    The arrays are on a mesh.
    """

    parameters: Parameters
    state: optax.OptState
    steps: int


def streamed_loss(parameters: Parameters, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean cross-entropy in nats, through jaxent's head: no [tokens, vocabulary] array."""
    hidden = hidden_states(parameters, inputs)
    return jaxent.linear_softmax_cross_entropy(
        hidden,
        parameters["words"],
        labels,
        bias=parameters["bias"],
        vocab_axis=0,
        chunk_size=_CHUNK,
    )


def plain_loss(parameters: Parameters, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """The same number the usual way: all the logits, then optax's loss of them."""
    logits = hidden_states(parameters, inputs) @ parameters["words"].T
    logits += parameters["bias"][None, None, :]
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


HEADS = {"streamed": streamed_loss, "plain": plain_loss}


def start(mesh: Mesh, seed: int, log_frequencies: np.ndarray, steps: int) -> Start:
    """A new model, and the initial state of its optimizer."""
    frequencies = meshes.fill_up(mesh, log_frequencies)

    def begin() -> tuple[Parameters, optax.OptState]:
        parameters = initialise(jax.random.key(seed), jnp.asarray(frequencies))
        return parameters, _optimizer(steps).init(parameters)

    # Each device makes its own part, so that none has to hold all parameters.
    shardings = meshes.shardings(mesh, jax.eval_shape(begin))
    parameters, state = jax.jit(begin, out_shardings=shardings)()
    return Start(parameters, state, steps)


def compile_step(head: str, start: Start, windows: int, length: int) -> jax.stages.Compiled:
    """A whole step as one program, for batches of `windows` windows of `length` tokens.

    It takes parameters, state, inputs and labels, and returns parameters, state and the loss.
    """
    optimizer = _optimizer(start.steps)

    def training_step(
        parameters: Any, state: Any, inputs: jax.Array, labels: jax.Array
    ) -> tuple[Any, Any, jax.Array]:
        loss, gradient = jax.value_and_grad(HEADS[head])(parameters, inputs, labels)
        updates, state = optimizer.update(gradient, state)
        return optax.apply_updates(parameters, updates), state, loss

    mesh = meshes.of(start.parameters)
    everywhere = meshes.shardings(mesh, jax.ShapeDtypeStruct((), jnp.float32))
    before = start.parameters, start.state
    after = *jax.tree.map(lambda leaf: leaf.sharding, before), everywhere
    tokens = jax.ShapeDtypeStruct((windows, length), jnp.int32, sharding=meshes.over_data(mesh))
    step = jax.jit(training_step, out_shardings=after)
    return step.lower(*before, tokens, tokens).compile()


def window_length(stream: np.ndarray) -> int:
    """The number of tokens in a window: `WINDOW`, or all that a short text has."""
    return min(WINDOW, len(stream) - 1)


def batches(stream: np.ndarray, seed: int, windows: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random windows of the stream without end, and for each token the one that follows it."""
    random = np.random.default_rng(seed)
    length = window_length(stream)
    while True:
        starts = random.integers(0, len(stream) - length, size=windows)
        positions = starts[:, None] + np.arange(length)[None, :]
        yield stream[positions], stream[positions + 1]


def _optimizer(steps: int) -> optax.GradientTransformation:
    """Adam, warmed up for a twentieth of the steps and then slowed down along a cosine."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=_PEAK_LEARNING_RATE / 20,
        peak_value=_PEAK_LEARNING_RATE,
        warmup_steps=steps // 20,
        decay_steps=steps,
        end_value=_PEAK_LEARNING_RATE / 50,
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.98))
