"""Cross-entropy through a linear head: jaxent beside plain logits and beside bare products.

Run `python benchmarks/linear_head.py`. Value and gradients of the mean over [N, D] x [D, V], in one
process, contestants interleaved. Three contestants:

* plain: optax's cross-entropy of all the logits at once;
* jaxent: `linear_softmax_cross_entropy` with its own choice of chunks;
* bare: nothing but the three matrix products of the same chunks, which bound what is possible.

A speed is the time of plain logits over the contestant's: above 1 is faster than plain.
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from side_by_side import environment, medians, temporary_mebibytes

import jaxent
from jaxent._row_sweep import rows_per_chunk

SHAPES = [(2048, 512, 32768), (4096, 256, 65536), (1024, 1024, 16384), (8192, 128, 131072)]


def plain(hidden, kernel, labels):
    logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def bare_products(hidden, kernel, labels):
    """The logits of each chunk, and two products with them, accumulated."""
    rows, features = hidden.shape
    chunk = rows_per_chunk(rows, kernel.shape[1], None)
    steps = rows // chunk  # a ragged rest is left out, in favour of the bare products
    del labels

    def step(kernel_sum, hidden):
        logits = jnp.matmul(hidden, kernel, preferred_element_type=jnp.float32)
        operand = logits.astype(hidden.dtype)
        kernel_sum += jnp.matmul(hidden.T, operand, preferred_element_type=jnp.float32)
        return kernel_sum, jnp.matmul(operand, kernel.T, preferred_element_type=jnp.float32)

    chunks = hidden[: steps * chunk].reshape(steps, chunk, features)
    return jax.lax.scan(step, jnp.zeros(kernel.shape, jnp.float32), chunks)


def measure(shape, dtype, repeats):
    rows, features, classes = shape
    keys = jax.random.split(jax.random.key(0), 3)
    hidden = jax.random.normal(keys[0], (rows, features)).astype(dtype)
    kernel = (jax.random.normal(keys[1], (features, classes)) / features**0.5).astype(dtype)
    labels = jax.random.randint(keys[2], (rows,), 0, classes)
    contestants = {
        "plain": jax.value_and_grad(plain, (0, 1)),
        "jaxent": jax.value_and_grad(jaxent.linear_softmax_cross_entropy, (0, 1)),
        "bare": bare_products,
    }
    arguments = hidden, kernel, labels
    programs = {
        name: jax.jit(function).lower(*arguments).compile()
        for name, function in contestants.items()
    }
    seconds = medians(programs, arguments, repeats)
    return seconds, {name: temporary_mebibytes(program) for name, program in programs.items()}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument(
        "--shape", type=int, nargs=3, action="append", metavar=("N", "D", "V"), help="instead"
    )
    options = parser.parse_args()
    print(environment(), options.dtype, sep="; ")
    print("| N, D, V | plain s | jaxent s | bare s | speed | of bare | plain MiB | jaxent MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for shape in options.shape or SHAPES:
        seconds, memory = measure(shape, jnp.dtype(options.dtype), options.repeats)
        print(
            f"| {', '.join(map(str, shape))}",
            *(f"{seconds[name]:.2f}" for name in ("plain", "jaxent", "bare")),
            f"{seconds['plain'] / seconds['jaxent']:.2f}x",
            f"{seconds['bare'] / seconds['jaxent']:.0%}",
            *(f"{memory[name]:.0f}" for name in ("plain", "jaxent")),
            sep=" | ",
            end=" |\n",
            flush=True,
        )


if __name__ == "__main__":
    main()
