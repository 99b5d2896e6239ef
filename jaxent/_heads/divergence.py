"""Divergences of the distributions of two linear heads, row by row.

Neither head's logits exist as a whole: both go through the sweep of `rows.py`, whose loss of a
chunk of rows sees the logits of both. What is not differentiated, usually all of the teacher,
costs one matrix product for its logits and nothing else.
"""

# pyright: strict, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxent import _checks, _masks, _parallel
from jaxent._float import intervals
from jaxent._heads.checks import Head
from jaxent._heads.cross_entropy import label_losses
from jaxent._heads.logits import transform_logits
from jaxent._heads.rows import sweep_rows
from jaxent._kernels import softmax
from jaxent._kernels.divergence import remaining_probability
from jaxent._kernels.softmax_divergence import softmax_jensen_shannon, softmax_kl_divergence
from jaxent._parallel import AxisName


class Options(NamedTuple):
    """Arrays that are the same for all rows, None for what changes nothing; and the labels."""

    soft_caps: tuple[jax.Array | None, ...]  # [] of each head
    temperature: jax.Array | None  # []
    label_weight: jax.Array | None  # []
    labels: jax.Array | None  # [...]


class Settings(NamedTuple):
    """What is static, and hashable: a compiled program is found again by it."""

    divergence: Callable[..., jax.Array]  # of the logits of each head, and further arrays of rows
    keywords: tuple[tuple[str, Any], ...]  # of the divergence
    times_squared_temperature: bool
    reduction: str
    chunk_size: int | None
    axis_name: AxisName


def sweep_divergence(
    heads: tuple[Head, ...],
    row_args: tuple[jax.Array, ...],
    options: Options,
    settings: Settings,
) -> jax.Array:
    """The reduced losses of checked arguments; `row_args` are for the divergence."""
    squared = settings.times_squared_temperature
    _checks.check_one_of("times_squared_temperature", squared, (False, True))
    settings = settings._replace(times_squared_temperature=bool(squared))
    loss = functools.partial(_reduced_losses, settings=settings)
    ndim = len(heads[0].leading_shape) if settings.reduction == "none" else 0
    example = heads[0].hidden
    return _parallel.with_auto_axes(loss, heads, row_args, options, example=example, ndim=ndim)


