"""What a linear head needs on many devices, computed before there are any: `python -m jaxent.plan`.

The training step of the head is compiled for a mesh of virtual devices, from shapes alone: nothing
is allocated and nothing is run. The plan is read from the compiled program: the memory of each
device, and the bytes that each device sends to others.
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
from jax.typing import DTypeLike

import jaxent
from jaxent.chips import CHIPS, find_chips

_MESHES = ((1, 1), (8, 1), (1, 8), (8, 8), (32, 8), (128, 8))
_GIB = 2.0**30
_MAX_DEVICES = 2048
_DESCRIPTION = """\
Compile the training step of a linear head with softmax cross-entropy for meshes of devices, from
shapes alone, and print the memory of each device and the bytes that it sends. Nothing is allocated.
"""
_EPILOGUE = """\
Tokens are divided over the data axis, the columns of the kernel over the vocabulary axis and, with
--fsdp, its rows over the data axis. Without --chip the compiler is that for CPUs. It has no 16-bit
products, counts copies in float32 of 16-bit operands, and divides the work otherwise than those for
TPUs and GPUs. Bytes sent are those of ring algorithms. The rest of the model, its
optimiser included, comes on top.
"""


class Head(NamedTuple):
    """The head and the training step to plan for."""

    tokens: int
    dim: int
    vocab: int
    dtype: str = "bfloat16"
    fsdp: bool = False
    shard_map: bool = False
    sweep: str | None = None  # "rows", "columns", or what jaxent chooses
    chunk_size: int | None = None
    block_size: int | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0
    soft_cap: float | None = None
    temperature: float | None = None
    where: bool = False  # whether there is a mask
    chip: str | None = None  # one of `CHIPS`, None for the compiler for CPUs


class Needs(NamedTuple):
    """What a training step needs on each device, in bytes."""

    arguments: int  # hidden states, kernel and labels
    results: int  # the gradients
    temporaries: int
    sent: float  # to other devices
    collectives: tuple["Collective", ...]

    @property
    def memory(self) -> int:
        """The peak memory, arguments and results included."""
        return self.arguments + self.results + self.temporaries


class Collective(NamedTuple):
    """An instruction of the compiled program that moves data between devices."""

    kind: str
    shape: str  # of its result
    size: int  # bytes of its result
    devices: int  # in each group that takes part
    times: int  # how often it is run

    @property
    def sent(self) -> float:
        """The bytes that each device sends in all runs together, by a ring algorithm."""
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
    """Compile the training step of a head for `data` x `vocab` devices.

    Without a chip these are devices of JAX's, which must exist.

    Raises:
        ValueError: If the head cannot be divided among the devices.
    """
    for option, size, axis, devices in (
        ("tokens", head.tokens, "data", data),
        ("vocab", head.vocab, "vocabulary", vocab),
        ("dim", head.dim if head.fsdp else 0, "data", data),
    ):
        if size % devices:
            raise ValueError(_indivisible(option, size, axis, devices))
    program = _compile_step(head, data, vocab)
    memory = program.memory_analysis()
    exchanges = tuple(collectives(program.as_text()))
    return Needs(
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes,
        memory.temp_size_in_bytes,
        sum(exchange.sent for exchange in exchanges),
        exchanges,
    )


def _indivisible(option: str, size: int, axis: str, devices: int) -> str:
    """The refusal of a size that a mesh axis does not divide, with the remedy."""
    padded = -(-size // devices) * devices
    mask = {
        "tokens": ", masked with `where`",
        "vocab": ", with a bias of -inf there",
    }.get(option, "")
    return (
        f"--{option} {size} cannot be divided over {devices} devices of the {axis} axis: pad to "
        f"{padded}{mask}."
    )


def _compile_step(head: Head, data: int, vocab: int) -> Any:
    """The compiled value and gradients of the mean loss on a mesh."""
    count = data * vocab
    devices = jax.devices() if head.chip is None else find_chips(head.chip, count)
    mesh = Mesh(np.array(devices[:count]).reshape(data, vocab), ("data", "vocab"))

    def struct(shape: tuple[int, ...], dtype: DTypeLike, *axes: str | None) -> jax.ShapeDtypeStruct:
        sharding = NamedSharding(mesh, PartitionSpec(*axes))
        return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

    hidden = struct((head.tokens, head.dim), head.dtype, "data")
    kernel = struct((head.dim, head.vocab), head.dtype, "data" if head.fsdp else None, "vocab")
    inputs = [hidden, kernel, struct((head.tokens,), jnp.int32, "data")]
    if head.where:
        inputs.append(struct((head.tokens,), jnp.bool_, "data"))

    names = "sweep", "chunk_size", "block_size", "z_loss", "label_smoothing", "soft_cap"
    options: dict[str, Any] = {name: getattr(head, name) for name in names}
    if head.temperature is not None:
        options["temperature"] = head.temperature

    def loss(
        hidden: jax.Array, kernel: jax.Array, labels: jax.Array, where: jax.Array | None = None
    ) -> jax.Array:
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=where, **options)

    def loss_of_device(
        hidden: jax.Array, kernel: jax.Array, labels: jax.Array, where: jax.Array | None = None
    ) -> jax.Array:
        if head.fsdp:
            kernel = jax.lax.all_gather(kernel, "data", tiled=True)
        total = jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, where=where, reduction="sum", axis_name="vocab", **options
        )
        count = head.tokens if where is None else jax.lax.psum(jnp.sum(where), "data")
        return jax.lax.psum(total, "data") / count

    if head.shard_map:
        specs = tuple(each.sharding.spec for each in inputs)
        loss = jax.shard_map(loss_of_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec())

    step = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1)),
        out_shardings=(
            NamedSharding(mesh, PartitionSpec()),
            (hidden.sharding, kernel.sharding),
        ),
    )
    platforms = None if head.chip is None else (CHIPS[head.chip].platform,)
    return step.trace(*inputs).lower(lowering_platforms=platforms).compile()


# The text of a compiled program.

_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_CALLS = "while|conditional|call|fusion|async"
_INSTRUCTION = re.compile(rf"= (\(.*?\)|\S+) ({_KINDS}|{_CALLS})(-start)?\(")
_CALLED = re.compile(r"(?:body|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"([a-z]+\d*\w*)\[([\d,]*)\]")
# The three ways to write the groups of devices: all members, number and size, names of mesh axes.
_LISTED_GROUPS = re.compile(r"replica_groups=\{\{([\d,]+)\}")
_COUNTED_GROUPS = re.compile(r"replica_groups=\[(\d+),(\d+)\]")
_NAMED_GROUPS = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*?\{([^}]*)\}")


def collectives(program: str) -> Iterator[Collective]:
    """The collectives of an optimised program; those in loops are run as often as the loops."""
    computations: dict[str, list[str]] = {}
    entry = ""
    lines: list[str] = []
    for line in program.splitlines():
        if header := _COMPUTATION.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        else:
            lines.append(line)
    yield from _collectives_of(computations, entry, 1)


def _collectives_of(
    computations: dict[str, list[str]], name: str, times: int
) -> Iterator[Collective]:
    """The collectives of a computation that is run `times` times, and of those that it calls."""
    for line in computations.get(name, []):
        instruction = _INSTRUCTION.search(line)
        if instruction is None:
            continue
        result, kind, is_start = instruction.groups()
        if kind in _CALLS.split("|"):
            called: list[str] = _CALLED.findall(line)
            if branches := _BRANCHES.search(line):
                called += re.findall(r"[\w.\-]+", branches[1])
            rounds = _rounds(computations, line) if kind == "while" else 1
            for each in called:
                yield from _collectives_of(computations, each, times * rounds)
        else:
            arrays = _ARRAY.findall(result)
            if is_start and kind != "all-reduce":
                # The operands come first, and after the results what the device counts with.
                arrays = [each for each in arrays if each[0] != "u32" or each[1]]
                arrays = arrays[len(arrays) // 2 :]
            size = sum(_bytes(*array) for array in arrays)
            yield Collective(kind, result, size, _group_size(line), times)


def _rounds(computations: dict[str, list[str]], loop: str) -> int:
    """How often a loop runs: what the compiler says, else the bound of its condition."""
    if trips := _TRIPS.search(loop):
        return int(trips[1])
    condition = _CONDITION.search(loop)
    lines = computations.get(condition[1], []) if condition else []
    return max(
        (int(n) for line in lines for n in re.findall(r"constant\((\d+)\)", line)), default=1
    )


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == "pred" else int(re.sub(r"\D*(\d+).*", r"\1", dtype))
    return math.prod(int(size) for size in shape.split(",") if size) * bits // 8


def _group_size(line: str) -> int:
    """The number of devices in each group that takes part in a collective."""
    if listed := _LISTED_GROUPS.search(line):
        return listed[1].count(",") + 1
    if counted := _COUNTED_GROUPS.search(line):
        return int(counted[2])
    if named := _NAMED_GROUPS.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    return 2  # a collective without groups goes by pairs


# The command.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    parser = _parser()
    options = parser.parse_args(arguments)
    meshes = options.mesh or _MESHES
    if options.chip is None:
        _make_devices(max(data * vocab for data, vocab in meshes), parser.error)
    else:
        _use_cpu("--xla_gpu_autotune_level=0")  # kernels cannot be tried out
        try:
            find_chips(options.chip, max(data * vocab for data, vocab in meshes))
        except ValueError as error:
            parser.error(str(error))
    head = Head(**{field: getattr(options, field) for field in Head._fields})
    print(_title(head))
    print(_line("mesh", "devices", "arguments", "results", "temporaries", "memory", "sent"))
    for data, vocab in meshes:
        try:
            need = needs(head, data, vocab)
        except (ValueError, AssertionError) as error:
            parser.error(str(error))
        fits = "" if options.memory is None else _fits(need.memory, options.memory)
        sizes = (*need[:3], need.memory, need.sent)
        print(_line(f"{data}x{vocab}", data * vocab, *map(_gib, sizes)) + fits, flush=True)
        if options.collectives:
            for each in sorted(need.collectives, key=lambda exchange: -exchange.sent):
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
    add("--z-loss", type=float, default=0.0, help="weight of the squared log-normaliser")
    add("--label-smoothing", type=float, default=0.0)
    add("--soft-cap", type=float)
    add("--temperature", type=float)
    add("--where", action="store_true", help="with a mask of tokens")
    add("--chip", choices=CHIPS, help="compile for it; its compiler must be installed")
    add("--memory", type=float, metavar="GIB", help="what a device has; says what fits")
    add("--collectives", action="store_true", help="list what is sent")
    return parser


def _positive(text: str) -> int:
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text} is not a positive integer")
    return int(text)


def _mesh(text: str) -> tuple[int, int]:
    sizes = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if not sizes or not int(sizes[1]) or not int(sizes[2] or 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form 4x2")
    return int(sizes[1]), int(sizes[2] or 1)


def _make_devices(count: int, refuse: Callable[[str], Any]) -> None:
    """Makes `count` virtual devices; JAX must not have looked for devices yet."""
    if count > _MAX_DEVICES:
        refuse(f"a mesh of {count} devices: at most {_MAX_DEVICES} can be played by a CPU.")
    _use_cpu(f"--xla_force_host_platform_device_count={count}")
    if len(jax.devices()) < count:
        refuse(f"{count} virtual devices are needed, and JAX has started with fewer.")


def _use_cpu(flag: str) -> None:
    """Has JAX start on CPUs, with this flag in place of one of the same name."""
    jax.config.update("jax_platforms", "cpu")
    name = flag.partition("=")[0].strip()
    others = [other for other in os.environ.get("XLA_FLAGS", "").split() if name not in other]
    os.environ["XLA_FLAGS"] = " ".join([*others, flag.strip()])


def _title(head: Head) -> str:
    logits = head.tokens * head.vocab * jnp.dtype(head.dtype).itemsize
    return (
        f"{head.tokens:,} tokens x {head.dim:,} by {head.dim:,} x {head.vocab:,}, {head.dtype}; "
        f"all logits would be {logits / _GIB:,.1f} GiB.\n"
        f"Per device, in GiB, by the compiler for {'CPUs' if head.chip is None else head.chip}:"
    )


def _line(mesh: str, devices: int | str, *cells: str) -> str:
    return f"{mesh:>9} {devices:>8}" + "".join(f"{cell:>13}" for cell in cells)


def _gib(size: float) -> str:
    return f"{size / _GIB:,.3f}"


def _fits(memory: int, available: float) -> str:
    return "   fits" if memory <= available * _GIB else "   does not fit"


if __name__ == "__main__":
    sys.exit(main())
