"""CONTRIBUTING.md and the hooks say what is so: their commands, files and tests exist."""

import re
import shlex
import tomllib
from pathlib import Path

import pytest
import yaml

from project.documents import blocks

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "CONTRIBUTING.md"
TEXT = GUIDE.read_text("utf-8")
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"
]
PAGES = [*sorted((ROOT / "docs").rglob("*.md")), GUIDE]
COMMANDS = [
    line
    for page in PAGES
    for block in blocks(page)
    if block[1] == "sh"
    for line in block[2].splitlines()
]
HOOKS = ROOT / ".pre-commit-config.yaml"
CI = ROOT / ".ci" / "run"
# Neither is part of a source distribution.
in_a_clone = pytest.mark.skipif(not CI.exists(), reason="no clone")


def hooks() -> list[dict]:
    (local,) = yaml.safe_load(HOOKS.read_text("utf-8"))["repos"]
    assert local["repo"] == "local"
    return local["hooks"]


@in_a_clone
def test_a_commit_runs_the_checks_of_ci_and_no_others():
    in_ci = dict(
        re.findall(r'^part "([^"]+)" within main "([^"]+)"$', CI.read_text(), re.MULTILINE)
    )
    on_commit = {hook["name"]: hook["entry"] for hook in hooks() if "stages" not in hook}
    assert on_commit == in_ci
    assert len(in_ci) == 4


@in_a_clone
def test_hooks_use_what_is_installed_and_see_all_files():
    for hook in hooks():
        assert hook["language"] == "system"
        assert hook["pass_filenames"] is False


@in_a_clone
def test_a_push_runs_the_quickest_test_command_of_the_guide():
    (push,) = (hook["entry"] for hook in hooks() if "stages" in hook)
    assert push == next(line for line in COMMANDS if line.startswith("python -m pytest -n 0"))


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_name_what_exists(command, pytestconfig):
    words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
    for word in words:
        if word.startswith("tests/"):
            assert (ROOT / word).is_file()
        for extra in re.findall(r"^\.\[(.*)\]$", word):
            assert extra in EXTRAS
    if words[:3] == ["python", "-m", "pytest"]:
        pytestconfig._parser.parse_known_args(words[3:])
        if "-k" in words:
            (path,) = (ROOT / word for word in words if word.startswith("tests/"))
            sources = path.parent.rglob("*.py")
            assert any(words[words.index("-k") + 1] in source.read_text() for source in sources)
    if words[:2] == ["python", "-m"] and words[2].startswith("jaxent"):
        _, _, module = words[2].partition(".")
        files = (ROOT / "jaxent").glob(f"{module}.py" if module else "demo/*.py")
        source = "".join(file.read_text("utf-8") for file in files)
        assert [word for word in words if word[:2] == "--" and f'"{word}"' not in source] == []


def test_the_tests_that_tell_what_was_forgotten_exist():
    rows = re.findall(r"^\| .* \| `(test_\w+\.py)`: (.*) \|$", TEXT, re.MULTILINE)
    assert len(rows) > 10
    for file, tests in rows:
        (path,) = (ROOT / "tests").rglob(file)
        source = "".join(each.read_text("utf-8") for each in path.parent.rglob("*.py"))
        for name in re.findall(r"`(\w+?)(?:\.\.\.)?`", tests):
            assert f"def {name}" in source, name


def test_files_named_exist():
    for path in re.findall(r"`((?:jaxent|tests|docs|\.ci)/[^`]*)`", TEXT):
        assert list(ROOT.glob(path)) or (path.startswith(".ci") and not CI.exists()), path
