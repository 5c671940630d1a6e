"""Callers that give up, on a core in virtual time: how many are served in time, and how evenly."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from poolkit._core import commands, maintenance
from poolkit._core.effects import Do
from poolkit._core.machine import Core
from poolkit._core.queue import Request
from poolkit._core.slots import Slot
from poolkit._core.state import Features
from poolkit._deadline import gave_up
from poolkit.config import PoolConfig
from poolkit.events import Event

__all__ = ("Load", "Patience")

Patience = Callable[[random.Random, int], float]
"""Seconds after which a call of the client gives up."""


@dataclass
class Load:
    """So many clients, each with one call after the other, on a pool of ``size`` connections.

    A lease takes ``hold`` seconds (a fifth more or less). A caller that gives up during it takes the connection
    along: ``reconnect`` seconds pass until there is another one. ``told``: whether the pool hears of it, as from a
    cancelled task; else the caller goes on and is late. ``blocks``: its call is in a ``poolkit.deadline`` block, so the
    pool hears of it when the block ends late. ``rate``: calls per second by so many clients (an open loop);
    None: each client calls again ``pause`` seconds after its last call. ``limit``: seconds after which a caller stops
    waiting, whatever its patience is, of which the pool then does not hear (None: it waits for as long as it has).
    """

    clients: int
    patience: Patience
    seed: int = 1
    size: int = 6
    hold: float = 0.02
    reconnect: float = 0.005
    pause: float = 0.0
    rate: float | None = None
    told: bool = True
    blocks: bool = False
    limit: float | None = None
    key_of: Callable[[int], Any] = lambda client: None
    class_of: Callable[[int], str | None] = lambda client: None
    settings: dict[str, Any] = field(default_factory=dict)
    keyed: bool = False

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.now = 0.0
        config = PoolConfig(max_size=self.size, acquire_timeout=None, idle_timeout=None, **self.settings)
        self.core = Core(config, Features(keyed=self.keyed), name="load", barging=0.0, random=self.random.random)
        self.core.started = True
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = 0
        self._ticking = float("inf")
        self.in_time: Counter[int] = Counter()
        self.calls: Counter[int] = Counter()
        self.order: list[int] = []  # the numbers of calls, in the order in which they were served
        self.longest: Counter[int] = Counter()  # longest wait of a served call, in microseconds
        self.since = 0.0
        self.on_event: Callable[[Event], object] = lambda event: None
        self.on_refusal: Callable[[Request, BaseException], object] = lambda request, error: None
        if self.rate is not None:
            self._arrive()
            return
        for client in range(self.clients):
            self._later(self.random.random() * self.hold, lambda client=client: self._call(client))  # type: ignore[misc]

    # -- the shell's part -------------------------------------------------------------------------------------------

    def _later(self, delay: float, step: Callable[[], None]) -> None:
        self._number += 1
        heapq.heappush(self._events, (self.now + delay, self._number, step))

    def _decide(self, step: Callable[..., Any], *args: Any) -> None:
        step(*args)
        self.core.settle(self.now)
        for do, slot, request in self.core.take_effects():
            if do is Do.CONNECT:
                self._later(self.reconnect, lambda slot=slot: self._decide(  # type: ignore[misc]
                    self.core.connected, slot, object(), 1, self.now))  # fmt: skip
            elif do in (Do.CLOSE, Do.ABORT):
                self._later(0.0, lambda slot=slot: self._decide(self.core.closed, slot))  # type: ignore[misc]
            elif do is Do.WAKE:
                assert request is not None
                assert isinstance(request.parker, _Call)
                request.parker.begin()
            elif do is Do.TELL:
                while self.core.events:
                    self.on_event(self.core.events.popleft())
        if self.core.due < self._ticking:
            self._ticking = self.core.due
            self._later(max(0.0, self._ticking - self.now), self._tick)

    def _tick(self) -> None:
        self._ticking = float("inf")
        self._decide(maintenance.tick, self.core, self.now)

    # -- callers ----------------------------------------------------------------------------------------------------

    def _arrive(self) -> None:
        assert self.rate is not None
        self._later(self.random.expovariate(self.rate), self._arrive)
        self._call(self.random.randrange(self.clients))

    def _call(self, client: int) -> None:
        self.calls[client] += 1
        call = _Call(self, client)
        self._decide(self.core.acquire, call.request, self.now)
        call.begin()

    def ended(self, client: int, *, well: bool) -> None:
        """A call came to its end."""
        self.in_time[client] += well
        if self.rate is None:
            self._later(self.pause, lambda: self._call(client))

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, seconds: float) -> Load:
        """Let so much time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            self.now, _, step = heapq.heappop(self._events)
            step()
        self.now = end
        return self

    def measure(self, seconds: float, after: float = 2.0) -> Load:
        """Count only what happens after the first seconds."""
        self.run(after)
        self.in_time.clear()
        self.calls.clear()
        self.longest.clear()
        self.since = self.now
        return self.run(seconds)

    def reconfigure(self, **settings: Any) -> None:
        """Change settings of the pool."""
        config = self.core.config.replace(**settings)
        self._decide(commands.reconfigure, self.core, config, 0.0, "", self.now)

    @property
    def goodput(self) -> float:
        """Calls in time, as a share of what the connections could serve."""
        return self.in_time.total() * self.hold / self.size / (self.now - self.since)

    @property
    def share(self) -> float:
        """Calls in time, as a share of all."""
        return self.in_time.total() / self.calls.total()

    @property
    def jain(self) -> float:
        """Jain's index of the clients' calls in time: 1 where all have the same."""
        found = [self.in_time[client] for client in range(self.clients)]
        return sum(found) ** 2 / (len(found) * sum(one * one for one in found)) if any(found) else 0.0


