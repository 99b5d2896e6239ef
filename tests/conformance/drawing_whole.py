"""Drawn calls of losses of images, lists, sequences and batches: sizes, masks and what is true."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from mpmath import mp

from conformance import inputs, oracle
from conformance.case import Arrays, WholeCase
from conformance.drawing import BAD_LABELS, COMPILER_OPTIONS, POISONS, Draw

# The axes of each argument and of the mask, a letter each; the last letter says along which axis
# a mask leaves something out, everywhere the same.
_EMBEDDING, _LISTS = (("nd", "n"), "n", "n"), (("bp", "bp"), "bp", "p")
_IMAGES, _SEQUENCES = (("bpc", "bpc"), "bp", "p"), (("btk", "bt", "bl", "bl"), "b", "b")
AXES = {
    "ntxent": _EMBEDDING,
    "supervised_contrastive_loss": _EMBEDDING,
    "circle_loss": _EMBEDDING,
    "dice_loss": _IMAGES,
    "binary_dice_loss": _LISTS,
    "multiclass_generalized_dice_loss": _IMAGES,
    "tversky_loss": _IMAGES,
    "lovasz_hinge": _LISTS,
    "lovasz_softmax": (("bpc", "bp"), "bp", "p"),
    "ranking_softmax_loss": _LISTS,
    "pairwise_logistic_loss": _LISTS,
    "listmle_loss": _LISTS,
    "ctc_loss": _SEQUENCES,
    "ctc_loss_with_forward_probs": _SEQUENCES,
}
WHOLE_WAYS = ("jit", "vmap", "checkpoint", "scan")


class WholeLayout(NamedTuple):
    """All that the program of a call depends on."""

    less: tuple[tuple[str, int], ...] = ()  # how much each axis is shorter than the table's
    dtype: str = "float32"
    is_masked: bool = True
    way: str = "jit"


class WholeCall(NamedTuple):
    """The arguments of a call, and what is true of the sum of its losses."""

    arrays: Arrays
    where: np.ndarray | None
    kept: np.ndarray  # along the masked axis
    truth: oracle.Truth | None  # of what is left; None if nothing is


@st.composite
def whole_layouts(draw: Draw, case: WholeCase, dtypes: tuple[str, ...]) -> WholeLayout:
    """Any layout that a case takes."""
    letters = sorted(set("".join(AXES[case.name][0])) - {"k"})
    less = [(letter, draw(st.integers(0, _sizes(case)[letter] - 1))) for letter in letters]
    chosen = (st.sampled_from(dtypes), st.booleans(), st.sampled_from(WHOLE_WAYS))
    return WholeLayout(tuple(less), *map(draw, chosen))


def whole_call(draw: Draw, case: WholeCase, layout: WholeLayout) -> WholeCall:
    """An ordinary or a hard call, made shorter, masked, and poisoned where nothing counts."""
    of_arguments, of_mask, masked = AXES[case.name]
    dtype = ml_dtypes.bfloat16 if layout.dtype == "bfloat16" else np.dtype(layout.dtype)
    if draw(st.booleans()):
        batch = _hard(case.hard_inputs, layout.dtype)
        number = draw(st.integers(0, len(batch[0]) - 1))
        arrays = [array[number] for array in batch]
    else:
        arrays = list(case.inputs(draw(st.integers(0, 99)), dtype))
    sizes = {
        letter: size - dict(layout.less).get(letter, 0) for letter, size in _sizes(case).items()
    }
    arrays = [
        array[tuple(slice(sizes[letter]) for letter in letters)].copy()
        for array, letters in zip(arrays, of_arguments, strict=True)
    ]
    if case.name == "lovasz_softmax":
        arrays[1] = np.minimum(arrays[1], sizes["c"] - 1)
    size = sizes[masked]
    kept = np.ones(size, bool)
    if layout.is_masked:
        kept = np.array(draw(st.lists(st.booleans(), min_size=size, max_size=size)), bool)
    where = np.broadcast_to(
        kept.reshape([-1 if letter == masked else 1 for letter in of_mask]),
        [sizes[letter] for letter in of_mask],
    )
    pairs = list(zip(arrays, of_arguments, strict=True))
    left = [_along(array, letters, masked, kept) for array, letters in pairs]
    poison, label = draw(st.sampled_from(POISONS)), draw(st.sampled_from(BAD_LABELS[:3]))
    for array, letters in pairs:
        if array.dtype.kind != "b" and masked in letters:
            hidden = np.moveaxis(array, letters.index(masked), 0)
            with np.errstate(over="ignore"):
                hidden[~kept] = label if array.dtype.kind in "iu" else poison
    with mp.workdps(oracle.digits_for(*left)):
        truth = case.truth(*map(oracle.exact, left), **case.options) if kept.any() else None
    return WholeCall(tuple(arrays), where if layout.is_masked else None, kept, truth)


def gradients_left(case: WholeCase, drawn: WholeCall, gradients: Arrays) -> tuple[Arrays, Arrays]:
    """The gradients of what counts, as the truth has them, and of what does not."""
    of_arguments, _, masked = AXES[case.name]
    pairs = [
        (gradient, of_arguments[position])
        for gradient, position in zip(gradients, _positions(drawn.arrays), strict=True)
    ]
    left, hidden = (
        tuple(_along(gradient, letters, masked, chosen) for gradient, letters in pairs)
        for chosen in (drawn.kept, ~drawn.kept)
    )
    return left, hidden


@functools.lru_cache(maxsize=4)
def whole_program(case_of: "KnownWhole", layout: WholeLayout) -> Callable[[Arrays, Any], Any]:
    """The sum of the losses and its gradients."""
    case = case_of.case

    def everything(arrays: Any, where: Any) -> Any:
        positions = _positions(arrays)

        def total(*floats: jax.Array) -> jax.Array:
            given = list(arrays)
            for position, value in zip(positions, floats, strict=True):
                given[position] = value
            keywords = {} if where is None else {"where": where}
            if layout.way == "checkpoint":
                return jnp.sum(jax.checkpoint(lambda *a: case.loss(*a, **keywords))(*given))
            return jnp.sum(case.loss(*given, **keywords))

        floats = tuple(arrays[position] for position in positions)
        return jax.value_and_grad(total, tuple(range(len(floats))))(*floats)

    def one(arrays: Any, where: Any) -> Any:
        first = jax.tree.map(lambda a: a[None], (arrays, where))
        if layout.way == "vmap":
            results = jax.vmap(everything)(*first)
        else:
            results = jax.lax.scan(lambda _, each: (None, everything(*each)), None, first)[1]
        return jax.tree.map(lambda a: a[0], results)

    chosen = one if layout.way in ("vmap", "scan") else everything
    return jax.jit(chosen, compiler_options=COMPILER_OPTIONS)


class KnownWhole:
    """A case, known by its function and options."""

    def __init__(self, case: WholeCase):
        self.case = case
        self._key = (case.function, tuple(case.options.items()))

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KnownWhole) and self._key == other._key


def _positions(arrays: Any) -> tuple[int, ...]:
    floats = (jnp.issubdtype(array.dtype, jnp.floating) for array in arrays)
    return tuple(position for position, is_float in enumerate(floats) if is_float)


def _along(array: np.ndarray, letters: str, masked: str, kept: np.ndarray) -> np.ndarray:
    return np.compress(kept, array, letters.index(masked)) if masked in letters else array


def _sizes(case: WholeCase) -> dict[str, int]:
    """The size of each axis in the table."""
    arrays = zip(AXES[case.name][0], case.inputs(), strict=True)
    return {
        letter: size
        for letters, array in arrays
        for letter, size in zip(letters, array.shape, strict=True)
    }


@functools.lru_cache(maxsize=8)
def _hard(hard_inputs: Callable[..., Any], dtype: str) -> Arrays:
    of = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    return inputs.together(hard_inputs(of))[1]
