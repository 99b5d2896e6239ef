"""A mutation tester: breaks jaxent in one place at a time, and asks the tests whether they notice.

    python benchmarks/mutants.py --sample 150 --seed 0 --only _kernels

Each mutant is run against tests of the functions that reach the changed one: their property tests,
the tests of files that name them, their examples and their rows of the tables. What is known is
read from `--results` and not run again, so that a run can be stopped and taken up. Mutants that
change no result are listed in EQUIVALENT with the reason, and printed like the others.
"""

import argparse
import ast
import difflib
import functools
import importlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
FOLDERS = ("_kernels", "_losses", "_heads", "_float", "_masks")
# A mutant, as its file and the changed line, and why it changes no result.
_UNSELECTED = "what it changes is not selected, and has a rule for its derivative"
_NO_ZERO = "a product: the only tangent is never a symbolic zero"
_BOUND = (
    "ordinary vectors are multiplied as they are: scales are powers of two, and change no digit"
)
EQUIVALENT: dict[str, str] = {
    "_kernels/similarity.py: return jnp.all((square > 2.0**-12) & (square < 4.0**60))": _BOUND,
    "_kernels/similarity.py: return jnp.all((square > 4.0**-12) & (square < 2.0**60))": _BOUND,
    "_kernels/similarity.py: return jnp.all((square > 2.0**-12) & ((square) <= (2.0**60)))": _BOUND,
    "_masks.py: jnp.broadcast_to(where, jnp.broadcast_shapes(array.shape, where.shape)), axes": (
        "either order"
    ),
    "_losses/logits.py: dtype = compute_dtype(priors, logits)": "either order",
    "_kernels/margin.py: return loss, broadcast_tangent(dot_tangent(tangents[0], grad), loss)": (
        _NO_ZERO
    ),
    "_kernels/regression.py: square = jnp.square((size))": _UNSELECTED,
    "_losses/similarity.py: results = measure(a, b, jnp.sqrt(jnp.where(valid, epsilon, 1.0)))": (
        "the results of an invalid epsilon are NaN"
    ),
    "_kernels/embedding.py: is_ordinary = jnp.all((near > low) & ((near) <= (high)) & (far > low) "
    "& (far < high))": "either way of scaling is right at the bound itself",
    "_kernels/embedding.py: terms = [dot_tangent(*each) for each in zip(grads, tangents[:3], "
    "strict=False)]": "both have three entries",
    "_kernels/embedding.py: return jnp.where(is_zero, 0.0, jnp.power(jnp.where(is_zero, 2.0, x), "
    "exponent))": _UNSELECTED,
    "_kernels/poisson.py: near = larger * expm1_minus_x((distance))": _UNSELECTED,
    "_kernels/poisson.py: small, larger = (counts), jnp.maximum(counts, _SMALL_COUNT)": _UNSELECTED,
    "_heads/sizes.py: return TileSizes(2048, 2**20)": "a size: any gives the same to roundings",
    "_float/two_part.py: return rounded, float(Fraction(number) - Fraction(rounded)) if is_finite "
    "else 1.0": "beside an infinite number nothing counts",
    "_kernels/entropy.py: p = jnp.exp(x - shift[..., None]) * ((inverse_sum(stats)) / "
    "(nan_where_empty(stats)))[..., None]": "the divisor is 1 or NaN",
    "_kernels/focal.py: return jnp.where(terms.c_over_total == jnp.inf, 1.0, terms.c_over_total)": (
        "it is multiplied by 0"
    ),
}

OPERATORS = {
    ast.Add: "-",
    ast.Sub: "+",
    ast.Mult: "/",
    ast.Div: "*",
    ast.Pow: "*",
    ast.BitAnd: "|",
    ast.BitOr: "&",
    ast.And: "or",
    ast.Or: "and",
    ast.Lt: "<=",
    ast.LtE: "<",
    ast.Gt: ">=",
    ast.GtE: ">",
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Is: "is not",
    ast.IsNot: "is",
}
DROPPED = {
    "stop_gradient", "nan_where_invalid", "zero_where_masked", "abs", "square", "exp", "log",
    "log1p", "expm1", "sum", "psum", "pmax", "maximum", "minimum", "sqrt", "negative", "clip",
}  # fmt: skip
SYMMETRIC = {"maximum", "minimum", "add", "multiply", "logical_and", "logical_or", "isinstance"}


