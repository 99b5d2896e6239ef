"""Any loss of logits through one head or several, by chunks of rows: from arguments to the loop.

What a loss closes over becomes an argument of it, masked rows are replaced, the rows are divided
into chunks, and the losses are reduced. The loops are in `per_row.py` and `total.py`.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer, eval_jaxpr

from jaxent import _checks, _parallel
from jaxent._float.dtypes import compute_dtype
from jaxent._float.tangents import Arrays, Dual
from jaxent._heads.checks import Head
from jaxent._heads.chunks import (
    HeadArrays,
    HeadSpec,
    Inputs,
    LossFunction,
    Sweep,
)
from jaxent._heads.per_row import losses_per_row
from jaxent._heads.sizes import rows_per_chunk, run_on_platform
from jaxent._heads.snapshot import Snapshot, take_snapshot
from jaxent._heads.tiling import Tiling, from_line, make_tiling, to_line
from jaxent._heads.total import total_loss
from jaxent._losses.reduction import divide


def sweep_rows(
    loss_fn: LossFunction,
    heads: Sequence[Head],
    row_args: tuple[jax.Array, ...],
    reduction: str,
    chunk_size: int | None,
) -> jax.Array:
    """The reduced losses of the rows, from checked arguments.

    Args:
        loss_fn: maps the logits [chunk, V] of each head and a chunk of each of `row_args` to
            losses [chunk].
        heads: over the same rows; the first one has the mask and the weights.
        row_args: arrays [..., *rest], where [...] is the leading shape of the heads.
        reduction: "mean", "sum" or "none".
        chunk_size: the largest number of rows in a chunk, None to choose it.
    """
    shape = heads[0].leading_shape
    if math.prod(shape) == 0:
        return jnp.zeros(shape if reduction == "none" else (), _dtype(heads))
    arrays = [HeadArrays(head.hidden, head.kernel, head.bias) for head in heads]
    # Once for all chunks, so that a gradient that belongs to several devices is summed once.
    arrays = _parallel.match_varying(arrays, row_args, heads[0].where, heads[0].weights)

    def run(tiling: Tiling) -> jax.Array:
        return _sweep_tiles(loss_fn, heads, arrays, row_args, reduction, tiling)

    return run_on_platform(functools.partial(plan_chunks, heads, chunk_size), run)


def _sweep_tiles(
    loss_fn: LossFunction,
    heads: Sequence[Head],
    arrays: Sequence[HeadArrays[jax.Array]],
    row_args: tuple[jax.Array, ...],
    reduction: str,
    tiling: Tiling,
) -> jax.Array:
    """`sweep_rows`, of rows divided into chunks by `tiling`."""
    dtype = _dtype(heads)
    loss = _convert_closure(loss_fn, heads, arrays, row_args, tiling.tile_shape[-1], dtype)
    sweep = Sweep(
        _map_outer(loss, len(heads) + len(row_args)) if tiling.outer_shape else loss.function,
        tuple(HeadSpec(head.vocab_axis, head.operand_dtype) for head in heads),
        tiling,
        dtype,
        loss.axes,
        _parallel.untracked_axes(loss.shared_axes),
        loss.shared_axes,
    )
    inputs = _make_inputs(sweep, heads[0], arrays, row_args, loss.consts, reduction)
    if reduction == "none":
        losses = _run(losses_per_row, sweep, inputs)
        return from_line(tiling, losses).reshape(heads[0].leading_shape)
    total = _run(total_loss, sweep, inputs)
    if reduction == "sum":
        return total
    if inputs.weights is not None:
        return divide(total, jnp.sum(inputs.weights))
    if inputs.where is not None:
        return divide(total, jnp.sum(inputs.where, dtype=dtype))
    return total / jnp.asarray(math.prod(heads[0].leading_shape), dtype)


def sweep_for(loss_fn: LossFunction) -> Callable[..., jax.Array]:
    """`sweep_rows` of `loss_fn`, with a compiled program that is kept as long as it is right."""
    snapshot = take_snapshot(loss_fn)
    if snapshot is None:
        return functools.partial(sweep_rows, loss_fn)
    return functools.partial(_compiled_sweep, snapshot)


@functools.partial(jax.jit, static_argnames=("snapshot", "reduction", "chunk_size"), inline=True)
def _compiled_sweep(
    snapshot: Snapshot,
    heads: Sequence[Head],
    row_args: tuple[jax.Array, ...],
    reduction: str,
    chunk_size: int | None,
) -> jax.Array:
    return sweep_rows(snapshot.function, heads, row_args, reduction, chunk_size)


def plan_chunks(heads: Sequence[Head], chunk_size: int | None, platform: str) -> Tiling:
    """How the rows are divided into chunks of at most `chunk_size`, None to choose it."""
    shape, devices = heads[0].leading_shape, _device_count(heads)
    count = math.prod(shape)
    if chunk_size is None:
        features = max(head.hidden.shape[-1] for head in heads)
        classes = sum(head.vocabulary_size for head in heads)
        if isinstance(count, int) and isinstance(classes, int):
            rows = -(-count // devices)
            is_masked = heads[0].where is not None
            chunk_size = devices * rows_per_chunk(platform, rows, features, classes, is_masked)
        else:
            # An exported program may learn how many rows there are, or keys of a contrastive loss.
            classes = classes if isinstance(classes, int) else 2**16
            chunk_size = devices * rows_per_chunk("cpu", 0, features, classes)
    if isinstance(count, int):
        # Evened out, so that the last chunk is nearly full.
        chunk_size = -(-count // -(-count // chunk_size))
    return make_tiling(shape or (1,), chunk_size, devices)


def _dtype(heads: Sequence[Head]) -> jnp.dtype:
    """The dtype of logits, losses and sums."""
    return compute_dtype(*(array for head in heads for array in (head.hidden, head.kernel)))


def _device_count(heads: Sequence[Head]) -> int:
    arrays = (array for head in heads for array in (head.hidden, head.kernel))
    return _parallel.device_count(*arrays)


def _run(
    loop: Callable[[Sweep, Inputs[jax.Array]], jax.Array],
    sweep: Sweep,
    inputs: Inputs[jax.Array],
) -> jax.Array:
    """`loop(sweep, inputs)`, with a refusal in words where `loss_fn` cannot be differentiated."""
    try:
        return loop(sweep, inputs)
    except (jax.errors.UnexpectedTracerError, TypeError) as error:
        # What is compiled by itself, as in an eager call, says it by a `TypeError` of the tracer.
        if isinstance(error, TypeError) and "Tracer" not in str(error):
            raise
        raise _checks.UnnamedArgumentError(
            "a function with a derivative rule of its own, in `loss_fn`, closes "
            "over a value that is being differentiated or mapped; pass that value as an argument."
        ) from error


# From rows of any leading shape to rows in line, without those that are masked.


def _make_inputs(
    sweep: Sweep,
    head: Head,
    arrays: Sequence[HeadArrays[jax.Array]],
    row_args: tuple[jax.Array, ...],
    consts: tuple[jax.Array, ...],
    reduction: str,
) -> Inputs[jax.Array]:
    """Everything that the loop is a function of; `head` has the mask and the weights."""

    def line(array: jax.Array) -> jax.Array:
        rest = array.shape[len(head.leading_shape) :]
        return to_line(sweep.tiling, array.reshape(*sweep.tiling.shape, *rest))

    row_args = tuple(_parallel.pvary(array, sweep.loss_axes) for array in row_args)
    where = None if head.where is None else line(head.where)
    weights = None if head.weights is None else line(head.weights).astype(sweep.dtype)
    if weights is not None and where is not None:
        weights = jnp.where(where, weights, 0.0)
    return Inputs(
        heads=tuple(
            each._replace(hidden=mask_rows_with_copies(where, line(each.hidden))) for each in arrays
        ),
        row_args=tuple(mask_rows_with_copies(where, line(array)) for array in row_args),
        consts=tuple(_differentiable(sweep, where, value, reduction) for value in consts),
        weights=weights,
        where=where,
    )


def mask_rows_with_copies(where: jax.Array | None, rows: jax.Array) -> jax.Array:
    """Rows with a copy of the first one that counts in place of masked ones; 0 if none counts.

    What a masked row holds must reach no product. Its replacement must be something that the loss
    is defined for: its derivative, times 0, goes into the gradient of what the loss closes over.
    """
    if where is None:
        return rows
    mask = where.reshape(*where.shape, *[1] * (rows.ndim - where.ndim))
    # A comparison, not an index into rows: that would gather them if they are sharded.
    number = jnp.arange(where.size).reshape(where.shape)
    is_first = number == jnp.min(jnp.where(where, number, where.size))
    fixed, zero = jax.lax.stop_gradient(rows), jnp.zeros((), rows.dtype)
    first = jnp.sum(
        jnp.where(is_first.reshape(mask.shape), fixed, zero),
        axis=tuple(range(where.ndim)),
        keepdims=True,
        dtype=rows.dtype,
    )
    return jnp.where(mask, rows, first)


# What a loss closes over.


def _differentiable(
    sweep: Sweep, where: jax.Array | None, value: jax.Array, reduction: str
) -> jax.Array:
    """What a loss closes over, with its derivative refused or stopped where there is none."""
    if sweep.loss_axes <= _parallel.varying_axes(value):
        return _stop_gradient_without_rows(where, value)
    return value if reduction == "none" else _refuse_derivative(value, sweep.loss_axes)


def _stop_gradient_without_rows(where: jax.Array | None, value: jax.Array) -> jax.Array:
    """`value`, without a derivative if no row counts: no row is then fit to be copied."""
    if where is None or not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    return jnp.where(jnp.any(where), value, jax.lax.stop_gradient(value))


def _refuse_derivative(value: jax.Array, axes: frozenset[Hashable]) -> jax.Array:
    """`value`, which is the same on devices whose losses differ, and must have no derivative.

    Its gradient would be a sum over these devices already, whose terms nobody knows.
    """
    missing = sorted(axes - _parallel.varying_axes(value), key=str)

    @jax.custom_jvp
    def constant(value: jax.Array) -> jax.Array:
        return value

    @constant.defjvp
    def _constant_jvp(primals: Arrays, tangents: Arrays) -> Dual:
        del primals, tangents
        raise _checks.ArgumentError(
            f"jaxent.linear_loss: `loss_fn` closes over {_checks.describe(value)}, which is "
            "differentiated and is the same on all devices while the losses are not; let it close "
            f'over `jax.lax.pcast(value, {tuple(missing)}, to="varying")`.'
        )

    return constant(value)


class _ConvertedLoss(NamedTuple):
    """A loss that closes over nothing that is differentiated."""

    function: LossFunction  # of logits, row_args and consts
    consts: tuple[jax.Array, ...]  # what it closed over
    axes: frozenset[Hashable]  # mesh axes that the losses vary over
    shared_axes: tuple[Hashable, ...]  # that it communicates over


def _map_outer(loss: _ConvertedLoss, per_row: int) -> LossFunction:
    """The loss of a tile with an axis before its line; the first `per_row` arguments have it."""
    return jax.vmap(loss.function, (*[0] * per_row, *[None] * len(loss.consts)))


def _convert_closure(
    loss_fn: LossFunction,
    heads: Sequence[Head],
    arrays: Sequence[HeadArrays[jax.Array]],
    row_args: tuple[jax.Array, ...],
    chunk: int,
    dtype: jnp.dtype,
) -> _ConvertedLoss:
    """`loss_fn` with the arrays that it closes over as arguments, and refused unless it fits.

    A custom rule must not close over values that are differentiated.
    """

    def example(
        shape: tuple[int, ...], dtype: jnp.dtype, axes: frozenset[Hashable]
    ) -> jax.Array | jax.ShapeDtypeStruct:
        def zeros() -> jax.Array:
            return _parallel.pvary(jnp.zeros((chunk, *shape), dtype), axes)

        # A mere description has no mesh to which the axes belong.
        return zeros() if axes else jax.eval_shape(zeros)

    def example_rows(axes: frozenset[Hashable]) -> list[jax.Array | jax.ShapeDtypeStruct]:
        rank = len(heads[0].leading_shape)
        return [
            example(a.shape[rank:], a.dtype, axes | _parallel.varying_axes(a)) for a in row_args
        ]

    def fresh_loss(*arguments: jax.Array) -> jax.Array:
        # JAX keeps what it has traced by the function: a new one reads its globals anew.
        return loss_fn(*arguments)

    axes = _parallel.varying_axes((arrays, row_args))
    logits = [example((head.vocabulary_size,), dtype, axes) for head in heads]
    losses: Any = jax.eval_shape(fresh_loss, *logits, *example_rows(frozenset()))
    shape, kind = getattr(losses, "shape", None), getattr(losses, "dtype", type(losses))
    _checks.require(
        shape == (chunk,) and jnp.issubdtype(kind, jnp.floating),
        f"`loss_fn` must return one floating point loss per row, [{chunk}] for logits "
        f"[{chunk},{heads[0].vocabulary_size}], got {losses}.",
    )
    axes = _parallel.varying_axes(losses)
    examples = *logits, *example_rows(axes)
    program = jax.make_jaxpr(fresh_loss)(*examples)
    values: list[Any] = list(program.consts)
    is_traced = [isinstance(value, Tracer) for value in values]

    def function(*arguments: jax.Array) -> jax.Array:
        given = iter(arguments[len(examples) :])
        closed = (
            next(given) if traced else value
            for traced, value in zip(is_traced, values, strict=True)
        )
        return eval_jaxpr(program.jaxpr, list(closed), *arguments[: len(examples)])[0]

    consts = tuple(itertools.compress(values, is_traced))
    return _ConvertedLoss(function, consts, axes, _parallel.communication_axes(program))
