"""Losses of real numbers: errors of predictions, counts, and normal distributions."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._kernels import poisson, regression


@_checks.public
def squared_error(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""The squared error of each prediction; its mean is smallest at the mean of the targets.

    .. math:: \ell = (x - y)^2

    Args:
        predictions: Predictions x, any shape, floating point.
        targets: Targets y, real, of the rank of `predictions`, or a scalar. None is 0.
        where: Mask of the elements, of the rank of `predictions`, or a scalar.

    Returns:
        One loss per element in squared units of the targets, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.squared_error(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [ 0.    0.25 16.  ]

    References:
        Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 2009, section 2.4.
    """
    return _error_loss(_square, predictions, targets, where)


@_checks.public
def l2_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""Half of the squared error of each prediction, whose derivative is the error itself.

    .. math:: \ell = \tfrac{1}{2} (x - y)^2

    Args:
        predictions: Predictions x, any shape, floating point.
        targets: Targets y, real, of the rank of `predictions`, or a scalar. None is 0.
        where: Mask of the elements, of the rank of `predictions`, or a scalar.

    Returns:
        One loss per element in squared units of the targets, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.l2_loss(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [0.    0.125 8.   ]

    References:
        Bishop, *Pattern Recognition and Machine Learning*, 2006, section 1.1.
    """
    return _error_loss(_half_square, predictions, targets, where)


@_checks.public
def absolute_error(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""The absolute error of each prediction; its mean is smallest at the median of the targets.

    .. math:: \ell = |x - y|

    Args:
        predictions: Predictions x, any shape, floating point.
        targets: Targets y, real, of the rank of `predictions`, or a scalar. None is 0.
        where: Mask of the elements, of the rank of `predictions`, or a scalar.

    Returns:
        One loss per element in units of the targets, float32 (float64 for float64 inputs). At an
        error of 0 the derivative is 0.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.absolute_error(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [0.  0.5 4. ]

    References:
        Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 2009, section 10.6.
    """
    return _error_loss(_absolute, predictions, targets, where)


@_checks.public
def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    where: ArrayLike | None = None,
    *,
    delta: ArrayLike = 1.0,
) -> jax.Array:
    r"""Half of the squared error where it is small, and linear in it where it is large.

    .. math:: \ell = \begin{cases} e^2 / 2 & |e| \le \delta \\
        \delta\, (|e| - \delta / 2) & |e| > \delta \end{cases} \qquad e = x - y

    Args:
        predictions: Predictions x, any shape, floating point.
        targets: Targets y, real, of the rank of `predictions`, or a scalar. None is 0.
        where: Mask of the elements, of the rank of `predictions`, or a scalar.
        delta: The error :math:`\delta > 0` from which on the loss is linear, finite; a scalar.

    Returns:
        One loss per element in squared units of the targets, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.huber_loss(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [0.    0.125 3.5  ]

    References:
        Huber, `Robust Estimation of a Location Parameter
        <https://doi.org/10.1214/aoms/1177703732>`_, 1964.
    """
    _checks.check_open_interval("delta", delta, 0.0, math.inf)
    delta = _checks.as_scalar("delta", delta)
    return _error_loss(_huber, predictions, targets, where, delta)