class Mutant(NamedTuple):
    path: str  # below jaxent/
    line: int
    start: int  # offsets in the file's bytes
    end: int
    new: str

    @property
    def key(self) -> str:
        """The file, the changed line and where it is if others read alike."""
        return f"{self.name} @{self.start}"

    @property
    def name(self) -> str:
        """The file and its line, or lines, as changed: the same when others before it change."""
        source = (ROOT / "jaxent" / self.path).read_bytes()
        begin = source.rfind(b"\n", 0, self.start) + 1
        end = source.find(b"\n", self.end)
        line = source[begin : self.start] + self.new.encode() + source[self.end : end]
        return f"{self.path}: {' '.join(line.decode().split())}"

    def text(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def diff(self) -> str:
        source = (ROOT / "jaxent" / self.path).read_bytes()
        pair = (each.decode().splitlines() for each in (source, self.text(source)))
        old, new = pair
        lines = list(difflib.unified_diff(old, new, lineterm="", n=0))
        return "\n".join(lines[2:])


# --- mutants --------------------------------------------------------------------------------------


def mutants(only: str) -> list[Mutant]:
    """Every place of the chosen folders, in a fixed order."""
    paths = sorted((ROOT / "jaxent").rglob("*.py"))
    names = [path.relative_to(ROOT / "jaxent").as_posix() for path in paths]
    return [m for n in names if n.startswith(FOLDERS) and only in n for m in _of_file(n)]


def _of_file(name: str) -> Iterator[Mutant]:
    source = (ROOT / "jaxent" / name).read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def span(node: ast.expr) -> tuple[int, int]:
        end_line, end_column = node.end_lineno or 0, node.end_col_offset or 0
        return starts[node.lineno - 1] + node.col_offset, starts[end_line - 1] + end_column

    for node in _code(ast.parse(source)):
        start, end = span(node)
        for new in dict.fromkeys(_changes(node, source, span)):
            if new.encode() != source[start:end]:
                yield Mutant(name, node.lineno, start, end, new)


def _code(tree: ast.Module) -> Iterator[ast.expr]:
    """The expressions in the bodies of functions: no annotations, decorators or messages."""

    def inside(node: ast.AST) -> Iterator[ast.expr]:
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, (ast.Raise, ast.JoinedStr)):
                    continue
                if isinstance(child, ast.expr):
                    yield child
                if isinstance(child, ast.AST):
                    yield from inside(child)

    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield from inside(node)


def _changes(node: ast.expr, source: bytes, span) -> Iterator[str]:
    """What may stand in the place of an expression."""

    def text(part: ast.expr) -> str:
        start, end = span(part)
        return source[start:end].decode()

    match node:
        case ast.BinOp(left, operator, right) if type(operator) in OPERATORS:
            yield f"({text(left)}) {OPERATORS[type(operator)]} ({text(right)})"
        case ast.BoolOp(operator, values):
            yield f" {OPERATORS[type(operator)]} ".join(f"({text(value)})" for value in values)
        case ast.Compare(left, [operator], [right]) if type(operator) in OPERATORS:
            yield f"({text(left)}) {OPERATORS[type(operator)]} ({text(right)})"
        case ast.UnaryOp(ast.USub() | ast.Not() | ast.Invert(), operand):
            yield f"({text(operand)})"
        case ast.Constant(bool() as value):
            yield str(not value)
        case ast.Constant(int() | float() as value):
            yield repr(2 * value if value else value + 1)
        case ast.Call(function, [first, *others], keywords):
            name = ast.unparse(function).rpartition(".")[2]
            if name == "where" and len(others) == 2:
                yield from (f"({text(part)})" for part in others)
                swapped = [text(first), *(text(part) for part in reversed(others))]
                yield f"{text(function)}({', '.join(swapped)})"
            elif name in DROPPED:
                yield f"({text(first)})"
            elif len(others) == 1 and name not in SYMMETRIC and not keywords:
                yield f"{text(function)}({text(others[0])}, {text(first)})"


# --- tests ----------------------------------------------------------------------------------------


