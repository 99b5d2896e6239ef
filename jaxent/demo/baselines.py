"""The code lengths of the same text without a neural network."""

import gzip
import lzma

import numpy as np


def log_frequencies(stream: np.ndarray, size: int) -> np.ndarray:
    """The logarithm of each token's frequency in the stream, with half a count added to all.

    Half a count (Krichevsky and Trofimov) also gives a code to words that were never seen.
    """
    counts = np.bincount(stream[1:], minlength=size) + 0.5
    return np.log(counts / counts.sum()).astype(np.float32)


def unigram_nats(log_frequencies: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """The cost in nats of each token after the first, by its frequency alone."""
    return -log_frequencies.astype(np.float64)[stream[1:]]


def code_lengths(
    log_frequencies: np.ndarray, stream: np.ndarray, content: bytes
) -> dict[str, float]:
    """Bits to write a text: two codes for the stream of its tokens, two for its bytes."""
    return {
        "uniform": (len(stream) - 1) * float(np.log2(len(log_frequencies))),
        "unigram": float(unigram_nats(log_frequencies, stream).sum() / np.log(2)),
        "gzip": 8.0 * len(gzip.compress(content, compresslevel=9)),
        "lzma": 8.0 * len(lzma.compress(content, preset=9)),
    }
