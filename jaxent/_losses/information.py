"""Information in distributions: entropies, divergences between two of them, and their units."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import divergence, probability, renyi, tsallis
from jaxent._kernels import entropy as entropy_kernels
from jaxent._kernels import mutual_information as mutual_information_kernels

# Entropies.


@_checks.public
def entropy(
    probs: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Entropy of a distribution: the mean surprise of its outcomes.

    .. math:: H(p) = -\sum_j p_j \log p_j

    Args:
        probs: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. Their total is not looked at. One that lies
            outside makes its example NaN unless it is masked. A subnormal one counts as 0.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs`: True where the class exists.
        base: Of the logarithm, a Python number above 1: None for nats, 2 for bits.

    Returns:
        One entropy per example in nats (bits for base 2), shape `[...]`, float32 (float64 for
        float64 inputs). Masked examples have value 0 and gradient 0. The derivative at a
        probability of 0, infinite on paper, is 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `base` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.entropy(jnp.array([[0.5, 0.5, 0.0], [1 / 3, 1 / 3, 1 / 3]]), base=2))
        [1.        1.5849625]

    References:
        Shannon, `A Mathematical Theory of Communication
        <https://doi.org/10.1002/j.1538-7305.1948.tb01338.x>`_, 1948, section 6.
    """
    arrays = {"probs": _checks.as_floating("probs", probs)}
    unit = _unit(base)
    fills = (_masks.PROBABILITIES,)
    return _masks.apply_per_example(_entropies, arrays, fills, axis, where, unit=unit)


def _entropies(p: jax.Array, *, unit: float) -> jax.Array:
    return _masks.nan_where_invalid(
        entropy_kernels.entropy(p) / unit, _masks.all_in_interval(p, 0.0, 1.0)
    )


@_checks.public
def binary_entropy(
    probs: ArrayLike, where: ArrayLike | None = None, *, base: float | None = None
) -> jax.Array:
    r"""Element-wise entropy of a yes/no outcome, from the probability of "yes".

    .. math:: H(p) = -p \log p - (1 - p) \log(1 - p)

    Args:
        probs: Probabilities of "yes" in [0, 1], any shape, floating point; 16-bit dtypes are
            computed in float32. Others make their element NaN. A subnormal one counts as 0.
        where: Booleans of the rank of `probs`, or a scalar: True where the element counts. None
            counts all.
        base: Of the logarithm, a Python number above 1: None for nats, 2 for bits.

    Returns:
        One entropy per element in nats (bits for base 2), float32 (float64 for float64 inputs).
        The derivative at 0 and 1, infinite on paper, is 0. Masked elements have entropy 0 and
        gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, ranks, shapes or `base` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.binary_entropy(jnp.array([0.5, 0.11, 1.0]), base=2))
        [1.        0.4999158 0.       ]

    References:
        Cover, Thomas, *Elements of Information Theory*, 2006, section 2.1.
    """
    probs = _checks.as_floating("probs", probs)
    where, arrays = _masks.mask_elements(where, probs=probs)
    return _masks.zero_where_masked(_binary_entropies(*arrays, _unit(base)), where)


@functools.partial(jax.jit, static_argnames="unit", inline=True)
def _binary_entropies(probs: jax.Array, unit: float) -> jax.Array:
    p = probs.astype(compute_dtype(probs))
    return _masks.nan_where_invalid(
        entropy_kernels.binary_entropy(p) / unit, (p >= 0.0) & (p <= 1.0)
    )


