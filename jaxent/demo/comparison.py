"""What the training step costs with either head: compiled memory, and time measured in turns."""

import statistics
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

_ROUNDS = 5


class StepCost(NamedTuple):
    """Memory besides arguments and results, None where JAX does not know it, and median seconds."""

    temporary_bytes: int | None
    seconds: float


def compare(programs: Mapping[str, jax.stages.Compiled], *arguments: Any) -> dict[str, StepCost]:
    """Run the programs in turns, so that a busy machine slows all of them alike."""
    seconds = {name: [] for name in programs}
    for turn in range(_ROUNDS + 1):
        for name in sorted(programs, reverse=turn % 2 == 1):
            begin = time.perf_counter()
            jax.block_until_ready(programs[name](*arguments))
            if turn > 0:  # The first turn warms up.
                seconds[name].append(time.perf_counter() - begin)
    return {
        name: StepCost(_temporary_bytes(program), statistics.median(seconds[name]))
        for name, program in programs.items()
    }


def _temporary_bytes(program: jax.stages.Compiled) -> int | None:
    return getattr(program.memory_analysis(), "temp_size_in_bytes", None)
