"""Deadlines for calls that accept no timeout, with one thread for all consecutive calls."""

from __future__ import annotations

import math
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

from .runtimes.fork import Stage, after_fork

__all__ = ("Watchdog",)

IDLE = 10.0
"""Seconds without a deadline after which the thread ends. A new one costs less than a thread for every owner."""


class Watchdog:
    """Calls ``on_timeout(what)`` when an armed deadline passes. Thread-safe.

    Its thread starts with the first deadline. It ends :data:`IDLE` seconds after the last one, or at :meth:`stop`, so
    an owner that is never closed leaves none behind.

    It is not a ``threading.Timer`` for each call: that would start and end a thread many times a second, and a thread
    that is just starting or ending may receive a signal to the process. The main thread, blocked in a lock, then never
    runs the signal's handler (SIGTERM, Python 3.11, Linux 6.18: once in some dozens of processes).

    In a forked child no deadline is armed: the deadlines belong to calls of the parent.
    """

    def __init__(self, on_timeout: Callable[[Any], object]) -> None:
        self._on_timeout = on_timeout
        self._restart()
        _watchdogs.add(self)

    def _restart(self) -> None:
        self._condition = threading.Condition()
        self._armed: dict[int, tuple[float, Any]] = {}
        self._number = 0
        self._until = math.inf  # when the thread wakes up by itself
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float, what: Any) -> int:
        """Call ``on_timeout(what)`` in ``seconds``, unless :meth:`disarm` is called with the returned number before."""
        with self._condition:
            at = time.monotonic() + seconds
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="poolkit-watchdog", daemon=True)
                thread.start()  # first: if the start fails, nothing is armed
                self._thread = thread
            elif at < self._until:
                self._condition.notify_all()
            self._number += 1
            self._armed[self._number] = at, what
            return self._number

    def disarm(self, number: int) -> None:
        """Cancel the deadline: the call has ended."""
        with self._condition:
            self._armed.pop(number, None)

    def stop(self) -> None:
        """End the thread once nothing is armed. A later :meth:`arm` starts a new one."""
        with self._condition:
            self._thread = None
            self._condition.notify_all()

    def _run(self) -> None:
        me = threading.current_thread()
        while True:
            with self._condition:
                if self._thread is not me and (self._thread is not None or not self._armed):
                    return
                now = time.monotonic()
                late = [number for number, (at, _) in self._armed.items() if at <= now]
                expired = [self._armed.pop(number)[1] for number in late]
                if not expired:
                    self._until = min((at for at, _ in self._armed.values()), default=math.inf)
                    woken = self._condition.wait(min(IDLE, self._until - now))
                    if not (woken or self._armed) and self._thread is me:
                        self._thread = None
                        return
                    self._until = -math.inf
            for what in expired:
                self._on_timeout(what)
            del expired


_watchdogs: weakref.WeakSet[Watchdog] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for watchdog in list(_watchdogs):
        watchdog._restart()


after_fork(Stage.RUNTIME, _after_fork_in_child)
