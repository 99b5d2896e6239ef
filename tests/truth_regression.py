"""The truth of the regression losses: their textbook formulas, with derivatives in closed form."""

import mpmath
from mpmath import mp, mpf
from oracle import Number, Truth

# What scales a second derivative that jumps: there either side is as right as the other.
JUMP = mpf("inf")


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
