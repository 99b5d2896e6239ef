"""The example in every public docstring runs, as a user would run it and under strict settings."""

import doctest
import math
import re

import pytest

import jaxent
from public import FUNCTIONS

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?")


class CloseNumbers(doctest.OutputChecker):
    """Takes numbers that agree to a few float32 roundings, which differ by machine and version."""

    def check_output(self, want, got, optionflags):
        theirs, ours = (map(float, NUMBER.findall(text)) for text in (want, got))
        words = (re.sub(r"\s", "", NUMBER.sub("#", text)) for text in (want, got))
        return len(set(words)) == 1 and all(
            math.isclose(a, b, rel_tol=2e-6) for a, b in zip(theirs, ours, strict=True)
        )


def run(name, documented):
    # No names are provided: an example that is pasted into an empty session must run there too.
    (example,) = doctest.DocTestFinder(recurse=False).find(documented, name, globs={})
    report = []
    outcome = doctest.DocTestRunner(CloseNumbers()).run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)
    return outcome.attempted


@pytest.mark.parametrize("name", FUNCTIONS)
def test_example_runs(name):
    """Under strict settings, which forbid more than a user's; README runs under those."""
    assert run(name, getattr(jaxent, name)) > 0


def test_package_docstring_runs():
    run("jaxent", jaxent)


@pytest.mark.parametrize(
    ("want", "got", "same"),
    [
        ("[0.48045304 9.        ]", "[0.480453 9.      ]", True),
        ("[4.1223074e-09]", "[4.1223070e-09]", True),
        ("[4.1223074e-09]", "[4.1224e-09]", False),
        ("0.5", "-0.5", False),
        ("nan", "0.0", False),
        ("[1. 2.]", "[1. 2. 3.]", False),
    ],
)
def test_close_numbers(want, got, same):
    assert CloseNumbers().check_output(want, got, 0) is same
