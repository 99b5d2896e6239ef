"""A refused argument: which class the error is, what it says, and that chex cannot turn it off."""

import copy
import pickle
import traceback
from collections.abc import Callable, Iterator

import chex
import jax.numpy as jnp
import pytest

import jaxent

LOGITS, LABELS = jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32)
HIDDEN, KERNEL = jnp.zeros((4, 2)), jnp.zeros((2, 3))
cross_entropy = jaxent.softmax_cross_entropy_with_integer_labels


def refused(call: Callable[[], object]) -> jaxent.ArgumentError:
    with pytest.raises(jaxent.ArgumentError) as caught:
        call()
    return caught.value


@pytest.fixture
def no_chex() -> Iterator[None]:
    """Assertions of chex are off, which is a setting of the whole process."""
    chex.disable_asserts()
    yield
    chex.enable_asserts()


@pytest.mark.parametrize("handled", [ValueError, AssertionError, jaxent.ArgumentError])
def test_is_what_users_of_optax_and_of_chex_handle(handled):
    with pytest.raises(handled, match=r"^jaxent\.softmax_cross_entropy_with_integer_labels: "):
        cross_entropy(LOGITS, jnp.zeros(4))


def test_says_function_argument_what_came_and_the_remedy():
    words = str(refused(lambda: cross_entropy(LOGITS, jnp.zeros(4))))
    name = "jaxent.softmax_cross_entropy_with_integer_labels"
    assert words.startswith(f"{name}: `labels` must be integers, got float32[4]; ")
    assert words.endswith("for one target per class use `jaxent.softmax_cross_entropy`.")
    assert words.count(name) == 1


def test_has_one_class_whoever_refuses():
    by_us = refused(lambda: cross_entropy(LOGITS, jnp.zeros(4)))
    by_chex = refused(lambda: jaxent.squared_error(jnp.zeros(3), jnp.zeros(4)))
    assert type(by_us) is type(by_chex) is jaxent.ArgumentError


def test_hides_the_assertion_that_chex_made():
    error = refused(lambda: jaxent.squared_error(jnp.zeros(3), jnp.zeros(4)))
    assert str(error) == (
        "jaxent.squared_error: shapes do not match, got `predictions` float32[3], "
        "`targets` float32[4]; axes must be equal or of size 1."
    )
    assert "broadcastable" not in "".join(traceback.format_exception(error))


def test_names_the_loss_inside_a_head_and_not_the_head():
    def loss_fn(logits, labels):
        return cross_entropy(logits, labels, label_smoothing=2.0)

    words = str(refused(lambda: jaxent.linear_loss(loss_fn, HIDDEN, KERNEL, LABELS)))
    assert words.startswith("jaxent.softmax_cross_entropy_with_integer_labels: `label_smoothing` ")
    assert words.count("jaxent.") == 1


@pytest.mark.parametrize(
    "through", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy, copy.deepcopy]
)
def test_survives_pickling_and_copying(through):
    error = refused(lambda: cross_entropy(LOGITS, jnp.zeros(4)))
    again = through(error)
    assert type(again) is jaxent.ArgumentError
    assert str(again) == str(error)


LIST = jnp.zeros((2, 3))
SILENTLY_WRONG = {
    "labels of one position for all": lambda: cross_entropy(
        jnp.zeros((2, 4, 3)), jnp.zeros((2, 1), jnp.int32)
    ),
    "labels of all for one position": lambda: cross_entropy(LOGITS[:1], LABELS),
    "labels of one list for all": lambda: jaxent.listmle_loss(LIST, jnp.zeros((1, 3))),
    "float labels": lambda: cross_entropy(LOGITS, jnp.zeros(4)),
    "integer logits": lambda: cross_entropy(jnp.zeros((4, 3), jnp.int32), LABELS),
    "labels of another rank": lambda: cross_entropy(LOGITS, LABELS[:, None]),
    "labels of a head of another shape": lambda: jaxent.linear_softmax_cross_entropy(
        HIDDEN, KERNEL, LABELS[:1]
    ),
    "too large a smoothing": lambda: cross_entropy(LOGITS, LABELS, label_smoothing=2),
    "one smoothing per example": lambda: cross_entropy(
        LOGITS, LABELS, label_smoothing=jnp.full(4, 0.1)
    ),
    "a mask of integers": lambda: cross_entropy(LOGITS, LABELS, where=jnp.ones(4, jnp.int32)),
    "targets for other classes": lambda: jaxent.softmax_cross_entropy(LOGITS, jnp.ones((4, 1))),
    "complex predictions": lambda: jaxent.squared_error(jnp.zeros(4, jnp.complex64)),
    "a chunk of less than nothing": lambda: jaxent.linear_softmax_cross_entropy(
        HIDDEN, KERNEL, LABELS, chunk_size=-1
    ),
    "a bias for one class": lambda: jaxent.linear_softmax_cross_entropy(
        HIDDEN, KERNEL, LABELS, bias=jnp.zeros(1)
    ),
    "one weight for many rows": lambda: jaxent.linear_softmax_cross_entropy(
        HIDDEN, KERNEL, LABELS, weights=jnp.ones(1)
    ),
}


@pytest.mark.usefixtures("no_chex")
@pytest.mark.parametrize("call", SILENTLY_WRONG.values(), ids=SILENTLY_WRONG)
def test_what_would_be_silently_wrong_is_refused_without_chex(call):
    assert str(refused(call)).startswith("jaxent.")


@pytest.mark.usefixtures("no_chex")
def test_without_chex_jax_refuses_what_it_cannot_broadcast():
    with pytest.raises((ValueError, TypeError)) as caught:
        jaxent.squared_error(jnp.zeros(3), jnp.zeros(4))
    assert not isinstance(caught.value, jaxent.ArgumentError)
    with pytest.raises((ValueError, TypeError)):
        cross_entropy(LOGITS, LABELS[:3])
