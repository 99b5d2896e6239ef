"""How alike the directions of two vectors are."""

import functools
import math
import numbers
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import similarity

_FILL = _masks.Fill(masked_class=0.0, masked_example=0.0)


@_checks.public
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
        ArgumentError: If dtypes, shapes, `axis` or `epsilon` are refused.

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
        similarity.cosine_similarity,
        {"predictions": predictions, "targets": targets},
        epsilon,
        axis,
        where,
    )


@_checks.public
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
        ArgumentError: If dtypes, shapes, `axis` or `epsilon` are refused.

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
        similarity.cosine_distance,
        {"predictions": predictions, "targets": targets},
        epsilon,
        axis,
        where,
    )


class Vectors(NamedTuple):
    """Checked vectors, the axes of their features, and what of them counts."""

    arrays: tuple[jax.Array, ...]
    axes: tuple[int, ...]
    where: jax.Array | None


def check_vectors(
    given: Mapping[str, ArrayLike], axis: _checks.Axis, where: ArrayLike | None
) -> Vectors:
    """Vectors of one rank and equally many features, by their names; the first is the model's."""
    (first, array), *others = given.items()
    arrays = {first: _checks.as_floating(first, array)}
    axes = _checks.normalize_axes(first, arrays[first], axis)
    for name, value in others:
        arrays[name] = array = _checks.as_real(name, value)
        _checks.require(
            array.ndim == arrays[first].ndim,
            f"`{name}` {_checks.describe(array)} must have the rank of `{first}` "
            f"{_checks.describe(arrays[first])}; add the missing axes, for example with `[None]`.",
        )
    _checks.check_broadcastable(**arrays)
    _checks.check_same_classes(axes, **arrays)
    return Vectors(tuple(arrays.values()), axes, _masks.check_mask(where, axes, arrays))


def rows_of(vectors: Vectors) -> tuple[list[jax.Array], jax.Array | None]:
    """The vectors as rows of one shape, zero where nothing counts, and which of them count."""
    dtype = compute_dtype(*vectors.arrays)
    filled = [
        _masks.mask_rows(array.astype(dtype), vectors.where, vectors.axes, _FILL)
        for array in vectors.arrays
    ]
    shape = jnp.broadcast_shapes(*(each.values.shape for each in filled))
    return [jnp.broadcast_to(each.values, shape) for each in filled], filled[0].example_mask


def _of_pairs(measure, given, epsilon: ArrayLike, axis, where) -> jax.Array:
    """What `measure` makes of pairs of vectors."""
    vectors = check_vectors(given, axis, where)
    _checks.check_closed_interval("epsilon", epsilon, 0.0, math.inf)
    _checks.check_finite("epsilon", epsilon)
    has_floor = not (isinstance(epsilon, numbers.Real) and float(epsilon) == 0.0)
    floor = _checks.as_scalar("epsilon", epsilon) if has_floor else None
    return _measured(measure, vectors.arrays, floor, vectors.where, vectors.axes)


@functools.partial(jax.jit, static_argnames=("measure", "axes"), inline=True)
def _measured(measure, arrays, epsilon, where, axes) -> jax.Array:
    (a, b), example_mask = rows_of(Vectors(arrays, axes, where))
    if epsilon is None:
        return _masks.zero_where_masked(measure(a, b), example_mask)
    epsilon = jax.lax.stop_gradient(epsilon.astype(a.dtype))
    proper = (epsilon >= 0.0) & (epsilon < jnp.inf)
    results = measure(a, b, jnp.sqrt(jnp.where(proper, epsilon, 0.0)))
    return _masks.zero_where_masked(_masks.nan_where_invalid(results, proper), example_mask)