@_checks.public
def log_cosh(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""The logarithm of the hyperbolic cosine of each error: a smooth relative of Huber's loss.

    .. math:: \ell = \log \cosh(x - y)

    Args:
        predictions: Predictions x, any shape, floating point.
        targets: Targets y, real, of the rank of `predictions`, or a scalar. None is 0.
        where: Mask of the elements, of the rank of `predictions`, or a scalar.

    Returns:
        One loss per element, without unit, float32 (float64 for float64 inputs). The unit of the
        inputs sets the error from which on the loss is linear.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.log_cosh(jnp.array([1e-4, 2.5, -3.0]), jnp.array([0.0, 2.0, 1.0])))
        [5.0000001e-09 1.2011450e-01 3.3071882e+00]

    References:
        Chen et al., `Log Hyperbolic Cosine <https://openreview.net/forum?id=rkglvsC9Ym>`_, 2019.
    """
    return _error_loss(regression.log_cosh, predictions, targets, where)


@_checks.public
def quantile_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    where: ArrayLike | None = None,
    *,
    quantile: ArrayLike = 0.5,
) -> jax.Array:
    r"""The pinball loss of each prediction; its mean is smallest at a quantile of the targets.

    .. math:: \ell = \max\big( q\, (y - x),\ (1 - q)\, (x - y) \big)

    Args:
        predictions: Predictions x, any shape, floating point.
        targets: Targets y, real, of the rank of `predictions`, or a scalar. None is 0.
        where: Mask of the elements, of the rank of `predictions`, or a scalar.
        quantile: Which quantile, q in (0, 1), a scalar: 90% of the targets stay below that of 0.9.

    Returns:
        One loss per element in units of the targets, float32 (float64 for float64 inputs). At an
        error of 0 the derivative is 0.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> predictions, targets = jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])
        >>> print(jaxent.quantile_loss(predictions, targets, quantile=0.75))
        [0.    0.125 3.   ]

    References:
        Koenker, Bassett, `Regression Quantiles <https://doi.org/10.2307/1913643>`_, 1978.
    """
    _checks.check_open_interval("quantile", quantile, 0.0, 1.0)
    q = _checks.as_scalar("quantile", quantile)
    if not isinstance(quantile, numbers.Real):
        return _error_loss(_pinball, predictions, targets, where, q)
    # 1 - q before q is rounded: from a float32 of 0.9 it would be 0.100000024.
    complement = _checks.as_scalar("quantile", 1.0 - float(quantile))
    return _error_loss(regression.pinball, predictions, targets, where, q, complement)


@_checks.public
def poisson_nll(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None = None,
    *,
    full: bool = False,
) -> jax.Array:
    r"""Negative log-likelihood of a count under a Poisson distribution, from its log-rate.

    .. math:: \ell = e^x - t\, x \; [ {} + \log t! \, ]

    Args:
        log_predictions: Logarithms x of the expected counts, any shape, floating point.
        targets: Counts t, real, not negative, of the rank of `log_predictions`, or a scalar.
        where: Mask of the elements, of the rank of `log_predictions`, or a scalar.
        full: Whether the constant :math:`\log t! = \log \Gamma(t + 1)` is part of the loss.

    Returns:
        One loss per element in nats, float32 (float64 for float64 inputs). It may be negative
        unless `full` and the count is an integer.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_rates, counts = jnp.log(jnp.array([0.5, 4.0, 1e6])), jnp.array([0, 3, 1_000_000])
        >>> print(jaxent.poisson_nll(log_rates, counts, full=True))
        [0.5       1.6328768 7.826694 ]

    References:
        Cameron, Trivedi, *Regression Analysis of Count Data*, 2013, section 2.2.
    """
    log_predictions = _checks.as_floating("log_predictions", log_predictions)
    targets = _checks.as_real("targets", targets)
    _check_flag("full", full)
    where, arrays = _masks.mask_elements(where, log_predictions=log_predictions, targets=targets)
    losses = _masks.apply_elementwise(_full_poisson_nll if full else _poisson_nll, arrays)
    return _masks.zero_where_masked(losses, where)


@_checks.public
def gaussian_nll(
    means: ArrayLike,
    targets: ArrayLike,
    variances: ArrayLike,
    where: ArrayLike | None = None,
    *,
    full: bool = False,
) -> jax.Array:
    r"""Negative log-likelihood of a number under a normal distribution of predicted variance.

    .. math:: \ell = \frac{1}{2} \big( \log v + (y - \mu)^2 / v \; [ {} + \log 2 \pi \, ] \big)

    Args:
        means: Expected values :math:`\mu`, any shape, floating point.
        targets: Targets y, real, of the rank of `means`, or a scalar.
        variances: Variances v, positive, of the rank of `means`, or a scalar. Derivatives in v
            overflow float32 where :math:`|y - \mu| / v` is above 2.6e19.
        where: Mask of the elements, of the rank of `means`, or a scalar.
        full: Whether the constant :math:`\frac{1}{2} \log 2 \pi` is part of the loss.

    Returns:
        One loss per element in nats, of either sign, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> means, targets = jnp.array([0.0, 1.0]), jnp.array([0.0, 3.0])
        >>> print(jaxent.gaussian_nll(means, targets, jnp.array([1.0, 4.0]), full=True))
        [0.9189385 2.1120858]

    References:
        Nix, Weigend, `Estimating the Mean and Variance of the Target Probability Distribution
        <https://doi.org/10.1109/ICNN.1994.374138>`_, 1994.
    """
    means = _checks.as_floating("means", means)
    targets = _checks.as_real("targets", targets)
    variances = _checks.as_real("variances", variances)
    _check_flag("full", full)
    where, arrays = _masks.mask_elements(where, means=means, targets=targets, variances=variances)
    losses = _masks.apply_elementwise(_full_gaussian_nll if full else _gaussian_nll, arrays)
    return _masks.zero_where_masked(losses, where)


def _error_loss(
    kernel: Callable[..., jax.Array],
    predictions: ArrayLike,
    targets: ArrayLike | None,
    where: ArrayLike | None,
    *options: jax.Array,
) -> jax.Array:
    """The losses of a kernel of predictions, targets (None is 0) and scalar options."""
    predictions = _checks.as_floating("predictions", predictions)
    targets = _checks.as_real("targets", 0.0 if targets is None else targets)
    where, arrays = _masks.mask_elements(where, predictions=predictions, targets=targets)
    return _masks.zero_where_masked(_masks.apply_elementwise(kernel, arrays, *options), where)


def _check_flag(name: str, value: bool) -> None:
    """Refuses anything but a Python bool, arrays and 0 and 1 included."""
    _checks.require(isinstance(value, bool), f"`{name}` must be True or False, got {value!r}.")


# Kernels, with NaN where a number is out of range.


def _square(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.square(x - y)


def _half_square(x: jax.Array, y: jax.Array) -> jax.Array:
    return regression.half_square(x - y)


def _absolute(x: jax.Array, y: jax.Array) -> jax.Array:
    one = jnp.ones((), x.dtype)
    return regression.pinball(x, y, one, one)


def _huber(x: jax.Array, y: jax.Array, delta: jax.Array) -> jax.Array:
    return regression.huber(x, y, intervals.nan_outside(delta, 0.0, jnp.inf, "()"))


def _pinball(x: jax.Array, y: jax.Array, quantile: jax.Array) -> jax.Array:
    quantile = intervals.nan_outside(quantile, 0.0, 1.0, "()")
    return regression.pinball(x, y, quantile, 1.0 - quantile)


def _poisson_nll(x: jax.Array, counts: jax.Array) -> jax.Array:
    return poisson.poisson_nll(x, intervals.nan_outside(counts, 0.0, jnp.inf))


def _full_poisson_nll(x: jax.Array, counts: jax.Array) -> jax.Array:
    return poisson.full_poisson_nll(x, intervals.nan_outside(counts, 0.0, jnp.inf))


def _gaussian_nll(means: jax.Array, targets: jax.Array, variances: jax.Array) -> jax.Array:
    variances = intervals.nan_outside(variances, 0.0, jnp.inf, "(]")
    return regression.gaussian_nll(means, targets, variances)


def _full_gaussian_nll(means: jax.Array, targets: jax.Array, variances: jax.Array) -> jax.Array:
    return _gaussian_nll(means, targets, variances) + 0.5 * math.log(2.0 * math.pi)
