"""Losses of images, lists, sequences and batches against the obligations of the contract.

The obligations are those of test_conformance.py as far as they make sense where an example is no
row of classes. Each is registered with ways of breaking a loss that it must notice, and
`test_the_table_has_teeth` shows that it does.
"""

import functools
import inspect
import itertools
import re
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from conformance import oracle
from conformance.case import Hidden, WholeCase, with_float64
from conformance.obligations import (
    HALF_DTYPES,
    after,
    altered,
    before,
    close,
    first,
    keeps_a_tracer,
    new_table,
    notices,
    require,
    ways_of_breaking,
    with_one,
    without_curvature,
    without_forward_mode,
)
from conformance.table import WHOLE_CASES
from public import FUNCTIONS

OBLIGATIONS, obligation = new_table()


# --- tools ----------------------------------------------------------------------------------------


def moving(case: WholeCase, arguments) -> tuple[int, ...]:
    """The positions of the arguments that have gradients."""
    names = list(inspect.signature(case.function).parameters)
    return tuple(
        position
        for position, array in enumerate(arguments)
        if jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating)
        and names[position] not in case.constants
    )


def of_floats(case: WholeCase, arguments, **keywords) -> tuple[Callable, tuple]:
    """The loss as a function of the arguments that have gradients, and those."""
    positions = moving(case, arguments)

    def loss(*floats):
        given = list(arguments)
        for position, value in zip(positions, floats, strict=True):
            given[position] = value
        return case.loss(*given, **keywords)

    return loss, tuple(arguments[position] for position in positions)


def values(case: WholeCase, arguments, **keywords) -> np.ndarray:
    return np.asarray(case.loss(*arguments, **keywords))


def gradients(case: WholeCase, arguments, **keywords) -> tuple[jax.Array, ...]:
    """The gradient of the sum of the losses in each argument that has one."""
    loss, floats = of_floats(case, arguments, **keywords)
    return jax.grad(lambda *f: jnp.sum(loss(*f)), tuple(range(len(floats))))(*floats)


