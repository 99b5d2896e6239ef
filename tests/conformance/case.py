"""What a test needs to know about a public loss: a case of the table.

A `Case` speaks of a loss of rows of classes, or of single elements. A `WholeCase` speaks of a loss
of things that are larger: an image, a ranked list, a sequence of frames, a batch of embeddings.
What an example is there, and so what a mask covers, differs from loss to loss.

What a signature or a dtype already says is not said again: whether a loss has a class axis and a
mask, and which arguments have gradients.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.experimental
import jax.numpy as jnp
import numpy as np

from conformance import level, oracle
from conformance.inputs import Family, together

Arrays = tuple[np.ndarray, ...]

# Worst error allowed in second derivatives, in units in the last place.
HESSIAN = 16


def with_float64() -> Any:
    """A context in which float64 exists; its place in JAX has moved."""
    # An attribute of one module or the other, depending on the version of JAX.
    module: Any = jax if hasattr(jax, "enable_x64") else jax.experimental
    return module.enable_x64(True)


class Batch(NamedTuple):
    """Inputs laid together, the family each came from, and the truth of each."""

    names: list[str]
    arguments: Arrays
    truth: oracle.Truth


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


class Case(NamedTuple):
    """A public loss, with one choice of its options."""

    function: Callable[..., jax.Array]
    arguments: tuple[Argument, ...]
    truth: Callable[..., oracle.Truth]  # of one example; see conformance/oracle.py
    hard_inputs: Callable[..., Iterator[Family]]  # (dtype, classes, rows)
    value_ulps: float
    gradient_ulps: float
    options: Mapping[str, Any] = MappingProxyType({})
    peer: Callable[..., jax.Array] | None = None  # the same quantity by optax, if it has it
    vocabulary_inputs: Callable[..., Iterator[Family]] | None = None  # (dtype, classes)
    hessian_ulps: float = HESSIAN
    hessian_scale: Callable[..., np.ndarray] | None = None  # where the truth is a difference
    # The other side where the second derivative jumps, as right as the truth by a rounding.
    other_hessian: Callable[..., np.ndarray] | None = None
    is_nonnegative: bool = True
    masks_classes: bool = True  # whether `where` may also have the full shape of the logits
    constants: tuple[str, ...] = ()  # arguments of an element-wise loss without a derivative
    extra_classes: int = 0  # how many more classes a label may name than there are logits
    most_rows: int | None = None  # of hard inputs: some will do where a loss is broken on purpose

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

    def positions(self, arguments: Any) -> tuple[int, ...]:
        """The positions of the arguments that have gradients."""
        return tuple(i for i, a in enumerate(arguments) if a.dtype.kind not in "iu")

    def hard_batch(
        self, dtype: Any, classes: int, at_most: int | None = None, fast: int | None = None
    ) -> "Batch":
        """The hard inputs (or some families, of them `fast` in a fast run), and their truth."""
        shape = (dtype, classes) if self.has_class_axis else (dtype,)
        options = tuple(self.options.items())
        few = None if level.is_thorough() else fast
        batch = _batch(self.hard_inputs, shape, at_most, few, self.truth, options)
        return _some(batch, self.most_rows)

    def vocabulary_batch(self, dtype: Any, classes: int, family: int) -> "Batch":
        """One row of very many classes, and what is true of it."""
        assert self.vocabulary_inputs is not None
        chosen = list(self.vocabulary_inputs(dtype, classes))[family : family + 1]
        return _with_truth(chosen, self.truth, self.options)


class Hidden(NamedTuple):
    """Arguments of which a part does not count."""

    arguments: Arrays  # the same, but for those that are themselves masks
    keywords: Mapping[str, Any]  # the mask, where it is an argument of its own
    elements: tuple[np.ndarray, ...]  # of each argument, True where nothing may depend on it


class WholeCase(NamedTuple):
    """A public loss, with one choice of its options.

    One call is judged by the sum of what it returns, so `truth` gives a single number.
    """

    function: Callable[..., Any]
    make: Callable[[np.random.Generator], Arrays]  # ordinary arguments of one call, in float64
    truth: Callable[..., oracle.Truth]  # of one call, as nested lists; gradients of all floats
    hard_inputs: Callable[[Any], Iterator[Family]]  # (dtype): calls along the first axis
    value_ulps: float
    gradient_ulps: float
    options: Mapping[str, Any] = MappingProxyType({})
    # (generator, arguments): a part of them does not count, and what is left still has a loss
    hide: Callable[[np.random.Generator, Arrays], Hidden] | None = None
    hide_all: Callable[[Arrays], Hidden] | None = None  # nothing counts
    peer: Callable[..., Any] | None = None  # the same quantity by optax, if it has it
    is_nonnegative: bool = True
    # Arguments whose gradients are not asked for: masks and weights given as floats.
    constants: tuple[str, ...] = ()
    has_curvature: bool = True  # False where the loss is piecewise linear
    result: Callable[[Any], jax.Array] = lambda result: result  # the losses among the results
    most_rows: int | None = None  # of hard inputs: some will do where a loss is broken on purpose

    @property
    def name(self) -> str:
        return self.function.__name__

    def __str__(self) -> str:
        options = ",".join(
            f"{name}={getattr(value, '__name__', value)}" for name, value in self.options.items()
        )
        return f"{self.name}({options})"

    def loss(self, *arguments: Any, **keywords: Any) -> jax.Array:
        return self.result(self.function(*arguments, **self.options, **keywords))

    def inputs(self, seed: int = 0, dtype: Any = np.float32) -> Arrays:
        """Ordinary arguments: the same ones on every call."""
        arrays = map(np.asarray, self.make(np.random.default_rng(seed)))
        return tuple(_cast(array, dtype) for array in arrays)

    def positions(self, arguments: Any) -> tuple[int, ...]:
        """The positions of the arguments that have gradients."""
        names = list(inspect.signature(self.function).parameters)
        return tuple(
            position
            for position, array in enumerate(arguments)
            if jnp.issubdtype(jnp.result_type(array), jnp.floating)
            and names[position] not in self.constants
        )

    def hard_batch(self, dtype: Any, fast: int | None = None) -> "Batch":
        """The hard inputs (of the families `fast` in a fast run) and what is true of them."""
        options = tuple(self.options.items())
        few = None if level.is_thorough() else fast
        batch = _batch(self.hard_inputs, (dtype,), None, few, self.truth, options)
        return _some(batch, self.most_rows)


@functools.cache  # the truth takes longer than what is judged by it
def _batch(
    inputs: Callable,
    shape: tuple,
    at_most: int | None,
    few: int | None,
    truth: Callable,
    options: tuple,
) -> Batch:
    chosen = list(inputs(*shape))
    for number in (at_most, few):  # what a fast run takes is among what a thorough one takes
        if number is not None and number < len(chosen):
            kept = np.random.default_rng(shape[1:]).choice(len(chosen), number, replace=False)
            chosen = [chosen[index] for index in sorted(kept)]
    return _with_truth(chosen, truth, dict(options))


def _some(batch: Batch, at_most: int | None) -> Batch:
    """Rows of a batch, evenly spaced, so that they come from all kinds of families."""
    if at_most is None or at_most >= len(batch.names):
        return batch
    rows = np.linspace(0, len(batch.names) - 1, at_most).astype(int)
    names = [batch.names[row] for row in rows]
    return Batch(names, *jax.tree.map(lambda array: array[rows], batch[1:]))


def _with_truth(chosen: list[Family], truth: Callable, options: Mapping[str, Any]) -> Batch:
    names, arguments = together(chosen)
    return Batch(names, arguments, oracle.batch(truth, *arguments, **options))


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    kinds = {"f": dtype, "i": np.int32, "u": np.int32, "b": np.bool_}
    return array.astype(kinds[array.dtype.kind])
