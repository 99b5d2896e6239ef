"""The one-way imports: a file may import only from files above it in one written-down order."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import jaxent

ROOT = Path(__file__).parents[2]

# The order in which the library is built up. A new file takes its place here before it passes.
ORDER = (
    "_checks",
    "_numerics",
    "_rows",
    "_reduction",
    "_labels",
    "_softmax",
    "_sigmoid",
    "_variants",
    "_probability",
    "_information",
    "_bregman",
    "_divergence",
    "_calibration",
    "_regression",
    "_margin",
    "_fenchel_young",
    "_preference",
    "_segmentation",
    "_ranking",
    "_similarity",
    "_embedding",
    "_sequence",
    "_head",
    "_linear_map",
    "_cut",
    "_chunks",
    "_row_sweep",
    "_column_sweep",
    "_linear",
    "_distillation",
    "_contrastive",
)
# The same within the package of the primitives; its __init__ gathers them for the others.
PRIMITIVES = (
    "explicit",
    "across",
    "ground",
    "elementary",
    "softmax",
    "cross_entropy",
    "sigmoid",
    "logits",
    "probability",
    "distribution",
    "bregman",
    "order",
    "divergence",
    "reweighted",
    "regression",
    "preference",
    "segmentation",
    "ranking",
    "margin",
    "similarity",
    "embedding",
    "scaled",
    "ctc",
)
FILES = sorted((ROOT / "jaxent").rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(module: str, source: str, *, is_package: bool) -> Iterator[str]:
    """The absolute dotted name of everything that the source imports, wherever it stands."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def private_attributes(source: str) -> Iterator[str]:
    """Private names reached through the package object, as in `jaxent._softmax`."""
    for node in ast.walk(ast.parse(source)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "jaxent"
            and node.attr.startswith("_")
            and not node.attr.endswith("__")
        ):
            yield f"jaxent.{node.attr}"


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What in the source of that module breaks the rules, in words."""
    _, _, inner = module.partition(".")
    layer = inner.split(".")[0]
    user = layer in ("demo", "plan", "__main__")
    if not (user or module == "jaxent" or layer in ORDER):
        return [f"{module} has no place in the order"]
    found = []
    for name in imported_names(module, source, is_package=is_package):
        top, _, rest = name.partition(".")
        target = rest.split(".")[0]
        if top == "chex" and module != "jaxent._checks":
            found.append(f"{module} imports {name}: only _checks may")
        if top != "jaxent":
            continue
        if user:
            allowed = not rest or target in ("demo", "plan", *jaxent.__all__)
        elif module == "jaxent":
            allowed = target in ORDER
        elif module == "jaxent._numerics":
            allowed = target == "_numerics"
        elif target == layer == "_numerics":
            own, theirs = inner.split(".")[1], rest.split(".")[1]
            allowed = theirs in PRIMITIVES[: PRIMITIVES.index(own)]
        else:
            allowed = target in ORDER[: ORDER.index(layer)]
        if not allowed:
            found.append(f"{module} imports {name}, which is not above it")
    if user:
        found.extend(f"{module} uses {name}" for name in private_attributes(source))
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_one_way(path):
    is_package = path.name == "__init__.py"
    assert violations(module_name(path), path.read_text("utf-8"), is_package=is_package) == []


def test_demo_files_import_each_other_one_way():
    graph = {}
    for path in (ROOT / "jaxent" / "demo").glob("*.py"):
        names = imported_names(
            module_name(path), path.read_text("utf-8"), is_package=path.name == "__init__.py"
        )
        siblings = (name.split(".")[2] for name in names if name.startswith("jaxent.demo."))
        graph[path.stem] = {sibling for sibling in siblings if sibling != path.stem}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the cycle


def test_init_holds_the_public_names_and_nothing_else():
    docstring, *statements = ast.parse((ROOT / "jaxent" / "__init__.py").read_text("utf-8")).body
    assert isinstance(docstring, ast.Expr)
    for statement in statements:
        if isinstance(statement, ast.Assign):
            assert [ast.unparse(target) for target in statement.targets] == ["__all__"]
        else:
            assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxent._softmax", "from jaxent import _row_sweep"),
        ("jaxent._softmax", "from jaxent._linear import linear_softmax_cross_entropy"),
        ("jaxent._softmax", "from . import _sigmoid"),
        ("jaxent._softmax", "from ._softmax import itself"),
        ("jaxent._softmax", "def late():\n    import jaxent._linear"),
        ("jaxent._softmax", "import jaxent"),
        ("jaxent._softmax", "from jaxent.demo import anything"),
        ("jaxent._softmax", "import chex"),
        ("jaxent._softmax", "from chex import assert_rank"),
        ("jaxent._unlisted", ""),
        ("jaxent._numerics.softmax", "from jaxent._numerics.sigmoid import sigmoid"),
        ("jaxent._numerics.softmax", "from jaxent._numerics import sigmoid"),
        ("jaxent._numerics.softmax", "from jaxent import _rows"),
        ("jaxent._numerics", "from jaxent import _rows"),
        ("jaxent.demo.report", "from jaxent._softmax import softmax_cross_entropy"),
        ("jaxent.demo.report", "from jaxent import _softmax"),
        ("jaxent.demo.report", "from .. import _softmax"),
        ("jaxent.demo.report", "import jaxent\njaxent._softmax"),
        ("jaxent.__main__", "import jaxent._linear"),
        ("jaxent.__main__", "import chex"),
    ],
)
def test_the_checker_refuses(module, source):
    assert violations(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("jaxent._checks", "import chex\nimport jax"),
        ("jaxent._softmax", "from jaxent import _checks, _numerics"),
        ("jaxent._linear", "from ._row_sweep import linear_loss"),
        ("jaxent._numerics", "from jaxent._numerics.sigmoid import sigmoid"),
        ("jaxent._numerics.sigmoid", "from jaxent._numerics.softmax import softmax"),
        ("jaxent.demo.report", "import jaxent\nfrom jaxent.demo.model import train"),
        ("jaxent.demo.report", "from . import model\njaxent.__doc__"),
        ("jaxent.__main__", "from jaxent.demo.command import main"),
        ("jaxent.__main__", "from jaxent import mean"),
    ],
)
def test_the_checker_allows(module, source):
    assert violations(module, source) == []
