"""A refused argument: which class the error is, what it says, and that chex cannot turn it off."""

# Wrong calls are the subject: a type checker would refuse them all.
# pyright: reportArgumentType=false, reportCallIssue=false

import copy
import pickle
import re
import traceback
from collections.abc import Callable, Iterator

import chex
import jax
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
    "a kernel whose gradient underflows": lambda: jaxent.linear_softmax_cross_entropy(
        HIDDEN, KERNEL.astype(jnp.float8_e4m3fn), LABELS
    ),
    "logits whose gradient underflows": lambda: cross_entropy(
        LOGITS.astype(jnp.float8_e5m2), LABELS
    ),
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


# Mistakes, each with the argument, what came, and the remedy that the message must name.
YES, SOFT = jnp.zeros((4, 3)), jnp.ones((4, 3)) / 3
TOKENS, SEQUENCES = jnp.zeros((2, 5), jnp.int32), jnp.zeros((2, 5, 3))
head, soft = jaxent.linear_softmax_cross_entropy, jaxent.softmax_cross_entropy
binary = jaxent.sigmoid_binary_cross_entropy
BYTES = jnp.zeros((4, 3), jnp.int32)


def traced(call: Callable[[object], object]) -> Callable[[], object]:
    return lambda: jax.eval_shape(call, 1)


