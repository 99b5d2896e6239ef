"""Sums over classes, and what is divided by them."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxent._float.dtypes import smallest_normal
from jaxent._float.limits import is_zero
from jaxent._float.tangents import (
    Arrays,
    Dual,
    Tangents,
    broadcast_tangent,
    dot_tangent,
    scale_tangent,
)

# The same sums suit chips differently, and only this file knows how. A CPU sums long rows one term
# after the other, and it is slow where sums share intermediate results or are over selections. An
# accelerator sums in trees, and whatever it can do in one pass over the logits costs one pass.


def blocked_sum(values: jax.Array, long_from: int = 2**15) -> jax.Array:
    """The sum over the last axis; on CPUs in blocks if it is long: else roundings add up.

    Rows of `long_from` classes or more are long. Blocks take up to twice the time of one sum, so
    rows of a thousand classes are one block where the bars allow it.
    """
    size = values.shape[-1]
    if isinstance(size, int) and size < long_from:
        return jnp.sum(values, axis=-1)
    # On a TPU the blocks would be a copy of the array.
    return jax.lax.platform_dependent(
        values, cpu=_sum_in_blocks, default=functools.partial(jnp.sum, axis=-1)
    )


def _sum_in_blocks(values: jax.Array) -> jax.Array:
    block = 512
    whole = values.shape[-1] // block * block
    blocks = values[..., :whole].reshape(*values.shape[:-1], -1, block)
    # The barrier keeps XLA from making one sum of the two.
    partial = jax.lax.optimization_barrier(jnp.sum(blocks, axis=-1))
    return jnp.sum(partial, axis=-1) + jnp.sum(values[..., whole:], axis=-1)


def compute_if_any(
    condition: jax.Array, function: Callable[..., jax.Array], *arrays: jax.Array
) -> jax.Array:
    """`function(*arrays)` [...], on CPUs only if the condition [...] holds anywhere, else 0."""

    def if_any(condition: jax.Array, *arrays: jax.Array) -> jax.Array:
        nothing = jnp.zeros_like(condition, dtype=arrays[0].dtype)
        return jax.lax.cond(jnp.any(condition), function, lambda *_: nothing, *arrays)

    return jax.lax.platform_dependent(
        condition, *arrays, cpu=if_any, default=lambda _, *arrays: function(*arrays)
    )


def wait_on_cpu(before: jax.Array, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The arrays; on CPUs copies which nothing that `before` was computed from can share."""
    return jax.lax.platform_dependent(
        before,
        *arrays,
        cpu=lambda *arrays: jax.lax.optimization_barrier(arrays)[1:],
        default=lambda _, *arrays: arrays,
    )


def safe_reciprocal(total: jax.Array) -> jax.Array:
    """1 / total, and 0 for an empty sum: a row without a possible class has no probabilities.

    Its derivative does not form the square of the total, which may leave the range. Up to JAX 0.10
    that matters: in a loop it drops the rules of derivatives, and differentiates their formulas.
    From 0.11 on the plain quotient will do.
    """
    is_finite = (total != 0.0) & (total != jnp.inf)
    log = jnp.log(jnp.where(is_finite, total, 1.0))
    value = jax.lax.stop_gradient(1.0 / jnp.where(total == 0.0, jnp.inf, total))
    # The exponential is 1; relative to it, its derivatives are those of 1 / total.
    return value * jnp.exp(jax.lax.stop_gradient(log) - log)


@jax.custom_jvp
def expectation(weights: jax.Array, scores: jax.Array) -> jax.Array:
    """sum(weights * scores) over the last axis, where a weight of 0 times -inf is 0."""
    return _expectation(weights, scores)


@jax.jit
def _expectation(weights: jax.Array, scores: jax.Array) -> jax.Array:
    plain = jnp.sum(weights * scores, axis=-1)
    # A sum over a selection takes four times as long on CPUs. Only a NaN can come from 0 * -inf.
    return jax.lax.cond(
        jnp.any(jnp.isnan(plain)),
        lambda: jnp.sum(weights * _zero_where_unused(weights, scores), axis=-1),
        lambda: plain,
    )


def _zero_where_unused(weights: jax.Array, scores: jax.Array) -> jax.Array:
    return jnp.where((weights == 0.0) & (scores == -jnp.inf), 0.0, scores)


@functools.partial(expectation.defjvp, symbolic_zeros=True)
def _expectation_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    weights, scores = primals
    weights_dot, scores_dot = tangents
    result = expectation(weights, scores)
    result_dot = dot_tangent(_zero_where_unused(weights, scores), weights_dot)
    result_dot += dot_tangent(weights, scores_dot)
    return result, broadcast_tangent(result_dot, result)


def fraction(part: jax.Array, rest: jax.Array) -> jax.Array:
    """`part / (part + rest)` of numbers >= 0; 0, with derivatives 0, where both are 0."""
    total = jax.lax.stop_gradient(part + rest)
    largest = 2.0 ** (jnp.finfo(part.dtype).maxexp - 4)
    # Both are scaled to a total near 1, so that no power of it in a derivative leaves the range.
    scale = 1.0 / jnp.clip(total, smallest_normal(part.dtype), largest)
    scale = jnp.where(is_zero(total), 0.0, scale)
    return _fraction(part * scale, jnp.where(is_zero(total), 1.0, rest * scale))


@jax.custom_jvp
def _fraction(part: jax.Array, rest: jax.Array) -> jax.Array:
    return part / (part + rest)


@functools.partial(_fraction.defjvp, symbolic_zeros=True)
def _fraction_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    part, rest = primals
    part_dot, rest_dot = tangents
    result, complement = _fraction(part, rest), _fraction(rest, part)
    numerator_dot = scale_tangent(complement, part_dot) - scale_tangent(result, rest_dot)
    return result, broadcast_tangent(numerator_dot, result) / (part + rest)
