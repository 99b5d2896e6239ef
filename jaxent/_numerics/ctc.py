"""Connectionist temporal classification: all alignments of a short sequence with a long one.

The states are those of Graves et al.: n labels are there and the last frame was a blank, or the
last frame was the n-th label. Both kinds are arrays [B, N+1], with a dead state in place of the
label before the first. The columns of `symbols` [B, N+1] go with them: first the blank, then the
labels in their order.

The chance of each state is a number of any size (`scaled`), so that the sweep over the frames
multiplies and adds and nothing else. The gradient is the occupation of the symbols at each frame,
which a sweep back over the stored states shares out among the states a path may have come from:
these shares are probabilities and need no exponents.

Where a sequence is more likely right than wrong, what it is short of certainty is summed up, loss
by loss, as the path leaves the alignments that are allowed: `1 - P` would lose it.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxent._numerics import scaled
from jaxent._numerics.elementary import log1p
from jaxent._numerics.ground import reciprocal
from jaxent._numerics.scaled import Scaled
from jaxent._numerics.softmax import softmax, top_and_shift

# Frames that are run through twice for the gradient.
_SEGMENT = 16


class States(NamedTuple):
    """A chance (or a share of it) for each state, [..., B, N+1] each."""

    blank: jax.Array | Scaled
    label: jax.Array | Scaled


# --- the loss -------------------------------------------------------------------------------------


@jax.custom_jvp
def ctc(x: jax.Array, frames: jax.Array, symbols: jax.Array, exists: jax.Array) -> jax.Array:
    """-log of the probability that the frames spell the labels.

    Args:
        x: logits [B, T, K]; -inf for impossible classes.
        frames: [B, T] booleans, the frames that count.
        symbols: [B, N+1] integers in [0, K): the blank, then the labels.
        exists: [B, N+1] booleans: True, then as many True as there are labels.

    Returns:
        [B] losses; +inf where there is no alignment.
    """
    by_frame = _by_frame(x, frames, symbols)
    end, _ = _forward(_start(symbols, x.dtype), by_frame, symbols, exists, keep=False)
    loss = scaled.minus_log(_success(end, exists))
    return _with_sure(
        loss, lambda: _sure_loss(softmax(x), frames, symbols, exists, loss), lambda: loss
    )


def ctc_with_forward(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The losses of `ctc`, and the log-probabilities of the states after each frame.

    They are [T, B, N+1] of blanks and [T, B, N] of labels; the last of the former are of both.
    """
    by_frame = _by_frame(x, frames, symbols)
    end, after = _forward(_start(symbols, x.dtype), by_frame, symbols, exists, keep=True)
    blank, label = (_log(numbers) for numbers in after)
    ends = _log(scaled.total(*end))[None]
    blank = jnp.concatenate([blank[:-1], ends[: len(blank)]])
    return ctc(x, frames, symbols, exists), blank, label[..., 1:]


def _log(numbers: Scaled) -> jax.Array:
    """Logarithms of probabilities, which are not to round to more than that of 1."""
    log = -scaled.minus_log(numbers)
    return log - jax.lax.stop_gradient(jnp.maximum(log, 0.0))


@ctc.defjvp
def _ctc_jvp(primals, tangents):
    loss, slope = _loss_and_slope(*primals)
    return loss, jnp.sum(slope * tangents[0], axis=(1, 2))


