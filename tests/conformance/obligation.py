"""What the tables share: what cases are held to, and which ways of breaking a loss must be seen.

An obligation is a function of a case. It is registered with at least one way of breaking a loss
that it must notice, so that no check can be one that passes whatever happens.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from conformance import level, programs
from conformance.breaking import Loss, Way, way

# Of hard inputs, for a broken loss: the interpreter takes seconds for all of them.
_ROWS = 48

Failure = type[BaseException] | tuple[type[BaseException], ...]
Check = Callable[[Any], None]


class Obligation(NamedTuple):
    """What a table holds its cases to, and ways of breaking a loss that must be noticed."""

    check: Check
    broken_by: tuple[Way, ...]
    fails_with: Failure
    applies: Callable[[Any], bool]

    @property
    def name(self) -> str:
        return self.check.__name__


class Teeth(NamedTuple):
    """A broken loss that an obligation must notice."""

    case: Any
    obligation: Obligation
    number: int  # of the way of breaking it

    def __str__(self) -> str:
        return f"{self.case}-{self.obligation.name}-{self.number}"

    def check(self) -> None:
        """Fails unless the obligation fails."""
        function = self.case.function
        broken = functools.wraps(function)(self.obligation.broken_by[self.number].break_(function))
        with programs.compiling("nothing"), pytest.raises(self.obligation.fails_with):
            self.obligation.check(self.case._replace(function=broken, most_rows=_ROWS))


def new_table() -> tuple[list[Obligation], Callable]:
    """The obligations of a table, none yet, and the decorator by which checks are added."""
    table: list[Obligation] = []

    def obligation(
        *broken_by: Callable[[Loss], Loss] | Way,
        to: Callable[[Any], bool] = lambda case: True,
        fails_with: Failure = AssertionError,
    ) -> Callable[[Check], Check]:
        """Registers a check of the cases `to` which it applies, and what breaks a loss it sees."""

        def register(check: Check) -> Check:
            assert broken_by, f"nothing shows that {check.__name__} can fail"
            table.append(Obligation(check, tuple(map(way, broken_by)), fails_with, to))
            return check

        return register

    return table, obligation


def untried(table: Sequence[Obligation], tried: Sequence[Teeth]) -> set[tuple[str, int]]:
    """The ways of breaking a loss that no case takes."""
    ways = {(each.name, number) for each in table for number in range(len(each.broken_by))}
    return ways - {(tooth.obligation.name, tooth.number) for tooth in tried}


def teeth(cases: Sequence[Any], asked: Callable[[Any], Sequence[Obligation]]) -> list[Teeth]:
    """Broken losses: two of every case in a fast run, three in a thorough one.

    Each case takes the ways that the fewest cases before it have taken, and each of its own ways
    from another obligation if it can: so all ways are taken, and none is chosen by hand.
    """
    taken: dict[tuple[str, int], int] = {}
    found = []
    for case in cases:
        ways = [
            Teeth(case, each, number)
            for each in asked(case)
            for number, one in enumerate(each.broken_by)
            if one.applies(case)
        ]
        for _ in range(3 if level.is_thorough() else 2):
            mine = {tooth.obligation.name for tooth in found if tooth.case is case}
            best = min(
                ways,
                key=lambda tooth: (
                    tooth.obligation.name in mine,
                    taken.get((tooth.obligation.name, tooth.number), 0),
                ),
            )
            ways.remove(best)
            taken[best.obligation.name, best.number] = (
                taken.get((best.obligation.name, best.number), 0) + 1
            )
            found.append(best)
    return found
