"""The Lovasz extension of the Jaccard loss, a function of the errors of all pixels of an image."""

import jax
import jax.numpy as jnp


def lovasz_extension(errors: jax.Array, sort_key: jax.Array, is_true: jax.Array) -> jax.Array:
    """The Lovasz extension of the Jaccard loss over the last axis, for errors >= 0.

    It is sum(e[i] * (J[i] - J[i - 1])) over the pixels in decreasing order of their errors e. J[i]
    is the Jaccard loss if the first i pixels are wrong: i / (pixels that are wrong or true).

    Args:
        errors: how wrong each pixel is, [..., pixels].
        sort_key: numbers in the same order as the errors, [..., pixels]; may tell equal ones apart.
        is_true: whether a pixel belongs to the region, [..., pixels].
    """
    indices = jax.lax.broadcasted_iota(jnp.int32, errors.shape, errors.ndim - 1)
    _, is_true_sorted, permutation = jax.lax.sort(
        (-jax.lax.stop_gradient(sort_key), is_true.astype(jnp.int32), indices),
        dimension=-1,
        num_keys=1,
        is_stable=True,
    )
    true_so_far = jnp.cumsum(is_true_sorted, axis=-1, dtype=jnp.int32)
    total = true_so_far[..., -1:]
    true_left = (total - (true_so_far - is_true_sorted)).astype(errors.dtype)
    false_before = jax.lax.broadcasted_iota(
        jnp.int32, is_true_sorted.shape, is_true_sorted.ndim - 1
    ) - (true_so_far - is_true_sorted)
    union = (total + false_before).astype(errors.dtype)
    # A true pixel adds 1 to the wrong pixels, another one adds 1 to the union as well. In an image
    # without true pixels the first one raises J from 0 to 1.
    safe_union = jnp.maximum(union, 1.0)
    of_false = jnp.where(union == 0.0, 1.0, true_left / safe_union / (union + 1.0))
    increments = jnp.where(is_true_sorted == 1, 1.0 / safe_union, of_false)
    sorted_errors = jnp.take_along_axis(errors, permutation, axis=-1)
    # An increment of 0 times an infinite error is 0.
    no_cost = (increments == 0.0) & (sorted_errors == jnp.inf)
    return jnp.sum(increments * jnp.where(no_cost, 0.0, sorted_errors), axis=-1)
