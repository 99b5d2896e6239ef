"""Truths that took long to compute are kept in a folder for the next run, if there is one."""

import functools
import hashlib
import inspect
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np

_WORTH_KEEPING = 0.2  # seconds

_folder: Path | None = None


def keep_in(folder: Path) -> None:
    """Called once, before the tests are collected."""
    global _folder
    _folder = folder


def once(
    compute: Callable[[], Any], function: Callable[..., Any], arrays: Any, options: Mapping
) -> Any:
    """What `compute` returns, which depends on a reference, its inputs and the options alone."""
    if _folder is None:
        return compute()
    path = _folder / _key(function, arrays, options)
    if path.exists():
        return pickle.loads(path.read_bytes())
    start = time.process_time()
    result = compute()
    if time.process_time() - start > _WORTH_KEEPING:
        # Several processes may do so at once; a file appears as a whole or not at all.
        new = path.with_suffix(f".{time.time_ns()}")
        new.write_bytes(pickle.dumps(result))
        new.replace(path)
    return result


def _key(function: Callable[..., Any], arrays: Any, options: Mapping) -> str:
    digest = hashlib.sha256()
    for text in (*sorted(set(_sources(function))), repr(sorted(options.items(), key=str))):
        digest.update(text.encode())
    for array in map(np.asarray, arrays):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _sources(value: Any) -> Iterator[str]:
    """The texts of all modules that a reference reaches by closures, and what else is in those."""
    if isinstance(value, functools.partial):
        for each in (value.func, *value.args, *value.keywords.items()):
            yield from _sources(each)
    elif isinstance(value, FunctionType):
        yield f"{value.__module__}.{value.__qualname__}"
        for name in (value.__module__, *_modules_used(value)):
            yield _text_of(name)
        for cell in value.__closure__ or ():
            yield from _sources(cell.cell_contents)
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _sources(each)
    else:
        yield repr(value)


def _modules_used(function: FunctionType) -> Iterator[str]:
    names = vars(sys.modules[function.__module__]).values()
    yield from (m.__name__ for m in names if isinstance(m, ModuleType) and _is_ours(m))


def _is_ours(module: ModuleType) -> bool:
    return module.__name__.partition(".")[0] == __name__.partition(".")[0]


@functools.cache
def _text_of(module: str) -> str:
    return inspect.getsource(sys.modules[module])
