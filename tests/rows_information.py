"""The contract rows of jaxent._information."""

import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import optax.losses
import truth_information as truth
from contract_row import Argument, Row
from families import Family

import jaxent

# Worst error allowed, in units in the last place: of the sum of the absolute terms for the
# derivative of an entropy and for what KL is made of, of the quantity itself elsewhere.
ENTROPY_VALUE, ENTROPY_GRADIENT = 4, 4
BINARY_VALUE, BINARY_GRADIENT = 4, 4
RENYI_VALUE, RENYI_GRADIENT = 8, 8
TSALLIS_VALUE, TSALLIS_GRADIENT = 8, 8
CROSS_VALUE, CROSS_GRADIENT = 4, 4
KL_VALUE, KL_GRADIENT = 8, 4
GENERALIZED_VALUE, GENERALIZED_GRADIENT = 4, 4
SHANNON_VALUE, SHANNON_GRADIENT = 8, 4
VARIATION_VALUE, VARIATION_GRADIENT = 4, 0
HELLINGER_VALUE, HELLINGER_GRADIENT = 4, 8
DIVERGENCE_VALUE, DIVERGENCE_GRADIENT = 8, 8


def _ordinary(rng, leading, classes) -> np.ndarray:
    """Away from 0, where differences of slopes are no measure of a curvature."""
    return 0.5 * rng.dirichlet(np.ones(classes), size=leading) + 0.5 / classes


PROBS, PROBS_A, PROBS_B, TARGETS, PREDICTIONS = (
    Argument(name, _ordinary) for name in ("probs", "probs_a", "probs_b", "targets", "predictions")
)
LOG_PREDICTIONS, LOG_TARGETS = (
    Argument(name, lambda *given: np.log(_ordinary(*given)))
    for name in ("log_predictions", "log_targets")
)

# --- one distribution -----------------------------------------------------------------------------


