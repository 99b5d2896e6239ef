"""What happens to targets, class frequencies and logits before a loss sees them."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import logits as logits_kernels


@_checks.public
def smooth_labels(
    labels: ArrayLike,
    alpha: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Targets of which a share is spread evenly over the classes that exist.

    .. math:: t_j = (1 - \alpha)\, y_j + \alpha / K

    Losses that take `label_smoothing` do the same without writing the targets down.

    Args:
        labels: Targets, one per class, shape `[..., V]` (with V along `axis`); real or boolean,
            non-negative, 16-bit dtypes are computed in float32. A negative one becomes NaN, and
            with it the loss of its example, unless it is masked.
        alpha: The share :math:`\alpha` in [0, 1]. A number, or a scalar array (NaN if out of
            range).
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `labels`: True where the class exists; K counts these.

    Returns:
        Targets of the shape of `labels` and in their unit, float32 (float64 for float64 labels).
        What is masked, a class or an example, is 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `alpha` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> labels = jnp.array([0.0, 1.0, 0.0, 0.0])
        >>> print(jaxent.smooth_labels(labels, 0.1))
        [0.025 0.925 0.025 0.025]
        >>> print(jaxent.smooth_labels(labels, 0.1, where=jnp.array([True, True, False, False])))
        [0.05 0.95 0.   0.  ]

    References:
        Szegedy et al., `Rethinking the Inception Architecture <https://arxiv.org/abs/1512.00567>`_,
        2015, section 7; Müller et al., `When Does Label Smoothing Help?
        <https://arxiv.org/abs/1906.02629>`_, 2019.
    """
    labels = _checks.as_real("labels", labels)
    axes = _checks.normalize_axes("labels", labels, axis)
    _checks.check_closed_interval("alpha", alpha, 0.0, 1.0)
    alpha = _checks.as_scalar("alpha", alpha)
    where = _masks.check_mask(where, axes, {"labels": labels})
    return _smoothed(labels, alpha, where, axes)


@_checks.public
def class_balanced_weights(counts: ArrayLike, beta: ArrayLike = 0.999) -> jax.Array:
    r"""Weights of classes by the effective number of their examples, of mean 1.

    .. math:: w_j \propto \frac{1 - \beta}{1 - \beta^{n_j}}

    With :math:`\beta = 0` all classes weigh the same; as :math:`\beta` tends to 1 the weights tend
    to be inverse to the counts. Take `weights[labels]` as the `weights` of `jaxent.mean`.

    Args:
        counts: Number of examples :math:`n_j` of each class, shape `[V]` or `[..., V]`; real. A
            class without examples has weight 0. A negative count makes its row NaN.
        beta: :math:`\beta` in [0, 1). A number, or a scalar array (NaN if out of range).

    Returns:
        Weights of the shape of `counts`, without a unit, float32 (float64 for float64 counts).
        Over the classes that have examples their mean is 1.

    Raises:
        ArgumentError: If dtypes, shapes or `beta` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.class_balanced_weights(jnp.array([1000, 100, 10, 0])))
        [0.04216039 0.28000012 2.6778395  0.        ]

    References:
        Cui et al., `Class-Balanced Loss Based on Effective Number of Samples
        <https://arxiv.org/abs/1901.05555>`_, 2019, section 3.
    """
    counts = _checks.as_real("counts", counts)
    _checks.require(
        counts.ndim > 0 and counts.shape[-1] > 0,
        f"`counts` {_checks.describe(counts)} must have one entry per class along its last axis, "
        "and at least one class.",
    )
    is_number = isinstance(beta, numbers.Real)
    _checks.require(
        not is_number or 0 <= float(beta) < 1,
        f"`beta` must lie in [0, 1), got {beta}.",
    )
    # A number keeps the digits that make it differ from 1.
    known_decay = (-math.log(beta) if beta else math.inf) if is_number else None
    return _balanced(counts, _checks.as_scalar("beta", beta), known_decay)


