"""Work-arounds of JAX and XLA versions, each with the oldest version that does without it.

The oldest supported version is 0.8. Nothing else in the package asks for a version. Two formulas
owe their form to one, and say so where they stand: `_float.sums.safe_reciprocal` (up to JAX 0.10),
and `_kernels.cross_entropy.drop_label_bound` with its barrier (XLA for CPUs in JAX 0.12).
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def varying_axes_of(array: jax.Array | jax.ShapeDtypeStruct) -> frozenset[Hashable]:
    """The mesh axes that JAX knows an array to vary over.

    Up to 0.11 a type has them as `vma`, from 0.12 on as `manual_axis_type`.
    """
    # The type of a description cannot be made where axes of its mesh differ in kind.
    kind: Any = array if isinstance(array, jax.ShapeDtypeStruct) else jax.typeof(array)
    manual = getattr(kind, "manual_axis_type", None)
    axes = getattr(kind, "vma", None) if manual is None else manual.varying
    return axes or frozenset()


def pvary(array: jax.Array, axes: tuple[Hashable, ...]) -> jax.Array:
    """The same array, known to vary over these mesh axes, over which it did not.

    JAX 0.8.0 has `pvary` for it. From 0.8.1 on `pcast` will do.
    """
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(array, axes, to="varying")
    return jax.lax.pvary(array, axes)  # pyright: ignore[reportAttributeAccessIssue]


def drops_rules_in_scans() -> bool:
    """Whether JAX drops the derivative rules of kernels where a scan is part of another rule.

    So it does in a head's second derivatives; then a kernel's formula must be right as it stands.
    From 0.11 on it keeps them.
    """
    return jax.__version_info__ < (0, 11)


def log1p(x: jax.Array) -> jax.Array:
    """log(1 + x), to the last bits in float64 as well.

    XLA's own loses 7 bits near -0.4 in float64 on CPUs: https://github.com/jax-ml/jax/issues/39707.
    With 0.12 `jnp.log1p` will do.
    """
    if x.dtype != jnp.float64:
        return jnp.log1p(x)
    is_far = x < -0.25
    return jnp.where(is_far, jnp.log(1.0 + x), jnp.log1p(jnp.where(is_far, 0.0, x)))


def updates_in_loops_are_slow(dtype: jnp.dtype) -> bool:
    """Whether writing a part of a 16-bit array inside a loop converts all of it to float32.

    XLA for CPUs does: 14 s instead of 0.4 s for one gradient of 128 MiB. Arrays of integers are not
    converted. With 0.12 no array is.
    """
    is_half = dtype.itemsize == 2
    return is_half and jax.__version_info__ < (0, 12) and jax.default_backend() == "cpu"


def as_tangents(
    function: Callable[..., list[jax.Array]], arrays: Sequence[jax.Array]
) -> list[jax.Array]:
    """`function(*arrays)` of a linear function, computed as its tangent.

    JAX 0.8 and 0.9 transpose a loop in a tangent, but not always one in a function that is linear
    as it stands: the gradient of a mapped head fails. With 0.10 `function(*arrays)` will do.
    """
    origin = [jnp.zeros_like(array) for array in arrays]
    return jax.jvp(function, origin, list(arrays))[1]
