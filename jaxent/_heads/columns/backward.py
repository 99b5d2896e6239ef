"""The backward sweep: gradients of the parameters from cotangents of the statistics.

It computes the logits of each tile again, their gradient, and that gradient's products with the
kernel and with the hidden states: three products per tile. Beside the gradients it holds nothing
larger than a tile.
"""

# pyright: strict, reportUnknownMemberType=false

import functools
from collections.abc import Callable
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp

from jaxent import _parallel
from jaxent._compat import updates_in_loops_are_slow
from jaxent._heads.columns.blocks import (
    Block,
    BlockWeights,
    Parameters,
    Targets,
    add_classes,
    checkpoint,
    class_count,
    head_logits,
    kernel_grad,
    mask_classes,
    project,
    put_tile,
    scan_indices,
    sum_parts,
    take_block,
    take_tile,
    take_weights,
    view_as,
)
from jaxent._heads.columns.forward import RowResiduals
from jaxent._heads.columns.plan import ColumnPlan
from jaxent._heads.columns.tangents import (
    PerParameter,
    PerStat,
    Residuals,
    logits_grad,
    stats_tangents,
)
from jaxent._heads.linear_map import linear_map
from jaxent._heads.logits import contract

LogitsAndVjp = tuple[
    jax.Array,
    Callable[[jax.Array], tuple[jax.Array, jax.Array | None, jax.Array | None, jax.Array | None]],
]


class Wanted(NamedTuple):
    """Which parameters are differentiated."""

    hidden: bool
    kernel: bool
    bias: bool
    soft_cap: bool
    temperature: bool


def stats_transpose(
    plan: ColumnPlan,
    wanted: Wanted,
    residuals: Residuals,
    cotangents: tuple[jax.Array | None, ...],
) -> tuple[jax.Array, ...]:
    """The transpose of `stats_tangents`: gradients of the wanted parameters, in their order."""
    sweep = functools.partial(backward_sweep, plan, wanted)
    if not (wanted.kernel and updates_in_loops_are_slow(residuals.parameters.kernel.dtype)):
        return sweep(residuals, cotangents)

    def transpose(residuals: Residuals, dots: tuple[jax.Array | None, ...]) -> list[jax.Array]:
        given = iter(dots)
        all_dots = PerParameter(*(next(given) if want else None for want in wanted))
        tangents = stats_tangents(plan, residuals, all_dots)
        pairs = zip(tangents, cotangents, strict=True)
        return [tangent for tangent, cotangent in pairs if cotangent is not None]

    # Integers cannot be differentiated: they hold the gradient only in what is compiled.
    as_integers = functools.partial(sweep, storage_dtype=jnp.dtype(jnp.uint16))
    return linear_map(sweep, transpose, residuals, cotangents, compiled=as_integers)


