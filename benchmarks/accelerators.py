"""What a head costs on TPUs and GPUs that are not here, as their own compilers see it.

    pip install -e '.[accelerators]'  # the compiler for TPUs, 0.6 GB
    pip install --no-deps jax-cuda13-plugin jax-cuda13-pjrt  # that for GPUs, of JAX's own version
    python benchmarks/accelerators.py v5e  # or v5p, v6e, h100
    python benchmarks/accelerators.py h100 4096,1024,32003  # other rows, features and classes

(`--no-deps` because the dependencies are CUDA itself, 3 GB that a compiler does not need.) Value
and gradients of the mean cross-entropy in bfloat16. Nothing is run. The MiB are *compiled*: what
the program holds beside its inputs and outputs. The costs are *estimated*: for a TPU millions of
cycles, the sum of what its compiler expects of each operation; for an H100 milliseconds by a
roofline, where each launch takes 3 us and the longer of its arithmetic (800 TFLOP/s, 400 with
operands of 32 bits) and its traffic (3 TB/s). They compare programs for one chip. The last number
is that of launches, rounds of loops multiplied out.
"""

import os

# The compiler for GPUs would otherwise try its kernels out on a device.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

import argparse
import collections
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from side_by_side import temporary_mebibytes

import jaxent
from jaxent.chips import CHIPS, find_chips

SIZES = [(8192, 2048, 128256), (8192, 4096, 128256), (16384, 2304, 256000), (2048, 768, 50257)]


# Programs.


def plain(hidden, kernel, labels):
    logits = (hidden @ kernel).astype(jnp.float32)
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def default(hidden, kernel, labels):
    return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels)


def columns(hidden, kernel, labels):
    return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, sweep="columns")


def compiled(chip, loss, rows, features, classes, arguments=(0, 1)):
    """Value and gradients of the `loss` of a head, compiled for a chip."""
    inputs = (
        jax.ShapeDtypeStruct((rows, features), jnp.bfloat16),
        jax.ShapeDtypeStruct((features, classes), jnp.bfloat16),
        jax.ShapeDtypeStruct((rows,), jnp.int32),
    )
    return compiled_for(chip, jax.value_and_grad(loss, arguments), *inputs)


def compiled_for(chip, function, *inputs):
    """A function of arrays that are described, compiled for a chip."""
    place = NamedSharding(Mesh(np.array(find_chips(chip, 1)[:1]), ("chip",)), PartitionSpec())
    inputs = [jax.ShapeDtypeStruct(each.shape, each.dtype, sharding=place) for each in inputs]
    traced = jax.jit(function).trace(*inputs)
    return traced.lower(lowering_platforms=(CHIPS[chip].platform,)).compile()


# What is in the text of a compiled program.

Operation = collections.namedtuple("Operation", "name kind result arguments operands text is_root")
LINE = re.compile(r"\s+(ROOT )?%(\S+) = (\(.*?\)|\S+) ([\w-]+)\(((?:[^()]|\([^()]*\))*)\)(.*)")
BITS = re.compile(r"\d+")
NOT_LAUNCHED = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "iota", "after-all"),
    *("partition-id", "replica-id", "optimization-barrier", "copy-done", "async-done"),
}


def computations(text):
    """Operations by name, of each computation by name, and the name of the first to run."""
    found, operations, entry = {}, {}, ""
    for line in text.splitlines():
        head = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
        if head:
            operations = found.setdefault(head[2], {})
            entry = head[2] if head[1] else entry
        elif operation := LINE.match(line):
            root, name, result, kind, arguments, rest = operation.groups()
            operands = re.findall(r"%([\w.-]+)", arguments)
            operations[name] = Operation(name, kind, result, arguments, operands, rest, bool(root))
    return found, entry


def shapes(result):
    """The bytes of an element and the sizes of the axes, of each array of a result."""
    for dtype, axes in re.findall(r"(\w+)\[([\d,]*)\]", result):
        bits = BITS.search(dtype)
        sizes = [int(size) for size in axes.split(",") if size]
        yield (int(bits[0]) / 8 if bits else 1), sizes


def volume(result):
    """The bytes of a result."""
    return sum(size * math.prod(axes) for size, axes in shapes(result))


def called(operation, attribute):
    found = re.search(rf"\b{attribute}=%?([\w.-]+)", operation.text)
    return found[1] if found else None


