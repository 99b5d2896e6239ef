"""The cases of the losses from logits: softmax cross-entropy and z-loss."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
from mpmath import mp, mpf

import jaxent
from conformance import inputs, oracle
from conformance.case import CLASS, DISTRIBUTION, LOGITS, Case
from conformance.oracle import Number, Truth

# --- references -----------------------------------------------------------------------------------


def softmax_cross_entropy_with_integer_labels(
    logits: Sequence[Number], label: int, *, label_smoothing: float = 0.0
) -> Truth:
    """``log sum exp(x) - x[y]``; smoothed, the cross-entropy with ``(1-e) onehot + e/K``."""
    if label_smoothing:
        onehot = [mpf(0)] * len(logits)
        onehot[label] = mpf(1)
        return _first_gradient_only(
            softmax_cross_entropy(logits, onehot, label_smoothing=label_smoothing)
        )
    probabilities, normalizer = oracle.softmax(logits)
    value = normalizer - logits[label]
    gradient = list(probabilities)
    # An impossible class stays one however its logit moves.
    gradient[label] = gradient[label] - 1 if mpmath.isfinite(logits[label]) else mpf(0)
    return Truth(value, (gradient,), value, (gradient,))


def softmax_cross_entropy(
    logits: Sequence[Number], labels: Sequence[Number], *, label_smoothing: float = 0.0
) -> Truth:
    """``sum t_j (log sum exp(x) - x_j)`` with ``t = (1-e) labels + e/K``, and ``0 * inf = 0``."""
    smoothing = mpf(label_smoothing)
    targets = oracle.each(lambda label: (1 - smoothing) * label + smoothing / len(labels), labels)
    probabilities, normalizer = oracle.softmax(logits)
    costs = oracle.each(lambda logit: normalizer - logit, logits)
    total = mpmath.fsum(targets)
    value = mpmath.fsum(oracle.each(oracle.product, targets, costs))

    def slope(target: Number, p: Number, logit: Number) -> tuple[Number, Number]:
        if not mpmath.isfinite(logit):
            return mpf(0), mpf(0)
        return total * p - target, (total - target) * p + target * (1 - p)

    gradient, scale = map(
        list, zip(*oracle.each(slope, targets, probabilities, logits), strict=True)
    )
    label_gradient = oracle.each(lambda cost: (1 - smoothing) * cost, costs)
    return Truth(value, (gradient, label_gradient), value, (scale, label_gradient))


def z_loss(logits: Sequence[Number]) -> Truth:
    """``(log sum exp(x))^2``.

    The log-normaliser is itself a sum of two terms of either sign, the largest logit and the log
    of the rest, and may vanish between them: an ulp of those terms is what its error is made of.
    """
    probabilities, normalizer = oracle.softmax(logits)
    largest = max(logits)
    terms = abs(largest) + (normalizer - largest)
    ulp = mpf(2) ** -23
    return Truth(
        normalizer**2,
        (oracle.each(lambda p: 2 * normalizer * p, probabilities),),
        abs(normalizer) * terms + ulp * terms**2,
        (oracle.each(lambda p: 2 * terms * p, probabilities),),
    )


def z_loss_hessian_scale(
    logits: np.ndarray, *, weight: float = 1.0, mass: np.ndarray | None = None
) -> np.ndarray:
    """The absolute terms of ``2 z p_j p_k + (m + 2 z lse) p_j ([j=k] - p_k)``, m = 0 if None."""

    def scale(row: Sequence[Number], mass: Number) -> list[list[Number]]:
        probabilities, normalizer = oracle.softmax(row)
        factor = mass + 2 * weight * (abs(max(row)) + (normalizer - max(row)))
        return [
            [2 * weight * p * q + factor * (p * (1 - p) if j == k else p * q) for k, q in indexed]
            for indexed in [list(enumerate(probabilities))]
            for j, p in indexed
        ]

    mass = np.zeros(len(logits)) if mass is None else mass
    with mp.workdps(oracle.digits_for(logits)):
        rows = zip(oracle.exact(logits), oracle.exact(mass), strict=True)
        return oracle.objects([scale(*row) for row in rows])


def with_z_loss_hessian_scale(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The same for a cross-entropy with `z_loss` 1/2."""
    mass = np.ones(len(logits)) if labels.ndim == 1 else labels.astype(np.float64).sum(-1)
    return z_loss_hessian_scale(logits, weight=0.5, mass=mass)


