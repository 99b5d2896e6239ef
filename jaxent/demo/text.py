"""Where the text comes from, and which files of it training never sees."""

import hashlib
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

# Tests are a package of their own on some systems, so that with them the text would differ between
# machines. The last two hold tables that programs generated, not text that somebody wrote.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idle_test"} | {
    "encodings",
    "pydoc_data",
}
_HELD_OUT_SHARE = 1 / 16
# Enough to tell models apart by a hundredth of a bit, and little enough to score in seconds.
_HELD_OUT_BYTES = 200_000


class TextError(Exception):
    """A text that cannot be read or learned from; its message is one line for the user."""


class TextFile(NamedTuple):
    """A file's name, which decides whether it is held out, and its content."""

    name: str
    content: bytes


class Split(NamedTuple):
    """The training files and the held-out files."""

    training: list[TextFile]
    held_out: list[TextFile]


def standard_library() -> Split:
    """Python's own source, found through this interpreter, split by the files' hashes."""
    root = Path(sysconfig.get_paths()["stdlib"])
    names = sorted(
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if _LEFT_OUT.isdisjoint(path.relative_to(root).parts)
    )
    files = [TextFile(name, (root / name).read_bytes()) for name in names]
    files = [file for file in files if file.content and _problem(file.content) is None]
    if len(files) < 2:
        raise TextError(f"no Python source in {root}: name text files of your own with --text")
    return split_files(files)


def given_files(paths: Sequence[Path]) -> Split:
    """The files named by the user; of a single file, the last tenth is held out."""
    files = {}
    for path in paths:
        try:
            content = path.read_bytes()
            identity = path.resolve()
        except OSError as error:
            raise TextError(f"cannot read {path}: {error.strerror or error}") from error
        problem = _problem(content)
        if problem:
            raise TextError(f"{path} {problem}")
        files[identity] = TextFile(path.as_posix(), content)
    if len(files) > 1:
        return split_files(list(files.values()))
    [file] = files.values()
    return _split_in_two(file)


def split_files(files: Sequence[TextFile]) -> Split:
    """Hold out a sixteenth of the files, at least one, by the hashes of their names alone.

    Which file is held out depends on nothing but its name, so it is the same on every machine. Of
    a large collection only some of the held-out files are scored, in the order of their hashes;
    the others are not learned from either.
    """
    by_hash = sorted(files, key=_hash_of_name)
    below = sum(_hash_of_name(file) < _HELD_OUT_SHARE for file in files)
    count = min(max(below, 1), len(files) - 1)
    held_out, training = by_hash[:count], by_hash[count:]
    scored, size = [], 0
    for file in held_out:
        if not scored or size + len(file.content) <= _HELD_OUT_BYTES:
            scored.append(file)
            size += len(file.content)
    return Split(training, scored)


def _split_in_two(file: TextFile) -> Split:
    """Cut after the line end closest before the last tenth, or else right at the tenth."""
    tenth = max(1, len(file.content) // 10)
    cut = len(file.content) - tenth
    cut = file.content.rfind(b"\n", 0, cut) + 1 or cut
    if cut == 0:
        raise TextError(f"{file.name} is too short to hold a part of it out")
    held_out = file.content[cut:][:_HELD_OUT_BYTES]
    return Split(
        [TextFile(file.name, file.content[:cut])], [TextFile(f"{file.name} (its end)", held_out)]
    )


def _hash_of_name(file: TextFile) -> float:
    """A number in [0, 1) that depends on the file's name only."""
    return int.from_bytes(hashlib.sha256(file.name.encode()).digest()[:7]) / 2**56


def _problem(content: bytes) -> str | None:
    """Why these bytes are no text to learn from, or None if they are."""
    if not content:
        return "is empty"
    if b"\0" in content:
        return "is a binary file: it holds NUL bytes"
    try:
        content.decode()
    except UnicodeDecodeError as error:
        return f"is not UTF-8 text: {error.reason} at byte {error.start}"
    return None
