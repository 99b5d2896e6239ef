"""Losses of preferences, from the log-probabilities of answers that people chose and rejected."""

import math
import numbers
from fractions import Fraction
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._float.two_part import split_number
from jaxent._kernels import odds, preference
from jaxent._kernels.preference import Pair


@_checks.public
def dpo_loss(
    policy_chosen_log_probs: ArrayLike,
    policy_rejected_log_probs: ArrayLike,
    reference_chosen_log_probs: ArrayLike,
    reference_rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 0.1,
    label_smoothing: ArrayLike = 0.0,
    variant: Literal["sigmoid", "hinge", "ipo"] = "sigmoid",
) -> jax.Array:
    r"""Direct preference optimisation: the policy is to prefer what people preferred.

    .. math::
        \ell = \begin{cases}
            -(1 - \epsilon) \log \sigma(\beta m) - \epsilon \log \sigma(-\beta m)
                & \text{sigmoid} \\
            \max(0,\, 1 - \beta m) & \text{hinge} \\
            \big( m - \tfrac{1}{2 \beta} \big)^2 & \text{ipo}
        \end{cases}
        \qquad m = (\pi_w - \pi_l) - (\rho_w - \rho_l)

    The margin :math:`m` is by how much more than the reference the policy prefers the chosen answer
    :math:`w` to the rejected one :math:`l`. It is formed without rounding, so that the loss of
    log-probabilities in the hundreds is right to the last digits.

    Args:
        policy_chosen_log_probs: Log-probabilities :math:`\pi_w` in nats of the chosen answers under
            the policy, any shape: sums over the tokens (for "ipo" also means).
        policy_rejected_log_probs: Those of the rejected answers, :math:`\pi_l`, of the same rank,
            or a scalar, like the two that follow.
        reference_chosen_log_probs: Those of the chosen answers under the reference, :math:`\rho_w`.
        reference_rejected_log_probs: Those of the rejected answers, :math:`\rho_l`. Infinite
            log-probabilities that contradict each other make the margin NaN.
        where: Mask of the pairs, of the same rank, or a scalar.
        beta: How strongly the policy is tied to the reference, :math:`\beta > 0`, finite, a number
            or a scalar array.
        label_smoothing: The fraction :math:`\epsilon` in [0, 0.5) of pairs taken to be labelled the
            wrong way round (conservative DPO), a number or a scalar array; only for "sigmoid".
        variant: "sigmoid" is DPO, "hinge" the loss of SLiC with a reference, "ipo" identity
            preference optimisation, where `beta` is the regularisation.

    Returns:
        One loss per pair, of the common shape, float32 (float64 for float64 inputs): in nats for
        "sigmoid", in units of the scaled margin for "hinge", in squared nats for "ipo".

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `simpo_loss` and `orpo_loss`, without a reference; `kto_loss`, without pairs.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> token_log_probs = jnp.array([[-0.5, -1.25, -9.0], [-0.25, -0.5, -1.0]])
        >>> is_answer = jnp.array([[True, True, False], [True, True, True]])
        >>> chosen = jnp.sum(token_log_probs, axis=-1, where=is_answer)
        >>> print(chosen)
        [-1.75 -1.75]
        >>> rejected, reference = jnp.array([-1.75, -301.75]), jnp.array([-2.0, -2.0])
        >>> print(jaxent.dpo_loss(chosen, rejected, reference, reference))
        [6.931472e-01 9.357623e-14]

    References:
        Rafailov et al., `Direct Preference Optimization <https://arxiv.org/abs/2305.18290>`_, 2023.
        Smoothing: Mitchell, `A note on DPO with noisy preferences
        <https://ericmitchell.ai/cdpo.pdf>`_, 2023. Hinge: Liu et al., `Statistical Rejection
        Sampling Improves Preference Optimization <https://arxiv.org/abs/2309.06657>`_, 2023. IPO:
        Azar et al., `A General Theoretical Paradigm to Understand Learning from Human Preferences
        <https://arxiv.org/abs/2310.12036>`_, 2023.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    _checks.check_one_of("variant", variant, ("sigmoid", "hinge", "ipo"))
    _check_smoothing(label_smoothing, variant)
    where, arrays = _masks.mask_elements(
        where,
        **_as_floating(
            policy_chosen_log_probs=policy_chosen_log_probs,
            policy_rejected_log_probs=policy_rejected_log_probs,
            reference_chosen_log_probs=reference_chosen_log_probs,
            reference_rejected_log_probs=reference_rejected_log_probs,
        ),
    )
    dtype = compute_dtype(*arrays)
    scale = _as_pair("beta", beta, dtype)
    if variant == "hinge":
        losses = _masks.apply_elementwise(_hinge, arrays, *scale)
    elif variant == "ipo":
        # A fraction, since the square would amplify the rounding error of a Python float.
        is_number = isinstance(beta, numbers.Real)
        goal = 1 / (2 * Fraction(float(beta))) if is_number else 0.5 / jnp.asarray(beta)
        options = (scale[0], *_as_pair("beta", goal, dtype))
        losses = _masks.apply_elementwise(_identity, arrays, *options)
    else:
        smoothing = _checks.as_scalar("label_smoothing", label_smoothing)
        losses = _masks.apply_elementwise(_smoothed_sigmoid, arrays, *scale, smoothing)
    return _masks.zero_where_masked(losses, where)


@_checks.public
def kto_loss(
    policy_log_probs: ArrayLike,
    reference_log_probs: ArrayLike,
    desirable: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 0.1,
    reference_point: ArrayLike = 0.0,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
) -> jax.Array:
    r"""Kahneman-Tversky optimisation: answers that are good or bad, without pairs.

    .. math::
        \ell = t\, \lambda_D\, \sigma(-x) + (1 - t)\, \lambda_U\, \sigma(x), \qquad
        x = \beta\, (\pi - \rho - z)

    Gains and losses count less the farther they are from the reference point :math:`z`.

    Args:
        policy_log_probs: Log-probabilities :math:`\pi` in nats of the answers under the policy
            (sums over their tokens), any shape.
        reference_log_probs: Those under the reference, :math:`\rho`, of the same rank, or a scalar.
            Two infinite ones that contradict each other make :math:`x` NaN.
        desirable: Whether the answer is a good one, :math:`t`: booleans, or chances in [0, 1], else
            NaN, of the same rank, or a scalar.
        where: Mask of the answers, of the same rank, or a scalar.
        beta: How strongly the policy is tied to the reference, :math:`\beta > 0`, finite, a number
            or a scalar array.
        reference_point: The divergence :math:`z` of policy from reference in nats, which the paper
            estimates from answers to other questions, and replaces by 0 if negative: a number, or
            an array of the same rank. No gradient flows through it.
        desirable_weight: Weight :math:`\lambda_D \ge 0` of good answers, finite, a number or a
            scalar array.
        undesirable_weight: Weight :math:`\lambda_U \ge 0` of bad ones, likewise.

    Returns:
        One loss per answer in units of value, from 0 to the weight of the answer, of the common
        shape, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `dpo_loss`, for pairs.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> policy, reference = jnp.array([-99.0, -99.0, -90.0]), jnp.array([-99.0, -399.0, -100.0])
        >>> print(jaxent.kto_loss(policy, reference, jnp.array([True, True, False])))
        [5.000000e-01 9.357623e-14 7.310586e-01]

    References:
        Ethayarajh et al., `KTO: Model Alignment as Prospect Theoretic Optimization
        <https://arxiv.org/abs/2402.01306>`_, 2024.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    weights = {"desirable_weight": desirable_weight, "undesirable_weight": undesirable_weight}
    for option, weight in weights.items():
        _checks.check_closed_interval(option, weight, 0.0, math.inf)
        _checks.check_finite(option, weight)
    where, arrays = _masks.mask_elements(
        where,
        **_as_floating(policy_log_probs=policy_log_probs, reference_log_probs=reference_log_probs),
        reference_point=_checks.as_real("reference_point", reference_point),
        desirable=_checks.as_real("desirable", desirable),
    )
    scale = _as_pair("beta", beta, compute_dtype(*arrays))
    scalars = [_checks.as_scalar(option, weight) for option, weight in weights.items()]
    losses = _masks.apply_elementwise(_kahneman_tversky, arrays, *scale, *scalars)
    return _masks.zero_where_masked(losses, where)


