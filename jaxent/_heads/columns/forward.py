"""The forward sweep: softmax statistics of each row, updated tile by tile.

A row's statistics are its largest logit so far and sums of exponentials relative to it, as in
Milakov and Gimelshein, Online normalizer calculation for softmax, arXiv:1805.02867, 2018. No sum
cancels: the cross-entropy is log(1 + small) plus a difference of logits, never a difference of two
large logarithms.
"""

# pyright: strict, reportUnknownMemberType=false

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxent import _parallel
from jaxent._float.sums import safe_reciprocal
from jaxent._heads.columns.blocks import (
    Block,
    Parameters,
    Targets,
    block_class_count,
    class_at,
    class_count,
    local_labels,
    per_class,
    position_in_block,
    put_tile,
    scan_indices,
    take_block,
    take_tile,
    take_weights,
    tile_logits,
)
from jaxent._heads.columns.plan import ColumnPlan
from jaxent._kernels.cross_entropy import drop_label_bound
from jaxent._kernels.softmax import coarse_shift, log_sum_over_top


class SoftmaxStats(NamedTuple):
    """The results of the sweep, those of `jaxent.LinearSoftmax`; z = log(sum_j exp(x_j))."""

    cross_entropy: jax.Array  # [...], z - x_label
    log_normalizer: jax.Array  # [...], z
    uniform_cross_entropy: jax.Array  # [...], z - mean_j x_j
    entropy: jax.Array  # [...], sum_j p_j (z - x_j)
    top_class: jax.Array  # [...], int32, the first argmax_j x_j
    top_logit: jax.Array  # [...], max_j x_j


class RunningStats(NamedTuple):
    """The statistics of the classes seen so far; m is their largest logit, s = exp_shift(m)."""

    top_logit: jax.Array  # [...], m
    label_logit: jax.Array  # [...], x_label; 0 until the label's block is seen
    sum_without_label: jax.Array  # [...], sum of exp(x_j - s) over all j but the label
    sum_without_top: jax.Array  # [...], sum of exp(x_j - s) over all j but one argmax
    weighted_gap: jax.Array  # [...], sum_j exp(x_j - s) (m - x_j)
    half_mean_gap: jax.Array  # [...], sum_j (m - x_j) / 2V; m - x_j itself may overflow
    top_class: jax.Array  # [...], int32, the first argmax_j x_j


class RowResiduals(NamedTuple):
    """What derivatives need of each row; m is its largest logit, s = exp_shift(m)."""

    top_logit: jax.Array  # [...], m, 0 if that is -inf; a constant for derivatives
    inverse_sum: jax.Array  # [...], 1 / sum_j exp(x_j - s)
    other_prob: jax.Array  # [...], 1 - p_label without cancellation; 0 if x_label is -inf
    mean_gap: jax.Array  # [...], sum_j p_j (m - x_j)
    top_class: jax.Array  # [...], int32, -1 if it is another device's or there is none


def top_or_zero(top_logit: jax.Array) -> jax.Array:
    """The largest logit, 0 if that is -inf: -inf - -inf would be NaN."""
    return jnp.where(top_logit == -jnp.inf, 0.0, top_logit)


def exp_shift(plan: ColumnPlan, top_logit: jax.Array) -> jax.Array:
    """The shift s of exp(x - s): near the largest logit, and so coarse that x - s is exact."""
    all_classes = _parallel.class_count(plan.vocab_size, plan.axis_name)
    return coarse_shift(top_or_zero(top_logit), all_classes)


def forward_sweep(plan: ColumnPlan, parameters: Parameters, targets: Targets) -> RunningStats:
    """The statistics of all classes, with one product per tile."""
    shape = *plan.tile_shape, plan.tile_count
    zeros, low = jnp.zeros(shape, plan.dtype), jnp.full(shape, -jnp.inf, plan.dtype)
    no_class = RunningStats(low, zeros, zeros, zeros, zeros, zeros, jnp.zeros(shape, jnp.int32))
    uniform_prob = 1.0 / class_count(plan, targets.class_mask)

    def block_step(
        carry: tuple[RunningStats, jax.Array], index: jax.Array
    ) -> tuple[tuple[RunningStats, jax.Array], None]:
        block = take_block(plan, targets.class_mask, index)
        weights = take_weights(plan, parameters.kernel, parameters.bias, block)
        stats, seen = carry

        def tile_step(stats: RunningStats, number: jax.Array) -> tuple[RunningStats, None]:
            per_row = parameters.hidden, targets.labels, stats
            hidden, labels, tile_stats = take_tile(plan, per_row, number)
            x = tile_logits(plan, parameters, hidden, weights, block)
            tile_stats = update_stats(plan, tile_stats, x, labels, block, seen, uniform_prob)
            return put_tile(plan, stats, tile_stats, number), None

        stats = scan_indices(tile_step, stats, plan.tile_count)
        return (stats, seen + uniform_prob * block_class_count(plan, block)), None

    start = no_class, jnp.zeros((), plan.dtype)
    start = _parallel.match_varying(start, parameters, targets)
    stats, seen = scan_indices(block_step, start, plan.block_count)
    return stats if plan.axis_name is None else allreduce_stats(plan, stats, seen)


