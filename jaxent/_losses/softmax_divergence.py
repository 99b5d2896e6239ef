"""Divergences between distributions that logits describe, of classes and of yes/no answers."""

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

    .. math::
        D(t \| p) = \sum_j t_j \log \frac{t_j}{p_j}, \qquad
        t = \mathrm{softmax}(x^{target}), \quad p = \mathrm{softmax}(x)

    It and its gradients are relatively accurate where the two nearly agree; it is not negative.

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`. Where a class is impossible here
            and possible for the target, the divergence is `+inf`.
        target_logits: The same of the target (a teacher, an older policy), of the rank of `logits`,
            or a floating-point number for a uniform one. Without a possible class it gives NaN.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `kl_divergence`, from probabilities; `softmax_jensen_shannon`; `linear_kl_divergence`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        >>> target_logits = jnp.array([[1.0, 2.0, 3.0001], [3.0, 2.0, 1.0]])
        >>> print(jaxent.softmax_kl_divergence(logits, target_logits))
        [1.1111685e-09 1.1504207e+00]

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951. Between teacher and student: Hinton,
        Vinyals, Dean, `Distilling the Knowledge in a Neural Network
        <https://arxiv.org/abs/1503.02531>`_, 2015.
    """
    arrays = {
        "logits": _checks.as_floating("logits", logits),
        "target_logits": _checks.as_floating("target_logits", target_logits),
    }
    kernel, fills = softmax_divergence.softmax_kl_divergence, (_masks.LOGITS, _masks.LOGITS)
    return _masks.apply_per_example(kernel, arrays, fills, axis, where, axis_name)


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

    .. math::
        J = \beta D(p \| m) + (1 - \beta) D(q \| m), \qquad m = \beta p + (1 - \beta) q, \quad
        p = \mathrm{softmax}(a), \quad q = \mathrm{softmax}(b)

    D is the Kullback-Leibler divergence. J is at most the entropy of the weights, and relatively
    accurate where the two nearly agree. With equal weights it is symmetric and at most log 2.

    Args:
        logits_a: Unnormalised log-probabilities in nats, `[..., V]`. Without a possible class, here
            or in `logits_b`, an example gives NaN.
        logits_b: The same of the other distribution, of the rank of `logits_a`, or a floating-point
            number for a uniform one.
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits_a`).
        beta: The weight of p in the mixture, a Python number strictly between 0 and 1. Divided by
            `beta`, J tends to :math:`D(p \| q)` as `beta` tends to 0.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One divergence per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `jensen_shannon_divergence`, from probabilities; `linear_jensen_shannon`, through a head.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits_a = jnp.array([[0.0, 1.0], [90.0, 0.0]])
        >>> logits_b = jnp.array([[0.0, 1.001], [0.0, 90.0]])
        >>> print(jaxent.softmax_jensen_shannon(logits_a, logits_b))
        [2.457311e-08 6.931472e-01]

    References:
        Lin, `Divergence Measures Based on the Shannon Entropy
        <https://doi.org/10.1109/18.61115>`_, 1991.
    """
    arrays = {
        "logits_a": _checks.as_floating("logits_a", logits_a),
        "logits_b": _checks.as_floating("logits_b", logits_b),
    }
    weight = _checks.as_fraction("beta", beta)
    kernel, fills = softmax_divergence.softmax_jensen_shannon, (_masks.LOGITS, _masks.LOGITS)
    return _masks.apply_per_example(kernel, arrays, fills, axis, where, axis_name, beta=weight)


@_checks.public
def sigmoid_kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise Kullback-Leibler divergence between two yes/no answers, from their log-odds.

    .. math::
        D(t \| p) = t \log \frac{t}{p} + (1 - t) \log \frac{1 - t}{1 - p}, \qquad
        t = \sigma(x^{target}), \quad p = \sigma(x)

    It and its gradients are relatively accurate where the two nearly agree; it is not negative.

    Args:
        logits: Log-odds of "yes" in nats, any shape. An infinite one costs 0 where the target is
            the same, else `+inf`.
        target_logits: The same of the target, of the rank of `logits`, or a floating-point number.
        where: Mask of the elements, of the rank of `logits`, or a scalar.

    Returns:
        One divergence per element in nats, of the common shape, float32 (float64 for float64
        inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `sigmoid_binary_cross_entropy`, of targets in [0, 1]; `softmax_kl_divergence`.

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
