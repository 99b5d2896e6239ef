"""Lovász losses: the intersection over the union of regions of an image, made differentiable."""

from __future__ import annotations

import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import lovasz, softmax


@_checks.public
def lovasz_hinge(logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Lovász hinge: a convex bound of 1 minus the intersection over the union of one region.

    .. math:: \ell = \sum_i \max(0, m_{\pi_i}) \big( J(\{\pi_1, \dots, \pi_i\})
        - J(\{\pi_1, \dots, \pi_{i-1}\}) \big), \qquad
        m_i = 1 - (2 y_i - 1)\, x_i, \quad J(M) = \frac{|M|}{|\{y = 1\} \cup M|}

    with the pixels :math:`\pi` in decreasing order of their hinge errors m.

    Args:
        logits: Scores x of belonging to the region, `[images, ...]`, floating point.
        labels: Labels y, 0 or 1, of the shape of `logits`.
        where: Mask of the pixels, of the rank of `logits`, or a scalar.

    Returns:
        One loss per image in units of the margin, `[images]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[2.0, -3.0, 0.5, 0.25], [4.0, -3.0, -2.0, -5.0]])
        >>> labels = jnp.array([[1, 0, 1, 0], [1, 0, 0, 0]])
        >>> print(jaxent.lovasz_hinge(logits, labels))
        [0.5833334 0.       ]

    References:
        Berman et al., `The Lovász-Softmax loss <https://arxiv.org/abs/1705.08790>`_, 2018; Yu,
        Blaschko, `Lovász Hinge <https://arxiv.org/abs/1512.07797>`_, 2015.
    """
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_real("labels", labels)
    _checks.require(
        logits.ndim >= 2,
        f"`logits` {_checks.describe(logits)} must have an axis of images and one of pixels; "
        "for one image use `logits[None]`.",
    )
    _checks.check_labels_shape(labels, logits.shape, "logits", logits)
    return _lovasz_hinge(logits, labels, _check_pixel_mask(where, logits, logits.shape))


@_checks.public
def lovasz_softmax(
    logits: ArrayLike,
    labels: ArrayLike,
    axis: int = -1,
    where: ArrayLike | None = None,
    *,
    classes: Literal["present", "all"] = "present",
) -> jax.Array:
    r"""Lovász-softmax: the intersection over the union of each class, made differentiable.

    .. math:: \ell = \operatorname{mean}_c \sum_i m^c_{\pi_i} \big( J_c(\{\pi_1, \dots, \pi_i\})
        - J_c(\{\pi_1, \dots, \pi_{i-1}\}) \big), \qquad
        m^c_i = \big| [y_i = c] - p_{ic} \big|, \quad J_c(M) = \frac{|M|}{|\{y = c\} \cup M|}

    with p the softmax of the logits, and the pixels :math:`\pi` in decreasing order of :math:`m^c`.

    Args:
        logits: Unnormalised log-probabilities in nats, `[images, ..., C]`, floating point.
        labels: Index y of the true class of each pixel, integers `[images, ...]`.
        axis: The class axis; not the first.
        where: Mask of the pixels, of the rank of `labels`, or a scalar.
        classes: The classes of the mean: those that some pixel of the image has, or all.

    Returns:
        One loss per image in units of overlap, `[images]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 1.0, 2.0]]])
        >>> print(jaxent.lovasz_softmax(logits, jnp.array([[0, 1, 2]])))
        [0.16737951]
        >>> print(jaxent.lovasz_softmax(logits, jnp.array([[0, 1, 1]]), classes="all"))
        [0.3626307]

    References:
        Berman et al., `Lovász-Softmax <https://arxiv.org/abs/1705.08790>`_, 2018, section 3.2.
    """
    remedy = "for one-hot targets use `jnp.argmax(targets, axis=-1)`."
    given = _masks.check_labelled_arguments("logits", logits, labels, axis, None, remedy)
    _checks.check_one_of("classes", classes, ("present", "all"))
    _checks.require(
        given.array.ndim >= 3 and given.axes[0] > 0 and len(given.axes) == 1,
        f"`logits` {_checks.describe(given.array)} must have a first axis of images, and axes of "
        f"pixels beside `axis` {axis} of classes; for one image use `logits[None]`.",
    )
    shape = _masks.example_struct(given.array, given.axes).shape
    _checks.check_labels_shape(given.labels, shape, "logits", given.array)
    pixel_mask = _check_pixel_mask(where, given.array, shape)
    return _lovasz_softmax(given.array, given.labels, pixel_mask, given.axes, classes)


def _check_pixel_mask(
    where: ArrayLike | None, logits: jax.Array, shape: tuple[int, ...]
) -> jax.Array | None:
    """`where` as an array, refused unless it broadcasts to the shape of the pixels."""
    if where is None:
        return None
    where = _checks.as_boolean("where", where)
    _checks.require(
        where.ndim in (0, len(shape))
        and all(a in (1, b) for a, b in zip(where.shape, shape, strict=False)),
        f"`where` {_checks.describe(where)} must have the shape {shape} of the pixels of `logits` "
        f"{_checks.describe(logits)}; axes may be of size 1.",
    )
    return where


@functools.partial(jax.jit, inline=True)
def _lovasz_hinge(logits: jax.Array, labels: jax.Array, pixel_mask: jax.Array | None) -> jax.Array:
    dtype = compute_dtype(logits, labels)
    pixels = (logits.shape[0], math.prod(logits.shape[1:]))
    x, y = logits.astype(dtype).reshape(pixels), labels.astype(dtype).reshape(pixels)
    if pixel_mask is not None:
        pixel_mask = jnp.broadcast_to(pixel_mask, logits.shape).reshape(pixels)
        # A score of -2 of a pixel outside the region has no hinge error.
        x, y = jnp.where(pixel_mask, x, -2.0), jnp.where(pixel_mask, y, 0.0)
    is_true = y == 1.0
    margins = 1.0 - jnp.where(is_true, x, -x)
    errors = jnp.where(margins <= 0.0, 0.0, margins)
    losses = lovasz.lovasz_extension(errors, margins, is_true)
    valid = jnp.all((is_true | (y == 0.0)) & (x == x), axis=-1)
    return intervals.nan_where_invalid(losses, valid)


@functools.partial(jax.jit, static_argnames=("axes", "classes"), inline=True)
def _lovasz_softmax(
    logits: jax.Array,
    labels: jax.Array,
    pixel_mask: jax.Array | None,
    axes: tuple[int, ...],
    classes: str,
) -> jax.Array:
    if pixel_mask is not None:
        pixel_mask = jnp.broadcast_to(pixel_mask, labels.shape)
    rows = _masks.mask_labelled_rows(logits, labels, pixel_mask, axes, _masks.LOGITS)
    class_count = rows.values.shape[-1]
    pixels = (labels.shape[0], math.prod(labels.shape[1:]))
    # [images, classes, pixels] from here on.
    p, complement = (
        jnp.swapaxes(a.reshape(*pixels, class_count), -1, -2)
        for a in softmax.softmax_and_complement(rows.values)
    )
    y = rows.labels.reshape(pixels)[:, None, :]
    is_true = y == jnp.arange(class_count, dtype=y.dtype).reshape(1, -1, 1)
    counted = True if rows.example_mask is None else rows.example_mask.reshape(pixels)[:, None, :]
    is_true &= counted
    errors = jnp.where(counted, jnp.where(is_true, complement, p), 0.0)
    successes = jnp.where(counted, jnp.where(is_true, p, complement), 1.0)
    # The odds of an error tell apart errors that both round to nearly 1.
    odds = errors / jnp.maximum(successes, float(jnp.finfo(successes.dtype).smallest_normal))
    losses = lovasz.lovasz_extension(errors, odds, is_true)
    class_mask = jnp.any(is_true, axis=-1) if classes == "present" else None
    if class_mask is None:
        results = jnp.sum(losses, axis=-1) / jnp.asarray(class_count, losses.dtype)
    else:
        results = jnp.sum(jnp.where(class_mask, losses, 0.0), axis=-1)
        results /= jnp.maximum(jnp.sum(class_mask, axis=-1, dtype=losses.dtype), 1.0)
    valid = jnp.all(rows.valid.reshape(pixels), axis=-1) & jnp.all(p == p, axis=(-2, -1))
    return intervals.nan_where_invalid(results, valid)
