"""Estimates of values in reinforcement learning: advantages made of them, and their own loss."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import value
from jaxent._losses.preference import as_pair


@_checks.public
def clipped_value_loss(
    values: ArrayLike,
    old_values: ArrayLike,
    returns: ArrayLike,
    where: ArrayLike | None = None,
    *,
    clip: ArrayLike = 0.2,
) -> jax.Array:
    r"""PPO's loss of estimated values: nothing is gained by moving far in one iteration.

    .. math:: \ell = \tfrac{1}{2} \max\big( (v - R)^2,
        (\operatorname{clip}(v, v_0 - c, v_0 + c) - R)^2 \big)

    Without clipping: `jaxent.l2_loss`. Returns: `jaxent.generalized_advantage_estimation`.

    Args:
        values: Estimated values v, any shape, floating point.
        old_values: The estimates before this iteration, :math:`v_0`, of that rank, or a scalar.
        returns: Returns R, what is estimated, of that rank, or a scalar.
        where: Mask of the steps, of the same rank, or a scalar.
        clip: How far v may move, :math:`c \ge 0`, in units of reward, finite; a scalar.

    Returns:
        One loss per step in squared units of reward, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> values, returns = jnp.array([1.0, 1.5, 1.5]), jnp.array([3.0, 3.0, 0.0])
        >>> print(jaxent.clipped_value_loss(values, 1.0, returns, clip=0.25))
        [2.      1.53125 1.125  ]

    References:
        Schulman et al., `PPO <https://arxiv.org/abs/1707.06347>`_, 2017, in its first code.
    """
    _checks.check_closed_interval("clip", clip, 0.0, math.inf)
    _checks.check_finite("clip", clip)
    where, arrays = _masks.mask_elements(
        where,
        values=_checks.as_floating("values", values),
        old_values=_checks.as_floating("old_values", old_values),
        returns=_checks.as_real("returns", returns),
    )
    limit = as_pair("clip", clip, compute_dtype(*arrays))
    losses = _masks.apply_elementwise(_clipped_value, arrays, *limit)
    return _masks.zero_where_masked(losses, where)


class AdvantageEstimate(NamedTuple):
    """Advantages and returns of each step from `generalized_advantage_estimation`."""

    advantages: jax.Array  # [..., time]
    returns: jax.Array  # [..., time]


@_checks.public
def generalized_advantage_estimation(
    rewards: ArrayLike,
    values: ArrayLike,
    where: ArrayLike | None = None,
    *,
    terminations: ArrayLike | None = None,
    last_values: ArrayLike = 0.0,
    discount: ArrayLike = 1.0,
    lambda_: ArrayLike = 0.95,
) -> AdvantageEstimate:
    r"""By how much what was done is better than expected, from rewards and estimated values.

    .. math:: A_t = \delta_t + \gamma \lambda A_{t+1}, \qquad
        \delta_t = r_t + \gamma V_{t+1} - V_t, \qquad R_t = A_t + V_t

    Args:
        rewards: Rewards r, `[..., time]`, real.
        values: Estimated values V of the states in which they were earned, of that rank.
        where: Mask of the steps, of that rank, or a scalar. A step that does not count is passed
            over, so that the one before it is followed by the one after it.
        terminations: Where a step is the last one of its episode, booleans of that rank: nothing
            later counts. None is nowhere; the last step of all needs none.
        last_values: Values of the states after the last steps, `[...]` or a scalar; 0.0 if all
            ends there.
        discount: :math:`\gamma` in [0, 1], a scalar.
        lambda_: :math:`\lambda` in [0, 1], a scalar; 0 trusts the values, 1 the rewards.

    Returns:
        Advantages and returns `[..., time]` in units of reward, float32 (float64 for float64
        inputs), 0 where masked. They have derivatives; as targets they are taken before the step.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> rewards, values = jnp.array([0.0, 0.0, 1.0]), jnp.array([0.5, 0.5, 0.5])
        >>> estimate = jaxent.generalized_advantage_estimation(rewards, values, lambda_=0.5)
        >>> print(estimate.advantages, estimate.returns)
        [0.125 0.25  0.5  ] [0.625 0.75  1.   ]

    References:
        Schulman et al., `GAE <https://arxiv.org/abs/1506.02438>`_, 2016.
    """
    scalars = {"discount": discount, "lambda_": lambda_}
    for name, number in scalars.items():
        _checks.check_closed_interval(name, number, 0.0, 1.0)
    ends = _checks.as_boolean("terminations", False if terminations is None else terminations)
    where, arrays = _masks.mask_elements(
        where,
        rewards=_checks.as_real("rewards", rewards),
        values=_checks.as_floating("values", values),
        terminations=ends,
    )
    masks = () if where is None else (where,)
    shape = jnp.broadcast_shapes(*(array.shape for array in (*arrays, *masks)))
    _checks.require(
        len(shape) > 0,
        f"`rewards` {_checks.describe(arrays[0])} must have a time axis, the last.",
    )
    last = _checks.as_floating("last_values", last_values)
    _checks.broadcast_per_row("last_values", last, shape[:-1], "values")
    options = (_checks.as_scalar(name, number) for name, number in scalars.items())
    return _estimate(*arrays, last, where, *options)


# In one dtype.


def _clipped_value(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    clip: jax.Array,
    clip_low: jax.Array,
) -> jax.Array:
    clip = intervals.not_negative(clip)
    # NaN in the gradients too, which do not depend on all of the arguments.
    values = intervals.nan_where_invalid(values, (clip == clip) & (old_values == old_values))
    return value.clipped_half_square(values, old_values, returns, clip, clip_low)


@functools.partial(jax.jit, inline=True)
def _estimate(
    rewards: jax.Array,
    values: jax.Array,
    ends: jax.Array,
    last: jax.Array,
    where: jax.Array | None,
    discount: jax.Array,
    lambda_: jax.Array,
) -> AdvantageEstimate:
    dtype = compute_dtype(rewards, values, last)
    counts = jnp.ones_like(ends) if where is None else where
    given = (rewards.astype(dtype), values.astype(dtype), counts, ends)
    shape = jnp.broadcast_shapes(*(array.shape for array in given))
    rewards, values, counts, ends = (jnp.broadcast_to(array, shape) for array in given)
    discount, lambda_ = (
        intervals.nan_outside(number.astype(dtype), 0.0, 1.0) for number in (discount, lambda_)
    )
    advantages = value.advantages(
        rewards, values, counts, ends, last.astype(dtype), discount, lambda_
    )
    return AdvantageEstimate(advantages, advantages + values)
