"""The contract table: a row for each public loss, and where to find the tests of the rest.

A new loss enters in the rows of its family (rows_*.py), with the definition of its truth in
oracle.py or truth_*.py, and every obligation of test_contract.py applies to it.
"""

import rows_divergence
import rows_embedding
import rows_information
import rows_margin
import rows_preference
import rows_probability
import rows_ranking
import rows_regression
import rows_segmentation
import rows_sequence
import rows_similarity
import rows_softmax
import rows_variants

_FAMILIES = (
    rows_probability,
    rows_information,
    rows_divergence,
    rows_variants,
    rows_regression,
    rows_preference,
    rows_margin,
    rows_similarity,
    rows_embedding,
    rows_segmentation,
    rows_ranking,
    rows_sequence,
)

# The first rows serve to show that the obligations have teeth.
ROWS = (*rows_softmax.ROWS, *(row for family in _FAMILIES for row in family.ROWS))

# Public names that are no per-example losses, and the tests that hold them to their own contract.
NOT_LOSSES = {
    "mean": "test_reduction.py",
    "sum_and_weight": "test_reduction.py",
    "linear_loss": "test_row_sweep.py",
    "linear_softmax": "test_column_sweep.py",
    "linear_softmax_cross_entropy": "test_linear.py",
    "linear_log_prob": "test_linear.py",
    "linear_kl_divergence": "test_distillation.py",
    "linear_jensen_shannon": "test_distillation.py",
    "linear_top_k_kl_divergence": "test_distillation.py",
    "info_nce": "test_contrastive.py",
    "clip_loss": "test_contrastive.py",
    "sigmoid_contrastive_loss": "test_contrastive.py",
    **{name: test for family in _FAMILIES for name, test in family.NOT_LOSSES.items()},
}

# Losses of things larger than a row of classes; their obligations are in test_contract_whole.py.
WHOLES = tuple(whole for family in _FAMILIES for whole in getattr(family, "WHOLES", ()))
