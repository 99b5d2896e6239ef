"""The mutual information of two variables, from their joint distribution."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxent._compat import log1p
from jaxent._float.limits import is_zero
from jaxent._float.tangents import Arrays, Dual
from jaxent._float.two_part import add_all, exact_products, exact_sum, precise_sum
from jaxent._kernels.renyi import log_fraction_jvp
from jaxent._kernels.tsallis import power_divergence_terms


@jax.custom_jvp
def mutual_information(joint: jax.Array) -> jax.Array:
    """sum(p log(p total / (row column))) over the last two axes, p over its total."""
    return _joint_stats(joint).value[..., 0, 0]


class _JointStats(NamedTuple):
    """A joint distribution and how its cells differ from the product of their sums."""

    total: jax.Array  # [..., 1, 1]
    row_sums: jax.Array  # [..., K, 1]
    column_sums: jax.Array  # [..., 1, M]
    log_ratio: jax.Array  # [..., K, M], of a cell and the product of its sums, 0 in empty cells
    value: jax.Array  # [..., 1, 1], the mutual information


_TwoPart = tuple[jax.Array, jax.Array]


def _joint_stats(joint: jax.Array) -> _JointStats:
    """Exact sums, and log-ratios that come from exact differences where they are near 0."""
    # A power of two scales the total to [1/2, 1).
    plain_total = jnp.sum(joint, axis=(-2, -1), keepdims=True)
    exponent = jnp.frexp(jnp.where(is_zero(plain_total), 1.0, plain_total))[1]
    cells = jnp.ldexp(joint, -exponent)
    rows, columns = exact_sum(cells), exact_sum(cells.swapaxes(-2, -1))
    total = _sum_two_part(*rows)
    rows = (rows[0][..., None], rows[1][..., None])
    columns = (columns[0][..., None, :], columns[1][..., None, :])
    difference = _difference_of_products(cells, total, rows, columns)

    sums = [high + low for high, low in (total, rows, columns)]
    safe_total, row_sums, column_sums = (jnp.where(is_zero(x), 1.0, x) for x in sums)
    is_positive = ~is_zero(cells)
    ratio = jnp.where(is_positive, cells / row_sums * (safe_total / column_sums), 1.0)
    product = row_sums * column_sums
    is_near = is_positive & (jnp.abs(ratio - 1.0) < 0.5) & ~is_zero(product)
    near = log1p(jnp.where(is_near, difference / jnp.where(is_near, product, 1.0), 0.0))
    log_ratio = jnp.where(is_near, near, jnp.log(ratio))
    independent = (sums[1] / safe_total) * (sums[2] / safe_total)
    terms = power_divergence_terms(cells / safe_total, independent, log_ratio, ratio, 1.0)
    terms = jnp.where(is_positive, terms, independent)
    value = precise_sum(terms.reshape(*terms.shape[:-2], -1))[..., None, None]
    row_sums, column_sums, safe_total = (
        jnp.ldexp(x, exponent) for x in (row_sums, column_sums, safe_total)
    )
    return _JointStats(safe_total, row_sums, column_sums, log_ratio, value)


def _sum_two_part(x: jax.Array, error: jax.Array) -> _TwoPart:
    """The sum over the last axis of two-part numbers, in two parts [..., 1, 1]."""
    high, low = exact_sum(x)
    return high[..., None, None], (low + jnp.sum(error, axis=-1))[..., None, None]


def _difference_of_products(
    cells: jax.Array, total: _TwoPart, rows: _TwoPart, columns: _TwoPart
) -> jax.Array:
    """The difference cells * total - rows * columns, as if rounded once."""
    products = zip(
        exact_products(cells, total[0]), exact_products(-rows[0], columns[0]), strict=True
    )
    result, error = add_all(*itertools.chain(*products))
    error += (cells * total[1] - rows[0] * columns[1]) - rows[1] * columns[0]
    return result + error


@mutual_information.defjvp
def _mutual_information_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (joint,), (joint_dot,) = primals, tangents
    grad = _mutual_information_grad(joint)
    return mutual_information(joint), jnp.sum(grad * joint_dot, axis=(-2, -1))


@jax.custom_jvp
def _mutual_information_grad(joint: jax.Array) -> jax.Array:
    stats = _joint_stats(joint)
    return jnp.where(is_zero(joint), 0.0, (stats.log_ratio - stats.value) / stats.total)


@_mutual_information_grad.defjvp
def _mutual_information_grad_jvp(primals: Arrays, tangents: Arrays) -> Dual:
    (joint,), (joint_dot,) = primals, tangents
    stats, grad = _joint_stats(joint), _mutual_information_grad(joint)
    # The log-ratio is log(cell / row) - log(column / total).
    log_ratio_dot = log_fraction_jvp(joint, stats.row_sums, joint_dot)
    is_empty = jnp.all(is_zero(joint), axis=-2, keepdims=True)
    column_sums = jnp.where(is_empty, 0.0, stats.column_sums)
    column_sums_dot = jnp.sum(joint_dot, axis=-2, keepdims=True)
    log_ratio_dot -= log_fraction_jvp(column_sums, stats.total, column_sums_dot)
    value_dot = jnp.sum(grad * joint_dot, axis=(-2, -1), keepdims=True)
    total_dot = jnp.sum(joint_dot, axis=(-2, -1), keepdims=True)
    grad_dot = (log_ratio_dot - value_dot - grad * total_dot) / stats.total
    return grad, jnp.where(is_zero(joint), 0.0, grad_dot)
