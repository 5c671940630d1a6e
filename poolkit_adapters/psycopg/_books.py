"""What psycopg_pool counts, and how long the server has been away."""

from __future__ import annotations

import os
import time
from _thread import get_ident
from collections import Counter
from collections.abc import Callable

from poolkit import PoolStats

__all__ = ("Ledger", "Outage")


class Ledger:
    """Counters under psycopg_pool's names. Each thread writes only its own page, so nobody needs a lock."""

    def __init__(self) -> None:
        self._pages: dict[int, Counter[str]] = {}
        self._before: Counter[str] = Counter()  # what pop_stats() has reported already

    def add(self, name: str, amount: float = 1) -> None:
        """Count something."""
        page = self._pages.get(get_ident())
        if page is None:
            page = self._pages[get_ident()] = Counter()
        page[name] += amount  # type: ignore[assignment]  # seconds are floats until they are reported

    def total(self, name: str) -> float:
        """What was counted under this name."""
        return float(sum(page[name] for page in list(self._pages.values())))

    def report(
        self, stats: PoolStats, *, own_connects: float = 0, own_connects_ms: float = 0, pop: bool = False
    ) -> dict[str, int]:
        """The numbers of ``get_stats()``, without the callers' own connects; with ``pop`` the counters begin at
        zero again. Times in whole ms.
        """
        totals: Counter[str] = Counter()
        for page in list(self._pages.values()):
            totals.update(page.copy())
        totals["requests_num"] += stats.acquires + totals["requests_errors"] + stats.waiting
        totals["requests_queued"] += max(0, stats.waits - int(own_connects))
        if own_connects_ms:
            waited = totals["requests_wait_ms"] - own_connects_ms
            totals["requests_wait_ms"] = max(0, waited)  # type: ignore[assignment]
        totals["usage_ms"] += stats.busy_seconds * 1000  # type: ignore[assignment]
        totals["connections_lost"] += stats.failed_checks
        since = {name: max(0, int(totals[name]) - int(self._before[name])) for name in totals if name[0] != "_"}
        if pop:
            self._before = totals
        return since | {
            "pool_min": stats.min_size,
            "pool_max": stats.max_size or 0,
            "pool_size": stats.size,
            "pool_available": stats.idle,
            "requests_waiting": stats.waiting,
        }


class Outage:
    """For how long no connect has worked; calls ``report`` each ``limit`` seconds of that.

    ``later(delay, call)`` starts a timer and returns what cancels it.
    """

    def __init__(self, limit: float, report: Callable[[], None]) -> None:
        self.limit = limit
        self._report = report
        self._later: Callable[[float, Callable[[], None]], Callable[[], object]] | None = None
        self._since: float | None = None
        self._cancel: Callable[[], object] | None = None
        self._at = 0.0  # when the timer is due
        self._pid = os.getpid()

    def failed(self, later: Callable[[float, Callable[[], None]], Callable[[], object]]) -> None:
        """A connect failed."""
        if self._since is None or self._pid != os.getpid():  # a timer of the parent does not run in a fork
            self._pid = os.getpid()
            self._since = time.monotonic()
            self._later = later
            self._set(self.limit)
        elif time.monotonic() > self._at + 1.0:  # the timer has gone with its event loop
            self._due()

    def over(self) -> None:
        """A connect worked, or nobody is interested any more."""
        self._since = None
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _due(self) -> None:
        if time.monotonic() < self._at - 0.05:
            return  # a timer of an event loop that had stopped, and another one has taken its place
        if self._since is not None and self._later is not None:
            # again after the same time: whoever hears it may have done something about it
            self._set(max(self.limit, 0.01))
            self._report()

    def _set(self, seconds: float) -> None:
        assert self._later is not None
        self._at = time.monotonic() + seconds
        try:
            self._cancel = self._later(seconds, self._due)
        except (RuntimeError, MemoryError):  # no thread can be started: the next connect that fails tries again
            self._since = None