@_checks.public
def logit_adjustment(
    logits: ArrayLike,
    class_priors: ArrayLike,
    tau: ArrayLike = 1.0,
    axis: int = -1,
) -> jax.Array:
    r"""Logits to train with, so that rare classes are not drowned by frequent ones.

    .. math:: x'_j = x_j + \tau \log \pi_j

    Give the result to a softmax loss and predict with the plain logits. With a negative
    :math:`\tau` it corrects, instead, the predictions of a model that was trained without it.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` stays `-inf`.
        class_priors: Frequencies :math:`\pi_j \ge 0`, shape `[V]` or of the rank of `logits`; real.
            Their total does not matter: counts will do. A class of frequency 0 becomes impossible,
            `-inf` (for positive :math:`\tau`). A negative frequency makes its logits NaN.
        tau: The strength :math:`\tau`; a number or a scalar array.
        axis: The class axis.

    Returns:
        Logits of the common shape in nats, float32 (float64 if any input is).

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.logit_adjustment(jnp.array([[1.0, 2.0]]), jnp.array([0.9, 0.1])))
        [[ 0.8946395  -0.30258512]]

    References:
        Menon et al., `Long-Tail Learning via Logit Adjustment <https://arxiv.org/abs/2007.07314>`_,
        2021, equations 9 and 10.
    """
    logits = _checks.as_floating("logits", logits)
    priors = _checks.as_real("class_priors", class_priors)
    axes = _checks.normalize_axes("logits", logits, axis)
    _checks.require(len(axes) == 1, f"`axis` must be one axis, got {axis}.")
    (class_axis,) = axes
    if priors.ndim == 1:
        _checks.require(
            priors.shape[0] == logits.shape[class_axis],
            f"`class_priors` {_checks.describe(priors)} must hold one entry per class of `logits` "
            f"{_checks.describe(logits)} along axis {axis}.",
        )
        others = tuple(a for a in range(logits.ndim) if a != class_axis)
        priors = jnp.expand_dims(priors, others)
    given = {"logits": logits, "class_priors": priors}
    _checks.check_broadcastable(**given)
    _checks.require(
        priors.ndim > 0,
        f"`class_priors` {_checks.describe(priors)} must hold one entry per class of `logits` "
        f"{_checks.describe(logits)}.",
    )
    _checks.check_same_classes(axes, **given)
    return _adjusted(logits, priors, _checks.as_scalar("tau", tau))


@_checks.public
def soft_cap(logits: ArrayLike, cap: ArrayLike) -> jax.Array:
    r"""Logits held smoothly between `-cap` and `cap`.

    .. math:: x' = c \tanh(x / c)

    Args:
        logits: Unnormalised log-probabilities in nats, any shape, floating point; 16-bit dtypes
            are computed in float32. An infinite logit stays infinite, with derivative 0: an
            impossible class stays impossible.
        cap: The bound :math:`c > 0` in nats, finite. A number, or a scalar array (NaN if out of
            range).

    Returns:
        Logits of the same shape in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: If dtypes or `cap` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.soft_cap(jnp.array([1.0, 30.0, 3000.0, -jnp.inf]), 30.0))
        [ 0.9996297 22.847824  30.             -inf]

    References:
        Gemma Team, `Gemma 2 <https://arxiv.org/abs/2408.00118>`_, 2024, section 2; Bello et al.,
        `Neural Combinatorial Optimization <https://arxiv.org/abs/1611.09940>`_, 2016, appendix A.
    """
    return _scaled(logits_kernels.soft_cap, logits, "cap", cap)


@_checks.public
def temperature_scaling(logits: ArrayLike, temperature: ArrayLike) -> jax.Array:
    r"""Logits divided by a temperature, which makes a model less sure of itself, or more.

    .. math:: x' = x / T

    Args:
        logits: Unnormalised log-probabilities in nats, any shape, floating point; 16-bit dtypes
            are computed in float32. An infinite logit stays infinite, with derivative 0.
        temperature: :math:`T > 0`, finite. A number, or a scalar array (NaN if out of range); it
            is fitted by minimising a loss on held-out data.

    Returns:
        Logits of the same shape in nats, float32 (float64 for float64 logits).

    Raises:
        ArgumentError: If dtypes or `temperature` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.temperature_scaling(jnp.array([1.0, 3.0, -jnp.inf]), 2.0))
        [ 0.5  1.5 -inf]

    References:
        Guo et al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_,
        2017, section 4.2.
    """
    return _scaled(
        logits_kernels.scale_by_temperature,
        logits,
        "temperature",
        temperature,
    )


