"""What a row of docs/migration.md promises, as a case that both libraries can compute."""

import dataclasses
import functools
import importlib
import json
import os
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# The numbers that each library gave, with its version; `record.py` writes them.
NUMBERS = Path(__file__).with_name("numbers.json")


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One promise about a row of the page."""

    row: str  # the first cell of the row, word for word
    name: str  # what is promised, unique in its library
    arrays: tuple[np.ndarray, ...]  # the first is differentiated
    ours: Callable[..., Any]  # (*arrays) -> loss or losses
    theirs: Callable[..., Any]  # (library, *arrays) -> the same
    agree: str = "value and gradient"  # or "value", or "nothing"
    differentiable: bool = True
    # What ours gives where the two disagree by design.
    value: Any = None
    gradient: Any = None

    @property
    def has_gradient(self) -> bool:
        return self.differentiable and self.agree != "value"

    @property
    def key(self) -> str:
        return f"{self.row} {self.name}"


@dataclasses.dataclass(frozen=True)
class Library:
    """A library that people come from, and how a derivative is taken in it."""

    heading: str  # the section of the page
    module: str  # what is imported; "" where it cannot be installed
    compute: Callable[[Case, Any], dict[str, Any]]  # value and gradient
    cases: tuple[Case, ...]

    def load(self) -> ModuleType:
        """The library; warnings that it gives when it is imported are its own affair."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Keras must run on JAX, to be differentiated by it.
            os.environ.setdefault("KERAS_BACKEND", "jax")
            return importlib.import_module(self.module)


@functools.cache
def ours(case: Case) -> dict[str, Any]:
    """Value and gradient of jaxent's side."""
    return jax_result(case.ours, case, jax.jit)


def jax_result(
    function: Callable[..., Any], case: Case, transform: Callable[..., Any] = lambda f: f
) -> dict[str, Any]:
    """Value, and gradient of the sum of the values in the first array, of a function of JAX."""
    arrays = tuple(jnp.asarray(array) for array in case.arrays)
    result = {"value": transform(function)(*arrays)}
    if case.has_gradient:
        result["gradient"] = transform(jax.grad(lambda *a: jnp.sum(function(*a))))(*arrays)
    return {name: np.asarray(array).tolist() for name, array in result.items()}


def of_jax(case: Case, library: ModuleType) -> dict[str, Any]:
    """The side of a library that is written in JAX; few run under strict promotion or in jit."""
    with (
        warnings.catch_warnings(),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        return jax_result(lambda *arrays: case.theirs(library, *arrays), case)


def of_torch(case: Case, library: ModuleType) -> dict[str, Any]:
    """The side of PyTorch, or of what is written in it."""
    torch: Any = importlib.import_module("torch")
    dtypes = (torch.int64 if array.dtype.kind == "i" else None for array in case.arrays)
    tensors = [torch.tensor(a, dtype=d) for a, d in zip(case.arrays, dtypes, strict=True)]
    if case.has_gradient:
        tensors[0].requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        value = case.theirs(library, *tensors)
        result = {"value": value.detach().numpy().tolist()}
        if case.has_gradient:
            (gradient,) = torch.autograd.grad(value.sum(), tensors[0])
            result["gradient"] = gradient.numpy().tolist()
    return result


def of_numpy(case: Case, library: ModuleType) -> dict[str, Any]:
    """The side of a library that takes no derivatives."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {"value": np.asarray(case.theirs(library, *case.arrays)).tolist()}


def recorded() -> dict[str, Any]:
    """By library: the version, and by case what it gave."""
    return json.loads(NUMBERS.read_text("utf-8")) if NUMBERS.exists() else {}


def write(numbers: dict[str, Any]) -> None:
    """Keep them, one case a line."""
    text = json.dumps(numbers)
    for start in ('{"version"', '"cases"'):
        text = text.replace(f" {start}", f"\n{start}")
    NUMBERS.write_text(re.sub(r' ?("[^"]*": \{"value")', r"\n\1", text) + "\n", "utf-8")


def f32(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.float32)


def i32(*numbers: Any) -> np.ndarray:
    return np.array(numbers, np.int32)
