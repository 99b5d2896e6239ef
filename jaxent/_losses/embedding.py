"""Losses of embeddings whose labels say which belong together.

Similarities are products of two matrices: no array holds the features of every pair.
"""

from __future__ import annotations

import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import embedding
from jaxent._kernels import logits as logits_kernels
from jaxent._losses.reduction import divide
from jaxent._losses.similarity import check_vectors, feature_rows


@_checks.public
def ntxent(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""NT-Xent: each pair that belongs together is told from all that its first member is not.

    .. math:: L = \operatorname{mean}_{i \ne j,\, y_i = y_j} \log \Big( 1 + \sum_{y_k \ne y_i}
        e^{(s_{ik} - s_{ij}) / \tau} \Big)

    with s the cosine similarities. A pair competes with negatives alone, not with other positives
    as in `supervised_contrastive_loss`. For matched pairs: `info_nce`.

    Args:
        embeddings: Vectors z, `[N, D]`, floating point, of any finite length.
        labels: Labels y, integers of any value or booleans, `[N]`.
        temperature: The number :math:`\tau > 0`, a scalar.
        where: Mask of the embeddings, `[N]`, or a scalar; a masked one is in no pair.

    Returns:
        Mean over pairs of one label in nats (0 for none), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> embeddings = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 2.0]])
        >>> print(jaxent.ntxent(embeddings, jnp.array([0, 0, 1, 1]), 0.5).round(4))
        0.5276

    References:
        Chen et al., `SimCLR <https://arxiv.org/abs/2002.05709>`_, 2020, equation 1; with labels:
        `PyTorch Metric Learning
        <https://kevinmusgrave.github.io/pytorch-metric-learning/losses/#ntxentloss>`_.
    """
    batch = _check_batch(embeddings, labels, where)
    _checks.check_open_interval("temperature", temperature, 0.0, math.inf)
    return _ntxent(batch, _checks.as_scalar("temperature", temperature))


@_checks.public
def supervised_contrastive_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""SupCon: each embedding is to find those of its own label among all others.

    .. math:: \ell_i = \log \sum_{k \ne i} e^{s_{ik}} - \operatorname{mean}_{j \in P_i} s_{ij}

    with :math:`P_i` the others of its label, and s the cosine similarities over :math:`\tau`.

    Args:
        embeddings: Vectors z, `[N, D]`, floating point, of any finite length.
        labels: Labels y, integers of any value or booleans, `[N]`.
        temperature: The number :math:`\tau > 0`, a scalar.
        where: Mask of the embeddings, `[N]`, or a scalar; a masked one is in no sum of others.

    Returns:
        Losses in nats, `[N]` (0 for a label that is alone), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> z, y = jnp.array([[1, 0], [0.8, 0.6], [0, 1], [0, 2]]), jnp.array([0, 0, 1, 1])
        >>> print(jaxent.supervised_contrastive_loss(z, y, temperature=0.5).round(4))
        [0.3392 0.8504 0.4604 0.4604]

    References:
        Khosla et al., `Supervised Contrastive Learning <https://arxiv.org/abs/2004.11362>`_, 2020.
    """
    batch = _check_batch(embeddings, labels, where)
    _checks.check_open_interval("temperature", temperature, 0.0, math.inf)
    return _supervised_contrastive(batch, _checks.as_scalar("temperature", temperature))


