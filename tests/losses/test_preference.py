"""What is particular to losses of preferences and policies; the rest is in conformance/."""

import functools
import math
import re
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent
from conformance.case import with_float64

LOSSES = {
    jaxent.dpo_loss: 4,
    jaxent.kto_loss: 3,
    jaxent.orpo_loss: 2,
    jaxent.simpo_loss: 2,
    jaxent.policy_gradient_loss: 3,
}


def value_and_slopes(loss, *arguments, **options):
    """Losses and the gradients of their sum, by one compiled program that may make no NaN."""

    def total(*arguments):
        losses = loss(*arguments, **options)
        return jnp.sum(losses), losses

    every = tuple(range(len(arguments)))
    arrays = tuple(np.asarray(a, np.float32) for a in arguments)
    slopes, losses = jax.jit(jax.grad(total, every, has_aux=True))(*arrays)
    return np.asarray(losses), tuple(map(np.asarray, slopes))


def without_nan(loss, *arguments, **options):
    with jax.debug_nans(True):
        return value_and_slopes(loss, *arguments, **options)


def single(numbers) -> np.ndarray:
    return np.array(numbers, np.float32)


def log_probs(count, shape=(20,), low=-6.0, high=-0.5) -> tuple[Any, ...]:
    generator = np.random.default_rng(count)
    return tuple(generator.uniform(low, high, size=(count, *shape)).astype(np.float32))


def log_sigmoid(x):
    return -np.logaddexp(0.0, -x)


def wide(arrays):
    return tuple(array.astype(np.float64) for array in arrays)


# --- the formulas of the papers -------------------------------------------------------------------


def test_dpo_is_the_formula_of_each_paper():
    given = log_probs(4)
    policy_w, policy_l, reference_w, reference_l = wide(given)
    margin = (policy_w - reference_w) - (policy_l - reference_l)
    for options, expected in (
        ({}, -log_sigmoid(0.1 * margin)),
        (
            {"beta": 0.5, "label_smoothing": 0.2},
            -0.8 * log_sigmoid(0.5 * margin) - 0.2 * log_sigmoid(-0.5 * margin),
        ),
        ({"beta": 0.3, "variant": "hinge"}, np.maximum(0.0, 1.0 - 0.3 * margin)),
        ({"beta": 0.2, "variant": "ipo"}, (margin - 1.0 / 0.4) ** 2),
        (
            {"beta": 0.5, "variant": "robust", "label_smoothing": 0.2},
            (-0.8 * log_sigmoid(0.5 * margin) + 0.2 * log_sigmoid(-0.5 * margin)) / 0.6,
        ),
    ):
        losses = jaxent.dpo_loss(*given, **options)
        np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-6)


def test_cpo_is_dpo_without_a_reference_and_with_the_likelihood():
    chosen, rejected = log_probs(2)
    of_chosen, of_rejected = wide((chosen, rejected))
    losses = jaxent.dpo_loss(chosen, rejected, 0.0, 0.0, beta=0.3, nll_weight=1.0)
    expected = -log_sigmoid(0.3 * (of_chosen - of_rejected)) - of_chosen
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    # What is masked is not in it either, and of a weight of 0 nothing is left.
    where = np.arange(20) > 3
    poisoned = np.where(where, chosen, np.nan)
    masked = jaxent.dpo_loss(poisoned, rejected, 0.0, 0.0, where, beta=0.3, nll_weight=1.0)
    np.testing.assert_allclose(masked, np.where(where, losses, 0.0), rtol=1e-6)
    traced = jax.jit(lambda weight: jaxent.dpo_loss(-np.inf, -np.inf, 1.0, 0.0, nll_weight=weight))
    assert np.isnan(traced(np.float32(1.0)))
    impossible = functools.partial(jaxent.dpo_loss, -1.0, -np.inf, -2.0, -2.0)
    np.testing.assert_array_equal(jax.jit(impossible)(nll_weight=np.float32(0.5)), 0.5)


