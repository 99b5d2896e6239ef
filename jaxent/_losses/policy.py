"""The clipped policy-gradient loss of reinforcement learning, from log-probabilities of tokens."""

from __future__ import annotations

import functools
import math
import numbers
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals, sums
from jaxent._kernels import policy
from jaxent._losses import reduction


@_checks.public
def policy_gradient_loss(
    log_probs: ArrayLike,
    old_log_probs: ArrayLike,
    advantages: ArrayLike,
    where: ArrayLike | None = None,
    *,
    clip: ArrayLike | tuple[ArrayLike, ArrayLike] = 0.2,
    dual_clip: ArrayLike | None = None,
    normalization: Literal["token", "sequence"] = "token",
    reference_log_probs: ArrayLike | None = None,
    kl_weight: ArrayLike = 0.0,
) -> jax.Array:
    r"""The clipped surrogate of PPO and GRPO for each token, or its mean over each sequence.

    .. math:: \ell = -\min\big( r A,\ \operatorname{clip}(r, 1 - c_-, 1 + c_+)\, A \big)
        + \lambda\, \big( e^{\rho - \pi} - (\rho - \pi) - 1 \big), \qquad r = e^{\pi - \pi_0}

    Args:
        log_probs: Log-probabilities :math:`\pi` in nats of the sampled tokens, `[..., time]`.
        old_log_probs: Those under the sampling policy, :math:`\pi_0`, of that rank, or a scalar;
            a constant: on policy, `log_probs` may be passed twice.
        advantages: Advantages A in units of reward, `[..., time]`, or `[..., 1]` as in GRPO.
        where: Mask of the tokens, of the same rank, or a scalar.
        clip: How far r may be below and above 1: a number in [0, 1], or a pair (`math.inf`: never).
        dual_clip: The ratio above 1 from which negative advantages are clipped too; None: never.
        normalization: "token" for one loss per token, whose `jaxent.mean` is that of PPO and DAPO;
            "sequence" for the mean over the tokens of each sequence that count, as in GRPO.
        reference_log_probs: Those under a reference, :math:`\rho`, of that rank; None for none.
        kl_weight: Weight :math:`\lambda \ge 0` of the divergence from it, which in float32 is
            infinite from :math:`\rho - \pi = 88.7` on, however small its weight; a scalar.

    Returns:
        Losses in units of reward, per token or sequence, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> ratio, where = jnp.array([1.5, 1.0, 1.0, 0.5, 1.0, 1.5]), jnp.arange(6) < 5
        >>> advantages = jnp.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
        >>> print(jaxent.policy_gradient_loss(jnp.log(ratio), 0.0, advantages, where, clip=0.25))
        [-1.25 -1.   -1.    0.75  1.    0.  ]

    References:
        Schulman et al., `PPO <https://arxiv.org/abs/1707.06347>`_, 2017; with parts of later ones:
        `GRPO <https://arxiv.org/abs/2402.03300>`_, `KL <http://joschu.net/blog/kl-approx.html>`_,
        `dual clip <https://arxiv.org/abs/1912.09729>`_, `DAPO <https://arxiv.org/abs/2503.14476>`_.
    """
    options = _clip_bounds(clip, dual_clip)
    _checks.check_one_of("normalization", normalization, ("token", "sequence"))
    given = {
        "log_probs": _checks.as_floating("log_probs", log_probs),
        "old_log_probs": _checks.as_floating("old_log_probs", old_log_probs),
        "advantages": _checks.as_real("advantages", advantages),
    }
    kernel = _surrogate
    reference = _weighted_reference(reference_log_probs, kl_weight)
    if reference is not None:
        kernel = _surrogate_and_divergence
        given["reference_log_probs"] = reference
        options = (*options, _checks.as_scalar("kl_weight", kl_weight))
    where, arrays = _masks.mask_elements(where, **given)
    # A constant: else the gradient of an on-policy step, whose ratio is 1, would be 0.
    arrays[1] = jax.lax.stop_gradient(arrays[1])
    losses = _masks.zero_where_masked(_masks.apply_elementwise(kernel, arrays, *options), where)
    if normalization == "token":
        return losses
    _checks.require(
        losses.ndim > 0,
        f"`log_probs` {_checks.describe(losses)} must have a time axis for "
        '`normalization="sequence"`.',
    )
    return _sequence_means(losses, where)


