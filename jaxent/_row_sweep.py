"""`linear_loss`: any loss of logits through a linear head, a chunk of whole rows at a time.

The [rows, vocabulary] matrix never exists. For a mean or a sum, the gradients are computed in the
same sweep as the loss: while the logits of a chunk are at hand, so is all that their gradient
needs. That makes three matrix products in all, the minimum; recomputing the logits would cost a
fourth. The result is the rule of a `jax.custom_jvp` whose tangent is a sum of products with those
gradients. Reverse mode is its transpose, forward mode works, and since the sweep is ordinary JAX,
so does every further order.

One loss per row cannot know its cotangents during the sweep; there, `jax.checkpoint` recomputes
the logits of one chunk at a time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._head import Head, check_head, check_row_argument
from jaxent._numerics import compute_dtype
from jaxent._reduction import divide

LossFunction = Callable[..., jax.Array]


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
            that it closes over are differentiated like arguments.
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
        AssertionError: If dtypes, shapes, `reduction` or `chunk_size` are refused, or `loss_fn`
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
    name = "linear_loss"
    _checks.require(callable(loss_fn), name, f"`loss_fn` must be a function, got {loss_fn!r}.")
    head = check_head(name, hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size)
    rows = tuple(
        check_row_argument(name, f"row_args[{i}]", value, head) for i, value in enumerate(row_args)
    )
    return sweep_rows(name, loss_fn, head, rows, reduction, chunk_size)


def sweep_rows(
    name: str,
    loss_fn: LossFunction,
    head: Head,
    row_args: tuple[jax.Array, ...],
    reduction: str,
    chunk_size: int | None,
) -> jax.Array:
    """`linear_loss` of checked arguments, on behalf of the public function `name`."""
    dtype = compute_dtype(head.hidden, head.kernel)
    count = math.prod(head.shape)
    if count == 0:
        return jnp.zeros(head.shape if reduction == "none" else (), dtype)
    chunk = rows_per_chunk(count, head.vocabulary, chunk_size)
    loss_fn, captured = _without_closure(name, loss_fn, head, row_args, chunk, dtype)

    where = None if head.where is None else head.where.reshape(count)
    weights = None if head.weights is None else head.weights.reshape(count).astype(dtype)
    operands = _Operands(
        hidden=_keep(where, head.hidden.reshape(count, -1)),
        kernel=head.kernel,
        bias=head.bias,
        row_args=tuple(
            _keep(where, a.reshape(count, *a.shape[len(head.shape) :])) for a in row_args
        ),
        captured=tuple(captured),
        weights=weights if weights is None else _keep(where, weights),
        where=where,
    )
    same = head.hidden.dtype == head.kernel.dtype
    sweep = _Sweep(
        loss_fn, head.vocab_axis, count, chunk, dtype, head.kernel.dtype if same else dtype
    )
    if reduction == "none":
        return _losses(sweep, operands).reshape(head.shape)
    total = _total(sweep, operands)
    if reduction == "sum":
        return total
    if operands.weights is not None:
        return divide(total, jnp.sum(operands.weights))
    if where is not None:
        return divide(total, jnp.sum(where, dtype=dtype))
    return total / count


class _Operands(NamedTuple):
    """Everything a sweep may be differentiated by; rows first, masked rows replaced by zeros."""

    hidden: Any
    kernel: Any
    bias: Any
    row_args: Any
    captured: Any
    weights: Any
    where: Any


class _Sweep(NamedTuple):
    """What is fixed while tracing: the loss, how rows are cut, and the dtypes.

    `dtype` is that of logits, losses and sums; `operand` that of what matrix products are fed.
    """

    loss_fn: LossFunction
    vocab_axis: int
    rows: int
    chunk: int
    dtype: Any
    operand: Any

    @property
    def steps(self) -> int:
        return -(-self.rows // self.chunk)


def rows_per_chunk(count: int, vocabulary: int, chunk_size: int | None) -> int:
    """Rows per chunk: at most `chunk_size`, evened out so that the last chunk is nearly full.

    Left open, it is 64 MiB of float32 logits, and at least 256 rows: with fewer, reading and
    adding to the kernel's gradient in every chunk outweighs the products. From 256 to 1024 rows
    `benchmarks/linear_head.py` sees no difference beyond the noise.
    """
    if chunk_size is None:
        chunk_size = max(256, 2**24 // vocabulary)
    steps = -(-count // chunk_size)
    return -(-count // steps)


def _keep(where: jax.Array | None, rows: jax.Array) -> jax.Array:
    """The rows that count, and zeros: what a masked row holds must reach no product."""
    if where is None:
        return rows
    keep = where.reshape(-1, *[1] * (rows.ndim - 1))
    return jnp.where(keep, rows, jnp.zeros((), rows.dtype))


def _without_closure(name, loss_fn, head, row_args, chunk, dtype):
    """`loss_fn` with the arrays it closes over as trailing arguments, and those arrays.

    A custom rule may not capture values that are being differentiated.
    """
    logits = jax.ShapeDtypeStruct((chunk, head.vocabulary), dtype)
    rows = len(head.shape)
    chunks = [jax.ShapeDtypeStruct((chunk, *a.shape[rows:]), a.dtype) for a in row_args]
    losses = jax.eval_shape(loss_fn, logits, *chunks)
    shape, kind = getattr(losses, "shape", None), getattr(losses, "dtype", type(losses))
    _checks.require(
        shape == (chunk,) and jnp.issubdtype(kind, jnp.floating),
        name,
        f"`loss_fn` must return one floating point loss per row, [{chunk}] for logits "
        f"[{chunk},{head.vocabulary}], got {losses}.",
    )
    return jax.closure_convert(loss_fn, logits, *chunks)


def _project(sweep: _Sweep, hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None):
    """Logits of a chunk."""
    logits = _contract(sweep, hidden, 1, kernel, 1 - sweep.vocab_axis)
    return logits if bias is None else logits + bias.astype(sweep.dtype)[None, :]


def _contract(sweep: _Sweep, left: jax.Array, left_axis: int, right: jax.Array, right_axis: int):
    """A product in the dtype of the operands, accumulated in the dtype of the losses."""
    return jax.lax.dot_general(
        left.astype(sweep.operand),
        right.astype(sweep.operand),
        (((left_axis,), (right_axis,)), ((), ())),
        preferred_element_type=sweep.dtype,
    )


def _cut(sweep: _Sweep, rows: Any) -> Any:
    """[rows, ...] to [steps, chunk, ...]; chunk k takes the rows k, k + steps, k + 2 steps, ...

    Interleaved chunks keep every device at work when the rows are sharded. What is missing in the
    last round is filled with copies of the first rows, which are finite if the input is.
    """

    def cut(array):
        missing = sweep.steps * sweep.chunk - sweep.rows
        if missing:
            array = jnp.concatenate([array, array[:missing]])
        array = array.reshape(sweep.chunk, sweep.steps, *array.shape[1:])
        return jnp.swapaxes(array, 0, 1)

    return jax.tree.map(cut, rows)


def _join(sweep: _Sweep, chunks: jax.Array) -> jax.Array:
    """The inverse of `_cut`."""
    rows = jnp.swapaxes(chunks, 0, 1)
    return rows.reshape(sweep.steps * sweep.chunk, *rows.shape[2:])[: sweep.rows]


class _Chunk(NamedTuple):
    hidden: Any
    row_args: Any
    weights: Any
    live: Any


def _chunks(sweep: _Sweep, operands: _Operands) -> _Chunk:
    """All chunks, stacked. `live` marks rows that count, None if all do; fillers do not."""
    live = operands.where
    if live is None and sweep.steps * sweep.chunk != sweep.rows:
        live = jnp.ones(sweep.rows, bool)
    rows = _Chunk(operands.hidden, operands.row_args, operands.weights, live)
    chunks = _cut(sweep, rows)
    if live is None:
        return chunks
    index = jnp.arange(sweep.chunk)[None, :] * sweep.steps + jnp.arange(sweep.steps)[:, None]
    return chunks._replace(live=chunks.live & (index < sweep.rows))


def _weighted(sweep: _Sweep, chunk: _Chunk, losses: jax.Array) -> jax.Array:
    """Losses times weights; rows that do not count are 0, whatever their loss."""
    losses = losses.astype(sweep.dtype)
    losses = losses if chunk.weights is None else losses * chunk.weights
    return losses if chunk.live is None else jnp.where(chunk.live, losses, 0.0)


def _losses(sweep: _Sweep, operands: _Operands) -> jax.Array:
    """One weighted loss per row, recomputed chunk by chunk in the backward pass."""
    # Sums over chunks of the kernel's gradient are then sums in float32.
    kernel = operands.kernel.astype(sweep.dtype)
    bias = None if operands.bias is None else operands.bias.astype(sweep.dtype)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def losses(kernel, bias, captured, chunk: _Chunk) -> jax.Array:
        logits = _project(sweep, chunk.hidden, kernel.astype(operands.kernel.dtype), bias)
        if operands.where is not None:
            # Stops what a loss makes of a masked row's cotangent of 0.
            logits = jnp.where(chunk.live[:, None], logits, 0.0)
        return _weighted(sweep, chunk, sweep.loss_fn(logits, *chunk.row_args, *captured))

    def step(carry, chunk):
        return carry, losses(kernel, bias, operands.captured, chunk)

    _, stacked = jax.lax.scan(step, None, _chunks(sweep, operands))
    return _join(sweep, stacked)


def _total(sweep: _Sweep, operands: _Operands) -> jax.Array:
    """The weighted sum of all losses, with gradients from the same sweep where asked for."""

    @jax.custom_jvp
    def total(operands: _Operands) -> jax.Array:
        def step(carry, chunk):
            logits = _project(sweep, chunk.hidden, operands.kernel, operands.bias)
            losses = sweep.loss_fn(logits, *chunk.row_args, *operands.captured)
            return carry + jnp.sum(_weighted(sweep, chunk, losses)), None

        return jax.lax.scan(step, jnp.zeros((), sweep.dtype), _chunks(sweep, operands))[0]

    @functools.partial(total.defjvp, symbolic_zeros=True)
    def total_jvp(primals, tangents):
        (operands,), (dots,) = primals, tangents
        wanted = jax.tree.map(lambda dot: not _is_zero(dot), dots, is_leaf=_is_zero)
        value, gradients = _total_and_gradients(sweep, operands, wanted)
        # Sums of products, not `vdot`: flattening would make the partitioner gather the kernel.
        products = jax.tree.map(
            lambda dot, gradient: _dot(gradient, dot), dots, gradients, is_leaf=_is_zero
        )
        return value, sum(jax.tree.leaves(products), jnp.zeros((), sweep.dtype))

    return total(operands)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, SymbolicZero)


def _dot(gradient: jax.Array, tangent: Any) -> jax.Array | None:
    return None if _is_zero(tangent) else jnp.sum(gradient * tangent.astype(gradient.dtype))


def _total_and_gradients(sweep: _Sweep, operands: _Operands, wanted: _Operands):
    """The weighted sum of all losses and its gradients by the leaves that `wanted` marks.

    Leaves that are not wanted come back as they are and cost nothing: without the kernel's, the
    sweep has two products and holds no buffer of the kernel's size.
    """
    zero = functools.partial(jnp.zeros, dtype=sweep.dtype)

    def step(sums, chunk: _Chunk):
        def losses_of(logits, row_args, captured):
            row_args = _replace(wanted.row_args, chunk.row_args, row_args)
            captured = _replace(wanted.captured, operands.captured, captured)
            return sweep.loss_fn(logits, *row_args, *captured).astype(sweep.dtype)

        logits = _project(sweep, chunk.hidden, operands.kernel, operands.bias)
        some = _take(wanted.row_args, chunk.row_args), _take(wanted.captured, operands.captured)
        losses, pull_back = jax.vjp(losses_of, logits, *some)
        share = _weighted(sweep, chunk, jnp.ones_like(losses))
        slope, row_args_slope, captured_slope = pull_back(share)
        if operands.where is not None:
            # Exactly zero for masked rows, also if the loss is NaN for the zeros they now hold.
            slope = jnp.where(chunk.live[:, None], slope, 0.0)
        operand = slope.astype(sweep.operand)
        rows = _Operands(
            hidden=_contract(sweep, operand, 1, operands.kernel, sweep.vocab_axis)
            if wanted.hidden
            else None,
            kernel=None,
            bias=None,
            row_args=row_args_slope,
            captured=None,
            weights=_weighted(sweep, chunk._replace(weights=None), losses)
            if wanted.weights
            else None,
            where=None,
        )
        # In the layout of the kernel, so that nothing of its size is transposed.
        pair = (chunk.hidden, operand) if sweep.vocab_axis else (operand, chunk.hidden)
        added = (
            jnp.sum(_weighted(sweep, chunk, losses)),
            _contract(sweep, pair[0], 0, pair[1], 0) if wanted.kernel else None,
            jnp.sum(slope, axis=0) if wanted.bias else None,
            [g.astype(sweep.dtype) for g in captured_slope],
        )
        return jax.tree.map(jnp.add, sums, added), rows

    start = (
        zero(()),
        zero(operands.kernel.shape) if wanted.kernel else None,
        zero(operands.bias.shape) if wanted.bias else None,
        [zero(c.shape) for c in _take(wanted.captured, operands.captured)],
    )
    (total, kernel, bias, captured), rows = jax.lax.scan(step, start, _chunks(sweep, operands))
    rows = jax.tree.map(functools.partial(_join, sweep), rows)
    return total, _Operands(
        hidden=rows.hidden if wanted.hidden else operands.hidden,
        kernel=kernel if wanted.kernel else operands.kernel,
        bias=bias if wanted.bias else operands.bias,
        row_args=_replace(wanted.row_args, operands.row_args, rows.row_args),
        captured=_replace(wanted.captured, operands.captured, captured),
        weights=rows.weights if wanted.weights else operands.weights,
        where=operands.where,
    )


def _take(wanted, values) -> list:
    """The values that are wanted."""
    return [value for want, value in zip(wanted, values, strict=True) if want]


def _replace(wanted, values, replacements) -> tuple:
    """The values, with the wanted ones replaced in their order."""
    rest = iter(replacements)
    return tuple(next(rest) if want else v for want, v in zip(wanted, values, strict=True))