@pytest.mark.parametrize("share", [0.1, 0.4999999])
def test_robust_dpo_is_right_in_the_mean_over_wrong_labels(share):
    a, b, c, d = given = wide(log_probs(4))
    with with_float64():
        loss = functools.partial(jaxent.dpo_loss, variant="robust", label_smoothing=share)
        mean = (1.0 - share) * loss(*given) + share * loss(b, a, d, c)
        np.testing.assert_allclose(mean, jaxent.dpo_loss(*given), rtol=1e-8)
        ends = loss(single([-np.inf, -1.0]), single([-1.0, -np.inf]), -2.0, -2.0)
        np.testing.assert_array_equal(ends, [np.inf, -np.inf])
    # Near a half the weight of wrong labels is a quotient that float32 would not know.
    value = jaxent.dpo_loss(*(np.float32(x) for x in (-1, -3, -2, -2)), **loss.keywords)
    exact = np.log1p(np.exp(-0.2)) - share / (1.0 - 2.0 * share) * 0.2
    np.testing.assert_allclose(value, exact, rtol=3e-7)


def test_rewards_are_those_of_trl_and_have_the_sign_of_the_exact_margin():
    """`rewards/chosen`, `rewards/rejected`, `rewards/margins` and `rewards/accuracies`."""
    given = log_probs(4)
    policy_w, policy_l, reference_w, reference_l = wide(given)
    where = np.arange(20) != 2
    poisoned = [np.where(where, array, np.nan) for array in given]
    rewards = jaxent.preference_rewards(*poisoned, where=where, beta=0.3)
    chosen, rejected = 0.3 * (policy_w - reference_w), 0.3 * (policy_l - reference_l)
    expected = (chosen, rejected, chosen - rejected, chosen > rejected)
    for ours, theirs in zip(rewards, expected, strict=True):
        np.testing.assert_allclose(ours, np.where(where, theirs, 0.0), rtol=2e-6)
    # A margin of 2**-20 between differences of 1024, which float32 would round to 0.
    tiny = -(2.0**-20)
    for near in ([-1024.0, tiny, -1024.0, 0.0], [-1024.0, -1024.0, tiny, 0.0]):
        for order, sign in (([0, 1, 2, 3], 1.0), ([1, 0, 3, 2], -1.0)):
            rewards = jaxent.preference_rewards(*single(near)[order])
            np.testing.assert_allclose(rewards.margins, sign * 0.1 * -tiny, rtol=1e-6)
            assert float(rewards.accuracies) == (sign > 0.0)
    # As good as each other is not right, and what is NaN is neither.
    assert jaxent.preference_rewards(-1.0, -1.0, -2.0, -2.0).accuracies == 0.0
    assert np.isnan(jaxent.preference_rewards(-np.inf, -np.inf, -2.0, -2.0)[2:]).all()


def test_kto_is_the_weight_less_the_value_of_prospect_theory():
    policy, reference = log_probs(2)
    desirable = np.arange(20) % 3 > 0
    options = {"beta": 0.4, "reference_point": 0.7}
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.8}
    losses = jaxent.kto_loss(policy, reference, desirable, **options, **weights)
    reward = np.subtract(*wide((policy, reference)))
    gain = 1.5 / (1.0 + np.exp(-0.4 * (reward - 0.7)))
    loss = 0.8 / (1.0 + np.exp(-0.4 * (0.7 - reward)))
    np.testing.assert_allclose(losses, np.where(desirable, 1.5 - gain, 0.8 - loss), rtol=1e-6)


def test_orpo_is_likelihood_and_odds_ratio():
    chosen, rejected = log_probs(2)
    p_w, p_l = np.exp(wide((chosen, rejected)))
    log_odds_ratio = np.log(p_w / (1.0 - p_w)) - np.log(p_l / (1.0 - p_l))
    expected = -np.log(p_w) - 0.25 * log_sigmoid(log_odds_ratio)
    losses = jaxent.orpo_loss(chosen, rejected, weight=0.25)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_simpo_is_the_formula_of_the_paper():
    chosen, rejected = log_probs(2)
    reward = 2.5 * np.subtract(*wide((chosen, rejected)))
    losses = jaxent.simpo_loss(chosen, rejected, beta=2.5, margin=1.4)
    np.testing.assert_allclose(losses, -log_sigmoid(reward - 1.4), rtol=1e-6)


