"""The endpoints of a pool, and the look at them after each step: who is served, what is opened, what is closed.

A pool has one endpoint, or many (``keyed``). ``settle()`` of either is the only place that has connections handed to
waiters and opened, keeps ``min_size``, has surplus ones closed and gives way to other pools. It looks at the state
alone, so a call too many does nothing, and it is O(1) where nothing is to be done.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from ..events import CloseReason, EventKind
from ..policies.retire import NEVER
from .dialer import Dialer
from .effects import Do, Effect
from .entry import Entry
from .idle import KeyedIdleSlots, OneIdleSlots
from .lane import Lane
from .state import Phase
from .waiting import WaitingLanes

if TYPE_CHECKING:
    from .context import Context
    from .opener import Opener
    from .service import Service
    from .slots import Slots

__all__ = ("Endpoints", "KeyedEndpoints", "OneEndpoint")

_OPEN = Phase.OPEN


def _made(core: Context, key: Hashable, *, in_use: bool) -> Lane:
    dialer = Dialer(core.name, core.config, by_caller=core.features.connect_in_caller, in_use=in_use)
    return Lane(key, dialer, core.use.new_queue())


def _finish(core: Context, slots: Slots, service: Service, endpoints: Endpoints, now: float) -> None:
    """When everybody has what can be had: refuse newcomers of which too many wait; under a budget claim no more than is
    needed, give way to other pools, and have them told what is new.
    """
    service.refuse_newcomers()

    def evict(entry: Entry) -> bool:
        if not endpoints.idle.take_out(entry):
            return False
        slots.start_close(entry, CloseReason.SURPLUS, now, announced=True)
        return True

    if core.capacity.yield_to_others(endpoints.longest_unused, evict):
        core.effects.append(Effect(Do.SHARE))


def _clear(core: Context, service: Service, lane: Lane, now: float) -> None:
    lane.generation += 1
    lane.connecting = 0  # those on their way are of the old generation and closed when they arrive
    lane.dialer.forget_failures()
    core.tell(EventKind.POOL_CLEARED, now)
    service.close_idle(lane, CloseReason.STALE, now)
    core.touched[lane] = None


class OneEndpoint:
    """A pool with one endpoint."""

    __slots__ = ("_core", "_opener", "_service", "_slots", "idle", "lanes", "only", "queued", "touched")

    def __init__(self, core: Context) -> None:
        self._core = core
        self.idle = OneIdleSlots()
        self.lanes: dict[Hashable, Lane] = {}
        self.only = self.idle.only = self.lanes[None] = _made(core, None, in_use=False)
        self.touched: dict[Lane, None] = {}  # nobody looks at it: the only endpoint is always looked at
        self.queued: dict[Lane, None] = {}  # empty
        self._slots: Slots
        self._service: Service
        self._opener: Opener

    def bind(self, slots: Slots, service: Service, opener: Opener) -> None:
        """The parts that do what a look finds to do."""
        self._slots, self._service, self._opener = slots, service, opener

    def add(self, key: Hashable) -> Lane:
        """The only endpoint."""
        return self.only

    def unused(self, lane: Lane) -> None:
        """It stays."""

    def clear(self, lane: Lane, now: float) -> None:
        """Retire the generation of the endpoint."""
        for entry in self._slots.entries.values():  # so that the ways without the lock need not compare generations
            entry.expires = -NEVER
        _clear(self._core, self._service, lane, now)

    def touch_all(self) -> None:
        """Something has changed that concerns every endpoint."""

    def reorder(self) -> None:
        """After an interruption."""

    def settle(self, now: float) -> None:
        """Do what the state of the pool asks for."""
        core = self._core
        lane = self.only
        returned = core.returned
        while returned:
            self._service.place(returned.popitem()[0], now)
        if lane.idle or lane.spare:
            size = core.size
            if len(lane.idle) > size.max_idle or lane.size > size.limit or core.phase is not _OPEN:
                self._service.close_surplus(now)
            if lane.waiters:
                self._service.serve_waiting(lane, now)
        # where callers queue, nearly every step finds that nothing may be opened
        if (lane.size < core.size.limit or not lane.live) and (
            lane.waiters or lane.live + lane.connecting < core.size.minimum
        ):
            self._open_connections(now)
        if core.finishes:
            _finish(core, self._slots, self._service, self, now)

    def _open_connections(self, now: float) -> None:
        """For those who wait, and then for ``min_size``."""
        lane, opener = self.only, self._opener
        while lane.waiters and opener.wanted(lane, now):
            behind = lane.connecting * lane.streams
            if not opener.permit(lane, behind, max(1, lane.queue.needed(lane.connecting, lane.streams))):
                break
            opener.open_for(lane, now)
            if lane.idle and lane.waiters:  # who was told of an idle one connects by itself: it is for the next
                self._service.serve_waiting(lane, now)
        if lane.live + lane.connecting < self._core.size.minimum:
            opener.keep_minimum(lane, now)

    def longest_unused(self) -> Entry | None:
        """The idle connection that gives way if another pool of the budget needs its permit."""
        lane = self.only
        if lane.live <= self._core.config.min_size or lane.queue.wanting:
            return None
        return next(iter(lane.idle.copy()), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock: a guess, from copies alone."""
        spare = self.longest_unused()
        return None if spare is None else spare.last_used


