"""The churn guard: pools that are made again and again, or forgotten while they are connected, are named in the log.

A log entry and no ``warnings.warn``: the finding is about a program at work, and must break nobody's tests. The logger
is ``poolkit.churn``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, local

from ._log import churn_logger as logger
from .policies.churn import Churn
from .runtimes.fork import Stage, after_fork
from .runtimes.threads import ThreadRuntime

__all__ = ("collected", "made", "together")


class _Reports:
    """What finalizers have to say: they append, somebody else writes."""

    def __init__(self) -> None:
        self.texts: deque[str] = deque()

    def run_inbox(self) -> None:
        """Called by the housekeeping thread."""
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
    _lock = Lock()  # another thread of the parent may have held it


after_fork(Stage.RUNTIME, _restart)


def made(name: str, place: tuple[str, int] | None) -> None:
    """A pool was made at ``place``."""
    _reports.run_inbox()
    if place is None or getattr(_here, "together", False):
        return
    with _lock:
        often = _misuse.made(place, time.monotonic())
    if often:
        logger.warning(
            "%s: 20 pools were made at %s:%d within 10 s: a pool must be shared; make it once and use it everywhere",
            name, *place,
        )  # fmt: skip


@contextmanager
def together() -> Iterator[None]:
    """The pools that this thread makes meanwhile belong to one owner, such as a cluster: many are no mistake."""
    before = getattr(_here, "together", False)
    _here.together = True
    try:
        yield
    finally:
        _here.together = before


def collected(name: str, place: tuple[str, int] | None, connections: int) -> None:
    """A pool is being finalized with open connections. Takes no lock, writes nothing: the next one who can does."""
    where = "an unknown place" if place is None else "{}:{}".format(*place)
    _reports.texts.append(
        f"{name}: this pool was forgotten while it had {connections} open connection"
        f"{'s' if connections > 1 else ''}; it was made at {where}: a pool must be shared, and closed at the end"
    )
    _threads.nudge(_reports)
