"""Losses of sequences that are not aligned with their labels."""

import functools
import numbers
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxent import _checks, _masks
from jaxent._float import dtypes
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

    .. math::
        \ell = -\log \sum_{\pi \in \mathcal{A}(y)} \prod_t
        \operatorname{softmax}(x_t)_{\pi_t}

    :math:`\mathcal{A}(y)` are the alignments of the labels: sequences of one class per frame that
    spell the labels once repeats are merged and blanks are taken out. The sum is one of ordinary
    multiplications and additions, with an exponent beside each number. Of a sequence with a
    probability above 1/2 the loss is computed from what is missing to 1, so that it keeps its
    relative accuracy as it vanishes, and is never negative; a batch in which there is such a
    sequence takes about three times as long.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[B, T, K]`: sequences, frames,
            classes; floating point; 16-bit dtypes are computed in float32. `-inf` is an impossible
            class. For one sequence add an axis, for more leading axes use `jax.vmap`.
        logit_paddings: 1 or True where a frame is padding, 0 or False where it counts, shape
            `[B, T]`, of any dtype; before, behind or between the frames that count. A padded frame
            is as if it were not there, whatever it holds.
        labels: Indices of classes, integers, shape `[B, N]`. One outside `[0, K)`, or the blank,
            makes that sequence NaN unless it is masked or the label is padding.
        label_paddings: 1 or True where a label is padding, shape `[B, N]`, as for the frames. A
            padding other than 0 and 1 makes that sequence NaN unless it is masked.
        blank_id: The class of the blank, an integer in `[0, K)`.
        log_epsilon: Has no effect. Where `optax.losses.ctc_loss` puts this finite number for the
            logarithm of 0, an impossible alignment has probability 0 here.
        where: Booleans of shape `[B]`: True where the sequence counts.

    Returns:
        One loss per sequence in nats, shape `[B]`, float32 (float64 for float64 logits). `+inf`,
        with gradient 0, where no alignment is possible: too few frames, or an impossible class.
        Masked sequences have loss 0 and gradient 0, whatever they hold.

    Raises:
        ArgumentError: If dtypes, shapes or `blank_id` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits = jnp.zeros((2, 3, 4)).at[1, :, 2].set(20.0)  # three frames, four classes
        >>> labels = jnp.array([[1, 2], [2, 0]])
        >>> label_paddings = jnp.array([[0, 0], [0, 1]])  # of the second, one label counts
        >>> print(jaxent.ctc_loss(logits, jnp.zeros((2, 3)), labels, label_paddings))
        [2.54944515e+00 1.44280765e-08]

    References:
        Graves, Fernandez, Gomez, Schmidhuber, `Connectionist temporal classification
        <https://doi.org/10.1145/1143844.1143891>`_, 2006.
    """
    del log_epsilon
    given = _check(logits, logit_paddings, labels, label_paddings, blank_id, where)
    return _losses(given)


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

    .. math::
        \alpha_{blank}(t, n) = p(\pi_{1:t} \text{ spells } y_{1:n},\ \pi_t = blank), \qquad
        \alpha_{label}(t, n) = p(\pi_{1:t} \text{ spells } y_{1:n},\ \pi_t = y_n)

    with :math:`\pi` drawn from :math:`\operatorname{softmax}(x)`, frame by frame. As in optax, the
    last row of the first is :math:`\alpha_{blank} + \alpha_{label}`, whatever the last frame is.

    Args:
        logits: Unnormalised log-probabilities in nats, shape `[B, T, K]`, as in `ctc_loss`.
        logit_paddings: 1 or True where a frame is padding, shape `[B, T]`; a padded frame repeats
            the probabilities before it.
        labels: Indices of classes, integers, shape `[B, N]`.
        label_paddings: 1 or True where a label is padding, shape `[B, N]`; n counts the labels
            that are not.
        blank_id: The class of the blank, an integer in `[0, K)`.
        log_epsilon: Has no effect; see `ctc_loss`.
        where: Booleans of shape `[B]`: True where the sequence counts.

    Returns:
        The losses in nats, shape `[B]`; the logarithms of :math:`\alpha_{blank}` in nats, shape
        `[T, B, N + 1]`, n from 0; and those of :math:`\alpha_{label}` in nats, shape `[T, B, N]`,
        n from 1. All float32 (float64 for float64 logits) and differentiable; `-inf`, with gradient
        0, is what cannot be, beginnings longer than the labels included. Masked sequences are 0.

    Raises:
        ArgumentError: If dtypes, shapes or `blank_id` are refused.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> logits, labels = jnp.zeros((1, 2, 2)), jnp.array([[1]])
        >>> paddings = jnp.zeros((1, 2)), jnp.zeros((1, 1))
        >>> _, blank, label = jaxent.ctc_loss_with_forward_probs(
        ...     logits, paddings[0], labels, paddings[1]
        ... )
        >>> print(jnp.exp(blank[:, 0]), jnp.exp(label[:, 0]))
        [[0.5  0.  ]
         [0.25 0.75]] [[0.5]
         [0.5]]

    References:
        Graves, Fernandez, Gomez, Schmidhuber, `Connectionist temporal classification
        <https://doi.org/10.1145/1143844.1143891>`_, 2006, equations 5 to 8.
    """
    del log_epsilon
    given = _check(logits, logit_paddings, labels, label_paddings, blank_id, where)
    return _losses_and_forward_probs(given)