class KeyedEndpoints:
    """A pool with many endpoints: those of which something has changed are looked at, and then permits go to the one
    with the oldest waiter, wherever one is free. What 10,000 waiting endpoints cost is what ten do.
    """

    __slots__ = (
        "_core", "_many", "_opener", "_service", "_slots", "idle", "in_need", "lanes", "only", "queued", "touched",
        "uncovered",
    )  # fmt: skip

    def __init__(self, core: Context) -> None:
        self._core = core
        self._many = 256
        self.idle = KeyedIdleSlots()
        self.lanes: dict[Hashable, Lane] = {}
        self.touched: dict[Lane, None] = {}  # something of them has changed
        self.queued: dict[Lane, None] = {}  # they have waiters
        # those that would open a connection if they had a permit; and those of them that need idle ones closed
        self.in_need, self.uncovered = WaitingLanes(), WaitingLanes()
        self.only = self.add(None)
        self._slots: Slots
        self._service: Service
        self._opener: Opener

    def bind(self, slots: Slots, service: Service, opener: Opener) -> None:
        """The parts that do what a look finds to do."""
        self._slots, self._service, self._opener = slots, service, opener

    def add(self, key: Hashable) -> Lane:
        """The endpoint of ``key``, made if need be."""
        lane = self.lanes.get(key)
        if lane is None:
            if len(self.lanes) >= self._many:
                self._drop_unused()
            lane = self.lanes[key] = _made(self._core, key, in_use=self._core.features.connect_in_caller)
        return lane

    def _drop_unused(self) -> None:
        """Kept without a connection only for the failures that their breakers have counted; not for ever."""
        for lane in [one for one in self.lanes.values() if one.unused and one is not self.only]:
            del self.lanes[lane.key]
        self._many = max(256, 2 * len(self.lanes))

    def unused(self, lane: Lane) -> None:
        """The endpoint has no connection and no caller."""
        if not lane.dialer.remembers and self.lanes.get(lane.key) is lane:
            del self.lanes[lane.key]

    def clear(self, lane: Lane, now: float) -> None:
        """Retire the generation of one endpoint."""
        _clear(self._core, self._service, lane, now)

    def touch_all(self) -> None:
        """Something has changed that concerns every endpoint."""
        self.touched |= dict.fromkeys(self.lanes.values())

    def reorder(self) -> None:
        """After an interruption: the order of idle connections and of endpoints in need."""
        self.idle.reorder(self.lanes.values())
        self.in_need, self.uncovered = WaitingLanes(), WaitingLanes()
        self.queued.clear()
        self.touch_all()

    def settle(self, now: float) -> None:
        """Do what the state of the pool asks for."""
        core = self._core
        returned = core.returned
        while returned:
            entry = returned.popitem()[0]
            lane = entry.lane
            if entry.generation != lane.generation:
                entry.retire()
            if lane in self.queued:
                self.touched[lane] = None
            self._service.place(entry, now)
        if self.idle.too_many(core.size) or len(self._slots.entries) > core.size.limit:
            self._service.close_surplus(now)
        while self.touched:
            self._look_at_touched(now)
        self._open_in_turn(now)
        core.use.note()
        if core.finishes:
            _finish(core, self._slots, self._service, self, now)

    def _open_in_turn(self, now: float) -> None:
        core, opener = self._core, self._opener
        if core.use.widened():
            self.touched.update(self.queued)
        while True:
            while self.touched:
                self._look_at_touched(now)
            lane = self.in_need.first()
            if lane is None:
                return
            if opener.permit(lane, 0, len(self.in_need)):
                opener.open_for(lane, now)
                self.touched[lane] = None
                continue
            full = len(self._slots.entries) >= core.size.limit
            lane = self.uncovered.first() if full and self.idle.order else None
            if lane is None or not self._evict_for(lane, now):
                return
            self.touched[lane] = None

    def _look_at_touched(self, now: float) -> None:
        """Serve the waiters of touched endpoints from their connections, and note which of them want a permit."""
        queued, lanes = self.queued, list(self.touched)
        self.touched.clear()
        if len(lanes) > 1:  # what one class may have goes to its oldest waiter
            lanes.sort(key=lambda one: one.oldest().ticket if one.waiters else 0)
        for lane in lanes:
            if not lane.waiters and lane not in queued:
                continue
            if lane.waiters and (lane.idle or lane.spare):
                self._service.serve_waiting(lane, now)
            wanted = self._opener.wanted(lane, now) if lane.waiters else 0
            if lane.waiters:
                queued[lane] = None
            else:
                queued.pop(lane, None)
                wanted = 0
            (self.in_need.add if wanted else self.in_need.discard)(lane)
            (self.uncovered.add if wanted > lane.evictions else self.uncovered.discard)(lane)

    def _evict_for(self, lane: Lane, now: float) -> bool:
        """Close the longest unused idle connection of another endpoint; False if there is none."""
        victim = next((entry for entry in self.idle.order if entry.lane is not lane), None)
        if victim is None:
            return False
        lane.evictions += 1
        victim.evicted_for = lane
        self.idle.take_out(victim)
        self._slots.start_close(victim, CloseReason.SURPLUS, now)
        return True

    def longest_unused(self) -> Entry | None:
        """The idle connection that gives way if another pool of the budget needs its permit."""
        return next((entry for entry in self.idle.order if not entry.lane.queue.wanting), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock: a guess, from copies alone."""
        lanes = [lane for lane in list(self.lanes.values()) if lane.idle and not lane.queue.wanting]
        firsts = [next(iter(lane.idle.copy()), None) for lane in lanes]
        return min([first.last_used for first in firsts if first is not None], default=None)


Endpoints = OneEndpoint | KeyedEndpoints
"""Both have the same methods and attributes."""
