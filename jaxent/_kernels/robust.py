"""Powers of the probability of a label, and bounded losses made of them, for noisy labels.

They are functions of the cross-entropy c = -log(p), but their derivatives take p from the logits:
exp(-c) inherits the rounding of c, which is many units in the last place.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxent._float.powers import power, static_or_traced, zero_safe_product
from jaxent._float.series import one_minus_exp, polynomial, terms_for
from jaxent._float.tangents import Arrays, Dual, Tangents, broadcast_tangent, scale_tangent
from jaxent._float.two_part import finite_two_diff, split, split_number
from jaxent._kernels.cross_entropy import label_cross_entropy
from jaxent._kernels.softmax import max_and_shift
from jaxent._parallel import AxisName, psum, take_label


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 4))
def label_power(
    number: float | None,
    x: jax.Array,
    labels: jax.Array,
    exponent: jax.Array | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    """softmax(x)[labels] to a power in [0, 1], over the last axis.

    The exponent is `number`, with all of its digits, or the scalar array `exponent` if that is
    None.

    The result is exp(-exponent * distance) times a power of a quotient near 1, with the distance
    of the label to the top of the row as a sum of two numbers. The factors of the first product
    have half of the digits, so that it is exact.
    """
    q = static_or_traced(number, exponent)
    top, shift = max_and_shift(x, axis_name)
    total = psum(jnp.sum(jnp.exp(x - shift[..., None]), axis=-1), axis_name)
    label_logit = take_label(x, labels, axis_name)
    is_possible = label_logit != -jnp.inf
    label_logit = jnp.where(is_possible, label_logit, top)
    # Quarters, since the difference of two finite logits may overflow.
    distance, error = finite_two_diff(0.25 * top, 0.25 * label_logit)
    distance_high, distance_low = split(distance)
    if isinstance(q, jax.Array):
        q_high, q_low = split(4.0 * q)
    else:
        half_of_digits = jnp.float16 if x.dtype == jnp.float32 else jnp.float32
        mantissa, places = math.frexp(4.0 * q)  # float16 has a short range
        halves = split_number(mantissa, jnp.dtype(half_of_digits))
        q_high, q_low = (math.ldexp(half, places) for half in halves)
    high = q_high * distance_high
    low = q_high * (distance_low + error) + q_low * distance
    # From 1024 on exp(-high) is 0, and exp(-low) may be infinite.
    low = jnp.where(high < 2.0**10, low, 0.0)
    quotient = jnp.exp(top - shift) / jnp.where(total == 0.0, 1.0, total)
    # One factor is 1 + expm1(-low), since XLA merges exp(-high) exp(-low) and rounds the sum.
    result = jnp.exp(-high) * (1.0 + jnp.expm1(-low)) * power(quotient, q)
    return jnp.where(is_possible | (q == 0.0), result, 0.0)


@functools.partial(label_power.defjvp, symbolic_zeros=True)
def _label_power_jvp(
    number: float | None, axis_name: AxisName, primals: Arrays, tangents: Tangents
) -> Dual:
    x, labels, exponent = primals
    x_dot, _, exponent_dot = tangents
    result = label_power(number, x, labels, exponent, axis_name)

    def cross_entropy(x: jax.Array) -> jax.Array:
        return label_cross_entropy(x, labels, axis_name=axis_name)

    result_dot = 0.0
    if not isinstance(x_dot, SymbolicZero):
        c_dot = jax.jvp(cross_entropy, (x,), (x_dot,))[1]
        result_dot -= static_or_traced(number, exponent) * (result * c_dot)
    if not (exponent is None or isinstance(exponent_dot, SymbolicZero)):
        result_dot -= zero_safe_product(result, cross_entropy(x)) * exponent_dot
    return result, broadcast_tangent(result_dot, result)


@jax.custom_jvp
def generalized_cross_entropy(c: jax.Array, p_to_q: jax.Array, q: jax.Array) -> jax.Array:
    """(1 - p**q) / q of a cross-entropy c = -log(p), for q in [0, 1]; c for q = 0.

    The derivatives need p**q.
    """
    del p_to_q
    # The bound is for a q of 0, whose product with an infinite cross-entropy is NaN.
    qc = q * jnp.minimum(c, float(jnp.finfo(c.dtype).max))
    is_small = qc < float(jnp.finfo(c.dtype).eps) / 4.0
    return jnp.where(is_small, c, one_minus_exp(qc) / jnp.where(q == 0.0, 1.0, q))


@functools.partial(generalized_cross_entropy.defjvp, symbolic_zeros=True)
def _generalized_cross_entropy_jvp(primals: Arrays, tangents: Tangents) -> Dual:
    c, p_to_q, q = primals
    c_dot, _, q_dot = tangents
    loss = generalized_cross_entropy(c, p_to_q, q)
    loss_dot = scale_tangent(p_to_q, c_dot)
    if not isinstance(q_dot, SymbolicZero):
        loss_dot += _generalized_cross_entropy_grad_q(c, p_to_q, q, loss) * q_dot
    return loss, broadcast_tangent(loss_dot, loss)


def _generalized_cross_entropy_grad_q(
    c: jax.Array, p_to_q: jax.Array, q: jax.Array, loss: jax.Array
) -> jax.Array:
    """(c p**q - loss) / q, by a series where q c is small."""
    is_near = (p_to_q > 0.0) & (q * jnp.where(p_to_q == 0.0, 1.0, c) < 1.0)
    near_c = jnp.where(is_near, c, 0.0)
    count = terms_for(c.dtype, 10, 18)
    coefficients = [(n + 1) / math.factorial(n + 2) for n in range(count)]
    near = jnp.square(near_c) * polynomial(-(q * near_c), coefficients)
    far = zero_safe_product(c, p_to_q) - jnp.where(is_near, 0.0, loss)
    # The square of a small q, in the derivative of a quotient, would underflow.
    return jnp.where(is_near, -near, far / jnp.where(is_near | (q == 0.0), 1.0, q))
