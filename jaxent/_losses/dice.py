"""Losses of how well predicted regions of an image overlap the true ones: Dice and Tversky."""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._float import intervals
from jaxent._kernels import overlap
from jaxent._losses.overlap import Layout, PixelAxes, Regions, check_regions, class_losses


@_checks.public
def dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    apply_softmax: bool = True,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_background: bool = False,
    axis: PixelAxes = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Dice loss: how far predicted regions are from overlapping the true ones.

    .. math:: \ell_c = \frac{\alpha\, FP_c + \beta\, FN_c}{TP_c + \alpha\, FP_c + \beta\, FN_c + s},
        \qquad TP_c = \sum_i p_{ic} t_{ic}, \quad FP_c = \sum_i p_{ic} (1 - t_{ic}), \quad
        FN_c = \sum_i (1 - p_{ic})\, t_{ic}

    Args:
        predictions: Logits in nats, `[images, ..., C]`: of a softmax, or with C = 1 of a sigmoid.
        targets: Numbers t in [0, 1] (one-hot labels, say), of the shape of `predictions`. With C =
            1, either may lack the last axis.
        class_weights: Factors of the losses, `[C]`, finite and not negative.
        smooth: :math:`s \ge 0`, a scalar. With 0, a class neither predicted nor true costs 0.
        alpha: Weight of false positives, :math:`\alpha \ge 0`, a scalar.
        beta: Weight of false negatives, :math:`\beta \ge 0`, a scalar.
        apply_softmax: False for probabilities, of sum 1 (to 1e-5 or a 16-bit epsilon) if C > 1.
        reduction: "mean" or "sum" over the classes, or "none".
        ignore_background: Whether class 0 is left out, unless it is the only one.
        axis: The axes of the pixels; None for all but the first and the last.
        where: Mask of the pixels (no class axis), or of their classes (rank of `predictions`).

    Returns:
        Losses in units of overlap, `[images]` (`[images, C]` for "none"), float32 or float64.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[9.0, -9.0], [9.0, -9.0]], [[9.0, -9.0], [0.0, 0.0]]])
        >>> print(jaxent.dice_loss(logits, jnp.array([[[1, 0], [1, 0]], [[1, 0], [1, 0]]])))
        [1.0153320e-08 1.4545456e-01]

    References:
        Milletari et al., `V-Net <https://arxiv.org/abs/1606.04797>`_, 2016.
    """
    options = {"smooth": smooth, "alpha": alpha, "beta": beta}
    regions, layout = check_regions(predictions, targets, where, axis, apply_softmax, options)
    return _check_and_reduce(regions, layout, class_weights, reduction, ignore_background)


@_checks.public
def binary_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_sigmoid: bool = True,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Dice loss of one region against everything else.

    .. math:: \ell = \frac{FP + FN}{2\, TP + FP + FN + 2 s}, \qquad TP = \sum_i p_i t_i, \quad
        FP = \sum_i p_i (1 - t_i), \quad FN = \sum_i (1 - p_i)\, t_i

    Args:
        predictions: Logits in nats, `[images, ...]` or `[images, ..., 1]`, floating point.
        targets: Numbers t in [0, 1], of that shape, with or without the last axis of size 1.
        smooth: The number :math:`s \ge 0`, a scalar.
        apply_sigmoid: False for predictions that are probabilities.
        where: Mask of the pixels, with or without the last axis of size 1.

    Returns:
        One loss per image in units of overlap, `[images]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[20.0, -20.0], [-20.0, 20.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> print(jaxent.binary_dice_loss(logits, jnp.array([[[1, 0], [0, 1]]] * 2)))
        [1.3741025e-09 3.3333334e-01]

    References:
        Milletari et al., `V-Net <https://arxiv.org/abs/1606.04797>`_, 2016.
    """
    predictions = _checks.as_floating("predictions", predictions)
    targets = _checks.as_real("targets", targets)
    lacks_class_axis = predictions.ndim == targets.ndim and predictions.shape[-1:] != (1,)
    options = {"smooth": smooth, "alpha": 0.5, "beta": 0.5}
    regions, layout = check_regions(
        predictions, targets, where, None, apply_sigmoid, options, adds_class_axis=lacks_class_axis
    )
    return _check_and_reduce(regions, layout, None, "mean", False)


