"""What exactness costs in programs: each loss beside the plain formula of it.

    python benchmarks/lean.py
    python benchmarks/lean.py v5e  # or v5p, v6e, h100: see accelerators.py for what to install

Of the mean and its gradient, jaxent's over the plain formula's: equations of the jaxpr,
instructions of XLA's program, seconds to trace and to compile, the time of a call without
`jax.jit`; and the MiB of temporaries of both, on this CPU. With a chip nothing is run: costs are
estimated, of the mean and of the mean and its gradient, and MiB are compiled.
"""

import argparse
import itertools
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax.losses
from side_by_side import environment, medians, temporary_mebibytes

import jaxent

# Plain formulas, as people write them, in float32.


def kl_of_logits(x, target_x):
    log_p, log_q = jax.nn.log_softmax(x), jax.nn.log_softmax(target_x)
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=-1)


def jensen_shannon_of_logits(a, b):
    p, q = jax.nn.softmax(a), jax.nn.softmax(b)
    log_m = jnp.log(0.5 * (p + q))
    terms = p * (jax.nn.log_softmax(a) - log_m) + q * (jax.nn.log_softmax(b) - log_m)
    return 0.5 * jnp.sum(terms, axis=-1)


def entropy_of_logits(x):
    log_p = jax.nn.log_softmax(x)
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def squared_log_normalizer(x):
    return jax.nn.logsumexp(x, axis=-1) ** 2


def triplet(anchor, positive, negative):
    far, near = (jnp.linalg.norm(anchor - each, axis=-1) for each in (negative, positive))
    return jnp.maximum(near - far + 1.0, 0.0)


def of_probabilities(p, targets):
    return -jnp.sum(targets * jnp.log(p), axis=-1)


def brier(p, targets):
    return jnp.sum(jnp.square(p - targets), axis=-1)


# Arguments.


def normal(seed, shape):
    return (3 * np.random.default_rng(seed).normal(size=shape)).astype(np.float32)


def distribution(seed, shape):
    return np.asarray(jax.nn.softmax(normal(seed, shape)))


def logits_and_classes(shape):
    classes = np.random.default_rng(1).integers(shape[-1], size=shape[:-1], dtype=np.int32)
    return normal(0, shape), classes


def logits_and_distribution(shape):
    return normal(0, shape), distribution(1, shape)


def logits_and_answers(shape):
    return normal(0, shape), (normal(1, shape) > 0.0).astype(np.float32)


def two_of_logits(shape):
    return normal(0, shape), normal(1, shape)


def two_distributions(shape):
    return distribution(0, shape), distribution(1, shape)


def log_and_distribution(shape):
    return np.log(distribution(0, shape)), distribution(1, shape)


CASES = {
    "integer labels": (
        jaxent.softmax_cross_entropy_with_integer_labels,
        optax.losses.softmax_cross_entropy_with_integer_labels,
        logits_and_classes,
    ),
    "soft labels": (
        jaxent.softmax_cross_entropy,
        optax.losses.softmax_cross_entropy,
        logits_and_distribution,
    ),
    "poly": (
        jaxent.poly_loss_cross_entropy,
        optax.losses.poly_loss_cross_entropy,
        logits_and_distribution,
    ),
    "softmax_kl_divergence": (jaxent.softmax_kl_divergence, kl_of_logits, two_of_logits),
    "softmax_jensen_shannon": (
        jaxent.softmax_jensen_shannon,
        jensen_shannon_of_logits,
        two_of_logits,
    ),
    "softmax_entropy": (
        jaxent.softmax_entropy,
        entropy_of_logits,
        lambda shape: (normal(0, shape),),
    ),
    "z_loss": (jaxent.z_loss, squared_log_normalizer, lambda shape: (normal(0, shape),)),
    "kl_divergence": (jaxent.kl_divergence, optax.losses.kl_divergence, log_and_distribution),
    "categorical_cross_entropy": (
        jaxent.categorical_cross_entropy,
        of_probabilities,
        two_distributions,
    ),
    "brier_score": (jaxent.brier_score, brier, two_distributions),
    "sigmoid": (
        jaxent.sigmoid_binary_cross_entropy,
        optax.losses.sigmoid_binary_cross_entropy,
        logits_and_answers,
    ),
    "focal": (jaxent.sigmoid_focal_loss, optax.losses.sigmoid_focal_loss, logits_and_answers),
    "Huber": (jaxent.huber_loss, optax.losses.huber_loss, two_of_logits),
    "log-cosh": (jaxent.log_cosh, optax.losses.log_cosh, two_of_logits),
    "squared error": (jaxent.squared_error, optax.losses.squared_error, two_of_logits),
    "cosine": (jaxent.cosine_distance, optax.losses.cosine_distance, two_of_logits),
    "triplet": (
        jaxent.triplet_margin_loss,
        triplet,
        lambda shape: (*two_of_logits(shape), normal(2, shape)),
    ),
    "ranking softmax": (
        jaxent.ranking_softmax_loss,
        optax.losses.ranking_softmax_loss,
        logits_and_answers,
    ),
}


