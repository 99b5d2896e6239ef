"""Losses of images, lists, sequences and batches against the obligations of the contract.

The obligations are those of test_contract.py as far as they make sense where an example is no row
of classes. Each is registered with ways of breaking a loss that it must notice, and
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
import oracle
import pytest
from contract_row import with_float64
from contract_table import WHOLES
from contract_whole import Hidden, Whole
from jax.core import Tracer
from obligations import (
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

import jaxent

OBLIGATIONS, obligation = new_table()


# --- tools ----------------------------------------------------------------------------------------


def moving(whole: Whole, arguments) -> tuple[int, ...]:
    """The positions of the arguments that have gradients."""
    names = list(inspect.signature(whole.function).parameters)
    return tuple(
        position
        for position, array in enumerate(arguments)
        if jnp.issubdtype(jnp.asarray(array).dtype, jnp.floating)
        and names[position] not in whole.constants
    )


def of_floats(whole: Whole, arguments, **keywords) -> tuple[Callable, tuple]:
    """The loss as a function of the arguments that have gradients, and those."""
    positions = moving(whole, arguments)

    def loss(*floats):
        given = list(arguments)
        for position, value in zip(positions, floats, strict=True):
            given[position] = value
        return whole.loss(*given, **keywords)

    return loss, tuple(arguments[position] for position in positions)


def values(whole: Whole, arguments, **keywords) -> np.ndarray:
    return np.asarray(whole.loss(*arguments, **keywords))


def gradients(whole: Whole, arguments, **keywords) -> tuple[jax.Array, ...]:
    """The gradient of the sum of the losses in each argument that has one."""
    loss, floats = of_floats(whole, arguments, **keywords)
    return jax.grad(lambda *f: jnp.sum(loss(*f)), tuple(range(len(floats))))(*floats)


def everything(whole: Whole, arguments, **keywords) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The losses and their gradients from one program."""

    @jax.jit
    def program(arguments):
        losses = whole.loss(*arguments, **keywords)
        return losses, gradients(whole, arguments, **keywords)

    losses, slopes = program(tuple(map(jnp.asarray, arguments)))
    return np.asarray(losses), tuple(map(np.asarray, slopes))


def several(whole: Whole, count: int = 3) -> tuple[np.ndarray, ...]:
    """Different calls, along a first axis."""
    calls = [whole.inputs(seed) for seed in range(count)]
    return tuple(map(np.stack, zip(*calls, strict=True)))


def of_vector(whole: Whole, arguments) -> tuple[Callable, jax.Array]:
    """The sum of the losses as a function of all its real arguments, laid end to end."""
    loss, floats = of_floats(whole, arguments)
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
def is_pure(whole: Whole) -> None:
    arguments = whole.inputs()
    assert values(whole, arguments).tobytes() == values(whole, arguments).tobytes()
    assert not jax.make_jaxpr(whole.loss)(*arguments).effects


@obligation(
    after(lambda losses: losses.astype(jnp.bfloat16)),
    after(lambda losses: losses[None]),
    to=lambda whole: whole.peer is not None,
)
def has_the_shape_of_optax(whole: Whole) -> None:
    peer = whole.peer
    assert peer is not None
    arguments = tuple(map(jnp.asarray, whole.inputs()))
    theirs = jax.eval_shape(lambda *a: whole.result(peer(*a, **whole.options)), *arguments)
    ours = jax.eval_shape(whole.loss, *arguments)
    assert (ours.shape, ours.dtype, ours.weak_type) == (theirs.shape, np.float32, False)


@obligation(first(lambda x: x + 0 * x.ndim), fails_with=AttributeError)
def takes_lists(whole: Whole) -> None:
    arguments = whole.inputs()
    expected = values(whole, arguments)
    close(values(whole, [a.tolist() for a in arguments]), expected)
    close(values(whole, [jnp.asarray(a) for a in arguments]), expected)


