"""Named losses through a linear head; each is a few lines on a sweep."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _parallel
from jaxent._heads.checks import (
    Head,
    check_class_where,
    check_head,
    check_labels,
    check_transform,
    is_neutral,
)
from jaxent._heads.columns.sweep import linear_softmax_stats
from jaxent._heads.logits import transform_logits
from jaxent._heads.rows import sweep_rows
from jaxent._losses.reduction import mean
from jaxent._losses.softmax import softmax_cross_entropy_with_integer_labels
from jaxent._losses.softmax import z_loss as squared_log_normalizer
from jaxent._masks import nan_where_invalid, scale_loss
from jaxent._parallel import with_auto_axes


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
    axis_name: _parallel.AxisName = None,
) -> jax.Array:
    r"""Softmax cross-entropy with integer labels of a linear head, the logits never held at once.

    .. math::
        x_i = c \tanh\big((h_i W + b) / c\big) / \tau, \qquad
        \ell_i = \sum_j t_{ij} \Big( \log \sum_k e^{x_{ik}} - x_{ij} \Big)
        + z \Big( \log \sum_k e^{x_{ik}} \Big)^2

    It equals `softmax_cross_entropy_with_integer_labels(hidden @ kernel + bias, labels)`, reduced,
    with memory for a part of the logits instead of all of them. Sweeping columns of the logits
    (`jaxent.linear_softmax`) takes four matrix products for value and gradients and, on a CPU,
    about 16 MiB beside the gradients. Sweeping rows (`jaxent.linear_loss`) takes three for a mean
    or a sum, two if the kernel is not differentiated, but the logits of a chunk of rows and a
    float32 copy of the kernel's gradient.

    Rows, classes and features may be sharded over devices in any combination, and so may the last
    two leading axes of `hidden`, as [batch, time]. JAX wants axes that the mesh divides: add rows
    that `where` masks, and classes of zeros whose bias is -inf (or that `class_where` of
    `jaxent.linear_softmax` removes).

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
        shift: How many places further on the last leading axis the label of a row stands: 1 trains
            a causal language model on `labels` that are its own tokens. The mask and the weights
            move with the labels; the last `shift` rows have none and do not count.
        sweep: "rows" or "columns" of the logits; None takes rows for a mean or a sum with D > 256
            or in 16 bits, else columns. A `chunk_size` asks for rows, a `block_size` for columns.
            Columns always need least memory.
        chunk_size: The largest number of rows whose logits exist at a time in a sweep over rows;
            None picks it: 64 MiB of float32 logits, but at least 256 rows.
        block_size: The largest number of classes whose logits exist at a time in a sweep over
            columns; None picks it, see `jaxent.linear_softmax`.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `kernel` and `bias` are then one block,
            while `labels` count all classes. None for none.

    Returns:
        A scalar in nats, or the leading shape of `hidden` for "none"; float32, or float64 for
        float64 inputs.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

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
    _checks.check_mesh_axis(axis_name)
    head = check_head(hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size)
    labels = check_labels(labels, head)
    head, labels = _shifted(shift, head, labels)
    _checks.check_closed_interval("label_smoothing", label_smoothing, 0.0, 1.0)
    _checks.check_finite("z_loss", z_loss)
    _checks.check_closed_interval("z_loss", z_loss, 0.0, math.inf)
    if block_size is not None:
        _checks.check_positive_integer("block_size", block_size)
    _checks.check_one_of("sweep", sweep, (None, "rows", "columns"))
    if sweep is None and (chunk_size, block_size) != (None, None):
        sweep = "columns" if chunk_size is None else "rows"
    unused = chunk_size if sweep == "columns" else block_size if sweep == "rows" else None
    _checks.require(
        unused is None,
        f"`chunk_size` is of a sweep over rows and `block_size` of one over columns; got {unused} "
        f'for the other, of "{sweep}".',
    )
    cap, divisor = check_transform(soft_cap, temperature)
    options = {"soft_cap": cap, "temperature": divisor}
    for option, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        options[option] = None if is_neutral(value, 0.0) else _checks.as_scalar(option, value)
    loss = functools.partial(
        _cross_entropy,
        reduction=reduction,
        sweep=sweep,
        chunk_size=chunk_size,
        block_size=block_size,
        axis_name=axis_name,
    )
    axes = len(head.leading_shape) if reduction == "none" else 0
    return with_auto_axes(loss, head, labels, options, like=head.hidden, axes=axes)


