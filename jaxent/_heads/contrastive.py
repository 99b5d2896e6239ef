"""Losses that tell each true pair from all others in the batch, in memory linear in the batch.

The similarities of queries and keys are the logits of a linear head whose kernel is the keys, so
the sweep over chunks of rows serves here as well: the [batch, batch] matrix never exists.
"""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._float.sums import blocked_sum
from jaxent._heads import cross_entropy
from jaxent._heads.checks import Head, as_dtype, check_size
from jaxent._heads.logits import transform_logits
from jaxent._heads.rows import sweep_rows
from jaxent._kernels.sigmoid import softplus
from jaxent._parallel import with_auto_axes


@_checks.public
def info_nce(
    queries: ArrayLike,
    keys: ArrayLike,
    temperature: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
    key_where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    chunk_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""InfoNCE: cross-entropy of finding each query's own key among all keys, by dot products.

    .. math:: x_{ij} = \langle q_i, k_j \rangle / \tau, \qquad
        \ell_i = \log \sum_j e^{x_{ij}} - x_{i y_i}

    The keys of the other queries are the negatives; further negatives, such as a queue of earlier
    keys, are more keys. In both directions: `clip_loss`. Inside `jax.shard_map` gather the keys
    with `keys = jax.lax.all_gather(keys, axis_name, tiled=True)` and pass `labels = jnp.arange(N) +
    N * jax.lax.axis_index(axis_name)` for N local queries.

    Args:
        queries: Embeddings `[N, D]`, floating point.
        keys: Embeddings `[M, D]`; without `labels`, key i belongs to query i, and M >= N.
        temperature: The divisor :math:`\tau > 0` of the products, a scalar, which can be learned.
        labels: Index of each query's key, integers `[N]`; None for 0, 1, 2, ...
        where: Mask of the queries, `[N]` or a scalar.
        key_where: Mask of the keys, `[M]` or a scalar. None, where `labels` is None too, masks the
            keys of masked queries and no others.
        weights: Weights of the queries, `[N]` or a scalar, real; None for 1.
        normalize: Whether to divide every embedding by its length first (zeros stay zeros).
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[N]`.
        chunk_size: The most rows in a chunk; None goes by shape and platform, as in `linear_loss`.
        dtype: Of the operands of matrix products, see `linear_loss`.

    Returns:
        A scalar in nats, or `[N]` for "none"; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> queries = jnp.array([[1.0, 0.0], [0.6, 0.8]])
        >>> keys = jnp.array([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]])
        >>> print(jaxent.info_nce(queries, keys, 0.1).round(4))
        0.8921

    References:
        van den Oord et al., `CPC <https://arxiv.org/abs/1807.03748>`_, 2018, equation 4; Wu et al.,
        `Instance Discrimination <https://arxiv.org/abs/1805.01978>`_, 2018, section 3.1.
    """
    batch = _check_batch(
        {"queries": queries, "keys": keys},
        labels,
        {"where": where, "key_where": key_where},
        weights,
    )
    options = _check_options(batch, normalize, reduction, chunk_size, dtype)
    _checks.check_open_interval("temperature", temperature, 0.0, math.inf)
    temperature = _checks.as_scalar("temperature", temperature)
    return _apply(_info_nce, batch, options, temperature)


@_checks.public
def clip_loss(
    images: ArrayLike,
    texts: ArrayLike,
    log_temperature: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    chunk_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""CLIP: each image is to find its text among all texts, and each text its image.

    .. math:: x_{ij} = e^{-t} \langle a_i, b_j \rangle, \qquad
        \ell_i = \tfrac{1}{2} \Big( \log \sum_j e^{x_{ij}} - x_{ii} \Big)
        + \tfrac{1}{2} \Big( \log \sum_j e^{x_{ji}} - x_{ii} \Big)

    It is the mean of `info_nce` of the two directions. Inside `jax.shard_map` take that mean
    yourself, of local images among gathered texts and of local texts among gathered images.

    Args:
        images: Embeddings `[N, D]`, floating point.
        texts: Embeddings `[N, D]`; text i belongs to image i.
        log_temperature: Logarithm t of the temperature, a scalar; an array can be learned. It is
            the negative of OpenAI's `logit_scale`: start from `log(0.07)`, and bound it from below
            by `-log(100)`. **Not the temperature itself: 0.07 would divide by 1.07.**
        where: Mask of the pairs, `[N]` or a scalar; a masked pair is no negative of the others.
        weights: Weights of the pairs, `[N]` or a scalar, real; None for 1.
        normalize: Whether embeddings are divided by their lengths first (zeros stay), as in CLIP.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[N]`.
        chunk_size: The most rows in a chunk; None goes by shape and platform, as in `linear_loss`.
        dtype: Of the operands of matrix products, see `linear_loss`.

    Returns:
        A scalar in nats, or `[N]` for "none"; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> images, texts = jnp.eye(2), jnp.array([[1.0, 0.0], [0.6, 0.8]])
        >>> print(jaxent.clip_loss(images, texts, jnp.log(0.07)).round(4))
        0.0148

    References:
        Radford et al., `CLIP <https://arxiv.org/abs/2103.00020>`_, 2021, figure 3 and section 2.5.
    """
    batch = _check_batch(
        {"images": images, "texts": texts},
        None,
        {"where": where, "text_where": None},
        weights,
    )
    _checks.require(
        batch.queries.shape[0] == batch.keys.shape[0],
        f"`images` {_checks.describe(batch.queries)} and `texts` {_checks.describe(batch.keys)} "
        "must have equally many rows, a pair each; further negatives are for `jaxent.info_nce`.",
    )
    options = _check_options(batch, normalize, reduction, chunk_size, dtype)
    log_temperature = _check_finite("log_temperature", log_temperature)
    return _apply(_clip, batch, options, log_temperature)


@_checks.public
def sigmoid_contrastive_loss(
    images: ArrayLike,
    texts: ArrayLike,
    log_temperature: ArrayLike,
    bias: ArrayLike,
    *,
    labels: ArrayLike | None = None,
    where: ArrayLike | None = None,
    text_where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    normalize: bool = False,
    reduction: str = "mean",
    chunk_size: int | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    r"""SigLIP: for every image and every text, the yes/no question whether they are a pair.

    .. math:: x_{ij} = e^{-t} \langle a_i, b_j \rangle + b, \qquad
        \ell_i = \log(1 + e^{-x_{i y_i}}) + \sum_{j \ne y_i} \log(1 + e^{x_{ij}})

    The mean over images is the paper's loss: the sum over all pairs divided by the batch. Inside
    `jax.shard_map` gather the texts, as in `info_nce`.

    Args:
        images: Embeddings `[N, D]`, floating point.
        texts: Embeddings `[M, D]`; without `labels`, text i belongs to image i, and M >= N.
        log_temperature: Logarithm t of the temperature, a scalar; an array can be learned. It is
            the negative of the paper's :math:`t'`: start from `-log(10)`. **Not the temperature.**
        bias: Added to every logit, b, a scalar; an array can be learned. The paper starts from -10.
        labels: Index of each image's text, integers `[N]`; None for 0, 1, 2, ...
        where: Mask of the images, `[N]` or a scalar.
        text_where: Mask of the texts, `[M]` or a scalar. None, where `labels` is None too, masks
            the texts of masked images and no others.
        weights: Weights of the images, `[N]` or a scalar, real; None for 1.
        normalize: Whether embeddings are divided by their lengths first (zeros stay), as in SigLIP.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[N]`.
        chunk_size: The most rows in a chunk; None goes by shape and platform, as in `linear_loss`.
        dtype: Of the operands of matrix products, see `linear_loss`.

    Returns:
        A scalar in nats, or `[N]` for "none"; float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> images = texts = jnp.eye(3)
        >>> print(jaxent.sigmoid_contrastive_loss(images, texts, -jnp.log(10.0), -10.0).round(4))
        0.6932

    References:
        Zhai et al., `SigLIP <https://arxiv.org/abs/2303.15343>`_, 2023, section 3.2.
    """
    batch = _check_batch(
        {"images": images, "texts": texts},
        labels,
        {"where": where, "text_where": text_where},
        weights,
    )
    options = _check_options(batch, normalize, reduction, chunk_size, dtype)
    log_temperature = _check_finite("log_temperature", log_temperature)
    bias = _check_finite("bias", bias)
    return _apply(_sigmoid, batch, options, log_temperature, bias)


class _Batch(NamedTuple):
    """Checked embeddings, and which of them count."""

    queries: jax.Array  # [N, D]
    keys: jax.Array  # [M, D]
    labels: jax.Array | None  # [N] integers, None for 0, 1, 2, ...
    where: jax.Array | None  # [N] booleans
    key_where: jax.Array | None  # [M] booleans
    weights: jax.Array | None  # [N]


class _Options(NamedTuple):
    """What is static."""

    normalize: bool
    reduction: str
    chunk_size: int | None
    dtype: jnp.dtype | None  # of the operands of products


def _check_batch(
    embeddings: Mapping[str, ArrayLike],
    labels: ArrayLike | None,
    masks: Mapping[str, ArrayLike | None],
    weights: ArrayLike | None,
) -> _Batch:
    """The arguments that all losses here share as arrays, refused unless they fit each other.

    Args:
        embeddings: queries and keys, by their names in the public function.
        labels: which key belongs to each query, as given.
        masks: of the queries, and of the keys if there is one, by their names.
        weights: of the queries, as given.
    """
    (own, queries), (other, keys) = (
        (name, _checks.as_floating(name, value)) for name, value in embeddings.items()
    )
    given = f"`{own}` {_checks.describe(queries)} and `{other}` {_checks.describe(keys)}"
    _checks.require(
        queries.ndim == keys.ndim == 2 and queries.shape[1] == keys.shape[1],
        f"{given} must be matrices [N, D] and [M, D] of one embedding a row and of equal D; "
        "join leading axes with `x.reshape(-1, x.shape[-1])`.",
    )
    _checks.require(
        keys.shape[0] > 0, f"`{other}` {_checks.describe(keys)} has no rows; pass at least one."
    )
    if labels is None:
        _checks.require(
            queries.shape[0] <= keys.shape[0],
            f"{given} leave rows of `{own}` without a partner, the row of `{other}` of the same "
            "number; add the missing ones, or pass `labels`.",
        )
    else:
        labels = _check_labels(labels, own, queries, other)
    if weights is not None:
        weights = _checks.as_real("weights", weights)
        weights = _checks.broadcast_per_row("weights", weights, queries.shape[:1], own)
    where, key_where = (
        _check_mask(mask, value, name, rows)
        for (mask, value), (name, rows) in zip(
            masks.items(), ((own, queries), (other, keys)), strict=True
        )
    )
    return _Batch(queries, keys, labels, where, key_where, weights)


def _check_labels(labels: ArrayLike, own: str, queries: jax.Array, other: str) -> jax.Array:
    """`labels` as integers, refused unless there is one for each query."""
    remedy = f"pass the index of each row's partner in `{other}`."
    labels = _checks.as_integer("labels", labels, remedy)
    _checks.check_labels_shape(labels, queries.shape[:1], own, queries)
    return labels


def _check_mask(mask: str, value: ArrayLike | None, name: str, rows: jax.Array) -> jax.Array | None:
    """The mask of some rows as booleans, refused unless there is one for each row, or a scalar."""
    if value is None:
        return None
    return _checks.broadcast_per_row(mask, _checks.as_boolean(mask, value), rows.shape[:1], name)


def _check_options(
    batch: _Batch, normalize: bool, reduction: str, chunk_size: int | None, dtype: DTypeLike | None
) -> _Options:
    _checks.check_one_of("normalize", normalize, (False, True))
    _checks.check_one_of("reduction", reduction, ("mean", "sum", "none"))
    check_size("chunk_size", chunk_size)
    dtype = as_dtype(dtype, batch.queries, batch.keys)
    return _Options(bool(normalize), reduction, chunk_size, dtype)


def _check_finite(argument: str, value: ArrayLike) -> jax.Array:
    _checks.check_finite(argument, value)
    return _checks.as_scalar(argument, value)


# The losses of checked arguments.


def _apply(
    loss: Callable[..., jax.Array], batch: _Batch, options: _Options, *scalars: jax.Array
) -> jax.Array:
    loss = functools.partial(loss, options=options)
    axes = 1 if options.reduction == "none" else 0
    return with_auto_axes(loss, batch, *scalars, example=batch.queries, ndim=axes)


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _info_nce(batch: _Batch, temperature: jax.Array, options: _Options) -> jax.Array:
    batch, labels = _mask_and_normalize(batch, options)
    batch, temperature_left = _divide_queries(batch, temperature, options)
    return _cross_entropy(batch, labels, temperature_left, options)


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _clip(batch: _Batch, log_temperature: jax.Array, options: _Options) -> jax.Array:
    batch, labels = _mask_and_normalize(batch, options)
    batch, temperature_left = _divide_queries(batch, _exp(batch, log_temperature), options)
    swapped = batch._replace(queries=batch.keys, keys=batch.queries)
    to_text = _cross_entropy(batch, labels, temperature_left, options)
    to_image = _cross_entropy(swapped, labels, temperature_left, options)
    return 0.5 * to_text + 0.5 * to_image


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _sigmoid(
    batch: _Batch, log_temperature: jax.Array, bias: jax.Array, options: _Options
) -> jax.Array:
    batch, labels = _mask_and_normalize(batch, options)
    batch, temperature_left = _divide_queries(batch, _exp(batch, log_temperature), options)
    head, count = _as_head(batch, options), batch.keys.shape[0]
    bias = bias.astype(head.dtype)
    bias = intervals.nan_outside(bias, -jnp.inf, jnp.inf, "()")

    def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logits = transform_logits(logits, None, temperature_left) + bias
        is_pair = jnp.arange(count, dtype=labels.dtype)[None, :] == labels[:, None]
        losses = blocked_sum(softplus(jnp.where(is_pair, -logits, logits)))
        return intervals.nan_where_invalid(losses, (labels >= 0) & (labels < count))

    return sweep_rows(loss_fn, (head,), (labels,), options.reduction, options.chunk_size)


def _cross_entropy(
    batch: _Batch, labels: jax.Array, temperature: jax.Array | None, options: _Options
) -> jax.Array:
    """Softmax cross-entropy of each query's key among all keys."""
    return cross_entropy.softmax_cross_entropy(
        _as_head(batch, options),
        labels,
        cross_entropy.Options(temperature=temperature),
        reduction=options.reduction,
        sweep="rows",
        chunk_size=options.chunk_size,
    )


def _as_head(batch: _Batch, options: _Options) -> Head:
    """A head whose kernel are the keys, applied to the queries."""
    bias = None
    if batch.key_where is not None:
        # Nothing is left of a class at -inf, in any sum and in any derivative.
        bias = jnp.where(batch.key_where, 0.0, -jnp.inf).astype(jnp.float32)
    return Head(batch.queries, batch.keys, bias, batch.where, batch.weights, 0, options.dtype)


def _mask_and_normalize(batch: _Batch, options: _Options) -> tuple[_Batch, jax.Array]:
    """The batch with 0 for masked embeddings, and labels [N], which are -1 for a masked key."""
    queries, keys, labels, where, key_where, _ = batch
    if labels is None and key_where is None and where is not None:
        rest = jnp.ones(keys.shape[0] - queries.shape[0], dtype=bool)
        key_where = jnp.concatenate([where, rest])
    labels = jnp.arange(queries.shape[0]) if labels is None else _masks.widen_labels(labels)
    if key_where is not None:
        labels = jnp.where(jnp.take(key_where, labels, mode="clip"), labels, -1)
    queries, keys = _zero_masked(queries, where), _zero_masked(keys, key_where)
    if options.normalize:
        queries, keys = _normalize(queries), _normalize(keys)
    return batch._replace(queries=queries, keys=keys, key_where=key_where), labels


def _zero_masked(embeddings: jax.Array, where: jax.Array | None) -> jax.Array:
    return _masks.zero_where_masked(embeddings, None if where is None else where[:, None])


def _normalize(embeddings: jax.Array) -> jax.Array:
    """Each row divided by its length; a row of zeros stays, with derivative 0."""
    rows = embeddings.astype(compute_dtype(embeddings))
    # Squares of numbers up to 1 do not overflow, and that of the largest does not vanish.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    is_zero = largest == 0.0
    rows = jnp.where(is_zero, 0.0, rows / jnp.where(is_zero, 1.0, largest))
    square = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
    return (rows / jnp.sqrt(jnp.where(is_zero, 1.0, square))).astype(embeddings.dtype)


def _exp(batch: _Batch, log_temperature: jax.Array) -> jax.Array:
    return jnp.exp(log_temperature.astype(compute_dtype(batch.queries, batch.keys)))


def _divide_queries(
    batch: _Batch, temperature: jax.Array, options: _Options
) -> tuple[_Batch, jax.Array | None]:
    """The batch with its queries divided by the temperature, or a temperature left for the logits.

    Queries are far fewer than similarities. But in 16 bits a quotient would lose digits that the
    similarities, which are accumulated in float32, still have.
    """
    head = _as_head(batch, options)
    if head.operand_dtype != head.dtype:
        return batch, temperature
    queries = transform_logits(batch.queries.astype(head.dtype), None, temperature)
    return batch._replace(queries=queries), None
