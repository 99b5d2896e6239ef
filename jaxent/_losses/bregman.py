"""Divergence of measures that need not be normalised."""

import warnings

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._kernels import bregman


@_checks.public
def generalized_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Generalised Kullback-Leibler divergence, of predictions and targets of any total.

    .. math:: D(t \Vert q) = \sum_j \big( t_j \log (t_j / q_j) - t_j + q_j \big)

    No term is negative, and each keeps its relative accuracy as far as the logarithm of its
    prediction, which is rounded, can tell. Of distributions it is the Kullback-Leibler divergence.

    Args:
        log_predictions: Logarithms of predictions in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` predicts 0, which costs
            nothing against a target of 0, and `+inf` against a positive one. NaN and `+inf` make
            their example NaN unless it is masked.
        targets: Non-negative numbers, of the rank of `log_predictions`; real, of any total. A
            negative or infinite one makes its example NaN unless it is masked. A subnormal one
            counts as 0.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `log_predictions`: True where the class exists.

    Returns:
        One divergence per example in nats, shape `[...]`, float32 (float64 if any input is). Masked
        examples have value 0 and gradient 0. The derivative along a target of 0, infinite on paper,
        is 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_predictions = jnp.log(jnp.array([3.0, 0.5, 0.0]))
        >>> print(jaxent.generalized_kl_divergence(log_predictions, jnp.array([2.0, 0.5, 0.0])))
        0.1890698

    References:
        Csiszar, `Why Least Squares and Maximum Entropy?
        <https://doi.org/10.1214/aos/1176348385>`_, 1991; Boyd, Vandenberghe, *Convex
        Optimization*, 2004, page 90.
    """
    return _generalized_kl_divergence(log_predictions, targets, axis, where)


@_checks.public
def convex_kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Deprecated name of `jaxent.generalized_kl_divergence`, kept for those who come from optax.

    .. math:: D(t \Vert q) = \sum_j \big( t_j \log (t_j / q_j) - t_j + q_j \big)

    A call warns with a `DeprecationWarning`.

    Args:
        log_predictions: As there: logarithms of predictions in nats, shape `[..., V]`.
        targets: As there: non-negative numbers, of the rank of `log_predictions`.
        axis: The class axis or axes; None for all of them.
        where: Booleans, of the shape of the examples or of the rank of `log_predictions`.

    Returns:
        One divergence per example in nats, shape `[...]`, float32 (float64 if any input is).

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

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


def _generalized_kl_divergence(log_predictions, targets, axis, where) -> jax.Array:
    arrays = {
        "log_predictions": _checks.as_floating("log_predictions", log_predictions),
        "targets": _checks.as_real("targets", targets),
    }
    fills = (_masks.LOGITS, _masks.TARGETS)
    return _masks.apply_per_example(_divergences, arrays, fills, axis, where)


def _divergences(log_p: jax.Array, targets: jax.Array) -> jax.Array:
    proper = (targets >= 0.0) & (targets < jnp.inf) & (log_p < jnp.inf)
    losses = bregman.generalized_kl_divergence(log_p, jnp.where(proper, targets, jnp.nan))
    # One NaN makes all derivatives of its example NaN.
    return _masks.nan_where_invalid(losses, ~jnp.isnan(losses))