def test_the_surrogate_is_that_of_ppo_and_the_divergence_that_of_grpo():
    new, old, reference = log_probs(3, (4, 6), low=-2.0)
    advantages = np.random.default_rng(0).normal(size=(4, 1)).astype(np.float32)
    ratio = np.exp(np.subtract(*wide((new, old))))
    clipped = np.clip(ratio, 0.8, 1.3)
    surrogate = -np.minimum(ratio * advantages, clipped * advantages)
    apart = np.subtract(*wide((reference, new)))
    divergence = np.exp(apart) - apart - 1.0
    token = functools.partial(jaxent.policy_gradient_loss, new, old, advantages, clip=(0.2, 0.3))
    np.testing.assert_allclose(token(), surrogate, rtol=1e-6)
    both = token(reference_log_probs=reference, kl_weight=0.04)
    np.testing.assert_allclose(both, surrogate + 0.04 * divergence, rtol=1e-6, atol=1e-6)
    dual = np.where(advantages < 0.0, np.minimum(surrogate, -1.2 * advantages), surrogate)
    assert (dual != surrogate).any()
    np.testing.assert_allclose(token(dual_clip=1.2), dual, rtol=1e-6)


def test_neighbours_agree():
    policy_w, policy_l, reference_w, reference_l = given = log_probs(4)
    margin = (policy_w - policy_l) - (reference_w - reference_l)
    # There an answer is smoothed over both labels, here one of two labels is the other one.
    np.testing.assert_allclose(
        jaxent.dpo_loss(*given, label_smoothing=0.125),
        jaxent.sigmoid_binary_cross_entropy(0.1 * margin, 1, label_smoothing=0.25),
        rtol=2e-6,
    )
    np.testing.assert_array_equal(
        jaxent.simpo_loss(policy_w, policy_l, beta=0.3, margin=0.0),
        jaxent.dpo_loss(policy_w, policy_l, 0.0, 0.0, beta=0.3),
    )
    np.testing.assert_array_equal(
        jaxent.kto_loss(policy_w, reference_w, 1.0),
        1.0 * jaxent.kto_loss(reference_w, policy_w, 0.0),
    )
    alike = jaxent.orpo_loss(policy_w, policy_w, weight=1.0)
    np.testing.assert_allclose(alike, math.log(2.0) - policy_w, rtol=1e-6)


def test_margins_of_long_sequences_keep_their_digits():
    """Log-probabilities in the hundreds, and a margin that leaves a loss of 1e-20."""
    given = np.array([[-312.3], [-541.7], [-409.9], [-190.2]], np.float32)
    policy_w, policy_l, reference_w, reference_l = wide(given)
    margin = (policy_w - policy_l) - (reference_w - reference_l)
    truth = np.log1p(np.exp(-0.1 * margin))
    value, slopes = value_and_slopes(jaxent.dpo_loss, *given)
    np.testing.assert_allclose(value, truth, rtol=3e-7)
    np.testing.assert_allclose(slopes[0], -0.1 * truth, rtol=3e-7)
    a, b, c, d = map(jnp.asarray, given)
    plain = jax.nn.softplus(-np.float32(0.1) * ((a - b) - (c - d)))
    assert abs(float(plain[0] / truth[0]) - 1.0) > 1e-6  # what there is to beat


# --- infinities -----------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["sigmoid", "hinge", "ipo"])
def test_an_impossible_answer_decides_a_pair(variant):
    impossible, rest = [-np.inf, -1.0], [-1.0, -np.inf]
    value, slopes = without_nan(
        jaxent.dpo_loss, impossible, rest, [-2.0] * 2, [-2.0] * 2, variant=variant
    )
    np.testing.assert_array_equal(value, [np.inf, np.inf if variant == "ipo" else 0.0])
    steep = np.inf if variant == "ipo" else np.float32(0.1)
    np.testing.assert_array_equal(slopes[0], [-steep, steep if variant == "ipo" else 0.0])
    np.testing.assert_array_equal(slopes[1], -slopes[0])
    value, slopes = value_and_slopes(jaxent.dpo_loss, -np.inf, -1, -np.inf, -2, variant=variant)
    for result in (value, *slopes):
        assert np.isnan(result)


