"""The heads, each with its losses by definition: of arrays by name, in float64."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxent

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
