"""Losses of rows through one head or several, a chunk of rows at a time.

The [rows, vocabulary] matrix never exists. For a sum of losses the gradients are computed in the
same sweep as the losses: while the logits of a chunk are at hand, so is all that their gradient
needs. That makes three matrix products per head in all, the minimum; recomputing the logits would
cost a fourth. The result is the rule of a `jax.custom_jvp` whose tangent is a sum of products with
those gradients. Reverse mode is its transpose, forward mode works, and since the sweep is ordinary
JAX, so does every further order. A head of which nothing is differentiated costs its logits alone.

One loss per row cannot know its cotangents during the sweep; there, `jax.checkpoint` recomputes
the logits of one chunk at a time.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent import _parallel
from jaxent._heads.tiling import Tiling, from_tiles, padding_mask, to_tiles

LossFunction = Callable[..., jax.Array]


class Layer(NamedTuple):
    """The arrays of a head, or what stands for each of them."""

    hidden: Any
    kernel: Any
    bias: Any


class Operands(NamedTuple):
    """Everything a sweep may be differentiated by; rows first, none of them masked any more."""

    layers: tuple[Layer, ...]
    row_args: Any
    captured: Any
    weights: Any
    where: Any


class Products(NamedTuple):
    """How a head is multiplied: the kernel's vocabulary axis, and the dtype of the operands."""

    vocab_axis: int
    operand: Any


class Sweep(NamedTuple):
    """What is fixed while tracing: the loss, how rows are cut, the products.

    `dtype` is that of logits, losses and sums. Inside `jax.shard_map` a loss may be a sum over the
    classes of several devices; then `axes` are those that JAX knows losses to vary over, which are
    fewer than those of the logits, and `untracked` the ones summed over that it keeps no track of.
    """

    loss_fn: LossFunction
    products: tuple[Products, ...]
    tiling: Tiling
    dtype: Any
    axes: frozenset = frozenset()
    untracked: tuple = ()


class _Chunk(NamedTuple):
    hidden: tuple[jax.Array, ...]
    row_args: Any
    weights: Any
    example_mask: Any


# How rows are cut, and what is made of them.


def _cut(sweep: Sweep, rows: Any) -> Any:
    """Rows in line to [chunks, *rows of a chunk, ...].

    Copies of the first rows fill the last chunk: they are finite if the input is.
    """

    def cut(array):
        tiles = to_tiles(sweep.tiling, array, pad_with_rows=True)
        return jnp.moveaxis(tiles, len(sweep.tiling.tile_shape), 0)

    return jax.tree.map(cut, rows)


