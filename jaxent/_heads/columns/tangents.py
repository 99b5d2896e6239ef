"""Derivatives of the statistics in the logits of a tile, and the sweep of forward-mode tangents."""

# pyright: strict, reportUnknownMemberType=false

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent import _parallel
from jaxent._heads.columns.blocks import (
    Block,
    Parameters,
    Targets,
    checkpoint,
    class_count,
    one_hot,
    put_tile,
    scan_indices,
    take_block,
    take_tile,
    take_weights,
    tile_logits,
)
from jaxent._heads.columns.forward import RowResiduals, exp_shift
from jaxent._heads.columns.plan import ColumnPlan


class Residuals(NamedTuple):
    """What the derivatives of a sweep are functions of."""

    parameters: Parameters
    targets: Targets
    rows: RowResiduals  # [*tile_shape, tile_count] each


class PerParameter(NamedTuple):
    """Tangents or gradients of `Parameters`, None for a parameter that is not differentiated."""

    hidden: jax.Array | None
    kernel: jax.Array | None
    bias: jax.Array | None
    soft_cap: jax.Array | None
    temperature: jax.Array | None


class PerStat(NamedTuple):
    """Cotangents [...] of the differentiable `SoftmaxStats`, None where nothing flows back."""

    cross_entropy: jax.Array | None
    log_normalizer: jax.Array | None
    uniform_cross_entropy: jax.Array | None
    entropy: jax.Array | None
    top_logit: jax.Array | None


NO_COTANGENTS = PerStat(None, None, None, None, None)


def logits_grad(
    plan: ColumnPlan,
    x: jax.Array,
    labels: jax.Array,
    row: RowResiduals,
    block: Block,
    count: jax.Array | float,
    cotangents: PerStat,
) -> jax.Array:
    """The cotangent of the logits of a tile, [*tile_shape, block_size].

    A statistic with cotangent c adds to it, with probabilities p and the largest logit m:

        cross_entropy          c p_j, and -c (1 - p_j) at the label
        log_normalizer         c p_j
        uniform_cross_entropy  c (p_j - 1 / V)
        entropy                c p_j (m - x_j - sum_k p_k (m - x_k))
        top_logit              c at the top class

    Args:
        plan: The sizes of the sweep.
        x: Logits, -inf at masked classes.
        labels: The local labels of the rows.
        row: What derivatives need of each row.
        block: The classes of the tile.
        count: The number V of all classes.
        cotangents: Those of the rows; at least one is not None.
    """
    label, normalizer, uniform, entropy, top_logit = cotangents
    shift, inverse_sum = exp_shift(plan, row.top_logit), row.inverse_sum
    scaled = [c * inverse_sum for c in (normalizer, uniform) if c is not None]
    at_label, scaled_label = None, None
    if label is not None:
        at_label, scaled_label = -row.other_prob * label, label * inverse_sum
    scaled_sum = sum(scaled[1:], scaled[0]) if scaled else None
    # The barrier keeps XLA from computing what belongs to a row again for each class.
    shift, inverse_sum, scaled_sum, at_label, scaled_label, labels = jax.lax.optimization_barrier(
        (shift, inverse_sum, scaled_sum, at_label, scaled_label, labels)
    )
    grad: jax.Array | float = 0.0
    if scaled_sum is not None:
        grad = weighted_exp(x, shift, scaled_sum)
    if entropy is not None:
        p = weighted_exp(x, shift, inverse_sum)
        # At p = 0 the gap may be infinite, and 0 times infinity would be NaN.
        gap = jnp.where(p > 0.0, row.top_logit[..., None] - x, 0.0)
        grad += p * (gap - row.mean_gap[..., None]) * entropy[..., None]
    if at_label is not None and scaled_label is not None:
        is_label = one_hot(plan, block, labels)
        grad += jnp.where(is_label, at_label[..., None], weighted_exp(x, shift, scaled_label))
    if uniform is not None:
        grad -= jnp.where(x == -jnp.inf, 0.0, uniform[..., None] / count)
    if top_logit is not None:
        grad += jnp.where(one_hot(plan, block, row.top_class), top_logit[..., None], 0.0)
    return jnp.broadcast_to(grad, x.shape)


@jax.custom_jvp
def weighted_exp(x: jax.Array, shift: jax.Array, weight: jax.Array) -> jax.Array:
    """The product exp(x - shift) weight, of logits [..., V] and two numbers per row, [...].

    The exponential may be near the largest number, the weight near the smallest. The shift counts
    as a constant.
    """
    return jnp.exp(x - shift[..., None]) * weight[..., None]


@weighted_exp.defjvp
def _weighted_exp_jvp(
    primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    x, shift, weight = primals
    x_dot, _, weight_dot = tangents
    y = weighted_exp(x, shift, weight)
    # JAX would multiply the exponential by x_dot first, which overflows for large directions.
    return y, y * x_dot + weighted_exp(x, shift, weight_dot)


def stats_tangents(
    plan: ColumnPlan, residuals: Residuals, dots: PerParameter
) -> tuple[jax.Array, ...]:
    """Tangents [*tile_shape, tile_count] of the fields of `PerStat`, linear in `dots`.

    They are sums over the classes of this device.
    """
    parameters, targets, rows = residuals
    zeros = jnp.zeros((*plan.tile_shape, plan.tile_count), plan.dtype)
    zeros = _parallel.match_varying(zeros, residuals, dots)

    def block_step(
        totals: tuple[jax.Array, ...], index: jax.Array
    ) -> tuple[tuple[jax.Array, ...], None]:
        tangents_of_tile = checkpoint(functools.partial(tile_tangents, plan, index))

        def tile_step(
            totals: tuple[jax.Array, ...], number: jax.Array
        ) -> tuple[tuple[jax.Array, ...], None]:
            known = take_tile(plan, totals, number)
            added = tangents_of_tile(parameters, targets, rows, dots, number)
            return put_tile(plan, totals, jax.tree.map(jnp.add, known, added), number), None

        return scan_indices(tile_step, totals, plan.tile_count), None

    return scan_indices(block_step, (zeros,) * len(PerStat._fields), plan.block_count)


def tile_tangents(
    plan: ColumnPlan,
    block_index: jax.Array,
    parameters: Parameters,
    targets: Targets,
    rows: RowResiduals,
    dots: PerParameter,
    number: jax.Array,
) -> tuple[jax.Array, ...]:
    """What the classes of one block add to the tangents [*tile_shape] of one tile of rows."""
    hidden, labels, row = take_tile(plan, (parameters.hidden, targets.labels, rows), number)
    block = take_block(plan, targets.class_mask, block_index)
    parameters = parameters._replace(hidden=hidden)
    if dots.hidden is not None:
        dots = dots._replace(hidden=take_tile(plan, dots.hidden, number))
    given_dots = {name: dot for name, dot in dots._asdict().items() if dot is not None}
    points = {name: getattr(parameters, name) for name in given_dots}

    def logits(values: dict[str, jax.Array]) -> jax.Array:
        given = parameters._replace(**values)
        weights = take_weights(plan, given.kernel, given.bias, block)
        return tile_logits(plan, given, given.hidden, weights, block)

    x, x_dot = jax.jvp(logits, (points,), (given_dots,))
    count = class_count(plan, targets.class_mask)
    ones = jnp.ones_like(row.inverse_sum)
    units = [NO_COTANGENTS._replace(**{name: ones}) for name in PerStat._fields]
    grads = [logits_grad(plan, x, labels, row, block, count, unit) for unit in units]
    return tuple(jnp.sum(grad * x_dot, axis=-1) for grad in grads)