class LinearSoftmax(NamedTuple):
    """What `linear_softmax` says of each row, in nats; `top_class` is an index."""

    cross_entropy: jax.Array
    log_normalizer: jax.Array
    uniform_cross_entropy: jax.Array
    entropy: jax.Array
    top_class: jax.Array
    top_logit: jax.Array


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
    axis_name: _parallel.AxisName = None,
) -> LinearSoftmax:
    r"""Statistics of each row's softmax, with the logits never held at once.

    .. math::
        x_i = c \tanh\big((h_i W + b) / c\big) / \tau, \qquad
        z_i = \log \sum_j e^{x_{ij}}, \qquad p_{ij} = e^{x_{ij} - z_i}

    Any loss that is a function of these numbers is ordinary JAX on the results: label smoothing is
    `(1 - a) * cross_entropy + a * uniform_cross_entropy`, z-loss `log_normalizer ** 2`, an entropy
    bonus `-entropy`, accuracy `mean(top_class == labels)`. Results that are not used cost nothing
    once compiled.

    Args:
        hidden: Input of the head, `[..., D]`, floating point.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`. Products are taken
            in the common dtype of `hidden` and `kernel` and accumulated in float32.
        labels: Index of the true class of each row, integers `[...]`.
        bias: Added to the logits, `[V]`; None for none.
        vocab_axis: The axis of `kernel` that is the vocabulary: -1 (or 1), or 0 if tied embeddings
            are the kernel.
        soft_cap: The bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: The divisor :math:`\tau > 0` of the (capped) logits, a scalar.
        where: Mask of the rows, `[...]`; every result of a masked row is 0.
        class_where: Mask of the classes, `[V]`; a label that it masks is out of range.
        block_size: The largest number of classes in a tile of logits: 1024 on a CPU and 8192
            elsewhere if None. A tile has about :math:`2^{20}` (elsewhere :math:`2^{24}`) logits.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.
            `labels` and `top_class` count all classes.

    Returns:
        A named tuple of arrays `[...]` in nats, float32 (float64 for float64 inputs):
        `cross_entropy` :math:`z - x_y`; `log_normalizer` :math:`z`; `uniform_cross_entropy`, the
        mean of :math:`z - x_j` over the classes; `entropy` :math:`\sum_j p_j (z - x_j)`;
        `top_class`, the first index of the largest logit, int32; `top_logit`, that logit. All but
        `top_class` are differentiable.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `linear_softmax_cross_entropy`, a reduced loss; `linear_log_prob`, for policies.

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
        Sums relative to a running maximum: Milakov and Gimelshein, `Online normalizer calculation
        for softmax <https://arxiv.org/abs/1805.02867>`_, 2018. Blocks of a vocabulary: Wijmans et
        al., `Cut Your Losses <https://arxiv.org/abs/2411.09009>`_, 2024.
    """
    _checks.check_mesh_axis(axis_name)
    head = check_head(hidden, kernel, bias, vocab_axis, where, None, "none", None)
    labels = check_labels(labels, head)
    cap, divisor = check_transform(soft_cap, temperature)
    if block_size is not None:
        _checks.check_positive_integer("block_size", block_size)
    class_where = check_class_where(class_where, head)
    stats = linear_softmax_stats(head, labels, class_where, cap, divisor, block_size, axis_name)
    return LinearSoftmax(*stats)


