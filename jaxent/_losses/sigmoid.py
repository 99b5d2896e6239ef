"""Losses of independent yes/no classes, from logits."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import sigmoid


@_checks.public
def sigmoid_binary_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None = None,
    *,
    label_smoothing: ArrayLike = 0.0,
    pos_weight: ArrayLike | None = None,
) -> jax.Array:
    r"""Element-wise cross-entropy between the sigmoid of each logit and a yes/no target.

    .. math:: \ell = -w t \log \sigma(x) - (1 - t) \log \sigma(-x), \qquad
        t = (1 - \epsilon)\, y + \epsilon / 2

    Args:
        logits: Log-odds of "yes" in nats, any shape.
        labels: Targets in [0, 1], real or boolean, of the rank of `logits`, or a scalar.
        where: Mask of the elements, of the rank of `logits`, or a scalar.
        label_smoothing: Fraction :math:`\epsilon` in [0, 1] of the target, spread over yes and no.
        pos_weight: Weight :math:`w \ge 0` of "yes", of that rank, or a scalar; None is 1.

    Returns:
        One loss per element in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, labels = jnp.array([30.0, 0.0, -2.0]), jnp.array([1, 1, 0])
        >>> print(jaxent.sigmoid_binary_cross_entropy(logits, labels))
        [9.3576229e-14 6.9314718e-01 1.2692802e-01]

    References:
        Goodfellow et al., *Deep Learning*, 2016, section 6.2.2.2; with weights: King, Zeng, `Rare
        Events Data <https://doi.org/10.1093/oxfordjournals.pan.a004868>`_, 2001.
    """
    given = {
        "logits": _checks.as_floating("logits", logits),
        "labels": _checks.as_real("labels", labels),
    }
    if pos_weight is not None:
        _checks.check_closed_interval("pos_weight", pos_weight, 0.0, math.inf)
        _checks.check_finite("pos_weight", pos_weight)
        weight = given["pos_weight"] = _checks.as_real("pos_weight", pos_weight)
        _checks.require(
            weight.ndim in (0, given["logits"].ndim),
            f"`pos_weight` {_checks.describe(weight)} must be a scalar or of the rank of `logits` "
            f"{_checks.describe(given['logits'])}; for one weight per class, [C], pass "
            "`jnp.expand_dims(pos_weight, range(logits.ndim - 1))`.",
        )
    _checks.check_closed_interval("label_smoothing", label_smoothing, 0.0, 1.0)
    smoothing = _checks.as_scalar_unless("label_smoothing", label_smoothing, 0.0)
    where, arrays = _masks.mask_elements(where, **given)
    return _masks.zero_where_masked(_losses(*arrays, smoothing=smoothing), where)


@functools.partial(jax.jit, inline=True)
def _losses(
    logits: jax.Array,
    labels: jax.Array,
    pos_weight: jax.Array | None = None,
    *,
    smoothing: jax.Array | None,
) -> jax.Array:
    given = [array for array in (logits, labels, pos_weight) if array is not None]
    dtype = compute_dtype(*given)
    shape = jnp.broadcast_shapes(*(array.shape for array in given))
    labels = intervals.clip_rounding(labels)
    x, yes = (jnp.broadcast_to(a.astype(dtype), shape) for a in (logits, labels))
    yes = intervals.nan_outside(yes, 0.0, 1.0)
    if smoothing is None and pos_weight is None:
        return sigmoid.target_cross_entropy(x, yes)
    no = 1.0 - yes
    if smoothing is not None:
        smoothing = intervals.nan_outside(smoothing.astype(dtype), 0.0, 1.0)
        yes, no = (1.0 - smoothing) * yes + smoothing / 2, (1.0 - smoothing) * no + smoothing / 2
    if pos_weight is not None:
        yes *= intervals.nan_outside(
            jnp.broadcast_to(pos_weight.astype(dtype), shape), 0.0, jnp.inf
        )
    return sigmoid.binary_cross_entropy(x, yes, no)
