"""Run calls of foreign code in order in a separate thread, because they may raise or block."""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import deque
from collections.abc import Callable

from .._log import logger
from ..errors import describe
from ..policies.members import snapshot
from ..runtimes.fork import Stage, restart_after_fork

__all__ = ("Aside", "Once")

AT_EXIT = 1.0  # seconds that the process waits at exit for a call in progress
MOST = 10_000
"""Calls that may be queued; further ones are dropped."""


class Once:
    """Warnings about foreign code, each kind of which is logged once. ``what``: the name of the code in the log.

    Thread-safe.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._told: dict[str, object] = {}  # by kind: the call that logs it

    def tell(self, kind: str, text: str, *, exc_info: bool = False) -> None:
        """Log a warning, unless one of this kind was logged before."""
        call = object()
        if self._told.setdefault(kind, call) is call:
            logger.warning("%s: %s", self._what, text, exc_info=exc_info)


_open: weakref.WeakSet[Aside] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """At process exit: make the queued calls, but do not wait for one that hangs."""
    for one in snapshot(_open):
        one.catch_up(AT_EXIT)


class Aside:
    """Runs the calls given to :meth:`do` one after the other. ``what``: the name of the foreign code in the log.

    The first call that raises and the first one that is dropped are logged; later calls are made as usual. Thread-safe;
    a forked child starts with an empty queue. If no thread can be started, :meth:`catch_up` makes the calls.
    """

    def __init__(self, what: str) -> None:
        self._once = Once(what)
        self._over = False
        self._begin()
        _open.add(self)
        restart_after_fork(Stage.WATCHERS, self, _begin_again)

    def _begin(self) -> None:
        self._calls: deque[Callable[[], object]] = deque()
        self._wake = threading.Event()
        self._turn = threading.Lock()  # held by the thread that makes the calls
        try:
            threading.Thread(target=self._run, args=(self._wake,), name="poolkit-telemetry", daemon=True).start()
        except (RuntimeError, MemoryError) as error:
            self._once.tell("thread", f"no thread can be started for its calls: {describe(error)}")

    def do(self, call: Callable[[], object]) -> None:
        """Queue a call for another thread. Never waits, never raises."""
        if len(self._calls) >= MOST:
            self._once.tell("full", f"it is too slow: {MOST} calls are queued, and further ones are dropped")
            return
        self._calls.append(call)
        if not self._wake.is_set():
            self._wake.set()

    def catch_up(self, timeout: float) -> None:
        """Make all queued calls, unless the one in progress takes longer than ``timeout`` seconds."""
        if not self._calls and not self._turn.locked():
            return
        if self._turn.acquire(timeout=timeout):
            try:
                self._make()
            finally:
                self._turn.release()

    def close(self, timeout: float = 5.0) -> None:
        """Make the queued calls, as :meth:`catch_up`, and end the thread."""
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
            except Exception as error:  # noqa: BLE001 - logged, and the next call is made
                self._once.tell("raised", f"failed; later calls are still made: {describe(error)}", exc_info=True)


def _begin_again(aside: Aside) -> None:
    if not aside._over:
        aside._begin()