def test_simpo_and_kto_of_impossible_answers():
    value, slopes = without_nan(jaxent.simpo_loss, [-np.inf, -1.0], [-1.0, -np.inf])
    np.testing.assert_array_equal(value, [np.inf, 0.0])
    np.testing.assert_array_equal(slopes, [[-2.0, 0.0], [2.0, 0.0]])
    huge = [-3e38, -1.0]
    value, slopes = without_nan(jaxent.simpo_loss, huge, huge[::-1], beta=100.0)
    np.testing.assert_array_equal(value, [np.inf, 0.0])
    np.testing.assert_array_equal(slopes, [[-100.0, 0.0], [100.0, 0.0]])
    value, slopes = without_nan(jaxent.kto_loss, [-np.inf, -1.0], [-1.0, -np.inf], [1.0, 1.0])
    np.testing.assert_array_equal(value, [1.0, 0.0])
    np.testing.assert_array_equal(slopes[:2], 0.0)


def test_smoothing_makes_an_infinite_margin_infinitely_bad():
    given = (-1.0, -np.inf, -2.0, -2.0)
    assert jaxent.dpo_loss(*given) == 0.0
    assert jaxent.dpo_loss(*given, label_smoothing=0.1) == np.inf
    traced = jax.jit(lambda share: jaxent.dpo_loss(*given, label_smoothing=share))
    with jax.debug_nans(True):
        assert traced(np.float32(0.0)) == 0.0


@pytest.mark.thorough
def test_orpo_at_the_ends():
    chosen = [0.0, -1.0, -np.inf, -1.0, 0.0, -np.inf]
    rejected = [-1.0, 0.0, -1.0, -np.inf, 0.0, -np.inf]
    value, (pull, push) = without_nan(jaxent.orpo_loss, chosen, rejected, weight=0.5)
    log_2 = math.log(2.0)
    np.testing.assert_allclose(value, [0.0, np.inf, np.inf, 1.0, 0.5 * log_2, np.inf], rtol=1e-7)
    of_certain = -1.0 - 0.5 / math.expm1(1.0)
    sure = -1.0 - 0.5 / (1.0 - math.exp(-1.0))
    np.testing.assert_allclose(pull, [of_certain, sure, -1.5, -1.0, -1.0, -1.25], rtol=1e-6)
    steep = 0.5 / (1.0 - math.exp(-1.0))
    np.testing.assert_allclose(push, [0.0, np.inf, steep, 0.0, 0.0, 0.25], rtol=1e-6)
    finite = [0, 2, 3, 4, 5]
    with jax.debug_nans(True):
        for outer in (jax.jacfwd, jax.jacrev):
            bend = jax.jit(jax.vmap(outer(jax.jacrev(jaxent.orpo_loss, (0, 1)), (0, 1))))
            bends = bend(*(np.array(a, np.float32)[finite] for a in (chosen, rejected)))
            assert all(np.isfinite(each).all() for each in jax.tree.leaves(bends))
        bend = jax.grad(jax.grad(jaxent.orpo_loss, 1), 1)
        assert bend(np.float32(-1.0), np.float32(0.0)) == np.inf


def test_log_probabilities_above_0_have_no_odds():
    value, slopes = value_and_slopes(
        jaxent.orpo_loss, [0.01, -1.0, np.inf, -1.0], [-1.0, 0.01, -1.0, -2.0]
    )
    for result in (value, *slopes):
        np.testing.assert_array_equal(np.isnan(result), [True, True, True, False])
    # Elsewhere only differences count, and densities may exceed 1.
    for loss in (jaxent.dpo_loss, jaxent.simpo_loss, jaxent.policy_gradient_loss):
        assert np.isfinite(loss(*([0.5] * LOSSES[loss])))


def test_orpo_of_nearly_certain_answers():
    """Odds of 1e20 to 1e30: their logarithms would keep a few digits of the ratio."""
    chosen, rejected = single([-1e-30, -3e-20]), single([-2e-20, -1e-30])
    ratio = chosen.astype(np.float64) / rejected
    value, (pull, push) = value_and_slopes(jaxent.orpo_loss, chosen, rejected)
    np.testing.assert_allclose(value, 0.1 * np.log1p(ratio) - chosen, rtol=3e-7)
    np.testing.assert_allclose(pull, -1.0 + 0.1 / (chosen.astype(np.float64) + rejected), rtol=1e-6)
    np.testing.assert_allclose(push, -0.1 / rejected * (ratio / (1.0 + ratio)), rtol=1e-6)


# --- Kahneman and Tversky -------------------------------------------------------------------------


