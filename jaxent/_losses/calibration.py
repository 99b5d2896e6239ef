"""How far the confidence of a model is from its accuracy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import sums


@_checks.public
def expected_calibration_error(
    probs: ArrayLike,
    labels: ArrayLike,
    num_bins: int = 15,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Mean gap between confidence and accuracy, over bins of equal width.

    .. math::
        \sum_{m=1}^{M} \frac{|B_m|}{n}
        \Big| \mathrm{accuracy}(B_m) - \mathrm{confidence}(B_m) \Big|, \qquad
        B_m = \Big\{ i : \frac{m - 1}{M} < \max_j p_{ij} \le \frac{m}{M} \Big\}

    Args:
        probs: Probabilities in [0, 1], shape `[..., V]` (with V along `axis`), floating point;
            16-bit dtypes are computed in float32. For a yes/no model stack `1 - p` and `p`. The
            first of several largest ones is the prediction.
        labels: Index of the true class, integers of the shape of the examples `[...]`.
        num_bins: The number of bins M, a positive integer.
        axis: The class axis. Given several, a label is a flat index into them, in their order.
        where: Booleans. Of the shape `[...]` of the examples: True where the example counts. Of
            the rank of `probs`: True where the class exists; an example without classes is masked.

    Returns:
        A scalar in units of probability, from 0 to 1, float32 (float64 for float64 probabilities);
        0 if no example counts, and NaN if a label or a probability of one that does is out of
        range. It has jumps where an example changes its bin: a measure, not a loss to train on.

    Raises:
        ArgumentError: If dtypes, shapes, `axis` or `num_bins` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> probs = jnp.array([[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.2, 0.8]])
        >>> print(jaxent.expected_calibration_error(probs, jnp.array([0, 1, 1, 0])))
        0.35

    References:
        Naeini, Cooper, Hauskrecht, `Obtaining Well Calibrated Probabilities Using Bayesian Binning
        <https://doi.org/10.1609/aaai.v29i1.9602>`_, 2015; Guo et al., `On Calibration of Modern
        Neural Networks <https://arxiv.org/abs/1706.04599>`_, 2017, section 2.
    """
    remedy = "for one target per class pass the index of the largest."
    given = _masks.check_labelled_arguments("probs", probs, labels, axis, where, remedy)
    _checks.check_positive_integer("num_bins", num_bins)
    return _error(given.array, given.labels, given.where, given.axes, int(num_bins))


@functools.partial(jax.jit, static_argnames=("axes", "num_bins"), inline=True)
def _error(probs, labels, where, axes, num_bins) -> jax.Array:
    rows = _masks.mask_labelled_rows(probs, labels, where, axes, _masks.PROBABILITIES)
    rows = rows._replace(valid=rows.valid & _masks.all_in_interval(rows.values, 0.0, 1.0))
    confidence = jnp.max(rows.values, axis=-1)
    predicted = jnp.argmax(rows.values, axis=-1).astype(rows.labels.dtype)
    hit = (predicted == rows.labels).astype(confidence.dtype)
    gaps = rows.losses(hit - confidence).ravel()
    # Ends rounded like the probabilities themselves: 0.2 lies in the bin that ends at 3/15.
    ends = jnp.asarray(np.arange(1, num_bins) / num_bins, confidence.dtype)
    bins = jnp.searchsorted(ends, jax.lax.stop_gradient(confidence).ravel(), side="left")

    def gap_of(index):
        return jnp.abs(sums.blocked_sum(jnp.where(bins == index, gaps, 0.0)))

    # One bin after the other, which needs no matrix of bins and examples.
    total = jnp.sum(jax.lax.map(gap_of, jnp.arange(num_bins, dtype=bins.dtype)))
    count = (
        gaps.size
        if rows.example_mask is None
        else jnp.sum(jnp.broadcast_to(rows.example_mask, hit.shape))
    )
    return total / jnp.maximum(jnp.asarray(count, total.dtype), 1.0)
