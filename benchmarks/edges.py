"""What each library does at the edges: sure and right, impossible classes, bad labels, no rows.

Run `python benchmarks/edges.py`. Columns are jaxent, optax, and PyTorch and tokamax where they are
installed. The dense losses are cross-entropies of one row of three logits; tokamax has none. The
streamed heads follow; their results are compared with the dense loss of the same logits.
"""

import importlib.metadata
import importlib.util
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from side_by_side import environment

import jaxent

SURE, NONE = [20.0, 0.0, 0.0], [0.0, 0.0, 0.0]
MASKED, HALVES = [1.0, float("-inf"), 0.0], [0.5, 0.0, 0.5]
QUESTIONS = (
    "loss of [20, 0, 0], label 0: 4.12e-9",
    "its gradient at the label: -4.12e-9",
    "label -1",
    "label 3 of 3 classes",
    "target 0 at a logit of -inf: 0.813",
    "mean over no rows",
    "loss of bfloat16 logits",
    "through a streamed head",
    "label -1 there",
    "forward mode there",
    "Hessian there",
)
HIDDEN, KERNEL = (
    np.random.default_rng(seed).normal(size=shape).astype(np.float32) / 8
    for seed, shape in enumerate([(8, 128), (128, 256)])
)
LABELS = np.arange(8)


def answer(question):
    """The answer of a contestant, in a few characters."""
    try:
        said = question()
    except Exception as error:
        return type(error).__name__
    return said if isinstance(said, str) else f"{float(said):.3g}"


def judged(found, dense):
    """Whether two numbers agree."""
    return "yes" if np.isclose(found, dense, rtol=1e-3) else f"{found:.3g} instead of {dense:.3g}"


def of_jax(integer, soft):
    """A call for each question about dense losses, functions of JAX arrays: one loss per row."""
    sure = jnp.array(SURE)
    return [
        lambda: integer(sure, 0),
        lambda: jax.grad(integer)(sure, 0)[0],
        lambda: integer(jnp.array(NONE), -1),
        lambda: integer(jnp.array(NONE), 3),
        lambda: soft(jnp.array(MASKED), jnp.array(HALVES)),
    ]


def of_head(head):
    """A call for each question about a head, a function of hidden states, labels and a kernel."""

    def total(hidden):
        return head(hidden, jnp.asarray(LABELS), jnp.asarray(KERNEL))

    def dense(hidden):
        logits = hidden @ jnp.asarray(KERNEL)
        return jnp.sum(optax.softmax_cross_entropy_with_integer_labels(logits, LABELS))

    hidden = jnp.asarray(HIDDEN)
    along = [lambda f=f: jax.jvp(f, (hidden,), (hidden,))[1] for f in (total, dense)]
    bend = [
        lambda f=f: jax.jvp(lambda h: jnp.sum(jax.grad(f)(h) * hidden), (hidden,), (hidden,))[1]
        for f in (total, dense)
    ]
    return [
        lambda: head(hidden, jnp.asarray(LABELS - 1), jnp.asarray(KERNEL)),
        lambda: judged(*(f() for f in along)),
        lambda: judged(*(f() for f in bend)),
    ]


def of_jaxent():
    integer, nobody = jaxent.softmax_cross_entropy_with_integer_labels, jnp.array([False])

    def head(hidden, labels, kernel):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, reduction="sum")

    return [
        *of_jax(lambda x, label: integer(x, jnp.array(label)), jaxent.softmax_cross_entropy),
        lambda: jaxent.mean(jnp.ones(1), where=nobody),
        lambda: str(integer(jnp.zeros(3, jnp.bfloat16), jnp.array(0)).dtype),
        lambda: "any loss",
        *of_head(head),
    ]


def of_optax():
    integer = optax.softmax_cross_entropy_with_integer_labels
    return [
        *of_jax(lambda x, label: integer(x, jnp.array(label)), optax.softmax_cross_entropy),
        lambda: "none",
        lambda: str(integer(jnp.zeros(3, jnp.bfloat16), jnp.array(0)).dtype),
        lambda: "none",
    ]


def of_torch():
    torch: Any = importlib.import_module("torch")
    grad, jvp = torch.func.grad, torch.func.jvp
    cross_entropy = torch.nn.functional.cross_entropy
    linear_cross_entropy = torch.nn.functional.linear_cross_entropy
    in_chunks = torch.nn.LinearCrossEntropyOptions()

    def loss(logits, target, dtype=torch.float32):
        return cross_entropy(torch.tensor(logits, dtype=dtype), torch.tensor(target))

    hidden, kernel = torch.tensor(HIDDEN), torch.tensor(KERNEL.T.copy())

    def head(hidden, options=None, labels=LABELS):
        labels = torch.tensor(labels)
        return linear_cross_entropy(hidden, kernel, labels, reduction="sum", options=options)

    def streamed(hidden):
        return head(hidden, in_chunks)

    def bend(function):
        slope = grad(function)
        return jvp(lambda h: (slope(h) * hidden).sum(), (hidden,), (hidden,))[1].item()

    return [
        lambda: loss(SURE, 0),
        lambda: grad(lambda x: cross_entropy(x, torch.tensor(0)))(torch.tensor(SURE))[0],
        lambda: loss(NONE, -1),
        lambda: loss(NONE, 3),
        lambda: loss(MASKED, HALVES),
        lambda: loss(NONE, -100),
        lambda: str(loss(NONE, 0, torch.bfloat16).dtype).removeprefix("torch."),
        lambda: "cross-entropy",
        lambda: head(hidden, in_chunks, LABELS - 1),
        lambda: judged(*(jvp(f, (hidden,), (hidden,))[1].item() for f in (streamed, head))),
        lambda: judged(bend(streamed), bend(head)),
    ]


def of_tokamax():
    tokamax: Any = importlib.import_module("tokamax")

    def head(hidden, labels, kernel):
        return tokamax.linear_softmax_cross_entropy_loss(hidden, labels, kernel)

    return ["none"] * 7 + [lambda: "cross-entropy", *of_head(head)]


def main():
    contestants = {"jaxent": of_jaxent, "optax": of_optax}
    others = {"torch": of_torch, "tokamax": of_tokamax}
    contestants |= {n: f for n, f in others.items() if importlib.util.find_spec(n)}
    warnings.simplefilter("ignore")
    answers = []
    for questions in contestants.values():
        given = [each if isinstance(each, str) else answer(each) for each in questions()]
        answers.append(given + [""] * (len(QUESTIONS) - len(given)))
    versions = [f"{n} {importlib.metadata.version(n)}" for n in list(contestants)[2:]]
    print("; ".join([environment(), *versions]))
    print("\n| |", " | ".join(contestants), "|")
    print("|---|" + "---|" * len(contestants))
    for question, *row in zip(QUESTIONS, *answers, strict=True):
        print(f"| {question} |", " | ".join(row), "|")


if __name__ == "__main__":
    main()