# --- obligations: under every transformation ------------------------------------------------------


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) + 0.01 * isinstance(a[0], Tracer),
)
def has_one_value_under_every_transformation(whole: Whole) -> None:
    calls = several(whole)
    expected = np.stack([values(whole, call) for call in zip(*calls, strict=True)])

    def every_way(*a):
        last = tuple(jnp.moveaxis(each, 0, -1) for each in a)
        return {
            "vmap": jax.vmap(whole.loss)(*a),
            "vmap along the last axis": jax.vmap(whole.loss, in_axes=-1)(*last),
            "vmap of vmap": jax.vmap(jax.vmap(whole.loss))(*(each[None] for each in a))[0],
            "checkpoint": jax.vmap(jax.checkpoint(whole.loss))(*a),
            "scan": jax.lax.scan(lambda _, each: (None, whole.loss(*each)), None, a)[1],
        }

    for result in jax.jit(every_way)(*calls).values():
        close(result, expected, rtol=3e-6)


@obligation(
    without_forward_mode,
    fails_with=(AssertionError, TypeError),
)
def has_one_gradient_under_every_transformation(whole: Whole) -> None:
    calls = several(whole)
    arguments = tuple(each[0] for each in calls)
    _, floats = of_floats(whole, arguments)
    losses, expected = everything(whole, arguments)
    generator = np.random.default_rng(0)
    directions = tuple(generator.normal(size=f.shape).astype(np.float32) for f in floats)

    def slopes(*a, wrap=lambda f: f):
        loss, floats = of_floats(whole, a)
        return jax.grad(lambda *f: jnp.sum(wrap(loss)(*f)), tuple(range(len(floats))))(*floats)

    def every_way(*calls):
        a = tuple(each[0] for each in calls)
        loss, floats = of_floats(whole, a)
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
    to=lambda whole: whole.has_curvature,
    fails_with=(AssertionError, TypeError),
)
def has_one_curvature_in_every_mode(whole: Whole) -> None:
    loss, point = of_vector(whole, whole.inputs())
    modes = list(itertools.product((jax.jacfwd, jax.jacrev), repeat=2))
    hessians = jax.jit(lambda x: [outer(inner(loss))(x) for outer, inner in modes])(point)
    for hessian in hessians:
        close(hessian, hessians[0], rtol=5e-6)
    close(hessians[0], hessians[0].T, rtol=5e-6)
    with with_float64():  # where differences of gradients are as good as any truth
        loss, point = of_vector(whole, whole.inputs(dtype=np.float64))
        slope, step = jax.jit(jax.vmap(jax.grad(loss))), 1e-5 * np.eye(point.size)
        differences = (slope(point[None] + step) - slope(point[None] - step)) / 2e-5
        close(hessians[0], differences, rtol=2e-5)


@obligation(
    after(lambda losses: losses + jnp.arange(1)[0]),
    after(lambda losses: losses.reshape(-1) + jnp.ones((1, losses.size), losses.dtype)),
    fails_with=ValueError,
)
def needs_no_implicit_promotion(whole: Whole) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in (np.float32, *HALF_DTYPES):
            arguments = tuple(map(jnp.asarray, whole.inputs(dtype=dtype)))
            jax.eval_shape(lambda *a: gradients(whole, a), *arguments)


@obligation(first(keeps_a_tracer), fails_with=Exception)  # JAX raises nothing narrower
def leaks_nothing(whole: Whole) -> None:
    with jax.checking_leaks():
        jax.make_jaxpr(lambda *a: gradients(whole, a))(*map(jnp.asarray, whole.inputs()))


# --- obligations: dtypes --------------------------------------------------------------------------


@obligation(
    before(lambda *a: tuple(jnp.float32(x) if x.dtype == np.float64 else x for x in a)),
    after(lambda losses: losses.astype(jnp.result_type(float))),
)
def keeps_float32_and_float64_apart(whole: Whole) -> None:
    plain = everything(whole, whole.inputs())
    with with_float64():
        for dtype in (np.float32, np.float64):
            losses, slopes = everything(whole, whole.inputs(dtype=dtype))
            assert losses.dtype == dtype
            assert all(slope.dtype == dtype for slope in slopes)
            close((losses, slopes), plain, rtol=5e-6)


