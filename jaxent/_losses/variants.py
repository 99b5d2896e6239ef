"""Variants of cross-entropy: for rare classes, for noisy labels, for classes in an order."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks, _parallel
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import cross_entropy, reweighted, sigmoid
from jaxent._parallel import AxisName

_REMEDY = "for one target per class use `jaxent.softmax_cross_entropy`."


@_checks.public
def sigmoid_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike | None = None,
    gamma: ArrayLike = 2.0,
) -> jax.Array:
    r"""Element-wise cross-entropy of yes/no targets in which easy elements weigh little.

    .. math::
        \ell = \alpha_t\, (1 - p_t)^\gamma \big({-t} \log p - (1 - t) \log (1 - p)\big), \qquad
        p = \sigma(x)

    with :math:`p_t = p t + (1 - p)(1 - t)` and :math:`\alpha_t = \alpha t + (1 - \alpha)(1 - t)`.
    Value, gradient and Hessian are finite for every finite logit, certain ones included.

    Args:
        logits: Log-odds of "yes" in nats, any shape, floating point; 16-bit dtypes are computed
            in float32. An infinite logit costs 0 where the target agrees and `+inf` elsewhere.
        labels: Targets in [0, 1], real or boolean, of the rank of `logits`, or a scalar. Others
            make their element NaN.
        where: Booleans of the rank of `logits`, or a scalar: True where the element counts. None
            counts all.
        alpha: Weight of "yes" in [0, 1], where "no" has the rest; of the rank of `logits`, or a
            scalar. None weighs both by 1. Others make their element NaN.
        gamma: How much easy elements are discounted, finite and at least 0, where 0 is plain
            cross-entropy. A number, or a scalar array (NaN if out of range). Small multiples of
            1/2, given as numbers, are fastest; relative errors grow in proportion to it.

    Returns:
        One loss per element in nats, of the common shape, float32 (float64 if any input is).
        Masked elements have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes, `alpha` or `gamma` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, labels = jnp.array([3.0, 0.0, -2.0]), jnp.array([1, 1, 1])
        >>> print(jaxent.sigmoid_focal_loss(logits, labels))
        [1.09283326e-04 1.73286796e-01 1.65007806e+00]

    References:
        Lin et al., `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_,
        2017, equations 4 and 5.
    """
    given = {
        "logits": _checks.as_floating("logits", logits),
        "labels": _checks.as_real("labels", labels),
    }
    if alpha is not None:
        _checks.check_closed_interval("alpha", alpha, 0.0, 1.0)
        given["alpha"] = _checks.as_real("alpha", alpha)
    number, traced = _exponent("gamma", gamma, math.inf)
    where, arrays = _masks.mask_elements(where, **given)
    return _masks.zero_where_masked(
        _sigmoid_focal_losses(*arrays, number=number, gamma=traced), where
    )


@_checks.public
def softmax_focal_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    gamma: ArrayLike = 2.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy against one true class per example, in which easy examples weigh little.

    .. math::
        \ell = -(1 - p_y)^\gamma \log p_y, \qquad p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
        labels: Index of the true class, integers of the shape of the examples `[...]`. An index
            outside `[0, V)`, negative ones included, makes that example NaN unless it is masked.
        axis: The class axis. Given several, a label is a flat index into them, in their order.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; a label that points to a class that
            does not is out of range, and an example without classes is masked.
        gamma: How much easy examples are discounted, finite and at least 0, where 0 is plain
            cross-entropy. A number, or a scalar array (NaN if out of range). Relative errors grow
            in proportion to it.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits` and a class mask are then one
            block; labels count all classes (of several `axis`, the first is split). None for none.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 for float64 logits). Masked
        examples have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `gamma` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[3.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> print(jaxent.softmax_focal_loss(logits, jnp.array([0, 1])))
        [7.7842223e-04 8.0294776e-01]

    References:
        Lin et al., `Focal Loss for Dense Object Detection <https://arxiv.org/abs/1708.02002>`_,
        2017, equation 4. For several classes: Mukhoti et al., `Calibrating Deep Neural Networks
        using Focal Loss <https://arxiv.org/abs/2002.09437>`_, 2020, section 4.
    """
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, _REMEDY, axis_name
    )
    number, traced = _exponent("gamma", gamma, math.inf)
    return _softmax_focal_losses(*given, axis_name, number=number, gamma=traced)


@_checks.public
def generalized_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    q: ArrayLike = 0.7,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""A bounded loss between cross-entropy and absolute error, for labels that may be wrong.

    .. math::
        \ell = \frac{1 - p_y^q}{q}, \qquad p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
        labels: Index of the true class, integers of the shape of the examples `[...]`. An index
            outside `[0, V)`, negative ones included, makes that example NaN unless it is masked.
        axis: The class axis. Given several, a label is a flat index into them, in their order.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; a label that points to a class that
            does not is out of range, and an example without classes is masked.
        q: The exponent in [0, 1]: 0 is cross-entropy, and 1 is :math:`1 - p_y`, which is half of
            the absolute error. A number, or a scalar array (NaN if out of range).
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits` and a class mask are then one
            block; labels count all classes (of several `axis`, the first is split). None for none.

    Returns:
        One loss per example, at most 1/q, shape `[...]`, float32 (float64 for float64 logits), in
        nats where q is 0 and without a unit where it is 1. Masked examples have loss 0 and
        gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `q` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 0.0, 90.0]])
        >>> print(jaxent.generalized_cross_entropy(logits, jnp.array([0, 1])))
        [4.1223074e-09 1.4285715e+00]

    References:
        Zhang, Sabuncu, `Generalized Cross Entropy Loss for Training Deep Neural Networks with
        Noisy Labels <https://arxiv.org/abs/1805.07836>`_, 2018, equation 6.
    """
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, _REMEDY, axis_name
    )
    number, traced = _exponent("q", q, 1.0)
    return _generalized_losses(*given, axis_name, number=number, q=traced)


