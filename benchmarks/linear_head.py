"""Cross-entropy through a linear head: both sweeps of jaxent beside plain logits and its peers.

Run `python benchmarks/linear_head.py`. Value and gradients of the mean over [N, D] x [D, V], in one
process, contestants interleaved:

* plain: optax's cross-entropy of all the logits at once;
* columns, rows: `linear_softmax_cross_entropy` with that sweep and its own choice of sizes;
* bare: three matrix products of chunks of rows and nothing else, the least time that is possible;
* jax-cce and tokamax (its `chunked_xla`), where they are installed (tokamax needs Python 3.12).

`--of` asks for the value alone, a frozen kernel, or one loss per row instead (plain and the two
sweeps); or for rows without a mask, with one of padding, and with three rows in four masked; or for
rows with each option of the loss and with all. The first table is of seconds, the second of the
memory that the compiled program needs beside its inputs and outputs, in MiB. `--correct` prints
relative errors of the loss instead, at sizes that no block divides; `--memory` the memory of
`linear_softmax` over N and V; `--torch` what PyTorch needs (run it in a process of its own), and on
a GPU also Liger-Kernel and cut-cross-entropy where they are installed.
"""

import argparse
import importlib
import resource
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
from side_by_side import environment, medians, temporary_mebibytes

import jaxent
from jaxent._heads.checks import Head
from jaxent._heads.rows import plan_chunks

SHAPES = [
    (2048, 512, 32768),
    (4096, 256, 65536),
    (1024, 1024, 16384),
    (8192, 128, 131072),
    (4096, 512, 50257),
]
RAGGED = [(512, 64, 32000), (509, 64, 50257), (1000, 64, 1009)]


def plain(hidden, kernel, labels):
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def columns(hidden, kernel, labels):
    return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, sweep="columns")


def rows(hidden, kernel, labels):
    return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, sweep="rows")


def bare_products(hidden, kernel, labels):
    """The logits of each chunk, and two products with them, accumulated."""
    count, features = hidden.shape
    tiling = plan_chunks([Head(hidden, kernel, None, None, None, 1)], None, "cpu")
    chunk = tiling.tile_shape[-1]
    steps = count // chunk  # rows that do not fill a chunk are left out, which makes bare faster
    del labels

    def step(kernel_sum, hidden):
        logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        operand = logits.astype(hidden.dtype)
        kernel_sum += jnp.matmul(hidden.T, operand, preferred_element_type=jnp.float32)
        return kernel_sum, jnp.matmul(operand, kernel.T, preferred_element_type=jnp.float32)

    chunks = hidden[: steps * chunk].reshape(steps, chunk, features)
    return jax.lax.scan(step, jnp.zeros(kernel.shape, jnp.float32), chunks)


def installed(name):
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def losses():
    """Every contestant that computes a loss, by name."""
    contestants = {"plain": plain, "columns": columns, "rows": rows}
    jax_cce, tokamax = installed("jax_cce"), installed("tokamax")
    if jax_cce is not None:
        contestants["jax-cce"] = lambda hidden, kernel, labels: jax_cce.linear_cross_entropy(
            hidden, kernel.T, labels
        )
    if tokamax is not None:
        contestants["tokamax"] = lambda hidden, kernel, labels: (
            tokamax.linear_softmax_cross_entropy_loss(
                hidden, labels, kernel, reduction="mean", implementation="chunked_xla"
            )
        )
    return contestants


def inputs(shape, dtype):
    count, features, classes = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (count, features)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (features, classes)) / features**0.5).astype(dtype)
    return hidden, kernel, jax.random.randint(keys[2], (count,), 0, classes)


def per_row(sweep):
    """The losses of single rows, summed with different weights, so that cotangents differ."""

    def loss(hidden, kernel, labels):
        if sweep is None:
            logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
            each = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        else:
            each = jaxent.linear_softmax_cross_entropy(
                hidden, kernel, labels, sweep=sweep, reduction="none"
            )
        return jnp.sum(each * jnp.cos(jnp.arange(each.size, dtype=each.dtype)))

    return loss


