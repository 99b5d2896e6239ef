"""A linear head and the rows it is applied to: the arguments that all sweeps share, checked."""

from typing import NamedTuple

import jax
from jax.typing import ArrayLike

from jaxent import _checks


class Head(NamedTuple):
    """Checked arguments of a head, with the leading axes as given."""

    hidden: jax.Array
    kernel: jax.Array
    bias: jax.Array | None
    where: jax.Array | None
    weights: jax.Array | None
    vocab_axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The leading shape of the rows."""
        return self.hidden.shape[:-1]

    @property
    def vocabulary(self) -> int:
        """The number of classes."""
        return self.kernel.shape[self.vocab_axis]


def check_head(
    name: str,
    hidden: ArrayLike,
    kernel: ArrayLike,
    bias: ArrayLike | None,
    vocab_axis: int,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    reduction: str,
    chunk_size: int | None,
) -> Head:
    """The arguments that all heads share as arrays, refused unless they fit each other."""
    hidden = _checks.floating(name, "hidden", hidden)
    kernel = _checks.floating(name, "kernel", kernel)
    _checks.one_of(name, "reduction", reduction, ("mean", "sum", "none"))
    _checks.one_of(name, "vocab_axis", vocab_axis, (-1, 0, 1))
    if chunk_size is not None:
        _checks.positive(name, "chunk_size", chunk_size)
    _checks.require(
        hidden.ndim >= 1 and kernel.ndim == 2,
        name,
        f"`hidden` {_checks.describe(hidden)} must be [..., D] and `kernel` "
        f"{_checks.describe(kernel)} a matrix.",
    )
    vocab_axis %= 2
    features, classes = kernel.shape[1 - vocab_axis], kernel.shape[vocab_axis]
    _checks.require(
        hidden.shape[-1] == features,
        name,
        f"`hidden` {_checks.describe(hidden)} and `kernel` {_checks.describe(kernel)} do not fit: "
        f"{hidden.shape[-1]} features against {features}; for a kernel [V, D] pass `vocab_axis=0`.",
    )
    _checks.require(
        classes > 0,
        name,
        f"`kernel` {_checks.describe(kernel)} has no classes; pass at least one.",
    )
    if bias is not None:
        bias = _checks.floating(name, "bias", bias)
        _checks.require(
            bias.shape == (classes,),
            name,
            f"`bias` {_checks.describe(bias)} must be [{classes}], one number per class of "
            f"`kernel` {_checks.describe(kernel)}.",
        )
    shape = hidden.shape[:-1]
    if where is not None:
        where = _checks.per_row(name, "where", _checks.boolean(name, "where", where), shape)
    if weights is not None:
        weights = _checks.per_row(name, "weights", _checks.real(name, "weights", weights), shape)
    return Head(hidden, kernel, bias, where, weights, vocab_axis)


def check_row_argument(name: str, argument: str, value: ArrayLike, head: Head) -> jax.Array:
    """`value` as an array, refused unless its shape begins with the leading shape of `hidden`."""
    array = _checks.as_array(value)
    _checks.require(
        array.shape[: len(head.shape)] == head.shape,
        name,
        f"`{argument}` {_checks.describe(array)} must begin with the leading shape {head.shape} "
        f"of `hidden` {_checks.describe(head.hidden)}.",
    )
    return array
