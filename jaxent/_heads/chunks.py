"""The loop over chunks of rows: losses of one head or several, and their gradients.

The logits of all rows never exist at once. For a sum of losses the gradients are computed in the
same loop, where the logits of a chunk are at hand: three matrix products per head, the minimum.
The sum is a `jax.custom_jvp` whose tangent is a sum of products with these gradients, so that every
mode and order of derivatives works. For one loss per row the cotangents are not known in the loop:
there `jax.checkpoint` recomputes the logits of one chunk at a time.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent import _parallel
from jaxent._float.tangents import Dual, Tangent
from jaxent._heads.batching import with_batching_rule
from jaxent._heads.linear_map import linear_map
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


def _order_of(sweep: Sweep, inputs: Inputs[jax.Array]) -> Order | None:
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


def _from_chunks(sweep: Sweep, order: Order | None, chunks: jax.Array) -> jax.Array:
    """The inverse of `_to_chunks`."""
    if order is not None:
        return from_ordered_tiles(sweep.tiling, order, chunks)
    return from_tiles(sweep.tiling, jnp.moveaxis(chunks, 0, len(sweep.tiling.tile_shape)))


def _all_chunks(sweep: Sweep, order: Order | None, inputs: Inputs[jax.Array]) -> Chunk:
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
    if isinstance(tiles, int) and tiles == 1:
        return None
    most = jnp.max(order.counts)
    axes = {*sweep.untracked_axes, *(_parallel.varying_axes(most) & {*sweep.shared_axes})}
    most = _parallel.pmax(most, tuple(axes) or None)
    return jnp.arange(tiles, dtype=jnp.int32) * sweep.tiling.rows_per_shard < most


def _run_if_needed(run: Callable[[C, Chunk], tuple[C, T]], carry: C, chunk: Chunk) -> tuple[C, T]:
    """`run(carry, chunk)`; where no row counts, the carry as it is and zeros."""
    if chunk.is_needed is None:
        return run(carry, chunk)
    run = jax.jit(run, inline=True)  # traced once, for its shapes and for the branch

    def skip(carry: C, chunk: Chunk) -> tuple[C, T]:
        shapes = jax.eval_shape(run, carry, chunk)[1]
        return carry, jax.tree.map(_parallel.zeros_like, shapes)

    return jax.lax.cond(chunk.is_needed, run, skip, carry, chunk)


# The losses of a chunk.


def _logits(
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


def _weigh(sweep: Sweep, chunk: Chunk, losses: jax.Array) -> jax.Array:
    """Losses times weights; 0 at masked rows, whatever their loss."""
    losses = losses.astype(sweep.dtype)
    losses = losses if chunk.weights is None else losses * chunk.weights
    return losses if chunk.example_mask is None else jnp.where(chunk.example_mask, losses, 0.0)


# One loss per row.


class _Shared(NamedTuple, Generic[T]):
    """What all chunks share."""

    heads: tuple[HeadArrays[T], ...]  # with None for the hidden states
    consts: tuple[T, ...]


def losses_per_row(sweep: Sweep, inputs: Inputs[jax.Array]) -> jax.Array:
    """The weighted losses, [*rows]; the backward pass recomputes the logits chunk by chunk."""
    shared = _Shared(tuple(head._replace(hidden=None) for head in inputs.heads), inputs.consts)
    order = _order_of(sweep, inputs)
    chunks = _all_chunks(sweep, order, inputs)
    losses = _losses_of_chunks(sweep, inputs.where is not None, shared, chunks)
    return _from_chunks(sweep, order, losses)


def _losses_of_chunks(
    sweep: Sweep, is_masked: bool, shared: _Shared[jax.Array], chunks: Chunk
) -> jax.Array:
    """The weighted losses [chunks, *tile_shape]; `is_masked` unless all rows but padding count.

    Mapped chunks that share a head are one longer sequence of chunks, so that no more than one
    chunk of logits and one gradient of the kernel exist at a time.
    """
    loop = functools.partial(_loop_over_chunks, sweep, is_masked)

    def rule(
        arguments: tuple[_Shared[jax.Array], Chunk], axes: tuple[_Shared[int], Any]
    ) -> jax.Array:
        if any(axis >= 0 for axis in jax.tree.leaves(axes[0])):
            return jax.vmap(loop, (_as_axes(axes),))(arguments)
        mapped: Chunk = jax.vmap(lambda chunks: chunks, (_as_axes(axes[1]),))(arguments[1])
        size, count = mapped.hidden[0].shape[:2]
        line: Chunk = jax.tree.map(lambda a: a.reshape(size * count, *a.shape[2:]), mapped)
        losses = _losses_of_chunks(sweep, is_masked, arguments[0], line)
        return losses.reshape(size, count, *losses.shape[1:])

    return with_batching_rule(loop, rule, (shared, chunks))


def _as_axes(tree: Any) -> Any:
    """What `jax.vmap` maps over, of a tree with -1 for nothing."""
    return jax.tree.map(lambda axis: None if axis < 0 else axis, tree)


def _loop_over_chunks(
    sweep: Sweep, is_masked: bool, arguments: tuple[_Shared[jax.Array], Chunk]
) -> jax.Array:
    shared, chunks = arguments

    def widen(array: jax.Array | None) -> jax.Array | None:
        # The backward pass adds up the kernel's gradient over the chunks in this dtype.
        return None if array is None else array.astype(sweep.dtype)

    wide = tuple(HeadArrays(None, widen(h.kernel), widen(h.bias)) for h in shared.heads)

    def chunk_losses(arguments: tuple[_Shared[jax.Array], Chunk]) -> jax.Array:
        (wide, consts), chunk = arguments
        heads = tuple(
            head._replace(kernel=head.kernel.astype(given.kernel.dtype))
            for head, given in zip(wide, shared.heads, strict=True)
        )
        logits = _logits(sweep, heads, chunk)
        if is_masked and chunk.example_mask is not None:
            # The same numbers, but a masked row has no derivative, not even 0 times infinity.
            mask = chunk.example_mask[..., None]
            logits = [jnp.where(mask, x, jax.lax.stop_gradient(x)) for x in logits]
        return _weigh(sweep, chunk, sweep.loss_fn(*logits, *chunk.row_args, *consts))

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def checkpointed(wide: _Shared[jax.Array], chunk: Chunk) -> jax.Array:
        if chunk.is_needed is None:
            return chunk_losses((wide, chunk))
        return _losses_if_needed(chunk_losses, (wide, chunk))

    def step(carry: None, chunk: Chunk) -> tuple[None, jax.Array]:
        return carry, checkpointed(_Shared(wide, shared.consts), chunk)

    # Without `jax.jit`, its transpose would be compiled anew at every eager call.
    return jax.jit(lambda chunks: jax.lax.scan(step, None, chunks)[1])(chunks)


def _losses_if_needed(
    chunk_losses: Callable[[tuple[_Shared[jax.Array], Chunk]], jax.Array],
    arguments: tuple[_Shared[jax.Array], Chunk],
) -> jax.Array:
    """`chunk_losses(arguments)`, or zeros where no row of the chunk counts.

    The backward pass recomputes the logits in the branch that uses them. JAX's own derivative of a
    branch would carry them from one to another.
    """

    @jax.custom_jvp
    def losses(arguments: tuple[_Shared[jax.Array], Chunk]) -> jax.Array:
        return _zeros_unless(arguments[1].is_needed, chunk_losses, arguments)

    @functools.partial(losses.defjvp, symbolic_zeros=True)
    def _losses_jvp(primals: tuple[Any], tangents: tuple[Any]) -> Dual:
        is_trained = jax.tree.map(_is_nonzero, tangents[0], is_leaf=_is_symbolic_zero)
        dots, _ = _partition(tangents[0], is_trained)

        def split(arguments: Any) -> tuple[Callable[[Any], jax.Array], Any]:
            trained, fixed = _partition(arguments, is_trained)
            return lambda trained: chunk_losses(_combine(trained, fixed)), trained

        def tangent(arguments: Any, dots: Any) -> jax.Array:
            function, trained = split(arguments)
            return jax.jvp(function, (trained,), (dots,))[1]

        def transposed(arguments: Any, cotangent: jax.Array) -> Any:
            return jax.vjp(*split(arguments))[1](cotangent)[0]

        (losses_dot,) = linear_map(
            lambda arguments, dots: (
                _zeros_unless(arguments[1].is_needed, tangent, arguments, dots),
            ),
            lambda arguments, cotangents: _zeros_unless(
                arguments[1].is_needed, transposed, arguments, *cotangents
            ),
            primals[0],
            dots,
        )
        return losses(*primals), losses_dot

    return losses(arguments)


def _zeros_unless(condition: Any, run: Callable[..., T], *arguments: Any) -> T:
    """`run(*arguments)`, or zeros in its place."""
    run = jax.jit(run, inline=True)  # traced once, for its shapes and for the branch

    def skip(*arguments: Any) -> T:
        return jax.tree.map(_parallel.zeros_like, jax.eval_shape(run, *arguments))

    return jax.lax.cond(condition, run, skip, *arguments)


# The sum of the losses.


def total_loss(sweep: Sweep, inputs: Inputs[jax.Array]) -> jax.Array:
    """The sum of the weighted losses, a scalar; its gradients come out of the same loop.

    Mapped sums of rows that share a head, which would have a gradient of the kernel each, recompute
    the logits instead.
    """
    total = functools.partial(_total_loss, sweep)

    def rule(inputs: Inputs[jax.Array], axes: Inputs[int]) -> jax.Array:
        heads = [head._replace(hidden=None) for head in axes.heads]
        is_shared = all(axis < 0 for axis in jax.tree.leaves((heads, axes.consts)))
        function = (lambda inputs: jnp.sum(losses_per_row(sweep, inputs))) if is_shared else total
        return jax.vmap(function, (_as_axes(axes),))(inputs)

    return with_batching_rule(total, rule, inputs)


def _total_loss(sweep: Sweep, inputs: Inputs[jax.Array]) -> jax.Array:

    @jax.custom_jvp
    def total(inputs: Inputs[jax.Array]) -> jax.Array:
        def step(sum_: jax.Array, chunk: Chunk) -> tuple[jax.Array, None]:
            logits = _logits(sweep, inputs.heads, chunk)
            losses = sweep.loss_fn(*logits, *chunk.row_args, *inputs.consts)
            return sum_ + jnp.sum(_weigh(sweep, chunk, losses)), None

        chunks = _all_chunks(sweep, _order_of(sweep, inputs), inputs)
        return jax.lax.scan(functools.partial(_run_if_needed, step), _zero(sweep), chunks)[0]

    @functools.partial(total.defjvp, symbolic_zeros=True)
    def _total_jvp(primals: tuple[Inputs[jax.Array]], tangents: tuple[Inputs[Tangent]]) -> Dual:
        (inputs,), (dots,) = primals, tangents
        is_trained: Inputs[bool] = jax.tree.map(_is_nonzero, dots, is_leaf=_is_symbolic_zero)
        value, grads = _total_and_grads(sweep, inputs, is_trained)
        dots, _ = _partition(dots, is_trained)
        terms: list[jax.Array] = jax.tree.leaves(
            jax.tree.map(functools.partial(_dot, sweep), grads, dots)
        )
        sums = (
            _parallel.psum_extra_axes(term, sweep.loss_axes, sweep.untracked_axes) for term in terms
        )
        return value, sum(sums, jnp.zeros((), sweep.dtype))

    return total(inputs)


def _zero(sweep: Sweep) -> jax.Array:
    """The sum of no losses."""
    return _parallel.pvary(jnp.zeros((), sweep.dtype), sweep.loss_axes)


def _is_symbolic_zero(tangent: Tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _is_nonzero(tangent: Tangent) -> bool:
    return not isinstance(tangent, SymbolicZero)


def _dot(sweep: Sweep, grad: jax.Array, dot: jax.Array) -> jax.Array:
    """The sum of their products; with `vdot` the partitioner would gather the kernel."""
    return jnp.sum(grad.astype(sweep.dtype) * dot.astype(sweep.dtype))


class _Sums(NamedTuple):
    """What is added up over the chunks; None for what is not differentiated."""

    total: jax.Array  # []
    heads: tuple[HeadArrays[MaybeArray], ...]  # gradients by kernel and bias
    consts: tuple[MaybeArray, ...]  # gradients


class _RowGrads(NamedTuple):
    """The gradients by the rows of a chunk; None as above."""

    hidden: tuple[MaybeArray, ...]  # [*tile_shape, D] of each head
    row_args: tuple[MaybeArray, ...]  # [*tile_shape, ...]
    weights: MaybeArray  # [*tile_shape]


class _LossArguments(NamedTuple):
    """What the loss of a chunk is a function of, or its gradients; None as above."""

    logits: Sequence[Any]  # [*tile_shape, V] of each head
    row_args: Sequence[Any]
    consts: Sequence[Any]


def _total_and_grads(
    sweep: Sweep, inputs: Inputs[jax.Array], is_trained: Inputs[bool]
) -> tuple[jax.Array, Inputs[MaybeArray]]:
    """The sum of the losses, and its gradients by what is trained, None elsewhere.

    What is not trained costs nothing: without the kernel's gradient a head has two products, and
    there is no buffer of the kernel's size.
    """

    def step(sums: _Sums, chunk: Chunk) -> tuple[_Sums, _RowGrads]:
        terms, row_grads = _chunk_grads(sweep, inputs, is_trained, chunk)
        return jax.tree.map(jnp.add, sums, terms), row_grads

    start, order = _zero_sums(sweep, inputs, is_trained), _order_of(sweep, inputs)
    chunks = _all_chunks(sweep, order, inputs)
    sums, row_grads = jax.lax.scan(functools.partial(_run_if_needed, step), start, chunks)
    rows: _RowGrads = jax.tree.map(functools.partial(_from_chunks, sweep, order), row_grads)
    heads = tuple(
        head._replace(hidden=hidden) for head, hidden in zip(sums.heads, rows.hidden, strict=True)
    )
    return sums.total, Inputs(heads, rows.row_args, sums.consts, rows.weights, None)


def _zero_sums(sweep: Sweep, inputs: Inputs[jax.Array], is_trained: Inputs[bool]) -> _Sums:
    """The sums before the first chunk, varying over the mesh axes that the last ones vary over."""

    def zeros(array: MaybeArray, flag: bool | None) -> MaybeArray:
        return jnp.zeros(jnp.shape(array), sweep.dtype) if array is not None and flag else None

    heads = tuple(
        HeadArrays(None, zeros(head.kernel, flags.kernel), zeros(head.bias, flags.bias))
        for head, flags in zip(inputs.heads, is_trained.heads, strict=True)
    )
    return _Sums(
        _zero(sweep),
        _parallel.match_varying(heads, inputs.heads),
        tuple(
            _parallel.match_varying(zeros(value, flag), value)
            for value, flag in zip(inputs.consts, is_trained.consts, strict=True)
        ),
    )


def _chunk_grads(
    sweep: Sweep, inputs: Inputs[jax.Array], is_trained: Inputs[bool], chunk: Chunk
) -> tuple[_Sums, _RowGrads]:
    """What a chunk adds to the sums, and the gradients by its rows."""
    losses, grads = _losses_and_grads(sweep, inputs, is_trained, chunk)
    heads = [
        _head_grads(sweep, spec, head._replace(hidden=hidden), flags, logit_grads)
        for spec, head, hidden, flags, logit_grads in zip(
            sweep.heads, inputs.heads, chunk.hidden, is_trained.heads, grads.logits, strict=True
        )
    ]
    sums = _Sums(
        jnp.sum(_weigh(sweep, chunk, losses)),
        tuple(head._replace(hidden=None) for head in heads),
        tuple(grad if grad is None else grad.astype(sweep.dtype) for grad in grads.consts),
    )
    weight_grads = None
    if is_trained.weights:
        weight_grads = _weigh(sweep, chunk._replace(weights=None), losses)
        if sweep.untracked_axes:
            weight_grads = _fraction_of_copies(sweep) * weight_grads
    hidden_grads = tuple(head.hidden for head in heads)
    return sums, _RowGrads(hidden_grads, tuple(grads.row_args), weight_grads)


def _losses_and_grads(
    sweep: Sweep, inputs: Inputs[jax.Array], is_trained: Inputs[bool], chunk: Chunk
) -> tuple[jax.Array, _LossArguments]:
    """The losses of a chunk, and the gradients of their weighted sum by what is trained."""
    logits = _logits(sweep, inputs.heads, chunk)
    head_flags = [any(jax.tree.leaves(head)) for head in is_trained.heads]
    trained, fixed = _partition(
        _LossArguments(logits, chunk.row_args, inputs.consts),
        _LossArguments(head_flags, is_trained.row_args, is_trained.consts),
    )

    def chunk_losses(trained: _LossArguments) -> jax.Array:
        logits, row_args, consts = _combine(trained, fixed)
        return sweep.loss_fn(*logits, *row_args, *consts).astype(sweep.dtype)

    losses, pull_back = jax.vjp(chunk_losses, trained)
    cotangents = _weigh(sweep, chunk, jnp.full_like(losses, _fraction_of_copies(sweep)))
    (grads,) = pull_back(cotangents)
    if inputs.where is not None and chunk.example_mask is not None:
        # Exactly 0 at masked rows, also where the gradient there is infinite.
        mask = chunk.example_mask[..., None]
        masked = [x if x is None else jnp.where(mask, x, 0.0) for x in grads.logits]
        grads = grads._replace(logits=masked)
    return losses, grads


def _fraction_of_copies(sweep: Sweep) -> float:
    """The weight of a loss of which several devices have a copy each, unknown to JAX."""
    return 1.0 / _parallel.class_count(1, sweep.untracked_axes) if sweep.untracked_axes else 1.0


def _head_grads(
    sweep: Sweep,
    spec: HeadSpec,
    head: HeadArrays[jax.Array],
    is_trained: HeadArrays[bool],
    logit_grads: jax.Array | None,
) -> HeadArrays[MaybeArray]:
    """What a chunk adds to the gradients of a head, from those by its logits; None as above."""
    if logit_grads is None:
        return HeadArrays(None, None, None)
    rows = tuple(range(logit_grads.ndim - 1))
    dtypes = spec.operand_dtype, sweep.dtype
    operand = logit_grads.astype(spec.operand_dtype)
    # In the layout of the kernel, so that nothing of its size is transposed.
    pair = (head.hidden, operand) if spec.vocab_axis else (operand, head.hidden)
    return HeadArrays(
        hidden=contract(operand, (len(rows),), head.kernel, (spec.vocab_axis,), *dtypes)
        if is_trained.hidden
        else None,
        kernel=contract(pair[0], rows, pair[1], rows, *dtypes) if is_trained.kernel else None,
        bias=jnp.sum(logit_grads, axis=rows) if is_trained.bias else None,
    )


def _partition(tree: Any, is_trained: Any) -> tuple[Any, Any]:
    """The leaves that are trained and those that are not, each with None instead of the others."""

    def select(is_trained: bool, leaf: Any) -> Any:
        return leaf if is_trained else None

    def reject(is_trained: bool, leaf: Any) -> Any:
        return None if is_trained else leaf

    return jax.tree.map(select, is_trained, tree), jax.tree.map(reject, is_trained, tree)


def _combine(trained: Any, fixed: Any) -> Any:
    """The inverse of `_partition`."""

    def first(trained: Any, fixed: Any) -> Any:
        return fixed if trained is None else trained

    return jax.tree.map(first, trained, fixed, is_leaf=_is_none)


def _is_none(leaf: Any) -> bool:
    return leaf is None
