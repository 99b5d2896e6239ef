"""Every head on calls drawn by Hypothesis, beside its definition in float64."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from conformance.case import with_float64
from conformance.drawing import COMPILER_OPTIONS, POISONS, fuzz_for
from heads.defined import HEADS, Arrays, Head, Layout, call_statistics

# --- calls ----------------------------------------------------------------------------------------


def suited(name: str, layout: Layout) -> Layout:
    """The nearest layout that a head takes."""
    head, leading = HEADS[name], layout.leading
    changed: dict[str, Any] = {}
    if not head.has_labels:
        changed["leading"] = leading = leading[:1] or (3,)
    if head.call is call_statistics:
        changed |= {"reduction": "none", "is_weighted": False}
    if layout.way == "vmap" and (not head.has_labels or leading[:1] in ((), (0,))):
        changed["way"] = "jit"
    return layout._replace(**changed)


@st.composite
def layouts(draw: Callable[[st.SearchStrategy], Any], name: str) -> Layout:
    choices = (
        [(), (0,), (1,), (5,), (2, 3), (3, 1)],
        [1, 2, 3],
        [1, 2, 5, 7],
        [-1, 0],
        ["float32", "float32", "bfloat16", "float64"],
        ["mean", "sum", "none"],
        [True, False],
        [True, False],
        [True, False],
        ["jit", "vmap", "checkpoint"],
        [None, 1, 2, 4],
        [0, 1],
    )
    return suited(name, Layout(*(draw(st.sampled_from(choice)) for choice in choices)))


@functools.lru_cache(maxsize=4)
def program(name: str, layout: Layout) -> Callable[[Arrays, Arrays], Any]:
    """The result and the gradients of its sum in all floating arrays but the weights."""
    head = HEADS[name]

    def of(floats: Arrays, others: Arrays) -> tuple[jax.Array, jax.Array]:
        by_row = {n: a for n, a in (floats | others).items() if _is_by_row(head, n)}
        shared = {n: a for n, a in (floats | others).items() if n not in by_row}

        def result(rows: Arrays) -> jax.Array:
            return head.call(rows | shared, layout)

        if layout.way == "vmap":
            result = jax.vmap(result)
        found = (jax.checkpoint(result) if layout.way == "checkpoint" else result)(by_row)
        return jnp.sum(found), found

    return jax.jit(jax.grad(of, has_aux=True), compiler_options=COMPILER_OPTIONS)


def _is_by_row(head: Head, name: str) -> bool:
    return head.arrays.get(name, "r" if name in ("labels", "where", "weights") else "")[:1] == "r"


def check(draw: Callable[[st.SearchStrategy], Any], name: str, layout: Layout) -> None:
    """Draws the arrays of a call, and fails unless its result and gradients are those defined."""
    head, leading = HEADS[name], layout.leading
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    scale = draw(st.sampled_from([0.3, 1.0, 3.0]))
    sizes = {"r": leading, "f": (layout.features,), "c": (layout.classes,)}
    dtype = jnp.dtype(layout.dtype)
    floats = {
        n: (scale * generator.normal(size=sum((sizes[axis] for axis in axes), ()))).astype(dtype)
        for n, axes in head.arrays.items()
    }
    scalars = {**head.always} | (head.options if layout.has_options else {})
    floats |= {n: np.array(value, dtype) for n, value in scalars.items()}
    others: Arrays = {}
    if head.has_labels:
        others["labels"] = generator.integers(layout.classes, size=leading).astype(np.int32)
    if layout.is_weighted:
        others["weights"] = generator.uniform(0.5, 1.5, size=leading).astype(np.float32)
    counts = np.ones(leading, bool)
    if layout.is_masked:
        size = counts.size
        counts = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
        others["where"] = counts = counts.reshape(leading)
    exact, gradients = _reference(
        head, layout, {n: a.astype(np.float64) for n, a in floats.items()}, others
    )
    poison = draw(st.sampled_from(POISONS))
    is_bad = np.zeros(leading, bool)
    with np.errstate(over="ignore"):
        for n in (n for n in (*floats, *others) if n != "where" and _is_by_row(head, n)):
            array = floats[n] if n in floats else others[n].copy()
            array[~counts] = -100 if n == "labels" else poison
            (floats if n in floats else others)[n] = array
    if "labels" in others and counts.any() and draw(st.integers(0, 4)) == 0:
        is_bad[tuple(np.argwhere(counts)[0])] = True
        others["labels"][is_bad] = draw(st.sampled_from([-1, -100, layout.classes, 2**31 - 1]))
    found, result = jax.tree.map(np.asarray, program(name, layout)(floats, others))
    said = f"{name} of {layout}:\n{floats}\n{others}\n"
    _compare(said, layout, (result, found), (exact, gradients), is_bad)


def _reference(
    head: Head, layout: Layout, floats: Arrays, others: Arrays
) -> tuple[np.ndarray, Arrays]:
    """The result, and the gradients of its sum by central differences."""

    def result(floats: Arrays) -> np.ndarray:
        given = floats | others
        if layout.way != "vmap":
            return _reduced(head.losses(given, layout), given, layout.reduction)
        names = [n for n in given if _is_by_row(head, n)]
        slices = [given | {n: given[n][index] for n in names} for index in range(layout.leading[0])]
        every = [_reduced(head.losses(part, layout), part, layout.reduction) for part in slices]
        return np.stack(every)

    def slope(name: str, index: tuple[int, ...]) -> float:
        sides = []
        for step in (1e-5, -1e-5):
            array = floats[name].copy()
            array[index] += step
            sides.append(np.sum(result(floats | {name: array})))
        return (sides[0] - sides[1]) / 2e-5

    gradients = {}
    for name, array in floats.items():
        slopes = [slope(name, index) for index in np.ndindex(*array.shape)]
        gradients[name] = np.reshape(slopes, array.shape)
    return np.asarray(result(floats)), gradients


def _reduced(losses: np.ndarray, a: Arrays, reduction: str) -> np.ndarray:
    weights = np.ones(losses.shape) * a.get("weights", 1.0) * a.get("where", True)
    if reduction == "none":
        return np.asarray(losses * weights)
    divisor = weights.sum() if reduction == "mean" and weights.any() else 1.0
    return np.asarray(np.sum(losses * weights) / divisor)


def _compare(said: str, layout: Layout, found: tuple, exact: tuple, is_bad: np.ndarray) -> None:
    result, gradients = found
    expected, slopes = exact
    loud = np.dtype("float64" if layout.dtype == "float64" else "float32")
    assert (result.shape, result.dtype) == (expected.shape, loud), said + str(result)
    if layout.reduction != "none" and is_bad.any():
        is_bad = np.asarray(is_bad.any(tuple(range(layout.way == "vmap", is_bad.ndim))))
    is_bad = np.broadcast_to(is_bad if is_bad.any() else False, result.shape)
    error = np.where(is_bad, 0.0, _error(result, expected, layout.dtype))
    assert (np.isnan(result) == is_bad).all(), said + f"{result}, NaN where {is_bad}"
    assert (error <= 1).all(), said + f"{result}, not {expected}"
    if is_bad.any():
        return
    for name, gradient in gradients.items():
        assert gradient.dtype == jnp.dtype(layout.dtype), said + name
        error = _error(gradient, slopes[name], layout.dtype)
        assert (error <= 1).all(), said + f"gradient of {name}: {gradient}, not {slopes[name]}"


def _error(found: np.ndarray, exact: np.ndarray, dtype: str) -> np.ndarray:
    """The error, in units of what roundings of sums of a few products explain."""
    bar = {"float64": 1e-8, "float32": 2e-5, "bfloat16": 0.04}[dtype]
    size = 1.0 + np.max(np.abs(exact), initial=0.0)
    return np.nan_to_num(np.abs(found.astype(np.float64) - exact), nan=np.inf) / (bar * size)


# --- tests ----------------------------------------------------------------------------------------

# Of the fast run: each head meets one of them, in turn, so that few programs do.
LAYOUTS = (
    Layout(size=1, choice=1),
    Layout((2, 3), vocab_axis=0, way="vmap", reduction="sum", size=2),
    Layout((3, 1), classes=1, reduction="none", choice=1),
    Layout((2, 3), features=1, way="checkpoint", has_options=False, choice=1, dtype="bfloat16"),
)
LIKE_OTHERS = ("linear_kl_divergence", "clip_loss")
quiet = settings(
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        pytest.param(
            name,
            suited(name, LAYOUTS[number % len(LAYOUTS)]),
            id=name,
            marks=[pytest.mark.thorough] if name in LIKE_OTHERS else [],
        )
        for number, name in enumerate(HEADS)
    ],
)
@settings(quiet, derandomize=True, max_examples=4, phases=[Phase.generate, Phase.shrink])
@given(data=st.data())
def test_any_call(name, layout, data):
    check(data.draw, name, layout)


@pytest.mark.thorough
def test_fuzzing():
    """Calls of any head and layout for five minutes, other ones on every run."""
    fuzz_for(300, fuzz)


def fuzz(number: int) -> None:
    """A head, a layout of it, and some calls of that; all told by the number."""
    name = list(HEADS)[np.random.default_rng(number).integers(len(HEADS))]
    found: list[Layout] = []

    @seed(number)
    @settings(quiet, max_examples=1, phases=[Phase.generate])
    @given(layout=layouts(name))
    def any_layout(layout):
        found.append(layout)

    @seed(number)
    @settings(quiet, max_examples=10, phases=[Phase.generate, Phase.shrink])
    @given(data=st.data())
    def any_call(data):
        check(data.draw, name, found[0])

    any_layout()
    with with_float64() if found[0].dtype == "float64" else contextlib.nullcontext():
        any_call()
