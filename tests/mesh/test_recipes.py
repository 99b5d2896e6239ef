"""The recipes for many devices, and for many micro-batches, hold on eight devices."""

from mesh import on_devices


def test_the_recipes_on_eight_devices():
    on_devices.run("recipes.py")
