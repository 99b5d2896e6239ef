"""One tile of logits: which rows and classes it has, and how it is computed from the head."""

# pyright: strict, reportUnknownMemberType=false

from collections.abc import Callable
from typing import NamedTuple, ParamSpec, TypeVar, cast

import jax
import jax.numpy as jnp

from jaxent import _parallel
from jaxent._heads.columns.plan import ColumnPlan, split_segments
from jaxent._heads.logits import contract, transform_logits
from jaxent._parallel import AxisName

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Parameters(NamedTuple):
    """What the statistics are differentiated with respect to."""

    hidden: jax.Array  # [*tile_shape, tile_count, D]
    kernel: jax.Array  # [D, segments, segment_size] or [segments, segment_size, D]
    bias: jax.Array | None  # [segments, segment_size]
    soft_cap: jax.Array | None  # []
    temperature: jax.Array | None  # []


class Targets(NamedTuple):
    """What the statistics are not differentiated with respect to."""

    labels: jax.Array  # [*tile_shape, tile_count], int32; -1 for a class of another device
    class_mask: jax.Array | None  # [segments, segment_size], bool; None for all classes


class Block(NamedTuple):
    """The classes of a block: positions `start` to `start + width` of every segment."""

    start: jax.Array  # []
    first_new: jax.Array  # [], the first position that no earlier block has
    class_mask: jax.Array | None  # [block_size], bool; None for all classes


class BlockWeights(NamedTuple):
    """The weights of a block."""

    kernel: jax.Array  # [D, block_size] or [block_size, D]
    bias: jax.Array | None  # [block_size]


# Loops, and access to tiles and blocks.


def scan_indices(step: Callable[[_T, jax.Array], tuple[_T, None]], carry: _T, length: int) -> _T:
    """The carry after `step(carry, index)` for each index from 0 to `length`."""
    return jax.lax.scan(step, carry, jnp.arange(length, dtype=jnp.int32))[0]


def checkpoint(body: Callable[_P, _T]) -> Callable[_P, _T]:
    """`jax.checkpoint` for the body of a loop, where XLA cannot undo it by sharing results."""
    return cast(Callable[_P, _T], jax.checkpoint(body, prevent_cse=False))


def take_tile(plan: ColumnPlan, tree: _T, index: jax.Array) -> _T:
    """The arrays [*tile_shape, ...] of one tile, of arrays [*tile_shape, tile_count, ...]."""
    axis = len(plan.tile_shape)

    def take(array: jax.Array) -> jax.Array:
        return cast(jax.Array, jax.lax.dynamic_index_in_dim(array, index, axis, False))

    return jax.tree.map(take, tree)


def put_tile(plan: ColumnPlan, tree: _T, values: _T, index: jax.Array) -> _T:
    """The arrays of a tree with the values of one tile replaced."""
    axis = len(plan.tile_shape)

    def put(array: jax.Array, value: jax.Array) -> jax.Array:
        return cast(jax.Array, jax.lax.dynamic_update_index_in_dim(array, value, index, axis))

    return jax.tree.map(put, tree, values)


def take_block(plan: ColumnPlan, class_mask: jax.Array | None, index: jax.Array) -> Block:
    """The classes of the block at `index`."""
    first_new = start = index * plan.width
    if plan.blocks_overlap:
        start = jnp.minimum(first_new, plan.segment_size - plan.width)
    block_mask = None
    if plan.blocks_overlap:
        positions = start + jnp.arange(plan.block_size, dtype=jnp.int32) % plan.width
        # The barrier keeps XLA from computing the mask again for each row of the tile.
        block_mask = jax.lax.optimization_barrier(positions >= first_new)
    if class_mask is not None:
        taken = slice_classes(plan, class_mask, start, 0)
        block_mask = taken if block_mask is None else block_mask & taken
    return Block(start, first_new, block_mask)


def take_weights(
    plan: ColumnPlan, kernel: jax.Array, bias: jax.Array | None, block: Block
) -> BlockWeights:
    """The weights of the classes of a block."""
    # The barrier keeps XLA from moving the conversion of the kernel out of the loop, to all of it.
    kernel, start = jax.lax.optimization_barrier((kernel, block.start))
    kernel = slice_classes(plan, kernel, start, plan.vocab_axis)
    # Features that are sharded are gathered here, once, not in each tile of rows.
    kernel = _parallel.gather_axis(kernel, 1 - plan.vocab_axis)
    if bias is not None:
        bias = slice_classes(plan, bias, start, 0).astype(plan.dtype)
    return BlockWeights(kernel, bias)


