"""The endpoints of a pool with their idle connections, and the look at them after each step: who is served, what is
opened, what is closed.

A pool has one endpoint, or many (``keyed``). ``settle()`` of either is the only place that has connections handed to
requests and opened, keeps ``min_size``, has surplus ones closed and gives way to other pools. It looks at the state
alone, so a call too many does nothing, and it is O(1) where nothing is to be done.

An endpoint's ``idle`` runs from the longest unused (left) to the last used (right). Other threads take connections from
it and put them back without the lock, if the pool has one endpoint. Its ``spare`` has connections in use that may serve
further leases (multiplexed ones), in the same order. The collections of idle connections know the order alone; whether
a connection may be used is decided elsewhere.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from ..errors import PoolBusy
from ..events import CloseReason, EventKind
from ..policies.retire import NEVER
from .effects import Do, Effect
from .opener import Dialer
from .slots import IDLE, Slot
from .state import Phase

if TYPE_CHECKING:
    from .capacity import Size
    from .context import Context
    from .opener import Opener
    from .queue import Queue, Request
    from .service import Service
    from .slots import Slots

__all__ = (
    "Endpoint",
    "Endpoints",
    "IdleSlots",
    "KeyedEndpoints",
    "KeyedIdleSlots",
    "OneEndpoint",
    "OneIdleSlots",
    "WaitingEndpoints",
    "refuse_some",
)


class Endpoint:
    """The state of one endpoint. ``idle`` runs from the longest unused (left) to the last used (right)."""

    __slots__ = (
        "connecting",
        "dialer",
        "evictions",
        "generation",
        "idle",
        "key",
        "last_failed_check",
        "live",
        "queue",
        "requests",
        "size",
        "spare",
        "streams",
    )

    def __init__(self, key: Hashable, dialer: Dialer, queue: Queue) -> None:
        self.key = key
        self.dialer = dialer
        self.idle: deque[Slot] = deque()
        self.spare: dict[Slot, None] = {}  # in use, with a stream to spare; in the same order
        self.queue = queue
        self.requests = queue.requests  # of all classes, in order of arrival; stays the same when the queue is replaced
        self.generation = 0
        self.size = 0  # slots in any state
        self.live = 0  # slots that are of use or can come back to be
        self.connecting = 0
        self.last_failed_check = float("-inf")
        self.streams = 1  # leases that one further connection is expected to serve
        self.evictions = 0  # idle connections of other endpoints that are being closed for this one

    def oldest(self) -> Request:
        """The request that has waited longest; the queue must not be empty."""
        return next(iter(self.requests))

    def connects_for(self, request: Request) -> bool:
        """Whether one of the connects that are going on is for this request: those for older ones apart."""
        theirs = self.connecting - self.dialer.spoken_for(self.connecting)
        return request in islice(self.requests, theirs * self.streams)

    @property
    def unused(self) -> bool:
        """Whether the endpoint can be forgotten."""
        return not self.size and not self.requests


class IdleSlots(Protocol):
    """Either of the two."""

    def __len__(self) -> int:
        """Idle connections of all endpoints."""

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        """Remove the next idle connection."""

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        """Remove all idle connections of an endpoint; they must go somewhere. Those that stay keep their order."""

    def take_out(self, slot: Slot) -> bool:
        """Remove this one; False if another thread has just taken it."""

    def put(self, slot: Slot) -> None:
        """Add a connection as the last used one."""

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        """Put back what :meth:`take_all` took, in the same order, before what has come since."""

    def remove(self, slot: Slot) -> None:
        """The connection is closed or used, and in no list any more."""

    def full(self, size: Size) -> bool:
        """Whether no further connection may be idle."""

    def make_room(self, size: Size) -> Slot | None:
        """Remove the connection that has to be closed before a further one may be idle."""

    def too_many(self, size: Size) -> bool:
        """Whether more are idle than may be."""

    def take_surplus(self) -> Slot | None:
        """Remove the longest unused one; None if there is none, or another thread was faster."""


class OneIdleSlots:
    """The idle connections of a pool with one endpoint."""

    __slots__ = ("only", "order")

    def __init__(self) -> None:
        self.only: Endpoint
        self.order: OrderedDict[Slot, None] = OrderedDict()  # empty: the endpoint's own order says it all

    def __len__(self) -> int:
        return len(self.only.idle)

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        try:
            return endpoint.idle.pop() if lifo else endpoint.idle.popleft()
        except IndexError:
            return None

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        taken: list[Slot] = []
        while True:
            try:
                taken.append(endpoint.idle.popleft())
            except IndexError:
                return taken

    def take_out(self, slot: Slot) -> bool:
        try:
            slot.endpoint.idle.remove(slot)
        except ValueError:
            return False
        return True

    def put(self, slot: Slot) -> None:
        slot.endpoint.idle.append(slot)

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        endpoint.idle.extendleft(reversed(slots))

    def remove(self, slot: Slot) -> None:
        pass

    def full(self, size: Size) -> bool:
        return size.max_idle < size.limit and len(self.only.idle) >= size.max_idle

    def make_room(self, size: Size) -> Slot | None:
        return None

    def too_many(self, size: Size) -> bool:
        # whoever waits is told of them, and takes them
        return len(self.only.idle) > size.max_idle and not self.only.requests

    def take_surplus(self) -> Slot | None:
        return self.take(self.only, lifo=False)


class KeyedIdleSlots:
    """Those of a pool with many endpoints, which also has an order over all of them."""

    __slots__ = ("order",)

    def __init__(self) -> None:
        self.order: OrderedDict[Slot, None] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self.order)

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        if not endpoint.idle:
            return None
        slot = endpoint.idle.pop() if lifo else endpoint.idle.popleft()
        self.order.pop(slot, None)
        return slot

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        taken = list(endpoint.idle.copy())  # they stay in the order over all endpoints
        endpoint.idle.clear()
        return taken

    def take_out(self, slot: Slot) -> bool:
        slot.endpoint.idle.remove(slot)
        self.order.pop(slot, None)
        return True

    def put(self, slot: Slot) -> None:
        self.order[slot] = None
        slot.endpoint.idle.append(slot)

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        for slot in reversed(slots):
            if slot not in self.order:
                self.order[slot] = None
                self.order.move_to_end(slot, last=False)
            endpoint.idle.appendleft(slot)

    def remove(self, slot: Slot) -> None:
        self.order.pop(slot, None)

    def full(self, size: Size) -> bool:
        return size.max_idle <= 0

    def make_room(self, size: Size) -> Slot | None:
        if len(self.order) < size.max_idle:
            return None
        oldest = next(iter(self.order))
        self.take_out(oldest)
        return oldest

    def too_many(self, size: Size) -> bool:
        return len(self.order) > size.max_idle

    def reorder(self, endpoints: Iterable[Endpoint]) -> None:
        """After an interruption: the order follows from the endpoints and what is left of it."""
        for slot in [slot for slot in self.order if slot.state is not IDLE]:
            del self.order[slot]
        for endpoint in endpoints:
            for slot in endpoint.idle.copy():
                if slot.state is IDLE and slot not in self.order:
                    self.order[slot] = None

    def take_surplus(self) -> Slot | None:
        slot = next((slot for slot in self.order if not slot.endpoint.requests), None)
        if slot is not None:
            self.take_out(slot)
        return slot


class WaitingEndpoints:
    """A set of endpoints that knows which of them has the oldest request. Each operation is O(log n), amortised.

    The place of an endpoint is the ticket of its oldest request at the time of :meth:`add`; whoever changes the queue
    of an endpoint adds or discards it again.
    """

    __slots__ = ("_heap", "places")

    def __init__(self) -> None:
        # holds places that are out of date, too: skipped when they come first. The id breaks ties: two objects of one
        # endpoint, the second made after the first was removed, may hold the ticket of the same request.
        self._heap: list[tuple[int, int, Endpoint]] = []
        self.places: dict[Endpoint, int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def add(self, endpoint: Endpoint) -> None:
        """Add an endpoint that has requests, or move it to its new place."""
        ticket = endpoint.oldest().ticket
        if self.places.get(endpoint) != ticket:
            self.places[endpoint] = ticket
            heappush(self._heap, (ticket, id(endpoint), endpoint))
            if len(self._heap) > 2 * len(self.places) + 16:
                self._heap = [(place, id(one), one) for one, place in self.places.items()]
                heapify(self._heap)

    def discard(self, endpoint: Endpoint) -> None:
        """Remove an endpoint, if it is there."""
        self.places.pop(endpoint, None)

    def first(self) -> Endpoint | None:
        """The endpoint with the oldest request."""
        heap, places = self._heap, self.places
        while heap:
            ticket, _, endpoint = heap[0]
            if places.get(endpoint) == ticket:
                return endpoint
            heappop(heap)
        return None


def refuse_some(core: Context, service: Service, now: float) -> None:
    """Refuse newcomers beyond ``max_waiting``; those for whom a connection is on its way do not count. Decided when
    whoever can be served has been served. In an overloaded queue the oldest caller is refused in the newcomer's place,
    and whoever has waited for longer than ``overload.max_wait``.
    """
    while (late := core.overload.late(now)) is not None:
        core.overload.gave_up(late, now)
        service.serve(late, PoolBusy(f"{core.name}: overloaded: refused after {now - late.since:.3f} s in the queue"))
    most = core.most_waiting
    while core.newcomers:
        request = core.newcomers.popleft()
        endpoint = request.endpoint
        if most is None or not request.queued:
            continue
        if len(endpoint.queue.beside(request)) - endpoint.connecting * endpoint.streams <= most:
            continue
        surplus = endpoint.queue.line_of(request.caller_class).order.surplus(request)
        core.touched[endpoint] = None
        text = f"{most} callers wait already (max_waiting={most})"
        if surplus is request:
            endpoint.queue.discard(request)
            request.outcome = PoolBusy(f"{core.name}: {text}")
        else:
            core.overload.gave_up(surplus, now)
            service.serve(surplus, PoolBusy(f"{core.name}: overloaded: {text}, and the newest are served first"))


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
