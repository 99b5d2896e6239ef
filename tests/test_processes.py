"""Two processes that are one machine to JAX: the same training, and an end if one of them ends."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import process_head
import pytest

ROOT = Path(__file__).parents[1]
STEPS = 12
# Seconds: the longest that a test may last, and that a process may outlive the other one.
LIMIT, ALONE = 60, 45


@contextlib.contextmanager
def free_port() -> Iterator[int]:
    """A port of this machine, kept from everybody but servers that share it, as gRPC's do."""
    with socket.socket() as holder:
        if not hasattr(socket, "SO_REUSEPORT"):
            holder.bind(("localhost", 0))
            port = holder.getsockname()[1]
            holder.close()
        else:
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            holder.bind(("localhost", 0))
            port = holder.getsockname()[1]
        yield port


@contextlib.contextmanager
def processes(*commands: Sequence[str], directory: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Commands at work, with their output in files; none of them is left behind."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    environment = kept | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    with contextlib.ExitStack() as stack:
        running = []
        for index, command in enumerate(commands):
            out, err = (
                stack.enter_context(open(directory / f"{name}{index}", "w"))
                for name in ("out", "err")
            )
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=directory,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append(process)
        yield running


def said(directory: Path, index: int) -> str:
    """What a process has said so far, on stdout and stderr."""
    return "".join((directory / f"{name}{index}").read_text() for name in ("out", "err"))


def heads(steps: int, port: int) -> list[list[str]]:
    script = str(ROOT / "tests" / "process_head.py")
    return [[script, str(index), str(port), str(steps), "result.npz"] for index in (0, 1)]


def test_two_processes_train_a_head_as_one_does(tmp_path):
    with free_port() as port, processes(*heads(STEPS, port), directory=tmp_path) as both:
        for index, process in enumerate(both):
            assert process.wait(LIMIT) == 0, said(tmp_path, index)
    result = np.load(tmp_path / "result.npz")
    hidden, kernel, labels = map(jnp.asarray, process_head.data())
    state, losses, gradient = process_head.OPTIMIZER.init(kernel), [], kernel
    for _ in range(STEPS):
        kernel, state, loss, gradient = process_head.training_step(kernel, state, hidden, labels)
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(result["losses"], losses, rtol=1e-6)
    np.testing.assert_allclose(result["gradient"], gradient, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(result["kernel"], kernel, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other(victim, tmp_path):
    with free_port() as port, processes(*heads(0, port), directory=tmp_path) as both:
        begin = time.monotonic()
        while not all("ten steps" in said(tmp_path, index) for index in (0, 1)):
            assert time.monotonic() - begin < LIMIT, said(tmp_path, 0) + said(tmp_path, 1)
            assert not any(process.poll() for process in both), said(tmp_path, 0)
            time.sleep(0.1)
        both[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code = both[1 - victim].wait(ALONE)
        print(f"it ended after {time.monotonic() - killed:.1f} s, exit code {code}")
    assert code != 0
    last_words = said(tmp_path, 1 - victim)
    assert "Connection closed by peer" in last_words or "another task died" in last_words
