"""The cases of estimates of divergences and values: references, hard inputs and bars."""

import functools
from collections.abc import Iterator
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
from mpmath import mpf

import jaxent
from conformance import oracle
from conformance.case import Argument, Case
from conformance.inputs import SCALES, Family
from conformance.oracle import Number, Truth
from conformance.preference import NEAR, pairs
from conformance.regression import one_shape

# --- references -----------------------------------------------------------------------------------


def sampled_kl_divergence(
    log_prob: Number, reference: Number, *, estimator: str = "k3", bound: float | None = None
) -> Truth:
    apart = reference - log_prob
    used = apart if bound is None else max(-mpf(bound), min(mpf(bound), apart))
    if estimator == "k1":
        value, slope = -used, mpf(-1)
    elif estimator == "k2":
        value, slope = used**2 / 2, used
    elif used == mpmath.inf:
        value, slope = used, used
    else:
        value, slope = mpmath.exp(used) - 1 - used, mpmath.exp(used) - 1
    slope = slope if used == apart else mpf(0)
    return Truth(value, (-slope, slope), value, (slope, slope))


def clipped_value_loss(value: Number, old: Number, target: Number, *, clip: float = 0.2) -> Truth:
    """``max((v - R)**2, (clip(v) - R)**2) / 2``."""
    limit = mpf(clip)
    clipped = max(old - limit, min(old + limit, value)) - target
    error, moved = value - target, abs(value - old)
    slopes = [(error, mpf(0), -error), (mpf(0), clipped, -clipped)]
    is_near = abs(moved - limit) <= NEAR * limit
    is_near |= bool(moved > limit and abs(abs(error) - abs(clipped)) <= NEAR * abs(error))
    used = int(abs(clipped) > abs(error))
    loss = max(abs(error), abs(clipped)) ** 2 / 2
    return Truth(loss, slopes[used], loss, slopes[used], slopes[1 - used if is_near else used])


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place.
ESTIMATE_VALUE, ESTIMATE_GRADIENT = 3, 3
CLIPPED_VALUE, CLIPPED_GRADIENT = 2, 1


def _numbers(name: str, low: float, high: float) -> Argument:
    return Argument(
        name, lambda rng, leading, classes: rng.uniform(low, high, size=(*leading, classes))
    )


LOG_PROBS = (_numbers("log_probs", -3.0, -0.3), _numbers("reference_log_probs", -3.0, -0.3))
VALUES = (
    _numbers("values", 0.6, 1.4),
    _numbers("old_values", 0.9, 1.1),
    _numbers("returns", -1.0, 3.0),
)


# --- inputs ---------------------------------------------------------------------------------------


def log_probs(dtype: Any) -> Iterator[Family]:
    """Log-probabilities of tokens under two policies, far apart and as near as can be."""
    for family in pairs(dtype):
        new, _, reference, _ = family.arrays
        with np.errstate(invalid="ignore"):
            exists = np.isfinite(new) | np.isfinite(reference)
        yield Family(family.name, (new[exists], reference[exists]))
    apart = 10.0 ** -np.arange(0.0, 9.0) * np.array([[1.0], [-1.0]])
    yield one_shape("near", (-1.5 + apart.ravel(), -1.5), dtype)


def values(dtype: Any) -> Iterator[Family]:
    """Values, those before, and returns: near each other, near the ends, and far from all."""
    generator = np.random.default_rng(4)
    largest, smallest = (float(f(dtype)) for f in (_largest, _smallest))
    old = generator.normal(size=12)
    moves = np.array([0.2, -0.2, 0.1999, 0.2001, -0.1999, -0.2001, 0.0, 0.3, -0.3, 1, -1, 1e-6])
    families: dict[str, Any] = {
        **{f"scale {scale:g}": scale * generator.normal(size=(3, 12)) for scale in SCALES},
        "near the ends": (old + moves, old, generator.normal(size=12)),
        "near the ends, large": (1000.0 * old + moves, 1000.0 * old, 1000.0 * old + 0.1),
        "right": (old + moves, old, old + moves),
        "right where it is clipped": (old + moves, old, old + np.clip(moves, -0.2, 0.2)),
        "nearly right where it is clipped": (
            old + 0.2 + 1e-3 * np.abs(moves),
            old,
            old + 0.2 + 2e-3 * np.abs(moves),
        ),
        "as wrong": (old + 0.5, old, old + 0.35),
        "tiny": 1e-15 * generator.normal(size=(3, 12)),
        "huge": largest * generator.uniform(-0.3, 0.3, size=(3, 8)),
        "huge and ordinary": (largest * np.array([0.5, -0.5]), 1.0, 2.0),
        "subnormal": smallest * generator.uniform(-1.0, 1.0, size=(3, 8)),
    }
    for name, arrays in families.items():
        yield one_shape(name, tuple(arrays), dtype)


def _largest(dtype: Any) -> Any:
    return ml_dtypes.finfo(dtype).max


def _smallest(dtype: Any) -> Any:
    return ml_dtypes.finfo(dtype).smallest_normal


# --- rows -----------------------------------------------------------------------------------------


def _ratio(log_prob: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """The second derivative of k3, also where it is infinite: differences cannot tell it there."""
    with np.errstate(over="ignore"):
        return np.exp(reference.astype(np.float64) - log_prob.astype(np.float64))


def _constant_hessian_scale(log_prob: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(log_prob) & np.isfinite(reference), 1.0, np.inf)


def _value_hessian_scale(*arrays: np.ndarray) -> np.ndarray:
    """1, but where it jumps either side will do."""
    truth = oracle.batch(clipped_value_loss, *arrays)
    assert truth.other_gradients is not None
    jumps = truth.other_gradients[0] != truth.gradients[0]
    return np.where(jumps, np.inf, 1.0)


_estimate = functools.partial(
    Case,
    jaxent.sampled_kl_divergence,
    LOG_PROBS,
    sampled_kl_divergence,
    log_probs,
    value_ulps=ESTIMATE_VALUE,
    gradient_ulps=ESTIMATE_GRADIENT,
)

CASES: tuple[Case, ...] = (
    _estimate(other_hessian=_ratio),
    _estimate(options={"estimator": "k2"}, hessian_scale=_constant_hessian_scale),
    Case(
        jaxent.clipped_value_loss,
        VALUES,
        clipped_value_loss,
        values,
        CLIPPED_VALUE,
        CLIPPED_GRADIENT,
        hessian_scale=_value_hessian_scale,
    ),
)
NOT_LOSSES = {
    "generalized_advantage_estimation": "losses/test_policy.py",
    "preference_rewards": "losses/test_preference.py",
    "sequence_mean": "losses/test_policy.py",
}
