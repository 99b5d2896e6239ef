"""The settings every test runs under: JAX at its strictest, so that nothing leans on leniency."""

import collections
import gc
import importlib.metadata
import os
import sys

import jax
import pytest

os.environ.setdefault("MPLBACKEND", "Agg")
pytest.register_assert_rewrite("conformance")

# Tracing makes millions of objects of which few are garbage; to look for it so often is a tenth
# of the time of all tests.
gc.set_threshold(200_000, 20, 100)
# Where in the source an operation comes from is found for each; it takes a tenth of all the time.
jax.config.update("jax_traceback_in_locations_limit", 0)
jax.config.update("jax_include_full_tracebacks_in_locations", False)
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
        "--thorough",
        action="store_true",
        help="everything: all inputs, all dtypes, whole vocabularies, all compiled; takes hours",
    )
    parser.addoption(
        "--since",
        metavar="REVISION",
        help="only what the changes since a revision of git can reach, by the imports",
    )


def pytest_configure(config):
    from conformance import kept, level

    level.set_thorough(config.getoption("--thorough"))
    if hasattr(config, "cache"):
        kept.keep_in(config.cache.mkdir("truths"))
        if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
            _keep_compiled_programs(config.cache.mkdir(f"jax-{jax.__version__}"))


def _keep_compiled_programs(folder):
    """What took long to compile is read from pytest's cache by the next run, and by subprocesses.

    Nothing leans on it: a run without the folder takes longer, and that is all.
    """
    settings = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


def pytest_collection_modifyitems(config, items):
    left_out = []
    if not config.getoption("--thorough"):
        seen = collections.Counter()
        left_out = [item for item in items if _is_for_the_thorough_run(item, seen)]
    if revision := config.getoption("--since"):
        left_out += _out_of_reach(items, revision)
    kept = set(items) - set(left_out)
    config.hook.pytest_deselected(items=set(items) - kept)
    items[:] = [item for item in items if item in kept]
    # What starts processes takes longest, and is best begun first.
    items.sort(key=lambda item: item.path.parent.name != "mesh")
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group(item)))


def _is_for_the_thorough_run(item, seen):
    """So are tests marked `thorough`, and by `thorough(beyond=2)` all but the first two alike."""
    marks = list(item.iter_markers("thorough"))
    if not marks:
        return False
    beyond = min(mark.kwargs.get("beyond", 0) for mark in marks)
    test = item.nodeid.partition("[")[0]
    seen[test] += beyond > 0
    return beyond == 0 or seen[test] > beyond


def _out_of_reach(items, revision):
    import reach

    paths = reach.changed_files(revision)
    functions = reach.functions_reached(paths)

    def can_reach(item):
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        return reach.can_reach(paths, functions, item.path, parameters)

    return [item for item in items if not can_reach(item)]


def _group(item):
    """Tests that share programs or a fixture of their file run in one process, in their order."""
    if item.path.parent.name != "conformance" or not hasattr(item, "callspec"):
        return item.path.stem
    parameters = item.callspec.params
    return str(parameters.get("case") or getattr(parameters.get("tooth"), "case", item.name))


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
