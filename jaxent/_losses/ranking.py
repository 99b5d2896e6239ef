"""Losses of ranked lists: scores of items against how relevant they are."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import ranking, soft_cross_entropy
from jaxent._losses import reduction

_ReduceFn = Callable[..., ArrayLike] | None


@_checks.public
def ranking_softmax_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: _ReduceFn = jnp.mean,
) -> jax.Array:
    r"""Softmax cross-entropy between the scores of a list and the relevance of its items.

    .. math:: \ell = -\sum_i w_i\, y_i \log \frac{e^{s_i}}{\sum_j e^{s_j}}

    Args:
        logits: Scores :math:`s` of the items in nats, `[..., items]`; `-inf` is no item.
        labels: Relevance :math:`y \ge 0` of the items, of any total, of the shape of `logits`.
        where: Mask of the items (the shape of `logits`), or of the lists `[...]`.
        weights: Weights :math:`w \ge 0` of the items, of the rank of `logits`; None is 1.
        reduce_fn: Called with the losses and `where`, the mask of the lists; None for no reduction.

    Returns:
        The reduced loss in nats, or one per list, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 1.0, 0.0], [1.0, 0.5, 1.5]])
        >>> labels = jnp.array([[1, 0, 0], [0, 0, 1]])
        >>> print(jaxent.ranking_softmax_loss(logits, labels, reduce_fn=None))
        [7.6639504e-09 6.8026966e-01]

    References:
        Cao et al., `Learning to rank <https://doi.org/10.1145/1273496.1273513>`_, 2007.
    """
    arguments = _check_lists(logits, labels, where, weights)
    losses, example_mask = _softmax_losses(*arguments)
    return _reduce(losses, example_mask, reduce_fn)


@_checks.public
def pairwise_logistic_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: _ReduceFn = jnp.mean,
) -> jax.Array:
    r"""RankNet: the logistic loss of each pair of which one item is more relevant.

    .. math:: \ell = \sum_{i, j :\, y_i > y_j} w_i \log \big( 1 + e^{s_j - s_i} \big)

    It takes memory for all pairs of a list; `ranking_softmax_loss` and `listmle_loss` do not.

    Args:
        logits: Scores :math:`s` in nats, `[..., items]`. An infinite score has no gradient.
        labels: Relevance :math:`y` of the items, of the shape of `logits`; only the order matters.
        where: Mask of the items (the shape of `logits`), or of the lists `[...]`.
        weights: Weights :math:`w \ge 0`, by the more relevant item, `[..., items]`; None is 1.
        reduce_fn: Called with the losses and `where`, the mask of the lists; None for no reduction.

    Returns:
        The reduced loss in nats, or one per list, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, -1.0], [1.0, 0.5, 1.5]])
        >>> labels = jnp.array([[2, 0, 0], [0, 0, 1]])
        >>> print(jaxent.pairwise_logistic_loss(logits, labels, reduce_fn=None))
        [2.8194096e-09 7.8733867e-01]

    References:
        Burges et al., `RankNet <https://doi.org/10.1145/1102351.1102363>`_, 2005.
    """
    arguments = _check_lists(logits, labels, where, weights)
    losses, example_mask = _pairwise_losses(*arguments)
    return _reduce(losses, example_mask, reduce_fn)


@_checks.public
def listmle_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduce_fn: _ReduceFn = jnp.mean,
) -> jax.Array:
    r"""ListMLE: how unlikely the order of relevance is if items are drawn by their scores.

    .. math:: \ell = \sum_k w_{\pi_k} \Big( \log \sum_{l \ge k} e^{s_{\pi_l}} - s_{\pi_k} \Big)

    with the items :math:`\pi` in decreasing order of relevance. Items of equal relevance are taken
    in the order given; shuffle the list where that order means something.

    Args:
        logits: Scores :math:`s` of the items in nats, `[..., items]`; `-inf` is drawn last.
        labels: Relevance of the items, of the shape of `logits`; only their order matters.
        where: Mask of the items (the shape of `logits`), or of the lists `[...]`.
        weights: Weights :math:`w \ge 0` of the items drawn, of the rank of `logits`; None is 1.
        reduce_fn: Called with the losses and `where`, the mask of the lists; None for no reduction.

    Returns:
        The reduced loss in nats, or one per list, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[40.0, 20.0, 0.0], [1.0, 0.5, 1.5]])
        >>> labels = jnp.array([[3, 2, 1], [0, 1, 2]])
        >>> print(jaxent.listmle_loss(logits, labels, reduce_fn=None))
        [4.1223074e-09 1.6543467e+00]

    References:
        Xia et al., `Listwise approach <https://doi.org/10.1145/1390156.1390306>`_, 2008; Plackett,
        `The analysis of permutations <https://doi.org/10.2307/2346567>`_, 1975.
    """
    arguments = _check_lists(logits, labels, where, weights)
    losses, example_mask = _order_losses(*arguments)
    return _reduce(losses, example_mask, reduce_fn)


def _check_lists(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """Logits, labels, mask and weights as arrays that fit together."""
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_real("labels", labels)
    arrays = {"logits": logits, "labels": labels}
    if weights is not None:
        arrays["weights"] = weights = _checks.as_real("weights", weights)
    axes = _checks.normalize_axes("logits", logits, -1)
    _checks.check_labels_shape(labels, logits.shape, "logits", logits)
    _checks.check_broadcastable(**arrays)
    _checks.check_same_classes(axes, **arrays)
    return logits, labels, _masks.check_mask(where, axes, arrays), weights


class _Items(NamedTuple):
    """Arguments of one shape [..., items], 0 where masked."""

    logits: jax.Array
    labels: jax.Array
    weights: jax.Array
    class_mask: jax.Array  # [..., items]
    example_mask: jax.Array | None  # [...], or None for all lists
    valid: jax.Array  # [...]: labels and weights are in range

    def losses(self, results: jax.Array, valid: jax.Array) -> jax.Array:
        """Results with NaN where a list is invalid and 0 where it is masked."""
        valid = valid if self.example_mask is None else valid | ~self.example_mask
        return _masks.zero_where_masked(
            intervals.nan_where_invalid(results, valid), self.example_mask
        )


def _mask_items(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, weights: jax.Array | None
) -> _Items:
    dtype = compute_dtype(*(a for a in (logits, labels, weights) if a is not None))
    weights = jnp.ones((), dtype) if weights is None else weights.astype(dtype)
    arrays = (logits.astype(dtype), labels, weights)
    shape = jnp.broadcast_shapes(*(a.shape for a in arrays))
    example_mask, class_mask = None, jnp.ones(shape, bool)
    if where is not None:
        where = where[..., None] if 0 < where.ndim < len(shape) else where
        shape = jnp.broadcast_shapes(shape, where.shape)
        class_mask = jnp.broadcast_to(where, shape)
        example_mask = jnp.any(class_mask, axis=-1)
    logits, labels, weights = (
        jnp.where(class_mask, jnp.broadcast_to(a, shape), jnp.zeros((), a.dtype)) for a in arrays
    )
    valid = jnp.all((weights >= 0.0) & (weights < jnp.inf) & (labels == labels), axis=-1)
    return _Items(logits, labels, weights, class_mask, example_mask, valid)


# The losses of the lists, and the mask of the lists, or None for all.


@functools.partial(jax.jit, inline=True)
def _softmax_losses(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    items = _mask_items(logits, labels, where, weights)
    x, targets = items.logits, items.labels.astype(items.logits.dtype)
    valid = items.valid & jnp.all(targets >= 0.0, axis=-1)
    if items.example_mask is not None:
        x = jnp.where(items.class_mask | ~items.example_mask[..., None], x, -jnp.inf)
    if weights is not None:
        targets *= items.weights
    losses = soft_cross_entropy.soft_cross_entropy(x, targets)
    return items.losses(losses, valid), items.example_mask


@functools.partial(jax.jit, inline=True)
def _pairwise_losses(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    items = _mask_items(logits, labels, where, weights)
    y, class_mask = items.labels, items.class_mask
    is_pair = y[..., :, None] > y[..., None, :]
    if items.example_mask is not None:
        is_pair &= class_mask[..., :, None] & class_mask[..., None, :]
    pair_weights = jnp.where(is_pair, items.weights[..., :, None], 0.0)
    losses = ranking.pair_costs(items.logits, pair_weights)
    # A score that is NaN may be in no pair.
    valid = items.valid & jnp.all(items.logits == items.logits, axis=-1)
    return items.losses(losses, valid), items.example_mask


@functools.partial(jax.jit, inline=True)
def _order_losses(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, weights: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    items = _mask_items(logits, labels, where, weights)
    x, w = items.logits, items.weights
    if items.example_mask is not None:
        x = jnp.where(items.class_mask, x, -jnp.inf)
        w = jnp.where(items.class_mask, w, 0.0)
    order = jnp.argsort(items.labels, axis=-1, descending=True, stable=True)
    x, w = (jnp.take_along_axis(a, order, axis=-1, mode="clip") for a in (x, w))
    losses = jnp.sum(_masks.scale_loss(w, ranking.order_costs(x)), axis=-1)
    return items.losses(losses, items.valid), items.example_mask


def _reduce(losses: jax.Array, example_mask: jax.Array | None, reduce_fn: _ReduceFn) -> jax.Array:
    """The result of `reduce_fn` for the losses of the lists that count."""
    if reduce_fn is None:
        return losses
    if reduce_fn is jnp.mean:
        # The mean of jax.numpy over no list is NaN.
        return reduction.mean(losses, example_mask)
    return jnp.asarray(reduce_fn(losses, where=example_mask))
