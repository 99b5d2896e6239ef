"""The oracle is judged too: by differences, literal formulas, more digits and known figures."""

import functools
import inspect
import math
import types
from collections.abc import Callable
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import pytest
from mpmath import mp, mpf

import jaxent
from conformance import oracle, sigmoid, softmax
from conformance.inputs import binary_targets, integer_labels, soft_labels, together
from conformance.table import CASES, WHOLE_CASES

SOFT = {"label_smoothing": 0.125}


def integer_rows(dtype=np.float32, classes=4):
    return together(integer_labels(dtype, classes))[1]


def finite(logits, labels):
    """Rows on which every derivative exists: finite logits, nothing so huge that a step is lost."""
    kept = np.isfinite(logits).all(-1)
    return logits[kept], labels[kept]


# Each truth with its options and rows of inputs.
TRUTHS = {
    "integer": (softmax.softmax_cross_entropy_with_integer_labels, {}, finite(*integer_rows())),
    "smoothed": (softmax.softmax_cross_entropy_with_integer_labels, SOFT, finite(*integer_rows())),
    "soft": (
        softmax.softmax_cross_entropy,
        {},
        finite(*together(soft_labels(np.float32, 3))[1]),
    ),
    "z": (softmax.z_loss, {}, finite(*integer_rows())[:1]),
    "sigmoid": (
        sigmoid.sigmoid_binary_cross_entropy,
        {"pos_weight": 2.5, **SOFT},
        together(binary_targets(np.float32))[1],
    ),
}


def agree(actual, expected):
    """Equal to fifteen digits, absolute where the quantity itself is below what float32 holds."""
    for a, e in zip(np.ravel(actual), np.ravel(expected), strict=True):
        assert mpmath.almosteq(a, e, rel_eps=mpf("1e-15"), abs_eps=mpf("1e-38")), (a, e)


