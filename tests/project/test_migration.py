"""docs/migration.md is true: every row of its tables is run against the library it is about.

What each library gave, value and gradient, is kept in `migration/numbers.json` with its version,
so that no library but optax need be installed. Those that are installed (PyTorch, and what the
extra `benchmark` brings) are run as well.
"""

import importlib.metadata
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from project.migration.case import Case, Library, ours, recorded
from project.migration.libraries import LIBRARIES

PAGE = (Path(__file__).parents[2] / "docs" / "migration.md").read_text("utf-8")
RECORDED = recorded()
# The others lose this much where a loss or a gradient is a difference of numbers around 1.
ROUNDING = 2e-7
CASES = [
    pytest.param(
        name,
        case,
        id=f"{name}-{case.key}".replace(" ", "_"),
        # Each takes as long to compile as twenty others.
        marks=[pytest.mark.thorough] if "ctc" in case.key.lower() else [],
    )
    for name, library in LIBRARIES.items()
    for case in library.cases
]


def is_close(got: dict, wanted: dict, rounding: float) -> bool:
    """Whether all that is wanted is there, to 1e-5 of each number and an absolute rounding."""
    return all(np.allclose(got[k], wanted[k], 1e-5, rounding, equal_nan=True) for k in wanted)


def explain(case: Case, **sides: dict) -> str:
    lines = [f"{case.row}: {case.name}", *(f"  {array!r}" for array in case.arrays)]
    return "\n".join([*lines, *(f"  {side}: {numbers}" for side, numbers in sides.items())])


def expected(case: Case) -> dict:
    """What jaxent is to give where it disagrees."""
    given = {"value": case.value, "gradient": case.gradient}
    return {name: numbers for name, numbers in given.items() if numbers is not None}


@pytest.mark.thorough(beyond=40)
@pytest.mark.parametrize(("name", "case"), CASES)
def test_jaxent_beside_what_the_library_gave(name: str, case: Case):
    theirs, mine = RECORDED[name]["cases"][case.key], ours(case)
    if case.agree == "nothing":
        assert is_close(mine, expected(case), 0.0), explain(
            case, ours=mine, expected=expected(case)
        )
        assert not is_close(mine, theirs, 0.0), explain(case, ours=mine, theirs=theirs)
    else:
        assert is_close(mine, theirs, ROUNDING), explain(case, ours=mine, theirs=theirs)


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "case"), CASES)
def test_jaxent_beside_the_library(name: str, case: Case):
    library, version = LIBRARIES[name], installed_version(name)
    if not library.module or version is None:
        pytest.skip(f"{name} is not installed; its numbers of {RECORDED[name]['version']} are kept")
    if case.agree == "nothing" and version != RECORDED[name]["version"]:
        pytest.skip(f"the page tells how {name} {RECORDED[name]['version']} differs, not {version}")
    try:
        module = library.load()
    except Exception as error:  # A library may not go with the JAX or NumPy that is here.
        pytest.skip(f"{name} {version} cannot be imported: {error!r}")
    theirs, mine = library.compute(case, module), ours(case)
    agree = is_close(mine, theirs, 0.0 if case.agree == "nothing" else ROUNDING)
    assert agree == (case.agree != "nothing"), explain(case, ours=mine, theirs=theirs)


def test_a_bare_logarithm_has_no_gradient_where_a_probability_is_0():
    """Why the rows of Keras' KLDivergence and of Poisson losses keep the epsilon."""
    q, p = jnp.array([[1.0, 0.0]]), jnp.array([[1.0, 0.0]])
    of_bare_log = jax.grad(lambda q: jnp.sum(jaxent.kl_divergence(jnp.log(q), p)))(q)
    assert np.isnan(of_bare_log[0, 1])
    of_bare_log = jax.grad(lambda rate: jaxent.poisson_nll(jnp.log(rate), 0.0))(0.0)
    assert np.isnan(of_bare_log)


def installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


@pytest.mark.parametrize("name", LIBRARIES)
def test_every_row_of_the_page_is_run(name: str):
    assert rows_of(LIBRARIES[name]) == {case.row for case in LIBRARIES[name].cases}


@pytest.mark.parametrize("name", LIBRARIES)
def test_the_page_says_which_version_it_is_about(name: str):
    version = RECORDED[name]["version"]
    assert (version[:7] if name == "t5x" else version.partition("+")[0]) in PAGE


def rows_of(library: Library) -> set[str]:
    """The first cells of the first table in the section of a library."""
    section = re.split(r"^## ", PAGE.partition(f"## {library.heading}\n")[2], flags=re.MULTILINE)[0]
    table = section[section.index("\n|") + 1 :].partition("\n\n")[0]
    return {line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()[2:]}


def test_every_section_is_of_a_library():
    headings = re.findall(r"^## (From .*)$", PAGE, re.MULTILINE)
    assert set(headings) == {library.heading for library in LIBRARIES.values()}


def test_names_of_cases_are_unique():
    for library in LIBRARIES.values():
        keys = [case.key for case in library.cases]
        assert len(keys) == len(set(keys))
