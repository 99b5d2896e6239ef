"""Ctrl-C once ends the training but not the report; twice ends everything."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def interrupt_noted() -> Iterator[Callable[[], bool]]:
    """Note the first Ctrl-C for a caller that asks; only the second raises KeyboardInterrupt.

    An exception could come in the middle of a step, or inside JAX, and what was learned so far
    would be lost.
    """
    noted = threading.Event()

    def note(*_: object) -> None:
        if noted.is_set():
            raise KeyboardInterrupt
        noted.set()

    if threading.current_thread() is not threading.main_thread():
        yield noted.is_set  # Python delivers signals to the main thread only.
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted.is_set
    finally:
        signal.signal(signal.SIGINT, before)