@obligation(lambda loss: lambda *a, **k: loss(*a, **k).astype(a[0].dtype).astype(jnp.float32))
def computes_half_precision_in_float32(whole: Whole) -> None:
    for dtype in HALF_DTYPES:
        low = whole.inputs(dtype=dtype)
        high = tuple(a.astype(np.float32) if a.dtype == dtype else a for a in low)
        losses, slopes = everything(whole, low)
        expected, expected_slopes = everything(whole, high)
        assert losses.dtype == np.float32
        close(losses, expected)
        floats = of_floats(whole, low)[1]
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
    to=lambda whole: whole.hide is not None,
)
def masks_whatever_is_there(whole: Whole) -> None:
    assert whole.hide is not None
    generator = np.random.default_rng(0)
    hidden = whole.hide(generator, whole.inputs())
    assert any(elements.any() for elements in hidden.elements)
    expected = everything(whole, hidden.arguments, **hidden.keywords)
    assert np.isfinite(expected[0]).all()
    for poison in (np.nan, np.inf, -np.inf, 3e38):
        with jax.debug_nans(not np.isnan(poison)):
            arguments = poisoned(hidden, poison)
            losses, slopes = everything(whole, arguments, **hidden.keywords)
        close((losses, slopes), expected)
        positions = moving(whole, hidden.arguments)
        for position, slope in zip(positions, slopes, strict=True):
            assert not slope[hidden.elements[position]].any()


@obligation(
    after(lambda losses: losses + jnp.nan),
    to=lambda whole: whole.hide_all is not None,
)
def is_zero_over_nothing(whole: Whole) -> None:
    assert whole.hide_all is not None
    hidden = whole.hide_all(whole.inputs())
    for arguments in (hidden.arguments, poisoned(hidden, np.nan)):
        losses, slopes = everything(whole, arguments, **hidden.keywords)
        for result in (losses, *slopes):
            assert not result.any()


@obligation(after(lambda losses: jnp.nan_to_num(losses)))
def lets_no_nan_hide(whole: Whole) -> None:
    arguments = whole.inputs()
    for position in moving(whole, arguments):
        size = arguments[position].size
        flat = arguments[position].ravel()
        bad = [altered(flat, i, np.nan).reshape(arguments[position].shape) for i in range(size)]

        def loss(array, position=position):
            return jnp.sum(whole.loss(*with_one(arguments, position, array)))

        assert np.isnan(np.asarray(jax.jit(jax.vmap(loss))(np.stack(bad)))).all()


@obligation(
    first(lambda x: jnp.asarray(jnp.real(jnp.asarray(x)), jnp.float32)),
    fails_with=pytest.fail.Exception,
)
def refuses_what_does_not_fit(whole: Whole) -> None:
    arguments = whole.inputs()
    names = list(inspect.signature(whole.function).parameters)
    for position in moving(whole, arguments):
        given = arguments[position]
        dtypes = (np.int32, np.complex64) if position == 0 else (np.complex64,)
        for dtype in dtypes:
            refused(whole, with_one(arguments, position, given.astype(dtype)), names[position])
    for position, given in enumerate(arguments):
        if position > 0 and given.ndim:
            longer = np.concatenate([given, given, given])
            refused(whole, with_one(arguments, position, longer), names[position])


def refused(whole: Whole, arguments, name: str) -> None:
    """Refused at trace time, in words: the function and the argument."""
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(lambda: whole.loss(*arguments))
    message = str(failure.value)
    assert re.search(rf"\b{whole.name}\b", message), message
    assert re.search(rf"\b{name}\b", message), (name, message)


# --- obligations: the numbers ---------------------------------------------------------------------