def test_desirable_may_be_booleans_or_chances():
    policy, reference = log_probs(2)
    yes = np.arange(20) % 2 > 0
    losses = jaxent.kto_loss(policy, reference, yes)
    for given in (yes.astype(np.float32), yes.astype(np.int32), yes.tolist()):
        np.testing.assert_array_equal(jaxent.kto_loss(policy, reference, given), losses)
    good, bad = (jaxent.kto_loss(policy, reference, end) for end in (True, False))
    mixed = jaxent.kto_loss(policy, reference, 0.25)
    np.testing.assert_allclose(mixed, 0.25 * good + 0.75 * bad, rtol=1e-6)
    value, slopes = value_and_slopes(jaxent.kto_loss, policy[:4], reference[:4], [-0.1, 1.1, 0, 1])
    for result in (value, slopes[0], slopes[2]):
        np.testing.assert_array_equal(np.isnan(result), [True, True, False, False])


def test_the_reference_point_is_a_constant():
    policy, reference = log_probs(2)
    desirable = np.arange(20) % 2 > 0
    points = np.linspace(0.0, 2.0, 20, dtype=np.float32)
    each = jaxent.kto_loss(policy, reference, desirable, reference_point=points)
    shifted = jaxent.kto_loss(policy - points, reference, desirable)
    np.testing.assert_allclose(each, shifted, rtol=1e-6)

    def total(points, where=None):
        losses = jaxent.kto_loss(policy, reference, desirable, where, reference_point=points)
        return jnp.sum(losses)

    np.testing.assert_array_equal(jax.grad(total)(points), 0.0)
    where = np.arange(20) > 3
    poisoned = jnp.asarray(np.where(where, points, np.float32(np.nan)))
    with jax.debug_nans(True):
        masked = total(poisoned, where)
    np.testing.assert_allclose(masked, np.sum(each, where=where), rtol=1e-6)
    assert np.isnan(total(poisoned))


# --- policies -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.0, 0.2, (1.0, math.inf)])
def test_on_policy_the_gradient_is_that_of_the_policy(clip):
    """Even where the interval is a point: at its ends the slope is that of the ratio."""
    (policy,) = log_probs(1)
    advantages = np.linspace(-2.0, 2.0, 20, dtype=np.float32)
    value, slopes = value_and_slopes(
        jaxent.policy_gradient_loss, policy, policy, advantages, clip=clip
    )
    np.testing.assert_array_equal(value, -advantages)
    np.testing.assert_array_equal(slopes[0], -advantages)
    np.testing.assert_array_equal(slopes[1], 0.0)
    np.testing.assert_array_equal(slopes[2], -1.0)


def test_what_is_clipped_has_no_gradient_however_large():
    """Ratios of exp(500) and +inf, and of 0."""
    new = np.array([-1.0, -1.0, -1.0, -600.0, -np.inf], np.float32)
    old = np.array([-501.0, -np.inf, -3e38, -1.0, -1.0], np.float32)
    advantages = np.array([1.0, 1.0, 1.0, -1.0, -1.0], np.float32)
    expected = single([-1.2, -1.2, -1.2, 0.8, 0.8])
    with jax.debug_nans(True):
        value, slopes = value_and_slopes(jaxent.policy_gradient_loss, new, old, advantages)
        bend = jax.vmap(jax.hessian(jaxent.policy_gradient_loss))(new, old, advantages)
        eager = jax.grad(lambda x: jnp.sum(jaxent.policy_gradient_loss(x, old, advantages)))(new)
    np.testing.assert_array_equal(value, expected)
    for result in (*slopes[:2], bend, eager):
        np.testing.assert_array_equal(result, 0.0)
    # A token that should become less likely is not clipped from above, unless asked for.
    worse = (new[:3], old[:3], -advantages[:3])
    value, slopes = value_and_slopes(jaxent.policy_gradient_loss, *worse)
    np.testing.assert_array_equal(value, np.inf)
    np.testing.assert_array_equal(slopes[0], np.inf)
    value, slopes = without_nan(jaxent.policy_gradient_loss, *worse, dual_clip=3.0)
    np.testing.assert_array_equal(value, 3.0)
    np.testing.assert_array_equal(slopes[:2], 0.0)


