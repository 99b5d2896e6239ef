"""What is particular to losses of policies and values, beside what trainers write by hand.

The formulas of TRL, verl and tunix are written here anew, in float64.
"""

import functools
import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64
from losses.test_preference import log_probs, single, value_and_slopes, wide

MASK = np.arange(6) < np.array([[6], [4], [1], [5]])


def per_token(shape=(4, 6), **options) -> tuple[Any, ...]:
    new, old, reference, rollout = log_probs(4, shape, low=-2.0, **options)
    advantages = np.random.default_rng(0).normal(size=(shape[0], 1)).astype(np.float32)
    return new, old, advantages, reference, rollout


def differences(loss, x, step=1e-6):
    """The gradient of a function of one float64 array, by central differences."""
    slopes = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        off = np.zeros_like(x)
        off[index] = step
        slopes[index] = (loss(x + off) - loss(x - off)) / (2 * step)
    return slopes


# --- means over sequences -------------------------------------------------------------------------

# verl's and tunix's `agg_loss`, TRL's `loss_type`.
AGGREGATIONS = {
    "token-mean, dapo, bnpo": (
        jaxent.mean,
        lambda losses, mask: (losses * mask).sum() / mask.sum(),
    ),
    "seq-mean-token-mean, grpo": (
        jaxent.sequence_mean,
        lambda losses, mask: ((losses * mask).sum(-1) / mask.sum(-1)).mean(),
    ),
    "seq-mean-token-sum": (
        functools.partial(jaxent.sequence_mean, length=1),
        lambda losses, mask: (losses * mask).sum(-1).mean(),
    ),
    "dr_grpo": (
        functools.partial(jaxent.sequence_mean, length=64),
        lambda losses, mask: (losses * mask).sum() / (len(losses) * 64),
    ),
}


@pytest.mark.parametrize("name", AGGREGATIONS)
def test_means_are_those_of_trainers_and_an_empty_completion_changes_none(name):
    ours, theirs = AGGREGATIONS[name]
    losses = np.random.default_rng(1).normal(size=MASK.shape)
    expected = theirs(losses, MASK)
    with_empty = np.where(MASK, losses, np.nan)[[0, 1, 1, 2, 3]].astype(np.float32)
    mask = MASK[[0, 1, 1, 2, 3]] & (np.arange(5) != 1)[:, None]
    with jax.debug_nans(True):
        value, slope = jax.jit(jax.value_and_grad(lambda x: ours(x, mask)))(with_empty)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    truth = differences(functools.partial(theirs, mask=MASK), losses)
    np.testing.assert_allclose(slope[np.array([0, 2, 3, 4])], truth, rtol=1e-5, atol=1e-9)
    np.testing.assert_array_equal(slope[~mask], 0.0)


def test_sequence_mean_of_nothing_of_everything_and_of_nan():
    losses = np.array([[1.0, 3.0], [np.nan, np.nan]], np.float32)
    assert jaxent.sequence_mean(losses, False) == 0.0
    assert jaxent.sequence_mean(np.ones((3, 0), np.float32)) == 0.0
    assert jaxent.sequence_mean(losses, np.array([[True], [False]])) == 2.0
    assert jaxent.sequence_mean(losses[0]) == 2.0
    assert np.isnan(jaxent.sequence_mean(losses))
    slope = jax.grad(lambda x: jaxent.sequence_mean(x, np.zeros((2, 1), bool)))(losses)
    np.testing.assert_array_equal(slope, 0.0)
    assert jaxent.sequence_mean(jnp.ones((2, 3), jnp.bfloat16)).dtype == np.float32
    for length in (np.float32(0.0), np.float32(-1.0), np.float32(np.nan)):
        assert np.isnan(jaxent.sequence_mean(losses[:1], length=jnp.asarray(length)))
    for length in (0, -1.0, math.inf):
        with pytest.raises(AssertionError, match=r"sequence_mean.*`length`"):
            jaxent.sequence_mean(losses, length=length)
    with pytest.raises(AssertionError, match=r"sequence_mean.*`losses`.*time"):
        jaxent.sequence_mean(1.0)
    with pytest.raises(AssertionError, match=r"sequence_mean.*`losses`.*full shape"):
        jaxent.sequence_mean(losses[:1], np.ones((2, 2), bool))


