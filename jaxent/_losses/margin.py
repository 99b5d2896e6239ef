"""Losses of margins, by which the score of the truth has to be ahead: hinges and sparsemax."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import intervals
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import margin as margin_kernels
from jaxent._kernels import sparsemax

# One score and a sign.


@_checks.public
def hinge_loss(
    predictor_outputs: ArrayLike, targets: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise hinge loss: what a score lacks to a margin of 1 on the side of its target.

    .. math:: \ell = \max(0, 1 - t\, x)

    Without a margin: `perceptron_loss`. Smooth: `sparsemax_loss`.

    Args:
        predictor_outputs: Scores x, any shape, floating point.
        targets: Signs t, -1 or 1, of the rank of `predictor_outputs`, or a scalar.
        where: Mask of the elements, of the rank of `predictor_outputs`, or a scalar.

    Returns:
        One loss per element in units of the score, float32 (float64 for float64 inputs). At
        :math:`t\, x = 1` the derivative is half of that at lower scores.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.hinge_loss(jnp.array([2.0, 0.25, -3.0]), jnp.array([1, 1, 1])))
        [0.   0.75 4.  ]

    References:
        Cortes, Vapnik, `Support-Vector Networks <https://doi.org/10.1007/BF00994018>`_, 1995.
    """
    return _hinge_with_margin(predictor_outputs, targets, where, margin=1.0)


@_checks.public
def perceptron_loss(
    predictor_outputs: ArrayLike, targets: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise perceptron loss: by how much a score is on the wrong side.

    .. math:: \ell = \max(0, -t\, x)

    With a margin of 1: `hinge_loss`.

    Args:
        predictor_outputs: Scores x, any shape, floating point.
        targets: Signs t, -1 or 1, of the rank of `predictor_outputs`, or a scalar.
        where: Mask of the elements, of the rank of `predictor_outputs`, or a scalar.

    Returns:
        One loss per element in units of the score, float32 (float64 for float64 inputs). At a score
        of 0 the derivative is half of that on the wrong side, so that training may start there.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> print(jaxent.perceptron_loss(jnp.array([2.0, 0.25, -3.0]), jnp.array([1, -1, 1])))
        [0.   0.25 3.  ]

    References:
        Rosenblatt, `The Perceptron <https://doi.org/10.1037/h0042519>`_, 1958.
    """
    return _hinge_with_margin(predictor_outputs, targets, where, margin=0.0)


@_checks.public
def sparsemax_loss(
    logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None
) -> jax.Array:
    r"""Element-wise sparsemax loss of a yes/no outcome: exactly 0 from a margin of 1 on.

    .. math:: \ell = s\big( (1 - 2y)\, x \big), \qquad
        s(z) = \begin{cases} 0 & z \le -1 \\ (z + 1)^2 / 4 & -1 < z < 1 \\ z & z \ge 1 \end{cases}

    Args:
        logits: Scores x in favour of "yes", any shape, floating point.
        labels: Labels y, 0 or 1, a constant, of the rank of `logits`, or a scalar.
        where: Mask of the elements, of the rank of `logits`, or a scalar.

    Returns:
        One loss per element in units of the score, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([5.0, 0.0, -0.5, -3.0])
        >>> print(jaxent.sparsemax_loss(logits, 1))
        [0.     0.25   0.5625 3.    ]

    References:
        Martins, Astudillo, `From Softmax to Sparsemax <https://arxiv.org/abs/1602.02068>`_, 2016;
        Blondel et al., `Fenchel-Young Losses <https://arxiv.org/abs/1901.02324>`_, 2020.
    """
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_real("labels", labels)
    where, arrays = _masks.mask_elements(where, logits=logits, labels=labels)
    return _masks.zero_where_masked(
        _masks.apply_elementwise(_binary_sparsemax, tuple(arrays)), where
    )


# The score of the true class and those of the others.


@_checks.public
def multiclass_hinge_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Hinge loss of classes: what the true class lacks to be 1 ahead of all others.

    .. math:: \ell = \max\Big( 0,\; 1 + \max_{j \ne y} x_j - x_y \Big)

    Args:
        scores: Scores of the classes, `[..., V]`, floating point.
        labels: Index y of the true class, integers `[...]`.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `scores`).

    Returns:
        One loss per example in units of the score, `[...]`, float32 (float64 for float64 inputs).
        Where several terms are maximal, 0 among them, they share the gradient evenly.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> scores = jnp.array([[3.0, 0.5, 1.0], [3.0, 2.75, 1.0]])
        >>> print(jaxent.multiclass_hinge_loss(scores, jnp.array([0, 0])))
        [0.   0.75]

    References:
        Crammer, Singer, `On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines <https://www.jmlr.org/papers/v2/crammer01a.html>`_, 2001, section 3.
    """
    return _apply_to_classes(margin_kernels.multiclass_hinge, scores, labels, axis, where)


@_checks.public
def multiclass_perceptron_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Perceptron loss of classes: by how much the true class is behind the best one.

    .. math:: \ell = \max_j x_j - x_y

    Args:
        scores: Scores of the classes, `[..., V]`, floating point.
        labels: Index y of the true class, integers `[...]`.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `scores`).

    Returns:
        One loss per example in units of the score, `[...]`, float32 (float64 for float64 inputs).
        The best classes share the gradient evenly, so that training may start from equal scores.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> scores = jnp.array([[3.0, 0.5, 1.0], [3.0, 3.25, 1.0]])
        >>> print(jaxent.multiclass_perceptron_loss(scores, jnp.array([0, 0])))
        [0.   0.25]

    References:
        Collins, `Discriminative Training Methods for Hidden Markov Models
        <https://aclanthology.org/W02-1001/>`_, 2002.
    """
    return _apply_to_classes(margin_kernels.multiclass_perceptron, scores, labels, axis, where)


@_checks.public
def multiclass_sparsemax_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    axis: int | tuple[int, ...] = -1,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Sparsemax loss of classes: exactly 0 where the true class is 1 ahead of all others.

    .. math:: \ell = \max_p \Big( \sum_j p_j x_j + \tfrac{1}{2} \sum_j p_j (1 - p_j) \Big) - x_y

    The gradient is the best p, less 1 at the true class: exactly 0 for classes that are far behind.

    Args:
        scores: Scores of the classes, `[..., V]`, floating point.
        labels: Index y of the true class, integers `[...]`.
        axis: The class axis, or axes.
        where: Mask of the examples `[...]`, or of the classes (the shape of `scores`).

    Returns:
        One loss per example in units of the score, `[...]`, float32 (float64 for float64 inputs).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> scores = jnp.array([[3.0, 0.5, 1.0], [3.0, 2.5, 1.0]])
        >>> print(jaxent.multiclass_sparsemax_loss(scores, jnp.array([0, 0])))
        [0.     0.0625]

    References:
        Martins, Astudillo, `From Softmax to Sparsemax <https://arxiv.org/abs/1602.02068>`_, 2016.
    """
    return _apply_to_classes(sparsemax.multiclass_sparsemax, scores, labels, axis, where)


