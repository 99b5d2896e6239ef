"""What a JAX user writes by hand, and PyTorch's functions, beside the losses of the contract table.

Each entry takes the same arguments as jaxent's function and returns one loss per example. Torch is
optional; without it its column stays empty.
"""

import importlib
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _picked(log_probs, labels):
    return jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]


def _integer(logits, labels, label_smoothing=0.0):
    log_probs = jax.nn.log_softmax(logits)
    sure = -_picked(log_probs, labels)
    return (1 - label_smoothing) * sure - label_smoothing * jnp.mean(log_probs, axis=-1)


def _soft(logits, labels, label_smoothing=0.0):
    targets = (1 - label_smoothing) * labels + label_smoothing / logits.shape[-1]
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def _sigmoid(logits, labels, label_smoothing=0.0, pos_weight=1.0):
    targets = (1 - label_smoothing) * labels + label_smoothing / 2
    yes, no = jax.nn.log_sigmoid(logits), jax.nn.log_sigmoid(-logits)
    return -(pos_weight * targets * yes + (1 - targets) * no)


def _sigmoid_focal(logits, labels, alpha=None, gamma=2.0):
    p = jax.nn.sigmoid(logits)
    wrong = 1 - (p * labels + (1 - p) * (1 - labels))
    losses = wrong**gamma * _sigmoid(logits, labels)
    return losses if alpha is None else (alpha * labels + (1 - alpha) * (1 - labels)) * losses


def _softmax_focal(logits, labels, gamma=2.0):
    log_p = _picked(jax.nn.log_softmax(logits), labels)
    return -((1 - jnp.exp(log_p)) ** gamma) * log_p


def _entropy(probs):
    return -jnp.sum(probs * jnp.log(probs), axis=-1)


def _kl(logits, target_logits):
    targets = jax.nn.log_softmax(target_logits)
    return jnp.sum(jnp.exp(targets) * (targets - jax.nn.log_softmax(logits)), axis=-1)


def _mixture_divergence(a, b):
    middle = (a + b) / 2
    to_middle = [jnp.sum(p * (jnp.log(p) - jnp.log(middle)), axis=-1) for p in (a, b)]
    return (to_middle[0] + to_middle[1]) / 2


def _huber(predictions, targets, delta=1.0):
    error = jnp.abs(predictions - targets)
    return jnp.where(error < delta, error**2 / 2, delta * (error - delta / 2))


# With jax.nn and jax.numpy, as a user would write it without thinking of rounding.
BY_HAND = {
    "softmax_cross_entropy_with_integer_labels": _integer,
    "softmax_cross_entropy": _soft,
    "sigmoid_binary_cross_entropy": _sigmoid,
    "z_loss": lambda logits: jax.nn.logsumexp(logits, axis=-1) ** 2,
    "sigmoid_focal_loss": _sigmoid_focal,
    "softmax_focal_loss": _softmax_focal,
    "generalized_cross_entropy": lambda logits, labels, q=0.7: (
        (1 - _picked(jax.nn.softmax(logits), labels) ** q) / q
    ),
    "poly_loss_cross_entropy": lambda logits, labels, epsilon=2.0: (
        _soft(logits, labels) + epsilon * (1 - jnp.sum(jax.nn.softmax(logits) * labels, axis=-1))
    ),
    "binary_cross_entropy": lambda probs, labels: (
        -(labels * jnp.log(probs) + (1 - labels) * jnp.log(1 - probs))
    ),
    "categorical_cross_entropy": lambda probs, labels: -jnp.sum(labels * jnp.log(probs), axis=-1),
    "cross_entropy": lambda targets, predictions: -jnp.sum(targets * jnp.log(predictions), axis=-1),
    "entropy": _entropy,
    "binary_entropy": lambda probs: -(probs * jnp.log(probs) + (1 - probs) * jnp.log(1 - probs)),
    "kl_divergence": lambda log_predictions, targets: jnp.sum(
        targets * (jnp.log(targets) - log_predictions), axis=-1
    ),
    "jensen_shannon_divergence": _mixture_divergence,
    "softmax_entropy": lambda logits: _entropy(jax.nn.softmax(logits)),
    "softmax_kl_divergence": _kl,
    "softmax_jensen_shannon": lambda a, b: _mixture_divergence(
        jax.nn.softmax(a), jax.nn.softmax(b)
    ),
    "sigmoid_entropy": lambda logits: (
        -jax.nn.sigmoid(logits) * jax.nn.log_sigmoid(logits)
        - jax.nn.sigmoid(-logits) * jax.nn.log_sigmoid(-logits)
    ),
    "huber_loss": _huber,
    "log_cosh": lambda predictions, targets: jnp.log(jnp.cosh(predictions - targets)),
    "hellinger": lambda a, b: jnp.sqrt(jnp.sum((jnp.sqrt(a) - jnp.sqrt(b)) ** 2, axis=-1) / 2),
}


