"""The public losses and statistics of one linear head: they check, then call an engine."""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxent import _checks
from jaxent._heads import cross_entropy, rows
from jaxent._heads.checks import (
    Head,
    check_class_where,
    check_head,
    check_labels,
    check_row_argument,
    check_size,
    check_transform,
)
from jaxent._heads.chunks import LossFunction
from jaxent._heads.columns.sweep import linear_softmax_stats
from jaxent._parallel import AxisName, with_auto_axes


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
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""Any loss of logits, through a linear head, without ever holding all the logits.

    .. math:: \ell_i = f(h_i W + b, \ a_i), \qquad \sum_i w_i \ell_i \Big/ \sum_i w_i

    For "mean" and "sum" the gradients come out of the same sweep over chunks of rows, at the price
    of three matrix products and float32 accumulators. Only a scalar allows that, so heads reduce by
    default, unlike the dense losses. In a loop that is differentiated from outside, every step
    keeps a gradient of the kernel: put `jax.checkpoint` around the step, which costs a product.

    Args:
        loss_fn: Maps float32 logits `[chunk, V]` (float64 for float64 inputs) and a chunk of each
            of `row_args` to losses `[chunk]`, each of its own row alone. Floating point arrays that
            it closes over are differentiated like arguments. Its program is kept for the next call
            if all that it reads from outside are functions, numbers and words. Inside
            `jax.shard_map` it sees the classes of its device, and completes its sums with an
            `axis_name`. Over explicit mesh axes it must close over nothing that is on the mesh;
            make such arrays `row_args`.
        hidden: Input of the head, `[..., D]`, floating point.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        *row_args: Arrays `[..., *rest]`, such as labels or targets.
        bias: Added to the logits, `[V]`; None for none.
        vocab_axis: The vocabulary's axis of `kernel`: -1 (or 1), or 0 for tied embeddings.
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The most rows in a chunk. None goes by shape and platform: on a CPU 64 MiB of
            float32 logits, on others up to an eighth of the rows.
        dtype: Of the operands of matrix products, like that of Flax's layers, see the contract.
            With `jnp.bfloat16` a float32 kernel is rounded for the products alone; its gradient,
            like the logits, is float32. None for that of `hidden` and `kernel`, float32 if they
            differ.

    Returns:
        In the unit of `loss_fn`, a scalar or `[...]` ("none"), float32 (float64 for float64
        inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options, or what `loss_fn` returns, are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(4, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> loss_fn = jaxent.softmax_cross_entropy_with_integer_labels
        >>> print(jaxent.linear_loss(loss_fn, hidden, kernel, jnp.array([4, 3, 2, 1])).round(4))
        1.4913

    References:
        Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024, section 3.2.
    """
    _checks.check_function("loss_fn", loss_fn, "it comes first, before `hidden`")
    head = check_head(
        hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size, dtype
    )
    arrays = tuple(
        check_row_argument(f"row_args[{i}]", value, head) for i, value in enumerate(row_args)
    )
    sweep = rows.sweep_for(loss_fn)
    loss = functools.partial(sweep, reduction=reduction, chunk_size=chunk_size)
    axes = len(head.leading_shape) if reduction == "none" else 0
    return with_auto_axes(loss, (head,), arrays, example=head.hidden, ndim=axes)


@_checks.public
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
    shift: int = 0,
    sweep: str | None = None,
    chunk_size: int | None = None,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Softmax cross-entropy with integer labels of a linear head, the logits never held at once.

    .. math:: x_i = c \tanh\big((h_i W + b) / c\big) / \tau, \qquad
        \ell_i = \sum_j t_{ij} (n_i - x_{ij}) + z\, n_i^2, \qquad n_i = \log \sum_k e^{x_{ik}}

    By rows it takes three matrix products, and holds a chunk of logits and a float32 gradient of
    the kernel (each call in a loop that is differentiated from outside, unless `jax.checkpoint` is
    around the step); by columns four, and about 16 MiB on a CPU. For other losses: `linear_loss`.

    Args:
        hidden: Input of the head, `[..., D]`, floating point. Rows, classes and features may be
            sharded in any combination, and so may the last two leading axes, as [batch, time].
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        labels: Index of the true class of each row, integers `[...]`.
        bias: Added to the logits, `[V]`; None for none. `-inf` removes a class.
        vocab_axis: The vocabulary's axis of `kernel`: -1 (or 1), or 0 for tied embeddings.
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        label_smoothing: Fraction of the target in [0, 1] that is spread evenly over all classes.
        z_loss: The weight :math:`z \ge 0` of the squared log-normaliser, a scalar.
        soft_cap: The bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: The divisor :math:`\tau > 0` of the (capped) logits, a scalar.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        shift: How many places later on the last leading axis the label of a row stands: 1 for a
            causal language model. Mask and weights move along; the last `shift` rows are masked.
        sweep: "rows" or "columns". None is rows for a mean or a sum of D > 256 or of 16 bits, else
            columns. A `chunk_size` asks for rows, a `block_size` for columns.
        chunk_size: The largest number of rows in a chunk, see `linear_loss`.
        block_size: The largest number of classes in a tile of logits, see `linear_softmax`.
        dtype: Of the operands of matrix products, see `linear_loss`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(4, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> labels = jnp.array([4, 3, 2, -100])
        >>> loss = jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=labels >= 0)
        >>> print(loss.round(4))
        1.4519

    References:
        Hsu et al., `Liger Kernel <https://arxiv.org/abs/2410.10989>`_, 2024; Wijmans et al., `Cut
        Your Losses <https://arxiv.org/abs/2411.09009>`_, 2024.
    """
    _checks.check_mesh_axis(axis_name)
    head = check_head(
        hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size, dtype
    )
    head, labels = _shift_labels(shift, head, check_labels(labels, head))
    _checks.check_closed_interval("label_smoothing", label_smoothing, 0.0, 1.0)
    _checks.check_finite("z_loss", z_loss)
    _checks.check_closed_interval("z_loss", z_loss, 0.0, math.inf)
    sweep = _check_sweep(sweep, chunk_size, block_size)
    options = cross_entropy.Options(
        *check_transform(soft_cap, temperature),
        _checks.as_scalar_unless("label_smoothing", label_smoothing, 0.0),
        _checks.as_scalar_unless("z_loss", z_loss, 0.0),
    )
    loss = functools.partial(
        cross_entropy.softmax_cross_entropy,
        reduction=reduction,
        sweep=sweep,
        chunk_size=chunk_size,
        block_size=block_size,
        axis_name=axis_name,
    )
    axes = len(head.leading_shape) if reduction == "none" else 0
    return with_auto_axes(loss, head, labels, options, example=head.hidden, ndim=axes)


def _check_sweep(sweep: str | None, chunk_size: int | None, block_size: int | None) -> str | None:
    """The sweep that is asked for, by name or by a size, or None; contradictions are refused."""
    check_size("block_size", block_size)
    _checks.check_one_of("sweep", sweep, (None, "rows", "columns"))
    if sweep is None and (chunk_size, block_size) != (None, None):
        sweep = "columns" if chunk_size is None else "rows"
    unused = chunk_size if sweep == "columns" else block_size if sweep == "rows" else None
    sizes = {"chunk_size": chunk_size, "block_size": block_size}
    given = " and ".join(f"`{name}` {size}" for name, size in sizes.items() if size is not None)
    _checks.require(
        unused is None,
        f"`chunk_size` is for a sweep over rows and `block_size` for one over columns; got {given} "
        f'for `sweep` "{sweep}"; pass the one that fits.',
    )
    return sweep


class LinearSoftmax(NamedTuple):
    """The statistics of each row from `linear_softmax`, in nats; `top_class` is an index."""

    cross_entropy: jax.Array  # [...]
    log_normalizer: jax.Array  # [...]
    uniform_cross_entropy: jax.Array  # [...]
    entropy: jax.Array  # [...]
    top_class: jax.Array  # [...] int32
    top_logit: jax.Array  # [...]


@_checks.public
def linear_softmax(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    vocab_axis: int = -1,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> LinearSoftmax:
    r"""Statistics of each row's softmax, with the logits never held at once.

    .. math:: x_i = c \tanh\big((h_i W + b) / c\big) / \tau, \qquad
        z_i = \log \sum_j e^{x_{ij}}, \qquad p_{ij} = e^{x_{ij} - z_i}

    Losses are ordinary JAX on the results: label smoothing is `(1 - a) * cross_entropy + a *
    uniform_cross_entropy`, z-loss `log_normalizer ** 2`, accuracy `mean(top_class == labels)`.
    Results that are not used cost nothing once compiled.

    Args:
        hidden: Input of the head, `[..., D]`, floating point.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        labels: Index of the true class of each row, integers `[...]`.
        bias: Added to the logits, `[V]`; None for none.
        vocab_axis: The vocabulary's axis of `kernel`: -1 (or 1), or 0 for tied embeddings.
        soft_cap: The bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: The divisor :math:`\tau > 0` of the (capped) logits, a scalar.
        where: Mask of the rows, `[...]`; every result of a masked row is 0.
        class_where: Mask of the classes, `[V]`; a label that it masks is out of range.
        block_size: The most classes in a tile of logits. None: 1024 on a CPU, elsewhere 1024 to
            8192, so that a tile has 2^24 logits.
        dtype: Of the operands of matrix products, see `linear_loss`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        A named tuple of arrays `[...]` in nats, float32 (float64 for float64 inputs):
        `cross_entropy` :math:`z - x_y`; `log_normalizer` :math:`z`; `uniform_cross_entropy`, the
        mean of :math:`z - x_j` over the classes; `entropy` :math:`\sum_j p_j (z - x_j)`;
        `top_class`, the first index of the largest logit, int32; `top_logit`, that logit. All but
        `top_class` are differentiable.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(4, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> labels = jnp.array([4, 3, 2, 1])
        >>> row = jaxent.linear_softmax(hidden, kernel, labels)
        >>> print(row.cross_entropy.round(4), row.entropy.round(4))
        [0.4519 1.4519 2.4519 1.6094] [1.     1.     1.     1.6094]
        >>> print(row.top_class == labels)
        [ True False False False]

    References:
        Milakov, Gimelshein, `Online normalizer <https://arxiv.org/abs/1805.02867>`_, 2018; Wijmans
        et al., `Cut Your Losses <https://arxiv.org/abs/2411.09009>`_, 2024.
    """
    _checks.check_mesh_axis(axis_name)
    head = check_head(hidden, kernel, bias, vocab_axis, where, None, "none", None, dtype)
    labels = check_labels(labels, head)
    cap, divisor = check_transform(soft_cap, temperature)
    check_size("block_size", block_size)
    class_where = check_class_where(class_where, head)
    stats = linear_softmax_stats(head, labels, class_where, cap, divisor, block_size, axis_name)
    return LinearSoftmax(*stats)


class LinearLogProb(NamedTuple):
    """The log-probability and the entropy of each row from `linear_log_prob`, in nats."""

    log_prob: jax.Array  # [...]
    entropy: jax.Array  # [...]


@_checks.public
def linear_log_prob(
    hidden: ArrayLike,
    kernel: ArrayLike,
    labels: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    vocab_axis: int = -1,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    class_where: ArrayLike | None = None,
    shift: int = 0,
    block_size: int | None = None,
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> LinearLogProb:
    r"""Log-probability of each row's label, and the entropy of its distribution.

    .. math:: \log p_i = x_{i y_i} - \log \sum_j e^{x_{ij}}, \quad H_i = -\sum_j p_{ij} \log p_{ij}

    It is what `jaxent.policy_gradient_loss` and its kind ask of a language model's head. A result
    that is not used costs nothing once compiled. Further statistics: `linear_softmax`.

    Args:
        hidden: Input of the head, `[..., D]`, floating point.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        labels: Index of the class (the token, the action) of each row, integers `[...]`.
        bias: Added to the logits, `[V]`; None for none.
        vocab_axis: The vocabulary's axis of `kernel`: -1 (or 1), or 0 for tied embeddings.
        soft_cap: The bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: The divisor :math:`\tau > 0` of the (capped) logits, a scalar.
        where: Mask of the rows, `[...]`; both results of a masked row are 0.
        class_where: Mask of the classes, `[V]`; a label that it masks is out of range.
        shift: How many places later the label of a row stands, as in
            `linear_softmax_cross_entropy`.
        block_size: The largest number of classes in a tile of logits, see `linear_softmax`.
        dtype: Of the operands of matrix products, see `linear_loss`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        The tuple `(log_prob, entropy)`, `[...]` each, in nats, float32 (float64 for float64
        inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(4, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> tokens = jnp.array([0, 4, 3, 2])
        >>> log_prob, entropy = jaxent.linear_log_prob(hidden, kernel, tokens, shift=1)
        >>> print(log_prob.round(4))
        [-0.4519 -1.4519 -2.4519  0.    ]

    References:
        With the entropy bonus: Mnih et al., `A3C <https://arxiv.org/abs/1602.01783>`_, 2016.
    """
    _checks.check_mesh_axis(axis_name)
    head = check_head(hidden, kernel, bias, vocab_axis, where, None, "none", None, dtype)
    head, labels = _shift_labels(shift, head, check_labels(labels, head))
    cap, divisor = check_transform(soft_cap, temperature)
    class_where = check_class_where(class_where, head)
    check_size("block_size", block_size)
    stats = linear_softmax_stats(head, labels, class_where, cap, divisor, block_size, axis_name)
    # Not a negation: a masked row has 0, not -0.
    return LinearLogProb(0.0 - stats.cross_entropy, stats.entropy)


def _shift_labels(shift: int, head: Head, labels: jax.Array) -> tuple[Head, jax.Array]:
    """Labels, mask and weights moved `shift` rows ahead, so that `hidden` need not be copied."""
    _checks.check_non_negative_integer("shift", shift)
    if shift == 0:
        return head, labels
    shape = head.leading_shape
    _checks.require(
        len(shape) > 0,
        f"`shift` needs an axis to shift along, got `hidden` {_checks.describe(head.hidden)}.",
    )
    shift = min(shift, shape[-1])

    def roll(array: jax.Array) -> jax.Array:
        roll = functools.partial(jnp.roll, shift=-shift, axis=-1)
        return with_auto_axes(roll, array, example=array, ndim=array.ndim)

    has_label = jnp.arange(shape[-1]) < shape[-1] - shift
    where = jnp.broadcast_to(has_label.reshape(*[1] * (len(shape) - 1), -1), shape)
    where = where if head.where is None else where & roll(head.where)
    weights = None if head.weights is None else roll(head.weights)
    return dataclasses.replace(head, where=where, weights=weights), roll(labels)
