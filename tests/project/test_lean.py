"""No program grows unseen: the size of each public function with its gradient is recorded.

`PYTHONPATH=tests python tests/project/test_lean.py` records it anew, for new functions and after a
change that is meant. The figures are those of one version of JAX, and are compared with it alone.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import pytest

from calls import CALLS, Rows, gradients, plain
from public import FUNCTIONS

RECORD = Path(__file__).with_name("sizes.json")
ROWS = 512


def equations(jaxpr: Any) -> int:
    """How many equations a jaxpr has, with those of what it calls in their place."""
    return sum(sum(map(equations, called(each.params))) or 1 for each in jaxpr.eqns)


def called(parameters: Mapping[str, Any]) -> list[Any]:
    values = itertools.chain.from_iterable(
        value if isinstance(value, tuple | list) else (value,) for value in parameters.values()
    )
    jaxprs = (getattr(value, "jaxpr", value) for value in values)
    return [each for each in jaxprs if hasattr(each, "eqns")]


def traced(name: str) -> Any:
    function = plain(name)

    def value_and_gradients(*arguments: Any) -> Any:
        return function(*arguments), gradients(function)(*arguments)

    return jax.jit(value_and_gradients).trace(*CALLS[name].make(Rows(ROWS)))


def sizes(name: str) -> dict[str, int]:
    trace = traced(name)
    memory = trace.lower().compile().memory_analysis()
    return {
        "equations": equations(trace.jaxpr.jaxpr),
        "bytes": 0 if memory is None else memory.temp_size_in_bytes,
    }


@pytest.fixture(scope="module")
def recorded() -> dict[str, dict[str, int]]:
    record = json.loads(RECORD.read_text())
    if record["jax"] != jax.__version__:
        pytest.skip(f"the sizes are those of JAX {record['jax']}")
    return record["sizes"]


@pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")
def test_no_function_has_more_equations(recorded):
    found = {name: equations(traced(name).jaxpr.jaxpr) for name in recorded}
    more = {
        name: f"{number}, not {recorded[name]['equations']}"
        for name, number in found.items()
        if number > recorded[name]["equations"]
    }
    assert not more, f"{more}; the first lines of this file say how to record what is meant"


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")
def test_no_function_takes_more_memory(recorded):
    found = {name: sizes(name)["bytes"] for name in recorded}
    # Small buffers differ from processor to processor.
    more = {
        name: f"{number}, not {recorded[name]['bytes']}"
        for name, number in found.items()
        if number > 1.1 * recorded[name]["bytes"] + 4096
    }
    assert not more, f"{more}; the first lines of this file say how to record what is meant"


if __name__ == "__main__":
    found = {name: sizes(name) for name in FUNCTIONS}
    lines = (f'    "{name}": {json.dumps(each)}' for name, each in found.items())
    text = ",\n".join(lines)
    RECORD.write_text(f'{{\n  "jax": "{jax.__version__}",\n  "sizes": {{\n{text}\n  }}\n}}\n')
