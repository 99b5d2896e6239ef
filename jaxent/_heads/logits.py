"""The logits of a head: the matrix product, and the soft cap and temperature that follow it."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from jaxent._kernels import logits as logits_kernels
from jaxent._masks import nan_where_invalid


def contract(
    left: jax.Array,
    left_axes: Sequence[int],
    right: jax.Array,
    right_axes: Sequence[int],
    operand_dtype: jnp.dtype,
    dtype: jnp.dtype,
) -> jax.Array:
    """The product over these axes, of operands in `operand_dtype`, accumulated in `dtype`."""
    return jax.lax.dot_general(
        left.astype(operand_dtype),
        right.astype(operand_dtype),
        ((left_axes, right_axes), ((), ())),
        preferred_element_type=dtype,
    )


def transform_logits(
    logits: jax.Array, soft_cap: jax.Array | None, temperature: jax.Array | None
) -> jax.Array:
    """Logits with the soft cap and then the temperature of a head; either may be None."""
    if soft_cap is not None:
        logits = _apply_with_positive(logits_kernels.soft_cap, logits, soft_cap)
    if temperature is not None:
        logits = _apply_with_positive(logits_kernels.scale_by_temperature, logits, temperature)
    return logits


@functools.partial(jax.jit, static_argnames="kernel", inline=True)
def _apply_with_positive(
    kernel: Callable[[jax.Array, jax.Array], jax.Array], logits: jax.Array, number: jax.Array
) -> jax.Array:
    """`kernel(logits, number)`, NaN where the number is not positive and finite."""
    number = number.astype(logits.dtype)
    valid = (number > 0.0) & (number < jnp.inf)
    numbers = jnp.broadcast_to(nan_where_invalid(number, valid), logits.shape)
    # Once more, since the kernel returns infinite logits as they are, whatever the number is.
    return nan_where_invalid(kernel(logits, numbers), valid)
