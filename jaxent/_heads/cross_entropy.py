"""Softmax cross-entropy with integer labels through a head: by rows or by columns of the logits."""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent import _masks, _parallel
from jaxent._float import intervals
from jaxent._float.intervals import nan_outside
from jaxent._float.tangents import Dual, broadcast_tangent, dot_tangent
from jaxent._heads.checks import Head
from jaxent._heads.columns.sweep import linear_softmax_stats
from jaxent._heads.logits import transform_logits
from jaxent._heads.rows import sweep_rows
from jaxent._kernels import cross_entropy
from jaxent._losses.reduction import divide
from jaxent._masks import scale_loss, zero_where_masked


class Options(NamedTuple):
    """Scalars, or None for what changes nothing."""

    soft_cap: jax.Array | None = None
    temperature: jax.Array | None = None
    label_smoothing: jax.Array | None = None
    z_loss: jax.Array | None = None


@functools.partial(
    jax.jit,
    static_argnames=("reduction", "sweep", "chunk_size", "block_size", "axis_name"),
    inline=True,
)
def softmax_cross_entropy(
    head: Head,
    labels: jax.Array,
    options: Options,
    *,
    reduction: str,
    sweep: str | None,
    chunk_size: int | None = None,
    block_size: int | None = None,
    axis_name: _parallel.AxisName = None,
) -> jax.Array:
    """`jaxent.linear_softmax_cross_entropy` of checked arguments; `sweep` None is chosen here."""
    options = Options(*(x if x is None else x.astype(head.dtype) for x in options))
    if (sweep or faster_sweep(head, reduction)) == "rows":
        return _by_rows(head, labels, options, reduction, chunk_size, axis_name)
    losses = _by_columns(head, labels, options, block_size, axis_name)
    return _reduce(losses, head, reduction)


def faster_sweep(head: Head, reduction: str) -> str:
    """The sweep that is faster for these shapes and dtypes.

    Time of columns over rows, value and gradients on two CPU cores (benchmarks/results.md):

    * a mean in float32: 0.75 at D = 128, 0.89 to 1.02 at 256, 1.16 to 1.25 from 512 on, where the
      fourth product outweighs the passes over larger tiles; in bfloat16 1.01 to 1.5;
    * one loss per row: 0.62 to 0.95, four products against four.

    The choice does not depend on what is differentiated, so neither do the bits of the value: with
    a frozen kernel, columns take 1.09 to 1.56 times as long, three products against two.
    """
    is_short = head.hidden.dtype.itemsize == 2 and head.kernel.dtype.itemsize == 2
    if reduction != "none" and (is_short or head.hidden.shape[-1] > 256):
        return "rows"
    return "columns"


def _by_rows(
    head: Head,
    labels: jax.Array,
    options: Options,
    reduction: str,
    chunk_size: int | None,
    axis_name: _parallel.AxisName,
) -> jax.Array:
    """The reduced losses, a chunk of rows at a time."""
    axes = _parallel.varying_axes(labels)
    options = Options(*(x if x is None else _parallel.pvary(x, axes) for x in options))

    def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return _losses_of_options(logits, labels, options, axis_name)

    return sweep_rows(loss_fn, (head,), (labels,), reduction, chunk_size)


def _by_columns(
    head: Head,
    labels: jax.Array,
    options: Options,
    block_size: int | None,
    axis_name: _parallel.AxisName,
) -> jax.Array:
    """One loss per row, [...], a block of classes at a time."""
    transform = options.soft_cap, options.temperature
    stats = linear_softmax_stats(head, labels, None, *transform, block_size, axis_name)
    losses = stats.cross_entropy
    if options.label_smoothing is not None:
        smoothing = nan_outside(options.label_smoothing, 0.0, 1.0)
        losses = scale_loss(1.0 - smoothing, losses)
        losses += scale_loss(smoothing, stats.uniform_cross_entropy)
    if options.z_loss is not None:
        losses += nan_outside(options.z_loss, 0.0, jnp.inf, "[)") * jnp.square(stats.log_normalizer)
    return losses


def _reduce(losses: jax.Array, head: Head, reduction: str) -> jax.Array:
    """The losses with the weights and the mask of a head, reduced."""
    weights = jnp.ones_like(losses) if head.weights is None else head.weights.astype(losses.dtype)
    weights = zero_where_masked(weights, head.where)
    losses = zero_where_masked(losses, head.where) * weights
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    return divide(total, jnp.sum(weights)) if reduction == "mean" else total


