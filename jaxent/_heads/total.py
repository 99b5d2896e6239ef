"""The loop over chunks of rows for the sum of the losses, and its gradients.

They are computed in the same loop, where the logits of a chunk are at hand: three matrix products
per head, the minimum. The sum is a `jax.custom_jvp` whose tangent is a sum of products with these
gradients, so that every mode and order of derivatives works.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxent import _parallel
from jaxent._float.tangents import Dual, Tangent
from jaxent._heads.batching import with_batching_rule
from jaxent._heads.chunks import (
    Chunk,
    HeadArrays,
    HeadSpec,
    Inputs,
    MaybeArray,
    Sweep,
    all_chunks,
    as_axes,
    chunk_logits,
    combine,
    from_chunks,
    is_nonzero,
    is_symbolic_zero,
    order_of,
    partition,
    run_if_needed,
    weigh,
)
from jaxent._heads.logits import contract
from jaxent._heads.per_row import losses_per_row


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
        return jax.vmap(function, (as_axes(axes),))(inputs)

    return with_batching_rule(total, rule, inputs)


def _total_loss(sweep: Sweep, inputs: Inputs[jax.Array]) -> jax.Array:

    @jax.custom_jvp
    def total(inputs: Inputs[jax.Array]) -> jax.Array:
        def step(sum_: jax.Array, chunk: Chunk) -> tuple[jax.Array, None]:
            logits = chunk_logits(sweep, inputs.heads, chunk)
            losses = sweep.loss_fn(*logits, *chunk.row_args, *inputs.consts)
            return sum_ + jnp.sum(weigh(sweep, chunk, losses)), None

        chunks = all_chunks(sweep, order_of(sweep, inputs), inputs)
        return jax.lax.scan(functools.partial(run_if_needed, step), _zero(sweep), chunks)[0]

    @functools.partial(total.defjvp, symbolic_zeros=True)
    def _total_jvp(primals: tuple[Inputs[jax.Array]], tangents: tuple[Inputs[Tangent]]) -> Dual:
        (inputs,), (dots,) = primals, tangents
        is_trained: Inputs[bool] = jax.tree.map(is_nonzero, dots, is_leaf=is_symbolic_zero)
        value, grads = _total_and_grads(sweep, inputs, is_trained)
        dots, _ = partition(dots, is_trained)
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

    start, order = _zero_sums(sweep, inputs, is_trained), order_of(sweep, inputs)
    chunks = all_chunks(sweep, order, inputs)
    sums, row_grads = jax.lax.scan(functools.partial(run_if_needed, step), start, chunks)
    rows: _RowGrads = jax.tree.map(functools.partial(from_chunks, sweep, order), row_grads)
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
        jnp.sum(weigh(sweep, chunk, losses)),
        tuple(head._replace(hidden=None) for head in heads),
        tuple(grad if grad is None else grad.astype(sweep.dtype) for grad in grads.consts),
    )
    weight_grads = None
    if is_trained.weights:
        weight_grads = weigh(sweep, chunk._replace(weights=None), losses)
        if sweep.untracked_axes:
            weight_grads = _fraction_of_copies(sweep) * weight_grads
    hidden_grads = tuple(head.hidden for head in heads)
    return sums, _RowGrads(hidden_grads, tuple(grads.row_args), weight_grads)


def _losses_and_grads(
    sweep: Sweep, inputs: Inputs[jax.Array], is_trained: Inputs[bool], chunk: Chunk
) -> tuple[jax.Array, _LossArguments]:
    """The losses of a chunk, and the gradients of their weighted sum by what is trained."""
    logits = chunk_logits(sweep, inputs.heads, chunk)
    head_flags = [any(jax.tree.leaves(head)) for head in is_trained.heads]
    trained, fixed = partition(
        _LossArguments(logits, chunk.row_args, inputs.consts),
        _LossArguments(head_flags, is_trained.row_args, is_trained.consts),
    )

    def chunk_losses(trained: _LossArguments) -> jax.Array:
        logits, row_args, consts = combine(trained, fixed)
        return sweep.loss_fn(*logits, *row_args, *consts).astype(sweep.dtype)

    losses, pull_back = jax.vjp(chunk_losses, trained)
    cotangents = weigh(sweep, chunk, jnp.full_like(losses, _fraction_of_copies(sweep)))
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
