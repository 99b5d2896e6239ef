"""jaxent: exact, safe and cheap loss functions for JAX."""

from jaxent._checks import ArgumentError
from jaxent._heads.api import (
    LinearLogProb,
    LinearSoftmax,
    linear_log_prob,
    linear_loss,
    linear_softmax,
    linear_softmax_cross_entropy,
)
from jaxent._heads.contrastive import clip_loss, info_nce, sigmoid_contrastive_loss
from jaxent._heads.distillation import (
    linear_jensen_shannon,
    linear_kl_divergence,
    linear_top_k_kl_divergence,
)
from jaxent._losses.accuracy import accuracy
from jaxent._losses.bregman import convex_kl_divergence, generalized_kl_divergence
from jaxent._losses.calibration import expected_calibration_error
from jaxent._losses.ctc import ctc_loss, ctc_loss_with_forward_probs
from jaxent._losses.dice import (
    binary_dice_loss,
    dice_loss,
    multiclass_generalized_dice_loss,
    tversky_loss,
)
from jaxent._losses.direct_preference import PreferenceRewards, dpo_loss, preference_rewards
from jaxent._losses.divergence import (
    cross_entropy,
    hellinger,
    jensen_shannon_divergence,
    kl_divergence,
    kl_divergence_with_log_targets,
    total_variation,
)
from jaxent._losses.embedding import (
    circle_loss,
    ntxent,
    supervised_contrastive_loss,
    triplet_margin_loss,
)
from jaxent._losses.entropy import (
    binary_entropy,
    entropy,
    sigmoid_entropy,
    softmax_entropy,
)
from jaxent._losses.fenchel_young import make_fenchel_young_loss
from jaxent._losses.focal import sigmoid_focal_loss, softmax_focal_loss
from jaxent._losses.information import (
    bits_per_byte,
    mutual_information,
    nats_to_bits,
    perplexity,
)
from jaxent._losses.logits import logit_adjustment, soft_cap, temperature_scaling
from jaxent._losses.lovasz import lovasz_hinge, lovasz_softmax
from jaxent._losses.margin import (
    hinge_loss,
    multiclass_hinge_loss,
    multiclass_perceptron_loss,
    multiclass_sparsemax_loss,
    perceptron_loss,
    sparsemax_loss,
)
from jaxent._losses.ordinal import ordinal_cross_entropy
from jaxent._losses.policy import policy_gradient_loss, sampled_kl_divergence, sequence_mean
from jaxent._losses.poly import poly_loss_cross_entropy
from jaxent._losses.preference import kto_loss, orpo_loss, simpo_loss
from jaxent._losses.probability import (
    binary_cross_entropy,
    brier_score,
    categorical_cross_entropy,
    negative_log_likelihood,
)
from jaxent._losses.ranking import listmle_loss, pairwise_logistic_loss, ranking_softmax_loss
from jaxent._losses.reduction import mean, sum_and_weight
from jaxent._losses.regression import (
    absolute_error,
    gaussian_nll,
    huber_loss,
    l2_loss,
    log_cosh,
    poisson_nll,
    quantile_loss,
    squared_error,
)
from jaxent._losses.renyi import renyi_divergence, renyi_entropy, tsallis_entropy
from jaxent._losses.robust import generalized_cross_entropy, symmetric_cross_entropy
from jaxent._losses.sigmoid import sigmoid_binary_cross_entropy
from jaxent._losses.similarity import cosine_distance, cosine_similarity
from jaxent._losses.softmax import (
    safe_softmax_cross_entropy,
    softmax_cross_entropy,
    softmax_cross_entropy_with_integer_labels,
    z_loss,
)
from jaxent._losses.softmax_divergence import (
    sigmoid_kl_divergence,
    softmax_jensen_shannon,
    softmax_kl_divergence,
)
from jaxent._losses.targets import class_balanced_weights, next_tokens, smooth_labels
from jaxent._losses.value import (
    AdvantageEstimate,
    clipped_value_loss,
    generalized_advantage_estimation,
)

__version__ = "0.1.0"

__all__ = [
    "AdvantageEstimate",
    "ArgumentError",
    "LinearLogProb",
    "LinearSoftmax",
    "PreferenceRewards",
    "absolute_error",
    "accuracy",
    "binary_cross_entropy",
    "binary_dice_loss",
    "binary_entropy",
    "bits_per_byte",
    "brier_score",
    "categorical_cross_entropy",
    "circle_loss",
    "class_balanced_weights",
    "clip_loss",
    "clipped_value_loss",
    "convex_kl_divergence",
    "cosine_distance",
    "cosine_similarity",
    "cross_entropy",
    "ctc_loss",
    "ctc_loss_with_forward_probs",
    "dice_loss",
    "dpo_loss",
    "entropy",
    "expected_calibration_error",
    "gaussian_nll",
    "generalized_advantage_estimation",
    "generalized_cross_entropy",
    "generalized_kl_divergence",
    "hellinger",
    "hinge_loss",
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
    "listmle_loss",
    "log_cosh",
    "logit_adjustment",
    "lovasz_hinge",
    "lovasz_softmax",
    "make_fenchel_young_loss",
    "mean",
    "multiclass_generalized_dice_loss",
    "multiclass_hinge_loss",
    "multiclass_perceptron_loss",
    "multiclass_sparsemax_loss",
    "mutual_information",
    "nats_to_bits",
    "negative_log_likelihood",
    "next_tokens",
    "ntxent",
    "ordinal_cross_entropy",
    "orpo_loss",
    "pairwise_logistic_loss",
    "perceptron_loss",
    "perplexity",
    "poisson_nll",
    "policy_gradient_loss",
    "poly_loss_cross_entropy",
    "preference_rewards",
    "quantile_loss",
    "ranking_softmax_loss",
    "renyi_divergence",
    "renyi_entropy",
    "safe_softmax_cross_entropy",
    "sampled_kl_divergence",
    "sequence_mean",
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
    "sparsemax_loss",
    "squared_error",
    "sum_and_weight",
    "supervised_contrastive_loss",
    "symmetric_cross_entropy",
    "temperature_scaling",
    "total_variation",
    "triplet_margin_loss",
    "tsallis_entropy",
    "tversky_loss",
    "z_loss",
]
