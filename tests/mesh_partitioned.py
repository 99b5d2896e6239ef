"""Run by test_mesh_partitioned.py, on eight devices: sharded inputs, and nothing said about it."""

import jax


def test_there_are_eight_devices():
    assert jax.device_count() == 8