# --- ratios and weights ---------------------------------------------------------------------------


def trl_loss(new, old, advantages, reference, rollout, mask, level, beta=0.04, cap=1.5):
    """The loss of TRL's GRPOTrainer with `importance_sampling_level` and a cap for its sampler."""
    log_ratio = new - old
    if level == "sequence":
        log_ratio = (log_ratio * mask).sum(-1, keepdims=True) / mask.sum(-1, keepdims=True)
    ratio = np.exp(log_ratio)
    clipped = np.clip(ratio, 1.0 - 0.2, 1.0 + 0.28)
    losses = -np.minimum(ratio * advantages, clipped * advantages)
    losses = losses * np.minimum(np.exp(old - rollout), cap)
    losses = losses + beta * (np.exp(reference - new) - (reference - new) - 1.0)
    return ((losses * mask).sum(-1) / mask.sum(-1)).mean()


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_loss_and_its_gradient_are_those_of_trl(level):
    given = per_token()
    new, old, advantages, reference, rollout = wide(given)

    def ours(x):
        losses = jaxent.policy_gradient_loss(
            x, given[1], given[2], MASK, clip=(0.2, 0.28), ratio=level, rollout_log_probs=given[4],
            rollout_clip=1.5, reference_log_probs=given[3], kl_weight=0.04,
        )  # fmt: skip
        return jaxent.sequence_mean(losses, MASK)

    def theirs(x):
        return trl_loss(x, old, advantages, reference, rollout, MASK, level)

    value, slope = jax.jit(jax.value_and_grad(ours))(given[0])
    np.testing.assert_allclose(value, theirs(new), rtol=1e-6)
    np.testing.assert_allclose(slope, differences(theirs, new), rtol=1e-5, atol=1e-8)


def test_the_ratio_of_a_sequence_has_the_gradient_of_verl():
    """There each token has the ratio of the sequence, and a gradient of its own."""
    new, old, advantages, *_ = per_token()
    by_hand = wide((new, old, advantages))
    mean = ((by_hand[0] - by_hand[1]) * MASK).sum(-1, keepdims=True) / MASK.sum(-1, keepdims=True)
    ratio, advantage = np.exp(mean), by_hand[2]
    is_used = ratio * advantage <= np.clip(ratio, 0.7, 1.4) * advantage
    slope_of_log_prob = np.where(is_used & MASK, -ratio * advantage, 0.0) / MASK.sum()

    def ours(x):
        loss = functools.partial(jaxent.policy_gradient_loss, ratio="sequence", clip=(0.3, 0.4))
        return jaxent.mean(loss(x, old, advantages, MASK), MASK)

    np.testing.assert_allclose(jax.grad(ours)(new), slope_of_log_prob, rtol=1e-6)
    bend = jax.jit(jax.hessian(ours))(new).reshape(24, 24)
    per_sequence = np.where(MASK[:, None, :] & MASK[:, :, None], slope_of_log_prob[:, :1, None], 0)
    per_sequence = per_sequence / MASK.sum(-1)[:, None, None]
    truth = np.zeros((4, 6, 4, 6))
    truth[np.arange(4), :, np.arange(4)] = per_sequence
    np.testing.assert_allclose(bend, truth.reshape(24, 24), rtol=1e-5, atol=1e-9)


def test_the_ratio_of_a_long_sequence_keeps_its_digits():
    """Its logarithm is 40, whose rounding alone would be 16 units in the last place."""
    generator = np.random.default_rng(2)
    new = -generator.uniform(0.0, 1.0, size=(2, 3001)).astype(np.float32)
    old = (new - generator.uniform(30.0, 50.0, size=new.shape)).astype(np.float32)
    mask = np.arange(3001) < np.array([[3001], [1777]])
    losses = jaxent.policy_gradient_loss(
        np.where(mask, new, np.nan), old, -1.0, mask, ratio="sequence"
    )
    for row in range(2):
        of_row = wide((new[row][mask[row]], old[row][mask[row]]))
        truth = math.exp(math.fsum(np.subtract(*of_row)) / mask[row].sum())
        np.testing.assert_allclose(losses[row][mask[row]], truth, rtol=2e-7)


