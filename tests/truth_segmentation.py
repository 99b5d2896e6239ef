"""The truth of losses of images, from their definitions; see oracle.py.

An image is a list of pixels, a pixel a list of classes, and a call a list of images, whose losses
are summed. Slopes along logits are sums over pairs of classes: an ulp of one is that of the sum of
their absolute terms.
"""

from collections.abc import Callable, Sequence

import mpmath
import oracle
from mpmath import mpf
from oracle import Number, Truth

Pixels = Sequence[Sequence[Number]]


def dice_loss(images: Sequence[Pixels], targets: Sequence[Pixels], **options) -> Truth:
    """The sum over images of the mean over classes of ``1 - (TP + s) / (TP + a FP + b FN + s)``."""
    share = mpf(1) / len(images[0][0])
    every = [
        _dice(image, target, share, **options)
        for image, target in zip(images, targets, strict=True)
    ]
    return _summed(every)


def binary_dice_loss(images, targets, *, apply_sigmoid: bool = True, **options) -> Truth:
    """The same of pixels that are numbers."""
    pixels = [[[pixel] for pixel in image] for image in images], [[[t] for t in i] for i in targets]
    truth = dice_loss(*pixels, apply_softmax=apply_sigmoid, **options)

    def flat(gradients):
        return tuple([[pixel[0] for pixel in image] for image in images] for images in gradients)

    return Truth(truth.value, flat(truth.gradients), truth.value_scale, flat(truth.gradient_scales))


def multiclass_generalized_dice_loss(images, targets, **options) -> Truth:
    """The mean of the losses of each class, weighted by ``1 / (f^2 + 1e-7)``."""
    size, classes = len(images), range(len(images[0][0]))
    counts = [mpmath.fsum(t[c] for target in targets for t in target) for c in classes]
    rarity = [1 / (f**2 + mpf("1e-7")) for f in counts]
    total = mpmath.fsum(rarity)
    weights = [r / total / size for r in rarity]
    every = [
        _dice(image, target, weights, **options)
        for image, target in zip(images, targets, strict=True)
    ]
    of_class = [
        mpmath.fsum(_class_losses(i, t, **options)[c] for i, t in zip(images, targets, strict=True))
        for c in classes
    ]
    truth = _summed(every)
    by_weight = [
        (
            mpmath.fsum(weights[k] * (of_class[c] - of_class[k]) for k in classes),
            mpmath.fsum(weights[k] * (of_class[c] + of_class[k]) for k in classes if k != c),
        )
        for c in classes
    ]
    moved, scale = (
        [-2 * f * r**2 / total * d[i] for f, r, d in zip(counts, rarity, by_weight, strict=True)]
        for i in (0, 1)
    )

    def plus(gradients, extra):
        return [
            [[g + e for g, e in zip(p, extra, strict=True)] for p in image] for image in gradients
        ]

    gradients = (truth.gradients[0], plus(truth.gradients[1], moved))
    scales = (truth.gradient_scales[0], plus(truth.gradient_scales[1], [-s for s in scale]))
    return Truth(truth.value, gradients, truth.value_scale, scales)


def lovasz_hinge(images: Sequence[Sequence[Number]], labels: Sequence[Sequence[int]]) -> Truth:
    """The Lovász extension of the Jaccard loss at the hinge errors of each image, summed."""
    value, gradients = mpf(0), []
    for image, truths in zip(images, labels, strict=True):
        signs = [2 * label - 1 for label in truths]
        errors = [1 - sign * logit for sign, logit in zip(signs, image, strict=True)]
        steps = _jaccard_steps(errors, truths)
        value += mpmath.fsum(
            step * error for step, error in zip(steps, errors, strict=True) if error > 0
        )
        rows = zip(steps, signs, errors, strict=True)
        gradients.append([-sign * step if error > 0 else mpf(0) for step, sign, error in rows])
    return Truth(value, (gradients,), value, (gradients,))


def lovasz_softmax(images: Sequence[Pixels], labels, *, classes: str = "present") -> Truth:
    """The mean over classes of the extension at ``|[y = c] - p_c|``, summed over images."""
    value, gradients, scales = mpf(0), [], []
    for image, truths in zip(images, labels, strict=True):
        probabilities = [oracle.softmax(pixel)[0] for pixel in image]
        every = range(len(image[0]))
        chosen = [c for c in every if classes == "all" or c in truths]
        slopes = [[mpf(0) for _ in every] for _ in image]
        for c in chosen:
            is_true = [int(label == c) for label in truths]
            errors = [
                1 - p[c] if true else p[c] for p, true in zip(probabilities, is_true, strict=True)
            ]
            steps = _jaccard_steps(errors, is_true)
            value += mpmath.fsum(s * e for s, e in zip(steps, errors, strict=True)) / len(chosen)
            for pixel, (step, true) in enumerate(zip(steps, is_true, strict=True)):
                slopes[pixel][c] = (-step if true else step) / len(chosen)
        along = [_along_logits(p, u, u) for p, u in zip(probabilities, slopes, strict=True)]
        gradients.append([slope for slope, _ in along])
        scales.append([scale for _, scale in along])
    return Truth(value, (gradients,), value, (scales,))


