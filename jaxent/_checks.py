"""Checks of arguments, and the error they raise.

Every public function turns its arguments into arrays here and has them checked when it is traced. A
refusal names the function, the argument, what came and the remedy. Nothing here computes.

Where JAX would fail a moment later, in words that do not help, chex asserts and `refusal` says it.
What would be silently wrong is refused by `require`, also after `chex.disable_asserts()`.
"""

import contextlib
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Generator, Hashable, Mapping
from typing import Any, ParamSpec, TypeVar, cast

import chex  # pyright: ignore[reportMissingTypeStubs]
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.typing import ArrayLike

Axis = int | tuple[int, ...] | None
Shaped = jax.Array | jax.ShapeDtypeStruct
_P = ParamSpec("_P")
_R = TypeVar("_R")


class ArgumentError(ValueError, AssertionError):
    """An argument that a function of jaxent refuses; the message says which, and the remedy.

    It is a `ValueError`, as optax raises, and an `AssertionError`, as chex raises.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxent
        >>> try:
        ...     jaxent.softmax_cross_entropy_with_integer_labels(jnp.zeros((2, 3)), jnp.zeros(2))
        ... except jaxent.ArgumentError as error:
        ...     print(str(error)[:87])
        jaxent.softmax_cross_entropy_with_integer_labels: `labels` must be integers, got float3
    """


class SignatureError(ArgumentError, TypeError):
    """An `ArgumentError` for a call that does not fit the signature: also a `TypeError`."""


class UnnamedArgumentError(ArgumentError):
    """An `ArgumentError` without the name of the public function, which `public` adds."""