Definition = tuple[str, str]  # the path of a file below jaxent/, and a name at its top level


@functools.cache
def _uses() -> dict[Definition, set[Definition]]:
    """What each definition of jaxent refers to. A rule of derivatives belongs to its function."""
    paths = (ROOT / "jaxent").rglob("*.py")
    trees = {p.relative_to(ROOT / "jaxent").as_posix(): ast.parse(p.read_bytes()) for p in paths}
    names = {
        path: [n for node in tree.body for n in _defined(node)] for path, tree in trees.items()
    }
    uses: dict[Definition, set[Definition]] = {}
    for path, tree in trees.items():
        files, here = {}, {name: (path, name) for name in names[path]}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("jaxent"):
                folder = str(node.module).partition(".")[2].replace(".", "/")
                for alias in node.names:
                    module = f"{folder}/{alias.name}.py".lstrip("/")
                    if module in trees:
                        files[alias.asname or alias.name] = module
                    elif alias.name in names.get(f"{folder}.py", ()):
                        here[alias.asname or alias.name] = (f"{folder}.py", alias.name)
        for node in tree.body:
            used = set()
            for part in ast.walk(node):
                if isinstance(part, ast.Name) and part.id in here:
                    used.add(here[part.id])
                elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                    file = files.get(part.value.id, "")
                    if part.attr in names.get(file, ()):
                        used.add((file, part.attr))
            defined = {(path, name) for name in _defined(node)}
            for one in defined:
                uses.setdefault(one, set()).update(used - {one})
            # `@function.defjvp` and `function.defjvp(...)` give a function what it then uses.
            calls = getattr(node, "decorator_list", [node] if isinstance(node, ast.Expr) else [])
            for part in (part for call in calls for part in ast.walk(call)):
                if isinstance(part, ast.Name) and (path, part.id) in uses:
                    uses[path, part.id] |= defined | used - {(path, part.id)}
    return uses


