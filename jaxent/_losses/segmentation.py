"""Losses of images whose pixels are to be told apart: how well regions overlap."""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float.dtypes import compute_dtype
from jaxent._kernels import segmentation, softmax

_Axes = int | Sequence[int] | None


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
    axis: _Axes = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Dice loss: how far predicted regions are from overlapping the true ones.

    .. math::
        \ell_c = \frac{\alpha\, FP_c + \beta\, FN_c}{TP_c + \alpha\, FP_c + \beta\, FN_c + s},
        \qquad TP_c = \sum_i p_{ic} t_{ic}, \quad FP_c = \sum_i p_{ic} (1 - t_{ic}), \quad
        FN_c = \sum_i (1 - p_{ic})\, t_{ic}

    This is 1 minus the smoothed Dice coefficient, formed without the subtraction: the loss of
    nearly perfect regions, and its gradient, keep their digits.

    Args:
        predictions: Logits in nats, shape `[images, ..., C]` (what is between the first and the
            last axis are pixels), floating point; 16-bit dtypes are computed in float32. With C = 1
            they go through the sigmoid, otherwise through softmax over the last axis, where
            `-inf` is an impossible class.
        targets: What is true of each pixel and class, numbers in [0, 1] (one-hot for hard labels)
            or booleans, of the shape of `predictions`; with C = 1 either may lack the last axis.
            A number outside [0, 1] makes its image NaN.
        class_weights: A factor for the loss of each class, shape `[C]`, finite and not negative
            (NaN otherwise); None is 1.
        smooth: The number :math:`s \ge 0` that is added to numerator and denominator of the
            coefficient. With 0, a class that is nowhere predicted and nowhere true has loss 0 and
            gradient 0. A number, or a scalar array (NaN if out of range).
        alpha: Weight of what is wrongly predicted, :math:`\alpha \ge 0`; likewise.
        beta: Weight of what is missed, :math:`\beta \ge 0`; likewise.
        apply_softmax: False if `predictions` are probabilities already. One outside [0, 1] makes
            its image NaN, and so does, with C > 1, a pixel whose sum differs from 1 by more than
            1e-5, or than the machine epsilon of 16-bit predictions.
        reduction: "mean" or "sum" over the classes, or "none".
        ignore_background: Whether class 0 is left out, unless it is the only one.
        axis: The axis or axes to sum over as pixels; None for all but the first and the last.
        where: Booleans. Of the shape of `predictions` without the class axis: True where the pixel
            counts. Of their rank: True where the class exists at that pixel; a class that exists
            at none does not count in the mean.

    Returns:
        One loss per image in units of overlap, from 0 to 1 but for `class_weights` and sums, shape
        `[images]` (`[images, C]` for "none"), float32 (float64 if any input is). An image without a
        pixel that counts has loss 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis`, `where` or an option are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = 9.0 * jnp.array([[[1.0, -1.0], [1.0, -1.0]], [[1.0, -1.0], [0.0, 0.0]]])
        >>> targets = jnp.array([[[1, 0], [1, 0]], [[1, 0], [1, 0]]])
        >>> print(jaxent.dice_loss(logits, targets))
        [1.0153320e-08 1.4545456e-01]

    References:
        Milletari et al., `V-Net <https://arxiv.org/abs/1606.04797>`_, 2016; with the weights:
        Salehi et al., `Tversky loss <https://arxiv.org/abs/1706.05721>`_, 2017.
    """
    options = {"smooth": smooth, "alpha": alpha, "beta": beta}
    regions = _regions(predictions, targets, where, axis, apply_softmax, options)
    return _reduced(regions, class_weights, reduction, ignore_background)


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

    .. math::
        \ell = \frac{FP + FN}{2\, TP + FP + FN + 2 s}, \qquad TP = \sum_i p_i t_i, \quad
        FP = \sum_i p_i (1 - t_i), \quad FN = \sum_i (1 - p_i)\, t_i

    Args:
        predictions: Logits in nats, shape `[images, ...]` or `[images, ..., 1]`, floating point;
            16-bit dtypes are computed in float32.
        targets: Whether a pixel belongs to the region: booleans, or numbers in [0, 1] (NaN for the
            image otherwise), of the same shape, with or without the last axis of size 1.
        smooth: The number :math:`s \ge 0`. With 0, a region that is neither predicted nor true has
            loss 0 and gradient 0. A number, or a scalar array (NaN if out of range).
        apply_sigmoid: False if `predictions` are probabilities already (NaN for the image where
            one lies outside [0, 1]).
        where: Booleans of the shape of the pixels, with or without the last axis of size 1: True
            where the pixel counts.

    Returns:
        One loss per image in units of overlap, from 0 to 1, shape `[images]`, float32 (float64 if
        any input is). An image without a pixel that counts has loss 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes, `where` or `smooth` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[20.0, -20.0], [-20.0, 20.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> targets = jnp.array([[[1, 0], [0, 1]], [[1, 0], [0, 1]]])
        >>> print(jaxent.binary_dice_loss(logits, targets))
        [1.3741025e-09 3.3333334e-01]

    References:
        Milletari et al., `V-Net <https://arxiv.org/abs/1606.04797>`_, 2016.
    """
    predictions = _checks.as_floating("predictions", predictions)
    targets = _checks.as_real("targets", targets)
    is_plain = predictions.ndim == targets.ndim and predictions.shape[-1:] != (1,)
    regions = _regions(
        predictions,
        targets,
        where,
        None,
        apply_sigmoid,
        {"smooth": smooth, "alpha": 0.5, "beta": 0.5},
        adds_class_axis=is_plain,
    )
    return _reduced(regions, None, "mean", False)


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

    .. math::
        \ell = \operatorname{mean}_{b,c} w_c\, \ell_{bc}, \qquad
        w_c = \frac{C\, r_c}{\sum_k r_k}, \quad r_c = \frac{1}{f_c^2 + 10^{-7}}, \quad
        f_c = \sum_{b,i} t_{bic}

    with :math:`\ell_{bc}` the `dice_loss` of a class in an image. These are the weights of
    `optax.losses`: a class that is absent from the whole batch takes all of the weight. Where that
    may happen, give `dice_loss` weights of the data set.

    Args:
        predictions: Logits in nats, shape `[images, ..., C]`, floating point; 16-bit dtypes are
            computed in float32. With C = 1 they go through the sigmoid.
        targets: What is true of each pixel and class, numbers in [0, 1] or booleans, of the shape
            of `predictions`. A number outside [0, 1] makes the result NaN.
        smooth: The number :math:`s \ge 0` of `dice_loss`. A number, or a scalar array (NaN if out
            of range).
        apply_softmax: False if `predictions` are probabilities already; what is none, as in
            `dice_loss`, makes the result NaN.
        ignore_background: Whether class 0 is left out of the mean, unless it is the only one.
        where: Booleans. Of the shape of `predictions` without the class axis: True where the pixel
            counts; images without one are left out. Of their rank: True where the class exists at
            that pixel; a class that exists nowhere is left out, with its weight.

    Returns:
        The mean over images and classes in units of overlap, a scalar, float32 (float64 if any
        input is); 0, with gradient 0, if no pixel counts.

    Raises:
        ArgumentError: If dtypes, shapes, `where` or `smooth` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]])
        >>> targets = jnp.array([[[1, 0], [1, 0], [0, 1], [1, 0]]])
        >>> print(jaxent.multiclass_generalized_dice_loss(logits, targets))
        0.107391305

    References:
        Sudre et al., `Generalised Dice overlap as a deep learning loss function
        <https://arxiv.org/abs/1707.03237>`_, 2017.
    """
    options = {"smooth": smooth, "alpha": 0.5, "beta": 0.5}
    regions = _regions(predictions, targets, where, None, apply_softmax, options)
    arrays, static = _split(regions)
    return _generalized_loss(arrays, static, bool(ignore_background))


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
    axis: _Axes = None,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Tversky loss: a Dice loss that minds what is missed more than what is wrongly predicted.

    .. math::
        \ell_c = \bigg( \frac{\alpha\, FP_c + \beta\, FN_c}
            {TP_c + \alpha\, FP_c + \beta\, FN_c + s} \bigg)^{1 / \gamma}

    with the sums of `dice_loss`. With :math:`\gamma > 1` it is the focal Tversky loss, which makes
    regions that overlap well count more.

    Args:
        predictions: Logits in nats, shape `[images, ..., C]`, floating point; as in `dice_loss`.
        targets: Numbers in [0, 1] (one-hot for hard labels) or booleans, of that shape; as in
            `dice_loss`.
        class_weights: A factor for the loss of each class, shape `[C]`, finite and not negative
            (NaN otherwise); None is 1.
        smooth: The number :math:`s \ge 0`, as in `dice_loss`. A number, or a scalar array (NaN if
            out of range).
        alpha: Weight of what is wrongly predicted, :math:`\alpha \ge 0`; likewise.
        beta: Weight of what is missed, :math:`\beta \ge 0`; likewise.
        gamma: The focal parameter, :math:`\gamma > 0`; the paper takes 4/3. Where the loss is 0 its
            gradient counts as 0. A number, or a scalar array (NaN if out of range).
        apply_softmax: False if `predictions` are probabilities already, as in `dice_loss`.
        reduction: "mean" or "sum" over the classes, or "none".
        ignore_background: Whether class 0 is left out, unless it is the only one.
        axis: The axis or axes to sum over as pixels; None for all but the first and the last.
        where: Booleans of the shape of the pixels, or of `predictions`, as in `dice_loss`.

    Returns:
        One loss per image in units of overlap, shape `[images]` (`[images, C]` for "none"), float32
        (float64 if any input is). An image without a pixel that counts has loss 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis`, `where` or an option are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[20.0, -20.0], [-20.0, 20.0]], [[-20.0, -20.0], [-20.0, 20.0]]])
        >>> targets = jnp.array([[[1, 0], [0, 1]], [[1, 0], [0, 1]]])
        >>> print(jaxent.tversky_loss(logits[..., None], targets[..., None]))
        [1.3741025e-09 2.5925925e-01]

    References:
        Salehi et al., `Tversky loss function for image segmentation using 3D fully convolutional
        deep networks <https://arxiv.org/abs/1706.05721>`_, 2017. With gamma: Abraham and Khan,
        `A Novel Focal Tversky Loss Function <https://arxiv.org/abs/1810.07842>`_, 2018.
    """
    _checks.check_open_interval("gamma", gamma, 0.0, math.inf)
    options = {"smooth": smooth, "alpha": alpha, "beta": beta}
    if not (isinstance(gamma, (int, float)) and gamma == 1):
        options["gamma"] = gamma
    regions = _regions(predictions, targets, where, axis, apply_softmax, options)
    return _reduced(regions, class_weights, reduction, ignore_background)


