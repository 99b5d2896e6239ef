"""A usual call of every public function, for tests of what holds however it is called.

Losses that have a case in the conformance table need none here.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from conformance.case import Case
from conformance.table import CASES

CLASSES, FEATURES, TIME = 5, 3, 4
Arrays = tuple[np.ndarray | np.floating, ...]


class Rows(NamedTuple):
    """Random arguments of so many rows."""

    number: int

    def _generator(self, seed: int) -> np.random.Generator:
        return np.random.default_rng((self.number, seed))

    def normal(self, *shape: int, seed: int = 0) -> np.ndarray:
        return self._generator(seed).normal(size=(self.number, *shape)).astype(np.float32)

    def probs(self, seed: int = 0) -> np.ndarray:
        concentrations, rows = np.ones(CLASSES), self.number
        return self._generator(seed).dirichlet(concentrations, rows).astype(np.float32)

    def unit(self, *shape: int, seed: int = 0) -> np.ndarray:
        return self._generator(seed).uniform(0.1, 0.9, (self.number, *shape)).astype(np.float32)

    def labels(self, *shape: int, classes: int = CLASSES, seed: int = 0) -> np.ndarray:
        return self._generator(seed).integers(classes, size=(self.number, *shape), dtype=np.int32)

    def signs(self) -> np.ndarray:
        return np.where(np.arange(self.number) % 3 == 0, -1.0, 1.0).astype(np.float32)


def same_for_all(*shape: int, seed: int = 7) -> np.ndarray:
    """An argument that does not grow with the rows, such as a kernel."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def logits_and_labels(rows: Rows) -> Arrays:
    return rows.normal(CLASSES), rows.labels()


def logits_and_targets(rows: Rows) -> Arrays:
    return rows.normal(CLASSES), rows.probs(1)


def two_of_logits(rows: Rows) -> Arrays:
    return rows.normal(CLASSES), rows.normal(CLASSES, seed=1)


def two_of_probs(rows: Rows) -> Arrays:
    return rows.probs(), rows.probs(1)


def log_probs_and_probs(rows: Rows) -> Arrays:
    return np.log(rows.probs()), rows.probs(1)


def probs(rows: Rows) -> Arrays:
    return (rows.probs(),)


def two_of_numbers(rows: Rows) -> Arrays:
    return rows.normal(), rows.normal(seed=1)


def number_and_sign(rows: Rows) -> Arrays:
    return rows.normal(), rows.signs()


def number_and_target(rows: Rows) -> Arrays:
    return rows.normal(), rows.unit(seed=1)


def log_probs(number: int) -> Callable[[Rows], Arrays]:
    return lambda rows: tuple(-rows.unit(seed=seed) for seed in range(number))


def image(rows: Rows) -> Arrays:
    return rows.normal(4, 4, CLASSES), np.eye(CLASSES, dtype=np.float32)[rows.labels(4, 4)]


def yes_no_image(rows: Rows) -> Arrays:
    return rows.normal(4, 4), rows.labels(4, 4, classes=2).astype(np.float32)


def ranked_list(rows: Rows) -> Arrays:
    return rows.normal(TIME), rows.unit(TIME, seed=1)


def embeddings(rows: Rows) -> Arrays:
    return rows.normal(FEATURES), (np.arange(rows.number) % 2).astype(np.int32)


def pairs(rows: Rows) -> Arrays:
    return rows.normal(FEATURES), rows.normal(FEATURES, seed=1), same_for_all()


def frames(rows: Rows) -> Arrays:
    paddings = np.zeros((rows.number, 2), np.float32)
    labels = 1 + rows.labels(2, classes=CLASSES - 1)
    return rows.normal(6, CLASSES), np.zeros((rows.number, 6), np.float32), labels, paddings


def head(rows: Rows) -> Arrays:
    return rows.normal(FEATURES), same_for_all(FEATURES, CLASSES), rows.labels()


