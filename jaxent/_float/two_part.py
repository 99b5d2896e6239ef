"""Numbers as sums of two: a rounded one, and the rounding error, which is far smaller.

The methods are those of Knuth (`two_sum`), Dekker (`fast_two_sum`) and Veltkamp (`split`). They
need finite numbers, unless said otherwise.
"""

import operator
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np

from jaxent._parallel import with_auto_axes

# log(2) as a sum of three numbers with a third of the digits of a dtype each, by its size in bytes:
# products of the first two with integers of up to a third of the digits are exact.
LOG_2 = {
    4: (177 / 2**8, 114 / 2**16, 1.4286068203094173e-06),
    8: (90852 / 2**17, 24543 / 2**34, 1.619851018665656e-11),
}


def two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum a + b, and its rounding error (Knuth)."""
    total = a + b
    rounded_b = total - a
    return total, (a - (total - rounded_b)) + (b - rounded_b)


def two_diff(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded difference a - b, and its rounding error (Knuth)."""
    return two_sum(a, -b)


def finite_two_diff(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same for any a and b, with an error of 0 where the difference is not finite."""
    difference = a - b
    is_finite = jnp.abs(difference) < jnp.inf
    _, error = two_diff(jnp.where(is_finite, a, 0.0), jnp.where(is_finite, b, 0.0))
    return difference, error


def fast_two_sum(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum a + b and its rounding error, for |a| >= |b| (Dekker)."""
    total = a + b
    return total, b - (total - a)


def exp_two_part(high: jax.Array, low: jax.Array) -> jax.Array:
    """exp(high + low) of a difference and its rounding error, as exp(high) (1 + low)."""
    # A larger error belongs to a number whose exponential is 0 or infinite.
    return jnp.exp(high) * (1.0 + jnp.clip(low, -0.5, 0.5))


def exp_minus_abs(high: jax.Array, low: jax.Array) -> jax.Array:
    """exp(-|high + low|)."""
    is_positive = high >= 0.0
    return exp_two_part(jnp.where(is_positive, -high, high), jnp.where(is_positive, -low, low))


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two numbers with half of the digits of x, whose sum x is (Veltkamp).

    Products of such halves are exact.
    """
    info = jnp.finfo(x.dtype)
    high = jax.lax.reduce_precision(x, info.nexp, (info.nmant - 1) // 2)
    return high, x - high


def split_number(number: float | Fraction, dtype: jnp.dtype) -> tuple[float, float]:
    """A number rounded to a dtype, and the rounding error, 0 if that is not finite."""
    rounded = float(np.asarray(float(number), dtype))
    is_finite = np.isfinite(rounded)
    return rounded, float(Fraction(number) - Fraction(rounded)) if is_finite else 0.0


def exact_products(a: jax.Array, b: jax.Array) -> tuple[jax.Array, ...]:
    """Four numbers whose exact sum is a * b, the largest first.

    They are exact products, so they stay the same where a compiler contracts a product with the
    addition that follows it. The rounding error of the usual two-product would not.
    """
    (a_high, a_low), (b_high, b_low) = split(a), split(b)
    return a_high * b_high, a_high * b_low, a_low * b_high, a_low * b_low


def add_all(first: jax.Array, *others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum of a few numbers, and the sum of the rounding errors."""
    total, error = first, jnp.zeros_like(first)
    for other in others:
        total, rounding = two_sum(total, other)
        error += rounding
    return total, error


def exact_sum(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The rounded sum over the last axis and its rounding error: twice the digits of the dtype."""
    return with_auto_axes(_sum_pairwise, x, example=x, ndim=x.ndim - 1)


def _sum_pairwise(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    error = jnp.zeros_like(x)
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x, error = (jnp.concatenate([e, jnp.zeros_like(e[..., :1])], -1) for e in (x, error))
        half = x.shape[-1] // 2
        x, rounding = two_sum(x[..., :half], x[..., half:])
        error = (error[..., :half] + error[..., half:]) + rounding
    return x[..., 0], error[..., 0]


def precise_sum(x: jax.Array, axis: int = -1) -> jax.Array:
    """The sum over an axis, as good as rounded once."""
    return operator.add(*exact_sum(jnp.moveaxis(x, axis, -1)))