@_checks.public
def multiclass_generalized_dice_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    smooth: ArrayLike = 1.0,
    apply_softmax: bool = True,
    ignore_background: bool = False,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Dice loss in which a class weighs the more, the fewer pixels of the batch belong to it.

    .. math:: \ell = \operatorname{mean}_{b,c} w_c\, \ell_{bc}, \qquad w_c = C r_c \Big/ \sum_k r_k,
        \quad r_c = 1 / (f_c^2 + 10^{-7}), \quad f_c = \sum_{b,i} t_{bic}

    with :math:`\ell_{bc}` the `dice_loss` of a class in an image. A class without pixels in the
    whole batch takes all of the weight, as in optax. If that may happen, give `dice_loss` weights.

    Args:
        predictions: Logits in nats, `[images, ..., C]`, as in `dice_loss`.
        targets: Numbers t in [0, 1], of the shape of `predictions`.
        smooth: The number :math:`s \ge 0` of `dice_loss`, a scalar.
        apply_softmax: False for predictions that are probabilities, as in `dice_loss`.
        ignore_background: Whether class 0 is left out of the mean, unless it is the only one.
        where: Mask of the pixels (no class axis), or of their classes (rank of `predictions`).
            Images without pixels, and classes masked at all pixels, do not count in the mean.

    Returns:
        The mean over images and classes in units of overlap, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
        >>> targets = jnp.array([[[1, 0], [1, 0], [0, 1], [1, 0]]])
        >>> print(jaxent.multiclass_generalized_dice_loss(logits, targets))
        0.107391305

    References:
        Sudre et al., `Generalised Dice overlap <https://arxiv.org/abs/1707.03237>`_, 2017.
    """
    options = {"smooth": smooth, "alpha": 0.5, "beta": 0.5}
    regions, layout = check_regions(predictions, targets, where, None, apply_softmax, options)
    return _generalized_loss(regions, layout, bool(ignore_background))


@_checks.public
def tversky_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    class_weights: ArrayLike | None = None,
    smooth: ArrayLike = 1.0,
    alpha: ArrayLike = 0.3,
    beta: ArrayLike = 0.7,
    gamma: ArrayLike = 1.0,
    apply_softmax: bool = True,
    reduction: Literal["mean", "sum", "none"] = "mean",
    ignore_background: bool = False,
    axis: PixelAxes = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Tversky loss: a Dice loss that minds what is missed more than what is wrongly predicted.

    .. math:: \ell_c^\gamma = \frac{\alpha FP_c + \beta FN_c}{TP_c + \alpha FP_c + \beta FN_c + s}

    Args:
        predictions: Logits in nats, `[images, ..., C]`; TP, FP and FN are those of `dice_loss`.
        targets: Numbers t in [0, 1], of the shape of `predictions`, as in `dice_loss`.
        class_weights: Factors of the losses, `[C]`, finite and not negative.
        smooth: The number :math:`s \ge 0`, a scalar.
        alpha: Weight of false positives, :math:`\alpha \ge 0`, a scalar.
        beta: Weight of false negatives, :math:`\beta \ge 0`, a scalar.
        gamma: The focal parameter :math:`\gamma > 0`, a scalar; the second paper takes 4/3.
        apply_softmax: False for predictions that are probabilities, as in `dice_loss`.
        reduction: "mean" or "sum" over the classes, or "none".
        ignore_background: Whether class 0 is left out, unless it is the only one.
        axis: The axes of the pixels; None for all but the first and the last.
        where: Mask of the pixels (no class axis), or of their classes (rank of `predictions`).

    Returns:
        Losses in units of overlap, `[images]` (`[images, C]` for "none"), float32 or float64.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[20.0, -20.0, -20.0, 20.0], [-20.0, -20.0, -20.0, 20.0]])
        >>> print(jaxent.tversky_loss(logits[..., None], jnp.array([[1, 0, 0, 1]] * 2)))
        [1.3741025e-09 2.5925925e-01]

    References:
        Salehi et al., `Tversky loss <https://arxiv.org/abs/1706.05721>`_, 2017; Abraham, Khan,
        `Focal Tversky loss <https://arxiv.org/abs/1810.07842>`_, 2018.
    """
    _checks.check_open_interval("gamma", gamma, 0.0, math.inf)
    options = {"smooth": smooth, "alpha": alpha, "beta": beta}
    if not (isinstance(gamma, (int, float)) and gamma == 1):
        options["gamma"] = gamma
    regions, layout = check_regions(predictions, targets, where, axis, apply_softmax, options)
    return _check_and_reduce(regions, layout, class_weights, reduction, ignore_background)


