"""Poly loss: cross-entropy with one coefficient of its expansion changed."""

from __future__ import annotations

import functools
import math
import numbers

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import poly
from jaxent._parallel import AxisName


@_checks.public
def poly_loss_cross_entropy(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    where: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 2.0,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Cross-entropy against a distribution, with the first term of its expansion reweighted.

    .. math:: \ell = \sum_j t_j \big( \epsilon (1 - p_j) - \log p_j \big), \ p = \mathrm{softmax}(x)

    Args:
        logits: Unnormalised log-probabilities in nats, `[..., V]`.
        labels: Targets t, `[..., V]`, non-negative, of any total (1 for a distribution).
        axis: The class axis, or axes; None for all.
        where: Mask of the examples `[...]`, or of the classes (the shape of `logits`).
        epsilon: What is added to the coefficient 1 of :math:`1 - p` in the expansion; a scalar.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        One loss per example in nats, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> labels = jnp.array([[1.0, 0.0, 0.0], [0.1, 0.6, 0.3]])
        >>> print(jaxent.poly_loss_cross_entropy(jnp.array([[20.0, 0, 0], [0, 1, 2]]), labels))
        [1.2366922e-08 2.4967811e+00]

    References:
        Leng et al., `PolyLoss <https://arxiv.org/abs/2204.12511>`_, 2022, section 4.
    """
    _checks.check_mesh_axis(axis_name)
    arrays = {
        "logits": _checks.as_floating("logits", logits),
        "labels": _checks.as_real("labels", labels),
    }
    axes = _checks.normalize_axes("logits", arrays["logits"], axis)
    _checks.check_targets("logits", arrays["logits"], "labels", arrays["labels"])
    _checks.check_broadcastable(**arrays)
    _checks.check_same_classes(axes, **arrays)
    where = _masks.check_mask(where, axes, arrays)
    _checks.check_closed_interval("epsilon", epsilon, -math.inf, math.inf)
    _checks.check_finite("epsilon", epsilon)
    signs = _possible_signs(epsilon)
    epsilon = _checks.as_scalar("epsilon", epsilon)
    return _poly_losses(*arrays.values(), where, epsilon, axes, axis_name, signs)


def _possible_signs(epsilon: ArrayLike) -> str:
    """The signs that epsilon may have, which decide what there is to compute."""
    if not isinstance(epsilon, numbers.Real):
        return "+-"
    return "-" if float(epsilon) < 0.0 else "+"


@functools.partial(jax.jit, static_argnames=("axes", "axis_name", "signs"), inline=True)
def _poly_losses(
    logits: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    epsilon: jax.Array,
    axes: tuple[int, ...],
    axis_name: AxisName,
    signs: str,
) -> jax.Array:
    dtype = compute_dtype(logits, labels)
    x, _, example_mask = _masks.mask_rows(
        logits.astype(dtype), where, axes, _masks.LOGITS, axis_name
    )
    targets = jnp.broadcast_to(labels, labels.shape or logits.shape).astype(dtype)
    targets = _masks.mask_rows(targets, where, axes, _masks.TARGETS, axis_name).values
    shape = jnp.broadcast_shapes(x.shape, targets.shape)
    x, targets = jnp.broadcast_to(x, shape), jnp.broadcast_to(targets, shape)
    epsilon, is_epsilon_valid = intervals.valid_option(epsilon, dtype, -math.inf, math.inf)
    above = jnp.maximum(epsilon, 0.0) if "+" in signs else None
    below = jnp.minimum(epsilon, 0.0) if "-" in signs else None
    is_valid = (
        intervals.all_in_interval(targets, intervals.NON_NEGATIVE, axis_name) & is_epsilon_valid
    )
    losses = poly.poly_cross_entropy(x, targets, above, below, axis_name)
    return _masks.zero_where_masked(intervals.nan_where_invalid(losses, is_valid), example_mask)
