"""The cases of the losses of real numbers: references, hard inputs and bars."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import mpmath
import numpy as np
import optax
from mpmath import mp, mpf

import jaxent
from conformance.case import Argument, Case
from conformance.inputs import SCALES, Family
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


def _of_error(value: Number, slope: Number) -> Truth:
    """A loss of the error predictions - targets, every scale its own."""
    return Truth(value, (slope, -slope), value, (slope, -slope))


def squared_error(prediction: Number, target: Number) -> Truth:
    error = prediction - target
    return _of_error(error**2, 2 * error)


def l2_loss(prediction: Number, target: Number) -> Truth:
    error = prediction - target
    return _of_error(error**2 / 2, error)


def absolute_error(prediction: Number, target: Number) -> Truth:
    error = prediction - target
    return _of_error(abs(error), mpmath.sign(error))


def huber_loss(prediction: Number, target: Number, *, delta: float = 1.0) -> Truth:
    error, bound = prediction - target, mpf(delta)
    if abs(error) <= bound:
        return _of_error(error**2 / 2, error)
    return _of_error(bound * (abs(error) - bound / 2), bound * mpmath.sign(error))


def log_cosh(prediction: Number, target: Number) -> Truth:
    error = prediction - target
    with mp.workdps(2 * mp.dps + 40):  # cosh of a tiny error is 1 and a square
        return _of_error(mpmath.log(mpmath.cosh(error)), mpmath.tanh(error))


def quantile_loss(prediction: Number, target: Number, *, quantile: float = 0.5) -> Truth:
    error, share = prediction - target, mpf(quantile)
    slope = (1 - share) if error > 0 else -share if error < 0 else mpf(0)
    return _of_error(slope * error, slope)


def poisson_nll(log_rate: Number, count: Number, *, full: bool = False) -> Truth:
    """``e^x - t x [+ log t!]``.

    With the factorial the terms cancel where the rate is about right, but the loss need not: it
    may be as far off as the rounding of the log-rate makes it, and not farther.
    """
    rate = mpmath.exp(log_rate)
    cost = mpf(0) if count == 0 else count * log_rate
    value, terms = rate - cost, rate + abs(cost)
    count_slope, count_terms = -log_rate, abs(log_rate)
    if full:
        constant, slope = mpmath.loggamma(count + 1), mpmath.digamma(count + 1)
        value, terms = value + constant, terms + abs(constant)
        if mpmath.isfinite(log_rate):
            terms = abs(value) + min(terms, abs(log_rate * (rate - count)))
        # The slope of the factorial is a series of positive terms, less Euler's constant.
        count_slope, count_terms = count_slope + slope, count_terms + slope + 2 * mpmath.euler
    return Truth(value, (rate - count, count_slope), terms, (rate + count, count_terms))


def gaussian_nll(mean: Number, target: Number, variance: Number, *, full: bool = False) -> Truth:
    """``(log v + e^2 / v) / 2 [+ log(2 pi) / 2]``."""
    error = mean - target
    constant = mpmath.log(2 * mpmath.pi) / 2 if full else mpf(0)
    spread, distance = mpmath.log(variance), error**2 / variance
    slope = error / variance
    return Truth(
        (spread + distance) / 2 + constant,
        (slope, -slope, (1 - distance) / (2 * variance)),
        (abs(spread) + distance) / 2 + constant,
        (slope, -slope, (1 + distance) / (2 * variance)),
    )


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place: NUMERICS asks for 1 and 1 of Huber, and for 4
# and 4 of log-cosh. A square doubles the half unit by which the error was rounded, and is rounded.
# Where the weight of an error is itself a rounded number, a unit is added.
SQUARE_VALUE, SQUARE_GRADIENT = 2.5, 1
HUBER_VALUE, HUBER_GRADIENT = 1, 1
ABSOLUTE_VALUE, ABSOLUTE_GRADIENT = 0.51, 0.51
WEIGHTED_VALUE, WEIGHTED_GRADIENT = 2, 1
LOG_COSH_VALUE, LOG_COSH_GRADIENT = 4, 4
POISSON_VALUE, POISSON_GRADIENT = 4, 4
FULL_POISSON_VALUE, FULL_POISSON_GRADIENT = 8, 8
GAUSSIAN_VALUE, GAUSSIAN_GRADIENT = 4, 4

PREDICTIONS = Argument(
    "predictions", lambda rng, leading, classes: 3 * rng.normal(size=(*leading, classes))
)
TARGETS = Argument("targets", lambda rng, leading, classes: rng.normal(size=(*leading, classes)))
LOG_RATES = Argument(
    "log_predictions", lambda rng, leading, classes: rng.normal(size=(*leading, classes))
)
COUNTS = Argument(
    "targets", lambda rng, leading, classes: 0.5 + rng.gamma(2.0, 2.0, size=(*leading, classes))
)
MEANS = Argument("means", PREDICTIONS.make)
VARIANCES = Argument(
    "variances", lambda rng, leading, classes: 0.5 + rng.exponential(size=(*leading, classes))
)


# --- inputs ---------------------------------------------------------------------------------------


def errors(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Predictions [rows] and targets [rows], near each other and far apart, at every size."""
    generator = np.random.default_rng(rows)
    info = ml_dtypes.finfo(dtype)
    largest, smallest = float(info.max), float(info.smallest_normal)
    sign = generator.choice([-1.0, 1.0], size=60)
    powers = 10.0 ** -np.arange(1, 31)
    share = generator.uniform(0.1, 1.0, size=(2, 8))
    pairs = {
        **{f"scale {scale:g}": scale * generator.normal(size=(2, 12 * rows)) for scale in SCALES},
        "equal": np.broadcast_to([0.0, -0.0, 1.5, -300.0, largest], (2, 5)),
        "small errors": (sign[:30] * powers, 0.0),
        "small errors of small numbers": (3.0 * powers, powers),
        "large errors": (0.0, sign[:30] / powers),
        "grid": (np.linspace(-4.0, 4.0, 65), 0.0),
        "far": (np.linspace(-100.0, 100.0, 21), 0.5),
        "offset by 300": (300.0 + generator.normal(size=12), 300.0 + generator.normal(size=12)),
        "huge": largest * share,
        "huge of both signs": largest * share * [[1.0], [-1.0]],
        "huge and ordinary": (largest * share[0], share[1]),
        "huge and tiny": (smallest * share[0], -largest * share[1]),
        "about the root of the largest": (np.sqrt(largest) * share[0], -np.sqrt(largest)),
        "subnormal": smallest * share * sign[:16].reshape(2, 8),
    }
    for name, (predictions, targets) in pairs.items():
        yield one_shape(name, (predictions, targets), dtype)
    for center in (1.0, 1000.0, 0.1):
        at = np.broadcast_to(np.array(center, dtype), (2,))
        beside = np.nextafter(at, np.array([np.inf, -np.inf], dtype))
        yield Family(f"neighbours at {center:g}", (at, beside))


