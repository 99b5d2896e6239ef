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

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._numerics import scaled
from jaxent._numerics.ground import reciprocal
from jaxent._numerics.scaled import Scaled
from jaxent._numerics.softmax import curvature, softmax, top_and_shift


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
    end, _ = forward(x, frames, symbols, exists)
    loss = scaled.minus_log(_success(end, exists))
    return _with_sure(
        loss, lambda: _sure_loss(softmax(x), frames, symbols, exists, loss), lambda: loss
    )


def ctc_with_forward(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The losses of `ctc`, and the log-probabilities of the states after each frame.

    They are [T, B, N+1] of blanks and [T, B, N] of labels; the last of the former are of both.
    """
    end, before = forward(x, frames, symbols, exists)
    last = States(scaled.normalized(*scaled.total(*end)), end.label)
    blank, label = (
        # A logarithm may round to more than that of 1.
        jnp.concatenate([log - jax.lax.stop_gradient(jnp.maximum(log, 0.0)) for log in logs])[1:]
        for logs in (
            (-scaled.minus_log(earlier), -scaled.minus_log(final)[None])
            for earlier, final in zip(before, last, strict=True)
        )
    )
    return ctc(x, frames, symbols, exists), blank, label[..., 1:]


@ctc.defjvp
def _ctc_jvp(primals, tangents):
    loss, slope = _loss_and_slope(*primals)
    return loss, jnp.sum(slope * tangents[0], axis=(1, 2))


def _loss_and_slope(x, frames, symbols, exists) -> tuple[jax.Array, jax.Array]:
    """The loss and its gradient [B, T, K], both of which may be differentiated further."""
    end, before = forward(x, frames, symbols, exists)
    loss = scaled.minus_log(_success(end, exists))

    def ordinary():
        return loss, _slope(softmax(x), end, before, frames, symbols, exists)

    def sure():
        probs = softmax(x)
        better, pull = jax.vjp(
            lambda probs: _sure_loss(probs, frames, symbols, exists, loss), probs
        )
        slope = curvature(probs, pull(jnp.ones_like(loss))[0])
        plain = _slope(probs, end, before, frames, symbols, exists)
        return better, jnp.where(_is_sure(loss)[:, None, None], slope, plain)

    return _with_sure(loss, sure, ordinary)


def _is_sure(loss: jax.Array) -> jax.Array:
    return loss < 0.6931


def _with_sure(loss: jax.Array, sure, ordinary):
    """The result of `sure` if any sequence is more likely right than wrong, else `ordinary`."""
    return jax.lax.cond(jnp.any(_is_sure(loss)), sure, ordinary)


# --- the sweeps -----------------------------------------------------------------------------------


def forward(x, frames, symbols, exists) -> tuple[States, States]:
    """The chance of every state after the last frame [B, N+1], and before each [T, B, N+1]."""
    jump = _jump(symbols, x.dtype)

    def step(states: States, frame) -> tuple[States, States]:
        emission, counts = frame
        to_blank, to_label = _arrivals(states, jump)
        blank = scaled.product(scaled.total(*to_blank), _columns(emission, 0, 1))
        label = scaled.product(scaled.total(*to_label), _columns(emission, 1, None))
        moved = States(blank, jax.tree.map(_behind, states.label, label))
        return _where(counts, moved, states), states

    emissions = _emissions(x, symbols, exists)
    return jax.lax.scan(step, _start(symbols, x.dtype), (emissions, _by_frame(frames)))


def _start(symbols: jax.Array, dtype) -> States:
    """Certainly no label and no frame."""
    nothing = jnp.zeros(symbols.shape, dtype)
    return States(scaled.constant(nothing.at[:, 0].set(1.0)), scaled.constant(nothing))


def _emissions(x: jax.Array, symbols: jax.Array, exists: jax.Array) -> Scaled:
    """The probability [T, B, N+1] of each of the symbols at each frame."""
    _, shift = top_and_shift(x)
    normalizer = jnp.sum(jnp.exp(x - shift[..., None]), axis=-1)
    picked = jnp.where(exists[..., None], _picked(x, symbols), -jnp.inf)
    return scaled.ratio(jnp.moveaxis(picked, -1, 0), _by_frame(shift), _by_frame(normalizer))


def _picked(x: jax.Array, symbols: jax.Array) -> jax.Array:
    """The entries [B, N+1, T] of the symbols, which are gathered as rows."""
    rows = x.swapaxes(1, 2)
    return jnp.take_along_axis(rows, symbols[..., None], axis=1, mode="promise_in_bounds")


def _jump(symbols: jax.Array, dtype) -> jax.Array:
    """An exponent [B, N] that forbids the way from a label to the next if they are the same."""
    return jnp.where(symbols[:, 1:] == symbols[:, :-1], scaled.lowest(dtype), 0.0).astype(dtype)


def _arrivals(states: States, jump: jax.Array) -> tuple[list[Scaled], list[Scaled]]:
    """The states from which a frame leads to each blank [B, N+1] and to each label [B, N].

    A blank follows itself or its label; a label follows itself, the blank before it, or the label
    before it if that is another one.
    """
    blank, label = states
    past = _columns(label, 0, -1)
    past = Scaled(past.mantissa, past.exponent + jump)
    return [blank, label], [_columns(label, 1, None), _columns(blank, 0, -1), past]


def _success(end: States, exists: jax.Array) -> Scaled:
    """The probability [B] of all labels in the states after the last frame."""
    last = jnp.sum(exists, axis=1, keepdims=True) - 1
    at_last = jax.tree.map(
        lambda a: jnp.take_along_axis(a, last, axis=1, mode="promise_in_bounds")[:, 0], end
    )
    return scaled.normalized(*scaled.total(*at_last))


def _slope(probs, end, before, frames, symbols, exists) -> jax.Array:
    """The gradient [B, T, K]: the probabilities minus the occupation of the classes.

    The entry of a class with p > 1/2 is minus the sum of the others. Where there is no alignment
    there is no gradient.
    """
    shares = jnp.moveaxis(_occupation(end, before, frames, symbols, exists), 0, -1)
    occupied = jnp.zeros(probs.swapaxes(1, 2).shape, probs.dtype)
    batch = jnp.arange(len(symbols), dtype=symbols.dtype)[:, None]
    occupied = occupied.at[batch, symbols].add(shares, mode="promise_in_bounds").swapaxes(1, 2)
    heavy = probs > 0.5
    impossible = (_success(end, exists).mantissa == 0.0)[:, None, None]
    light = jnp.where(heavy, 0.0, jnp.where(impossible, 0.0, probs) - occupied)
    return light - jnp.where(heavy, jnp.sum(light, axis=-1, keepdims=True), 0.0)


def _occupation(end: States, before: States, frames, symbols, exists) -> jax.Array:
    """The probability [T, B, N+1], given the labels, that a frame is each of the symbols.

    Where there is no alignment it is 0.
    """
    jump = _jump(symbols, end.blank.mantissa.dtype)

    def step(after: States, frame) -> tuple[States, jax.Array]:
        states, counts = frame
        to_blank, to_label = _arrivals(states, jump)
        again, left = _shared(after.blank, to_blank)
        stay, begin, leap = _shared(after.label[:, 1:], to_label)
        zero = jnp.zeros_like(left[:, :1])
        blank = again + jnp.concatenate([begin, zero], axis=1)
        label = left + jnp.concatenate([zero, stay], axis=1) + jnp.concatenate([leap, zero], axis=1)
        spent = jnp.sum(after.blank, axis=1, keepdims=True)
        occupied = jnp.concatenate([spent, after.label[:, 1:]], axis=1)
        return _where(counts, States(blank, label), after), occupied

    last = exists & ~jnp.pad(exists[:, 1:], ((0, 0), (0, 1)))
    at_end = States(*_shared(last.astype(jump.dtype), list(end)))
    return jax.lax.scan(step, at_end, (before, _by_frame(frames)), reverse=True)[1]


def _shared(share: jax.Array, ways: list[Scaled]) -> list[jax.Array]:
    """A share split among the ways that lead to it, by their weight."""
    weight = scaled.total(*ways)
    rate, exponent = jax.lax.optimization_barrier(
        (share * reciprocal(weight.mantissa), weight.exponent)
    )
    return [rate * (way.mantissa * scaled.power(way.exponent - exponent)) for way in ways]


# --- sequences that are more likely right than wrong ----------------------------------------------


def _sure_loss(probs, frames, symbols, exists, loss) -> jax.Array:
    """The loss from what the probability is short of 1; other sequences keep the loss they have."""
    sure = _is_sure(loss)
    short = jnp.where(sure, _shortfall(probs, frames, symbols, exists), 0.0)
    return jnp.where(sure, -jnp.log1p(-short), loss)


def _shortfall(probs, frames, symbols, exists) -> jax.Array:
    """The probability [B] that the frames do not spell the labels, as a sum of such chances.

    These chances are that a frame is a class that no alignment has there, and that the frames end
    before the labels do. In no more than the range of the dtype: what is lost is tiny.
    """
    emissions = jnp.where(exists[..., None], _picked(probs, symbols), 0.0)
    may_jump = (symbols[:, 1:] != symbols[:, :-1]).astype(probs.dtype)

    def step(states: States, frame) -> tuple[States, States]:
        emission, counts = frame
        blank, label = states
        to_label = label[:, 1:] + blank[:, :-1] + may_jump * label[:, :-1]
        moved = States(
            (blank + label) * emission[:, :1], _behind(label, to_label * emission[:, 1:])
        )
        return _where(counts, moved, states), states

    nothing = jnp.zeros(symbols.shape, probs.dtype)
    start = States(nothing.at[:, 0].set(1.0), nothing)
    by_frame = jnp.moveaxis(emissions, -1, 0), _by_frame(frames)
    end, before = jax.lax.scan(step, start, by_frame)
    last = exists & ~jnp.pad(exists[:, 1:], ((0, 0), (0, 1)))
    unfinished = jnp.sum(jnp.where(last, 0.0, end.blank + end.label), axis=1)
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


def _by_frame(array: jax.Array) -> jax.Array:
    """[B, T] as [T, B, 1]."""
    return array.T[..., None]


def _columns(numbers: Scaled, start: int, stop: int | None) -> Scaled:
    return Scaled(numbers.mantissa[:, start:stop], numbers.exponent[:, start:stop])


def _behind(old: jax.Array, new: jax.Array) -> jax.Array:
    """The new labels behind the dead state, as it was."""
    return jnp.concatenate([old[:, :1], new], axis=1)


def _where(counts: jax.Array, new: States, old: States) -> States:
    return jax.tree.map(lambda a, b: jnp.where(counts, a, b), new, old)
