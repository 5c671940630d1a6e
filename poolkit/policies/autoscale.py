"""Compute how many connections an elastic pool may have now, from its load, waits, recent peaks and overloads.

1. *Load.* The connections in use are measured over a twelfth of ``down_delay``, 5 s at most. From 16 on the share
   ``target`` of the connections should be in use. Fewer connections need more headroom in proportion, because the
   variation grows with the square root of the load (square-root staffing: A. K. Erlang, 1924; S. Halfin and W. Whitt,
   "Heavy-Traffic Limits for Queues with Many Exponential Servers", Operations Research 29(3), 1981).
2. *Waits.* The limit rises if callers wait for which no connect is in progress, and the first of them has waited longer
   than ``max_wait`` during ``up_delay``. It rises to serve all of them, at most to its double.
3. *Down.* The limit is what the busiest moment of the last ``down_delay`` needed. This sliding maximum keeps one quiet
   moment from closing connections. The limit is at least the share ``prewarm`` of the peak in the last ``peak_memory``.
4. *Overload.* A server that refuses connections sets a cap: ``overload_factor`` of the open ones, and one more after
   each ``overload_recovery``. Additive increase with multiplicative decrease shares a resource fairly among clients
   that do not know of each other (D.-M. Chiu and R. Jain, "Analysis of the Increase and Decrease Algorithms for
   Congestion Avoidance in Computer Networks", Computer Networks and ISDN Systems 17, 1989).
5. *Outage.* Measurements are ignored while no connection can be opened: the load before the outage returns after it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from ..config import AutoscaleConfig
from .retire import NEVER

__all__ = ("Autoscaler", "Need", "Peak", "View", "needed")

_PARTS = 12  # measures of the load in a down_delay
_SPAN = 0.1, 5.0  # seconds of one measure: shorter ones are mostly chance, longer ones come too late
_LARGE = 16.0  # connections in use from which on the room for more is a fixed share
_RESTING = 6.0  # looks in a down_delay at an unused pool: enough to see that it is used again
_SHORTEST, _SOON = 0.001, 0.01  # seconds between two looks: when something is due, and when something may become due


class View(NamedTuple):
    """A snapshot of a pool for the policy. ``busy``: a running total in connection-seconds; None if unknown
    (multiplexed connections), then ``in_use`` replaces it. ``waiting``: callers for which no connect is in progress,
    the first of them for ``longest`` seconds. ``size``: connections that exist, without those being closed.
    """

    in_use: int
    size: int
    busy: float | None = None
    waiting: int = 0
    longest: float = 0.0
    queued: bool = False  # a caller is in the queue, whether or not a connect for it is in progress
    down: bool = False  # there is no connection, and connects fail


class Need(NamedTuple):
    """The number of connections that were needed at a time, and the reason."""

    at: float
    size: int
    why: str


def needed(load: float, target: float) -> int:
    """Connections for ``load`` in use on average."""
    room = max(load, math.sqrt(_LARGE * load))
    return math.ceil(load + (1 / target - 1) * room - 1e-9)


class Peak:
    """The maximum over a sliding span of time. Keeps only needs that can still become the maximum: at most one of each
    size.
    """

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: deque[Need] = deque()

    def add(self, need: Need) -> None:
        """Add a need; times never decrease."""
        while self._found and self._found[-1].size <= need.size:
            self._found.pop()
        self._found.append(need)

    def most(self, now: float, span: float) -> Need | None:
        """The largest need of the last ``span`` seconds; None if there is none."""
        while self._found and self._found[0].at < now - span:
            self._found.popleft()
        return self._found[0] if self._found else None


class Autoscaler:
    """Computes the size from snapshots of the pool (:meth:`look`) and refusals of the server (:meth:`refused`).

    ``limit``: connections that may exist; ``floor``: connections that are kept open while unused. They differ only when
    nothing is needed: one connection may be opened, none is kept. ``reason`` explains the limit.
    """

    __slots__ = (
        "_busy", "_cap_at", "_due", "_needs", "_peaks", "_pressed", "_refused_at", "_since", "cap", "config", "floor",
        "high", "limit", "low", "reason",
    )  # fmt: skip

    def __init__(self, config: AutoscaleConfig, low: int, high: int) -> None:
        self._needs = Peak()
        self._peaks = Peak()
        self._busy: float | None = None  # total of the last measure, taken at _since
        self._since: float | None = None
        self._pressed: float | None = None  # since when callers have waited for too long
        self._due = 0.0  # when to look next if nobody waits
        self.cap: int | None = None  # the cap that an overload set
        self._cap_at = 0.0  # when the cap was set or rose last
        self._refused_at = -NEVER
        self.limit = self.floor = 0
        self.reason = ""
        self.configure(config, low, high)

    def configure(self, config: AutoscaleConfig, low: int, high: int) -> None:
        """Apply settings: ``low`` and ``high`` are the bounds of the size."""
        self.config, self.low, self.high = config, low, high
        self._due = 0.0
        self._set(min(max(self.floor, low), high), self.reason if self.floor > low else "min_size")

    def expect(self, now: float, size: int) -> None:
        """Announce that ``size`` connections will be needed; counts as if they had been needed now."""
        need = Need(now, min(size, self.high), f"{size} were requested")
        self._needs.add(need)
        self._peaks.add(need)
        self._settle(now)

    def refused(self, now: float, begun: float, live: int) -> bool:
        """Record that the server refused a connect that began at ``begun``, while ``live`` connections were open.

        Returns False if the limit does not change: of connects that began together only the first refusal counts.
        """
        if begun < self._refused_at:
            return False
        self._refused_at = self._cap_at = now
        self._due = 0.0
        self.cap = max(1, self.low, math.floor(live * self.config.overload_factor))
        return True

    def idle_until(self, now: float) -> float | None:
        """When to evaluate again if no caller waits now; None: at once."""
        return self._due if now < self._due and self._pressed is None else None

    def look(self, now: float, view: View) -> bool:
        """Evaluate a snapshot. Returns whether ``limit`` or ``floor`` has changed."""
        before = self.limit, self.floor
        self._recover(now)
        if view.down:
            self._note(now, self.floor, "as before the outage")
            self._since = None
        else:
            self._measure(now, view)
        self._press(now, view)
        self._settle(now)
        return before != (self.limit, self.floor)

    def next_look(self, now: float, view: View, least: float = 0.0) -> float:
        """When to evaluate again; NEVER for an unused pool. ``least``: the shortest useful interval in seconds."""
        self._due = 0.0
        span = max(least, self._span())
        if self._since is None and not view.queued and not (view.down and self.floor > self.low):  # the pool is at rest
            if self.cap is not None:
                return now + max(least, self.config.overload_recovery)
            return NEVER if self.floor == self.low else now + max(span, self.config.down_delay / _RESTING)
        again = self._due = max((now if self._since is None else self._since) + span, now + _SHORTEST)
        if view.queued and self.limit < self.high and self.cap is None:
            if self._pressed is not None:
                due = self._pressed + self.config.up_delay
            elif view.waiting and view.size >= self.limit:
                due = now + self.config.max_wait - view.longest
            else:  # connects within the limit are in progress or wait to start: the limit may be reached soon
                due = now + max(self.config.max_wait, self.config.up_delay, _SOON)
            again = min(again, max(due, now + max(least, _SHORTEST)))
        return again

    def _span(self) -> float:
        shortest, longest = _SPAN
        return max(self.config.up_delay, min(longest, max(shortest, self.config.down_delay / _PARTS)))

    def _recover(self, now: float) -> None:
        if self.cap is not None:
            steps = int((now - self._cap_at) / self.config.overload_recovery)
            self.cap += steps
            self._cap_at += steps * self.config.overload_recovery
            if self.cap >= self.high:
                self.cap = None

    def _measure(self, now: float, view: View) -> None:
        """Measure the load since the last measure."""
        used = bool(view.in_use or view.queued)
        if self._since is None:
            if not used and view.busy == self._busy:
                return  # the pool is still at rest
        elif now - self._since < self._span():
            return
        else:
            load = float(view.in_use)
            if view.busy is not None and self._busy is not None:
                load = max(0.0, view.busy - self._busy) / (now - self._since)
            self._note(now, needed(load, self.config.target), f"{load:.1f} in use on average")
            if not load and not used:
                self._since = None
                return
        self._since, self._busy = now, view.busy

    def _press(self, now: float, view: View) -> None:
        """Record the need of callers that have waited too long because no more connections may be opened."""
        config = self.config
        if not view.waiting or view.longest < config.max_wait or view.size < self.limit:
            self._pressed = None
            return
        if self._pressed is None:
            self._pressed = now
        if now - self._pressed >= config.up_delay:
            self._pressed = now
            size = min(2 * self.limit, max(self.limit + 1, view.in_use + view.waiting))
            many = f"{view.waiting} callers waited, the first" if view.waiting > 1 else "a caller waited"
            self._note(now, size, f"{many} {view.longest:.2f} s")

    def _note(self, now: float, size: int, why: str) -> None:
        if size > self.low:
            need = Need(now, min(size, self.high), why)
            self._needs.add(need)
            self._peaks.add(need)

    def _settle(self, now: float) -> None:
        """Compute the limit and the floor from the needs."""
        config = self.config
        need = self._needs.most(now, config.down_delay)
        peak = self._peaks.most(now, config.peak_memory)
        size, why = self.low, "min_size"
        if need is not None and need.size > size:
            size, why = need.size, need.why
        if peak is not None and math.ceil(config.prewarm * peak.size) > size:
            size, why = math.ceil(config.prewarm * peak.size), f"{peak.size} were needed at the last peak"
        size = min(size, self.high)
        if self.cap is not None and size > max(self.cap, self.low):
            size, why = max(self.cap, self.low), "the server refused more; another one is tried from time to time"
        self._set(size, why)

    def _set(self, size: int, why: str) -> None:
        self.floor, self.limit, self.reason = size, max(1, size), why
