"""Every loss on calls drawn by Hypothesis, beside the truth of each of their examples."""

import contextlib

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conformance import oracle
from conformance.case import WholeCase, with_float64
from conformance.drawing import (
    Call,
    Known,
    Layout,
    call,
    directions,
    fuzz_for,
    layouts,
    program,
    suited,
)
from conformance.drawing_whole import (
    KnownWhole,
    WholeCall,
    WholeLayout,
    gradients_left,
    whole_call,
    whole_layouts,
    whole_program,
)
from conformance.table import CASES, WHOLE_CASES

# Of the fast run: each row of the table meets one of them, in turn, so that few programs do.
LAYOUTS = (
    Layout(mask="examples", axis=0),
    Layout(mask="classes", classes=3, leading=(4,)),
    Layout(leading=(3, 1), mask="examples", mask_is_narrow=True, way="jvp", dtype="bfloat16"),
    Layout(axis=(-1, 0), classes=6, leading=(4,), mask="classes", label_dtype="uint8"),
    Layout(way="vmap", mask="examples", axis=-1, classes=2),
    Layout(narrow=1, dtype="float16", mask="classes", mask_is_narrow=True),
    Layout(leading=(5,), classes=1, mask="examples", label_dtype="int8"),
    Layout(way="scan", mask="classes", classes=3, axis=0),
    Layout(leading=(), mask="classes"),
)


def in_turn(cases, chosen):
    """The first row of each function with a layout; one function of a file is fast enough."""
    functions, files, rows = [case.function for case in cases], [], []
    for number, function in enumerate(dict.fromkeys(functions)):
        case = cases[functions.index(function)]
        files.append(function.__module__)
        marks = [pytest.mark.thorough] if files.count(function.__module__) > 1 else []
        rows.append(pytest.param(case, chosen(case, number), id=str(case), marks=marks))
    return rows


