"""The forward-backward algorithm of connectionist temporal classification (CTC).

The states are those of Graves et al.: n labels are spelled and the last frame was a blank, or it
was the n-th label. Both kinds are arrays [B, N+1]; the state of the label before the first is never
reached. The columns of `symbols` [B, N+1] go with them: the blank, then the labels in their order.

    alpha: the probability of a state after a frame, that frame included
    beta: the probability of spelling the remaining labels from a frame on, if it is a given symbol

Probabilities are `scaled` numbers, so that a sweep only multiplies and adds. Two sweeps meet in the
middle, from the front and from the back. They are the same recursion, on frames and labels in
opposite order, and so run as one, over twice as many sequences and half as many frames.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._float import scaled
from jaxent._float.scaled import Scaled
from jaxent._float.sums import safe_reciprocal
from jaxent._kernels.softmax import max_and_shift

# Frames in a segment. Of the states [T, B, N+1] only those before each segment are kept: on a CPU
# it is faster to run through a segment again than to write all states to memory.
SEGMENT = 8


class States(NamedTuple):
    """A probability for each state, or for each symbol."""

    blank: Scaled  # [..., B, N+1]
    label: Scaled  # [..., B, N+1], in a beta [..., B, N+2] with a column of 0 at both ends


class Frames(NamedTuple):
    """Frames [..., B, .] in the order of a sweep."""

    mask: jax.Array  # [..., B, 1]
    label_logits: jax.Array  # [..., B, N]
    shift: jax.Array  # [..., B, 1], near the largest of all logits
    inverse_sum: Scaled  # [..., B, 1], 1 / (sum of the exponentials of all shifted logits)
    blank_probs: Scaled  # [..., B, 1]


class Labels(NamedTuple):
    """What the sweeps need of the labels."""

    mask: jax.Array  # [B, N]
    skips_blank: Scaled  # [B, N+1]: 1 where the next label differs, so may follow at once; else 0
    initial: States  # [B, N+1]: before the first frame no label is spelled


class Halves(NamedTuple):
    """The two sweeps of each sequence: from the front [B], then from the back [B]."""

    frame_index: jax.Array  # [T', 2B]: which of all [B T] frames, or B * T for padding
    symbols: jax.Array  # [2B, N+1]
    frames: Frames  # [segments, T' / segments, 2B, .]
    labels: Labels


# What the sweeps need.


def prepare_labels(
    symbols: jax.Array, symbol_mask: jax.Array, first: jax.Array, dtype: jnp.dtype
) -> Labels:
    """The labels of symbols [B, N+1] with their mask, and the column [B] to start from."""
    columns = jnp.arange(symbols.shape[1], dtype=first.dtype)
    one_hot = (columns[None] == first[:, None]).astype(dtype)
    initial = States(scaled.as_scaled(one_hot), scaled.as_scaled(jnp.zeros_like(one_hot)))
    differs = jnp.pad(symbols[:, 1:] != symbols[:, :-1], ((0, 0), (0, 1))).astype(dtype)
    return Labels(symbol_mask[:, 1:], scaled.as_scaled(differs), initial)


def gather_frames(
    x: jax.Array, index: jax.Array, frame_mask: jax.Array, symbols: jax.Array
) -> Frames:
    """The frames at the indices [T', B'] into all [B T], with their mask [T', B']."""
    _, shift = max_and_shift(x)
    inverse_sum = scaled.reciprocal(jnp.sum(jnp.exp(x - shift[..., None]), axis=-1))
    x, shift, inverse_sum = jax.tree.map(
        lambda a: jax.lax.collapse(a, 0, 2), (x, shift, inverse_sum)
    )

    def take(array: jax.Array, *columns: jax.Array) -> jax.Array:
        return array.at[index[..., None], *columns].get(mode="promise_in_bounds")

    shift, inverse_sum = jax.tree.map(take, (shift, inverse_sum))
    blank = scaled.exp_diff(take(x, symbols[:, :1]), shift)
    label_logits = take(x, symbols[:, 1:])
    mask = frame_mask[..., None]
    return Frames(mask, label_logits, shift, inverse_sum, scaled.multiply(blank, inverse_sum))


def label_probs(frames: Frames, labels: Labels) -> Scaled:
    """The probability of each label at each frame, [T, B, N]."""
    logits = jnp.where(labels.mask, frames.label_logits, -jnp.inf)
    return scaled.multiply(scaled.exp_diff(logits, frames.shift), frames.inverse_sum)


def split_in_halves(
    x: jax.Array, frame_mask: jax.Array, symbols: jax.Array, symbol_mask: jax.Array
) -> Halves:
    """Two sequences of half the length of each, whose frames are gathered in segments.

    A segment of frames stays in the cache of a CPU while it is of use.
    """
    batch, length = frame_mask.shape
    segments = max(1, -(-length // (2 * SEGMENT)))
    half = -(-length // (2 * segments)) * segments
    time = jnp.arange(half)[:, None]
    row = length * jnp.arange(batch)[None]
    index = jnp.concatenate(
        [jnp.where(at < length, row + at, batch * length) for at in (time, 2 * half - 1 - time)],
        axis=1,
    )
    safe_index = jnp.minimum(index, batch * length - 1)
    mask = frame_mask.reshape(-1).at[safe_index].get(mode="promise_in_bounds")
    mask &= index == safe_index
    first = jnp.sum(~symbol_mask, axis=1)
    symbols, symbol_mask = (
        jnp.concatenate([a, jnp.concatenate([a[:, :1], a[:, :0:-1]], axis=1)])
        for a in (symbols, symbol_mask)
    )
    first = jnp.concatenate([jnp.zeros_like(first), first])
    labels = prepare_labels(symbols, symbol_mask, first, x.dtype)
    frames = gather_frames(x, safe_index, mask, symbols)
    frames = jax.tree.map(lambda a: a.reshape(segments, half // segments, *a.shape[1:]), frames)
    return Halves(index, symbols, frames, labels)


# One sweep.


def forward_end(alpha: States, frames: Frames, probs: Scaled, labels: Labels) -> States:
    """Alpha after all frames.

    Args:
        alpha: before the first frame.
        frames: frames [T, B, .].
        probs: the probabilities of the labels, [T, B, N].
        labels: labels.
    """

    def step(alpha: States, inputs: tuple[Frames, Scaled]) -> tuple[States, None]:
        return _forward_step(alpha, *inputs, labels), None

    return jax.lax.scan(step, alpha, (frames, probs))[0]


def forward_all(
    alpha: States, frames: Frames, probs: Scaled, labels: Labels
) -> tuple[States, States]:
    """Alpha after all frames, and after each of them [T, B, N+1]; arguments as `forward_end`."""

    def step(alpha: States, inputs: tuple[Frames, Scaled]) -> tuple[States, States]:
        alpha = _forward_step(alpha, *inputs, labels)
        return alpha, alpha

    return jax.lax.scan(step, alpha, (frames, probs))


def _forward_step(alpha: States, frame: Frames, probs: Scaled, labels: Labels) -> States:
    stay, previous = columns(alpha.label, 1, None), columns(alpha.label, 0, -1)
    previous = scaled.multiply(previous, columns(labels.skips_blank, 0, -1))
    label = scaled.add(stay, columns(alpha.blank, 0, -1), previous)
    label = scaled.multiply(label, probs)
    blank = scaled.multiply(scaled.add(*alpha), frame.blank_probs)
    blank = _where(frame.mask, blank, alpha.blank)
    label = _where(frame.mask, label, stay)
    return States(blank, jax.tree.map(keep_first_column, alpha.label, label))


def _backward(beta: States, frames: Frames, probs: Scaled, labels: Labels) -> tuple[States, States]:
    """Beta at the first frame, and at the frame that follows each of them [T, B, .].

    Args:
        beta: at the frame that follows the last of these.
        frames: frames [T, B, .].
        probs: the probabilities of the labels, [T, B, N].
        labels: labels.
    """

    def step(beta: States, inputs: tuple[Frames, Scaled]) -> tuple[States, States]:
        frame, probs = inputs
        rest = _rest_probs(beta, labels.skips_blank)
        label = scaled.multiply(columns(rest.label, 1, None), probs)
        blank = scaled.multiply(rest.blank, frame.blank_probs)
        blank = _where(frame.mask, blank, beta.blank)
        label = _where(frame.mask, label, columns(beta.label, 1, -1))
        beta = States(blank, jax.tree.map(_keep_end_columns, beta.label, label))
        return beta, beta

    return jax.lax.scan(step, beta, (frames, probs), reverse=True)


def _rest_probs(beta: States, skips_blank: Scaled) -> States:
    """The probability of spelling the remaining labels from each state, [..., B, N+1].

    Args:
        beta: at the next frame.
        skips_blank: as in `Labels`.
    """
    stay, move = columns(beta.label, 0, -1), columns(beta.label, 1, None)
    skips_blank = jax.tree.map(lambda a: jnp.broadcast_to(a, move.mantissa.shape), skips_blank)
    return States(
        scaled.add(beta.blank, move),
        scaled.add(beta.blank, stay, scaled.multiply(move, skips_blank)),
    )


# Both of them.


class Middle(NamedTuple):
    """Where the sweeps from the front and from the back meet."""

    probability: Scaled  # [B], that the frames spell the labels
    beta: States  # [2B, .], of each sweep: what the other one has brought to the middle
    alphas: States  # [segments, 2B, N+1], before each segment


def meet_in_middle(frames: Frames, labels: Labels) -> Middle:
    """Runs both sweeps to the middle; the frames are in segments."""

    def run(alpha: States, segment: Frames) -> tuple[States, States]:
        probs = label_probs(segment, labels)
        return forward_end(alpha, segment, probs, labels), alpha

    middle, alphas = jax.lax.scan(run, labels.initial, frames)
    # Alpha of one direction is beta of the other, with the columns in opposite order.
    other = jax.tree.map(lambda a: jnp.roll(a[:, ::-1], a.shape[0] // 2, axis=0), middle)
    unreached = columns(middle.label, 0, 1)
    beta = other._replace(label=_concatenate(unreached, other.label))
    rest = _rest_probs(beta, labels.skips_blank)
    by_state = (
        scaled.multiply(*(jax.tree.map(lambda a: a[: a.shape[0] // 2], each) for each in pair))
        for pair in zip(middle, rest, strict=True)
    )
    probability = scaled.sum_last_axis(scaled.add(*by_state))
    return Middle(probability, beta, alphas)


def forward_backward(frames: Frames, labels: Labels) -> tuple[Scaled, jax.Array]:
    """The probability [B] of the labels, and the occupancy [T', 2B, N+1] of their symbols.

    The occupancy is the probability of each symbol at each frame, given that the frames spell the
    labels; 0 where there is no alignment.
    """
    probability, beta, alphas = meet_in_middle(frames, labels)
    of_both = jax.tree.map(lambda a: jnp.tile(a, 2), probability)

    def run_back(beta: States, inputs: tuple[Frames, States]) -> tuple[States, jax.Array]:
        segment, alpha = inputs
        probs = label_probs(segment, labels)
        _, alphas = forward_all(alpha, segment, probs, labels)
        beta, betas = _backward(beta, segment, probs, labels)
        return beta, _occupancy(alphas, betas, States(segment.blank_probs, probs), of_both)

    _, occupancy = jax.lax.scan(run_back, beta, (frames, alphas), reverse=True)
    return probability, jax.lax.collapse(occupancy, 0, 2)


def _occupancy(alpha: States, beta: States, probs: States, probability: Scaled) -> jax.Array:
    """The products alpha * beta / p of all symbols over their sum, [..., B, N+1].

    Args:
        alpha: after each frame, that frame included.
        beta: at each frame, that frame included as well.
        probs: p, of the symbols at each frame.
        probability: of the labels, [B].
    """
    label_pair = columns(alpha.label, 1, None), columns(beta.label, 1, -1)
    blank, label = (
        scaled.divide(scaled.multiply(*pair), p)
        for pair, p in zip(((alpha.blank, beta.blank), label_pair), probs, strict=True)
    )

    def largest() -> jax.Array:
        tops = (
            jnp.max(each.exponent, axis=-1, keepdims=True, initial=low) for each in (blank, label)
        )
        return functools.reduce(jnp.maximum, tops)

    # At each frame the sum over the symbols is the probability of the labels, so its exponent can
    # be subtracted from theirs, unless exponents are so large that they are rounded.
    low = scaled.zero_exponent(blank.exponent.dtype)
    exponent = jnp.where(probability.mantissa == 0.0, 0.0, probability.exponent)[:, None]
    exponent = jax.lax.cond(
        jnp.any(jnp.abs(exponent) > 2.0**20),
        largest,
        lambda: jnp.broadcast_to(exponent, (*blank.exponent.shape[:-1], 1)),
    )
    by_blank, by_label = (
        each.mantissa * scaled.power_of_256(each.exponent - exponent) for each in (blank, label)
    )
    # Sums as products with 1: on a CPU XLA would compute the terms within a sum, which is slower.
    blanks, labels = (
        jnp.matmul(each, jnp.ones((each.shape[-1], 1), each.dtype), precision="highest")
        for each in (by_blank, by_label)
    )
    return jnp.concatenate([blanks, by_label], axis=-1) * safe_reciprocal(blanks + labels)


# Columns.


def columns(numbers: Scaled, start: int, stop: int | None) -> Scaled:
    """A range of the columns."""
    return Scaled(numbers.mantissa[..., start:stop], numbers.exponent[..., start:stop])


def keep_first_column(old: jax.Array, new: jax.Array) -> jax.Array:
    """New columns behind the first one, which stays as it was."""
    return jnp.concatenate([old[:, :1], new], axis=1)


def _keep_end_columns(old: jax.Array, new: jax.Array) -> jax.Array:
    """New columns between the first and the last one, which stay as they were."""
    return jnp.concatenate([old[:, :1], new, old[:, -1:]], axis=1)


def _concatenate(a: Scaled, b: Scaled) -> Scaled:
    return jax.tree.map(lambda *both: jnp.concatenate(both, axis=-1), a, b)


def _where(mask: jax.Array, new: Scaled, old: Scaled) -> Scaled:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b), new, old)
