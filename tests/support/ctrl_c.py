"""Interrupts the main thread in the middle of its work, as Ctrl-C does."""

from __future__ import annotations

import _thread
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

__all__ = ("ctrl_c_when",)


@contextmanager
def ctrl_c_when(condition: Callable[[], object]) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block as soon as ``condition()`` is true. Fail if the block does not raise it."""

    def interrupt() -> None:
        while not condition():
            pass
        _thread.interrupt_main()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would cancel the task of a test
    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)
