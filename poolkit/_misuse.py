"""The churn guard: it logs pools that are created again and again, or garbage-collected with open connections.

The logger is ``poolkit.churn``. There is no ``warnings.warn``, because that could make tests of an application fail.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, local

from ._core.machine import Core
from ._core.state import Phase
from ._log import churn_logger as logger
from .policies.churn import Churn
from .runtimes.fork import Stage, after_fork
from .runtimes.threads import ThreadRuntime

__all__ = ("Origin", "Place", "together")

Place = tuple[str, int] | None
"""A file and a line; None: unknown."""


class _Reports:
    """Messages of finalizers. A finalizer must not log, because logging takes locks; another thread does it."""

    def __init__(self) -> None:
        self.texts: deque[str] = deque()

    def run_inbox(self) -> None:
        """Log the messages. Called by the housekeeping thread."""
        while self.texts:
            try:
                text = self.texts.popleft()
            except IndexError:
                return  # another thread was faster
            logger.warning("%s", text)


_misuse = Churn()
_lock = Lock()
_reports = _Reports()
_threads = ThreadRuntime()
_here = local()


def _restart() -> None:
    global _lock
    _lock = Lock()  # at the fork, another thread of the parent may have held it


after_fork(Stage.RUNTIME, _restart)


def made(name: str, place: Place) -> None:
    """A pool was created at ``place``: log it if many were created there."""
    _reports.run_inbox()
    if place is None or getattr(_here, "together", False):
        return
    with _lock:
        often = _misuse.made(place, time.monotonic())
    if often:
        logger.warning(
            "%s: 20 pools were created at %s:%d within 10 s; create one pool and share it", name, *place,
        )  # fmt: skip


@contextmanager
def together() -> Iterator[None]:
    """In this block, the calling thread may create many pools: they belong to one owner, such as a cluster."""
    before = getattr(_here, "together", False)
    _here.together = True
    try:
        yield
    finally:
        _here.together = before


class Origin:
    """Where a pool was created. Only the pool refers to it, so it is garbage-collected with the pool. Then it reports
    a pool that has open connections.
    """

    __slots__ = ("_connector", "_name", "core", "place")

    def __init__(self, name: str, place: Place, connector: object) -> None:
        self._name = name
        self._connector = connector
        self.place = place
        self.core: Core | None = None

    def note(self) -> None:
        """The pool is complete: log it if many were created at its place."""
        if getattr(self._connector, "counted", True):
            made(self._name, self.place)

    def __del__(self, ending: Callable[[], bool] = sys.is_finalizing) -> None:
        core = self.core
        if core is None or ending():
            return
        connections = len(core.all_slots)  # not living(): the collector has already cleared the references to them
        if connections and core.phase is Phase.OPEN and getattr(self._connector, "must_be_closed", True):
            _collected(self._name, self.place, connections)


def _collected(name: str, place: Place, connections: int) -> None:
    """A pool is garbage-collected with open connections. Called by a finalizer, so it takes no lock: it queues the
    message, and another thread logs it.
    """
    where = "an unknown place" if place is None else "{}:{}".format(*place)
    _reports.texts.append(
        f"{name}: this pool was garbage-collected with {connections} open connection"
        f"{'s' if connections > 1 else ''}; it was created at {where}; keep one pool, share it and close it at the end"
    )
    _threads.nudge(_reports)
