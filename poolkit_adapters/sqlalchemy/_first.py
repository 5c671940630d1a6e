"""A lock for the code that runs once per pool, on its first connection, when several event loops use the pool."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Any

from ._greenlets import GreenletRuntime, running_loop

__all__ = ("OneAtATime",)

_LOOK = 0.5
"""Seconds after which a waiter checks whether the event loop of the lock's owner has ended."""


class OneAtATime:
    """A lock for greenlets of any event loop. ``with`` waits in the caller's own loop.

    SQLAlchemy holds a lock until its "connect" listeners have run once. That is an ``asyncio.Lock``, which belongs to
    one loop: greenlets of another loop get RuntimeError, or are never woken.
    """

    def __init__(self, runtime: GreenletRuntime) -> None:
        self._runtime = runtime
        self._lock = threading.Lock()  # held only for a few lines without a greenlet switch
        self._held = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: deque[Any] = deque()

    def __enter__(self) -> OneAtATime:
        while True:
            parker = self._runtime.parker()
            with self._lock:
                if not self._held or (self._loop is not None and self._loop.is_closed()):
                    self._held, self._loop = True, running_loop()
                    return self
                self._waiters.append(parker)
            try:
                parker.wait(_LOOK)
            except BaseException:
                if not self._leave(parker):
                    self._wake_next()  # the lock was passed to this waiter already, so pass it on
                raise
            self._leave(parker)

    def __exit__(self, *exc: object) -> None:
        with self._lock:
            self._held, self._loop = False, None
        self._wake_next()

    def _leave(self, parker: Any) -> bool:
        with self._lock:
            if parker in self._waiters:
                self._waiters.remove(parker)
                return True
        return False

    def _wake_next(self) -> None:
        with self._lock:
            following = self._waiters.popleft() if self._waiters else None
        if following is not None:
            following.wake()
