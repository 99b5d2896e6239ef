"""The rows of optax: what changes at the edges."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxent
from project.migration.case import Case, f32, i32

INF = np.inf


def named(name: str, **options: Any) -> tuple[Any, Any]:
    """A function of both libraries, called in the same way."""
    return (
        lambda *arrays: getattr(jaxent, name)(*arrays, **options),
        lambda losses, *arrays: getattr(losses, name)(*arrays, **options),
    )


def or_refused(function: Any) -> Any:
    """The function, with -1 where it refuses its arguments: no loss is that."""

    def call(losses: Any, *arrays: jax.Array) -> jax.Array:
        try:
            return function(losses, *arrays)
        except (TypeError, ValueError, AssertionError):
            return jnp.array(-1.0)

    return call


def without_its_warning(log_q: jax.Array, p: jax.Array) -> jax.Array:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return jaxent.convex_kl_divergence(log_q, p)


def log_sum_exp(scores: jax.Array) -> jax.Array:
    return jax.scipy.special.logsumexp(scores, axis=-1)


SURE = f32([[40.0, -40.0], [-40.0, 40.0], [40.0, -40.0]])
NO_PADDING = (f32([0, 0, 0]), i32([1]), f32([0]))

CASES = (
    Case(
        "every loss with labels",
        "a mask of the examples",
        (f32([2.0, 0.0], [0.0, 1.0]), f32([1.0, 0.0], [1.0, 0.0]), np.array([True, False])),
        lambda x, y, m: jaxent.softmax_cross_entropy(x, y, where=m),
        lambda losses, x, y, m: losses.softmax_cross_entropy(x, y, where=jnp.array([m, m]).T),
    ),
    Case(
        "every loss with labels",
        "a loss without `where`",
        (f32(2.0, 0.0), f32(1.0, 0.0), np.array([True, False])),
        lambda x, y, m: jaxent.sigmoid_binary_cross_entropy(x, y, where=m),
        or_refused(lambda losses, x, y, m: losses.sigmoid_binary_cross_entropy(x, y, where=m)),
        "nothing",
        value=[np.log1p(np.exp(-2.0)), 0.0],
        differentiable=False,
    ),
    Case(
        "`softmax_cross_entropy_with_integer_labels`",
        "a sure model",
        (f32([20.0, 0.0]), i32(0)),
        *named("softmax_cross_entropy_with_integer_labels"),
        "nothing",
        value=[np.log1p(np.exp(-20.0))],
    ),
    Case(
        "`softmax_cross_entropy_with_integer_labels`",
        "a label of -1",
        (f32([2.0, 0.0]), i32(-1)),
        *named("softmax_cross_entropy_with_integer_labels"),
        "nothing",
        value=[np.nan],
    ),
    Case(
        "`softmax_cross_entropy`",
        "an impossible class with target 0",
        (f32([0.0, 0.0, -INF]), f32([0.5, 0.5, 0.0])),
        *named("softmax_cross_entropy"),
        "nothing",
        value=[np.log(2.0)],
        gradient=[[0.0, 0.0, 0.0]],
    ),
    Case(
        "`safe_softmax_cross_entropy`",
        "losses",
        (f32([3.0, 0.0, -INF]), f32([0.25, 0.75, 0.0])),
        jaxent.softmax_cross_entropy,
        lambda losses, x, t: losses.safe_softmax_cross_entropy(x, t),
    ),
    Case(
        "`smooth_labels`",
        "without a mask",
        (f32([0.0, 1.0, 0.0]),),
        *named("smooth_labels", alpha=0.3),
    ),
    Case(
        "`smooth_labels`",
        "a class that the mask removes",
        (f32([0.0, 1.0, 0.0]), np.array([[True, True, False]])),
        lambda t, m: jaxent.smooth_labels(t, 0.3, where=m),
        lambda losses, t, m: losses.smooth_labels(t, 0.3),
        "nothing",
        value=[[0.15, 0.85, 0.0]],
    ),
    Case(
        "`sigmoid_focal_loss`",
        "an infinite logit",
        (f32(INF), f32(1.0)),
        *named("sigmoid_focal_loss"),
        "nothing",
        value=[0.0],
        gradient=[0.0],
    ),
    Case(
        "`kl_divergence`, `generalized_kl_divergence`",
        "the gradient in a target of 0",
        (f32([0.0, 1.0]), np.log(f32([0.5, 0.5]))),
        lambda p, x: jaxent.kl_divergence(x, p),
        lambda losses, p, x: losses.kl_divergence(x, p),
        "nothing",
        value=[np.log(2.0)],
    ),
    Case(
        "`convex_kl_divergence`",
        "losses",
        (np.log(f32([0.5, 0.25])), f32([0.25, 0.5])),
        without_its_warning,
        lambda losses, x, p: losses.convex_kl_divergence(x, p),
    ),
    Case(
        "`huber_loss`, `log_cosh`",
        "a small error",
        (f32(1e-4), f32(0.0)),
        *named("log_cosh"),
        "nothing",
        value=[5e-9],
        gradient=[1e-4],
    ),
    Case(
        "`hinge_loss`, `perceptron_loss`",
        "a target that is no sign",
        (f32(0.25), f32(0.5)),
        *named("hinge_loss"),
        "nothing",
        value=[np.nan],
    ),
    Case(
        "`sparsemax_loss`",
        "a label of -1",
        (f32(0.5), f32(-1.0)),
        *named("sparsemax_loss"),
        "nothing",
        value=[np.nan],
    ),
    Case(
        "`multiclass_hinge_loss`, `multiclass_perceptron_loss`",
        "an impossible class",
        (f32([0.5, 1.0, -INF]), i32(0)),
        *named("multiclass_hinge_loss"),
        "nothing",
        value=[1.5],
        gradient=[[-1.0, 1.0, 0.0]],
    ),
    Case(
        "`multiclass_hinge_loss`, `multiclass_perceptron_loss`",
        "a label out of range",
        (f32([0.5, 1.0, 0.0]), i32(7)),
        *named("multiclass_perceptron_loss"),
        "nothing",
        value=[np.nan],
    ),
    Case(
        "`multiclass_sparsemax_loss`",
        "a loss that vanishes",
        (f32([0.999, 0.0]), i32(0)),
        *named("multiclass_sparsemax_loss"),
        "nothing",
        value=[np.square(1 - np.float64(np.float32(0.999))) / 4],
    ),
    Case(
        "`make_fenchel_young_loss`",
        "computed in float32",
        (f32([1.0, 0.0, 0.0]), f32([1.0, 0.0, 0.0])),
        lambda x, t: jaxent.make_fenchel_young_loss(log_sum_exp)(
            x.astype(jnp.bfloat16), t.astype(jnp.bfloat16)
        ),
        lambda losses, x, t: losses.make_fenchel_young_loss(log_sum_exp)(
            x.astype(jnp.bfloat16), t.astype(jnp.bfloat16)
        ).astype(jnp.float32),
        "nothing",
        value=[np.log1p(2.0 * np.exp(-1.0))],
        differentiable=False,
    ),
    Case(
        "`cosine_similarity`, `cosine_distance`",
        "a vector of zeros",
        (f32([0.0, 0.0]), f32([1.0, 2.0])),
        *named("cosine_similarity"),
        "nothing",
        value=[0.0],
        gradient=[[0.0, 0.0]],
    ),
    Case(
        "`ctc_loss`",
        "a sure model",
        (SURE, *NO_PADDING),
        *named("ctc_loss"),
        "nothing",
    ),
    Case(
        "`ntxent`",
        "no positive pairs",
        (f32([1.0, 0.0], [0.0, 1.0]), i32(0, 1)),
        *named("ntxent"),
        "nothing",
        value=0.0,
        gradient=[[0.0, 0.0], [0.0, 0.0]],
    ),
    Case(
        "`triplet_margin_loss`",
        "sums of absolute differences",
        (f32([0.0, 0.0]), f32([3.0, -4.0]), f32([1.0, 1.0])),
        *named("triplet_margin_loss", norm_degree=1),
        "nothing",
        value=[6.0],
        gradient=[[0.0, 2.0]],
    ),
    Case(
        "`ranking_softmax_loss`",
        "an item that is not there",
        (f32([0.0, 0.0, -INF]), f32([1.0, 0.0, 0.0])),
        *named("ranking_softmax_loss"),
        "nothing",
        value=np.log(2.0),
        gradient=[-0.5, 0.5, 0.0],
    ),
    Case(
        "`dice_loss` and its kin",
        "a good mask",
        (f32([[40.0, -40.0], [40.0, -40.0]]), f32([[1.0, 0.0], [1.0, 0.0]])),
        *named("dice_loss"),
        "nothing",
    ),
    Case(
        "`binary_dice_loss(apply_sigmoid=False)`",
        "probabilities",
        (f32([0.5, 0.75]), f32([1.0, 1.0])),
        lambda p, t: jaxent.binary_dice_loss(p, t, apply_sigmoid=False, smooth=0.0),
        or_refused(
            lambda losses, p, t: losses.binary_dice_loss(p, t, apply_sigmoid=False, smooth=0.0)
        ),
        "nothing",
        value=[0.75 / 3.25],
        differentiable=False,
    ),
    Case(
        "`dice_loss(apply_softmax=False)`",
        "what is no distribution",
        (f32([[0.9, 0.9]]), f32([[1.0, 0.0]])),
        lambda p, t: jaxent.dice_loss(p, t, apply_softmax=False),
        or_refused(lambda losses, p, t: losses.dice_loss(p, t, apply_softmax=False)),
        "nothing",
        value=[np.nan],
        differentiable=False,
    ),
)
