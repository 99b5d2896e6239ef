"""jaxent: exact, safe and cheap loss functions for JAX."""

from jaxent._linear import linear_softmax_cross_entropy
from jaxent._reduction import mean, sum_and_weight
from jaxent._row_sweep import linear_loss
from jaxent._sigmoid import sigmoid_binary_cross_entropy
from jaxent._softmax import (
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    z_loss,
)

__all__ = [
    "linear_loss",
    "linear_softmax_cross_entropy",
    "mean",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "sum_and_weight",
    "z_loss",
]
