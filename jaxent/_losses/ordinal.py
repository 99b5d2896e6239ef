"""The loss of classes in an order, from cumulative log-odds."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks, _parallel
from jaxent._float import intervals
from jaxent._kernels import ordinal


@_checks.public
def ordinal_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Cross-entropy of classes in an order, from the log-odds of being at most each of them.

    .. math:: \ell = -\log\big(\sigma(x_y) - \sigma(x_{y-1})\big), \qquad
        \sigma(x_{-1}) = 0, \quad \sigma(x_{K-1}) = 1

    The cumulative link model: usually :math:`x_k = \theta_k - s`, with thresholds
    :math:`\theta_0 \le \theta_1 \le \dots` that all examples share and a score s of each.

    Args:
        logits: Log-odds in nats that the class is at most k, `[..., K - 1]`, not decreasing.
        labels: Index y of the true class, integers `[...]`, from 0 to K - 1.
        axis: The axis of the log-odds. Given several, their entries count in their order.
        where: Mask of the examples `[...]`; classes of an order cannot be masked.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[-1.0, 1.0], [20.0, 40.0], [20.0, 40.0]])
        >>> print(jaxent.ordinal_cross_entropy(logits, jnp.array([1, 0, 2])))
        [7.7193683e-01 2.0611537e-09 4.0000000e+01]

    References:
        McCullagh, `Regression Models for Ordinal Data
        <https://doi.org/10.1111/j.2517-6161.1980.tb01109.x>`_, 1980, section 1.2.
    """
    remedy = "number the classes from 0 in their order."
    given = _masks.check_labelled_arguments("logits", logits, labels, axis, where, remedy)
    _checks.require(
        given.where is None or given.where.ndim < given.array.ndim,
        f"`where` {'' if given.where is None else _checks.describe(given.where)} must have the "
        f"shape of the examples of `logits` {_checks.describe(given.array)}: no class of an order "
        "can be left out; use `where.all(axis)`.",
    )
    losses = functools.partial(_ordinal_losses, axes=given.axes)
    data = given.array, given.labels, given.where
    return _parallel.with_auto_axes(losses, *data, example=given.labels, ndim=given.labels.ndim)


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _ordinal_losses(
    logits: jax.Array, labels: jax.Array, where: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
    # With the log-odds of the last class, which are infinite, there is an entry for each class.
    x = _masks.move_classes_last(logits, axes)
    x = jnp.concatenate([x, jnp.full_like(x[..., :1], jnp.inf)], axis=-1)
    rows = _masks.mask_labelled_rows(x, labels, where, (x.ndim - 1,), _masks.LOGITS)
    x = rows.values
    rows = rows.valid_only_if(jnp.all(x[..., 1:] >= x[..., :-1], axis=-1))
    # An invalid example has NaN as its gradient in all of its log-odds.
    x = intervals.nan_where_invalid(x, rows.valid[..., None])
    high, low = (_parallel.take_local_label(x, index) for index in (rows.labels, rows.labels - 1))
    low = jnp.where(rows.labels == 0, -jnp.inf, low)
    losses = ordinal.interval_cross_entropy(low, high)
    return _masks.zero_where_masked(losses, rows.example_mask)