def _jaccard_steps(errors: Sequence[Number], is_true: Sequence[int]) -> list[Number]:
    """What each pixel adds to ``|M| / |true or M|`` in decreasing order of the errors."""
    steps, before, wrong, union = [mpf(0)] * len(errors), mpf(0), 0, sum(is_true)
    for pixel in sorted(range(len(errors)), key=lambda i: -errors[i]):
        wrong, union = wrong + 1, union + (not is_true[pixel])
        after = mpf(wrong) / union
        steps[pixel], before = after - before, after
    return steps


# Overlaps.


def _parts(image: Pixels, apply_softmax: bool) -> tuple[Pixels, Callable]:
    """The probabilities, and the slopes along the predictions given those along them."""
    if not apply_softmax:
        return image, lambda p, slopes, scales: (slopes, scales)
    if len(image[0]) == 1:
        ps = [[1 / (1 + mpmath.exp(-pixel[0]))] for pixel in image]
        return ps, lambda p, slopes, scales: tuple(
            [
                u * p[0] / (1 + mpmath.exp(mpmath.log(p[0] / (1 - p[0]))))
                if 0 < p[0] < 1
                else mpf(0)
                for u in each
            ]
            for each in (slopes, scales)
        )
    return [oracle.softmax(pixel)[0] for pixel in image], _along_logits


def _along_logits(p, slopes, scales) -> tuple[list[Number], list[Number]]:
    """``p_j sum_k p_k (u_j - u_k)`` for each class, and its absolute terms."""
    every = range(len(p))
    return (
        [p[j] * mpmath.fsum(p[k] * (slopes[j] - slopes[k]) for k in every) for j in every],
        [
            p[j] * mpmath.fsum(p[k] * (abs(scales[j]) + abs(scales[k])) for k in every if k != j)
            for j in every
        ],
    )


def _sums(ps: Pixels, targets: Pixels, c: int) -> tuple[Number, Number, Number]:
    pairs = [(p[c], t[c]) for p, t in zip(ps, targets, strict=True)]
    return (
        mpmath.fsum(p * t for p, t in pairs),
        mpmath.fsum(p * (1 - t) for p, t in pairs),
        mpmath.fsum((1 - p) * t for p, t in pairs),
    )


def _class_losses(image, targets, *, smooth=1.0, alpha=0.5, beta=0.5, apply_softmax=True) -> list:
    ps, _ = _parts(image, apply_softmax)
    losses = []
    for c in range(len(image[0])):
        hits, extra, missed = _sums(ps, targets, c)
        total = hits + mpf(alpha) * extra + mpf(beta) * missed + mpf(smooth)
        losses.append(1 - (hits + mpf(smooth)) / total if total else mpf(0))
    return losses


def _dice(
    image, targets, weights, *, smooth=1.0, alpha=0.5, beta=0.5, gamma=1.0, apply_softmax=True
) -> Truth:
    smooth, alpha, beta, gamma = map(mpf, (smooth, alpha, beta, gamma))
    ps, along = _parts(image, apply_softmax)
    classes = range(len(image[0]))
    weights = weights if isinstance(weights, list) else [weights] * len(classes)
    value, slopes = mpf(0), {c: [] for c in classes}
    for c in classes:
        hits, extra, missed = _sums(ps, targets, c)
        gone, kept = alpha * extra + beta * missed, hits + smooth
        total = gone + kept
        loss = gone / total if total else mpf(0)
        powered = loss ** (1 / gamma) if loss else mpf(0)
        value += weights[c] * powered
        factor = weights[c] * (powered / loss / gamma / total**2 if loss else mpf(0))
        if gamma == 1:
            factor = weights[c] / total**2 if total else mpf(0)
        for p, t in zip(ps, targets, strict=True):
            p, t = p[c], t[c]
            of_p = factor * (kept * alpha * (1 - t)), factor * (kept * beta * t + gone * t)
            of_t = factor * kept * beta * (1 - p), factor * (kept * alpha * p + gone * p)
            slopes[c].append((of_p[0] - of_p[1], sum(of_p), of_t[0] - of_t[1], sum(of_t)))
    rows = range(len(image))
    moved = [
        along(ps[i], [slopes[c][i][0] for c in classes], [slopes[c][i][1] for c in classes])
        for i in rows
    ]
    gradients = [m[0] for m in moved], [[slopes[c][i][2] for c in classes] for i in rows]
    scales = [m[1] for m in moved], [[slopes[c][i][3] for c in classes] for i in rows]
    return Truth(value, gradients, value, scales)


def _summed(every: Sequence[Truth]) -> Truth:
    """The truth of a sum of images."""
    return Truth(
        mpmath.fsum(t.value for t in every),
        tuple(list(g) for g in zip(*(t.gradients for t in every), strict=True)),
        mpmath.fsum(t.value_scale for t in every),
        tuple(list(g) for g in zip(*(t.gradient_scales for t in every), strict=True)),
    )
