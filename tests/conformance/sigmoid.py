"""The cases of sigmoid cross-entropy."""

import functools

import mpmath
import optax
from mpmath import mpf

import jaxent
from conformance import inputs, oracle
from conformance.case import LOGITS, YES_OR_NO, Case
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


def sigmoid_binary_cross_entropy(
    logit: Number, label: Number, *, label_smoothing: float = 0.0, pos_weight: float = 1.0
) -> Truth:
    """``-w t log sigmoid(x) - (1-t) log sigmoid(-x)`` with ``t = (1-e) label + e/2``."""
    smoothing, weight = mpf(label_smoothing), mpf(pos_weight)
    target = (1 - smoothing) * label + smoothing / 2
    odds_of_yes, odds_of_no = mpmath.exp(logit), mpmath.exp(-logit)
    cost_of_no, cost_of_yes = mpmath.log(1 + odds_of_yes), mpmath.log(1 + odds_of_no)
    value = oracle.product(weight * target, cost_of_yes) + oracle.product(1 - target, cost_of_no)
    up = (1 - target) / (1 + odds_of_no)
    down = weight * target / (1 + odds_of_yes)
    label_gradient = (1 - smoothing) * (weight * cost_of_yes - cost_of_no)
    label_scale = (1 - smoothing) * (weight * cost_of_yes + cost_of_no)
    return Truth(value, (up - down, label_gradient), value, (up + down, label_scale))


# --- bars -----------------------------------------------------------------------------------------

SIGMOID_VALUE, SIGMOID_GRADIENT = 4, 4

_sigmoid = functools.partial(
    Case,
    jaxent.sigmoid_binary_cross_entropy,
    (LOGITS, YES_OR_NO),
    sigmoid_binary_cross_entropy,
    inputs.binary_targets,
    SIGMOID_VALUE,
    SIGMOID_GRADIENT,
)


CASES = (
    _sigmoid(peer=optax.sigmoid_binary_cross_entropy),
    _sigmoid({"label_smoothing": 0.1, "pos_weight": 2.5}),
)