def update_stats(
    plan: ColumnPlan,
    stats: RunningStats,
    x: jax.Array,
    labels: jax.Array,
    block: Block,
    seen: jax.Array,
    uniform_prob: jax.Array | float,
) -> RunningStats:
    """The statistics with the logits of one more block added.

    Args:
        plan: The sizes of the sweep.
        stats: Statistics of the blocks before, of the rows of a tile.
        x: Logits `[*tile_shape, block_size]`, -inf at classes that are not to be added.
        labels: The local labels of the rows.
        block: The classes of the block.
        seen: The fraction of all V classes that `stats` is of, a scalar.
        uniform_prob: 1 / V, a scalar.
    """
    block_top = jnp.max(x, axis=-1)
    top = jnp.maximum(stats.top_logit, block_top)
    before, shift = rescale_stats(plan, stats, top, seen), exp_shift(plan, top)
    terms = jnp.exp(x - shift[..., None])
    is_top = x == top[..., None]
    position = position_in_block(plan, block, labels)
    label_logit = jnp.take_along_axis(x, position[..., None], axis=-1, mode="clip")[..., 0]
    bound = drop_label_bound(x, position)
    without_label = jnp.sum(jnp.exp(jnp.minimum(x - shift[..., None], bound)), axis=-1)
    # One argmax stays out of the sum: an earlier one if no logit exceeds it, else one of this tile.
    ties = jnp.sum(is_top, axis=-1, dtype=plan.dtype)
    ties = jnp.where(stats.top_logit == top, ties, ties - 1.0) * jnp.exp(top - shift)
    # A minimum over positions instead of `argmax`, which would gather classes that are sharded.
    positions = per_class(x, jnp.arange(plan.block_size, dtype=jnp.int32))
    first_top = jnp.min(jnp.where(is_top, positions, plan.block_size - 1), axis=-1)
    block_class = class_at(plan, block, first_top)
    earlier_class = jnp.minimum(stats.top_class, block_class)

    top = top_or_zero(top)[..., None]
    half_gap = (0.5 * top - 0.5 * x) * uniform_prob
    if block.class_mask is not None:
        half_gap = jnp.where(per_class(x, block.class_mask), half_gap, 0.0)
    return RunningStats(
        top_logit=before.top_logit,
        label_logit=jnp.where(position >= 0, label_logit, stats.label_logit),
        sum_without_label=before.sum_without_label + without_label,
        sum_without_top=before.sum_without_top
        + ties
        + jnp.sum(jnp.where(is_top, 0.0, terms), axis=-1),
        weighted_gap=before.weighted_gap + jnp.sum(terms * clamp_to_finite(top - x), axis=-1),
        half_mean_gap=before.half_mean_gap + jnp.sum(half_gap, axis=-1),
        top_class=jnp.where(
            block_top > stats.top_logit,
            block_class,
            jnp.where(block_top == stats.top_logit, earlier_class, stats.top_class),
        ),
    )


