"""Entropies and divergences of distributions that are given by their logits."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import dtypes
from jaxent._kernels import entropy, sigmoid_divergence, softmax_divergence
from jaxent._parallel import AxisName


@_checks.public
def softmax_entropy(
    logits: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""The entropy of softmax of the logits: how unsure a model is.

    .. math:: H = -\sum_j p_j \log p_j, \qquad p = \mathrm{softmax}(x)

    It is computed as a sum of two non-negative terms, the log-normaliser's excess over the largest
    logit and the mean distance to that logit, so that a sure model has a tiny entropy and not 0.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
            An example without a possible class gives NaN unless it is masked.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; an example without classes is
            masked.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes; None for none.

    Returns:
        One entropy per example in nats, from 0 to log V, shape `[...]`, float32 (float64 for
        float64 logits), differentiable. Masked examples have value 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.softmax_entropy(jnp.array([[0.0, 0.0], [30.0, 0.0], [2.0, -jnp.inf]])))
        [6.9314718e-01 2.9008634e-12 0.0000000e+00]

    References:
        Shannon, `A Mathematical Theory of Communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948, section 6. As a bonus that
        keeps a policy exploring: Mnih et al., `Asynchronous Methods for Deep Reinforcement
        Learning <https://arxiv.org/abs/1602.01783>`_, 2016.
    """
    logits = _checks.as_floating("logits", logits)
    fills, given = (_masks.LOGITS,), {"logits": logits}
    return _masks.apply_per_example(entropy.softmax_entropy, given, fills, axis, where, axis_name)


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

    It keeps its relative accuracy where the two are nearly equal, in its gradients with respect to
    both as well, and it is never negative.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class;
            where the target's is not, the divergence is `+inf`.
        target_logits: The same of the target, a teacher or an older policy, of the rank of
            `logits`, or a floating-point number for a uniform target. `-inf` is a class without
            a share. An example whose target has no possible class gives NaN unless it is masked.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits`: True where the class exists; an example without classes is
            masked.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes; None for none.

    Returns:
        One divergence per example in nats, shape `[...]`, float32 (float64 if any input is),
        differentiable in both arguments. Masked examples have value 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
        >>> target_logits = jnp.array([[1.0, 2.0, 3.0001], [3.0, 2.0, 1.0]])
        >>> print(jaxent.softmax_kl_divergence(logits, target_logits))
        [1.1111685e-09 1.1504207e+00]

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951. Between the logits of a teacher and of a
        student: Hinton, Vinyals, Dean, `Distilling the Knowledge in a Neural Network
        <https://arxiv.org/abs/1503.02531>`_, 2015.
    """
    given = {
        "logits": _checks.as_floating("logits", logits),
        "target_logits": _checks.as_floating("target_logits", target_logits),
    }
    fills = (_masks.LOGITS, _masks.LOGITS)
    primitive = softmax_divergence.softmax_kl_divergence
    return _masks.apply_per_example(primitive, given, fills, axis, where, axis_name)


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

    D is the Kullback-Leibler divergence. This one is finite for all pairs of distributions, and
    with the two in equal shares it is symmetric and at most log 2. It keeps its relative accuracy
    where they are nearly equal.

    Args:
        logits_a: Unnormalised log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class.
        logits_b: The same of the other distribution, of the rank of `logits_a`, or a
            floating-point number for a uniform one. An example in which one of the two has no
            possible class gives NaN unless it is masked.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `logits_a`: True where the class exists; an example without classes is
            masked.
        beta: The share of p in the mixture, a Python number strictly between 0 and 1. At either
            end J is 0; divided by `beta` it tends to the divergence of q from
            p, :math:`D(p \| q)`, as that tends to 0.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes; None for none.

    Returns:
        One divergence per example in nats, from 0 to the entropy of the shares (log 2 for equal
        ones), shape `[...]`, float32 (float64 if any input is), differentiable in both. Masked
        examples have value 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `beta` are refused.

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
    given = {
        "logits_a": _checks.as_floating("logits_a", logits_a),
        "logits_b": _checks.as_floating("logits_b", logits_b),
    }
    fills = (_masks.LOGITS, _masks.LOGITS)
    share = _checks.as_fraction("beta", beta)
    return _masks.apply_per_example(
        _jensen_shannons, given, fills, axis, where, axis_name, beta=share
    )


def _jensen_shannons(logits_a, logits_b, *, beta: float, axis_name: AxisName = None) -> jax.Array:
    return softmax_divergence.softmax_jensen_shannon(logits_a, logits_b, beta, axis_name)


@_checks.public
def sigmoid_entropy(logits: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Element-wise entropy of a yes/no answer whose log-odds are the logit.

    .. math:: H = -p \log p - (1 - p) \log (1 - p), \qquad p = \sigma(x)

    Args:
        logits: Log-odds of "yes" in nats, any shape, floating point; 16-bit dtypes are computed
            in float32. An infinite logit is certain: entropy 0.
        where: Booleans of the rank of `logits`, or a scalar: True where the element counts. None
            counts all.

    Returns:
        One entropy per element in nats, from 0 to log 2 (at a logit of 0), float32 (float64 for
        float64 logits). Masked elements have entropy 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.sigmoid_entropy(jnp.array([0.0, 2.0, -40.0, jnp.inf])))
        [6.9314718e-01 3.6533386e-01 1.7418252e-16 0.0000000e+00]

    References:
        Shannon, `A Mathematical Theory of Communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948, section 6 and figure 7.
    """
    logits = _checks.as_floating("logits", logits)
    where, arrays = _masks.mask_elements(where, logits=logits)
    return _masks.zero_where_masked(_per_element(entropy.sigmoid_entropy, *arrays), where)


@_checks.public
def sigmoid_kl_divergence(
    logits: ArrayLike, target_logits: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise Kullback-Leibler divergence between two yes/no answers, from their log-odds.

    .. math::
        D(t \| p) = t \log \frac{t}{p} + (1 - t) \log \frac{1 - t}{1 - p}, \qquad
        t = \sigma(x^{target}), \quad p = \sigma(x)

    It keeps its relative accuracy where the two are nearly equal, in its gradients with respect to
    both as well, and it is never negative.

    Args:
        logits: Log-odds of "yes" in nats, any shape, floating point; 16-bit dtypes are computed
            in float32. An infinite logit costs 0 where the target is as sure and `+inf` elsewhere.
        target_logits: The same of the target, of the rank of `logits`, or a floating-point number.
        where: Booleans of the rank of `logits`, or a scalar: True where the element counts. None
            counts all.

    Returns:
        One divergence per element in nats, of the common shape, float32 (float64 if any input is),
        differentiable in both arguments. Masked elements have value 0 and gradient 0, whatever
        they hold.

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

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
    return _masks.zero_where_masked(
        _per_element(sigmoid_divergence.sigmoid_kl_divergence, *arrays), where
    )


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _per_element(primitive, *arrays) -> jax.Array:
    dtype = dtypes.compute_dtype(*arrays)
    shape = jnp.broadcast_shapes(*(array.shape for array in arrays))
    return primitive(*(jnp.broadcast_to(array.astype(dtype), shape) for array in arrays))