# Checked arguments in, losses out.


def _hinge_with_margin(
    scores: ArrayLike, targets: ArrayLike, where: ArrayLike | None, margin: float
) -> jax.Array:
    scores = _checks.as_floating("predictor_outputs", scores)
    targets = _checks.as_real("targets", targets)
    where, arrays = _masks.mask_elements(where, predictor_outputs=scores, targets=targets)
    return _masks.zero_where_masked(_masked_hinge(*arrays, where, margin), where)


@functools.partial(jax.jit, static_argnames="margin", inline=True)
def _masked_hinge(
    scores: jax.Array, targets: jax.Array, where: jax.Array | None, margin: float
) -> jax.Array:
    dtype = compute_dtype(scores, targets)
    shape = jnp.broadcast_shapes(scores.shape, targets.shape)
    x, signs = (jnp.broadcast_to(array.astype(dtype), shape) for array in (scores, targets))
    is_sign = jnp.abs(signs) == 1.0
    # Masked elements hold 0, which is no sign.
    valid = is_sign if where is None else is_sign | ~where
    return margin_kernels.hinge(x, intervals.nan_where_invalid(signs, valid), margin)


def _binary_sparsemax(x: jax.Array, labels: jax.Array) -> jax.Array:
    sign = jnp.where(labels == 0.0, 1.0, jnp.where(labels == 1.0, -1.0, jnp.nan))
    return sparsemax.sparse_plus(x * sign.astype(x.dtype))


_Kernel = Callable[[jax.Array, jax.Array], jax.Array]


def _apply_to_classes(
    kernel: _Kernel,
    scores: ArrayLike,
    labels: ArrayLike,
    axis: _checks.Axis,
    where: ArrayLike | None,
) -> jax.Array:
    remedy = "pass the index of the true class of each example."
    given = _masks.check_labelled_arguments("scores", scores, labels, axis, where, remedy)
    return _multiclass_losses(kernel, given.array, given.labels, given.where, given.axes)


@functools.partial(jax.jit, static_argnames=("kernel", "axes"), inline=True)
def _multiclass_losses(
    kernel: _Kernel,
    scores: jax.Array,
    labels: jax.Array,
    where: jax.Array | None,
    axes: tuple[int, ...],
) -> jax.Array:
    rows = _masks.mask_labelled_rows(scores, labels, where, axes, _masks.LOGITS)
    return rows.losses(kernel(rows.values, rows.labels))
