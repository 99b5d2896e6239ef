"""A linear head and the rows that it is applied to: the arguments that all heads share, checked."""

# pyright: strict, reportUnknownMemberType=false

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

from jaxent import _checks
from jaxent._float.dtypes import compute_dtype


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Head:
    """The checked arguments of a head; a tree of arrays, whose last two fields are static."""

    hidden: jax.Array  # [..., D]
    kernel: jax.Array  # [D, V], or [V, D] where vocab_axis is 0
    bias: jax.Array | None  # [V]
    where: jax.Array | None  # [...] booleans, None for all rows
    weights: jax.Array | None  # [...], None for 1
    vocab_axis: int = dataclasses.field(metadata={"static": True})
    given_dtype: jnp.dtype | None = dataclasses.field(default=None, metadata={"static": True})

    @property
    def leading_shape(self) -> tuple[int, ...]:
        """The shape of the rows."""
        return self.hidden.shape[:-1]

    @property
    def vocabulary_size(self) -> int:
        """The number of classes, V."""
        return self.kernel.shape[self.vocab_axis]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of logits, losses and sums."""
        return compute_dtype(self.hidden, self.kernel)

    @property
    def operand_dtype(self) -> jnp.dtype:
        """The dtype of the operands of matrix products: of hidden and kernel if they share one."""
        if self.given_dtype is not None:
            return self.given_dtype
        return self.kernel.dtype if self.hidden.dtype == self.kernel.dtype else self.dtype


def check_head(
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    vocab_axis: int,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    chunk_size: int | None,
    dtype: DTypeLike | None,
    owner: str = "",
) -> Head:
    """The arguments that all heads share as arrays, refused unless they fit each other.

    Their names in errors begin with `owner`, for functions of several heads.
    """
    hidden = _checks.as_floating(f"{owner}hidden", hidden)
    kernel = _checks.as_floating(f"{owner}kernel", kernel)
    _checks.check_one_of("reduction", reduction, ("mean", "sum", "none"))
    _checks.check_one_of("vocab_axis", vocab_axis, (-1, 0, 1))
    check_size("chunk_size", chunk_size)
    given_hidden = f"`{owner}hidden` {_checks.describe(hidden)}"
    given_kernel = f"`{owner}kernel` {_checks.describe(kernel)}"
    ranks = f"{given_hidden} must be [..., D] and {given_kernel} a matrix."
    _checks.check_shape(hidden, (..., None), ranks)
    _checks.check_shape(kernel, (None, None), ranks)
    vocab_axis %= 2
    features, classes = kernel.shape[1 - vocab_axis], kernel.shape[vocab_axis]
    _checks.check_shape(
        hidden,
        (..., features),
        f"{given_hidden} and {given_kernel} do not fit: "
        f"{hidden.shape[-1]} features against {features}; for a kernel [V, D] pass `vocab_axis=0`.",
    )
    _checks.require(classes > 0, f"{given_kernel} has no classes; pass at least one.")
    if bias is not None:
        bias = _checks.as_floating(f"{owner}bias", bias)
        _checks.require(
            bias.shape == (classes,),
            f"`{owner}bias` {_checks.describe(bias)} must be [{classes}], one number per class of "
            f"{given_kernel}.",
        )
    shape = hidden.shape[:-1]
    if where is not None:
        where = _checks.broadcast_per_row("where", _checks.as_boolean("where", where), shape)
    if weights is not None:
        weights = _checks.broadcast_per_row("weights", _checks.as_real("weights", weights), shape)
    return Head(hidden, kernel, bias, where, weights, vocab_axis, as_dtype(dtype, hidden, kernel))


def as_dtype(dtype: DTypeLike | None, *arrays: jax.Array) -> jnp.dtype | None:
    """`dtype` of the products of these arrays, refused if it is none that they can be taken in."""
    if dtype is None:
        return None
    try:
        known = jnp.dtype(dtype)
    except TypeError:
        known = None
    widest = compute_dtype(*arrays)
    _checks.require(
        known is not None
        and jnp.issubdtype(known, jnp.floating)
        and 2 <= known.itemsize <= widest.itemsize,
        f"`dtype` must be floating point of 16 bits to {widest}, the dtype of the logits, got "
        f"{dtype}; pass `jnp.bfloat16`, say, or None for that of the arrays.",
    )
    return known


def check_size(argument: str, size: int | None) -> None:
    """Refuses a number of rows or classes unless it is None or a positive integer."""
    if size is not None:
        _checks.check_positive_integer(argument, size)


def check_row_argument(argument: str, value: ArrayLike, head: Head) -> jax.Array:
    """`value` as an array, refused unless its shape begins with the leading shape of `hidden`."""
    array = _checks.as_array(argument, value)
    _checks.require(
        array.shape[: len(head.leading_shape)] == head.leading_shape,
        f"`{argument}` {_checks.describe(array)} must begin with the leading shape "
        f"{head.leading_shape} of `hidden` {_checks.describe(head.hidden)}.",
    )
    return array


def check_labels(labels: ArrayLike, head: Head) -> jax.Array:
    """`labels` as an array, refused unless they are integers, one per row of `hidden`."""
    labels = _checks.as_integer("labels", labels, "pass the index of each row's true class.")
    _checks.check_labels_shape(labels, head.leading_shape, "hidden", head.hidden)
    return labels


def check_class_where(class_where: ArrayLike | None, head: Head) -> jax.Array | None:
    """`class_where` as an array, refused unless it holds one boolean per class."""
    if class_where is None:
        return None
    class_where = _checks.as_boolean("class_where", class_where)
    _checks.require(
        class_where.shape == (head.vocabulary_size,),
        f"`class_where` {_checks.describe(class_where)} must be [{head.vocabulary_size}], one "
        f"boolean per class of `kernel` {_checks.describe(head.kernel)}.",
    )
    return class_where


def check_transform(
    soft_cap: ArrayLike | None, temperature: ArrayLike
) -> tuple[jax.Array | None, jax.Array | None]:
    """Soft cap and temperature of a head as scalar arrays, None for what changes nothing."""
    _checks.check_open_interval("temperature", temperature, 0.0, math.inf)
    if soft_cap is not None:
        _checks.check_open_interval("soft_cap", soft_cap, 0.0, math.inf)
        soft_cap = _checks.as_scalar("soft_cap", soft_cap)
    return soft_cap, _checks.as_scalar_unless("temperature", temperature, 1.0)
