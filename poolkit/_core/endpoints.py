"""The endpoints of a pool with their idle connections, and ``settle()``, which acts on them after each step.

A pool has one endpoint, or many (``keyed``). ``settle()`` is the only place that serves requests, opens connections,
keeps ``min_size``, closes surplus connections and closes some for other pools. It depends on the state alone, so a
redundant call does nothing. It takes O(1) if there is nothing to do.

An endpoint's ``idle`` is ordered from the longest unused (left) to the last used connection (right). In a pool with one
endpoint, other threads take connections from it and put them back without the lock. ``spare`` has multiplexed
connections in use that may serve further leases, in the same order. The collections of idle connections only keep the
order; other modules decide whether a connection may be used.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable
from heapq import heapify, heappop, heappush
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from ..errors import PoolBusy
from ..events import CloseReason, EventKind
from ..policies.members import members
from ..policies.retire import NEVER, evictable_at
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
    """The state of one endpoint. ``idle`` is ordered from the longest unused (left) to the last used (right)."""

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
        self.live = 0  # slots whose connection can be used, now or after it is returned
        self.connecting = 0
        self.last_failed_check = float("-inf")
        self.streams = 1  # leases that one further connection is expected to serve
        self.evictions = 0  # idle connections of other endpoints that are being closed for this one

    def oldest(self) -> Request:
        """Return the request that has waited longest; the queue must not be empty."""
        return next(iter(self.requests))

    def connects_for(self, request: Request) -> bool:
        """Whether a connect in progress is for this request and not for an older one."""
        theirs = self.connecting - self.dialer.spoken_for(self.connecting)
        return request in islice(self.requests, theirs * self.streams)

    @property
    def unused(self) -> bool:
        """Whether the endpoint can be forgotten."""
        return not self.size and not self.requests


class IdleSlots(Protocol):
    """The idle connections of a pool: :class:`OneIdleSlots` or :class:`KeyedIdleSlots`."""

    def __len__(self) -> int:
        """Return the number of idle connections of all endpoints."""

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        """Remove and return the next idle connection."""

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        """Remove and return all idle connections of an endpoint. The caller closes, checks or puts back each of them.
        Those that are put back keep their order.
        """

    def take_out(self, slot: Slot) -> bool:
        """Remove this connection; False if another thread has just taken it."""

    def put(self, slot: Slot) -> None:
        """Add a connection as the last used one."""

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        """Put connections back that :meth:`take_all` removed, in the same order, before those returned since."""

    def remove(self, slot: Slot) -> None:
        """Remove a connection that is closed or in use, and that no list of an endpoint holds."""

    def full(self, size: Size) -> bool:
        """Whether no further connection may be idle."""

    def make_room(self, size: Size) -> Slot | None:
        """Remove and return the connection that has to be closed before a further one may be idle."""

    def too_many(self, size: Size) -> bool:
        """Whether more connections are idle than ``max_idle`` allows."""

    def take_surplus(self) -> Slot | None:
        """Remove and return the longest unused connection; None if there is none, or another thread has taken it."""


class OneIdleSlots:
    """The idle connections of a pool with one endpoint."""

    __slots__ = ("only", "order")

    def __init__(self) -> None:
        self.only: Endpoint
        self.order: OrderedDict[Slot, None] = OrderedDict()  # always empty: the endpoint's own order is enough

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
        # if callers wait, they have been woken for these connections and take them
        return len(self.only.idle) > size.max_idle and not self.only.requests

    def take_surplus(self) -> Slot | None:
        return self.take(self.only, lifo=False)


class KeyedIdleSlots:
    """The idle connections of a pool with many endpoints, with an order over all endpoints besides that of each."""

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
        taken = members(endpoint.idle)  # they stay in the order over all endpoints
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
        """After an interruption: restore the order from the endpoints and what is left of it.

        A slot that no endpoint lists was being put back or closed. The order must not keep it alive: it is reclaimed.
        """
        listed = [slot for endpoint in endpoints for slot in members(endpoint.idle) if slot.state is IDLE]
        for slot in self.order.keys() - set(listed):
            del self.order[slot]
        for slot in listed:
            self.order.setdefault(slot)

    def take_surplus(self) -> Slot | None:
        slot = next((slot for slot in self.order if not slot.endpoint.requests), None)
        if slot is not None:
            self.take_out(slot)
        return slot


class WaitingEndpoints:
    """A set of endpoints, ordered by their oldest requests. Each operation takes O(log n), amortised.

    The place of an endpoint is the ticket of its oldest request at the time of :meth:`add`. After a change to the queue
    of an endpoint, it must be added or discarded again.
    """

    __slots__ = ("_heap", "places")

    def __init__(self) -> None:
        # also holds outdated places, which first() skips. The id breaks ties: an endpoint may be removed and created
        # again, and then two objects hold the ticket of the same request.
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
        """Return the endpoint with the oldest request."""
        heap, places = self._heap, self.places
        while heap:
            ticket, _, endpoint = heap[0]
            if places.get(endpoint) == ticket:
                return endpoint
            heappop(heap)
        return None


def refuse_some(core: Context, service: Service, now: float) -> None:
    """Refuse newcomers beyond ``max_waiting``, after all callers have been served that can be.

    Callers for which a connection is being opened do not count. In an overloaded queue, the oldest caller is refused
    instead of the newcomer, and so is each caller that has waited longer than ``overload.max_wait``.
    """
    while (late := core.overload.late(now)) is not None:
        core.overload.gave_up(late, now)
        core.touched[late.endpoint] = None  # it may need no connection any more
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
    """The last part of ``settle()``: refuse newcomers if too many wait. Under a budget, reduce the claim to what is
    needed, close idle connections for other pools, and have those notified.
    """
    refuse_some(core, service, now)

    def evict(slot: Slot) -> bool:
        if not endpoints.idle.take_out(slot):
            return False
        slots.start_close(slot, CloseReason.SURPLUS, now, announced=True)
        return True

    if core.capacity.yield_to_others(now, endpoints.longest_unused, evict, core.want):
        core.effects.append(Effect(Do.SHARE))


def _clear(core: Context, service: Service, endpoint: Endpoint, now: float) -> None:
    endpoint.generation += 1
    endpoint.connecting = 0  # connects in progress belong to the old generation; they are closed when they succeed
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
        self.only = self.idle.only = self.all[None] = _made(core, None, in_use=core.features.lazy)
        self.touched: dict[Endpoint, None] = {}  # not read: settle() always looks at the only endpoint
        self.queued: dict[Endpoint, None] = {}  # always empty
        self._slots: Slots
        self._service: Service
        self._opener: Opener

    def bind(self, slots: Slots, service: Service, opener: Opener) -> None:
        """Set the parts that ``settle()`` calls; they need this object to be created first."""
        self._slots, self._service, self._opener = slots, service, opener

    def add(self, key: Hashable) -> Endpoint:
        """Return the only endpoint."""
        return self.only

    def unused(self, endpoint: Endpoint) -> None:
        """Do nothing: the only endpoint is never removed."""

    def clear(self, endpoint: Endpoint, now: float) -> None:
        """Retire the generation of the endpoint."""
        for slot in self._slots.living():  # the paths without the lock look at expires, not at the generation
            slot.expires = -NEVER
        _clear(self._core, self._service, endpoint, now)

    def touch_all(self) -> None:
        """Do nothing: ``settle()`` always looks at the only endpoint."""

    def reorder(self) -> None:
        """Do nothing: there is no order to restore after an interruption."""

    def settle(self, now: float) -> None:
        """Act on the state of the pool."""
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
        # a cheap test first: in a pool with a queue, nearly every step finds that it may open nothing
        if (endpoint.size < core.size.limit or not endpoint.live) and (
            endpoint.requests or endpoint.live + endpoint.connecting < core.size.minimum
        ):
            self._open_connections(now)
        if core.finishes:
            _finish(core, self._slots, self._service, self, now)

    def _open_connections(self, now: float) -> None:
        """Open connections for waiting requests, then for ``min_size``."""
        endpoint, opener = self.only, self._opener
        while endpoint.requests and opener.wanted(endpoint, now):
            behind = endpoint.connecting * endpoint.streams
            if not opener.permit(
                endpoint, behind, max(1, endpoint.queue.needed(endpoint.connecting, endpoint.streams)), now
            ):
                break
            opener.open_for(endpoint, now)
            if endpoint.idle and endpoint.requests:  # the caller woken for an idle one now connects: serve the next
                self._service.serve_waiting(endpoint, now)
        if endpoint.live + endpoint.connecting < self._core.size.minimum:
            opener.keep_minimum(endpoint, now)

    def longest_unused(self) -> Slot | None:
        """Return the idle connection to close if another pool of the budget needs its permit."""
        endpoint = self.only
        if endpoint.live <= self._core.config.min_size or endpoint.queue.wanting:
            return None
        return next(iter(members(endpoint.idle)), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock, so the answer may be out of date; it
        reads copies alone.
        """
        spare = self.longest_unused()
        return None if spare is None else spare.last_used


