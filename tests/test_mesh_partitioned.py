"""Under the partitioner: the same functions of sharded inputs, on eight devices."""

import on_devices


def test_sharded_inputs():
    on_devices.run("mesh_partitioned.py")
