"""What property tests draw: how a loss is called, on which inputs, and what is true of the call.

A call is drawn in two steps. Its `Layout` is all that a program depends on: shapes, dtypes, axes,
masks, the transformation. What the arrays hold comes second, so that programs are used again.
"""

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from mpmath import mp, mpf

from conformance import inputs, oracle, regression
from conformance.case import CLASS, DISTRIBUTION, LOGITS, YES_OR_NO, Argument, Arrays, Case

Draw = Callable[[st.SearchStrategy], Any]

WAYS = ("jit", "checkpoint", "vmap", "scan", "jvp")
BAD_LABELS = (-1, -100, -(2**31), 2**31 - 1, 255, 127)
# The effort that XLA saves so takes ten times as long as the programs run.
COMPILER_OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
POISONS = (np.nan, np.inf, -np.inf, 3e38)
_REAL_ARGUMENTS = (regression.PREDICTIONS, regression.TARGETS, regression.MEANS)
_DIRECTION = (1.0, -0.5, 2.0, -1.0, 0.25)


class Layout(NamedTuple):
    """All that the program of a call depends on."""

    leading: tuple[int, ...] = (2, 3)
    classes: int = 5
    axis: int | tuple[int, int] = -1
    dtype: str = "float32"
    label_dtype: str = "int32"
    mask: str = "none"  # or "examples" or "classes"
    mask_is_narrow: bool = False  # one mask for all along the first axis
    narrow: int = 0  # the argument that has size 1 along the first axis; 0 for none
    way: str = "jit"


class Call(NamedTuple):
    """The arguments of a call, examples first and classes last, and what is true of it."""

    arrays: Arrays
    where: np.ndarray | None
    truth: oracle.Truth  # arrays of mpmath numbers, of the shapes of the losses and the arguments
    judged: tuple[np.ndarray, ...]  # of the losses and each gradient, where the truth is known


# --- layouts --------------------------------------------------------------------------------------


@st.composite
def layouts(draw: Draw, case: Case, dtypes: Sequence[str]) -> Layout:
    """Any layout that a case takes."""
    leading = draw(st.sampled_from([(), (0,), (1,), (4,), (2, 3), (3, 1), (1, 0, 2)]))
    layout = Layout(
        leading,
        draw(st.sampled_from([1, 2, 3, 6])),
        draw(st.sampled_from([-1, 0, -2, (0, -1), (-1, 0)])),
        draw(st.sampled_from(dtypes)),
        draw(st.sampled_from(["int32", "int8", "uint8"])),
        draw(st.sampled_from(["none", "examples", "classes"])),
        draw(st.booleans()),
        draw(st.integers(0, len(case.arguments) - 1)),
        draw(st.sampled_from(WAYS)),
    )
    return suited(layout, case)


def suited(layout: Layout, case: Case) -> Layout:
    """The nearest layout that a case takes."""
    leading, way = layout.leading, layout.way
    if way in ("vmap", "scan") and leading[:1] in ((), (0,)):
        way = "jit"
    rank = len(leading) - (way in ("vmap", "scan"))
    changed: dict[str, Any] = {"way": way}
    if layout.axis == -2 and rank == 0:
        changed["axis"] = -1
    if isinstance(layout.axis, tuple) and layout.classes % 2:
        changed["axis"] = -1
    if not case.has_class_axis:
        changed |= {"classes": 1, "axis": -1}
    if layout.mask == "classes" and not (case.has_class_axis and case.masks_classes):
        changed["mask"] = "examples"
    narrow = min(layout.narrow, len(case.arguments) - 1)
    is_whole = rank < len(leading) or not leading or case.arguments[narrow] is CLASS
    changed["narrow"] = 0 if is_whole else narrow
    if rank < len(leading) or not leading or layout.mask == "none":
        changed["mask_is_narrow"] = False
    return layout._replace(**changed)


