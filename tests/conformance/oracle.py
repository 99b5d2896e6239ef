"""The truth: each loss from its definition, on the exact inputs, in as many digits as it takes.

Nothing here knows how jaxent computes anything: a loss is its textbook formula (``log(sum(exp(x)))
- x[y]``), and where that formula cancels the answer is more digits, not another formula. Every
truth is a function of *one example* whose arguments are mpmath numbers, lists of them (one per
class) or plain integers; `batch` calls it on each row of NumPy arrays of any float dtype.

A loss that gives only its value gets its derivatives from `differentiated`, which takes central
differences with steps of 1e-30: at these digits they are as good as a closed form.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ml_dtypes
import mpmath
import numpy as np
from mpmath import mp, mpf

from conformance import kept

Number = Any  # an mpmath number: their classes are made at run time

# The step of the differences: its square is the relative error they leave.
_STEP_DIGITS = 30
# A truth smaller than this may come back as zero, or off by as many of the largest subnormals:
# processors flush those, and a sum of many terms may have lost some of them on the way, each a
# probability that weighs as much as a logit.
_MAY_LOSE = 128
_MAY_FLUSH = {"float64": 1e-300, "float32": 1e-34, "bfloat16": 1e-34, "float16": 2.0**-24}


class Truth(NamedTuple):
    """What one example's loss and its derivatives are, and the yardsticks to measure errors by.

    A scale is the sum of the absolute terms of the quantity: where that is a difference of
    rounded terms no float formula can do better than a few units in the last place of the scale.
    Where the scale is the quantity's own magnitude, full relative accuracy is asked for.
    """

    value: Any
    gradients: tuple[Any, ...]  # one for each argument that has a derivative, shaped like it
    value_scale: Any
    gradient_scales: tuple[Any, ...]
    # Those of the other side where derivatives jump, elsewhere the same; None if none jumps.
    other_gradients: tuple[Any, ...] | None = None


# --- digits ---------------------------------------------------------------------------------------


def exact(array: Any) -> Any:
    """An array's exact values as (nested lists of) mpmath numbers; integers stay integers."""
    array = np.asarray(array)
    if _is_integer(array):
        return array.tolist()
    # The same object for the same number: `each` knows them by it.
    return _nested(functools.cache(mpf), array.astype(np.float64).tolist())


def digits_for(*arrays: Any) -> int:
    """Digits with which no subtraction of these inputs can lose a digit that counts."""
    floats = [np.asarray(array) for array in arrays if not _is_integer(array)]
    largest = max((_largest_magnitude(array) for array in floats), default=1.0)
    smallest_truth = 330 if any(array.dtype == np.float64 for array in floats) else 40
    return 30 + int(np.log10(max(largest, 10.0))) + smallest_truth


def batch(truth: Callable[..., Truth], *arrays: Any, **options: Any) -> Truth:
    """Calls a one-example truth on each row (first axis) of `arrays`; arrays of mpmath numbers."""
    key = {**options, "digits": digits_for(*arrays)}
    return kept.once(lambda: _batch(truth, *arrays, **options), truth, arrays, key)


def _batch(truth: Callable[..., Truth], *arrays: Any, **options: Any) -> Truth:
    with mp.workdps(digits_for(*arrays)):
        columns = [exact(array) for array in arrays]
        rows = [truth(*row, **options) for row in zip(*columns, strict=True)]
    values, gradients, value_scales, gradient_scales, others = zip(*rows, strict=True)
    jumps = all(other is not None for other in others)
    return Truth(
        objects(values),
        tuple(map(objects, zip(*gradients, strict=True))),
        objects(value_scales),
        tuple(map(objects, zip(*gradient_scales, strict=True))),
        tuple(map(objects, zip(*others, strict=True))) if jumps else None,
    )


# --- what references share ------------------------------------------------------------------------


def softmax(logits: Sequence[Number]) -> tuple[list[Number], Number]:
    """The probabilities and the log-normaliser; NaN if no logit is possible or one is certain."""
    exponentials = each(mpmath.exp, logits)
    total = mpmath.fsum(exponentials)
    if not mpmath.isfinite(total) or total == 0:
        return [mpf("nan")] * len(logits), mpf("nan")
    return each(lambda exponential: exponential / total, exponentials), mpmath.log(total)


def each(function: Callable[..., Any], *columns: Sequence[Number]) -> list[Any]:
    """`function` of each class; classes alike, of which a vocabulary has many, are done once."""
    known: dict[tuple[int, ...], Any] = {}
    results = []
    for entries in zip(*columns, strict=True):
        key = tuple(map(id, entries))
        if key not in known:
            known[key] = function(*entries)
        results.append(known[key])
    return results


def product(weight: Number, cost: Number) -> Number:
    """``weight * cost`` with ``0 * inf = 0``."""
    return mpf(0) if weight == 0 else weight * cost


# --- derivatives of anything ----------------------------------------------------------------------


def differentiated(value: Callable[..., Number], arguments: Sequence[int] = (0,)) -> Callable:
    """The truth of a loss given as its value alone: gradients by differences, every scale its own.

    Good where the loss is smooth around the example; an infinite entry is left alone (gradient 0).
    """

    def truth(*example: Any, **options: Any) -> Truth:
        here = value(*example, **options)
        gradients = tuple(
            _difference(
                lambda argument, index=index: value(
                    *example[:index], argument, *example[index + 1 :], **options
                ),
                example[index],
            )
            for index in arguments
        )
        return Truth(here, gradients, here, gradients)

    return truth


