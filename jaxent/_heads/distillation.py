"""The public losses that distil one linear head into another: they check, then call an engine."""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxent import _checks
from jaxent._heads import divergence
from jaxent._heads.checks import (
    Head,
    check_head,
    check_labels,
    check_row_argument,
    check_transform,
)
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
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence between two linear heads, the logits of neither held at once.

    .. math:: \ell_i = (1 - \alpha) \, D\big(p^{teacher}_{i,\tau} \| p^{student}_{i,\tau}\big)
        - \alpha \log p^{student}_{i, y_i}, \qquad
        p_{i,\tau} = \mathrm{softmax}\big((h_i W + b) / \tau\big)

    Bounded: `linear_jensen_shannon`. From logits: `softmax_kl_divergence`.

    Args:
        student_hidden: Input of the student's head, `[..., D]`, floating point.
        student_kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        teacher_hidden: Input of the teacher's head, `[..., D']`.
        teacher_kernel: Weights of the teacher's head, `[D', V]` or `[V, D']`.
        student_bias: Added to the student's logits, `[V]`; None for none.
        teacher_bias: Added to the teacher's logits, `[V]`; None for none.
        vocab_axis: The vocabulary's axis: -1 (or 1) or 0; a pair (student, teacher) if they differ.
        student_soft_cap: The bound :math:`c > 0` of the student's logits by tanh; None for none.
        teacher_soft_cap: The same of the teacher's.
        temperature: The divisor :math:`\tau > 0` of (capped) logits in the divergence, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`.
        direction: "forward" as above, or "reverse" for :math:`D(p^{student} \| p^{teacher})`.
        labels: Index of the true class of each row, integers `[...]`; None for none.
        label_weight: Weight :math:`\alpha` in [0, 1] of the cross-entropy (at temperature 1).
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The most rows in a chunk; None: 16 MiB of float32 logits, at least 64 rows. A
            divergence takes some twenty arrays of that size.
        dtype: Of the operands of matrix products, see `linear_loss`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 if any input is).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> student = (jnp.eye(2, 3), jnp.ones((3, 5)))
        >>> teacher = (jnp.eye(2), jnp.tile(jnp.arange(5.0), (2, 1)))
        >>> print(jaxent.linear_kl_divergence(*student, *teacher).round(4))
        0.6095

    References:
        Hinton et al., `Distillation <https://arxiv.org/abs/1503.02531>`_, 2015; reverse: Gu et al.,
        `MiniLLM <https://arxiv.org/abs/2306.08543>`_, 2023.
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
        dtype,
    )
    caps = {"student_soft_cap": student_soft_cap, "teacher_soft_cap": teacher_soft_cap}
    options = _check_options(heads[0], caps, temperature, labels, label_weight)
    kind = (
        divergence.forward_kl_divergence
        if direction == "forward"
        else divergence.reverse_kl_divergence
    )
    settings = divergence.Settings(
        kind, (), times_squared_temperature, reduction, chunk_size, axis_name
    )
    return divergence.sweep_divergence(heads, (), options, settings)


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
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Jensen-Shannon divergence between two linear heads, the logits of neither held at once.

    .. math:: J_\beta = \beta D(p^{teacher} \| m) + (1 - \beta) D(p^{student} \| m), \qquad
        m = \beta p^{teacher} + (1 - \beta) p^{student}, \qquad
        \ell_i = (1 - \alpha) J_{\beta,i} - \alpha \log p^{student}_{i, y_i}

    It is bounded. :math:`J_\beta / \beta` tends to the forward `linear_kl_divergence` as
    :math:`\beta` tends to 0, and :math:`J_\beta / (1 - \beta)` to the reverse one as it tends to 1.

    Args:
        student_hidden: Input of the student's head, `[..., D]`, floating point.
        student_kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        teacher_hidden: Input of the teacher's head, `[..., D']`.
        teacher_kernel: Weights of the teacher's head, `[D', V]` or `[V, D']`.
        student_bias: Added to the student's logits, `[V]`; None for none.
        teacher_bias: Added to the teacher's logits, `[V]`; None for none.
        vocab_axis: The vocabulary's axis: -1 (or 1) or 0; a pair (student, teacher) if they differ.
        student_soft_cap: The bound :math:`c > 0` of the student's logits by tanh; None for none.
        teacher_soft_cap: The same of the teacher's.
        temperature: The divisor :math:`\tau > 0` of (capped) logits in the divergence, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`.
        beta: The teacher's weight in the mixture, a Python number strictly between 0 and 1.
        labels: Index of the true class of each row, integers `[...]`; None for none.
        label_weight: Weight :math:`\alpha` in [0, 1] of the cross-entropy (at temperature 1).
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The most rows in a chunk; None: 16 MiB of float32 logits, at least 64 rows. A
            divergence takes some twenty arrays of that size.
        dtype: Of the operands of matrix products, see `linear_loss`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 if any input is).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> student = (jnp.eye(2, 3), jnp.ones((3, 5)))
        >>> teacher = (jnp.eye(2), jnp.tile(jnp.arange(5.0), (2, 1)))
        >>> print(jaxent.linear_jensen_shannon(*student, *teacher, beta=0.1).round(4))
        0.0545

    References:
        Agarwal et al., `On-Policy Distillation <https://arxiv.org/abs/2306.13649>`_, 2024.
    """
    _checks.check_mesh_axis(axis_name)
    keywords = (("beta", _checks.as_fraction("beta", beta)),)
    heads = _check_pair(
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        vocab_axis,
        where,
        weights,
        reduction,
        chunk_size,
        dtype,
    )
    caps = {"student_soft_cap": student_soft_cap, "teacher_soft_cap": teacher_soft_cap}
    options = _check_options(heads[0], caps, temperature, labels, label_weight)
    settings = divergence.Settings(
        divergence.jensen_shannon,
        keywords,
        times_squared_temperature,
        reduction,
        chunk_size,
        axis_name,
    )
    return divergence.sweep_divergence(heads, (), options, settings)


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
    dtype: DTypeLike | None = None,
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Divergence of a linear head from a teacher of whom only the likeliest classes are known.

    .. math:: \ell_i = (1 - \alpha) \Big( \sum_{j \in K_i} t_{ij} \log \frac{t_{ij}}{p_{ij}}
        + r_i \log \frac{r_i}{1 - \sum_{j \in K_i} p_{ij}} \Big) - \alpha \log p_{i, y_i}, \qquad
        r_i = 1 - \sum_{j \in K_i} t_{ij}

    It is the forward `linear_kl_divergence`, with all classes that the teacher does not list taken
    for one: k numbers per row instead of V.

    Args:
        hidden: Input of the student's head, `[..., D]`, floating point.
        kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
        teacher_log_probs: Log-probabilities of the listed classes in nats, `[..., k]`, at this
            temperature; `-inf` is padding. A total above 1 by more than rounding is NaN.
        teacher_indices: Their classes, integers `[..., k]`; one out of range, or twice, makes NaN.
        bias: Added to the student's logits, `[V]`; None for none.
        vocab_axis: The vocabulary's axis of `kernel`: -1 (or 1), or 0 for tied embeddings.
        soft_cap: The bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: The divisor :math:`\tau > 0` of (capped) logits in the divergence, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`.
        rest: "bucket" takes the other classes for one, as above. For "renormalize" the teacher
            never expects them, and what it lists is scaled to a total of 1.
        labels: Index of the true class of each row, integers `[...]`; None for none.
        label_weight: Weight :math:`\alpha` in [0, 1] of the cross-entropy (at temperature 1).
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The most rows in a chunk; None: 16 MiB of float32 logits, at least 64 rows.
        dtype: Of the operands of matrix products, see `linear_loss`.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 if any input is).

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
        Tan et al., `Multilingual Distillation <https://arxiv.org/abs/1902.10461>`_, 2019; Anshumann
        et al., `Sparse Logit Sampling <https://arxiv.org/abs/2503.16870>`_, 2025.
    """
    _checks.check_mesh_axis(axis_name)
    _checks.check_one_of("rest", rest, ("bucket", "renormalize"))
    given = where, weights, reduction, chunk_size, dtype
    head = check_head(hidden, kernel, bias, vocab_axis, *given)
    log_probs, indices = _check_listed(head, teacher_log_probs, teacher_indices)
    options = _check_options(head, {"soft_cap": soft_cap}, temperature, labels, label_weight)
    # A relative error that the roundings of the log-probabilities may amount to.
    slack = 8.0 * float(jnp.finfo(log_probs.dtype).eps)
    keywords = ("rest", rest), ("slack", slack)
    settings = divergence.Settings(
        divergence.top_k_kl_divergence,
        keywords,
        times_squared_temperature,
        reduction,
        chunk_size,
        axis_name,
    )
    return divergence.sweep_divergence((head,), (log_probs, indices), options, settings)


