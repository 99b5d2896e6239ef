"""What a head needs of each device, and what it sends, sharded over 1, 2, 4 and 8 of them.

    python benchmarks/mesh.py
    python benchmarks/mesh.py v5e:4x4  # or v5e:2x2, v5e:4x8, h100:8, as of accelerators.py

Value and gradients of the mean cross-entropy, compiled for devices that are parts of a CPU, for
each way of sharding hidden states [B, T, D] and the kernel [D, V]. Nothing is run. MiB of
temporaries and, after the slash, MiB that each device sends; collectives in loops count as often as
the loops run. By default, chunks and tiles are as large on each of many
devices as on one, so that there are few of them: XLA for CPUs sums the gradient of the kernel over
data-parallel devices once in each of them.

With a mesh of chips, a large head in bfloat16, compiled by their own compiler, beside plain logits:
GiB of the results of collectives on each device and how many are run, MiB of temporaries, and the
estimated cost of `accelerators.py` over that of plain logits.
"""

import math
import sys

import accelerators
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from side_by_side import environment, temporary_mebibytes

import jaxent
from jaxent.chips import find_chips
from jaxent.plan import collectives

COUNTS = [1, 2, 4, 8]
BATCH, TIME, FEATURES, CLASSES = 16, 512, 256, 32768

# Of hidden states and labels [B, T], and of the kernel [D, V], each over all devices.
LAYOUTS = {
    "rows": ((("first", "second"), None), (None, None)),
    "sequence": ((None, ("first", "second")), (None, None)),
    "rows and sequence": (("first", "second"), (None, None)),
    "vocabulary": ((None, None), (None, ("first", "second"))),
    "rows and vocabulary": (("first", None), (None, "second")),
    "rows and features": ((("first", "second"), None), (("first", "second"), None)),
}


SWEEPS = {
    "rows": {"sweep": "rows"},
    "rows, 512 at a time": {"chunk_size": 512},
    "columns": {"sweep": "columns"},
}


def compiled(options, layout, count):
    second = 2 if count > 1 else 1
    devices = np.array(jax.devices()[:count]).reshape(count // second, second)
    mesh = Mesh(devices, ("first", "second"), axis_types=(AxisType.Auto,) * 2)
    rows, kernel = layout

    def described(shape, dtype, spec):
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    def loss(hidden, kernel, labels):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)

    arguments = (
        described((BATCH, TIME, FEATURES), jnp.float32, rows),
        described((FEATURES, CLASSES), jnp.float32, kernel),
        described((BATCH, TIME), jnp.int32, rows),
    )
    shardings = tuple(argument.sharding for argument in arguments[:2])
    number = NamedSharding(mesh, PartitionSpec())
    step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(number, shardings))
    return step.lower(*arguments).compile()


def cell(program):
    sent = sum(collective.sent for collective in collectives(program.as_text()))
    return f"{temporary_mebibytes(program):.1f} / {sent / 2**20:.1f}"


# Chips that are not here.

ROWS, OF_HIDDEN, OF_VOCABULARY = 65536, 4096, 128256


def chips_of(target):
    chip, _, sizes = target.partition(":")
    count = math.prod(map(int, sizes.split("x")))
    return find_chips(chip, count)[:count]


def chip_layouts(count):
    """The shape of the mesh, and how rows and kernel are divided, by name."""
    classes = count // 4 if count >= 16 else 4
    return {
        f"data {count}": ((count, 1), (), ()),
        f"FSDP {count}": ((count, 1), ("data",), ()),
        f"data {count // 2} x vocabulary 2": ((count // 2, 2), (), ("vocabulary",)),
        f"FSDP {count // classes} x vocabulary {classes}": (
            (count // classes, classes),
            ("data",),
            ("vocabulary",),
        ),
    }


KINDS = "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute"


def exchanged(program):
    """The bytes of the results of all collectives, and how many are run."""
    size, count = 0, 0
    for each, _, times in accelerators.launches(*accelerators.computations(program.as_text())):
        kind = each.kind.removesuffix("-start")
        if kind in KINDS:
            sizes = [width * math.prod(axes) for width, axes in accelerators.shapes(each.result)]
            # What starts a transfer names its operand before its result.
            is_pair = each.kind != kind and kind != "all-reduce"
            size, count = size + times * (sizes[1] if is_pair else sum(sizes)), count + times
    return size, count


def on_chips(target):
    chip, chips = target.partition(":")[0], chips_of(target)
    print(f"jax {jax.__version__}, {target}: {ROWS} x {OF_HIDDEN} x {OF_VOCABULARY}, bfloat16\n")
    print("| layout | plain logits | default, by rows | columns |\n|---|---|---|---|")
    for name, (shape, features, classes) in chip_layouts(len(chips)).items():
        mesh = Mesh(np.array(chips).reshape(shape), ("data", "vocabulary"))
        place = lambda *spec, mesh=mesh: NamedSharding(mesh, PartitionSpec(*spec))  # noqa: E731
        rows, kernel = place("data"), place(features or None, classes or None)
        inputs = (
            jax.ShapeDtypeStruct((ROWS, OF_HIDDEN), jnp.bfloat16, sharding=rows),
            jax.ShapeDtypeStruct((OF_HIDDEN, OF_VOCABULARY), jnp.bfloat16, sharding=kernel),
            jax.ShapeDtypeStruct((ROWS,), jnp.int32, sharding=rows),
        )
        cells, base = [], None
        for loss in (accelerators.plain, accelerators.default, accelerators.columns):
            step = jax.jit(jax.value_and_grad(loss, (0, 1)), out_shardings=(None, (rows, kernel)))
            lowered = step.trace(*inputs).lower(
                lowering_platforms=("cuda" if chip == "h100" else "tpu",)
            )
            program = lowered.compile()
            sent, count = exchanged(program)
            cost, _ = accelerators.estimate(chip, program)
            base = base or cost
            cells.append(
                f"{sent / 2**30:.2f} in {count}; "
                f"{temporary_mebibytes(program):.0f} MiB; {cost / base:.2f}x"
            )
        print(f"| {target}: {name} |", " | ".join(cells), "|", flush=True)


def main():
    if sys.argv[1:]:
        on_chips(sys.argv[1])
        return
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", COUNTS[-1])
    print(environment())
    print(f"[{BATCH}, {TIME}, {FEATURES}] x [{FEATURES}, {CLASSES}], float32\n")
    print("| Sweep | Sharded | " + " | ".join(map(str, COUNTS)) + " |")
    print("|" + " --- |" * (len(COUNTS) + 2))
    for sweep, options in SWEEPS.items():
        for name, layout in LAYOUTS.items():
            cells = (cell(compiled(options, layout, count)) for count in COUNTS)
            print(f"| {sweep} | {name} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
