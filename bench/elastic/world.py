"""A pool in virtual time: the real decision core, a trace of callers, and a server that is a few numbers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import Any

from bench.elastic.traces import Trace
from poolkit import PoolConfig, Verdict
from poolkit._core import invariants, maintenance
from poolkit._core.effects import Do
from poolkit._core.machine import Core
from poolkit._core.queue import Request
from poolkit._core.slots import Slot
from poolkit._core.state import Features

CONNECT, CLOSE = 0.03, 0.002  # seconds, within one network: TCP, TLS, authentication and a new process at the server


@dataclass
class Run:
    """The result. Times in seconds; ``waits``: (when a caller came, how long it waited) of those that were served;
    ``points``: (time, connections held, in use, limit).
    """

    waits: list[tuple[float, float]] = field(default_factory=list)
    failed: int = 0
    connects: int = 0
    refused: int = 0
    held: float = 0.0  # on average
    most: int = 0
    points: list[tuple[float, int, int, int]] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """The wait in seconds that this share of the served callers did not exceed."""
        return quantile([wait for _, wait in self.waits], share)


def quantile(values: list[float], share: float) -> float:
    """What this share of the values does not exceed; 0 if there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


class _Caller:
    """Sleeps until it is served."""

    def __init__(self, hold: float) -> None:
        self.hold = hold

    def wake(self) -> None:
        """Nothing to do: the world checks the outcome by itself."""


class World:
    """One pool, one trace. ``World(trace, config).run()``; afterwards the invariants hold and no caller waits."""

    def __init__(self, trace: Trace, config: PoolConfig, *, every: float | None = None, seed: int = 1) -> None:
        self.trace = trace
        self.random = random.Random(seed)
        self.core = Core(config, Features(), name="traced", barging=0.0, random=self.random.random)
        self.core.recheck_interval = float("inf")
        self.now = 0.0
        self.result = Run()
        self.sessions = 0  # at the server
        self.generation = 0  # of the server: sessions of an older one are dead
        self._born: dict[Slot, int] = {}
        self._queue: list[tuple[float, int, str, Any]] = []
        self._numbers = count()
        self._tick_at = float("inf")
        self._area = self._since = 0.0
        self._every = every or trace.seconds / 240
        self._point_at = 0.0

    def _at(self, when: float, what: str, subject: Any = None) -> None:
        heappush(self._queue, (when, next(self._numbers), what, subject))

    def run(self) -> Run:
        """Play the trace to its end, and until the last lease is over."""
        arrivals = iter(self.trace.callers)
        self._next(arrivals)
        for begin, end in self.trace.outages:
            self._at(begin, "crash")
            self._at(end, "crash")
        while self._queue:
            when, _, what, subject = heappop(self._queue)
            if when > self.trace.seconds and what in ("tick", "arrive"):
                continue  # housekeeping goes on for ever, and this is over
            self._pass(when)
            if what == "arrive":
                self._arrive(subject)
                self._next(arrivals)
            else:
                getattr(self, f"_{what}")(subject)
            self._perform()
        invariants.check(self.core)
        assert not self.core.endpoint.requests or self.trace.outages, "callers are left"
        self.result.held = self._area / max(self._since, 1e-9)
        return self.result

    def _next(self, arrivals: Any) -> None:
        following = next(arrivals, None)
        if following is not None:
            self._at(following[0], "arrive", following[1])

    def _pass(self, when: float) -> None:
        """Let time pass and sum up the connections held meanwhile."""
        until = min(when, self.trace.seconds)
        size = len(self.core.all_slots)
        while self._point_at <= until:
            self.result.points.append((self._point_at, size, len(self.core.leased), self.core.limit))
            self._point_at += self._every
        self._area += size * max(0.0, until - self._since)
        self._since = max(self._since, until)
        self.result.most = max(self.result.most, size)
        self.now = when

    # -- what happens ------------------------------------------------------------------------------------------

    def _arrive(self, hold: float) -> None:
        request = Request(self.core.endpoint, self.now)
        request.parker = _Caller(hold)
        self.core.acquire(request, self.now)
        self.core.settle(self.now)
        if request.queued:
            timeout = self.core.config.acquire_timeout
            if timeout is not None:
                self._at(self.now + timeout, "give_up", request)
        else:
            self._proceed(request)

    def _give_up(self, request: Request) -> None:
        if request.queued:
            self.core.abandon(request, self.now, timed_out=True)
            self.result.failed += 1

    def _proceed(self, request: Request) -> None:
        slot = request.outcome
        if not isinstance(slot, Slot):
            self.result.failed += 1
            return
        slot.since = self.now
        self.core.leased[slot.id] = slot
        if self._born[slot] != self.generation:  # the server no longer knows this session: its first statement fails
            self.result.failed += 1
            self._at(self.now, "release", slot)
            return
        self.result.waits.append((request.since, self.now - request.since))
        assert isinstance(request.parker, _Caller)
        self._at(self.now + request.parker.hold, "release", slot)

    def _release(self, slot: Slot) -> None:
        core, now = self.core, self.now
        del core.leased[slot.id]
        if self._born[slot] != self.generation:
            core.discard(slot, now, Verdict.SUSPECT)
        else:
            core.give_back(slot, now)

    def _down(self) -> bool:
        return any(begin <= self.now < end for begin, end in self.trace.outages)

    def _crash(self, _: None) -> None:
        """Stop or start the server; all sessions end."""
        self.generation += 1
        self.sessions = 0

    def _connected(self, slot: Slot) -> None:
        core, now = self.core, self.now
        if self._down():
            core.connect_failed(slot, ConnectionRefusedError("connection refused"), Verdict.SUSPECT, now)
        elif self.sessions >= self.trace.sessions(now):
            self.result.refused += 1
            core.connect_failed(slot, ConnectionRefusedError("too many clients"), Verdict.OVERLOADED, now)
        else:
            self.sessions += 1
            self.result.connects += 1
            self._born[slot] = self.generation
            core.connected(slot, object(), 1, now)

    def _closed(self, slot: Slot) -> None:
        if self._born.pop(slot, None) == self.generation:
            self.sessions -= 1
        self.core.closed(slot)

    def _tick(self, _: None) -> None:
        self._tick_at = float("inf")
        if self.now >= self.core.due:
            maintenance.tick(self.core, self.now)

    def _perform(self) -> None:
        core = self.core
        core.settle(self.now)
        while core.effects:
            for do, slot, request in core.take_effects():
                if do is Do.CONNECT:
                    self._at(self.now + CONNECT * (0.8 + 0.4 * self.random.random()), "connected", slot)
                elif do in (Do.CLOSE, Do.ABORT):
                    self._at(self.now + CLOSE, "closed", slot)
                elif do is Do.WAKE and request is not None and request.outcome is not None:
                    self._proceed(request)
        if core.due < self._tick_at:
            self._tick_at = core.due
            self._at(max(self.now, core.due), "tick")
