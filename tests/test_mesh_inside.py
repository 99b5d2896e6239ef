"""Inside `jax.shard_map`, with the classes split over devices: see mesh_inside.py."""

import on_devices
import pytest


def test_split_classes():
    on_devices.run("mesh_inside.py", "-m", "not thorough")


@pytest.mark.thorough
def test_split_classes_thoroughly():
    on_devices.run("mesh_inside.py", "-m", "thorough", timeout=1800)
