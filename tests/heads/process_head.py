"""One process of two that train a head together: `process_head.py INDEX PORT STEPS RESULT`.

The first of them writes the losses, the last gradient and the kernel after it to a file.
"""

import inspect
import itertools
import sys
from typing import Any

import jax
import numpy as np
import optax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxent

PROCESSES, DEVICES = 2, 2  # of each process
ROWS, WIDTH, CLASSES = 24, 8, 40
OPTIMIZER = optax.sgd(0.5, momentum=0.9)


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden states, a kernel, and labels of which the devices do not all have as many."""
    random = np.random.default_rng(0)
    hidden = random.normal(size=(ROWS, WIDTH)).astype(np.float32)
    kernel = random.normal(size=(WIDTH, CLASSES)).astype(np.float32)
    labels = random.integers(0, CLASSES, ROWS, np.int32)
    labels[3:11] = -100
    return hidden, kernel, labels


@jax.jit
def training_step(kernel, state, hidden, labels):
    def loss_of(kernel):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=labels >= 0)

    loss, gradient = jax.value_and_grad(loss_of)(kernel)
    updates, state = OPTIMIZER.update(gradient, state)
    return optax.apply_updates(kernel, updates), state, loss, gradient


def join(index: int, port: int) -> Mesh:
    """Meet the other process; a mesh of the devices of both."""
    patience: dict[str, Any] = {
        "initialization_timeout": 30,
        "heartbeat_timeout_seconds": 10,
        "shutdown_timeout_seconds": 10,
    }
    known = inspect.signature(jax.distributed.initialize).parameters  # JAX 0.7 lacks the last.
    patience = {name: seconds for name, seconds in patience.items() if name in known}
    jax.config.update("jax_num_cpu_devices", DEVICES)
    jax.distributed.initialize(f"localhost:{port}", PROCESSES, index, **patience)
    types = AxisType.Auto, AxisType.Auto
    return Mesh(np.array(jax.devices()).reshape(PROCESSES, DEVICES), ("data", "vocab"), types)


def main(index: int, port: int, steps: int, result: str) -> None:
    mesh = join(index, port)

    def put(array: np.ndarray, *axes: str | None) -> jax.Array:
        sharding = NamedSharding(mesh, P(*axes))
        return jax.make_array_from_callback(array.shape, sharding, array.__getitem__)

    hidden, kernel, labels = data()
    hidden, labels = put(hidden, "data"), put(labels, "data")
    kernel = put(kernel, None, "vocab")
    state, losses, gradient = OPTIMIZER.init(kernel), [], kernel
    for step in range(steps) if steps else itertools.count():
        kernel, state, loss, gradient = training_step(kernel, state, hidden, labels)
        losses.append(float(loss))
        if step == 9:
            print("ten steps", flush=True)
    for array in (kernel, gradient):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, P(None, "vocab")), 2)
    kernel, gradient = multihost_utils.process_allgather((kernel, gradient), tiled=True)
    if index == 0:
        np.savez(result, losses=np.array(losses), kernel=kernel, gradient=gradient)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
