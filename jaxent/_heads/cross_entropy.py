"""Softmax cross-entropy with integer labels through a head: by rows or by columns of the logits."""

# pyright: strict, reportUnknownMemberType=false, reportUnnecessaryIsInstance=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent import _masks, _parallel
from jaxent._float import intervals
from jaxent._float.intervals import nan_outside, nan_where_invalid
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
    is_short = head.operand_dtype.itemsize == 2
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

    is_divided = axis_name is not None or _parallel.device_count(head.hidden, head.kernel) > 1

    def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
        if options == Options():
            return label_losses(logits, labels, None, axis_name)
        return _losses_of_options(logits, labels, options, axis_name, is_divided)

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


def _step_by_step(
    logits: jax.Array, labels: jax.Array, options: Options, axis_name: _parallel.AxisName
) -> jax.Array:
    """The losses of logits [rows, V] before soft cap and temperature."""
    logits = transform_logits(logits, options.soft_cap, options.temperature)
    return label_losses(logits, labels, options.label_smoothing, axis_name, options.z_loss)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _losses_of_options(
    logits: jax.Array,
    labels: jax.Array,
    options: Options,
    axis_name: _parallel.AxisName,
    is_divided: bool,
) -> jax.Array:
    """`_step_by_step`, with a derivative in the logits that is computed at once.

    Derivatives in the options, and second ones, are those of the steps.
    """
    del is_divided
    return _step_by_step(logits, labels, options, axis_name)


@functools.partial(_losses_of_options.defjvp, symbolic_zeros=True)
def _losses_of_options_jvp(
    axis_name: _parallel.AxisName, is_divided: bool, primals: Any, tangents: Any
) -> Dual:
    logits, labels, options = primals
    logits_dot, _, options_dot = tangents
    losses, grads = _losses_and_grads(logits, labels, options, axis_name, is_divided)
    losses_dot = dot_tangent(grads, logits_dot, axis_name)
    dots = {
        name: dot
        for name, dot in options_dot._asdict().items()
        if dot is not None and not isinstance(dot, SymbolicZero)
    }
    if dots:

        def losses_of(trained: dict[str, jax.Array]) -> jax.Array:
            return _step_by_step(logits, labels, options._replace(**trained), axis_name)

        trained = {name: getattr(options, name) for name in dots}
        losses_dot += jax.jvp(losses_of, (trained,), (dots,))[1]
    return losses, broadcast_tangent(losses_dot, losses)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _losses_and_grads(
    logits: jax.Array,
    labels: jax.Array,
    options: Options,
    axis_name: _parallel.AxisName,
    is_divided: bool,
) -> tuple[jax.Array, jax.Array]:
    """`_losses_of_options` and their gradients in the logits, with no other array of that size."""

    def at_once(
        logits: jax.Array, labels: jax.Array, options: Options
    ) -> tuple[jax.Array, jax.Array]:
        # Scalars that do not depend on the chunk XLA would broadcast, and keep, outside the loop.
        labels, options = jax.lax.optimization_barrier((labels, options))
        smoothing, z_loss = options.label_smoothing, options.z_loss
        rows, given = _check_values(logits, labels, smoothing, axis_name, z_loss)
        transform = None
        if (options.soft_cap, options.temperature) != (None, None):
            transform = functools.partial(
                transform_logits, soft_cap=options.soft_cap, temperature=options.temperature
            )
        losses, grads = cross_entropy.loss_and_grad(*given, transform=transform)
        losses = rows.losses(losses)
        # Gradients wait for all sums, so that they may be written where the logits are.
        return losses, nan_where_invalid(grads, ~jnp.isnan(losses)[..., None])

    if is_divided:
        return at_once(logits, labels, options)

    def in_blocks(
        logits: jax.Array, labels: jax.Array, options: Options
    ) -> tuple[jax.Array, jax.Array]:
        return _map_blocks(lambda x, y: at_once(x, y, options), logits, labels)

    return jax.lax.platform_dependent(logits, labels, options, cpu=in_blocks, default=at_once)


def _map_blocks(
    function: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]],
    logits: jax.Array,
    labels: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Losses and gradients of the logits [rows, V], which those replace a few rows at a time.

    What XLA for CPUs cannot fuse then stays in the cache.
    """
    (rows, classes), size = logits.shape, 1
    if isinstance(rows, int):
        size = min(rows, max(1, 2**18 // classes))

    def step(
        number: jax.Array, results: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        first = number * size
        start = jnp.minimum(first, rows - size)
        block = [jax.lax.dynamic_slice_in_dim(array, start, size) for array in (*results, labels)]
        # All is read before anything is written: else XLA would copy the logits of all rows.
        (losses, x, y), start = jax.lax.optimization_barrier((block, start))
        new_losses, grads = function(x, y)
        # The last block may begin among rows that are done.
        is_new = start + jnp.arange(size) >= first
        block = jnp.where(is_new, new_losses, losses), jnp.where(is_new[:, None], grads, x)
        losses, grads = (
            jax.lax.dynamic_update_slice_in_dim(whole, part, start, 0)
            for whole, part in zip(results, block, strict=True)
        )
        return losses, grads

    losses = _parallel.match_varying(jnp.zeros(rows, logits.dtype), logits, labels)
    return jax.lax.fori_loop(0, -(-rows // size), step, (losses, logits))


@_losses_and_grads.defjvp
def _losses_and_grads_jvp(
    axis_name: _parallel.AxisName, is_divided: bool, primals: Any, tangents: Any
) -> Any:
    logits, labels, options = primals

    def step_by_step(logits: jax.Array, options: Options) -> tuple[jax.Array, jax.Array]:
        def losses_of(logits: jax.Array) -> jax.Array:
            return _step_by_step(logits, labels, options, axis_name)

        losses, pull_back = jax.vjp(losses_of, logits)
        return losses, pull_back(jnp.ones_like(losses))[0]

    _, dots = jax.jvp(step_by_step, (logits, options), (tangents[0], tangents[2]))
    return _losses_and_grads(logits, labels, options, axis_name, is_divided), dots
