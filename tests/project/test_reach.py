"""`pytest --since`: what a change reaches, and what it cannot."""

from pathlib import Path

import pytest

import reach
from conformance.table import CASES
from public import FUNCTIONS

HUBER = next(case for case in CASES if case.name == "huber_loss")
OTHER = next(case for case in CASES if case.name == "softmax_entropy")


def reaches(changed: str, test: str, **parameters) -> bool:
    paths = [Path(changed)]
    functions = reach.functions_reached(paths)
    return reach.can_reach(paths, functions, reach.ROOT / "tests" / test, parameters)


def test_functions_are_reached_by_what_their_modules_import():
    of_kernel = reach.functions_reached([Path("jaxent/_kernels/regression.py")])
    assert {"huber_loss", "gaussian_nll"} < of_kernel
    assert not of_kernel & {"softmax_entropy", "linear_loss"}
    assert reach.functions_reached([Path("jaxent/_checks.py")]) == set(FUNCTIONS)
    assert not reach.functions_reached([Path("README.md"), Path("jaxent/plan.py")])


@pytest.mark.parametrize(
    ("test", "parameters", "expected"),
    [
        ("conformance/test_conformance.py", {"case": HUBER}, True),
        ("conformance/test_conformance.py", {"case": OTHER}, False),
        ("losses/test_regression.py", {}, True),
        ("losses/test_softmax.py", {}, False),
        ("project/test_doctests.py", {"name": "huber_loss"}, True),
        ("project/test_doctests.py", {"name": "softmax_entropy"}, False),
        ("project/test_docs.py", {}, True),
    ],
)
def test_a_kernel_reaches_the_tests_of_its_functions(test, parameters, expected):
    assert reaches("jaxent/_kernels/regression.py", test, **parameters) == expected


def test_what_tests_share_reaches_all_of_them():
    for shared in ("tests/conformance/oracle.py", "tests/conftest.py", "pyproject.toml"):
        assert reaches(shared, "losses/test_softmax.py")
    assert not reaches("tests/losses/test_margin.py", "losses/test_softmax.py")
    assert reaches("tests/losses/test_margin.py", "losses/test_margin.py")
