"""Targets and class frequencies before a loss sees them."""

from __future__ import annotations

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._parallel import with_auto_axes


@_checks.public
def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Targets of which a fraction is spread evenly over the classes that exist.

    .. math:: t_j = (1 - \alpha)\, y_j + \alpha / K

    Args:
        labels: Targets, `[..., V]`, real or boolean, non-negative; a negative one becomes NaN.
        alpha: The fraction :math:`\alpha` in [0, 1], a scalar, like `label_smoothing` of losses.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the K classes; what is masked becomes 0.

    Returns:
        Targets of the shape of `labels` and in their unit, float32 (float64 for float64 labels).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> labels = jnp.array([0.0, 1.0, 0.0, 0.0])
        >>> print(jaxent.smooth_labels(labels, 0.1))
        [0.025 0.925 0.025 0.025]
        >>> print(jaxent.smooth_labels(labels, 0.1, where=jnp.array([True, True, False, False])))
        [0.05 0.95 0.   0.  ]

    References:
        Szegedy et al., `Inception <https://arxiv.org/abs/1512.00567>`_, 2015, section 7.
    """
    labels = _checks.as_real("labels", labels)
    axes = _checks.normalize_axes("labels", labels, axis)
    _checks.check_closed_interval("alpha", alpha, 0.0, 1.0)
    alpha = _checks.as_scalar("alpha", alpha)
    where = _masks.check_mask(where, axes, {"labels": labels})
    return _smooth(labels, alpha, where, axes)


@_checks.public
def next_tokens(
    tokens: ArrayLike,
    where: ArrayLike | None = None,
    *,
    segment_ids: ArrayLike | None = None,
    shift: int = 1,
    where_of: str = "labels",
) -> tuple[jax.Array, jax.Array]:
    r"""What each position of a sequence is to predict, and whether it has something to predict.

    .. math:: y_t = x_{t+s} \quad\text{where}\quad t + s < T \ \text{and}\ g_t = g_{t+s}

    No position predicts past the end, or into another segment of a packed row. Give both results to
    a loss, and the second to `jaxent.mean` as well. Labels without one are -1, so that a mask that
    is forgotten shows as NaN.

    Args:
        tokens: Token ids x, integers `[..., T]`.
        where: Mask of the tokens, of the rank of `tokens`, or a scalar. A padding is masked here.
        segment_ids: The segment g of each token, integers of the shape of `tokens`; tokens of one
            segment stand together.
        shift: How many places s later the predicted token stands, a positive integer.
        where_of: What `where` is about: "labels", whether a token is to be predicted, as with
            `shift` of `jaxent.linear_softmax_cross_entropy`; or "inputs", whether a position
            predicts, as in MaxText, levanter and EasyDeL.

    Returns:
        Labels, int32 (int64 for 64 bits), and their mask, `[..., T]` both, without a unit.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> tokens = jnp.array([5, 6, 7, 8, 9, 0])
        >>> segments = jnp.array([1, 1, 1, 2, 2, 0])
        >>> labels, where = jaxent.next_tokens(tokens, segments > 0, segment_ids=segments)
        >>> print(labels)
        [ 6  7 -1  9 -1 -1]

    References:
        Krell et al., `Packing without cross-contamination <https://arxiv.org/abs/2107.02027>`_,
        2021.
    """
    tokens = _checks.as_integer("tokens", tokens, "pass token ids.")
    _checks.check_positive_integer("shift", shift)
    _checks.check_one_of("where_of", where_of, ("labels", "inputs"))
    _checks.require(
        tokens.ndim > 0, f"`tokens` {_checks.describe(tokens)} must have an axis of positions."
    )
    where = _checks.as_boolean("where", True if where is None else where)
    shape = _checks.check_broadcastable(tokens=tokens, where=where)
    _checks.require(
        tokens.shape == shape,
        f"`where` {_checks.describe(where)} must be a mask of `tokens` {_checks.describe(tokens)}.",
    )
    if segment_ids is not None:
        segment_ids = _checks.as_integer("segment_ids", segment_ids, "number the segments.")
        _checks.require(
            segment_ids.shape == shape,
            f"`segment_ids` {_checks.describe(segment_ids)} must hold one number for each of "
            f"`tokens` {_checks.describe(tokens)}.",
        )
    return _next_tokens(tokens, where, segment_ids, int(shift), where_of == "labels")


@_checks.public
def class_balanced_weights(counts: ArrayLike, beta: ArrayLike = 0.999) -> jax.Array:
    r"""Weights of classes by the effective number of their examples, of mean 1.

    .. math:: w_j \propto \frac{1 - \beta}{1 - \beta^{n_j}}

    Take `weights[labels]` as the `weights` of `jaxent.mean`. With :math:`\beta = 0` all classes
    weigh the same; as it tends to 1 the weights tend to be inverse to the counts.

    Args:
        counts: Number of examples :math:`n_j` of each class, `[..., V]`; with 0 the weight is 0.
        beta: :math:`\beta` in [0, 1), a number or a scalar array.

    Returns:
        Weights without a unit, of the shape of `counts`, float32 (float64 for float64 counts).
        Their mean over the classes that have examples is 1.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.class_balanced_weights(jnp.array([1000, 100, 10, 0])))
        [0.04216039 0.28000012 2.6778395  0.        ]

    References:
        Cui et al., `Class-Balanced Loss <https://arxiv.org/abs/1901.05555>`_, 2019, section 3.
    """
    counts = _checks.as_real("counts", counts)
    _checks.require(
        counts.ndim > 0 and counts.shape[-1] > 0,
        f"`counts` {_checks.describe(counts)} must have one entry per class along its last axis, "
        "and at least one class.",
    )
    is_number = isinstance(beta, numbers.Real)
    _checks.require(
        not is_number or 0 <= float(beta) < 1,
        f"`beta` must lie in [0, 1), got {beta}.",
    )
    # Of a Python number the logarithm is taken here: float32 would lose how far it is from 1.
    known_decay = (-math.log(beta) if beta else math.inf) if is_number else None
    return _class_weights(counts, _checks.as_scalar("beta", beta), known_decay)


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _smooth(
    labels: jax.Array, alpha: jax.Array, where: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
    dtype = compute_dtype(labels)
    targets = intervals.clip_rounding(labels, intervals.NON_NEGATIVE).astype(dtype)
    alpha = alpha.astype(dtype)
    count: jax.Array | float = float(math.prod(labels.shape[a] for a in axes))
    if where is not None:
        if where.ndim < labels.ndim:
            where = jnp.expand_dims(where, axes) if where.ndim else where
        shape = jnp.broadcast_shapes(where.shape, labels.shape)
        where, targets = jnp.broadcast_to(where, shape), jnp.broadcast_to(targets, shape)
        targets = jnp.where(where, targets, 0.0)
        count = jnp.maximum(jnp.sum(where, axis=axes, dtype=dtype, keepdims=True), 1.0)
    alpha = intervals.nan_outside(alpha, 0.0, 1.0)
    smooth = intervals.nan_where_invalid((1.0 - alpha) * targets + alpha / count, targets >= 0.0)
    return smooth if where is None else jnp.where(where, smooth, 0.0)


@functools.partial(jax.jit, static_argnames=("shift", "is_of_labels"), inline=True)
def _next_tokens(
    tokens: jax.Array,
    where: jax.Array,
    segment_ids: jax.Array | None,
    shift: int,
    is_of_labels: bool,
) -> tuple[jax.Array, jax.Array]:
    length = tokens.shape[-1]

    def later(array: jax.Array) -> jax.Array:
        roll = functools.partial(jnp.roll, shift=-shift, axis=-1)
        return with_auto_axes(roll, array, example=array, ndim=array.ndim)

    counts = jnp.broadcast_to(jnp.arange(length) < length - shift, tokens.shape)
    counts &= later(jnp.broadcast_to(where, tokens.shape)) if is_of_labels else where
    if segment_ids is not None:
        counts &= segment_ids == later(segment_ids)
    return jnp.where(counts, later(_masks.widen_labels(tokens)), -1), counts


@functools.partial(jax.jit, static_argnames="known_decay", inline=True)
def _class_weights(counts: jax.Array, beta: jax.Array, known_decay: float | None) -> jax.Array:
    """Weights (1 - beta) / (1 - beta**n), of mean 1; `known_decay` is -log(beta) if it is known."""
    dtype = compute_dtype(counts)
    counts, beta = counts.astype(dtype), beta.astype(dtype)
    if known_decay is None:
        beta = intervals.nan_outside(beta, 0.0, 1.0, "[)")
        decay = -jnp.log(jnp.where(beta == 0.0, 1.0, beta))
    else:
        decay = jnp.asarray(known_decay, dtype)
    is_uniform = beta == 0.0
    has_examples = counts > 0.0
    n = jnp.where(has_examples, counts, 1.0)
    # The factor 1 - beta is common to all classes, so it cancels in weights of mean 1.
    effective = jnp.where(is_uniform, 1.0, -jnp.expm1(-n * jnp.where(is_uniform, 1.0, decay)))
    weights = jnp.where(has_examples, 1.0 / effective, 0.0)
    mean = jnp.sum(weights, axis=-1, keepdims=True) / jnp.maximum(
        jnp.sum(has_examples, axis=-1, dtype=dtype, keepdims=True), 1.0
    )
    valid = intervals.all_in_interval(counts, intervals.NON_NEGATIVE)[..., None]
    return intervals.nan_where_invalid(weights / jnp.where(mean == 0.0, 1.0, mean), valid)
