"""A row in which no class is possible has no gradient, in dense and in streamed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxent

HIDDEN = jnp.array([[0.5, 0.0], [-0.5, 1.0]])
LABELS = jnp.array([1, 2])
BIAS = jnp.full(3, -jnp.inf)
PLAIN = jnp.ones((2, 3))


def entropy(hidden, kernel):
    return jaxent.linear_softmax(hidden, kernel, LABELS, bias=BIAS).entropy


def entropy_of_actions(hidden, kernel):
    no_class = jnp.zeros(3, bool)
    return jaxent.linear_log_prob(hidden, kernel, LABELS, class_where=no_class).entropy


def divergence(hidden, kernel):
    return jaxent.linear_kl_divergence(
        hidden, kernel, hidden, kernel, teacher_bias=BIAS, reduction="none"
    )


def shannon(hidden, kernel):
    return jaxent.linear_jensen_shannon(
        hidden, kernel, hidden, kernel, student_bias=BIAS, reduction="none"
    )


def dense_entropy(hidden, kernel):
    return jaxent.softmax_entropy(hidden @ kernel + BIAS[None])


@pytest.mark.thorough(beyond=1)
@pytest.mark.parametrize("loss", [entropy, entropy_of_actions, divergence, shannon, dense_entropy])
def test_a_selection_makes_it_as_if_masked(loss):
    def selected(hidden, kernel):
        losses = loss(hidden, kernel)
        return jnp.sum(jnp.where(jnp.isnan(losses), 0.0, losses))

    assert jnp.isnan(loss(HIDDEN, PLAIN)).all()
    for total in (selected, lambda *a: jnp.sum(loss(*a))):
        slopes = jax.jit(jax.grad(total, (0, 1)))(HIDDEN, PLAIN)
        for slope in slopes:
            np.testing.assert_array_equal(slope, 0.0)
