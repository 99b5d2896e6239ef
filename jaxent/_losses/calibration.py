"""How far the confidence of a model is from its accuracy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals, sums


@_checks.public
def expected_calibration_error(
    probs: ArrayLike,
    labels: ArrayLike,
    num_bins: int = 15,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Mean gap between confidence and accuracy, over bins of equal width.

    .. math:: \sum_m \frac{|B_m|}{n} \big| \mathrm{accuracy}(B_m) - \mathrm{confidence}(B_m) \big|,
        \quad B_m = \big\{ i : (m - 1) / M < \max_j p_{ij} \le m / M \big\}

    It jumps where an example changes its bin: a measure, not a loss to train on. For a yes/no model
    stack `1 - p` and `p`. `temperature_scaling` makes it smaller.

    Args:
        probs: Probabilities in [0, 1], `[..., V]`. The first of several largest is the prediction.
        labels: Index of the true class, integers `[...]`; a flat index into several axes.
        num_bins: The number of bins M, a positive integer.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `probs`).

    Returns:
        A scalar in units of probability (0 for no example), float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
        >>> print(jaxent.expected_calibration_error(probs, jnp.array([0, 1, 1, 0])))
        0.35

    References:
        Naeini et al., `Bayesian Binning <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015; Guo et
        al., `On Calibration of Modern Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017.
    """
    remedy = "for one target per class pass the index of the largest."
    given = _masks.check_labelled_arguments("probs", probs, labels, axis, where, remedy)
    _checks.check_positive_integer("num_bins", num_bins)
    return _calibration_error(given.array, given.labels, given.where, given.axes, int(num_bins))


# Not inlined: the loop in its transpose would be compiled anew at every gradient without `jax.jit`.
@functools.partial(jax.jit, static_argnames=("axes", "num_bins"))
def _calibration_error(
    probs: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
    num_bins: int,
) -> jax.Array:
    probs = intervals.clip_rounding(probs)
    rows = _masks.mask_labelled_rows(probs, labels, where, axes, _masks.PROBABILITIES)
    rows = rows.valid_only_if(intervals.all_in_interval(rows.values, intervals.UNIT_INTERVAL))
    confidence = jnp.max(rows.values, axis=-1)
    predicted = jnp.argmax(rows.values, axis=-1).astype(rows.labels.dtype)
    is_right = (predicted == rows.labels).astype(confidence.dtype)
    gaps = rows.losses(is_right - confidence).ravel()
    # Ends rounded like the probabilities themselves: 0.2 lies in the bin that ends at 3/15.
    ends = jnp.asarray(np.arange(1, num_bins) / num_bins, confidence.dtype)
    bins = jnp.searchsorted(ends, jax.lax.stop_gradient(confidence).ravel(), side="left")

    def gap_of(index: jax.Array) -> jax.Array:
        return jnp.abs(sums.blocked_sum(jnp.where(bins == index, gaps, 0.0)))

    # One bin after the other, which needs no matrix of bins and examples.
    total = jnp.sum(jax.lax.map(gap_of, jnp.arange(num_bins, dtype=bins.dtype)))
    mask = rows.example_mask
    count = gaps.shape[0] if mask is None else jnp.sum(jnp.broadcast_to(mask, is_right.shape))
    return total / jnp.maximum(jnp.asarray(count, total.dtype), 1.0)
