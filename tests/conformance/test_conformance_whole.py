"""Losses of images, lists, sequences and batches against the obligations of the contract.

The obligations are in conformance/obligations/wholes.py; `test_teeth` breaks losses on purpose.
"""

import pytest

from conformance import level
from conformance.case import WholeCase
from conformance.obligation import Obligation, teeth, untried
from conformance.obligations import wholes
from conformance.obligations.wholes import OBLIGATIONS
from conformance.table import WHOLE_CASES
from public import FUNCTIONS

ABOUT_NUMBERS = (
    wholes.is_exact,
    wholes.is_exact_in_float64,
    wholes.is_exact_in_half_precision,
    wholes.is_never_negative,
    wholes.makes_no_nan_on_the_way,
    wholes.agrees_with_optax,
)


def asked(case: WholeCase) -> list[Obligation]:
    """What the table holds a case to: in a fast run, to all of it with one choice of options."""
    earlier = [other.function for other in WHOLE_CASES[: WHOLE_CASES.index(case)]]
    is_repeat = case.function in earlier and not level.is_thorough()
    return [
        each
        for each in OBLIGATIONS
        if each.applies(case) and (each.check in ABOUT_NUMBERS or not is_repeat)
    ]


@pytest.mark.parametrize(
    ("case", "check"),
    [
        pytest.param(case, each.check, id=f"{case}-{each.name}")
        for case in WHOLE_CASES
        for each in asked(case)
    ],
)
def test_contract(case, check):
    check(case)


@pytest.mark.parametrize("tooth", teeth(WHOLE_CASES, asked), ids=str)
def test_teeth(tooth):
    tooth.check()


def test_every_way_of_breaking_a_loss_is_tried():
    assert not untried(OBLIGATIONS, teeth(WHOLE_CASES, asked))


def test_cases_speak_of_public_losses():
    assert {case.name for case in WHOLE_CASES} <= set(FUNCTIONS)
