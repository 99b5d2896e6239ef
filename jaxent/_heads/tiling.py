"""How the rows of a head are divided into tiles of equal size, so that all devices work on each.

A tile takes every n-th row of n tiles, not rows that stand next to each other. If the rows are
sharded, each device has as many rows of every tile as the others, and no row moves to another
device. This needs two things: each shard is padded by itself, and rows that are sharded along two
axes, such as [batch, time], are not flattened into one axis.

Where rows are masked, each shard puts those that count first, so that the last tiles have none.
"""

# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._heads.linear_map import linear_map


class Tiling(NamedTuple):
    """Rows of a leading shape, such as [batch, time], divided into tiles.

    Rows in line are [*outer_shape, line_length, ...], tiles [*tile_shape, tiles, ...].
    """

    shape: tuple[int, ...]  # of the rows as given
    outer_shards: int  # equal parts of the last axis, which become an axis before the line
    line_shards: int  # equal parts of the line
    rows_per_shard: int  # rows that a tile takes of each shard of the line
    tiles: int  # how many tiles there are

    @property
    def outer_shape(self) -> tuple[int, ...]:
        """The shape of the axis before the line: () if there is no such axis."""
        return (self.outer_shards,) if self.outer_shards > 1 else ()

    @property
    def line_length(self) -> int:
        """The length of the axis that is divided into tiles."""
        return math.prod(self.shape) // self.outer_shards

    @property
    def tile_shape(self) -> tuple[int, ...]:
        """The shape of the rows of a tile."""
        return *self.outer_shape, self.line_shards * self.rows_per_shard

    @property
    def padding(self) -> int:
        """How many rows each shard of the line lacks to fill all tiles."""
        return self.rows_per_shard * self.tiles - self.line_length // self.line_shards