@_checks.public
def symmetric_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
    *,
    alpha: ArrayLike = 0.1,
    beta: ArrayLike = 1.0,
    log_zero: ArrayLike = -4.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy in both directions between prediction and label, which may be wrong.

    .. math::
        \ell = -\alpha \log p_y - \beta A \sum_{j \ne y} p_j, \qquad p = \mathrm{softmax}(x)

    The second term takes the prediction for the truth and the label for the prediction, with A in
    the place of log 0.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
        labels: Index of the true class, integers of the shape of the examples `[...]`. An index
            outside `[0, V)`, negative ones included, makes that example NaN unless it is masked.
        axis: The class axis. Given several, a label is a flat index into them, in their order.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; a label that points to a class that
            does not is out of range, and an example without classes is masked.
        alpha: Weight of the cross-entropy, finite and at least 0.
        beta: Weight of the reverse cross-entropy, finite and at least 0.
        log_zero: A in nats, finite and at most 0. All three are numbers, or scalar arrays (NaN if
            out of range).
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits` and a class mask are then one
            block; labels count all classes (of several `axis`, the first is split). None for none.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 for float64 logits). Masked
        examples have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or one of the options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> print(jaxent.symmetric_cross_entropy(logits, jnp.array([0, 1])))
        [1.6901460e-08 3.1618466e+00]

    References:
        Wang et al., `Symmetric Cross Entropy for Robust Learning with Noisy Labels
        <https://arxiv.org/abs/1908.06112>`_, 2019, equations 5 and 7.
    """
    given = _masks.check_labelled_arguments(
        "logits", logits, labels, axis, where, _REMEDY, axis_name
    )
    options = {"alpha": alpha, "beta": beta, "log_zero": log_zero}
    for option, value in options.items():
        low, high = (-math.inf, 0.0) if option == "log_zero" else (0.0, math.inf)
        _finite(option, value, low, high)
    arrays = {option: _checks.as_scalar(option, value) for option, value in options.items()}
    return _symmetric_losses(*given, axis_name, **arrays)


@_checks.public
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 2.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy against a distribution, with the first term of its expansion reweighted.

    .. math::
        \ell = \sum_j t_j \big({-\log p_j} + \epsilon (1 - p_j)\big), \qquad
        p = \mathrm{softmax}(x)

    The logarithm is the sum of :math:`(1 - p)^k / k` over all k; this adds :math:`\epsilon` to the
    coefficient 1 of the first term.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class:
            it counts 0 against a target of 0, and `+inf` against a positive one.
        labels: Targets, one per class, of the rank of `logits`; real, non-negative, of any total
            (1 for a distribution). A negative target makes that example NaN unless it is masked.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; logits and targets of the others
            are ignored, and an example without classes is masked.
        epsilon: What is added to the coefficient: a finite number, or a scalar array (NaN if it is
            not finite). From -1 up the loss is never negative.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. `logits`, `labels` and a class mask are
            then one block. None for none.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 if any input is). Masked
        examples have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `epsilon` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.1, 0.6, 0.3]])
        >>> print(jaxent.poly_loss_cross_entropy(logits, labels))
        [1.2366922e-08 2.4967811e+00]

    References:
        Leng et al., `PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions
        <https://arxiv.org/abs/2204.12511>`_, 2022, section 4.
    """
    _checks.check_mesh_axis(axis_name)
    arrays = {
        "logits": _checks.as_floating("logits", logits),
        "labels": _checks.as_real("labels", labels),
    }
    axes = _checks.normalize_axes("logits", arrays["logits"], axis)
    _checks.check_broadcastable(**arrays)
    _checks.check_same_classes(axes, **arrays)
    where = _masks.check_mask(where, axes, arrays)
    _finite("epsilon", epsilon, -math.inf, math.inf)
    signs = _signs(epsilon)
    epsilon = _checks.as_scalar("epsilon", epsilon)
    return _poly_losses(*arrays.values(), where, epsilon, axes, axis_name, signs)