class KeyedEndpoints:
    """A pool with many endpoints.

    ``settle()`` looks only at endpoints that have changed. Free permits go to the endpoint with the oldest request. So
    a step costs no more with 10,000 waiting endpoints than with ten.
    """

    __slots__ = (
        "_core",
        "_many",
        "_opener",
        "_service",
        "_slots",
        "all",
        "below_share",
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
        self.touched: dict[Endpoint, None] = {}  # endpoints that have changed
        self.queued: dict[Endpoint, None] = {}  # endpoints with requests
        # endpoints that would open a connection if they had a permit; those of them that need an idle one closed first:
        # below an even share, and the others
        self.in_need, self.below_share, self.uncovered = WaitingEndpoints(), WaitingEndpoints(), WaitingEndpoints()
        self.only = self.add(None)
        self._slots: Slots
        self._service: Service
        self._opener: Opener

    def bind(self, slots: Slots, service: Service, opener: Opener) -> None:
        """Set the parts that ``settle()`` calls; they need this object to be created first."""
        self._slots, self._service, self._opener = slots, service, opener

    def add(self, key: Hashable) -> Endpoint:
        """Return the endpoint of ``key``; create it if it does not exist."""
        endpoint = self.all.get(key)
        if endpoint is None:
            if len(self.all) >= self._many:
                self._drop_unused()
            endpoint = self.all[key] = _made(self._core, key, in_use=self._core.config.connect_in_caller)
        return endpoint

    def _drop_unused(self) -> None:
        """Forget unused endpoints. They were kept for the failures that their breakers have counted, and would
        otherwise accumulate.
        """
        for endpoint in [one for one in self.all.values() if one.unused and one is not self.only]:
            self._forget(endpoint)
        self._many = max(256, 2 * len(self.all))

    def unused(self, endpoint: Endpoint) -> None:
        """The endpoint has no connection and no request: forget it, unless its breaker has counted failures."""
        if not endpoint.dialer.remembers and self.all.get(endpoint.key) is endpoint:
            self._forget(endpoint)

    def _forget(self, endpoint: Endpoint) -> None:
        self._core.counts.waits += endpoint.queue.waits
        share = self._share()
        del self.all[endpoint.key]
        if self._share() > share:  # some of them may be below it now
            self.touched |= dict.fromkeys(self.uncovered.places)

    def clear(self, endpoint: Endpoint, now: float) -> None:
        """Retire the generation of one endpoint."""
        _clear(self._core, self._service, endpoint, now)

    def touch_all(self) -> None:
        """Have ``settle()`` look at every endpoint."""
        self.touched |= dict.fromkeys(self.all.values())

    def reorder(self) -> None:
        """After an interruption: restore the order of idle connections and of waiting endpoints."""
        self.idle.reorder(self.all.values())
        self.in_need, self.below_share, self.uncovered = WaitingEndpoints(), WaitingEndpoints(), WaitingEndpoints()
        self.queued.clear()
        self.touch_all()

    def settle(self, now: float) -> None:
        """Act on the state of the pool."""
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
            if opener.permit(endpoint, 0, len(self.in_need), now):
                opener.open_for(endpoint, now)
                self.touched[endpoint] = None
                continue
            full = len(self._slots.all) >= core.size.limit
            if not (full and self.idle.order and self._evict(now)):
                return

    def _look_at_touched(self, now: float) -> None:
        """Serve the requests of touched endpoints from their connections, and record which endpoints need a permit."""
        queued, endpoints = self.queued, list(self.touched)
        self.touched.clear()
        if len(endpoints) > 1:  # a connection that a class may have goes to the oldest request of the class
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
            uncovered = wanted > endpoint.evictions
            poor = uncovered and endpoint.size + endpoint.evictions < self._share()
            (self.below_share.add if poor else self.below_share.discard)(endpoint)
            (self.uncovered.add if uncovered and not poor else self.uncovered.discard)(endpoint)

    def _share(self) -> int:
        """Return an even share of the connections for one endpoint."""
        spurious = self.only.unused and self.all.get(None) is self.only  # the endpoint of callers that give no key
        return max(1, self._core.size.limit // max(1, len(self.all) - spurious))

    def _evict(self, now: float) -> bool:
        """Close the longest unused idle connection for an endpoint that needs one. Returns whether one was closed.

        An endpoint that has its share waits until :func:`~poolkit.policies.retire.evictable_at`.
        """
        endpoint = self.below_share.first() or self.uncovered.first()
        victim = next((slot for slot in self.idle.order if slot.endpoint is not endpoint), None)
        if endpoint is None or victim is None:
            return False
        if endpoint in self.uncovered.places:
            at = evictable_at(unused_since=victim.last_used, waiting_since=endpoint.oldest().since)
            if at > now:
                self._core.want(at)
                return False
        self.touched[endpoint] = None
        endpoint.evictions += 1
        victim.evicted_for = endpoint
        self.idle.take_out(victim)
        self._slots.start_close(victim, CloseReason.SURPLUS, now)
        return True

    def longest_unused(self) -> Slot | None:
        """Return the idle connection to close if another pool of the budget needs its permit."""
        return next((slot for slot in self.idle.order if not slot.endpoint.queue.wanting), None)

    def unused_since(self) -> float | None:
        """Since when that connection has been unused. Called without the lock, so the answer may be out of date; it
        reads copies alone.
        """
        endpoints = [endpoint for endpoint in list(self.all.values()) if endpoint.idle and not endpoint.queue.wanting]
        firsts = [next(iter(members(endpoint.idle)), None) for endpoint in endpoints]
        return min([first.last_used for first in firsts if first is not None], default=None)


Endpoints = OneEndpoint | KeyedEndpoints
"""Both classes have the same methods and attributes."""