def distributions(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Distributions [rows, classes] of every shape; entries below `least` are 0."""
    generator = np.random.default_rng([classes, 10])
    for name, probs in _shapes(generator, classes).items():
        probs = np.where(probs < least, 0.0, probs)
        yield Family(name, ((probs / probs.sum(-1, keepdims=True)).astype(dtype),))
    share = generator.uniform(0.1, 1.0, size=(2, classes))
    yield Family("not normalised", (share.astype(dtype),))
    small = max(least, 1e-30, float(ml_dtypes.finfo(dtype).smallest_normal))
    yield Family("all small", ((small * (1 + share)).astype(dtype),))
    yield Family("all certain", (np.ones((1, classes), dtype),))


def _shapes(generator, classes: int) -> dict[str, np.ndarray]:
    one_hot = (np.arange(classes) == generator.integers(classes)).astype(float)[None]
    sparse = generator.exponential(size=(2, classes)) * (generator.random((2, classes)) < 0.4)
    spread = 10.0 ** generator.uniform(-30, 0, size=(2, classes))
    return {
        **{
            f"Dirichlet {concentration:g}": generator.dirichlet(
                np.full(classes, concentration), size=2
            )
            for concentration in (0.02, 0.1, 1.0, 10.0, 1000.0)
        },
        "one-hot": one_hot,
        **{
            f"one-hot up to {rest:g}": (1 - rest) * one_hot + rest / classes
            for rest in (1e-2, 1e-6, 3e-7, 1e-12)
        },
        "uniform": np.full((1, classes), 1.0 / classes),
        "sparse": sparse + one_hot,
        "all magnitudes": spread + one_hot,
    }


def probabilities(dtype: Any) -> Iterator[Family]:
    """Probabilities [rows] from one end of [0, 1] to the other."""
    generator = np.random.default_rng(11)
    info = ml_dtypes.finfo(dtype)
    step, smallest = float(info.eps) / 2, float(info.smallest_normal)
    for name, probs in {
        "any": generator.random(60),
        "tiny": smallest * np.array([1, 3, 100]),
        "small": 10.0 ** -np.arange(1, 8),
        "nearly 1": 1 - step * np.array([1, 2, 3, 10, 50]),
        "around a half": 0.5 + step * np.arange(-8, 9),
        "near a half": 0.5 + 10.0 ** -np.arange(1, 7),
        "around the quarters": (
            np.array([[0.25], [0.75]]) + step * np.array([-4, -2, -1, 0, 2, 4])
        ).ravel(),
        "certain": np.array([0.0, 1.0]),
    }.items():
        yield Family(name, (probs.astype(dtype),))


def few_distributions(dtype: Any, classes: int) -> Iterator[Family]:
    """Two rows that between them hold the worst of it, for vocabularies of any size."""
    for name, (a, _) in _few_pairs(classes).items():
        yield Family(name, (a.astype(dtype),))


# --- two distributions ----------------------------------------------------------------------------

CHANGES = (0.1, 1e-3, 1e-6)


def pairs(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Pairs of distributions: far apart, alike, nearly alike, and with zeros in either or both."""
    generator = np.random.default_rng([classes, 12])
    shapes = {
        name: np.where(probs < least, 0.0, probs) / probs.sum(-1, keepdims=True)
        for name, probs in _shapes(generator, classes).items()
    }
    for (name, a), (other, b) in itertools.permutations(shapes.items(), 2):
        if generator.random() < 0.2:
            yield _pair(f"{name} and {other}", a[:1], b[:1], dtype)
    for name, a in shapes.items():
        yield _pair(f"{name}, equal", a, a, dtype)
        for change in CHANGES:
            b = a * (1 + change * generator.normal(size=a.shape).clip(-3, 3))
            b = b / b.sum(-1, keepdims=True)
            yield _pair(f"{name}, changed by {change:g}", a, b, dtype)
        yield _pair(f"{name}, its neighbour", a, _next(a, dtype), dtype)
    one_hot = np.eye(classes)[:1]
    near = (1 - 1e-6) * one_hot + 1e-6 / classes
    yield _pair("one-hot, unlike", one_hot, one_hot[:, ::-1], dtype)
    yield _pair("near one-hot, unlike", near, near[:, ::-1], dtype)
    here = np.arange(classes) % 2 == 0
    a, b = generator.dirichlet(np.ones(classes), size=(2, 1))
    half, other, rest = (
        np.where(side, x, 0.0) / x[:, side].sum() for side, x in ((here, a), (here, b), (~here, b))
    )
    yield _pair("disjoint", half, rest, dtype)
    yield _pair("zeros in the first", half, b, dtype)
    yield _pair("zeros in the second", a, rest, dtype)
    yield _pair("zeros in both", half, other, dtype)


def _pair(name: str, a: np.ndarray, b: np.ndarray, dtype: Any) -> Family:
    return Family(name, (a.astype(dtype), b.astype(dtype)))


def _next(a: np.ndarray, dtype: Any) -> np.ndarray:
    """Every other entry one step down."""
    a = a.astype(dtype)
    below = np.nextafter(a, np.array(0, dtype))
    is_normal = a.astype(np.float64) > 4 * float(ml_dtypes.finfo(dtype).smallest_normal)
    return np.where(is_normal & (np.arange(a.shape[-1]) % 2 == 0), below, a)


def finite_pairs(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Pairs of which the second has no zero where the first has none."""
    for name, (a, b) in pairs(dtype, classes, least):
        if not np.any((a > 0) & (b == 0)):
            yield Family(name, (a, b))


def log_pairs(dtype: Any, classes: int, least: float = 1e-36) -> Iterator[Family]:
    """Log-predictions and targets, some of them not normalised."""
    for name, (a, b) in pairs(np.float64, classes, least):
        with np.errstate(divide="ignore"):
            yield Family(name, (np.log(b).astype(dtype), a.astype(dtype)))
    generator = np.random.default_rng([classes, 13])
    log_p, targets = generator.normal(size=(2, 3, classes))
    yield Family("not normalised", (log_p.astype(dtype), np.abs(targets).astype(dtype)))


def measures(dtype: Any, classes: int) -> Iterator[Family]:
    """Log-predictions and targets again, and such of every size that are near each other or far."""
    # Differences of smaller ones are subnormal.
    yield from log_pairs(dtype, classes, least=1e-30)
    generator = np.random.default_rng([classes, 14])
    most = float(ml_dtypes.finfo(dtype).max)
    for size in (0.0, 0.3, 1.0, -1.0, -7.0, 8.0, 0.9 * math.log(most), -0.9 * math.log(most)):
        log_p = (size + 0.1 * generator.normal(size=(1, classes))).astype(dtype)
        exact = np.exp(log_p.astype(np.float64))
        for change in (0.0, 1e-6, 1e-3, 0.3, 1.0, 1.1, 4.0):
            targets = exact * np.exp(change * generator.choice([-1.0, 1.0], size=classes))
            within = targets.clip(max=most).astype(dtype)
            yield Family(f"size {size:.3g}, {change:g} off", (log_p, within))
    wide = 40.0 * generator.normal(size=(2, classes)).clip(-2, 2)
    some = np.where(generator.random((2, classes)) < 0.5, 0.0, np.exp(wide[::-1]))
    if dtype != np.float16:
        yield Family("all magnitudes", (wide.astype(dtype), some.astype(dtype)))
    none = np.zeros((1, classes))
    yield Family("no target", (wide[:1].clip(max=5.0).astype(dtype), none.astype(dtype)))


def logs_of_both(dtype: Any, classes: int) -> Iterator[Family]:
    """The same with the logarithms of the targets."""
    for name, (log_p, targets) in log_pairs(np.float64, classes):
        with np.errstate(divide="ignore"):
            yield Family(name, (log_p.astype(dtype), np.log(targets).astype(dtype)))


def few_pairs(dtype: Any, classes: int) -> Iterator[Family]:
    """Two pairs for vocabularies of any size."""
    for name, (a, b) in _few_pairs(classes).items():
        yield _pair(name, a, b, dtype)


def _few_pairs(classes: int) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Made of a thousand values, which spares the oracle most of its work."""
    generator = np.random.default_rng(classes)
    a = generator.choice(generator.exponential(size=1000), size=(1, classes))
    b = generator.choice(generator.exponential(size=1000), size=(1, classes))
    heavy = np.where(np.arange(classes) == 7, 1e6 * a.sum(), a)
    near = np.where(a > 1.0, a * 1.001, a)
    return {
        "far apart": (a / a.sum(), b / b.sum()),
        "nearly alike, one class heavy": (heavy / heavy.sum(), near / heavy.sum() + heavy * 0),
    }


# Powers of these have derivatives within the range of the dtype.
_moderate = functools.partial(distributions, least=1e-12)
_moderate_pairs = functools.partial(pairs, least=1e-12)


def _two(function, of, inputs, value, gradient, **rest) -> Row:
    return Row(function, (PROBS_A, PROBS_B), of, inputs, value, gradient, **rest)


def _of_order(alpha: float) -> tuple[Row, ...]:
    """The rows of everything that has an order."""
    options = {"alpha": alpha}
    return (
        Row(
            jaxent.renyi_entropy,
            (PROBS,),
            truth.renyi_entropy,
            _moderate,
            RENYI_VALUE,
            RENYI_GRADIENT,
            options,
            curvature_scale=functools.partial(truth.entropy_curvature_scale, alpha=alpha),
        ),
        Row(
            jaxent.tsallis_entropy,
            (PROBS,),
            truth.tsallis_entropy,
            _moderate,
            TSALLIS_VALUE,
            TSALLIS_GRADIENT,
            options,
        ),
        Row(
            jaxent.renyi_divergence,
            (PROBS_A, PROBS_B),
            truth.renyi_divergence,
            _moderate_pairs,
            DIVERGENCE_VALUE,
            DIVERGENCE_GRADIENT,
            options,
            curvature_scale=functools.partial(truth.divergence_curvature_scale, alpha=alpha),
        ),
    )


ROWS: tuple[Row, ...] = (
    Row(
        jaxent.entropy,
        (PROBS,),
        truth.entropy,
        distributions,
        ENTROPY_VALUE,
        ENTROPY_GRADIENT,
        vocabulary_inputs=few_distributions,
    ),
    Row(
        jaxent.binary_entropy,
        (PROBS,),
        truth.binary_entropy,
        probabilities,
        BINARY_VALUE,
        BINARY_GRADIENT,
    ),
    Row(
        jaxent.cross_entropy,
        (TARGETS, PREDICTIONS),
        truth.cross_entropy,
        finite_pairs,
        CROSS_VALUE,
        CROSS_GRADIENT,
    ),
    Row(
        jaxent.kl_divergence,
        (LOG_PREDICTIONS, TARGETS),
        truth.kl_divergence,
        log_pairs,
        KL_VALUE,
        KL_GRADIENT,
        peer=optax.losses.kl_divergence,
        is_nonnegative=False,
    ),
    Row(
        jaxent.kl_divergence_with_log_targets,
        (LOG_PREDICTIONS, LOG_TARGETS),
        truth.kl_divergence_with_log_targets,
        logs_of_both,
        KL_VALUE,
        KL_GRADIENT,
        peer=optax.losses.kl_divergence_with_log_targets,
        is_nonnegative=False,
    ),
    Row(
        jaxent.generalized_kl_divergence,
        (LOG_PREDICTIONS, TARGETS),
        truth.generalized_kl_divergence,
        measures,
        GENERALIZED_VALUE,
        GENERALIZED_GRADIENT,
        # Optax 0.2.6 has it under its old name, which now warns.
        peer=getattr(optax.losses, "generalized_kl_divergence", None),
    ),
    _two(
        jaxent.jensen_shannon_divergence,
        truth.jensen_shannon_divergence,
        pairs,
        SHANNON_VALUE,
        SHANNON_GRADIENT,
        vocabulary_inputs=few_pairs,
    ),
    _two(
        jaxent.total_variation,
        truth.total_variation,
        pairs,
        VARIATION_VALUE,
        VARIATION_GRADIENT,
    ),
    _two(
        jaxent.hellinger,
        truth.hellinger,
        pairs,
        HELLINGER_VALUE,
        HELLINGER_GRADIENT,
        curvature_scale=truth.hellinger_curvature_scale,
    ),
    *_of_order(0.5),
    *_of_order(2.0),
)
NOT_LOSSES = {
    "convex_kl_divergence": "test_bregman.py",  # another name of generalized_kl_divergence
    **dict.fromkeys(
        ("mutual_information", "perplexity", "nats_to_bits", "bits_per_byte"), "test_information.py"
    ),
}
