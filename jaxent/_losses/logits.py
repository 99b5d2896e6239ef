"""Maps of logits before a loss sees them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import logits as logits_kernels


@_checks.public
def soft_cap(logits: ArrayLike, cap: ArrayLike) -> jax.Array:
    r"""Logits held smoothly between `-cap` and `cap`.

    .. math:: x' = c \tanh(x / c)

    An infinite logit stays infinite, with derivative 0: an impossible class stays impossible.

    Args:
        logits: Unnormalised log-probabilities in nats, any shape.
        cap: The bound :math:`c > 0` in nats, finite: a number or a scalar array.

    Returns:
        Logits of the same shape in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: If dtypes or `cap` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.soft_cap(jnp.array([1.0, 30.0, 3000.0, -jnp.inf]), 30.0))
        [ 0.9996297 22.847824  30.             -inf]

    References:
        Gemma Team, `Gemma 2 <https://arxiv.org/abs/2408.00118>`_, 2024, section 2; Bello et al.,
        `Neural Combinatorial Optimization <https://arxiv.org/abs/1611.09940>`_, 2016.
    """
    return _transform(logits_kernels.soft_cap, logits, "cap", cap)


@_checks.public
def temperature_scaling(logits: ArrayLike, temperature: ArrayLike) -> jax.Array:
    r"""Logits divided by a temperature, which makes a model less sure of itself, or more.

    .. math:: x' = x / T

    Fit the temperature by minimising a loss on held-out data. An infinite logit stays infinite.

    Args:
        logits: Unnormalised log-probabilities in nats, any shape.
        temperature: :math:`T > 0`, finite: a number or a scalar array.

    Returns:
        Logits of the same shape in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: If dtypes or `temperature` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.temperature_scaling(jnp.array([1.0, 3.0, -jnp.inf]), 2.0))
        [ 0.5  1.5 -inf]

    References:
        Guo et al., `On Calibration of Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017.
    """
    return _transform(logits_kernels.scale_by_temperature, logits, "temperature", temperature)


@_checks.public
def logit_adjustment(
    logits: ArrayLike,
    class_priors: ArrayLike,
    tau: ArrayLike = 1.0,
    axis: int = -1,
) -> jax.Array:
    r"""Logits to train with, so that rare classes are not drowned by frequent ones.

    .. math:: x'_j = x_j + \tau \log \pi_j

    Give the result to a softmax loss and predict with the plain logits. With a negative
    :math:`\tau` it corrects, instead, the predictions of a model that was trained without it.
    Second derivatives of a loss in a prior that is far below the others lose digits: where they are
    needed, differentiate in :math:`\log \pi`, added to the logits.

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        class_priors: Frequencies or counts :math:`\pi_j \ge 0`, `[V]` or of the rank of `logits`.
        tau: The strength :math:`\tau`, a number or a scalar array.
        axis: The class axis.

    Returns:
        Logits of the common shape in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.logit_adjustment(jnp.array([[1.0, 2.0]]), jnp.array([0.9, 0.1])))
        [[ 0.8946395  -0.30258512]]

    References:
        Menon et al., `Logit Adjustment <https://arxiv.org/abs/2007.07314>`_, 2021, equation 10.
    """
    logits = _checks.as_floating("logits", logits)
    priors = _checks.as_real("class_priors", class_priors)
    axes = _checks.normalize_axes("logits", logits, axis)
    _checks.require(len(axes) == 1, f"`axis` must be one axis, got {axis}.")
    one_per_class = (
        f"`class_priors` {_checks.describe(priors)} must hold one entry per class of `logits` "
        f"{_checks.describe(logits)} along axis {axis}."
    )
    _checks.require(priors.ndim > 0, one_per_class)
    if priors.ndim == 1:
        _checks.require(priors.shape[0] == logits.shape[axes[0]], one_per_class)
        priors = jnp.expand_dims(priors, tuple(a for a in range(logits.ndim) if a not in axes))
    _checks.check_broadcastable(logits=logits, class_priors=priors)
    _checks.check_same_classes(axes, logits=logits, class_priors=priors)
    return _adjust(logits, priors, _checks.as_scalar("tau", tau))


def _transform(
    transform: Callable[[jax.Array, jax.Array], jax.Array],
    logits: ArrayLike,
    name: str,
    number: ArrayLike,
) -> jax.Array:
    """`transform` of logits and a positive finite number."""
    logits = _checks.as_floating("logits", logits)
    _checks.check_open_interval(name, number, 0.0, math.inf)
    return intervals.apply_with_positive(transform, logits, _checks.as_scalar(name, number))


@functools.partial(jax.jit, inline=True)
def _adjust(logits: jax.Array, priors: jax.Array, tau: jax.Array) -> jax.Array:
    dtype = compute_dtype(logits, priors)
    shape = jnp.broadcast_shapes(logits.shape, priors.shape)
    priors = intervals.clip_rounding(priors, intervals.NON_NEGATIVE)
    x, priors = (jnp.broadcast_to(array.astype(dtype), shape) for array in (logits, priors))
    tau = tau.astype(dtype)
    shift = jnp.where(
        priors == 0.0, _tau_log_of_zero(tau), tau * jnp.log(jnp.where(priors > 0.0, priors, 1.0))
    )
    is_impossible = x == -jnp.inf
    adjusted = jnp.where(is_impossible, -jnp.inf, jnp.where(is_impossible, 0.0, x) + shift)
    return intervals.nan_where_invalid(adjusted, priors >= 0.0)


def _tau_log_of_zero(tau: jax.Array) -> jax.Array:
    """The limit of tau log(p) as p tends to 0, without its infinite derivative."""
    zero_or_nan = jnp.where(tau == 0.0, 0.0, tau * 0.0)
    limit = jnp.where(tau > 0.0, -jnp.inf, jnp.where(tau < 0.0, jnp.inf, zero_or_nan))
    return limit.astype(tau.dtype)
