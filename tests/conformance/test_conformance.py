"""Every public loss against every obligation of the contract.

An obligation is a function of a case of the table. It is registered with at least one way of
breaking a loss that it must notice: `test_the_table_has_teeth` breaks a loss that way and demands
that the obligation fails, so that no check here can be one that passes whatever happens.

Compiling takes nearly all of the time, so an obligation lays what it compares in one compiled
program where it can, and results become NumPy arrays before anything is done with them.
"""

import functools
import gc
import inspect
import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.core import Tracer

import jaxent
from conformance import oracle
from conformance.case import CLASS, LOGITS, Batch, Case, with_float64
from conformance.obligations import (
    HALF_DTYPES,
    Loss,
    Obligation,
    after,
    altered,
    close,
    first,
    instead,
    is_integer,
    keeps_a_tracer,
    new_table,
    notices,
    require,
    second,
    ways_of_breaking,
    with_one,
    without,
    without_curvature,
    without_forward_mode,
)
from conformance.table import CASES, NOT_LOSSES, WHOLE_CASES
from public import FUNCTIONS

REFUSED_OPTIONS = {
    "base": (0.5, 1, 0, -2, math.inf, math.nan, jnp.array(2.0)),
    "full": (0, 1, None, "yes", np.True_, jnp.array(True)),
    "label_smoothing": (-0.1, 1.1, 2),
    "pos_weight": (-1, -1e-9, math.inf, math.nan),
}
NEGATIVE_LABELS = (-1, -100, np.iinfo(np.int32).min)


OBLIGATIONS, obligation = new_table()


def has_classes(case: Case) -> bool:
    return case.has_class_axis


def is_element_wise(case: Case) -> bool:
    return not case.has_class_axis


def has_labels(case: Case) -> bool:
    return CLASS in case.arguments


def has_class_mask(case: Case) -> bool:
    return case.has_class_axis and case.masks_classes


def has_class_logits(case: Case) -> bool:
    return case.has_class_axis and case.arguments[0].make is LOGITS.make


# --- tools ----------------------------------------------------------------------------------------


def of_floats(case: Case, arguments, **keywords) -> tuple[Callable, tuple]:
    """The loss as a function of its real arguments alone, and those."""

    def loss(*floats):
        rest = iter(floats)
        return case.loss(*(a if is_integer(a) else next(rest) for a in arguments), **keywords)

    return loss, tuple(a for a in arguments if not is_integer(a))


def of_vector(case: Case, arguments) -> tuple[Callable, jax.Array]:
    """The loss of one example as a function of all its real arguments, laid end to end."""
    loss, floats = of_floats(case, arguments)
    ends = np.cumsum([np.size(value) for value in floats])[:-1]

    def of(vector):
        parts = jnp.split(vector, ends)
        return loss(*(p.reshape(np.shape(f)) for p, f in zip(parts, floats, strict=True)))

    return of, jnp.concatenate([jnp.ravel(value) for value in floats])


def values(case: Case, arguments, **keywords) -> np.ndarray:
    """The losses, called eagerly."""
    return np.asarray(case.loss(*arguments, **keywords))


def gradients(case: Case, arguments, **keywords) -> tuple[jax.Array, ...]:
    """The gradient of the sum of the losses in each real argument."""
    loss, floats = of_floats(case, arguments, **keywords)
    return jax.grad(lambda *f: jnp.sum(loss(*f)), tuple(range(len(floats))))(*floats)


def hessians(case: Case, arguments, outer: Callable) -> jax.Array:
    """Second derivatives of each example in its first argument, `outer` over reverse mode."""
    return jax.vmap(outer(jax.jacrev(case.loss)))(*arguments)


