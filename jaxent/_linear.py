"""Named losses through a linear head; each is a few lines on a sweep."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._head import (
    Head,
    check_head,
    check_labels,
    check_transform,
    is_neutral,
    transformed,
)
from jaxent._row_sweep import sweep_rows
from jaxent._rows import judged
from jaxent._softmax import softmax_cross_entropy_with_integer_labels
from jaxent._softmax import z_loss as squared_log_normalizer


def linear_softmax_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    vocab_axis: int = -1,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    label_smoothing: ArrayLike = 0.0,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    reduction: str = "mean",
    chunk_size: int | None = None,
) -> jax.Array:
    r"""Softmax cross-entropy with integer labels of a linear head, the logits never held at once.

    .. math::
        x_i = c \tanh\big((h_i W + b) / c\big) / \tau, \qquad
        \ell_i = \sum_j t_{ij} \Big( \log \sum_k e^{x_{ik}} - x_{ij} \Big)
        + z \Big( \log \sum_k e^{x_{ik}} \Big)^2

    It equals `softmax_cross_entropy_with_integer_labels(hidden @ kernel + bias, labels)`, reduced,
    with memory for the logits of a chunk of rows instead of all, and three matrix products for
    value and gradients (two if the kernel is not differentiated). See `jaxent.linear_loss`.

    Args:
        hidden: What the head is applied to, `[..., D]`, floating point. Products have operands in
            the common dtype of `hidden` and `kernel` and are accumulated in float32.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`, floating point.
        labels: Index of the true class per row, integers of the leading shape of `hidden`. An
            index outside `[0, V)`, negative ones included, makes its row NaN unless it is masked.
        bias: Added to the logits, `[V]`, floating point; None for none.
        vocab_axis: Which axis of `kernel` is the vocabulary: -1 (or 1), or 0 as in tied embeddings.
        where: Booleans of the leading shape of `hidden`: True where the row counts. A row that does
            not has loss 0 and gradient 0, whatever it holds.
        weights: Real weights of the rows, of the leading shape of `hidden`; None is 1.
        label_smoothing: The share in [0, 1] of the target spread evenly over all classes.
        z_loss: Weight :math:`z \ge 0` of the squared log-normaliser, a scalar.
        soft_cap: Bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: What the (capped) logits are divided by, :math:`\tau > 0`, a scalar.
        reduction: "mean" over the rows and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each row.
        chunk_size: The largest number of rows whose logits exist at a time; None picks it: 64 MiB
            of float32 logits, but at least 256 rows.

    Returns:
        A scalar in nats, or the leading shape of `hidden` for "none"; float32, or float64 for
        float64 inputs.

    Raises:
        AssertionError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(4, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> labels = jnp.array([4, 3, 2, -100])
        >>> print(
        ...     jaxent.linear_softmax_cross_entropy(
        ...         hidden, kernel, labels, where=labels >= 0
        ...     ).round(4)
        ... )
        1.4519

    References:
        Chunked heads: Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024; Wijmans
        et al., `Cut Your Losses <https://arxiv.org/abs/2411.09009>`_, 2024. Soft cap: Gemma Team,
        `Gemma 2 <https://arxiv.org/abs/2408.00118>`_, 2024, section 2.
    """
    name = "linear_softmax_cross_entropy"
    head = check_head(name, hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size)
    labels = check_labels(name, labels, head)
    _checks.within(name, "label_smoothing", label_smoothing, 0.0, 1.0)
    _checks.finite(name, "z_loss", z_loss)
    _checks.within(name, "z_loss", z_loss, 0.0, math.inf)
    cap, divisor = check_transform(name, soft_cap, temperature)
    options = {"soft_cap": cap, "temperature": divisor}
    for option, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        options[option] = None if is_neutral(value, 0.0) else _checks.scalar(name, option, value)
    arrays = head._asdict()
    axis = arrays.pop("vocab_axis")
    return _cross_entropy(arrays, labels, options, axis, reduction, chunk_size)


@functools.partial(jax.jit, static_argnames=("vocab_axis", "reduction", "chunk_size"), inline=True)
def _cross_entropy(
    arrays: dict[str, jax.Array],
    labels: jax.Array,
    options: dict[str, jax.Array | None],
    vocab_axis: int,
    reduction: str,
    chunk_size: int | None,
) -> jax.Array:
    def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
        given = jax.tree.map(lambda value: value.astype(logits.dtype), options)
        logits = transformed(logits, given["soft_cap"], given["temperature"])
        smoothing = 0.0 if given["label_smoothing"] is None else given["label_smoothing"]
        losses = softmax_cross_entropy_with_integer_labels(
            logits, labels, label_smoothing=smoothing
        )
        weight = given["z_loss"]
        if weight is not None:
            weight = judged(weight, (weight >= 0.0) & (weight < jnp.inf))
            losses += weight * squared_log_normalizer(logits)
        return losses

    head = Head(**arrays, vocab_axis=vocab_axis)
    return sweep_rows(
        "linear_softmax_cross_entropy", loss_fn, head, (labels,), reduction, chunk_size
    )
