"""Losses of sequences that are not aligned with their labels."""

from __future__ import annotations

import functools
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import dtypes, intervals
from jaxent._kernels import ctc


@_checks.public
def ctc_loss(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
    where: ArrayLike | None = None,
) -> jax.Array:
    r"""Connectionist temporal classification: minus the log-probability of an unaligned labelling.

    .. math:: \ell = -\log \sum_{\pi \in \mathcal{A}(y)} \prod_t \operatorname{softmax}(x_t)_{\pi_t}

    :math:`\mathcal{A}(y)` are the alignments of the labels: sequences of one class per frame that
    spell the labels once repeats are merged and blanks are taken out. A batch in which a sequence
    has a probability above 1/2 takes about three times as long. **Paddings are 1 where there is
    nothing, the opposite of a mask: pass `1 - mask`.**

    Args:
        logits: Unnormalised log-probabilities in nats, `[B, T, K]` (sequences, frames, classes).
        logit_paddings: 1 where a frame is padding, 0 elsewhere, `[B, T]`; in any order.
        labels: Indices of classes other than the blank, integers `[B, N]`.
        label_paddings: 1 where a label is padding, 0 elsewhere, `[B, N]`; in any order.
        blank_id: The class of the blank, an integer in `[0, K)`.
        log_epsilon: Has no effect; optax takes it for the logarithm of 0.
        where: Mask of the sequences, `[B]`.

    Returns:
        One loss per sequence in nats, `[B]`, float32 (float64 for float64 inputs). `+inf`, with
        gradient 0, where no alignment is possible.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.zeros((2, 3, 4)).at[1, :, 2].set(20.0)  # three frames, four classes
        >>> labels = jnp.array([[1, 2], [2, 0]])
        >>> label_paddings = jnp.array([[0, 0], [0, 1]])  # of the second, one label counts
        >>> print(jaxent.ctc_loss(logits, jnp.zeros((2, 3)), labels, label_paddings))
        [2.54944515e+00 1.44280765e-08]

    References:
        Graves et al., `CTC <https://doi.org/10.1145/1143844.1143891>`_, 2006.
    """
    del log_epsilon
    return _ctc(_check(logits, logit_paddings, labels, label_paddings, blank_id, where))