def rounds(found, loop):
    """How often the body of a loop runs."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.text)
    if known:
        return int(known[1])
    condition = found[called(loop, "condition")].values()
    return max((int(c.arguments) for c in condition if c.arguments.isdigit()), default=1)


def launches(found, name, times=1):
    """Each operation that is launched, the computation that it is in, and how often."""
    for operation in found[name].values():
        if operation.kind == "while":
            count = times * rounds(found, operation)
            yield from launches(found, called(operation, "body"), count)
        elif operation.kind == "call":
            yield from launches(found, called(operation, "to_apply"), times)
        elif operation.kind not in NOT_LAUNCHED:
            yield operation, found[name], times


def cycles(operation):
    """What a TPU's compiler expects of an operation."""
    found = re.search(r'"estimated_cycles":"(\d+)"', operation.text)
    return int(found[1]) if found else 0


def seconds(found, operation, around):
    """The roofline of an operation of an H100."""
    inside = found.get(called(operation, "calls"))
    if inside is None:
        inside, traffic = around, traffic_of_one(operation, around)
        products = [operation] if operation.kind == "dot" else []
    else:
        products = [each for each in inside.values() if each.kind == "dot"]
        traffic = traffic_of_fusion(inside)
    arithmetic = sum(dot_seconds(product, inside) for product in products)
    return max(arithmetic, traffic / 3e12) + 3e-6


def dot_seconds(product, around):
    ((size, left),) = shapes(around[product.operands[0]].result)
    ((_, result),) = shapes(product.result)
    (axes,) = re.findall(r"lhs_contracting_dims=\{([\d,]*)\}", product.text)
    depth = math.prod(left[int(axis)] for axis in axes.split(",") if axis)
    return 2 * depth * math.prod(result) / (800e12 if size <= 2 else 400e12)


def traffic_of_one(operation, around):
    """Bytes read and written; of what is sliced or updated in place, those of the slice."""
    if operation.kind == "dynamic-slice":
        return 2 * volume(operation.result)
    if operation.kind == "dynamic-update-slice":
        return 2 * volume(around[operation.operands[1]].result)
    read = [around[name].result for name in operation.operands if name in around]
    return volume(operation.result) + sum(map(volume, read))


def traffic_of_fusion(inside):
    """The same of a fusion, from what is inside it."""

    def read(name):
        total = 0
        for user in (each for each in inside.values() if name in each.operands):
            if user.kind in ("dynamic-slice", "slice", "gather"):
                total += volume(user.result)
            elif user.kind == "bitcast":
                total += read(user.name)
            elif user.kind != "dynamic-update-slice" or user.operands[0] != name:
                total += volume(inside[name].result)
        return min(total, volume(inside[name].result))

    def written(operation):
        while operation.kind == "bitcast" and operation.operands[0] in inside:
            operation = inside[operation.operands[0]]
        if operation.kind == "dynamic-update-slice":
            operation = inside[operation.operands[1]]
        return volume(operation.result)

    (root,) = (each for each in inside.values() if each.is_root)
    results = [inside[name] for name in root.operands] if root.kind == "tuple" else [root]
    inputs = [each.name for each in inside.values() if each.kind == "parameter"]
    return sum(map(read, inputs)) + sum(map(written, results))


def estimate(chip, program):
    """The cost of a program, and how many launches it has."""
    found, entry = computations(program.as_text())
    cost, count = 0, 0
    for operation, around, times in launches(found, entry):
        of_one = (
            cycles(operation)
            if CHIPS[chip].platform == "tpu"
            else seconds(found, operation, around)
        )
        cost, count = cost + times * of_one, count + times * (of_one > 0)
    return cost * (1e-6 if CHIPS[chip].platform == "tpu" else 1e3), count


# The table.


def cell(chip, loss, sizes, beside=None):
    """A program's memory, cost and launches in words, and the cost as a number."""
    try:
        program = compiled(chip, loss, *sizes)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return "does not fit", None
    cost, count = estimate(chip, program)
    memory = temporary_mebibytes(program)
    unit = "Mcycles" if CHIPS[chip].platform == "tpu" else "ms"
    words = f"{memory:.0f} MiB, {cost:.1f} {unit}, {count}"
    return words if beside is None else f"{words}, **{cost / beside:.2f}x**", cost


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chip", choices=CHIPS)
    parser.add_argument("sizes", nargs="*", help="N,D,V")
    arguments = parser.parse_args()
    given = [tuple(map(int, sizes.split(","))) for sizes in arguments.sizes]
    print(f"jax {jax.__version__}; compiled MiB, estimated cost, launches, cost over plain\n")
    print(f"| {arguments.chip}: N, D, V | plain logits | default | columns |\n|---|---|---|---|")
    for sizes in given or SIZES:
        words, base = cell(arguments.chip, plain, sizes)
        others = [cell(arguments.chip, loss, sizes, base)[0] for loss in (default, columns)]
        print(f"| {', '.join(map(str, sizes))} |", " | ".join([words, *others]), "|", flush=True)


if __name__ == "__main__":
    main()