quiet = settings(
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize(
    ("case", "layout"),
    in_turn(CASES, lambda case, number: suited(LAYOUTS[number % len(LAYOUTS)], case)),
)
@settings(quiet, derandomize=True, max_examples=5, phases=[Phase.generate, Phase.shrink])
@given(data=st.data())
def test_any_call(case, layout, data):
    known = Known(case)
    check(known, layout, call(data.draw, known, layout))


def check(known: Known, layout: Layout, drawn: Call) -> None:
    """Fails unless the losses, their gradients and a tangent are true within the table's bars."""
    case, truth = known.case, drawn.truth
    assert truth.other_gradients is not None
    results = jax.tree.map(np.asarray, program(known, layout)(drawn.arrays, drawn.where))
    losses, gradients, tangent = results
    loud = np.dtype("float64" if layout.dtype == "float64" else "float32")
    said = f"{case} of {layout}:\n{drawn.arrays}, where={drawn.where}"
    assert (losses.shape, losses.dtype) == (layout.leading, loud), said
    errors = oracle.scaled_ulps(losses, truth.value, truth.value_scale, loud)
    judged, *judged_gradients = drawn.judged
    errors = np.where(judged, errors, 0.0)
    assert (errors <= case.value_ulps).all(), f"{said}:\n{losses}, not {truth.value}: {errors} ulps"
    exact_gradients = zip(
        truth.gradients, truth.other_gradients, truth.gradient_scales, strict=True
    )
    for gradient, (exact, other, scale), judged, position in zip(
        gradients, exact_gradients, judged_gradients, known.positions, strict=True
    ):
        array = drawn.arrays[position]
        assert (gradient.shape, gradient.dtype) == (array.shape, array.dtype), said
        bar = case.gradient_ulps if array.dtype == loud else 0.51
        bar = bar + 2 if layout.narrow == position != 0 else bar  # a sum over examples
        errors = np.minimum(
            oracle.scaled_ulps(gradient, exact, scale, array.dtype),
            oracle.scaled_ulps(gradient, other, scale, array.dtype),
        )
        errors = np.where((exact == np.inf) & (gradient == 0) | ~judged, 0.0, errors)
        text = f"{said}:\ngradient {position} is {gradient}, not {exact}: {errors} ulps"
        assert (errors <= bar).all(), text
    if tangent is not None:
        _check_tangent(known, layout, drawn, gradients, tangent, said)


WHOLE_LAYOUTS = (
    WholeLayout((("t", 2),), way="vmap"),
    WholeLayout((("b", 1), ("n", 4), ("p", 3), ("t", 3))),
    WholeLayout((("c", 1), ("d", 1), ("p", 1), ("l", 1)), way="checkpoint", dtype="bfloat16"),
    WholeLayout((("n", 2), ("c", 2), ("l", 2)), is_masked=False, way="scan"),
)


@pytest.mark.parametrize(
    ("case", "layout"),
    in_turn(WHOLE_CASES, lambda case, number: WHOLE_LAYOUTS[number % len(WHOLE_LAYOUTS)]),
)
@settings(quiet, derandomize=True, max_examples=5, phases=[Phase.generate, Phase.shrink])
@given(data=st.data())
def test_any_whole_call(case, layout, data):
    check_whole(KnownWhole(case), layout, whole_call(data.draw, case, layout))


def check_whole(known: KnownWhole, layout: WholeLayout, drawn: WholeCall) -> None:
    """Fails unless the sum of the losses and its gradients are true within the table's bars."""
    case, truth = known.case, drawn.truth
    results = whole_program(known, layout)(drawn.arrays, drawn.where)
    loss, gradients = jax.tree.map(np.asarray, results)
    loud = np.dtype("float64" if layout.dtype == "float64" else "float32")
    said = f"{case} of {layout}:\n{drawn.arrays}, where={drawn.where}"
    assert loss.dtype == loud, said
    left, hidden = gradients_left(case, drawn, gradients)
    assert not any(gradient.any() for gradient in hidden), f"{said}:\n{gradients}"
    if truth is None:
        assert loss == 0, f"{said}:\n{loss}"
        return
    errors = oracle.scaled_ulps(loss, truth.value, truth.value_scale, loud)
    assert errors <= case.value_ulps, f"{said}:\n{loss}, not {truth.value}: {errors} ulps"
    exact_gradients = zip(truth.gradients, truth.gradient_scales, strict=True)
    for gradient, (exact, scale) in zip(left, exact_gradients, strict=True):
        exact, scale = oracle.objects(exact), oracle.objects(scale)
        bar = case.gradient_ulps if gradient.dtype == loud else 0.51
        errors = oracle.scaled_ulps(gradient, exact, scale, gradient.dtype)
        text = f"{said}:\ngradient {gradient}, not {exact}: {errors} ulps"
        assert (errors <= bar).all(), text


def _check_tangent(known, layout, drawn, gradients, tangent, said):
    """The tangent of each example is what its gradients say, to roundings of their products."""
    if layout.narrow or layout.dtype == "float16":  # the gradient has been summed, or flushed
        return
    floats = [drawn.arrays[position] for position in known.positions]
    axes = -1 if known.case.has_class_axis else ()
    total, bar = np.zeros(layout.leading), np.full(layout.leading, 1e-30)
    is_fine = np.ones(layout.leading, bool)
    for gradient, scale, direction, judged in zip(
        gradients, drawn.truth.gradient_scales, directions(floats), drawn.judged[1:], strict=True
    ):
        sizes = np.abs(scale.astype(np.float64)) * np.abs(direction.astype(np.float64))
        products = gradient.astype(np.float64) * direction.astype(np.float64)
        is_fine &= (judged & np.isfinite(products) & (sizes < 1e37)).all(axes)
        total += np.sum(products, axes)
        bar += (
            2
            * known.case.gradient_ulps
            * float(ml_dtypes.finfo(gradient.dtype).eps)
            * np.sum(sizes, axes)
        )
    with np.errstate(invalid="ignore"):
        is_off = is_fine & ~(np.abs(tangent - total) <= bar)
    assert not is_off.any(), f"{said}:\ntangent {tangent}, not {total}"


@pytest.mark.thorough
def test_fuzzing():
    """Calls of any case and layout for ten minutes, other ones on every run."""
    fuzz_for(600, fuzz)


def fuzz(number: int) -> None:
    """A case, a layout of it, and some calls of that; all told by the number."""
    cases = (*CASES, *WHOLE_CASES)
    case = cases[np.random.default_rng(number).integers(len(cases))]
    dtypes = ("float32", "float32", "bfloat16", "float16", "float64")
    is_whole = isinstance(case, WholeCase)
    found = []

    @seed(number)
    @settings(quiet, max_examples=1, phases=[Phase.generate])
    @given(layout=whole_layouts(case, dtypes) if is_whole else layouts(case, dtypes))
    def any_layout(layout):
        found.append(layout)

    @seed(number)
    @settings(quiet, max_examples=10 if is_whole else 40, phases=[Phase.generate, Phase.shrink])
    @given(data=st.data())
    def any_call(data):
        if is_whole:
            check_whole(KnownWhole(case), layout, whole_call(data.draw, case, layout))
        else:
            check(Known(case), layout, call(data.draw, Known(case), layout))

    any_layout()
    (layout,) = found
    with with_float64() if layout.dtype == "float64" else contextlib.nullcontext():
        any_call()
