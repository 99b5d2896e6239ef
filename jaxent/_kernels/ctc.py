"""Connectionist temporal classification: all alignments of a short sequence with a long one.

The gradient of the loss is softmax(x) minus the occupancy of each class at each frame, which the
forward-backward algorithm gives.

Where a sequence is more likely right than wrong, 1 - P would lose the digits of a small loss. There
the probability of a failure is summed up instead: of each way to leave the valid alignments.
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float import scaled
from jaxent._float.scaled import Scaled
from jaxent._float.tangents import Arrays, Dual, Pair
from jaxent._kernels import forward_backward
from jaxent._kernels.softmax import fold_into_pivot, softmax

_R = TypeVar("_R")

# The loss.


@jax.custom_jvp
def ctc(
    x: jax.Array, frame_mask: jax.Array, symbols: jax.Array, symbol_mask: jax.Array
) -> jax.Array:
    """-log of the probability that the frames spell the labels.

    Args:
        x: logits [B, T, K]; -inf for impossible classes.
        frame_mask: [B, T] booleans.
        symbols: [B, N+1] integers in [0, K): the blank, then the labels.
        symbol_mask: [B, N+1] booleans: True, then as many True as there are labels.

    Returns:
        [B] losses; +inf where there is no alignment.
    """
    halves = forward_backward.split_in_halves(x, frame_mask, symbols, symbol_mask)
    probability = forward_backward.meet_in_middle(halves.frames, halves.labels).probability
    loss = scaled.neg_log(probability)
    return _if_any_likely(
        loss,
        lambda: _loss_of_failure(softmax(x), frame_mask, symbols, symbol_mask, loss),
        lambda: loss,
    )


def ctc_with_forward(
    x: jax.Array, frame_mask: jax.Array, symbols: jax.Array, symbol_mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The losses of `ctc`, and the log-probabilities of the states after each frame.

    They are [T, B, N+1] of blanks and [T, B, N] of labels; the last of the former are of both.
    """
    batch, length = frame_mask.shape
    index = jnp.arange(length)[:, None] + length * jnp.arange(batch)[None]
    frames = forward_backward.gather_frames(x, index, frame_mask.T, symbols)
    first = jnp.zeros(batch, symbols.dtype)
    labels = forward_backward.prepare_labels(symbols, symbol_mask, first, x.dtype)
    probs = forward_backward.label_probs(frames, labels)
    end, alphas = forward_backward.forward_all(labels.initial, frames, probs, labels)
    blank, label = (_log_prob(numbers) for numbers in alphas)
    ends = _log_prob(scaled.add(*end))[None]
    blank = jnp.concatenate([blank[:-1], ends[: len(blank)]])
    return ctc(x, frame_mask, symbols, symbol_mask), blank, label[..., 1:]


def _log_prob(probs: Scaled) -> jax.Array:
    """Logarithms of probabilities, at most 0: a probability of 1 may be rounded up."""
    log = -scaled.neg_log(probs)
    return log - jax.lax.stop_gradient(jnp.maximum(log, 0.0))


# The gradient.


@ctc.defjvp
def _ctc_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    loss, grad = _loss_and_grad(*primals)
    return loss, jnp.sum(grad * tangents[0], axis=(1, 2))


