"""`linear_loss`: any loss of logits through a linear head, a chunk of whole rows at a time.

What a loss closes over is made an argument here, masked rows are taken out, and the rest is left
to the sweep of `_chunks`.
"""

import functools
import math
import types
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import core
from jax.typing import ArrayLike

from jaxent import _checks, _parallel
from jaxent._float.dtypes import compute_dtype
from jaxent._heads.checks import Head, check_head, check_row_argument
from jaxent._heads.chunks import (
    Layer,
    LossFunction,
    Operands,
    Products,
    Sweep,
    losses_of_rows,
    sum_of_losses,
)
from jaxent._heads.tiling import from_line, make_tiling, to_line
from jaxent._losses.reduction import divide
from jaxent._parallel import device_count, with_auto_axes


@_checks.public
def linear_loss(
    loss_fn: LossFunction,
    hidden: ArrayLike,
    kernel: ArrayLike,
    *row_args: ArrayLike,
    bias: ArrayLike | None = None,
    vocab_axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    chunk_size: int | None = None,
) -> jax.Array:
    r"""Any loss of logits, through a linear head, without ever holding all the logits.

    .. math:: \ell_i = f(h_i W + b, \ a_i), \qquad \sum_i w_i \ell_i \Big/ \sum_i w_i

    The rows are taken in chunks: `loss_fn(logits, *row_args)` sees the logits `[chunk, V]` of some
    rows and the same rows of `row_args`, and returns one loss per row. For "mean" and "sum" the
    gradients come out of the same sweep, at the price of three matrix products and of float32
    accumulators of the shape of what is differentiated.

    It reduces by default, unlike the dense losses, because only a scalar lets the gradient be
    computed together with the loss.

    Args:
        loss_fn: Maps float32 logits `[chunk, V]` (float64 for float64 inputs) and a chunk of each
            of `row_args` to losses `[chunk]`, each of its own row alone. Floating point arrays
            that it closes over are differentiated like arguments. Inside `jax.shard_map`, with a
            block of the columns of `kernel` on each device, it sees a block of the logits: a loss
            with an `axis_name` completes its sums. Over explicit mesh axes it must close over
            nothing that is on the mesh; make such arrays `row_args`.
        hidden: What the head is applied to, `[..., D]`, floating point. Every product has operands
            of the common dtype of `hidden` and `kernel` and is accumulated in float32.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`, floating point.
        *row_args: Arrays of the leading shape of `hidden`, with any further axes: labels, targets.
        bias: Added to the logits, `[V]`, floating point; None for none.
        vocab_axis: Which axis of `kernel` is the vocabulary: -1 (or 1), or 0 as in tied embeddings.
        where: Booleans of the leading shape of `hidden`: True where the row counts. A row that does
            not has loss 0 and gradient 0, whatever it and its `row_args` hold.
        weights: Real weights of the rows, of the leading shape of `hidden`; None is 1.
        reduction: "mean" over the rows and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each row.
        chunk_size: The largest number of rows whose logits exist at a time; None picks it: 64 MiB
            of float32 logits, but at least 256 rows.

    Returns:
        A scalar in the unit of `loss_fn` (nats for cross-entropies), or the leading shape of
        `hidden` for "none"; float32, or float64 for float64 inputs.

    Raises:
        ArgumentError: If dtypes, shapes, `reduction` or `chunk_size` are refused, or `loss_fn`
            does not return one floating point loss per row.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(4, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> labels = jnp.array([4, 3, 2, 1])
        >>> loss_fn = jaxent.softmax_cross_entropy_with_integer_labels
        >>> print(jaxent.linear_loss(loss_fn, hidden, kernel, labels).round(4))
        1.4913

    References:
        Chunks of rows: Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024,
        section 3.2. The derivative in the same sweep follows from the linearity of the mean.
    """
    _checks.require(callable(loss_fn), f"`loss_fn` must be a function, got {loss_fn!r}.")
    head = check_head(hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size)
    rows = tuple(
        check_row_argument(f"row_args[{i}]", value, head) for i, value in enumerate(row_args)
    )
    sweep = functools.partial(
        _compiled if _is_found_again(loss_fn) else _swept,
        loss_fn=loss_fn,
        reduction=reduction,
        chunk_size=chunk_size,
    )
    axes = len(head.leading_shape) if reduction == "none" else 0
    return with_auto_axes(sweep, head, rows, like=head.hidden, axes=axes)