class _Sequences(NamedTuple):
    """Checked arguments."""

    logits: jax.Array  # [B, T, K]
    logit_paddings: jax.Array  # [B, T]
    labels: jax.Array  # [B, N]
    label_paddings: jax.Array  # [B, N]
    blank: jax.Array  # []
    where: jax.Array | None  # [B], or None for all sequences


def _check(logits, logit_paddings, labels, label_paddings, blank_id, where) -> _Sequences:
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
        len(labels) == len(logits),
        f"`labels` {_checks.describe(labels)} must have the batch size of `logits` "
        f"{_checks.describe(logits)}; pass one row of labels per sequence, padded to one length.",
    )
    paddings = []
    for argument, value, of, array in (
        ("logit_paddings", logit_paddings, "logits", logits),
        ("label_paddings", label_paddings, "labels", labels),
    ):
        padding = _checks.as_real(argument, value)
        _checks.require(
            padding.shape == array.shape[:2],
            f"`{argument}` {_checks.describe(padding)} must have the shape {array.shape[:2]} of "
            f"`{of}` {_checks.describe(array)}; pass 1 where they are padded, 0 elsewhere.",
        )
        paddings.append(padding)
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
    return _Sequences(logits, paddings[0], labels, paddings[1], blank, where)


class _Prepared(NamedTuple):
    """What the primitive takes, and what becomes of its results."""

    logits: jax.Array  # [B, T, K], 0 at frames that do not count
    frames: jax.Array  # [B, T]: the frame counts
    symbols: jax.Array  # [B, N+1]: the blank, then the labels that count, then 0
    exists: jax.Array  # [B, N+1]: the symbol counts
    valid: jax.Array  # [B]: the sequence has proper labels and paddings, or does not count


@functools.partial(jax.jit, inline=True)
def _losses(given: _Sequences) -> jax.Array:
    *arguments, valid = _prepared(given)
    return _masks.zero_where_masked(
        _masks.nan_where_invalid(ctc.ctc(*arguments), valid), given.where
    )


@functools.partial(jax.jit, inline=True)
def _losses_and_forward_probs(given: _Sequences) -> tuple[jax.Array, jax.Array, jax.Array]:
    *arguments, valid = _prepared(given)
    losses, blank, label = ctc.ctc_with_forward(*arguments)
    of_state = valid[None, :, None]
    example_mask = None if given.where is None else given.where[None, :, None]
    return (
        _masks.zero_where_masked(_masks.nan_where_invalid(losses, valid), given.where),
        _masks.zero_where_masked(_masks.nan_where_invalid(blank, of_state), example_mask),
        _masks.zero_where_masked(_masks.nan_where_invalid(label, of_state), example_mask),
    )


def _prepared(given: _Sequences) -> _Prepared:
    """Labels that count to the front, nothing of frames that do not, and a verdict."""
    frames, are_proper = _counting(given.logit_paddings)
    counting, as_well = _counting(given.label_paddings)
    valid = are_proper & as_well
    order = jnp.argsort(~counting, axis=1, stable=True)
    labels = jnp.take_along_axis(_masks.widen_labels(given.labels), order, axis=1)
    exists = jnp.take_along_axis(counting, order, axis=1)
    logits = given.logits.astype(dtypes.compute_dtype(given.logits))
    good = (labels >= 0) & (labels < logits.shape[-1]) & (labels != given.blank)
    valid &= jnp.all(good | ~exists, axis=1)
    if given.where is not None:
        valid |= ~given.where
        frames &= given.where[:, None]
    symbols = jnp.where(good & exists, labels, 0)
    blank = jnp.broadcast_to(given.blank, (len(labels), 1))
    return _Prepared(
        jnp.where(frames[..., None], logits, 0.0),
        frames,
        jnp.concatenate([blank, symbols], axis=1),
        jnp.pad(exists, ((0, 0), (1, 0)), constant_values=True),
        valid,
    )


def _counting(paddings: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Where there is no padding, and whether each row is nothing but 0 and 1."""
    counting = paddings == jnp.zeros((), paddings.dtype)
    return counting, jnp.all(counting | (paddings == jnp.ones((), paddings.dtype)), axis=1)
