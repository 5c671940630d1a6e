"""Calls of somebody else's code that may raise or take its time: in a thread of their own, in order."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable

from .._log import logger
from ..errors import describe

__all__ = ("Aside", "Once")

AT_EXIT = 1.0  # seconds that the end of the process waits for a call under way
MOST = 10_000
"""Calls that may wait; what comes beyond that is dropped."""


class Once:
    """Warnings about somebody else's code, each kind of which is logged once. ``what``: whose code it is."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._told: set[str] = set()

    def tell(self, kind: str, text: str, *, exc_info: bool = False) -> None:
        """Log it, unless one of this kind was logged."""
        if kind not in self._told:
            self._told.add(kind)
            logger.warning("%s: %s", self._what, text, exc_info=exc_info)


_open: weakref.WeakSet[Aside] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """What has happened before the end is to be told; whoever hangs then is not waited for."""
    for one in list(_open):
        one.catch_up(AT_EXIT)


class Aside:
    """Runs what is given to :meth:`do`, one after the other. ``what``: whose code it is, for the log.

    A call that raises is told of once, as is the first that is dropped because too many wait; the next ones are made
    as if nothing had happened. Thread-safe; a forked child begins with nothing. Where no thread can be started, the
    calls are made by :meth:`catch_up`.
    """

    def __init__(self, what: str) -> None:
        self._once = Once(what)
        self._over = False
        self._begin()
        _open.add(self)
        if hasattr(os, "register_at_fork"):
            me = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _begin_again(me))

    def _begin(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._turn = threading.Lock()  # whoever has it makes the calls
        try:
            threading.Thread(target=self._run, args=(self._wake,), name="poolkit-telemetry", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            self._once.tell("thread", f"no thread can be started for it: {describe(error)}")

    def do(self, call: Callable[[], object]) -> None:
        """Soon, in another thread. Never waits, never raises."""
        if len(self._calls) >= MOST:
            self._once.tell("full", f"it takes too long: {MOST} calls wait, and what comes beyond that is dropped")
            return
        self._calls.append(call)
        if not self._wake.is_set():
            self._wake.set()

    def catch_up(self, timeout: float) -> None:
        """Make all calls that wait, unless the one under way takes longer than ``timeout`` seconds."""
        if not self._calls and not self._turn.locked():
            return
        if self._turn.acquire(timeout=timeout):
            try:
                self._make()
            finally:
                self._turn.release()

    def close(self, timeout: float = 5.0) -> None:
        """Make the calls that wait, as :meth:`catch_up`, and end the thread."""
        self._over = True
        _open.discard(self)
        self._wake.set()
        self.catch_up(timeout)

    def _run(self, mine: threading.Event) -> None:
        while not self._over and mine is self._wake:  # not after a fork
            mine.wait()
            mine.clear()
            with self._turn:
                self._make()

    def _make(self) -> None:
        while self._calls:
            call = self._calls.popleft()
            try:
                call()
            except Exception as error:  # noqa: BLE001 - told, and the next call is made
                self._once.tell("raised", f"failed, and is tried again: {describe(error)}", exc_info=True)


def _begin_again(ref: weakref.ref[Aside]) -> None:
    one = ref()
    if one is not None and not one._over:
        one._begin()