def rescale_stats(
    plan: ColumnPlan, stats: RunningStats, top_logit: jax.Array, seen: jax.Array
) -> RunningStats:
    """The same statistics relative to `top_logit`, which is at least the largest logit of them.

    The argmax that `sum_without_top` lacks is added where it is no longer the largest. `seen` is
    the fraction of all classes that the statistics are of.
    """
    shift, old_shift = exp_shift(plan, top_logit), exp_shift(plan, stats.top_logit)
    # Without any class there is nothing to rescale, and exp(old_shift - shift) may overflow.
    is_empty = stats.top_logit == -jnp.inf
    factor = jnp.where(is_empty, 0.0, jnp.exp(old_shift - shift))
    old_top_term = jnp.exp(stats.top_logit - old_shift)
    added_term = jnp.where(stats.top_logit == top_logit, 0.0, old_top_term)
    rise = jnp.where(is_empty, 0.0, clamp_to_finite(top_logit - stats.top_logit))
    half_rise = jnp.where(is_empty, 0.0, 0.5 * top_logit - 0.5 * stats.top_logit)
    return stats._replace(
        top_logit=top_logit,
        sum_without_label=stats.sum_without_label * factor,
        sum_without_top=(stats.sum_without_top + added_term) * factor,
        weighted_gap=stats.weighted_gap * factor
        + rise * factor * (stats.sum_without_top + old_top_term),
        half_mean_gap=stats.half_mean_gap + seen * half_rise,
    )


def clamp_to_finite(gap: jax.Array) -> jax.Array:
    """A gap of logits, the largest number if it is infinite: 0 times infinity would be NaN."""
    return jnp.minimum(gap, cast(float, jnp.finfo(gap.dtype).max))


def allreduce_stats(plan: ColumnPlan, stats: RunningStats, seen: jax.Array) -> RunningStats:
    """The statistics of the classes of all devices, from those of each device.

    `seen` is the fraction of all classes that this device has.
    """

    def psum(x: jax.Array) -> jax.Array:
        return _parallel.psum(x, plan.axis_name)

    top = _parallel.pmax(stats.top_logit, plan.axis_name)
    rescaled, has_top = rescale_stats(plan, stats, top, seen), stats.top_logit == top
    # Each device that has an argmax left one out; only one may be left out in all.
    ties = psum(has_top.astype(plan.dtype)) - 1.0
    offset = jax.lax.axis_index(plan.axis_name) * plan.vocab_size
    no_class = jnp.iinfo(jnp.int32).max
    top_class = jnp.where(has_top, stats.top_class + offset, no_class)
    return RunningStats(
        top_logit=top,
        label_logit=psum(stats.label_logit),
        sum_without_label=psum(rescaled.sum_without_label),
        sum_without_top=psum(rescaled.sum_without_top) + ties * jnp.exp(top - exp_shift(plan, top)),
        weighted_gap=psum(rescaled.weighted_gap),
        half_mean_gap=psum(rescaled.half_mean_gap),
        top_class=no_class - _parallel.pmax(no_class - top_class, plan.axis_name),
    )


def softmax_stats(plan: ColumnPlan, stats: RunningStats) -> tuple[SoftmaxStats, RowResiduals]:
    """The results of each row, and what their derivatives need, from the sums over all classes."""
    top, shift = top_or_zero(stats.top_logit), exp_shift(plan, stats.top_logit)
    shifted_top, label_term = jnp.exp(top - shift), jnp.exp(stats.label_logit - shift)
    # z - m, from the sum without the label: the label's term is small, or is the largest one.
    excess_by_label = log_sum_over_top(
        stats.sum_without_label, label_term, shifted_top, stats.label_logit == stats.top_logit
    )
    top_term = jnp.exp(stats.top_logit - shift)
    excess = log_sum_over_top(stats.sum_without_top, top_term, shifted_top, True)
    mean_gap = stats.weighted_gap / (stats.sum_without_top + top_term)
    results = SoftmaxStats(
        cross_entropy=(top - stats.label_logit) + excess_by_label,
        log_normalizer=stats.top_logit + excess,
        uniform_cross_entropy=2.0 * stats.half_mean_gap + excess_by_label,
        entropy=excess + mean_gap,
        top_class=stats.top_class,
        top_logit=stats.top_logit,
    )
    inverse_sum = safe_reciprocal(stats.sum_without_label + label_term)
    other_prob = stats.sum_without_label * inverse_sum
    has_class = stats.top_logit > -jnp.inf
    residuals = RowResiduals(
        top_logit=top,
        inverse_sum=inverse_sum,
        other_prob=jnp.where(stats.label_logit == -jnp.inf, 0.0, other_prob),
        # Not NaN, so that the gradient is 0 where no class is possible.
        mean_gap=jnp.where(stats.top_logit == -jnp.inf, 0.0, mean_gap),
        top_class=local_labels(
            jnp.where(has_class, stats.top_class, -1), plan.vocab_size, plan.axis_name
        ),
    )
    return results, residuals