def make_tiling(shape: tuple[int, ...], size: int, devices: int) -> Tiling:
    """The fewest tiles of at most `size` rows each, for rows on at most so many devices."""
    outer_shards = _shard_count(shape[-1], devices) if len(shape) > 1 else 1
    line_shards = _shard_count(math.prod(shape[:-1] if len(shape) > 1 else shape), devices)
    shards = outer_shards * line_shards
    length = math.prod(shape) // shards
    tiles = -(-length // (size if shards == 1 else max(1, size // shards)))
    return Tiling(shape, outer_shards, line_shards, -(-length // tiles), tiles)


def _shard_count(size: int, devices: int) -> int:
    """The number of equal parts on so many devices; 1 for a size that `jax.export` leaves open."""
    return math.gcd(size, devices) if isinstance(size, int) else 1


def to_line(tiling: Tiling, rows: jax.Array) -> jax.Array:
    """[*shape, ...] to [*outer_shape, line_length, ...]."""
    axes, rest = len(tiling.shape), rows.shape[len(tiling.shape) :]
    if tiling.outer_shards > 1:
        rows = rows.reshape(*tiling.shape[:-1], tiling.outer_shards, -1, *rest)
        rows = jnp.moveaxis(rows, axes - 1, 0)
    return rows.reshape(*tiling.outer_shape, tiling.line_length, *rest)


def from_line(tiling: Tiling, rows: jax.Array) -> jax.Array:
    """The inverse of `to_line`."""
    axes, rest = len(tiling.shape), rows.shape[len(tiling.tile_shape) :]
    if tiling.outer_shards > 1:
        rows = rows.reshape(tiling.outer_shards, *tiling.shape[:-1], -1, *rest)
        rows = jnp.moveaxis(rows, 0, axes - 1)
    return rows.reshape(*tiling.shape, *rest)


def to_tiles(tiling: Tiling, rows: jax.Array, *, pad_with_rows: bool) -> jax.Array:
    """[*outer_shape, line_length, ...] to [*tile_shape, tiles, ...].

    The padding are copies of the first rows of each shard, or zeros.
    """
    axis, rest = len(tiling.outer_shape), rows.shape[len(tiling.tile_shape) :]
    if tiling.padding:
        rows = rows.reshape(*tiling.outer_shape, tiling.line_shards, -1, *rest)
        padding = jax.lax.slice_in_dim(rows, 0, tiling.padding, axis=axis + 1)
        padding = padding if pad_with_rows else jnp.zeros_like(padding)
        rows = jnp.concatenate([rows, padding], axis=axis + 1)
    return rows.reshape(*tiling.tile_shape, tiling.tiles, *rest)


def from_tiles(tiling: Tiling, tiles: jax.Array) -> jax.Array:
    """The inverse of `to_tiles`; the padding is dropped."""
    axis, rest = len(tiling.outer_shape), tiles.shape[len(tiling.tile_shape) + 1 :]
    if not tiling.padding:
        return tiles.reshape(*tiling.outer_shape, tiling.line_length, *rest)
    padded = tiling.rows_per_shard * tiling.tiles
    rows = tiles.reshape(*tiling.outer_shape, tiling.line_shards, padded, *rest)
    rows = jax.lax.slice_in_dim(rows, 0, padded - tiling.padding, axis=axis + 1)
    return rows.reshape(*tiling.outer_shape, tiling.line_length, *rest)


def padding_mask(tiling: Tiling) -> jax.Array:
    """False at the padding of the tiles, [*tile_shape, tiles]."""
    padded = tiling.rows_per_shard * tiling.tiles
    is_row = jnp.arange(padded) < padded - tiling.padding
    is_row = jnp.broadcast_to(is_row, (*tiling.outer_shape, tiling.line_shards, padded))
    return is_row.reshape(*tiling.tile_shape, tiling.tiles)


class Order(NamedTuple):
    """The rows of each shard of the line in an order of their own, those that count first."""

    rows: jax.Array  # [*outer_shape, line_shards, tiles, rows_per_shard], the row at each place
    places: jax.Array  # [*outer_shape, line_shards, rows of a shard], the place of each row
    counts: jax.Array  # [*outer_shape, line_shards], how many rows count


def order_rows(tiling: Tiling, mask: jax.Array) -> Order:
    """The order in which rows whose mask [*outer_shape, line_length] is False stand last."""
    mask = mask.reshape(*tiling.outer_shape, tiling.line_shards, -1)
    before = jnp.cumsum(mask, axis=-1, dtype=jnp.int32)
    number = jax.lax.broadcasted_iota(jnp.int32, mask.shape, mask.ndim - 1)
    counts = before[..., -1]
    places = jnp.where(mask, before - 1, counts[..., None] + number - before)
    rows = jnp.argsort(places, axis=-1).astype(jnp.int32)
    if tiling.padding:
        padding = jax.lax.slice_in_dim(rows, 0, tiling.padding, axis=rows.ndim - 1)
        rows = jnp.concatenate([rows, padding], axis=-1)
    return Order(rows.reshape(*rows.shape[:-1], tiling.tiles, -1), places, counts)


def ordered_mask(tiling: Tiling, order: Order) -> jax.Array:
    """False at the places of rows that do not count and at padding, [tiles, *tile_shape]."""
    places = jnp.arange(tiling.tiles * tiling.rows_per_shard, dtype=jnp.int32)
    places = places.reshape(*[1] * order.counts.ndim, tiling.tiles, -1)
    return _tiles_first(tiling, places < order.counts[..., None, None])


def to_ordered_tiles(tiling: Tiling, order: Order, rows: jax.Array) -> jax.Array:
    """[*outer_shape, line_length, ...] to [tiles, *tile_shape, ...], in the order of `order`.

    The transpose takes nothing from the padding, whose rows do not count.
    """

    def take(order: Order, rows: tuple[jax.Array]) -> tuple[jax.Array]:
        rest = rows[0].shape[len(tiling.tile_shape) :]
        shards = rows[0].reshape(*order.places.shape, *rest)
        return (_tiles_first(tiling, _take_rows(shards, order.rows, order.counts.ndim)),)

    def put_back(order: Order, tiles: tuple[jax.Array | None, ...]) -> tuple[jax.Array]:
        assert tiles[0] is not None
        return (from_ordered_tiles(tiling, order, tiles[0]),)

    if not jnp.issubdtype(rows.dtype, jnp.inexact):
        return take(order, (rows,))[0]
    return linear_map(take, put_back, order, (rows,))[0]


def from_ordered_tiles(tiling: Tiling, order: Order, tiles: jax.Array) -> jax.Array:
    """The inverse of `to_ordered_tiles`; the padding is dropped."""
    axes, rest = len(tiling.outer_shape) + 1, tiles.shape[len(tiling.tile_shape) + 1 :]
    shards = tiles.reshape(tiling.tiles, *order.counts.shape, tiling.rows_per_shard, *rest)
    shards = jnp.moveaxis(shards, 0, axes)
    rows = _take_rows(shards.reshape(*order.counts.shape, -1, *rest), order.places, axes)
    return rows.reshape(*tiling.outer_shape, tiling.line_length, *rest)


def _tiles_first(tiling: Tiling, rows: jax.Array) -> jax.Array:
    """[*outer_shape, line_shards, tiles, rows_per_shard, ...] to [tiles, *tile_shape, ...]."""
    axes = len(tiling.outer_shape) + 1
    rest = rows.shape[axes + 2 :]
    return jnp.moveaxis(rows, axes, 0).reshape(tiling.tiles, *tiling.tile_shape, *rest)


def _take_rows(rows: jax.Array, indices: jax.Array, axes: int) -> jax.Array:
    """The rows of each shard at its indices; the first `axes` axes are those of the shards."""

    def take(rows: jax.Array, indices: jax.Array) -> jax.Array:
        return rows.at[indices].get(mode="promise_in_bounds")

    for _ in range(axes):
        take = jax.vmap(take)
    return take(rows, indices)
