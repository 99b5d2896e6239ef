"""Every function of optax.losses beside jaxent's: time of the value, and with its gradient.

Run `python benchmarks/beside_optax.py`. Both contestants are jitted, run in one process, and take
turns in random order; a figure is jaxent's median time over optax's, so below 1 is faster. The
gradient is that of the mean with respect to the first argument. The last column says what, if
anything, is wrong with optax's result on the inputs of jaxent's tests: there the time buys a right
result. Other sizes, dtypes and CTC are in dense.py and ctc.py.
"""

import argparse
import warnings

import jax
import jax.numpy as jnp
import optax.losses
from side_by_side import environment, medians

import jaxent

ROWS, CLASSES = 4096, 1000
TINY = "0 where the model is sure"
VALUE_ALONE = "a transform: nothing is differentiated"


def normal(*shape):
    return lambda key: 3.0 * jax.random.normal(key, shape)


def classes(*shape, count):
    return lambda key: jax.random.randint(key, shape, 0, count)


def distributions(*shape):
    return lambda key: jax.nn.softmax(jax.random.normal(key, shape))


def log_distributions(*shape):
    return lambda key: jax.nn.log_softmax(jax.random.normal(key, shape))


def signs(*shape):
    return lambda key: jnp.where(jax.random.bernoulli(key, 0.5, shape), 1.0, -1.0)


def answers(*shape):
    return lambda key: jax.random.bernoulli(key, 0.3, shape).astype(jnp.float32)


def one_hot(*shape):
    return lambda key: jax.nn.one_hot(
        jax.random.randint(key, shape[:-1], 0, shape[-1]), shape[-1], dtype=jnp.float32
    )


def zeros(*shape):
    return lambda _: jnp.zeros(shape)


LOGITS, CLASS = normal(ROWS, CLASSES), classes(ROWS, count=CLASSES)
ELEMENTS, PIXELS = (ROWS, CLASSES), (16, 96, 96)

