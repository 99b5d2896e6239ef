"""The oracle is judged too: by differences, literal formulas, more digits and known figures."""

import ast
import math
from pathlib import Path

import families
import ml_dtypes
import mpmath
import numpy as np
import oracle
import pytest
from contract_table import ROWS
from mpmath import mp, mpf

SOFT = {"label_smoothing": 0.125}


def integer_rows(dtype=np.float32, classes=4):
    return families.together(families.integer_labels(dtype, classes))[1]


def finite(logits, labels):
    """Rows on which every derivative exists: finite logits, nothing so huge that a step is lost."""
    kept = np.isfinite(logits).all(-1)
    return logits[kept], labels[kept]


# Each truth with its options and rows of inputs.
TRUTHS = {
    "integer": (oracle.softmax_cross_entropy_with_integer_labels, {}, finite(*integer_rows())),
    "smoothed": (oracle.softmax_cross_entropy_with_integer_labels, SOFT, finite(*integer_rows())),
    "soft": (
        oracle.softmax_cross_entropy,
        {},
        finite(*families.together(families.soft_labels(np.float32, 3))[1]),
    ),
    "z": (oracle.z_loss, {}, finite(*integer_rows())[:1]),
    "sigmoid": (
        oracle.sigmoid_binary_cross_entropy,
        {"pos_weight": 2.5, **SOFT},
        families.together(families.binary_targets(np.float32))[1],
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


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_closed_gradients_of_every_row_are_differences(row):
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
    for gradient, difference in zip(closed.gradients, measured.gradients, strict=True):
        agree(gradient, difference)


def test_hessians_are_the_literal_ones():
    logits, targets = (array[::40] for array in TRUTHS["soft"][2])
    with mp.workdps(150):
        for row, target, hessian in zip(
            logits,
            targets,
            oracle.hessian(oracle.softmax_cross_entropy, logits, targets),
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
    hessian = oracle.hessian(oracle.sigmoid_binary_cross_entropy, logits, np.zeros_like(logits))
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
    rough = oracle.batch(oracle.softmax_cross_entropy_with_integer_labels, logits, labels)
    monkeypatch.undo()
    right = oracle.batch(oracle.softmax_cross_entropy_with_integer_labels, logits, labels)
    with pytest.raises(AssertionError):
        agree(rough.value, right.value)


def test_known_figures():
    logits = np.array([[20, 0, 0], [0, 0, 0], [-np.inf, 0, 0], [0, -np.inf, -np.inf]], np.float32)
    truth = oracle.batch(
        oracle.softmax_cross_entropy_with_integer_labels, logits, np.zeros(4, np.int32)
    )
    assert float(truth.value[0]) == pytest.approx(4.1223072363804075e-09, rel=1e-15, abs=0)
    assert float(truth.gradients[0][0, 0]) == pytest.approx(
        -4.122307227883699e-09, rel=1e-15, abs=0
    )
    assert float(truth.value[1]) == pytest.approx(math.log(3), rel=1e-15)
    assert truth.value[2] == mpmath.inf
    assert float(truth.gradients[0][2, 0]) == 0.0
    assert float(truth.value[3]) == 0.0
    assert float(oracle.sigmoid_binary_cross_entropy(mpf(0), mpf(1)).value) == pytest.approx(
        math.log(2), rel=1e-15
    )
    assert float(oracle.z_loss([mpf(0), mpf(0)]).value) == pytest.approx(math.log(2) ** 2)


def test_impossible_and_infinite_logits():
    inf = mpf("inf")
    truth = oracle.softmax_cross_entropy([mpf(1), -inf], [mpf(1), mpf(0)])
    assert truth.value == 0
    assert truth.gradients[0] == [0, 0]
    assert oracle.softmax_cross_entropy([mpf(1), -inf], [mpf(0.5), mpf(0.5)]).value == inf
    for logits in ([inf, mpf(0)], [-inf, -inf], [mpf("nan"), mpf(0)]):
        assert mpmath.isnan(oracle.softmax_cross_entropy_with_integer_labels(logits, 0).value)
    assert oracle.sigmoid_binary_cross_entropy(inf, mpf(1)).value == 0
    assert oracle.sigmoid_binary_cross_entropy(inf, mpf(0)).value == inf


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


@pytest.mark.parametrize(
    "path", [Path(oracle.__file__), *Path(__file__).parent.glob("truth_*.py")], ids=lambda p: p.name
)
def test_the_oracle_shares_no_code_with_what_it_judges(path):
    tree = ast.parse(path.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert not imported & {"jax", "jaxlib", "jaxent", "optax", "chex", "torch", "scipy"}


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16, np.float64])
@pytest.mark.parametrize("classes", [2, 10])
def test_families_are_the_same_each_time_and_hold_what_they_say(dtype, classes):
    names, (logits, labels) = families.together(families.integer_labels(dtype, classes))
    _, again = families.together(families.integer_labels(dtype, classes))
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
    _, (_, targets) = families.together(families.soft_labels(dtype, classes))
    assert (targets.astype(np.float64) >= 0).all()
    assert {0.0, 1.0} <= set(targets.astype(np.float64).ravel())