def batch_of_head(rows: Rows) -> Arrays:
    return rows.normal(TIME, FEATURES), same_for_all(FEATURES, CLASSES), rows.labels(TIME)


def two_heads(rows: Rows) -> Arrays:
    student = rows.normal(FEATURES), same_for_all(FEATURES, CLASSES)
    return *student, rows.normal(2, seed=1), same_for_all(2, CLASSES, seed=8)


def head_and_top_k(rows: Rows) -> Arrays:
    listed = np.log(np.tile(np.array([0.5, 0.3], np.float32), (rows.number, 1)))
    indices = np.stack([rows.labels(), (rows.labels() + 1) % CLASSES], axis=1)
    return rows.normal(FEATURES), same_for_all(FEATURES, CLASSES), listed, indices


def cross_entropy_of_head(hidden: Any, kernel: Any, labels: Any, **options: Any) -> jax.Array:
    loss_fn = jaxent.softmax_cross_entropy_with_integer_labels
    return jaxent.linear_loss(loss_fn, hidden, kernel, labels, **options)


def next_token_losses(logits: Any, tokens: Any) -> jax.Array:
    labels, where = jaxent.next_tokens(tokens)
    return jaxent.softmax_cross_entropy_with_integer_labels(logits, labels, where=where)


def fenchel_young_loss(scores: Any, targets: Any) -> jax.Array:
    return jaxent.make_fenchel_young_loss(jax.nn.logsumexp)(scores, targets)


class Call(NamedTuple):
    """Arguments of a public function, and its options."""

    make: Callable[[Rows], Arrays]
    options: Mapping[str, Any] = MappingProxyType({})
    function: Callable[..., Any] | None = None  # None for the public function of that name


