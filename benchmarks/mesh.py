"""What a head needs of each device, and what it sends, sharded over 1, 2, 4 and 8 of them.

Run `python benchmarks/mesh.py`. Value and gradients of the mean cross-entropy, compiled for devices
that are parts of a CPU, for each way of sharding hidden states [B, T, D] and the kernel [D, V].
Nothing is run. MiB of temporaries and, after the slash, MiB that each device sends; collectives in
loops count as often as the loops run. By default, chunks and tiles are as large on each of many
devices as on one, so that there are few of them: XLA for CPUs sums the gradient of the kernel over
data-parallel devices once in each of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from side_by_side import environment, temporary_mebibytes

import jaxent
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


def main():
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
