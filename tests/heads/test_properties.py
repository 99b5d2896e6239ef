"""Every head on calls drawn by Hypothesis, beside its definition in float64."""

import contextlib
import functools
import itertools
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

import jaxent
from conformance.case import with_float64
from conformance.drawing import COMPILER_OPTIONS, POISONS

Arrays = dict[str, Any]


class Layout(NamedTuple):
    """All that the program of a call depends on."""

    leading: tuple[int, ...] = (4,)
    features: int = 2
    classes: int = 5
    vocab_axis: int = -1
    dtype: str = "float32"
    reduction: str = "mean"
    is_masked: bool = True
    is_weighted: bool = True
    has_options: bool = True
    way: str = "jit"
    size: int | None = None  # of a chunk of rows, or of a block of classes
    choice: int = 0  # among what is particular to the head


# --- definitions ----------------------------------------------------------------------------------


def log_softmax(x: np.ndarray) -> np.ndarray:
    shifted = x - x.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def logits_of(a: Arrays, who: str = "") -> np.ndarray:
    x = a[f"{who}hidden"] @ a[f"{who}kernel"] + a[f"{who}bias"]
    cap = a.get(f"{who}soft_cap")
    return x if cap is None else cap * np.tanh(x / cap)


def at_labels(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.take_along_axis(x, labels[..., None], -1)[..., 0]


def cross_entropy(a: Arrays, _: Layout) -> np.ndarray:
    x = logits_of(a) / a.get("temperature", 1.0)
    log_p = log_softmax(x)
    smoothing = a.get("label_smoothing", 0.0)
    of_label = -(1 - smoothing) * at_labels(log_p, a["labels"])
    normalizer = (x - log_p)[..., 0]
    return of_label - smoothing * log_p.mean(-1) + a.get("z_loss", 0.0) * normalizer**2


def statistics(a: Arrays, layout: Layout) -> np.ndarray:
    """Of `linear_softmax` and of `linear_log_prob`, with weights that tell them apart."""
    x = logits_of(a) / a.get("temperature", 1.0)
    log_p = log_softmax(x)
    label, entropy = -at_labels(log_p, a["labels"]), -(np.exp(log_p) * log_p).sum(-1)
    if layout.choice % 2:
        return -label + 2 * entropy
    return label + 2 * (x - log_p)[..., 0] + 3 * -log_p.mean(-1) + 5 * entropy + 7 * x.max(-1)


def divergence(a: Arrays, layout: Layout, kind: Callable) -> np.ndarray:
    student, heat = logits_of(a, "student_"), a.get("temperature", 1.0)
    teacher = logits_of(a, "teacher_")
    value = kind(log_softmax(student / heat), log_softmax(teacher / heat))
    weight = a.get("label_weight", 0.0)
    value = value * heat**2 if layout.has_options else value
    return (1 - weight) * value - weight * at_labels(log_softmax(student), a["labels"])


def kl(log_p: np.ndarray, log_t: np.ndarray) -> np.ndarray:
    return (np.exp(log_t) * (log_t - log_p)).sum(-1)


def jensen_shannon(log_p: np.ndarray, log_t: np.ndarray) -> np.ndarray:
    mixture = np.log(0.3 * np.exp(log_t) + 0.7 * np.exp(log_p))
    return 0.3 * kl(mixture, log_t) + 0.7 * kl(mixture, log_p)


def kl_divergence(a: Arrays, layout: Layout) -> np.ndarray:
    return divergence(a, layout, kl if layout.choice % 2 == 0 else lambda p, t: kl(t, p))


def contrast(a: Arrays, layout: Layout) -> np.ndarray:
    queries, keys = ((_unit(a[n]) if layout.choice % 2 else a[n]) for n in ("queries", "keys"))
    x = queries @ keys.T
    where = a.get("where")
    counts = np.ones(len(queries), bool) if where is None else where
    return {"info_nce": _info_nce, "clip_loss": _clip, "sigmoid": _sigmoid}[a["kind"]](a, x, counts)


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def _info_nce(a: Arrays, x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    x = np.where(counts, x / a["temperature"], -1e300)
    return np.where(counts, -np.diagonal(log_softmax(x)), 0.0)


def _clip(a: Arrays, x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    scaled = {**a, "temperature": np.exp(a["log_temperature"])}
    return (_info_nce(scaled, x, counts) + _info_nce(scaled, x.T, counts)) / 2


def _sigmoid(a: Arrays, x: np.ndarray, counts: np.ndarray) -> np.ndarray:
    x = x * np.exp(-a["log_temperature"]) + a["offset"]
    losses = np.logaddexp(0, np.where(np.eye(len(x), dtype=bool), -x, x))
    return np.where(counts, losses, 0.0).sum(-1)


# --- heads ----------------------------------------------------------------------------------------


def _common(a: Arrays, layout: Layout) -> Arrays:
    """The keywords that all heads of rows share."""
    names = ("where", "weights") if layout.choice != -1 else ("where",)
    chosen = {name: a[name] for name in names if name in a}
    return {**chosen, "vocab_axis": layout.vocab_axis, "reduction": layout.reduction}


def _kernel(array: Any, layout: Layout) -> Any:
    return array.T if layout.vocab_axis == 0 else array


def _some(a: Arrays, *names: str) -> Arrays:
    return {name: a[name] for name in names if name in a}


def call_cross_entropy(a: Arrays, layout: Layout) -> jax.Array:
    options = _some(a, "bias", "label_smoothing", "z_loss", "soft_cap", "temperature")
    size = {"chunk_size": layout.size} if layout.choice % 2 else {"block_size": layout.size}
    sweep = {"sweep": ("columns", "rows")[layout.choice % 2]}
    return jaxent.linear_softmax_cross_entropy(
        a["hidden"], _kernel(a["kernel"], layout), a["labels"], **options, **size, **sweep,
        **_common(a, layout),
    )  # fmt: skip


def call_loss(a: Arrays, layout: Layout) -> jax.Array:
    options = _some(a, "bias")
    kernel = _kernel(a["kernel"], layout)
    loss_fn = jaxent.softmax_cross_entropy_with_integer_labels
    common = _common(a, layout)
    return jaxent.linear_loss(
        loss_fn, a["hidden"], kernel, a["labels"], chunk_size=layout.size, **options, **common
    )


def call_statistics(a: Arrays, layout: Layout) -> jax.Array:
    options = _some(a, "bias", "soft_cap", "temperature", "where")
    function = jaxent.linear_log_prob if layout.choice % 2 else jaxent.linear_softmax
    row: Any = function(
        a["hidden"], _kernel(a["kernel"], layout), a["labels"], block_size=layout.size,
        vocab_axis=layout.vocab_axis, **options,
    )  # fmt: skip
    if layout.choice % 2:
        return row.log_prob + 2 * row.entropy
    first = row.cross_entropy + 2 * row.log_normalizer + 3 * row.uniform_cross_entropy
    return first + 5 * row.entropy + 7 * row.top_logit


def call_divergence(a: Arrays, layout: Layout, function: Callable, **own: Any) -> jax.Array:
    student = a["student_hidden"], _kernel(a["student_kernel"], layout)
    teacher = a["teacher_hidden"], _kernel(a["teacher_kernel"], layout)
    options = _some(a, "student_bias", "teacher_bias", "student_soft_cap", "teacher_soft_cap")
    options |= _some(a, "temperature", "labels", "label_weight")
    return function(
        *student, *teacher, chunk_size=layout.size, times_squared_temperature=layout.has_options,
        **own, **options, **_common(a, layout),
    )  # fmt: skip


def call_kl_divergence(a: Arrays, layout: Layout) -> jax.Array:
    direction = ("forward", "reverse")[layout.choice % 2]
    return call_divergence(a, layout, jaxent.linear_kl_divergence, direction=direction)


def call_jensen_shannon(a: Arrays, layout: Layout) -> jax.Array:
    return call_divergence(a, layout, jaxent.linear_jensen_shannon, beta=0.3)


def call_contrast(a: Arrays, layout: Layout, name: str) -> jax.Array:
    scalars = {
        "info_nce": ("temperature",),
        "clip_loss": ("log_temperature",),
        "sigmoid_contrastive_loss": ("log_temperature", "offset"),
    }
    return getattr(jaxent, name)(
        a["queries"], a["keys"], *(a[s] for s in scalars[name]), **_some(a, "where", "weights"),
        normalize=bool(layout.choice % 2), reduction=layout.reduction, chunk_size=layout.size,
    )  # fmt: skip


class Head(NamedTuple):
    call: Callable[[Arrays, Layout], jax.Array]
    losses: Callable[[Arrays, Layout], np.ndarray]  # of each row, float64
    arrays: dict[str, str]  # a letter for each axis of an array: rows, features, classes
    options: dict[str, float]
    always: Mapping[str, float] = MappingProxyType({})  # scalars that cannot be left out
    has_labels: bool = True


_HEAD = {"hidden": "rf", "kernel": "fc", "bias": "c"}
_PAIR = {f"{who}_{name}": axes for who in ("student", "teacher") for name, axes in _HEAD.items()}
_CAPS = {"student_soft_cap": 4.0, "teacher_soft_cap": 3.0, "temperature": 1.7, "label_weight": 0.3}
_BATCH = {"queries": "rf", "keys": "rf"}


def _contrast(name: str, **always: float) -> Head:
    kind = "sigmoid" if name.startswith("sigmoid") else name
    return Head(
        functools.partial(call_contrast, name=name),
        lambda a, layout: contrast({**a, "kind": kind}, layout),
        _BATCH, {}, always, has_labels=False,
    )  # fmt: skip


HEADS = {
    "linear_softmax_cross_entropy": Head(
        call_cross_entropy,
        cross_entropy,
        _HEAD,
        {"label_smoothing": 0.1, "z_loss": 0.01, "soft_cap": 3.0, "temperature": 0.8},
    ),
    "linear_loss": Head(call_loss, cross_entropy, _HEAD, {}),
    "linear_softmax": Head(
        call_statistics, statistics, _HEAD, {"soft_cap": 3.0, "temperature": 0.8}
    ),
    "linear_kl_divergence": Head(call_kl_divergence, kl_divergence, _PAIR, _CAPS),
    "linear_jensen_shannon": Head(
        call_jensen_shannon, functools.partial(divergence, kind=jensen_shannon), _PAIR, _CAPS
    ),
    "info_nce": _contrast("info_nce", temperature=0.6),
    "clip_loss": _contrast("clip_loss", log_temperature=-0.4),
    "sigmoid_contrastive_loss": _contrast(
        "sigmoid_contrastive_loss", log_temperature=-0.4, offset=-1.0
    ),
}


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
    return result(floats), gradients


def _reduced(losses: np.ndarray, a: Arrays, reduction: str) -> np.ndarray:
    weights = np.ones(losses.shape) * a.get("weights", 1.0) * a.get("where", True)
    if reduction == "none":
        return losses * weights
    total = np.sum(losses * weights)
    if reduction == "sum":
        return total
    return total / weights.sum() if weights.sum() else total


def _compare(said: str, layout: Layout, found: tuple, exact: tuple, is_bad: np.ndarray) -> None:
    result, gradients = found
    expected, slopes = exact
    loud = np.dtype("float64" if layout.dtype == "float64" else "float32")
    assert (result.shape, result.dtype) == (expected.shape, loud), said + str(result)
    if layout.reduction != "none" and is_bad.any():
        is_bad = is_bad.any(tuple(range(layout.way == "vmap", is_bad.ndim)))
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
LIKE_OTHERS = ("linear_jensen_shannon", "clip_loss")
quiet = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck))


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
def test_fuzzing(request):
    """Calls of any head and layout for five minutes, other ones on every run; see conformance."""
    if not request.config.getoption("--thorough", default="FUZZ_SEED" in os.environ):
        pytest.skip("takes five minutes")
    first = int(os.environ.get("FUZZ_SEED", time.time_ns() % 10**6))
    end = time.monotonic() + float(os.environ.get("FUZZ_SECONDS", 300))
    for number in itertools.count(first):
        if time.monotonic() > end:
            print(f"no finding with seeds {first} to {number - 1}")
            return
        print(f"seed {number}", flush=True)
        fuzz(number)


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
