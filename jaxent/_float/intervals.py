"""Intervals that values have to lie in: NaN outside them, and what counts as their ends."""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent import _parallel
from jaxent._float.dtypes import compute_dtype
from jaxent._float.tangents import Arrays, Dual


class Interval(NamedTuple):
    """Where the numbers of an argument must lie, its ends included unless the high one is open."""

    low: float
    high: float
    is_open: bool = False

    def lies_below(self, values: jax.Array) -> jax.Array:
        """Whether values are at most the high end, or below it if that is open."""
        return values < self.high if self.is_open else values <= self.high

    def holds(self, values: jax.Array) -> jax.Array:
        """Whether each value lies inside; NaN does not."""
        return (values >= self.low) & self.lies_below(values)


UNIT_INTERVAL = Interval(0.0, 1.0)


NON_NEGATIVE = Interval(0.0, math.inf)


FINITE_NON_NEGATIVE = Interval(0.0, math.inf, is_open=True)


NON_POSITIVE = Interval(-math.inf, 0.0)


def nan_where_invalid(results: jax.Array, valid: jax.Array) -> jax.Array:
    """Results with NaN where they are not valid; by a product, so gradients are NaN there too."""
    return results * jnp.where(valid, 1.0, jnp.nan).astype(results.dtype)


def nan_value_where_invalid(results: jax.Array, valid: jax.Array) -> jax.Array:
    """Results with NaN where they are not valid, and the same derivatives."""
    return results + jax.lax.stop_gradient(jnp.where(valid, 0.0, jnp.nan)).astype(results.dtype)


@jax.custom_jvp
def nan_tangent_where_invalid(values: jax.Array, valid: jax.Array) -> jax.Array:
    """The same values, with a derivative of NaN where they are not valid.

    Where the value of a row is NaN because of one element, so is the derivative in that element.
    In all of the row, gradients would have to wait for a pass over it: 1.7 to 2 times the cost.
    """
    del valid
    return values


@nan_tangent_where_invalid.defjvp
def _nan_tangent_where_invalid_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    values, valid = primals
    return values, nan_where_invalid(tangents[0], valid)


def nan_outside(values: jax.Array, low: float, high: float, ends: str = "[]") -> jax.Array:
    """Values with NaN, in gradients too, outside an interval that `ends` closes or opens."""
    above = values >= low if ends[0] == "[" else values > low
    below = values <= high if ends[1] == "]" else values < high
    return nan_where_invalid(values, above & below)


def positive(values: jax.Array) -> jax.Array:
    """Values with NaN where they are not finite and above 0."""
    return nan_outside(values, 0.0, jnp.inf, "()")


def not_negative(values: jax.Array) -> jax.Array:
    """Values with NaN where they are not finite and at least 0."""
    return nan_outside(values, 0.0, jnp.inf, "[)")


def clip_rounding(values: jax.Array, interval: Interval = UNIT_INTERVAL) -> jax.Array:
    """Values in which an end of the interval replaces what is outside by a few roundings.

    Those are 8 of the dtype of the values, and the square root of one for logarithms: a
    log-probability is the difference of two numbers that may be much larger. The derivative is 1.
    What is further outside, and NaN, stays.
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    eps = float(jnp.finfo(values.dtype).eps)
    if values.dtype.itemsize < 4:
        # Selections of bfloat16 lose subnormal numbers on CPUs from JAX 0.12 on.
        values = values.astype(jnp.float32)
    return _clip_rounding(values, interval, math.sqrt(eps) if interval.low < 0.0 else 8.0 * eps)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def _clip_rounding(values: jax.Array, interval: Interval, tolerance: float) -> jax.Array:
    low, high = interval.low, interval.high
    if low > -math.inf:
        values = jnp.where((values < low) & (values >= low - tolerance), low, values)
    if high < math.inf:
        values = jnp.where((values > high) & (values <= high + tolerance), high, values)
    return values


@_clip_rounding.defjvp
def _clip_rounding_jvp(
    interval: Interval, tolerance: float, primals: Arrays, tangents: Arrays
) -> Dual:
    return _clip_rounding(primals[0], interval, tolerance), tangents[0]


@functools.partial(jax.jit, static_argnames="kernel", inline=True)
def apply_with_positive(
    kernel: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, number: jax.Array
) -> jax.Array:
    """`kernel(x, number)` element by element; NaN unless the scalar is positive and finite."""
    x, number = x.astype(compute_dtype(x)), number.astype(compute_dtype(x))
    is_valid = (number > 0.0) & (number < jnp.inf)
    number = jnp.broadcast_to(nan_where_invalid(number, is_valid), x.shape)
    # Both are needed: a result at an infinite x may not depend on the number.
    return nan_where_invalid(kernel(x, number), is_valid)


def valid_option(
    value: jax.Array, dtype: jnp.dtype, low: float, high: float
) -> tuple[jax.Array, jax.Array]:
    """A scalar in `dtype`, 0 unless it is finite and in [low, high], and whether it is."""
    value = value.astype(dtype)
    is_valid = (value >= low) & (value <= high) & (jnp.abs(value) < jnp.inf)
    return jnp.where(is_valid, value, 0.0), is_valid


def all_in_interval(
    values: jax.Array, interval: Interval, axis_name: _parallel.AxisName = None
) -> jax.Array:
    """Whether all of each row lies in an interval; NaN does not."""
    above = jnp.min(values, axis=-1) >= interval.low
    return _parallel.all_over(above & interval.lies_below(jnp.max(values, axis=-1)), axis_name)