def ordinary_errors(dtype: Any) -> Iterator[Family]:
    """Without subnormal errors: processors that take them for 0 cannot know their sign."""
    return (family for family in errors(dtype) if family.name != "subnormal")


def errors_about(delta: float) -> Callable[[Any], Iterator[Family]]:
    """The same, and errors at and just beside plus and minus `delta`."""

    def inputs(dtype: Any) -> Iterator[Family]:
        yield from errors(dtype)
        at = np.array([delta, -delta], dtype)
        for name, towards in (("at", at), ("inside", 0 * at), ("outside", 2 * at)):
            near = np.nextafter(at, towards.astype(dtype))
            yield Family(f"{name} delta", (near, np.zeros(2, dtype)))
            yield one_shape(f"{name} delta from 3", (3.0 + near.astype(np.float64), 3.0), dtype)

    return inputs


def counts(dtype: Any, rows: int = 1) -> Iterator[Family]:
    """Log-rates [rows] and counts [rows]: rates that are right, nearly so, and impossible."""
    generator = np.random.default_rng([rows, 1])
    whole = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 30, 100, 1000, 1e4, 1e6], np.float64)
    broken = np.array([1e-30, 1e-3, 0.1, 0.46163, 0.49, 0.51, 0.9, 1.1, 1.49, 1.51, 2.5, 7.99, 8.1])
    every = np.concatenate([whole, broken])
    largest = float(ml_dtypes.finfo(dtype).max)
    for scale in (0.1, 1.0, 10.0):
        for name, given in (("whole", whole), ("broken", broken)):
            log_rates = scale * generator.normal(size=len(given) * rows)
            yield one_shape(f"scale {scale:g}, {name}", (log_rates, np.repeat(given, rows)), dtype)
    right = np.log(np.maximum(every, 1e-3))
    for off in (0.0, 1e-6, 1e-3, 0.1, 0.55, 0.65, 0.99, 1.01, 2.0, 5.0):
        for sign in (1.0, -1.0):
            yield one_shape(f"off by {sign * off:g}", (right + sign * off, every), dtype)
    others = {
        "a rate of 0": ([-np.inf] * 4, [0.0, 1.0, 0.5, 100.0]),
        "hardly any": (-np.array([20.0, 50.0, 80.0, 100.0, 1e4]), 1.0),
        "many for none": (np.array([20.0, 50.0, 80.0, 88.0]), 0.0),
        "the largest rates": (np.array([87.0, 87.7, 88.5, 88.7, 90.0]), 1e6),
        "the largest rates and counts": (np.array([86.0, 87.7, 88.5, 88.7]), 1e36),
        "log-rates about 0": (np.array([0.0, -0.0, 1e-7, -1e-7, 1e-30]), 3.0),
        "huge": (largest * np.array([1.0, 0.1, -1.0, -0.1]), 2.0),
        "huge, no count": (largest * np.array([1.0, 0.1, -1.0, -0.1]), 0.0),
        "huge counts": (np.array([1.0, -1.0, 0.5, 0.0]), largest * np.array([0.01, 0.02, 1, 1])),
    }
    for name, (log_rates, given) in others.items():
        yield one_shape(name, (log_rates, given), dtype)


