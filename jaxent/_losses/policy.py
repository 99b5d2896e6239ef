"""Losses of policies from log-probabilities of tokens: surrogate, divergence, their means."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals, sums
from jaxent._float.dtypes import compute_dtype
from jaxent._float.tangents import Pair
from jaxent._kernels import policy, regression
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
    ratio: Literal["token", "sequence"] = "token",
    rollout_log_probs: ArrayLike | None = None,
    rollout_clip: ArrayLike = 2.0,
    normalization: Literal["token", "sequence"] = "token",
    reference_log_probs: ArrayLike | None = None,
    kl_weight: ArrayLike = 0.0,
) -> jax.Array:
    r"""The clipped surrogate of PPO and GRPO for each token, or its mean over each sequence.

    .. math:: \ell = -\min\big( r A,\ \operatorname{clip}(r, 1 - c_-, 1 + c_+)\, A \big)
        + \lambda\, \big( e^{\rho - \pi} - (\rho - \pi) - 1 \big), \qquad r = e^{\pi - \pi_0}

    `jaxent.mean` of the losses of tokens is the loss of PPO and DAPO, `jaxent.sequence_mean` that
    of GRPO and its kind. Other estimates of the divergence: `jaxent.sampled_kl_divergence`.

    Args:
        log_probs: Log-probabilities :math:`\pi` in nats of the sampled tokens, `[..., time]`.
        old_log_probs: Those under the sampling policy, :math:`\pi_0`, of that rank, or a scalar;
            a constant: on policy, `log_probs` may be passed twice.
        advantages: Advantages A in units of reward, `[..., time]`, or `[..., 1]` as in GRPO.
        where: Mask of the tokens, of the same rank, or a scalar.
        clip: How far r may be below and above 1: a number in [0, 1], or a pair (`math.inf`: never).
        dual_clip: The ratio above 1 from which negative advantages are clipped too; None: never.
        ratio: "token" for one r per token; "sequence" for that of GSPO, the geometric mean over the
            tokens of a sequence that count.
        rollout_log_probs: Those under what sampled the tokens, :math:`\mu`, of that rank, if that
            is not quite the old policy: :math:`\min(e^{\pi_0 - \mu}, c)`, a constant, multiplies A.
        rollout_clip: The bound c > 0 of that weight, finite; a scalar.
        normalization: "token" for one loss per token; "sequence" for one per sequence, the mean
            over its tokens that count, and 0 if none does.
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
        `dual clip <https://arxiv.org/abs/1912.09729>`_, `DAPO <https://arxiv.org/abs/2503.14476>`_,
        `GSPO <https://arxiv.org/abs/2507.18071>`_, `TIS <https://fengyao.notion.site/off-policy-rl>`_.
    """
    options = _clip_bounds(clip, dual_clip)
    _checks.check_one_of("ratio", ratio, ("token", "sequence"))
    _checks.check_one_of("normalization", normalization, ("token", "sequence"))
    given = {
        "log_probs": _checks.as_floating("log_probs", log_probs),
        "old_log_probs": _checks.as_floating("old_log_probs", old_log_probs),
        "advantages": _checks.as_real("advantages", advantages),
    }
    reference = _weighted_reference(reference_log_probs, kl_weight)
    if reference is not None:
        given["reference_log_probs"] = reference
    if rollout_log_probs is not None:
        _checks.check_open_interval("rollout_clip", rollout_clip, 0.0, math.inf)
        given["rollout_log_probs"] = _checks.as_floating("rollout_log_probs", rollout_log_probs)
    where, arrays = _masks.mask_elements(where, **given)
    dtype = compute_dtype(*arrays)
    new, old, advantages, *_ = arrays = [array.astype(dtype) for array in arrays]
    has_time = max(array.ndim for array in arrays) > 0
    for option, choice in (("ratio", ratio), ("normalization", normalization)):
        _checks.require(
            has_time or choice == "token",
            f'`log_probs` {_checks.describe(new)} must have a time axis for `{option}="sequence"`.',
        )
    # A constant: else the gradient of an on-policy step, whose ratio is 1, would be 0.
    old = jax.lax.stop_gradient(old)
    if rollout_log_probs is not None:
        rollout = jax.lax.stop_gradient(arrays[-1])
        cap = _checks.as_scalar("rollout_clip", rollout_clip)
        advantages = _masks.apply_elementwise(_weighted, [advantages, old, rollout], cap)
    pair = (new, old) if ratio == "token" else _sequence_log_ratio(new, old, where)
    losses = _masks.apply_elementwise(_surrogate, [*pair, advantages], *options)
    if reference is not None:
        weight = _checks.as_scalar("kl_weight", kl_weight)
        losses = losses + _masks.apply_elementwise(_divergence, [arrays[3], new], weight)
    losses = _masks.zero_where_masked(losses, where)
    return losses if normalization == "token" else _over_time(losses, where, None).losses


@_checks.public
def sampled_kl_divergence(
    log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k3",
    bound: ArrayLike | None = None,
) -> jax.Array:
    r"""Estimates of how far a policy is from a reference, from the tokens that it sampled.

    .. math:: k_1 = \pi - \rho, \qquad k_2 = (\pi - \rho)^2 / 2, \qquad
        k_3 = e^{\rho - \pi} - 1 - (\rho - \pi)

    The means of k1 and k3 over tokens of the policy are the divergence; k1 may be negative. The
    gradient of k2 is, in the mean, that of the divergence; those of the others are not.
    With the logits of both at hand: `jaxent.softmax_kl_divergence`.

    Args:
        log_probs: Log-probabilities :math:`\pi` in nats of the sampled tokens, any shape.
        reference_log_probs: Those under the reference, :math:`\rho`, of that rank, or a scalar.
        where: Mask of the tokens, of the same rank, or a scalar.
        estimator: "k1", "k2" or "k3".
        bound: The largest distance of both that counts, in nats, above 0, a scalar: a farther one
            counts as that, and has no gradient. None: any, though in float32 k3 is infinite from
            :math:`\rho - \pi = 88.7` on.

    Returns:
        One estimate per token in nats (k2: squared), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_probs, reference = jnp.array([-1.0, -1.0, -99.0]), jnp.array([-1.0, -1.001, -1.0])
        >>> print(jaxent.sampled_kl_divergence(log_probs, reference, bound=10))
        [0.0000000e+00 4.9988006e-07 2.2015465e+04]

    References:
        Schulman, `Approximating KL divergence <http://joschu.net/blog/kl-approx.html>`_, 2020.
    """
    _checks.check_one_of("estimator", estimator, tuple(_ESTIMATORS))
    if bound is not None:
        _checks.check_open_interval("bound", bound, 0.0, math.inf)
    where, arrays = _masks.mask_elements(
        where,
        reference_log_probs=_checks.as_floating("reference_log_probs", reference_log_probs),
        log_probs=_checks.as_floating("log_probs", log_probs),
    )
    bound = _checks.as_scalar("bound", math.inf if bound is None else bound)
    kernel = _ESTIMATORS[estimator]
    return _masks.zero_where_masked(_masks.apply_elementwise(kernel, arrays, bound), where)


@_checks.public
def sequence_mean(
    losses: ArrayLike, where: ArrayLike | None = None, *, length: ArrayLike | None = None
) -> jax.Array:
    r"""The mean over sequences of the mean over their tokens; empty sequences do not count.

    .. math:: \frac{1}{N} \sum_i \frac{1}{L_i} \sum_{t \in M_i} \ell_{it}

    N sequences have a token that counts. The mean over all tokens of all sequences, to which a
    long one contributes more, is `jaxent.mean`.

    Args:
        losses: One loss per token in nats or other units, `[..., time]`, floating point.
        where: Mask of the tokens, of the rank of `losses`, or a scalar.
        length: What divides the sum over tokens: None for the number of those that count, as in
            GRPO; a number above 0, finite, for all sequences, as in Dr. GRPO; 1 for sums.

    Returns:
        A scalar in units of the losses, float32 (float64 for float64 inputs); 0 over nothing.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> losses = jnp.array([[1.0, 1.0, 1.0, 1.0], [4.0, 9.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]])
        >>> where = losses < 9.0
        >>> print(jaxent.sequence_mean(losses, where), jaxent.mean(losses, where))
        2.5 1.6
        >>> print(jaxent.sequence_mean(losses, where, length=8))
        0.5

    References:
        `GRPO <https://arxiv.org/abs/2402.03300>`_; `Dr. GRPO <https://arxiv.org/abs/2503.20783>`_.
    """
    losses = _checks.as_floating("losses", losses)
    _checks.require(
        losses.ndim > 0, f"`losses` {_checks.describe(losses)} must have a time axis, the last."
    )
    if length is not None:
        _checks.check_open_interval("length", length, 0.0, math.inf)
        length = _checks.as_scalar("length", length)
    if where is not None:
        where = _checks.as_boolean("where", where)
        shape = _checks.check_broadcastable(losses=losses, where=where)
        _checks.require(
            losses.shape == shape,
            f"`losses` {_checks.describe(losses)} must have the full shape {shape} of the mask; "
            "broadcast it with `jnp.broadcast_to`.",
        )
    return _mean_over_sequences(losses, where, length)


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


def _weighted(
    advantages: jax.Array, old_log_probs: jax.Array, rollout_log_probs: jax.Array, cap: jax.Array
) -> jax.Array:
    """Advantages times the truncated weights of tokens that another policy sampled."""
    cap = intervals.positive(cap)
    ratio = policy.clipped_ratio(old_log_probs, rollout_log_probs, jnp.zeros_like(cap), cap)
    return advantages * jax.lax.stop_gradient(intervals.nan_where_invalid(ratio, cap == cap))


def _divergence(reference: jax.Array, log_probs: jax.Array, weight: jax.Array) -> jax.Array:
    weight = intervals.not_negative(weight)
    return weight * policy.divergence_estimate(reference, log_probs)


def _estimate(
    estimator: Callable[[jax.Array, jax.Array], jax.Array],
) -> Callable[[jax.Array, jax.Array, jax.Array], jax.Array]:
    """An estimate of the divergence from log-probabilities whose distance is bounded."""

    def bounded(reference: jax.Array, log_probs: jax.Array, bound: jax.Array) -> jax.Array:
        apart = intervals.nan_where_invalid(reference - log_probs, bound > 0.0)
        is_out = jnp.abs(apart) > bound
        reference = jnp.where(is_out, jnp.where(apart > 0.0, bound, -bound), reference)
        estimate = estimator(reference, jnp.where(is_out, 0.0, log_probs))
        return intervals.nan_where_invalid(estimate, apart == apart)

    return bounded


_ESTIMATORS = {
    "k1": _estimate(lambda reference, log_probs: log_probs - reference),
    "k2": _estimate(lambda reference, log_probs: regression.half_square(reference - log_probs)),
    "k3": _estimate(policy.divergence_estimate),
}


# Sequences.


class _Sequences(NamedTuple):
    losses: jax.Array  # [...]
    counts: jax.Array  # [...], how many of the tokens count


@functools.partial(jax.jit, inline=True)
def _over_time(losses: jax.Array, where: jax.Array | None, length: jax.Array | None) -> _Sequences:
    """Sums over the tokens, which are 0 where masked, over their number or a length."""
    counts = _counts(losses, where)
    return _Sequences(
        reduction.divide(sums.blocked_sum(losses), counts if length is None else length), counts
    )


def _counts(tokens: jax.Array, where: jax.Array | None) -> jax.Array:
    one = jnp.ones_like(tokens)
    return jnp.sum(one if where is None else jnp.where(where, one, 0.0), axis=-1)


@functools.partial(jax.jit, inline=True)
def _mean_over_sequences(
    losses: jax.Array, where: jax.Array | None, length: jax.Array | None
) -> jax.Array:
    dtype = compute_dtype(losses)
    if length is not None:
        length = intervals.positive(length.astype(dtype))
    tokens = _masks.zero_where_masked(losses.astype(dtype), where)
    sequences = _over_time(tokens, where, length)
    return reduction.divide(
        jnp.sum(sequences.losses), jnp.sum((sequences.counts > 0.0).astype(dtype))
    )


@functools.partial(jax.jit, inline=True)
def _sequence_log_ratio(log_probs: jax.Array, old: jax.Array, where: jax.Array | None) -> Pair:
    """Two numbers per token, whose difference is the mean log-ratio of its sequence."""
    masks = () if where is None else (where.shape,)
    shape = jnp.broadcast_shapes(log_probs.shape, old.shape, *masks)
    new, old = (jnp.broadcast_to(array, shape) for array in (log_probs, old))
    high, low = policy.mean_difference(new, old, jnp.maximum(_counts(new, where), 1.0))
    return jnp.broadcast_to(high[..., None], shape), jnp.broadcast_to(-low[..., None], shape)