@_checks.public
def circle_loss(
    embeddings: ArrayLike,
    labels: ArrayLike,
    *,
    margin: ArrayLike = 0.25,
    gamma: ArrayLike = 256.0,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Circle loss: similarities that are far from where they should be are pushed the hardest.

    .. math:: \ell_i = \log \Big( 1 + \sum_{k \in N_i} e^{\gamma\, \alpha_{ik} (s_{ik} - m)}
        \sum_{j \in P_i} e^{-\gamma\, \alpha_{ij} (s_{ij} - 1 + m)} \Big)

    with :math:`P_i` the others of the same label, :math:`N_i` those of other labels and s the
    cosine similarities. Derivatives take the weights :math:`\alpha_{ik} = \max(s_{ik} + m, 0)` of
    negatives and :math:`\alpha_{ij} = \max(1 + m - s_{ij}, 0)` of positives for constants.

    Args:
        embeddings: Vectors z, `[N, D]`, floating point, of any finite length.
        labels: Labels, integers of any value or booleans, `[N]`.
        margin: How far from 1 and 0 similarities may stay, m, finite; a scalar.
        gamma: Scale of the similarities, :math:`\gamma > 0`, a scalar; less for small batches.
        where: Mask of the embeddings, `[N]`, or a scalar; a masked one is in no sum of others.

    Returns:
        Losses in nats, `[N]` (0 where P or N is empty), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> z, y = jnp.array([[1, 0], [0.8, 0.6], [0, 1], [0, 2]]), jnp.array([0, 0, 1, 1])
        >>> print(jaxent.circle_loss(z, y, gamma=10.0).round(4))
        [0.6178 3.4746 2.4657 2.4657]

    References:
        Sun et al., `Circle Loss <https://arxiv.org/abs/2002.10857>`_, 2020, section 3.
    """
    batch = _check_batch(embeddings, labels, where)
    _checks.check_finite("margin", margin)
    _checks.check_open_interval("gamma", gamma, 0.0, math.inf)
    margin = _checks.as_scalar("margin", margin)
    return _circle(batch, margin, _checks.as_scalar("gamma", gamma))


@_checks.public
def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    norm_degree: float = 2,
    margin: ArrayLike = 1.0,
    eps: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Triplet loss: an anchor is to be nearer to its positive than to its negative, by a margin.

    .. math:: \ell = \max(0, d(a, p) - d(a, n) + m), \ d(x, y)^k = \sum_j |x_j - y_j|^k + \epsilon

    Args:
        anchors: Vectors a, `[..., V]`, floating point.
        positives: Vectors p that belong to the anchors, real, of the rank and V of `anchors`.
        negatives: Vectors n that do not, likewise.
        axis: The feature axis, or axes; None for all.
        norm_degree: The degree k of the norm, a number of at least 1, finite.
        margin: The margin m, finite; a scalar, or one per triplet, `[...]`.
        eps: The number :math:`\epsilon \ge 0`, finite; a scalar, a constant.
        where: Mask of the examples `[...]`, or of the features (the shape of `anchors`).

    Returns:
        One loss per triplet in units of distance, `[...]`, float32 (float64 for float64 inputs).
        Where the loss is 0, so is its gradient.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> anchors = jnp.array([[0.0, 0.0], [1.0, 1.0]])
        >>> positives = jnp.array([[3.0, 4.0], [1.0, 1.0]])
        >>> negatives = jnp.array([[0.0, 2.0], [1.0, 1.5]])
        >>> print(jaxent.triplet_margin_loss(anchors, positives, negatives, eps=0.0))
        [4.  0.5]

    References:
        Balntas et al., `Learning local feature descriptors with triplets
        <https://bmva-archive.org.uk/bmvc/2016/papers/paper119/abstract119.pdf>`_, 2016.
    """
    given = {"anchors": anchors, "positives": positives, "negatives": negatives}
    vectors = check_vectors(given, axis, where)
    _checks.require(
        isinstance(norm_degree, numbers.Real) and 1.0 <= float(norm_degree) < math.inf,
        f"`norm_degree` must be a finite number of at least 1, got {norm_degree!r}; "
        "it is a constant, not an array.",
    )
    _checks.check_finite("margin", margin)
    _checks.check_closed_interval("eps", eps, 0.0, math.inf)
    _checks.check_finite("eps", eps)
    margin, eps = _checks.as_real("margin", margin), _checks.as_scalar("eps", eps)
    of_points = {
        f"the examples of `{each}`": _masks.example_struct(array, vectors.axes)
        for each, array in zip(given, vectors.arrays, strict=True)
    }
    _checks.check_broadcastable(margin=margin, **of_points)
    return _triplet_margin(
        vectors.arrays, margin, eps, vectors.where, vectors.axes, float(norm_degree)
    )


# Checked batches, and the similarities of their pairs.


class _Batch(NamedTuple):
    """Checked embeddings and labels."""

    embeddings: jax.Array  # [N, D]
    labels: jax.Array  # [N]
    where: jax.Array | None  # [N], or None for all embeddings


def _check_batch(embeddings: ArrayLike, labels: ArrayLike, where: ArrayLike | None) -> _Batch:
    embeddings = _checks.as_floating("embeddings", embeddings)
    given = f"`embeddings` {_checks.describe(embeddings)}"
    _checks.require(
        embeddings.ndim == 2 and 0 not in embeddings.shape,
        f"{given} must be a matrix [N, D] of at least one embedding, one a row; "
        "join leading axes with `x.reshape(-1, x.shape[-1])`.",
    )
    labels = _checks.as_integer(
        "labels", _number_groups(labels), "number the groups with `jnp.unique`'s inverse."
    )
    _checks.check_labels_shape(labels, embeddings.shape[:1], "embeddings", embeddings)
    if where is not None:
        where = _checks.as_boolean("where", where)
        where = _checks.broadcast_per_row("where", where, embeddings.shape[:1], "embeddings")
    return _Batch(embeddings, labels, where)


def _number_groups(labels: ArrayLike) -> ArrayLike:
    """Booleans as integers; labels that are no JAX array by the number of their group.

    The latter may be integers that no dtype of JAX can hold.
    """
    if isinstance(labels, jax.Array):
        return labels.astype(jnp.int32) if labels.dtype == jnp.bool_ else labels
    given = np.asarray(labels)
    if given.dtype.kind not in "biu":
        return given
    return np.unique(given, return_inverse=True)[1].reshape(given.shape).astype(np.int32)


class _Pairs(NamedTuple):
    """Similarities of embeddings, and which pairs of them count."""

    similarity: jax.Array  # [N, N]
    positive: jax.Array  # [N, N], pairs of equal labels
    negative: jax.Array  # [N, N], pairs of different labels
    is_finite: jax.Array  # [], whether all embeddings are that are not masked


def _pairs(batch: _Batch) -> _Pairs:
    x, labels, where = batch
    x = x.astype(compute_dtype(x))
    has_equal_labels = labels[:, None] == labels[None, :]
    pair_mask = ~jnp.eye(labels.shape[0], dtype=bool)
    if where is not None:
        x = jnp.where(where[:, None], x, 0.0)
        pair_mask &= where[:, None] & where[None, :]
    units = embedding.normalize(x)
    # Accelerators multiply float32 in a lower precision by default.
    similarity = jnp.matmul(units, units.T, precision=jax.lax.Precision.HIGHEST)
    positive, negative = has_equal_labels & pair_mask, ~has_equal_labels & pair_mask
    return _Pairs(similarity, positive, negative, jnp.all(jnp.isfinite(units)))


def _divide_by_temperature(
    similarity: jax.Array, temperature: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Logits, and whether the temperature is in range; if not they are finite all the same."""
    temperature = temperature.astype(similarity.dtype)
    valid = (temperature > 0.0) & (temperature < jnp.inf)
    safe_temperature = jnp.where(valid, temperature, 1.0)
    return logits_kernels.scale_by_temperature(similarity, safe_temperature), valid


# Losses.


@functools.partial(jax.jit, inline=True)
def _ntxent(batch: _Batch, temperature: jax.Array) -> jax.Array:
    pairs = _pairs(batch)
    logits, valid = _divide_by_temperature(pairs.similarity, temperature)
    losses = embedding.cross_entropy_of_pairs(logits, pairs.positive, pairs.negative)
    count = jnp.sum(pairs.positive, dtype=losses.dtype)
    mean = divide(jnp.sum(jnp.sum(losses, -1)), count)
    return intervals.nan_where_invalid(mean, valid & pairs.is_finite)


@functools.partial(jax.jit, inline=True)
def _supervised_contrastive(batch: _Batch, temperature: jax.Array) -> jax.Array:
    pairs = _pairs(batch)
    logits, valid = _divide_by_temperature(pairs.similarity, temperature)
    pair_mask = pairs.positive | pairs.negative
    losses = embedding.mean_cross_entropy_of_positives(logits, pairs.positive, pair_mask)
    losses = intervals.nan_where_invalid(losses, valid & pairs.is_finite)
    return _masks.zero_where_masked(losses, batch.where)


@functools.partial(jax.jit, inline=True)
def _circle(batch: _Batch, margin: jax.Array, gamma: jax.Array) -> jax.Array:
    similarity, positive, negative, is_finite = _pairs(batch)
    margin, gamma = margin.astype(similarity.dtype), gamma.astype(similarity.dtype)
    valid = (jnp.abs(margin) < jnp.inf) & (gamma > 0.0) & (gamma < jnp.inf)
    margin, gamma = jnp.where(valid, margin, 0.0), jnp.where(valid, gamma, 1.0)
    fixed = jax.lax.stop_gradient(similarity)
    positive_logits = jnp.maximum(1.0 + margin - fixed, 0.0) * (1.0 - margin - similarity)
    negative_logits = jnp.maximum(fixed + margin, 0.0) * (similarity - margin)
    losses = embedding.softplus_of_pairs(
        gamma * positive_logits, gamma * negative_logits, positive, negative
    )
    losses = intervals.nan_where_invalid(losses, valid & is_finite)
    return _masks.zero_where_masked(losses, batch.where)


@functools.partial(jax.jit, static_argnames=("axes", "degree"), inline=True)
def _triplet_margin(
    arrays: tuple[jax.Array, ...],
    margin: jax.Array,
    eps: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    degree: float,
) -> jax.Array:
    points, example_mask = feature_rows(arrays, where, axes)
    margin, eps = margin.astype(points[0].dtype), eps.astype(points[0].dtype)
    valid = (eps >= 0.0) & (eps < jnp.inf)
    floor = jnp.where(valid, jax.lax.stop_gradient(eps), 0.0) ** (1.0 / degree)
    gap = embedding.distance_gap(degree, *points, floor)
    shape = jnp.broadcast_shapes(gap.shape, margin.shape)
    gap, margin = jnp.broadcast_to(gap, shape), jnp.broadcast_to(margin, shape)
    if example_mask is not None:
        margin = jnp.where(example_mask, margin, 0.0)
    excess = gap + margin
    # NaN before the maximum, whose gradient at NaN would be 0.
    valid = valid & (jnp.abs(margin) < jnp.inf) & ~jnp.isnan(excess)
    excess = intervals.nan_where_invalid(excess, valid)
    return _masks.zero_where_masked(jax.nn.relu(excess), example_mask)