def test_sequences_that_are_impossible_or_empty():
    new, old = single([[-1.0, -np.inf], [-1.0, -1.0], [np.nan, np.nan]]), single([[-1.0, -2.0]] * 3)
    where = np.array([[True], [True], [False]])
    loss = functools.partial(jaxent.policy_gradient_loss, ratio="sequence")
    with jax.debug_nans(True):
        value, slope = jax.value_and_grad(lambda x: jnp.sum(loss(x, old, 1.0, where)))(new)
    np.testing.assert_allclose(value, -2 * 1.2, rtol=1e-6)
    np.testing.assert_array_equal(slope, 0.0)
    np.testing.assert_array_equal(np.isnan(loss(new, old, 1.0)), [[False] * 2] * 2 + [[True] * 2])
    with pytest.raises(AssertionError, match=r"policy_gradient_loss.*time axis for `ratio"):
        loss(-1.0, -1.0, 1.0)
    with pytest.raises(AssertionError, match=r"policy_gradient_loss.*`ratio`.*'sequence'"):
        jaxent.policy_gradient_loss(-1.0, -1.0, 1.0, ratio=cast("Any", "batch"))


def test_weights_of_another_sampler_are_constants_and_masked():
    new, old, advantages, _, rollout = per_token()

    def total(old, rollout):
        options = {"rollout_log_probs": rollout, "rollout_clip": 1.25}
        losses = jaxent.policy_gradient_loss(new, old, advantages, MASK, **options)
        return jnp.sum(losses), losses

    with jax.debug_nans(True):
        slopes, losses = jax.jit(jax.grad(total, (0, 1), has_aux=True))(
            old, np.where(MASK, rollout, np.nan)
        )
    np.testing.assert_array_equal(slopes, 0.0)
    weight = np.minimum(np.exp(np.subtract(*wide((old, rollout)))), 1.25)
    plain = jaxent.policy_gradient_loss(new, old, advantages, MASK)
    np.testing.assert_allclose(losses, weight * plain, rtol=1e-6)
    # Off by nothing, the weight is 1; a token that the old policy would not sample does not count.
    alike = jaxent.policy_gradient_loss(new, old, advantages, rollout_log_probs=old)
    np.testing.assert_array_equal(alike, jaxent.policy_gradient_loss(new, old, advantages))
    never = jaxent.policy_gradient_loss(new, -np.inf, -1.0, rollout_log_probs=rollout)
    np.testing.assert_array_equal(never, 0.0)


# --- divergence -----------------------------------------------------------------------------------


def test_estimates_of_the_divergence_are_those_of_verl():
    """`kl_penalty` "kl", "mse" and "low_var_kl", whose logarithm of the ratio is kept to 20."""
    new, _, _, reference, _ = per_token()
    new[0], reference[0] = [-60.0, -25.5, -21.5, -1.0, -1.0, -1.0], [-1, -5, -1, -60, -25.5, -21.5]
    apart = np.subtract(*wide((reference, new)))
    kept = np.clip(apart, -20.0, 20.0)
    estimate = functools.partial(jaxent.sampled_kl_divergence, new, reference)
    np.testing.assert_allclose(estimate(estimator="k1"), -apart, rtol=1e-6)
    np.testing.assert_allclose(estimate(estimator="k2"), apart**2 / 2, rtol=1e-6)
    np.testing.assert_allclose(estimate(), np.exp(apart) - apart - 1.0, rtol=1e-5)
    bounded = functools.partial(jaxent.sampled_kl_divergence, bound=20)
    value, slopes = value_and_slopes(bounded, new, reference)
    np.testing.assert_allclose(value, np.exp(kept) - kept - 1.0, rtol=1e-5)
    slope = np.where(kept == apart, np.exp(apart) - 1.0, 0.0)
    np.testing.assert_allclose(slopes, [-slope, slope], rtol=1e-5)
    np.testing.assert_array_equal(
        estimate(), jaxent.policy_gradient_loss(
            new, new, 0.0, reference_log_probs=reference, kl_weight=1.0
        )
    )  # fmt: skip


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_a_bound_keeps_infinite_distances_finite_and_hides_no_nan(estimator):
    new, reference = [-np.inf, -1.0, -1.0, np.nan, 0.0], [-1.0, -np.inf, -3.0, -1.0, -2.0]
    loss = functools.partial(jaxent.sampled_kl_divergence, estimator=estimator)
    value, slopes = value_and_slopes(functools.partial(loss, bound=2), new, reference)
    at_the_bound = loss(single([0.0, 2.0]), single([2.0, 0.0]))
    np.testing.assert_array_equal(value[:3], at_the_bound[np.array([0, 1, 1])])
    np.testing.assert_array_equal(slopes[0][:2], 0.0)
    # At the bound itself there is a gradient.
    assert (slopes[0][[2, 4]] != 0.0).all()
    assert np.isnan([value[3], slopes[0][3], slopes[1][3]]).all()


