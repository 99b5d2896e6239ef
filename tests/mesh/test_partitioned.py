"""Under the partitioner: the same functions of sharded inputs, on eight devices."""

from mesh import on_devices


def test_sharded_inputs():
    on_devices.run("partitioned.py")
