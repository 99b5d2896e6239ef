"""The training loop: step after step, a progress bar, and the points of the learning curve."""

import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from jaxent.demo import baselines, scoring, training, vocabulary
from jaxent.demo.corpus import Corpus
from jaxent.demo.curve import Curve
from jaxent.demo.model import Parameters

# On the way, the held-out text is sampled: after these shares of the steps, so many windows.
_SAMPLED_AFTER = (0.0, 0.125, 0.25, 0.5, 0.75)
_SAMPLED_WINDOWS = 10
_BAR = "{desc} {percentage:3.0f}% |{bar}| {n}/{total} steps{postfix}, {remaining} left"


class NothingLearnedError(Exception):
    """The training was interrupted before its first step."""


class Learned(NamedTuple):
    """What came of it: parameters, steps done, seconds spent in them, and the learning curve."""

    parameters: Parameters
    steps: int
    seconds: float
    curve: Curve


def train(
    program: jax.stages.Compiled,
    start: training.Start,
    corpus: Corpus,
    seed: int,
    interrupted: Callable[[], bool],
) -> Learned:
    """Take all the steps, or those that are done when an interruption comes."""
    parameters, state, steps = start
    spelled = vocabulary.spelled_bytes(corpus.vocabulary)
    estimate = _held_out_estimator(corpus, spelled)
    curve = Curve([], [])
    sampled_after = {int(share * steps) for share in _SAMPLED_AFTER}
    step, seen, seconds = 0, 0, 0.0
    bar = tqdm(
        desc="training",
        total=steps,
        bar_format=_BAR,
        dynamic_ncols=True,
    )
    with bar:
        for inputs, labels in training.batches(corpus.training, seed):
            if interrupted() or step == steps:
                break
            if step in sampled_after:
                curve.held_out.append((seen, estimate(parameters)))
            begin = time.perf_counter()
            parameters, state, loss = program(parameters, state, inputs, labels)
            nats = float(loss)  # Waits for the step.
            seconds += time.perf_counter() - begin
            step, seen = step + 1, seen + labels.size
            curve.training.append((seen, _bits_per_byte(nats * labels.size, spelled[labels])))
            bar.set_postfix_str(
                f"loss {nats:.2f} nats, {seen / seconds:,.0f} tokens/s", refresh=False
            )
            bar.update()
    if step == 0:
        raise NothingLearnedError
    return Learned(parameters, step, seconds, curve)


def _held_out_estimator(corpus: Corpus, spelled: np.ndarray) -> Callable[[Parameters], float]:
    """Estimates the model's bits per byte from windows spread evenly over the held-out text.

    A window that is hard for the model is hard for the unigram code too, whose cost of the whole
    text is known: so the sample only has to say what part of that cost remains.
    """
    unigram = baselines.unigram_nats(corpus.log_frequencies, corpus.held_out)
    whole = _bits_per_byte(float(unigram.sum()), spelled[corpus.held_out])
    everything = scoring.windows(corpus.held_out)
    windows = everything[:: -(-len(everything) // _SAMPLED_WINDOWS)]
    sampled = sum(unigram[scoring.scored(window)].sum() for window in windows)

    def estimate(parameters: Parameters) -> float:
        costs = scoring.score(parameters, corpus.held_out, windows)
        return whole * float(sum(cost.sum() for cost in costs) / sampled)

    return estimate


def _bits_per_byte(nats: float, spelled: np.ndarray) -> float:
    """Boundaries spell nothing, so that a tiny text's tokens may spell no byte at all."""
    return nats / float(np.log(2)) / max(1, int(spelled.sum()))
