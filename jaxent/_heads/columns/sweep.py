"""Softmax statistics of a head from checked arguments, and the rule that differentiates them."""

# pyright: strict, reportUnknownMemberType=false

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

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
    join_segments,
    plan_columns,
    split_segments,
    tile_rows,
    untile_rows,
)
from jaxent._heads.columns.tangents import PerParameter, Residuals, stats_tangents
from jaxent._heads.linear_map import linear_map
from jaxent._heads.sizes import plan_platforms, run_plan
from jaxent._parallel import with_auto_axes

_P = TypeVar("_P", Parameters, PerParameter)
_T = TypeVar("_T")  # a tree of arrays


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
    plans = plan_platforms(functools.partial(plan_columns, head, block_size, axis_name))
    classes = _parallel.class_count(head.vocabulary_size, axis_name)

    is_valid = (labels >= 0) & (labels < classes)
    labels = jnp.where(is_valid, labels, 0).astype(jnp.int32)
    labels = local_labels(labels, head.vocabulary_size, axis_name)
    if class_where is not None:
        is_class = class_where[labels]
        if axis_name is not None:
            is_class = _parallel.any_over(is_class & (labels >= 0), axis_name)
        is_valid &= is_class
    if where is not None:
        # A masked row's hidden state must reach no product, nor NaN of its label the result.
        is_valid |= ~where
        hidden = jnp.where(where[..., None], hidden, jnp.zeros((), hidden.dtype))
    parameters = Parameters(
        # A single row without leading axes is tiled as [1].
        hidden=hidden.reshape(*(shape or (1,)), hidden.shape[-1]),
        kernel=head.kernel,
        bias=bias,
        soft_cap=None if soft_cap is None else soft_cap.astype(head.dtype),
        temperature=None if temperature is None else temperature.astype(head.dtype),
    )
    targets = Targets(labels.reshape(shape or (1,)), class_where)
    results, _ = _differentiable_stats(
        plans, axis_name, *_parallel.match_varying((parameters, targets))
    )
    stats = SoftmaxStats(*(stat.reshape(shape) for stat in results))
    stats = stats._replace(cross_entropy=nan_where_invalid(stats.cross_entropy, is_valid))
    if where is not None:
        stats = SoftmaxStats(*(jnp.where(where, s, jnp.zeros((), s.dtype)) for s in stats))
    return stats


def _differentiable_stats(
    plans: tuple[ColumnPlan, ...],
    axis_name: _parallel.AxisName,
    parameters: Parameters,
    targets: Targets,
) -> tuple[SoftmaxStats, RowResiduals]:
    """The statistics [...], and residuals that are differentiable as well.

    A sweep's transpose is written by hand, in `backward`; JAX differentiates that once more for
    second derivatives, hence the residuals have tangents too.
    """

    @jax.custom_jvp
    def stats(parameters: Parameters, targets: Targets) -> tuple[SoftmaxStats, RowResiduals]:
        def run(plan: ColumnPlan) -> tuple[SoftmaxStats, RowResiduals]:
            tiled = _tile_parameters(plan, parameters), _tile_targets(plan, targets)
            return _untile(plan, softmax_stats(plan, forward_sweep(plan, *tiled)))

        return run_plan(plans, run)

    @functools.partial(stats.defjvp, symbolic_zeros=True)
    def stats_jvp(
        primals: tuple[Parameters, Targets], tangents: tuple[Any, Any]
    ) -> tuple[tuple[SoftmaxStats, RowResiduals], tuple[SoftmaxStats, RowResiduals]]:
        parameters, targets = primals
        results, rows = stats(parameters, targets)
        dots = PerParameter(*(None if _is_zero(dot) else dot for dot in tangents[0]))
        wanted = Wanted(*(dot is not None for dot in dots))
        local_tangents = linear_map(
            functools.partial(_stats_tangents, plans),
            functools.partial(_stats_transpose, plans, wanted),
            Residuals(parameters, targets, rows),
            dots,
        )
        cross_entropy, log_normalizer, uniform_cross_entropy, entropy, top_logit = (
            _parallel.psum(tangent, axis_name) for tangent in local_tangents
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


# From rows as given to tiles, on each platform with its own plan, and back.


def _stats_tangents(
    plans: tuple[ColumnPlan, ...], residuals: Residuals, dots: PerParameter
) -> tuple[jax.Array, ...]:
    """Tangents [...] of the fields of `PerStat`, sums over the classes of this device."""

    def run(plan: ColumnPlan) -> tuple[jax.Array, ...]:
        tiled = _tile_residuals(plan, residuals), _tile_parameters(plan, dots)
        return _untile(plan, stats_tangents(plan, *tiled))

    return run_plan(plans, run)


def _stats_transpose(
    plans: tuple[ColumnPlan, ...],
    wanted: Wanted,
    residuals: Residuals,
    cotangents: tuple[jax.Array | None, ...],
) -> PerParameter:
    """The transpose of `_stats_tangents`: gradients of the wanted parameters, None elsewhere."""

    def run(plan: ColumnPlan) -> PerParameter:
        tiles: tuple[jax.Array | None, ...] = jax.tree.map(
            functools.partial(tile_rows, plan, pad_with_rows=False), cotangents
        )
        grads = iter(stats_transpose(plan, wanted, _tile_residuals(plan, residuals), tiles))
        return _untile_grads(
            plan, PerParameter(*(next(grads) if want else None for want in wanted))
        )

    return run_plan(plans, run)


def _tile_parameters(plan: ColumnPlan, given: _P) -> _P:
    """`Parameters`, or tangents of them, with their rows in tiles and their classes in segments."""
    hidden, kernel, bias = given.hidden, given.kernel, given.bias
    return given._replace(
        hidden=None if hidden is None else tile_rows(plan, hidden),
        kernel=None if kernel is None else split_segments(plan, kernel, plan.vocab_axis),
        bias=None if bias is None else split_segments(plan, bias, 0),
    )


def _tile_targets(plan: ColumnPlan, targets: Targets) -> Targets:
    mask = targets.class_mask
    segments = None if mask is None else split_segments(plan, mask, 0)
    return Targets(tile_rows(plan, targets.labels), segments)


def _tile_residuals(plan: ColumnPlan, residuals: Residuals) -> Residuals:
    rows: RowResiduals = jax.tree.map(functools.partial(tile_rows, plan), residuals.rows)
    parameters = _tile_parameters(plan, residuals.parameters)
    return Residuals(parameters, _tile_targets(plan, residuals.targets), rows)


def _untile(plan: ColumnPlan, tree: _T) -> _T:
    """The arrays of a tree, tiles of rows, as rows."""
    return jax.tree.map(functools.partial(untile_rows, plan), tree)


def _untile_grads(plan: ColumnPlan, grads: PerParameter) -> PerParameter:
    """The inverse of `_tile_parameters`."""
    hidden, kernel, bias = grads.hidden, grads.kernel, grads.bias
    return grads._replace(
        hidden=None if hidden is None else untile_rows(plan, hidden),
        kernel=None if kernel is None else join_segments(plan, kernel, plan.vocab_axis),
        bias=None if bias is None else join_segments(plan, bias, 0),
    )


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, custom_derivatives.SymbolicZero)