def masked(count, kind):
    """The mean by rows with a mask: nothing, the last row, or three rows in four at random."""
    chance = jax.random.uniform(jax.random.key(1), (count,))
    where = {"none": None, "padding": jnp.arange(count) < count - 1, "three in four": chance < 0.25}

    def loss(hidden, kernel, labels):
        return jaxent.linear_softmax_cross_entropy(
            hidden, kernel, labels, where=where[kind], sweep="rows"
        )

    return loss


def with_options(**options):
    """The mean by rows with options of the loss."""

    def loss(hidden, kernel, labels):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, sweep="rows", **options)

    return loss


def functions_of(kind, count):
    """What is timed, by name; `count` is that of rows."""
    if kind == "options":
        options = {"z_loss": 1e-4, "label_smoothing": 0.1, "soft_cap": 30.0, "temperature": 2.0}
        cases = {"none": {}, **{name: {name: value} for name, value in options.items()}}
        return {
            name: jax.value_and_grad(with_options(**given), (0, 1))
            for name, given in {**cases, "all": options}.items()
        }
    if kind == "masked":
        masks = ("none", "padding", "three in four")
        return {mask: jax.value_and_grad(masked(count, mask), (0, 1)) for mask in masks}
    if kind == "gradients":
        functions = {name: jax.value_and_grad(loss, (0, 1)) for name, loss in losses().items()}
        return functions | {"bare": bare_products}
    means = {"plain": plain, "columns": columns, "rows": rows}
    if kind == "value":
        return means
    if kind == "frozen":
        return {name: jax.value_and_grad(loss) for name, loss in means.items()}
    sweeps = {"plain": None, "columns": "columns", "rows": "rows"}
    return {name: jax.value_and_grad(per_row(sweep), (0, 1)) for name, sweep in sweeps.items()}


def programs(functions, arguments):
    """Every contestant, compiled; what does not compile is left out."""
    compiled = {}
    for name, function in functions.items():
        try:
            compiled[name] = jax.jit(function).lower(*arguments).compile()
        except Exception as error:  # an error of a peer: the table goes on without it
            print(f"{name}: {type(error).__name__}", flush=True)
    return compiled


def print_row(shape, names, cells):
    print(f"| {', '.join(map(str, shape))}", *(cells.get(n, "") for n in names), sep=" | ", end="")
    print(" |", flush=True)


def print_heading(first, names):
    print(f"\n| {first}", *names, sep=" | ", end=" |\n")
    print("|" + "---|" * (1 + len(names)))


def print_speed(shapes, dtype, repeats, kind):
    names = list(functions_of(kind, 1))
    memory = {}
    print_heading("N, D, V; seconds", names)
    for shape in shapes:
        arguments = inputs(shape, dtype)
        compiled = programs(functions_of(kind, shape[0]), arguments)
        seconds = medians(compiled, arguments, repeats)
        memory[shape] = {name: temporary_mebibytes(p) for name, p in compiled.items()}
        print_row(shape, names, {name: f"{value:.2f}" for name, value in seconds.items()})
    print_heading("N, D, V; MiB", names)
    for shape, needed in memory.items():
        print_row(shape, names, {name: f"{value:.0f}" for name, value in needed.items()})


def print_errors():
    """Errors of the loss relative to a float64 computation on the same numbers."""
    names = list(losses())
    print_heading("N, D, V; relative error", names)
    for shape in RAGGED:
        hidden, kernel, labels = inputs(shape, jnp.float32)
        logits = np.asarray(hidden, np.float64) @ np.asarray(kernel, np.float64)
        truth = np.mean(
            np.log(np.sum(np.exp(logits), axis=1)) - logits[np.arange(len(labels)), labels]
        )
        cells = {}
        for name, loss in losses().items():
            try:
                value = float(jax.jit(loss)(hidden, kernel, labels))
                cells[name] = f"{abs(value / truth - 1):.1e}"
            except Exception as error:  # an error of a peer
                cells[name] = type(error).__name__
        print_row(shape, names, cells)


