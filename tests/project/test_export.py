"""`jax.export` with a symbolic leading size: every public function is in the table.

A program is exported for any number of rows, stored, loaded, and run on some number of rows. There
it gives what a call gives.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

import jaxent
from public import FUNCTIONS

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


def fenchel_young_loss(scores: Any, targets: Any) -> jax.Array:
    return jaxent.make_fenchel_young_loss(jax.nn.logsumexp)(scores, targets)


class Export(NamedTuple):
    """Arguments of a public function, and its options."""

    make: Callable[[Rows], Arrays]
    options: Mapping[str, Any] = MappingProxyType({})
    function: Callable[..., Any] | None = None  # None for the public function of that name


EXPORTS = {
    "absolute_error": Export(two_of_numbers),
    "binary_cross_entropy": Export(lambda rows: (rows.unit(), rows.unit(seed=1))),
    "binary_dice_loss": Export(yes_no_image),
    "binary_entropy": Export(lambda rows: (rows.unit(),)),
    "bits_per_byte": Export(lambda rows: (rows.unit(), 1.0 + rows.unit(seed=1))),
    "brier_score": Export(two_of_probs),
    "categorical_cross_entropy": Export(two_of_probs),
    "circle_loss": Export(embeddings, {"gamma": 2.0}),
    "class_balanced_weights": Export(lambda rows: (1.0 + rows.unit(),)),
    "clip_loss": Export(pairs),
    "convex_kl_divergence": Export(log_probs_and_probs),
    "cosine_distance": Export(two_of_logits),
    "cosine_similarity": Export(two_of_logits),
    "cross_entropy": Export(two_of_probs),
    "ctc_loss": Export(frames),
    "ctc_loss_with_forward_probs": Export(frames),
    "dice_loss": Export(image),
    "dpo_loss": Export(log_probs(4)),
    "entropy": Export(probs),
    "expected_calibration_error": Export(lambda rows: (rows.probs(), rows.labels())),
    "gaussian_nll": Export(lambda rows: (*two_of_numbers(rows), rows.unit(seed=2))),
    "generalized_cross_entropy": Export(logits_and_labels),
    "generalized_kl_divergence": Export(log_probs_and_probs),
    "hellinger": Export(two_of_probs),
    "hinge_loss": Export(number_and_sign),
    "huber_loss": Export(two_of_numbers),
    "info_nce": Export(lambda rows: (*pairs(rows)[:2], np.float32(0.5))),
    "jensen_shannon_divergence": Export(two_of_probs),
    "kl_divergence": Export(log_probs_and_probs),
    "kl_divergence_with_log_targets": Export(lambda rows: tuple(map(np.log, two_of_probs(rows)))),
    "kto_loss": Export(lambda rows: (*log_probs(2)(rows), rows.signs() > 0.0)),
    "l2_loss": Export(two_of_numbers),
    "linear_jensen_shannon": Export(two_heads),
    "linear_kl_divergence": Export(two_heads),
    "linear_log_prob": Export(head),
    "linear_loss": Export(head, function=cross_entropy_of_head),
    "linear_softmax": Export(head),
    "linear_softmax_cross_entropy": Export(head),
    "linear_top_k_kl_divergence": Export(head_and_top_k),
    "listmle_loss": Export(ranked_list),
    "log_cosh": Export(two_of_numbers),
    "logit_adjustment": Export(lambda rows: (rows.normal(CLASSES), np.full(5, 0.2, np.float32))),
    "lovasz_hinge": Export(lambda rows: (rows.normal(TIME), rows.labels(TIME, classes=2))),
    "lovasz_softmax": Export(lambda rows: (rows.normal(TIME, CLASSES), rows.labels(TIME))),
    "make_fenchel_young_loss": Export(logits_and_targets, function=fenchel_young_loss),
    "mean": Export(lambda rows: (rows.normal(),)),
    "multiclass_generalized_dice_loss": Export(image),
    "multiclass_hinge_loss": Export(logits_and_labels),
    "multiclass_perceptron_loss": Export(logits_and_labels),
    "multiclass_sparsemax_loss": Export(logits_and_labels),
    "mutual_information": Export(lambda rows: (rows.unit(3, 4),)),
    "nats_to_bits": Export(lambda rows: (rows.unit(),)),
    "negative_log_likelihood": Export(lambda rows: (np.log(rows.probs()), rows.labels())),
    "ntxent": Export(embeddings, {"temperature": 0.5}),
    "ordinal_cross_entropy": Export(logits_and_labels),
    "orpo_loss": Export(log_probs(2)),
    "pairwise_logistic_loss": Export(ranked_list),
    "perceptron_loss": Export(number_and_sign),
    "perplexity": Export(lambda rows: (rows.unit(),)),
    "poisson_nll": Export(number_and_target),
    "policy_gradient_loss": Export(lambda rows: (*log_probs(2)(rows), rows.normal())),
    "poly_loss_cross_entropy": Export(logits_and_targets),
    "quantile_loss": Export(two_of_numbers),
    "ranking_softmax_loss": Export(ranked_list),
    "renyi_divergence": Export(two_of_probs, {"alpha": 2.0}),
    "renyi_entropy": Export(probs, {"alpha": 2.0}),
    "safe_softmax_cross_entropy": Export(logits_and_targets),
    "sigmoid_binary_cross_entropy": Export(number_and_target),
    "sigmoid_contrastive_loss": Export(lambda rows: (*pairs(rows), np.float32(-1.0))),
    "sigmoid_entropy": Export(lambda rows: (rows.normal(),)),
    "sigmoid_focal_loss": Export(number_and_target),
    "sigmoid_kl_divergence": Export(two_of_numbers),
    "simpo_loss": Export(log_probs(2)),
    "smooth_labels": Export(lambda rows: (rows.probs(), np.float32(0.1))),
    "soft_cap": Export(lambda rows: (rows.normal(CLASSES), np.float32(2.0))),
    "softmax_cross_entropy": Export(logits_and_targets),
    "softmax_cross_entropy_with_integer_labels": Export(logits_and_labels),
    "softmax_entropy": Export(lambda rows: (rows.normal(CLASSES),)),
    "softmax_focal_loss": Export(logits_and_labels),
    "softmax_jensen_shannon": Export(two_of_logits),
    "softmax_kl_divergence": Export(two_of_logits),
    "sparsemax_loss": Export(lambda rows: (rows.normal(), rows.labels(classes=2))),
    "squared_error": Export(two_of_numbers),
    "sum_and_weight": Export(lambda rows: (rows.normal(),)),
    "supervised_contrastive_loss": Export(embeddings),
    "symmetric_cross_entropy": Export(logits_and_labels),
    "temperature_scaling": Export(lambda rows: (rows.normal(CLASSES), np.float32(2.0))),
    "total_variation": Export(two_of_probs),
    "triplet_margin_loss": Export(
        lambda rows: tuple(rows.normal(FEATURES, seed=seed) for seed in range(3))
    ),
    "tsallis_entropy": Export(probs, {"alpha": 2.0}),
    "tversky_loss": Export(image),
    "z_loss": Export(lambda rows: (rows.normal(CLASSES),)),
}


def symbolic_arguments(make: Callable[[Rows], Arrays]) -> list[jax.ShapeDtypeStruct]:
    """Descriptions of the arguments, whose axes that grow with the rows are all `rows`."""
    (rows,) = export.symbolic_shape("rows")
    pairs = zip(make(Rows(6)), make(Rows(7)), strict=True)
    return [
        jax.ShapeDtypeStruct(
            [rows if few != many else few for few, many in zip(a.shape, b.shape, strict=True)],
            a.dtype,
        )
        for a, b in pairs
    ]


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


def assert_runs_when_loaded(
    function: Callable[..., Any], make: Callable[[Rows], Arrays], counts: tuple[int, ...]
) -> None:
    stored = export.export(jax.jit(function))(*symbolic_arguments(make)).serialize()
    loaded = export.deserialize(stored)
    for count in counts:
        arguments = make(Rows(count))
        ours, theirs = loaded.call(*arguments), jax.jit(function)(*arguments)
        assert floating(ours)
        for one, other in zip(floating(ours), floating(theirs), strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-6, atol=1e-6)


def plain(name: str) -> Callable[..., Any]:
    """The function of the table, of arrays alone, with a tuple as its result."""
    case = EXPORTS[name]
    function = case.function or getattr(jaxent, name)
    # The named tuples of the results would have to be registered to be stored.
    return lambda *arguments: jax.tree.leaves(function(*arguments, **case.options))


def test_every_public_function_is_in_the_table():
    assert sorted(EXPORTS) == sorted(FUNCTIONS)


@pytest.mark.thorough(beyond=24)
@pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_for_any_number_of_rows(name):
    assert_runs_when_loaded(plain(name), EXPORTS[name].make, (6,))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore:jaxent.convex_kl_divergence is deprecated")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients_for_any_number_of_rows(name):
    assert_runs_when_loaded(gradients(plain(name)), EXPORTS[name].make, (6, 3))


@pytest.mark.parametrize(
    "options",
    [
        {"sweep": "rows", "chunk_size": 3, "shift": 1},
        {"sweep": "columns", "block_size": 2, "reduction": "none"},
    ],
    ids=["rows", "columns"],
)
def test_heads_of_chunks_that_do_not_divide_the_rows(options):
    kernel = same_for_all(FEATURES, CLASSES)

    def loss(hidden, labels, where):
        return jaxent.linear_softmax_cross_entropy(hidden, kernel, labels, where=where, **options)

    def make(rows):
        return rows.normal(TIME, FEATURES), rows.labels(TIME), rows.labels(TIME, classes=3) > 0

    assert_runs_when_loaded(gradients(loss), make, (7,))


@pytest.mark.thorough
def test_classes_are_as_many_as_rows_of_embeddings():
    def loss(images, texts):
        return jaxent.clip_loss(images, texts, 0.5, normalize=True)

    assert_runs_when_loaded(gradients(loss), lambda rows: pairs(rows)[:2], (7, 1))
