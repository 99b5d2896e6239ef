"""The contract rows of the entropies and divergences of logits, and their hard inputs."""

from collections.abc import Iterator
from typing import Any

import families
import jax
import ml_dtypes
import numpy as np
import optax
import truth_divergence
from contract_row import LOGITS, Argument, Row
from families import Family

import jaxent

# Worst error allowed, in units in the last place. The scale of a value is the value itself; that
# of a slope is the sum of the absolute terms it is made of.
ENTROPY_VALUE, ENTROPY_GRADIENT = 8, 8
KL_VALUE, KL_GRADIENT = 8, 8
JENSEN_SHANNON_VALUE, JENSEN_SHANNON_GRADIENT = 8, 16
SIGMOID_ENTROPY_VALUE, SIGMOID_ENTROPY_GRADIENT = 4, 4
SIGMOID_KL_VALUE, SIGMOID_KL_GRADIENT = 8, 8

PAIRS = ("equal", "shifted", "near 1e-6", "near 1e-3", "near 0.1", "unlike", "alike", "swapped")


# --- hard inputs ----------------------------------------------------------------------------------


def logit_pairs(dtype: Any, num_classes: int, rows: int = 1) -> Iterator[Family]:
    """Every family of logits beside others: the same, moved as a whole, near, and unlike.

    Both may be sure of one class to different degrees, or each of its own; an impossible class is
    so for both, except in the families that are about that.
    """
    generator = np.random.default_rng([num_classes, rows, 2])
    for family in families.integer_labels(dtype, num_classes, rows):
        logits, labels = family.arrays
        for kind in PAIRS if num_classes <= 16 else (PAIRS[generator.integers(len(PAIRS))],):
            others = _beside(kind, generator, logits.astype(np.float64), labels)
            yield Family(f"{kind}, {family.name}", (logits, _cut(others, dtype)))
    yield from _impossible_pairs(dtype, num_classes, generator, rows)


def few_logit_pairs(dtype: Any, num_classes: int) -> Iterator[Family]:
    """A handful of pairs for vocabularies of any size, with few distinct values."""
    generator = np.random.default_rng(num_classes)
    noise = generator.normal(size=7)
    few = families.few_logits_only(dtype, num_classes)
    for size, family in zip((1e-3, 0.1, 1.0), few, strict=True):
        (logits,) = family.arrays
        others = logits.astype(np.float64) + size * noise[np.arange(num_classes) % 7]
        yield Family(f"near {size:g}, {family.name}", (logits, _cut(others, dtype)))


