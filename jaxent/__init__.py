"""jaxent: exact, safe and cheap loss functions for JAX."""

from jaxent._calibration import expected_calibration_error
from jaxent._column_sweep import linear_softmax
from jaxent._contrastive import clip_loss, info_nce, sigmoid_contrastive_loss
from jaxent._distillation import (
    linear_jensen_shannon,
    linear_kl_divergence,
    linear_top_k_kl_divergence,
)
from jaxent._divergence import (
    sigmoid_entropy,
    sigmoid_kl_divergence,
    softmax_entropy,
    softmax_jensen_shannon,
    softmax_kl_divergence,
)
from jaxent._information import (
    binary_entropy,
    bits_per_byte,
    cross_entropy,
    entropy,
    hellinger,
    jensen_shannon_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
    mutual_information,
    nats_to_bits,
    perplexity,
    renyi_divergence,
    renyi_entropy,
    total_variation,
    tsallis_entropy,
)
from jaxent._labels import (
    class_balanced_weights,
    logit_adjustment,
    smooth_labels,
    soft_cap,
    temperature_scaling,
)
from jaxent._linear import linear_log_prob, linear_softmax_cross_entropy
from jaxent._preference import (
    dpo_loss,
    kto_loss,
    orpo_loss,
    policy_gradient_loss,
    simpo_loss,
)
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
from jaxent._variants import (
    generalized_cross_entropy,
    ordinal_cross_entropy,
    poly_loss_cross_entropy,
    sigmoid_focal_loss,
    softmax_focal_loss,
    symmetric_cross_entropy,
)

__all__ = [
    "absolute_error",
    "binary_cross_entropy",
    "binary_entropy",
    "bits_per_byte",
    "brier_score",
    "categorical_cross_entropy",
    "class_balanced_weights",
    "clip_loss",
    "cross_entropy",
    "dpo_loss",
    "entropy",
    "expected_calibration_error",
    "gaussian_nll",
    "generalized_cross_entropy",
    "hellinger",
    "huber_loss",
    "info_nce",
    "jensen_shannon_divergence",
    "kl_divergence",
    "kl_divergence_with_log_targets",
    "kto_loss",
    "l2_loss",
    "linear_jensen_shannon",
    "linear_kl_divergence",
    "linear_log_prob",
    "linear_loss",
    "linear_softmax",
    "linear_softmax_cross_entropy",
    "linear_top_k_kl_divergence",
    "log_cosh",
    "logit_adjustment",
    "mean",
    "mutual_information",
    "nats_to_bits",
    "negative_log_likelihood",
    "ordinal_cross_entropy",
    "orpo_loss",
    "perplexity",
    "poisson_nll",
    "policy_gradient_loss",
    "poly_loss_cross_entropy",
    "quantile_loss",
    "renyi_divergence",
    "renyi_entropy",
    "sigmoid_binary_cross_entropy",
    "sigmoid_contrastive_loss",
    "sigmoid_entropy",
    "sigmoid_focal_loss",
    "sigmoid_kl_divergence",
    "simpo_loss",
    "smooth_labels",
    "soft_cap",
    "softmax_cross_entropy",
    "softmax_cross_entropy_with_integer_labels",
    "softmax_entropy",
    "softmax_focal_loss",
    "softmax_jensen_shannon",
    "softmax_kl_divergence",
    "squared_error",
    "sum_and_weight",
    "symmetric_cross_entropy",
    "temperature_scaling",
    "total_variation",
    "tsallis_entropy",
    "z_loss",
]