@_checks.public
def orpo_loss(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    weight: ArrayLike = 0.1,
) -> jax.Array:
    r"""Odds-ratio preference optimisation: fine-tuning and preference at once, no reference.

    .. math::
        \ell = -\log p_w
            + \lambda \log \Big( 1 + \frac{\operatorname{odds}(p_l)}{\operatorname{odds}(p_w)}
            \Big), \qquad \operatorname{odds}(p) = \frac{p}{1 - p}

    The second term is minus the log-sigmoid of the difference of log-odds, but does not go through
    these, and so is exact for answers that are nearly certain.

    Args:
        chosen_log_probs: Log-probabilities :math:`\log p_w \le 0`, else NaN, in nats of the chosen
            answers, each the mean over its tokens, any shape.
        rejected_log_probs: The same of the rejected answers, :math:`\log p_l`, of the same rank, or
            a scalar. A certain answer (0) that is rejected costs `+inf`. Two certain ones, like two
            that are equally likely, have the odds ratio 1.
        where: Mask of the pairs, of the same rank, or a scalar.
        weight: Weight :math:`\lambda > 0` of the odds ratio, finite, a number or a scalar array.

    Returns:
        One loss per pair in nats, of the common shape, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `simpo_loss`, without the first term; `dpo_loss`, with a reference.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> token_log_probs = jnp.array([[-0.5, -1.5, -9.0], [-1e-9, -1e-9, -1e-9]])
        >>> is_answer = jnp.array([[True, True, False], [True, True, True]])
        >>> chosen = jnp.mean(token_log_probs, axis=-1, where=is_answer)
        >>> print(jaxent.orpo_loss(chosen, jnp.array([-1.0, -2.0])))
        [1.0693147e+00 1.0156518e-09]

    References:
        Hong, Lee, Thorne, `ORPO: Monolithic Preference Optimization without Reference Model
        <https://arxiv.org/abs/2403.07691>`_, 2024.
    """
    _checks.check_open_interval("weight", weight, 0.0, math.inf)
    given = _as_floating(chosen_log_probs=chosen_log_probs, rejected_log_probs=rejected_log_probs)
    where, arrays = _masks.mask_elements(where, **given)
    weight = _checks.as_scalar("weight", weight)
    return _masks.zero_where_masked(_masks.apply_elementwise(_odds_ratio, arrays, weight), where)


