"""Losses of images, lists, sequences and batches against the obligations of the contract.

The obligations are in conformance/obligations/wholes.py; `test_teeth` breaks losses on purpose.
"""

import pytest

from conformance.case import WholeCase
from conformance.obligation import Obligation, teeth
from conformance.obligations.wholes import OBLIGATIONS
from conformance.table import WHOLE_CASES
from public import FUNCTIONS


def asked(case: WholeCase) -> list[Obligation]:
    return [each for each in OBLIGATIONS if each.applies(case)]


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
    tried = {(tooth.obligation.name, tooth.number) for tooth in teeth(WHOLE_CASES, asked)}
    ways = {(each.name, number) for each in OBLIGATIONS for number in range(len(each.broken_by))}
    assert tried == ways


def test_cases_speak_of_public_losses():
    assert {case.name for case in WHOLE_CASES} <= set(FUNCTIONS)
