"""The texts as tokens: the training text, the held-out text, and the frequency of each token."""

from typing import NamedTuple

import numpy as np

from jaxent.demo import baselines, vocabulary
from jaxent.demo.text import Split


class Corpus(NamedTuple):
    """Two token streams over one vocabulary, and natural logarithms of the frequencies."""

    vocabulary: vocabulary.Vocabulary
    training: np.ndarray
    held_out: np.ndarray
    held_out_content: bytes
    log_frequencies: np.ndarray


def prepare(split: Split, size: int) -> Corpus:
    """Turn texts into tokens; vocabulary and frequencies come from the training files alone."""
    texts = [file.content for file in split.training]
    held_out = [file.content for file in split.held_out]
    words = vocabulary.build(texts, size)
    learned_from = vocabulary.stream(words, texts)
    return Corpus(
        vocabulary=words,
        training=learned_from,
        held_out=vocabulary.stream(words, held_out),
        held_out_content=b"".join(held_out),
        log_frequencies=baselines.log_frequencies(learned_from, len(words.entries)),
    )