# Reductions over the classes.


def _check_and_reduce(
    regions: Regions,
    layout: Layout,
    class_weights: ArrayLike | None,
    reduction: str,
    ignore_background: bool,
) -> jax.Array:
    """The losses of the classes, weighted and reduced, once the last arguments are checked."""
    _checks.check_one_of("reduction", reduction, ("mean", "sum", "none"))
    if class_weights is not None:
        class_weights = _checks.as_real("class_weights", class_weights)
        _checks.require(
            class_weights.shape == layout.shape[-1:],
            f"`class_weights` {_checks.describe(class_weights)} must hold one number for each of "
            f"the {layout.shape[-1]} classes.",
        )
    return _weight_and_reduce(regions, class_weights, layout, reduction, bool(ignore_background))


@functools.partial(
    jax.jit, static_argnames=("layout", "reduction", "ignore_background"), inline=True
)
def _weight_and_reduce(
    regions: Regions,
    class_weights: jax.Array | None,
    layout: Layout,
    reduction: str,
    ignore_background: bool,
) -> jax.Array:
    losses, _, class_mask = class_losses(regions, layout)
    if class_weights is not None:
        weights = class_weights.astype(losses.dtype)
        valid = jnp.all((weights >= 0.0) & (weights < jnp.inf))
        if class_mask is not None:
            valid |= ~jnp.any(class_mask, axis=-1, keepdims=True)
        losses = intervals.nan_where_invalid(losses * _align_classes(weights, losses), valid)
    losses, class_mask = _drop_background(losses, class_mask, ignore_background)
    if class_mask is not None:
        losses = jnp.where(class_mask, losses, 0.0)
    if reduction == "none":
        return losses
    total = jnp.sum(losses, axis=-1)
    return total if reduction == "sum" else total / _count_or_one(losses, class_mask, (-1,))


@functools.partial(jax.jit, static_argnames=("layout", "ignore_background"), inline=True)
def _generalized_loss(regions: Regions, layout: Layout, ignore_background: bool) -> jax.Array:
    losses, region_sizes, class_mask = class_losses(regions, layout)
    images = tuple(range(losses.ndim - 1))
    rarity = 1.0 / (jnp.square(jnp.sum(region_sizes, axis=images)) + 1e-7)
    if class_mask is None:
        class_count = float(rarity.shape[-1])
    else:
        in_batch = jnp.any(class_mask, axis=images)
        rarity = jnp.where(in_batch | ~jnp.any(in_batch), rarity, 0.0)
        class_count = _count_or_one(rarity, in_batch, (-1,))
    weights = class_count * overlap.normalize_weights(rarity)
    losses = losses * _align_classes(weights, losses)
    losses, class_mask = _drop_background(losses, class_mask, ignore_background)
    if class_mask is not None:
        losses = jnp.where(class_mask, losses, 0.0)
    return jnp.sum(losses) / _count_or_one(losses, class_mask, tuple(range(losses.ndim)))


def _align_classes(weights: jax.Array, losses: jax.Array) -> jax.Array:
    """Weights [C] of the rank of the losses [..., C]."""
    return weights.reshape(*[1] * (losses.ndim - 1), -1)


def _drop_background(
    losses: jax.Array, class_mask: jax.Array | None, ignore_background: bool
) -> tuple[jax.Array, jax.Array | None]:
    """All classes but the first, if that is to be ignored and not the only one."""
    if not ignore_background or losses.shape[-1] == 1:
        return losses, class_mask
    return losses[..., 1:], None if class_mask is None else class_mask[..., 1:]


def _count_or_one(
    losses: jax.Array, class_mask: jax.Array | None, axes: tuple[int, ...]
) -> jax.Array:
    """The number of losses that are not masked, and 1 for none."""
    if class_mask is None:
        return jnp.asarray(max(1, math.prod(losses.shape[a] for a in axes)), losses.dtype)
    return jnp.maximum(jnp.sum(class_mask, axis=axes, dtype=losses.dtype), 1.0)