def _loss_and_slope(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient [B, T, K], both of which may be differentiated further."""
    success, occupation = _sweeps(_by_frame(x, frames, symbols), symbols, exists)
    loss = scaled.minus_log(success)
    probs = softmax(x)

    def ordinary():
        light = probs - _by_class(occupation, symbols, probs)
        return loss, jnp.where((loss == jnp.inf)[:, None, None], 0.0, light)

    def sure():
        better, pull = jax.vjp(
            lambda probs: _sure_loss(probs, frames, symbols, exists, loss), probs
        )
        (rejected,) = pull(jnp.ones_like(loss))
        mean = jnp.sum(probs * rejected, axis=-1, keepdims=True)
        return better, jnp.where(
            _is_sure(loss)[:, None, None], probs * (rejected - mean), ordinary()[1]
        )

    loss, light = _with_sure(loss, sure, ordinary)
    # The entry of a class with p > 1/2 is minus the sum of the others.
    heavy = probs > 0.5
    light = jnp.where(heavy, 0.0, light)
    return loss, light - jnp.where(heavy, jnp.sum(light, axis=-1, keepdims=True), 0.0)


def _is_sure(loss: jax.Array) -> jax.Array:
    return loss < 0.6931


def _with_sure(loss: jax.Array, sure, ordinary):
    """The result of `sure` if any sequence is more likely right than wrong, else `ordinary`."""
    return jax.lax.cond(jnp.any(_is_sure(loss)), sure, ordinary)


# --- the sweeps -----------------------------------------------------------------------------------


class Frame(NamedTuple):
    """What the sweeps need of a frame, or of all [T, ...]."""

    counts: jax.Array  # [B, 1] booleans
    picked: jax.Array  # [B, N]: the logits of the labels, -inf where there is none
    shift: jax.Array  # [B, 1], near the largest of all logits
    scale: Scaled  # [B, 1]: one over the sum of the exponentials of all shifted logits
    blank: Scaled  # [B, 1]: the probability of the blank


def _by_frame(x, frames, symbols) -> Frame:
    _, shift = top_and_shift(x)
    scale = scaled.reciprocal(jnp.sum(jnp.exp(x - shift[..., None]), axis=-1).T[..., None])
    shift = shift.T[..., None]
    blank = scaled.exponential(_picked(x, symbols[:, :1]), shift)
    picked = _picked(x, symbols[:, 1:])
    return Frame(frames.T[..., None], picked, shift, scale, scaled.product(blank, scale))


def _picked(x: jax.Array, symbols: jax.Array) -> jax.Array:
    """The entries [T, B, N] of the symbols [B, N] in [B, T, K]."""
    symbols = jnp.broadcast_to(symbols[:, None], (*x.shape[:2], symbols.shape[1]))
    picked = jnp.take_along_axis(x, symbols, axis=-1, mode="promise_in_bounds")
    return jnp.moveaxis(picked, 1, 0)


def _label_chance(frame: Frame, exists: jax.Array) -> Scaled:
    """The probability [B, N] of each label."""
    picked = jnp.where(exists[:, 1:], frame.picked, -jnp.inf)
    return scaled.product(scaled.exponential(picked, frame.shift), frame.scale)


def _start(symbols: jax.Array, dtype) -> States:
    """Before the first frame there is certainly no label."""
    nothing = jnp.zeros(symbols.shape, dtype)
    return States(scaled.constant(nothing.at[:, 0].set(1.0)), scaled.constant(nothing))


def _forward(start: States, by_frame: Frame, symbols, exists, *, keep: bool) -> tuple[States, Any]:
    """The chance of every state after the frames, and after each [T, B, N+1] if it is to `keep`."""
    leap = _columns(_leap(symbols, by_frame.picked.dtype), 0, -1)

    def step(states: States, frame: Frame) -> tuple[States, States]:
        stay, past = _columns(states.label, 1, None), _columns(states.label, 0, -1)
        label = scaled.total(stay, _columns(states.blank, 0, -1), scaled.product(past, leap))
        label = scaled.product(label, _label_chance(frame, exists))
        blank = scaled.product(scaled.total(*states), frame.blank)
        blank = _where(frame.counts, blank, states.blank)
        label = _where(frame.counts, label, stay)
        moved = States(blank, jax.tree.map(_behind, states.label, label))
        return moved, moved if keep else None

    return jax.lax.scan(step, start, by_frame)


def _leap(symbols: jax.Array, dtype) -> Scaled:
    """1 [B, N+1] where a label may be followed by the next at once, 0 where that is the same."""
    may = jnp.pad(symbols[:, 1:] != symbols[:, :-1], ((0, 0), (0, 1)))
    return scaled.constant(may.astype(dtype))


def _success(end: States, exists: jax.Array) -> Scaled:
    """The probability [B] of all labels in the states after the last frame."""
    last = jnp.sum(exists, axis=1, keepdims=True) - 1
    at_last = jax.tree.map(
        lambda a: jnp.take_along_axis(a, last, axis=1, mode="promise_in_bounds")[:, 0], end
    )
    return scaled.total(*at_last)


def _by_class(occupation: jax.Array, symbols: jax.Array, probs: jax.Array) -> jax.Array:
    """The occupation of the symbols as one of the classes [B, T, K]."""
    rows = jnp.zeros((len(symbols), probs.shape[-1], probs.shape[1]), probs.dtype)
    batch = jnp.arange(len(symbols), dtype=symbols.dtype)[:, None]
    shares = jnp.moveaxis(occupation, 0, -1)
    return rows.at[batch, symbols].add(shares, mode="promise_in_bounds").swapaxes(1, 2)


def _sweeps(by_frame: Frame, symbols, exists) -> tuple[Scaled, jax.Array]:
    """The probability [B] of the labels, and what the frames are, given that, [T, B, N+1].

    The latter are the probabilities of the symbols at each frame; 0 where there is no alignment.
    Only the states at the start of a few frames each are kept: to run through these frames again
    takes less time than to write all of the states to memory and read them.
    """
    size = len(by_frame.counts)
    segments = max(1, -(-size // _SEGMENT))
    length = -(-size // segments)

    def split(array: jax.Array) -> jax.Array:
        padding = [(0, segments * length - size), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, padding).reshape(segments, length, *array.shape[1:])

    def run(states: States, segment: Frame) -> tuple[States, States]:
        return _forward(states, segment, symbols, exists, keep=False)[0], states

    def run_back(ahead: States, inputs: tuple[Frame, States]) -> tuple[States, tuple]:
        segment, start = inputs
        _, after = _forward(start, segment, symbols, exists, keep=True)
        return _backward(ahead, segment, after, symbols, exists)

    # The padding is of frames that do not count.
    by_segment = jax.tree.map(split, by_frame)
    dtype = by_frame.picked.dtype
    end, starts = jax.lax.scan(run, _start(symbols, dtype), by_segment)
    inputs = by_segment, starts
    _, (blank, label) = jax.lax.scan(run_back, _end(exists, dtype), inputs, reverse=True)
    both = jnp.concatenate([blank, label[..., 1:]], axis=-1)
    both = jax.lax.collapse(both, 0, 2)[:size]
    return _success(end, exists), both * reciprocal(jnp.sum(both, axis=-1, keepdims=True))


def _end(exists: jax.Array, dtype) -> States:
    """After the last frame there is success in the last states, as if a blank were to follow."""
    nothing = jnp.zeros((len(exists), exists.shape[1] + 1), dtype)
    return States(scaled.constant(_at_last(exists).astype(dtype)), scaled.constant(nothing))


def _backward(ahead: States, by_frame: Frame, after: States, symbols, exists) -> tuple[States, Any]:
    """The chance of success by way of each symbol at the first frame, and what the frames are.

    Args:
        ahead: that chance at the frame that follows the last of these. The labels [B, N+2] stand
            between two dead states.
        by_frame: frames.
        after: the states after each.
        symbols: [B, N+1].
        exists: [B, N+1].
    """
    leap = _leap(symbols, by_frame.picked.dtype)

    def step(ahead: States, inputs: tuple[Frame, States]) -> tuple[States, tuple]:
        """From what the next frame that counts may be, and success from there, to this frame."""
        frame, states = inputs
        stay, move = _columns(ahead.label, 0, -1), _columns(ahead.label, 1, None)
        success = States(
            scaled.total(ahead.blank, move),
            scaled.total(ahead.blank, stay, scaled.product(move, leap)),
        )
        label = scaled.product(_columns(success.label, 1, None), _label_chance(frame, exists))
        blank = scaled.product(success.blank, frame.blank)
        blank = _where(frame.counts, blank, ahead.blank)
        label = _where(frame.counts, label, _columns(stay, 1, None))
        moved = States(blank, jax.tree.map(_between, ahead.label, label))
        return moved, _occupied(states, success)

    return jax.lax.scan(step, ahead, (by_frame, after), reverse=True)


def _occupied(states: States, success: States) -> tuple[jax.Array, jax.Array]:
    """In common units, the chance of any blank [B, 1] and of each label [B, N+1] at a frame."""
    blank, label = (scaled.product(a, b) for a, b in zip(states, success, strict=True))
    top = jnp.maximum(blank.exponent, label.exponent).max(axis=1, keepdims=True)
    blank, label = (each.mantissa * scaled.power(each.exponent - top) for each in (blank, label))
    return jnp.sum(blank, axis=1, keepdims=True), label


# --- sequences that are more likely right than wrong ----------------------------------------------


def _sure_loss(probs, frames, symbols, exists, loss) -> jax.Array:
    """The loss from what the probability is short of 1; other sequences keep the loss they have."""
    sure = _is_sure(loss)
    short = jnp.where(sure, _shortfall(probs, frames, symbols, exists), 0.0)
    return jnp.where(sure, -log1p(-short), loss)


def _shortfall(probs, frames, symbols, exists) -> jax.Array:
    """The probability [B] that the frames do not spell the labels, as a sum of such chances.

    These chances are that a frame is a class that no alignment has there, and that the frames end
    before the labels do. In no more than the range of the dtype: what is lost is tiny.
    """
    # As rows, for which the way back, a scatter, is several times as fast.
    rows = probs.swapaxes(1, 2)
    emissions = jnp.take_along_axis(rows, symbols[..., None], axis=1, mode="promise_in_bounds")
    emissions = jnp.where(exists[..., None], emissions, 0.0)
    may_jump = (symbols[:, 1:] != symbols[:, :-1]).astype(probs.dtype)

    def step(states: States, frame) -> tuple[States, States]:
        emission, counts = frame
        blank, label = states
        to_label = label[:, 1:] + blank[:, :-1] + may_jump * label[:, :-1]
        to_label = jnp.where(counts, to_label * emission[:, 1:], label[:, 1:])
        to_blank = jnp.where(counts, (blank + label) * emission[:, :1], blank)
        return States(to_blank, _behind(label, to_label)), states

    nothing = jnp.zeros(symbols.shape, probs.dtype)
    start = States(nothing.at[:, 0].set(1.0), nothing)
    by_frame = jnp.moveaxis(emissions, -1, 0), frames.T[..., None]
    end, before = jax.lax.scan(step, start, by_frame)
    unfinished = jnp.sum(jnp.where(_at_last(exists), 0.0, end.blank + end.label), axis=1)
    leaving = sum(
        jnp.einsum("tbn,bnk->btk", states, wrong, precision="highest")
        for states, wrong in zip(before, _wrong(probs, symbols, exists), strict=True)
    )
    return unfinished + jnp.sum(jnp.where(frames[..., None], probs * leaving, 0.0), axis=(1, 2))


def _wrong(probs: jax.Array, symbols: jax.Array, exists: jax.Array) -> States:
    """1 [B, N+1, K] for each class that is wrong in a state, else 0."""
    classes = jnp.arange(probs.shape[-1], dtype=symbols.dtype)
    own = (symbols[..., None] == classes[None, None]) & exists[..., None]
    following = jnp.pad(own[:, 1:], ((0, 0), (0, 1), (0, 0)))
    right = own[:, :1] | following
    return States((~right).astype(probs.dtype), (~(right | own)).astype(probs.dtype))


# --- small parts ----------------------------------------------------------------------------------


def _at_last(exists: jax.Array) -> jax.Array:
    """Where the last label is, or the first column if there is none."""
    return exists & ~jnp.pad(exists[:, 1:], ((0, 0), (0, 1)))


def _columns(numbers: Scaled, start: int, stop: int | None) -> Scaled:
    return Scaled(numbers.mantissa[:, start:stop], numbers.exponent[:, start:stop])


def _behind(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new labels behind the dead state, as it was."""
    return jnp.concatenate([old[:, :1], new], axis=1)


def _between(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new labels between the dead columns, as they were."""
    return jnp.concatenate([old[:, :1], new, old[:, -1:]], axis=1)


def _where(counts: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)