def test_the_policy_may_be_passed_for_the_old_one():
    new = single([-1.0, -0.25, -30.0])
    for advantage in (1.5, -2.0):
        slope = jax.grad(lambda x: jnp.sum(jaxent.policy_gradient_loss(x, x, advantage)))(new)  # noqa: B023
        np.testing.assert_array_equal(slope, -single([advantage] * 3))


@pytest.mark.parametrize("clip", [0.2, (0.2, math.inf)])
def test_without_an_advantage_there_is_no_loss(clip):
    value, slopes = without_nan(
        jaxent.policy_gradient_loss,
        [-1.0, -1.0, -1.0],
        [-np.inf, -1.0, -900.0],
        [0.0] * 3,
        clip=clip,
    )
    for result in (value, *slopes[:2]):
        np.testing.assert_array_equal(result, 0.0)
    assert not np.signbit(value).any()
    assert np.isfinite(slopes[2]).all()


def test_small_divergences_are_exact():
    new = np.full(4, -1.0, np.float32)
    apart = single([0.0, 2.0**-13, -(2.0**-20), 0.5])
    options = {"reference_log_probs": new + apart, "kl_weight": 2.0}
    value, slopes = value_and_slopes(jaxent.policy_gradient_loss, new, new, np.zeros(4), **options)
    exact = apart.astype(np.float64)
    small = exact**2 / 2 + exact**3 / 6
    truth = np.where(exact == 0.5, np.exp(exact) - 1.0 - exact, small)
    np.testing.assert_allclose(value, 2.0 * truth, rtol=3e-7)
    np.testing.assert_allclose(slopes[0], -2.0 * np.expm1(exact), rtol=3e-7)
    far = single([500.0, -500.0, np.inf, -np.inf])
    losses = jaxent.policy_gradient_loss(
        new, new, 0.0, reference_log_probs=new + far, kl_weight=2.0
    )
    np.testing.assert_allclose(losses, [np.inf, 998.0, np.inf, np.inf])


def test_the_reference_is_masked_and_checked_like_the_rest():
    new, old, reference = log_probs(3, (3, 4))
    advantages = np.ones((3, 1), np.float32)
    where = np.arange(12).reshape(3, 4) % 3 > 0

    def total(reference, where):
        losses = jaxent.policy_gradient_loss(
            new, old, advantages, where, reference_log_probs=reference, kl_weight=0.5
        )
        return jnp.sum(losses), losses

    both = jax.jit(jax.value_and_grad(total, has_aux=True))
    (_, expected), slope = both(reference, None)
    with jax.debug_nans(True):
        (_, losses), masked = both(np.where(where, reference, np.nan), where)
    np.testing.assert_allclose(losses, np.where(where, expected, 0.0), rtol=1e-6)
    np.testing.assert_allclose(masked, np.where(where, slope, 0.0), rtol=1e-6)
    with pytest.raises(AssertionError, match=r"policy_gradient_loss.*`reference_log_probs`.*\[4\]"):
        total(reference[0], None)
    with pytest.raises(AssertionError, match=r"`kl_weight` needs `reference_log_probs`"):
        jaxent.policy_gradient_loss(new, old, advantages, kl_weight=0.1)
    plain = jaxent.policy_gradient_loss(new, old, advantages)
    unused = jaxent.policy_gradient_loss(new, old, advantages, reference_log_probs=reference)
    np.testing.assert_array_equal(unused, plain)


def test_sequences_are_means_over_their_tokens_that_count():
    new, old = log_probs(2, (3, 5))
    advantages = single([[1.0], [-2.0], [0.5]])
    where = np.array([[True] * 5, [True, True, True, False, False], [False] * 5])
    given = [np.where(where, array, np.nan) for array in (new, old)]
    loss = functools.partial(jaxent.policy_gradient_loss, normalization="sequence")
    with jax.debug_nans(True):
        value, slopes = jax.jit(
            lambda *a: (
                loss(*a, where=where),
                jax.grad(lambda *a: jnp.sum(loss(*a, where=where)), (0, 2))(*a),
            )
        )(*given, advantages)
    tokens = np.asarray(jaxent.policy_gradient_loss(new, old, advantages, where))
    counts = where.sum(-1)
    np.testing.assert_allclose(value, tokens.sum(-1) / np.maximum(counts, 1), rtol=1e-6)
    assert value[2] == 0.0
    assert slopes[1][2, 0] == 0.0
    by_token = value_and_slopes(jaxent.policy_gradient_loss, new, old, advantages)[1][0]
    share = np.where(where, by_token / np.maximum(counts, 1)[:, None], 0.0)
    np.testing.assert_allclose(slopes[0], share, rtol=1e-6)
    # One for all tokens, one per sequence, and none.
    whole = np.asarray(loss(new, old, advantages))
    np.testing.assert_allclose(
        whole, np.mean(jaxent.policy_gradient_loss(new, old, advantages), -1)
    )
    np.testing.assert_allclose(loss(new, old, advantages, True), whole, rtol=1e-6)
    some = np.array([[True], [False], [True]])
    np.testing.assert_allclose(loss(new, old, advantages, some), whole * some[:, 0], rtol=1e-6)
    assert loss(np.ones((2, 0)), np.ones((2, 0)), np.ones((2, 1))).tolist() == [0.0, 0.0]
    with pytest.raises(AssertionError, match=r"policy_gradient_loss.*`log_probs`.*time"):
        loss(-1.0, -1.0, 1.0)


