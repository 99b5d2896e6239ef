"""Which functions a page of the reference documents: those of the modules that it names.

A page says `.. family:: softmax targets`, names of modules of `jaxent._losses` (or `_heads.api`,
with the package), and a new public function of such a module is on it without a further line.
"""

import inspect
import re

import jaxent

_FAMILY = re.compile(r"^\.\. family:: (.+)$", re.MULTILINE)


def functions(page: str) -> list[str]:
    """The public functions on a page, in the order in which their modules define them."""
    return [name for family in _FAMILY.findall(page) for name in _of_modules(family)]


def expanded(page: str) -> str:
    """The page with a directive for each function in place of the names of modules."""
    return _FAMILY.sub(
        lambda family: "\n\n".join(f".. autofunction:: {name}" for name in _of_modules(family[1])),
        page,
    )


def _of_modules(names: str) -> list[str]:
    found = []
    for module in names.split():
        path = f"jaxent.{module}" if "." in module else f"jaxent._losses.{module}"
        public = [name for name in jaxent.__all__ if getattr(jaxent, name).__module__ == path]
        defined = [name for name in public if inspect.isfunction(getattr(jaxent, name))]
        found += sorted(defined, key=_line)
    return found


def _line(name: str) -> int:
    return inspect.unwrap(getattr(jaxent, name)).__code__.co_firstlineno
