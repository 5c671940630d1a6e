"""The endpoints of a pool, and the look at them after each step: who is served, what is opened, what is closed.

A pool has one endpoint, or many (``keyed``). ``settle()`` of either is the only place that has connections handed to
requests and opened, keeps ``min_size``, has surplus ones closed and gives way to other pools. It looks at the state
alone, so a call too many does nothing, and it is O(1) where nothing is to be done.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from ..events import CloseReason, EventKind
from ..policies.retire import NEVER
from .dialer import Dialer
from .effects import Do, Effect
from .endpoint import Endpoint
from .idle import KeyedIdleSlots, OneIdleSlots
from .refusals import refuse_some
from .slot import Slot
from .state import Phase
from .waiting import WaitingEndpoints

if TYPE_CHECKING:
    from .context import Context
    from .opener import Opener
    from .service import Service
    from .slots import Slots

__all__ = ("Endpoints", "KeyedEndpoints", "OneEndpoint")

_OPEN = Phase.OPEN


def _made(core: Context, key: Hashable, *, in_use: bool) -> Endpoint:
    dialer = Dialer(core.name, core.config, by_caller=core.config.connect_in_caller, in_use=in_use)
    return Endpoint(key, dialer, core.use.new_queue())


def _finish(core: Context, slots: Slots, service: Service, endpoints: Endpoints, now: float) -> None:
    """When everybody has what can be had: refuse newcomers of which too many wait; under a budget claim no more than is
    needed, give way to other pools, and have them told what is new.
    """
    refuse_some(core, service, now)

    def evict(slot: Slot) -> bool:
        if not endpoints.idle.take_out(slot):
            return False
        slots.start_close(slot, CloseReason.SURPLUS, now, announced=True)
        return True

    if core.capacity.yield_to_others(endpoints.longest_unused, evict):
        core.effects.append(Effect(Do.SHARE))


def _clear(core: Context, service: Service, endpoint: Endpoint, now: float) -> None:
    endpoint.generation += 1
    endpoint.connecting = 0  # those on their way are of the old generation and closed when they arrive
    endpoint.dialer.forget_failures()
    core.tell(EventKind.POOL_CLEARED, now)
    service.close_idle(endpoint, CloseReason.STALE, now)
    core.touched[endpoint] = None


class OneEndpoint:
    """A pool with one endpoint."""

    __slots__ = ("_core", "_opener", "_service", "_slots", "all", "idle", "only", "queued", "touched")

    def __init__(self, core: Context) -> None:
        self._core = core
        self.idle = OneIdleSlots()
        self.all: dict[Hashable, Endpoint] = {}
        self.only = self.idle.only = self.all[None] = _made(core, None, in_use=False)
        self.touched: dict[Endpoint, None] = {}  # nobody looks at it: the only endpoint is always looked at
        self.queued: dict[Endpoint, None] = {}  # empty
        self._slots: Slots
        self._service: Service
        self._opener: Opener

    def bind(self, slots: Slots, service: Service, opener: Opener) -> None:
        """The parts that do what a look finds to do."""
        self._slots, self._service, self._opener = slots, service, opener

    def add(self, key: Hashable) -> Endpoint:
        """The only endpoint."""
        return self.only

    def unused(self, endpoint: Endpoint) -> None:
        """It stays."""

    def clear(self, endpoint: Endpoint, now: float) -> None:
        """Retire the generation of the endpoint."""
        for slot in self._slots.living():  # so that the ways without the lock need not compare generations
            slot.expires = -NEVER
        _clear(self._core, self._service, endpoint, now)

    def touch_all(self) -> None:
        """Something has changed that concerns every endpoint."""

    def reorder(self) -> None:
        """After an interruption."""

    def settle(self, now: float) -> None:
        """Do what the state of the pool asks for."""
        core = self._core
        endpoint = self.only
        returned = core.returned
        while returned:
            self._service.place(returned.popitem()[0], now)
        if endpoint.idle or endpoint.spare:
            size = core.size
            if len(endpoint.idle) > size.max_idle or endpoint.size > size.limit or core.phase is not _OPEN:
                self._service.close_surplus(now)
            if endpoint.requests:
                self._service.serve_waiting(endpoint, now)
        # where callers queue, nearly every step finds that nothing may be opened
        if (endpoint.size < core.size.limit or not endpoint.live) and (
            endpoint.requests or endpoint.live + endpoint.connecting < core.size.minimum
        ):
            self._open_connections(now)
        if core.finishes:
            _finish(core, self._slots, self._service, self, now)

    def _open_connections(self, now: float) -> None:
        """For those who wait, and then for ``min_size``."""
        endpoint, opener = self.only, self._opener
        while endpoint.requests and opener.wanted(endpoint, now):
            behind = endpoint.connecting * endpoint.streams
            if not opener.permit(
                endpoint, behind, max(1, endpoint.queue.needed(endpoint.connecting, endpoint.streams))
            ):
                break
            opener.open_for(endpoint, now)
            if endpoint.idle and endpoint.requests:  # the caller woken for it connects by itself: it is for the next
                self._service.serve_waiting(endpoint, now)
        if endpoint.live + endpoint.connecting < self._core.size.minimum:
            opener.keep_minimum(endpoint, now)

    def longest_unused(self) -> Slot | None:
        """The idle connection that gives way if another pool of the budget needs its permit."""
        endpoint = self.only
        if endpoint.live <= self._core.config.min_size or endpoint.queue.wanting:
            return None
        return next(iter(endpoint.idle.copy()), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock: a guess, from copies alone."""
        spare = self.longest_unused()
        return None if spare is None else spare.last_used


