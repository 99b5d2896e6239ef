"""The loop over chunks of rows for one loss per row.

The cotangents are not known in the loop, so `jax.checkpoint` recomputes the logits of one chunk at
a time in the backward pass.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnknownLambdaType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import jax
import jax.numpy as jnp

from jaxent._float.tangents import Dual
from jaxent._heads.batching import with_batching_rule
from jaxent._heads.chunks import (
    Chunk,
    HeadArrays,
    Inputs,
    Sweep,
    T,
    all_chunks,
    as_axes,
    chunk_logits,
    combine,
    from_chunks,
    is_nonzero,
    is_symbolic_zero,
    order_of,
    partition,
    weigh,
    zeros_unless,
)
from jaxent._heads.linear_map import linear_map


class _Shared(NamedTuple, Generic[T]):
    """What all chunks share."""

    heads: tuple[HeadArrays[T], ...]  # with None for the hidden states
    consts: tuple[T, ...]


def losses_per_row(sweep: Sweep, inputs: Inputs[jax.Array]) -> jax.Array:
    """The weighted losses, [*rows]; the backward pass recomputes the logits chunk by chunk."""
    shared = _Shared(tuple(head._replace(hidden=None) for head in inputs.heads), inputs.consts)
    order = order_of(sweep, inputs)
    chunks = all_chunks(sweep, order, inputs)
    losses = _losses_of_chunks(sweep, inputs.where is not None, shared, chunks)
    return from_chunks(sweep, order, losses)


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
            return jax.vmap(loop, (as_axes(axes),))(arguments)
        mapped: Chunk = jax.vmap(lambda chunks: chunks, (as_axes(axes[1]),))(arguments[1])
        size, count = mapped.hidden[0].shape[:2]
        line: Chunk = jax.tree.map(lambda a: a.reshape(size * count, *a.shape[2:]), mapped)
        losses = _losses_of_chunks(sweep, is_masked, arguments[0], line)
        return losses.reshape(size, count, *losses.shape[1:])

    return with_batching_rule(loop, rule, (shared, chunks))


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
        logits = chunk_logits(sweep, heads, chunk)
        if is_masked and chunk.example_mask is not None:
            # The same numbers, but a masked row has no derivative, not even 0 times infinity.
            mask = chunk.example_mask[..., None]
            logits = [jnp.where(mask, x, jax.lax.stop_gradient(x)) for x in logits]
        return weigh(sweep, chunk, sweep.loss_fn(*logits, *chunk.row_args, *consts))

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
        return zeros_unless(arguments[1].is_needed, chunk_losses, arguments)

    @functools.partial(losses.defjvp, symbolic_zeros=True)
    def _losses_jvp(primals: tuple[Any], tangents: tuple[Any]) -> Dual:
        is_trained = jax.tree.map(is_nonzero, tangents[0], is_leaf=is_symbolic_zero)
        dots, _ = partition(tangents[0], is_trained)

        def split(arguments: Any) -> tuple[Callable[[Any], jax.Array], Any]:
            trained, fixed = partition(arguments, is_trained)
            return lambda trained: chunk_losses(combine(trained, fixed)), trained

        def tangent(arguments: Any, dots: Any) -> jax.Array:
            function, trained = split(arguments)
            return jax.jvp(function, (trained,), (dots,))[1]

        def transposed(arguments: Any, cotangent: jax.Array) -> Any:
            return jax.vjp(*split(arguments))[1](cotangent)[0]

        (losses_dot,) = linear_map(
            lambda arguments, dots: (
                zeros_unless(arguments[1].is_needed, tangent, arguments, dots),
            ),
            lambda arguments, cotangents: zeros_unless(
                arguments[1].is_needed, transposed, arguments, *cotangents
            ),
            primals[0],
            dots,
            vary_alike=False,
        )
        return losses(*primals), losses_dot

    return losses(arguments)
