"""Losses of embeddings whose labels say which belong together.

Similarities are products of two matrices: no array holds the features of every pair.
"""

import functools
import math
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import embedding
from jaxent._kernels import logits as logits_kernels
from jaxent._losses.reduction import divide
from jaxent._losses.similarity import Vectors, check_vectors, rows_of


@_checks.public
def ntxent(
    embeddings: ArrayLike,
    labels: ArrayLike,
    temperature: ArrayLike = 0.07,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""NT-Xent: each pair that belongs together is told from all that its first member is not.

    .. math::
        L = \operatorname*{mean}_{(i, j):\, y_i = y_j,\, i \ne j} \log \Big( 1 +
            \sum_{k:\, y_k \ne y_i} e^{(s_{ik} - s_{ij}) / \tau} \Big), \qquad
        s_{ij} = \frac{\langle z_i, z_j \rangle}{|z_i|\, |z_j|}

    A pair competes with the negatives of its first member and with no other positive. Identical
    points, vectors of zeros (similarity 0 to all, gradient 0) and small temperatures do no harm.

    Args:
        embeddings: Vectors `[N, D]` of any finite length, floating point; 16-bit dtypes are
            computed in float32.
        labels: Which embeddings belong together, those with equal labels: integers `[N]`, of any
            value, or booleans.
        temperature: What the similarities are divided by, :math:`\tau > 0`. A number, or a scalar
            array, which can be learned (NaN if out of range).
        where: Booleans `[N]` or a scalar: True where the embedding exists. One that does not is in
            no pair and nobody's negative, whatever it holds.

    Returns:
        The mean over all ordered pairs that belong together, a scalar in nats, float32 (float64 for
        float64 embeddings); 0, with gradient 0, if there is none. It is NaN if an embedding that
        exists is not finite.

    Raises:
        ArgumentError: If dtypes, shapes or `temperature` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> embeddings = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 2.0]])
        >>> print(jaxent.ntxent(embeddings, jnp.array([0, 0, 1, 1]), 0.5).round(4))
        0.5276

    References:
        Chen et al., `A Simple Framework for Contrastive Learning of Visual Representations
        <https://arxiv.org/abs/2002.05709>`_, 2020, equation 1; the form for labels is that of
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

    .. math::
        \ell_i = \frac{1}{|P_i|} \sum_{j \in P_i} \Big( \log \sum_{k \ne i} e^{s_{ik} / \tau}
            - s_{ij} / \tau \Big), \qquad
        s_{ij} = \frac{\langle z_i, z_j \rangle}{|z_i|\, |z_j|}

    :math:`P_i` are the others of the same label. It is softmax cross-entropy with a target spread
    over them evenly.

    Args:
        embeddings: Vectors `[N, D]` of any finite length, floating point; 16-bit dtypes are
            computed in float32. A vector of zeros has similarity 0 to all, and gradient 0.
        labels: Which embeddings belong together, those with equal labels: integers `[N]`, of any
            value, or booleans.
        temperature: What the similarities are divided by, :math:`\tau > 0`. A number, or a scalar
            array, which can be learned (NaN if out of range).
        where: Booleans `[N]` or a scalar: True where the embedding exists. One that does not is in
            nobody's sum and has loss 0 and gradient 0, whatever it holds.

    Returns:
        One loss per embedding in nats, shape `[N]`, float32 (float64 for float64 embeddings); 0,
        with gradient 0, for one that is alone with its label. For the mean over the others pass
        `where` to `jaxent.mean` as well.

    Raises:
        ArgumentError: If dtypes, shapes or `temperature` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> embeddings = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 2.0]])
        >>> labels = jnp.array([0, 0, 1, 1])
        >>> print(jaxent.supervised_contrastive_loss(embeddings, labels, temperature=0.5).round(4))
        [0.3392 0.8504 0.4604 0.4604]

    References:
        Khosla et al., `Supervised Contrastive Learning <https://arxiv.org/abs/2004.11362>`_, 2020,
        equation 2.
    """
    batch = _check_batch(embeddings, labels, where)
    _checks.check_open_interval("temperature", temperature, 0.0, math.inf)
    return _supervised(batch, _checks.as_scalar("temperature", temperature))


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

    .. math::
        \ell_i = \log \Big( 1 + \sum_{k \in N_i} e^{\gamma\, \alpha_{ik} (s_{ik} - m)}
            \sum_{j \in P_i} e^{-\gamma\, \alpha_{ij} (s_{ij} - 1 + m)} \Big), \qquad
        s_{ij} = \frac{\langle z_i, z_j \rangle}{|z_i|\, |z_j|}

    :math:`P_i` are the others of the same label and :math:`N_i` those of other labels. The weights
    :math:`\alpha_{ik} = \max(s_{ik} + m, 0)` of negatives and
    :math:`\alpha_{ij} = \max(1 + m - s_{ij}, 0)` of positives set the pace, and derivatives take
    them for constants: a negative is pushed in proportion to its weight.

    Args:
        embeddings: Vectors `[N, D]` of any finite length, floating point; 16-bit dtypes are
            computed in float32. A vector of zeros has similarity 0 to all, and gradient 0.
        labels: Which embeddings belong together, those with equal labels: integers `[N]`, of any
            value, or booleans.
        margin: How far from 1 and 0 similarities may stay, :math:`m`, finite; a number or a scalar
            array. The default is the paper's for faces.
        gamma: The scale of the similarities, :math:`\gamma > 0`; a number, or a scalar array (NaN
            if out of range). The default is the paper's for faces; small batches take less.
        where: Booleans `[N]` or a scalar: True where the embedding exists. One that does not is in
            nobody's sum and has loss 0 and gradient 0, whatever it holds.

    Returns:
        One loss per embedding in nats, shape `[N]`, float32 (float64 for float64 embeddings); 0,
        with gradient 0, for one without positives or without negatives.

    Raises:
        ArgumentError: If dtypes, shapes, `margin` or `gamma` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> embeddings = jnp.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.0, 2.0]])
        >>> labels = jnp.array([0, 0, 1, 1])
        >>> print(jaxent.circle_loss(embeddings, labels, gamma=10.0).round(4))
        [0.6178 3.4746 2.4657 2.4657]

    References:
        Sun et al., `Circle Loss: A Unified Perspective of Pair Similarity Optimization
        <https://arxiv.org/abs/2002.10857>`_, 2020, section 3.
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

    .. math::
        \ell = \max\big( d(a, p) - d(a, n) + m,\, 0 \big), \qquad
        d(x, y) = \Big( \sum_j |x_j - y_j|^k + \epsilon \Big)^{1/k}

    Distances are accurate, however large or small; their difference is as accurate as they are.

    Args:
        anchors: Vectors `[..., V]` (with their V features along `axis`), floating point; 16-bit
            dtypes are computed in float32.
        positives: Vectors of the rank and the V of `anchors`, real, that belong to the anchors.
        negatives: Vectors of the rank and the V of `anchors`, real, that do not.
        axis: The axis or axes of the features; None for all of them.
        norm_degree: The degree k of the norm, a number that is at least 1 and finite; a constant.
        margin: By how much farther the negative is to be, :math:`m`, finite; a number, a scalar
            array, or one per triplet, an array of the rank of the examples `[...]`.
        eps: Added to the sum of powers, :math:`\epsilon \ge 0`; a number, or a scalar array (NaN if
            out of range). Nothing is differentiated along it. With 0 a distance of 0 has gradient
            0.
        where: Booleans. Of the shape `[...]` of the examples: True where the triplet counts. Of
            the rank of `anchors`: True where the feature exists; a triplet without features is
            masked.

    Returns:
        One loss per triplet in the unit of the distances, shape `[...]`, float32 (float64 if any
        input is). Masked triplets have loss 0 and gradient 0, whatever they hold; so does one whose
        distances differ by exactly the margin.

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
        Balntas et al., `Learning local feature descriptors with triplets and shallow convolutional
        neural networks <https://bmva-archive.org.uk/bmvc/2016/papers/paper119/abstract119.pdf>`_,
        2016.
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
        f"examples of `{each}`": _masks.example_struct(array, vectors.axes)
        for each, array in zip(given, vectors.arrays, strict=True)
    }
    _checks.check_broadcastable(margin=margin, **of_points)
    return _triplets(vectors.arrays, margin, eps, vectors.where, vectors.axes, float(norm_degree))


class _Batch(NamedTuple):
    """Checked embeddings, and what of them belongs together and exists."""

    embeddings: jax.Array  # [N, D]
    labels: jax.Array  # [N]
    where: jax.Array | None  # [N]


def _check_batch(embeddings: ArrayLike, labels: ArrayLike, where: ArrayLike | None) -> _Batch:
    embeddings = _checks.as_floating("embeddings", embeddings)
    given = f"`embeddings` {_checks.describe(embeddings)}"
    _checks.require(
        embeddings.ndim == 2 and embeddings.size > 0,
        f"{given} must be a matrix [N, D] of at least one embedding, one a row; "
        "join leading axes with `x.reshape(-1, x.shape[-1])`.",
    )
    labels = _checks.as_integer(
        "labels", _numbered(labels), "number the groups with `jnp.unique`'s inverse."
    )
    _checks.require(
        labels.shape == embeddings.shape[:1],
        f"`labels` {_checks.describe(labels)} must be [{len(embeddings)}], one for each row of "
        f"{given}.",
    )
    if where is not None:
        where = _checks.as_boolean("where", where)
        where = _checks.broadcast_per_row("where", where, embeddings.shape[:1], "embeddings")
    return _Batch(embeddings, labels, where)


def _numbered(labels: ArrayLike) -> ArrayLike:
    """Booleans as numbers; labels that are no JAX array by numbers that fit any dtype."""
    if isinstance(labels, jax.Array):
        return labels.astype(jnp.int32) if labels.dtype == jnp.bool_ else labels
    given = np.asarray(labels)
    if given.dtype.kind not in "biu":
        return given
    return np.unique(given, return_inverse=True)[1].reshape(given.shape).astype(np.int32)


class _Pairs(NamedTuple):
    """Similarities of embeddings, and which pairs of them exist."""

    similarity: jax.Array  # [N, N]
    positive: jax.Array  # [N, N]
    negative: jax.Array  # [N, N]
    is_finite: jax.Array  # []: whether all embeddings that exist are


def _pairs(batch: _Batch) -> _Pairs:
    x, labels, where = batch
    x = x.astype(compute_dtype(x))
    alike = labels[:, None] == labels[None, :]
    exists = ~jnp.eye(len(labels), dtype=bool)
    if where is not None:
        x = jnp.where(where[:, None], x, 0.0)
        exists &= where[:, None] & where[None, :]
    units = embedding.unit(x)
    # Not in the lower precision in which accelerators multiply float32 by default.
    similarity = jnp.matmul(units, units.T, precision=jax.lax.Precision.HIGHEST)
    return _Pairs(similarity, alike & exists, ~alike & exists, jnp.all(jnp.isfinite(units)))


def _over(similarity: jax.Array, temperature: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits, and whether the temperature is positive and finite; if not they are harmless."""
    temperature = temperature.astype(similarity.dtype)
    proper = (temperature > 0.0) & (temperature < jnp.inf)
    return logits_kernels.scale_by_temperature(
        similarity, jnp.where(proper, temperature, 1.0)
    ), proper