CALLS = {
    "binary_cross_entropy": Call(lambda rows: (rows.unit(), rows.unit(seed=1))),
    "binary_dice_loss": Call(yes_no_image),
    "binary_entropy": Call(lambda rows: (rows.unit(),)),
    "bits_per_byte": Call(lambda rows: (rows.unit(), 1.0 + rows.unit(seed=1))),
    "circle_loss": Call(embeddings, {"gamma": 2.0}),
    "class_balanced_weights": Call(lambda rows: (1.0 + rows.unit(),)),
    "clip_loss": Call(pairs),
    "convex_kl_divergence": Call(log_probs_and_probs),
    "cosine_distance": Call(two_of_logits),
    "cosine_similarity": Call(two_of_logits),
    "ctc_loss": Call(frames),
    "ctc_loss_with_forward_probs": Call(frames),
    "dice_loss": Call(image),
    "dpo_loss": Call(log_probs(4)),
    "expected_calibration_error": Call(lambda rows: (rows.probs(), rows.labels())),
    "generalized_advantage_estimation": Call(
        lambda rows: (rows.normal(TIME), rows.normal(TIME, seed=1))
    ),
    "gaussian_nll": Call(lambda rows: (*two_of_numbers(rows), rows.unit(seed=2))),
    "info_nce": Call(lambda rows: (*pairs(rows)[:2], np.float32(0.5))),
    "kl_divergence_with_log_targets": Call(lambda rows: tuple(map(np.log, two_of_probs(rows)))),
    "kto_loss": Call(lambda rows: (*log_probs(2)(rows), rows.signs() > 0.0)),
    "linear_jensen_shannon": Call(two_heads),
    "linear_kl_divergence": Call(two_heads),
    "linear_log_prob": Call(head),
    "linear_loss": Call(head, function=cross_entropy_of_head),
    "linear_softmax": Call(head),
    "linear_softmax_cross_entropy": Call(head),
    "linear_top_k_kl_divergence": Call(head_and_top_k),
    "listmle_loss": Call(ranked_list),
    "logit_adjustment": Call(lambda rows: (rows.normal(CLASSES), np.full(5, 0.2, np.float32))),
    "lovasz_hinge": Call(lambda rows: (rows.normal(TIME), rows.labels(TIME, classes=2))),
    "lovasz_softmax": Call(lambda rows: (rows.normal(TIME, CLASSES), rows.labels(TIME))),
    "make_fenchel_young_loss": Call(logits_and_targets, function=fenchel_young_loss),
    "mean": Call(lambda rows: (rows.normal(),)),
    "multiclass_generalized_dice_loss": Call(image),
    "mutual_information": Call(lambda rows: (rows.unit(3, 4),)),
    "nats_to_bits": Call(lambda rows: (rows.unit(),)),
    "negative_log_likelihood": Call(lambda rows: (np.log(rows.probs()), rows.labels())),
    "next_tokens": Call(
        lambda rows: (rows.normal(TIME, CLASSES), rows.labels(TIME)), function=next_token_losses
    ),
    "ntxent": Call(embeddings, {"temperature": 0.5}),
    "orpo_loss": Call(log_probs(2)),
    "pairwise_logistic_loss": Call(ranked_list),
    "perplexity": Call(lambda rows: (rows.unit(),)),
    "policy_gradient_loss": Call(lambda rows: (*log_probs(2)(rows), rows.normal())),
    "preference_rewards": Call(log_probs(4)),
    "ranking_softmax_loss": Call(ranked_list),
    "renyi_divergence": Call(two_of_probs, {"alpha": 2.0}),
    "renyi_entropy": Call(probs, {"alpha": 2.0}),
    "sequence_mean": Call(lambda rows: (rows.normal(TIME),)),
    "sigmoid_contrastive_loss": Call(lambda rows: (*pairs(rows), np.float32(-1.0))),
    "sigmoid_entropy": Call(lambda rows: (rows.normal(),)),
    "simpo_loss": Call(log_probs(2)),
    "smooth_labels": Call(lambda rows: (rows.probs(), np.float32(0.1))),
    "soft_cap": Call(lambda rows: (rows.normal(CLASSES), np.float32(2.0))),
    "softmax_entropy": Call(lambda rows: (rows.normal(CLASSES),)),
    "sparsemax_loss": Call(lambda rows: (rows.normal(), rows.labels(classes=2))),
    "sum_and_weight": Call(lambda rows: (rows.normal(),)),
    "supervised_contrastive_loss": Call(embeddings),
    "temperature_scaling": Call(lambda rows: (rows.normal(CLASSES), np.float32(2.0))),
    "triplet_margin_loss": Call(
        lambda rows: tuple(rows.normal(FEATURES, seed=seed) for seed in range(3))
    ),
    "tsallis_entropy": Call(probs, {"alpha": 2.0}),
    "tversky_loss": Call(image),
    "z_loss": Call(lambda rows: (rows.normal(CLASSES),)),
}


def _call_of(case: Case) -> Call:
    """A call of a loss of examples, with the ordinary arguments of its case."""
    return Call(lambda rows: case.inputs((rows.number,), CLASSES), case.options)


for _case in CASES:
    CALLS.setdefault(_case.name, _call_of(_case))


def floating(tree: Any) -> list[Any]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def gradients(function: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of the sum of the results by the floating point arguments."""

    def call(*arguments: Any) -> Any:
        trained = [i for i, a in enumerate(arguments) if jnp.issubdtype(a.dtype, jnp.floating)]

        def total(*values: Any) -> Any:
            given = dict(zip(trained, values, strict=True))
            results = function(*(given.get(i, a) for i, a in enumerate(arguments)))
            return sum(jnp.sum(x) for x in floating(results))

        arrays = [jnp.asarray(arguments[i]) for i in trained]
        return jax.grad(total, tuple(range(len(trained))))(*arrays)

    return call


def plain(name: str) -> Callable[..., Any]:
    """The function of the table, of arrays alone, with a tuple as its result."""
    case = CALLS[name]
    function = case.function or getattr(jaxent, name)
    # The named tuples of the results would have to be registered to be stored.
    return lambda *arguments: jax.tree.leaves(function(*arguments, **case.options))