# --- values ---------------------------------------------------------------------------------------


def test_the_loss_of_values_is_that_of_verl_and_trl():
    """`0.5 * masked_mean(max((v - R)**2, (clamp(v, old - c, old + c) - R)**2))`."""
    generator = np.random.default_rng(3)
    values, old, returns = given = generator.normal(size=(3, 4, 6)).astype(np.float32)

    def theirs(x):
        clipped = np.clip(x, wide([old])[0] - 0.5, wide([old])[0] + 0.5)
        larger = np.maximum((x - returns) ** 2, (clipped - returns) ** 2)
        return 0.5 * (larger * MASK).sum() / MASK.sum()

    def ours(x):
        return jaxent.mean(jaxent.clipped_value_loss(x, old, returns, MASK, clip=0.5), MASK)

    value, slope = jax.value_and_grad(ours)(values)
    x = values.astype(np.float64)
    np.testing.assert_allclose(value, theirs(x), rtol=1e-6)
    np.testing.assert_allclose(slope, differences(theirs, x), rtol=1e-5, atol=1e-8)
    free = jaxent.clipped_value_loss(*given, clip=1e6)
    np.testing.assert_array_equal(free, jaxent.l2_loss(values, returns))


# --- advantages -----------------------------------------------------------------------------------


def gae_by_hand(rewards, values, mask, ends, last, discount, decay):
    """Verl's loop, which passes over what is masked, with the ends of episodes of the first PPO."""
    advantages = np.zeros_like(rewards)
    advantage, following = np.zeros(len(rewards)), np.array(last, np.float64)
    for t in reversed(range(rewards.shape[-1])):
        goes_on = 1.0 - ends[:, t]
        error = rewards[:, t] + discount * goes_on * following - values[:, t]
        here = error + discount * decay * goes_on * advantage
        advantage = np.where(mask[:, t], here, advantage)
        following = np.where(mask[:, t], values[:, t], following)
        advantages[:, t] = advantage
    return np.where(mask, advantages, 0.0), np.where(mask, advantages + values, 0.0)


@pytest.mark.parametrize("is_masked", [False, True])
def test_advantages_are_those_of_the_loop(is_masked):
    generator = np.random.default_rng(4)
    shape = (5, 33)
    rewards, values = generator.normal(size=(2, *shape)).astype(np.float32)
    mask = generator.random(shape) < (0.7 if is_masked else 2.0)
    ends, last = generator.random(shape) < 0.15, single(generator.normal(size=5))
    options = {"terminations": ends, "last_values": last, "discount": 0.96875, "lambda_": 0.875}
    where = mask if is_masked else None
    given = [np.where(mask, array, np.nan) for array in (rewards, values)]

    def total(rewards, values):
        estimate = jaxent.generalized_advantage_estimation(rewards, values, where, **options)
        return jnp.sum(estimate.advantages * rewards.shape[-1]), estimate

    with jax.debug_nans(True):
        slopes, estimate = jax.jit(jax.grad(total, (0, 1), has_aux=True))(*given)
    by_hand = (mask, ends, last, 0.96875, 0.875)
    of_rewards, of_values = wide((rewards, values))
    expected = gae_by_hand(of_rewards, of_values, *by_hand)
    for ours, theirs in zip(estimate, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-6)

    def summed(values):
        return shape[-1] * gae_by_hand(rewards.astype(np.float64), values, *by_hand)[0].sum()

    np.testing.assert_allclose(
        slopes[1], differences(summed, values.astype(np.float64)), rtol=1e-5, atol=1e-4
    )
    np.testing.assert_array_equal(np.asarray(slopes)[:, ~mask], 0.0)