def log_odds(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Logits [rows] of every size, infinite ones too."""
    for family in families.binary_targets(dtype, rows):
        if family.name.endswith("target 0"):
            yield Family(family.name, family.arrays[:1])
    sure = np.array([np.inf, -np.inf, 1.5, -1.6])
    yield Family("sure", (sure.astype(dtype),))


def log_odds_pairs(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Logits [rows] of every size beside others: the same, near, alike, unlike, and sure."""
    generator = np.random.default_rng([rows, 3])
    for family in log_odds(dtype, rows):
        (logits,) = family.arrays
        exact = logits.astype(np.float64)
        if family.name == "sure":
            continue
        noise = generator.normal(size=exact.shape)
        for kind, others in {
            "equal": exact,
            **{f"near {size:g}": exact + size * noise for size in (1e-6, 1e-3, 0.1, 1.0, 10.0)},
            "near in proportion": exact * (1 + 1e-3 * noise),
            "alike": exact / 2,
            "unlike": -exact,
            "unsure": 0.0 * exact,
            "a third": np.resize(10.0 * noise, exact.shape),
        }.items():
            yield Family(f"{kind}, {family.name}", (logits, _cut(others, dtype)))
    finite = np.array([-80.0, -1.0, 0.0, 3.0, 90.0])
    for sign in (1.0, -1.0):
        sure = np.full_like(finite, sign * np.inf)
        yield Family("sure of what may be", (sure.astype(dtype), finite.astype(dtype)))
        yield Family("may be what is sure", (finite.astype(dtype), sure.astype(dtype)))


def _beside(kind: str, generator, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    noise = generator.normal(size=logits.shape)
    with np.errstate(invalid="ignore"):
        match kind.split():
            case ["equal"]:
                return logits
            case ["shifted"]:
                return logits + generator.choice([0.5, 3.0, -300.0])
            case ["near", size]:
                return logits + float(size) * noise
            case ["unlike"]:
                return np.where(np.isneginf(logits), logits, 3.0 * noise)
            case ["alike"]:
                # As sure, and the more so of the same class.
                at_label = np.arange(logits.shape[-1]) == labels[:, None]
                ahead = generator.choice(families.MARGINS)
                return logits + np.where(at_label, ahead * (np.abs(logits) < 1e6), noise)
            case ["swapped"]:
                return np.where(np.isneginf(logits), logits, np.flip(logits, -1).clip(-3e38))
    raise ValueError(kind)


def _impossible_pairs(dtype, num_classes, generator, rows) -> Iterator[Family]:
    shape = (rows, num_classes)
    logits, others = 3 * generator.normal(size=(2, *shape))
    first, last = np.arange(num_classes) == 0, np.arange(num_classes) == num_classes - 1
    for name, a, b in (
        ("impossible, yet expected", np.where(first, -np.inf, logits), others),
        ("expected ahead by 40", np.where(first, -np.inf, logits), others + 40.0 * first),
        ("expected behind by 300", np.where(first, -np.inf, logits), others - 300.0 * first),
        ("possible, not expected", logits, np.where(first, -np.inf, others)),
        ("possible ahead by 40", logits + 40.0 * first, np.where(first, -np.inf, others)),
        ("possible behind by 40", logits - 40.0 * first, np.where(first, -np.inf, logits)),
        ("either impossible", np.where(first, -np.inf, logits), np.where(last, -np.inf, others)),
        ("only one expected", logits, np.where(first, others, -np.inf)),
        ("only one possible and expected", *[np.where(first, logits, -np.inf)] * 2),
        ("nothing in common", np.where(first, logits, -np.inf), np.where(first, -np.inf, others)),
    ):
        yield Family(name, (_cut(a, dtype), _cut(b, dtype)))


def _cut(logits: np.ndarray, dtype: Any) -> np.ndarray:
    """In the dtype asked for, within its range but for what is impossible."""
    largest = float(ml_dtypes.finfo(dtype).max)
    within = np.clip(logits, -largest, largest)
    return np.where(np.isneginf(logits), logits, within).astype(dtype)


# --- rows -----------------------------------------------------------------------------------------


def _logits(name: str) -> Argument:
    return LOGITS._replace(name=name)


def _optax_kl(logits, target_logits):
    return optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(target_logits))


ROWS = (
    Row(
        jaxent.softmax_entropy,
        (LOGITS,),
        truth_divergence.softmax_entropy,
        families.logits_only,
        ENTROPY_VALUE,
        ENTROPY_GRADIENT,
        vocabulary_inputs=families.few_logits_only,
        curvature_scale=truth_divergence.softmax_entropy_curvature_scale,
    ),
    Row(
        jaxent.softmax_kl_divergence,
        (LOGITS, _logits("target_logits")),
        truth_divergence.softmax_kl_divergence,
        logit_pairs,
        KL_VALUE,
        KL_GRADIENT,
        peer=_optax_kl,
        vocabulary_inputs=few_logit_pairs,
    ),
    Row(
        jaxent.softmax_jensen_shannon,
        (_logits("logits_a"), _logits("logits_b")),
        truth_divergence.softmax_jensen_shannon,
        logit_pairs,
        JENSEN_SHANNON_VALUE,
        JENSEN_SHANNON_GRADIENT,
        vocabulary_inputs=few_logit_pairs,
        curvature_scale=truth_divergence.softmax_jensen_shannon_curvature_scale,
    ),
    Row(
        jaxent.sigmoid_entropy,
        (LOGITS,),
        truth_divergence.sigmoid_entropy,
        log_odds,
        SIGMOID_ENTROPY_VALUE,
        SIGMOID_ENTROPY_GRADIENT,
        curvature_scale=truth_divergence.sigmoid_entropy_curvature_scale,
    ),
    Row(
        jaxent.sigmoid_kl_divergence,
        (LOGITS, _logits("target_logits")),
        truth_divergence.sigmoid_kl_divergence,
        log_odds_pairs,
        SIGMOID_KL_VALUE,
        SIGMOID_KL_GRADIENT,
    ),
)
NOT_LOSSES: dict[str, str] = {}