def test_advantages_of_sequences_are_not_spread_silently():
    new, old = log_probs(2, (3, 3))
    with pytest.raises(AssertionError, match=re.escape("[:, None]")):
        jaxent.policy_gradient_loss(new, old, np.ones(3, np.float32))


# --- options --------------------------------------------------------------------------------------

BAD_OPTIONS = [
    *((loss, "beta", beta) for loss in (jaxent.dpo_loss, jaxent.kto_loss, jaxent.simpo_loss)
      for beta in (0.0, -0.1, math.inf, math.nan)),
    *((jaxent.dpo_loss, "label_smoothing", share) for share in (-0.1, 0.5, 1.0, math.nan)),
    *((jaxent.dpo_loss, "nll_weight", weight) for weight in (-0.1, math.inf, math.nan)),
    *((jaxent.kto_loss, "desirable_weight", weight) for weight in (-1.0, math.inf, math.nan)),
    *((jaxent.kto_loss, "undesirable_weight", weight) for weight in (-1.0, math.inf)),
    *((jaxent.orpo_loss, "weight", weight) for weight in (0.0, -1.0, math.inf, math.nan)),
    *((jaxent.simpo_loss, "margin", margin) for margin in (-1.0, math.inf, math.nan)),
    *((jaxent.policy_gradient_loss, "clip", clip) for clip in (-0.1, 1.1, math.inf, math.nan)),
    *((jaxent.policy_gradient_loss, "dual_clip", clip) for clip in (1.0, 0.5, math.nan)),
    *((jaxent.policy_gradient_loss, "kl_weight", weight) for weight in (-0.1, math.inf)),
]  # fmt: skip


@functools.cache
def _traced(loss, option):
    given = log_probs(LOSSES[loss], (2,))
    more = {"reference_log_probs": given[0]} if option == "kl_weight" else {}

    def total(first, value):
        losses = loss(first, *given[1:], **more, **{option: value})
        return jnp.sum(losses), losses

    return jax.jit(jax.value_and_grad(total, has_aux=True)), given, more


@pytest.mark.parametrize(("loss", "option", "value"), BAD_OPTIONS)
def test_options_out_of_range_are_refused_or_nan(loss, option, value):
    traced, given, more = _traced(loss, option)
    with pytest.raises(AssertionError, match=rf"{loss.__name__}.*`{option}`"):
        loss(*given, **more, **{option: value})
    if option == "clip" and value == math.inf:
        return  # which a pair may hold
    (_, losses), slope = traced(given[0], np.float32(value))
    assert np.isnan(losses).all()
    assert np.isnan(slope).all()