@_checks.public
def lovasz_hinge(logits: ArrayLike, labels: ArrayLike, where: ArrayLike | None = None) -> jax.Array:
    r"""Lovász hinge: a convex bound of 1 minus the intersection over the union of one region.

    .. math::
        \ell = \sum_i \max(0, m_{\pi_i}) \big( J(\{\pi_1, \dots, \pi_i\})
            - J(\{\pi_1, \dots, \pi_{i-1}\}) \big), \qquad
        m_i = 1 - (2 y_i - 1)\, x_i, \quad J(M) = \frac{|M|}{|\{y = 1\} \cup M|}

    with the pixels :math:`\pi` in decreasing order of their hinge errors :math:`m`, and
    :math:`J(\emptyset) = 0`. The loss does not depend on the order of equal errors; the gradient
    is that of the order in which they are given.

    Args:
        logits: Scores of belonging to the region, shape `[images, ...]`, floating point; 16-bit
            dtypes are computed in float32. All axes but the first are pixels.
        labels: Whether a pixel belongs to the region: 0 or 1, or booleans, of the same shape. Any
            other number makes its image NaN.
        where: Booleans of the same rank, or a scalar: True where the pixel counts.

    Returns:
        One loss per image in units of the margin, shape `[images]`, float32 (float64 if any input
        is). An image without a pixel that counts has loss 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes or `where` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[2.0, -3.0, 0.5, 0.25], [4.0, -3.0, -2.0, -5.0]])
        >>> labels = jnp.array([[1, 0, 1, 0], [1, 0, 0, 0]])
        >>> print(jaxent.lovasz_hinge(logits, labels))
        [0.5833334 0.       ]

    References:
        Berman, Triki, Blaschko, `The Lovász-Softmax loss <https://arxiv.org/abs/1705.08790>`_,
        2018, section 3.1; Yu and Blaschko, `Learning Submodular Losses with the Lovász Hinge
        <https://arxiv.org/abs/1512.07797>`_, 2015.
    """
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_real("labels", labels)
    _checks.require(
        logits.ndim >= 2,
        f"`logits` {_checks.describe(logits)} must have an axis of images and one of pixels; "
        "for one image use `logits[None]`.",
    )
    _checks.require(
        logits.shape == labels.shape,
        f"`labels` {_checks.describe(labels)} must have the shape of `logits` "
        f"{_checks.describe(logits)}.",
    )
    where = _pixel_mask(where, "logits", logits, logits.shape)
    return _lovasz_hinge(logits, labels, where)


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

    .. math::
        \ell = \operatorname{mean}_c \sum_i m^c_{\pi_i} \big( J_c(\{\pi_1, \dots, \pi_i\})
            - J_c(\{\pi_1, \dots, \pi_{i-1}\}) \big), \qquad
        m^c_i = \big| [y_i = c] - p_{ic} \big|, \quad J_c(M) = \frac{|M|}{|\{y = c\} \cup M|}

    with :math:`p` the softmax of the logits, the pixels :math:`\pi` in decreasing order of their
    errors :math:`m^c`, and :math:`J_c(\emptyset) = 0`. The loss does not depend on the order of
    equal errors; the gradient is that of the order in which they are given.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[images, ..., C]` (with C along
            `axis`), floating point; 16-bit dtypes are computed in float32. `-inf` is an
            impossible class. All other axes but the first are pixels.
        labels: Index of the true class of each pixel, integers of the shape of `logits` without the
            class axis. An index outside `[0, C)` makes its image NaN unless the pixel is masked.
        axis: The class axis; not the first.
        where: Booleans of the shape of `labels`, or a scalar: True where the pixel counts.
        classes: Over which classes the mean goes: those with a pixel in the image, or all.

    Returns:
        One loss per image in units of overlap, from 0 to 1, shape `[images]`, float32 (float64 for
        float64 logits). An image without a pixel that counts has loss 0 and gradient 0.

    Raises:
        ArgumentError: If dtypes, shapes, `axis`, `where` or `classes` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.array([[[20.0, 0.0, 0.0], [0.0, 20.0, 0.0], [0.0, 1.0, 2.0]]])
        >>> print(jaxent.lovasz_softmax(logits, jnp.array([[0, 1, 2]])))
        [0.16737951]
        >>> print(jaxent.lovasz_softmax(logits, jnp.array([[0, 1, 1]]), classes="all"))
        [0.3626307]

    References:
        Berman, Triki, Blaschko, `The Lovász-Softmax loss <https://arxiv.org/abs/1705.08790>`_,
        2018, section 3.2.
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
    _checks.require(
        given.labels.shape == shape,
        f"`labels` {_checks.describe(given.labels)} must have the shape {shape} of the pixels of "
        f"`logits` {_checks.describe(given.array)}.",
    )
    where = _pixel_mask(where, "logits", given.array, shape)
    return _lovasz_softmax(given.array, given.labels, where, given.axes, classes)