def _is_found_again(loss_fn: LossFunction) -> bool:
    """Whether the program compiled for a loss may be kept for the next call with the same one.

    Not if the loss may hold values of an ongoing transformation, which must not be kept.
    """
    if not isinstance(loss_fn, types.FunctionType) or loss_fn.__closure__ is not None:
        return False
    defaults = loss_fn.__defaults__, loss_fn.__kwdefaults__
    return not any(isinstance(leaf, core.Tracer) for leaf in jax.tree.leaves(defaults))


def _swept(head, rows, loss_fn, reduction, chunk_size) -> jax.Array:
    return sweep_rows(loss_fn, head, rows, reduction, chunk_size)


_compiled = jax.jit(
    _swept,
    static_argnames=("loss_fn", "reduction", "chunk_size"),
    inline=True,
)


def sweep_rows(
    loss_fn: LossFunction,
    head: Head,
    row_args: tuple[jax.Array, ...],
    reduction: str,
    chunk_size: int | None,
    others: tuple[Head, ...] = (),
) -> jax.Array:
    """`linear_loss` of checked arguments.

    With `others`, further heads over the same rows, `loss_fn` is handed the logits of each head
    before the `row_args`. Masks and weights are those of the first head.
    """
    heads = (head, *others)
    dtype = compute_dtype(*(array for each in heads for array in (each.hidden, each.kernel)))
    count = math.prod(head.leading_shape)
    if count == 0:
        return jnp.zeros(head.leading_shape if reduction == "none" else (), dtype)
    tiling = make_tiling(
        head.leading_shape or (1,),
        rows_per_chunk(heads, chunk_size),
        _devices(heads),
    )
    # Once for all chunks, so that a gradient that belongs to several devices is summed once.
    pairs = [(each.hidden, each.kernel, each.bias) for each in heads]
    layers = _parallel.match_varying(pairs, row_args, head.where, head.weights)
    loss_fn, captured, axes, untracked = _without_closure(
        loss_fn, heads, layers, row_args, tiling.tile_shape[-1], dtype
    )
    if tiling.outer_shape:
        per_row = len(heads) + len(row_args)
        loss_fn = jax.vmap(loss_fn, (*[0] * per_row, *[None] * len(captured)))
    row_args = tuple(_parallel.pvary(array, axes) for array in row_args)

    def line(array):
        return to_line(
            tiling, array.reshape(*tiling.shape, *array.shape[len(head.leading_shape) :])
        )

    where = None if head.where is None else line(head.where)
    weights = None if head.weights is None else line(head.weights).astype(dtype)
    if weights is not None and where is not None:
        weights = jnp.where(where, weights, 0.0)
    operands = Operands(
        layers=tuple(
            Layer(_keep(where, line(hidden)), kernel, bias) for hidden, kernel, bias in layers
        ),
        row_args=tuple(_keep(where, line(array)) for array in row_args),
        captured=tuple(
            _unless_nothing(where, value)
            if axes <= _parallel.varying_axes(value)
            else value
            if reduction == "none"
            else _constant(value, axes)
            for value in captured
        ),
        weights=weights,
        where=where,
    )
    products = tuple(Products(each.vocab_axis, each.operand_dtype) for each in heads)
    sweep = Sweep(loss_fn, products, tiling, dtype, axes, untracked)
    try:
        if reduction == "none":
            return from_line(tiling, losses_of_rows(sweep, operands)).reshape(head.leading_shape)
        total = sum_of_losses(sweep, operands)
    except jax.errors.UnexpectedTracerError as error:
        raise _checks.UnnamedArgumentError(
            "a function with a derivative rule of its own, in `loss_fn`, closes "
            "over a value that is being differentiated or mapped; pass that value as an argument."
        ) from error
    if reduction == "sum":
        return total
    if weights is not None:
        return divide(total, jnp.sum(weights))
    if where is not None:
        return divide(total, jnp.sum(where, dtype=dtype))
    return total / count


def _devices(heads: Sequence[Head]) -> int:
    return device_count(*(array for head in heads for array in (head.hidden, head.kernel)))


