"""Single words of the held-out text that the model predicted very well or very badly."""

from typing import NamedTuple

import numpy as np

from jaxent.demo.vocabulary import Vocabulary, decode

_SHOWN = 3
_TOKENS_BEFORE = 16
_CHARACTERS_BEFORE = 36


class Example(NamedTuple):
    """The text before a word, the word, and its bits by frequency and under the model."""

    before: str
    word: str
    unigram_bits: float
    model_bits: float


def least_expected(
    vocabulary: Vocabulary, stream: np.ndarray, model: np.ndarray, unigram: np.ndarray
) -> list[Example]:
    """The words that the model was most wrong about; both costs in nats per token."""
    return _first_few(vocabulary, stream, model, unigram, order=-model)


def foreseen(
    vocabulary: Vocabulary, stream: np.ndarray, model: np.ndarray, unigram: np.ndarray
) -> list[Example]:
    """The words on which the model saves most over their frequency."""
    return _first_few(vocabulary, stream, model, unigram, order=model - unigram)


def _first_few(
    vocabulary: Vocabulary,
    stream: np.ndarray,
    model: np.ndarray,
    unigram: np.ndarray,
    *,
    order: np.ndarray,
) -> list[Example]:
    """The first few different words in this order, of letters only and of at least four."""
    found: dict[bytes, Example] = {}
    for position in np.argsort(order, kind="stable"):
        entry = vocabulary.entries[stream[position + 1]]
        word = entry.lstrip()
        if word in found or len(word) < 4 or not word.isalpha():
            continue
        past = stream[max(0, position + 1 - _TOKENS_BEFORE) : position + 1]
        before = decode(vocabulary, past) + entry.removesuffix(word)
        bits = unigram[position] / np.log(2), model[position] / np.log(2)
        found[word] = Example(_on_one_line(before), word.decode(), *map(float, bits))
        if len(found) == _SHOWN:
            break
    return list(found.values())


def _on_one_line(text: bytes) -> str:
    """The end of the text in printable ASCII, each run of spaces and line ends as one space."""
    printable = "".join(chr(byte) if 32 < byte < 127 else " " for byte in text)
    one_line = " ".join([*printable.split(), ""])
    return (one_line if printable.endswith(" ") else one_line[:-1])[-_CHARACTERS_BEFORE:]