def _torch() -> Any:
    """PyTorch, which may be absent, so that its types are unknown."""
    return importlib.import_module("torch")


def _torch_functions():
    torch = _torch()
    functional = torch.nn.functional

    def soft(logits, labels, label_smoothing=0.0):
        return functional.cross_entropy(
            logits, labels, reduction="none", label_smoothing=label_smoothing
        )

    def sigmoid(logits, labels, label_smoothing=0.0, pos_weight=1.0):
        targets = (1 - label_smoothing) * labels + label_smoothing / 2
        return functional.binary_cross_entropy_with_logits(
            logits, targets, reduction="none", pos_weight=torch.tensor(pos_weight)
        )

    def kl(logits, target_logits):
        return functional.kl_div(
            torch.log_softmax(logits, -1),
            torch.log_softmax(target_logits, -1),
            reduction="none",
            log_target=True,
        ).sum(-1)

    return {
        "softmax_cross_entropy_with_integer_labels": lambda x, y, label_smoothing=0.0: soft(
            x, y.long(), label_smoothing
        ),
        "softmax_cross_entropy": soft,
        "sigmoid_binary_cross_entropy": sigmoid,
        "z_loss": lambda x: torch.logsumexp(x, -1) ** 2,
        "binary_cross_entropy": lambda p, y: functional.binary_cross_entropy(
            p, y, reduction="none"
        ),
        "negative_log_likelihood": lambda x, y: functional.nll_loss(x, y.long(), reduction="none"),
        "entropy": lambda p: torch.special.entr(p).sum(-1),
        "kl_divergence": lambda x, t: functional.kl_div(x, t, reduction="none").sum(-1),
        "softmax_entropy": lambda x: torch.distributions.Categorical(
            logits=x, validate_args=False
        ).entropy(),
        "softmax_kl_divergence": kl,
        "huber_loss": lambda x, t, delta=1.0: functional.huber_loss(
            x, t, reduction="none", delta=delta
        ),
        "squared_error": lambda x, t: functional.mse_loss(x, t, reduction="none"),
        "absolute_error": lambda x, t: functional.l1_loss(x, t, reduction="none"),
    }


TORCH = _torch_functions() if importlib.util.find_spec("torch") else {}


def by_jax(function, arguments, options):
    """Values and the gradient in the first argument, as NumPy arrays."""

    @jax.jit
    def run(first, *rest):
        def total(first):
            losses = function(first, *rest, **options)
            return jnp.sum(losses), losses

        slope, losses = jax.grad(total, has_aux=True)(first)
        return losses, slope

    return tuple(map(np.asarray, run(*arguments)))


def by_torch(function, arguments, options):
    """Values and the gradient in the first argument, by PyTorch."""
    torch = _torch()
    first, *rest = (torch.tensor(np.asarray(argument)) for argument in arguments)
    first.requires_grad_()
    losses = function(first, *rest, **options)
    losses.sum().backward()
    return losses.detach().numpy(), first.grad.numpy()
