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

    def widened(self, tolerance: float) -> "Interval":
        """The interval with both ends farther out."""
        return self._replace(low=self.low - tolerance, high=self.high + tolerance)

    def holds(self, least: jax.Array, largest: jax.Array) -> jax.Array:
        """Whether the least and the largest of some values lie inside; NaN does not."""
        largest_fits = largest < self.high if self.is_open else largest <= self.high
        # Nothing but NaN is beyond an infinite end, and the other end finds that.
        if self.low == -math.inf:
            return largest_fits
        if self.high == math.inf and not self.is_open:
            return least >= self.low
        return (least >= self.low) & largest_fits


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
    tolerance = rounding_outside(interval, values.dtype)
    if values.dtype.itemsize < 4:
        # Selections of bfloat16 lose subnormal numbers on CPUs from JAX 0.12 on.
        values = values.astype(jnp.float32)
    return clip_outside(values, interval, tolerance)


def rounding_outside(interval: Interval, dtype: jnp.dtype) -> float:
    """How far outside an interval numbers of a dtype may be by rounding; 0 for integers."""
    if not jnp.issubdtype(dtype, jnp.floating):
        return 0.0
    eps = float(jnp.finfo(dtype).eps)
    return math.sqrt(eps) if interval.low < 0.0 else 8.0 * eps


@functools.partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def clip_outside(values: jax.Array, interval: Interval, tolerance: float) -> jax.Array:
    """Values in which an end replaces what is outside by the tolerance at most."""
    low, high = interval.low, interval.high
    if low > -math.inf:
        values = jnp.where((values < low) & (values >= low - tolerance), low, values)
    if high < math.inf:
        values = jnp.where((values > high) & (values <= high + tolerance), high, values)
    return values


@clip_outside.defjvp
def _clip_outside_jvp(
    interval: Interval, tolerance: float, primals: Arrays, tangents: Arrays
) -> Dual:
    return clip_outside(primals[0], interval, tolerance), tangents[0]


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
    is_inside = interval.holds(jnp.min(values, axis=-1), jnp.max(values, axis=-1))
    return _parallel.all_over(is_inside, axis_name)
