"""The example in every public docstring runs, as a user would run it and under strict settings."""

import doctest

import jax
import pytest

import jaxent

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@pytest.mark.parametrize("promotion", [("standard", "allow"), ("strict", "raise")])
@pytest.mark.parametrize("name", jaxent.__all__)
def test_example_runs(name, promotion):
    # No names are provided: an example that is pasted into an empty session must run there too.
    (example,) = doctest.DocTestFinder(recurse=False).find(getattr(jaxent, name), name, globs={})
    assert example.examples
    report = []
    dtypes, ranks = promotion
    with jax.numpy_dtype_promotion(dtypes), jax.numpy_rank_promotion(ranks):
        outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)


def test_package_example_runs():
    (example,) = doctest.DocTestFinder(recurse=False).find(jaxent, "jaxent", globs={})
    report = []
    outcome = doctest.DocTestRunner(optionflags=FLAGS).run(example, out=report.append)
    assert outcome.failed == 0, "".join(report)