def within(whole: Whole, case, dtype) -> None:
    """Values and gradients of all calls within the bars of the table."""
    loud = np.float64 if dtype == np.float64 else np.float32
    value, slopes = jax.jit(jax.vmap(lambda *a: (jnp.sum(whole.loss(*a)), gradients(whole, a))))(
        *case.arguments
    )
    truth = case.truth
    errors = oracle.scaled_ulps(value, truth.value, truth.value_scale, loud)
    require(whole, "value", case.names, errors, whole.value_ulps)
    for index, slope in enumerate(slopes):
        expected, scale = truth.gradients[index], truth.gradient_scales[index]
        errors = oracle.scaled_ulps(slope, expected, scale, dtype)
        # One rounding to a narrow dtype is all that may be added to a float32 gradient.
        bar = whole.gradient_ulps if dtype == loud else 0.51
        require(whole, f"gradient {index}", case.names, errors, bar)


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k) * (1 + 3e-6),
    first(lambda x: x * (1 + 3e-6) - jax.lax.stop_gradient(x * 3e-6)),
)
def is_exact(whole: Whole) -> None:
    within(whole, whole.hard_case(np.float32), np.float32)


@obligation(first(lambda x: jnp.asarray(x, jnp.float32)))
def is_exact_in_float64(whole: Whole) -> None:
    with with_float64():
        within(whole, whole.hard_case(np.float64), np.float64)


@obligation(lambda loss: lambda *a, **k: loss(*a, **k) * (1 + 3e-6))
def is_exact_in_half_precision(whole: Whole) -> None:
    for dtype in HALF_DTYPES:
        within(whole, whole.hard_case(dtype), dtype)


@obligation(
    after(lambda losses: losses - 1e-7 * jnp.ones_like(losses) - losses),
    to=lambda whole: whole.is_nonnegative,
)
def is_never_negative(whole: Whole) -> None:
    losses = jax.jit(jax.vmap(whole.loss))(*whole.hard_case(np.float32).arguments)
    assert not (np.asarray(losses) < 0).any()
    assert not (np.asarray(jax.jit(jax.vmap(whole.loss))(*several(whole, 300))) < 0).any()


@obligation(
    after(lambda losses: jnp.where(losses >= 0, losses, jnp.log(-1.0 - losses))),
    after(lambda losses: losses + 0 * jnp.log(losses - losses - 1.0)),
    fails_with=FloatingPointError,
)
def makes_no_nan_on_the_way(whole: Whole) -> None:
    """Called eagerly, `jax_debug_nans` sees what passes from the forward to the backward pass."""
    calls = list(zip(*whole.hard_case(np.float32).arguments, strict=True))
    some = np.random.default_rng(0).choice(len(calls), min(len(calls), 6), replace=False)
    with jax.debug_nans(True):
        for index in some:
            jax.block_until_ready(whole.loss(*calls[index]))
        jax.block_until_ready(gradients(whole, calls[some[0]]))
        jax.block_until_ready(
            jax.jit(jax.vmap(lambda *a: (whole.loss(*a), gradients(whole, a))))(
                *whole.hard_case(np.float32).arguments
            )
        )


@obligation(after(lambda losses: losses * 1.0001), to=lambda whole: whole.peer is not None)
def agrees_with_optax(whole: Whole) -> None:
    assert whole.peer is not None
    theirs = whole._replace(function=functools.wraps(whole.function)(whole.peer))
    for seed in range(3):
        arguments = whole.inputs(seed)
        close(everything(whole, arguments), everything(theirs, arguments), rtol=1e-5)


# --- the table ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("whole", "check"),
    [
        pytest.param(whole, each.check, id=f"{whole}-{each.check.__name__}")
        for whole in WHOLES
        for each in OBLIGATIONS
        if each.applies(whole)
    ],
)
def test_contract(whole, check):
    check(whole)


@pytest.mark.parametrize(
    ("each", "break_"),
    ways_of_breaking(OBLIGATIONS),
)
def test_the_table_has_teeth(each, break_):
    notices(each, break_, WHOLES)


def test_rows_speak_of_public_losses():
    assert {whole.name for whole in WHOLES} <= set(jaxent.__all__)
