"""How rows are cut into equal tiles, or chunks, for a sweep: so that all devices work on each.

A tile takes every n-th row of n tiles, not rows next to each other. If rows are sharded each device
then has its share of every tile, and nothing moves between devices: provided that the tiles of each
device's rows come out even by themselves, and that rows which are sharded along two axes, as those
of [batch, time] may be, are not made into one axis. On one device there is nothing to see to.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Cut(NamedTuple):
    """Rows of a leading shape in tiles. `line` is the axis that is cut."""

    shape: tuple[int, ...]  # of the rows as given
    columns: int  # equal parts of the last axis that stay apart, as an axis before the line
    parts: int  # equal parts of the line
    share: int  # how many rows a tile takes of each part
    tiles: int

    @property
    def outer(self) -> tuple[int, ...]:
        """The shape of what stays apart."""
        return (self.columns,) if self.columns > 1 else ()

    @property
    def line(self) -> int:
        """The length of the axis that is cut."""
        return math.prod(self.shape) // self.columns

    @property
    def tile(self) -> tuple[int, ...]:
        """The shape of the rows of a tile."""
        return *self.outer, self.parts * self.share

    @property
    def missing(self) -> int:
        """How many rows every part lacks to fill all tiles."""
        return self.share * self.tiles - self.line // self.parts


def cut_rows(shape: tuple[int, ...], size: int, devices: int) -> Cut:
    """Tiles of at most `size` rows, evened out, of rows that may lie on so many devices."""
    columns = math.gcd(shape[-1], devices) if len(shape) > 1 else 1
    parts = math.gcd(math.prod(shape[:-1]) if len(shape) > 1 else math.prod(shape), devices)
    length = math.prod(shape) // (columns * parts)
    tiles = -(-length // max(1, size // (columns * parts)))
    return Cut(shape, columns, parts, -(-length // tiles), tiles)


def in_line(cut: Cut, rows: jax.Array) -> jax.Array:
    """[*shape, ...] to [*outer, line, ...]."""
    rest = rows.shape[len(cut.shape) :]
    if cut.columns > 1:
        rows = rows.reshape(*cut.shape[:-1], cut.columns, -1, *rest)
        rows = jnp.moveaxis(rows, len(cut.shape) - 1, 0)
    return rows.reshape(*cut.outer, cut.line, *rest)


def in_shape(cut: Cut, rows: jax.Array) -> jax.Array:
    """The inverse of `in_line`."""
    rest = rows.shape[len(cut.tile) :]
    if cut.columns > 1:
        rows = rows.reshape(cut.columns, *cut.shape[:-1], -1, *rest)
        rows = jnp.moveaxis(rows, 0, len(cut.shape) - 1)
    return rows.reshape(*cut.shape, *rest)


def in_tiles(cut: Cut, rows: jax.Array, *, fill_with_rows: bool) -> jax.Array:
    """[*outer, line, ...] to [*tile, tiles, ...].

    What is missing in the last round is filled with copies of the first rows, or with zeros.
    """
    axis, rest = len(cut.outer), rows.shape[len(cut.tile) :]
    if cut.missing:
        rows = rows.reshape(*cut.outer, cut.parts, -1, *rest)
        filler = jax.lax.slice_in_dim(rows, 0, cut.missing, axis=axis + 1)
        filler = filler if fill_with_rows else jnp.zeros_like(filler)
        rows = jnp.concatenate([rows, filler], axis=axis + 1)
    return rows.reshape(*cut.tile, cut.tiles, *rest)


def out_of_tiles(cut: Cut, tiles: jax.Array) -> jax.Array:
    """The inverse of `in_tiles`."""
    axis, rest = len(cut.outer), tiles.shape[len(cut.tile) + 1 :]
    if not cut.missing:
        return tiles.reshape(*cut.outer, cut.line, *rest)
    rows = tiles.reshape(*cut.outer, cut.parts, cut.share * cut.tiles, *rest)
    rows = jax.lax.slice_in_dim(rows, 0, cut.share * cut.tiles - cut.missing, axis=axis + 1)
    return rows.reshape(*cut.outer, cut.line, *rest)


def is_row(cut: Cut) -> jax.Array:
    """Which places of the tiles hold a row and no filler, [*tile, tiles]."""
    places = jnp.arange(cut.share * cut.tiles) < cut.share * cut.tiles - cut.missing
    return jnp.broadcast_to(places, (*cut.outer, cut.parts, places.size)).reshape(
        *cut.tile, cut.tiles
    )
