"""The settings every test runs under: JAX at its strictest, so that nothing leans on leniency."""

import importlib.metadata
import os
import sys
import zlib

import jax
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
pytest.register_assert_rewrite("conformance")

# float64 stays off, as it is for most users; a test that needs it turns it on for itself.
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

_SETTINGS = (
    "jax_numpy_dtype_promotion",
    "jax_numpy_rank_promotion",
    "jax_enable_x64",
    "jax_debug_nans",
    "jax_disable_jit",
)


def pytest_addoption(parser):
    parser.addoption(
        "--table-share",
        type=int,
        default=1,
        metavar="N",
        help="one part in N of the contract table and a quarter of the tests of single families, "
        "the same ones on every run; 1 is all of it",
    )
    parser.addoption(
        "--brief",
        action="store_true",
        help="for one more version of JAX: little of the contract table and a twelfth of the "
        "tests of single families, the same ones on every run; no thorough tests, no documentation "
        "and no notebooks, and none that judge the tests themselves",
    )


def pytest_collection_modifyitems(config, items):
    share, brief = config.getoption("--table-share"), config.getoption("--brief")
    left_out = [item for item in items if _is_left_out(item, share, brief)]
    config.hook.pytest_deselected(items=left_out)
    kept = set(items) - set(left_out)
    items[:] = [item for item in items if item in kept]


def _is_left_out(item, share, brief):
    in_table, of_family = (
        item.name.startswith("test_contract["),
        item.path.parent.name in ("losses", "heads") or item.path.stem == "test_export",
    )
    parts = share if in_table else 4 if of_family and share > 1 else 1
    if brief:
        judges_tests = item.path.stem == "test_oracle" or item.name.startswith("test_the_table_")
        is_built_once = item.path.stem in (
            "test_docs",
            "test_doctests",
            "test_migration",
            "test_notebooks",
        )
        if judges_tests or is_built_once or "thorough" in item.keywords:
            return True
        parts = 120 if in_table else 12 if of_family else 1
    return zlib.crc32(item.name.encode()) % parts > 0


def pytest_report_header():
    versions = (f"{name} {importlib.metadata.version(name)}" for name in ("jax", "chex", "optax"))
    return f"python {sys.version.split()[0]}, {', '.join(versions)}, {jax.default_backend()}"


@pytest.fixture(autouse=True)
def settings_stay_strict():
    """A test that forgets to restore a setting fails itself, not whichever test comes next."""
    before = {name: getattr(jax.config, name) for name in _SETTINGS}
    yield
    after = {name: getattr(jax.config, name) for name in _SETTINGS}
    for name, value in before.items():
        jax.config.update(name, value)
    assert after == before


@pytest.fixture(autouse=True, scope="module")
def compiled_programs_are_dropped():
    """Thousands of compiled programs would otherwise pile up in memory over a whole run."""
    yield
    jax.clear_caches()
