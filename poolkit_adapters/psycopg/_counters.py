"""psycopg_pool's counters, and a timer for outages of the server."""

from __future__ import annotations

import os
import time
from _thread import TIMEOUT_MAX, get_ident
from collections import Counter
from collections.abc import Callable

from poolkit import PoolStats

__all__ = ("Counters", "Outage")


class Counters:
    """Counters under psycopg_pool's names. Thread-safe: each thread writes only its own, so no lock is needed."""

    def __init__(self) -> None:
        self._by_thread: dict[int, Counter[str]] = {}
        self._reported: Counter[str] = Counter()  # totals that pop_stats() has reported already

    def add(self, name: str, amount: float = 1) -> None:
        """Add ``amount`` to a counter."""
        own = self._by_thread.get(get_ident())
        if own is None:
            own = self._by_thread[get_ident()] = Counter()
        own[name] += amount  # type: ignore[assignment]  # seconds are floats until they are reported

    def leave_out(self, begun: float) -> None:
        """Leave a lease out that no user had, from ``begun`` (monotonic) until now."""
        self.add("requests_num", -1)
        self.add("usage_ms", (begun - time.monotonic()) * 1000)

    def total(self, name: str) -> float:
        """Return the total of a counter."""
        return float(sum(own[name] for own in list(self._by_thread.values())))

    def report(
        self, stats: PoolStats, *, own_connects: float = 0, own_connects_ms: float = 0, pop: bool = False
    ) -> dict[str, int]:
        """Return the numbers of ``get_stats()``, with times in whole milliseconds.

        The callers' own connects do not count as waits. With ``pop`` the counters start at zero again.
        """
        totals: Counter[str] = Counter()
        for own in list(self._by_thread.values()):
            totals.update(own.copy())
        totals["requests_num"] += stats.acquires + totals["requests_errors"] + stats.waiting
        totals["requests_queued"] += max(0, stats.waits - int(own_connects))
        if own_connects_ms:
            waited = totals["requests_wait_ms"] - own_connects_ms
            totals["requests_wait_ms"] = max(0, waited)  # type: ignore[assignment]
        totals["usage_ms"] += stats.busy_seconds * 1000  # type: ignore[assignment]
        totals["connections_lost"] += stats.failed_checks
        since = {name: max(0, int(totals[name]) - int(self._reported[name])) for name in totals if name[0] != "_"}
        if pop:
            self._reported = totals
        return since | {
            "pool_min": stats.min_size,
            "pool_max": stats.max_size or 0,
            "pool_size": stats.size,
            "pool_available": stats.idle,
            "requests_waiting": stats.waiting,
        }


class Outage:
    """Calls ``report`` each time no connect has succeeded for ``limit()`` seconds.

    ``later(delay, call)`` starts a timer and returns a function that cancels it.
    """

    def __init__(self, limit: Callable[[], float], report: Callable[[], None]) -> None:
        self._limit = limit
        self._report = report
        self._later: Callable[[float, Callable[[], None]], Callable[[], object]] | None = None
        self._since: float | None = None
        self._cancel: Callable[[], object] | None = None
        self._at = 0.0  # when the timer is due
        self._pid = os.getpid()

    def failed(self, later: Callable[[float, Callable[[], None]], Callable[[], object]]) -> None:
        """Record a failed connect."""
        if self._since is None or self._pid != os.getpid():  # a timer of the parent does not run in a forked child
            self._pid = os.getpid()
            self._since = time.monotonic()
            self._later = later
            self._set(self._limit())
        elif time.monotonic() > self._at + 1.0:  # the timer ended with its event loop
            self._due()

    def end(self) -> None:
        """End the outage, because a connect succeeded or the pool is closed."""
        self._since = None
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()

    def _due(self) -> None:
        if time.monotonic() < self._at - 0.05:
            return  # an event loop that had stopped ran this timer late; another timer has replaced it
        if self._since is not None and self._later is not None:
            # report again after the same time, because the callback may have changed something
            self._set(max(self._limit(), 0.01))
            self._report()

    def _set(self, seconds: float) -> None:
        assert self._later is not None
        self._at = time.monotonic() + seconds
        if seconds >= TIMEOUT_MAX:
            return  # for ever: no timer takes it
        try:
            self._cancel = self._later(seconds, self._due)
        except (RuntimeError, MemoryError):  # no thread can be started; the next failed connect tries again
            self._since = None
