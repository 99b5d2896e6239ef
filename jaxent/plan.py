"""What a linear head needs on many devices, computed before there are any: `python -m jaxent.plan`.

The training step of the head is compiled for a mesh of virtual devices, from shapes alone: nothing
is allocated and nothing is run. What the compiled program says of itself is the plan: the memory of
each device, and what each device sends to others.
"""

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxent

_MESHES = ((1, 1), (8, 1), (1, 8), (8, 8), (32, 8), (128, 8))
_GIB = 2.0**30
_MOST = 2048
_DESCRIPTION = """\
Compile the training step of a linear head with softmax cross-entropy for meshes of devices, from
shapes alone, and print the memory of each device and the bytes that it sends. Nothing is allocated.
"""
_EPILOGUE = """\
Tokens are divided over the data axis, the columns of the kernel over the vocabulary axis and, with
--fsdp, its rows over the data axis. The compiler is that for CPUs: it has no 16-bit products, and
counts copies in float32 of 16-bit operands that other devices do not make. Bytes sent are those of
ring algorithms. The rest of the model, its optimiser included, comes on top.
"""


class Head(NamedTuple):
    """What to plan for."""

    tokens: int
    dim: int
    vocab: int
    dtype: str = "bfloat16"
    fsdp: bool = False
    shard_map: bool = False
    sweep: str | None = None  # "rows", "columns", or what jaxent chooses
    chunk_size: int | None = None
    block_size: int | None = None


class Needs(NamedTuple):
    """What one step needs on each device, in bytes."""

    arguments: int  # hidden states, kernel and labels
    results: int  # the gradients
    temporaries: int
    sent: float
    collectives: tuple["Collective", ...]

    @property
    def memory(self) -> int:
        """The most that is held at once, the arguments included."""
        return self.arguments + self.results + self.temporaries


class Collective(NamedTuple):
    """One instruction of the compiled program that moves data between devices."""

    kind: str
    shape: str  # of its result
    size: int  # bytes of its result
    devices: int  # that take part together
    times: int  # it is run

    @property
    def sent(self) -> float:
        """The bytes that each device sends, all runs together, by a ring algorithm."""
        others = self.devices - 1
        once = {
            "all-reduce": 2.0 * self.size * others / self.devices,
            "all-gather": self.size * others / self.devices,
            "all-to-all": self.size * others / self.devices,
            "reduce-scatter": float(self.size * others),
            "collective-permute": float(self.size),
        }[self.kind]
        return once * self.times


def needs(head: Head, data: int, vocab: int) -> Needs:
    """Compile the training step of a head for `data` x `vocab` devices, which must exist.

    Raises:
        ValueError: If the head cannot be divided among the devices.
    """
    for what, size, axis, parts in (
        ("tokens", head.tokens, "data", data),
        ("vocab", head.vocab, "vocabulary", vocab),
        ("dim", head.dim if head.fsdp else 0, "data", data),
    ):
        if size % parts:
            raise ValueError(_remedy(what, size, axis, parts))
    compiled = _step(head, data, vocab)
    memory = compiled.memory_analysis()
    found = tuple(collectives(compiled.as_text()))
    return Needs(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        sum(each.sent for each in found),
        found,
    )


def _remedy(what: str, size: int, axis: str, parts: int) -> str:
    padded = -(-size // parts) * parts
    mask = {
        "tokens": ", masked with `where`",
        "vocab": ", with a bias of -inf there",
    }.get(what, "")
    return (
        f"--{what} {size} cannot be divided over {parts} devices of the {axis} axis: pad to "
        f"{padded}{mask}."
    )


def _step(head: Head, data: int, vocab: int) -> Any:
    """The compiled value and gradients of the mean loss."""
    mesh = Mesh(np.array(jax.devices()[: data * vocab]).reshape(data, vocab), ("data", "vocab"))

    def described(shape: tuple[int, ...], dtype: Any, *axes: str | None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    hidden = described((head.tokens, head.dim), head.dtype, "data")
    kernel = described((head.dim, head.vocab), head.dtype, "data" if head.fsdp else None, "vocab")
    labels = described((head.tokens,), jnp.int32, "data")

    options = {key: getattr(head, key) for key in ("sweep", "chunk_size", "block_size")}

    def loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, **options)

    def local(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
        if head.fsdp:
            kernel = jax.lax.all_gather(kernel, "data", tiled=True)
        total = jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, reduction="sum", axis_name="vocab", **options
        )
        return jax.lax.psum(total, "data") / head.tokens

    if head.shard_map:
        specs = tuple(each.sharding.spec for each in (hidden, kernel, labels))
        loss = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())

    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)),
        out_shardings=(
            NamedSharding(mesh, PartitionSpec()),
            (hidden.sharding, kernel.sharding),
        ),
    )
    return step.lower(hidden, kernel, labels).compile()


# --- the text of a compiled program ---------------------------------------------------------------

_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS}|while|conditional|call)(-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
_GROUPS = (
    re.compile(r"replica_groups=\{\{([\d,]+)\}"),
    re.compile(r"replica_groups=\[(\d+),(\d+)\]"),
)
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*?\{([^}]*)\}")


