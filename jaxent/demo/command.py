"""The command line: what to learn from, for how long, and where the picture goes."""

import argparse
import contextlib
import errno
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import jax

from jaxent.demo import curve, text, training, vocabulary
from jaxent.demo import mesh as meshes
from jaxent.demo.experiment import run
from jaxent.demo.interrupt import interrupt_noted
from jaxent.demo.loop import NothingLearnedError
from jaxent.demo.report import report

_PICTURE = "learning-curve.png"
_INTERRUPTED = 130
_DESCRIPTION = """\
Train a small language model on the source of Python's standard library, and report what its
cross-entropy means: how many bits it takes to write down files that it never saw, beside gzip, lzma
and models that only count words. The loss runs through jaxent's streamed head; the report says what
that saves. Takes less than three minutes on two processor cores. With --mesh the same job is spread
over devices, of one process or of several: start the same command in each, with its own --process.
"""
_EPILOGUE = f"""\
Ctrl-C ends the training and still prints the report of what was learned, with exit code
{_INTERRUPTED}; a second Ctrl-C ends that too. Whatever is wrong with an option or a file is one
line on stderr, and exit code 2.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    picture = options.out / _PICTURE
    batch = _batch(options, parser)
    processes = meshes.Processes(options.processes, options.process, options.coordinator)
    try:
        split = text.given_files(options.text) if options.text else text.standard_library()
        mesh = meshes.make(options.mesh, processes)
        reports = meshes.is_first_process()
        if reports:
            with _errors_about(picture, parser):
                _prepare_to_write(picture)
        with interrupt_noted() as interrupted_here:
            interrupted = meshes.on_any_process(interrupted_here)
            findings, learning_curve = run(
                split,
                vocabulary_size=options.vocabulary,
                steps=options.steps,
                head=options.head,
                seed=options.seed,
                mesh=mesh,
                batch=batch,
                interrupted=interrupted,
            )
            if reports:
                print(report(findings), flush=True)
                with _errors_about(picture, parser):
                    curve.draw(picture, learning_curve, findings.baseline_bits_per_byte)
                print(f"\nThe learning curve is in {picture}", flush=True)
            return _INTERRUPTED if interrupted() else 0
    except (text.TextError, meshes.MeshError) as error:
        parser.error(str(error))
    except jax.errors.JaxRuntimeError as error:
        if processes.number == 1:
            raise
        meshes.leave(f"python -m jaxent: error: lost another process: {meshes.first_line(error)}")
    except NothingLearnedError:
        return _interrupted("interrupted before the first step: nothing was learned")
    except KeyboardInterrupt:
        return _interrupted("interrupted")


class _OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line: no usage in front of them."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser("python -m jaxent", description=_DESCRIPTION, epilog=_EPILOGUE)
    add = parser.add_argument
    add(
        "--text",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="learn from these UTF-8 files instead; one in sixteen is held out, at least one, "
        "and of a single file its last tenth",
    )
    add(
        "--vocabulary",
        type=_integer(vocabulary.SMALLEST),
        default=32_768,
        metavar="ENTRIES",
        help=f"size of the vocabulary, at least {vocabulary.SMALLEST}; a text with fewer words "
        "gets a smaller one (default: %(default)s)",
    )
    add(
        "--steps",
        type=_integer(1),
        default=60,
        metavar="STEPS",
        help="training steps of up to "
        f"{training.BATCH * training.WINDOW} tokens each (default: %(default)s)",
    )
    add(
        "--head",
        choices=list(training.HEADS),
        default="streamed",
        help="train through jaxent's streamed head, or from plain logits (default: %(default)s)",
    )
    add(
        "--batch",
        type=_integer(1),
        metavar="WINDOWS",
        help=f"windows of {training.WINDOW} tokens in a training step, a multiple of DATA "
        f"(default: {training.BATCH}, or the next multiple)",
    )
    add(
        "--mesh",
        type=_mesh,
        default=(1, 1),
        metavar="DATAxVOCABULARY",
        help="run on so many devices, such as 4x2, with the data split over the first axis and the "
        "vocabulary over the second; on CPUs, each core may be several (default: 1x1)",
    )
    add(
        "--processes",
        type=_integer(1),
        default=1,
        metavar="PROCESSES",
        help="how many processes hold the devices of the mesh together (default: %(default)s)",
    )
    add(
        "--process",
        type=_integer(0),
        metavar="PROCESS",
        help="which of them this is; 0 prints the report",
    )
    add(
        "--coordinator",
        metavar="HOST:PORT",
        help="where the processes meet, a free port of the host of process 0; where JAX knows the "
        "cluster, it finds out this and --process by itself",
    )
    add(
        "--seed",
        type=_integer(0, 2**32 - 1),
        default=0,
        help="the same seed on the same machine gives the same model (default: %(default)s)",
    )
    add(
        "--out",
        type=Path,
        default=Path("jaxent-demo"),
        metavar="DIR",
        help=f"where {_PICTURE} goes (default: %(default)s)",
    )
    return parser


def _integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """A reader of whole numbers in these bounds."""
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"

    def read(written: str) -> int:
        try:
            value = int(written)
        except ValueError:
            value = None
        if value is None or value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{written!r} is not a whole number {bounds}")
        return value

    return read


def _mesh(written: str) -> tuple[int, int]:
    """A reader of two sizes with an x between them."""
    found = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", written)
    if found is None:
        raise argparse.ArgumentTypeError(f"{written!r} is not a mesh such as 4x2")
    return int(found[1]), int(found[2])


def _batch(options: argparse.Namespace, parser: argparse.ArgumentParser) -> int:
    """The number of windows in a step, which the parts of the data axis divide evenly."""
    data, _ = options.mesh
    batch = options.batch or data * -(-training.BATCH // data)
    if batch % data:
        parser.error(
            f"argument --batch: {batch} windows cannot be split evenly into {data}; take "
            f"{data * -(-batch // data)}"
        )
    return batch


@contextlib.contextmanager
def _errors_about(picture: Path, parser: argparse.ArgumentParser) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        parser.error(f"cannot write {picture}: {error.strerror or error}")


def _prepare_to_write(picture: Path) -> None:
    """Fail now, not after the training, if the picture cannot be written."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    if picture.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    with tempfile.TemporaryFile(dir=picture.parent):
        pass


def _interrupted(message: str) -> int:
    print(f"python -m jaxent: {message}", file=sys.stderr)
    return _INTERRUPTED