def _join(sweep: Sweep, chunks: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    return from_tiles(sweep.tiling, jnp.moveaxis(chunks, 0, len(sweep.tiling.tile_shape)))


def _chunks(sweep: Sweep, operands: Operands) -> _Chunk:
    """All chunks, stacked. `example_mask` marks rows that count, None if all do; fillers do not."""
    example_mask = operands.where
    hidden = tuple(layer.hidden for layer in operands.layers)
    chunks = _cut(sweep, _Chunk(hidden, operands.row_args, operands.weights, example_mask))
    if not sweep.tiling.padding:
        return chunks
    counts = jnp.moveaxis(padding_mask(sweep.tiling), -1, 0)
    return chunks._replace(
        example_mask=counts if example_mask is None else counts & chunks.example_mask
    )


def _contract(sweep: Sweep, operand: Any, left, left_axes, right, right_axes):
    """A product in the dtype of the operands, accumulated in the dtype of the losses."""
    return jax.lax.dot_general(
        left.astype(operand),
        right.astype(operand),
        ((left_axes, right_axes), ((), ())),
        preferred_element_type=sweep.dtype,
    )


def _project(sweep: Sweep, products: Products, layer: Layer) -> jax.Array:
    """Logits of a chunk."""
    axes = (len(sweep.tiling.tile_shape),), (1 - products.vocab_axis,)
    logits = _contract(sweep, products.operand, layer.hidden, axes[0], layer.kernel, axes[1])
    if layer.bias is None:
        return logits
    each_row = [1] * len(sweep.tiling.tile_shape)
    return logits + layer.bias.astype(sweep.dtype).reshape(*each_row, -1)


def _all_logits(sweep: Sweep, layers: tuple[Layer, ...], chunk: _Chunk) -> list[jax.Array]:
    """Logits of a chunk, of every head."""
    return [
        _project(sweep, products, layer._replace(hidden=hidden))
        for products, layer, hidden in zip(sweep.products, layers, chunk.hidden, strict=True)
    ]


def _weighted(sweep: Sweep, chunk: _Chunk, losses: jax.Array) -> jax.Array:
    """Losses times weights; rows that do not count are 0, whatever their loss."""
    losses = losses.astype(sweep.dtype)
    losses = losses if chunk.weights is None else losses * chunk.weights
    return losses if chunk.example_mask is None else jnp.where(chunk.example_mask, losses, 0.0)


# A loss per row.


def losses_of_rows(sweep: Sweep, operands: Operands) -> jax.Array:
    """One weighted loss per row, recomputed chunk by chunk in the backward pass."""

    def widened(array: jax.Array | None) -> jax.Array | None:
        # Sums over chunks of the kernel's gradient are then sums in float32.
        return None if array is None else array.astype(sweep.dtype)

    wide = [Layer(None, widened(layer.kernel), widened(layer.bias)) for layer in operands.layers]

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def losses(wide, captured, chunk: _Chunk) -> jax.Array:
        layers = tuple(
            layer._replace(kernel=layer.kernel.astype(given.kernel.dtype))
            for layer, given in zip(wide, operands.layers, strict=True)
        )
        logits = _all_logits(sweep, layers, chunk)
        if operands.where is not None:
            # The same logits, but a masked row has no derivative in them, not even 0 times one.
            example_mask = chunk.example_mask[..., None]
            logits = [jnp.where(example_mask, x, jax.lax.stop_gradient(x)) for x in logits]
        return _weighted(sweep, chunk, sweep.loss_fn(*logits, *chunk.row_args, *captured))

    def step(carry, chunk):
        return carry, losses(wide, operands.captured, chunk)

    _, stacked = jax.lax.scan(step, None, _chunks(sweep, operands))
    return _join(sweep, stacked)


# The sum of all losses.


def sum_of_losses(sweep: Sweep, operands: Operands) -> jax.Array:
    """The weighted sum of all losses, with gradients from the same sweep where asked for."""

    @jax.custom_jvp
    def total(operands: Operands) -> jax.Array:
        def step(carry, chunk):
            logits = _all_logits(sweep, operands.layers, chunk)
            losses = sweep.loss_fn(*logits, *chunk.row_args, *operands.captured)
            return carry + jnp.sum(_weighted(sweep, chunk, losses)), None

        start = _parallel.pvary(jnp.zeros((), sweep.dtype), sweep.axes)
        return jax.lax.scan(step, start, _chunks(sweep, operands))[0]

    @functools.partial(total.defjvp, symbolic_zeros=True)
    def total_jvp(primals, tangents):
        (operands,), (dots,) = primals, tangents
        wanted = jax.tree.map(lambda dot: not _is_zero(dot), dots, is_leaf=_is_zero)
        value, gradients = _total_and_gradients(sweep, operands, wanted)
        # Sums of products, not `vdot`: flattening would make the partitioner gather the kernel.
        products = jax.tree.map(
            lambda dot, gradient: _dot(sweep, gradient, dot), dots, gradients, is_leaf=_is_zero
        )
        parts = (
            _parallel.psum_extra_axes(part, sweep.axes, sweep.untracked)
            for part in jax.tree.leaves(products)
        )
        tangent = sum(parts, jnp.zeros((), sweep.dtype))
        return value, tangent

    return total(operands)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _dot(sweep: Sweep, gradient: jax.Array, tangent: Any) -> jax.Array | None:
    if _is_zero(tangent):
        return None
    return jnp.sum(gradient.astype(sweep.dtype) * tangent.astype(sweep.dtype))


def _total_and_gradients(sweep: Sweep, operands: Operands, wanted: Operands):
    """The weighted sum of all losses and its gradients by the leaves that `wanted` marks.

    Leaves that are not wanted come back as they are and cost nothing: without a kernel's, its head
    has two products and there is no buffer of the kernel's size.
    """
    moving = [any(jax.tree.leaves(want)) for want in wanted.layers]
    # Devices that JAX keeps no track of have as many copies of a loss, each of which counts.
    share = 1.0 / _parallel.class_count(1, sweep.untracked) if sweep.untracked else None

    def step(sums, chunk: _Chunk):
        def losses_of(some_logits, row_args, captured):
            each = _replace(moving, logits, some_logits)
            row_args = _replace(wanted.row_args, chunk.row_args, row_args)
            captured = _replace(wanted.captured, operands.captured, captured)
            return sweep.loss_fn(*each, *row_args, *captured).astype(sweep.dtype)

        logits = _all_logits(sweep, operands.layers, chunk)
        losses, pull_back = jax.vjp(
            losses_of,
            _take(moving, logits),
            _take(wanted.row_args, chunk.row_args),
            _take(wanted.captured, operands.captured),
        )
        ones = jnp.ones_like(losses) if share is None else jnp.full_like(losses, share)
        slopes, row_args_slope, captured_slope = pull_back(_weighted(sweep, chunk, ones))
        if operands.where is not None:
            # Exactly zero for masked rows, also if the slope there is infinite.
            slopes = [jnp.where(chunk.example_mask[..., None], slope, 0.0) for slope in slopes]
        layers = [
            _layer_gradients(sweep, products, layer._replace(hidden=hidden), want, slope)
            for products, layer, hidden, want, slope in zip(
                sweep.products,
                operands.layers,
                chunk.hidden,
                wanted.layers,
                _replace(moving, logits, slopes),
                strict=True,
            )
        ]
        added = (
            jnp.sum(_weighted(sweep, chunk, losses)),
            [layer._replace(hidden=None) for layer in layers],
            [g.astype(sweep.dtype) for g in captured_slope],
        )
        by_weight = None
        if wanted.weights:
            by_weight = _weighted(sweep, chunk._replace(weights=None), losses)
            by_weight = by_weight if share is None else share * by_weight
        rows = [layer.hidden for layer in layers], row_args_slope, by_weight
        return jax.tree.map(jnp.add, sums, added), rows

    def zeros(want: bool | None, like: jax.Array) -> jax.Array | None:
        return jnp.zeros(jnp.shape(like), sweep.dtype) if want else None

    layers = [
        Layer(None, zeros(want.kernel, layer.kernel), zeros(want.bias, layer.bias))
        for want, layer in zip(wanted.layers, operands.layers, strict=True)
    ]
    start = (
        _parallel.pvary(jnp.zeros((), sweep.dtype), sweep.axes),
        _parallel.match_varying(layers, operands.layers),
        [
            _parallel.match_varying(zeros(True, value), value)
            for value in _take(wanted.captured, operands.captured)
        ],
    )
    (total, layers, captured), rows = jax.lax.scan(step, start, _chunks(sweep, operands))
    hidden, row_args, weights = jax.tree.map(functools.partial(_join, sweep), rows)
    layers = [layer._replace(hidden=h) for layer, h in zip(layers, hidden, strict=True)]
    return total, Operands(
        layers=tuple(
            Layer(*_replace(map(bool, want), given, _take(want, layer)))
            for want, given, layer in zip(wanted.layers, operands.layers, layers, strict=True)
        ),
        row_args=_replace(wanted.row_args, operands.row_args, row_args),
        captured=_replace(wanted.captured, operands.captured, captured),
        weights=weights if wanted.weights else operands.weights,
        where=operands.where,
    )


def _layer_gradients(
    sweep: Sweep, products: Products, layer: Layer, wanted: Layer, slope: jax.Array
) -> Layer:
    """What a chunk adds to the gradients that are wanted, from the slope in its logits."""
    axis, operand = products.vocab_axis, slope.astype(products.operand)
    rows = tuple(range(len(sweep.tiling.tile_shape)))
    # In the layout of the kernel, so that nothing of its size is transposed.
    pair = (layer.hidden, operand) if axis else (operand, layer.hidden)
    return Layer(
        hidden=_contract(sweep, products.operand, operand, (len(rows),), layer.kernel, (axis,))
        if wanted.hidden
        else None,
        kernel=_contract(sweep, products.operand, pair[0], rows, pair[1], rows)
        if wanted.kernel
        else None,
        bias=jnp.sum(slope, axis=rows) if wanted.bias else None,
    )


def _take(wanted, values) -> list:
    """The values that are wanted."""
    return [value for want, value in zip(wanted, values, strict=True) if want]


def _replace(wanted, values, replacements) -> tuple:
    """The values, with the wanted ones replaced in their order."""
    rest = iter(replacements)
    return tuple(next(rest) if want else v for want, v in zip(wanted, values, strict=True))
