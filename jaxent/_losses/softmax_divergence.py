"""Divergences between distributions that logits describe, of classes and of yes/no answers."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._kernels import sigmoid_divergence, softmax_divergence
from jaxent._parallel import AxisName


@_checks.public
def softmax_kl_divergence(
    logits: ArrayLike,
    target_logits: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of softmax of the logits from softmax of the target's logits.

    .. math:: D(t \| p) = \sum_j t_j \log \frac{t_j}{p_j}, \qquad
        t = \mathrm{softmax}(x^{target}), \quad p = \mathrm{softmax}(x)

    It is never negative. From probabilities: `kl_divergence`. Bounded: `softmax_jensen_shannon`.

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        target_logits: Those of the target (a teacher), of that rank, or a float for a uniform one.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        >>> target_logits = jnp.array([[1.0, 2.0, 3.0001], [3.0, 2.0, 1.0]])
        >>> print(jaxent.softmax_kl_divergence(logits, target_logits))
        [1.1111685e-09 1.1504207e+00]

    References:
        Hinton et al., `Distillation <https://arxiv.org/abs/1503.02531>`_, 2015; Kullback, Leibler,
        `On Information and Sufficiency <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    arrays = {
        "logits": _checks.as_floating("logits", logits),
        "target_logits": _checks.as_floating("target_logits", target_logits),
    }
    fills = (_masks.LOGITS, _masks.LOGITS)
    return _masks.apply_per_example(_softmax_kl, arrays, fills, axis, where, axis_name)


def _softmax_kl(x: jax.Array, target_x: jax.Array, *, axis_name: AxisName = None) -> jax.Array:
    kernel = softmax_divergence.softmax_kl_divergence
    return _masks.constant_where_impossible(kernel, (x, target_x), axis_name)


@_checks.public
def softmax_jensen_shannon(
    logits_a: ArrayLike,
    logits_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    beta: float = 0.5,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Jensen-Shannon divergence between the softmaxes of two vectors of logits.

    .. math:: J = \beta D(p \| m) + (1 - \beta) D(q \| m), \qquad m = \beta p + (1 - \beta) q, \quad
        p = \mathrm{softmax}(a), \quad q = \mathrm{softmax}(b)

    It is finite for all pairs, and at most the entropy of the weights (log 2 for equal ones). From
    probabilities: `jensen_shannon_divergence`. Not bounded: `softmax_kl_divergence`.

    Args:
        logits_a: Unnormalised log-probabilities in nats, `[..., V]`.
        logits_b: Those of the other distribution, of the rank of `logits_a`, or a float (uniform).
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits_a`).
        beta: The weight of p in the mixture, a Python number strictly between 0 and 1. Exact from
            1e-20 on.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits_a = jnp.array([[0.0, 1.0], [90.0, 0.0]])
        >>> logits_b = jnp.array([[0.0, 1.001], [0.0, 90.0]])
        >>> print(jaxent.softmax_jensen_shannon(logits_a, logits_b))
        [2.457311e-08 6.931472e-01]

    References:
        Lin, `Divergence Measures <https://doi.org/10.1109/18.61115>`_, 1991.
    """
    arrays = {
        "logits_a": _checks.as_floating("logits_a", logits_a),
        "logits_b": _checks.as_floating("logits_b", logits_b),
    }
    weight = _checks.as_fraction("beta", beta)
    fills = (_masks.LOGITS, _masks.LOGITS)
    return _masks.apply_per_example(
        _softmax_jensen_shannon, arrays, fills, axis, where, axis_name, beta=weight
    )


def _softmax_jensen_shannon(
    a: jax.Array, b: jax.Array, *, beta: float, axis_name: AxisName = None
) -> jax.Array:
    kernel = softmax_divergence.softmax_jensen_shannon
    return _masks.constant_where_impossible(kernel, (a, b), axis_name, beta=beta)


@_checks.public
def sigmoid_kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise Kullback-Leibler divergence between two yes/no answers, from their log-odds.

    .. math:: D(t \| p) = t \log \frac{t}{p} + (1 - t) \log \frac{1 - t}{1 - p}

    It is never negative. For targets in [0, 1]: `sigmoid_binary_cross_entropy`.

    Args:
        logits: Log-odds of "yes" in nats, any shape; p is their sigmoid.
        target_logits: Those of the target t, of the rank of `logits`, or a floating-point number.
        where: Mask of the elements, of the rank of `logits`, or a scalar.

    Returns:
        One divergence per element in nats, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, target_logits = jnp.array([0.0, 2.0, -30.0]), jnp.array([0.001, -2.0, -29.0])
        >>> print(jaxent.sigmoid_kl_divergence(logits, target_logits))
        [1.2499999e-07 1.5231881e+00 9.3576236e-14]

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    logits = _checks.as_floating("logits", logits)
    target_logits = _checks.as_floating("target_logits", target_logits)
    where, arrays = _masks.mask_elements(where, logits=logits, target_logits=target_logits)
    divergences = _masks.apply_elementwise(sigmoid_divergence.sigmoid_kl_divergence, arrays)
    return _masks.zero_where_masked(divergences, where)
