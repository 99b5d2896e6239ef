"""Losses of real numbers: errors of predictions, counts, and normal distributions."""

import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._kernels import regression


@_checks.public
def squared_error(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""The squared error of each prediction; its mean is smallest at the mean of the targets.

    .. math:: \ell = (x - y)^2

    Args:
        predictions: What the model says, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, real, of the rank of `predictions`, or a scalar; None is 0, for
            predictions that are errors already.
        where: Booleans of the rank of `predictions`, or a scalar: True where the element counts.
            None counts all.

    Returns:
        One loss per element in squared units of the targets, of the common shape, float32 (float64
        if any input is). It is `+inf` for an infinite error. Masked elements have loss 0 and
        gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.squared_error(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [ 0.    0.25 16.  ]

    References:
        Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 2009, section 2.4.
    """
    where, arrays = _predictions_and_targets(predictions, targets, where)
    return _masks.zero_where_masked(_masks.apply_elementwise(_square, arrays), where)


@_checks.public
def l2_loss(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""Half of the squared error of each prediction, whose derivative is the error itself.

    .. math:: \ell = \tfrac{1}{2} (x - y)^2

    Args:
        predictions: What the model says, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, real, of the rank of `predictions`, or a scalar; None is 0, for
            predictions that are errors already.
        where: Booleans of the rank of `predictions`, or a scalar: True where the element counts.
            None counts all.

    Returns:
        One loss per element in squared units of the targets, of the common shape, float32 (float64
        if any input is). It is `+inf` for an infinite error. Masked elements have loss 0 and
        gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.l2_loss(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [0.    0.125 8.   ]

    References:
        Bishop, *Pattern Recognition and Machine Learning*, 2006, section 1.1.
    """
    where, arrays = _predictions_and_targets(predictions, targets, where)
    return _masks.zero_where_masked(_masks.apply_elementwise(_half_square, arrays), where)


@_checks.public
def absolute_error(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""The absolute error of each prediction; its mean is smallest at the median of the targets.

    .. math:: \ell = |x - y|

    Args:
        predictions: What the model says, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, real, of the rank of `predictions`, or a scalar; None is 0, for
            predictions that are errors already.
        where: Booleans of the rank of `predictions`, or a scalar: True where the element counts.
            None counts all.

    Returns:
        One loss per element in units of the targets, of the common shape, float32 (float64 if any
        input is). The derivative of an error of exactly 0 is given as 0. Masked elements have loss
        0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.absolute_error(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [0.  0.5 4. ]

    References:
        Hastie, Tibshirani, Friedman, *The Elements of Statistical Learning*, 2009, section 10.6.
    """
    where, arrays = _predictions_and_targets(predictions, targets, where)
    return _masks.zero_where_masked(_masks.apply_elementwise(_size, arrays), where)


@_checks.public
def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    where: ArrayLike | None = None,
    *,
    delta: ArrayLike = 1.0,
) -> jax.Array:
    r"""Half of the squared error where it is small, and linear in it where it is large.

    .. math::
        \ell = \begin{cases}
            e^2 / 2 & |e| \le \delta \\
            \delta\, (|e| - \delta / 2) & |e| > \delta
        \end{cases}
        \qquad e = x - y

    No single example pulls with more than :math:`\delta`: the derivative is the error, cut to
    :math:`[-\delta, \delta]`.

    Args:
        predictions: What the model says, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, real, of the rank of `predictions`, or a scalar; None is 0, for
            predictions that are errors already.
        where: Booleans of the rank of `predictions`, or a scalar: True where the element counts.
            None counts all.
        delta: The error :math:`\delta > 0` from which on the loss is linear, finite, in the unit
            of the targets. A number, or a scalar array (NaN if out of range).

    Returns:
        One loss per element in squared units of the targets, of the common shape, float32 (float64
        if any input is). It is `+inf` for an infinite error. Masked elements have loss 0 and
        gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or `delta` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.huber_loss(jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])))
        [0.    0.125 3.5  ]

    References:
        Huber, `Robust Estimation of a Location Parameter
        <https://doi.org/10.1214/aoms/1177703732>`_, 1964.
    """
    where, arrays = _predictions_and_targets(predictions, targets, where)
    _checks.check_open_interval("delta", delta, 0.0, math.inf)
    return _masks.zero_where_masked(
        _masks.apply_elementwise(_huber, arrays, _checks.as_scalar("delta", delta)), where
    )


@_checks.public
def log_cosh(
    predictions: ArrayLike, targets: ArrayLike | None = None, where: ArrayLike | None = None
) -> jax.Array:
    r"""The logarithm of the hyperbolic cosine of each error: a smooth relative of Huber's loss.

    .. math:: \ell = \log \cosh(x - y)

    It is half of the squared error near 0 and the absolute error minus log 2 far away. Its
    derivative is the hyperbolic tangent of the error.

    Args:
        predictions: What the model says, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, real, of the rank of `predictions`, or a scalar; None is 0, for
            predictions that are errors already.
        where: Booleans of the rank of `predictions`, or a scalar: True where the element counts.
            None counts all.

    Returns:
        One loss per element, of the common shape, float32 (float64 if any input is). The unit in
        which predictions and targets are given sets where the loss turns from square to linear.
        Masked elements have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.log_cosh(jnp.array([1e-4, 2.5, -3.0]), jnp.array([0.0, 2.0, 1.0])))
        [5.0000001e-09 1.2011450e-01 3.3071882e+00]

    References:
        Pengfei Chen, Guangyong Chen, Shengyu Zhang, `Log Hyperbolic Cosine Loss Improves
        Variational Auto-Encoder <https://openreview.net/forum?id=rkglvsC9Ym>`_, 2019.
    """
    where, arrays = _predictions_and_targets(predictions, targets, where)
    return _masks.zero_where_masked(_masks.apply_elementwise(regression.log_cosh, arrays), where)


@_checks.public
def quantile_loss(
    predictions: ArrayLike,
    targets: ArrayLike | None = None,
    where: ArrayLike | None = None,
    *,
    quantile: ArrayLike = 0.5,
) -> jax.Array:
    r"""The pinball loss of each prediction; its mean is smallest at a quantile of the targets.

    .. math::
        \ell = \begin{cases}
            q\, (y - x) & y \ge x \\
            (1 - q)\, (x - y) & y < x
        \end{cases}

    Args:
        predictions: What the model says, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, real, of the rank of `predictions`, or a scalar; None is 0, for
            predictions that are errors already.
        where: Booleans of the rank of `predictions`, or a scalar: True where the element counts.
            None counts all.
        quantile: Which one, :math:`q` in (0, 1): 0.9 asks for the number that 90% of the targets
            stay below, 0.5 for half of the absolute error. A number, or a scalar array (NaN if
            out of range).

    Returns:
        One loss per element in units of the targets, of the common shape, float32 (float64 if any
        input is). The derivative of an error of exactly 0 is given as 0. Masked elements have loss
        0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or `quantile` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> predictions, targets = jnp.array([1.0, 2.5, -3.0]), jnp.array([1.0, 2.0, 1.0])
        >>> print(jaxent.quantile_loss(predictions, targets, quantile=0.75))
        [0.    0.125 3.   ]

    References:
        Koenker, Bassett, `Regression Quantiles <https://doi.org/10.2307/1913643>`_, 1978.
    """
    where, arrays = _predictions_and_targets(predictions, targets, where)
    _checks.check_open_interval("quantile", quantile, 0.0, 1.0)
    given = _checks.as_scalar("quantile", quantile)
    if not isinstance(quantile, numbers.Real):
        return _masks.zero_where_masked(_masks.apply_elementwise(_pinball, arrays, given), where)
    # In Python's digits, since of a rounded 0.9 only 0.100000024 is left.
    rest = _checks.as_scalar("quantile", 1.0 - float(quantile))
    return _masks.zero_where_masked(
        _masks.apply_elementwise(regression.pinball, arrays, given, rest), where
    )


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
        log_predictions: Logarithm of the expected count, any shape, floating point; 16-bit dtypes
            are computed in float32. `-inf` is a rate of 0: a count of 0 costs 0, others `+inf`.
        targets: Counts, real and non-negative, of the rank of `log_predictions`, or a scalar.
            Negative ones make their element NaN.
        where: Booleans of the rank of `log_predictions`, or a scalar: True where the element
            counts. None counts all.
        full: Whether :math:`\log t!`, which no prediction can change, is part of the loss. It is
            exact, :math:`\log \Gamma(t + 1)` where the count is no integer, and where the rate is
            about right it does not cancel against the rest, however large the count.

    Returns:
        One loss per element in nats, of the common shape, float32 (float64 if any input is). It may
        be negative unless `full` and the count is an integer. Masked elements have loss 0 and
        gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or `full` are refused.

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
    _flag("full", full)
    given = {"log_predictions": log_predictions, "targets": targets}
    where, arrays = _masks.mask_elements(where, **given)
    return _masks.zero_where_masked(
        _masks.apply_elementwise(_full_poisson if full else _poisson, arrays), where
    )


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

    .. math:: \ell = \frac{1}{2} \Big( \log v + \frac{(y - \mu)^2}{v} \Big)
        \; [ {} + \tfrac{1}{2} \log 2 \pi \, ]

    Args:
        means: Expected values :math:`\mu`, any shape, floating point, in the unit of the targets;
            16-bit dtypes are computed in float32.
        targets: What was true, :math:`y`, real, of the rank of `means`, or a scalar.
        variances: Variances :math:`v > 0`, in squared units of the targets, of the rank of
            `means`, or a scalar. They are used as they are, without a lower bound; those that are
            not positive make their element NaN, 0 included, for which there is no density.
        where: Booleans of the rank of `means`, or a scalar: True where the element counts.
            None counts all.
        full: Whether the constant :math:`\frac{1}{2} \log 2 \pi` is part of the loss.

    Returns:
        One loss per element in nats, of the common shape, float32 (float64 if any input is). It may
        be negative, as densities may exceed 1. Masked elements have loss 0 and gradient 0, whatever
        they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or `full` are refused.

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
    _flag("full", full)
    given = {"means": means, "targets": targets, "variances": variances}
    where, arrays = _masks.mask_elements(where, **given)
    return _masks.zero_where_masked(
        _masks.apply_elementwise(_full_gaussian if full else _gaussian, arrays), where
    )


def _predictions_and_targets(
    predictions: ArrayLike, targets: ArrayLike | None, where: ArrayLike | None
) -> tuple[jax.Array | None, list[jax.Array]]:
    """The mask, and both as arrays; refused where they do not fit. No targets are targets of 0."""
    predictions = _checks.as_floating("predictions", predictions)
    targets = _checks.as_real("targets", 0.0 if targets is None else targets)
    return _masks.mask_elements(where, predictions=predictions, targets=targets)


def _flag(name: str, value: bool) -> None:
    """Refuses anything but a Python bool, arrays and 0 and 1 included."""
    _checks.require(isinstance(value, bool), f"`{name}` must be True or False, got {value!r}.")


def _square(x, y) -> jax.Array:
    return jnp.square(x - y)


def _half_square(x, y) -> jax.Array:
    return regression.half_square(x - y)


def _size(x, y) -> jax.Array:
    one = jnp.ones((), x.dtype)
    return regression.pinball(x, y, one, one)


def _huber(x, y, delta) -> jax.Array:
    return regression.huber(
        x, y, _masks.nan_where_invalid(delta, (delta > 0.0) & (delta < jnp.inf))
    )


def _pinball(x, y, quantile) -> jax.Array:
    quantile = _masks.nan_where_invalid(quantile, (quantile > 0.0) & (quantile < 1.0))
    return regression.pinball(x, y, quantile, 1.0 - quantile)


def _poisson(x, counts) -> jax.Array:
    return regression.poisson(x, _masks.nan_where_invalid(counts, counts >= 0.0))


def _full_poisson(x, counts) -> jax.Array:
    return regression.poisson_surprise(x, _masks.nan_where_invalid(counts, counts >= 0.0))


def _gaussian(means, targets, variances) -> jax.Array:
    return regression.gaussian(means, targets, _masks.nan_where_invalid(variances, variances > 0.0))


def _full_gaussian(means, targets, variances) -> jax.Array:
    return _gaussian(means, targets, variances) + 0.5 * math.log(2.0 * math.pi)
