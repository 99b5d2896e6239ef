"""Inside `jax.shard_map`, with the classes split over devices: see inside.py."""

from mesh import on_devices


def test_split_classes():
    on_devices.run("inside.py")
