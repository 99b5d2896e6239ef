"""Primitives with exact values and exact derivative rules; they know no loss and check nothing.

Every primitive works on the last axis, in the dtype it is given (float32 or float64), and is
accurate in relative error. Three ideas carry all of them:

* **A coarse shift.** exp(x - m) inherits the rounding of x - m: 32 units in the last place when x
  and m are 80 apart. Here the shift is a multiple of a power of two, zero for ordinary logits, and
  chosen such that x - shift is exact for every term that still counts. Nothing is paid for it.
* **One term is left out.** log-sum-exp minus the label's logit cancels. The sum over the *other*
  classes does not: log1p(others / label) keeps losses of 1e-30 alive, and the gradient at the
  label is -others / total instead of p - 1.
* **A symmetric curvature.** The Jacobian of softmax, diag(p) - p p', is applied with its heavy
  class as the pivot, in a form that is its own transpose, so that forward over reverse and
  reverse over reverse are equally accurate.

A rule that needs a derivative of a derivative gets it from primitives of this file, which makes
every order of differentiation accurate.
"""

from jaxent._numerics.bregman import generalized_kullback_leibler
from jaxent._numerics.cross_entropy import (
    label_cross_entropy,
    leaving_out,
    soft_cross_entropy,
)
from jaxent._numerics.ctc import ctc, ctc_with_forward
from jaxent._numerics.distribution import (
    bernoulli_entropy,
    hellinger,
    jensen_shannon,
    kullback_leibler,
    log_kullback_leibler,
    raised,
    rest_of,
    shannon,
    total_variation,
)
from jaxent._numerics.divergence import (
    sigmoid_entropy,
    sigmoid_kl_divergence,
    softmax_entropy,
    softmax_jensen_shannon,
    softmax_kl_divergence,
)
from jaxent._numerics.embedding import (
    distance_gap,
    mean_cross_entropy,
    paired_cross_entropy,
    pairwise_softplus,
    unit,
)
from jaxent._numerics.explicit import as_automatic, entry_at
from jaxent._numerics.ground import (
    along,
    compute_dtype,
    expected,
    like,
    long_sum,
    reciprocal,
    summed_along,
)
from jaxent._numerics.logits import soft_cap, tempered
from jaxent._numerics.margin import (
    hinge,
    label_hinge,
    label_lag,
    label_sparsemax,
    sparse_plus,
)
from jaxent._numerics.order import (
    mutual_information,
    renyi_divergence,
    renyi_entropy,
    tsallis,
)
from jaxent._numerics.preference import (
    clipped_ratio,
    margin,
    odds_ratio_loss,
    pair_cross_entropy,
    ratio_excess,
    shortfall,
    sigmoid_of_pair,
    square_of_pair,
)
from jaxent._numerics.probability import (
    bernoulli_cross_entropy,
    categorical_cross_entropy,
    negative_log_likelihood,
    squared_distance,
)
from jaxent._numerics.ranking import order_costs, pair_costs
from jaxent._numerics.regression import (
    gaussian,
    half_square,
    huber,
    log_cosh,
    pinball,
    poisson,
    poisson_surprise,
)
from jaxent._numerics.reweighted import (
    focal_binary_cross_entropy,
    focal_of,
    interval_loss,
    label_power,
    poly_cross_entropy,
    truncated,
)
from jaxent._numerics.segmentation import (
    lovasz_extension,
    normalized,
    root,
    share,
    sigmoid_and_rest,
    softmax_and_rest,
    sum_over_pixels,
)
from jaxent._numerics.sigmoid import (
    binary_cross_entropy,
    sigmoid,
    softplus,
    target_cross_entropy,
)
from jaxent._numerics.similarity import cosine_distance, cosine_similarity
from jaxent._numerics.softmax import (
    coarse_shift,
    curvature,
    log_normalizer,
    log_total,
    softmax,
    squared_log_normalizer,
)

__all__ = [
    "along",
    "as_automatic",
    "bernoulli_cross_entropy",
    "bernoulli_entropy",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "clipped_ratio",
    "coarse_shift",
    "compute_dtype",
    "cosine_distance",
    "cosine_similarity",
    "ctc",
    "ctc_with_forward",
    "curvature",
    "distance_gap",
    "entry_at",
    "expected",
    "focal_binary_cross_entropy",
    "focal_of",
    "gaussian",
    "generalized_kullback_leibler",
    "half_square",
    "hellinger",
    "hinge",
    "huber",
    "interval_loss",
    "jensen_shannon",
    "kullback_leibler",
    "label_cross_entropy",
    "label_hinge",
    "label_lag",
    "label_power",
    "label_sparsemax",
    "leaving_out",
    "like",
    "log_cosh",
    "log_kullback_leibler",
    "log_normalizer",
    "log_total",
    "long_sum",
    "lovasz_extension",
    "margin",
    "mean_cross_entropy",
    "mutual_information",
    "negative_log_likelihood",
    "normalized",
    "odds_ratio_loss",
    "order_costs",
    "pair_costs",
    "pair_cross_entropy",
    "paired_cross_entropy",
    "pairwise_softplus",
    "pinball",
    "poisson",
    "poisson_surprise",
    "poly_cross_entropy",
    "raised",
    "ratio_excess",
    "reciprocal",
    "renyi_divergence",
    "renyi_entropy",
    "rest_of",
    "root",
    "shannon",
    "share",
    "shortfall",
    "sigmoid",
    "sigmoid_and_rest",
    "sigmoid_entropy",
    "sigmoid_kl_divergence",
    "sigmoid_of_pair",
    "soft_cap",
    "soft_cross_entropy",
    "softmax",
    "softmax_and_rest",
    "softmax_entropy",
    "softmax_jensen_shannon",
    "softmax_kl_divergence",
    "softplus",
    "sparse_plus",
    "square_of_pair",
    "squared_distance",
    "squared_log_normalizer",
    "sum_over_pixels",
    "summed_along",
    "target_cross_entropy",
    "tempered",
    "total_variation",
    "truncated",
    "tsallis",
    "unit",
]