@_checks.public
def ctc_loss_with_forward_probs(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    *,
    blank_id: int = 0,
    log_epsilon: ArrayLike = -1e5,
    where: ArrayLike | None = None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    r"""`ctc_loss` and the log-probabilities of all beginnings of the labels at every frame.

    .. math:: \alpha_{blank}(t, n) = p(\pi_{1:t} \text{ spells } y_{1:n},\ \pi_t = blank), \qquad
        \alpha_{label}(t, n) = p(\pi_{1:t} \text{ spells } y_{1:n},\ \pi_t = y_n)

    As in optax, the last row of the first is :math:`\alpha_{blank} + \alpha_{label}`.
    **Paddings are 1 where there is nothing, the opposite of a mask.**

    Args:
        logits: Unnormalised log-probabilities in nats, `[B, T, K]`, as in `ctc_loss`.
        logit_paddings: 1 where a frame is padding, `[B, T]`; it repeats the results before it.
        labels: Indices of classes other than the blank, integers `[B, N]`.
        label_paddings: 1 where a label is padding, `[B, N]`; n counts the other labels.
        blank_id: The class of the blank, an integer in `[0, K)`.
        log_epsilon: Has no effect; see `ctc_loss`.
        where: Mask of the sequences, `[B]`; all results of a masked one are 0.

    Returns:
        Losses `[B]`, and logarithms of :math:`\alpha_{blank}`, `[T, B, N + 1]`, n from 0, and
        :math:`\alpha_{label}`, `[T, B, N]`, n from 1, in nats, float32 or float64.

    Raises:
        ArgumentError: If dtypes, shapes or options are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> args = (jnp.zeros((1, 2, 2)), jnp.zeros((1, 2)), jnp.array([[1]]), jnp.zeros((1, 1)))
        >>> _, blank, label = jaxent.ctc_loss_with_forward_probs(*args)
        >>> print(jnp.exp(blank[:, 0]), jnp.exp(label[:, 0]))
        [[0.5  0.  ]
         [0.25 0.75]] [[0.5]
         [0.5]]

    References:
        Graves et al., `CTC <https://doi.org/10.1145/1143844.1143891>`_, 2006, equations 5 to 8.
    """
    del log_epsilon
    return _ctc_with_forward(
        _check(logits, logit_paddings, labels, label_paddings, blank_id, where)
    )


class _Sequences(NamedTuple):
    """Checked arguments."""

    logits: jax.Array  # [B, T, K]
    logit_paddings: jax.Array  # [B, T]
    labels: jax.Array  # [B, N]
    label_paddings: jax.Array  # [B, N]
    blank: jax.Array  # [], the class of the blank
    where: jax.Array | None  # [B], or None for all sequences


def _check(
    logits: ArrayLike,
    logit_paddings: ArrayLike,
    labels: ArrayLike,
    label_paddings: ArrayLike,
    blank_id: int,
    where: ArrayLike | None,
) -> _Sequences:
    """The arguments as arrays, refused where they do not fit."""
    logits = _checks.as_floating("logits", logits)
    labels = _checks.as_integer("labels", labels, "pass indices of classes.")
    remedy = "for one sequence add an axis with `[None]`, for more of them use `jax.vmap`."
    for argument, array, axes in (("logits", logits, "[B, T, K]"), ("labels", labels, "[B, N]")):
        _checks.require(
            array.ndim == axes.count(",") + 1,
            f"`{argument}` must be of shape {axes}, got {_checks.describe(array)}; {remedy}",
        )
    _checks.normalize_axes("logits", logits, -1)
    _checks.require(
        labels.shape[0] == logits.shape[0],
        f"`labels` {_checks.describe(labels)} must have the batch size of `logits` "
        f"{_checks.describe(logits)}; pass one row of labels per sequence, padded to one length.",
    )
    logit_paddings = _check_paddings("logit_paddings", logit_paddings, "logits", logits)
    label_paddings = _check_paddings("label_paddings", label_paddings, "labels", labels)
    classes = logits.shape[-1]
    _checks.require(
        isinstance(blank_id, numbers.Integral) and 0 <= int(blank_id) < classes,
        f"`blank_id` must be an integer in [0, {classes}), a class of `logits` "
        f"{_checks.describe(logits)}, got {blank_id!r}.",
    )
    if where is not None:
        where = _checks.as_boolean("where", where)
        _checks.require(
            where.shape in ((), logits.shape[:1]),
            f"`where` {_checks.describe(where)} must have one entry for each sequence of `logits` "
            f"{_checks.describe(logits)}; frames are masked by `logit_paddings`.",
        )
        where = jnp.broadcast_to(where, logits.shape[:1])
    blank = jnp.asarray(int(blank_id), _masks.widen_labels(labels).dtype)
    return _Sequences(logits, logit_paddings, labels, label_paddings, blank, where)


def _check_paddings(name: str, value: ArrayLike, of: str, array: jax.Array) -> jax.Array:
    """Paddings as an array, refused unless there is one for each frame or label of `array`."""
    paddings = _checks.as_real(name, value)
    _checks.require(
        paddings.shape == array.shape[:2],
        f"`{name}` {_checks.describe(paddings)} must have the shape {array.shape[:2]} of "
        f"`{of}` {_checks.describe(array)}; pass 1 where they are padded, 0 elsewhere.",
    )
    return paddings


class _KernelArguments(NamedTuple):
    """What the kernel takes, and which of its results are valid."""

    logits: jax.Array  # [B, T, K], 0 at masked frames
    frame_mask: jax.Array  # [B, T]
    symbols: jax.Array  # [B, N+1], the blank, then the labels without padding, then 0
    symbol_mask: jax.Array  # [B, N+1]
    valid: jax.Array  # [B], whether labels and paddings are in range, or the sequence is masked


@functools.partial(jax.jit, inline=True)
def _ctc(given: _Sequences) -> jax.Array:
    *arguments, valid = _kernel_arguments(given)
    losses = intervals.nan_where_invalid(ctc.ctc(*arguments), valid)
    return _masks.zero_where_masked(losses, given.where)


# Not inlined: the loop in its transpose would be compiled anew at every gradient without `jax.jit`.
@jax.jit
def _ctc_with_forward(given: _Sequences) -> tuple[jax.Array, jax.Array, jax.Array]:
    *arguments, valid = _kernel_arguments(given)
    losses, blank, label = ctc.ctc_with_forward(*arguments)
    state_valid = valid[None, :, None]
    state_mask = None if given.where is None else given.where[None, :, None]
    return (
        _masks.zero_where_masked(intervals.nan_where_invalid(losses, valid), given.where),
        _masks.zero_where_masked(intervals.nan_where_invalid(blank, state_valid), state_mask),
        _masks.zero_where_masked(intervals.nan_where_invalid(label, state_valid), state_mask),
    )


def _kernel_arguments(given: _Sequences) -> _KernelArguments:
    """The labels without padding in front, and nothing left of masked frames."""
    frame_mask, frames_valid = _mask_of_paddings(given.logit_paddings)
    label_mask, labels_valid = _mask_of_paddings(given.label_paddings)
    valid = frames_valid & labels_valid
    order = jnp.argsort(~label_mask, axis=1, stable=True)
    labels = jnp.take_along_axis(_masks.widen_labels(given.labels), order, axis=1)
    label_mask = jnp.take_along_axis(label_mask, order, axis=1)
    logits = given.logits.astype(dtypes.compute_dtype(given.logits))
    in_range = (labels >= 0) & (labels < logits.shape[-1]) & (labels != given.blank)
    valid &= jnp.all(in_range | ~label_mask, axis=1)
    if given.where is not None:
        valid |= ~given.where
        frame_mask &= given.where[:, None]
    symbols = jnp.where(in_range & label_mask, labels, 0)
    blank = jnp.broadcast_to(given.blank, (labels.shape[0], 1))
    return _KernelArguments(
        jnp.where(frame_mask[..., None], logits, 0.0),
        frame_mask,
        jnp.concatenate([blank, symbols], axis=1),
        jnp.pad(label_mask, ((0, 0), (1, 0)), constant_values=True),
        valid,
    )


def _mask_of_paddings(paddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where the paddings are 0, and whether each row holds nothing but 0 and 1."""
    mask = paddings == jnp.zeros((), paddings.dtype)
    return mask, jnp.all(mask | (paddings == jnp.ones((), paddings.dtype)), axis=1)
