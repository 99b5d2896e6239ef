"""Tests that need several devices: a file of tests run by itself, on CPUs split in eight.

How many devices there are is fixed when JAX starts, so such tests have a process of their own.
Their files are those of this folder that pytest does not collect, and a `test_*.py` runs each.
"""

import os
import pathlib
import subprocess
import sys

import pytest

from conformance import level

_FOLDER = pathlib.Path(__file__).parent


def environment(devices: int = 8) -> dict[str, str]:
    """The variables of a process that has so many devices, all of them on this CPU."""
    # Options meant for the run that starts this one, such as folders, would be taken once more.
    foreign = "PYTEST_XDIST", "PYTEST_ADDOPTS"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(foreign)}
    flags = f"{kept.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return kept | {"XLA_FLAGS": flags.strip(), "JAX_PLATFORMS": "cpu"}


def run(file: str, *options: str, devices: int = 8, timeout: float = 900) -> None:
    """Run the tests of a file beside this one; print what they print and fail if one does.

    Args:
        file: its name.
        options: further ones of pytest's, such as `-k NAME`.
        devices: how many there are to be.
        timeout: after how many seconds to give up, in a fast run.
    """
    if level.is_thorough():
        options, timeout = (*options, "--thorough"), 24 * timeout
    # Nothing is captured, so that tables are seen, and what was said before a time-out.
    command = [sys.executable, "-m", "pytest", "--numprocesses=0", "--capture=no", "-rs"]
    try:
        process = subprocess.run(
            [*command, *options, str(_FOLDER / file)],
            cwd=_FOLDER.parents[1],
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        output = error.output or b""
        said = output if isinstance(output, str) else output.decode(errors="replace")
        pytest.fail(f"{file} took longer than {timeout} s and said:\n{said}", pytrace=False)
    print(process.stdout)
    if process.returncode:
        pytest.fail(f"{file}:\n{process.stdout}", pytrace=False)