@_checks.public
def ordinal_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Cross-entropy of classes in an order, from the log-odds of being at most each of them.

    .. math::
        \ell = -\log\big(\sigma(x_y) - \sigma(x_{y-1})\big), \qquad
        \sigma(x_{-1}) = 0, \quad \sigma(x_{K-1}) = 1

    This is the cumulative link model: usually :math:`x_k = \theta_k - s` with thresholds
    :math:`\theta_0 \le \theta_1 \le \dots` that all examples share and a score s of each.

    Args:
        logits: Log-odds in nats that the class is k or a lower one, for all of the K classes but
            the last: shape `[..., K - 1]` (with K - 1 along `axis`), floating point; 16-bit dtypes
            are computed in float32. They must not decrease, or that example is NaN; they may be
            infinite.
        labels: Index of the true class, integers of the shape of the examples `[...]`. An index
            outside `[0, K)`, negative ones included, makes that example NaN unless it is masked.
        axis: The axis of the log-odds. Given several, their entries count in their order.
        where: Booleans of the shape `[...]` of the examples: True where the example counts.

    Returns:
        One loss per example in nats, shape `[...]`, float32 (float64 for float64 logits); `+inf`
        for a class of probability 0. Masked examples have loss 0 and gradient 0, whatever they
        hold.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[-1.0, 1.0], [20.0, 40.0], [20.0, 40.0]])
        >>> print(jaxent.ordinal_cross_entropy(logits, jnp.array([1, 0, 2])))
        [7.7193683e-01 2.0611537e-09 4.0000000e+01]

    References:
        McCullagh, `Regression Models for Ordinal Data
        <https://doi.org/10.1111/j.2517-6161.1980.tb01109.x>`_, 1980, section 1.2.
    """
    remedy = "number the classes from 0 in their order."
    given = _masks.check_labelled_arguments("logits", logits, labels, axis, where, remedy)
    _checks.require(
        given.where is None or given.where.ndim < given.array.ndim,
        f"`where` {'' if given.where is None else _checks.describe(given.where)} must have the "
        f"shape of the examples of `logits` {_checks.describe(given.array)}: no class of an order "
        "can be left out; use `where.all(axis)`.",
    )
    losses = functools.partial(_ordinal_losses, axes=given.axes)
    data = given.array, given.labels, given.where
    return _parallel.with_auto_axes(losses, *data, like=given.labels, axes=given.labels.ndim)


@functools.partial(jax.jit, static_argnames="number", inline=True)
def _sigmoid_focal_losses(logits, labels, alpha=None, *, number, gamma) -> jax.Array:
    given = [array for array in (logits, labels, alpha) if array is not None]
    dtype = compute_dtype(*given)
    shape = jnp.broadcast_shapes(*(array.shape for array in given))
    x, *weights = (jnp.broadcast_to(array.astype(dtype), shape) for array in given)
    # Products, so that gradients are NaN as well.
    yes, *alphas = (
        _masks.nan_where_invalid(each, (each >= 0.0) & (each <= 1.0)) for each in weights
    )
    if gamma is not None:
        gamma, proper = _proper(gamma, dtype, 0.0, math.inf)
        x = _masks.nan_where_invalid(x, proper)
    if number == 0.0:
        losses = sigmoid.binary_cross_entropy(x, yes, 1.0 - yes)
    else:
        losses = reweighted.focal_binary_cross_entropy(number, x, yes, gamma)
    for each in alphas:
        losses *= each * yes + (1.0 - each) * (1.0 - yes)
    return losses


@functools.partial(jax.jit, static_argnames=("axes", "axis_name", "number"), inline=True)
def _softmax_focal_losses(logits, labels, where, axes, axis_name, number, gamma) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    if gamma is not None:
        gamma, proper = _proper(gamma, rows.values.dtype, 0.0, math.inf)
        rows = _if_proper(rows, proper)
    loss, p = _loss_and_power(rows, 1.0, axis_name)
    return rows.losses(reweighted.focal_of(number, loss, p, gamma))


@functools.partial(jax.jit, static_argnames=("axes", "axis_name", "number"), inline=True)
def _generalized_losses(logits, labels, where, axes, axis_name, number, q) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    dtype = rows.values.dtype
    if q is not None:
        q, proper = _proper(q, dtype, 0.0, 1.0)
        rows = _if_proper(rows, proper)
    loss, power = _loss_and_power(rows, number, axis_name, q)
    q = jnp.asarray(number, dtype) if q is None else q
    return rows.losses(reweighted.truncated(loss, power, q))


@functools.partial(jax.jit, static_argnames=("axes", "axis_name"), inline=True)
def _symmetric_losses(logits, labels, where, axes, axis_name, alpha, beta, log_zero) -> jax.Array:
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS, axis_name)
    dtype = rows.values.dtype
    options = [_proper(each, dtype, 0.0, math.inf) for each in (alpha, beta)]
    options.append(_proper(log_zero, dtype, -math.inf, 0.0))
    for _, proper in options:
        rows = _if_proper(rows, proper)
    alpha, beta, log_zero = (value for value, _ in options)
    loss, p = _loss_and_power(rows, 1.0, axis_name)
    # What weighs nothing may be infinite.
    forward = alpha * jnp.where((alpha == 0.0) & (loss == jnp.inf), 0.0, loss)
    return rows.losses(
        forward - beta * log_zero * reweighted.truncated(loss, p, jnp.ones((), dtype))
    )


@functools.partial(jax.jit, static_argnames=("axes", "axis_name", "signs"), inline=True)
def _poly_losses(logits, labels, where, epsilon, axes, axis_name, signs) -> jax.Array:
    dtype = compute_dtype(logits, labels)
    x, _, example_mask = _masks.mask_rows(
        logits.astype(dtype), where, axes, _masks.LOGITS, axis_name
    )
    targets = jnp.broadcast_to(labels, labels.shape or logits.shape).astype(dtype)
    targets = _masks.mask_rows(targets, where, axes, _masks.TARGETS, axis_name).values
    shape = jnp.broadcast_shapes(x.shape, targets.shape)
    x, targets = jnp.broadcast_to(x, shape), jnp.broadcast_to(targets, shape)
    epsilon, proper = _proper(epsilon, dtype, -math.inf, math.inf)
    above = jnp.maximum(epsilon, 0.0) if "+" in signs else None
    below = jnp.minimum(epsilon, 0.0) if "-" in signs else None
    valid = _masks.all_in_interval(targets, 0.0, math.inf, axis_name) & proper
    losses = reweighted.poly_cross_entropy(x, targets, above, below, axis_name)
    return _masks.zero_where_masked(_masks.nan_where_invalid(losses, valid), example_mask)


@functools.partial(jax.jit, static_argnames="axes", inline=True)
def _ordinal_losses(logits, labels, where, axes) -> jax.Array:
    # The log-odds of the last class are infinite: now there is an entry for each class.
    x = _masks.move_classes_last(logits, axes)
    x = jnp.concatenate([x, jnp.full_like(x[..., :1], jnp.inf)], axis=-1)
    rows = _masks.mask_labelled_rows(x, labels, where, (x.ndim - 1,), _masks.LOGITS)
    x = rows.values
    rows = _if_proper(rows, jnp.all(x[..., 1:] >= x[..., :-1], axis=-1))
    # What is not valid takes the whole row with it.
    x = _masks.nan_where_invalid(x, rows.valid[..., None])
    high, low = (_parallel.take_local_label(x, index) for index in (rows.labels, rows.labels - 1))
    low = jnp.where(rows.labels == 0, -jnp.inf, low)
    return _masks.zero_where_masked(reweighted.interval_loss(low, high), rows.example_mask)


def _loss_and_power(
    rows: _masks.MaskedLabelledRows, number, axis_name: AxisName, exponent=None
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of each row, and the probability of its label to a power."""
    loss = cross_entropy.label_cross_entropy(rows.values, rows.labels, axis_name=axis_name)
    return loss, reweighted.label_power(number, rows.values, rows.labels, exponent, axis_name)