@_checks.public
def simpo_loss(
    chosen_log_probs: ArrayLike,
    rejected_log_probs: ArrayLike,
    where: ArrayLike | None = None,
    *,
    beta: ArrayLike = 2.0,
    margin: ArrayLike = 1.0,
) -> jax.Array:
    r"""Simple preference optimisation: the mean log-probability is the reward, no reference.

    .. math:: \ell = -\log \sigma\big( \beta\, (\pi_w - \pi_l) - \gamma \big)

    Args:
        chosen_log_probs: Log-probabilities :math:`\pi_w` in nats of the chosen answers, each the
            mean over its tokens, any shape.
        rejected_log_probs: The same of the rejected answers, :math:`\pi_l`, of the same rank, or a
            scalar. Two infinite ones that contradict each other make the loss NaN.
        where: Mask of the pairs, of the same rank, or a scalar.
        beta: Scale :math:`\beta > 0` of the rewards, finite, a number or a scalar array.
        margin: By how much, :math:`\gamma \ge 0`, the reward of the chosen answer is to exceed the
            other; the paper tunes it from 0.3 to 1.6. A number, or a scalar array.

    Returns:
        One loss per pair in nats, of the common shape, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `orpo_loss`, which fine-tunes as well; `dpo_loss`, with a reference.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> token_log_probs = jnp.array([[-0.5, -1.5, -9.0], [-0.25, -0.5, -0.75]])
        >>> is_answer = jnp.array([[True, True, False], [True, True, True]])
        >>> chosen = jnp.mean(token_log_probs, axis=-1, where=is_answer)
        >>> print(jaxent.simpo_loss(chosen, jnp.array([-1.5, -16.0])))
        [6.931472e-01 9.357623e-14]

    References:
        Meng, Xia, Chen, `SimPO: Simple Preference Optimization with a Reference-Free Reward
        <https://arxiv.org/abs/2405.14734>`_, 2024.
    """
    _checks.check_open_interval("beta", beta, 0.0, math.inf)
    _checks.check_closed_interval("margin", margin, 0.0, math.inf)
    _checks.check_finite("margin", margin)
    given = _as_floating(chosen_log_probs=chosen_log_probs, rejected_log_probs=rejected_log_probs)
    where, arrays = _masks.mask_elements(where, **given)
    dtype = compute_dtype(*arrays)
    options = (*_as_pair("beta", beta, dtype), *_as_pair("margin", margin, dtype))
    losses = _masks.apply_elementwise(_simple_preference, arrays, *options)
    return _masks.zero_where_masked(losses, where)


# Arguments.


def _as_floating(**arrays: ArrayLike) -> dict[str, jax.Array]:
    """The arguments as arrays, refused unless they are floating point."""
    return {name: _checks.as_floating(name, array) for name, array in arrays.items()}


