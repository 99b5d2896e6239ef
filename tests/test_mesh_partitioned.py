"""Under the partitioner: the same functions of sharded inputs, on eight devices."""

import on_devices
import pytest


def test_sharded_inputs():
    on_devices.run("mesh_partitioned.py", "-m", "not thorough")


@pytest.mark.thorough
def test_sharded_inputs_thoroughly():
    on_devices.run("mesh_partitioned.py", "-m", "thorough", timeout=1800)
