"""The dtype that a loss is computed in, and what is known of a dtype."""

import jax
import jax.numpy as jnp


def compute_dtype(*arrays: jax.Array) -> jnp.dtype:
    """float64 if any argument is float64, else float32: nothing is computed in 16 bits.

    A Python number takes the dtype of the others, also where float64 is enabled.
    """
    is_double = any(array.dtype == jnp.float64 and not array.weak_type for array in arrays)
    return jnp.dtype(jnp.float64 if is_double else jnp.float32)


def smallest_normal(dtype: jnp.dtype) -> float:
    """The smallest normal number: smaller ones may be flushed to 0, and have no inverse."""
    return float(jnp.finfo(dtype).tiny)


def integer_dtype(dtype: jnp.dtype) -> jnp.dtype:
    """The integers of the size of a floating-point dtype, which can hold its bits."""
    return jnp.dtype(jnp.int64 if dtype == jnp.float64 else jnp.int32)
