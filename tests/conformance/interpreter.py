"""Programs executed by StableHLO's reference interpreter: no compiling, and another judge of them.

XLA takes a second to compile what the interpreter executes in milliseconds, as long as arrays are
small. What JAX's transformations make of a loss is the same program for both.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.mlir import ir, passmanager
from jax.extend.mlir.dialects import stablehlo

stablehlo.register_stablehlo_passes()
_NOT_INTERPRETED = {
    f"stablehlo.{name}"
    for name in (
        *("batch_norm_grad", "batch_norm_inference", "batch_norm_training", "cholesky"),
        *("custom_call", "fft", "rng", "triangular_solve"),
    )
}


def interpret(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, as arrays of NumPy; compiled if the interpreter lacks something."""
    leaves, structure = jax.tree.flatten(arguments)
    arrays = [np.asarray(leaf) for leaf in leaves]
    arrays = [array.astype(jax.dtypes.canonicalize_dtype(array.dtype)) for array in arrays]
    shapes: list[Any] = []

    def program(*given):
        back = [value.astype(array.dtype) for value, array in zip(given, arrays, strict=True)]
        results = function(*jax.tree.unflatten(structure, back))
        shapes[:] = [jax.tree.map(jax.typeof, results)]
        return [_widened(leaf) for leaf in jax.tree.leaves(results)]

    given = [_widened(array) for array in arrays]
    module: Any = jax.jit(program, keep_unused=True).lower(*given).compiler_ir("stablehlo")
    with module.context, ir.Location.unknown():
        stablehlo.register_interpreter_dialect(module.context)
        passes = "builtin.module(func.func(chlo-legalize-to-stablehlo))"
        passmanager.PassManager.parse(passes).run(module.operation)
        operations = _operations(module)
        if not _are_interpreted(operations, len(given)):
            return jax.jit(function)(*arguments)
        _copy_operands_of_scatter(operations)
        found = stablehlo.eval_module(module, [_attribute(array) for array in given])
        results = [np.array(attribute) for attribute in found]
    types, structure = jax.tree.flatten(shapes[0])
    narrow = [
        result.reshape(each.shape).astype(each.dtype)
        for result, each in zip(results, types, strict=True)
    ]
    return jax.tree.unflatten(structure, narrow)


def _operations(module: Any) -> list[Any]:
    found = []

    def note(operation: Any) -> Any:
        found.append(operation)
        return ir.WalkResult.ADVANCE

    module.operation.walk(note)
    return found


def _are_interpreted(operations: list[Any], arguments: int) -> bool:
    """Whether the interpreter knows all operations; one that it does not know ends the process.

    Arrays that a function closes over may be further arguments of the program: it is compiled then.
    """
    names = {operation.name for operation in operations}
    (main,) = (
        operation
        for operation in operations
        if operation.name == "func.func"
        and ir.StringAttr(operation.attributes["sym_name"]).value == "main"
    )
    knows_all = {name.partition(".")[0] for name in names} <= {"builtin", "func", "stablehlo"}
    takes_all = len(main.regions[0].blocks[0].arguments) == arguments
    return knows_all and takes_all and not names & _NOT_INTERPRETED


def _copy_operands_of_scatter(operations: list[Any]) -> None:
    """The interpreter overwrites what it scatters into, though others may use it."""
    for scatter in operations:
        if scatter.name == "stablehlo.scatter":
            into = scatter.operands[0]
            order = list(range(ir.RankedTensorType(into.type).rank))
            with ir.InsertionPoint(scatter):
                copy = stablehlo.TransposeOp(into, ir.DenseI64ArrayAttr.get(order)).result
            scatter.operands[0] = copy


def _widened(array: Any) -> Any:
    """In a dtype that MLIR's attributes exchange with NumPy; nothing is lost."""
    dtype = np.dtype(array.dtype)
    if dtype.name == "bool":
        return array.astype(np.int32)
    is_half = dtype.itemsize == 2 and jnp.issubdtype(dtype, jnp.floating)
    return array.astype(np.float32) if is_half else array


def _attribute(array: np.ndarray) -> ir.Attribute:
    bits = 8 * array.dtype.itemsize
    make = {
        "f": ir.F64Type.get if bits == 64 else ir.F32Type.get,
        "i": lambda: ir.IntegerType.get_signless(bits),
        "u": lambda: ir.IntegerType.get_unsigned(bits),
    }[array.dtype.kind]
    buffer: Any = np.ascontiguousarray(array)
    return ir.DenseElementsAttr.get(buffer, type=make(), shape=array.shape)