@functools.partial(jax.jit, inline=True)
def _ntxent(batch: _Batch, temperature: jax.Array) -> jax.Array:
    pairs = _pairs(batch)
    logits, proper = _over(pairs.similarity, temperature)
    losses = embedding.paired_cross_entropy(logits, pairs.positive, pairs.negative)
    count = jnp.sum(pairs.positive, dtype=losses.dtype)
    return _masks.nan_where_invalid(
        divide(jnp.sum(jnp.sum(losses, -1)), count), proper & pairs.is_finite
    )


@functools.partial(jax.jit, inline=True)
def _supervised(batch: _Batch, temperature: jax.Array) -> jax.Array:
    pairs = _pairs(batch)
    logits, proper = _over(pairs.similarity, temperature)
    exists = pairs.positive | pairs.negative
    losses = embedding.mean_cross_entropy(logits, pairs.positive, exists)
    return _masks.zero_where_masked(
        _masks.nan_where_invalid(losses, proper & pairs.is_finite), batch.where
    )


@functools.partial(jax.jit, inline=True)
def _circle(batch: _Batch, margin: jax.Array, gamma: jax.Array) -> jax.Array:
    similarity, positive, negative, is_finite = _pairs(batch)
    margin, gamma = margin.astype(similarity.dtype), gamma.astype(similarity.dtype)
    proper = (jnp.abs(margin) < jnp.inf) & (gamma > 0.0) & (gamma < jnp.inf)
    margin, gamma = jnp.where(proper, margin, 0.0), jnp.where(proper, gamma, 1.0)
    fixed = jax.lax.stop_gradient(similarity)
    pull = jnp.maximum(1.0 + margin - fixed, 0.0) * (1.0 - margin - similarity)
    push = jnp.maximum(fixed + margin, 0.0) * (similarity - margin)
    losses = embedding.pairwise_softplus(gamma * pull, gamma * push, positive, negative)
    return _masks.zero_where_masked(
        _masks.nan_where_invalid(losses, proper & is_finite), batch.where
    )


@functools.partial(jax.jit, static_argnames=("axes", "degree"), inline=True)
def _triplets(arrays, margin, eps, where, axes, degree) -> jax.Array:
    points, example_mask = rows_of(Vectors(arrays, axes, where))
    margin, eps = margin.astype(points[0].dtype), eps.astype(points[0].dtype)
    proper = (eps >= 0.0) & (eps < jnp.inf)
    floor = jnp.where(proper, jax.lax.stop_gradient(eps), 0.0) ** (1.0 / degree)
    gap = embedding.distance_gap(degree, *points, floor)
    shape = jnp.broadcast_shapes(gap.shape, margin.shape)
    gap, margin = jnp.broadcast_to(gap, shape), jnp.broadcast_to(margin, shape)
    if example_mask is not None:
        margin = jnp.where(example_mask, margin, 0.0)
    excess = gap + margin
    # Before the maximum, which has no gradient at NaN.
    excess = _masks.nan_where_invalid(
        excess, proper & (jnp.abs(margin) < jnp.inf) & ~jnp.isnan(excess)
    )
    return _masks.zero_where_masked(jax.nn.relu(excess), example_mask)