class _Call:
    """One call: it waits, is served, and comes to its end or gives up."""

    def __init__(self, load: Load, client: int) -> None:
        self.load, self.client = load, client
        core = load.core
        self.request = Request(core.add_endpoint(load.key_of(client)), load.now)
        self.request.parker = self
        if core.classes is not None:
            self.request.caller_class = core.classes.of(load.class_of(client))
        self.number = load.calls.total()
        self.over = False
        self.deadline = load.now + load.patience(load.random, client)
        self.slot: Slot | None = None
        ends = self.deadline if load.limit is None else load.now + load.limit
        if ends < float("inf"):
            load._later(ends - load.now, self.give_up)

    def wake(self) -> None:
        """As a parker's: the simulation looks at the outcome itself."""

    def begin(self) -> None:
        """It has its connection, or was refused."""
        load = self.load
        if self.over:
            return
        slot = self.request.outcome
        if self.slot is not None:
            return  # it was served while it asked
        if not isinstance(slot, Slot):
            if slot is not None:
                load.on_refusal(self.request, slot)
                self._end(False)
            return
        self.slot = slot
        slot.since = load.now
        load.core.leased[id(self)] = slot
        load.order.append(self.number)
        waited = int(1e6 * (load.now - self.request.since))
        load.longest[self.client] = max(load.longest[self.client], waited)
        load._later(load.hold * load.random.uniform(0.8, 1.2), self.finish)

    def finish(self) -> None:
        """The lease comes to its end."""
        if self.over:
            return
        assert self.slot is not None
        load = self.load
        del load.core.leased[id(self)]
        load._decide(load.core.give_back, self.slot, load.now)
        late = load.now > self.deadline
        if late and load.blocks:
            load._decide(gave_up, load.core, self.request.endpoint.key, self.request.caller_class, load.now)
        self._end(not late)

    def give_up(self) -> None:
        """Its time is up."""
        load = self.load
        if self.over:
            return
        if self.slot is None:
            load._decide(load.core.abandon, self.request, load.now)
            self._end(False)
        elif load.told:
            del load.core.leased[id(self)]
            load._decide(commands.lease_given_up, load.core, self.slot, load.now)
            load._decide(load.core.discard, self.slot, load.now)
            self._end(False)

    def _end(self, well: bool) -> None:
        self.over = True
        self.load.ended(self.client, well=well)