def _check_smoothing(smoothing: ArrayLike, variant: str) -> None:
    is_number = isinstance(smoothing, numbers.Real)
    _checks.require(
        not is_number or 0.0 <= float(smoothing) < 0.5,
        f"`label_smoothing` must be at least 0 and less than 0.5, got {smoothing}.",
    )
    _checks.require(
        variant == "sigmoid" or (is_number and float(smoothing) == 0.0),
        f'`label_smoothing` is for `variant="sigmoid"` only, not for {variant!r}.',
    )


def _as_pair(name: str, value: ArrayLike | Fraction, dtype: jnp.dtype) -> Pair:
    """A number in that dtype and its rounding error, which is not known of an array."""
    if not isinstance(value, numbers.Real):
        value = _checks.as_scalar(name, value).astype(dtype)
        return value, jnp.zeros_like(value)
    high, low = split_number(value if isinstance(value, Fraction) else float(value), dtype)
    return jnp.asarray(high, dtype), jnp.asarray(low, dtype)


# Losses, element by element in one dtype.


def _positive(value: jax.Array) -> jax.Array:
    """The value, or NaN unless it is finite and positive."""
    return _masks.nan_outside(value, 0.0, jnp.inf, "()")


def _not_negative(value: jax.Array) -> jax.Array:
    """The value, or NaN unless it is finite and at least 0."""
    return _masks.nan_outside(value, 0.0, jnp.inf, "[)")


def _constant_pair(value: float, dtype: jnp.dtype) -> Pair:
    return jnp.full((), value, dtype), jnp.zeros((), dtype)


# The first four arguments of each variant of DPO are pi_w, pi_l, rho_w and rho_l.


def _smoothed_sigmoid(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, beta_low, smoothing = arguments
    scale, zero = (_positive(beta), beta_low), _constant_pair(0.0, beta.dtype)
    margin = preference.margin(*log_probs, scale=scale, offset=zero)
    smoothing = _masks.nan_outside(smoothing, 0.0, 0.5, "[)")
    return preference.cross_entropy_of_pair(*margin, 1.0 - smoothing, smoothing)


def _hinge(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, beta_low = arguments
    scale, one = (_positive(beta), beta_low), _constant_pair(1.0, beta.dtype)
    return preference.hinge_of_pair(*preference.margin(*log_probs, scale=scale, offset=one))


def _identity(*arguments: jax.Array) -> jax.Array:
    *log_probs, beta, goal, goal_low = arguments
    one = _constant_pair(1.0, beta.dtype)
    offset = _masks.nan_where_invalid(goal, (beta > 0.0) & (beta < jnp.inf)), goal_low
    return preference.square_of_pair(*preference.margin(*log_probs, scale=one, offset=offset))


def _kahneman_tversky(
    policy: jax.Array,
    reference: jax.Array,
    point: jax.Array,
    desirable: jax.Array,
    beta: jax.Array,
    beta_low: jax.Array,
    desirable_weight: jax.Array,
    undesirable_weight: jax.Array,
) -> jax.Array:
    point = jax.lax.stop_gradient(point)
    scale, zero = (_positive(beta), beta_low), _constant_pair(0.0, beta.dtype)
    log_probs = (policy, reference, point, jnp.zeros_like(point))
    high, low = preference.margin(*log_probs, scale=scale, offset=zero)
    desirable = _masks.nan_outside(desirable, 0.0, 1.0)
    good = desirable * _not_negative(desirable_weight)
    bad = (1.0 - desirable) * _not_negative(undesirable_weight)
    p_loss, p_gain = preference.sigmoid_of_pair(-high, -low), preference.sigmoid_of_pair(high, low)
    return good * p_loss + bad * p_gain


def _odds_ratio(chosen: jax.Array, rejected: jax.Array, weight: jax.Array) -> jax.Array:
    chosen, rejected = (_masks.nan_outside(x, -jnp.inf, 0.0) for x in (chosen, rejected))
    return _positive(weight) * odds.odds_ratio_loss(chosen, rejected) - chosen


def _simple_preference(
    chosen: jax.Array,
    rejected: jax.Array,
    beta: jax.Array,
    beta_low: jax.Array,
    goal: jax.Array,
    goal_low: jax.Array,
) -> jax.Array:
    zero = jnp.zeros_like(chosen)
    scale, offset = (_positive(beta), beta_low), (_not_negative(goal), goal_low)
    margin = preference.margin(chosen, rejected, zero, zero, scale=scale, offset=offset)
    return preference.cross_entropy_of_pair(*margin, *_constant_pair(1.0, beta.dtype))
