"""Deadlines for calls that cannot be given one: a single thread for all that follow each other."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any

__all__ = ("Watchdog",)


class Watchdog:
    """Calls ``bite(what)`` when an armed deadline passes. Thread-safe; its thread begins with the first deadline.

    Not a ``threading.Timer`` for each: that is a thread that begins and ends with every call, many times a second, and
    a signal to the process may be taken by a thread that is just beginning or ending. The main thread, asleep in a
    lock, then never runs the signal's handler (SIGTERM, Python 3.11, Linux 6.18: once in some dozens of processes).
    """

    def __init__(self, bite: Callable[[Any], object]) -> None:
        self._bite = bite
        self._condition = threading.Condition()
        self._armed: dict[int, tuple[float, Any]] = {}
        self._number = 0
        self._until = math.inf  # when the thread looks again by itself
        self._thread: threading.Thread | None = None

    def arm(self, seconds: float, what: Any) -> int:
        """``what`` is bitten in ``seconds`` unless :meth:`disarm` is called with the answer before."""
        with self._condition:
            at = time.monotonic() + seconds
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="poolkit-watchdog", daemon=True)
                thread.start()  # first: if it is refused, nothing is armed
                self._thread = thread
            elif at < self._until:
                self._condition.notify_all()
            self._number += 1
            self._armed[self._number] = at, what
            return self._number

    def disarm(self, number: int) -> None:
        """The call has ended."""
        with self._condition:
            self._armed.pop(number, None)

    def rest(self) -> None:
        """Nothing more is expected: the thread ends, once nothing is armed. Another :meth:`arm` begins a new one."""
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
                bitten = [self._armed.pop(number)[1] for number in late]
                if not bitten:
                    self._until = min((at for at, _ in self._armed.values()), default=math.inf)
                    self._condition.wait(None if self._until == math.inf else self._until - now)
                    self._until = -math.inf
            for what in bitten:
                self._bite(what)
            del bitten
