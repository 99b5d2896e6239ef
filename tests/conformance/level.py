"""How much a run of the tests does: a fast one by default, a thorough one with `--thorough`."""

from collections.abc import Sequence
from typing import Any, TypeVar

import ml_dtypes
import numpy as np

_T = TypeVar("_T")

_thorough = False


def set_thorough(thorough: bool) -> None:
    """Called once, before the tests are collected."""
    global _thorough
    _thorough = thorough


def is_thorough() -> bool:
    return _thorough


def chosen(items: Sequence[_T], *, fast: int) -> Sequence[_T]:
    """All of them in a thorough run, the first few in a fast one."""
    return items if _thorough else items[:fast]


def half_dtypes() -> Sequence[Any]:
    return chosen((ml_dtypes.bfloat16, np.float16), fast=1)
