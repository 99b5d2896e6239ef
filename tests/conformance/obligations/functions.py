"""What kind of function a loss is, and what it says to arguments that do not fit."""

import gc
import inspect
import itertools
import math
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from conformance import level, oracle
from conformance.breaking import after, before, first, keep_a_tracer, only, second, with_one
from conformance.case import CLASS, Batch, Case, with_float64
from conformance.comparing import agree
from conformance.obligation import new_table
from conformance.obligations.numbers import within_bars
from conformance.programs import AnyCase, gradients, hessians, results, values

OBLIGATIONS, obligation = new_table()

REFUSED_OPTIONS = {
    "base": (0.5, 1, 0, -2, math.inf, math.nan, jnp.array(2.0)),
    "full": (0, 1, None, "yes", np.True_, jnp.array(True)),
    "label_smoothing": (-0.1, 1.1, 2),
    "pos_weight": (-1, -1e-9, math.inf, math.nan),
}
_calls = itertools.count()


def has_classes(case: Case) -> bool:
    return case.has_class_axis


def has_labels(case: Case) -> bool:
    return CLASS in case.arguments


NOT_PURE = (
    after(lambda losses: losses + next(_calls)),
    after(lambda losses: [losses, jax.debug.callback(lambda: None)][0]),
)


@obligation(*NOT_PURE)
def is_pure(case: AnyCase) -> None:
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
    for leading in level.chosen(((), (1, 0, 2), (4,), (2, 3), (0,)), fast=2):
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
    within_bars(case, Batch(["one class"] * 4, arguments, truth), np.float32)


@obligation(first(lambda logits: logits + 0 * logits.ndim), fails_with=AttributeError)
def takes_lists_and_numbers(case: Case) -> None:
    arguments, one = case.inputs(), case.inputs(())
    lists = [a.tolist() for a in arguments]
    expected = values(case, arguments)
    agree(
        {
            "lists": values(case, lists),
            "arrays of JAX": values(case, [jnp.asarray(a) for a in arguments]),
        },
        expected,
        given=arguments,
    )
    alone = values(case, [a.tolist() for a in one])
    agree({"one example": alone}, values(case, one), given=one)
    assert alone.dtype == np.float32
    if not case.has_class_axis:
        assert values(case, [0.5 for _ in one]).shape == ()


@obligation(
    after(lambda losses: losses + jnp.arange(losses.size).reshape(losses.shape)),
    after(lambda losses: losses + jnp.ones((1, *losses.shape), losses.dtype)),
    fails_with=ValueError,
)
def needs_no_implicit_promotion(case: Case) -> None:
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        for dtype in level.chosen((*level.half_dtypes(), np.float32), fast=1):
            jax.eval_shape(lambda *a: gradients(case, a), *case.inputs(dtype=dtype))
            jax.eval_shape(jax.vmap(case.loss), *case.inputs((2, 3), dtype=dtype))


@obligation(first(keep_a_tracer), fails_with=Exception)  # JAX raises nothing narrower
def leaks_nothing(case: Case) -> None:
    arguments = case.inputs()

    def everything(*a):
        examples = a if case.has_class_axis else tuple(each.ravel() for each in a)
        modes = level.chosen((jax.jacfwd, jax.jacrev), fast=0)
        return [gradients(case, a), *(hessians(case, examples, outer) for outer in modes)]

    gc.freeze()  # JAX looks for leaks among all objects, of which the truths are very many
    try:
        with jax.checking_leaks():
            jax.make_jaxpr(everything)(*arguments)
    finally:
        gc.unfreeze()


# --- dtypes ---------------------------------------------------------------------------------------


@obligation(
    before(lambda *a: tuple(x.astype(np.float32) if x.dtype == np.float64 else x for x in a)),
    after(lambda losses: losses.astype(jnp.result_type(float))),
)
def keeps_float32_and_float64_apart(case: Case) -> None:
    plain = results(case, case.inputs())
    with with_float64():
        for dtype in (np.float32, np.float64):
            found = results(case, case.inputs(dtype=dtype))
            assert found.losses.dtype == dtype
            assert all(grad.dtype == dtype for grad in found.gradients)
            agree({np.dtype(dtype).name: found}, plain, given=case.inputs())
        for dtype in level.half_dtypes():
            assert jax.eval_shape(case.loss, *case.inputs(dtype=dtype)).dtype == np.float32


