"""How a column sweep divides its work: the rows into tiles, the vocabulary into blocks of classes.

A tile of logits is one tile of rows by one block of classes. The vocabulary [V] is viewed as
[segments, segment_size], and a block holds the same positions of every segment: block b has the
positions from b * width to (b + 1) * width. All loops over blocks and tiles have static lengths.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._heads.checks import Head
from jaxent._heads.sizes import even_width, sizes_of_tile
from jaxent._heads.tiling import Tiling, from_line, from_tiles, make_tiling, to_line, to_tiles
from jaxent._parallel import AxisName, device_count


class ColumnPlan(NamedTuple):
    """The sizes and dtypes of a sweep, all static."""

    vocab_axis: int  # of the kernel: 1 for [D, V], 0 for [V, D]
    vocab_size: int  # classes on this device
    tiling: Tiling  # of the rows
    segments: int
    width: int  # classes of each segment in a block
    block_count: int
    dtype: jnp.dtype  # of logits and statistics
    operand_dtype: jnp.dtype  # of what matrix products multiply
    axis_name: AxisName  # the mesh axes over which the classes are split

    @property
    def segment_size(self) -> int:
        """The number of classes in a segment."""
        return self.vocab_size // self.segments

    @property
    def block_size(self) -> int:
        """The number of classes in a block."""
        return self.segments * self.width

    @property
    def blocks_overlap(self) -> bool:
        """Whether the last block, to be full, starts with classes that the one before has too."""
        return self.block_count * self.width != self.segment_size

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """The shape of the rows of a tile."""
        return self.tiling.tile_shape

    @property
    def row_parts(self) -> int:
        """The parts of a tile's rows that may be on different devices; 1 without a mesh.

        Of rows [batch, time] they are parts of the batch. With parts of the time as well, a device
        that has all of the time would hold a gradient of each.
        """
        line_shards = self.tiling.line_shards
        return line_shards if line_shards > 1 else self.tiling.outer_shards

    @property
    def tile_count(self) -> int:
        """The number of tiles of rows."""
        return self.tiling.tiles


def plan_columns(
    head: Head, block_size: int | None, axis_name: AxisName, platform: str
) -> ColumnPlan:
    """The plan for a head; `block_size` is the largest number of classes in a block."""
    devices, shape = device_count(head.hidden, head.kernel), head.leading_shape or (1,)
    count = math.prod(shape)
    # An exported program may learn how many rows there are.
    sizes = sizes_of_tile(platform, -(-count // devices) if isinstance(count, int) else 1)
    block_size = block_size or sizes.classes
    segments = math.gcd(head.vocabulary_size, devices)
    if platform == "cpu" or segments > block_size:
        segments = segment_count(head, block_size, devices)
    segment_size = head.vocabulary_size // segments
    width = even_width(platform, segment_size, block_size // segments)
    rows = max(128, devices * sizes.logits // (segments * width))
    return ColumnPlan(
        vocab_axis=head.vocab_axis,
        vocab_size=head.vocabulary_size,
        tiling=make_tiling(shape, rows, devices),
        segments=segments,
        width=width,
        block_count=-(-segment_size // width),
        dtype=head.dtype,
        operand_dtype=head.operand_dtype,
        axis_name=axis_name,
    )


def segment_count(head: Head, block_size: int, devices: int) -> int:
    """The number of segments of the vocabulary: up to 64, and at least `devices` where possible.

    With a sharded vocabulary, every device then holds its fraction of every block, and no block is
    gathered. A kernel [D, V] gets segments of at least 128 classes in a block: slices of fewer
    contiguous classes cost a CPU 10% of the time of 1024 rows, which is less than a gather costs.
    On other platforms there are `devices` segments, so one where there is no mesh: a kernel viewed
    in several segments is copied there.
    """
    largest = min(64, block_size, max(8, block_size // 128) if head.vocab_axis else block_size)
    segments = math.gcd(head.vocabulary_size, devices)
    while 2 * segments <= largest and head.vocabulary_size % (2 * segments) == 0:
        segments *= 2
    if segments > block_size:
        segments = math.gcd(segments, 2 ** (block_size.bit_length() - 1))
    return segments


def tile_rows(plan: ColumnPlan, rows: jax.Array, *, pad_with_rows: bool = True) -> jax.Array:
    """Rows [*shape, *rest] as tiles [*tile_shape, tile_count, *rest].

    The last tile is padded with copies of the first rows, or with 0.
    """
    return to_tiles(plan.tiling, to_line(plan.tiling, rows), pad_with_rows=pad_with_rows)


def untile_rows(plan: ColumnPlan, tiles: jax.Array) -> jax.Array:
    """The inverse of `tile_rows`, without the padding."""
    return from_line(plan.tiling, from_tiles(plan.tiling, tiles))


def split_segments(plan: ColumnPlan, array: jax.Array, axis: int) -> jax.Array:
    """An array with its axis of classes split into [segments, classes of a segment]."""
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    return array.reshape(*before, plan.segments, -1, *after)


def join_segments(plan: ColumnPlan, array: jax.Array, axis: int) -> jax.Array:
    """The inverse of `split_segments`."""
    return array.reshape(*array.shape[:axis], plan.vocab_size, *array.shape[axis + 2 :])