def slice_classes(plan: ColumnPlan, array: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """The entries [..., block_size, ...] of a block, of [..., segments, segment_size, ...]."""
    # The barrier keeps XLA from computing the place of each entry by itself.
    block = jax.lax.optimization_barrier(slice_segments(plan, array, start, axis))
    return block.reshape(*array.shape[:axis], plan.block_size, *array.shape[axis + 2 :])


def slice_segments(plan: ColumnPlan, array: jax.Array, start: jax.Array, axis: int) -> jax.Array:
    """The entries of a block as [..., segments, width, ...]."""
    return jax.lax.dynamic_slice_in_dim(array, start, plan.width, axis + 1)


def add_classes(
    plan: ColumnPlan, array: jax.Array, values: jax.Array, block: Block, axis: int
) -> jax.Array:
    """`array` [..., segments, segment_size, ...] with the values of a block added.

    The array may hold the bits of the values in an integer dtype. Where blocks overlap, the values
    are 0 at classes of an earlier block.
    """
    values = split_segments(plan, values, axis)
    if plan.blocks_overlap:
        values += view_as(slice_segments(plan, array, block.start, axis), values.dtype)
    values = view_as(values, array.dtype)
    return jax.lax.dynamic_update_slice_in_dim(array, values, block.start, axis + 1)


def view_as(array: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The bits of an array as another dtype of the same size."""
    return array if array.dtype == dtype else jax.lax.bitcast_convert_type(array, dtype)


# Logits.


def tile_logits(
    plan: ColumnPlan, parameters: Parameters, hidden: jax.Array, weights: BlockWeights, block: Block
) -> jax.Array:
    """The logits [*tile_shape, block_size] of a tile, -inf at masked classes."""
    products = project(plan, hidden, weights.kernel)
    x = head_logits(products, weights.bias, parameters.soft_cap, parameters.temperature)
    return mask_classes(block, x)


def project(plan: ColumnPlan, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """The products [..., block_size] of hidden states [..., D] and the kernel of a block."""
    axes = (hidden.ndim - 1,), (1 - plan.vocab_axis,)
    return contract(hidden, axes[0], kernel, axes[1], plan.operand_dtype, plan.dtype)


def kernel_grad(plan: ColumnPlan, hidden: jax.Array, products_grad: jax.Array) -> jax.Array:
    """The gradient of a block of the kernel by a tile; of several parts of its rows, of each."""
    left, right = (hidden, products_grad) if plan.vocab_axis else (products_grad, hidden)
    row_axes = tuple(range(len(plan.tile_shape)))

    def product(left: jax.Array, right: jax.Array) -> jax.Array:
        return contract(left, row_axes, right, row_axes, plan.operand_dtype, plan.dtype)

    if plan.row_parts == 1:
        return product(left, right)
    outer, line_shards = plan.tiling.outer_shape, plan.tiling.line_shards

    def split(rows: jax.Array) -> jax.Array:
        return rows.reshape(*outer, line_shards, -1, rows.shape[-1])

    of_parts = jax.vmap(product, len(outer) if line_shards > 1 else 0)
    return of_parts(split(left), split(right))


def sum_parts(plan: ColumnPlan, grad: jax.Array) -> jax.Array:
    """The sum over the parts, if there are any, in the dtype in which devices are to send it."""
    if plan.row_parts == 1:
        return grad
    return jax.lax.reduce(grad, jnp.zeros((), grad.dtype), jax.lax.add, (0,))


def head_logits(
    products: jax.Array,
    bias: jax.Array | None,
    soft_cap: jax.Array | None,
    temperature: jax.Array | None,
) -> jax.Array:
    """Logits from the products of hidden states and kernel: c tanh((products + bias) / c) / tau."""
    biased = products if bias is None else products + per_class(products, bias)
    return transform_logits(biased, soft_cap, temperature)


def mask_classes(block: Block, x: jax.Array) -> jax.Array:
    """Logits with -inf at masked classes and at classes of an earlier block."""
    mask = block.class_mask
    return x if mask is None else jnp.where(per_class(x, mask), x, -jnp.inf)


def per_class(x: jax.Array, values: jax.Array) -> jax.Array:
    """Values [block_size] in the rank of `x` [..., block_size]."""
    return values.reshape(*[1] * (x.ndim - 1), -1)


# Classes and their positions in a block.


def class_count(plan: ColumnPlan, class_mask: jax.Array | None) -> jax.Array | float:
    """The number V of classes that are not masked, of all devices; at least 1."""
    if class_mask is None:
        return float(_parallel.class_count(plan.vocab_size, plan.axis_name))
    local = jnp.sum(class_mask, dtype=plan.dtype)
    return jnp.maximum(_parallel.psum(local, plan.axis_name), 1.0)


def block_class_count(plan: ColumnPlan, block: Block) -> jax.Array | float:
    """The number of classes of a block that are not masked and in no earlier block."""
    if block.class_mask is None:
        return float(plan.block_size)
    return jnp.sum(block.class_mask, dtype=plan.dtype)


def local_labels(labels: jax.Array, size: int, axis_name: AxisName) -> jax.Array:
    """Labels counted from the first of the `size` classes of this device, -1 for another's."""
    if axis_name is None:
        return labels
    local = _parallel.local_labels(labels, size, axis_name)
    return jnp.where((local >= 0) & (local < size), local, -1)


def position_in_block(plan: ColumnPlan, block: Block, labels: jax.Array) -> jax.Array:
    """The position of each row's class among those of the block, -1 if the block does not add it.

    A class that an earlier block has as well is not added again.
    """
    segment, position = labels // plan.segment_size, labels % plan.segment_size
    end = block.start + plan.width
    is_added = (labels >= 0) & (position >= block.first_new) & (position < end)
    return jnp.where(is_added, segment * plan.width + position - block.start, -1)


def class_at(plan: ColumnPlan, block: Block, position: jax.Array) -> jax.Array:
    """The class at a position of the block."""
    segment = position // plan.width
    return segment * plan.segment_size + block.start + position % plan.width


def one_hot(plan: ColumnPlan, block: Block, labels: jax.Array) -> jax.Array:
    """Whether each class of the block is that of its row, [*tile_shape, block_size], bool."""
    # The barrier keeps XLA from computing the position again for each class of the tile.
    position = jax.lax.optimization_barrier(position_in_block(plan, block, labels))[..., None]
    return per_class(position, jnp.arange(plan.block_size, dtype=jnp.int32)) == position
