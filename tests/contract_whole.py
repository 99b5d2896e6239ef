"""A row of the other contract table: losses of things that are larger than a row of classes.

An image, a ranked list, a sequence of frames, a batch of embeddings: what an example is, and so
what a mask covers, differs from loss to loss. A row of this table says it.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import families
import jax
import numpy as np
import oracle

Arrays = tuple[np.ndarray, ...]


class Hidden(NamedTuple):
    """Arguments of which a part does not count."""

    arguments: Arrays  # the same, but for those that are themselves masks
    keywords: Mapping[str, Any]  # the mask, where it is an argument of its own
    elements: tuple[np.ndarray, ...]  # of each argument, True where nothing may depend on it


class Whole(NamedTuple):
    """A public loss, with one choice of its options.

    One call is judged by the sum of what it returns, so `truth` gives a single number.
    """

    function: Callable[..., Any]
    make: Callable[[np.random.Generator], Arrays]  # ordinary arguments of one call, in float64
    truth: Callable[..., oracle.Truth]  # of one call, as nested lists; gradients of all floats
    hard_inputs: Callable[[Any], Iterator[families.Family]]  # (dtype): calls along the first axis
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

    def hard_case(self, dtype: Any) -> "Case":
        """The hard inputs and what is true of them."""
        return _case(self.hard_inputs, dtype, self.truth, tuple(self.options.items()))


class Case(NamedTuple):
    """Calls laid together, the family each came from, and the truth of each."""

    names: list[str]
    arguments: Arrays
    truth: oracle.Truth


@functools.cache  # the truth takes longer than what is judged by it
def _case(inputs: Callable, dtype: Any, truth: Callable, options: tuple) -> Case:
    names, arguments = families.together(inputs(dtype))
    return Case(names, arguments, oracle.batch(truth, *arguments, **dict(options)))


def _cast(array: np.ndarray, dtype: Any) -> np.ndarray:
    kinds = {"f": dtype, "i": np.int32, "u": np.int32, "b": np.bool_}
    return array.astype(kinds[array.dtype.kind])