# From arguments to overlaps.


class _Regions(NamedTuple):
    """Checked arguments, and what has to be done with them: hashable."""

    predictions: jax.Array
    targets: jax.Array
    where: jax.Array | None
    options: dict[str, jax.Array]  # smooth, alpha, beta, and gamma if it is not 1
    shape: tuple[int, ...]  # of predictions and targets, with the class axis
    axes: tuple[int, ...]  # of the pixels
    is_logits: bool


def _regions(
    predictions: ArrayLike,
    targets: ArrayLike,
    where: ArrayLike | None,
    axis: _Axes,
    is_logits: bool,
    options: dict[str, ArrayLike],
    *,
    adds_class_axis: bool = False,
) -> _Regions:
    """Arguments of a loss of overlaps, refused where they do not fit."""
    predictions = _checks.as_floating("predictions", predictions)
    targets = _checks.as_real("targets", targets)
    shapes = [array.shape + (1,) * adds_class_axis for array in (predictions, targets)]
    # Where one lacks the class axis there is one class.
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
        where = _region_mask(_checks.as_boolean("where", where), shape)
    for option, value in options.items():
        _checks.check_closed_interval(option, value, 0.0, math.inf)
        _checks.check_finite(option, value)
    numbers = {option: _checks.as_scalar(option, value) for option, value in options.items()}
    axes = _pixel_axes(axis, len(shape))
    return _Regions(predictions, targets, where, numbers, shape, axes, bool(is_logits))