@_checks.public
def renyi_entropy(
    probs: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    alpha: float,
    base: float | None = None,
) -> jax.Array:
    r"""Renyi's entropy of order alpha: how spread a distribution is, rare outcomes counting less.

    .. math:: H_\alpha(p) = \frac{1}{1 - \alpha} \log \frac{\sum_j p_j^\alpha}{\sum_j p_j}

    Its limits are included: order 0 is the logarithm of the number of possible classes (of a
    distribution), order 1 Shannon's entropy, infinity :math:`-\log \max_j p_j`. It is smooth in
    between, and its gradients join at 1 as well.

    Args:
        probs: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. One that lies outside makes its example NaN
            unless it is masked, and so does a total of 0. A subnormal one counts as 0.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs`: True where the class exists.
        alpha: The order, a Python number from 0 to infinity.
        base: Of the logarithm, a Python number above 1: None for nats, 2 for bits.

    Returns:
        One entropy per example in nats (bits for base 2), shape `[...]`, float32 (float64 for
        float64 inputs). Masked examples have value 0 and gradient 0. For orders up to 1 the
        derivative at a probability of 0 is given as 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis`, `alpha` or `base` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([0.5, 0.25, 0.25])
        >>> print(jnp.stack([jaxent.renyi_entropy(probs, alpha=a, base=2) for a in (0, 1, 2)]))
        [1.5849625 1.5       1.4150375]

    References:
        Renyi, `On Measures of Entropy and Information
        <https://projecteuclid.org/euclid.bsmsp/1200512181>`_, 1961, equation 2.7.
    """
    arrays = {"probs": _checks.as_floating("probs", probs)}
    options = {"alpha": _order(alpha), "unit": _unit(base)}
    fills = (_masks.PROBABILITIES,)
    return _masks.apply_per_example(_renyi_entropies, arrays, fills, axis, where, **options)


def _renyi_entropies(p: jax.Array, *, alpha: float, unit: float) -> jax.Array:
    valid = _masks.all_in_interval(p, 0.0, 1.0) & _has_mass(p)
    return _masks.nan_where_invalid(renyi.renyi_entropy(p, alpha) / unit, valid)


@_checks.public
def tsallis_entropy(
    probs: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    alpha: float,
) -> jax.Array:
    r"""Tsallis' entropy of order alpha: Shannon's with a deformed logarithm.

    .. math:: S_\alpha(p) = \frac{\sum_j p_j - p_j^\alpha}{\alpha - 1}

    Order 1 is Shannon's entropy, which the others and their gradients approach smoothly; order 2
    is the Gini impurity.

    Args:
        probs: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. Their total is not looked at. One that lies
            outside makes its example NaN unless it is masked. A subnormal one counts as 0.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs`: True where the class exists.
        alpha: The order, a Python number from 0, finite.

    Returns:
        One entropy per example in units of probability (nats for order 1), shape `[...]`, float32
        (float64 for float64 inputs). Masked examples have value 0 and gradient 0. For orders up to
        1 the derivative at a probability of 0 is given as 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `alpha` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([0.5, 0.25, 0.25])
        >>> print(jnp.stack([jaxent.tsallis_entropy(probs, alpha=a) for a in (0, 1, 2)]))
        [2.        1.0397208 0.625    ]

    References:
        Tsallis, `Possible Generalization of Boltzmann-Gibbs Statistics
        <https://doi.org/10.1007/BF01016429>`_, 1988, equation 1.
    """
    arrays = {"probs": _checks.as_floating("probs", probs)}
    order = _order(alpha)
    _checks.require(order < math.inf, "`alpha` must be finite, got inf.")
    fills = (_masks.PROBABILITIES,)
    return _masks.apply_per_example(_tsallis_entropies, arrays, fills, axis, where, alpha=order)


def _tsallis_entropies(p: jax.Array, *, alpha: float) -> jax.Array:
    return _masks.nan_where_invalid(
        tsallis.tsallis_entropy(p, alpha), _masks.all_in_interval(p, 0.0, 1.0)
    )


# Of two distributions.


