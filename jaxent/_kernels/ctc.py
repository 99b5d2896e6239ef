"""Connectionist temporal classification: all alignments of a short sequence with a long one.

The states are those of Graves et al.: n labels are there and the last frame was a blank, or the
last frame was the n-th label. Both kinds are arrays [B, N+1], with a dead state in place of the
label before the first. The columns of `symbols` [B, N+1] go with them: first the blank, then the
labels in their order.

The chance of each state is a number of any size (`scaled`), so that a sweep over the frames
multiplies and adds and nothing else. Two sweeps meet in the middle, from the front and from the
back: the same recursion with the frames and the labels reversed, and so one of twice as many
sequences and half as many steps. The gradient is the occupation of the symbols at each frame: each
sweep goes back over its states with what the other has brought to the middle.

Where a sequence is more likely right than wrong, what it is short of certainty is summed up, loss
by loss, as the path leaves the alignments that are allowed: `1 - P` would lose it.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float import scaled
from jaxent._float.scaled import Scaled
from jaxent._float.sums import safe_reciprocal
from jaxent._kernels.softmax import fold_into_pivot, max_and_shift, softmax

# Frames that are dealt with together. Of the states [T, B, N+1] only those at the start of such a
# segment are kept: to run through it again takes less time than to write them all to memory.
_SEGMENT = 8


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
    probability, _ = _to_the_middle(*_two_ways(x, frames, symbols, exists)[2:])
    loss = scaled.minus_log(probability)
    return _with_sure(
        loss, lambda: _sure_loss(softmax(x), frames, symbols, exists, loss), lambda: loss
    )


def ctc_with_forward(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The losses of `ctc`, and the log-probabilities of the states after each frame.

    They are [T, B, N+1] of blanks and [T, B, N] of labels; the last of the former are of both.
    """
    batch, length = frames.shape
    place = jnp.arange(length)[:, None] + length * jnp.arange(batch)[None]
    by_frame = _by_frame(x, place, frames.T, symbols)
    labels = _labels(symbols, exists, jnp.zeros(batch, symbols.dtype), x.dtype)
    chance = _label_chance(by_frame, labels)
    end, after = _forward(labels.start, by_frame, chance, labels, keep=True)
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
    place, both, by_segment, labels = _two_ways(x, frames, symbols, exists)
    probability, occupation = _sweeps(by_segment, labels)
    loss = scaled.minus_log(probability)

    def ordinary():
        return loss, _by_class(occupation, place, both, x.shape)

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
    return loss, fold_into_pivot(light, probs > 0.5)


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


class Labels(NamedTuple):
    """What the sweeps need of the labels."""

    exists: jax.Array  # [B, N] booleans
    leap: Scaled  # [B, N+1]: 1 where a label may be followed by the next at once, else 0
    start: States  # [B, N+1]: before the first frame there is certainly no label


def _labels(symbols: jax.Array, exists: jax.Array, first: jax.Array, dtype) -> Labels:
    """Of symbols and which of them exist [B, N+1], with the start [B] in some column."""
    start = (jnp.arange(symbols.shape[1])[None] == first[:, None]).astype(dtype)
    start = States(scaled.constant(start), scaled.constant(jnp.zeros_like(start)))
    leap = jnp.pad(symbols[:, 1:] != symbols[:, :-1], ((0, 0), (0, 1))).astype(dtype)
    return Labels(exists[:, 1:], scaled.constant(leap), start)


def _by_frame(x: jax.Array, place: jax.Array, counts: jax.Array, symbols: jax.Array) -> Frame:
    """The frames at the places [T', B'] of all [B T], which count or not [T', B']."""
    _, shift = max_and_shift(x)
    scale = scaled.reciprocal(jnp.sum(jnp.exp(x - shift[..., None]), axis=-1))
    x, shift, scale = jax.tree.map(lambda a: jax.lax.collapse(a, 0, 2), (x, shift, scale))

    def at(array: jax.Array, *indices: jax.Array) -> jax.Array:
        return array.at[place[..., None], *indices].get(mode="promise_in_bounds")

    shift, scale = jax.tree.map(at, (shift, scale))
    blank = scaled.exponential(at(x, symbols[:, :1]), shift)
    picked = at(x, symbols[:, 1:])
    return Frame(counts[..., None], picked, shift, scale, scaled.product(blank, scale))


def _label_chance(frames: Frame, labels: Labels) -> Scaled:
    """The probability [T, B, N] of each label."""
    picked = jnp.where(labels.exists, frames.picked, -jnp.inf)
    return scaled.product(scaled.exponential(picked, frames.shift), frames.scale)