def _defined(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        return [node.name]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _definitions_at(path: str, line: int) -> set[Definition]:
    """What a line is a part of."""
    tree = ast.parse((ROOT / "jaxent" / path).read_bytes())
    around = (node for node in tree.body if node.lineno <= line <= (node.end_lineno or 0))
    return {(path, name) for node in around for name in _defined(node)}


def functions_near(path: str, line: int, most: int = 6) -> list[str]:
    """Public functions that reach what a line defines, the nearest first."""
    uses, front = _uses(), _definitions_at(path, line)
    public = [
        (f"{node.module.partition('.')[2].replace('.', '/')}.py", alias.name)
        for node in ast.parse((ROOT / "jaxent" / "__init__.py").read_bytes()).body
        if isinstance(node, ast.ImportFrom) and node.module
        for alias in node.names
        if alias.name.islower()
    ]
    seen, found = set(front), []
    while front and len(found) < most:
        found += [definition[1] for definition in public if definition in front]
        front = {one for one, used in uses.items() if used & front and one not in seen}
        seen |= front
    return found[:most]


def selections(path: str, line: int) -> list[list[str]]:
    """Arguments of pytest, the quickest first."""
    names = functions_near(path, line)
    changed = [name for _, name in _definitions_at(path, line)]
    any_name = " or ".join(names)
    chosen = [["tests/conformance/test_properties.py", "-k", f"test_any and ({any_name})"]]
    is_head = path.startswith("_heads") or any(name.startswith("linear") for name in names)
    if is_head:
        chosen.append(["tests/heads/test_properties.py", "-k", "test_any"])
    for folder in ("losses", "heads"):
        for test in sorted((ROOT / "tests" / folder).glob("test_*.py")):
            near = _tests_of(test.read_text(), [*names, *changed])
            if near and test.stem != "test_properties":
                chosen.append([f"tests/{folder}/{test.name}", "-k", " or ".join(near)])
    chosen.append(["tests/project/test_doctests.py", "-k", any_name])
    chosen.append(["tests/conformance", "-k", f"test_contract and ({any_name})"])
    chosen.append(["tests/project/test_errors.py"])
    if is_head:
        chosen.append(["tests/mesh"])
    return chosen


def _tests_of(text: str, names: list[str]) -> list[str]:
    """The tests of a file that name one of the functions, or what stands for it in the file."""
    tree, pattern = ast.parse(text), "|".join(map(re.escape, names))
    aliases = [
        ast.unparse(node.targets[0])
        for node in tree.body
        if isinstance(node, ast.Assign) and re.search(rf"\b({pattern})\b", ast.unparse(node.value))
    ]
    wanted = re.compile(rf"\b({'|'.join([pattern, *map(re.escape, aliases)])})\b")
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    return [t.name for t in tests if t.name[:5] == "test_" and wanted.search(ast.unparse(t))]


def killed(copy: Path, path: str, line: int, seconds: int) -> str:
    """Whether a test of a process of its own fails in a copy: "killed", "survived", "timeout"."""
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        log = os.open(copy / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(copy)
        sys.path[:0] = [str(copy), str(copy / "tests")]
        os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])  # for the tests' own processes
        code = 0
        try:
            import pytest

            for arguments in selections(path, line):
                # Truths, and programs that the mutant leaves as they are, come from the last run.
                kept = ROOT / ".pytest_cache" / "mutants"
                code = pytest.main([*arguments, "-x", "-q", "-n0", "-o", f"cache_dir={kept}"])
                if code not in (0, 5):  # 5: nothing was selected
                    break
                code = 0
        except BaseException:
            code = 1
        os._exit(int(code != 0))
    _, status = os.waitpid(process, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL) else "killed"
    return "killed" if os.WEXITSTATUS(status) else "survived"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="a part of the paths below jaxent/")
    parser.add_argument("--results", type=Path, default=Path("mutants.jsonl"))
    parser.add_argument("--timeout", type=int, default=180, help="seconds of a CPU for each")
    parser.add_argument("--none", default="", help="path:line to leave as it is: must survive")
    parser.add_argument("--most", type=int, default=10**6, help="run no more than these now")
    given = parser.parse_args()
    every = mutants(given.only)
    chosen = random.Random(given.seed).sample(every, min(given.sample, len(every)))
    known = {}
    if given.results.exists():
        known = dict(json.loads(line) for line in given.results.read_text().splitlines())
    for module in ("jax", "mpmath", "optax"):  # once, for all processes to come
        importlib.import_module(module)

    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("jaxent", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        if given.none:
            path, _, line = given.none.partition(":")
            print(killed(copy, path, int(line), given.timeout))
            print((copy / "log").read_text()[-2000:])
            return
        missing = [mutant for mutant in chosen if mutant.key not in known][: given.most]
        for mutant in missing:
            source = (ROOT / "jaxent" / mutant.path).read_bytes()
            (copy / "jaxent" / mutant.path).write_bytes(mutant.text(source))
            begin = time.monotonic()
            known[mutant.key] = killed(copy, mutant.path, mutant.line, given.timeout)
            (copy / "jaxent" / mutant.path).write_bytes(source)
            with given.results.open("a") as file:
                file.write(json.dumps([mutant.key, known[mutant.key]]) + "\n")
            took = time.monotonic() - begin
            by = re.findall(r"^(?:FAILED|ERROR) (.*?)(?: - |$)", (copy / "log").read_text(), re.M)
            said = f"{known[mutant.key]:9}{took:5.0f} s  {mutant.path}:{mutant.line}"
            print(said, *(f"by {name}" for name in by[:1]), flush=True)
    report([mutant for mutant in chosen if mutant.key in known], known)


def report(tried: list[Mutant], known: dict[str, str]) -> None:
    """The survivors as diffs, and the score of each folder."""
    for mutant in tried:
        if known[mutant.key] != "killed":
            why = EQUIVALENT.get(mutant.name, "")
            print(f"\n{known[mutant.key]} {mutant.key} {why and f'(equivalent: {why})'}")
            print(mutant.diff())
    print()
    for folder in FOLDERS:
        of = [m for m in tried if m.path.startswith(folder)]
        count = Counter("equivalent" if m.name in EQUIVALENT else known[m.key] for m in of)
        real = len(of) - count["equivalent"]
        if real:
            noticed = count["killed"]  # a timeout may be a slow machine: it is no success
            print(f"{folder:9} {noticed} of {real} noticed ({noticed / real:.0%}), {dict(count)}")


if __name__ == "__main__":
    main()
