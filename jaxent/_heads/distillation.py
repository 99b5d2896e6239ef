"""The public losses that distil one linear head into another: they check, then call an engine."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

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
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Kullback-Leibler divergence between two linear heads, the logits of neither held at once.

    .. math::
        p_i = \mathrm{softmax}(h_i W + b), \quad \tau\text{: at temperature } \tau, \qquad
        \ell_i = (1 - \alpha) \, D\big(p^{teacher}_{i,\tau} \,\|\, p^{student}_{i,\tau}\big)
        - \alpha \log p^{student}_{i, y_i}

    With a frozen teacher, value and gradients take four matrix products.

    Args:
        student_hidden: Input of the student's head, `[..., D]`, floating point.
        student_kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
            Products are taken in the common dtype of a head and accumulated in float32.
        teacher_hidden: Input of the teacher's head, `[..., D']`.
        teacher_kernel: Weights of the teacher's head, `[D', V]` or `[V, D']`.
        student_bias: Added to the student's logits, `[V]`; None for none.
        teacher_bias: Added to the teacher's logits, `[V]`; None for none.
        vocab_axis: The axis of the kernels that is the vocabulary: -1 (or 1), or 0 if tied
            embeddings are the kernels; a pair (student, teacher) where they differ.
        student_soft_cap: The bound :math:`c > 0` that tanh puts on the student's logits, a scalar;
            None for none.
        teacher_soft_cap: The same for the teacher's.
        temperature: The divisor :math:`\tau > 0` of the (capped) logits of both in the divergence,
            a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`, since its
            gradients shrink with :math:`1 / \tau^2`. It is not done unless asked for.
        direction: "forward" for the divergence above, of the student from the teacher, which asks
            for all that the teacher expects; "reverse" for
            :math:`D(p^{student} \| p^{teacher})`, which asks for nothing that it does not.
        labels: Index of the true class of each row, integers `[...]`; None for none.
        label_weight: The weight :math:`\alpha` in [0, 1] of the student's cross-entropy with the
            labels, at temperature 1; a scalar. It needs no further product.
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The largest number of rows in a chunk. None makes 16 MiB of float32 logits,
            but at least 64 rows; a divergence takes some twenty arrays of their size.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.
            `labels` count all classes.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 if any input is). The divergence
        is never negative, and 0 with gradient 0 for equal heads.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `softmax_kl_divergence` of plain logits; `linear_jensen_shannon`, which is bounded.

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
        student_hidden: Input of the student's head, `[..., D]`, floating point.
        student_kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`.
            Products are taken in the common dtype of a head and accumulated in float32.
        teacher_hidden: Input of the teacher's head, `[..., D']`.
        teacher_kernel: Weights of the teacher's head, `[D', V]` or `[V, D']`.
        student_bias: Added to the student's logits, `[V]`; None for none.
        teacher_bias: Added to the teacher's logits, `[V]`; None for none.
        vocab_axis: The axis of the kernels that is the vocabulary: -1 (or 1), or 0 if tied
            embeddings are the kernels; a pair (student, teacher) where they differ.
        student_soft_cap: The bound :math:`c > 0` that tanh puts on the student's logits, a scalar;
            None for none.
        teacher_soft_cap: The same for the teacher's.
        temperature: The divisor :math:`\tau > 0` of the (capped) logits of both in the divergence,
            a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`, since its
            gradients shrink with :math:`1 / \tau^2`.
        beta: The teacher's weight in the mixture, a Python number strictly between 0 and 1. At
            either end the divergence would be 0: use `linear_kl_divergence`.
        labels: Index of the true class of each row, integers `[...]`; None for none.
        label_weight: The weight :math:`\alpha` in [0, 1] of the student's cross-entropy with the
            labels, at temperature 1; a scalar. It needs no further product.
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The largest number of rows in a chunk. None makes 16 MiB of float32 logits,
            but at least 64 rows; a divergence takes some twenty arrays of their size.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.
            `labels` count all classes.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 if any input is). The divergence
        is from 0 (for equal heads, with gradient 0) to the entropy of (beta, 1 - beta).

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `softmax_jensen_shannon` of plain logits; `linear_kl_divergence`.

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
    keywords = (("beta", _checks.as_fraction("beta", beta)),)
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
    axis_name: AxisName = None,
) -> jax.Array:
    r"""Divergence of a linear head from a teacher of whom only the likeliest classes are known.

    .. math::
        \ell_i = (1 - \alpha) \Big( \sum_{j \in K_i} t_{ij} \log \frac{t_{ij}}{p_{ij}}
        + r_i \log \frac{r_i}{1 - \sum_{j \in K_i} p_{ij}} \Big) - \alpha \log p_{i, y_i}, \qquad
        r_i = 1 - \sum_{j \in K_i} t_{ij}

    It is the forward divergence of `linear_kl_divergence` with all classes that the teacher does
    not list taken for one; listed in full, the two are the same. The teacher is stored as k numbers
    per row instead of V.

    Args:
        hidden: Input of the student's head, `[..., D]`, floating point.
        kernel: Weights of the student's head, `[D, V]`, or `[V, D]` with `vocab_axis=0`. Products
            are taken in the common dtype of `hidden` and `kernel` and accumulated in float32.
        teacher_log_probs: Log-probabilities in nats of the classes that the teacher lists,
            `[..., k]`, at this temperature. `-inf` is padding, whose index does not matter. A row
            whose total exceeds 1 by more than rounding is NaN.
        teacher_indices: The classes that they belong to, integers `[..., k]` in any order. An
            index outside `[0, V)`, or one listed twice, makes its row NaN.
        bias: Added to the student's logits, `[V]`; None for none.
        vocab_axis: The axis of `kernel` that is the vocabulary: -1 (or 1), or 0 if tied embeddings
            are the kernel.
        soft_cap: The bound :math:`c > 0` that tanh puts on the logits, a scalar; None for none.
        temperature: The divisor :math:`\tau > 0` of the student's (capped) logits in the
            divergence, a scalar.
        times_squared_temperature: Whether the divergence is multiplied by :math:`\tau^2`, since its
            gradients shrink with :math:`1 / \tau^2`.
        rest: The classes that the teacher does not list are one class, as above, for "bucket". For
            "renormalize" it never expects them, and what it lists is scaled to a total of 1.
        labels: Index of the true class of each row, integers `[...]`; None for none.
        label_weight: The weight :math:`\alpha` in [0, 1] of the student's cross-entropy with the
            labels, at temperature 1; a scalar. It needs no further product.
        where: Mask of the rows, `[...]`.
        weights: Weights of the rows, `[...]`, real; None for 1.
        reduction: "mean" over the weights (0 over nothing), "sum", or "none" for `[...]`.
        chunk_size: The largest number of rows in a chunk. None makes 16 MiB of float32 logits,
            but at least 64 rows.
        axis_name: Inside `jax.shard_map`, the mesh axis (or axes) that the classes are split over.
            `labels` and indices count all classes.

    Returns:
        A scalar in nats, or `[...]` for "none"; float32 (float64 if any input is). The divergence
        is never negative.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    See Also:
        `linear_kl_divergence`, from a teacher of whom all is known.

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
) -> tuple[Head, Head]:
    """Both heads, each from hidden, kernel and bias; refused unless rows and classes match."""
    _checks.require(
        not isinstance(vocab_axis, tuple) or len(vocab_axis) == 2,
        f"`vocab_axis` must be one axis or a pair (student, teacher), got {vocab_axis}.",
    )
    axes = vocab_axis if isinstance(vocab_axis, tuple) else (vocab_axis, vocab_axis)
    ours = check_head(*student, axes[0], where, weights, reduction, chunk_size, owner="student_")
    theirs = check_head(*teacher, axes[1], None, None, reduction, None, owner="teacher_")
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
