"""Interrupts the main thread while it waits for a reply, as Ctrl-C does."""

from __future__ import annotations

import _thread
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

__all__ = ("ctrl_c_when",)

_WAITS = frozenset({"wait", "wait_epoll", "wait_poll", "wait_select", "wait_selector", "select"})
"""Functions in which psycopg waits. "wait" is the caller of its function in C."""


@contextmanager
def ctrl_c_when(condition: Callable[[], object]) -> Iterator[None]:
    """Raise KeyboardInterrupt in the block when ``condition()`` is true and psycopg waits. Fail if it does not arise.

    An interrupt at any other moment, in the middle of psycopg's own steps, leaves a connection that must be closed.
    """

    def interrupt() -> None:
        main = threading.main_thread().ident
        while not condition() or sys._current_frames()[main or 0].f_code.co_name not in _WAITS:
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