def compiled(case: Case, arguments, where=None) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The losses and their gradients from one program, kept for the next call alike."""
    losses, slopes = _program(case.function, tuple(case.options.items()))(arguments, where)
    return np.asarray(losses), tuple(map(np.asarray, slopes))


@functools.cache
def _program(function: Loss, options: tuple) -> Callable:
    def values_and_gradients(arguments, where):
        keywords = dict(options) if where is None else {**dict(options), "where": where}
        floats = tuple(a for a in arguments if not is_integer(a))

        def total(*floats):
            rest = iter(floats)
            given = (a if is_integer(a) else next(rest) for a in arguments)
            losses = function(*given, **keywords)
            return jnp.sum(losses), losses

        slopes, losses = jax.grad(total, tuple(range(len(floats))), has_aux=True)(*floats)
        return losses, slopes

    return jax.jit(values_and_gradients)


_calls = itertools.count()


# --- obligations: what kind of function it is -----------------------------------------------------


@obligation(
    after(lambda losses: losses + next(_calls)),
    after(lambda losses: [losses, jax.debug.callback(lambda: None)][0]),
)
def is_pure(case: Case) -> None:
    arguments = case.inputs()
    before_call = [a.tobytes() for a in arguments]
    assert values(case, arguments).tobytes() == values(case, arguments).tobytes()
    assert [a.tobytes() for a in arguments] == before_call
    assert not jax.make_jaxpr(case.loss)(*arguments).effects


@obligation(
    after(jnp.mean),
    after(lambda losses: losses[..., None]),
    after(lambda losses: losses.astype(jnp.bfloat16)),
    after(lambda losses: losses - 0 * jnp.max(losses)),
    fails_with=(AssertionError, ValueError),
)
def gives_one_float32_per_example(case: Case) -> None:
    for leading in ((), (4,), (2, 3), (0,), (1, 0, 2)):
        arguments = case.inputs(leading)
        result = jax.eval_shape(case.loss, *arguments)
        assert result.shape == (leading if case.has_class_axis else arguments[0].shape)
        assert result.dtype == np.float32
        assert not result.weak_type
    assert values(case, case.inputs((0,))).size == 0


@obligation(after(lambda losses: losses + 1e-3), to=has_classes)
def takes_a_single_class(case: Case) -> None:
    arguments = case.inputs((4,), classes=1)
    truth = oracle.batch(case.truth, *arguments, **case.options)
    within(case, Batch(["one class"] * 4, arguments, truth), np.float32)


@obligation(first(lambda logits: logits + 0 * logits.ndim), fails_with=AttributeError)
def takes_lists_and_numbers(case: Case) -> None:
    arguments = case.inputs()
    close(values(case, [a.tolist() for a in arguments]), values(case, arguments))
    close(values(case, [jnp.asarray(a) for a in arguments]), values(case, arguments))
    one = case.inputs(())
    close(values(case, [a.tolist() for a in one]), values(case, one))
    assert values(case, [a.tolist() for a in one]).dtype == np.float32
    if not case.has_class_axis:
        assert values(case, [0.5 for _ in one]).shape == ()


# --- obligations: under every transformation ------------------------------------------------------


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) + 0.01 * isinstance(a[0], Tracer),
    after(lambda losses: losses + 0.01 * jnp.mean(losses)),
    after(lambda losses: losses + 0.01 * jnp.cumsum(losses, -1) if losses.ndim else losses),
)
def has_one_value_under_every_transformation(case: Case) -> None:
    arguments = case.inputs((2, 3))

    def every_way(*a):
        last = tuple(jnp.moveaxis(each, 1, -1) for each in a)
        return {
            "jit": case.loss(*a),
            "vmap": jax.vmap(case.loss)(*a),
            "vmap along axis 1": jax.vmap(case.loss, in_axes=1, out_axes=1)(*a),
            "vmap along the last axis": jnp.moveaxis(
                jax.vmap(case.loss, in_axes=-1, out_axes=-1)(*last), -1, 1
            ),
            "vmap of vmap": jax.vmap(jax.vmap(case.loss))(*a),
            "checkpoint": jax.checkpoint(case.loss)(*a),
            "scan": jax.lax.scan(lambda _, each: (None, case.loss(*each)), None, a)[1],
        }

    expected = values(case, arguments)
    for result in jax.jit(every_way)(*arguments).values():
        close(result, expected)
    close(jax.vmap(case.loss)(*arguments), expected)
    alone = tuple(a[1, 1] if case.has_class_axis else a[1, 1, 0] for a in arguments)
    close(values(case, alone), expected[1, 1] if case.has_class_axis else expected[1, 1, 0])


@obligation(
    without_forward_mode,
    after(lambda losses: losses + 0.01 * jnp.mean(losses)),
    fails_with=(AssertionError, TypeError),
)
def has_one_gradient_under_every_transformation(case: Case) -> None:
    arguments = case.inputs()
    _, floats = of_floats(case, arguments)
    everything = tuple(range(len(floats)))
    losses, _ = compiled(case, arguments)
    generator = np.random.default_rng(0)
    weights = generator.normal(size=losses.shape).astype(np.float32)
    directions = tuple(jnp.asarray(generator.normal(size=f.shape), np.float32) for f in floats)

    def slopes(weight, *a, wrap=lambda f: f):
        loss, floats = of_floats(case, a)
        return jax.grad(lambda *f: jnp.sum(weight * wrap(loss)(*f)), everything)(*floats)

    def every_way(weights, *a):
        loss, floats = of_floats(case, a)
        linear_value, linear = jax.linearize(loss, *floats)
        by_row = jax.lax.scan(lambda _, each: (None, slopes(*each)), None, (weights, *a))[1]
        gradients = {
            "jit": slopes(weights, *a),
            "checkpoint": slopes(weights, *a, wrap=jax.checkpoint),
            "vmap": jax.vmap(slopes)(weights, *a),
            "scan": by_row,
            "transpose": jax.linear_transpose(linear, *floats)(weights),
        }
        value, tangent = jax.jvp(loss, floats, directions)
        return gradients, (linear_value, value), (linear(*directions), tangent)

    expected = slopes(weights, *arguments)
    gradients, primals, tangents = jax.jit(every_way)(weights, *arguments)
    for result in gradients.values():
        close(result, expected)
    close(primals, (losses, losses))
    close(tangents[0], tangents[1])
    assert all(g.dtype == np.float32 for g in (*expected, *tangents))
    by_hand = sum(np.vdot(g, d) for g, d in zip(expected, directions, strict=True))
    close(np.vdot(weights, tangents[0]), by_hand, rtol=3e-6)


@obligation(without_forward_mode, without_curvature, fails_with=(AssertionError, TypeError))
def has_one_curvature_in_every_mode(case: Case) -> None:
    arguments = case.inputs((1,))
    one = tuple(a[0] if case.has_class_axis else a[0, 0] for a in arguments)
    loss, point = of_vector(case, one)
    modes = list(itertools.product((jax.jacfwd, jax.jacrev), repeat=2))
    steps = np.float32(5e-3) * np.eye(point.size, dtype=np.float32)

    def every_way(point):
        slope = jax.vmap(jax.grad(loss))
        near, far = (
            slope(point[None] + size * steps) - slope(point[None] - size * steps) for size in (1, 2)
        )
        differences = (8 * near - far) / 6e-2  # of the fourth order
        return differences, [outer(inner(loss))(point) for outer, inner in modes]

    differences, hessians = jax.jit(every_way)(point)
    for hessian in hessians:
        close(hessian, hessians[0], rtol=2e-6)
    close(hessians[0], hessians[0].T, rtol=2e-6)
    names = [argument.name for argument in case.arguments]
    is_moving = [not case.constants or names[i] not in case.constants for i in range(point.size)]
    moves = np.flatnonzero(is_moving)
    np.testing.assert_allclose(hessians[0][moves], differences[moves], atol=2e-3)


@obligation(
    after(lambda losses: losses + jnp.arange(losses.size).reshape(losses.shape)),
    after(lambda losses: losses + jnp.ones((1, *losses.shape), losses.dtype)),
    fails_with=ValueError,
)
def needs_no_implicit_promotion(case: Case) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in (np.float32, *HALF_DTYPES):
            jax.eval_shape(lambda *a: gradients(case, a), *case.inputs(dtype=dtype))
            jax.eval_shape(jax.vmap(case.loss), *case.inputs((2, 3), dtype=dtype))


@obligation(first(keeps_a_tracer), fails_with=Exception)  # JAX raises nothing narrower
def leaks_nothing(case: Case) -> None:
    arguments = case.inputs()

    def everything(*a):
        examples = elements(case, a)
        return [
            gradients(case, a),
            *(hessians(case, examples, outer) for outer in (jax.jacfwd, jax.jacrev)),
        ]

    gc.freeze()  # JAX looks for leaks among all objects, of which the truths are very many
    try:
        with jax.checking_leaks():
            jax.make_jaxpr(everything)(*arguments)
    finally:
        gc.unfreeze()


def elements(case: Case, arguments) -> tuple:
    """Arguments whose first axis counts the examples."""
    return tuple(arguments) if case.has_class_axis else tuple(a.ravel() for a in arguments)


@obligation(
    after(lambda losses: jnp.where(losses >= 0, losses, jnp.log(-1.0 - losses))),
    first(lambda x: jnp.where(x > -1e30, x, 0.0 / (jnp.asarray(x) * 0.0))),
    fails_with=FloatingPointError,
)
def makes_no_nan_on_the_way(case: Case) -> None:
    """Called eagerly, `jax_debug_nans` sees what passes from the forward to the backward pass."""
    arguments = case.hard_batch(np.float32, 10).arguments
    with jax.debug_nans(True):
        jax.block_until_ready(case.loss(*arguments))
        jax.block_until_ready(gradients(case, arguments))
        compiled(case, arguments)


@obligation(
    first(lambda x: jnp.asarray(x).astype(jnp.float32)),
    after(lambda losses: losses.astype(jnp.result_type(float))),
)
def keeps_float32_and_float64_apart(case: Case) -> None:
    plain, plain_slopes = compiled(case, case.inputs())
    with with_float64():
        for dtype in (np.float32, np.float64):
            losses, slopes = compiled(case, case.inputs(dtype=dtype))
            assert losses.dtype == dtype
            assert all(slope.dtype == dtype for slope in slopes)
            close((losses, slopes), (plain, plain_slopes))
        for dtype in HALF_DTYPES:
            assert jax.eval_shape(case.loss, *case.inputs(dtype=dtype)).dtype == np.float32


# --- obligations: the class axis and the masks ----------------------------------------------------


@obligation(
    without("axis"),
    lambda loss: lambda *a, axis=-1, **k: loss(*a, axis=axis if axis != -2 else -1, **k),
    to=has_classes,
)
def takes_any_axis(case: Case) -> None:
    arguments = case.inputs((4, 3), classes=6)
    axes = range(-3, 3)
    pairs = ((2, 3), (-1, 0), (1, 3))

    def move(array, axis):
        return jnp.moveaxis(array, -1, axis) if array.ndim == 3 else array

    def unfold(array, pair):
        """The classes as two axes, [2, 3], put at the places of the pair."""
        if array.ndim < 3:
            return array
        return jnp.moveaxis(array.reshape(4, 3, 2, 3), (2, 3), pair)

    def every_way(*a):
        along = [(tuple(move(each, axis) for each in a), axis) for axis in axes]
        pair = [case.loss(*(unfold(each, pair) for each in a), axis=pair) for pair in pairs]
        return (
            [case.loss(*moved, axis=axis) for moved, axis in along] + pair,
            [
                tuple(jnp.moveaxis(s, axis, -1) for s in gradients(case, moved, axis=axis))
                for moved, axis in along[:2]
            ],
        )

    expected, expected_slopes = compiled(case, arguments)
    results, slopes = jax.jit(every_way)(*arguments)
    for result in results:
        close(result, expected)
    for result in slopes:
        close(result, expected_slopes)


@obligation(
    without("where"),
    lambda loss: lambda *a, where=True, **k: loss(*a, **k) * jnp.asarray(where, jnp.float32),
    lambda loss: lambda *a, where=True, **k: jnp.where(where, loss(*a, **k), 0.0),
    lambda loss: lambda *a, where=True, **k: jnp.where(where, loss(*a, where=where, **k), 1e-30),
    to=has_classes,
)
def masks_examples_whatever_they_hold(case: Case) -> None:
    clean = case.inputs()
    where = np.array([True, False, True, False])
    losses, slopes = compiled(case, clean)
    for poison in (np.nan, np.inf, -np.inf, 3e38):
        arguments = tuple(altered(a, ~where, -100 if is_integer(a) else poison) for a in clean)
        masked, masked_slopes = compiled(case, arguments, where)
        for result in (masked, values(case, arguments, where=where)):
            close(result[where], losses[where])
            np.testing.assert_array_equal(result[~where], 0.0)
        for slope, expected in zip(masked_slopes, slopes, strict=True):
            close(slope[where], expected[where])
            np.testing.assert_array_equal(slope[~where], 0.0)
    eager = tuple(map(np.asarray, gradients(case, arguments, where=where)))
    close(eager, masked_slopes)

    def others(where, *a):
        def curvature(where, x, *rest):
            return jax.hessian(lambda x: case.loss(x, *rest, where=where))(x)

        loss, floats = of_floats(case, a, where=where)
        tangent = jax.jvp(loss, floats, tuple(jnp.ones_like(f) for f in floats))[1]
        each = jax.vmap(lambda w, *a: case.loss(*a, where=w))(where, *a)
        return each, tangent, jax.vmap(curvature)(where, *a)

    each, tangent, curvature = map(np.asarray, jax.jit(others)(where, *arguments))
    close(each, np.where(where, losses, 0.0))
    for result in (tangent, curvature):
        np.testing.assert_array_equal(result[~where], 0.0)
        assert np.isfinite(result).all()


@obligation(
    without("where"),
    lambda loss: lambda *a, where=True, **k: loss(*a, **k) * jnp.asarray(where, jnp.float32),
    lambda loss: lambda *a, where=True, **k: jnp.where(where, loss(*a, **k), 0.0),
    lambda loss: lambda *a, where=True, **k: jnp.where(where, loss(*a, where=where, **k), 1e-30),
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
    to=is_element_wise,
    fails_with=(AssertionError, FloatingPointError, ValueError, pytest.fail.Exception),
)
def masks_elements_whatever_they_hold(case: Case) -> None:
    """Masked elements lie beside others that count, and bad labels are no exception."""
    clean = case.inputs()
    where = np.arange(clean[0].size).reshape(clean[0].shape) % 3 > 0
    losses, slopes = compiled(case, clean)
    for poison in (np.nan, np.inf, -np.inf, 3e38, -100.0):
        arguments = tuple(altered(a, ~where, -100 if is_integer(a) else poison) for a in clean)
        masked, masked_slopes = compiled(case, arguments, where)
        for result in (masked, values(case, arguments, where=where)):
            close(result[where], losses[where])
            np.testing.assert_array_equal(result[~where], 0.0)
        for slope, expected in zip(masked_slopes, slopes, strict=True):
            close(slope[where], expected[where])
            np.testing.assert_array_equal(slope[~where], 0.0)
    poisoned = tuple(
        jnp.asarray(altered(a, ~where, -100 if is_integer(a) else np.nan)) for a in clean
    )
    with jax.debug_nans(True):
        close(values(case, poisoned, where=where), np.where(where, losses, 0.0))
        close(gradients(case, poisoned, where=where), masked_slopes)

    def others(where, *a):
        loss, floats = of_floats(case, a, where=where)
        every = tuple(range(len(floats)))
        tangent = jax.jvp(loss, floats, floats)[1]
        each = jax.vmap(lambda w, *a: case.loss(*a, where=w))(where, *a)
        return each, tangent, jax.hessian(lambda *f: jnp.sum(loss(*f)), every)(*floats)

    with jax.debug_nans(True):
        each, tangent, curvatures = jax.jit(others)(where, *poisoned)
    close(each, np.where(where, losses, 0.0))
    np.testing.assert_array_equal(np.asarray(tangent)[~where], 0.0)
    for curvature in map(np.asarray, jax.tree.leaves(curvatures)):
        np.testing.assert_array_equal(curvature[~where], 0.0)
        assert np.isfinite(curvature).all()

    close(values(case, clean, where=True), losses)
    np.testing.assert_array_equal(values(case, poisoned, where=np.array(False)), 0.0)
    column = np.arange(len(where))[:, None] > 1
    for mask in (column, column.tolist()):
        close(values(case, clean, where=mask), np.where(column, losses, 0.0))
    # The mask may be wider than the arguments, and any argument narrower than the mask.
    narrow = tuple(a[:1] for a in clean)
    expected = np.where(where, losses[:1], 0.0)
    close(values(case, narrow, where=where), expected)
    wide = tuple(np.repeat(a[:1], len(where), axis=0) for a in clean)
    of_wide = [slope.sum(0, keepdims=True) for slope in compiled(case, wide, where)[1]]
    close(compiled(case, narrow, where), (expected, tuple(of_wide)), rtol=3e-6)

    for dtype in (np.float32, np.int32):
        refused(case, clean, "where", where.shape, where=where.astype(dtype))
    for shape in (where.shape[1:], (3, 5), (1, *where.shape), (*where.shape, 1)):
        refused(case, clean, "where", shape, where=np.ones(shape, bool))
    with with_float64():
        number = values(case, (clean[0], *(0.5 for _ in clean[1:])), where=where)
        assert number.dtype == np.float32
        assert jax.eval_shape(functools.partial(case.loss, where=where), *clean).dtype == np.float32
    for dtype in (*HALF_DTYPES, np.float32):
        half = case.inputs(dtype=dtype)
        slopes = gradients(case, half, where=where)
        assert all(slope.dtype == dtype for slope in slopes)


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
    everything = [None, True, all_true]
    nothing = [False, ~all_true, ~all_true[:1, :1]]
    part = [some, some.tolist(), np.broadcast_to(some, (2, 3))]
    first_axis_masks = [some]
    if case.masks_classes:
        everything.append(all_true[..., None])
        nothing.append(~all_true[..., None])
        part.append(some[..., None])
        first_axis_masks.append(some[None])

    def every_way(*a):
        first_axis = tuple(jnp.moveaxis(each, -1, 0) if each.ndim == 3 else each for each in a)
        return (
            [case.loss(*a, where=mask) for mask in everything],
            [case.loss(*a, where=mask) for mask in part]
            + [case.loss(*first_axis, axis=0, where=mask) for mask in first_axis_masks],
            [case.loss(*a, where=mask) for mask in nothing],
            [gradients(case, a, where=mask) for mask in nothing[:3]],
        )

    expected = values(case, arguments)
    whole, partial, empty, slopes = jax.jit(every_way)(*arguments)
    for result in whole:
        close(result, expected)
    for result in partial:
        close(result, np.where(some, expected, 0.0))
    for result in jax.tree.leaves((empty, slopes)):
        np.testing.assert_array_equal(result, 0.0)


@obligation(
    without("where"),
    lambda loss: (
        lambda x, *a, where=None, **k: loss(
            x * (1 if where is None else where.astype(x.dtype)), *a, **k
        )
    ),
    to=has_class_mask,
)
def treats_a_masked_class_as_if_it_were_not_there(case: Case) -> None:
    exists = np.array([True, False, True, True, False])
    labels = np.array([0, 2, 3, 0], np.int32)
    arguments = tuple(labels if is_integer(a) else a for a in case.inputs())
    kept = tuple(
        (np.cumsum(exists)[a] - 1).astype(a.dtype) if is_integer(a) else a[:, exists]
        for a in arguments
    )
    expected, expected_slopes = compiled(case, kept)
    masks = (exists[None], np.broadcast_to(exists, (4, 5)))
    for mask, poison in itertools.product(masks, (0.5, np.nan, np.inf, -np.inf, 3e38)):
        given = tuple(
            a if is_integer(a) else altered(a, (slice(None), ~exists), poison) for a in arguments
        )
        losses, slopes = compiled(case, given, mask)
        close(losses, expected)
        for slope, kept_slope in zip(slopes, expected_slopes, strict=True):
            close(slope[:, exists], kept_slope)
            np.testing.assert_array_equal(slope[:, ~exists], 0.0)


@obligation(
    first(lambda x: jnp.maximum(x, -1e4)),
    first(lambda x: jnp.where(jnp.isfinite(x), x, 0.0)),
    instead(optax.softmax_cross_entropy_with_integer_labels),
    to=has_class_logits,
)
def gives_impossible_classes_no_gradient(case: Case) -> None:
    """-inf logits: probability 0, gradient 0, and never a NaN, whether or not they cost +inf."""
    batch = case.hard_batch(np.float32, 10)
    impossible = np.isneginf(batch.arguments[0])
    with np.errstate(over="ignore"):
        infinite = np.isposinf(batch.truth.value.astype(np.float64).astype(np.float32))
    assert impossible.any()
    eager = values(case, batch.arguments), gradients(case, batch.arguments)
    for losses, slopes in (eager, compiled(case, batch.arguments)):
        np.testing.assert_array_equal(np.isposinf(losses), infinite)
        np.testing.assert_array_equal(np.asarray(slopes[0])[impossible], 0.0)
        assert not any(np.isnan(result).any() for result in (losses, *slopes))


# --- obligations: what must be loud ---------------------------------------------------------------


@obligation(
    after(jnp.nan_to_num),
    first(jnp.nan_to_num),
    first(lambda x: jnp.where(jnp.isnan(x), -jnp.inf, x)),
)
def lets_no_nan_hide(case: Case) -> None:
    clean = case.inputs()
    losses, slopes = compiled(case, clean)
    positions = [i for i, a in enumerate(clean) if not is_integer(a)]
    for position, entry in itertools.product(positions, range(5)):
        arguments = with_one(clean, position, altered(clean[position], (1, entry), np.nan))
        hit = np.zeros(losses.shape, bool)
        hit[1 if case.has_class_axis else (1, entry)] = True
        found, found_slopes = compiled(case, arguments)
        for result in (found, values(case, arguments)):
            np.testing.assert_array_equal(np.isnan(result), hit)
            close(result[~hit], losses[~hit])
        assert np.isnan(found_slopes[0][hit]).any()
        for slope, expected in zip(found_slopes, slopes, strict=True):
            close(slope[~hit], expected[~hit])


@obligation(first(lambda x: jnp.where(x == jnp.inf, 88.0, x)), to=has_class_logits)
def calls_an_infinite_logit_nan(case: Case) -> None:
    clean = case.inputs()
    losses, _ = compiled(case, clean)
    hit = np.arange(4) == 1
    for entry in range(5):
        arguments = with_one(clean, 0, altered(clean[0], (1, entry), np.inf))
        for result in (compiled(case, arguments)[0], values(case, arguments)):
            np.testing.assert_array_equal(np.isnan(result), hit)
            close(result[~hit], losses[~hit])


@obligation(
    lambda loss: lambda x, *a, **k: loss(x, *a, **k) + jnp.sum(jax.nn.softmax(x), -1),
    to=has_class_logits,
)
def has_no_gradient_where_nothing_is_possible(case: Case) -> None:
    """So that a later selection makes it as if masked: NaN or +inf, unless the loss is bounded."""
    clean = case.inputs()
    logits = [i for i, argument in enumerate(case.arguments) if "logits" in argument.name]
    losses, slopes = compiled(case, clean)
    for position in logits:
        arguments = with_one(clean, position, altered(clean[position], 1, -np.inf))
        found, found_slopes = compiled(case, arguments)
        assert not found[1] < losses[1]
        loss, floats = of_floats(case, arguments)

        def selected(*floats, loss=loss):
            losses = loss(*floats)
            return jnp.sum(jnp.where(jnp.arange(4) == 1, 0.0, losses))

        selected_slopes = jax.jit(jax.grad(selected, tuple(range(len(floats)))))(*floats)
        for index in logits:
            for result in (found_slopes[index], np.asarray(selected_slopes[index])):
                np.testing.assert_array_equal(result[1], 0.0)
                close(result[[0, 2, 3]], slopes[index][[0, 2, 3]])


@obligation(
    second(lambda labels: jnp.clip(labels, 0, 4)),
    second(lambda labels: labels % 5),
    second(lambda labels: jnp.where(jnp.asarray(labels) == -1, 4, labels)),
    lambda loss: lambda x, y, **k: jnp.where((y < 0) | (y > 4), jnp.nan, loss(x, y % 5, **k)),
    instead(optax.softmax_cross_entropy_with_integer_labels),
    to=has_labels,
)
def calls_a_label_out_of_range_nan(case: Case) -> None:
    logits, labels = case.inputs((8,))
    losses, (slope,) = compiled(case, (logits, labels))
    beyond = 5 + case.extra_classes
    bad_labels = (*NEGATIVE_LABELS, beyond, beyond + 1, np.iinfo(np.int32).max)
    bad = np.arange(8) < len(bad_labels)
    given = logits, altered(labels, bad, bad_labels)
    found, (found_slope,) = compiled(case, given)
    for result in (found, values(case, given)):
        np.testing.assert_array_equal(np.isnan(result), bad)
        close(result[~bad], losses[~bad])
    assert np.isnan(found_slope[bad]).all()
    close(found_slope[~bad], slope[~bad])
    assert np.isnan(gradients(case, given)[0][:6]).all()
    masked, (masked_slope,) = compiled(case, given, ~bad)
    for result in (masked, masked_slope):
        np.testing.assert_array_equal(result[bad], 0.0)
    if case.masks_classes:
        exists = np.arange(5) != labels[:, None]
        for result in jax.tree.leaves(compiled(case, (logits, labels), exists)):
            assert np.isnan(result).any(-1).all()


@obligation(
    second(lambda labels: labels.astype(jnp.int8)),
    second(lambda labels: labels.astype(jnp.int32)),
    to=has_labels,
)
def takes_labels_of_every_integer_dtype(case: Case) -> None:
    """More classes than an int8 can count: nothing may be computed in the dtype of the labels."""
    logits, _ = case.inputs((3,), classes=300)
    dtypes = (np.int8, np.uint8, np.int16, np.uint16, np.uint32)
    labels = [np.array([0, 7, min(np.iinfo(dtype).max, 299)], dtype) for dtype in dtypes]

    def each(labels):
        return [(case.loss(logits, y), gradients(case, (logits, y))) for y in labels]

    wide = [y.astype(np.int32) for y in labels]
    close(jax.jit(each)(labels), jax.jit(each)(wide))
    beyond = np.array([0, 2**32 - 1, 2**31], np.uint32)
    np.testing.assert_array_equal(np.isnan(values(case, (logits, beyond))), [False, True, True])
    with with_float64():
        beyond = np.array([1, 2**32 + 1, -(2**32)], np.int64)
        np.testing.assert_array_equal(np.isnan(values(case, (logits, beyond))), [False, True, True])


@obligation(
    first(lambda x: jnp.asarray(x, jnp.float32)),
    second(lambda y: jnp.asarray(y).reshape(-1)[0]),
    second(lambda y: y.astype(np.int32) if y.ndim == 1 else y),
    fails_with=pytest.fail.Exception,
)
def refuses_what_does_not_fit(case: Case) -> None:
    good = case.inputs()
    for dtype in (np.int32, bool, np.complex64):
        refused(
            case, with_one(good, 0, good[0].astype(dtype)), case.arguments[0].name, good[0].shape
        )
    for position, argument in enumerate(case.arguments[1:], 1):
        given = good[position]
        wrong = [given[:2], np.concatenate([given, given]), given[None], given[..., None]]
        if argument is CLASS:
            wrong += [given.astype(np.float32), given > 1, given[:1]]
        else:
            wrong += [given[0], given[:, :2], given[:, 0]]
        for value in wrong:
            refused(case, with_one(good, position, value), argument.name, value.shape)
    for option in REFUSED_OPTIONS.keys() & inspect.signature(case.function).parameters.keys():
        for beyond in REFUSED_OPTIONS[option]:
            refused(case._replace(options={**case.options, option: beyond}), good, option)


@obligation(
    lambda loss: (
        lambda x, *a, axis=-1, **k: loss(
            x, *a, axis=axis % jnp.ndim(x) if isinstance(axis, int) else axis, **k
        )
    ),
    lambda loss: (
        lambda *a, where=None, **k: loss(
            *a, where=None if where is None else jnp.asarray(where).astype(bool), **k
        )
    ),
    lambda loss: (
        lambda *a, where=None, **k: loss(
            *a, where=where if where is None or where.shape != (3,) else True, **k
        )
    ),
    to=has_classes,
    fails_with=(AssertionError, pytest.fail.Exception),
)
def refuses_axes_and_masks_that_do_not_fit(case: Case) -> None:
    good = case.inputs()
    for axis in (2, -3, 7, (0, 0), (-1, 1), (), (0, 2), 1.0):
        refused(case, good, "axis", good[0].shape, axis=axis)
    mask = np.ones(4, bool)
    for dtype in (np.float32, np.int32):
        refused(case, good, "where", mask.shape, where=mask.astype(dtype))
    for shape in ((3,), (3, 1), (4, 4), (4, 5, 1), (1, 4, 5)):
        refused(case, good, "where", shape, where=np.ones(shape, bool))
    refused(case, case.inputs((2, 4)), "where", mask.shape, where=mask)


def refused(case: Case, arguments, name: str, shape: tuple | None = None, **keywords) -> None:
    """Refused at trace time, in words: the function, the argument, and the shape given for it."""
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(lambda: case.loss(*arguments, **keywords))
    message = str(failure.value)
    assert re.search(rf"\b{case.name}\b", message), message
    assert re.search(rf"\b{name}\b", message), (name, message)
    if shape is not None:
        sizes = ", ?".join(map(str, shape))
        assert re.search(rf"[(\[]{sizes},?[)\]]", message), (shape, message)


@obligation(
    lambda loss: lambda x, y, **k: loss(x, jnp.broadcast_to(y, jnp.shape(x)[:-1]), **k),
    second(lambda y: y if jnp.ndim(y) else 0 * y),
    to=has_labels,
    fails_with=(AssertionError, ValueError, pytest.fail.Exception),
)
def takes_one_label_per_example(case: Case) -> None:
    """Labels do not broadcast over positions; masks of the positions do."""
    logits, labels = case.inputs((2, 3))
    for wrong in (labels[:, :1], labels[:1], labels[:1, :1], labels.T, labels[..., None]):
        refused(case, (logits, wrong), "labels", wrong.shape)
    refused(case, (logits[:1], labels), "labels", labels.shape)
    with pytest.raises(AssertionError, match=re.escape("`labels[..., 0]`")):
        case.loss(logits, labels[..., None])
    sequences = np.array([[True], [False]])
    narrow, wide = (
        compiled(case, (logits, labels), mask)
        for mask in (sequences, np.broadcast_to(sequences, (2, 3)))
    )
    close(narrow, wide)
    for label in (labels[0, 1], int(labels[0, 1])):
        expected, _ = compiled(case, (logits, np.full_like(labels, label)))
        close(values(case, (logits, label)), expected)


@obligation(
    second(lambda y: y * int(jnp.shape(y)[:1] != (1,))),
    to=lambda case: len(case.arguments) > 1 and not has_labels(case),
)
def broadcasts_equal_ranks(case: Case) -> None:
    """Axes of size 1 spread, and so does a number in a loss without a class axis."""
    arguments = case.inputs()
    for position, given in enumerate(arguments):
        narrow = with_one(arguments, position, given[:1])
        wide = with_one(arguments, position, np.repeat(given[:1], 4, axis=0))
        losses, slopes = compiled(case, narrow)
        expected, expected_slopes = compiled(case, wide)
        close(losses, expected)
        for slope, wide_slope in zip(slopes, expected_slopes, strict=True):
            whole = len(slope) == len(wide_slope)
            close(slope, wide_slope if whole else wide_slope.sum(0, keepdims=True), rtol=3e-6)
    if not case.has_class_axis:
        number = arguments[1].ravel()[0]
        scalar = values(case, with_one(arguments, 1, number))
        close(scalar, compiled(case, with_one(arguments, 1, np.full_like(arguments[1], number)))[0])


# --- obligations: the numbers ---------------------------------------------------------------------


@obligation(
    after(lambda losses: losses - 1e-7),
    instead(lambda x, *_: jnp.sum(jax.nn.softmax(x), -1) - 1),
    to=lambda case: case.is_nonnegative,
)
def is_never_negative(case: Case) -> None:
    for classes in (2, 10):
        assert not (compiled(case, case.hard_batch(np.float32, classes).arguments)[0] < 0).any()
    assert not (values(case, case.inputs((2000,), classes=10)) < 0).any()


@obligation(after(lambda losses: losses * 1.00001), to=lambda case: case.peer is not None)
def agrees_with_optax(case: Case) -> None:
    assert case.peer is not None
    arguments = case.inputs((50,), classes=7)
    theirs = case._replace(function=case.peer, options={})
    close(compiled(case, arguments), compiled(theirs, arguments), rtol=3e-6)


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k).astype(a[0].dtype).astype(jnp.float32),
    instead(optax.softmax_cross_entropy_with_integer_labels),
)
def computes_half_precision_in_float32(case: Case) -> None:
    for dtype in HALF_DTYPES:
        low = case.inputs(dtype=dtype)
        high = tuple(a if is_integer(a) else a.astype(np.float32) for a in low)
        expected, expected_slopes = compiled(case, high)
        mixed = [(low[0], *high[1:])] if dtype == ml_dtypes.bfloat16 and len(low) > 1 else []
        for given in (low, *mixed):
            losses, slopes = compiled(case, given)
            assert losses.dtype == np.float32
            close(losses, expected)
            floats = of_floats(case, given)[1]
            for slope, exact, argument in zip(slopes, expected_slopes, floats, strict=True):
                assert slope.dtype == argument.dtype
                bar = 0.51 if slope.dtype == dtype else 8
                assert np.all(oracle.scaled_ulps(slope, exact, exact, slope.dtype) <= bar)
        loss, floats = of_floats(case, low)
        tangent = jax.eval_shape(lambda *f: jax.jvp(loss, f, f)[1], *floats)  # noqa: B023
        assert tangent.dtype == np.float32


def within(case: Case, batch: Batch, dtype, *, eagerly: bool = False) -> None:
    """Values and gradients of all rows within the bars of the table."""
    loud = np.float64 if dtype == np.float64 else np.float32
    results = [compiled(case, batch.arguments)]
    if eagerly:
        slopes = tuple(map(np.asarray, gradients(case, batch.arguments)))
        results.append((values(case, batch.arguments), slopes))
    for losses, slopes in results:
        truth = batch.truth
        errors = oracle.scaled_ulps(losses, truth.value, truth.value_scale, loud)
        require(case, "value", batch.names, errors, case.value_ulps)
        for index, slope in enumerate(slopes):
            expected, scale = truth.gradients[index], truth.gradient_scales[index]
            errors = oracle.scaled_ulps(slope, expected, scale, dtype)
            # The slope along the target of an impossible class is infinite; 0 is as good.
            errors = np.where((expected == np.inf) & (slope == 0), 0.0, errors)
            # One rounding to a narrow dtype is all that may be added to a float32 gradient.
            bar = case.gradient_ulps if dtype == loud else 0.51
            require(case, f"gradient {index}", batch.names, errors, bar)


@obligation(
    instead(optax.softmax_cross_entropy_with_integer_labels),
    lambda loss: lambda *a, **k: loss(*a, **k) * (1 + 1e-6),
    first(lambda x: x * (1 + 1e-6) - jax.lax.stop_gradient(x * 1e-6)),
)
def is_exact_over_few_classes(case: Case) -> None:
    within(case, case.hard_batch(np.float32, 2, at_most=400), np.float32)
    within(case, case.hard_batch(np.float32, 10), np.float32, eagerly=True)


@obligation(instead(optax.softmax_cross_entropy_with_integer_labels), to=has_classes)
def is_exact_over_many_classes(case: Case) -> None:
    within(case, case.hard_batch(np.float32, 1000, at_most=25), np.float32)


@obligation(
    instead(optax.softmax_cross_entropy_with_integer_labels),
    to=lambda case: case.vocabulary_inputs is not None,
)
def is_exact_over_a_vocabulary(case: Case) -> None:
    for classes, family in ((131072, 1), (262144, 0)):
        within(case, case.vocabulary_batch(np.float32, classes, family), np.float32)


@obligation(
    instead(optax.softmax_cross_entropy_with_integer_labels),
    first(lambda x: jnp.asarray(x, jnp.float32)),
)
def is_exact_in_float64(case: Case) -> None:
    with with_float64():
        within(case, case.hard_batch(np.float64, 10, at_most=80), np.float64)


@obligation(instead(optax.softmax_cross_entropy_with_integer_labels))
def is_exact_in_half_precision(case: Case) -> None:
    for dtype in HALF_DTYPES:
        within(case, case.hard_batch(dtype, 10, at_most=250), dtype)


@obligation(instead(optax.softmax_cross_entropy_with_integer_labels), without_curvature)
def has_exact_curvature(case: Case) -> None:
    names, arguments, _ = case.hard_batch(np.float32, 5, at_most=70)
    truth = oracle.hessian(case.truth, *arguments, **case.options)
    # The oracle puts the direction first, JAX the slope.
    truth = truth.swapaxes(1, 2) if case.has_class_axis else truth
    scale = truth if case.hessian_scale is None else case.hessian_scale(*arguments)
    # At the edge of its domain a loss has no second derivative: the truth beyond is NaN.
    at_edge = truth != truth
    for outer in (jax.jacfwd, jax.jacrev):
        with jax.debug_nans(True):
            result = jax.jit(functools.partial(hessians, case, outer=outer))(arguments)
        errors = oracle.scaled_ulps(result, truth, scale, np.float32)
        errors = np.where(at_edge & np.isfinite(result), 0.0, errors)
        require(case, f"{outer.__name__} of the gradient", names, errors, case.hessian_ulps)


# --- the table ------------------------------------------------------------------------------------

NUMBERS = (
    masks_elements_whatever_they_hold,
    makes_no_nan_on_the_way,
    has_one_curvature_in_every_mode,
    is_never_negative,
    agrees_with_optax,
    is_exact_over_few_classes,
    is_exact_over_many_classes,
    is_exact_over_a_vocabulary,
    is_exact_in_float64,
    is_exact_in_half_precision,
    has_exact_curvature,
)


def is_asked(case: Case, each: Obligation) -> bool:
    """Whether the table holds that case to that obligation.

    Other options of a loss whose manners an earlier case has shown are judged by their numbers
    alone, except for smoothing, which has to do with masks and classes.
    """
    functions = [other.function for other in CASES[: CASES.index(case)]]
    is_repeat = case.function in functions and "label_smoothing" not in case.options
    return each.applies(case) and (each.check in NUMBERS or not is_repeat)


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, each.check, id=f"{case}-{each.check.__name__}")
        for case in CASES
        for each in OBLIGATIONS
        if is_asked(case, each)
    ],
)
def test_contract(case, check):
    check(case)


@pytest.mark.parametrize(
    ("each", "break_"),
    ways_of_breaking(OBLIGATIONS),
)
def test_the_table_has_teeth(each, break_):
    notices(each, break_, CASES)


@pytest.mark.parametrize(
    ("loss", "option"),
    [(jaxent.sigmoid_binary_cross_entropy, "pos_weight"), (jaxent.sigmoid_focal_loss, "alpha")],
)
def test_weights_of_masked_elements_are_masked_as_well(loss, option):
    logits, labels = jnp.array([[0.5, jnp.nan, 2.0]]), jnp.array([[1, -100, 0]])
    weights, where = jnp.array([[0.25, jnp.nan, 0.75]]), jnp.array([[True, False, True]])

    def total(logits, weights, labels, where):
        losses = loss(logits, labels, where, **{option: weights})
        return jnp.sum(losses), losses

    def everything(*arguments):
        slopes, losses = jax.grad(total, (0, 1), has_aux=True)(*arguments)
        return losses, *slopes

    kept = jnp.array([0, 2])
    expected = everything(*(each[:, kept] for each in (logits, weights, labels)), None)
    with jax.debug_nans(True):
        results = jax.jit(everything)(logits, weights, labels, where)
    for result, exact in zip(results, expected, strict=True):
        close(result[:, kept], exact)
        assert result[0, 1] == 0.0


def test_every_public_loss_is_in_the_table():
    in_a_table = {each.name for each in (*CASES, *WHOLE_CASES)}
    missing = set(FUNCTIONS) - in_a_table - set(NOT_LOSSES)
    assert not missing, f"add a case (tests/conformance) for each of {sorted(missing)}"
    for name in set(NOT_LOSSES) & set(FUNCTIONS):
        tests = (Path(__file__).parents[1] / NOT_LOSSES[name]).read_text()
        assert f"jaxent.{name}" in tests, f"{NOT_LOSSES[name]} does not test {name}"


def test_what_the_contract_adds_to_optax():
    """The table does not merely agree with jaxent: it judges optax, which keeps it in part."""
    case = CASES[0]._replace(function=optax.softmax_cross_entropy_with_integer_labels)
    for check in (is_pure, leaks_nothing, lets_no_nan_hide, agrees_with_optax):
        check(case)
    for check in (
        calls_a_label_out_of_range_nan,
        computes_half_precision_in_float32,
        gives_impossible_classes_no_gradient,
        is_exact_over_few_classes,
    ):
        with pytest.raises(AssertionError):
            check(case)
