"""Chunks of rows: what a loop over them is given, the logits of one, and which of them are needed.

The logits of all rows never exist at once. The loops are in `per_row.py` and `total.py`.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from collections.abc import Callable, Hashable
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent import _parallel
from jaxent._float.tangents import Tangent
from jaxent._heads.logits import contract
from jaxent._heads.tiling import (
    Order,
    Tiling,
    from_ordered_tiles,
    from_tiles,
    order_rows,
    ordered_mask,
    padding_mask,
    to_ordered_tiles,
    to_tiles,
)

LossFunction = Callable[..., jax.Array]
MaybeArray = jax.Array | None
T = TypeVar("T")
C = TypeVar("C")


class HeadArrays(NamedTuple, Generic[T]):
    """The arrays of one head, their tangents or gradients, or a flag for each of them."""

    hidden: T  # [*rows, D]
    kernel: T  # [D, V], or [V, D] where vocab_axis is 0
    bias: T | None  # [V], None for none


class Inputs(NamedTuple, Generic[T]):
    """All that a loop can be differentiated by, with the rows in line; and the mask."""

    heads: tuple[HeadArrays[T], ...]
    row_args: tuple[T, ...]  # [*rows, ...]
    consts: tuple[T, ...]  # what the loss closes over
    weights: T | None  # [*rows], None for 1
    where: T | None  # [*rows] booleans, None for all rows


class HeadSpec(NamedTuple):
    """What is static of one head."""

    vocab_axis: int
    operand_dtype: jnp.dtype  # of the matrix products


class Sweep(NamedTuple):
    """What is static of a loop.

    Inside `jax.shard_map` a loss may be a sum over the classes of several devices. Then JAX knows
    it to vary over fewer mesh axes than the logits.
    """

    loss_fn: LossFunction  # of the logits of each head, the row_args and the consts
    heads: tuple[HeadSpec, ...]
    tiling: Tiling
    dtype: jnp.dtype  # of logits, losses and sums
    loss_axes: frozenset[Hashable] = frozenset()  # that the losses vary over
    untracked_axes: tuple[Hashable, ...] = ()  # summed over by the loss, unknown to JAX
    shared_axes: tuple[Hashable, ...] = ()  # that the loss communicates over


class Chunk(NamedTuple):
    """The rows of a chunk; or of all chunks, stacked along a first axis."""

    hidden: tuple[jax.Array, ...]  # [*tile_shape, D] of each head
    row_args: tuple[jax.Array, ...]  # [*tile_shape, ...]
    weights: jax.Array | None  # [*tile_shape]
    example_mask: jax.Array | None  # [*tile_shape], None for all
    is_needed: jax.Array | None = None  # [], whether any row counts; None where all chunks are


# Rows in line to chunks, and back.


def order_of(sweep: Sweep, inputs: Inputs[jax.Array]) -> Order | None:
    """The order that puts masked rows last; None where there are none."""
    return None if inputs.where is None else order_rows(sweep.tiling, inputs.where)


def _to_chunks(sweep: Sweep, order: Order | None, array: jax.Array) -> jax.Array:
    """Rows in line to [chunks, *tile_shape, ...].

    The padding are copies of some rows, which are finite if the input is.
    """
    if order is not None:
        return to_ordered_tiles(sweep.tiling, order, array)
    tiles = to_tiles(sweep.tiling, array, pad_with_rows=True)
    return jnp.moveaxis(tiles, len(sweep.tiling.tile_shape), 0)


def from_chunks(sweep: Sweep, order: Order | None, chunks: jax.Array) -> jax.Array:
    """The inverse of `_to_chunks`."""
    if order is not None:
        return from_ordered_tiles(sweep.tiling, order, chunks)
    return from_tiles(sweep.tiling, jnp.moveaxis(chunks, 0, len(sweep.tiling.tile_shape)))


def all_chunks(sweep: Sweep, order: Order | None, inputs: Inputs[jax.Array]) -> Chunk:
    """All chunks, stacked, with a mask that is False at the padding."""
    hidden = tuple(head.hidden for head in inputs.heads)
    rows = Chunk(hidden, inputs.row_args, inputs.weights, None)
    chunks: Chunk = jax.tree.map(functools.partial(_to_chunks, sweep, order), rows)
    if order is not None:
        mask = ordered_mask(sweep.tiling, order)
        return chunks._replace(example_mask=mask, is_needed=_needed_chunks(sweep, order))
    if not sweep.tiling.padding:
        return chunks
    return chunks._replace(example_mask=jnp.moveaxis(padding_mask(sweep.tiling), -1, 0))


def _needed_chunks(sweep: Sweep, order: Order) -> jax.Array | None:
    """Whether any row of each chunk counts, [chunks]; the same on all devices that communicate."""
    tiles = sweep.tiling.tiles
    if tiles == 1:
        return None
    most = jnp.max(order.counts)
    axes = {*sweep.untracked_axes, *(_parallel.varying_axes(most) & {*sweep.shared_axes})}
    most = _parallel.pmax(most, tuple(axes) or None)
    return jnp.arange(tiles, dtype=jnp.int32) * sweep.tiling.rows_per_shard < most


def run_if_needed(run: Callable[[C, Chunk], tuple[C, T]], carry: C, chunk: Chunk) -> tuple[C, T]:
    """`run(carry, chunk)`; where no row counts, the carry as it is and zeros."""
    if chunk.is_needed is None:
        return run(carry, chunk)
    run = jax.jit(run, inline=True)  # traced once, for its shapes and for the branch

    def skip(carry: C, chunk: Chunk) -> tuple[C, T]:
        shapes = jax.eval_shape(run, carry, chunk)[1]
        return carry, jax.tree.map(_parallel.zeros_like, shapes)

    return jax.lax.cond(chunk.is_needed, run, skip, carry, chunk)


def zeros_unless(condition: Any, run: Callable[..., T], *arguments: Any) -> T:
    """`run(*arguments)`, or zeros in its place."""
    run = jax.jit(run, inline=True)  # traced once, for its shapes and for the branch

    def skip(*arguments: Any) -> T:
        return jax.tree.map(_parallel.zeros_like, jax.eval_shape(run, *arguments))

    return jax.lax.cond(condition, run, skip, *arguments)


# The losses of a chunk.


def chunk_logits(
    sweep: Sweep, heads: tuple[HeadArrays[jax.Array], ...], chunk: Chunk
) -> list[jax.Array]:
    """The logits of a chunk, [*tile_shape, V] of each head."""
    rank = len(sweep.tiling.tile_shape)
    logits: list[jax.Array] = []
    for spec, head, hidden in zip(sweep.heads, heads, chunk.hidden, strict=True):
        kernel_axis = 1 - spec.vocab_axis
        dtypes = spec.operand_dtype, sweep.dtype
        x = contract(hidden, (rank,), head.kernel, (kernel_axis,), *dtypes)
        if head.bias is not None:
            x = x + head.bias.astype(sweep.dtype).reshape(*[1] * rank, -1)
        logits.append(x)
    return logits


def weigh(sweep: Sweep, chunk: Chunk, losses: jax.Array) -> jax.Array:
    """Losses times weights; 0 at masked rows, whatever their loss."""
    losses = losses.astype(sweep.dtype)
    losses = losses if chunk.weights is None else losses * chunk.weights
    return losses if chunk.example_mask is None else jnp.where(chunk.example_mask, losses, 0.0)


# What is trained and what is not, mapped and not.


def is_symbolic_zero(tangent: Tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def is_nonzero(tangent: Tangent) -> bool:
    return not isinstance(tangent, SymbolicZero)


def partition(tree: Any, is_trained: Any) -> tuple[Any, Any]:
    """The leaves that are trained and those that are not, each with None instead of the others."""

    def select(is_trained: bool, leaf: Any) -> Any:
        return leaf if is_trained else None

    def reject(is_trained: bool, leaf: Any) -> Any:
        return None if is_trained else leaf

    return jax.tree.map(select, is_trained, tree), jax.tree.map(reject, is_trained, tree)


def combine(trained: Any, fixed: Any) -> Any:
    """The inverse of `partition`."""

    def first(trained: Any, fixed: Any) -> Any:
        return fixed if trained is None else trained

    return jax.tree.map(first, trained, fixed, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None


def as_axes(tree: Any) -> Any:
    """What `jax.vmap` maps over, of a tree with -1 for nothing."""
    return jax.tree.map(lambda axis: None if axis < 0 else axis, tree)
