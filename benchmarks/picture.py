"""The picture of the README: what a linear head costs as the vocabulary grows.

Run `python benchmarks/picture.py`. It prints the figures and draws them into
docs/_static/memory.svg. On the left is the memory that the compiled value and gradients of the mean
cross-entropy need beside inputs and outputs, of plain logits (with optax's loss) and of both sweeps
of jaxent; nothing is run for it. On the right is the time of a smaller batch: medians of turns in
random order. The memory is the same on every machine with the same JAX; the time is not.
"""

import argparse
import os
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
from linear_head import columns, inputs, plain, programs, rows
from side_by_side import environment, medians, temporary_mebibytes

FILE = Path(__file__).parents[1] / "docs" / "_static" / "memory.svg"
STYLE = Path(__file__).parents[1] / "notebooks" / "jaxent.mplstyle"
FEATURES = 256
TOKENS, VOCABULARIES = 16384, (4096, 8192, 16384, 32768, 65536, 131072, 262144)
TOKENS_TIMED, VOCABULARIES_TIMED = 2048, (16384, 32768, 65536, 131072)
HEADS = {"plain logits": plain, "jaxent, rows": rows, "jaxent, columns": columns}
COLORS = dict(zip(HEADS, ("C1", "C0", "C2"), strict=True))


def memory():
    """MiB of temporaries of each head at each vocabulary, by name."""
    functions = {name: jax.value_and_grad(head, (0, 1)) for name, head in HEADS.items()}
    needed = {name: [] for name in HEADS}
    for classes in VOCABULARIES:
        shapes = (
            jax.ShapeDtypeStruct((TOKENS, FEATURES), jnp.float32),
            jax.ShapeDtypeStruct((FEATURES, classes), jnp.float32),
            jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
        )
        for name, program in programs(functions, shapes).items():
            needed[name].append(temporary_mebibytes(program))
    return needed


def time(repeats):
    """Median seconds of each head at each vocabulary, by name; all of them take turns."""
    functions = {name: jax.value_and_grad(head, (0, 1)) for name, head in HEADS.items()}
    contestants = {}
    for classes in VOCABULARIES_TIMED:
        arguments = inputs((TOKENS_TIMED, FEATURES, classes), jnp.float32)
        for name, program in programs(functions, arguments).items():
            contestants[name, classes] = partial(program, *arguments)
    seconds = medians(contestants, (), repeats)
    return {name: [seconds[name, classes] for classes in VOCABULARIES_TIMED] for name in HEADS}


def in_bytes(mebibytes):
    return f"{mebibytes:.0f} MiB" if mebibytes < 1000 else f"{mebibytes / 1024:.0f} GiB"


def print_table(heading, sizes, figures, shown):
    print(f"\n| {heading}", *(f"V = {size}" for size in sizes), sep=" | ", end=" |\n")
    print("|" + "---|" * (1 + len(sizes)))
    for name, row in figures.items():
        print(f"| {name}", *map(shown, row), sep=" | ", end=" |\n")


def finish(axis, sizes, tokens, on):
    """Labels the vocabulary axis in thousands of 1024."""
    axis.set_xticks(sizes, [f"{classes // 1024}k" for classes in sizes])
    axis.set_xlabel(f"vocabulary ({tokens:,} tokens\nof width {FEATURES}, {on})")


def draw_memory(axis, needed):
    for name, mebibytes in needed.items():
        axis.loglog(VOCABULARIES, mebibytes, "o-", color=COLORS[name])
        end = f"{name}\n{in_bytes(mebibytes[-1])}"
        axis.text(1.35 * VOCABULARIES[-1], mebibytes[-1], end, color=COLORS[name], va="center")
    axis.set(xlim=(0.8 * VOCABULARIES[0], 18 * VOCABULARIES[-1]), ylim=(4, 80000))
    axis.set_ylabel("beside inputs and gradients")
    finish(axis, VOCABULARIES[::2], TOKENS, "float32")
    ticks = [16, 128, 1024, 8192]
    axis.set_yticks(ticks, [in_bytes(tick) for tick in ticks])
    axis.minorticks_off()
    ends = [in_bytes(mebibytes[-1]) for mebibytes in needed.values()]
    axis.set_title(f"Memory: {ends[0]}, or {ends[-1]}")


def draw_time(axis, seconds):
    all_plain, *others = seconds.values()
    for name, row in seconds.items():
        axis.plot(VOCABULARIES_TIMED, row, "o-", color=COLORS[name], label=name)
    axis.set(xlim=(0, None), ylim=(0, 1.35 * max(all_plain)), ylabel="seconds")
    finish(axis, VOCABULARIES_TIMED[1:], TOKENS_TIMED, f"{os.cpu_count()} CPU cores")
    axis.legend(loc="upper left", borderaxespad=0)
    ratios = [mine / plain for row in others for mine, plain in zip(row, all_plain, strict=True)]
    axis.set_title(f"Time: {min(ratios):.1f} to {max(ratios):.1f} times plain")


def lean(svg):
    """The SVG without comments and indentation, with coordinates to a hundredth of a point."""
    svg = re.sub(r"<!--.*?-->|^ +", "", svg, flags=re.MULTILINE)
    svg = re.sub(r"(?<!scale\()(?<![\d.])\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", svg)
    return re.sub(r"\s*\n+", "\n", svg)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--file", type=Path, default=FILE, help="what to write")
    options = parser.parse_args()
    print(environment())
    needed = memory()
    print_table(f"memory, {TOKENS} x {FEATURES}", VOCABULARIES, needed, in_bytes)
    seconds = time(options.repeats)
    print_table(
        f"seconds, {TOKENS_TIMED} x {FEATURES}", VOCABULARIES_TIMED, seconds, "{:.2f}".format
    )
    plt.style.use(STYLE)
    # Letters as outlines look the same everywhere. The fixed salt makes the file reproducible.
    mpl.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "jaxent"})
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4), width_ratios=(1.3, 1))
    draw_memory(left, needed)
    draw_time(right, seconds)
    options.file.parent.mkdir(exist_ok=True)
    figure.savefig(
        options.file, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    options.file.write_text(lean(options.file.read_text("utf-8")), "utf-8")
    print(f"\n{options.file.name}: {options.file.stat().st_size} bytes")


if __name__ == "__main__":
    main()
