"""CTC beside optax's and PyTorch's: time of the losses, and of their sum with its gradient.

Run `python benchmarks/ctc.py`. The contestants run in one process and take turns in random order;
the times are medians, and below a ratio of 1 jaxent is faster. PyTorch is optional, on the CPU, and
gets log-probabilities from its own log_softmax, as its users do. "Sure" logits lead by 20 along an
alignment; there jaxent computes the loss from 1 minus its probability.
"""

import argparse
import functools
import importlib
import importlib.util
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from side_by_side import environment, medians

import jaxent

# Sequences, frames, labels, classes.
SHAPES = [(32, 512, 100, 128), (8, 1000, 200, 64), (64, 128, 20, 32), (1, 512, 100, 128)]
LARGE_VOCABULARY = (4, 256, 40, 5000)


def arguments(shape, is_sure):
    batch, frames, count, classes = shape
    generator = np.random.default_rng(0)
    labels = generator.integers(1, classes, size=(batch, count)).astype(np.int32)
    logits = generator.normal(size=(batch, frames, classes)).astype(np.float32)
    if is_sure:
        alignment = np.zeros((batch, frames), np.int64)
        step = frames // count
        alignment[:, : step * count : step] = labels
        logits += 20 * np.eye(classes, dtype=np.float32)[alignment]
    paddings = np.zeros((batch, frames), np.float32), np.zeros((batch, count), np.float32)
    return tuple(map(jnp.asarray, (logits, paddings[0], labels, paddings[1])))


def jax_contestants(loss):
    def total(logits, *rest):
        return jnp.sum(loss(logits, *rest))

    return jax.jit(loss), jax.jit(jax.value_and_grad(total))


def torch_contestants():
    torch = importlib.import_module("torch")

    def losses(logits, logit_paddings, labels, label_paddings):
        frames, places = (
            torch.full((len(p),), p.shape[1]) for p in (logit_paddings, label_paddings)
        )
        log_probs = torch.nn.functional.log_softmax(logits, dim=-1).transpose(0, 1)
        return torch.nn.functional.ctc_loss(log_probs, labels, frames, places, reduction="none")

    def wrapped(*given):
        logits, *rest = (torch.from_numpy(np.array(array)) for array in given)
        return (
            functools.partial(losses, logits, *rest),
            functools.partial(slope, logits, *rest),
        )

    def slope(logits, *rest):
        logits = logits.detach().requires_grad_()
        losses(logits, *rest).sum().backward()
        return logits.grad.numpy()

    return wrapped


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--shape", type=int, nargs=4, action="append", metavar=("B", "T", "N", "K"))
    options = parser.parse_args()
    print(environment())
    print("| B, T, N, K | logits | timed | jaxent | optax | torch | of optax | of torch |")
    print("|---|---|---|---|---|---|---|---|")
    cases = [(tuple(s), False) for s in options.shape or [*SHAPES, LARGE_VOCABULARY]]
    for shape, is_sure in [*cases, (cases[0][0], True)]:
        given = arguments(shape, is_sure)
        pairs = {
            name: [functools.partial(f, *given) for f in jax_contestants(loss)]
            for name, loss in (("jaxent", jaxent.ctc_loss), ("optax", optax.ctc_loss))
        }
        if importlib.util.find_spec("torch"):
            pairs["torch"] = list(torch_contestants()(*given))
        for index, timed in enumerate(("value", "value and gradient")):
            turns: dict[str, Callable] = {name: each[index] for name, each in pairs.items()}
            seconds = medians(turns, (), options.repeats)
            torch = seconds.get("torch", float("nan"))
            cells = [", ".join(map(str, shape)), "sure" if is_sure else "plain", timed]
            cells += [f"{1e3 * s:.1f} ms" for s in (seconds["jaxent"], seconds["optax"], torch)]
            cells += [f"{seconds['jaxent'] / s:.2f}x" for s in (seconds["optax"], torch)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