def _scaled(primitive, logits, name, value) -> jax.Array:
    """`primitive` of logits and a positive number."""
    logits = _checks.as_floating("logits", logits)
    _checks.check_open_interval(name, value, 0.0, math.inf)
    return _per_element(primitive, logits, _checks.as_scalar(name, value))


@functools.partial(jax.jit, static_argnames="primitive", inline=True)
def _per_element(primitive, logits, number) -> jax.Array:
    dtype = compute_dtype(logits)
    number = number.astype(dtype)
    proper = (number > 0.0) & (number < jnp.inf)
    number = jnp.broadcast_to(_masks.nan_where_invalid(number, proper), logits.shape)
    # Once more, for the infinite logits, which do not ask for the number.
    return _masks.nan_where_invalid(primitive(logits.astype(dtype), number), proper)


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _smoothed(labels, alpha, where, axes) -> jax.Array:
    dtype = compute_dtype(labels)
    targets, alpha = labels.astype(dtype), alpha.astype(dtype)
    count: jax.Array | float = float(math.prod(labels.shape[a] for a in axes))
    if where is not None:
        if where.ndim < labels.ndim:
            where = jnp.expand_dims(where, axes) if where.ndim else where
        shape = jnp.broadcast_shapes(where.shape, labels.shape)
        where, targets = jnp.broadcast_to(where, shape), jnp.broadcast_to(targets, shape)
        targets = jnp.where(where, targets, 0.0)
        count = jnp.maximum(jnp.sum(where, axis=axes, dtype=dtype, keepdims=True), 1.0)
    alpha = _masks.nan_where_invalid(alpha, (alpha >= 0.0) & (alpha <= 1.0))
    smooth = _masks.nan_where_invalid((1.0 - alpha) * targets + alpha / count, targets >= 0.0)
    return smooth if where is None else jnp.where(where, smooth, 0.0)


@functools.partial(jax.jit, static_argnames="known_decay", inline=True)
def _balanced(counts, beta, known_decay) -> jax.Array:
    dtype = compute_dtype(counts)
    counts, beta = counts.astype(dtype), beta.astype(dtype)
    if known_decay is None:
        beta = _masks.nan_where_invalid(beta, (beta >= 0.0) & (beta < 1.0))
        decay = -jnp.log(jnp.where(beta == 0.0, 1.0, beta))
    else:
        decay = jnp.asarray(known_decay, dtype)
    alone = beta == 0.0
    occurs = counts > 0.0
    seen = jnp.where(occurs, counts, 1.0)
    # The factor 1 - beta, common to all, falls out of weights of mean 1.
    effective = jnp.where(alone, 1.0, -jnp.expm1(-seen * jnp.where(alone, 1.0, decay)))
    weights = jnp.where(occurs, 1.0 / effective, 0.0)
    mean = jnp.sum(weights, axis=-1, keepdims=True) / jnp.maximum(
        jnp.sum(occurs, axis=-1, dtype=dtype, keepdims=True), 1.0
    )
    valid = _masks.all_in_interval(counts, 0.0, jnp.inf)[..., None]
    return _masks.nan_where_invalid(weights / jnp.where(mean == 0.0, 1.0, mean), valid)


@functools.partial(jax.jit, inline=True)
def _adjusted(logits, priors, tau) -> jax.Array:
    dtype = compute_dtype(logits, priors)
    shape = jnp.broadcast_shapes(logits.shape, priors.shape)
    x, priors = (jnp.broadcast_to(array.astype(dtype), shape) for array in (logits, priors))
    tau = tau.astype(dtype)
    absent, impossible = priors == 0.0, x == -jnp.inf
    shift = jnp.where(absent, _toward(tau), tau * jnp.log(jnp.where(priors > 0.0, priors, 1.0)))
    adjusted = jnp.where(impossible, 0.0, x) + shift
    return _masks.nan_where_invalid(jnp.where(impossible, -jnp.inf, adjusted), priors >= 0.0)


def _toward(tau: jax.Array) -> jax.Array:
    """The limit of tau log(p) for p that tends to 0, without its infinite derivative."""
    zero_or_nan = jnp.where(tau == 0.0, 0.0, tau * 0.0)
    limit = jnp.where(tau > 0.0, -jnp.inf, jnp.where(tau < 0.0, jnp.inf, zero_or_nan))
    return limit.astype(tau.dtype)