@obligation(
    second(lambda labels: labels.astype(jnp.int8)),
    second(lambda labels: labels.astype(jnp.int32)),
    to=has_labels,
)
def takes_labels_of_every_integer_dtype(case: Case) -> None:
    """More classes than an int8 can count: nothing may be computed in the dtype of the labels."""
    logits, _ = case.inputs((3,), classes=300)
    for dtype in level.chosen((np.int8, np.uint32, np.uint8, np.int16, np.uint16), fast=2):
        labels = np.array([0, 7, min(np.iinfo(dtype).max, 299)], dtype)
        expected = results(case, (logits, labels.astype(np.int32)))
        found = results(case, (logits, labels))
        agree({np.dtype(dtype).name: found}, expected, given=(logits, labels))
    beyond = np.array([0, 2**32 - 1, 2**31], np.uint32)
    np.testing.assert_array_equal(np.isnan(values(case, (logits, beyond))), [False, True, True])
    with with_float64():
        beyond = np.array([1, 2**32 + 1, -(2**32)], np.int64)
        np.testing.assert_array_equal(np.isnan(values(case, (logits, beyond))), [False, True, True])


# --- shapes ---------------------------------------------------------------------------------------


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
    narrow = results(case, (logits, labels), sequences)
    wide = results(case, (logits, labels), np.broadcast_to(sequences, (2, 3)))
    agree({"a mask of sequences": narrow}, wide, given=(logits, labels))
    for label in (labels[0, 1], int(labels[0, 1])):
        expected = results(case, (logits, np.full_like(labels, label))).losses
        agree({f"label {label}": values(case, (logits, label))}, expected, given=(logits,))


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
        found, expected = results(case, narrow), results(case, wide)
        name = f"argument {position} of length 1"
        agree({name: found.losses}, expected.losses, given=narrow)
        for grad, wide_grad in zip(found.gradients, expected.gradients, strict=True):
            whole = len(grad) == len(wide_grad)
            of_narrow = wide_grad if whole else wide_grad.sum(0, keepdims=True)
            agree({f"gradient with {name}": grad}, of_narrow, given=narrow, rtol=3e-6)
    if not case.has_class_axis:
        number = arguments[1].ravel()[0]
        scalar = values(case, with_one(arguments, 1, number))
        expected = values(case, with_one(arguments, 1, np.full_like(arguments[1], number)))
        agree({"a number": scalar}, expected, given=arguments)


# --- what is refused ------------------------------------------------------------------------------


@obligation(
    first(lambda x: jnp.asarray(x, jnp.float32)),
    only(second(lambda y: jnp.asarray(y).reshape(-1)[0]), to=lambda case: len(case.arguments) > 1),
    only(second(lambda y: y.astype(np.int32) if y.ndim == 1 else y), to=has_labels),
    fails_with=pytest.fail.Exception,
)
def refuses_what_does_not_fit(case: Case) -> None:
    good = case.inputs()
    name, shape = case.arguments[0].name, good[0].shape
    for dtype in (np.int32, bool, np.complex64):
        refused(case, with_one(good, 0, good[0].astype(dtype)), name, shape)
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
        for bad in REFUSED_OPTIONS[option]:
            refused(case._replace(options={**case.options, option: bad}), good, option)


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


def refused(
    case: Any, arguments: Any, name: str, shape: tuple | None = None, **keywords: Any
) -> None:
    """Refused at trace time, in words: the function, the argument, and the shape given for it."""
    with pytest.raises(AssertionError) as failure:
        jax.eval_shape(lambda: case.loss(*arguments, **keywords))
    message = str(failure.value)
    assert re.search(rf"\b{case.name}\b", message), message
    assert re.search(rf"\b{name}\b", message), (name, message)
    if shape is not None:
        sizes = ", ?".join(map(str, shape))
        assert re.search(rf"[(\[]{sizes},?[)\]]", message), (shape, message)