def _loss_and_grad(
    x: jax.Array, frame_mask: jax.Array, symbols: jax.Array, symbol_mask: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient [B, T, K]; both may be differentiated further."""
    halves = forward_backward.split_in_halves(x, frame_mask, symbols, symbol_mask)
    probability, occupancy = forward_backward.forward_backward(halves.frames, halves.labels)
    loss = scaled.neg_log(probability)

    def plain() -> tuple[jax.Array, jax.Array]:
        return loss, _sum_by_class(occupancy, halves.frame_index, halves.symbols, x.shape)

    def accurate() -> tuple[jax.Array, jax.Array]:
        # The softmax once more: XLA would write one for both to memory, even if no sequence is
        # likely and the other can be fused.
        probs = softmax(x)
        better_loss, vjp = jax.vjp(
            lambda probs: _loss_of_failure(probs, frame_mask, symbols, symbol_mask, loss), probs
        )
        (probs_grad,) = vjp(jnp.ones_like(loss))
        mean = jnp.sum(probs * probs_grad, axis=-1, keepdims=True)
        return better_loss, jnp.where(is_likely, probs * (probs_grad - mean), plain()[1])

    is_likely = _is_likely(loss)[:, None, None]
    probs = softmax(x)
    # The second is the gradient of likely sequences, and the occupancy of the others.
    loss, grad = _if_any_likely(loss, accurate, plain)
    grad = jnp.where(is_likely, grad, probs - grad)
    grad = jnp.where((loss == jnp.inf)[:, None, None], 0.0, grad)
    return loss, fold_into_pivot(grad, probs > 0.5)


def _sum_by_class(
    occupancy: jax.Array, index: jax.Array, symbols: jax.Array, shape: tuple[int, ...]
) -> jax.Array:
    """The occupancy of symbols [T', 2B, N+1] as that of classes, [B, T, K].

    On a CPU a product with one-hot rows is faster than a scatter while there are few classes.
    """
    batch, frames, classes = shape
    if classes <= 512:
        one_hot = jax.nn.one_hot(symbols, classes, dtype=occupancy.dtype)
        by_class = jnp.einsum("tbn,bnk->btk", occupancy, one_hot, precision="highest")
        by_class = jnp.concatenate([by_class[:batch], by_class[batch:, ::-1]], axis=1)
        return by_class[:, :frames]
    zeros = jnp.zeros((frames * batch, classes), occupancy.dtype)
    by_class = zeros.at[index[..., None], symbols].add(occupancy, mode="drop")
    return by_class.reshape(shape)


# Sequences that are more likely right than wrong.


def _is_likely(loss: jax.Array) -> jax.Array:
    """Whether the probability is above 1/2."""
    return loss < 0.6931


def _if_any_likely(loss: jax.Array, accurate: Callable[[], _R], plain: Callable[[], _R]) -> _R:
    """The result of `accurate` if any sequence is likely, else that of `plain`."""
    return jax.lax.cond(jnp.any(_is_likely(loss)), accurate, plain)


def _loss_of_failure(
    probs: jax.Array,
    frame_mask: jax.Array,
    symbols: jax.Array,
    symbol_mask: jax.Array,
    loss: jax.Array,
) -> jax.Array:
    """-log(1 - P(failure)) of likely sequences; others keep the loss they have."""
    is_likely = _is_likely(loss)
    failure = jnp.where(is_likely, _failure_prob(probs, frame_mask, symbols, symbol_mask), 0.0)
    return jnp.where(is_likely, -log1p(-failure), loss)


def _failure_prob(
    probs: jax.Array, frame_mask: jax.Array, symbols: jax.Array, symbol_mask: jax.Array
) -> jax.Array:
    """The probability [B] that the frames do not spell the labels, as a sum of probabilities.

    They are that a frame is a class that no alignment has there, and that the frames end before the
    labels do. Ordinary numbers do: what is below their range does not count.
    """
    classes = jnp.arange(probs.shape[-1], dtype=symbols.dtype)[None, None]
    # [B, N+1, K] each: the class of a symbol, of its successor, and what may follow a blank.
    own = (symbols[..., None] == classes) & symbol_mask[..., None]
    next_label = jnp.pad(own[:, 1:], ((0, 0), (0, 1), (0, 0)))
    valid = own[:, :1] | next_label
    # As numbers: the class of a symbol, what is wrong after a blank, and what is after a label.
    own, *wrong = (each.astype(probs.dtype) for each in (own, ~valid, ~(valid | own)))
    skips_blank = (symbols[:, 1:] != symbols[:, :-1]).astype(probs.dtype)

    def step(
        states: tuple[jax.Array, jax.Array], frame: tuple[jax.Array, jax.Array]
    ) -> tuple[Pair, Pair]:
        symbol_probs, mask = frame
        blank, label = states
        to_label = label[:, 1:] + blank[:, :-1] + skips_blank * label[:, :-1]
        to_label = jnp.where(mask, to_label * symbol_probs[:, 1:], label[:, 1:])
        to_blank = jnp.where(mask, (blank + label) * symbol_probs[:, :1], blank)
        return (to_blank, forward_backward.keep_first_column(label, to_label)), states

    @jax.checkpoint
    def run(
        states: tuple[jax.Array, jax.Array], segment: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        probs, mask = segment
        # Products with one-hot rows, whose transpose is no scatter.
        symbol_probs = jnp.einsum("tbk,bnk->tbn", probs, own, precision="highest")
        states, before = jax.lax.scan(step, states, (symbol_probs, mask))
        wrong_weight = (
            jnp.einsum("tbn,bnk->tbk", each, is_wrong, precision="highest")
            for each, is_wrong in zip(before, wrong, strict=True)
        )
        return states, jnp.sum(jnp.where(mask, probs * sum(wrong_weight), 0.0), axis=(0, 2))

    zeros = jnp.zeros(symbols.shape, probs.dtype)
    start = zeros.at[:, 0].set(1.0), zeros
    frames = jnp.moveaxis(probs, 1, 0), frame_mask.T[..., None]
    (blank, label), failures = jax.lax.scan(run, start, _split_in_segments(frames))
    wrong_class = jnp.sum(failures, axis=0)
    unfinished = jnp.where(_is_last_symbol(symbol_mask), 0.0, blank + label)
    return wrong_class + jnp.sum(unfinished, axis=1)


def _split_in_segments(frames: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Arrays [T, ...] as [segments, T / segments, ...], padded by frames that are masked."""

    def split(array: jax.Array) -> jax.Array:
        segments = max(1, -(-len(array) // (2 * forward_backward.SEGMENT)))
        length = -(-len(array) // segments)
        padding = [(0, segments * length - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, padding).reshape(segments, length, *array.shape[1:])

    return jax.tree.map(split, frames)


def _is_last_symbol(symbol_mask: jax.Array) -> jax.Array:
    """Where the last label is, or the blank if there is none, [B, N+1]."""
    return symbol_mask & ~jnp.pad(symbol_mask[:, 1:], ((0, 0), (0, 1)))
