"""Code blocks of Markdown pages, run as their reader would run them."""

import contextlib
import io
import itertools
import re
from pathlib import Path
from typing import Any, NamedTuple

import jax

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Example(NamedTuple):
    """A Python block, the line above it, and the output that the page prints right below."""

    page: Path
    line: int
    code: str
    expected: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[re.Match[str]]:
    return list(BLOCK.finditer(page.read_text("utf-8")))


def examples(page: Path) -> list[Example]:
    text = page.read_text("utf-8")
    return [
        Example(page, text.count("\n", 0, block.start(2)), block[2], following[2])
        for block, following in itertools.pairwise(blocks(page))
        if (block[1], following[1]) == ("python", "text")
    ]


def printed(example: Example) -> str:
    """What a block prints in a session of the reader's own: JAX's default settings, no names."""
    return run(example)[0]


def run(example: Example) -> tuple[str, dict[str, Any]]:
    """What a block prints, and the names that it leaves."""
    # Compiled at its own line, so that a traceback shows the page's line that failed.
    program = compile("\n" * example.line + example.code, example.page, "exec")
    output, names = io.StringIO(), {"__name__": "page"}
    with (
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        contextlib.redirect_stdout(output),
    ):
        exec(program, names)
    return output.getvalue(), names
