"""Under the partitioner: the same functions of sharded inputs, on eight devices."""

import pytest

from mesh import on_devices


def test_sharded_inputs():
    on_devices.run("partitioned.py", "-m", "not thorough")


@pytest.mark.thorough
def test_sharded_inputs_thoroughly():
    on_devices.run("partitioned.py", "-m", "thorough", timeout=1800)
