"""What is particular to the generalised KL divergence; what every loss owes is in the table."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent

DIVERGENCE = jaxent.generalized_kl_divergence


def measures(seed=0, shape=(6, 5)):
    generator = np.random.default_rng(seed)
    log_q = generator.normal(size=shape).astype(np.float32)
    return log_q, generator.exponential(size=shape).astype(np.float32)


def slopes(*arguments, **keywords):
    def total(*arguments):
        return jnp.sum(DIVERGENCE(*arguments, **keywords))

    return jax.grad(total, (0, 1))(*map(jnp.asarray, arguments))


def test_of_distributions_it_is_the_kullback_leibler_divergence():
    generator = np.random.default_rng(1)
    q, t = generator.dirichlet(np.ones(5), size=(2, 6)).astype(np.float32)
    np.testing.assert_allclose(
        DIVERGENCE(np.log(q), t), jaxent.kl_divergence(np.log(q), t), rtol=2e-6, atol=2e-7
    )


def test_a_common_factor_comes_out():
    log_q, t = measures()
    factor = 2.0**10
    bigger = DIVERGENCE(log_q + np.float32(np.log(factor)), factor * t)
    np.testing.assert_allclose(bigger, factor * DIVERGENCE(log_q, t), rtol=1e-5)


def test_it_is_quadratic_near_the_target():
    """The log-predictions are about 0, where their digits tell the most."""
    log_q = np.array([1e-2, 1e-3, -1e-5, 1e-8, -1e-12], np.float32)
    exact = np.float64(log_q) ** 2 * (0.5 + np.float64(log_q) / 6 + np.float64(log_q) ** 2 / 24)
    np.testing.assert_allclose(DIVERGENCE(log_q[:, None], np.ones((5, 1))), exact, rtol=3e-7)
    of_log_q, of_t = slopes(log_q[:, None], np.ones((5, 1), np.float32))
    np.testing.assert_allclose(of_log_q[:, 0], np.expm1(np.float64(log_q)), rtol=3e-7)
    np.testing.assert_allclose(of_t[:, 0], -np.float64(log_q), rtol=3e-7)


def test_it_is_never_negative_beside_the_target():
    _, t = measures(2, (2000, 4))
    losses = DIVERGENCE(np.log(t), t)
    assert (losses >= 0.0).all()
    assert losses.max() < 1e-12


def test_zeros_of_either_side():
    log_q = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0], [0.0, -1.0]])
    t = jnp.array([[1.0, 0.0], [1.0, 1.0], [1.0, 0.0]])
    with jax.debug_nans(True):
        losses, (of_log_q, of_t) = DIVERGENCE(log_q, t), slopes(log_q, t)
    np.testing.assert_allclose(losses, [0.0, np.inf, np.exp(-1.0)], rtol=1e-6)
    np.testing.assert_allclose(of_log_q, [[0, 0], [-1, 0], [0, np.exp(-1.0)]], rtol=1e-6)
    np.testing.assert_array_equal(of_t, [[0, 0], [np.inf, 0], [0, 1 * 0]])


@pytest.mark.parametrize(
    ("position", "bad"),
    [(0, np.nan), (0, np.inf), (1, -0.1), (1, -1e-40), (1, np.nan), (1, np.inf)],
)
def test_what_is_no_measure_makes_the_example_nan(position, bad):
    arguments = measures()
    arguments[position][2, 3] = bad
    hit = np.arange(6) == 2
    np.testing.assert_array_equal(np.isnan(DIVERGENCE(*arguments)), hit)
    of_log_q, _ = slopes(*arguments)
    np.testing.assert_array_equal(np.isnan(of_log_q), np.broadcast_to(hit[:, None], (6, 5)))
    for result in (DIVERGENCE(*arguments, where=~hit), *slopes(*arguments, where=~hit)):
        np.testing.assert_array_equal(result[2], 0.0)


def test_the_largest_numbers():
    log_q = np.array([[88.0], [89.0], [100.0], [-100.0], [-3e38]], np.float32)
    t = np.array([[1e38], [3e38], [3e38], [1e-30], [1.0]], np.float32)
    with jax.debug_nans(True):
        losses = np.asarray(DIVERGENCE(log_q, t))
    exact = np.exp(88.0) - 1e38 * (1 + 88.0 - np.log(1e38))
    np.testing.assert_allclose(losses[0], exact, rtol=1e-6)
    np.testing.assert_allclose(losses[3], 1e-30 * (100.0 + np.log(1e-30) - 1), rtol=1e-6)
    # exp(89) does not fit float32, but what it is more than its target does.
    exact = np.exp(89.0) - 3e38 * (1 + 89.0 - np.log(3e38))
    np.testing.assert_allclose(losses[1], exact, rtol=1e-5)
    assert losses[2] == np.inf
    np.testing.assert_allclose(losses[4], 3e38, rtol=1e-6)


def test_the_old_name_warns_and_is_the_same():
    arguments = measures()
    with pytest.warns(DeprecationWarning, match="use generalized_kl_divergence") as record:
        result = jaxent.convex_kl_divergence(*arguments, axis=0)
    np.testing.assert_array_equal(result, DIVERGENCE(*arguments, axis=0))
    assert record[0].filename == __file__
    with (
        pytest.warns(DeprecationWarning, match="use"),
        pytest.raises(AssertionError, match=r"convex_kl_divergence: `log_predictions` must be"),
    ):
        jaxent.convex_kl_divergence(np.zeros(2, np.int32), np.zeros(2))
