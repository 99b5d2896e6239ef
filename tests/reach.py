"""What a change can reach, by the imports: for `pytest --since`."""

import functools
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import grimp

import jaxent
from public import FUNCTIONS

ROOT = Path(__file__).parents[1]
# Tests of one or a few functions; the others are asked whatever changed.
BY_FUNCTION = ("conformance", "losses", "heads")


def changed_files(revision: str) -> list[Path]:
    """Files that differ from those of a revision, below the root."""

    def git(*arguments: str) -> list[str]:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    committed = git("diff", "--name-only", revision, "--")
    return list(map(Path, committed + git("ls-files", "--others", "--exclude-standard")))


def functions_reached(paths: Iterable[Path]) -> set[str]:
    """Public functions whose module is one of these files, or depends on one."""
    graph = grimp.build_graph("jaxent", cache_dir=None)
    modules = {".".join(path.with_suffix("").parts) for path in paths} & graph.modules
    reached = modules.union(*map(graph.find_downstream_modules, modules))
    return {name for name in FUNCTIONS if getattr(jaxent, name).__module__ in reached}


def is_shared(path: Path) -> bool:
    """Whether tests of any function may depend on the file."""
    in_tests = path.parts[0] == "tests" and not path.name.startswith("test_")
    return in_tests or path.name in ("pyproject.toml", "__init__.py")


def can_reach(paths: list[Path], functions: set[str], test: Path, parameters: dict) -> bool:
    """Whether a change of these files, which reaches these functions, can reach a test."""
    test = test.relative_to(ROOT)
    if test in paths or any(map(is_shared, paths)):
        return True
    if case := parameters.get("case") or getattr(parameters.get("tooth"), "case", None):
        return getattr(case, "name", None) in functions or not hasattr(case, "function")
    if named := {v for v in parameters.values() if isinstance(v, str) and v in FUNCTIONS}:
        return not functions.isdisjoint(named)
    return test.parent.name not in BY_FUNCTION or not functions.isdisjoint(_names_in(test))


@functools.cache
def _names_in(test: Path) -> set[str]:
    return set(re.findall(r"\w+", (ROOT / test).read_text()))