def backward_sweep(
    plan: ColumnPlan,
    wanted: Wanted,
    residuals: Residuals,
    cotangents: tuple[jax.Array | None, ...],
    storage_dtype: jnp.dtype | None = None,
) -> tuple[jax.Array, ...]:
    """Gradients of the wanted parameters, in their order and dtypes.

    Args:
        plan: The sizes of the sweep.
        wanted: Which parameters are differentiated.
        residuals: What the gradients are functions of.
        cotangents: The fields of `PerStat`.
        storage_dtype: The integer dtype that holds the bits of the kernel's gradient during the
            loop, see `_compat.updates_in_loops_are_slow`; None for the dtype of the kernel.
    """
    parameters, targets, _ = residuals
    kernel_dtype = parameters.kernel.dtype
    scale, scaled = scale_cotangents(plan, PerStat(*cotangents))
    count = class_count(plan, targets.class_mask)

    def zeros(shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return _parallel.match_varying(jnp.zeros(shape, dtype), residuals, scaled)

    def block_step(grads: PerParameter, index: jax.Array) -> tuple[PerParameter, None]:
        block = take_block(plan, targets.class_mask, index)
        weights = take_weights(plan, parameters.kernel, parameters.bias, block)
        grads_of_tile = checkpoint(functools.partial(tile_grads, plan, wanted, count))

        def tile_step(grads: PerParameter, number: jax.Array) -> tuple[PerParameter, None]:
            added = grads_of_tile(
                parameters, targets, residuals.rows, scaled, block, weights, number
            )
            return add_tile(plan, grads, added, number), None

        # Of each part of the rows by itself, or devices would exchange their sum in each tile.
        parts = () if plan.row_parts == 1 else (plan.row_parts,)
        # The loop over tiles holds the gradients of this block's weights only.
        of_block = grads._replace(
            kernel=zeros((*parts, *weights.kernel.shape), plan.dtype) if wanted.kernel else None,
            bias=zeros((plan.block_size,), plan.dtype) if wanted.bias else None,
        )
        of_block = scan_indices(tile_step, of_block, plan.tile_count)
        if of_block.kernel is not None:
            of_parts = (of_block.kernel * scale).astype(kernel_dtype)
            of_block = of_block._replace(kernel=sum_parts(plan, of_parts))
        return add_block(plan, grads, of_block, block), None

    start = PerParameter(
        hidden=zeros(parameters.hidden.shape, plan.dtype),
        kernel=zeros(parameters.kernel.shape, storage_dtype or kernel_dtype),
        bias=zeros((plan.segments, plan.segment_size), plan.dtype),
        soft_cap=zeros((), plan.dtype),
        temperature=zeros((), plan.dtype),
    )
    grads = scan_indices(block_step, select(wanted, start), plan.block_count)
    kernel = None if grads.kernel is None else view_as(grads.kernel, kernel_dtype)
    # The kernel's gradient is scaled already, block by block before it was rounded.
    others = (None if grad is None else grad * scale for grad in grads._replace(kernel=None))
    pairs = zip(PerParameter(*others)._replace(kernel=kernel), parameters, strict=True)
    return tuple(
        grad.astype(given.dtype) for grad, given in pairs if grad is not None and given is not None
    )


def tile_grads(
    plan: ColumnPlan,
    wanted: Wanted,
    count: jax.Array | float,
    parameters: Parameters,
    targets: Targets,
    rows: RowResiduals,
    cotangents: PerStat,
    block: Block,
    weights: BlockWeights,
    number: jax.Array,
) -> PerParameter:
    """What one tile adds to the gradients: of its hidden states, of its block, and of scalars."""
    per_row = parameters.hidden, targets.labels, rows, cotangents
    hidden, labels, row, cotangents = take_tile(plan, per_row, number)
    products = project(plan, hidden, weights.kernel)
    options = weights.bias, parameters.soft_cap, parameters.temperature
    x, vjp = cast(LogitsAndVjp, jax.vjp(head_logits, products, *options))
    x = mask_classes(block, x)
    x_grad = logits_grad(plan, x, labels, row, block, count, cotangents)
    products_grad, bias, soft_cap, temperature = vjp(x_grad)
    # Two float32 products in a 16-bit backward pass made another library 13 times slower.
    products_grad = products_grad.astype(plan.operand_dtype)
    axes, dtypes = (len(plan.tile_shape),), (plan.operand_dtype, plan.dtype)
    grads = PerParameter(
        hidden=contract(products_grad, axes, weights.kernel, (plan.vocab_axis,), *dtypes),
        kernel=kernel_grad(plan, hidden, products_grad),
        bias=bias,
        soft_cap=soft_cap,
        temperature=temperature,
    )
    return select(wanted, grads)


def add_tile(
    plan: ColumnPlan, grads: PerParameter, added: PerParameter, number: jax.Array
) -> PerParameter:
    """The gradients with those of one tile added; of hidden states only those of its rows."""
    if grads.hidden is None:
        return jax.tree.map(jnp.add, grads, added)
    known = grads._replace(hidden=take_tile(plan, grads.hidden, number))
    total: PerParameter = jax.tree.map(jnp.add, known, added)
    return total._replace(hidden=put_tile(plan, grads.hidden, total.hidden, number))


def add_block(
    plan: ColumnPlan, grads: PerParameter, of_block: PerParameter, block: Block
) -> PerParameter:
    """`of_block`, with the gradients of the kernel and the bias added to those of all classes."""
    kernel, bias = grads.kernel, grads.bias
    if kernel is not None and of_block.kernel is not None:
        kernel = add_classes(plan, kernel, of_block.kernel, block, plan.vocab_axis)
    if bias is not None and of_block.bias is not None:
        bias = add_classes(plan, bias, of_block.bias, block, 0)
    return of_block._replace(kernel=kernel, bias=bias)


def select(wanted: Wanted, grads: PerParameter) -> PerParameter:
    """The wanted gradients, None for the others."""
    pairs = zip(wanted, grads, strict=True)
    return PerParameter(*(grad if want else None for want, grad in pairs))


def scale_cotangents(plan: ColumnPlan, cotangents: PerStat) -> tuple[jax.Array | float, PerStat]:
    """Loss scaling for float16: a power of two, and the cotangents divided by it.

    The gradient of the logits is rounded to the dtype of the operands. In float16 that of a mean, a
    probability over the number of rows, would be lost: it holds nothing below 6e-8. The power is
    near the largest cotangent, and 1 for all other dtypes.
    """
    if jnp.finfo(plan.operand_dtype).minexp <= jnp.finfo(jnp.float32).minexp:
        return 1.0, cotangents
    given = [c for c in cotangents if c is not None]
    sizes = [jnp.max(jnp.where(jnp.isfinite(c), jnp.abs(c), 0.0)) for c in given]
    largest = jax.lax.stop_gradient(functools.reduce(jnp.maximum, sizes))
    exponent = jnp.clip(jnp.frexp(largest)[1], -60, 60)
    scale = jnp.ldexp(jnp.ones((), plan.dtype), exponent)
    return scale, PerStat(*(None if c is None else c / scale for c in cotangents))
