"""From one loss per example to one number: masks, weights, and means that add up."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._float.dtypes import compute_dtype


@_checks.public
def sum_and_weight(
    losses: ArrayLike, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> tuple[jax.Array, jax.Array]:
    r"""The two halves of a mean: the weighted sum of the losses, and the sum of the weights.

    .. math:: \Big(\sum_{i \in M} w_i \ell_i, \ \sum_{i \in M} w_i\Big)

    Unlike means, these add up over micro-batches and devices: sum both, then divide once.

    Args:
        losses: One loss per example in nats, any shape.
        where: Mask of the examples, of the rank of `losses`, or a scalar.
        weights: Real weights of the examples, of the rank of `losses`, or a scalar; None is 1.
            They are no mask: a weight of 0 on a NaN is NaN.

    Returns:
        Weighted sum in nats and total weight, scalars, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> losses, where = jnp.array([1.0, 3.0, jnp.nan]), jnp.array([True, True, False])
        >>> print(*jaxent.sum_and_weight(losses, where))
        4.0 2.0

    References:
        Wikipedia, `Weighted mean <https://en.wikipedia.org/wiki/Weighted_arithmetic_mean>`_.
    """
    return _sum_and_weight(losses, where, weights)


@_checks.public
def mean(
    losses: ArrayLike, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> jax.Array:
    r"""The weighted mean of the losses that count; 0, with zero gradient, if none does.

    .. math:: \sum_{i \in M} w_i \ell_i \Big/ \sum_{i \in M} w_i

    Args:
        losses: One loss per example in nats, any shape.
        where: Mask of the examples, of the rank of `losses`, or a scalar.
        weights: Real weights of the examples, of the rank of `losses`, or a scalar; None is 1.
            They are no mask: a weight of 0 on a NaN is NaN.

    Returns:
        A scalar in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.mean(jnp.array([1.0, 3.0, 8.0]), where=jnp.array([True, True, False])))
        2.0
        >>> print(jaxent.mean(jnp.array([1.0, 3.0]), weights=jnp.array([3.0, 1.0])))
        1.5

    References:
        Wikipedia, `Weighted mean <https://en.wikipedia.org/wiki/Weighted_arithmetic_mean>`_.
    """
    return divide(*_sum_and_weight(losses, where, weights))


@functools.partial(jax.jit, inline=True)
def divide(total: jax.Array, weight: jax.Array) -> jax.Array:
    """`total / weight`, and 0 without gradient for 0 / 0."""
    is_empty = (weight == 0.0) & (total == 0.0)
    return jnp.where(is_empty, 0.0, total / jnp.where(is_empty, 1.0, weight))


def _sum_and_weight(
    losses: ArrayLike, where: ArrayLike | None, weights: ArrayLike | None
) -> tuple[jax.Array, jax.Array]:
    losses = _checks.as_floating("losses", losses)
    weights = _checks.as_real("weights", 1.0 if weights is None else weights)
    where = _checks.as_boolean("where", True if where is None else where)
    shape = _checks.check_broadcastable(losses=losses, where=where, weights=weights)
    _checks.require(
        losses.shape == shape,
        f"`losses` {_checks.describe(losses)} must have the full shape {shape} of the mask and "
        "weights; broadcast it with `jnp.broadcast_to`.",
    )
    return _sums(losses, where, weights)


@functools.partial(jax.jit, inline=True)
def _sums(losses: jax.Array, where: jax.Array, weights: jax.Array) -> tuple[jax.Array, jax.Array]:
    dtype = compute_dtype(losses, weights)
    weights = jnp.where(where, jnp.broadcast_to(weights.astype(dtype), losses.shape), 0.0)
    losses = jnp.where(where, losses.astype(dtype), 0.0)
    return jnp.sum(weights * losses), jnp.sum(weights)
