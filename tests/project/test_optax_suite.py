"""The tests that optax ships in its wheel, run with jaxent's functions in place of its losses.

Whoever replaces `from optax import losses` by `import jaxent as losses` gets the results that
optax promises to itself. Where one of its tests pins a behaviour that jaxent's contract rejects,
it is listed here with the reason (docs/migration.md tells users), and must fail: a reason that no
longer holds may not stay.
"""

import importlib.util
import types
import unittest
import warnings
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import optax.losses
import pytest

import jaxent
from public import FUNCTIONS

OPTAX = tuple(int(part) for part in optax.__version__.split(".")[:3])
MODULES = (
    "_classification",
    "_fenchel_young",
    "_ranking",
    "_regression",
    "_segmentation",
    "_self_supervised",
    "_smoothing",
)
REJECTED = {
    "SoftmaxCrossEntropyTest.test_gradient": "it steps from targets of 0 to negative ones: NaN",
    "SafeSoftmaxCrossEntropyTest.test_gradient": "it steps from targets of 0 to negative ones: NaN",
    "DiceLossTest.test_probability_validation": "values cannot be refused under jit; they give NaN",
}


def with_jaxent(module: str) -> types.ModuleType:
    """A module of optax.losses with jaxent's functions in place of all those it has."""
    original = vars(getattr(optax.losses, module))
    replaced = types.ModuleType(module)
    vars(replaced).update(
        {
            name: getattr(jaxent, name) if name in optax_names() and callable(value) else value
            for name, value in original.items()
        }
    )
    return replaced


def optax_names() -> set[str]:
    return {name for name in vars(optax.losses) if name in FUNCTIONS}


def suites() -> Iterator[tuple[str, unittest.TestCase]]:
    """The tests by name, each bound to jaxent's functions."""
    for module in MODULES:
        spec = importlib.util.find_spec(f"optax.losses.{module}_test")
        if spec is None or spec.loader is None:
            continue  # a wheel older than that test
        tests = importlib.util.module_from_spec(spec)
        with mock.patch.object(optax.losses, module, with_jaxent(module)):
            spec.loader.exec_module(tests)
        for case in vars(tests).values():
            if isinstance(case, type) and issubclass(case, unittest.TestCase):
                for name in unittest.defaultTestLoader.getTestCaseNames(case):
                    yield f"{case.__name__}.{name}", case(name)


SUITES = dict(suites())


@pytest.mark.thorough
@pytest.mark.parametrize("name", SUITES)
def test_optax_own_test_passes_with_jaxent(name):
    result = unittest.TestResult()
    np.random.seed(0)  # noqa: NPY002  (optax's tests draw from it)
    with (
        # optax's tests promote as NumPy does.
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("default")
        SUITES[name].run(result)
    assert result.testsRun == 1
    if result.skipped:
        pytest.skip(f"optax skips it: {result.skipped[0][1]}")
    failures = [text for _, text in result.failures + result.errors]
    if name in REJECTED:
        # The tests of earlier wheels differ.
        assert failures or OPTAX < (0, 2, 8), f"{name} passes now: take it out of REJECTED"
    else:
        assert not failures, failures[0]


def test_optax_ships_its_tests():
    assert len(SUITES) > 100
    if OPTAX >= (0, 2, 8):
        assert set(SUITES) >= set(REJECTED)


def test_every_public_name_of_optax_losses_is_here():
    theirs = {
        name
        for name, value in vars(optax.losses).items()
        if callable(value) and not name.startswith("_")
    }
    assert theirs <= set(FUNCTIONS), sorted(theirs - set(FUNCTIONS))


def test_the_functions_that_the_suite_calls_are_jaxents():
    for module in MODULES:
        replaced = vars(with_jaxent(module))
        for name in optax_names() & set(vars(getattr(optax.losses, module))):
            assert replaced[name] is getattr(jaxent, name)


def test_the_documentation_lists_what_is_rejected():
    page = (Path(__file__).parents[2] / "docs" / "migration.md").read_text("utf-8")
    assert {name for name in REJECTED if f"`{name}`" not in page} == set()