def test_pairs_of_clips_and_names_are_checked():
    given = log_probs(3, (2,))
    for clip in ((1.1, 0.2), (0.2, -0.1), (0.1, 0.2, 0.3), (math.nan, 0.1), single([0.1, 0.2])):
        with pytest.raises(AssertionError, match=r"policy_gradient_loss.*`clip`"):
            jaxent.policy_gradient_loss(*given, clip=cast("Any", clip))
    with pytest.raises(AssertionError, match=r"`normalization`.*'token'"):
        jaxent.policy_gradient_loss(*given, normalization=cast("Any", "batch"))
    pairs = log_probs(4, (2,))
    with pytest.raises(AssertionError, match=r"dpo_loss.*`variant`.*'ipo'"):
        jaxent.dpo_loss(*pairs, variant=cast("Any", "exo"))
    for share in (0.1, jnp.float32(0.0)):
        with pytest.raises(AssertionError, match=r"dpo_loss.*`label_smoothing`.*sigmoid"):
            jaxent.dpo_loss(*pairs, variant="hinge", label_smoothing=share)
    for loss, option in ((jaxent.dpo_loss, "beta"), (jaxent.orpo_loss, "weight")):
        with pytest.raises(AssertionError, match=rf"{loss.__name__}.*`{option}`.*\[2\]"):
            loss(*log_probs(LOSSES[loss], (2,)), **{option: np.ones(2, np.float32)})
    with pytest.raises(AssertionError, match=r"kto_loss.*`reference_point`.*\[1,2\]"):
        jaxent.kto_loss(pairs[0], pairs[1], 1.0, reference_point=np.ones((1, 2), np.float32))


@pytest.mark.thorough
def test_traced_options_give_the_same_losses_and_have_derivatives():
    step = 1e-3

    def of_options(beta, share, margin, weight, clip):
        pairs, tokens = (
            tuple(a.astype(jnp.result_type(float)) for a in log_probs(n)) for n in (4, 3)
        )
        apart = tokens[1] + 0.7 * np.sign(tokens[2] + 3.0)
        return {
            "dpo": jaxent.dpo_loss(*pairs, beta=beta, label_smoothing=share),
            "hinge": jaxent.dpo_loss(*pairs, beta=beta, variant="hinge"),
            "ipo": jaxent.dpo_loss(*pairs, beta=beta, variant="ipo"),
            "robust": jaxent.dpo_loss(
                *pairs, beta=beta, variant="robust", label_smoothing=share, nll_weight=weight
            ),
            "kto": jaxent.kto_loss(
                pairs[0], pairs[1], 0.25,
                beta=beta, desirable_weight=weight, undesirable_weight=2 * weight,
            ),
            "orpo": jaxent.orpo_loss(*pairs[:2], weight=weight),
            "simpo": jaxent.simpo_loss(*pairs[:2], beta=beta, margin=margin),
            "surrogate": jaxent.policy_gradient_loss(
                apart, *tokens[1:], clip=(clip, 2 * clip), dual_clip=1 + 4 * clip,
                reference_log_probs=tokens[0], kl_weight=weight,
            ),
        }  # fmt: skip

    numbers = (0.5, 0.125, 0.75, 0.25, 0.25)
    compiled = jax.jit(of_options)
    traced = compiled(*map(np.float32, numbers))
    for result, expected in zip(
        jax.tree.leaves(traced), jax.tree.leaves(of_options(*numbers)), strict=True
    ):
        np.testing.assert_allclose(result, expected, rtol=1e-6)
    with with_float64():
        given = tuple(map(np.float64, numbers))
        jacobian = jax.jit(jax.jacfwd(of_options, tuple(range(5))))(*given)
        for index, number in enumerate(numbers):
            ahead, behind = (
                compiled(*(*given[:index], np.float64(number + off), *given[index + 1 :]))
                for off in (step, -step)
            )
            for name, slopes in jacobian.items():
                differences = (np.asarray(ahead[name]) - np.asarray(behind[name])) / (2 * step)
                np.testing.assert_allclose(
                    slopes[index], differences, rtol=1e-3, atol=2e-3, err_msg=f"{name} {index}"
                )


@pytest.mark.thorough
def test_options_keep_their_digits_and_the_dtype():
    """0.1 in float32 is another number, which a margin of 800 would show."""
    value = jaxent.dpo_loss(np.float32(-100.0), -900.0, -1.0, -1.0)
    np.testing.assert_allclose(value, math.exp(-80.0), rtol=1e-7)
    with with_float64():
        for dtype in (np.float32, np.float64):
            for loss, count in LOSSES.items():
                given = [array.astype(dtype) for array in log_probs(count, (2,))]
                if loss is jaxent.kto_loss:
                    given[2] = np.array([True, False])
                assert loss(*given).dtype == dtype
        fine = jaxent.dpo_loss(np.float64(-100.0), -900.0, -1.0, -1.0)
        np.testing.assert_allclose(fine, math.exp(-80.0), rtol=1e-14)
