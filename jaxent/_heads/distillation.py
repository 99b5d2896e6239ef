"""Distillation of one linear head into another: divergences of their distributions, row by row.

Neither head's logits exist as a whole: both heads go through the sweep of `_row_sweep`, where the
loss of a chunk of rows sees the logits of both. What is not differentiated, usually all of the
teacher, costs one matrix product for its logits and nothing else.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks, _parallel
from jaxent._heads.checks import (
    Head,
    check_head,
    check_labels,
    check_row_argument,
    check_transform,
    is_neutral,
)
from jaxent._heads.logits import transform_logits
from jaxent._heads.rows import sweep_rows
from jaxent._kernels import distribution, softmax
from jaxent._losses.logit_divergence import softmax_jensen_shannon, softmax_kl_divergence
from jaxent._losses.softmax import softmax_cross_entropy_with_integer_labels
from jaxent._parallel import AxisName


@_checks.public
def linear_kl_divergence(
    student_hidden: ArrayLike,
    student_kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    vocab_axis: int | tuple[int, int] = -1,
    student_soft_cap: ArrayLike | None = None,
    teacher_soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    times_squared_temperature: bool = False,
    direction: str = "forward",
    labels: ArrayLike | None = None,
    label_weight: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence between two linear heads, the logits of neither held at once.

    .. math::
        p_i = \mathrm{softmax}(h_i W + b), \quad \tau\text{: at temperature } \tau, \qquad
        \ell_i = (1 - \alpha) \, D\big(p^{teacher}_{i,\tau} \,\|\, p^{student}_{i,\tau}\big)
        - \alpha \log p^{student}_{i, y_i}

    It equals `softmax_kl_divergence` of the logits of both heads, divided by the temperature, and
    reduced. With a frozen teacher, value and gradients take four matrix products.

    Args:
        student_hidden: What the student's head is applied to, `[..., D]`, floating point.
        student_kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`,
            floating point. Products have operands in the common dtype of a head's hidden and
            kernel and are accumulated in float32.
        teacher_hidden: The same of the teacher, with the same leading shape; its D may differ.
        teacher_kernel: The same of the teacher, with as many classes.
        student_bias: Added to the student's logits, `[V]`, floating point; None for none.
        teacher_bias: Added to the teacher's logits, `[V]`, floating point; None for none.
        vocab_axis: Which axis of the kernels is the vocabulary: -1 (or 1), or 0 as in tied
            embeddings; a pair (student, teacher) where they differ.
        student_soft_cap: Bound :math:`c > 0` that tanh puts on the student's logits, a scalar;
            None for none.
        teacher_soft_cap: The same for the teacher's.
        temperature: What the (capped) logits of both are divided by in the divergence,
            :math:`\tau > 0`, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`. Its
            gradients shrink with :math:`1 / \tau^2`, so that this keeps its share beside a
            cross-entropy when the temperature changes. It is not done unless asked for.
        direction: "forward" for the divergence of the student from the teacher as above, which
            asks for all that the teacher expects; "reverse" for
            :math:`D(p^{student} \| p^{teacher})`, which asks for nothing that it does not.
        labels: Index of the true class per row, integers of the leading shape, for a share of
            cross-entropy; None for none. An index outside `[0, V)`, negative ones included, makes
            its row NaN unless it is masked.
        label_weight: The share :math:`\alpha` in [0, 1] of the cross-entropy of the student's
            logits, at temperature 1, with the labels; a scalar. It needs no further product.
        where: Booleans of the leading shape: True where the row counts. A row that does not has
            loss 0 and gradient 0, whatever it holds.
        weights: Real weights of the rows, of the leading shape; None is 1.
        reduction: "mean" over the rows and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each row.
        chunk_size: The largest number of rows whose logits exist at a time; None picks it: 16 MiB
            of float32 logits of both, but at least 64 rows. Some twenty arrays of the size of the
            student's logits of a chunk are needed for its divergence.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. Kernels and biases are then one block
            each, while labels count all classes. None for none.

    Returns:
        A scalar in nats, or the leading shape for "none"; float32, or float64 if any input is. The
        divergence is never negative, and 0 with gradient 0 for equal heads.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> student, teacher = jnp.eye(2, 3), jnp.eye(2)
        >>> print(
        ...     jaxent.linear_kl_divergence(
        ...         student, jnp.ones((3, 5)), teacher, jnp.tile(jnp.arange(5.0), (2, 1))
        ...     ).round(4)
        ... )
        0.6095

    References:
        Hinton, Vinyals, Dean, `Distilling the Knowledge in a Neural Network
        <https://arxiv.org/abs/1503.02531>`_, 2015, with the factor :math:`\tau^2` in section 2.
        Reverse: Gu et al., `MiniLLM <https://arxiv.org/abs/2306.08543>`_, 2023.
    """
    _checks.check_mesh_axis(axis_name)
    _checks.check_one_of("direction", direction, ("forward", "reverse"))
    heads = _check_pair(
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        vocab_axis,
        where,
        weights,
        reduction,
        chunk_size,
    )
    caps = {"student_soft_cap": student_soft_cap, "teacher_soft_cap": teacher_soft_cap}
    options = _check_options(heads[0], caps, temperature, labels, label_weight)
    forward = direction == "forward"
    plan = _Plan(_forward if forward else _reverse, (), reduction, chunk_size, axis_name)
    return _distilled(heads, (), options, plan, scaled=times_squared_temperature)


