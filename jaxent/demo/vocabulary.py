"""Words as numbers, and back without loss: a word-level vocabulary that falls back on bytes.

Every text has a token stream and every token stream spells one text, so the sum of -log2 p over
the tokens of a text is the length of a code for it. Several streams may spell the same text. The
model gives probability to all of them, but only one is counted: the code length is an upper bound
of what the model could reach, and the code can be decoded.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

# The first 256 tokens are the bytes themselves; then a token for where files begin and end.
BOUNDARY = 256
SMALLEST = BOUNDARY + 1

# The last alternative takes any byte, so that the words of a text always make up the whole of it.
# A word includes one space before it: most words have one, and so cost one token, not two.
_WORDS = re.compile(
    rb"""
      \x20? _* [A-Z]? [a-z]+            # a word, or the next one of snake_case or CamelCase
    | \x20? _* [A-Z]+ (?! [a-z] )       # a word in capitals
    | \x20? [0-9]+
    | (?: [ \t]* \r? \n )+ [ \t]*       # ends of lines, and how far the next line is indented
    | [ \t]+ (?= \x20 ) | [ \t]+        # other space, less the one that goes with a word
    | \x20? _* [!-/:-@\[-^`{-~]+        # punctuation
    | _+
    | [\x80-\xff]+                      # whatever is not ASCII
    | .
    """,
    re.VERBOSE | re.DOTALL,
)
_LONGEST = 32


class Vocabulary(NamedTuple):
    """What each token spells, and which token spells it. The boundary spells nothing."""

    entries: list[bytes]
    tokens: dict[bytes, int]


def split_words(content: bytes) -> list[bytes]:
    """The words, numbers, spaces and punctuation of a text, which together are the text."""
    return _WORDS.findall(content)


def build(texts: Iterable[bytes], size: int) -> Vocabulary:
    """The bytes, the boundary, and the most frequent words; fewer than `size` if no more exist."""
    counts = Counter()
    for content in texts:
        counts.update(split_words(content))
    words = [word for word in counts if 1 < len(word) <= _LONGEST]
    # Equally frequent words are sorted by spelling, so that the order of the texts does not matter.
    words.sort(key=lambda word: (-counts[word], word))
    entries = [bytes([byte]) for byte in range(BOUNDARY)] + [b""] + words[: size - SMALLEST]
    tokens = {entry: token for token, entry in enumerate(entries) if token != BOUNDARY}
    return Vocabulary(entries, tokens)


def encode(vocabulary: Vocabulary, content: bytes) -> list[int]:
    """The tokens that spell this text; a word that has none is spelled in pieces."""
    encoded = []
    for word in split_words(content):
        token = vocabulary.tokens.get(word)
        encoded += _pieces(vocabulary.tokens, word) if token is None else [token]
    return encoded


def decode(vocabulary: Vocabulary, tokens: Iterable[int]) -> bytes:
    """The text that these tokens spell."""
    return b"".join(vocabulary.entries[token] for token in tokens)


def stream(vocabulary: Vocabulary, texts: Sequence[bytes]) -> np.ndarray:
    """All texts in one row of int32 tokens, a boundary before, between and after them.

    The tokens after the first boundary spell the texts and say where each of them ends.
    """
    tokens = [BOUNDARY]
    for content in texts:
        tokens += encode(vocabulary, content)
        tokens.append(BOUNDARY)
    return np.array(tokens, np.int32)


def _pieces(tokens: dict[bytes, int], word: bytes) -> list[int]:
    """The longest entry that the word begins with, then the same for the rest; bytes at worst."""
    pieces, start = [], 0
    while start < len(word):
        stop = min(len(word), start + _LONGEST)
        while word[start:stop] not in tokens:
            stop -= 1
        pieces.append(tokens[word[start:stop]])
        start = stop
    return pieces