def _region_mask(where: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    fits = where.ndim in (0, len(shape) - 1, len(shape))
    fits = fits and all(a in (1, b) for a, b in zip(where.shape, shape, strict=False))
    _checks.require(
        fits,
        f"`where` {_checks.describe(where)} must have the shape {shape[:-1]} of the pixels, or "
        f"{shape} with the classes; axes may be of size 1.",
    )
    return where


def _pixel_axes(axis: _Axes, rank: int) -> tuple[int, ...]:
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


def _pixel_mask(
    where: ArrayLike | None, of: str, array: jax.Array, shape: tuple[int, ...]
) -> jax.Array | None:
    if where is None:
        return None
    where = _checks.as_boolean("where", where)
    _checks.require(
        where.ndim in (0, len(shape))
        and all(a in (1, b) for a, b in zip(where.shape, shape, strict=False)),
        f"`where` {_checks.describe(where)} must have the shape {shape} of the pixels of `{of}` "
        f"{_checks.describe(array)}; axes may be of size 1.",
    )
    return where


class _Overlaps(NamedTuple):
    """What regions have in common, for each image and class, [..., C]."""

    losses: jax.Array
    sizes: jax.Array  # of the true regions
    counts: jax.Array | None  # whether the class exists at a pixel, or None for all


def _overlaps(regions: _Regions) -> _Overlaps:
    """The losses of each class, NaN where something about the image is improper."""
    dtype = compute_dtype(regions.predictions, regions.targets)
    lay = functools.partial(_laid_out, shape=regions.shape, axes=regions.axes)
    x, yes = lay(regions.predictions).astype(dtype), lay(regions.targets).astype(dtype)
    shape, class_mask = x.shape, None
    if regions.where is not None:
        where = regions.where
        where = where[..., None] if 0 < where.ndim < len(regions.shape) else where
        class_mask = lay(jnp.broadcast_to(where, regions.shape))
        example_mask = jnp.any(class_mask, axis=-1, keepdims=True)
        absent = jnp.where(example_mask, -jnp.inf if regions.is_logits else 0.0, 0.0).astype(dtype)
        x, yes = jnp.where(class_mask, x, absent), jnp.where(class_mask, yes, 0.0)
    no = 1.0 - yes if class_mask is None else jnp.where(class_mask, 1.0 - yes, 0.0)
    if not regions.is_logits:
        slack = max(1e-5, float(jnp.finfo(regions.predictions.dtype).eps))
        p = _distribution(x, class_mask, slack)
        rest = 1.0 - p
    elif shape[-1] == 1:
        # Without their last axis, of size 1, the sums are vectorised.
        yes, no, x = (a.reshape(shape[:-1]) for a in (yes, no, x))
        p, rest = segmentation.sigmoid_and_complement(x)
    else:
        p, rest = softmax.softmax_and_complement(x)

    def total(values: jax.Array) -> jax.Array:
        return segmentation.sum_over_pixels(values.reshape(shape))

    hits, extra, missed = total(p * yes), total(p * no), total(rest * yes)
    counts = None if class_mask is None else jnp.any(class_mask, axis=-2)
    # Not a selection within the sums, which would keep them from being vectorised.
    pixels = tuple(range(hits.ndim - 1, yes.ndim))
    proper = (jnp.min(yes, pixels, initial=0.0) >= 0.0) & (jnp.max(yes, pixels, initial=1.0) <= 1.0)
    sound = jnp.sum(hits + extra + missed, axis=-1, keepdims=True)
    valid = (sound == sound) & proper[..., None]
    losses = _losses(hits, extra, missed, counts, valid, regions.options)
    return _Overlaps(losses, total(yes), counts)


def _losses(hits, extra, missed, counts, valid, options) -> jax.Array:
    """The losses of each class [..., C] from what was hit, added and missed."""
    numbers = {name: value.astype(hits.dtype) for name, value in options.items()}
    smooth, alpha, beta = (numbers[name] for name in ("smooth", "alpha", "beta"))
    losses = segmentation.share(alpha * extra + beta * missed, hits + smooth)
    if "gamma" in numbers:
        losses = segmentation.root(losses, numbers["gamma"])
    proper = functools.reduce(
        operator.and_, [(value >= 0.0) & (value < jnp.inf) for value in numbers.values()]
    )
    if "gamma" in numbers:
        proper &= numbers["gamma"] > 0.0
    valid &= proper
    if counts is not None:
        valid |= ~jnp.any(counts, axis=-1, keepdims=True)
    return _masks.nan_where_invalid(losses, valid)


def _laid_out(array: jax.Array, shape: tuple[int, ...], axes: tuple[int, ...]) -> jax.Array:
    """An array of that shape as [..., pixels, C]."""
    array = array.reshape(shape)
    kept = [axis for axis in range(len(shape) - 1) if axis not in axes]
    array = jnp.transpose(array, (*kept, *axes, len(shape) - 1))
    pixels = math.prod(shape[axis] for axis in axes)
    return array.reshape(*(shape[axis] for axis in kept), pixels, shape[-1])


def _distribution(p: jax.Array, class_mask: jax.Array | None, slack: float) -> jax.Array:
    """Probabilities, NaN where they are none or do not add up to 1 at their pixel."""
    proper = (p >= 0.0) & (p <= 1.0)
    if p.shape[-1] > 1:
        total = jax.lax.stop_gradient(jnp.sum(p, axis=-1, keepdims=True))
        adds_up = jnp.abs(total - 1.0) <= slack
        proper &= (
            adds_up if class_mask is None else adds_up | ~jnp.any(class_mask, -1, keepdims=True)
        )
    return jnp.where(proper, p, jnp.nan)


def _reduced(regions, class_weights, reduction, ignore_background) -> jax.Array:
    """The losses of each class weighted, and reduced over the classes."""
    _checks.check_one_of("reduction", reduction, ("mean", "sum", "none"))
    if class_weights is not None:
        class_weights = _checks.as_real("class_weights", class_weights)
        _checks.require(
            class_weights.shape == regions.shape[-1:],
            f"`class_weights` {_checks.describe(class_weights)} must hold one number for each of "
            f"the {regions.shape[-1]} classes.",
        )
    arrays, static = _split(regions)
    return _reduce(arrays, class_weights, static, reduction, bool(ignore_background))


def _split(regions: _Regions) -> tuple[tuple, tuple]:
    """The arrays of `regions`, and the rest."""
    return tuple(regions[:4]), tuple(regions[4:])


@functools.partial(
    jax.jit, static_argnames=("static", "reduction", "ignore_background"), inline=True
)
def _reduce(arrays, class_weights, static, reduction, ignore_background) -> jax.Array:
    losses, _, counts = _overlaps(_Regions(*arrays, *static))
    if class_weights is not None:
        weights = class_weights.astype(losses.dtype)
        proper = jnp.all((weights >= 0.0) & (weights < jnp.inf))
        if counts is not None:
            proper |= ~jnp.any(counts, axis=-1, keepdims=True)
        losses = _masks.nan_where_invalid(
            losses * weights.reshape(*[1] * (losses.ndim - 1), -1), proper
        )
    losses, counts = _foreground(losses, counts, ignore_background)
    if counts is not None:
        losses = jnp.where(counts, losses, 0.0)
    if reduction == "none":
        return losses
    total = jnp.sum(losses, axis=-1)
    return total if reduction == "sum" else total / _how_many(losses, counts, (-1,))


@functools.partial(jax.jit, static_argnames=("static", "ignore_background"), inline=True)
def _generalized_loss(arrays, static, ignore_background) -> jax.Array:
    losses, sizes, counts = _overlaps(_Regions(*arrays, *static))
    images = tuple(range(losses.ndim - 1))
    rarity = 1.0 / (jnp.square(jnp.sum(sizes, axis=images)) + 1e-7)
    if counts is None:
        class_mask, how_many = None, float(rarity.shape[-1])
    else:
        class_mask = jnp.any(counts, axis=images)
        rarity = jnp.where(class_mask | ~jnp.any(class_mask), rarity, 0.0)
        how_many = _how_many(rarity, class_mask, (-1,))
    weights = how_many * segmentation.normalized(rarity)
    losses = losses * weights.reshape(*[1] * len(images), -1)
    losses, counts = _foreground(losses, counts, ignore_background)
    every = tuple(range(losses.ndim))
    if counts is not None:
        losses = jnp.where(counts, losses, 0.0)
    return jnp.sum(losses) / _how_many(losses, counts, every)


def _foreground(losses, counts, ignore_background) -> tuple[jax.Array, jax.Array | None]:
    """The classes that are not the background, if that is to be left out."""
    if not ignore_background or losses.shape[-1] == 1:
        return losses, counts
    return losses[..., 1:], None if counts is None else counts[..., 1:]


def _how_many(losses: jax.Array, counts: jax.Array | None, axes: tuple[int, ...]) -> jax.Array:
    """How many of the losses count, and 1 for none of them."""
    if counts is None:
        return jnp.asarray(max(1, math.prod(losses.shape[a] for a in axes)), losses.dtype)
    return jnp.maximum(jnp.sum(counts, axis=axes, dtype=losses.dtype), 1.0)


# Lovász extensions.


@functools.partial(jax.jit, inline=True)
def _lovasz_hinge(logits, labels, where) -> jax.Array:
    dtype = compute_dtype(logits, labels)
    pixels = (logits.shape[0], math.prod(logits.shape[1:]))
    x, y = logits.astype(dtype).reshape(pixels), labels.astype(dtype).reshape(pixels)
    if where is not None:
        where = jnp.broadcast_to(where, logits.shape).reshape(pixels)
        x, y = jnp.where(where, x, -2.0), jnp.where(where, y, 0.0)
    is_true = y == 1.0
    margins = 1.0 - jnp.where(is_true, x, -x)
    errors = jnp.where(margins <= 0.0, 0.0, margins)
    losses = segmentation.lovasz_extension(errors, margins, is_true)
    valid = jnp.all((is_true | (y == 0.0)) & (x == x), axis=-1)
    return _masks.nan_where_invalid(losses, valid)


@functools.partial(jax.jit, static_argnames=("axes", "classes"), inline=True)
def _lovasz_softmax(logits, labels, where, axes, classes) -> jax.Array:
    if where is not None:
        where = jnp.broadcast_to(where, labels.shape)
    rows = _masks.mask_labelled_rows(logits, labels, where, axes, _masks.LOGITS)
    size = rows.values.shape[-1]
    pixels = (labels.shape[0], math.prod(labels.shape[1:]))
    p, rest = (
        jnp.swapaxes(a.reshape(*pixels, size), -1, -2)
        for a in softmax.softmax_and_complement(rows.values)
    )
    flat = rows.labels.reshape(pixels)[:, None, :]
    is_true = flat == jnp.arange(size, dtype=flat.dtype).reshape(1, -1, 1)
    example_mask = (
        True if rows.example_mask is None else rows.example_mask.reshape(pixels)[:, None, :]
    )
    is_true &= example_mask
    wrong = jnp.where(example_mask, jnp.where(is_true, rest, p), 0.0)
    right = jnp.where(example_mask, jnp.where(is_true, p, rest), 1.0)
    # The odds of being wrong tell apart errors that are both near 1.
    odds = wrong / jnp.maximum(right, float(jnp.finfo(right.dtype).smallest_normal))
    losses = segmentation.lovasz_extension(wrong, odds, is_true)
    counts = jnp.any(is_true, axis=-1) if classes == "present" else None
    if counts is not None:
        losses = jnp.where(counts, losses, 0.0)
    results = jnp.sum(losses, axis=-1) / _how_many(losses, counts, (-1,))
    valid = jnp.all(rows.valid.reshape(pixels), axis=-1) & jnp.all(p == p, axis=(-2, -1))
    return _masks.nan_where_invalid(results, valid)
