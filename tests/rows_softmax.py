"""The contract rows of the losses from logits: softmax and sigmoid cross-entropy, z-loss."""

import functools

import families
import jax
import jax.numpy as jnp
import optax
import oracle
from contract_row import CLASS, DISTRIBUTION, LOGITS, YES_OR_NO, Row

import jaxent

# Worst error allowed, in units in the last place (scaled where the truth is a difference; see
# oracle.Truth): NUMERICS asks for 32 and 64 of the integer form and aims at 4 and 8.
INTEGER_VALUE, INTEGER_GRADIENT = 4, 8
SOFT_VALUE, SOFT_GRADIENT = 8, 8
SMOOTHED_VALUE, SMOOTHED_GRADIENT = 4, 8
SIGMOID_VALUE, SIGMOID_GRADIENT = 4, 4
Z_VALUE, Z_GRADIENT = 4, 8

_integer = functools.partial(
    Row,
    jaxent.softmax_cross_entropy_with_integer_labels,
    (LOGITS, CLASS),
    oracle.softmax_cross_entropy_with_integer_labels,
    families.integer_labels,
    vocabulary_inputs=families.few_integer_labels,
)
_soft = functools.partial(
    Row,
    jaxent.softmax_cross_entropy,
    (LOGITS, DISTRIBUTION),
    oracle.softmax_cross_entropy,
    families.soft_labels,
    vocabulary_inputs=families.few_soft_labels,
)
_sigmoid = functools.partial(
    Row,
    jaxent.sigmoid_binary_cross_entropy,
    (LOGITS, YES_OR_NO),
    oracle.sigmoid_binary_cross_entropy,
    families.binary_targets,
    SIGMOID_VALUE,
    SIGMOID_GRADIENT,
)


def _optax_smoothed(logits, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits, targets)


def _optax_soft_smoothed(logits, labels):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jnp.asarray(labels), 0.1))


ROWS = (
    _integer(INTEGER_VALUE, INTEGER_GRADIENT, peer=optax.softmax_cross_entropy_with_integer_labels),
    _integer(SMOOTHED_VALUE, SMOOTHED_GRADIENT, {"label_smoothing": 0.1}, peer=_optax_smoothed),
    _soft(SOFT_VALUE, SOFT_GRADIENT, peer=optax.softmax_cross_entropy),
    # Over whole vocabularies the rows above say what there is to say.
    _soft(
        SOFT_VALUE,
        SOFT_GRADIENT,
        {"label_smoothing": 0.1},
        peer=_optax_soft_smoothed,
        vocabulary_inputs=None,
    ),
    Row(
        jaxent.safe_softmax_cross_entropy,
        (LOGITS, DISTRIBUTION),
        oracle.softmax_cross_entropy,
        families.soft_labels,
        SOFT_VALUE,
        SOFT_GRADIENT,
        peer=optax.safe_softmax_cross_entropy,
    ),
    _sigmoid(peer=optax.sigmoid_binary_cross_entropy),
    _sigmoid({"label_smoothing": 0.1, "pos_weight": 2.5}),
    Row(
        jaxent.z_loss,
        (LOGITS,),
        oracle.z_loss,
        families.logits_only,
        Z_VALUE,
        Z_GRADIENT,
        vocabulary_inputs=families.few_logits_only,
        curvature_scale=oracle.z_loss_curvature_scale,
    ),
)
