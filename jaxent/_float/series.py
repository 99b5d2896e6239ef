"""Polynomials and power series."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp


def polynomial(x: jax.Array, coefficients: Sequence[float]) -> jax.Array:
    """The polynomial with these coefficients, the constant one first."""
    result = jnp.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        result = result * x + coefficient
    return result


def terms_for(dtype: jnp.dtype, single: int, double: int) -> int:
    """How many terms of a series the dtype needs."""
    return double if dtype == jnp.float64 else single


def expm1_minus_x_near_0(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x for |x| <= 1, by its series."""
    last = terms_for(x.dtype, 12, 19)
    return x * x * polynomial(x, [1.0 / math.factorial(n) for n in range(2, last + 1)])


def expm1_minus_x(x: jax.Array) -> jax.Array:
    """exp(x) - 1 - x for x <= 1, which is about x**2 / 2 near 0."""
    is_near = x >= -1.0
    near, far = jnp.where(is_near, x, 0.0), jnp.where(is_near, -1.0, x)
    return jnp.where(is_near, expm1_minus_x_near_0(near), (-1.0 - far) + jnp.exp(far))


def accurate_expm1(x: jax.Array, exp_x: jax.Array) -> jax.Array:
    """exp(x) - 1 from x, and from an exp(x) that is more accurate than that of the rounded x.

    Near 0 the subtraction would cancel; elsewhere the exponential would magnify the rounding of x.
    """
    is_near = jnp.abs(x) < 0.5
    return jnp.where(is_near, jnp.expm1(jnp.where(is_near, x, 0.0)), exp_x - 1.0)


def one_minus_exp(x: jax.Array) -> jax.Array:
    """1 - exp(-x) for x >= 0; XLA's expm1 loses two bits of it on CPUs."""
    is_small = x < 0.5
    small = jnp.where(is_small, x, 0.0)
    return jnp.where(is_small, small - expm1_minus_x_near_0(-small), 1.0 - jnp.exp(-x))


# tanh(x) / x as a polynomial in x**2 over [0, 1], interpolated at Chebyshev points: off by 4e-10 in
# float32, by 1e-18 in float64.
_TANH = {
    jnp.dtype(jnp.float32): (
        0.9999999996302252,
        -0.3333332732799648,
        0.1333317115678341,
        -0.053951196443121074,
        0.021778231247328757,
        -0.008582589511472276,
        0.0030649014406912275,
        -0.0008332162391078529,
        0.00011958780648308118,
    ),
    jnp.dtype(jnp.float64): (
        1.0,
        -0.33333333333333276,
        0.13333333333327796,
        -0.053968253966135686,
        0.021869488493379986,
        -0.008863235003976634,
        0.003592123754707519,
        -0.0014558100278309679,
        0.000589927073142048,
        -0.00023882227381263088,
        9.620826517827719e-05,
        -3.803813942672595e-05,
        1.4255370716114515e-05,
        -4.741598314640336e-06,
        1.2639921304306404e-06,
        -2.3105100745815075e-07,
        2.1067070069354262e-08,
    ),
}


def tanh(x: jax.Array) -> jax.Array:
    """The hyperbolic tangent; XLA's exceeds 1 in float64 in some versions."""
    near = jnp.clip(x, -1.0, 1.0)
    near *= polynomial(jnp.square(near), _TANH[x.dtype])
    decay = jnp.exp(-2.0 * jnp.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return jnp.where(jnp.abs(x) < 1.0, near, jnp.where(x >= 0.0, far, -far))
