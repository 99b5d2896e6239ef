"""Softmax statistics of a head from checked arguments, and the rule that differentiates them."""

# pyright: strict, reportUnknownMemberType=false

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
from jax import custom_derivatives

from jaxent import _parallel
from jaxent._float.intervals import nan_where_invalid
from jaxent._heads.checks import Head
from jaxent._heads.columns.backward import Wanted, stats_transpose
from jaxent._heads.columns.blocks import Parameters, Targets, local_labels
from jaxent._heads.columns.forward import (
    RowResiduals,
    SoftmaxStats,
    forward_sweep,
    softmax_stats,
)
from jaxent._heads.columns.plan import (
    ColumnPlan,
    plan_columns,
    split_segments,
    tile_rows,
    untile_rows,
)
from jaxent._heads.columns.tangents import PerParameter, Residuals, stats_tangents
from jaxent._heads.linear_map import linear_map
from jaxent._parallel import with_auto_axes


def linear_softmax_stats(
    head: Head,
    labels: jax.Array,
    class_where: jax.Array | None,
    soft_cap: jax.Array | None,
    temperature: jax.Array | None,
    block_size: int | None,
    axis_name: _parallel.AxisName,
) -> SoftmaxStats:
    """The statistics that `jaxent.linear_softmax` returns, from checked arguments."""
    head = dataclasses.replace(head, weights=None)
    traced = cast(Callable[..., SoftmaxStats], _linear_softmax_stats)
    sweep = functools.partial(traced, block_size=block_size, axis_name=axis_name)
    given = head, labels, class_where, soft_cap, temperature
    return with_auto_axes(sweep, *given, example=head.hidden, ndim=len(head.leading_shape))


@functools.partial(jax.jit, static_argnames=("block_size", "axis_name"), inline=True)
def _linear_softmax_stats(
    head: Head,
    labels: jax.Array,
    class_where: jax.Array | None,
    soft_cap: jax.Array | None,
    temperature: jax.Array | None,
    block_size: int | None,
    axis_name: _parallel.AxisName,
) -> SoftmaxStats:
    hidden, bias, where, shape = head.hidden, head.bias, head.where, head.leading_shape
    if math.prod(shape) == 0:
        empty, index = jnp.zeros(shape, head.dtype), jnp.zeros(shape, jnp.int32)
        return SoftmaxStats(empty, empty, empty, empty, index, empty)
    plan = plan_columns(head, block_size, axis_name)

    is_valid = (labels >= 0) & (labels < _parallel.class_count(head.vocabulary_size, axis_name))
    labels = local_labels(plan, jnp.where(is_valid, labels, 0).astype(jnp.int32))
    if class_where is not None:
        is_class = class_where[labels]
        if axis_name is not None:
            is_class = _parallel.any_over(is_class & (labels >= 0), axis_name)
        is_valid &= is_class
    if where is not None:
        # A masked row's hidden state must reach no product, nor NaN of its label the result.
        is_valid |= ~where
        hidden = jnp.where(where[..., None], hidden, jnp.zeros((), hidden.dtype))
    if not shape:  # A single row is tiled as [1].
        hidden, labels = hidden[None], labels[None]
    parameters = Parameters(
        hidden=tile_rows(plan, hidden),
        kernel=split_segments(plan, head.kernel, head.vocab_axis),
        bias=None if bias is None else split_segments(plan, bias, 0),
        soft_cap=None if soft_cap is None else soft_cap.astype(head.dtype),
        temperature=None if temperature is None else temperature.astype(head.dtype),
    )
    class_mask = None if class_where is None else split_segments(plan, class_where, 0)
    targets = Targets(tile_rows(plan, labels), class_mask)
    tiles, _ = _differentiable_stats(plan, *_parallel.match_varying((parameters, targets)))
    stats = SoftmaxStats(*(untile_rows(plan, stat).reshape(shape) for stat in tiles))
    stats = stats._replace(cross_entropy=nan_where_invalid(stats.cross_entropy, is_valid))
    if where is not None:
        stats = SoftmaxStats(*(jnp.where(where, s, jnp.zeros((), s.dtype)) for s in stats))
    return stats


def _differentiable_stats(
    plan: ColumnPlan, parameters: Parameters, targets: Targets
) -> tuple[SoftmaxStats, RowResiduals]:
    """The statistics [*tile_shape, tile_count], and residuals that are differentiable as well.

    A sweep's transpose is written by hand, in `backward`; JAX differentiates that once more for
    second derivatives, hence the residuals have tangents too.
    """

    @jax.custom_jvp
    def stats(parameters: Parameters, targets: Targets) -> tuple[SoftmaxStats, RowResiduals]:
        return softmax_stats(plan, forward_sweep(plan, parameters, targets))

    @functools.partial(stats.defjvp, symbolic_zeros=True)
    def stats_jvp(
        primals: tuple[Parameters, Targets], tangents: tuple[Any, Any]
    ) -> tuple[tuple[SoftmaxStats, RowResiduals], tuple[SoftmaxStats, RowResiduals]]:
        parameters, targets = primals
        results, rows = stats(parameters, targets)
        dots = PerParameter(*(None if _is_zero(dot) else dot for dot in tangents[0]))
        wanted = Wanted(*(dot is not None for dot in dots))
        local_tangents = linear_map(
            functools.partial(stats_tangents, plan),
            functools.partial(stats_transpose, plan, wanted),
            Residuals(parameters, targets, rows),
            dots,
        )
        cross_entropy, log_normalizer, uniform_cross_entropy, entropy, top_logit = (
            _parallel.psum(tangent, plan.axis_name) for tangent in local_tangents
        )
        results_dot = SoftmaxStats(
            cross_entropy=cross_entropy,
            log_normalizer=log_normalizer,
            uniform_cross_entropy=uniform_cross_entropy,
            entropy=entropy,
            top_class=custom_derivatives.zero_from_primal(results.top_class),
            top_logit=top_logit,
        )
        rows_dot = RowResiduals(
            top_logit=jnp.zeros_like(rows.top_logit),
            inverse_sum=-rows.inverse_sum * log_normalizer,
            other_prob=jnp.exp(-results.cross_entropy) * cross_entropy,
            mean_gap=entropy - log_normalizer,
            top_class=custom_derivatives.zero_from_primal(rows.top_class),
        )
        return (results, rows), (results_dot, rows_dot)

    return stats(parameters, targets)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, custom_derivatives.SymbolicZero)
