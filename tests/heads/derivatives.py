"""What is differentiated again and again in the tests of streamed losses."""

import jax
import jax.numpy as jnp


def weighted(function, cotangent, directions):
    """Of a function: the sum of its results times `cotangent`, the gradient of that, its slope.

    All three are functions of the same arguments, one per direction; the slope is the gradient
    along the directions.
    """

    def scalar(*arguments):
        return jnp.sum(function(*arguments) * cotangent)

    gradient = jax.grad(scalar, tuple(range(len(directions))))

    def slope(*arguments):
        pairs = zip(gradient(*arguments), directions, strict=True)
        return sum(jnp.sum(each * along) for each, along in pairs)

    return scalar, gradient, slope
