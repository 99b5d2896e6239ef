"""The dense losses beside optax's: time of the value, and of the value and gradient.

Run `python benchmarks/dense.py`, on a CPU or on a GPU. Both contestants are jitted, run in one
process, and take turns in random order; a figure is jaxent's median time over optax's, so below 1
is faster than optax. Gradients are those of the mean, with respect to the first argument.
"""

import argparse

import jax
import jax.numpy as jnp
import optax
from side_by_side import environment, medians

import jaxent

SHAPES = [(8192, 1000), (1024, 32000), (64, 262144)]
DTYPES = ["float32", "bfloat16"]


def logits_and_classes(key, shape, dtype):
    logits, labels = jax.random.split(key)
    classes = jax.random.randint(labels, shape[:1], 0, shape[1])
    return (3 * jax.random.normal(logits, shape)).astype(dtype), classes


def logits_and_distributions(key, shape, dtype):
    logits, classes = logits_and_classes(key, shape, dtype)
    one_hot = jax.nn.one_hot(classes, shape[1], dtype=jnp.float32)
    return logits, optax.smooth_labels(one_hot, 0.1).astype(dtype)


def logits_and_answers(key, shape, dtype):
    logits, labels = jax.random.split(key)
    answers = jax.random.bernoulli(labels, 0.3, shape).astype(dtype)
    return (3 * jax.random.normal(logits, shape)).astype(dtype), answers


def pairs(key, shape, dtype):
    first, second = jax.random.split(key)
    return tuple((3 * jax.random.normal(k, shape)).astype(dtype) for k in (first, second))


# Name, jaxent's function, optax's, and how to make their arguments.
CASES = [
    (
        "integer labels",
        jaxent.softmax_cross_entropy_with_integer_labels,
        optax.softmax_cross_entropy_with_integer_labels,
        logits_and_classes,
    ),
    (
        "soft labels",
        jaxent.softmax_cross_entropy,
        optax.softmax_cross_entropy,
        logits_and_distributions,
    ),
    (
        "sigmoid",
        jaxent.sigmoid_binary_cross_entropy,
        optax.sigmoid_binary_cross_entropy,
        logits_and_answers,
    ),
    ("focal", jaxent.sigmoid_focal_loss, optax.sigmoid_focal_loss, logits_and_answers),
    ("Huber", jaxent.huber_loss, optax.huber_loss, pairs),
    ("log-cosh", jaxent.log_cosh, optax.log_cosh, pairs),
    ("squared error", jaxent.squared_error, optax.squared_error, pairs),
]


def ratios(ours, theirs, arguments, repeats):
    """The time of jaxent over that of optax: of the losses, and of their mean with its gradient."""

    def mean_of(loss):
        # In float32, since the mean of bfloat16 losses would be a rough one.
        return lambda *a: jnp.mean(loss(*a).astype(jnp.float32))

    for wrap in (lambda loss: loss, lambda loss: jax.value_and_grad(mean_of(loss))):
        contestants = {"ours": jax.jit(wrap(ours)), "theirs": jax.jit(wrap(theirs))}
        seconds = medians(contestants, arguments, repeats)
        yield seconds["ours"] / seconds["theirs"]


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=[name for name, *_ in CASES], action="append")
    parser.add_argument("--dtype", choices=DTYPES, action="append")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument(
        "--shape", type=int, nargs=2, action="append", metavar=("N", "V"), help="instead"
    )
    options = parser.parse_args()
    print(environment())
    print("| loss | dtype | shape | value | value and gradient |")
    print("|---|---|---|---|---|")
    for name, ours, theirs, make in CASES:
        if options.only and name not in options.only:
            continue
        for dtype in options.dtype or DTYPES:
            for shape in options.shape or SHAPES:
                arguments = jax.jit(make, static_argnums=(1, 2))(
                    jax.random.key(0), tuple(shape), jnp.dtype(dtype)
                )
                value, gradient = ratios(ours, theirs, arguments, options.repeats)
                size = ", ".join(map(str, shape))
                print(f"| {name} | {dtype} | {size} | {value:.2f}x | {gradient:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
