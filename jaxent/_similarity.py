"""How alike the directions of two vectors are."""

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _numerics, _rows
from jaxent._numerics import compute_dtype

_FILL = _rows.Fill(absent=0.0, idle=0.0)


def cosine_similarity(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""The cosine of the angle between two vectors, from -1 (opposite) to 1 (alike).

    .. math::
        s = \frac{\sum_j a_j b_j}
            {\sqrt{\max(\sum_j a_j^2, \epsilon)}\ \sqrt{\max(\sum_j b_j^2, \epsilon)}}

    Vectors of any finite length will do: no square overflows or vanishes. A vector of zeros has
    similarity 0 to everything, and gradient 0 unless :math:`\epsilon` is positive.

    Args:
        predictions: Vectors `[..., V]` (with their V features along `axis`), floating point;
            16-bit dtypes are computed in float32. A vector that is not finite has similarity NaN.
        targets: Vectors of the rank and the V of `predictions`, real.
        epsilon: What a squared length is at least taken for, :math:`\epsilon \ge 0` and finite. A
            number, or a scalar array (NaN if out of range); nothing is differentiated along it.
        axis: The axis or axes of the features; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `predictions`: True where the feature exists; an example without features
            is masked.

    Returns:
        One similarity per example in [-1, 1], without unit, shape `[...]`, float32 (float64 if any
        input is). Masked examples have similarity 0 and gradient 0, whatever they hold.

    Raises:
        AssertionError: If dtypes, shapes, `axis` or `epsilon` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> predictions = jnp.array([[3.0, 4.0], [1e30, 0.0], [0.0, 0.0]])
        >>> targets = jnp.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 2.0]])
        >>> print(jaxent.cosine_similarity(predictions, targets))
        [ 0.96 -1.    0.  ]

    References:
        Manning, Raghavan, Schütze, *Introduction to Information Retrieval*, 2008, section 6.3.1.
    """
    return _of_pairs(
        "cosine_similarity",
        _numerics.cosine_similarity,
        {"predictions": predictions, "targets": targets},
        epsilon,
        axis,
        where,
    )


def cosine_distance(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    epsilon: ArrayLike = 0.0,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""One minus the cosine of the angle between two vectors, from 0 (alike) to 2 (opposite).

    .. math::
        d = 1 - \frac{\sum_j a_j b_j}
            {\sqrt{\max(\sum_j a_j^2, \epsilon)}\ \sqrt{\max(\sum_j b_j^2, \epsilon)}}

    Nearly parallel vectors keep the relative accuracy of distance and gradient, since no 1 is
    involved: there, for lengths above the floor, :math:`d = \sin^2\theta / (1 + \cos\theta)`.

    Args:
        predictions: Vectors `[..., V]` (with their V features along `axis`), floating point;
            16-bit dtypes are computed in float32. A vector that is not finite has distance NaN.
        targets: Vectors of the rank and the V of `predictions`, real.
        epsilon: What a squared length is at least taken for, :math:`\epsilon \ge 0` and finite. A
            number, or a scalar array (NaN if out of range); nothing is differentiated along it.
        axis: The axis or axes of the features; None for all of them.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `predictions`: True where the feature exists; an example without features
            is masked.

    Returns:
        One distance per example in [0, 2], without unit, shape `[...]`, float32 (float64 if any
        input is). A vector of zeros has distance 1 to everything. Masked examples have distance 0
        and gradient 0, whatever they hold.

    Raises:
        AssertionError: If dtypes, shapes, `axis` or `epsilon` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> predictions = jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
        >>> targets = jnp.array([[1.0, 1e-6], [4.0, 3.0], [1.0, 2.0]])
        >>> print(jaxent.cosine_distance(predictions, targets))
        [5.e-13 4.e-02 1.e+00]

    References:
        Manning, Raghavan, Schütze, *Introduction to Information Retrieval*, 2008, section 6.3.1.
    """
    return _of_pairs(
        "cosine_distance",
        _numerics.cosine_distance,
        {"predictions": predictions, "targets": targets},
        epsilon,
        axis,
        where,
    )


def _of_pairs(name, measure, pairs, epsilon, axis, where) -> jax.Array:
    """What `measure` makes of pairs of vectors, given as two arrays by their names."""
    first, second = pairs
    arrays = {
        first: _checks.floating(name, first, pairs[first]),
        second: _checks.real(name, second, pairs[second]),
    }
    axes = _checks.class_axes(name, first, arrays[first], axis)
    _checks.require(
        arrays[second].ndim == arrays[first].ndim,
        name,
        f"`{second}` {_checks.describe(arrays[second])} must have the rank of `{first}` "
        f"{_checks.describe(arrays[first])}; add the missing axes, for example with `[None, :]`.",
    )
    _checks.broadcastable(name, **arrays)
    _checks.same_classes(name, axes, **arrays)
    where = _rows.mask(name, where, axes, arrays)
    _checks.within(name, "epsilon", epsilon, 0.0, math.inf)
    _checks.finite(name, "epsilon", epsilon)
    has_floor = not (isinstance(epsilon, numbers.Real) and epsilon == 0)
    epsilon = _checks.scalar(name, "epsilon", epsilon) if has_floor else None
    return _measured(measure, tuple(arrays.values()), epsilon, where, axes)


@functools.partial(jax.jit, static_argnames=("measure", "axes"), inline=True)
def _measured(measure, arrays, epsilon, where, axes) -> jax.Array:
    dtype = compute_dtype(*arrays)
    filled = [_rows.rows(array.astype(dtype), where, axes, _FILL) for array in arrays]
    shape = jnp.broadcast_shapes(*(each.values.shape for each in filled))
    a, b = (jnp.broadcast_to(each.values, shape) for each in filled)
    if epsilon is None:
        return _rows.masked(measure(a, b), filled[0].live)
    epsilon = jax.lax.stop_gradient(epsilon.astype(dtype))
    proper = (epsilon >= 0.0) & (epsilon < jnp.inf)
    results = measure(a, b, jnp.sqrt(jnp.where(proper, epsilon, 0.0)))
    return _rows.masked(_rows.judged(results, proper), filled[0].live)