def _forward(
    start: States, by_frame: Frame, chance: Scaled, labels: Labels, *, keep: bool
) -> tuple[States, Any]:
    """The chance of every state after the frames, and after each [T, B, N+1] if it is to `keep`."""

    def step(states: States, inputs: tuple[Frame, Scaled]) -> tuple[States, Any]:
        frame, chance = inputs
        stay, past = _columns(states.label, 1, None), _columns(states.label, 0, -1)
        past = scaled.product(past, _columns(labels.leap, 0, -1))
        label = scaled.total(stay, _columns(states.blank, 0, -1), past)
        label = scaled.product(label, chance)
        blank = scaled.product(scaled.total(*states), frame.blank)
        blank = _where(frame.counts, blank, states.blank)
        label = _where(frame.counts, label, stay)
        moved = States(blank, jax.tree.map(_behind, states.label, label))
        return moved, moved if keep else None

    return jax.lax.scan(step, start, (by_frame, chance))


def _two_ways(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array, Frame, Labels]:
    """Two sequences of half the length of each: to the middle from the front, and from the back.

    Returns:
        The places [T', 2B] of their frames in [B T], where those that fill the last segments have
        the first place behind them all; the symbols [2B, N+1]; what is needed of the frames, in
        segments [S, T' / S, 2B, .], since what is of use for a segment only stays in the cache;
        and what is needed of the labels.
    """
    batch, length = frames.shape
    segments = max(1, -(-length // (2 * _SEGMENT)))
    half = -(-length // (2 * segments)) * segments
    time = jnp.arange(half)[:, None]
    row = length * jnp.arange(batch)[None]
    place = jnp.concatenate(
        [jnp.where(at < length, row + at, batch * length) for at in (time, 2 * half - 1 - time)],
        axis=1,
    )
    existing = jnp.minimum(place, batch * length - 1)
    counts = frames.reshape(-1).at[existing].get(mode="promise_in_bounds") & (place == existing)
    first = jnp.sum(~exists, axis=1)
    symbols, exists = (
        jnp.concatenate([a, jnp.concatenate([a[:, :1], a[:, :0:-1]], axis=1)])
        for a in (symbols, exists)
    )
    labels = _labels(symbols, exists, jnp.concatenate([jnp.zeros_like(first), first]), x.dtype)
    by_frame = _by_frame(x, existing, counts, symbols)
    by_frame = jax.tree.map(lambda a: a.reshape(segments, half // segments, *a.shape[1:]), by_frame)
    return place, symbols, by_frame, labels


def _to_the_middle(by_segment: Frame, labels: Labels) -> tuple[Scaled, tuple[States, Any]]:
    """The probability [B] of the labels; what is ahead of the middle; states before segments."""

    def run(states: States, segment: Frame) -> tuple[States, States]:
        chance = _label_chance(segment, labels)
        end, _ = _forward(states, segment, chance, labels, keep=False)
        return end, states

    middle, kept = jax.lax.scan(run, labels.start, by_segment)
    # What the other way has come from is ahead of each.
    other = jax.tree.map(lambda a: jnp.roll(a[:, ::-1], len(a) // 2, axis=0), middle)
    dead = _columns(middle.label, 0, 1)
    ahead = other._replace(label=_joined(dead, other.label))
    success = _success(ahead, labels.leap)
    by_state = (
        scaled.product(*(jax.tree.map(lambda a: a[: len(a) // 2], each) for each in pair))
        for pair in zip(middle, success, strict=True)
    )
    probability = scaled.sum_of(scaled.total(*by_state))
    return probability, (ahead, kept)


def _sweeps(by_segment: Frame, labels: Labels) -> tuple[Scaled, jax.Array]:
    """The probability [B] of the labels, and what the frames are, given that, [T', 2B, N+1].

    The latter are the probabilities of the symbols at each frame; 0 where there is no alignment.
    """
    probability, (ahead, kept) = _to_the_middle(by_segment, labels)
    twice = jax.tree.map(lambda a: jnp.tile(a, 2), probability)

    def run_back(ahead: States, inputs: tuple[Frame, States]) -> tuple[States, jax.Array]:
        segment, before = inputs
        chance = _label_chance(segment, labels)
        _, after = _forward(before, segment, chance, labels, keep=True)
        ahead, aheads = _backward(ahead, segment, chance, labels)
        return ahead, _occupied(after, aheads, States(segment.blank, chance), twice)

    _, occupied = jax.lax.scan(run_back, ahead, (by_segment, kept), reverse=True)
    return probability, jax.lax.collapse(occupied, 0, 2)


def _backward(
    ahead: States, by_frame: Frame, chance: Scaled, labels: Labels
) -> tuple[States, States]:
    """The chance of success by way of each symbol, at the first frame and at what follows each.

    Args:
        ahead: that chance at the frame that follows the last of these. The labels [B, N+2] stand
            between two dead states.
        by_frame: frames.
        chance: the probabilities of the labels at each.
        labels: labels.
    """

    def step(ahead: States, inputs: tuple[Frame, Scaled]) -> tuple[States, States]:
        frame, chance = inputs
        success = _success(ahead, labels.leap)
        label = scaled.product(_columns(success.label, 1, None), chance)
        blank = scaled.product(success.blank, frame.blank)
        blank = _where(frame.counts, blank, ahead.blank)
        label = _where(frame.counts, label, _columns(ahead.label, 1, -1))
        moved = States(blank, jax.tree.map(_between, ahead.label, label))
        return moved, moved

    return jax.lax.scan(step, ahead, (by_frame, chance), reverse=True)


def _success(ahead: States, leap: Scaled) -> States:
    """The chance of success from each state [..., B, N+1], by way of what the next frame may be."""
    stay, move = _columns(ahead.label, 0, -1), _columns(ahead.label, 1, None)
    leap = jax.tree.map(lambda a: jnp.broadcast_to(a, move.mantissa.shape), leap)
    return States(
        scaled.total(ahead.blank, move),
        scaled.total(ahead.blank, stay, scaled.product(move, leap)),
    )


def _by_class(occupation: jax.Array, place, symbols, shape) -> jax.Array:
    """The occupation of the symbols [T', 2B, N+1] as one of the classes, of the shape [B, T, K].

    On a CPU a product with one-hot rows is faster than a scatter while there are few classes.
    """
    batch, frames, classes = shape
    if classes <= 512:
        one_hot = jax.nn.one_hot(symbols, classes, dtype=occupation.dtype)
        by_class = jnp.einsum("tbn,bnk->btk", occupation, one_hot, precision="highest")
        by_class = jnp.concatenate([by_class[:batch], by_class[batch:, ::-1]], axis=1)
        return by_class[:, :frames]
    flat = jnp.zeros((frames * batch, classes), occupation.dtype)
    added = flat.at[place[..., None], symbols].add(occupation, mode="drop")
    return added.reshape(shape)


def _occupied(after: States, ahead: States, chances: States, probability: Scaled) -> jax.Array:
    """What the frames are, given the labels: the probability [..., B, N+1] of each symbol.

    Args:
        after: states, the chance of the frame in them.
        ahead: success by way of them, the chance of the frame in it as well.
        chances: of the symbols in each frame.
        probability: of the labels.
    """
    labels = _columns(after.label, 1, None), _columns(ahead.label, 1, -1)
    blank, label = (
        scaled.quotient(scaled.product(*both), chance)
        for both, chance in zip(((after.blank, ahead.blank), labels), chances, strict=True)
    )

    def largest() -> jax.Array:
        tops = (
            jnp.max(each.exponent, axis=-1, keepdims=True, initial=low) for each in (blank, label)
        )
        return functools.reduce(jnp.maximum, tops)

    # At every frame the sum over the states is the probability of the labels: a unit to measure
    # them by, but for exponents so large that they are rounded.
    low = scaled.lowest(blank.exponent.dtype)
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
    blanks, labels = (
        jnp.matmul(each, jnp.ones((each.shape[-1], 1), each.dtype), precision="highest")
        for each in (by_blank, by_label)
    )
    return jnp.concatenate([blanks, by_label], axis=-1) * safe_reciprocal(blanks + labels)


def _split(by_frame: Any) -> Any:
    """Arrays [T, ...] in segments [T / 16, 16, ...], padded by frames that do not count."""

    def split(array: jax.Array) -> jax.Array:
        segments = max(1, -(-len(array) // (2 * _SEGMENT)))
        length = -(-len(array) // segments)
        padding = [(0, segments * length - len(array)), *[(0, 0)] * (array.ndim - 1)]
        return jnp.pad(array, padding).reshape(segments, length, *array.shape[1:])

    return jax.tree.map(split, by_frame)


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


def _joined(a: Scaled, b: Scaled) -> Scaled:
    return jax.tree.map(lambda *both: jnp.concatenate(both, axis=-1), a, b)


def _between(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new labels between the dead columns, as they were."""
    return jnp.concatenate([old[:, :1], new, old[:, -1:]], axis=1)


def _where(counts: jax.Array, new: Any, old: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)