def everything(case: WholeCase, arguments, **keywords) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The losses and their gradients from one program."""

    @jax.jit
    def program(arguments):
        losses = case.loss(*arguments, **keywords)
        return losses, gradients(case, arguments, **keywords)

    losses, slopes = program(tuple(map(jnp.asarray, arguments)))
    return np.asarray(losses), tuple(map(np.asarray, slopes))


def several(case: WholeCase, count: int = 3) -> tuple[np.ndarray, ...]:
    """Different calls, along a first axis."""
    calls = [case.inputs(seed) for seed in range(count)]
    return tuple(map(np.stack, zip(*calls, strict=True)))


def of_vector(case: WholeCase, arguments) -> tuple[Callable, jax.Array]:
    """The sum of the losses as a function of all its real arguments, laid end to end."""
    loss, floats = of_floats(case, arguments)
    ends = np.cumsum([np.size(value) for value in floats])[:-1]

    def of(vector):
        parts = jnp.split(vector, ends)
        shaped = (p.reshape(np.shape(f)) for p, f in zip(parts, floats, strict=True))
        return jnp.sum(loss(*shaped))

    return of, jnp.concatenate([jnp.ravel(value) for value in floats])


_calls = itertools.count()


# --- obligations: what kind of function it is -----------------------------------------------------


@obligation(
    after(lambda losses: losses + next(_calls)),
    after(lambda losses: [losses, jax.debug.callback(lambda: None)][0]),
)
def is_pure(case: WholeCase) -> None:
    arguments = case.inputs()
    assert values(case, arguments).tobytes() == values(case, arguments).tobytes()
    assert not jax.make_jaxpr(case.loss)(*arguments).effects


@obligation(
    after(lambda losses: losses.astype(jnp.bfloat16)),
    after(lambda losses: losses[None]),
    to=lambda case: case.peer is not None,
)
def has_the_shape_of_optax(case: WholeCase) -> None:
    peer = case.peer
    assert peer is not None
    arguments = tuple(map(jnp.asarray, case.inputs()))
    theirs = jax.eval_shape(lambda *a: case.result(peer(*a, **case.options)), *arguments)
    ours = jax.eval_shape(case.loss, *arguments)
    assert (ours.shape, ours.dtype, ours.weak_type) == (theirs.shape, np.float32, False)


@obligation(first(lambda x: x + 0 * x.ndim), fails_with=AttributeError)
def takes_lists(case: WholeCase) -> None:
    arguments = case.inputs()
    expected = values(case, arguments)
    close(values(case, [a.tolist() for a in arguments]), expected)
    close(values(case, [jnp.asarray(a) for a in arguments]), expected)


# --- obligations: under every transformation ------------------------------------------------------


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) + 0.01 * isinstance(a[0], Tracer),
)
def has_one_value_under_every_transformation(case: WholeCase) -> None:
    calls = several(case)
    expected = np.stack([values(case, call) for call in zip(*calls, strict=True)])

    def every_way(*a):
        last = tuple(jnp.moveaxis(each, 0, -1) for each in a)
        return {
            "vmap": jax.vmap(case.loss)(*a),
            "vmap along the last axis": jax.vmap(case.loss, in_axes=-1)(*last),
            "vmap of vmap": jax.vmap(jax.vmap(case.loss))(*(each[None] for each in a))[0],
            "checkpoint": jax.vmap(jax.checkpoint(case.loss))(*a),
            "scan": jax.lax.scan(lambda _, each: (None, case.loss(*each)), None, a)[1],
        }

    for result in jax.jit(every_way)(*calls).values():
        close(result, expected, rtol=3e-6)


@obligation(
    without_forward_mode,
    fails_with=(AssertionError, TypeError),
)
def has_one_gradient_under_every_transformation(case: WholeCase) -> None:
    calls = several(case)
    arguments = tuple(each[0] for each in calls)
    _, floats = of_floats(case, arguments)
    losses, expected = everything(case, arguments)
    generator = np.random.default_rng(0)
    directions = tuple(generator.normal(size=f.shape).astype(np.float32) for f in floats)

    def slopes(*a, wrap=lambda f: f):
        loss, floats = of_floats(case, a)
        return jax.grad(lambda *f: jnp.sum(wrap(loss)(*f)), tuple(range(len(floats))))(*floats)

    def every_way(*calls):
        a = tuple(each[0] for each in calls)
        loss, floats = of_floats(case, a)
        linear_value, linear = jax.linearize(loss, *floats)
        value, tangent = jax.jvp(loss, floats, directions)
        ones = jnp.ones_like(linear_value)
        alone = {
            "checkpoint": slopes(*a, wrap=jax.checkpoint),
            "transpose": jax.linear_transpose(linear, *floats)(ones),
            "vmap": tuple(each[0] for each in jax.vmap(slopes)(*calls)),
            "scan": tuple(
                each[0] for each in jax.lax.scan(lambda _, a: (None, slopes(*a)), None, calls)[1]
            ),
        }
        return alone, (linear_value, value), (linear(*directions), tangent)

    alone, primals, tangents = jax.jit(every_way)(*calls)
    for result in alone.values():
        close(result, expected, rtol=3e-6)
    close(primals, (losses, losses), rtol=3e-6)
    close(tangents[0], tangents[1], rtol=3e-6)
    by_hand = sum(np.vdot(g, d) for g, d in zip(expected, directions, strict=True))
    size = sum(np.sum(np.abs(g * d)) for g, d in zip(expected, directions, strict=True))
    np.testing.assert_allclose(np.sum(tangents[0]), by_hand, rtol=3e-6, atol=3e-6 * size)


@obligation(
    without_forward_mode,
    without_curvature,
    to=lambda case: case.has_curvature,
    fails_with=(AssertionError, TypeError),
)
def has_one_curvature_in_every_mode(case: WholeCase) -> None:
    loss, point = of_vector(case, case.inputs())
    modes = list(itertools.product((jax.jacfwd, jax.jacrev), repeat=2))
    hessians = jax.jit(lambda x: [outer(inner(loss))(x) for outer, inner in modes])(point)
    for hessian in hessians:
        close(hessian, hessians[0], rtol=5e-6)
    close(hessians[0], hessians[0].T, rtol=5e-6)
    with with_float64():  # where differences of gradients are as good as any truth
        loss, point = of_vector(case, case.inputs(dtype=np.float64))
        slope, step = jax.jit(jax.vmap(jax.grad(loss))), 1e-5 * np.eye(point.size)
        differences = (slope(point[None] + step) - slope(point[None] - step)) / 2e-5
        close(hessians[0], differences, rtol=2e-5)


@obligation(
    after(lambda losses: losses + jnp.arange(1)[0]),
    after(lambda losses: losses.reshape(-1) + jnp.ones((1, losses.size), losses.dtype)),
    fails_with=ValueError,
)
def needs_no_implicit_promotion(case: WholeCase) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in (np.float32, *HALF_DTYPES):
            arguments = tuple(map(jnp.asarray, case.inputs(dtype=dtype)))
            jax.eval_shape(lambda *a: gradients(case, a), *arguments)


@obligation(first(keeps_a_tracer), fails_with=Exception)  # JAX raises nothing narrower
def leaks_nothing(case: WholeCase) -> None:
    with jax.checking_leaks():
        jax.make_jaxpr(lambda *a: gradients(case, a))(*map(jnp.asarray, case.inputs()))


# --- obligations: dtypes --------------------------------------------------------------------------


@obligation(
    before(lambda *a: tuple(jnp.float32(x) if x.dtype == np.float64 else x for x in a)),
    after(lambda losses: losses.astype(jnp.result_type(float))),
)
def keeps_float32_and_float64_apart(case: WholeCase) -> None:
    plain = everything(case, case.inputs())
    with with_float64():
        for dtype in (np.float32, np.float64):
            losses, slopes = everything(case, case.inputs(dtype=dtype))
            assert losses.dtype == dtype
            assert all(slope.dtype == dtype for slope in slopes)
            close((losses, slopes), plain, rtol=5e-6)


@obligation(lambda loss: lambda *a, **k: loss(*a, **k).astype(a[0].dtype).astype(jnp.float32))
def computes_half_precision_in_float32(case: WholeCase) -> None:
    for dtype in HALF_DTYPES:
        low = case.inputs(dtype=dtype)
        high = tuple(a.astype(np.float32) if a.dtype == dtype else a for a in low)
        losses, slopes = everything(case, low)
        expected, expected_slopes = everything(case, high)
        assert losses.dtype == np.float32
        close(losses, expected)
        floats = of_floats(case, low)[1]
        for slope, exact, argument in zip(slopes, expected_slopes, floats, strict=True):
            assert slope.dtype == argument.dtype
            assert np.all(oracle.scaled_ulps(slope, exact, exact, slope.dtype) <= 0.51)


# --- obligations: what does not count, and what is bad --------------------------------------------


def poisoned(hidden: Hidden, poison) -> tuple[np.ndarray, ...]:
    """The arguments with `poison` (a negative label, a True) wherever nothing may depend on it."""
    fills = {"f": poison, "i": -100, "b": True}
    return tuple(
        altered(array, elements, fills.get(array.dtype.kind, poison))
        for array, elements in zip(hidden.arguments, hidden.elements, strict=True)
    )


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) + 0 * jnp.sum(jnp.asarray(a[0])).astype(jnp.float32),
    lambda loss: lambda *a, **k: loss(*a),
    to=lambda case: case.hide is not None,
)
def masks_whatever_is_there(case: WholeCase) -> None:
    assert case.hide is not None
    generator = np.random.default_rng(0)
    hidden = case.hide(generator, case.inputs())
    assert any(elements.any() for elements in hidden.elements)
    expected = everything(case, hidden.arguments, **hidden.keywords)
    assert np.isfinite(expected[0]).all()
    for poison in (np.nan, np.inf, -np.inf, 3e38):
        with jax.debug_nans(not np.isnan(poison)):
            arguments = poisoned(hidden, poison)
            losses, slopes = everything(case, arguments, **hidden.keywords)
        close((losses, slopes), expected)
        positions = moving(case, hidden.arguments)
        for position, slope in zip(positions, slopes, strict=True):
            assert not slope[hidden.elements[position]].any()


@obligation(
    after(lambda losses: losses + jnp.nan),
    to=lambda case: case.hide_all is not None,
)
def is_zero_over_nothing(case: WholeCase) -> None:
    assert case.hide_all is not None
    hidden = case.hide_all(case.inputs())
    for arguments in (hidden.arguments, poisoned(hidden, np.nan)):
        losses, slopes = everything(case, arguments, **hidden.keywords)
        for result in (losses, *slopes):
            assert not result.any()


@obligation(after(lambda losses: jnp.nan_to_num(losses)))
def lets_no_nan_hide(case: WholeCase) -> None:
    arguments = case.inputs()
    for position in moving(case, arguments):
        size = arguments[position].size
        flat = arguments[position].ravel()
        bad = [altered(flat, i, np.nan).reshape(arguments[position].shape) for i in range(size)]

        def loss(array, position=position):
            return jnp.sum(case.loss(*with_one(arguments, position, array)))

        assert np.isnan(np.asarray(jax.jit(jax.vmap(loss))(np.stack(bad)))).all()


@obligation(
    first(lambda x: jnp.asarray(jnp.real(jnp.asarray(x)), jnp.float32)),
    fails_with=pytest.fail.Exception,
)
def refuses_what_does_not_fit(case: WholeCase) -> None:
    arguments = case.inputs()
    names = list(inspect.signature(case.function).parameters)
    for position in moving(case, arguments):
        given = arguments[position]
        dtypes = (np.int32, np.complex64) if position == 0 else (np.complex64,)
        for dtype in dtypes:
            refused(case, with_one(arguments, position, given.astype(dtype)), names[position])
    for position, given in enumerate(arguments):
        if position > 0 and given.ndim:
            longer = np.concatenate([given, given, given])
            refused(case, with_one(arguments, position, longer), names[position])


def refused(case: WholeCase, arguments, name: str) -> None:
    """Refused at trace time, in words: the function and the argument."""
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(lambda: case.loss(*arguments))
    message = str(failure.value)
    assert re.search(rf"\b{case.name}\b", message), message
    assert re.search(rf"\b{name}\b", message), (name, message)


# --- obligations: the numbers ---------------------------------------------------------------------


def within(case: WholeCase, batch, dtype) -> None:
    """Values and gradients of all calls within the bars of the table."""
    loud = np.float64 if dtype == np.float64 else np.float32
    value, slopes = jax.jit(jax.vmap(lambda *a: (jnp.sum(case.loss(*a)), gradients(case, a))))(
        *batch.arguments
    )
    truth = batch.truth
    errors = oracle.scaled_ulps(value, truth.value, truth.value_scale, loud)
    require(case, "value", batch.names, errors, case.value_ulps)
    for index, slope in enumerate(slopes):
        expected, scale = truth.gradients[index], truth.gradient_scales[index]
        errors = oracle.scaled_ulps(slope, expected, scale, dtype)
        # One rounding to a narrow dtype is all that may be added to a float32 gradient.
        bar = case.gradient_ulps if dtype == loud else 0.51
        require(case, f"gradient {index}", batch.names, errors, bar)


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) * (1 + 3e-6),
    first(lambda x: x * (1 + 3e-6) - jax.lax.stop_gradient(x * 3e-6)),
)
def is_exact(case: WholeCase) -> None:
    within(case, case.hard_batch(np.float32), np.float32)


@obligation(first(lambda x: jnp.asarray(x, jnp.float32)))
def is_exact_in_float64(case: WholeCase) -> None:
    with with_float64():
        within(case, case.hard_batch(np.float64), np.float64)


@obligation(lambda loss: lambda *a, **k: loss(*a, **k) * (1 + 3e-6))
def is_exact_in_half_precision(case: WholeCase) -> None:
    for dtype in HALF_DTYPES:
        within(case, case.hard_batch(dtype), dtype)


@obligation(
    after(lambda losses: losses - 1e-7 * jnp.ones_like(losses) - losses),
    to=lambda case: case.is_nonnegative,
)
def is_never_negative(case: WholeCase) -> None:
    losses = jax.jit(jax.vmap(case.loss))(*case.hard_batch(np.float32).arguments)
    assert not (np.asarray(losses) < 0).any()
    assert not (np.asarray(jax.jit(jax.vmap(case.loss))(*several(case, 300))) < 0).any()


@obligation(
    after(lambda losses: jnp.where(losses >= 0, losses, jnp.log(-1.0 - losses))),
    after(lambda losses: losses + 0 * jnp.log(losses - losses - 1.0)),
    fails_with=FloatingPointError,
)
def makes_no_nan_on_the_way(case: WholeCase) -> None:
    """Called eagerly, `jax_debug_nans` sees what passes from the forward to the backward pass."""
    calls = list(zip(*case.hard_batch(np.float32).arguments, strict=True))
    some = np.random.default_rng(0).choice(len(calls), min(len(calls), 6), replace=False)
    with jax.debug_nans(True):
        for index in some:
            jax.block_until_ready(case.loss(*calls[index]))
        jax.block_until_ready(gradients(case, calls[some[0]]))
        jax.block_until_ready(
            jax.jit(jax.vmap(lambda *a: (case.loss(*a), gradients(case, a))))(
                *case.hard_batch(np.float32).arguments
            )
        )


@obligation(after(lambda losses: losses * 1.0001), to=lambda case: case.peer is not None)
def agrees_with_optax(case: WholeCase) -> None:
    assert case.peer is not None
    theirs = case._replace(function=functools.wraps(case.function)(case.peer))
    for seed in range(3):
        arguments = case.inputs(seed)
        close(everything(case, arguments), everything(theirs, arguments), rtol=1e-5)


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, each.check, id=f"{case}-{each.check.__name__}")
        for case in WHOLE_CASES
        for each in OBLIGATIONS
        if each.applies(case)
    ],
)
def test_contract(case, check):
    check(case)


@pytest.mark.parametrize(
    ("each", "break_"),
    ways_of_breaking(OBLIGATIONS),
)
def test_the_table_has_teeth(each, break_):
    notices(each, break_, WHOLE_CASES)


def test_rows_speak_of_public_losses():
    assert {case.name for case in WHOLE_CASES} <= set(FUNCTIONS)
