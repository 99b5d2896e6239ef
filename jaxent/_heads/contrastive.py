"""Losses that tell each true pair from all others in the batch, in memory linear in the batch.

The similarities of queries and keys are the logits of a linear head whose kernel is the keys, so
that a sweep over chunks of rows serves here as well: the [batch, batch] matrix never exists.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._float.sums import blocked_sum
from jaxent._heads.api import linear_softmax_cross_entropy
from jaxent._heads.rows import linear_loss
from jaxent._kernels.sigmoid import softplus
from jaxent._losses.logits import temperature_scaling
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
) -> jax.Array:
    r"""InfoNCE: cross-entropy of finding each query's own key among all keys, by dot products.

    .. math::
        x_{ij} = \langle q_i, k_j \rangle / \tau, \qquad
        \ell_i = \log \sum_j e^{x_{ij}} - x_{i y_i}

    The keys of the other queries serve as negatives; further negatives, such as a queue of earlier
    keys, are simply more keys. The similarities `[N, M]` exist for a chunk of queries at a time,
    and three matrix products yield value and gradients.

    With data parallelism under `jit` the arrays are global and nothing needs to be done; within
    `jax.shard_map` gather the keys with `keys = jax.lax.all_gather(keys, axis_name, tiled=True)`
    and pass `labels = jnp.arange(N) + N * jax.lax.axis_index(axis_name)` for N local queries.

    Args:
        queries: Embeddings `[N, D]`, floating point. Every product has operands of the common
            dtype of `queries` and `keys` and is accumulated in float32.
        keys: Embeddings `[M, D]`, floating point. Key i belongs to query i, which takes M >= N,
            unless `labels` say otherwise.
        temperature: What the dot products are divided by, :math:`\tau > 0`, a scalar; if an array,
            it can be learned (NaN if out of range). 0.07 is common for vectors of unit length.
        labels: Index of the key that belongs to each query, integers `[N]`; None for 0, 1, 2, ...
            An index outside `[0, M)`, or of a key that does not exist, makes its query NaN unless
            it is masked.
        where: Booleans `[N]` or a scalar: True where the query counts. A query that does not has
            loss 0 and gradient 0, whatever it holds.
        key_where: Booleans `[M]` or a scalar: True where the key exists; a key that does not is in
            nobody's sum and has gradient 0, whatever it holds. None: if `labels` is None as well,
            a masked query takes its key with it, as though the pair were not in the batch; all
            other keys exist.
        weights: Real weights of the queries, `[N]` or a scalar; None is 1.
        normalize: Whether to divide every embedding by its length first (vectors of zeros stay, and
            have gradient 0), so that the products are cosine similarities.
        reduction: "mean" over the queries and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each query.
        chunk_size: The largest number of queries whose similarities exist at a time; None picks it:
            64 MiB of float32, but at least 256 queries.

    Returns:
        A scalar in nats, or `[N]` for "none"; float32, or float64 for float64 inputs.

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
        van den Oord et al., `Representation Learning with Contrastive Predictive Coding
        <https://arxiv.org/abs/1807.03748>`_, 2018, equation 4. Temperature: Wu et al.,
        `Unsupervised Feature Learning via Non-Parametric Instance Discrimination
        <https://arxiv.org/abs/1805.01978>`_, 2018, section 3.1.
    """
    batch = _check_batch(
        {"queries": queries, "keys": keys},
        labels,
        {"where": where, "key_where": key_where},
        weights,
    )
    options = _check_options(normalize, reduction, chunk_size)
    _checks.check_open_interval("temperature", temperature, 0.0, math.inf)
    temperature = _checks.as_scalar("temperature", temperature)
    return _computed(_info_nce, batch, options, temperature)


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
) -> jax.Array:
    r"""CLIP: each image is to find its text among all texts, and each text its image.

    .. math::
        x_{ij} = e^{-t} \langle a_i, b_j \rangle, \qquad
        \ell_i = \tfrac{1}{2} \Big( \log \sum_j e^{x_{ij}} - x_{ii} \Big)
        + \tfrac{1}{2} \Big( \log \sum_j e^{x_{ji}} - x_{ii} \Big)

    It is the mean of `jaxent.info_nce` of the two directions, each of which takes three matrix
    products for value and gradients. See there for data parallelism: within `jax.shard_map`, take
    that mean yourself, of local images among gathered texts and of local texts among gathered
    images.

    Args:
        images: Embeddings `[N, D]`, floating point. Every product has operands of the common dtype
            of `images` and `texts` and is accumulated in float32.
        texts: Embeddings `[N, D]`, floating point; text i belongs to image i.
        log_temperature: Logarithm :math:`t` of the temperature that divides the dot products, a
            scalar; if an array, it can be learned. OpenAI's `logit_scale`, whose exponential
            multiplies them, is its negative: start from `log(0.07)` as they do, and bound it from
            below by `-log(100)`.
        where: Booleans `[N]` or a scalar: True where the pair counts. One that does not is as if it
            were not in the batch: loss and gradients are 0, whatever it holds, and it is no
            negative of the others.
        weights: Real weights of the pairs, `[N]` or a scalar; None is 1.
        normalize: Whether to divide every embedding by its length first (vectors of zeros stay, and
            have gradient 0). CLIP is defined on such vectors.
        reduction: "mean" over the pairs and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each pair.
        chunk_size: The largest number of rows whose similarities exist at a time; None picks it:
            64 MiB of float32, but at least 256 rows.

    Returns:
        A scalar in nats, or `[N]` for "none"; float32, or float64 for float64 inputs.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> images = jnp.eye(2)
        >>> texts = jnp.array([[1.0, 0.0], [0.6, 0.8]])
        >>> print(jaxent.clip_loss(images, texts, jnp.log(0.07)).round(4))
        0.0148

    References:
        Radford et al., `Learning Transferable Visual Models From Natural Language Supervision
        <https://arxiv.org/abs/2103.00020>`_, 2021, figure 3 and section 2.5.
    """
    batch = _check_batch(
        {"images": images, "texts": texts},
        None,
        {"where": where},
        weights,
    )
    _checks.require(
        len(batch.queries) == len(batch.keys),
        f"`images` {_checks.describe(batch.queries)} and `texts` {_checks.describe(batch.keys)} "
        "must have equally many rows, a pair each; further negatives are for `jaxent.info_nce`.",
    )
    options = _check_options(normalize, reduction, chunk_size)
    log_temperature = _check_finite("log_temperature", log_temperature)
    return _computed(_clip, batch, options, log_temperature)


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
) -> jax.Array:
    r"""SigLIP: for every image and every text, the yes/no question whether they are a pair.

    .. math::
        x_{ij} = e^{-t} \langle a_i, b_j \rangle + b, \qquad
        \ell_i = \log(1 + e^{-x_{i y_i}}) + \sum_{j \ne y_i} \log(1 + e^{x_{ij}})

    The mean over images is the paper's loss: the sum over all pairs divided by the batch. Value and
    gradients take three matrix products. For data parallelism see `jaxent.info_nce`; texts are
    what is gathered.

    Args:
        images: Embeddings `[N, D]`, floating point. Every product has operands of the common dtype
            of `images` and `texts` and is accumulated in float32.
        texts: Embeddings `[M, D]`, floating point. Text i belongs to image i, which takes M >= N,
            unless `labels` say otherwise; further texts are further negatives.
        log_temperature: Logarithm :math:`t` of the temperature that divides the dot products, a
            scalar; if an array, it can be learned. The paper's :math:`t'`, whose exponential
            multiplies them, is its negative: it starts from :math:`t' = \log 10`, so here from
            `-log(10)`.
        bias: Added to every logit, :math:`b`, a scalar; if an array, it can be learned. The paper
            starts from -10, since nearly all pairs are negatives.
        labels: Index of the text that belongs to each image, integers `[N]`; None for 0, 1, 2, ...
            An index outside `[0, M)`, or of a text that does not exist, makes its image NaN unless
            it is masked.
        where: Booleans `[N]` or a scalar: True where the image counts. One that does not has loss
            0 and gradient 0, whatever it holds.
        text_where: Booleans `[M]` or a scalar: True where the text exists; one that does not is in
            nobody's sum and has gradient 0, whatever it holds. None: if `labels` is None as well,
            a masked image takes its text with it, as though the pair were not in the batch; all
            other texts exist.
        weights: Real weights of the images, `[N]` or a scalar; None is 1.
        normalize: Whether to divide every embedding by its length first (vectors of zeros stay, and
            have gradient 0). SigLIP is defined on such vectors.
        reduction: "mean" over the images and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each image.
        chunk_size: The largest number of images whose similarities exist at a time; None picks it:
            64 MiB of float32, but at least 256 images.

    Returns:
        A scalar in nats, or `[N]` for "none"; float32, or float64 for float64 inputs.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> images = texts = jnp.eye(3)
        >>> print(jaxent.sigmoid_contrastive_loss(images, texts, -jnp.log(10.0), -10.0).round(4))
        0.6932

    References:
        Zhai et al., `Sigmoid Loss for Language Image Pre-Training
        <https://arxiv.org/abs/2303.15343>`_, 2023, section 3.2 and algorithm 1.
    """
    batch = _check_batch(
        {"images": images, "texts": texts},
        labels,
        {"where": where, "text_where": text_where},
        weights,
    )
    options = _check_options(normalize, reduction, chunk_size)
    log_temperature = _check_finite("log_temperature", log_temperature)
    bias = _check_finite("bias", bias)
    return _computed(_sigmoid, batch, options, log_temperature, bias)


class _Batch(NamedTuple):
    """Checked embeddings of queries and of keys, which belong together, and what of them counts."""

    queries: jax.Array  # [N, D]
    keys: jax.Array  # [M, D]
    labels: Any  # integers [N], or None for 0, 1, 2, ...
    where: jax.Array | None  # [N]
    key_where: jax.Array | None  # [M]
    weights: jax.Array | None  # [N]


class _Options(NamedTuple):
    """What is fixed while tracing."""

    normalize: bool
    reduction: str
    chunk_size: int | None


def _check_batch(
    embeddings: Mapping[str, ArrayLike],
    labels: ArrayLike | None,
    masks: Mapping[str, ArrayLike | None],
    weights: ArrayLike | None,
) -> _Batch:
    """The arguments that all losses here share as arrays, refused unless they fit each other.

    Args:
        name: who asks.
        embeddings: queries and keys, by the names they have there.
        labels: which key belongs to each query, as given.
        masks: of the queries, and of the keys if there is one, by their names.
        weights: of the queries, as given.
    """
    (own, queries), (other, keys) = (
        (key, _checks.as_floating(key, value)) for key, value in embeddings.items()
    )
    given = f"`{own}` {_checks.describe(queries)} and `{other}` {_checks.describe(keys)}"
    _checks.require(
        queries.ndim == keys.ndim == 2 and queries.shape[1] == keys.shape[1],
        f"{given} must be matrices [N, D] and [M, D] of one embedding a row and of equal D; "
        "join leading axes with `x.reshape(-1, x.shape[-1])`.",
    )
    _checks.require(
        len(keys) > 0, f"`{other}` {_checks.describe(keys)} has no rows; pass at least one."
    )
    if labels is None:
        _checks.require(
            len(queries) <= len(keys),
            f"{given} leave rows of `{own}` without a partner, the row of `{other}` of the same "
            "number; add the missing ones, or pass `labels`.",
        )
    else:
        remedy = f"pass the index of each row's partner in `{other}`."
        labels = _checks.as_integer("labels", labels, remedy)
        _checks.require(
            labels.shape == queries.shape[:1],
            f"`labels` {_checks.describe(labels)} must be [{len(queries)}], one for each row of "
            f"`{own}` {_checks.describe(queries)}.",
        )
    if weights is not None:
        weights = _checks.as_real("weights", weights)
        weights = _checks.broadcast_per_row("weights", weights, queries.shape[:1], own)
    key_where = None
    (own_mask, where), *others = masks.items()
    where = _check_mask(own_mask, where, own, queries)
    for other_mask, value in others:
        key_where = _check_mask(other_mask, value, other, keys)
    return _Batch(queries, keys, labels, where, key_where, weights)


def _check_mask(mask: str, value: ArrayLike | None, of: str, matrix: jax.Array) -> jax.Array | None:
    if value is None:
        return None
    return _checks.broadcast_per_row(mask, _checks.as_boolean(mask, value), matrix.shape[:1], of)


def _check_options(normalize: bool, reduction: str, chunk_size: int | None) -> _Options:
    _checks.check_one_of("normalize", normalize, (False, True))
    _checks.check_one_of("reduction", reduction, ("mean", "sum", "none"))
    if chunk_size is not None:
        _checks.check_positive_integer("chunk_size", chunk_size)
    return _Options(bool(normalize), reduction, chunk_size)


def _check_finite(argument: str, value: ArrayLike) -> jax.Array:
    _checks.check_finite(argument, value)
    return _checks.as_scalar(argument, value)


def _computed(
    loss: Callable[..., jax.Array], batch: _Batch, options: _Options, *scalars: jax.Array
) -> jax.Array:
    loss = functools.partial(loss, options=options)
    axes = 1 if options.reduction == "none" else 0
    return with_auto_axes(loss, batch, *scalars, like=batch.queries, axes=axes)


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _info_nce(batch: _Batch, temperature: jax.Array, options: _Options) -> jax.Array:
    batch, left = _tempered(_ready(batch, options), temperature)
    return _one_way(batch, left, options)


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _clip(batch: _Batch, log_temperature: jax.Array, options: _Options) -> jax.Array:
    there, left = _tempered(_ready(batch, options), _exp(batch, log_temperature))
    back = there._replace(queries=there.keys, keys=there.queries)
    return 0.5 * _one_way(there, left, options) + 0.5 * _one_way(back, left, options)


@functools.partial(jax.jit, static_argnames="options", inline=True)
def _sigmoid(
    batch: _Batch, log_temperature: jax.Array, bias: jax.Array, options: _Options
) -> jax.Array:
    batch, left = _tempered(_ready(batch, options), _exp(batch, log_temperature))
    count = len(batch.keys)
    bias = bias.astype(compute_dtype(batch.queries, batch.keys))
    bias = _masks.nan_where_invalid(bias, jnp.isfinite(bias))

    def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
        logits = logits if left is None else temperature_scaling(logits, left)
        logits += bias
        is_pair = jnp.arange(count, dtype=labels.dtype)[None, :] == labels[:, None]
        losses = blocked_sum(softplus(jnp.where(is_pair, -logits, logits)))
        return _masks.nan_where_invalid(losses, (labels >= 0) & (labels < count))

    return linear_loss(
        loss_fn, batch.queries, batch.keys, batch.labels, **_of_a_head(batch, options)
    )


def _one_way(batch: _Batch, temperature: jax.Array | None, options: _Options) -> jax.Array:
    """Cross-entropy of each query's key among all keys."""
    return linear_softmax_cross_entropy(
        batch.queries,
        batch.keys,
        batch.labels,
        temperature=1.0 if temperature is None else temperature,
        sweep="rows",
        **_of_a_head(batch, options),
    )