# The arguments that these functions share.


def _check_pair(
    student: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    teacher: tuple[ArrayLike, ArrayLike, ArrayLike | None],
    vocab_axis: int | tuple[int, int],
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    chunk_size: int | None,
    dtype: DTypeLike | None,
) -> tuple[Head, Head]:
    """Both heads, each from hidden, kernel and bias; refused unless rows and classes match."""
    _checks.require(
        not isinstance(vocab_axis, tuple) or len(vocab_axis) == 2,
        f"`vocab_axis` must be one axis or a pair (student, teacher), got {vocab_axis}.",
    )
    axes = vocab_axis if isinstance(vocab_axis, tuple) else (vocab_axis, vocab_axis)
    given = where, weights, reduction, chunk_size, dtype
    ours = check_head(*student, axes[0], *given, owner="student_")
    theirs = check_head(*teacher, axes[1], None, None, reduction, None, dtype, owner="teacher_")
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


def _check_listed(
    head: Head, log_probs: ArrayLike, indices: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """What the teacher lists as arrays [..., k] of one shape, refused unless they fit the rows."""
    log_probs = _checks.as_floating("teacher_log_probs", log_probs)
    remedy = "pass the classes that `teacher_log_probs` belong to."
    indices = _checks.as_integer("teacher_indices", indices, remedy)
    check_row_argument("teacher_log_probs", log_probs, head)
    _checks.require(
        log_probs.shape == indices.shape
        and log_probs.ndim == len(head.leading_shape) + 1
        and log_probs.shape[-1] > 0,
        f"`teacher_log_probs` {_checks.describe(log_probs)} and `teacher_indices` "
        f"{_checks.describe(indices)} must have one shape [..., k] with k > 0.",
    )
    return log_probs, indices


def _check_options(
    head: Head,
    soft_caps: dict[str, ArrayLike | None],
    temperature: ArrayLike,
    labels: ArrayLike | None,
    label_weight: ArrayLike,
) -> divergence.Options:
    """The options that all divergences share as arrays."""
    caps: list[jax.Array | None] = []
    for name, cap in soft_caps.items():
        if cap is not None:
            _checks.check_open_interval(name, cap, 0.0, math.inf)
        caps.append(None if cap is None else _checks.as_scalar(name, cap))
    _, divisor = check_transform(None, temperature)
    _checks.check_closed_interval("label_weight", label_weight, 0.0, 1.0)
    if labels is None:
        _checks.require(
            _checks.as_scalar_unless("label_weight", label_weight, 0.0) is None,
            f"`label_weight` {label_weight} needs `labels`; pass the index of each row's class.",
        )
        return divergence.Options(tuple(caps), divisor, None, None)
    weight = _checks.as_scalar("label_weight", label_weight)
    return divergence.Options(tuple(caps), divisor, weight, check_labels(labels, head))