def public(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a public function: refusals inside it begin with its name."""
    # A function made inside a public one has no public name of its own.
    name = function.__qualname__.partition(".")[0]

    @functools.wraps(function)
    def named(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except UnnamedArgumentError as refusal:  # its cause may be an error of JAX
            message = f"jaxent.{name}: {refusal}"
            raise ArgumentError(message) from refusal.__cause__
        except TypeError:
            # Not before: `linear_loss` compares what the wrapper closes over.
            signature = inspect.signature(function)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                message = f"jaxent.{name}: {_describe_misfit(signature, kwargs, str(error))}"
                raise SignatureError(message) from None
            raise

    return named


# What users of other libraries pass, and what does the same here.
_REMEDIES = {
    "reduction": "losses are not reduced; take `jaxent.mean` of them, or `jnp.sum`.",
    "ignore_index": "mask those labels, `where=labels != ignore_index`, here and in `jaxent.mean`.",
    "mask": "masks are called `where`: True is what counts.",
    "weight": "pass `weights` to `jaxent.mean`; for weights of the classes, `weight[labels]`.",
    "sample_weight": "pass it to `jaxent.mean` as `weights`.",
    "class_weight": "pass `class_weight[labels]` to `jaxent.mean` as `weights`.",
    "from_logits": "losses of logits and of probabilities have names of their own.",
    "dim": "the class axis is called `axis`.",
}


def _describe_misfit(
    signature: inspect.Signature, keywords: Mapping[str, Any], python_says: str
) -> str:
    """Why a call does not fit a signature, and what would."""
    unknown = [keyword for keyword in keywords if keyword not in signature.parameters]
    if unknown:
        what = f"`{unknown[0]}` is no argument of it"
        if unknown[0] in _REMEDIES:
            return f"{what}; {_REMEDIES[unknown[0]]}"
    else:
        what = python_says
    kinds = signature.parameters.values()
    by_position = ", ".join(f"`{p.name}`" for p in kinds if p.kind is not p.KEYWORD_ONLY)
    by_name = ", ".join(f"`{p.name}`" for p in kinds if p.kind is p.KEYWORD_ONLY)
    return f"{what}; it takes {by_position}{f', and by keyword {by_name}' if by_name else ''}."


def require(condition: bool, message: str) -> None:
    """Refuses unless `condition` holds, also after `chex.disable_asserts()`."""
    if not condition:
        raise UnnamedArgumentError(message)


@contextlib.contextmanager
def refusal(message: str) -> Generator[None, None, None]:
    """Refuses with `message` where an assertion of chex fails, which knows no argument's name."""
    try:
        yield
    except AssertionError:
        raise UnnamedArgumentError(message) from None


def check_shape(array: jax.Array, expected: tuple[Any, ...], message: str) -> None:
    """Refuses another shape; None stands for any size there, and `...` for any number of axes."""
    with refusal(message):
        chex.assert_shape(array, expected)


def describe(array: Shaped) -> str:
    """The dtype and shape of an array the way errors print them: `float32[8,10]`."""
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def as_array(name: str, value: ArrayLike) -> jax.Array:
    """`value` as an array, refused if it cannot be one; an array is returned as it is.

    Even the identity is an operation to `jax_debug_nans`, which would stop at a masked NaN.
    """
    if isinstance(value, jax.Array):
        return value
    _check_array_like(name, value)
    try:
        # The types of JAX leave one of its other arguments open.
        return jnp.asarray(value)  # pyright: ignore[reportUnknownMemberType]
    except (TypeError, ValueError) as error:
        raise UnnamedArgumentError(
            f"`{name}` must be an array, got {_kind(value)}; pass numbers in equal rows."
        ) from error


def _check_array_like(name: str, value: Any) -> None:
    """Refuses what JAX would refuse in words that name no argument."""
    remedy = "pass an array."
    if isinstance(value, Mapping):
        keys = ", ".join(repr(key) for key in list(cast("Mapping[Any, Any]", value))[:3])
        remedy = f"pass one of its leaves; its keys are {keys}."
    elif callable(value) and not hasattr(value, "__array__"):
        remedy = "pass an array; a function comes first in `jaxent.linear_loss` alone."
    elif value is not None and not isinstance(value, str):
        return
    raise UnnamedArgumentError(f"`{name}` must be an array, got {_kind(value)}; {remedy}")


def _kind(value: Any) -> str:
    """What a value is, in few words: a large array or a traced one is not printed."""
    if isinstance(value, Tracer):
        return f"a traced {describe(cast('jax.Array', value))}"
    if isinstance(value, jax.Array):
        return f"an array {describe(value)}"
    if value is None or isinstance(value, str | numbers.Number):
        return repr(value)
    return f"a {type(value).__name__}"


def as_floating(name: str, value: ArrayLike) -> jax.Array:
    """`value` as an array of floating point; of 8 bits it is refused: gradients would underflow."""
    array = as_array(name, value)
    require(
        jnp.issubdtype(array.dtype, jnp.floating) and array.dtype.itemsize > 1,
        f"`{name}` must be floating point, of 16 bits or more, got {describe(array)}; "
        f"convert it with `{name}.astype(jnp.float32)`.",
    )
    return array


def as_real(name: str, value: ArrayLike) -> jax.Array:
    """`value` as an array, refused if it is complex; integers and booleans pass."""
    array = as_array(name, value)
    require(
        not jnp.issubdtype(array.dtype, jnp.complexfloating),
        f"`{name}` must be real, got {describe(array)}; pass `{name}.real`.",
    )
    return array


def as_integer(name: str, value: ArrayLike, remedy: str) -> jax.Array:
    """`value` as an array, refused unless its dtype is an integer one.

    An integer that JAX's integers cannot hold becomes -1, an index out of range: it must not wrap.
    """
    if not isinstance(value, jax.Array):
        _check_array_like(name, value)
        given = np.asarray(value)
        if given.dtype.kind in "iu" and given.dtype != jax.dtypes.canonicalize_dtype(given.dtype):
            fits = (given >= 0) & (given <= np.iinfo(np.int32).max)
            value = np.where(fits, given.astype(np.int64), -1).astype(np.int32)
    array = as_array(name, value)
    require(
        jnp.issubdtype(array.dtype, jnp.integer),
        f"`{name}` must be integers, got {describe(array)}; {remedy}",
    )
    return array


def as_boolean(name: str, value: ArrayLike) -> jax.Array:
    """`value` as an array, refused unless it holds booleans."""
    array = as_array(name, value)
    require(
        array.dtype == jnp.bool_,
        f"`{name}` must be boolean, got {describe(array)}; "
        f"pass `{name} != 0`, or `weights` to `jaxent.mean` if it holds weights.",
    )
    return array


def check_broadcastable(**arrays: Shaped) -> tuple[int, ...]:
    """The common shape of arrays of one rank (or scalars); any other mixture is refused."""
    ranks = {array.ndim for array in arrays.values() if array.ndim}
    given = ", ".join(
        f"{name if '`' in name else f'`{name}`'} {describe(array)}"
        for name, array in arrays.items()
    )
    require(
        len(ranks) <= 1,
        f"arguments must have one rank or be scalars, got {given}; "
        "drop a last axis of size 1 with `[..., 0]`, or add the missing ones with `[:, None]` or "
        "`[None, :]`.",
    )
    full = [array.shape for array in arrays.values() if array.ndim]
    sizes_of_axes = zip(*full, strict=True)
    shape = tuple(next((size for size in sizes if size != 1), 1) for sizes in sizes_of_axes)
    with refusal(f"shapes do not match, got {given}; axes must be equal or of size 1."):
        for each in full:
            chex.assert_is_broadcastable(each, shape)
    return shape


def check_targets(name: str, array: jax.Array, target: str, targets: jax.Array) -> None:
    """Refuses class indices where a loss needs one target per class."""
    require(
        targets.ndim in (0, array.ndim) or not jnp.issubdtype(targets.dtype, jnp.integer),
        f"`{target}` {describe(targets)} must hold one number per class of `{name}` "
        f"{describe(array)}; for class indices use "
        "`jaxent.softmax_cross_entropy_with_integer_labels` or `jax.nn.one_hot`.",
    )


def check_labels_shape(labels: jax.Array, shape: tuple[int, ...], name: str, array: Shaped) -> None:
    """Refuses labels that are not one for each of the examples, `shape`, of the argument `name`.

    Labels never broadcast: one of size 1 would train all positions on the first token.
    """
    if labels.shape == shape:
        return
    if labels.shape == (*shape, 1):
        remedy = "drop the last axis with `labels[..., 0]`."
    elif labels.shape == array.shape or labels.shape[:-1] == shape:
        remedy = "make one-hot targets class indices with `jnp.argmax(labels, axis)`."
    else:
        remedy = "labels do not broadcast: pass one for each example; the class axis is `axis`."
    raise UnnamedArgumentError(
        f"`labels` {describe(labels)} must have the shape {shape} of the examples of `{name}` "
        f"{describe(array)}; {remedy}"
    )


def normalize_axes(name: str, array: jax.Array, axis: Axis) -> tuple[int, ...]:
    """`axis` as a tuple of non-negative axes of `array`, refused where it names none of them."""
    given = range(array.ndim) if axis is None else axis if isinstance(axis, tuple) else (axis,)
    require(
        all(isinstance(a, numbers.Integral) and -array.ndim <= a < array.ndim for a in given),
        f"`axis` {axis} is not an axis of `{name}` {describe(array)}; "
        f"use integers from {-array.ndim} to {array.ndim - 1}.",
    )
    axes = tuple(int(a) % array.ndim for a in given)
    require(
        len(set(axes)) == len(axes) > 0,
        f"`axis` {axis} must name at least one axis of `{name}` {describe(array)}, each once.",
    )
    require(
        all(array.shape[a] > 0 for a in axes),
        f"`{name}` {describe(array)} has no classes along axis {axis}; pass at least one.",
    )
    return axes


def check_mesh_axis(axis_name: Hashable | tuple[Hashable, ...]) -> None:
    """Refuses the name of a mesh axis that is not in scope; None passes."""
    if axis_name is None:
        return
    require(
        not isinstance(axis_name, list),
        f"`axis_name` {axis_name!r} is a list; pass one name, or a tuple of them.",
    )
    is_tuple = isinstance(axis_name, tuple)
    names = cast("tuple[Hashable, ...]", axis_name) if is_tuple else (axis_name,)
    require(
        len(set(names)) == len(names),
        f"`axis_name` {axis_name!r} names an axis twice; the classes can be split over it once.",
    )
    try:
        jax.lax.axis_size(names)
        is_bound = True
    except (NameError, TypeError, ValueError):
        is_bound = False
    require(
        is_bound,
        f"`axis_name` {axis_name!r} names no mesh axis here; call it inside `jax.shard_map` over a "
        "mesh with that axis, or leave it out where logits are whole: under `jax.jit` sharded "
        "arrays need no name.",
    )


def check_same_classes(axes: tuple[int, ...], **arrays: jax.Array) -> None:
    """Refuses arrays whose class axes differ in size from those of the first; scalars pass."""
    (name, first), *others = arrays.items()
    for other, array in others:
        require(
            not array.ndim or all(array.shape[a] == first.shape[a] for a in axes),
            f"`{other}` {describe(array)} must hold one entry per class of `{name}` "
            f"{describe(first)} along axis {axes}"
            + ("; for class indices use a loss with integer labels." if other == "labels" else "."),
        )


def check_closed_interval(name: str, value: ArrayLike, low: float, high: float) -> None:
    """Refuses a Python number outside [low, high]; arrays pass."""
    require(
        not isinstance(value, numbers.Real) or low <= float(value) <= high,
        f"`{name}` must lie in [{low:g}, {high:g}], got {value}.",
    )


def as_scalar(name: str, value: ArrayLike) -> jax.Array:
    """`value` as an array of rank 0, refused otherwise."""
    array = as_real(name, value)
    require(
        array.ndim == 0,
        f"`{name}` must be a scalar, got {describe(array)}; "
        "for one value per example use `jax.vmap`.",
    )
    return array


def number_or_scalar(
    name: str, value: ArrayLike, low: float, high: float
) -> tuple[float | None, jax.Array | None]:
    """A Python number in [low, high], or a scalar array, which may be out of range.

    The other one is None. A number becomes a constant of the program.
    """
    check_closed_interval(name, value, low, high)
    check_finite(name, value)
    if isinstance(value, numbers.Real):
        return float(value), None
    return None, as_scalar(name, value)


def as_scalar_unless(name: str, value: ArrayLike, neutral: float) -> jax.Array | None:
    """`value` as an array of rank 0, or None for the number `neutral`, which changes nothing."""
    if isinstance(value, numbers.Real) and value == neutral:
        return None
    return as_scalar(name, value)


def _if_traced(value: Any) -> str:
    """The remedy for a traced value where a Python value is needed."""
    if isinstance(value, Tracer):
        return " It is a constant of the program: name it in `static_argnames` of `jax.jit`."
    return ""


def check_one_of(name: str, value: Any, choices: tuple[Any, ...]) -> None:
    """Refuses a value that is not among `choices`."""
    require(
        not isinstance(value, jax.Array | np.ndarray) and value in choices,
        f"`{name}` must be one of {', '.join(map(repr, choices))}, got {_kind(value)}."
        + _if_traced(value),
    )


def broadcast_per_row(
    name: str, array: jax.Array, shape: tuple[int, ...], of: str = "hidden"
) -> jax.Array:
    """`array` with the leading `shape` of the argument `of`; refused if it has another rank."""
    require(
        array.shape in ((), shape),
        f"`{name}` {describe(array)} must have the leading shape {shape} of `{of}`.",
    )
    return jnp.broadcast_to(array, shape)


def check_positive_integer(name: str, value: Any) -> None:
    """Refuses anything but a positive Python integer."""
    require(
        not isinstance(value, bool) and isinstance(value, numbers.Integral) and int(value) > 0,
        f"`{name}` must be a positive integer, got {_kind(value)}." + _if_traced(value),
    )


def check_non_negative_integer(name: str, value: Any) -> None:
    """Refuses anything but a Python integer that is at least 0."""
    require(
        not isinstance(value, bool) and isinstance(value, numbers.Integral) and int(value) >= 0,
        f"`{name}` must be an integer that is not negative, got {_kind(value)}."
        + _if_traced(value),
    )


def check_finite(name: str, value: ArrayLike) -> None:
    """Refuses a Python number that is infinite or NaN; arrays pass."""
    require(
        not isinstance(value, numbers.Real) or math.isfinite(float(value)),
        f"`{name}` must be finite, got {value}.",
    )


def check_open_interval(name: str, value: ArrayLike, low: float, high: float) -> None:
    """Refuses a Python number outside (low, high); arrays pass."""
    require(
        not isinstance(value, numbers.Real) or low < float(value) < high,
        f"`{name}` must lie strictly between {low:g} and {high:g}, got {value}.",
    )


def check_function(name: str, value: Any, remedy: str) -> None:
    """Refuses what cannot be called."""
    require(callable(value), f"`{name}` must be a function, got {_kind(value)}; {remedy}.")


def as_fraction(name: str, value: float) -> float:
    """`value` as a float, refused unless it is a Python number strictly between 0 and 1."""
    require(
        isinstance(value, numbers.Real) and 0.0 < float(value) < 1.0,
        f"`{name}` must be a number strictly between 0 and 1, got {value!r}; "
        "it is a constant, not an array.",
    )
    return float(value)
