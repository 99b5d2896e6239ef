"""jaxent: exact, safe and cheap loss functions for JAX."""

from jaxent._linear import linear_softmax_cross_entropy
from jaxent._probability import (
    binary_cross_entropy,
    brier_score,
    categorical_cross_entropy,
    negative_log_likelihood,
)
from jaxent._reduction import mean, sum_and_weight
from jaxent._regression import (
    absolute_error,
    gaussian_nll,
    huber_loss,
    l2_loss,
    log_cosh,
    poisson_nll,
    quantile_loss,
    squared_error,
)
from jaxent._row_sweep import linear_loss
from jaxent._sigmoid import sigmoid_binary_cross_entropy
from jaxent._softmax import (
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    z_loss,
)

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "brier_score",
    "categorical_cross_entropy",
    "gaussian_nll",
    "huber_loss",
    "l2_loss",
    "linear_loss",
    "linear_softmax_cross_entropy",
    "log_cosh",
    "mean",
    "negative_log_likelihood",
    "poisson_nll",
    "quantile_loss",
    "sigmoid_binary_cross_entropy",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "squared_error",
    "sum_and_weight",
    "z_loss",
]