class KeyedEndpoints:
    """A pool with many endpoints: those of which something has changed are looked at, and then permits go to the one
    with the oldest request, wherever one is free. What 10,000 waiting endpoints cost is what ten do.
    """

    __slots__ = (
        "_core",
        "_many",
        "_opener",
        "_service",
        "_slots",
        "all",
        "idle",
        "in_need",
        "only",
        "queued",
        "touched",
        "uncovered",
    )  # fmt: skip

    def __init__(self, core: Context) -> None:
        self._core = core
        self._many = 256
        self.idle = KeyedIdleSlots()
        self.all: dict[Hashable, Endpoint] = {}
        self.touched: dict[Endpoint, None] = {}  # something of them has changed
        self.queued: dict[Endpoint, None] = {}  # they have requests
        # those that would open a connection if they had a permit; and those of them that need idle ones closed
        self.in_need, self.uncovered = WaitingEndpoints(), WaitingEndpoints()
        self.only = self.add(None)
        self._slots: Slots
        self._service: Service
        self._opener: Opener

    def bind(self, slots: Slots, service: Service, opener: Opener) -> None:
        """The parts that do what a look finds to do."""
        self._slots, self._service, self._opener = slots, service, opener

    def add(self, key: Hashable) -> Endpoint:
        """The endpoint of ``key``, made if need be."""
        endpoint = self.all.get(key)
        if endpoint is None:
            if len(self.all) >= self._many:
                self._drop_unused()
            endpoint = self.all[key] = _made(self._core, key, in_use=self._core.config.connect_in_caller)
        return endpoint

    def _drop_unused(self) -> None:
        """Kept without a connection only for the failures that their breakers have counted; not for ever."""
        for endpoint in [one for one in self.all.values() if one.unused and one is not self.only]:
            self._forget(endpoint)
        self._many = max(256, 2 * len(self.all))

    def unused(self, endpoint: Endpoint) -> None:
        """The endpoint has no connection and no caller."""
        if not endpoint.dialer.remembers and self.all.get(endpoint.key) is endpoint:
            self._forget(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        self._core.counts.waits += endpoint.queue.waits
        del self.all[endpoint.key]

    def clear(self, endpoint: Endpoint, now: float) -> None:
        """Retire the generation of one endpoint."""
        _clear(self._core, self._service, endpoint, now)

    def touch_all(self) -> None:
        """Something has changed that concerns every endpoint."""
        self.touched |= dict.fromkeys(self.all.values())

    def reorder(self) -> None:
        """After an interruption: the order of idle connections and of endpoints in need."""
        self.idle.reorder(self.all.values())
        self.in_need, self.uncovered = WaitingEndpoints(), WaitingEndpoints()
        self.queued.clear()
        self.touch_all()

    def settle(self, now: float) -> None:
        """Do what the state of the pool asks for."""
        core = self._core
        returned = core.returned
        while returned:
            slot = returned.popitem()[0]
            endpoint = slot.endpoint
            if slot.generation != endpoint.generation:
                slot.retire()
            if endpoint in self.queued:
                self.touched[endpoint] = None
            self._service.place(slot, now)
        if self.idle.too_many(core.size) or len(self._slots.all) > core.size.limit:
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
            endpoint = self.in_need.first()
            if endpoint is None:
                return
            if opener.permit(endpoint, 0, len(self.in_need)):
                opener.open_for(endpoint, now)
                self.touched[endpoint] = None
                continue
            full = len(self._slots.all) >= core.size.limit
            endpoint = self.uncovered.first() if full and self.idle.order else None
            if endpoint is None or not self._evict_for(endpoint, now):
                return
            self.touched[endpoint] = None

    def _look_at_touched(self, now: float) -> None:
        """Serve the requests of touched endpoints from their connections, and note which of them want a permit."""
        queued, endpoints = self.queued, list(self.touched)
        self.touched.clear()
        if len(endpoints) > 1:  # what one class may have goes to its oldest request
            endpoints.sort(key=lambda one: one.oldest().ticket if one.requests else 0)
        for endpoint in endpoints:
            if not endpoint.requests and endpoint not in queued:
                continue
            if endpoint.requests and (endpoint.idle or endpoint.spare):
                self._service.serve_waiting(endpoint, now)
            wanted = self._opener.wanted(endpoint, now) if endpoint.requests else 0
            if endpoint.requests:
                queued[endpoint] = None
            else:
                queued.pop(endpoint, None)
                wanted = 0
            (self.in_need.add if wanted else self.in_need.discard)(endpoint)
            (self.uncovered.add if wanted > endpoint.evictions else self.uncovered.discard)(endpoint)

    def _evict_for(self, endpoint: Endpoint, now: float) -> bool:
        """Close the longest unused idle connection of another endpoint; False if there is none."""
        victim = next((slot for slot in self.idle.order if slot.endpoint is not endpoint), None)
        if victim is None:
            return False
        endpoint.evictions += 1
        victim.evicted_for = endpoint
        self.idle.take_out(victim)
        self._slots.start_close(victim, CloseReason.SURPLUS, now)
        return True

    def longest_unused(self) -> Slot | None:
        """The idle connection that gives way if another pool of the budget needs its permit."""
        return next((slot for slot in self.idle.order if not slot.endpoint.queue.wanting), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock: a guess, from copies alone."""
        endpoints = [endpoint for endpoint in list(self.all.values()) if endpoint.idle and not endpoint.queue.wanting]
        firsts = [next(iter(endpoint.idle.copy()), None) for endpoint in endpoints]
        return min([first.last_used for first in firsts if first is not None], default=None)


Endpoints = OneEndpoint | KeyedEndpoints
"""Both have the same methods and attributes."""