MISTAKES = [
    # No array at all.
    (lambda: cross_entropy(None, LABELS), "logits", "None", "pass an array"),
    (lambda: cross_entropy(LOGITS, None), "labels", "None", "pass an array"),
    (lambda: cross_entropy({"a": LOGITS}, LABELS), "logits", "a dict", "pass one of its leaves"),
    (lambda: cross_entropy("logits", LABELS), "logits", "'logits'", "pass an array"),
    (lambda: cross_entropy([[1.0, 2.0], [3.0]], [0, 1]), "logits", "a list", "equal rows"),
    (lambda: cross_entropy(cross_entropy, LABELS), "logits", "a function", "pass an array"),
    (lambda: soft(LOGITS, None), "labels", "None", "pass an array"),
    (lambda: jaxent.mean(None), "losses", "None", "pass an array"),
    (lambda: jaxent.softmax_entropy({"logits": LOGITS}), "logits", "a dict", "'logits'"),
    (lambda: jaxent.squared_error(None), "predictions", "None", "pass an array"),
    (lambda: head(HIDDEN, {"kernel": KERNEL}, LABELS), "kernel", "a dict", "'kernel'"),
    (lambda: head(HIDDEN, None, LABELS), "kernel", "None", "pass an array"),
    (lambda: head(None, KERNEL, LABELS), "hidden", "None", "pass an array"),
    (lambda: head(HIDDEN, KERNEL, None), "labels", "None", "pass an array"),
    (lambda: head(HIDDEN, KERNEL, LABELS, bias={"b": 0}), "bias", "a dict", "leaves"),
    (lambda: jaxent.info_nce(HIDDEN, None, 1.0), "keys", "None", "pass an array"),
    # The order.
    (lambda: cross_entropy(LABELS, LOGITS), "logits", "int32[4]", "swapped"),
    (lambda: jaxent.negative_log_likelihood(LABELS, YES), "log_probs", "int32[4]", "swapped"),
    (lambda: jaxent.linear_loss(HIDDEN, cross_entropy, KERNEL), "loss_fn", "[4,2]", "comes first"),
    (lambda: jaxent.linear_loss("ce", HIDDEN, KERNEL), "loss_fn", "'ce'", "comes first"),
    (lambda: head(KERNEL, HIDDEN, LABELS), "hidden", "float32[2,3]", "vocab_axis=0"),
    (lambda: head(HIDDEN, KERNEL.T, LABELS), "kernel", "float32[3,2]", "vocab_axis=0"),
    # Labels.
    (lambda: cross_entropy(LOGITS, LABELS[:, None]), "labels", "int32[4,1]", "labels[..., 0]"),
    (lambda: cross_entropy(SEQUENCES, TOKENS[:, :1]), "labels", "int32[2,1]", "do not broadcast"),
    (lambda: cross_entropy(SEQUENCES, TOKENS[..., None]), "labels", "[2,5,1]", "labels[..., 0]"),
    (lambda: cross_entropy(LOGITS, BYTES), "labels", "int32[4,3]", "jnp.argmax"),
    (lambda: cross_entropy(LOGITS, LABELS, axis=0), "labels", "int32[4]", "`axis`"),
    (lambda: cross_entropy(LOGITS, SOFT), "labels", "float32[4,3]", "jaxent.softmax_cross_entropy"),
    (lambda: soft(LOGITS, LABELS), "labels", "int32[4]", "with_integer_labels"),
    (lambda: jaxent.poly_loss_cross_entropy(LOGITS, LABELS), "labels", "int32[4]", "one_hot"),
    (lambda: jaxent.categorical_cross_entropy(SOFT, LABELS), "labels", "int32[4]", "one_hot"),
    (lambda: jaxent.brier_score(SOFT, LABELS), "labels", "int32[4]", "one_hot"),
    (lambda: head(HIDDEN, KERNEL, LABELS[:, None]), "labels", "int32[4,1]", "labels[..., 0]"),
    (lambda: head(HIDDEN, KERNEL, LABELS[:3]), "labels", "int32[3]", "one for each"),
    (lambda: head(HIDDEN, KERNEL, YES), "labels", "float32[4,3]", "index of each row"),
    (lambda: jaxent.ntxent(HIDDEN, LABELS[:3]), "labels", "int32[3]", "one for each"),
    (lambda: jaxent.lovasz_hinge(YES, YES[:1]), "labels", "float32[1,3]", "one for each"),
    (lambda: jaxent.ranking_softmax_loss(YES, YES[:1]), "labels", "float32[1,3]", "one for each"),
    # Predictions.
    (lambda: cross_entropy(BYTES, LABELS), "logits", "int32[4,3]", "astype"),
    (lambda: binary(YES, LABELS), "labels", "int32[4]", "[:, None]"),
    (lambda: jaxent.squared_error(YES, YES[..., None]), "targets", "[4,3,1]", "[..., 0]"),
    # Axes and masks.
    (lambda: cross_entropy(LOGITS, LABELS, axis=2), "axis", "2", "integers from -2 to 1"),
    (lambda: cross_entropy(LOGITS, LABELS, axis="c"), "axis", "c", "integers from -2 to 1"),
    (lambda: cross_entropy(LOGITS, LABELS, where=YES[:, 0]), "where", "float32[4]", "!= 0"),
    (lambda: cross_entropy(LOGITS, LABELS, where=LABELS[:2] == 0), "where", "bool[2]", "size 1"),
    (lambda: soft(LOGITS, SOFT, where=LABELS[:2] == 0), "where", "bool[2]", "size 1"),
    (lambda: jaxent.softmax_entropy(YES, where=YES[:, :2] == 0), "where", "[4,2]", "size 1"),
    (lambda: head(HIDDEN, KERNEL, LABELS, where=LABELS), "where", "int32[4]", "!= 0"),
    # Options.
    (lambda: cross_entropy(LOGITS, LABELS, reduction="mean"), "reduction", "no arg", "jaxent.mean"),
    (lambda: cross_entropy(LOGITS, LABELS, ignore_index=-100), "ignore_index", "no arg", "where="),
    (lambda: cross_entropy(LOGITS, LABELS, weight=YES[0]), "weight", "no arg", "weight[labels]"),
    (lambda: cross_entropy(LOGITS, LABELS, mask=LABELS), "mask", "no arg", "called `where`"),
    (lambda: cross_entropy(LOGITS, LABELS, dim=-1), "dim", "no arg", "called `axis`"),
    (lambda: soft(LOGITS, SOFT, from_logits=True), "from_logits", "no arg", "names of their own"),
    (lambda: soft(LOGITS, SOFT, smoothing=0.1), "smoothing", "no arg", "`label_smoothing`"),
    (lambda: head(HIDDEN, KERNEL, LABELS, ignore_index=0), "ignore_index", "no arg", "where="),
    (lambda: cross_entropy(LOGITS), "logits", "missing", "`labels`"),
    (lambda: cross_entropy(LOGITS, LABELS, -1, None, 0.1), "labels", "too many", "by keyword"),
    (lambda: binary(YES, YES, pos_weight=YES[0]), "pos_weight", "float32[3]", "expand_dims"),
    (
        lambda: head(HIDDEN, KERNEL, LABELS, chunk_size=2, block_size=3),
        "block_size",
        "`chunk_size` 2 and `block_size` 3",
        "pass the one that fits",
    ),
    (traced(lambda n: head(HIDDEN, KERNEL, LABELS, shift=n)), "shift", "traced", "static_argnames"),
    (
        traced(lambda n: head(HIDDEN, KERNEL, LABELS, chunk_size=n)),
        "chunk_size",
        "traced",
        "static",
    ),
    (
        traced(lambda n: head(HIDDEN, KERNEL, LABELS, vocab_axis=n)),
        "vocab_axis",
        "traced",
        "static",
    ),
    (lambda: head(HIDDEN, KERNEL, LABELS, reduction="avg"), "reduction", "'avg'", "'mean'"),
]


@pytest.mark.parametrize(("call", "argument", "came", "remedy"), MISTAKES)
def test_a_mistake_is_named_with_its_remedy(call, argument, came, remedy):
    words = str(refused(call))
    assert re.match(r"jaxent\.\w+: ", words), words
    for expected in (f"`{argument}`", came, remedy):
        assert expected in words, (expected, words)
    # No array is printed, no argument named that does not exist, no quotation inside another.
    assert "\n" not in words
    assert "Array(" not in words
    assert "`examples" not in words
    assert words.count("`") % 2 == 0


def test_a_call_that_does_not_fit_is_a_type_error_too():
    with pytest.raises(TypeError, match="`reduction` is no argument of it"):
        cross_entropy(LOGITS, LABELS, reduction="mean")
    error = refused(lambda: cross_entropy(LOGITS, LABELS, reduction="mean"))
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def theirs(*_):
    raise TypeError("theirs")


def test_a_type_error_of_a_function_inside_is_left_alone():
    with pytest.raises(TypeError, match="theirs"):
        jaxent.linear_loss(theirs, HIDDEN, KERNEL)
