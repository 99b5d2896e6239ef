"""Worst errors of every loss on the hard inputs of the tests, beside the peers'.

Run `python benchmarks/exactness.py` from a clone. The truth is mpmath's on the exact inputs. A cell
reads value / gradient. The unit is the last place of the true value in float32; where the truth is
a difference, that of the sum of its absolute terms, for all contestants alike. A loss that is
rounded to 0 where the truth is not 0 is off by 8e6 to 2e7 units. "lost" counts the rows with a NaN
or an infinity that should not be there; they have no error in units. Gradients at logits of -inf
are left out: there a convention says what is right (jaxent's is 0).
"""

import argparse
import sys
from pathlib import Path

import jax
import numpy as np
from side_by_side import environment

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import peers

from conformance import oracle, table

CLASSES = (2, 10, 1000)


def errors(case, losses, slope):
    """Errors of each row: of its value, and the worst of its gradient."""
    truth, first = case.truth, case.arguments[0]
    value = oracle.scaled_ulps(losses, truth.value, truth.value_scale, np.float32)
    expected, scale = truth.gradients[0], truth.gradient_scales[0]
    gradient = oracle.scaled_ulps(slope, expected, scale, np.float32)
    # The derivative in the target of an impossible class is infinite on paper; 0 is as good.
    gradient = np.where((expected == np.inf) & (slope == 0) | np.isneginf(first), 0.0, gradient)
    return value, gradient.reshape(len(value), -1).max(-1)


def cell(batches):
    """The worst of all batches, as text for the table."""
    value, gradient = (np.concatenate(column) for column in zip(*batches, strict=True))
    worst = " / ".join(number(column) for column in (value, gradient))
    lost = np.sum(~np.isfinite(value) | ~np.isfinite(gradient))
    return f"{worst}, {lost} of {len(value)} lost" if lost else worst


def number(column):
    finite = column[np.isfinite(column)]
    worst = finite.max(initial=0.0)
    return "-" if not len(finite) else f"{worst:.1e}" if worst >= 1000 else f"{worst:.1f}"


def contestants(row):
    """The contestants that have this loss: a name, how to run it, the function, its options."""
    options = dict(row.options)
    yield "jaxent", peers.by_jax, row.function, options
    if row.peer is not None:
        yield "optax", peers.by_jax, row.peer, {}
    if row.name in peers.TORCH:
        yield "torch", peers.by_torch, peers.TORCH[row.name], options
    if row.name in peers.BY_HAND:
        yield "by hand", peers.by_jax, peers.BY_HAND[row.name], options


def measure(row):
    """The cell of each contestant."""
    found = {name: [] for name in ("jaxent", "optax", "torch", "by hand")}
    for classes in CLASSES if row.has_class_axis else CLASSES[:1]:
        case = row.hard_batch(np.float32, classes, 25 if classes > 10 else None)
        for name, run, function, options in contestants(row):
            try:
                result = run(function, case.arguments, options)
            except (TypeError, RuntimeError):
                continue  # the peer lacks an option, or refuses some of the inputs
            found[name].append(errors(case, *result))
    return {name: cell(batches) if batches else "" for name, batches in found.items()}


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    names = sorted({row.name for row in table.CASES})
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help="of these")
    only = parser.parse_args().only
    print(environment())
    print("| loss | jaxent | optax | torch | by hand |")
    print("|---|---|---|---|---|")
    for row in table.CASES:
        if not only or row.name in only:
            cells = [str(row).removesuffix("()"), *measure(row).values()]
            print("| " + " | ".join(cells) + " |", flush=True)
            jax.clear_caches()


if __name__ == "__main__":
    main()