def spreads(dtype: Any) -> Iterator[Family]:
    """The errors again, each with variances that are too small, too large and about right."""
    generator = np.random.default_rng(0)
    info = ml_dtypes.finfo(dtype)
    smallest, largest = float(info.smallest_normal), float(info.max)
    extremes = (1.0, 1e-6, 1e6, smallest, largest, 0.999, 1.001)
    for index, family in enumerate(ordinary_errors(dtype)):
        size = family.arrays[0].shape
        each = {
            "any": generator.exponential(size=size) + 1e-3,
            "extreme": np.full(size, extremes[index % len(extremes)]),
        }
        for name, variances in each.items():
            means, targets = family.arrays
            yield one_shape(f"{family.name}, {name} variance", (means, targets, variances), dtype)
        with np.errstate(over="ignore"):
            error = np.subtract(*(a.astype(np.float64) for a in family.arrays))
            square = np.clip(np.square(error), max(smallest, 1e-30), largest)
        yield one_shape(f"{family.name}, its own variance", (*family.arrays, square), dtype)


def one_shape(name: str, arrays: tuple[Any, ...], dtype: Any) -> Family:
    """In the dtype asked for, of one shape, cut to its range except for what is infinite."""
    largest = float(ml_dtypes.finfo(dtype).max)
    wide = np.broadcast_arrays(*(np.asarray(array, np.float64) for array in arrays))
    within = (np.where(np.isinf(a), a, np.clip(a, -largest, largest)) for a in wide)
    return Family(name, tuple(array.astype(dtype) for array in within))


# --- rows -----------------------------------------------------------------------------------------


def _jumps_at(size: float) -> Callable[..., np.ndarray]:
    """The scale of second derivatives of errors, infinite where they jump: either side will do."""

    def scale(predictions: np.ndarray, targets: np.ndarray) -> np.ndarray:
        error = np.abs(predictions.astype(np.float64) - targets.astype(np.float64))
        return np.where(np.abs(error - size) <= 1e-6 * size, np.inf, 1.0)

    return scale


_error = functools.partial(Case, arguments=(PREDICTIONS, TARGETS), hard_inputs=errors)
_square = functools.partial(_error, value_ulps=SQUARE_VALUE, gradient_ulps=SQUARE_GRADIENT)
_huber = functools.partial(
    _error, jaxent.huber_loss, truth=huber_loss, gradient_ulps=HUBER_GRADIENT
)
_quantile = functools.partial(
    _error,
    jaxent.quantile_loss,
    truth=quantile_loss,
    hard_inputs=ordinary_errors,
    hessian_scale=_jumps_at(0.0),
)
_poisson = functools.partial(
    Case,
    jaxent.poisson_nll,
    (LOG_RATES, COUNTS),
    poisson_nll,
    counts,
    is_nonnegative=False,
)
_gaussian = functools.partial(
    Case,
    jaxent.gaussian_nll,
    (MEANS, TARGETS, VARIANCES),
    gaussian_nll,
    spreads,
    GAUSSIAN_VALUE,
    GAUSSIAN_GRADIENT,
    is_nonnegative=False,
)

CASES: tuple[Case, ...] = (
    _square(
        jaxent.squared_error,
        truth=squared_error,
        peer=optax.squared_error,
    ),
    _square(jaxent.l2_loss, truth=l2_loss, peer=optax.l2_loss),
    _error(
        jaxent.absolute_error,
        truth=absolute_error,
        hard_inputs=ordinary_errors,
        value_ulps=ABSOLUTE_VALUE,
        gradient_ulps=ABSOLUTE_GRADIENT,
        hessian_scale=_jumps_at(0.0),
    ),
    _huber(
        hard_inputs=errors_about(1.0),
        value_ulps=HUBER_VALUE,
        hessian_scale=_jumps_at(1.0),
        peer=optax.huber_loss,
    ),
    _huber(
        hard_inputs=errors_about(0.375),
        value_ulps=WEIGHTED_VALUE,
        options={"delta": 0.375},
        hessian_scale=_jumps_at(0.375),
    ),
    _error(
        jaxent.log_cosh,
        truth=log_cosh,
        value_ulps=LOG_COSH_VALUE,
        gradient_ulps=LOG_COSH_GRADIENT,
        peer=optax.log_cosh,
    ),
    _quantile(value_ulps=ABSOLUTE_VALUE, gradient_ulps=ABSOLUTE_GRADIENT),
    _quantile(
        value_ulps=WEIGHTED_VALUE, gradient_ulps=WEIGHTED_GRADIENT, options={"quantile": 0.9}
    ),
    _poisson(POISSON_VALUE, POISSON_GRADIENT),
    _poisson(FULL_POISSON_VALUE, FULL_POISSON_GRADIENT, {"full": True}),
    _gaussian(),
    _gaussian({"full": True}),
)
NOT_LOSSES: dict[str, str] = {}
