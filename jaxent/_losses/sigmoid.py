"""Losses of independent yes/no classes, from logits."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
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

    .. math::
        \ell = -w\, t \log \sigma(x) - (1 - t) \log \sigma(-x), \qquad
        t = (1 - \epsilon)\, y + \epsilon / 2

    Args:
        logits: Log-odds of "yes" in nats, any shape, floating point; 16-bit dtypes are computed
            in float32. An infinite logit costs 0 where the target agrees and `+inf` elsewhere.
        labels: Targets in [0, 1], real or boolean, of the rank of `logits`, or a scalar. Others
            make their element NaN.
        where: Booleans of the rank of `logits`, or a scalar: True where the element counts. None
            counts all.
        label_smoothing: The share :math:`\epsilon` in [0, 1] of the target that is spread evenly
            over yes and no. A number, or a scalar array (NaN if out of range).
        pos_weight: Weight :math:`w \ge 0` of the "yes" term, finite: a number, or an array of the
            rank of `logits` or a scalar one; None is 1. Negative weights in an array make their
            element NaN.

    Returns:
        One loss per element in nats, of the common shape, float32 (float64 if any input is).
        Masked elements have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes, `label_smoothing` or `pos_weight` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, labels = jnp.array([30.0, 0.0, -2.0]), jnp.array([1, 1, 0])
        >>> print(jaxent.sigmoid_binary_cross_entropy(logits, labels))
        [9.3576229e-14 6.9314718e-01 1.2692802e-01]

    References:
        Goodfellow, Bengio, Courville, *Deep Learning*, 2016, section 6.2.2.2. Weighted "yes":
        King, Zeng, `Logistic Regression in Rare Events Data
        <https://doi.org/10.1093/oxfordjournals.pan.a004868>`_, 2001.
    """
    given = {
        "logits": _checks.as_floating("logits", logits),
        "labels": _checks.as_real("labels", labels),
    }
    if pos_weight is not None:
        _checks.check_closed_interval("pos_weight", pos_weight, 0.0, math.inf)
        _checks.check_finite("pos_weight", pos_weight)
        given["pos_weight"] = _checks.as_real("pos_weight", pos_weight)
    _checks.check_closed_interval("label_smoothing", label_smoothing, 0.0, 1.0)
    is_number = isinstance(label_smoothing, numbers.Real)
    smoothing = _checks.as_scalar("label_smoothing", label_smoothing)
    skip = is_number and label_smoothing == 0
    where, arrays = _masks.mask_elements(where, **given)
    return _masks.zero_where_masked(_losses(*arrays, smoothing=None if skip else smoothing), where)


@functools.partial(jax.jit, inline=True)
def _losses(logits, labels, pos_weight=None, *, smoothing) -> jax.Array:
    given = [array for array in (logits, labels, pos_weight) if array is not None]
    dtype = compute_dtype(*given)
    shape = jnp.broadcast_shapes(*(array.shape for array in given))
    x, yes = (jnp.broadcast_to(a.astype(dtype), shape) for a in (logits, labels))
    yes = _between(yes, 0.0, 1.0)
    if smoothing is None and pos_weight is None:
        return sigmoid.target_cross_entropy(x, yes)
    no = 1.0 - yes
    if smoothing is not None:
        smoothing = _between(smoothing.astype(dtype), 0.0, 1.0)
        yes, no = (1.0 - smoothing) * yes + smoothing / 2, (1.0 - smoothing) * no + smoothing / 2
    if pos_weight is not None:
        yes *= _between(jnp.broadcast_to(pos_weight.astype(dtype), shape), 0.0, jnp.inf)
    return sigmoid.binary_cross_entropy(x, yes, no)


def _between(value: jax.Array, low: float, high: float) -> jax.Array:
    """`value`, or NaN where it is outside [low, high]."""
    return jnp.where((value >= low) & (value <= high), value, jnp.nan)