def collectives(program: str) -> Iterator[Collective]:
    """The collectives of an optimised program, those in loops as often as the loops run."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        if head := _COMPUTATION.match(line):
            lines = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        else:
            lines.append(line)
    yield from _collectives_of(computations, entry, 1)


def _collectives_of(
    computations: dict[str, list[str]], name: str, times: int
) -> Iterator[Collective]:
    for line in computations.get(name, []):
        found = _INSTRUCTION.search(line)
        if found is None:
            continue
        result, kind, _ = found.groups()
        if kind in ("while", "conditional", "call"):
            trips = _TRIPS.search(line)
            inside = _CALLED.findall(line)
            if branches := _BRANCHES.search(line):
                inside += re.findall(r"[\w.\-]+", branches[1])
            for each in inside:
                yield from _collectives_of(
                    computations, each, times * int(trips[1] if trips else 1)
                )
        else:
            size = sum(_bytes(*array) for array in _ARRAY.findall(result))
            yield Collective(kind, result, size, _group_size(line), times)


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D*(\d+).*", r"\1", dtype))
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _group_size(line: str) -> int:
    """How many devices take part in a collective together."""
    if listed := _GROUPS[0].search(line):
        return listed[1].count(",") + 1
    if counted := _GROUPS[1].search(line):
        return int(counted[2])
    if named := _NAMED.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    return 2  # pairs


# --- the command ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    meshes = options.mesh or _MESHES
    _ask_for_devices(max(data * vocab for data, vocab in meshes), parser.error)
    head = Head(**{field: getattr(options, field) for field in Head._fields})
    print(_title(head))
    print(_line("mesh", "devices", "arguments", "results", "temporaries", "memory", "sent"))
    for data, vocab in meshes:
        try:
            found = needs(head, data, vocab)
        except (ValueError, AssertionError) as error:
            parser.error(str(error))
        fits = "" if options.memory is None else _verdict(found.memory, options.memory)
        sizes = (*found[:3], found.memory, found.sent)
        print(_line(f"{data}x{vocab}", data * vocab, *map(_gib, sizes)) + fits, flush=True)
        if options.collectives:
            for each in sorted(found.collectives, key=lambda c: -c.sent):
                print(f"    {each.times:>6} x {each.kind} of {each.shape} by {each.devices}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jaxent.plan",
        description=_DESCRIPTION,
        epilog=_EPILOGUE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--tokens", type=_positive, required=True, help="tokens in a step, on all devices together")
    add("--dim", type=_positive, required=True, help="size of a hidden state")
    add("--vocab", type=_positive, required=True, help="columns of the kernel")
    add("--mesh", type=_mesh, action="append", metavar="DATAxVOCAB", help="such as 4x2; repeat it")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16")
    add("--fsdp", action="store_true", help="divide the rows of the kernel over the data axis")
    add("--shard-map", action="store_true", help="divide the work by hand: see the page on scaling")
    add("--sweep", choices=("rows", "columns"), help="which way (default: jaxent's choice)")
    add("--chunk-size", type=_positive, help="rows at a time")
    add("--block-size", type=_positive, help="columns at a time")
    add("--memory", type=float, metavar="GIB", help="what a device has; says what fits")
    add("--collectives", action="store_true", help="list what is sent")
    return parser


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _mesh(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not found or not int(found[1]) or not int(found[2] or 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 4x2")
    return int(found[1]), int(found[2] or 1)


def _ask_for_devices(count: int, refuse: Callable[[str], Any]) -> None:
    """As many virtual devices as the largest mesh has, before JAX has looked for any."""
    if count > _MOST:
        refuse(f"a mesh of {count} devices: at most {_MOST} can be played by a CPU.")
    jax.config.update("jax_platforms", "cpu")
    flag = "--xla_force_host_platform_device_count"
    others = [each for each in os.environ.get("XLA_FLAGS", "").split() if flag not in each]
    os.environ["XLA_FLAGS"] = " ".join([*others, f"{flag}={count}"])
    if len(jax.devices()) < count:
        refuse(f"{count} virtual devices are needed, and JAX has started with fewer.")


def _title(head: Head) -> str:
    logits = head.tokens * head.vocab * jnp.dtype(head.dtype).itemsize
    return (
        f"{head.tokens:,} tokens x {head.dim:,} by {head.dim:,} x {head.vocab:,}, {head.dtype}; "
        f"all logits would be {logits / _GIB:,.1f} GiB.\n"
        "Per device, in GiB:"
    )


def _line(mesh: str, devices: Any, *cells: str) -> str:
    return f"{mesh:>9} {devices:>8}" + "".join(f"{cell:>13}" for cell in cells)


def _gib(size: float) -> str:
    return f"{size / _GIB:,.3f}"


def _verdict(memory: int, available: float) -> str:
    return "   fits" if memory <= available * _GIB else "   does not fit"


if __name__ == "__main__":
    sys.exit(main())
