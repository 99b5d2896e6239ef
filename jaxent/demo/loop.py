"""The training loop: step after step, a progress bar, and the points of the learning curve.

Some text is harder than other text, for a model and for the unigram code alike. So the model's cost
of a batch, or of a sample of the held-out text, is divided by the unigram code's cost of the same
tokens. All of these ratios are comparable; times the unigram code's bits per byte of the whole
held-out text, they are the points of the curve.
"""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxent.demo import baselines, scoring, training
from jaxent.demo import mesh as meshes
from jaxent.demo.corpus import Corpus
from jaxent.demo.curve import Curve
from jaxent.demo.model import Parameters

# After these fractions of the steps, so many windows of the held-out text are scored.
_SAMPLED_AFTER = (0.0, 0.05, 0.15, 0.3, 0.5, 0.75)
_SAMPLED_WINDOWS = 10
_BAR = "{desc} {percentage:3.0f}% |{bar}| {n}/{total} steps{postfix}, {remaining} left"


class NothingLearnedError(Exception):
    """The training was interrupted before its first step."""


class Learned(NamedTuple):
    """The result: parameters, steps done, seconds spent in them, and the learning curve."""

    parameters: Parameters
    steps: int
    seconds: float
    curve: Curve


def train(
    program: jax.stages.Compiled,
    start: training.Start,
    corpus: Corpus,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    interrupted: Callable[[], bool],
) -> Learned:
    """Take all the steps, or stop at an interruption."""
    parameters, state, steps = start
    mesh = meshes.of(parameters)
    bits_per_byte, curve = _unigram_bits_per_byte(corpus), Curve([], [])
    sampled_after = {int(fraction * steps) for fraction in _SAMPLED_AFTER}
    step, seen, seconds = 0, 0, 0.0
    with tqdm(desc="training", total=steps, bar_format=_BAR, dynamic_ncols=True) as bar:
        for inputs, labels in batches:
            if interrupted() or step == steps:
                break
            if step in sampled_after:
                part = _sampled_part(parameters, corpus)
                curve.held_out.append((seen, bits_per_byte * part))
            begin = time.perf_counter()
            tokens = meshes.put_windows(mesh, inputs, labels)
            parameters, state, loss = program(parameters, state, *tokens)
            nats = float(loss)  # Waits for the step.
            seconds += time.perf_counter() - begin
            step, seen = step + 1, seen + labels.size
            part = nats / float(-corpus.log_frequencies[labels].mean())
            curve.training.append((seen, bits_per_byte * part))
            rate = f"{seen / seconds:,.0f} tokens/s"
            bar.set_postfix_str(f"loss {nats:.2f} nats, {rate}", refresh=False)
            bar.update()
    if step == 0:
        raise NothingLearnedError
    return Learned(parameters, step, seconds, curve)


def _unigram_bits_per_byte(corpus: Corpus) -> float:
    nats = baselines.unigram_nats(corpus.log_frequencies, corpus.held_out).sum()
    return float(nats / np.log(2)) / len(corpus.held_out_content)


def _sampled_part(parameters: Parameters, corpus: Corpus) -> float:
    """The model's cost over the unigram code's, on windows spread over the held-out text."""
    everything = scoring.windows(corpus.held_out)
    windows = everything[:: -(-len(everything) // _SAMPLED_WINDOWS)]
    unigram = baselines.unigram_nats(corpus.log_frequencies, corpus.held_out)
    sampled = sum(unigram[scoring.scored_tokens(window)].sum() for window in windows)
    costs = scoring.score(parameters, corpus.held_out, windows)
    return float(sum(cost.sum() for cost in costs) / sampled)