# --- programs -------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def program(case_of: "Known", layout: Layout) -> Callable[..., Any]:
    """The losses, the gradients of their sum and a tangent, of arrays laid out as in a `Call`."""
    case = case_of.case

    def loss(*arrays: jax.Array, where: jax.Array | None) -> jax.Array:
        if not case.has_class_axis:
            return case.loss(*arrays, where=where)
        by_class = [a if argument is CLASS else placed(a) for a, argument in _zip(arrays, case)]
        mask = placed(where) if where is not None and layout.mask == "classes" else where
        return case.loss(*by_class, axis=layout.axis, where=mask)

    def placed(array: jax.Array) -> jax.Array:
        if isinstance(layout.axis, int):
            return jnp.moveaxis(array, -1, layout.axis)
        pair = (2, array.shape[-1] // 2) if array.shape[-1] > 1 else (1, 1)
        return jnp.moveaxis(array.reshape(*array.shape[:-1], *pair), (-2, -1), layout.axis)

    def losses(*arrays: jax.Array, where: jax.Array | None) -> jax.Array:
        if layout.way == "vmap":
            return jax.vmap(lambda a, w: loss(*a, where=w))(arrays, where)
        if layout.way == "scan":
            return jax.lax.scan(
                lambda _, a: (None, loss(*a[0], where=a[1])), None, (arrays, where)
            )[1]
        if layout.way == "checkpoint":
            return jax.checkpoint(lambda *a: loss(*a, where=where))(*arrays)
        return loss(*arrays, where=where)

    def everything(arrays: Any, where: Any) -> Any:
        positions = case_of.positions

        def of(*floats: jax.Array) -> jax.Array:
            given = list(arrays)
            for position, value in zip(positions, floats, strict=True):
                given[position] = value
            return losses(*given, where=where)

        floats = tuple(arrays[position] for position in positions)
        result, backward = jax.vjp(of, *floats)
        gradients = backward(jnp.ones_like(result))
        if layout.way != "jvp":
            return result, gradients, None
        return (
            result,
            gradients,
            jax.jvp(of, floats, tuple(map(jnp.asarray, directions(floats))))[1],
        )

    return jax.jit(everything, compiler_options=COMPILER_OPTIONS)


def directions(floats: Sequence[Any]) -> Arrays:
    """A tangent of each argument: numbers that every dtype has."""
    return tuple(np.resize(_DIRECTION, f.shape).astype(f.dtype) for f in floats)


class Known:
    """A case, known by its function and options."""

    def __init__(self, case: Case):
        self.case = case
        self.integers = tuple(array.dtype.kind in "iu" for array in case.inputs())
        indices = range(len(case.arguments))
        self.positions = tuple(index for index in indices if not self.integers[index])
        self._key = (case.function, tuple(case.options.items()))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self._key == other._key


# --- arrays ---------------------------------------------------------------------------------------


def call(draw: Draw, known: Known, layout: Layout) -> Call:
    """Arguments of a layout: hard, ordinary and free examples, masks, bad labels, NaN."""
    case, leading = known.case, layout.leading
    count = int(np.prod(leading))
    examples = [_example(draw, known, layout) for _ in range(count)]
    arrays = []
    for index, argument in enumerate(case.arguments):
        has_classes = case.has_class_axis and argument is not CLASS
        shape = (*leading, layout.classes) if has_classes else leading
        rows = [example[index] for example in examples]
        array = np.array(rows, rows[0].dtype if rows else np.float32).reshape(shape)
        arrays.append(array.astype(_dtype(known, layout, index)))
    if layout.narrow:
        arrays[layout.narrow] = arrays[layout.narrow][:1]
    where = _mask(draw, layout)
    wide = [np.broadcast_to(a, (*leading, *a.shape[len(leading) :])) for a in arrays]
    counts, exists = _what_counts(layout, where)
    _spoil(draw, known, layout, arrays, counts, exists)
    wide = [np.broadcast_to(a, (*leading, *a.shape[len(leading) :])) for a in arrays]
    return Call(tuple(arrays), where, *_truth(known, layout, wide, arrays, counts, exists))


def _dtype(known: Known, layout: Layout, index: int) -> np.dtype:
    if known.case.arguments[index] is CLASS:
        return np.dtype(layout.label_dtype)
    if known.integers[index]:
        return np.dtype(np.int32)
    return np.dtype(ml_dtypes.bfloat16 if layout.dtype == "bfloat16" else layout.dtype)


def _example(draw: Draw, known: Known, layout: Layout) -> tuple[np.ndarray, ...]:
    """One example: a hard one of the table, an ordinary one, or any numbers."""
    case = known.case
    kinds = ["ordinary"] if layout.classes == 1 and case.has_class_axis else ["ordinary", "hard"]
    kinds += ["free"] if any(map(_is_free, case.arguments)) else []
    kind = draw(st.sampled_from(kinds))
    if kind == "hard":
        rows = _hard(known, layout.dtype, layout.classes)
        index = draw(st.integers(0, len(rows[0]) - 1))
        return tuple(array[index] for array in rows)
    generator = np.random.default_rng(draw(st.integers(0, 99)))
    classes = layout.classes if case.has_class_axis else 1
    made = [np.asarray(a.make(generator, (), classes)) for a in case.arguments]
    if kind == "free":
        size = layout.classes if case.has_class_axis else 1
        made = [
            np.array(draw(_numbers(case, argument, layout.dtype, size)))
            if _is_free(argument)
            else array
            for array, argument in _zip(made, case)
        ]
    return tuple(made if case.has_class_axis else [array[0] for array in made])


@functools.lru_cache(maxsize=8)
def _hard(known: Known, dtype: str, classes: int) -> Arrays:
    of = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    shape = (of, classes) if known.case.has_class_axis else (of,)
    return inputs.together(known.case.hard_inputs(*shape))[1]


def _is_free(argument: Argument) -> bool:
    return argument.make is LOGITS.make or argument in (*_REAL_ARGUMENTS, DISTRIBUTION, YES_OR_NO)


def _numbers(case: Case, argument: Argument, dtype: str, size: int) -> st.SearchStrategy:
    """`size` numbers: any finite ones, or in [0, 1] for targets; logits may be -inf."""
    info = ml_dtypes.finfo(dtype)
    if argument in (DISTRIBUTION, YES_OR_NO):
        entry = st.one_of(st.sampled_from([0.0, 1.0, 0.5]), st.floats(0, 1))
    else:
        powers = st.floats(-float(info.nmant), float(info.maxexp)).map(lambda power: 2.0**power)
        signed = st.builds(lambda x, sign: x * sign, powers, st.sampled_from([1.0, -1.0]))
        any_finite = st.floats(float(info.min), float(info.max))
        entry = st.one_of(st.floats(-8, 8), st.integers(-120, 120), signed, any_finite)
    entry = entry.map(lambda x: _rounded(float(x), dtype))
    if not (case.has_class_axis and argument.make is LOGITS.make and "logits" in argument.name):
        return st.lists(entry, min_size=size, max_size=size)
    some = st.lists(st.one_of(entry, st.just(-np.inf)), min_size=size - 1, max_size=size - 1)
    return st.builds(lambda first, rest: [first, *rest], entry, some)


def _rounded(number: float, dtype: str) -> float:
    """A number of the dtype, and none of those that processors take for 0."""
    info = ml_dtypes.finfo(dtype)
    with np.errstate(over="ignore"):
        rounded = float(np.clip(np.array(number).astype(info.dtype), info.min, info.max))
    smallest = float(
        ml_dtypes.finfo("float64" if dtype == "float64" else "float32").smallest_normal
    )
    return rounded if abs(rounded) >= smallest else 0.0


def _mask(draw: Draw, layout: Layout) -> np.ndarray | None:
    if layout.mask == "none":
        return None
    leading = layout.leading
    shape = (1, *leading[1:]) if layout.mask_is_narrow else leading
    if layout.mask == "classes":
        shape = (*shape, layout.classes)
    entries = draw(
        st.lists(st.booleans(), min_size=int(np.prod(shape)), max_size=int(np.prod(shape)))
    )
    return np.array(entries, bool).reshape(shape)


def _what_counts(layout: Layout, where: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Which examples count, [*leading], and which of their classes exist, [*leading, classes]."""
    shape = (*layout.leading, layout.classes)
    exists = np.ones(shape, bool)
    if where is not None:
        exists &= where if layout.mask == "classes" else where[..., None]
    return np.asarray(exists.any(-1)), exists


def _spoil(
    draw: Draw, known: Known, layout: Layout, arrays: list, counts: np.ndarray, exists: np.ndarray
) -> None:
    """Puts poison where nothing counts, and now and then a bad label or a NaN where it does."""
    case = known.case
    poison = draw(st.sampled_from(POISONS))
    for index, argument in enumerate(case.arguments):
        array = arrays[index]
        has_classes = case.has_class_axis and argument is not CLASS
        hidden = ~exists if has_classes else ~counts
        if index == layout.narrow and index:
            hidden = hidden.all(0, keepdims=True)
        if not known.integers[index]:
            with np.errstate(over="ignore"):
                array[hidden] = poison
        elif argument is CLASS:
            array[hidden] = _fitting(BAD_LABELS[draw(st.integers(0, 3))], array.dtype)
    if counts.size and counts.any() and draw(st.integers(0, 3)) == 0:
        index = draw(st.integers(0, len(arrays) - 1))
        array = arrays[index]
        if case.arguments[index] is CLASS:
            label = draw(st.sampled_from((*BAD_LABELS, layout.classes + case.extra_classes)))
            place = draw(st.integers(0, array.size - 1))
            array.reshape(-1)[place] = _fitting(label, array.dtype)
        elif not known.integers[index]:
            array.reshape(-1)[draw(st.integers(0, array.size - 1))] = np.nan


def _fitting(label: int, dtype: np.dtype) -> int:
    """The label, or another bad one that the dtype holds."""
    info = np.iinfo(dtype)
    return int(np.clip(label, info.min, info.max)) if info.min < 0 or label > 0 else int(info.max)


# --- truth ----------------------------------------------------------------------------------------


def _truth(
    known: Known,
    layout: Layout,
    wide: list[np.ndarray],
    arrays: list[np.ndarray],
    counts: np.ndarray,
    exists: np.ndarray,
) -> tuple[oracle.Truth, tuple[np.ndarray, ...]]:
    """What is true of a call, example by example; nothing is of the gradients of a NaN."""
    values, value_scales = _zeros(layout.leading), _zeros(layout.leading)
    gradients = [_zeros(wide[position].shape) for position in known.positions]
    others = [_zeros(gradient.shape) for gradient in gradients]
    scales = [_zeros(gradient.shape) for gradient in gradients]
    judged = [np.ones(each.shape, bool) for each in (values, *gradients)]
    for place in np.ndindex(*layout.leading):
        if not counts[place]:
            continue
        example = _kept(known, layout, [array[place] for array in wide], exists[place])
        if example is None or _is_nowhere(known.case, example):
            values[place] = value_scales[place] = mpf("nan")
            judged[0][place] = example is None
            for each in judged[1:]:
                each[place] = False
            continue
        with mp.workdps(oracle.digits_for(*example)):
            truth = known.case.truth(*map(oracle.exact, example), **known.case.options)
        values[place], value_scales[place] = truth.value, truth.value_scale
        if known.case.name.startswith("cosine") and not any(map(any, truth.gradients)):
            # Of parallel vectors: 4 in 1000 are off by more than the bar of the table, by up to 40
            # units in the last place of an angle of 2^-50, which is 1e-20 over a length.
            for each in judged[1:]:
                each[place] = False
        entries = (*place, exists[place]) if known.case.has_class_axis else place
        least = _least_judged(known, example)
        judged[0][place] = not 0 < abs(truth.value) < least
        for each, slopes in zip(judged[1:], truth.gradients, strict=True):
            each[entries] &= np.array([not 0 < abs(slope) < least for slope in np.ravel(slopes)])
        found = (truth.gradients, truth.other_gradients or truth.gradients, truth.gradient_scales)
        for arrays_of, exact in zip((gradients, others, scales), found, strict=True):
            for array, numbers in zip(arrays_of, exact, strict=True):
                array[entries] = numbers
    for index, position in enumerate(known.positions):
        if arrays[position].shape != wide[position].shape:
            for each in (gradients, others, scales):
                each[index] = each[index].sum(0, keepdims=True)
            judged[index + 1] = np.asarray(judged[index + 1].all(0, keepdims=True))
    truth = oracle.Truth(values, tuple(gradients), value_scales, tuple(scales), tuple(others))
    return truth, tuple(judged)


def _kept(
    known: Known, layout: Layout, example: list[np.ndarray], exists: np.ndarray
) -> list[np.ndarray] | None:
    """The classes that exist, of an example that counts; nothing where there is no loss."""
    kept = []
    for array, argument in zip(example, known.case.arguments, strict=True):
        if argument is CLASS:
            label, classes = int(array), layout.classes + known.case.extra_classes
            if not 0 <= label < classes or (label < layout.classes and not exists[label]):
                return None
            kept.append(np.array(label - np.sum(~exists[:label])))
            continue
        array = array[exists] if known.case.has_class_axis else array
        if np.isnan(array.astype(np.float64)).any():
            return None
        kept.append(array)
    return kept


def _least_judged(known: Known, example: list[np.ndarray]) -> float:
    """What is smaller may be lost.

    A probability below the smallest normal number counts as 0, also where it meets a distance of
    logits in the thousands, and the product would be normal.
    """
    logits = np.abs(np.concatenate([np.ravel(each).astype(np.float64) for each in example]))
    largest = logits[np.isfinite(logits)].max(initial=0.0)
    if largest < 1000.0 or not known.case.name.startswith(("softmax", "sigmoid")):
        return 0.0
    info = ml_dtypes.finfo(np.float64 if example[0].dtype == np.float64 else np.float32)
    return float(info.smallest_normal) * largest * 2.0**info.nmant


def _is_nowhere(case: Case, example: list[np.ndarray]) -> bool:
    """Whether no class is possible, of which other obligations speak."""
    if not case.has_class_axis:
        return False
    nothing = [
        (array == (0 if argument.name.startswith("probs") else -np.inf)).all()
        for array, argument in zip(example, case.arguments, strict=True)
        if argument.name.startswith("probs") or "logits" in argument.name
    ]
    return any(nothing)


def _zeros(shape: tuple[int, ...]) -> np.ndarray:
    zeros = np.empty(shape, object)
    zeros.fill(mpf(0))
    return zeros


def _zip(arrays: Any, case: Case) -> Any:
    return zip(arrays, case.arguments, strict=True)


def fuzz_for(seconds: float, fuzz: Callable[[int], None]) -> None:
    """Run `fuzz(seed)` of one seed after the other for so long, and print each.

    `FUZZ_SEED` names the first one, so that a finding is drawn again; `FUZZ_SECONDS` is for how
    long.
    """
    first = int(os.environ.get("FUZZ_SEED", time.time_ns() % 10**6))
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", seconds))
    for number in itertools.count(first):
        if time.monotonic() > end:
            print(f"no finding with seeds {first} to {number - 1}")
            return
        print(f"seed {number}", flush=True)
        fuzz(number)
