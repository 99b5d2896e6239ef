"""The devices that the job runs on: a mesh of data x vocabulary, of one process or of several.

This file only says how arrays lie on the mesh; XLA's partitioner makes the training step parallel.
Windows of text are split over the data axis, and the table of words with its bias over the
vocabulary axis; everything else is on every device.
"""

import contextlib
import inspect
import math
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

_DATA, _VOCABULARY = "data", "vocabulary"
_SPECS = {"words": P(_VOCABULARY, None), "bias": P(_VOCABULARY)}
# Seconds to wait for processes that have not started yet, and for one that no longer answers.
_PATIENCE = {
    "initialization_timeout": 60,
    "heartbeat_timeout_seconds": 30,
    "shutdown_timeout_seconds": 30,
}


class MeshError(Exception):
    """Devices or processes are missing; the message is one line for the user."""


class Processes(NamedTuple):
    """How many there are, which of them this is, and the address where they meet."""

    number: int = 1
    this: int | None = None
    coordinator: str | None = None


ALONE = Processes()


def make(shape: tuple[int, int], processes: Processes = ALONE) -> Mesh:
    """A mesh of data x vocabulary devices, the same number in each process.

    Nothing may use JAX before, since the first use fixes the number of devices. A CPU has as many
    devices as are asked for.
    """
    name = "{}x{}".format(*shape)
    in_each, rest = divmod(math.prod(shape), processes.number)
    if rest:
        raise MeshError(f"a mesh of {name} cannot be divided among {processes.number} processes")
    _ask_for_cpus(in_each)
    if processes.number > 1:
        _join(processes)
    by_process = [
        [device for device in jax.devices() if device.process_index == index]
        for index in range(processes.number)
    ]
    least = min(map(len, by_process))
    if least < in_each:
        raise MeshError(
            f"a mesh of {name} needs {in_each} devices in each process, and "
            f"{jax.default_backend()} has {least}; ask for a smaller one, or set "
            f"JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count={in_each}"
        )
    devices = [device for local in by_process for device in local[:in_each]]
    return Mesh(
        np.array(devices).reshape(shape),
        (_DATA, _VOCABULARY),
        axis_types=(AxisType.Auto, AxisType.Auto),
    )


def is_first_process() -> bool:
    """Whether this process is the one that prints the report."""
    return jax.process_index() == 0


def on_any_process(interrupted: Callable[[], bool]) -> Callable[[], bool]:
    """Whether any process is interrupted: all of them have to stop after the same step."""
    if jax.process_count() == 1:
        return interrupted
    return lambda: bool(np.any(multihost_utils.process_allgather(np.array(interrupted()))))


def leave(message: str) -> NoReturn:
    """End this process with an error; a usual exit would first wait for the lost processes."""
    print(f"\n{message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def windows_at_once(mesh: Mesh) -> int:
    """The number of windows that gives one to each part of the data axis."""
    return mesh.shape[_DATA]


def fill_up(mesh: Mesh, log_frequencies: np.ndarray) -> np.ndarray:
    """Adds entries of probability 0, until the vocabulary axis divides their number.

    Logits of minus infinity change neither the losses nor their gradients.
    """
    missing = -len(log_frequencies) % mesh.shape[_VOCABULARY]
    return np.pad(log_frequencies, (0, missing), constant_values=-np.inf)


def shardings(mesh: Mesh, tree: Any) -> Any:
    """How parameters lie on the mesh, and all that an optimizer keeps for each of them."""

    def sharding(path: tuple[Any, ...], _: Any) -> NamedSharding:
        name = getattr(path[-1], "key", "") if path else ""
        return NamedSharding(mesh, _SPECS.get(name, P()))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def over_data(mesh: Mesh) -> NamedSharding:
    """How windows lie on the mesh."""
    return NamedSharding(mesh, P(_DATA))


def put_windows(mesh: Mesh, *windows: np.ndarray) -> list[jax.Array]:
    """Windows, which every process holds in full, as arrays on the mesh."""
    return [
        jax.make_array_from_callback(array.shape, over_data(mesh), array.__getitem__)
        for array in windows
    ]


def of(parameters: dict[str, jax.Array]) -> Mesh:
    """The mesh that these parameters are on."""
    sharding = parameters["words"].sharding
    assert isinstance(sharding, NamedSharding)
    assert isinstance(sharding.mesh, Mesh)
    return sharding.mesh


def on_host(array: jax.Array) -> np.ndarray:
    """The whole of an array that may be spread over devices and processes."""
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))


def _ask_for_cpus(count: int) -> None:
    """Split the CPU into `count` devices, unless their number is fixed already."""
    if count == 1:
        return
    with contextlib.suppress(RuntimeError):  # JAX has started, perhaps with enough of them.
        jax.config.update("jax_num_cpu_devices", count)


def _join(processes: Processes) -> None:
    """Meet the other processes; one that does not answer for long counts as lost."""
    known = inspect.signature(jax.distributed.initialize).parameters
    patience: dict[str, Any] = {
        name: seconds for name, seconds in _PATIENCE.items() if name in known
    }
    # XLA itself ends a process that waits in vain, with a message that does not name the place.
    where = processes.coordinator or "a place that the cluster knows"
    limit = _PATIENCE["initialization_timeout"]
    message = f"meeting {processes.number} processes at {where}, within {limit} s ..."
    print(message, file=sys.stderr, flush=True)
    try:
        jax.distributed.initialize(
            processes.coordinator, processes.number, processes.this, **patience
        )
    except (RuntimeError, ValueError) as error:
        raise MeshError(f"cannot meet the other processes: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """The first line of the message of an error."""
    return str(error).partition("\n")[0]
