"""What losses of images, lists, sequences and batches are held to.

The obligations are those of losses of rows, as far as they make sense where an example is larger.
"""

import functools
import gc
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.core import Tracer

from conformance import level, oracle
from conformance.breaking import (
    after,
    altered,
    before,
    first,
    keep_a_tracer,
    only,
    with_one,
    without_forward_mode,
    without_second_derivatives,
)
from conformance.case import Arrays, Batch, Hidden, WholeCase, with_float64
from conformance.comparing import agree, equal, no_nan
from conformance.obligation import new_table
from conformance.obligations import numbers
from conformance.obligations.functions import NOT_PURE, is_pure, refused
from conformance.obligations.transformations import MODES
from conformance.programs import (
    gradients,
    of_floats,
    of_vector,
    results,
    run,
    run_calls,
    values,
)

OBLIGATIONS, obligation = new_table()


def several(case: WholeCase, count: int = 3) -> Arrays:
    """Different calls, along a first axis."""
    calls = [case.inputs(seed) for seed in range(count)]
    return tuple(map(np.stack, zip(*calls, strict=True)))


# --- what kind of function it is ------------------------------------------------------------------


obligation(*NOT_PURE)(is_pure)


@obligation(
    after(lambda losses: losses.astype(jnp.bfloat16)),
    after(lambda losses: jax.tree.map(lambda each: each[None], losses)),
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
    agree(
        {
            "lists": values(case, [a.tolist() for a in arguments]),
            "arrays of JAX": values(case, [jnp.asarray(a) for a in arguments]),
        },
        values(case, arguments),
        given=arguments,
    )


def _promote_ranks(losses: jax.Array) -> jax.Array:
    return losses.reshape(-1) + jnp.ones((1, losses.size), losses.dtype)


@obligation(
    after(lambda losses: jax.tree.map(lambda each: each + jnp.arange(1)[0], losses)),
    after(lambda losses: jax.tree.map(_promote_ranks, losses)),
    fails_with=ValueError,
)
def needs_no_implicit_promotion(case: WholeCase) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in level.chosen((*level.half_dtypes(), np.float32), fast=1):
            arguments = tuple(map(jnp.asarray, case.inputs(dtype=dtype)))
            jax.eval_shape(lambda *a: gradients(case, a), *arguments)


@obligation(first(keep_a_tracer), fails_with=Exception)  # JAX raises nothing narrower
def leaks_nothing(case: WholeCase) -> None:
    arguments = tuple(map(jnp.asarray, case.inputs()))
    gc.freeze()  # JAX looks for leaks among all objects, of which the truths are very many
    try:
        with jax.checking_leaks():
            jax.make_jaxpr(lambda *a: gradients(case, a))(*arguments)
    finally:
        gc.unfreeze()


@obligation(
    first(lambda x: jnp.asarray(jnp.real(jnp.asarray(x)), jnp.float32)),
    fails_with=pytest.fail.Exception,
)
def refuses_what_does_not_fit(case: WholeCase) -> None:
    arguments = case.inputs()
    names = list(inspect.signature(case.function).parameters)
    for position in case.positions(arguments):
        given = arguments[position]
        dtypes = (np.int32, np.complex64) if position == 0 else (np.complex64,)
        for dtype in dtypes:
            refused(case, with_one(arguments, position, given.astype(dtype)), names[position])
    for position, given in enumerate(arguments):
        if position > 0 and given.ndim:
            longer = np.concatenate([given, given, given])
            refused(case, with_one(arguments, position, longer), names[position])


# --- transformations ------------------------------------------------------------------------------


@obligation(lambda loss: lambda *a, **k: loss(*a, **k) + 0.01 * isinstance(a[0], Tracer))
def has_one_value_under_every_transformation(case: WholeCase) -> None:
    calls = several(case)
    expected = np.stack([values(case, call) for call in zip(*calls, strict=True)])

    def every_way(*a):
        last = tuple(jnp.moveaxis(each, 0, -1) for each in a)
        return {
            "vmap": jax.vmap(case.loss)(*a),
            "vmap over the last axis": jax.vmap(case.loss, in_axes=-1)(*last),
            "vmap of vmap": jax.vmap(jax.vmap(case.loss))(*(each[None] for each in a))[0],
            "checkpoint": jax.vmap(jax.checkpoint(case.loss))(*a),
            "scan": jax.lax.scan(lambda _, each: (None, case.loss(*each)), None, a)[1],
        }

    agree(run(every_way, *calls), expected, given=calls, rtol=3e-6)


@obligation(without_forward_mode, fails_with=(AssertionError, TypeError))
def has_one_gradient_under_every_transformation(case: WholeCase) -> None:
    calls = several(case)
    arguments = tuple(each[0] for each in calls)
    _, floats = of_floats(case, arguments)
    losses, expected = results(case, arguments)
    generator = np.random.default_rng(0)
    directions = tuple(generator.normal(size=f.shape).astype(np.float32) for f in floats)

    def grads(*a, wrap=lambda f: f):
        loss, floats = of_floats(case, a)
        return jax.grad(lambda *f: jnp.sum(wrap(loss)(*f)), tuple(range(len(floats))))(*floats)

    def every_way(*calls):
        a = tuple(each[0] for each in calls)
        loss, floats = of_floats(case, a)
        linear_value, linear = jax.linearize(loss, *floats)
        value, tangent = jax.jvp(loss, floats, directions)
        by_call = jax.lax.scan(lambda _, a: (None, grads(*a)), None, calls)[1]
        found = {
            "checkpoint": grads(*a, wrap=jax.checkpoint),
            "transpose of linearize": jax.linear_transpose(linear, *floats)(
                jnp.ones_like(linear_value)
            ),
            "vmap": tuple(each[0] for each in jax.vmap(grads)(*calls)),
            "scan": tuple(each[0] for each in by_call),
        }
        primals = {"linearize": linear_value, "jvp": value}
        return found, primals, {"jvp": tangent, "linearize": linear(*directions)}

    found, primals, tangents = run(every_way, *calls)
    agree(found, expected, given=arguments, rtol=3e-6)
    agree(primals, losses, given=arguments, rtol=3e-6)
    agree(tangents, tangents["jvp"], given=arguments, rtol=3e-6)
    by_hand = sum(np.vdot(g, d) for g, d in zip(expected, directions, strict=True))
    size = sum(np.sum(np.abs(g * d)) for g, d in zip(expected, directions, strict=True))
    np.testing.assert_allclose(np.sum(tangents["jvp"]), by_hand, rtol=3e-6, atol=3e-6 * size)


@obligation(
    without_forward_mode,
    without_second_derivatives,
    to=lambda case: case.has_curvature,
    fails_with=(AssertionError, TypeError),
)
def has_one_hessian_in_every_mode(case: WholeCase) -> None:
    loss, point = of_vector(case, case.inputs())
    modes = level.chosen(MODES, fast=2)

    def every_way(x):
        return {
            f"{outer.__name__} of {inner.__name__}": outer(inner(loss))(x) for outer, inner in modes
        }

    hessians = run(every_way, point)
    hessian = hessians["jacfwd of jacrev"]
    agree(hessians, hessian, given=case.inputs(), rtol=5e-6)
    agree({"transposed": hessian.T}, hessian, given=case.inputs(), rtol=5e-6)
    with with_float64():  # where differences of gradients are as good as any truth
        loss, point = of_vector(case, case.inputs(dtype=np.float64))
        step = 1e-5 * np.eye(point.size)
        grad = jax.vmap(jax.grad(loss))
        differences = run(lambda x: (grad(x[None] + step) - grad(x[None] - step)) / 2e-5, point)
        agree({"differences": differences}, hessian, given=case.inputs(), rtol=2e-5)


# --- dtypes ---------------------------------------------------------------------------------------


@obligation(
    before(lambda *a: tuple(jnp.float32(x) if x.dtype == np.float64 else x for x in a)),
    after(lambda losses: losses.astype(jnp.result_type(float))),
)
def keeps_float32_and_float64_apart(case: WholeCase) -> None:
    plain = results(case, case.inputs())
    with with_float64():
        for dtype in (np.float32, np.float64):
            found = results(case, case.inputs(dtype=dtype))
            assert found.losses.dtype == dtype
            assert all(grad.dtype == dtype for grad in found.gradients)
            agree({np.dtype(dtype).name: found}, plain, given=case.inputs(), rtol=5e-6)


@obligation(lambda loss: lambda *a, **k: loss(*a, **k).astype(a[0].dtype).astype(jnp.float32))
def computes_half_precision_in_float32(case: WholeCase) -> None:
    for dtype in level.half_dtypes():
        low = case.inputs(dtype=dtype)
        high = tuple(a.astype(np.float32) if a.dtype == dtype else a for a in low)
        found, expected = results(case, low), results(case, high)
        assert found.losses.dtype == np.float32
        agree({np.dtype(dtype).name: found.losses}, expected.losses, given=low)
        floats = of_floats(case, low)[1]
        for grad, exact, argument in zip(found.gradients, expected.gradients, floats, strict=True):
            assert grad.dtype == argument.dtype
            assert np.all(oracle.scaled_ulps(grad, exact, exact, grad.dtype) <= 0.51)


# --- what does not count, and what is bad ---------------------------------------------------------


def poisoned(hidden: Hidden, poison: float) -> Arrays:
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
    hidden = case.hide(np.random.default_rng(0), case.inputs())
    assert any(elements.any() for elements in hidden.elements)
    poisons = (np.nan, np.inf, -np.inf, 3e38)
    calls = [hidden.arguments, *(poisoned(hidden, poison) for poison in poisons)]

    def program(*stacked):
        return jax.vmap(
            lambda *a: (
                case.loss(*a, **hidden.keywords),
                gradients(case, a, **hidden.keywords),
            )
        )(*stacked)

    stacked = tuple(map(np.stack, zip(*calls, strict=True)))
    losses, grads = jax.tree.map(np.asarray, run(program, *stacked))
    assert np.isfinite(losses[0]).all()
    for number, poison in enumerate(poisons, 1):
        found = losses[number], [grad[number] for grad in grads]
        expected = losses[0], [grad[0] for grad in grads]
        agree({f"masked {poison}": found}, expected, given=hidden.arguments)
        for position, grad in zip(case.positions(hidden.arguments), found[1], strict=True):
            assert not grad[hidden.elements[position]].any()
    if level.is_thorough():
        with jax.debug_nans(True):
            results(case, poisoned(hidden, np.inf), **hidden.keywords)


@obligation(after(lambda losses: losses + jnp.nan), to=lambda case: case.hide_all is not None)
def is_zero_over_nothing(case: WholeCase) -> None:
    assert case.hide_all is not None
    hidden = case.hide_all(case.inputs())
    for arguments in (hidden.arguments, poisoned(hidden, np.nan)):
        found = run(
            lambda *a: (
                case.loss(*a, **hidden.keywords),
                gradients(case, a, **hidden.keywords),
            ),
            *arguments,
        )
        for result in jax.tree.leaves(found):
            equal("over nothing", result, 0.0, given=arguments)


@obligation(after(lambda losses: jnp.nan_to_num(losses)))
def lets_no_nan_hide(case: WholeCase) -> None:
    arguments = case.inputs()
    for position in case.positions(arguments):
        size = arguments[position].size
        flat = arguments[position].ravel()
        bad = [altered(flat, i, np.nan).reshape(arguments[position].shape) for i in range(size)]

        def loss(array, position=position):
            return jnp.sum(case.loss(*with_one(arguments, position, array)))

        assert np.isnan(np.asarray(run(jax.vmap(loss), np.stack(bad)))).all()


# --- the numbers ----------------------------------------------------------------------------------


def within_bars(case: WholeCase, batch: Batch, dtype: type, *, compiled: bool = False) -> None:
    """Values and gradients of all calls within the bars of the table."""
    numbers.within_bars(case, batch, dtype, compiled=compiled, run=run_calls)


@obligation(
    after(lambda losses: losses * (1 + 3e-6)),
    only(
        first(lambda x: x * (1 + 3e-6) - jax.lax.stop_gradient(x * 3e-6)),
        to=lambda case: case.name != "circle_loss",  # its scale is larger
    ),
)
def is_exact(case: WholeCase) -> None:
    within_bars(case, case.hard_batch(np.float32), np.float32, compiled=True)


@obligation(first(lambda x: jnp.asarray(x, jnp.float32)))
def is_exact_in_float64(case: WholeCase) -> None:
    with with_float64():
        within_bars(case, case.hard_batch(np.float64, fast=8), np.float64)


@obligation(after(lambda losses: losses * (1 + 3e-6)))
def is_exact_in_half_precision(case: WholeCase) -> None:
    for dtype in level.half_dtypes():
        within_bars(case, case.hard_batch(dtype), dtype, compiled=True)


@obligation(
    after(lambda losses: losses - 1e-7 * jnp.ones_like(losses) - losses),
    to=lambda case: case.is_nonnegative,
)
def is_never_negative(case: WholeCase) -> None:
    batch = case.hard_batch(np.float32)
    losses = run_calls(case, batch, compiled=True).losses
    negative = {name: x for name, x in zip(batch.names, losses, strict=True) if (x < 0).any()}
    assert negative == {}
    ordinary = several(case, 300 if level.is_thorough() else 20)
    assert not (np.asarray(run(jax.vmap(case.loss), *ordinary)) < 0).any()


@obligation(
    after(lambda losses: jnp.where(losses > -1e9, losses, jnp.sqrt(-1e9 - losses))),
    after(lambda losses: losses + 0 * jnp.log(losses - losses - 1.0)),
    fails_with=(AssertionError, FloatingPointError),
)
def makes_no_nan_on_the_way(case: WholeCase) -> None:
    """Nothing is NaN that passes from the forward to the backward pass, let alone what comes out.

    So it is for a user who calls the loss without `jax.jit` and asks for `jax_debug_nans`.
    """
    batch = case.hard_batch(np.float32)
    found = run_calls(case, batch, compiled=True)
    no_nan(found._asdict())
    if level.is_thorough():
        calls = list(zip(*batch.arguments, strict=True))
        some = np.random.default_rng(0).choice(len(calls), min(len(calls), 6), replace=False)
        with jax.debug_nans(True):
            for index in some:
                jax.block_until_ready(case.loss(*calls[index]))
            jax.block_until_ready(gradients(case, calls[some[0]]))


@obligation(after(lambda losses: losses * 1.0001), to=lambda case: case.peer is not None)
def agrees_with_optax(case: WholeCase) -> None:
    assert case.peer is not None
    theirs = case._replace(function=functools.wraps(case.function)(case.peer))
    for seed in level.chosen(range(3), fast=1):
        arguments = case.inputs(seed)
        expected = results(theirs, arguments)
        agree({"optax": results(case, arguments)}, expected, given=arguments, rtol=1e-5)
