"""What is bad is loud: NaN where there is no loss, and never a number that looks like one."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from conformance.breaking import after, altered, first, only, second, with_one
from conformance.case import LOGITS, Case
from conformance.comparing import agree, equal
from conformance.obligation import new_table
from conformance.obligations.functions import has_labels
from conformance.programs import every_result, of_floats, results, run

OBLIGATIONS, obligation = new_table()

NEGATIVE_LABELS = (-1, -100, np.iinfo(np.int32).min)


def has_class_logits(case: Case) -> bool:
    return case.has_class_axis and case.arguments[0].make is LOGITS.make


def spoiled(clean: tuple, position: int, value: float) -> tuple[np.ndarray, ...]:
    """Arguments with an axis before the others: `value` at each entry of row 1 in turn."""
    bad = np.stack([altered(clean[position], (1, entry), value) for entry in range(5)])
    return tuple(
        bad if i == position else np.broadcast_to(a, (5, *a.shape)) for i, a in enumerate(clean)
    )


@obligation(
    after(jnp.nan_to_num),
    first(jnp.nan_to_num),
    only(first(lambda x: jnp.where(jnp.isnan(x), -jnp.inf, x)), to=has_class_logits),
)
def lets_no_nan_hide(case: Case) -> None:
    clean = case.inputs()
    expected = results(case, clean)
    for position in case.positions(clean):
        arguments = spoiled(clean, position, np.nan)
        for (way, found), entry in itertools.product(
            every_result(case, arguments).items(), range(5)
        ):
            hit = np.zeros(expected.losses.shape, bool)
            hit[1 if case.has_class_axis else (1, entry)] = True
            name = f"NaN in argument {position} at (1, {entry}), {way}"
            equal(f"isnan, {name}", np.isnan(found.losses[entry]), hit, given=clean)
            agree({name: found.losses[entry][~hit]}, expected.losses[~hit], given=clean)
            assert np.isnan(found.gradients[0][entry][hit]).any(), name
            for grad, kept in zip(found.gradients, expected.gradients, strict=True):
                agree({f"gradient, {name}": grad[entry][~hit]}, kept[~hit], given=clean)


@obligation(
    first(lambda x: jnp.where(x == jnp.inf, 88.0, x)),
    to=has_class_logits,
)
def calls_an_infinite_logit_nan(case: Case) -> None:
    clean = case.inputs()
    losses = results(case, clean).losses
    hit = np.arange(4) == 1
    arguments = spoiled(clean, 0, np.inf)
    for way, found in every_result(case, arguments).items():
        for entry, result in enumerate(found.losses):
            name = f"inf at (1, {entry}), {way}"
            equal(f"isnan, {name}", np.isnan(result), hit, given=clean)
            agree({name: result[~hit]}, losses[~hit], given=clean)


@obligation(
    lambda loss: lambda x, *a, **k: loss(x, *a, **k) + jnp.sum(jax.nn.softmax(x), -1),
    to=has_class_logits,
)
def has_no_gradient_where_nothing_is_possible(case: Case) -> None:
    """So that a later selection makes it as if masked: NaN or +inf, unless the loss is bounded."""
    clean = case.inputs()
    positions = [i for i, argument in enumerate(case.arguments) if "logits" in argument.name]
    expected = results(case, clean)
    for position in positions:
        arguments = with_one(clean, position, altered(clean[position], 1, -np.inf))
        found = results(case, arguments)
        assert not found.losses[1] < expected.losses[1]

        def selected(*arguments):
            loss, floats = of_floats(case, arguments)

            def total(*floats):
                return jnp.sum(jnp.where(jnp.arange(4) == 1, 0.0, loss(*floats)))

            return jax.grad(total, tuple(range(len(floats))))(*floats)

        grads = {"gradient": found.gradients, "after a selection": run(selected, *arguments)}
        for (name, each), index in itertools.product(grads.items(), positions):
            result, kept = np.asarray(each[index]), expected.gradients[index]
            equal(f"{name}, {index}", result[1], 0.0, given=arguments)
            agree({f"{name}, {index}": result[[0, 2, 3]]}, kept[[0, 2, 3]], given=arguments)


@obligation(
    second(lambda labels: jnp.clip(labels, 0, 4)),
    second(lambda labels: labels % 5),
    second(lambda labels: jnp.where(jnp.asarray(labels) == -1, 4, labels)),
    lambda loss: lambda x, y, **k: jnp.where((y < 0) | (y > 4), jnp.nan, loss(x, y % 5, **k)),
    to=has_labels,
)
def calls_a_label_out_of_range_nan(case: Case) -> None:
    logits, labels = case.inputs((8,))
    expected = results(case, (logits, labels))
    beyond = 5 + case.extra_classes
    bad_labels = (*NEGATIVE_LABELS, beyond, beyond + 1, np.iinfo(np.int32).max)
    bad = np.arange(8) < len(bad_labels)
    given = logits, altered(labels, bad, bad_labels)
    for way, (losses, (grad,)) in every_result(case, given).items():
        equal(f"isnan, {way}", np.isnan(losses), bad, given=given)
        agree({f"good labels, {way}": losses[~bad]}, expected.losses[~bad], given=given)
        equal(f"isnan of the gradient, {way}", np.isnan(grad[bad]), True, given=given)
        kept = expected.gradients[0][~bad]
        agree({f"gradient of good labels, {way}": grad[~bad]}, kept, given=given)
    masked = results(case, given, ~bad)
    for result in (masked.losses, *masked.gradients):
        equal("masked", result[bad], 0.0, given=given)
    if case.masks_classes:
        exists = np.arange(5) != labels[:, None]
        for result in jax.tree.leaves(results(case, (logits, labels), exists)):
            assert np.isnan(result).any(-1).all()