def test_advantages_at_the_ends_of_lambda_and_nan_in_another_episode():
    rewards, values = single([0.0, 1.0, np.nan, 1.0]), single([0.5, 0.25, 0.5, 2.0])
    estimate = functools.partial(jaxent.generalized_advantage_estimation, discount=0.5)
    ends = np.array([False, True, False, True])
    both = estimate(rewards, values, terminations=ends, lambda_=1.0)
    np.testing.assert_array_equal(both.returns, [0.5, 1.0, np.nan, 1.0])
    one = estimate(rewards, values, terminations=ends, lambda_=0.0)
    np.testing.assert_array_equal(one.advantages, [0.125 - 0.5, 0.75, np.nan, -1.0])
    half = estimate(jnp.ones((2, 3), jnp.bfloat16), jnp.zeros((2, 3), jnp.bfloat16))
    assert {array.dtype for array in half} == {np.dtype(np.float32)}
    empty = estimate(np.ones((2, 0)), np.ones((2, 0)))
    assert empty.advantages.shape == (2, 0)


@pytest.mark.thorough
def test_discounts_that_are_traced_have_derivatives_and_are_judged():
    with with_float64():
        rewards, values = np.random.default_rng(5).normal(size=(2, 6))

        def total(discount, lambda_):
            given = {"discount": discount, "lambda_": lambda_}
            return jaxent.generalized_advantage_estimation(rewards, values, **given).advantages

        for at in ((0.75, 0.5), (0.0, 0.5), (0.5, 0.0)):
            slopes = jax.jacfwd(total, (0, 1))(*at)
            for index, slope in enumerate(slopes):
                ahead = list(at)
                ahead[index] += 1e-6
                truth = (total(*map(np.float64, ahead)) - total(*map(np.float64, at))) / 1e-6
                np.testing.assert_allclose(slope, truth, rtol=1e-4, atol=1e-4)
        for bad in (-0.1, 1.1, np.nan):
            assert np.isnan(jax.jit(total)(bad, 0.5)[:-1]).all()
            assert np.isnan(jax.jit(total)(0.5, bad)[:-1]).all()


# --- options --------------------------------------------------------------------------------------

BAD_OPTIONS = [
    *((jaxent.policy_gradient_loss, "rollout_clip", cap) for cap in (0.0, -1.0, math.nan)),
    *((jaxent.sampled_kl_divergence, "bound", bound) for bound in (0.0, -1.0, math.nan)),
    *((jaxent.clipped_value_loss, "clip", clip) for clip in (-0.1, math.inf, math.nan)),
]


@pytest.mark.parametrize(("loss", "option", "value"), BAD_OPTIONS)
def test_options_out_of_range_are_refused_or_nan(loss, option, value):
    given = log_probs(2 if option == "bound" else 3, (2,))
    more = {"rollout_log_probs": given[0]} if option == "rollout_clip" else {}
    with pytest.raises(AssertionError, match=rf"{loss.__name__}.*`{option}`"):
        loss(*given, **more, **{option: value})

    def total(x, value):
        losses = loss(x, *given[1:], **more, **{option: value})
        return jnp.sum(losses), losses

    slope, losses = jax.jit(jax.grad(total, has_aux=True))(given[0], np.float32(value))
    assert np.isnan(losses).all()
    assert np.isnan(slope).all()


def test_steps_and_their_arguments_are_checked():
    estimate = jaxent.generalized_advantage_estimation
    steps = np.ones((2, 3), np.float32)
    for option, wrong in (("discount", 1.1), ("lambda_", -0.1)):
        with pytest.raises(AssertionError, match=rf"generalized_advantage.*`{option}`"):
            estimate(steps, steps, **{option: wrong})
    with pytest.raises(AssertionError, match=r"`last_values`.*\[3\].*leading shape \(2,\)"):
        estimate(steps, steps, last_values=np.ones(3, np.float32))
    with pytest.raises(AssertionError, match=r"`terminations` must be boolean"):
        estimate(steps, steps, terminations=steps)
    with pytest.raises(AssertionError, match=r"`rewards`.*time axis"):
        estimate(1.0, 1.0)
    with pytest.raises(AssertionError, match=r"sampled_kl_divergence.*`estimator`.*'k3'"):
        jaxent.sampled_kl_divergence(steps, steps, estimator=cast("Any", "kl"))
