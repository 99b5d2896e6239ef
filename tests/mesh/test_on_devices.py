"""What the processes with several devices are given."""

from mesh import on_devices


def test_options_of_the_run_are_not_passed_on(monkeypatch):
    """Folders among them would run in that process as well, which would start another."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "tests/mesh")
    assert "PYTEST_ADDOPTS" not in on_devices.environment()