def _clip_bounds(
    clip: ArrayLike | tuple[ArrayLike, ArrayLike], dual_clip: ArrayLike | None
) -> tuple[jax.Array, ...]:
    """The ends of the interval of ratios, and the upper end for negative advantages."""
    _checks.require(
        not isinstance(clip, tuple) or len(clip) == 2,
        f"`clip` must be a number or a pair (below, above), got {clip}.",
    )
    below, above = clip if isinstance(clip, tuple) else (clip, clip)
    _checks.check_closed_interval("clip", below, 0.0, 1.0)
    _checks.check_closed_interval("clip", above, 0.0, math.inf if isinstance(clip, tuple) else 1.0)
    if dual_clip is not None:
        _checks.check_open_interval("dual_clip", dual_clip, 1.0, math.inf)
    # Python numbers are added to 1 here, in float64, before they are rounded to float32.
    return (
        _checks.as_scalar("clip", 1.0 - below),
        _checks.as_scalar("clip", 1.0 + above),
        _checks.as_scalar("dual_clip", math.inf if dual_clip is None else dual_clip),
    )


def _weighted_reference(
    reference_log_probs: ArrayLike | None, kl_weight: ArrayLike
) -> jax.Array | None:
    """The reference as an array, or None without a weight; a weight needs a reference."""
    _checks.check_closed_interval("kl_weight", kl_weight, 0.0, math.inf)
    _checks.check_finite("kl_weight", kl_weight)
    is_weighted = not isinstance(kl_weight, numbers.Real) or float(kl_weight) > 0.0
    _checks.require(
        reference_log_probs is not None or not is_weighted,
        "`kl_weight` needs `reference_log_probs`; pass them, or no weight.",
    )
    if reference_log_probs is None or not is_weighted:
        return None
    return _checks.as_floating("reference_log_probs", reference_log_probs)


# Losses, element by element in one dtype.


def _surrogate(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    dual_upper: jax.Array,
) -> jax.Array:
    is_valid = (lower >= 0.0) & (lower <= 1.0) & (upper >= 1.0) & (dual_upper > 1.0)
    is_negative = advantages < 0.0
    # Without an advantage the loss is 0, even if the ratio is infinite.
    largest = jnp.where(advantages == 0.0, jnp.finfo(upper.dtype).max, jnp.inf)
    ratio = policy.clipped_ratio(
        log_probs,
        old_log_probs,
        jnp.where(is_negative, lower, 0.0),
        jnp.where(is_negative, dual_upper, jnp.minimum(upper, largest.astype(upper.dtype))),
    )
    return intervals.nan_where_invalid(0.0 - advantages * ratio, is_valid)


def _surrogate_and_divergence(
    log_probs: jax.Array,
    old_log_probs: jax.Array,
    advantages: jax.Array,
    reference: jax.Array,
    lower: jax.Array,
    upper: jax.Array,
    dual_upper: jax.Array,
    weight: jax.Array,
) -> jax.Array:
    surrogate = _surrogate(log_probs, old_log_probs, advantages, lower, upper, dual_upper)
    weight = intervals.nan_outside(weight, 0.0, jnp.inf, "[)")
    return surrogate + weight * policy.divergence_estimate(reference, log_probs)


@functools.partial(jax.jit, inline=True)
def _sequence_means(losses: jax.Array, where: jax.Array | None) -> jax.Array:
    counted = jnp.ones_like(losses) if where is None else where.astype(losses.dtype)
    counts = jnp.sum(jnp.broadcast_to(counted, losses.shape), axis=-1)
    return reduction.divide(sums.blocked_sum(losses), counts)
