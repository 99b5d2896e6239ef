"""How results are compared, and what is said where they differ."""

from collections.abc import Mapping
from typing import Any

import jax
import ml_dtypes
import numpy as np

from conformance import oracle
from conformance.case import Batch


def agree(results: Mapping[str, Any], expected: Any, *, given: Any, rtol: float = 1e-6) -> None:
    """Fails unless each of the results is the expected one; says which are not.

    Equal means to a few units in the last place, or to as much of the largest entry.
    """
    differences = {name: difference(result, expected, rtol) for name, result in results.items()}
    found = [f"{name}: {text}" for name, text in differences.items() if text]
    assert not found, "\n".join([*found, *_inputs(given)])


def close(actual: Any, expected: Any, *, rtol: float = 1e-6) -> None:
    """`agree` of a single result, where nothing else tells what it was."""
    text = difference(actual, expected, rtol)
    assert not text, text


def difference(actual: Any, expected: Any, rtol: float = 1e-6) -> str:
    """What differs most between two trees of arrays, in words; nothing if they agree."""
    actual, expected = jax.tree.leaves(actual), jax.tree.leaves(expected)
    if len(actual) != len(expected):
        return f"{len(actual)} arrays where {len(expected)} are expected"
    for number, pair in enumerate(zip(actual, expected, strict=True)):
        a, e = (np.asarray(each).astype(np.float64) for each in pair)
        where = f" of array {number}" if len(actual) > 1 else ""
        if a.shape != e.shape:
            return f"shape {a.shape}{where} where {e.shape} is expected"
        size = np.max(np.abs(e), initial=0.0, where=np.isfinite(e))
        with np.errstate(invalid="ignore"):
            error = np.abs(a - e)
            fine = (a == e) | (np.isnan(a) & np.isnan(e)) | (error <= rtol * (np.abs(e) + size))
        error = np.where(fine & np.isfinite(e) | (a == e) | (np.isnan(a) & np.isnan(e)), -1, error)
        error = np.where(np.isnan(error), np.inf, error)
        if (error >= 0).any():
            index = np.unravel_index(np.argmax(error), error.shape)
            place = f" at {tuple(map(int, index))}" if index else ""
            return f"{a[index]:.9g}{place}{where} where {e[index]:.9g} is expected"
    return ""


def equal(name: str, actual: Any, expected: Any, *, given: Any) -> None:
    """Fails unless all entries are exactly the expected ones; NaN is NaN."""
    np.testing.assert_array_equal(actual, expected, "\n".join([name, *_inputs(given)]))


def no_nan(results: Mapping[str, Any]) -> None:
    """Fails if one of the arrays of floats in any result, a tree, holds a NaN."""
    for name, tree in results.items():
        for number, array in enumerate(jax.tree.leaves(tree)):
            if array.dtype.kind not in "iub":
                assert not np.isnan(array.astype(np.float32)).any(), f"{name}, array {number}"


def within_bar(
    name: str, batch: Batch, result: np.ndarray, truth: Any, errors: np.ndarray, bar: float
) -> None:
    """Fails if any error is above the bar; shows the worst rows: input, result, truth, error."""
    if errors.size == 0 or errors.max() <= bar:
        return
    rows = errors.reshape(len(batch.names), -1)
    worst = np.argsort(-rows.max(-1))[:5]
    lines = [
        f"{name} is off by more than {bar} units in the last place in "
        f"{np.sum(rows.max(-1) > bar)} of {len(rows)} rows; the worst of them:"
    ]
    for row in worst[rows.max(-1)[worst] > bar]:
        entry = np.argmax(rows[row])
        exact = np.asarray(truth, object)[row].ravel()[entry] if np.ndim(truth) > 1 else truth[row]
        actual = np.asarray(result)[row].ravel()[entry] if result.ndim > 1 else result[row]
        place = f", entry {entry}" if rows.shape[1] > 1 else ""
        lines.append(f"* {batch.names[row]}{place}: off by {rows[row, entry]:.3g}")
        lines.append(f"  result {float(actual):.9g}, truth {float(exact):.12g}")
        lines += _inputs(tuple(array[row] for array in batch.arguments))
    raise AssertionError("\n".join(lines))


def _inputs(given: Any) -> list[str]:
    """Inputs in digits enough to have them back."""
    lines = []
    for number, array in enumerate(given):
        array = np.asarray(array)
        wide = array.astype(np.float64) if array.dtype == ml_dtypes.bfloat16 else array
        text = np.array2string(wide, precision=9, threshold=60, separator=", ")
        lines.append(f"  argument {number} ({array.dtype}): {text}")
    return lines


def errors_of(result: Any, truth: Any, scale: Any, dtype: Any) -> np.ndarray:
    """Errors in units in the last place of the scale; any infinity of the truth may be a 0.

    The gradient in the target of an impossible class is infinite, and 0 is as good.
    """
    errors = oracle.scaled_ulps(result, truth, scale, dtype)
    return np.where((truth == np.inf) & (np.asarray(result) == 0), 0.0, errors)
