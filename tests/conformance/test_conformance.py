"""Every public loss against every obligation of the contract.

The obligations are in conformance/obligations, a file for each kind of them. `test_teeth` breaks
losses on purpose and demands that the obligation fails.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxent
from conformance import level
from conformance.case import Case
from conformance.comparing import close
from conformance.obligation import Obligation, teeth, untried
from conformance.obligations import functions, loudness, masks, numbers, transformations
from conformance.table import CASES, NOT_LOSSES, WHOLE_CASES
from public import FUNCTIONS

OBLIGATIONS = (
    *functions.OBLIGATIONS,
    *transformations.OBLIGATIONS,
    *masks.OBLIGATIONS,
    *loudness.OBLIGATIONS,
    *numbers.OBLIGATIONS,
)
ABOUT_NUMBERS = (
    numbers.is_exact_over_few_classes,
    numbers.has_exact_hessians,
    numbers.makes_no_nan_on_the_way,
    masks.masks_elements_whatever_they_hold,
    *level.chosen(
        [
            *(each.check for each in numbers.OBLIGATIONS),
            transformations.has_one_hessian_in_every_mode,
        ],
        fast=0,
    ),
)


def asked(case: Case) -> list[Obligation]:
    """What the table holds a case to.

    Other options of a loss whose manners an earlier case has shown are judged by their numbers
    alone, except for smoothing, which has to do with masks and classes.
    """
    earlier = [other.function for other in CASES[: CASES.index(case)]]
    smooths_classes = case.has_class_axis and "label_smoothing" in case.options
    is_repeat = case.function in earlier and not smooths_classes
    return [
        each
        for each in OBLIGATIONS
        if each.applies(case) and (each.check in ABOUT_NUMBERS or not is_repeat)
    ]


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, each.check, id=f"{case}-{each.name}")
        for case in CASES
        for each in asked(case)
    ],
)
def test_contract(case, check):
    check(case)


@pytest.mark.parametrize("tooth", teeth(CASES, asked), ids=str)
def test_teeth(tooth):
    tooth.check()


def test_every_way_of_breaking_a_loss_is_tried():
    assert not untried(OBLIGATIONS, teeth(CASES, asked))


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
    for check in (
        functions.is_pure,
        functions.leaks_nothing,
        loudness.lets_no_nan_hide,
        numbers.agrees_with_optax,
    ):
        check(case)
    for check in (
        loudness.calls_a_label_out_of_range_nan,
        numbers.computes_half_precision_in_float32,
        numbers.gives_impossible_classes_no_gradient,
        numbers.is_exact_over_few_classes,
        *level.chosen([numbers.is_exact_over_many_classes], fast=0),
        numbers.is_exact_over_a_vocabulary,
        numbers.is_exact_in_float64,
        numbers.is_exact_in_half_precision,
        numbers.has_exact_hessians,
    ):
        with pytest.raises(AssertionError):
            check(case)
