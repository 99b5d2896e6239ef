"""The table of cases: one or more for each public loss, and where the rest is tested.

A new loss enters in the file of its family, with its reference, and every obligation of
test_conformance.py applies to it.
"""

from conformance import (
    ctc,
    embedding,
    information,
    logit_divergence,
    margin,
    policy,
    preference,
    probability,
    ranking,
    regression,
    segmentation,
    sigmoid,
    similarity,
    softmax,
    variants,
)

_FAMILIES = (
    softmax,
    sigmoid,
    probability,
    information,
    logit_divergence,
    variants,
    regression,
    preference,
    policy,
    margin,
    similarity,
    embedding,
    segmentation,
    ranking,
    ctc,
)

# The first cases serve to show that the obligations have teeth.
CASES = tuple(case for family in _FAMILIES for case in getattr(family, "CASES", ()))

# Public names that are no per-example losses, and the tests that hold them to their own contract.
NOT_LOSSES = {
    "mean": "losses/test_reduction.py",
    "sum_and_weight": "losses/test_reduction.py",
    "next_tokens": "losses/test_tokens.py",
    "linear_loss": "heads/test_rows.py",
    "linear_softmax": "heads/test_columns.py",
    "linear_softmax_cross_entropy": "heads/test_linear.py",
    "linear_log_prob": "heads/test_linear.py",
    "linear_kl_divergence": "heads/test_distillation.py",
    "linear_jensen_shannon": "heads/test_distillation.py",
    "linear_top_k_kl_divergence": "heads/test_distillation.py",
    "info_nce": "heads/test_contrastive.py",
    "clip_loss": "heads/test_contrastive.py",
    "sigmoid_contrastive_loss": "heads/test_contrastive.py",
    **{
        name: test
        for family in _FAMILIES
        for name, test in getattr(family, "NOT_LOSSES", {}).items()
    },
}

# Losses of things larger than a row of classes: their obligations are in test_conformance_whole.py.
WHOLE_CASES = tuple(case for family in _FAMILIES for case in getattr(family, "WHOLE_CASES", ()))
