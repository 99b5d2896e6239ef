"""What is masked does not count, whatever it holds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conformance import level
from conformance.breaking import altered, is_integer, without
from conformance.case import Case, with_float64
from conformance.comparing import agree, equal
from conformance.obligation import new_table
from conformance.obligations.functions import has_classes, refused
from conformance.programs import every_result, gradients, of_floats, results, run, values

OBLIGATIONS, obligation = new_table()

POISONS = (np.nan, np.inf, -np.inf, 3e38)
NOT_MASKING = (
    without("where"),
    lambda loss: lambda *a, where=True, **k: loss(*a, **k) * jnp.asarray(where, jnp.float32),
    lambda loss: lambda *a, where=True, **k: jnp.where(where, loss(*a, **k), 0.0),
    lambda loss: lambda *a, where=True, **k: jnp.where(where, loss(*a, where=where, **k), 1e-30),
)


def poisoned(clean: tuple, where: np.ndarray, poisons: tuple) -> tuple[np.ndarray, ...]:
    """Arguments with an axis of poisons before the others: each of them where nothing counts."""
    return tuple(
        np.stack([altered(a, ~where, -100 if is_integer(a) else poison) for poison in poisons])
        for a in clean
    )


def check_masked(case: Case, clean: tuple, where: np.ndarray, poisons: tuple) -> None:
    """What counts is as if nothing were poisoned, and what does not is exactly 0."""
    expected = results(case, clean)
    wheres = np.broadcast_to(where, (len(poisons), *where.shape))
    found = every_result(case, poisoned(clean, where, poisons), wheres)
    for way, (losses, grads) in found.items():
        pairs = {"losses": (losses, expected.losses)}
        for number, pair in enumerate(zip(grads, expected.gradients, strict=True)):
            pairs[f"gradient {number}"] = pair
        for name, (many, kept) in pairs.items():
            for poison, one in zip(poisons, many, strict=True):
                beside = f"{name} beside masked {poison}, {way}"
                agree({beside: one[where]}, kept[where], given=clean)
                equal(f"{name} of masked {poison}, {way}", one[~where], 0.0, given=clean)


@obligation(*NOT_MASKING, to=has_classes)
def masks_examples_whatever_they_hold(case: Case) -> None:
    clean = case.inputs()
    where = np.array([True, False, True, False])
    check_masked(case, clean, where, POISONS)

    def others(where, *a):
        def hessian(where, x, *rest):
            return jax.hessian(lambda x: case.loss(x, *rest, where=where))(x)

        loss, floats = of_floats(case, a, where=where)
        tangent = jax.jvp(loss, floats, tuple(jnp.ones_like(f) for f in floats))[1]
        each = jax.vmap(lambda w, *a: case.loss(*a, where=w))(where, *a)
        return each, tangent, jax.vmap(hessian)(where, *a)

    arguments = tuple(a[-1] for a in poisoned(clean, where, POISONS))
    each, tangent, hessian = map(np.asarray, run(others, where, *arguments))
    losses = np.where(where, results(case, clean).losses, 0.0)
    agree({"a mask under vmap": each}, losses, given=arguments)
    for name, result in (("tangent", tangent), ("hessian", hessian)):
        equal(f"masked {name}", result[~where], 0.0, given=arguments)
        assert np.isfinite(result).all()


@obligation(
    *NOT_MASKING,
    to=lambda case: not case.has_class_axis,
)
def masks_elements_whatever_they_hold(case: Case) -> None:
    """Masked elements lie beside others that count, and bad labels are no exception."""
    clean = case.inputs()
    where = np.arange(clean[0].size).reshape(clean[0].shape) % 3 > 0
    check_masked(case, clean, where, (*POISONS, -100.0))
    losses = results(case, clean).losses
    arguments = tuple(a[0] for a in poisoned(clean, where, POISONS))

    def others(where, *a):
        loss, floats = of_floats(case, a, where=where)
        every = tuple(range(len(floats)))
        tangent = jax.jvp(loss, floats, floats)[1]
        each = jax.vmap(lambda w, *a: case.loss(*a, where=w))(where, *a)
        return each, tangent, jax.hessian(lambda *f: jnp.sum(loss(*f)), every)(*floats)

    each, tangent, hessians = run(others, where, *arguments)
    agree({"a mask under vmap": each}, np.where(where, losses, 0.0), given=arguments)
    equal("masked tangent", np.asarray(tangent)[~where], 0.0, given=arguments)
    for hessian in map(np.asarray, jax.tree.leaves(hessians)):
        equal("masked hessian", hessian[~where], 0.0, given=arguments)
        assert np.isfinite(hessian).all()
    if level.is_thorough():
        arguments = tuple(map(jnp.asarray, arguments))
        with jax.debug_nans(True):
            every_result(case, arguments, where)


@obligation(
    NOT_MASKING[0],
    NOT_MASKING[3],
    lambda loss: (
        lambda *a, where=None, **k: loss(
            *a,
            where=None if where is None else jnp.broadcast_to(jnp.asarray(where), a[0].shape),
            **k,
        )
    ),
    lambda loss: (
        lambda *a, where=None, **k: loss(
            *a, where=None if where is None else jnp.asarray(where).astype(bool), **k
        )
    ),
    to=lambda case: not case.has_class_axis,
    fails_with=(AssertionError, ValueError, pytest.fail.Exception),
)
def takes_masks_of_elements_of_every_kind(case: Case) -> None:
    clean = case.inputs()
    where = np.arange(clean[0].size).reshape(clean[0].shape) % 3 > 0
    losses = values(case, clean)
    agree({"True": values(case, clean, where=True)}, losses, given=clean)
    equal("False", values(case, clean, where=np.array(False)), 0.0, given=clean)
    column = np.arange(len(where))[:, None] > 1
    for name, mask in (("a column", column), ("a list", column.tolist())):
        found = values(case, clean, where=mask)
        agree({name: found}, np.where(column, losses, 0.0), given=clean)
    # The mask may be wider than the arguments, and any argument narrower than the mask.
    narrow = tuple(a[:1] for a in clean)
    expected = np.where(where, losses[:1], 0.0)
    wide = tuple(np.repeat(a[:1], len(where), axis=0) for a in clean)
    of_wide = [grad.sum(0, keepdims=True) for grad in results(case, wide, where).gradients]
    found = results(case, narrow, where)
    agree({"narrow arguments": found.losses}, expected, given=narrow)
    agree({"gradients of them": found.gradients}, of_wide, given=narrow, rtol=3e-6)
    for dtype in (np.float32, np.int32):
        refused(case, clean, "where", where.shape, where=where.astype(dtype))
    for shape in (where.shape[1:], (3, 5), (1, *where.shape), (*where.shape, 1)):
        refused(case, clean, "where", shape, where=np.ones(shape, bool))
    with with_float64():
        number = values(case, (clean[0], *(0.5 for _ in clean[1:])), where=where)
        assert number.dtype == np.float32
        assert jax.eval_shape(functools.partial(case.loss, where=where), *clean).dtype == np.float32
    for dtype in (*level.half_dtypes(), np.float32):
        grads = jax.eval_shape(
            lambda *a: gradients(case, a, where=where), *case.inputs(dtype=dtype)
        )
        assert all(grad.dtype == dtype for grad in grads)


@obligation(
    without("where"),
    lambda loss: (
        lambda x, *a, where=None, **k: loss(
            x, *a, **k, where=None if where is None or np.ndim(where) < x.ndim else where
        )
    ),
    to=has_classes,
)
def takes_masks_of_every_kind(case: Case) -> None:
    arguments = case.inputs((2, 3))
    all_true = np.ones((2, 3), bool)
    some = np.array([[True, False, True]])
    everything = {"None": None, "True": True, "all": all_true}
    nothing = {"False": False, "none": ~all_true, "none, of lower size": ~all_true[:1, :1]}
    part = {"narrow": some, "a list": some.tolist(), "wide": np.broadcast_to(some, (2, 3))}
    first_axis = {"classes first": some}
    if case.masks_classes:
        everything["all classes"] = all_true[..., None]
        nothing["no class"] = ~all_true[..., None]
        part["with an axis of classes"] = some[..., None]
        first_axis["with a first axis of classes"] = some[None]

    def every_way(*a):
        moved = tuple(jnp.moveaxis(each, -1, 0) if each.ndim == 3 else each for each in a)
        some_of = {name: case.loss(*a, where=mask) for name, mask in part.items()}
        for name, mask in first_axis.items():
            some_of[name] = case.loss(*moved, axis=0, where=mask)
        return (
            {name: case.loss(*a, where=mask) for name, mask in everything.items()},
            some_of,
            {name: case.loss(*a, where=mask) for name, mask in nothing.items()},
            {
                f"gradient, {name}": gradients(case, a, where=nothing[name])
                for name in ("False", "none", "none, of lower size")
            },
        )

    expected = values(case, arguments)
    whole, partial, empty, grads = run(every_way, *arguments)
    agree(whole, expected, given=arguments)
    agree(partial, np.where(some, expected, 0.0), given=arguments)
    for name, result in {**empty, **grads}.items():
        for leaf in jax.tree.leaves(result):
            equal(name, leaf, 0.0, given=arguments)


@obligation(
    without("where"),
    lambda loss: (
        lambda x, *a, where=None, **k: loss(
            x * (1 if where is None else where.astype(x.dtype)), *a, **k
        )
    ),
    to=lambda case: case.has_class_axis and case.masks_classes,
)
def treats_a_masked_class_as_if_it_were_not_there(case: Case) -> None:
    exists = np.array([True, False, True, True, False])
    labels = np.array([0, 2, 3, 0], np.int32)
    poisons = (0.5, *POISONS)
    arguments = tuple(labels if is_integer(a) else a for a in case.inputs())
    kept = tuple(
        (np.cumsum(exists)[a] - 1).astype(a.dtype) if is_integer(a) else a[:, exists]
        for a in arguments
    )
    expected = results(case, kept)
    given = tuple(
        np.stack(
            [
                a if is_integer(a) else altered(a, (slice(None), ~exists), poison)
                for poison in poisons
            ]
        )
        for a in arguments
    )
    masks = {"narrow": exists[None, None], "wide": np.broadcast_to(exists, (len(poisons), 4, 5))}
    for kind, mask in masks.items():
        found = results(case, given, mask)
        for number, poison in enumerate(poisons):
            name = f"{poison} behind a {kind} mask"
            agree({name: found.losses[number]}, expected.losses, given=kept)
            for grad, kept_grad in zip(found.gradients, expected.gradients, strict=True):
                one = grad[number]
                agree({f"gradient, {name}": one[:, exists]}, kept_grad, given=kept)
                equal(f"gradient of {name}", one[:, ~exists], 0.0, given=kept)