def print_memory(dtype):
    """Temporaries of value and gradients of `linear_softmax(...).cross_entropy.mean()`."""
    sizes = 1024, 8192, 65536
    vocabularies = 32768, 131072, 524288
    print_heading("N at D = 512; MiB", [f"V = {classes}" for classes in vocabularies])

    def loss(hidden, kernel, labels):
        return jaxent.linear_softmax(hidden, kernel, labels).cross_entropy.mean()

    for count in sizes:
        cells = {}
        for classes in vocabularies:
            shapes = (
                jax.ShapeDtypeStruct((count, 512), dtype),
                jax.ShapeDtypeStruct((512, classes), dtype),
                jax.ShapeDtypeStruct((count,), jnp.int32),
            )
            compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*shapes).compile()
            cells[f"V = {classes}"] = f"{temporary_mebibytes(compiled):.0f}"
        print_row((count,), [f"V = {classes}" for classes in vocabularies], cells)


def torch_contestants(torch):
    """Losses of (hidden, kernel [V, D], labels) in PyTorch, by name."""
    functional = torch.nn.functional
    contestants = {
        "torch plain": lambda h, w, y: functional.cross_entropy((h @ w.T).float(), y),
    }
    if hasattr(functional, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        contestants["torch linear_cross_entropy"] = lambda h, w, y: functional.linear_cross_entropy(
            h, w, y, options=options
        )
    liger = installed("liger_kernel.transformers")
    if liger is not None and torch.cuda.is_available():
        fused = liger.LigerFusedLinearCrossEntropyLoss()
        contestants["Liger-Kernel"] = lambda h, w, y: fused(w, h, y)
    cut = installed("cut_cross_entropy")
    if cut is not None and torch.cuda.is_available():
        contestants["cut-cross-entropy"] = lambda h, w, y: cut.linear_cross_entropy(h, w, y)
    return contestants


def print_torch(shapes, dtype, repeats):
    """Median seconds and growth of the process (or of the GPU's memory) in MiB."""
    torch = importlib.import_module("torch")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    names = list(torch_contestants(torch))
    print_heading("N, D, V; seconds (MiB more at the peak)", names)
    for shape in shapes:
        hidden, kernel, labels = (
            torch.from_numpy(np.array(a, np.float32 if a.dtype != jnp.int32 else np.int64))
            for a in inputs(shape, jnp.float32)
        )
        hidden, kernel = (a.to(device, getattr(torch, dtype)) for a in (hidden, kernel.T))
        hidden, kernel = hidden.requires_grad_(), kernel.contiguous().requires_grad_()
        labels, cells = labels.to(device), {}
        # Contestants that need least come first, since the memory of a process never shrinks.
        for name in reversed(names):
            loss, seconds = torch_contestants(torch)[name], []
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            for _ in range(repeats + 1):
                hidden.grad = kernel.grad = None
                if device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated() / 2**20
                start = time.perf_counter()
                loss(hidden, kernel, labels).backward()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
            after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            if device == "cuda":
                after = torch.cuda.max_memory_allocated() / 2**20
            cells[name] = f"{statistics.median(seconds[1:]):.2f} ({after - before:.0f})"
        print_row(shape, names, cells)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--of",
        default="gradients",
        choices=["gradients", "value", "frozen", "per-row", "masked", "options"],
    )
    parser.add_argument("--correct", action="store_true", help="errors instead of times")
    parser.add_argument("--memory", action="store_true", help="memory over N and V instead")
    parser.add_argument("--torch", action="store_true", help="PyTorch instead")
    parser.add_argument(
        "--shape", type=int, nargs=3, action="append", metavar=("N", "D", "V"), help="instead"
    )
    options = parser.parse_args()
    shapes = [tuple(shape) for shape in options.shape or SHAPES]
    if options.torch:
        print_torch(shapes, options.dtype, options.repeats)
        return
    print(environment(), options.dtype, sep="; ")
    if options.correct:
        print_errors()
    elif options.memory:
        print_memory(jnp.dtype(options.dtype))
    else:
        print_speed(shapes, jnp.dtype(options.dtype), options.repeats, options.of)


if __name__ == "__main__":
    main()
