"""From images and their true regions to the loss of each class: what all Dice losses share."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._float.sums import fraction
from jaxent._kernels import overlap
from jaxent._kernels.sigmoid import sigmoid_and_complement
from jaxent._kernels.softmax import softmax_and_complement

PixelAxes = int | Sequence[int] | None

# Checks.


class Regions(NamedTuple):
    """Checked arguments."""

    predictions: jax.Array
    targets: jax.Array
    where: jax.Array | None
    options: dict[str, jax.Array]  # smooth, alpha, beta, and gamma if it is not 1


class Layout(NamedTuple):
    """How they are to be read: hashable."""

    shape: tuple[int, ...]  # of predictions and targets, with the class axis
    pixel_axes: tuple[int, ...]
    is_logits: bool


def check_regions(
    predictions: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None,
    axis: PixelAxes,
    is_logits: bool,
    options: dict[str, ArrayLike],
    *,
    adds_class_axis: bool = False,
) -> tuple[Regions, Layout]:
    """Arguments of a loss of overlaps, refused where they do not fit."""
    predictions = _checks.as_floating("predictions", predictions)
    targets = _checks.as_real("targets", targets)
    shapes = [array.shape + (1,) * adds_class_axis for array in (predictions, targets)]
    # The one that lacks the class axis has one class.
    ranks = [len(shape) for shape in shapes]
    if abs(ranks[0] - ranks[1]) == 1:
        shapes[ranks.index(min(ranks))] += (1,)
    shape = shapes[0]
    _checks.require(
        shape == shapes[1] and len(shape) > 0 and shape[-1] > 0,
        f"`targets` {_checks.describe(targets)} must hold one number for each of `predictions` "
        f"{_checks.describe(predictions)}; make class indices one-hot with `jax.nn.one_hot`.",
    )
    if where is not None:
        where = _check_region_mask(_checks.as_boolean("where", where), shape)
    for option, value in options.items():
        _checks.check_closed_interval(option, value, 0.0, math.inf)
        _checks.check_finite(option, value)
    scalars = {option: _checks.as_scalar(option, value) for option, value in options.items()}
    layout = Layout(shape, _check_pixel_axes(axis, len(shape)), bool(is_logits))
    return Regions(predictions, targets, where, scalars), layout


def _check_region_mask(where: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    fits = where.ndim in (0, len(shape) - 1, len(shape))
    fits = fits and all(a in (1, b) for a, b in zip(where.shape, shape, strict=False))
    _checks.require(
        fits,
        f"`where` {_checks.describe(where)} must have the shape {shape[:-1]} of the pixels, or "
        f"{shape} with the classes; axes may be of size 1.",
    )
    return where


def _check_pixel_axes(axis: PixelAxes, rank: int) -> tuple[int, ...]:
    """The axes to sum over, of arrays whose last one holds the classes."""
    if axis is None:
        return tuple(range(1, rank - 1))
    given = tuple(axis) if isinstance(axis, Sequence) else (axis,)
    try:
        given = tuple(map(operator.index, given))
    except TypeError:
        given = (rank,)
    axes = tuple(a % rank for a in given if -rank <= a < rank)
    _checks.require(
        len(axes) == len(given) == len(set(axes)) and rank - 1 not in axes,
        f"`axis` {axis} must name axes of pixels, each once: from 0 to {rank - 2}, since the last "
        "one holds the classes.",
    )
    return axes


# The loss of each class.


class ClassLosses(NamedTuple):
    """For each image and class, [..., C]."""

    losses: jax.Array
    region_sizes: jax.Array  # in pixels, of the true regions
    class_mask: jax.Array | None  # whether the class exists at some pixel, or None for all


def class_losses(regions: Regions, layout: Layout) -> ClassLosses:
    """The losses, NaN for images with predictions, targets or options out of range."""
    dtype = compute_dtype(regions.predictions, regions.targets)
    predictions = regions.predictions
    predictions = predictions if layout.is_logits else intervals.clip_rounding(predictions)
    x = _flatten_pixels(predictions, layout).astype(dtype)
    t = _flatten_pixels(intervals.clip_rounding(regions.targets), layout).astype(dtype)
    shape, mask = x.shape, None
    if regions.where is not None:
        where = regions.where
        where = where[..., None] if 0 < where.ndim < len(layout.shape) else where
        mask = _flatten_pixels(jnp.broadcast_to(where, layout.shape), layout)
        pixel_mask = jnp.any(mask, axis=-1, keepdims=True)
        masked_class = -jnp.inf if layout.is_logits else 0.0
        fill = jnp.where(pixel_mask, masked_class, 0.0).astype(dtype)
        x, t = jnp.where(mask, x, fill), jnp.where(mask, t, 0.0)
    t_complement = 1.0 - t if mask is None else jnp.where(mask, 1.0 - t, 0.0)
    if not layout.is_logits:
        tolerance = max(1e-5, float(jnp.finfo(regions.predictions.dtype).eps))
        p = _nan_unless_distribution(x, mask, tolerance)
        p_complement = 1.0 - p
    elif shape[-1] == 1:
        # XLA for CPUs vectorises sums of arrays that do not end in an axis of size 1.
        t, t_complement, x = (a.reshape(shape[:-1]) for a in (t, t_complement, x))
        p, p_complement = sigmoid_and_complement(x)
    else:
        p, p_complement = softmax_and_complement(x)

    def total(values: jax.Array) -> jax.Array:
        return overlap.sum_over_pixels(values.reshape(shape))

    true_positives, false_positives = total(p * t), total(p * t_complement)
    false_negatives = total(p_complement * t)
    class_mask = None if mask is None else jnp.any(mask, axis=-2)
    # By minimum and maximum: a NaN selected inside the sums would keep XLA from vectorising them.
    axes = tuple(range(true_positives.ndim - 1, t.ndim))
    in_range = (jnp.min(t, axes, initial=0.0) >= 0.0) & (jnp.max(t, axes, initial=1.0) <= 1.0)
    everything = jnp.sum(true_positives + false_positives + false_negatives, axis=-1, keepdims=True)
    valid = (everything == everything) & in_range[..., None]
    losses, options_valid = _tversky(
        true_positives, false_positives, false_negatives, regions.options
    )
    valid &= options_valid
    if class_mask is not None:
        valid |= ~jnp.any(class_mask, axis=-1, keepdims=True)
    return ClassLosses(intervals.nan_where_invalid(losses, valid), total(t), class_mask)


def _tversky(
    true_positives: jax.Array,
    false_positives: jax.Array,
    false_negatives: jax.Array,
    options: dict[str, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """The losses [..., C], and whether all options are in range."""
    options = {name: value.astype(true_positives.dtype) for name, value in options.items()}
    smooth, alpha, beta = (options[name] for name in ("smooth", "alpha", "beta"))
    losses = fraction(alpha * false_positives + beta * false_negatives, true_positives + smooth)
    if "gamma" in options:
        losses = overlap.root(losses, options["gamma"])
    valid = functools.reduce(
        operator.and_, [(value >= 0.0) & (value < jnp.inf) for value in options.values()]
    )
    if "gamma" in options:
        valid &= options["gamma"] > 0.0
    return losses, valid


def _flatten_pixels(array: jax.Array, layout: Layout) -> jax.Array:
    """An array of the shape of the layout as [..., pixels, C]."""
    shape, axes = layout.shape, layout.pixel_axes
    array = array.reshape(shape)
    kept = [axis for axis in range(len(shape) - 1) if axis not in axes]
    array = jnp.transpose(array, (*kept, *axes, len(shape) - 1))
    pixels = math.prod(shape[axis] for axis in axes)
    return array.reshape(*(shape[axis] for axis in kept), pixels, shape[-1])


def _nan_unless_distribution(
    p: jax.Array, class_mask: jax.Array | None, tolerance: float
) -> jax.Array:
    """Probabilities, with NaN outside [0, 1] and where those of a pixel do not sum to 1."""
    valid = (p >= 0.0) & (p <= 1.0)
    if p.shape[-1] > 1:
        total = jax.lax.stop_gradient(jnp.sum(p, axis=-1, keepdims=True))
        sums_to_one = jnp.abs(total - 1.0) <= tolerance
        if class_mask is not None:
            sums_to_one |= ~jnp.any(class_mask, -1, keepdims=True)
        valid &= sums_to_one
    return jnp.where(valid, p, jnp.nan)
