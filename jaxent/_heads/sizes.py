"""How large chunks, blocks and tiles are, for the platform that a program is compiled for.

A platform is known for certain only when a program is lowered: hosts without a TPU compile for
TPUs. So where the rules disagree the loop is traced for each of them, and JAX keeps one.
"""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import jax

PLATFORMS = "gpu", "tpu", "cpu"

P = TypeVar("P", bound=Hashable)
T = TypeVar("T")


def rows_per_chunk(
    platform: str, rows: int, features: int, classes: int, is_masked: bool = False
) -> int:
    """The most rows in a chunk, of the rows on one device.

    A chunk's logits are held beside the kernel's gradient in float32, to which each chunk adds. The
    sizes for GPUs and TPUs were chosen by programs compiled for an H100 and a v5e; none was run.

    * On a CPU 64 MiB of float32 logits, or an eighth of the kernel's gradient, and at least 256
      rows. With fewer, to read the kernel and to add to its gradient takes longer than the
      products. From 256 to 1024 rows `benchmarks/linear_head.py` sees no difference. Where rows are
      masked, not more than a tenth of them, nor fewer than 256: the last chunk that has a row that
      counts is swept as a whole.
    * Elsewhere an eighth of the rows, but not more than 2048, or 384 MiB of logits and of their
      gradients; at least 256 rows. To add a gradient of 1 GiB takes an H100, as estimated, as long
      as a product over 1000 rows.
    * All rows if their logits take no more than the kernel's gradient and 384 MiB: then nothing is
      added up. A GPU holds the logits' gradients as well, a TPU computes them in the products.
    """
    if platform == "cpu":
        least = max(256, features // 8)
        size = max(least, 2**24 // classes)
        return min(size, max(least, -(-rows // 10))) if is_masked else size
    bytes_per_logit = 4 if platform == "tpu" else 6
    if bytes_per_logit * rows * classes <= 4 * features * classes + 384 * 2**20:
        return rows
    return max(256, min(2048, rows // 8), 2**26 // classes)


class TileSizes(NamedTuple):
    """The most classes in a block, and the most logits in a tile, on one device."""

    classes: int
    logits: int


def sizes_of_tile(platform: str, rows: int) -> TileSizes:
    """The sizes of a sweep over columns, of the rows on one device.

    On a CPU a tile stays in its cache: 2**19 to 2**22 logits and 512 to 2048 classes take the same
    time. Elsewhere a tile takes 64 MiB, and has all rows if that leaves it 1024 classes: to pick
    some of the rows, and to put their gradients back, costs an H100 5%, as estimated.
    """
    if platform == "cpu":
        return TileSizes(1024, 2**20)
    return TileSizes(min(8192, max(1024, 2**24 // rows)), 2**24)


def even_width(platform: str, classes: int, largest: int) -> int:
    """At most `largest` classes, so that the last block of all classes is nearly full.

    Where it is not a CPU, a multiple of 128 if that is possible: a TPU's arrays lie in tiles that
    are 128 classes wide.
    """
    lanes = 1 if platform == "cpu" or largest < 128 else 128
    units = -(-classes // lanes)
    blocks = -(-units // (largest // lanes))
    return min(classes, lanes * -(-units // blocks))


def run_on_platform(plan: Callable[[str], P], run: Callable[[P], T]) -> T:
    """`run(plan(platform))`, of the platform that the program is compiled for."""
    return run_plan(plan_platforms(plan), run)


def plan_platforms(plan: Callable[[str], P]) -> tuple[P, ...]:
    """The plans of all platforms, in the order of `PLATFORMS`."""
    return tuple(plan(platform) for platform in PLATFORMS)


def run_plan(plans: tuple[P, ...], run: Callable[[P], T]) -> T:
    """`run(plan)`, of the platform that the program is compiled for.

    `run` may close over arrays. It is traced once for each plan that differs from the others.
    """
    default = plans[0]
    branches = {
        platform: functools.partial(run, plan)
        for platform, plan in zip(PLATFORMS[1:], plans[1:], strict=True)
        if plan != default
    }
    if not branches:
        return run(default)
    return jax.lax.platform_dependent(default=functools.partial(run, default), **branches)