@functools.partial(jax.jit, static_argnames="settings", inline=True)
def _reduced_losses(
    heads: tuple[Head, ...],
    row_args: tuple[jax.Array, ...],
    options: Options,
    settings: Settings,
) -> jax.Array:
    labels = () if options.labels is None else (options.labels,)
    axes = _parallel.varying_axes(([head.hidden for head in heads], row_args, labels))
    options = jax.tree.map(functools.partial(_parallel.pvary, axes=axes), options)

    def loss_fn(*chunk: jax.Array) -> jax.Array:
        logits, rows = chunk[: len(heads)], chunk[len(heads) :]
        return _row_losses(logits, rows, options, settings)

    # Fewer rows than for a cross-entropy: an exact divergence takes more memory, and far more time
    # than to go through the kernel's gradient once more.
    classes = sum(head.vocabulary_size for head in heads)
    chunk_size = settings.chunk_size or max(64, 2**22 // classes)
    return sweep_rows(loss_fn, heads, (*row_args, *labels), settings.reduction, chunk_size)


# The losses of a chunk of rows.


def _row_losses(
    logits: tuple[jax.Array, ...],
    rows: tuple[jax.Array, ...],
    options: Options,
    settings: Settings,
) -> jax.Array:
    """Losses [chunk] of logits [chunk, V]; the labels, if there are any, are last in `rows`."""
    caps, temperature = options.soft_caps, options.temperature
    capped = [transform_logits(x, cap, None) for x, cap in zip(logits, caps, strict=True)]
    divided = [transform_logits(x, None, temperature) for x in capped]
    row_args = rows if options.label_weight is None else rows[:-1]
    keywords = dict(settings.keywords)
    losses = settings.divergence(*divided, *row_args, axis_name=settings.axis_name, **keywords)
    if settings.times_squared_temperature and temperature is not None:
        losses = losses * jnp.square(temperature.astype(losses.dtype))
    if options.label_weight is None:
        return losses
    weight = intervals.nan_outside(options.label_weight.astype(losses.dtype), 0.0, 1.0)
    at_labels = label_losses(capped[0], rows[-1], None, settings.axis_name)
    return _masks.scale_loss(1.0 - weight, losses) + _masks.scale_loss(weight, at_labels)


def forward_kl_divergence(
    student: jax.Array, teacher: jax.Array, *, axis_name: AxisName
) -> jax.Array:
    return _masks.constant_where_impossible(softmax_kl_divergence, (student, teacher), axis_name)


def reverse_kl_divergence(
    student: jax.Array, teacher: jax.Array, *, axis_name: AxisName
) -> jax.Array:
    return _masks.constant_where_impossible(softmax_kl_divergence, (teacher, student), axis_name)


def jensen_shannon(
    student: jax.Array, teacher: jax.Array, *, beta: float, axis_name: AxisName
) -> jax.Array:
    logits = teacher, student
    return _masks.constant_where_impossible(softmax_jensen_shannon, logits, axis_name, beta=beta)


def top_k_kl_divergence(
    student: jax.Array,
    log_probs: jax.Array,
    indices: jax.Array,
    *,
    rest: str,
    slack: float,
    axis_name: AxisName,
) -> jax.Array:
    """The divergence over the k listed classes, and one more for all others.

    Args:
        student: logits [chunk, V].
        log_probs: of the listed classes, [chunk, k]; -inf is padding.
        indices: of the listed classes, [chunk, k].
        rest: "bucket" if the teacher expects the others with what remains to 1, "renormalize" if
            it does not expect them.
        slack: the relative error of the log-probabilities.
        axis_name: the mesh axis that the classes are split over.
    """
    log_probs = log_probs.astype(student.dtype)
    is_listed = log_probs != -jnp.inf
    class_count = _parallel.class_count(student.shape[-1], axis_name)
    classes, valid = _listed_classes(indices, is_listed, class_count)
    logits, log_others = _split_logits(student, classes, axis_name)
    if rest == "renormalize":
        log_rest = jnp.full_like(log_others, -jnp.inf)
    else:
        log_rest, is_total = _log_rest(log_probs, is_listed, log_others, slack)
        valid &= is_total
    logits = jnp.concatenate([jnp.where(is_listed, logits, -jnp.inf), log_others[:, None]], axis=-1)
    target = jnp.concatenate([log_probs, log_rest[:, None]], axis=-1)
    losses = _masks.constant_where_impossible(softmax_kl_divergence, (logits, target))
    return intervals.nan_where_invalid(losses, valid)


def _listed_classes(
    indices: jax.Array, is_listed: jax.Array, class_count: int
) -> tuple[jax.Array, jax.Array]:
    """Class of each entry [chunk, k], and whether each listed one exists and is listed once."""
    indices = _masks.widen_labels(indices)
    # Each padding has a number of its own, above those of all classes.
    padding = class_count + jnp.arange(indices.shape[-1], dtype=indices.dtype)[None]
    exists = (indices >= 0) & (indices < class_count)
    classes = jnp.where(is_listed & exists, indices, padding)
    ordered = jnp.sort(classes, axis=-1)
    is_once = jnp.all(ordered[:, 1:] != ordered[:, :-1], axis=-1)
    return classes, jnp.all(exists | ~is_listed, axis=-1) & is_once


def _split_logits(
    student: jax.Array, classes: jax.Array, axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
    """The logits of the listed classes [chunk, k], and the log-normaliser of all others [chunk]."""
    size = student.shape[-1]
    local = _parallel.local_labels(classes, size, axis_name)
    # A negative index would count from the end; `size` is no class of this device.
    local = jnp.where(local < 0, size, local)
    logits = jnp.take_along_axis(student, local, axis=-1, mode="clip")
    logits = _parallel.psum(jnp.where(local < size, logits, 0.0), axis_name)
    others = student.at[jnp.arange(local.shape[0])[:, None], local].set(-jnp.inf, mode="drop")
    return logits, softmax.log_normalizer(others, axis_name)


def _log_rest(
    log_probs: jax.Array, is_listed: jax.Array, log_others: jax.Array, slack: float
) -> tuple[jax.Array, jax.Array]:
    """Log-probability of all classes that are not listed, [chunk], and whether it exists."""
    rest = remaining_probability(log_probs)
    size = jnp.where(is_listed, log_probs, 0.0)
    tolerance = slack * jnp.sum(jnp.exp(log_probs) * (1.0 + jnp.abs(size)), axis=-1)
    is_total = rest >= -tolerance
    # Where there is no other class, a rest that roundings explain is 0.
    is_positive = rest > jnp.where(log_others == -jnp.inf, tolerance, 0.0)
    log_rest = jnp.log(jnp.where(is_positive, rest, 1.0))
    return jnp.where(is_positive, log_rest, -jnp.inf), is_total