def rows_per_chunk(heads: Sequence[Head], chunk_size: int | None) -> int:
    """Rows per chunk: at most `chunk_size`, evened out so that the last chunk is nearly full.

    Left open, it is 64 MiB of float32 logits or an eighth of what the gradient of the kernel takes,
    and at least 256 rows, for each of the devices that share a chunk: with fewer, reading the
    kernel and adding to its gradient in every chunk outweighs the products. From 256 to 1024 rows
    `benchmarks/linear_head.py` sees no difference beyond the noise.
    """
    count = math.prod(heads[0].leading_shape)
    if chunk_size is None:
        widest = max(head.hidden.shape[-1] for head in heads)
        vocabulary = sum(head.vocabulary_size for head in heads)
        chunk_size = _devices(heads) * max(256, 2**24 // vocabulary, widest // 8)
    steps = -(-count // chunk_size)
    return -(-count // steps)


def _keep(where: jax.Array | None, rows: jax.Array) -> jax.Array:
    """The rows that count, and copies of the first of them; zeros if there is none.

    What a masked row holds must reach no product. What stands in its place passes through the loss
    as well, so it is something that the loss is defined for: its derivative, times 0, goes into
    the gradient of what the loss closes over.
    """
    if where is None:
        return rows
    each_row = *where.shape, *[1] * (rows.ndim - where.ndim)
    # Nothing here is an index into rows, which would gather them if they are sharded.
    number = jnp.arange(where.size).reshape(where.shape)
    first = number == jnp.min(jnp.where(where, number, where.size))
    fixed, zero = jax.lax.stop_gradient(rows), jnp.zeros((), rows.dtype)
    axes = tuple(range(where.ndim))
    copy = jnp.sum(
        jnp.where(first.reshape(each_row), fixed, zero), axis=axes, keepdims=True, dtype=rows.dtype
    )
    return jnp.where(where.reshape(each_row), rows, copy)


def _constant(value: jax.Array, axes: frozenset) -> jax.Array:
    """What a loss closes over and losses of several devices have in common; it has no derivative.

    Its gradient would be a sum over those devices already, of which nobody knows their shares.
    """
    missing = sorted(axes - _parallel.varying_axes(value), key=str)

    @jax.custom_jvp
    def constant(value):
        return value

    @constant.defjvp
    def constant_jvp(primals, tangents):
        del primals, tangents
        raise _checks.ArgumentError(
            f"jaxent.linear_loss: `loss_fn` closes over {_checks.describe(value)}, which is "
            "differentiated and is the same on all devices while the losses are not; let it close "
            f'over `jax.lax.pcast(value, {tuple(missing)}, to="varying")`.'
        )

    return constant(value)


def _unless_nothing(where: jax.Array | None, value: jax.Array) -> jax.Array:
    """What a loss closes over, without a derivative if no row counts: then a copy of none fits."""
    if where is None or not jnp.issubdtype(value.dtype, jnp.inexact):
        return value
    return jnp.where(jnp.any(where), value, jax.lax.stop_gradient(value))


def _without_closure(loss_fn, heads, layers, row_args, chunk, dtype):
    """`loss_fn` with the arrays it closes over as trailing arguments, and those arrays.

    A custom rule may not capture values that are being differentiated. Also the mesh axes that the
    losses vary over, and those they are summed over without JAX keeping track.
    """

    def example(shape, dtype, axes):
        def zeros():
            return _parallel.pvary(jnp.zeros((chunk, *shape), dtype), axes)

        # A mere description loses the mesh that the axes are of.
        return zeros() if axes else jax.eval_shape(zeros)

    axes = _parallel.varying_axes((layers, row_args))
    logits = [example((head.vocabulary_size,), dtype, axes) for head in heads]
    rows = len(heads[0].leading_shape)
    chunks = [example(a.shape[rows:], a.dtype, _parallel.varying_axes(a)) for a in row_args]
    losses = jax.eval_shape(loss_fn, *logits, *chunks)
    shape, kind = getattr(losses, "shape", None), getattr(losses, "dtype", type(losses))
    _checks.require(
        shape == (chunk,) and jnp.issubdtype(kind, jnp.floating),
        f"`loss_fn` must return one floating point loss per row, [{chunk}] for logits "
        f"[{chunk},{heads[0].vocabulary_size}], got {losses}.",
    )
    axes = _parallel.varying_axes(losses)
    chunks = [example(a.shape[rows:], a.dtype, axes | _parallel.varying_axes(a)) for a in row_args]
    untracked = _parallel.untracked_axes(jax.make_jaxpr(loss_fn)(*logits, *chunks))
    return *jax.closure_convert(loss_fn, *logits, *chunks), axes, untracked
