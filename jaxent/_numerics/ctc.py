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

# Frames that are dealt with together. Of many states [T, B, N+1] only those at the start of such a
# segment are kept: to run through it again takes less time than to write them all to memory.
_SEGMENT = 16
_FEW = 2**19


class States(NamedTuple):
    """A chance for each state, [..., B, N+1] each."""

    blank: Scaled
    label: Scaled


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
    end, _ = _run(_split(_by_frame(x, frames, symbols)), symbols, exists, keep=False)
    loss = scaled.minus_log(_probability(end, exists))
    return _with_sure(
        loss, lambda: _sure_loss(softmax(x), frames, symbols, exists, loss), lambda: loss
    )


def ctc_with_forward(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The losses of `ctc`, and the log-probabilities of the states after each frame.

    They are [T, B, N+1] of blanks and [T, B, N] of labels; the last of the former are of both.
    """
    by_frame = _by_frame(x, frames, symbols)
    chance = _label_chance(by_frame, exists)
    end, after = _forward(_start(symbols, x.dtype), by_frame, chance, symbols, keep=True)
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
    probability, occupation = _sweeps(_by_frame(x, frames, symbols), symbols, exists)
    loss = scaled.minus_log(probability)

    def ordinary():
        return loss, _by_class(occupation, symbols, x.shape[-1])

    def sure():
        # Once more, or the compiler would store what it can fuse where there is no need of it.
        probs = softmax(x)
        better, pull = jax.vjp(
            lambda probs: _sure_loss(probs, frames, symbols, exists, loss), probs
        )
        (rejected,) = pull(jnp.ones_like(loss))
        mean = jnp.sum(probs * rejected, axis=-1, keepdims=True)
        return better, jnp.where(is_sure, probs * (rejected - mean), ordinary()[1])

    is_sure = _is_sure(loss)[:, None, None]
    probs = softmax(x)
    loss, light = _with_sure(loss, sure, ordinary)
    light = jnp.where(is_sure, light, probs - light)
    light = jnp.where((loss == jnp.inf)[:, None, None], 0.0, light)
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


def _label_chance(frames: Frame, exists: jax.Array) -> Scaled:
    """The probability [T, B, N] of each label."""
    picked = jnp.where(exists[None, :, 1:], frames.picked, -jnp.inf)
    return scaled.product(scaled.exponential(picked, frames.shift), frames.scale)


def _start(symbols: jax.Array, dtype) -> States:
    """Before the first frame there is certainly no label."""
    nothing = jnp.zeros(symbols.shape, dtype)
    return States(scaled.constant(nothing.at[:, 0].set(1.0)), scaled.constant(nothing))


def _forward(
    start: States, by_frame: Frame, chance: Scaled, symbols, *, keep: bool
) -> tuple[States, Any]:
    """The chance of every state after the frames, and after each [T, B, N+1] if it is to `keep`."""
    leap = _columns(_leap(symbols, by_frame.picked.dtype), 0, -1)

    def step(states: States, inputs: tuple[Frame, Scaled]) -> tuple[States, Any]:
        frame, chance = inputs
        stay, past = _columns(states.label, 1, None), _columns(states.label, 0, -1)
        label = scaled.total(stay, _columns(states.blank, 0, -1), scaled.product(past, leap))
        label = scaled.product(label, chance)
        blank = scaled.product(scaled.total(*states), frame.blank)
        blank = _where(frame.counts, blank, states.blank)
        label = _where(frame.counts, label, stay)
        moved = States(blank, jax.tree.map(_behind, states.label, label))
        return moved, moved if keep else None

    return jax.lax.scan(step, start, (by_frame, chance))


def _leap(symbols: jax.Array, dtype) -> Scaled:
    """1 [B, N+1] where a label may be followed by the next at once, 0 where that is the same."""
    may = jnp.pad(symbols[:, 1:] != symbols[:, :-1], ((0, 0), (0, 1)))
    return scaled.constant(may.astype(dtype))


def _probability(end: States, exists: jax.Array) -> Scaled:
    """The probability [B] of all labels in the states after the last frame."""
    last = jnp.sum(exists, axis=1, keepdims=True) - 1
    at_last = jax.tree.map(
        lambda a: jnp.take_along_axis(a, last, axis=1, mode="promise_in_bounds")[:, 0], end
    )
    return scaled.total(*at_last)


def _by_class(occupation: jax.Array, symbols: jax.Array, classes: int) -> jax.Array:
    """The occupation of the symbols as one of the classes [B, T, K].

    On a CPU a product with one-hot rows is faster than a scatter while there are few classes.
    """
    if classes <= 512:
        one_hot = jax.nn.one_hot(symbols, classes, dtype=occupation.dtype)
        return jnp.einsum("tbn,bnk->btk", occupation, one_hot, precision="highest")
    frames, batch, _ = occupation.shape
    rows = jnp.arange(frames * batch, dtype=symbols.dtype).reshape(batch, frames)[..., None]
    places = jnp.broadcast_to(symbols[:, None], (batch, frames, symbols.shape[1]))
    flat = jnp.zeros((frames * batch, classes), occupation.dtype)
    added = flat.at[rows, places].add(occupation.swapaxes(0, 1), mode="promise_in_bounds")
    return added.reshape(batch, frames, classes)


def _sweeps(by_frame: Frame, symbols, exists) -> tuple[Scaled, jax.Array]:
    """The probability [B] of the labels, and what the frames are, given that, [T, B, N+1].

    The latter are the probabilities of the symbols at each frame; 0 where there is no alignment.
    """
    dtype = by_frame.picked.dtype
    leap = _leap(symbols, dtype)
    by_segment = _split(by_frame)
    keep = by_frame.picked.size <= _FEW
    end, kept = _run(by_segment, symbols, exists, keep=keep)
    probability = _probability(end, exists)

    def run_back(ahead: States, inputs: tuple[Frame, States]) -> tuple[States, jax.Array]:
        segment, after = inputs
        chance = _label_chance(segment, exists)
        if not keep:
            _, after = _forward(after, segment, chance, symbols, keep=True)
        before, aheads = _backward(ahead, segment, chance, symbols)
        return before, _occupied(after, _success(aheads, leap), probability)

    inputs = by_segment, kept
    _, occupied = jax.lax.scan(run_back, _end(exists, dtype), inputs, reverse=True)
    return probability, jax.lax.collapse(occupied, 0, 2)[: len(by_frame.counts)]


def _split(by_frame: Any) -> Any:
    """Arrays [T, ...] in segments [T / 16, 16, ...], padded by frames that do not count.

    What is of use for a segment only stays in the cache.
    """

    def split(array: jax.Array) -> jax.Array:
        segments = max(1, -(-len(array) // _SEGMENT))
        length = -(-len(array) // segments)
        padding = [(0, segments * length - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, padding).reshape(segments, length, *array.shape[1:])

    return jax.tree.map(split, by_frame)


def _run(by_segment: Frame, symbols, exists, *, keep: bool) -> tuple[States, States]:
    """The chance of every state after the last frame, and after each or before each segment."""

    def run(states: States, segment: Frame) -> tuple[States, States]:
        chance = _label_chance(segment, exists)
        end, after = _forward(states, segment, chance, symbols, keep=keep)
        return end, after if keep else states

    return jax.lax.scan(run, _start(symbols, by_segment.picked.dtype), by_segment)


def _end(exists: jax.Array, dtype) -> States:
    """After the last frame there is success in the last states, as if a blank were to follow."""
    nothing = jnp.zeros((len(exists), exists.shape[1] + 1), dtype)
    return States(scaled.constant(_at_last(exists).astype(dtype)), scaled.constant(nothing))


def _backward(ahead: States, by_frame: Frame, chance: Scaled, symbols) -> tuple[States, States]:
    """The chance of success by way of each symbol, at the first frame and at what follows each.

    Args:
        ahead: that chance at the frame that follows the last of these. The labels [B, N+2] stand
            between two dead states.
        by_frame: frames.
        chance: the probabilities of the labels at each.
        symbols: [B, N+1].
    """
    leap = _leap(symbols, by_frame.picked.dtype)

    def step(ahead: States, inputs: tuple[Frame, Scaled]) -> tuple[States, States]:
        frame, chance = inputs
        success = _success(ahead, leap)
        label = scaled.product(_columns(success.label, 1, None), chance)
        blank = scaled.product(success.blank, frame.blank)
        blank = _where(frame.counts, blank, ahead.blank)
        label = _where(frame.counts, label, _columns(ahead.label, 1, -1))
        return States(blank, jax.tree.map(_between, ahead.label, label)), ahead

    return jax.lax.scan(step, ahead, (by_frame, chance), reverse=True)


def _success(ahead: States, leap: Scaled) -> States:
    """The chance of success from each state [..., B, N+1], by way of what the next frame may be."""
    stay, move = _columns(ahead.label, 0, -1), _columns(ahead.label, 1, None)
    leap = jax.tree.map(lambda a: jnp.broadcast_to(a, move.mantissa.shape), leap)
    return States(
        scaled.total(ahead.blank, move),
        scaled.total(ahead.blank, stay, scaled.product(move, leap)),
    )


def _occupied(states: States, success: States, probability: Scaled) -> jax.Array:
    """What the frames are, given the labels: the probability [..., B, N+1] of each symbol."""
    blank = scaled.product(states.blank, success.blank)
    label = scaled.product(states.label, success.label)

    def largest() -> jax.Array:
        return jnp.maximum(blank.exponent, label.exponent).max(axis=-1, keepdims=True)

    # At every frame the sum over the states is the probability of the labels: a unit to measure
    # them by, but for exponents so large that they are rounded.
    unit = jnp.where(probability.mantissa == 0.0, 0.0, probability.exponent)[:, None]
    unit = jax.lax.cond(
        jnp.any(jnp.abs(unit) > 2.0**20),
        largest,
        lambda: jnp.broadcast_to(unit, (*blank.exponent.shape[:-1], 1)),
    )
    by_blank, by_label = (
        each.mantissa * scaled.power(each.exponent - unit) for each in (blank, label)
    )
    # As a product, which is faster on a CPU than a sum of terms that are computed on the way.
    ones = jnp.ones((by_blank.shape[-1], 1), by_blank.dtype)
    blanks, labels = (jnp.matmul(each, ones, precision="highest") for each in (by_blank, by_label))
    occupied = jnp.concatenate([blanks, by_label[..., 1:]], axis=-1)
    return occupied * reciprocal(blanks + labels)


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
    classes = jnp.arange(probs.shape[-1], dtype=symbols.dtype)[None, None]
    own = (symbols[..., None] == classes) & exists[..., None]
    following = jnp.pad(own[:, 1:], ((0, 0), (0, 1), (0, 0)))
    right = own[:, :1] | following
    # [B, N+1, K] each: the class of a symbol, and those that are wrong after a blank or a label.
    own, *wrong = (each.astype(probs.dtype) for each in (own, ~right, ~(right | own)))
    may_leap = (symbols[:, 1:] != symbols[:, :-1]).astype(probs.dtype)

    def step(states, frame):
        chance, counts = frame
        blank, label = states
        to_label = label[:, 1:] + blank[:, :-1] + may_leap * label[:, :-1]
        to_label = jnp.where(counts, to_label * chance[:, 1:], label[:, 1:])
        to_blank = jnp.where(counts, (blank + label) * chance[:, :1], blank)
        return (to_blank, _behind(label, to_label)), states

    @jax.checkpoint
    def run(states, segment):
        probs, counts = segment
        # As products, of which the way back is no scatter.
        chance = jnp.einsum("tbk,bnk->tbn", probs, own, precision="highest")
        states, before = jax.lax.scan(step, states, (chance, counts))
        leaving = (
            jnp.einsum("tbn,bnk->tbk", each, unfit, precision="highest")
            for each, unfit in zip(before, wrong, strict=True)
        )
        return states, jnp.sum(jnp.where(counts, probs * sum(leaving), 0.0), axis=(0, 2))

    nothing = jnp.zeros(symbols.shape, probs.dtype)
    start = nothing.at[:, 0].set(1.0), nothing
    by_frame = jnp.moveaxis(probs, 1, 0), frames.T[..., None]
    (blank, label), left = jax.lax.scan(run, start, _split(by_frame))
    return jnp.sum(left, axis=0) + jnp.sum(jnp.where(_at_last(exists), 0.0, blank + label), axis=1)


# --- small parts ----------------------------------------------------------------------------------


def _at_last(exists: jax.Array) -> jax.Array:
    """Where the last label is, or the first column if there is none."""
    return exists & ~jnp.pad(exists[:, 1:], ((0, 0), (0, 1)))


def _columns(numbers: Scaled, start: int, stop: int | None) -> Scaled:
    return Scaled(numbers.mantissa[..., start:stop], numbers.exponent[..., start:stop])


def _behind(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new labels behind the dead state, as it was."""
    return jnp.concatenate([old[:, :1], new], axis=1)


def _between(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new labels between the dead columns, as they were."""
    return jnp.concatenate([old[:, :1], new, old[:, -1:]], axis=1)


def _where(counts: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)