class LinearLogProb(NamedTuple):
    """What `linear_log_prob` says of each row, in nats."""

    log_prob: jax.Array
    entropy: jax.Array


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
    axis_name: _parallel.AxisName = None,
) -> LinearLogProb:
    r"""Log-probability of each row's label, and the entropy of its distribution.

    .. math::
        \log p_{i y_i} = x_{i y_i} - \log \sum_j e^{x_{ij}}, \qquad
        H_i = -\sum_j p_{ij} \log p_{ij}

    What reinforcement learning asks of a language model's head, for the losses of
    `jaxent.policy_gradient_loss` and its kind, without ever holding the logits :math:`x`. See
    `jaxent.linear_softmax`, whose arguments these are; what is not used costs nothing once
    compiled.

    Args:
        hidden: What the head is applied to, `[..., D]`, floating point.
        kernel: Weights of the head, `[D, V]`, or `[V, D]` with `vocab_axis=0`, floating point.
        labels: Index of the class (the token, the action) of each row, integers of the leading
            shape of `hidden`. One out of range makes its log-probability NaN unless it is masked.
        bias: Added to the logits, `[V]`, floating point; None for none.
        vocab_axis: Which axis of `kernel` is the vocabulary: -1 (or 1), or 0 as in tied embeddings.
        soft_cap: Bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: What the (capped) logits are divided by, a positive scalar.
        where: Booleans of the leading shape of `hidden`: True where the row counts. A row that does
            not has zeros for results and gradient 0, whatever it holds.
        class_where: Booleans `[V]`: True where the class exists.
        shift: How many places further on the last leading axis the label of a row stands, as in
            `jaxent.linear_softmax_cross_entropy`; `where` moves with the labels.
        block_size: The largest number of classes whose logits exist at a time; None picks it.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split, as in
            `jaxent.linear_softmax`.

    Returns:
        A named tuple of `log_prob` and `entropy`, in nats, of the leading shape of `hidden`,
        float32 (float64 for float64 inputs), both differentiable.

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
        The entropy bonus: Mnih et al., `Asynchronous Methods for Deep Reinforcement Learning
        <https://arxiv.org/abs/1602.01783>`_, 2016, section 4.
    """
    _checks.check_mesh_axis(axis_name)
    head = check_head(hidden, kernel, bias, vocab_axis, where, None, "none", None)
    head, labels = _shifted(shift, head, check_labels(labels, head))
    cap, divisor = check_transform(soft_cap, temperature)
    class_where = check_class_where(class_where, head)
    if block_size is not None:
        _checks.check_positive_integer("block_size", block_size)
    rows = linear_softmax_stats(head, labels, class_where, cap, divisor, block_size, axis_name)
    # Not a negation: a masked row has 0, not -0.
    return LinearLogProb(0.0 - rows.cross_entropy, rows.entropy)


def _shifted(shift: int, head: Head, labels: jax.Array) -> tuple[Head, jax.Array]:
    """The labels, the mask and the weights moved to the rows that they are of.

    Nothing of the size of `hidden` moves.
    """
    _checks.check_non_negative_integer("shift", shift)
    if shift == 0:
        return head, labels
    _checks.require(
        len(head.leading_shape) > 0,
        f"`shift` needs an axis to shift along, got `hidden` {_checks.describe(head.hidden)}.",
    )
    shift = min(shift, head.leading_shape[-1])

    def moved(array):
        roll = functools.partial(jnp.roll, shift=-shift, axis=-1)
        return with_auto_axes(roll, array, like=array, axes=array.ndim)

    shape = head.leading_shape
    has_label = jnp.arange(shape[-1]) < shape[-1] - shift
    where = jnp.broadcast_to(has_label.reshape(*[1] * (len(shape) - 1), -1), shape)
    where = where if head.where is None else where & moved(head.where)
    weights = None if head.weights is None else moved(head.weights)
    return dataclasses.replace(head, where=where, weights=weights), moved(labels)


