"""Similarity and distance of the directions of two vectors."""

from __future__ import annotations

import functools
import math
import numbers
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import similarity

_ZEROS = _masks.Fill(masked_class=0.0, masked_example=0.0)


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

    .. math:: s = \frac{\sum_j a_j b_j}{\max(|a|, \sqrt{\epsilon})\ \max(|b|, \sqrt{\epsilon})}

    A vector of zeros has similarity 0 to everything, and gradient 0 unless :math:`\epsilon > 0`.

    Args:
        predictions: Vectors a, `[..., V]`, floating point, of any finite length.
        targets: Vectors b, real, of the rank and the V of `predictions`.
        epsilon: Lower bound of the squared lengths, not negative, finite; a scalar, a constant.
        axis: The feature axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the features (the shape of `predictions`).

    Returns:
        One similarity per example, without unit, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> a = jnp.array([[3.0, 4.0], [1e30, 0.0], [0.0, 0.0]])
        >>> print(jaxent.cosine_similarity(a, jnp.array([[4.0, 3.0], [-2.0, 0.0], [1.0, 2.0]])))
        [ 0.96 -1.    0.  ]

    References:
        Manning, Raghavan, Schütze, *Introduction to Information Retrieval*, 2008, section 6.3.1.
    """
    return _compare(similarity.cosine_similarity, predictions, targets, epsilon, axis, where)


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

    .. math:: d = 1 - \frac{\sum_j a_j b_j}{\max(|a|, \sqrt{\epsilon})\ \max(|b|, \sqrt{\epsilon})}

    Args:
        predictions: Vectors a, `[..., V]`, floating point, of any finite length.
        targets: Vectors b, real, of the rank and the V of `predictions`.
        epsilon: Lower bound of the squared lengths, not negative, finite; a scalar, a constant.
        axis: The feature axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the features (the shape of `predictions`).

    Returns:
        One distance per example, without unit, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> a = jnp.array([[1.0, 0.0], [3.0, 4.0], [0.0, 0.0]])
        >>> print(jaxent.cosine_distance(a, jnp.array([[1.0, 1e-6], [4.0, 3.0], [1.0, 2.0]])))
        [5.e-13 4.e-02 1.e+00]

    References:
        Manning, Raghavan, Schütze, *Introduction to Information Retrieval*, 2008, section 6.3.1.
    """
    return _compare(similarity.cosine_distance, predictions, targets, epsilon, axis, where)


class Vectors(NamedTuple):
    """Checked vectors, and how they lie in their arrays."""

    arrays: tuple[jax.Array, ...]  # broadcastable
    axes: tuple[int, ...]  # of the features
    where: jax.Array | None  # mask of the examples or the features


def check_vectors(
    given: Mapping[str, ArrayLike], axis: _checks.Axis, where: ArrayLike | None
) -> Vectors:
    """Vectors of one rank and equally many features, by name; the first may be differentiated."""
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


def feature_rows(
    arrays: tuple[jax.Array, ...], where: jax.Array | None, axes: tuple[int, ...]
) -> tuple[list[jax.Array], jax.Array | None]:
    """The vectors as rows [..., V] of one shape, 0 where masked, and the mask of the examples."""
    dtype = compute_dtype(*arrays)
    rows = [_masks.mask_rows(array.astype(dtype), where, axes, _ZEROS) for array in arrays]
    shape = jnp.broadcast_shapes(*(each.values.shape for each in rows))
    return [jnp.broadcast_to(each.values, shape) for each in rows], rows[0].example_mask


_Measure = Callable[..., jax.Array]


def _compare(
    measure: _Measure,
    predictions: ArrayLike,
    targets: ArrayLike,
    epsilon: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
) -> jax.Array:
    """A measure of pairs of vectors, with a lower bound of their squared lengths."""
    vectors = check_vectors({"predictions": predictions, "targets": targets}, axis, where)
    _checks.check_closed_interval("epsilon", epsilon, 0.0, math.inf)
    _checks.check_finite("epsilon", epsilon)
    is_zero = isinstance(epsilon, numbers.Real) and float(epsilon) == 0.0
    bound = None if is_zero else _checks.as_scalar("epsilon", epsilon)
    return _compare_rows(measure, vectors.arrays, bound, vectors.where, vectors.axes)


@functools.partial(jax.jit, static_argnames=("measure", "axes"), inline=True)
def _compare_rows(
    measure: _Measure,
    arrays: tuple[jax.Array, ...],
    epsilon: jax.Array | None,
    where: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    (a, b), example_mask = feature_rows(arrays, where, axes)
    if epsilon is None:
        return _masks.zero_where_masked(measure(a, b), example_mask)
    epsilon = jax.lax.stop_gradient(epsilon.astype(a.dtype))
    valid = (epsilon >= 0.0) & (epsilon < jnp.inf)
    results = measure(a, b, jnp.sqrt(jnp.where(valid, epsilon, 0.0)))
    return _masks.zero_where_masked(intervals.nan_where_invalid(results, valid), example_mask)
