"""The README tells the truth: its code runs, prints what it says, and its figures have a source."""

import re
from pathlib import Path

import pytest

from project.documents import BLOCK, blocks, examples, printed
from public import FUNCTIONS, OTHER_NAMES_OF_OPTAX

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "README.md"
README = PAGE.read_text("utf-8")
BLOCKS = blocks(PAGE)
EXAMPLES = examples(PAGE)
COMMANDS = [
    'python -m pip install ".[demo]" && python -m jaxent',
    'python -m pip install -e ".[test]" && python -m pytest',
]
# A measured figure: a decimal or a power of ten, or a count with a unit or a ratio's cross.
FIGURE = re.compile(
    r"(?<!Python )\b\d+(\.\d+|(\.\d+)?e[+-]?\d+)\b|\b\d+ ?(×|x\b|%|[KMG]iB|m?s\b|ulp)"
)
SOURCE = re.compile(r"`python (?:-m )?([\w./]+)[^`]*`")


def sections() -> dict[str, str]:
    """The prose and tables under each heading, without the code blocks."""
    _, *parts = re.split(r"^#+ (.+)\n", BLOCK.sub("", README), flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def exists(source: str) -> bool:
    return (ROOT / source).is_file() or source in (
        "jaxent",
        "jaxent.plan",
        "pytest",
        "pip",
        "sphinx",
    )


def unsourced(text: str) -> list[str]:
    """The figures in a section that names no command which they could have come from."""
    commands = [name for name in SOURCE.findall(text) if name != "pip" and exists(name)]
    return [] if commands else [match.group() for match in FIGURE.finditer(text)]


def test_every_python_block_shows_what_it_prints():
    assert {block[1] for block in BLOCKS} == {"python", "text", "sh"}
    assert len(EXAMPLES) == sum(block[1] == "python" for block in BLOCKS)


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_python_block_prints_what_the_readme_says(example):
    assert printed(example) == example.expected


def test_shell_blocks_hold_exactly_the_two_commands():
    lines = [block[2].splitlines() for block in BLOCKS if block[1] == "sh"]
    assert lines == [[command] for command in COMMANDS]


def test_it_says_what_jaxent_is_in_ten_lines():
    opening = README.partition("```")[0].splitlines()
    title, *prose = [line for line in opening if line]
    assert title == "# jaxent"
    assert len(prose) <= 10


def test_its_table_lists_exactly_the_public_functions():
    table = sections()["What there is"]
    cells = [line.split("|")[2] for line in table.splitlines() if line.startswith("| ")][1:]
    listed = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    # The other name that optax has for a function is told on the page of the migration.
    assert sorted(listed) == sorted(set(FUNCTIONS) - OTHER_NAMES_OF_OPTAX)


def test_every_figure_has_its_command_beside_it():
    missing = {heading: unsourced(text) for heading, text in sections().items()}
    assert {heading: found for heading, found in missing.items() if found} == {}


def test_every_command_named_exists():
    assert [source for source in SOURCE.findall(README) if not exists(source)] == []


@pytest.mark.parametrize("text", ["0.9 of plain", "17 MiB", "12x faster", "4.1e-09", "half: 50%"])
def test_the_figure_checker_refuses(text):
    assert unsourced(text)
    assert unsourced(f"{text}, from `python benchmarks/no_such_file.py`")
    assert not unsourced(f"{text}, from `python -m jaxent --steps 10`")