# Name: a function that makes its arguments, what is wrong with optax's result, and options.
CASES = {
    "softmax_cross_entropy": ((LOGITS, distributions(*ELEMENTS)), TINY, {}),
    "softmax_cross_entropy_with_integer_labels": ((LOGITS, CLASS), TINY, {}),
    "safe_softmax_cross_entropy": ((LOGITS, distributions(*ELEMENTS)), TINY, {}),
    "poly_loss_cross_entropy": ((LOGITS, distributions(*ELEMENTS)), TINY, {}),
    "sigmoid_binary_cross_entropy": ((LOGITS, answers(*ELEMENTS)), "", {}),
    "sigmoid_focal_loss": ((LOGITS, answers(*ELEMENTS)), "NaN at infinite logits", {}),
    "kl_divergence": (
        (log_distributions(*ELEMENTS), distributions(*ELEMENTS)),
        "NaN at zeros, negative",
        {},
    ),
    "kl_divergence_with_log_targets": (
        (log_distributions(*ELEMENTS), log_distributions(*ELEMENTS)),
        "NaN at zeros, negative",
        {},
    ),
    "generalized_kl_divergence": (
        (log_distributions(*ELEMENTS), distributions(*ELEMENTS)),
        "NaN at zeros, negative",
        {},
    ),
    "convex_kl_divergence": (
        (log_distributions(*ELEMENTS), distributions(*ELEMENTS)),
        "NaN at zeros, negative",
        {},
    ),
    "smooth_labels": ((distributions(*ELEMENTS),), VALUE_ALONE, {"alpha": 0.1}),
    "squared_error": ((normal(*ELEMENTS), normal(*ELEMENTS)), "", {}),
    "l2_loss": ((normal(*ELEMENTS), normal(*ELEMENTS)), "", {}),
    "huber_loss": ((normal(*ELEMENTS), normal(*ELEMENTS)), "gradient 0 for small errors", {}),
    "log_cosh": ((normal(*ELEMENTS), normal(*ELEMENTS)), "0 for small errors, negative", {}),
    "cosine_similarity": ((normal(*ELEMENTS), normal(*ELEMENTS)), "NaN at zero vectors", {}),
    "cosine_distance": ((normal(*ELEMENTS), normal(*ELEMENTS)), "0 or negative if near", {}),
    "hinge_loss": ((normal(*ELEMENTS), signs(*ELEMENTS)), "", {}),
    "perceptron_loss": ((normal(*ELEMENTS), signs(*ELEMENTS)), "", {}),
    "sparsemax_loss": ((normal(*ELEMENTS), classes(*ELEMENTS, count=2)), "", {}),
    "multiclass_hinge_loss": ((LOGITS, CLASS), "", {}),
    "multiclass_perceptron_loss": ((LOGITS, CLASS), "", {}),
    "multiclass_sparsemax_loss": ((LOGITS, CLASS), "", {}),
    "make_fenchel_young_loss": (
        (LOGITS, distributions(*ELEMENTS)),
        "",
        {"max_fun": jax.nn.logsumexp},
    ),
    "ranking_softmax_loss": ((LOGITS, answers(*ELEMENTS)), TINY, {}),
    "dice_loss": ((normal(*PIXELS, 4), one_hot(*PIXELS, 4)), "0 for good masks", {}),
    "binary_dice_loss": ((normal(*PIXELS), answers(*PIXELS)), "0 for good masks", {}),
    "multiclass_generalized_dice_loss": (
        (normal(*PIXELS, 4), one_hot(*PIXELS, 4)),
        "0 for good masks",
        {},
    ),
    "ntxent": ((normal(512, 128), classes(512, count=64)), "gradient NaN where positives lead", {}),
    "triplet_margin_loss": (
        (normal(*ELEMENTS), normal(*ELEMENTS), normal(*ELEMENTS)),
        "wrong or NaN for odd degrees",
        {},
    ),
    "ctc_loss": (
        (normal(8, 128, 64), zeros(8, 128), classes(8, 24, count=63), zeros(8, 24)),
        "negative; -1e5 for minus infinity",
        {"blank_id": 63},
    ),
    "ctc_loss_with_forward_probs": (
        (normal(8, 128, 64), zeros(8, 128), classes(8, 24, count=63), zeros(8, 24)),
        "negative; -1e5 for minus infinity",
        {"blank_id": 63},
    ),
}


def contestant(module, name, options):
    """The loss of that name, or the loss that a function of that name makes."""
    function = getattr(module, name)
    if name.startswith("make_"):
        return function(**options)
    return lambda *arguments: function(*arguments, **options)


def ratios(name, arguments, options, repeats):
    """The time of jaxent over that of optax: of the result, and of its mean with the gradient."""

    def mean_of(loss):
        def of(*arguments):
            result = loss(*arguments)
            return jnp.mean(result[0] if isinstance(result, tuple) else result)

        return of

    modules = {"ours": jaxent, "theirs": optax.losses}
    for wrap in (lambda loss: loss, lambda loss: jax.value_and_grad(mean_of(loss))):
        contestants = {
            who: jax.jit(wrap(contestant(module, name, options))) for who, module in modules.items()
        }
        seconds = medians(contestants, arguments, repeats)
        yield seconds["ours"] / seconds["theirs"]


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=CASES, action="append")
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()
    warnings.simplefilter("ignore", DeprecationWarning)
    print(environment())
    print("| function | first argument | value | value and gradient | optax's result |")
    print("|---|---|---|---|---|")
    for name, (makers, wrong, keywords) in CASES.items():
        if options.only and name not in options.only:
            continue
        keys = jax.random.split(jax.random.key(0), len(makers))
        arguments = [make(key) for make, key in zip(makers, keys, strict=True)]
        value, gradient = (f"{r:.2f}x" for r in ratios(name, arguments, keywords, options.repeats))
        if wrong is VALUE_ALONE:
            gradient = ""
        size = ", ".join(map(str, arguments[0].shape))
        print(f"| {name} | {size} | {value} | {gradient} | {wrong} |", flush=True)


if __name__ == "__main__":
    main()
