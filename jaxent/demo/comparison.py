"""What the training step costs on each device with either head.

Memory and bytes sent to other devices are read from the compiled program; the time is measured,
with the programs taking turns.
"""

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxent.plan import collectives

_ROUNDS = 5


class StepCost(NamedTuple):
    """Memory besides arguments and results, None where JAX does not know it, and median seconds.

    What is sent is in bytes, by the kind of collective.
    """

    temporary_bytes: int | None
    seconds: float
    sent_bytes: Mapping[str, float]


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
        name: StepCost(
            _temporary_bytes(program), statistics.median(seconds[name]), _sent_bytes(program)
        )
        for name, program in programs.items()
    }


def _temporary_bytes(program: jax.stages.Compiled) -> int | None:
    return getattr(program.memory_analysis(), "temp_size_in_bytes", None)


def _sent_bytes(program: jax.stages.Compiled) -> Mapping[str, float]:
    sent = defaultdict(float)
    for collective in collectives(program.as_text() or ""):
        sent[collective.kind] += collective.sent
    return sent
