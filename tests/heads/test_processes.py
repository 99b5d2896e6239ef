"""Two processes that are one machine to JAX: the same training, and an end if one of them ends."""

import contextlib
import inspect
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from heads import process_head

ROOT = Path(__file__).parents[2]
STEPS = 12
# Seconds: the longest that a test may last, and that a process may outlive the other one.
LIMIT, ALONE = 60, 45
TEXT = inspect.getsource(inspect)[:3000]


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


def wait_for(sign: str, running: Sequence[subprocess.Popen[str]], directory: Path) -> None:
    """Until all of them have said it."""
    begin = time.monotonic()
    while not all(sign in said(directory, index) for index in range(len(running))):
        everything = [said(directory, index) for index in range(len(running))]
        assert time.monotonic() - begin < LIMIT, everything
        assert not any(process.poll() for process in running), everything
        time.sleep(0.1)


def heads(steps: int, port: int) -> list[list[str]]:
    script = str(Path(process_head.__file__))
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


@pytest.mark.thorough(beyond=1)
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_is_killed_ends_the_other(victim, tmp_path):
    with free_port() as port, processes(*heads(0, port), directory=tmp_path) as both:
        wait_for("ten steps", both, tmp_path)
        both[victim].send_signal(signal.SIGKILL)
        killed = time.monotonic()
        code = both[1 - victim].wait(ALONE)
        print(f"it ended after {time.monotonic() - killed:.1f} s, exit code {code}")
    assert code != 0
    last_words = said(tmp_path, 1 - victim)
    assert "Connection closed by peer" in last_words or "another task died" in last_words


# The main job.


def jobs(port: int, *options: str) -> list[list[str]]:
    """The main job on a mesh of 2 x 2 devices, two in each of two processes."""
    meeting = ["--processes", "2", "--coordinator", f"localhost:{port}", "--process"]
    return [[*job(*options), "--mesh", "2x2", *meeting, str(index)] for index in (0, 1)]


def job(*options: str) -> list[str]:
    return ["-m", "jaxent", "--text", "text", "--vocabulary", "301", "--out", ".", *options]


def cross_entropy(report: str) -> float:
    [found] = re.findall(r"cross-entropy +([\d.]+) +nats per token", report)
    return float(found)


@pytest.mark.thorough
def test_the_main_job_in_two_processes_learns_the_same(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    with free_port() as port:
        commands = *jobs(port, "--steps", "3"), job("--steps", "3")
        with processes(*commands, directory=tmp_path) as running:
            for index, process in enumerate(running):
                assert process.wait(LIMIT) == 0, said(tmp_path, index)
    report, other, alone = ((tmp_path / f"out{index}").read_text() for index in (0, 1, 2))
    assert "2 parts of the data by 2 of the vocabulary, in 2 processes\n" in report
    assert cross_entropy(report) == pytest.approx(cross_entropy(alone), abs=2e-4)
    assert "cross-entropy" not in other


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="Windows sends no SIGINT to one process")
def test_an_interrupt_of_one_process_ends_both_with_a_report(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    with (
        free_port() as port,
        processes(*jobs(port, "--steps", "100000"), directory=tmp_path) as both,
    ):
        wait_for("tokens/s", both, tmp_path)
        both[1].send_signal(signal.SIGINT)
        for index, process in enumerate(both):
            assert process.wait(LIMIT) == 130, said(tmp_path, index)
    assert cross_entropy((tmp_path / "out0").read_text()) > 0


@pytest.mark.thorough
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_the_main_job_says_that_it_lost_a_process(tmp_path):
    (tmp_path / "text").write_text(TEXT)
    with (
        free_port() as port,
        processes(*jobs(port, "--steps", "100000"), directory=tmp_path) as both,
    ):
        wait_for("tokens/s", both, tmp_path)
        both[1].send_signal(signal.SIGKILL)
        assert both[0].wait(ALONE) == 1, said(tmp_path, 0)
    assert "python -m jaxent: error: lost another process: " in said(tmp_path, 0)