def with_z_loss(truth: Callable[..., Truth]) -> Callable[..., Truth]:
    """A cross-entropy plus the option `z_loss` times the squared log-normaliser."""
    penalty_of = z_loss

    @functools.wraps(truth)
    def both(logits: Sequence[Number], *rest: object, z_loss: float = 0.0, **options: float):
        loss, weight = truth(logits, *rest, **options), mpf(z_loss)
        penalty = penalty_of(logits)

        def add(ours: Sequence[Number], theirs: Sequence[Number]) -> list[Number]:
            return oracle.each(lambda a, b: a + weight * b, ours, theirs)

        gradient, *others = loss.gradients
        scale, *other_scales = loss.gradient_scales
        return Truth(
            loss.value + weight * penalty.value,
            (add(gradient, penalty.gradients[0]), *others),
            abs(loss.value_scale) + weight * penalty.value_scale,
            (add(oracle.each(abs, scale), penalty.gradient_scales[0]), *other_scales),
        )

    return both


def accuracy(logits: Sequence[Number], label: int, *, k: int = 1) -> Truth:
    """1 if the label is among the first k of the classes, sorted by their logits; else 0."""
    order = sorted(range(len(logits)), key=lambda j: -logits[j])
    is_right = label in order[:k] and mpmath.isfinite(logits[label])
    nothing = [mpf(0)] * len(logits)
    return Truth(mpf(int(is_right)), (nothing,), mpf(1), (nothing,))


def _first_gradient_only(truth: Truth) -> Truth:
    return truth._replace(gradients=truth.gradients[:1], gradient_scales=truth.gradient_scales[:1])


# --- bars and arguments ---------------------------------------------------------------------------

# Worst error allowed, in units in the last place (scaled where the truth is a difference; see
# Truth): NUMERICS asks for 32 and 64 of the integer form and aims at 4 and 8.
INTEGER_VALUE, INTEGER_GRADIENT = 4, 8
SOFT_VALUE, SOFT_GRADIENT = 8, 8
SMOOTHED_VALUE, SMOOTHED_GRADIENT = 4, 8
Z_VALUE, Z_GRADIENT = 4, 8

_integer = functools.partial(
    Case,
    jaxent.softmax_cross_entropy_with_integer_labels,
    (LOGITS, CLASS),
    softmax_cross_entropy_with_integer_labels,
    inputs.integer_labels,
    vocabulary_inputs=inputs.few_integer_labels,
)
_soft = functools.partial(
    Case,
    jaxent.softmax_cross_entropy,
    (LOGITS, DISTRIBUTION),
    softmax_cross_entropy,
    inputs.soft_labels,
    vocabulary_inputs=inputs.few_soft_labels,
)


def _optax_smoothed(logits, labels):
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), 0.1)
    return optax.softmax_cross_entropy(logits, targets)


def _optax_soft_smoothed(logits, labels):
    return optax.softmax_cross_entropy(logits, optax.smooth_labels(jnp.asarray(labels), 0.1))


CASES = (
    _integer(INTEGER_VALUE, INTEGER_GRADIENT, peer=optax.softmax_cross_entropy_with_integer_labels),
    _integer(SMOOTHED_VALUE, SMOOTHED_GRADIENT, {"label_smoothing": 0.1}, peer=_optax_smoothed),
    _integer(
        SMOOTHED_VALUE,
        SMOOTHED_GRADIENT,
        {"label_smoothing": 0.1, "z_loss": 0.5},
        hessian_scale=with_z_loss_hessian_scale,
        vocabulary_inputs=None,
    )._replace(truth=with_z_loss(softmax_cross_entropy_with_integer_labels)),
    _soft(SOFT_VALUE, SOFT_GRADIENT, peer=optax.softmax_cross_entropy),
    _soft(
        SOFT_VALUE,
        SOFT_GRADIENT,
        {"z_loss": 0.5},
        hessian_scale=with_z_loss_hessian_scale,
        vocabulary_inputs=None,
    )._replace(truth=with_z_loss(softmax_cross_entropy)),
    # Over whole vocabularies the rows above say what there is to say.
    _soft(
        SOFT_VALUE,
        SOFT_GRADIENT,
        {"label_smoothing": 0.1},
        peer=_optax_soft_smoothed,
        vocabulary_inputs=None,
    ),
    Case(
        jaxent.safe_softmax_cross_entropy,
        (LOGITS, DISTRIBUTION),
        softmax_cross_entropy,
        inputs.soft_labels,
        SOFT_VALUE,
        SOFT_GRADIENT,
        peer=optax.safe_softmax_cross_entropy,
    ),
    Case(
        jaxent.z_loss,
        (LOGITS,),
        z_loss,
        inputs.logits_only,
        Z_VALUE,
        Z_GRADIENT,
        vocabulary_inputs=inputs.few_logits_only,
        hessian_scale=z_loss_hessian_scale,
    ),
    Case(jaxent.accuracy, (LOGITS, CLASS), accuracy, inputs.integer_labels, 0, 0),
    Case(jaxent.accuracy, (LOGITS, CLASS), accuracy, inputs.integer_labels, 0, 0, {"k": 2}),
)