def _of_a_head(batch: _Batch, options: _Options) -> dict[str, Any]:
    """What a loss through a linear head is told if the keys are its kernel."""
    bias = None
    if batch.key_where is not None:
        # Exactly nothing is left of a class at -inf, in any sum and in any derivative.
        bias = jnp.where(batch.key_where, 0.0, -jnp.inf).astype(jnp.float32)
    return {
        "bias": bias,
        "vocab_axis": 0,
        "where": batch.where,
        "weights": batch.weights,
        "reduction": options.reduction,
        "chunk_size": options.chunk_size,
    }


def _ready(batch: _Batch, options: _Options) -> _Batch:
    """The batch with labels, and with zeros in place of embeddings that do not count."""
    queries, keys, labels, where, key_where, _ = batch
    if labels is None and key_where is None and where is not None:
        rest = jnp.ones(len(keys) - len(queries), dtype=bool)
        key_where = jnp.concatenate([where, rest])
    labels = jnp.arange(len(queries)) if labels is None else _masks.widen_labels(labels)
    if key_where is not None:
        labels = jnp.where(jnp.take(key_where, labels, mode="clip"), labels, -1)
    queries, keys = _keep(queries, where), _keep(keys, key_where)
    if options.normalize:
        queries, keys = _unit(queries), _unit(keys)
    return batch._replace(queries=queries, keys=keys, labels=labels, key_where=key_where)


