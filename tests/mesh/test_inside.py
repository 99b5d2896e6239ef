"""Inside `jax.shard_map`, with the classes split over devices: see mesh/inside.py."""

import pytest

from mesh import on_devices


def test_split_classes():
    on_devices.run("inside.py", "-m", "not thorough")


@pytest.mark.thorough
def test_split_classes_thoroughly():
    on_devices.run("inside.py", "-m", "thorough", timeout=1800)