@functools.partial(
    jax.jit,
    static_argnames=("reduction", "sweep", "chunk_size", "block_size", "axis_name"),
    inline=True,
)
def _cross_entropy(
    head: Head,
    labels: jax.Array,
    options: dict[str, jax.Array | None],
    reduction: str,
    sweep: str | None,
    chunk_size: int | None,
    block_size: int | None,
    axis_name: _parallel.AxisName,
) -> jax.Array:
    dtype = head.dtype
    options = jax.tree.map(lambda value: value.astype(dtype), options)

    def by_rows(head, labels, options):
        options = jax.tree.map(
            lambda o: _parallel.pvary(o, _parallel.varying_axes(labels)), options
        )

        def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
            logits = transform_logits(logits, options["soft_cap"], options["temperature"])
            smoothing = 0.0 if options["label_smoothing"] is None else options["label_smoothing"]
            losses = softmax_cross_entropy_with_integer_labels(
                logits, labels, label_smoothing=smoothing, axis_name=axis_name
            )
            if options["z_loss"] is not None:
                losses += _weight(options["z_loss"]) * squared_log_normalizer(
                    logits, axis_name=axis_name
                )
            return losses

        return sweep_rows(loss_fn, head, (labels,), reduction, chunk_size)

    def by_columns(head, labels, options):
        transform = options["soft_cap"], options["temperature"]
        row = linear_softmax_stats(head, labels, None, *transform, block_size, axis_name)
        losses = _smoothed(row.cross_entropy, row.uniform_cross_entropy, options["label_smoothing"])
        if options["z_loss"] is not None:
            losses += _weight(options["z_loss"]) * jnp.square(row.log_normalizer)
        weights = None if head.weights is None else head.weights.astype(dtype)
        if reduction == "mean":
            return mean(losses, head.where, weights)
        if weights is not None:
            losses *= weights if head.where is None else jnp.where(head.where, weights, 0.0)
        if head.where is not None:
            losses = jnp.where(head.where, losses, 0.0)
        return jnp.sum(losses) if reduction == "sum" else losses

    if sweep is None:
        sweep = _faster_sweep(reduction, head)
    return (by_rows if sweep == "rows" else by_columns)(head, labels, options)


def _faster_sweep(reduction: str, head: Head) -> str:
    """The sweep that is faster for these shapes and dtypes.

    Time of columns over rows, value and gradients on two CPU cores (benchmarks/results.md):

    * a mean, float32: 0.75 at D = 128, 0.89 to 1.02 at 256, 1.16 to 1.25 from 512 on, where the
      fourth product outweighs the passes over larger tiles; in bfloat16 1.01 to 1.5;
    * one loss per row: 0.62 to 0.95, four products against four.

    What is differentiated does not decide: the bits of a value must not depend on it. With a
    frozen kernel, columns take 1.09 to 1.56 times as long (three products against two).
    """
    is_short = head.hidden.dtype.itemsize == 2 and head.kernel.dtype.itemsize == 2
    is_mean = reduction != "none"
    return "rows" if is_mean and (is_short or head.hidden.shape[-1] > 256) else "columns"


def _weight(z_loss: jax.Array) -> jax.Array:
    return nan_where_invalid(z_loss, (z_loss >= 0.0) & (z_loss < jnp.inf))


def _smoothed(
    cross_entropy: jax.Array, uniform: jax.Array, smoothing: jax.Array | None
) -> jax.Array:
    """The cross-entropy with a share of the target spread evenly over the classes."""
    if smoothing is None:
        return cross_entropy
    smoothing = nan_where_invalid(smoothing, (smoothing >= 0.0) & (smoothing <= 1.0))
    return scale_loss(1.0 - smoothing, cross_entropy) + scale_loss(smoothing, uniform)