@_checks.public
def linear_jensen_shannon(
    student_hidden: ArrayLike,
    student_kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    student_bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    vocab_axis: int | tuple[int, int] = -1,
    student_soft_cap: ArrayLike | None = None,
    teacher_soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    times_squared_temperature: bool = False,
    beta: float = 0.5,
    labels: ArrayLike | None = None,
    label_weight: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Jensen-Shannon divergence between two linear heads, the logits of neither held at once.

    .. math::
        J_\beta = \beta D(p^{teacher} \| m) + (1 - \beta) D(p^{student} \| m), \qquad
        m = \beta p^{teacher} + (1 - \beta) p^{student}, \qquad
        \ell_i = (1 - \alpha) J_{\beta,i} - \alpha \log p^{student}_{i, y_i}

    It is bounded, also where one of the two is sure that a class is impossible. Its limits are the
    two divergences of `linear_kl_divergence`: :math:`J_\beta / \beta` tends to the forward one as
    :math:`\beta` tends to 0, and :math:`J_\beta / (1 - \beta)` to the reverse one as it tends to 1.

    Args:
        student_hidden: What the student's head is applied to, `[..., D]`, floating point.
        student_kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`,
            floating point. Products have operands in the common dtype of a head's hidden and
            kernel and are accumulated in float32.
        teacher_hidden: The same of the teacher, with the same leading shape; its D may differ.
        teacher_kernel: The same of the teacher, with as many classes.
        student_bias: Added to the student's logits, `[V]`, floating point; None for none.
        teacher_bias: Added to the teacher's logits, `[V]`, floating point; None for none.
        vocab_axis: Which axis of the kernels is the vocabulary: -1 (or 1), or 0 as in tied
            embeddings; a pair (student, teacher) where they differ.
        student_soft_cap: Bound :math:`c > 0` that tanh puts on the student's logits, a scalar;
            None for none.
        teacher_soft_cap: The same for the teacher's.
        temperature: What the (capped) logits of both are divided by in the divergence,
            :math:`\tau > 0`, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`, which
            keeps the size of its gradients when the temperature changes.
        beta: The teacher's share in the mixture, a Python number strictly between 0 and 1. At
            either end the divergence would be 0: use `linear_kl_divergence`.
        labels: Index of the true class per row, integers of the leading shape, for a share of
            cross-entropy; None for none. An index outside `[0, V)`, negative ones included, makes
            its row NaN unless it is masked.
        label_weight: The share :math:`\alpha` in [0, 1] of the cross-entropy of the student's
            logits, at temperature 1, with the labels; a scalar. It needs no further product.
        where: Booleans of the leading shape: True where the row counts. A row that does not has
            loss 0 and gradient 0, whatever it holds.
        weights: Real weights of the rows, of the leading shape; None is 1.
        reduction: "mean" over the rows and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each row.
        chunk_size: The largest number of rows whose logits exist at a time; None picks it: 16 MiB
            of float32 logits of both, but at least 64 rows. Some twenty arrays of the size of the
            student's logits of a chunk are needed for its divergence.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. Kernels and biases are then one block
            each, while labels count all classes. None for none.

    Returns:
        A scalar in nats, or the leading shape for "none"; float32, or float64 if any input is. The
        divergence is from 0 (for equal heads, with gradient 0) to the entropy of the two shares.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> student, teacher = jnp.eye(2, 3), jnp.eye(2)
        >>> print(
        ...     jaxent.linear_jensen_shannon(
        ...         student, jnp.ones((3, 5)), teacher, jnp.tile(jnp.arange(5.0), (2, 1)), beta=0.1
        ...     ).round(4)
        ... )
        0.0545

    References:
        Agarwal et al., `On-Policy Distillation of Language Models: Learning from Self-Generated
        Mistakes <https://arxiv.org/abs/2306.13649>`_, 2024, section 2.
    """
    _checks.check_mesh_axis(axis_name)
    share = _checks.as_fraction("beta", beta)
    heads = _check_pair(
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        vocab_axis,
        where,
        weights,
        reduction,
        chunk_size,
    )
    caps = {"student_soft_cap": student_soft_cap, "teacher_soft_cap": teacher_soft_cap}
    options = _check_options(heads[0], caps, temperature, labels, label_weight)
    plan = _Plan(_jensen_shannon, (("beta", share),), reduction, chunk_size, axis_name)
    return _distilled(heads, (), options, plan, scaled=times_squared_temperature)


@_checks.public
def linear_top_k_kl_divergence(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_log_probs: ArrayLike,
    teacher_indices: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    vocab_axis: int = -1,
    soft_cap: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    times_squared_temperature: bool = False,
    rest: str = "bucket",
    labels: ArrayLike | None = None,
    label_weight: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    reduction: str = "mean",
    chunk_size: int | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Divergence of a linear head from a teacher of whom only the likeliest classes are known.

    .. math::
        \ell_i = (1 - \alpha) \Big( \sum_{j \in K_i} t_{ij} \log \frac{t_{ij}}{p_{ij}}
        + r_i \log \frac{r_i}{1 - \sum_{j \in K_i} p_{ij}} \Big) - \alpha \log p_{i, y_i}, \qquad
        r_i = 1 - \sum_{j \in K_i} t_{ij}

    It is the forward divergence of `linear_kl_divergence` with all classes that the teacher does
    not list taken for one, which is the most that is known of it; listed in full, the two are the
    same. Student and teacher can be stored apart: k numbers per row instead of V.

    Args:
        hidden: What the student's head is applied to, `[..., D]`, floating point.
        kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`, floating
            point. Products have operands in the common dtype of `hidden` and `kernel` and are
            accumulated in float32.
        teacher_log_probs: Log-probabilities in nats of the classes that the teacher lists,
            `[..., k]`, floating point, as they are at this temperature. `-inf` is padding: its
            index is not looked at. A row whose probabilities exceed a total of 1 by more than
            rounding explains is NaN unless it is masked.
        teacher_indices: The classes that they belong to, integers `[..., k]` in any order. An
            index outside `[0, V)`, negative ones included, or one listed twice, makes its row NaN
            unless it is masked.
        bias: Added to the student's logits, `[V]`, floating point; None for none.
        vocab_axis: Which axis of `kernel` is the vocabulary: -1 (or 1), or 0 as in tied embeddings.
        soft_cap: Bound :math:`c > 0` that tanh puts on the student's logits, a scalar; None for
            none.
        temperature: What the student's (capped) logits are divided by in the divergence,
            :math:`\tau > 0`, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`, which
            keeps the size of its gradients when the temperature changes.
        rest: What becomes of the classes that the teacher does not list. "bucket": they are one
            class, as above. "renormalize": the teacher never expects them, and what it lists is
            scaled to a total of 1.
        labels: Index of the true class per row, integers of the leading shape, for a share of
            cross-entropy; None for none. An index outside `[0, V)`, negative ones included, makes
            its row NaN unless it is masked.
        label_weight: The share :math:`\alpha` in [0, 1] of the cross-entropy of the student's
            logits, at temperature 1, with the labels; a scalar. It needs no further product.
        where: Booleans of the leading shape: True where the row counts. A row that does not has
            loss 0 and gradient 0, whatever it holds.
        weights: Real weights of the rows, of the leading shape; None is 1.
        reduction: "mean" over the rows and weights that count (0 over nothing), "sum", or "none"
            for the weighted loss of each row.
        chunk_size: The largest number of rows whose logits exist at a time; None picks it: 16 MiB
            of float32 logits, but at least 64 rows.
        axis_name: Inside `jax.shard_map`, the mesh axis over which the classes are split in equal
            blocks, in their order, or a tuple of such axes. Kernels and biases are then one block
            each, while labels and indices count all classes. None for none.

    Returns:
        A scalar in nats, or the leading shape for "none"; float32, or float64 if any input is. The
        divergence is never negative.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> hidden, kernel = jnp.eye(2, 3), jnp.tile(jnp.arange(5.0), (3, 1))
        >>> log_probs = jnp.log(jnp.array([[0.6, 0.3], [0.5, 0.4]]))
        >>> indices = jnp.array([[4, 3], [0, 4]])
        >>> print(jaxent.linear_top_k_kl_divergence(hidden, kernel, log_probs, indices).round(4))
        0.7905

    References:
        Renormalised: Tan et al., `Multilingual Neural Machine Translation with Knowledge
        Distillation <https://arxiv.org/abs/1902.10461>`_, 2019, section 3. How that misleads the
        student: Anshumann et al., `Sparse Logit Sampling <https://arxiv.org/abs/2503.16870>`_,
        2025. Grouping classes never adds to a divergence: Kullback, Leibler, `On Information and
        Sufficiency <https://doi.org/10.1214/aoms/1177729694>`_, 1951.
    """
    _checks.check_mesh_axis(axis_name)
    _checks.check_one_of("rest", rest, ("bucket", "renormalize"))
    head = check_head(hidden, kernel, bias, vocab_axis, where, weights, reduction, chunk_size)
    log_probs = _checks.as_floating("teacher_log_probs", teacher_log_probs)
    remedy = "pass the classes that `teacher_log_probs` belong to."
    indices = _checks.as_integer("teacher_indices", teacher_indices, remedy)
    check_row_argument("teacher_log_probs", log_probs, head)
    _checks.require(
        log_probs.shape == indices.shape
        and log_probs.ndim == len(head.leading_shape) + 1
        and log_probs.shape[-1] > 0,
        f"`teacher_log_probs` {_checks.describe(log_probs)} and `teacher_indices` "
        f"{_checks.describe(indices)} must have one shape [..., k] with k > 0.",
    )
    options = _check_options(head, {"soft_cap": soft_cap}, temperature, labels, label_weight)
    settings = ("rest", rest), ("slack", 8.0 * float(jnp.finfo(log_probs.dtype).eps))
    plan = _Plan(_of_listed, settings, reduction, chunk_size, axis_name)
    scaled = times_squared_temperature
    return _distilled((head,), (log_probs, indices), options, plan, scaled=scaled)


# From the arguments to the sweep.


class _Options(NamedTuple):
    """Arrays that are the same for all rows, None for what changes nothing; and the labels."""

    soft_caps: tuple[jax.Array | None, ...]
    temperature: jax.Array | None
    label_weight: jax.Array | None
    labels: jax.Array | None


class _Plan(NamedTuple):
    """What is fixed while tracing; the compiled program is found again by it."""

    divergence: Callable[..., jax.Array]  # of the logits of each head, and further arrays of rows
    settings: tuple[tuple[str, Any], ...]  # keywords of the divergence
    reduction: str
    chunk_size: int | None
    axis_name: AxisName  # of the devices that have the other classes


def _check_pair(
    student: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    teacher: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    vocab_axis: int | tuple[int, int],
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    chunk_size: int | None,
) -> tuple[Head, Head]:
    """Both heads, each from hidden, kernel and bias; refused unless rows and classes are alike."""
    _checks.require(
        not isinstance(vocab_axis, tuple) or len(vocab_axis) == 2,
        f"`vocab_axis` must be one axis or a pair (student, teacher), got {vocab_axis}.",
    )
    own, other = vocab_axis if isinstance(vocab_axis, tuple) else (vocab_axis, vocab_axis)
    ours = check_head(*student, own, where, weights, reduction, chunk_size, owner="student_")
    theirs = check_head(*teacher, other, None, None, reduction, None, owner="teacher_")
    _checks.require(
        ours.leading_shape == theirs.leading_shape,
        f"`student_hidden` {_checks.describe(ours.hidden)} and `teacher_hidden` "
        f"{_checks.describe(theirs.hidden)} must have one leading shape.",
    )
    _checks.require(
        ours.vocabulary_size == theirs.vocabulary_size,
        f"`student_kernel` {_checks.describe(ours.kernel)} has {ours.vocabulary_size} classes and "
        f"`teacher_kernel` {_checks.describe(theirs.kernel)} {theirs.vocabulary_size}; they must "
        "be the same ones.",
    )
    return ours, theirs


def _check_options(
    head: Head,
    soft_caps: dict[str, ArrayLike | None],
    temperature: ArrayLike,
    labels: ArrayLike | None,
    label_weight: ArrayLike,
) -> _Options:
    """The options that all divergences share as arrays."""
    caps = []
    for option, cap in soft_caps.items():
        if cap is not None:
            _checks.check_open_interval(option, cap, 0.0, math.inf)
        caps.append(None if cap is None else _checks.as_scalar(option, cap))
    _, divisor = check_transform(None, temperature)
    _checks.check_closed_interval("label_weight", label_weight, 0.0, 1.0)
    if labels is None:
        _checks.require(
            is_neutral(label_weight, 0.0),
            f"`label_weight` {label_weight} needs `labels`; pass the index of each row's class.",
        )
        return _Options(tuple(caps), divisor, None, None)
    weight = _checks.as_scalar("label_weight", label_weight)
    return _Options(tuple(caps), divisor, weight, check_labels(labels, head))


def _distilled(
    heads: tuple[Head, ...],
    data: tuple[jax.Array, ...],
    options: _Options,
    plan: _Plan,
    *,
    scaled: bool,
) -> jax.Array:
    """The reduced losses of checked arguments; `data` are further arrays of rows."""
    _checks.check_one_of("times_squared_temperature", scaled, (False, True))
    swept = functools.partial(_swept, plan=plan, scaled=bool(scaled))
    rows = len(heads[0].leading_shape) if plan.reduction == "none" else 0
    return _parallel.with_auto_axes(swept, heads, data, options, like=heads[0].hidden, axes=rows)


@functools.partial(jax.jit, static_argnames=("plan", "scaled"), inline=True)
def _swept(
    heads: tuple[Head, ...],
    data: tuple[jax.Array, ...],
    options: _Options,
    plan: _Plan,
    scaled: bool,
) -> jax.Array:
    labels = () if options.labels is None else (options.labels,)
    varying = _parallel.varying_axes(([head.hidden for head in heads], data, labels))
    options = jax.tree.map(lambda option: _parallel.pvary(option, varying), options)

    def loss_fn(*chunk: jax.Array) -> jax.Array:
        logits, rows = chunk[: len(heads)], chunk[len(heads) :]
        capped = [
            transform_logits(x, cap, None) for x, cap in zip(logits, options.soft_caps, strict=True)
        ]
        divided = [transform_logits(x, None, options.temperature) for x in capped]
        settings = dict(plan.settings) | {"axis_name": plan.axis_name}
        losses = plan.divergence(*divided, *rows[: len(data)], **settings)
        if scaled and options.temperature is not None:
            losses = losses * jnp.square(options.temperature.astype(losses.dtype))
        if options.label_weight is None:
            return losses
        weight = options.label_weight.astype(losses.dtype)
        weight = _masks.nan_where_invalid(weight, (weight >= 0.0) & (weight <= 1.0))
        at_labels = softmax_cross_entropy_with_integer_labels(
            capped[0], rows[-1], axis_name=plan.axis_name
        )
        return _masks.scale_loss(1.0 - weight, losses) + _masks.scale_loss(weight, at_labels)

    rows = (*data, *labels)
    # Smaller than for a cross-entropy: exact divergences take more room, and far more time than
    # it takes to go through the kernel's gradient once more.
    chunk_size = plan.chunk_size or max(64, 2**22 // sum(head.vocabulary_size for head in heads))
    first, *others = heads
    return sweep_rows(loss_fn, first, rows, plan.reduction, chunk_size, tuple(others))


# Divergences of a chunk of rows.


def _forward(student: jax.Array, teacher: jax.Array, *, axis_name: AxisName) -> jax.Array:
    return softmax_kl_divergence(student, teacher, axis_name=axis_name)


def _reverse(student: jax.Array, teacher: jax.Array, *, axis_name: AxisName) -> jax.Array:
    return softmax_kl_divergence(teacher, student, axis_name=axis_name)


def _jensen_shannon(
    student: jax.Array, teacher: jax.Array, *, beta: float, axis_name: AxisName
) -> jax.Array:
    return softmax_jensen_shannon(teacher, student, beta=beta, axis_name=axis_name)


def _of_listed(
    student: jax.Array,
    log_probs: jax.Array,
    indices: jax.Array,
    *,
    rest: str,
    slack: float,
    axis_name: AxisName,
) -> jax.Array:
    """Divergence from a teacher who lists some classes, all others being one class more.

    Args:
        student: logits [chunk, V].
        log_probs: of the listed classes, [chunk, k]; -inf is padding.
        indices: of the listed classes, [chunk, k].
        rest: "bucket" if the teacher expects the others with what is left of 1, "renormalize" if
            it does not expect them.
        slack: the relative error that roundings of the log-probabilities may amount to.
        axis_name: the axis that the classes are split over.
    """
    log_probs, classes = (
        log_probs.astype(student.dtype),
        _parallel.class_count(student.shape[-1], axis_name),
    )
    indices = indices.astype(jnp.int64 if indices.dtype.itemsize > 4 else jnp.int32)
    listed = log_probs != -jnp.inf
    # Every padding has a number of its own, beyond all classes.
    beyond = classes + jnp.arange(indices.shape[-1], dtype=indices.dtype)[None]
    known = (indices >= 0) & (indices < classes)
    own = jnp.where(listed & known, indices, beyond)
    ordered = jnp.sort(own, axis=-1)
    valid = jnp.all(known | ~listed, axis=-1) & jnp.all(ordered[:, 1:] != ordered[:, :-1], axis=-1)

    here = _parallel.local_labels(own, student.shape[-1], axis_name)
    # Before the block is not from its end.
    here = jnp.where(here < 0, student.shape[-1], here)
    taken = jnp.take_along_axis(student, here, axis=-1, mode="clip")
    taken = _parallel.psum(jnp.where(here < student.shape[-1], taken, 0.0), axis_name)
    others = student.at[jnp.arange(len(own))[:, None], here].set(-jnp.inf, mode="drop")
    log_others = softmax.log_normalizer(others, axis_name)
    if rest == "renormalize":
        log_left = jnp.full_like(log_others, -jnp.inf)
    else:
        left = distribution.rest_of(log_probs)
        size = jnp.where(listed, log_probs, 0.0)
        tolerance = slack * jnp.sum(jnp.exp(log_probs) * (1.0 + jnp.abs(size)), axis=-1)
        valid &= left >= -tolerance
        # What roundings leave over cannot be expected where there is no other class.
        some = left > jnp.where(log_others == -jnp.inf, tolerance, 0.0)
        log_left = jnp.where(some, jnp.log(jnp.where(some, left, 1.0)), -jnp.inf)
    buckets = jnp.where(listed, taken, -jnp.inf), log_others[:, None]
    expected = log_probs, log_left[:, None]
    logits, target = (jnp.concatenate(parts, axis=-1) for parts in (buckets, expected))
    return _masks.nan_where_invalid(softmax_kl_divergence(logits, target), valid)