@functools.partial(jax.jit, static_argnames="axis_name", inline=True)
def label_losses(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: jax.Array | None,
    axis_name: _parallel.AxisName,
    z_loss: jax.Array | None = None,
) -> jax.Array:
    """Cross-entropy of logits [..., V] and labels [...], which are NaN where there is no class."""
    rows, given = _check_values(logits, labels, label_smoothing, axis_name, z_loss)
    return rows.losses(cross_entropy.label_cross_entropy(*given))


def _check_values(
    logits: jax.Array,
    labels: jax.Array,
    label_smoothing: jax.Array | None,
    axis_name: _parallel.AxisName,
    z_loss: jax.Array | None,
) -> tuple[_masks.MaskedLabelledRows, tuple[Any, ...]]:
    """The rows, valid where labels and options are, and the arguments of the kernel."""
    class_axes = (logits.ndim - 1,)
    rows = _masks.mask_labelled_rows(logits, labels, None, class_axes, _masks.LOGITS, axis_name)
    dtype = rows.values.dtype
    if label_smoothing is not None:
        label_smoothing, is_valid = intervals.valid_option(label_smoothing, dtype, 0.0, 1.0)
        rows = rows.valid_only_if(is_valid)
    if z_loss is not None:
        z_loss, is_valid = intervals.valid_option(z_loss, dtype, 0.0, math.inf)
        rows = rows.valid_only_if(is_valid)
    given = rows.values, rows.labels, label_smoothing, rows.class_mask, axis_name, z_loss
    return rows, given


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _losses_of_options(
    logits: jax.Array, labels: jax.Array, options: Options, axis_name: _parallel.AxisName
) -> jax.Array:
    """The losses of logits [rows, V] before soft cap and temperature, step by step.

    So are the derivatives in the options, and all second ones. That in the logits, of which there
    are many and of which a step of training has need, is computed at once: see `_losses_and_grads`.
    """
    logits = transform_logits(logits, options.soft_cap, options.temperature)
    return label_losses(logits, labels, options.label_smoothing, axis_name, options.z_loss)


@functools.partial(_losses_of_options.defjvp, symbolic_zeros=True)
def _losses_of_options_jvp(axis_name: _parallel.AxisName, primals: Any, tangents: Any) -> Dual:
    logits, labels, options = primals
    logits_dot, _, options_dot = tangents
    losses, grads = _losses_and_grads(logits, labels, options, axis_name)
    losses_dot = dot_tangent(grads, logits_dot, axis_name)
    dots = [dot for dot in options_dot if dot is not None and not isinstance(dot, SymbolicZero)]
    if dots:

        def of_options(*given: jax.Array) -> jax.Array:
            values = iter(given)
            trained = (
                x if dot is None or isinstance(dot, SymbolicZero) else next(values)
                for x, dot in zip(options, options_dot, strict=True)
            )
            return _losses_of_options.fun(logits, labels, Options(*trained), axis_name)

        pairs = zip(options, options_dot, strict=True)
        given = [x for x, dot in pairs if dot is not None and not isinstance(dot, SymbolicZero)]
        losses_dot += jax.jvp(of_options, given, dots)[1]
    return losses, broadcast_tangent(losses_dot, losses)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _losses_and_grads(
    logits: jax.Array, labels: jax.Array, options: Options, axis_name: _parallel.AxisName
) -> tuple[jax.Array, jax.Array]:
    """`_losses_of_options` and its derivative in the logits, which nothing of their size outlives."""
    # Broadcast scalars that do not depend on the chunk XLA would keep, as large as the logits.
    labels, options = jax.lax.optimization_barrier((labels, options))
    rows, given = _check_values(logits, labels, options.label_smoothing, axis_name, options.z_loss)

    def transform(x: jax.Array) -> jax.Array:
        return transform_logits(x, options.soft_cap, options.temperature)

    losses, grads = cross_entropy.loss_and_grad(*given, transform)
    return rows.losses(losses), intervals.nan_where_invalid(grads, rows.valid[..., None])


@_losses_and_grads.defjvp
def _losses_and_grads_jvp(axis_name: _parallel.AxisName, primals: Any, tangents: Any) -> Any:
    logits, labels, options = primals

    def step_by_step(logits: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
        def losses_of(logits: jax.Array) -> jax.Array:
            return _losses_of_options.fun(logits, labels, options, axis_name)

        losses, pull_back = jax.vjp(losses_of, logits)
        return losses, pull_back(jnp.ones_like(losses))[0]

    _, dots = jax.jvp(step_by_step, (logits, options), (tangents[0], tangents[2]))
    return _losses_and_grads(logits, labels, options, axis_name), dots