def hessian(truth: Callable[..., Truth], *arrays: Any, **options: Any) -> np.ndarray:
    """The second derivatives in the first argument of each row, differences of exact gradients.

    The result has the shape of that argument with its classes repeated: [rows, classes, classes],
    or [rows] where an example is a single number.
    """
    key = {**options, "digits": digits_for(*arrays), "derivative": 2}
    return kept.once(lambda: _hessian(truth, *arrays, **options), truth, arrays, key)


def _hessian(truth: Callable[..., Truth], *arrays: Any, **options: Any) -> np.ndarray:
    with mp.workdps(digits_for(*arrays)):
        columns = [exact(array) for array in arrays]
        rows = [
            _difference(lambda first, rest=rest: truth(first, *rest, **options).gradients[0], first)
            for first, *rest in zip(*columns, strict=True)
        ]
        return objects(rows)


def _difference(function: Callable[[Any], Any], point: Any) -> Any:
    """Central differences of `function` along each entry of `point` (a number or a list)."""
    mp.dps += 3 * _STEP_DIGITS
    try:
        if not isinstance(point, list):
            step = _step(point)
            return _slope(function(point + step), function(point - step), step)
        slopes = []
        for index, entry in enumerate(point):
            ahead, behind, step = list(point), list(point), _step(entry)
            if mpmath.isfinite(entry):
                ahead[index], behind[index] = entry + step, entry - step
            slopes.append(_slope(function(ahead), function(behind), step))
        return slopes
    finally:
        mp.dps -= 3 * _STEP_DIGITS


def _step(entry: Number) -> Number:
    """Small beside 1 and beside the entry, which may be the least of all probabilities."""
    size = abs(entry)
    return mpf(10) ** -_STEP_DIGITS * (size if 0 < size < 1 else 1)


def _slope(ahead: Any, behind: Any, step: Number) -> Any:
    if isinstance(ahead, list):
        return [_slope(a, b, step) for a, b in zip(ahead, behind, strict=True)]
    return mpf(0) if ahead == behind else (ahead - behind) / (2 * step)


# --- errors ---------------------------------------------------------------------------------------


def ulps(actual: Any, truth: Any, dtype: Any) -> np.ndarray:
    """Errors in units in the last place of the truth; infinite for what is never excusable.

    Those are: a zero, a wrong sign, a NaN or an infinity where the truth is an ordinary number,
    and anything but an infinity or a NaN where it is one.
    """
    error = scaled_ulps(actual, truth, truth, dtype)
    actual = np.asarray(actual).astype(np.float64)
    high = _as_floats(truth)
    counts = np.abs(high) >= _MAY_FLUSH[np.dtype(dtype).name]
    return np.where(counts & (np.sign(actual) != np.sign(high)), np.inf, error)


def scaled_ulps(actual: Any, truth: Any, scale: Any, dtype: Any) -> np.ndarray:
    """Errors in units in the last place of `scale`, the sum of the truth's absolute terms."""
    name = np.dtype(dtype).name
    info = ml_dtypes.finfo(dtype)
    actual = np.asarray(actual).astype(np.float64)
    high, low = _as_floats(truth), np.float64(0)
    scale = np.abs(high if scale is truth else _as_floats(scale))
    if name == "float64":  # anything narrower is judged well enough by the 53 bits of `high`
        low = np.asarray(np.frompyfunc(_rest, 2, 1)(truth, high), np.float64)
    assert actual.shape == high.shape == scale.shape, (actual.shape, high.shape, scale.shape)
    with np.errstate(all="ignore"):
        _, exponent = np.frexp(np.clip(scale, float(info.smallest_normal), float(info.max)))
        error = np.abs((actual - high) - low) / np.ldexp(1.0, exponent - 1 - info.nmant)
        lost = np.abs(actual - high) <= _MAY_LOSE * float(info.smallest_normal)
        flushed = (scale < _MAY_FLUSH[name]) & (lost | (actual == 0))
        overflowed = (np.abs(high) > float(info.max)) & (actual == np.sign(high) * np.inf)
        hidden = np.isnan(high) != np.isnan(actual)
    error = np.where(np.isnan(error) | hidden, np.inf, error)
    return np.where(flushed | overflowed | (np.isnan(high) & np.isnan(actual)), 0.0, error)


def _as_floats(truth: Any) -> np.ndarray:
    with np.errstate(invalid="ignore", over="ignore"):
        return np.asarray(np.frompyfunc(float, 1, 1)(np.asarray(truth, object)), np.float64)


def _rest(number: Any, high: float) -> float:
    return float(mpf(number) - high) if np.isfinite(high) else 0.0


# --- small parts ----------------------------------------------------------------------------------


def _nested(function: Callable[[Any], Any], entries: Any) -> Any:
    if isinstance(entries, list):
        return [_nested(function, entry) for entry in entries]
    return function(entries)


def objects(rows: Sequence[Any]) -> np.ndarray:
    return np.array(rows, dtype=object)


def _is_integer(array: Any) -> bool:
    return np.asarray(array).dtype.kind in "iub"


def _largest_magnitude(array: np.ndarray) -> float:
    values = np.abs(array.astype(np.float64))
    return float(np.max(values, where=np.isfinite(values), initial=0.0))