def _keep(embeddings: jax.Array, where: jax.Array | None) -> jax.Array:
    if where is None:
        return embeddings
    return jnp.where(where[:, None], embeddings, jnp.zeros((), embeddings.dtype))


def _unit(embeddings: jax.Array) -> jax.Array:
    """Each row divided by its length; of a row of zeros nothing depends on anything."""
    rows = embeddings.astype(compute_dtype(embeddings))
    # Squares of numbers up to 1 do not overflow, and that of the largest does not vanish.
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(rows), axis=1, keepdims=True))
    is_zero = largest == 0.0
    rows = jnp.where(is_zero, 0.0, rows / jnp.where(is_zero, 1.0, largest))
    square = jnp.sum(jnp.square(rows), axis=1, keepdims=True)
    return (rows / jnp.sqrt(jnp.where(is_zero, 1.0, square))).astype(embeddings.dtype)


def _exp(batch: _Batch, log_temperature: jax.Array) -> jax.Array:
    return jnp.exp(log_temperature.astype(compute_dtype(batch.queries, batch.keys)))


def _tempered(batch: _Batch, temperature: jax.Array) -> tuple[_Batch, jax.Array | None]:
    """The batch with its queries divided by the temperature, or a temperature left for the logits.

    Queries are far fewer than similarities. But in 16 bits a quotient would lose digits that the
    similarities, which are accumulated in float32, still have.
    """
    dtype = compute_dtype(batch.queries, batch.keys)
    if batch.queries.dtype == batch.keys.dtype != dtype:
        return batch, temperature
    queries = temperature_scaling(batch.queries.astype(dtype), temperature)
    return batch._replace(queries=queries), None
