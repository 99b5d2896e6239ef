"""The numbers: within the bars of the table on inputs that are hard, and never negative."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from conformance import level, oracle
from conformance.breaking import (
    after,
    first,
    instead,
    is_integer,
    only,
    take_the_impossible_for_zero,
    with_another_hessian,
)
from conformance.case import LOGITS, Arrays, Batch, Case, with_float64
from conformance.comparing import agree, errors_of, no_nan, within_bar
from conformance.obligation import new_table
from conformance.programs import (
    every_result,
    hessians,
    may_compile,
    of_floats,
    results,
    run,
    run_batch,
)

OBLIGATIONS, obligation = new_table()


def within_bars(
    case: Any, batch: Batch, dtype: Any, *, compiled: bool = False, run: Any = run_batch
) -> None:
    """Values and gradients of all rows within the bars of the table.

    Where the interpreter is beyond them, what XLA computes decides: bars are for what users run.
    """
    try:
        losses, grads, _ = run(case, batch, compiled=compiled)
        compare(case, batch, losses, grads, dtype)
    except AssertionError:
        if compiled or not may_compile():
            raise
        losses, grads, _ = run(case, batch, compiled=True)
        compare(case, batch, losses, grads, dtype)


def bars_of_this_jax() -> float:
    """1, or 2 before JAX 0.10, whose XLA adds up rows on CPUs one term after the other."""
    return 1.0 if jax.__version_info__ >= (0, 10) else 2.0


def compare(case: Any, batch: Batch, losses: np.ndarray, grads: Arrays, dtype: Any) -> None:
    """Values and gradients beside the truth of a batch."""
    loud, truth = np.float64 if dtype == np.float64 else np.float32, batch.truth
    errors = oracle.scaled_ulps(losses, truth.value, truth.value_scale, loud)
    bar = case.value_ulps * bars_of_this_jax()
    within_bar(f"{case}: value", batch, losses, truth.value, errors, bar)
    for index, grad in enumerate(grads):
        exact, scale = truth.gradients[index], truth.gradient_scales[index]
        errors = errors_of(grad, exact, scale, dtype)
        if truth.other_gradients is not None:
            other = errors_of(grad, truth.other_gradients[index], scale, dtype)
            errors = np.minimum(errors, other)
        # One rounding to a narrow dtype is all that may be added to a float32 gradient.
        bar = case.gradient_ulps * bars_of_this_jax() if dtype == loud else 0.51
        within_bar(f"{case}: gradient {index}", batch, grad, exact, errors, bar)


def is_unbounded(case: Case) -> bool:
    return "shannon" not in case.name and case.name != "generalized_cross_entropy"


def is_often_0(case: Case) -> bool:
    return "triplet" in case.name


@obligation(
    after(lambda losses: losses * 1.00001),
    instead(lambda x, *_, **__: jnp.zeros(jnp.shape(x)[:-1])),
    to=lambda case: case.peer is not None,
)
def agrees_with_optax(case: Case) -> None:
    arguments = case.inputs((50,), classes=7)
    theirs = case._replace(function=case.peer, options={})
    expected = results(theirs, arguments)
    agree({"optax": results(case, arguments)}, expected, given=arguments, rtol=3e-6)


@obligation(
    after(lambda losses: losses - 1e-7),
    only(
        instead(lambda x, *_, **__: jnp.sum(jax.nn.softmax(x), -1) - 1),
        to=lambda case: case.has_class_axis,
    ),
    to=lambda case: case.is_nonnegative,
)
def is_never_negative(case: Case) -> None:
    for classes in level.chosen((10, 2), fast=1):
        batch = case.hard_batch(np.float32, classes)
        losses = run_batch(case, batch, compiled=True).losses
        assert not (losses < 0).any(), [
            n for n, x in zip(batch.names, losses, strict=True) if x < 0
        ]
        assert not (run_batch(case, _ordinary(case, batch), compiled=True).losses < 0).any()


def _ordinary(case: Case, batch: Batch) -> Batch:
    """Ordinary rows, as many and of the same shape as those of a batch."""
    shape = batch.arguments[0].shape
    arguments = case.inputs(shape[:1], classes=shape[-1] if case.has_class_axis else 1)
    arguments = tuple(a.reshape(b.shape) for a, b in zip(arguments, batch.arguments, strict=True))
    return batch._replace(arguments=arguments)


@obligation(
    after(lambda losses: jnp.where(losses > -1e9, losses, jnp.sqrt(-1e9 - losses))),
    first(lambda x: jnp.where(x > -1e30, x, 0.0 / (jnp.asarray(x) * 0.0))),
    fails_with=(AssertionError, FloatingPointError),
)
def makes_no_nan_on_the_way(case: Case) -> None:
    """Nothing is NaN that passes from the forward to the backward pass, let alone what comes out.

    So it is for a user who calls the loss without `jax.jit` and asks for `jax_debug_nans`.
    """
    batch = case.hard_batch(np.float32, 10)
    found = run_batch(case, batch, compiled=True)
    no_nan(found._asdict())
    if level.is_thorough():
        with jax.debug_nans(True):
            every_result(case, batch.arguments)


@obligation(
    only(first(lambda x: jnp.maximum(x, -1e4)), to=is_unbounded),
    first(take_the_impossible_for_zero),
    to=lambda case: case.has_class_axis and case.arguments[0].make is LOGITS.make,
)
def gives_impossible_classes_no_gradient(case: Case) -> None:
    """-inf logits: probability 0, gradient 0, and never a NaN, whether or not they cost +inf."""
    batch = case.hard_batch(np.float32, 10)
    impossible = np.isneginf(batch.arguments[0])
    with np.errstate(over="ignore"):
        infinite = np.isposinf(batch.truth.value.astype(np.float64).astype(np.float32))
    assert impossible.any()
    found = [run_batch(case, batch, compiled=True)[:2]]
    if level.is_thorough():
        found.extend(every_result(case, batch.arguments).values())
    for losses, grads in found:
        np.testing.assert_array_equal(np.isposinf(losses), infinite)
        np.testing.assert_array_equal(grads[0][impossible], 0.0)
        assert not any(np.isnan(result).any() for result in (losses, *grads))


@obligation(
    lambda loss: lambda *a, **k: loss(*a, **k).astype(a[0].dtype).astype(jnp.float32),
)
def computes_half_precision_in_float32(case: Case) -> None:
    for dtype in level.half_dtypes():
        low = case.inputs(dtype=dtype)
        high = tuple(a if is_integer(a) else a.astype(np.float32) for a in low)
        expected = results(case, high)
        given = {np.dtype(dtype).name: low}
        if dtype == ml_dtypes.bfloat16 and len(low) > 1:
            given["bfloat16 and float32"] = (low[0], *high[1:])
        for name, arguments in given.items():
            found = results(case, arguments)
            assert found.losses.dtype == np.float32
            agree({name: found.losses}, expected.losses, given=arguments)
            floats = of_floats(case, arguments)[1]
            for grad, exact, argument in zip(
                found.gradients, expected.gradients, floats, strict=True
            ):
                assert grad.dtype == argument.dtype
                bar = 0.51 if grad.dtype == dtype else 8
                errors = oracle.scaled_ulps(grad, exact, exact, grad.dtype)
                assert np.all(errors <= bar), (name, grad, exact)
        loss, floats = of_floats(case, low)
        tangent = jax.eval_shape(lambda *f: jax.jvp(loss, f, f)[1], *floats)  # noqa: B023
        assert tangent.dtype == np.float32


@obligation(
    only(after(lambda losses: losses * (1 + 3e-6)), to=lambda case: not is_often_0(case)),
    first(lambda x: x * (1 + 1e-5) - jax.lax.stop_gradient(x * 1e-5)),
)
def is_exact_over_few_classes(case: Case) -> None:
    within_bars(case, case.hard_batch(np.float32, 10), np.float32, compiled=True)
    within_bars(case, case.hard_batch(np.float32, 2, at_most=400, fast=60), np.float32)
    if level.is_thorough():
        batch = case.hard_batch(np.float32, 10)
        for found in every_result(case, batch.arguments).values():
            compare(case, batch, *found, np.float32)


@obligation(
    only(after(lambda losses: losses * (1 + 3e-6)), to=lambda case: not is_often_0(case)),
    only(after(lambda losses: losses + 1e-4 * (1 + losses)), to=is_often_0),
    to=lambda case: case.has_class_axis,
)
def is_exact_over_many_classes(case: Case) -> None:
    batch = case.hard_batch(np.float32, 1000, at_most=25, fast=3)
    # The others are compiled for a vocabulary.
    within_bars(case, batch, np.float32, compiled=case.vocabulary_inputs is None)


@obligation(
    after(lambda losses: losses * (1 + 3e-6)),
    to=lambda case: case.vocabulary_inputs is not None,
)
def is_exact_over_a_vocabulary(case: Case) -> None:
    some, whole = [(8192, 1)], [(131072, 1), (262144, 0)]
    for classes, family in whole if level.is_thorough() and not case.most_rows else some:
        batch = case.vocabulary_batch(np.float32, classes, family)
        within_bars(case, batch, np.float32, compiled=True)


@obligation(
    first(lambda x: jnp.asarray(x, jnp.float32)),
    after(lambda losses: losses * (1 + 1e-14)),
)
def is_exact_in_float64(case: Case) -> None:
    with with_float64():
        within_bars(case, case.hard_batch(np.float64, 10, at_most=80, fast=20), np.float64)


@obligation(after(lambda losses: losses * (1 + 3e-6)))
def is_exact_in_half_precision(case: Case) -> None:
    for dtype in level.half_dtypes():
        batch = case.hard_batch(dtype, 10, at_most=250, fast=100)
        within_bars(case, batch, dtype, compiled=True)


@obligation(
    with_another_hessian,
    first(lambda x: x + 1e-5 * (x - jax.lax.stop_gradient(x)) ** 2),
)
def has_exact_hessians(case: Case) -> None:
    batch = case.hard_batch(np.float32, 5, at_most=70, fast=24)
    arguments = batch.arguments
    truth = oracle.hessian(case.truth, *arguments, **case.options)
    # The oracle puts the direction first, JAX the gradient.
    truth = truth.swapaxes(1, 2) if case.has_class_axis else truth
    scale = truth if case.hessian_scale is None else case.hessian_scale(*arguments)
    # At the edge of its domain a loss has no second derivative: the truth beyond is NaN.
    at_edge = truth != truth
    for outer in level.chosen((jax.jacfwd, jax.jacrev), fast=1):
        with jax.debug_nans(level.is_thorough()):
            result = np.asarray(run(functools.partial(hessians, case, outer=outer), arguments))
        errors = oracle.scaled_ulps(result, truth, scale, np.float32)
        if case.other_hessian is not None:
            other = case.other_hessian(*arguments)
            errors = np.minimum(errors, oracle.scaled_ulps(result, other, scale, np.float32))
        errors = np.where(at_edge & np.isfinite(result), 0.0, errors)
        name = f"{case}: {outer.__name__} of the gradient"
        within_bar(name, batch, result, truth, errors, case.hessian_ulps)
