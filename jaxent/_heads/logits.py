"""The logits of a head: the matrix product, and the soft cap and temperature that follow it."""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxent._float import intervals
from jaxent._kernels import logits as logits_kernels


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
        cap = logits_kernels.soft_cap
        logits = intervals.apply_with_positive(cap, logits, soft_cap)
    if temperature is not None:
        scale = logits_kernels.scale_by_temperature
        logits = intervals.apply_with_positive(scale, logits, temperature)
    return logits
