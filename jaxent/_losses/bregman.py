"""The generalised Kullback-Leibler divergence, of measures that need not have the same total."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._kernels import bregman
from jaxent._losses.distributions import as_floating_and_real


@_checks.public
def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Generalised Kullback-Leibler divergence, of predictions and targets of any total.

    .. math:: D(t \Vert q) = \sum_j \big( t_j \log (t_j / q_j) - t_j + q_j \big)

    No term is negative. Of distributions it is `kl_divergence`; for counts see `poisson_nll`.

    Args:
        log_predictions: Logarithms of predictions in nats, `[..., V]`, floating point.
        targets: Non-negative numbers, of the rank of `log_predictions`, of any total.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `log_predictions`).

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_predictions = jnp.log(jnp.array([3.0, 0.5, 0.0]))
        >>> print(jaxent.generalized_kl_divergence(log_predictions, jnp.array([2.0, 0.5, 0.0])))
        0.1890698

    References:
        Csiszar, `Least Squares, Maximum Entropy <https://doi.org/10.1214/aos/1176348385>`_, 1991.
    """
    return _generalized_kl_divergence(log_predictions, targets, axis, where)


@_checks.public
def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Deprecated name of `generalized_kl_divergence`, as in optax; a call warns.

    .. math:: D(t \Vert q) = \sum_j \big( t_j \log (t_j / q_j) - t_j + q_j \big)

    Args:
        log_predictions: Logarithms of predictions in nats, `[..., V]`, floating point.
        targets: Non-negative numbers, of the rank of `log_predictions`, of any total.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `log_predictions`).

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import warnings
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> with warnings.catch_warnings(action="ignore"):
        ...     print(jaxent.convex_kl_divergence(jnp.zeros(2), jnp.array([0.5, 1.0])))
        0.15342641

    References:
        Boyd, Vandenberghe, *Convex Optimization*, 2004, page 90.
    """
    warnings.warn(
        "jaxent.convex_kl_divergence is deprecated; use generalized_kl_divergence instead.",
        DeprecationWarning,
        stacklevel=3,
    )
    return _generalized_kl_divergence(log_predictions, targets, axis, where)


def _generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None,
    where: ArrayLike | None,
) -> jax.Array:
    arrays = as_floating_and_real(log_predictions=log_predictions, targets=targets)
    fills = (_masks.LOGITS, _masks.TARGETS)
    return _masks.apply_per_example(_generalized_kl_or_nan, arrays, fills, axis, where)


def _generalized_kl_or_nan(log_p: jax.Array, targets: jax.Array) -> jax.Array:
    is_valid = (targets >= 0.0) & (targets < jnp.inf) & (log_p < jnp.inf)
    losses = bregman.generalized_kl_divergence(log_p, jnp.where(is_valid, targets, jnp.nan))
    # A NaN in one class makes the derivatives in all classes NaN.
    return intervals.nan_where_invalid(losses, ~jnp.isnan(losses))