@_checks.public
def cross_entropy(
    targets: ArrayLike,
    predictions: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Cross-entropy of two distributions: the mean code length under the wrong code.

    .. math:: H(t, q) = -\sum_j t_j \log q_j = H(t) + D(t \Vert q)

    Unlike losses, it takes the true distribution first, as in its formula.

    Args:
        targets: The true distribution, probabilities in [0, 1], shape `[..., V]` (with V along
            `axis`), floating point; 16-bit dtypes are computed in float32. Their total is not
            looked at. One that lies outside makes its example NaN unless it is masked.
        predictions: The other distribution, alike.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `targets`: True where the class exists.
        base: Of the logarithm, a Python number above 1: None for nats, 2 for bits.

    Returns:
        One number per example in nats (bits for base 2), shape `[...]`, float32 (float64 if any
        input is); `+inf` where a target is predicted with probability 0. Masked examples have
        value 0 and gradient 0. Where both probabilities are 0 the derivative along the target is 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `base` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> targets, predictions = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.25, 0.5])
        >>> print(jaxent.cross_entropy(targets, predictions, base=2))
        1.75

    References:
        Good, `Rational Decisions <https://doi.org/10.1111/j.2517-6161.1952.tb00104.x>`_, 1952.
    """
    arrays = {
        "targets": _checks.as_floating("targets", targets),
        "predictions": _checks.as_real("predictions", predictions),
    }
    unit = _unit(base)
    fills = (_masks.TARGETS, _masks.PROBABILITIES)
    return _masks.apply_per_example(_cross_entropies, arrays, fills, axis, where, unit=unit)


def _cross_entropies(targets: jax.Array, p: jax.Array, *, unit: float) -> jax.Array:
    losses = probability.categorical_cross_entropy(p, targets) / unit
    return _masks.nan_where_invalid(losses, _are_probabilities(targets, p))


@_checks.public
def kl_divergence(
    log_predictions: ArrayLike,
    targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of log-predictions from target probabilities.

    .. math:: D(t \Vert q) = \sum_j t_j (\log t_j - \log q_j)

    It is computed on the inputs exactly as given, and these are rounded: of equal distributions
    the sum may be -1e-8 on paper. A result that is negative by no more than 8 roundings of each
    input explain is therefore 0; its derivatives stay, and so does what is further below 0, which
    happens to inputs that are not normalised. For divergences that are tiny, use
    `jaxent.jensen_shannon_divergence` or `jaxent.renyi_divergence`, which see differences.

    Args:
        log_predictions: Log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class:
            it counts 0 against a target of 0, and `+inf` against a positive one. NaN and `+inf`
            make their example NaN unless it is masked.
        targets: Probabilities, of the rank of `log_predictions`; real, of any total. A negative
            or infinite one makes its example NaN unless it is masked. A subnormal one counts as 0.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `log_predictions`: True where the class exists.

    Returns:
        One divergence per example in nats, shape `[...]`, float32 (float64 if any input is). Masked
        examples have value 0 and gradient 0. The derivative along a target of 0 is 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_predictions = jnp.log(jnp.array([0.25, 0.75, 0.0]))
        >>> print(jaxent.kl_divergence(log_predictions, jnp.array([0.5, 0.5, 0.0])))
        0.143841

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    arrays = {
        "log_predictions": _checks.as_floating("log_predictions", log_predictions),
        "targets": _checks.as_real("targets", targets),
    }
    slack = _slack(*arrays.values())
    fills = (_masks.LOGITS, _masks.TARGETS)
    return _masks.apply_per_example(_kl_divergences, arrays, fills, axis, where, slack=slack)


def _kl_divergences(log_p: jax.Array, targets: jax.Array, *, slack: float) -> jax.Array:
    valid = _masks.all_in_interval(targets, 0.0, jnp.inf) & _are_below_infinity(log_p, targets)
    return _masks.nan_where_invalid(divergence.kl_divergence(log_p, targets, slack), valid)


@_checks.public
def kl_divergence_with_log_targets(
    log_predictions: ArrayLike,
    log_targets: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence of log-predictions from log-probabilities of the targets.

    .. math:: D(t \Vert q) = \sum_j t_j (\log t_j - \log q_j)

    Every logarithm of a ratio is a difference of two inputs, with no rounding before it. As in
    `jaxent.kl_divergence`, a result that is negative by no more than 8 roundings of each input
    explain is 0, and its derivatives stay.

    Args:
        log_predictions: Log-probabilities in nats, shape `[..., V]` (with V along `axis`),
            floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible class:
            it counts 0 against a target of `-inf`, and `+inf` against another. NaN and `+inf`
            make their example NaN unless it is masked.
        log_targets: Log-probabilities in nats, of the rank of `log_predictions`, real, alike.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `log_predictions`: True where the class exists.

    Returns:
        One divergence per example in nats, shape `[...]`, float32 (float64 if any input is). Masked
        examples have value 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> log_predictions, log_targets = jnp.log(jnp.array([[0.25, 0.75], [0.5, 0.5]]))
        >>> print(jaxent.kl_divergence_with_log_targets(log_predictions, log_targets))
        0.14384104

    References:
        Kullback, Leibler, `On Information and Sufficiency
        <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    arrays = {
        "log_predictions": _checks.as_floating("log_predictions", log_predictions),
        "log_targets": _checks.as_real("log_targets", log_targets),
    }
    slack = _slack(*arrays.values())
    fills = (_masks.LOGITS, _masks.LOGITS)
    return _masks.apply_per_example(_log_kl_divergences, arrays, fills, axis, where, slack=slack)


def _log_kl_divergences(log_p: jax.Array, log_targets: jax.Array, *, slack: float) -> jax.Array:
    losses = divergence.kl_divergence_with_log_targets(log_p, log_targets, slack)
    return _masks.nan_where_invalid(losses, _are_below_infinity(log_p, log_targets))


@_checks.public
def jensen_shannon_divergence(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Mean Kullback-Leibler divergence of two distributions from their mean.

    .. math::
        J(a, b) = \tfrac{1}{2} D(a \Vert m) + \tfrac{1}{2} D(b \Vert m), \qquad
        m = \tfrac{1}{2} (a + b)

    It is symmetric bit for bit, 0 for equal distributions and at most log 2 (1 bit), and keeps its
    relative accuracy however near the two are: it is computed from their differences. A result
    above log 2 by no more than 8 roundings of each input explain is log 2.

    Args:
        probs_a: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. Their total is not looked at. One that lies
            outside makes its example NaN unless it is masked. A subnormal one counts as 0.
        probs_b: The other distribution, alike.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs_a`: True where the class exists.
        base: Of the logarithm, a Python number above 1: None for nats, 2 for bits.

    Returns:
        One divergence per example in nats (bits for base 2), shape `[...]`, float32 (float64 if
        any input is). Masked examples have value 0 and gradient 0. The derivative along a
        probability of 0 is 0, which on paper is infinite if the other one is positive.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `base` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a = jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> probs_b = jnp.array([[0.0, 1.0], [0.5001, 0.4999]])
        >>> print(jaxent.jensen_shannon_divergence(probs_a, probs_b))
        [6.931472e-01 5.000169e-09]

    References:
        Lin, `Divergence Measures Based on the Shannon Entropy
        <https://doi.org/10.1109/18.61115>`_, 1991, section 4.
    """
    arrays = _pair(probs_a, probs_b)
    options = {"slack": _slack(*arrays.values()), "unit": _unit(base)}
    fills = (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(_jensen_shannons, arrays, fills, axis, where, **options)


def _jensen_shannons(a: jax.Array, b: jax.Array, *, slack: float, unit: float) -> jax.Array:
    return _masks.nan_where_invalid(
        divergence.jensen_shannon_divergence(a, b, slack) / unit, _are_probabilities(a, b)
    )


@_checks.public
def renyi_divergence(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    alpha: float,
) -> jax.Array:
    r"""Renyi's divergence of order alpha of one distribution from another.

    .. math::
        D_\alpha(a \Vert b) = \frac{1}{\alpha - 1} \log \sum_j
        \Big( \frac{a_j}{A} \Big)^{\alpha} \Big( \frac{b_j}{B} \Big)^{1 - \alpha}, \qquad
        A = \sum_j a_j, \quad B = \sum_j b_j

    Its limits are included: order 0 is minus the logarithm of the mass of b where a is positive,
    order 1 the Kullback-Leibler divergence, infinity the largest log-ratio. It is smooth in
    between, and its gradients join at 1 as well. Being taken between normalised distributions, it
    is never negative; counts serve as well as probabilities. Where the totals are about equal it
    keeps its relative accuracy however near the two are.

    Args:
        probs_a: Non-negative numbers, shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. A negative one makes its example NaN unless it
            is masked, and so does a total of 0 or infinity. A subnormal one counts as 0.
        probs_b: The other distribution, alike.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs_a`: True where the class exists.
        alpha: The order, a Python number from 0 to infinity.

    Returns:
        One divergence per example in nats, shape `[...]`, float32 (float64 if any input is);
        `+inf` for orders from 1 where b is 0 and a is not, and for disjoint distributions. Masked
        examples have value 0 and gradient 0. A derivative that is infinite while the divergence is
        not is given as 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `alpha` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a, probs_b = jnp.array([0.5, 0.5, 0.0]), jnp.array([0.25, 0.5, 0.25])
        >>> orders = (0, 1, 2, float("inf"))
        >>> print(jnp.stack([jaxent.renyi_divergence(probs_a, probs_b, alpha=a) for a in orders]))
        [0.28768207 0.34657362 0.4054651  0.6931472 ]

    References:
        Renyi, `On Measures of Entropy and Information
        <https://projecteuclid.org/euclid.bsmsp/1200512181>`_, 1961, section 3; van Erven,
        Harremoes, `Renyi Divergence and Kullback-Leibler Divergence
        <https://arxiv.org/abs/1206.2459>`_, 2014.
    """
    arrays = _pair(probs_a, probs_b)
    order = _order(alpha)
    fills = (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(_renyi_divergences, arrays, fills, axis, where, alpha=order)


def _renyi_divergences(a: jax.Array, b: jax.Array, *, alpha: float) -> jax.Array:
    valid = _has_mass(a) & _has_mass(b)
    return _masks.nan_where_invalid(renyi.renyi_divergence(a, b, alpha), valid)


@_checks.public
def total_variation(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Total variation distance: how much mass has to move to make one distribution the other.

    .. math:: d(a, b) = \tfrac{1}{2} \sum_j |a_j - b_j|

    Args:
        probs_a: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. One that lies outside makes its example NaN
            unless it is masked.
        probs_b: The other distribution, alike.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs_a`: True where the class exists.

    Returns:
        One distance per example in units of probability, shape `[...]`, float32 (float64 if any
        input is). Masked examples have value 0 and gradient 0; so has the derivative along a class
        on which the two agree.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a, probs_b = jnp.array([0.5, 0.25, 0.25]), jnp.array([0.25, 0.75, 0.0])
        >>> print(jaxent.total_variation(probs_a, probs_b))
        0.5

    References:
        Levin, Peres, *Markov Chains and Mixing Times*, 2017, section 4.1.
    """
    arrays = _pair(probs_a, probs_b)
    fills = (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(_total_variations, arrays, fills, axis, where)


def _total_variations(a: jax.Array, b: jax.Array) -> jax.Array:
    return _masks.nan_where_invalid(divergence.total_variation(a, b), _are_probabilities(a, b))


@_checks.public
def hellinger(
    probs_a: ArrayLike,
    probs_b: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Hellinger distance: the Euclidean distance of the square roots of two distributions.

    .. math:: h(a, b) = \sqrt{\tfrac{1}{2} \sum_j \big( \sqrt{a_j} - \sqrt{b_j} \big)^2}

    It keeps its relative accuracy however near the two are.

    Args:
        probs_a: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. Their total is not looked at. One that lies
            outside makes its example NaN unless it is masked.
        probs_b: The other distribution, alike.
        axis: The class axis or axes; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs_a`: True where the class exists.

    Returns:
        One distance per example in units in which disjoint distributions are 1 apart, shape
        `[...]`, float32 (float64 if any input is). Masked examples have value 0 and gradient 0. The
        gradient is 0 at equal distributions, and along a probability of 0.

    Raises:
        ArgumentError: If dtypes, shapes or `axis` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs_a = jnp.array([[1.0, 0.0], [0.5, 0.5]])
        >>> probs_b = jnp.array([[0.0, 1.0], [0.5001, 0.4999]])
        >>> print(jaxent.hellinger(probs_a, probs_b))
        [1.000000e+00 7.071188e-05]

    References:
        van der Vaart, *Asymptotic Statistics*, 1998, section 14.5.
    """
    arrays = _pair(probs_a, probs_b)
    fills = (_masks.PROBABILITIES, _masks.PROBABILITIES)
    return _masks.apply_per_example(_hellingers, arrays, fills, axis, where)


def _hellingers(a: jax.Array, b: jax.Array) -> jax.Array:
    return _masks.nan_where_invalid(divergence.hellinger(a, b), _are_probabilities(a, b))


@_checks.public
def mutual_information(
    joint: ArrayLike,
    axis: tuple[int, int] = (-2, -1),
    where: ArrayLike | None = None,
    *,
    base: float | None = None,
) -> jax.Array:
    r"""Mutual information of two variables, from their joint distribution or a table of counts.

    .. math::
        I(x; y) = \sum_{jk} p_{jk} \log \frac{p_{jk}}{p_{j \cdot}\, p_{\cdot k}}, \qquad
        p_{jk} = \frac{n_{jk}}{\sum_{lm} n_{lm}}

    It is never negative and keeps its relative accuracy however near the two are to independence.

    Args:
        joint: Non-negative numbers, shape `[..., J, K]` (with J and K along `axis`), real; 16-bit
            dtypes are computed in float32. A negative one makes its example NaN unless it is
            masked, and so does a total of 0 or infinity. A subnormal one counts as 0.
        axis: The axes of the two variables; exactly two.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `joint`: True where the cell exists, the others being 0.
        base: Of the logarithm, a Python number above 1: None for nats, 2 for bits.

    Returns:
        One number per example in nats (bits for base 2), shape `[...]`, float32 (float64 for
        float64 inputs). Masked examples have value 0 and gradient 0. The derivative along an empty
        cell, infinite on paper, is 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `base` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> counts = jnp.array([[[50, 0], [0, 50]], [[25, 25], [25, 25]]])
        >>> print(jaxent.mutual_information(counts, base=2))
        [1. 0.]

    References:
        Cover, Thomas, *Elements of Information Theory*, 2006, section 2.3.
    """
    joint = _checks.as_real("joint", joint)
    axes = _checks.normalize_axes("joint", joint, axis)
    _checks.require(
        len(axes) == 2,
        f"`axis` {axis} of `joint` {_checks.describe(joint)} must name two axes, one for each "
        "variable.",
    )
    options = {"rows": joint.shape[axes[0]], "unit": _unit(base)}
    fills = (_masks.PROBABILITIES,)
    return _masks.apply_per_example(
        _mutual_informations, {"joint": joint}, fills, axes, where, **options
    )


def _mutual_informations(cells: jax.Array, *, rows: int, unit: float) -> jax.Array:
    joint = cells.reshape(*cells.shape[:-1], rows, -1)
    return _masks.nan_where_invalid(
        mutual_information_kernels.mutual_information(joint) / unit, _has_mass(cells)
    )


# Units.


@_checks.public
def perplexity(cross_entropy: ArrayLike, *, base: float | None = None) -> jax.Array:
    r"""Perplexity: the number of equally likely classes that would be as hard to predict.

    .. math:: \operatorname{perplexity} = b^{H}

    Take the mean of the cross-entropies first, and the perplexity of that.

    Args:
        cross_entropy: Cross-entropies in nats (bits for base 2), any shape, floating point; 16-bit
            dtypes are computed in float32.
        base: Of the logarithm in it, a Python number above 1: None for nats, 2 for bits.

    Returns:
        Perplexities in units of classes, of the shape of `cross_entropy`, float32 (float64 for
        float64 inputs).

    Raises:
        ArgumentError: If the dtype or `base` is refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.perplexity(jnp.array([0.0, 3.0]), base=2))
        [1. 8.]

    References:
        Jelinek, Mercer, Bahl, Baker, `Perplexity - a Measure of the Difficulty of Speech
        Recognition Tasks <https://doi.org/10.1121/1.2016299>`_, 1977.
    """
    unit = _unit(base)
    given = _checks.as_floating("cross_entropy", cross_entropy)
    return _perplexities(given, None if unit == 1.0 else float(base or math.e))


@functools.partial(jax.jit, static_argnames="base", inline=True)
def _perplexities(cross_entropy: jax.Array, base: float | None) -> jax.Array:
    return entropy_kernels.perplexity(cross_entropy.astype(compute_dtype(cross_entropy)), base)


@_checks.public
def nats_to_bits(nats: ArrayLike) -> jax.Array:
    r"""Information in bits, from nats.

    .. math:: \operatorname{bits} = \operatorname{nats} / \log 2

    Args:
        nats: Amounts of information in nats, any shape, floating point; 16-bit dtypes are computed
            in float32.

    Returns:
        The same in bits, of the shape of `nats`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If the dtype is refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.nats_to_bits(jnp.log(jnp.array([2.0, 8.0]))))
        [1. 3.]

    References:
        Cover, Thomas, *Elements of Information Theory*, 2006, section 2.1.
    """
    nats = _checks.as_floating("nats", nats)
    return _per_bit(nats.astype(compute_dtype(nats)))


@_checks.public
def bits_per_byte(nats: ArrayLike, num_bytes: ArrayLike) -> jax.Array:
    r"""Bits that a model needs per byte of a text, which compares models across tokenizers.

    .. math:: \operatorname{bits\ per\ byte} = \frac{\operatorname{nats}}{n \log 2}

    Args:
        nats: Total cross-entropy of each text in nats, the sum over its tokens, any shape, floating
            point; 16-bit dtypes are computed in float32.
        num_bytes: The number n of bytes of each text (in UTF-8, say), real, of the rank of `nats`,
            or a scalar. Where it is not positive the result is NaN.

    Returns:
        One number per text in bits per byte, of the common shape, float32 (float64 if any input
        is).

    Raises:
        ArgumentError: If dtypes, ranks or shapes are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.bits_per_byte(jnp.array([693.1472, 100.0]), jnp.array([1000, 80])))
        [1.        1.8033688]

    References:
        Gao et al., `The Pile <https://arxiv.org/abs/2101.00027>`_, 2020, section 3.1.
    """
    nats = _checks.as_floating("nats", nats)
    num_bytes = _checks.as_real("num_bytes", num_bytes)
    _checks.check_broadcastable(nats=nats, num_bytes=num_bytes)
    return _bits_per_byte(nats, num_bytes)


@functools.partial(jax.jit, inline=True)
def _bits_per_byte(nats: jax.Array, num_bytes: jax.Array) -> jax.Array:
    dtype = compute_dtype(nats, num_bytes)
    shape = jnp.broadcast_shapes(nats.shape, num_bytes.shape)
    nats, size = (jnp.broadcast_to(x.astype(dtype), shape) for x in (nats, num_bytes))
    valid = size > 0.0
    return _masks.nan_where_invalid(_per_bit(nats / jnp.where(valid, size, 1.0)), valid)


def _per_bit(nats: jax.Array) -> jax.Array:
    return nats / math.log(2.0)


# Small parts.


def _unit(base: float | None) -> float:
    """The unit that goes with the base of a logarithm, in nats."""
    if base is None:
        return 1.0
    _checks.require(
        isinstance(base, numbers.Real) and 1.0 < base < math.inf,
        f"`base` must be a finite number greater than 1, got {base!r}; "
        "pass None for nats or 2 for bits.",
    )
    return math.log(base)


def _order(alpha: float) -> float:
    """The order of an entropy as a float."""
    _checks.require(
        isinstance(alpha, numbers.Real) and alpha >= 0.0,
        f"`alpha` must be a number from 0 on, got {alpha!r}; it is a constant, not an array.",
    )
    return float(alpha)


def _pair(probs_a: ArrayLike, probs_b: ArrayLike) -> dict[str, jax.Array]:
    """Two distributions as checked arguments."""
    return {
        "probs_a": _checks.as_floating("probs_a", probs_a),
        "probs_b": _checks.as_real("probs_b", probs_b),
    }


def _slack(*arrays: jax.Array) -> float:
    """The relative error that roundings of the coarsest input may amount to."""
    floats = [a.dtype for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]
    return 8.0 * max(float(jnp.finfo(dtype).eps) for dtype in floats)


def _are_probabilities(*rows: jax.Array) -> jax.Array:
    return functools.reduce(jnp.logical_and, (_masks.all_in_interval(p, 0.0, 1.0) for p in rows))


def _are_below_infinity(*rows: jax.Array) -> jax.Array:
    return functools.reduce(jnp.logical_and, (jnp.max(x, axis=-1) < jnp.inf for x in rows))


def _has_mass(p: jax.Array) -> jax.Array:
    """Whether each row can be normalised."""
    total = jnp.sum(p, axis=-1)
    return (jnp.min(p, axis=-1) >= 0.0) & (total > 0.0) & (total < jnp.inf)