@pytest.mark.parametrize("name", TRUTHS)
def test_closed_gradients_are_the_differences_of_the_value(name):
    truth, options, arrays = TRUTHS[name]
    arrays = tuple(array[:: max(1, len(array) // 60)] for array in arrays)
    closed = oracle.batch(truth, *arrays, **options)
    floats = [index for index, array in enumerate(arrays) if array.dtype != np.int32]
    value_only = oracle.differentiated(lambda *row, **kw: truth(*row, **kw).value, floats)
    measured = oracle.batch(value_only, *arrays, **options)
    agree(closed.value, measured.value)
    for gradient, difference in zip(closed.gradients, measured.gradients, strict=False):
        agree(gradient, difference)


@pytest.mark.parametrize("row", CASES, ids=str)
def test_closed_gradients_of_every_case_are_differences(row):
    """On ordinary inputs, where every loss is smooth."""
    arrays = row.inputs((3,), classes=4)
    if not row.has_class_axis:
        arrays = tuple(array.ravel() for array in arrays)
    closed = oracle.batch(row.truth, *arrays, **row.options)
    floats = [index for index, array in enumerate(arrays) if array.dtype != np.int32]
    value_only = oracle.differentiated(lambda *one, **kw: row.truth(*one, **kw).value, floats)
    measured = oracle.batch(value_only, *arrays, **row.options)
    agree(closed.value, measured.value)
    assert len(closed.gradients) == len(measured.gradients)
    names = [argument.name for argument in row.arguments]
    for index, gradient, difference in zip(
        floats, closed.gradients, measured.gradients, strict=True
    ):
        agree(gradient, 0 * difference if names[index] in row.constants else difference)


def test_hessians_are_the_literal_ones():
    logits, targets = (array[::40] for array in TRUTHS["soft"][2])
    with mp.workdps(150):
        for row, target, hessian in zip(
            logits,
            targets,
            oracle.hessian(softmax.softmax_cross_entropy, logits, targets),
            strict=True,
        ):
            exponentials = [mpmath.exp(mpf(float(x))) for x in row]
            p = [e / mpmath.fsum(exponentials) for e in exponentials]
            total = mpmath.fsum(mpf(float(t)) for t in target)
            literal = [
                [total * (p[i] * (i == j) - p[i] * p[j]) for j in range(3)] for i in range(3)
            ]
            agree(hessian, literal)


def test_a_hessian_of_single_numbers_is_one_number_each():
    logits = np.array([0.5, -20.0, 30.0], np.float32)
    hessian = oracle.hessian(sigmoid.sigmoid_binary_cross_entropy, logits, np.zeros_like(logits))
    with mp.workdps(60):
        agree(hessian, [1 / (2 + mpmath.exp(float(x)) + mpmath.exp(-float(x))) for x in logits])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", TRUTHS)
def test_more_digits_change_nothing(name, dtype, monkeypatch):
    truth, options, arrays = TRUTHS[name]
    if dtype == np.float64:
        arrays = tuple(a.astype(dtype) if a.dtype == np.float32 else a for a in arrays)
        arrays = tuple(array[::9] for array in arrays)
    usual = oracle.batch(truth, *arrays, **options)
    enough = oracle.digits_for(*arrays)
    monkeypatch.setattr(oracle, "digits_for", lambda *_: 2 * enough + 300)
    more = oracle.batch(truth, *arrays, **options)
    agree(usual.value, more.value)
    for gradient, better in zip(usual.gradients, more.gradients, strict=True):
        agree(gradient, better)


def test_too_few_digits_would_be_noticed(monkeypatch):
    monkeypatch.setattr(oracle, "digits_for", lambda *_: 15)
    logits, labels = integer_rows()
    rough = oracle.batch(softmax.softmax_cross_entropy_with_integer_labels, logits, labels)
    monkeypatch.undo()
    right = oracle.batch(softmax.softmax_cross_entropy_with_integer_labels, logits, labels)
    with pytest.raises(AssertionError):
        agree(rough.value, right.value)


def test_known_figures():
    logits = np.array([[20, 0, 0], [0, 0, 0], [-np.inf, 0, 0], [0, -np.inf, -np.inf]], np.float32)
    truth = oracle.batch(
        softmax.softmax_cross_entropy_with_integer_labels, logits, np.zeros(4, np.int32)
    )
    assert float(truth.value[0]) == pytest.approx(4.1223072363804075e-09, rel=1e-15, abs=0)
    assert float(truth.gradients[0][0, 0]) == pytest.approx(
        -4.122307227883699e-09, rel=1e-15, abs=0
    )
    assert float(truth.value[1]) == pytest.approx(math.log(3), rel=1e-15)
    assert truth.value[2] == mpmath.inf
    assert float(truth.gradients[0][2, 0]) == 0.0
    assert float(truth.value[3]) == 0.0
    assert float(sigmoid.sigmoid_binary_cross_entropy(mpf(0), mpf(1)).value) == pytest.approx(
        math.log(2), rel=1e-15
    )
    assert float(softmax.z_loss([mpf(0), mpf(0)]).value) == pytest.approx(math.log(2) ** 2)


def test_impossible_and_infinite_logits():
    inf = mpf("inf")
    truth = softmax.softmax_cross_entropy([mpf(1), -inf], [mpf(1), mpf(0)])
    assert truth.value == 0
    assert truth.gradients[0] == [0, 0]
    assert softmax.softmax_cross_entropy([mpf(1), -inf], [mpf(0.5), mpf(0.5)]).value == inf
    for logits in ([inf, mpf(0)], [-inf, -inf], [mpf("nan"), mpf(0)]):
        assert mpmath.isnan(softmax.softmax_cross_entropy_with_integer_labels(logits, 0).value)
    assert sigmoid.sigmoid_binary_cross_entropy(inf, mpf(1)).value == 0
    assert sigmoid.sigmoid_binary_cross_entropy(inf, mpf(0)).value == inf


def test_inputs_are_taken_exactly():
    array = np.array([0.1, 1e-3], ml_dtypes.bfloat16)
    assert oracle.exact(array) == [mpf(205) / 2**11, mpf(131) / 2**17]
    assert oracle.exact(np.array([3, -1], np.int32)) == [3, -1]


def test_ulps_count_units_in_the_last_place():
    one = np.float32(1.0)
    above = np.nextafter(one, np.float32(2))
    below = np.nextafter(one, np.float32(0))
    np.testing.assert_array_equal(
        oracle.ulps([above, below, one], [mpf(1)] * 3, np.float32), [1.0, 0.5, 0.0]
    )
    assert oracle.ulps([one], [1 + mpf(2) ** -25], np.float32) == pytest.approx(0.25)
    assert oracle.scaled_ulps([above], [mpf(1)], [mpf(4)], np.float32) == pytest.approx(0.25)
    # A float64 truth needs more than the 53 bits of a float64.
    with mp.workdps(50):
        assert oracle.ulps([1.0], [1 + mpf(2) ** -54], np.float64) == pytest.approx(0.25)
    bfloat16 = np.array([1.0078125], ml_dtypes.bfloat16)
    assert oracle.ulps(bfloat16, [mpf(1)], ml_dtypes.bfloat16) == pytest.approx(1.0)
    # Below what may be flushed, an error is an error if it is larger than any subnormal.
    assert oracle.ulps([np.float32(1e-35)], [mpf(1e-36)], np.float32) > 1e6
    assert oracle.ulps([np.float16(6e-8)], [mpf(2) ** -23], np.float16) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("actual", "truth"),
    [
        (0.0, 1e-33),
        (-1e-9, 1e-9),
        (np.nan, 1.0),
        (np.inf, 1e38),
        (np.inf, -np.inf),
        (1.0, np.nan),
        (0.0, np.nan),
        (3e38, np.inf),
        (np.nan, np.inf),
        (np.nan, 0.0),
    ],
)
def test_what_is_never_excused(actual, truth):
    assert oracle.ulps([actual], [mpf(truth)], np.float32) == np.inf


@pytest.mark.parametrize(
    ("actual", "truth"),
    [
        (0.0, 1e-35),
        (9.99e-36, 1e-35),
        (0.0, 0.0),
        (-0.0, 0.0),
        (np.nan, np.nan),
        (np.inf, np.inf),
        (-np.inf, -np.inf),
        (np.inf, 1e39),
    ],
)
def test_what_is_excused(actual, truth):
    assert oracle.ulps([actual], [mpf(truth)], np.float32) == 0


def reached_by(function: Callable[..., Any]) -> dict[str, Any]:
    """All that a reference reaches by name or closure, its own helpers' names included."""
    found, waiting = {}, [function]
    while waiting:
        each = inspect.unwrap(waiting.pop())
        if isinstance(each, functools.partial):
            waiting += [each.func, *each.args, *each.keywords.values()]
        if not isinstance(each, types.FunctionType):
            continue
        known = inspect.getclosurevars(each)
        for name, value in {**known.globals, **known.nonlocals}.items():
            if name not in found:
                found[name] = value
                waiting.append(value)
    return found


def foreign(function: Callable[..., Any]) -> set[str]:
    """The libraries that a reference reaches and that a truth may not rest on."""
    origins = (
        value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", "")
        for value in reached_by(function).values()
    )
    tops = {str(origin).partition(".")[0] for origin in origins}
    return tops & {"jax", "jaxlib", "jaxent", "optax", "chex", "torch", "scipy"}


@pytest.mark.parametrize("case", [*CASES, *WHOLE_CASES], ids=str)
def test_references_share_no_code_with_what_they_judge(case):
    assert foreign(case.truth) == set()


def test_a_reference_that_borrows_from_jaxent_is_seen():
    def helper(logits):
        return jaxent.z_loss(logits)

    assert foreign(functools.partial(lambda logits: helper(logits))) == {"jaxent"}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("classes", [2, 10])
def test_families_are_the_same_each_time_and_hold_what_they_say(dtype, classes):
    names, (logits, labels) = together(integer_labels(dtype, classes))
    _, again = together(integer_labels(dtype, classes))
    assert logits.tobytes() == again[0].tobytes()
    assert logits.dtype == dtype
    assert len(names) == len(set(names)) == len(logits)
    assert ((labels >= 0) & (labels < classes)).all()
    values = logits.astype(np.float64)
    assert not np.isnan(values).any()
    assert not np.isposinf(values).any()
    row = names.index("ahead by 40 at 0")
    others = np.delete(values[row], labels[row]).max()
    assert values[row, labels[row]] - others == pytest.approx(40, rel=0.02)
    _, (_, targets) = together(soft_labels(dtype, classes))
    assert (targets.astype(np.float64) >= 0).all()
    assert {0.0, 1.0} <= set(targets.astype(np.float64).ravel())
