"""A row of the contract table: what a test needs to know about a public loss.

What a signature or a dtype already says is not said again: whether a loss has a class axis and a
mask, and which arguments have gradients.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import families
import jax
import jax.experimental
import numpy as np
import oracle

# Worst error allowed in second derivatives, in units in the last place.
HESSIAN = 16


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
    masks_classes: bool = True  # whether `where` may also have the full shape of the logits
    extra_classes: int = 0  # how many more classes a label may name than there are logits

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
