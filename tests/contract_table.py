"""One row for each public loss: what the contract and the accuracy tests need to know about it.

A new loss enters here, with the definition of its truth in oracle.py, and every obligation of
test_contract.py applies to it. What a signature or a dtype already says is not said again: whether
a loss has a class axis and a mask, and which arguments have gradients.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import families
import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np
import optax
import oracle

import jaxent

# Worst error allowed, in units in the last place (scaled where the truth is a difference; see
# oracle.Truth): NUMERICS asks for 32 and 64 of the integer form and aims at 4 and 8.
INTEGER_VALUE, INTEGER_GRADIENT = 4, 8
SOFT_VALUE, SOFT_GRADIENT = 8, 8
SMOOTHED_VALUE, SMOOTHED_GRADIENT = 4, 8
SIGMOID_VALUE, SIGMOID_GRADIENT = 4, 4
Z_VALUE, Z_GRADIENT = 4, 8
HESSIAN = 16

# Public names that are no per-example losses, and the tests that hold them to their own contract.
NOT_LOSSES = MappingProxyType(
    {
        "mean": "test_reduction.py",
        "sum_and_weight": "test_reduction.py",
        "linear_loss": "test_row_sweep.py",
        "linear_softmax_cross_entropy": "test_linear.py",
    }
)


def with_float64() -> Any:
    """A context in which float64 exists; its place in JAX has moved."""
    # An attribute of one module or the other, depending on the version of JAX.
    module: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return module.enable_x64(True)


class Argument(NamedTuple):
    """A positional argument: how to make ordinary ones, [*leading, classes] or [*leading]."""

    name: str
    make: Callable[[np.random.Generator, tuple[int, ...], int], np.ndarray]


LOGITS = Argument("logits", lambda rng, leading, classes: 3 * rng.normal(size=(*leading, classes)))
CLASS = Argument("labels", lambda rng, leading, classes: rng.integers(classes, size=leading))
DISTRIBUTION = Argument(
    "labels", lambda rng, leading, classes: rng.dirichlet(np.ones(classes), size=leading)
)
YES_OR_NO = Argument("labels", lambda rng, leading, classes: rng.random((*leading, classes)))


class Row(NamedTuple):
    """A public loss, with one choice of its options."""

    function: Callable[..., jax.Array]
    arguments: tuple[Argument, ...]
    truth: Callable[..., oracle.Truth]  # of one example; see oracle.py
    hard_inputs: Callable[..., Iterator[families.Family]]  # (dtype, classes, rows)
    value_ulps: float
    gradient_ulps: float
    options: Mapping[str, Any] = MappingProxyType({})
    peer: Callable[..., jax.Array] | None = None  # the same quantity by optax, if it has it
    vocabulary_inputs: Callable[..., Iterator[families.Family]] | None = None  # (dtype, classes)
    hessian_ulps: float = HESSIAN
    curvature_scale: Callable[..., np.ndarray] | None = None  # where the truth is a difference
    is_nonnegative: bool = True

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def has_class_axis(self) -> bool:
        """Whether examples are rows of classes, which `axis` and `where` speak about."""
        return "axis" in inspect.signature(self.function).parameters

    def __str__(self) -> str:
        options = ",".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.name}({options})"

    def loss(self, *arguments: Any, **keywords: Any) -> jax.Array:
        return self.function(*arguments, **self.options, **keywords)

    def inputs(
        self, leading: tuple[int, ...] = (4,), classes: int = 5, dtype: Any = np.float32
    ) -> tuple[np.ndarray, ...]:
        """Ordinary arguments: the same ones on every call."""
        generator = np.random.default_rng(classes)
        arrays = [argument.make(generator, leading, classes) for argument in self.arguments]
        arrays = map(np.asarray, arrays)
        return tuple(a.astype(np.int32 if a.dtype.kind == "i" else dtype) for a in arrays)

    def hard_case(self, dtype: Any, classes: int, at_most: int | None = None) -> "Case":
        """The hard inputs (or some of the families) and what is true of them."""
        shape = (dtype, classes) if self.has_class_axis else (dtype,)
        options = tuple(self.options.items())
        return _case(self.hard_inputs, shape, at_most, self.truth, options)

    def vocabulary_case(self, dtype: Any, classes: int, family: int) -> "Case":
        """One row of very many classes, and what is true of it."""
        assert self.vocabulary_inputs is not None
        chosen = list(self.vocabulary_inputs(dtype, classes))[family : family + 1]
        return _judged(chosen, self.truth, self.options)


class Case(NamedTuple):
    """Rows of inputs laid together, the family each came from, and the truth of each."""

    names: list[str]
    arguments: tuple[np.ndarray, ...]
    truth: oracle.Truth


@functools.cache  # the truth takes longer than what is judged by it
def _case(
    inputs: Callable, shape: tuple, at_most: int | None, truth: Callable, options: tuple
) -> Case:
    chosen = list(inputs(*shape))
    if at_most is not None and at_most < len(chosen):
        kept = np.random.default_rng(shape[1:]).choice(len(chosen), at_most, replace=False)
        chosen = [chosen[index] for index in sorted(kept)]
    return _judged(chosen, truth, dict(options))


def _judged(chosen: list[families.Family], truth: Callable, options: Mapping[str, Any]) -> Case:
    names, arguments = families.together(chosen)
    return Case(names, arguments, oracle.batch(truth, *arguments, **options))


_integer = functools.partial(
    Row,
    jaxent.softmax_cross_entropy_with_integer_labels,
    (LOGITS, CLASS),
    oracle.softmax_cross_entropy_with_integer_labels,
    families.integer_labels,
    vocabulary_inputs=families.few_integer_labels,
)
_soft = functools.partial(
    Row,
    jaxent.softmax_cross_entropy,
    (LOGITS, DISTRIBUTION),
    oracle.softmax_cross_entropy,
    families.soft_labels,
    vocabulary_inputs=families.few_soft_labels,
)
_sigmoid = functools.partial(
    Row,
    jaxent.sigmoid_binary_cross_entropy,
    (LOGITS, YES_OR_NO),
    oracle.sigmoid_binary_cross_entropy,
    families.binary_targets,
    SIGMOID_VALUE,
    SIGMOID_GRADIENT,
)


def _optax_smoothed(logits, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits, targets)


def _optax_soft_smoothed(logits, labels):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jnp.asarray(labels), 0.1))


ROWS = (
    _integer(INTEGER_VALUE, INTEGER_GRADIENT, peer=optax.softmax_cross_entropy_with_integer_labels),
    _integer(SMOOTHED_VALUE, SMOOTHED_GRADIENT, {"label_smoothing": 0.1}, peer=_optax_smoothed),
    _soft(SOFT_VALUE, SOFT_GRADIENT, peer=optax.softmax_cross_entropy),
    # Over whole vocabularies the rows above say what there is to say.
    _soft(
        SOFT_VALUE,
        SOFT_GRADIENT,
        {"label_smoothing": 0.1},
        peer=_optax_soft_smoothed,
        vocabulary_inputs=None,
    ),
    _sigmoid(peer=optax.sigmoid_binary_cross_entropy),
    _sigmoid({"label_smoothing": 0.1, "pos_weight": 2.5}),
    Row(
        jaxent.z_loss,
        (LOGITS,),
        oracle.z_loss,
        families.logits_only,
        Z_VALUE,
        Z_GRADIENT,
        vocabulary_inputs=families.few_logits_only,
        curvature_scale=oracle.z_loss_curvature_scale,
    ),
)
