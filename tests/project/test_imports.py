"""Imports go one way: the contracts of import-linter in pyproject.toml, and what breaks them."""

import ast
import copy
import re
from pathlib import Path

import grimp
import pytest
from importlinter import api
from importlinter.contracts.acyclic_siblings import AcyclicSiblingsContract
from importlinter.contracts.forbidden import ForbiddenContract
from importlinter.contracts.layers import LayersContract
from importlinter.domain.contract import Contract

ROOT = Path(__file__).parents[2]
TYPES = {
    each.type_name: each for each in (AcyclicSiblingsContract, ForbiddenContract, LayersContract)
}
OPTIONS = api.read_configuration(str(ROOT / "pyproject.toml"))
CONTRACTS: list[Contract] = [
    TYPES[options["type"]](options["name"], OPTIONS["session_options"], options)
    for options in OPTIONS["contracts_options"]
]
USERS = [*sorted((ROOT / "jaxent" / "demo").glob("*.py")), ROOT / "jaxent" / "plan.py"]


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    return grimp.build_graph("jaxent", include_external_packages=True, cache_dir=None)


def broken(graph: grimp.ImportGraph) -> set[str]:
    """The contracts that a graph of imports breaks."""
    return {each.name for each in CONTRACTS if not each.check(copy.deepcopy(graph), False).kept}


def test_contracts_are_kept(graph):
    assert not broken(graph), "`lint-imports` says which imports break it"


@pytest.mark.parametrize(
    ("importer", "imported", "contract"),
    [
        ("jaxent._losses.softmax", "jaxent._heads.rows", "below its own"),
        ("jaxent._kernels.softmax", "jaxent._masks", "below its own"),
        ("jaxent._checks", "jaxent._compat", "below its own"),
        ("jaxent._unlisted", "jaxent._checks", "below its own"),
        ("jaxent._kernels.softmax", "jaxent._kernels.cross_entropy", "one way"),
        ("jaxent.demo.text", "jaxent.demo.command", "one way"),
        ("jaxent._kernels.softmax", "jaxent._checks", "never validate"),
        ("jaxent._losses.softmax", "chex", "chex"),
        ("jaxent.demo.report", "chex", "chex"),
        ("jaxent.demo.report", "jaxent._losses.softmax", "public names only"),
        ("jaxent.plan", "jaxent._heads.columns", "public names only"),
        ("jaxent._heads.rows", "jaxent", "imports the public names"),
    ],
)
def test_a_forbidden_import_is_seen(graph, importer, imported, contract):
    changed = copy.deepcopy(graph)
    changed.add_module(importer)
    changed.add_import(importer=importer, imported=imported)
    assert [name for name in broken(changed) if contract in name]


@pytest.mark.parametrize(
    "path", [*(ROOT / "jaxent" / "demo").glob("*.py"), ROOT / "jaxent/plan.py"]
)
def test_users_reach_no_private_name_through_the_package(path):
    assert re.findall(r"\bjaxent\._\w+", path.read_text("utf-8")) == []


def test_init_holds_the_public_names_and_nothing_else():
    docstring, *statements = ast.parse((ROOT / "jaxent" / "__init__.py").read_text("utf-8")).body
    assert isinstance(docstring, ast.Expr)
    for statement in statements:
        if isinstance(statement, ast.Assign):
            (target,) = statement.targets
            assert ast.unparse(target) in ("__all__", "__version__")
        else:
            assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)
