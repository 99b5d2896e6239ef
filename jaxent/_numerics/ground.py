"""What every primitive stands on: the dtype of a computation, tangents, and sums."""

import functools

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._numerics.across import AxisName, total


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """float64 if any argument is float64, else float32: nothing is computed in 16 bits.

    A Python number takes the dtype of the others, also where float64 is enabled.
    """
    is_double = any(array.dtype == jnp.float64 and not array.weak_type for array in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def along(coefficient: jax.Array, tangent) -> jax.Array | float:
    """`coefficient * tangent`, or nothing at all for an argument that is not differentiated.

    The distinction matters for more than speed: an infinite coefficient times a zero that stands
    for "not differentiated" would be NaN.
    """
    return 0.0 if isinstance(tangent, SymbolicZero) else coefficient * tangent


def summed_along(coefficient: jax.Array, tangent, axis_name: AxisName = None) -> jax.Array | float:
    """`sum(coefficient * tangent)` over the last axis, or nothing, as in `along`."""
    if isinstance(tangent, SymbolicZero):
        return 0.0
    return total(jnp.sum(coefficient * tangent, axis=-1), axis_name)


def like(tangent: jax.Array | float, primal: jax.Array) -> jax.Array:
    return jnp.broadcast_to(jnp.asarray(tangent, primal.dtype), primal.shape)


def long_sum(values: jax.Array) -> jax.Array:
    """The sum over the last axis, in blocks where it is long, so that roundings do not add up."""
    size, block = values.shape[-1], 512
    if size < 2**15:
        return jnp.sum(values, axis=-1)
    whole = size - size % block
    blocks = values[..., :whole].reshape(*values.shape[:-1], -1, block)
    # Without the barrier the compiler would make one sum of the two.
    partial = jax.lax.optimization_barrier(jnp.sum(blocks, axis=-1))
    return jnp.sum(partial, axis=-1) + jnp.sum(values[..., whole:], axis=-1)


def reciprocal(total: jax.Array) -> jax.Array:
    """1 / total, and 0 for an empty sum: a row without a possible class has no probabilities.

    JAX before 0.11 drops the rules of these files where a scan is part of another rule. What is
    left must be right as well, and the derivative of a quotient is not: it has the square of the
    total, which may leave the range where neither total nor result does.
    """
    exists = (total != 0.0) & (total != jnp.inf)
    log = jnp.log(jnp.where(exists, total, 1.0))
    fixed = jax.lax.stop_gradient(1.0 / jnp.where(total == 0.0, jnp.inf, total))
    # Zero, with a derivative; the series of exp(-motion) has all that this has up to the third.
    motion = log - jax.lax.stop_gradient(log)
    return fixed * (1.0 - motion * (1.0 - motion * (0.5 - motion / 6.0)))


@jax.custom_jvp
def expected(shares: jax.Array, scores: jax.Array) -> jax.Array:
    """sum(shares * scores) over the last axis, where a share of 0 of -inf is 0."""
    return _expected(shares, scores)


@jax.jit
def _expected(shares, scores):
    # Only a NaN can be due to a -inf: else there is nothing to select, which takes longer.
    plain = jnp.sum(shares * scores, axis=-1)
    return jax.lax.cond(
        jnp.any(jnp.isnan(plain)),
        lambda: jnp.sum(shares * _counting(shares, scores), axis=-1),
        lambda: plain,
    )


def _counting(shares: jax.Array, scores: jax.Array) -> jax.Array:
    return jnp.where((shares == 0.0) & (scores == -jnp.inf), 0.0, scores)


@functools.partial(expected.defjvp, symbolic_zeros=True)
def _expected_jvp(primals, tangents):
    shares, scores = primals
    shares_dot, scores_dot = tangents
    result = expected(shares, scores)
    result_dot = summed_along(_counting(shares, scores), shares_dot)
    result_dot += summed_along(shares, scores_dot)
    return result, like(result_dot, result)