SMALL = (8, 16)


def mean_of(loss):
    return lambda *arguments: jnp.mean(loss(*arguments))


def value_and_gradient(loss):
    return jax.value_and_grad(mean_of(loss))


def equations(jaxpr):
    """How many equations a jaxpr has, with those of what it calls in their place."""
    return sum(sum(map(equations, called(equation.params))) or 1 for equation in jaxpr.eqns)


def called(parameters):
    """The jaxprs among the parameters of an equation."""
    values = itertools.chain.from_iterable(
        value if isinstance(value, tuple | list) else (value,) for value in parameters.values()
    )
    jaxprs = (getattr(value, "jaxpr", value) for value in values)
    return [each for each in jaxprs if hasattr(each, "eqns")]


def measured(loss, arguments):
    """The equations, instructions, seconds and MiB of the mean and its gradient."""
    function = jax.jit(value_and_gradient(loss))
    start = time.perf_counter()
    traced = function.trace(*arguments)
    lowered = traced.lower()
    middle = time.perf_counter()
    program = lowered.compile()
    end = time.perf_counter()
    instructions = sum(" = " in line for line in (program.as_text() or "").splitlines())
    return (
        equations(traced.jaxpr.jaxpr),
        instructions,
        middle - start,
        end - middle,
        temporary_mebibytes(program),
    )


def on_this_cpu(shape):
    print(environment() + "\n")
    print("| loss | equations | instructions | trace | compile | eager | MiB, plain's |")
    print("|---|---|---|---|---|---|---|")
    for name, (ours, theirs, make) in CASES.items():
        arguments = make(shape)
        pair = [measured(loss, arguments) for loss in (ours, theirs)]
        small = tuple(map(jnp.asarray, make(SMALL)))
        eager = {"ours": value_and_gradient(ours), "theirs": value_and_gradient(theirs)}
        seconds = medians(eager, small, 15)
        ratios = [f"{a / b:.1f}x" for a, b in list(zip(*pair, strict=True))[:4]]
        ratios.append(f"{seconds['ours'] / seconds['theirs']:.2f}x")
        print(
            f"| {name} |", " | ".join(ratios), f"| {pair[0][4]:.1f}, {pair[1][4]:.1f} |", flush=True
        )


def on_a_chip(chip, shape):
    # It sets variables that have to be set before JAX looks for chips.
    from accelerators import compiled_for, estimate

    print(f"jax {jax.__version__}; {chip}, {shape}; estimated costs over plain's, compiled MiB\n")
    print(
        "| loss | value | MiB, plain's | value and gradient | MiB, plain's |\n|---|---|---|---|---|"
    )
    for name, (ours, theirs, make) in CASES.items():
        small = make(SMALL)
        arguments = [jax.ShapeDtypeStruct(shape[: each.ndim], each.dtype) for each in small]
        cells = []
        for wrap in (mean_of, value_and_gradient):
            programs = [compiled_for(chip, wrap(loss), *arguments) for loss in (ours, theirs)]
            (our_cost, _), (cost, _) = (estimate(chip, program) for program in programs)
            cells.append(f"{our_cost / cost:.2f}x")
            cells.append(", ".join(f"{temporary_mebibytes(p):.0f}" for p in programs))
        print(f"| {name} |", " | ".join(cells), "|", flush=True)


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("chip", nargs="?", choices=["v5e", "v5p", "v6e", "h100"])
    parser.add_argument("--shape", default="8192,32768" if len(sys.argv) > 1 else "8192,1000")
    arguments = parser.parse_args()
    shape = tuple(map(int, arguments.shape.split(",")))
    on_a_chip(arguments.chip, shape) if arguments.chip else on_this_cpu(shape)


if __name__ == "__main__":
    main()