def _finite(name: str, value: ArrayLike, low: float, high: float) -> None:
    """Refuses an infinite Python number, or one outside [low, high]; arrays pass."""
    _checks.check_closed_interval(name, value, low, high)
    _checks.require(
        not isinstance(value, numbers.Real) or math.isfinite(value),
        f"`{name}` must be finite, got {value}.",
    )


def _exponent(name: str, value: ArrayLike, high: float) -> tuple[float | None, jax.Array | None]:
    """An exponent in [0, high] as a constant of the program, or as a scalar array."""
    _finite(name, value, 0.0, high)
    if isinstance(value, numbers.Real):
        return float(value), None
    return None, _checks.as_scalar(name, value)


def _signs(epsilon: ArrayLike) -> str:
    """The signs that epsilon may have, which decide what there is to compute."""
    if not isinstance(epsilon, numbers.Real):
        return "+-"
    return "-" if float(epsilon) < 0.0 else "+"


def _proper(value: jax.Array, dtype, low: float, high: float) -> tuple[jax.Array, jax.Array]:
    """A scalar in the dtype of the computation, or 0 if improper, and whether it is proper."""
    value = value.astype(dtype)
    proper = (value >= low) & (value <= high) & (jnp.abs(value) < jnp.inf)
    return jnp.where(proper, value, 0.0), proper


def _if_proper(rows: _masks.MaskedLabelledRows, proper: jax.Array) -> _masks.MaskedLabelledRows:
    """Rows that are valid only where something else is proper too."""
    return rows._replace(valid=rows.valid & proper)
