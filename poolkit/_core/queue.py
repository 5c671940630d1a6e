"""The callers that wait for a connection, and the order in which they are served.

The next caller at an endpoint is the oldest one, or with classes the first one of the class whose turn it is.

A queue reads only ``owner`` and ``leases`` of a connection. The rules for classes of callers are in
:mod:`poolkit.policies.classes`. While a queue is overloaded, :mod:`.overload` puts the newest callers first.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from contextvars import Context
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from ..policies.classes import CallerClass
from ..policies.connects import connects_wanted
from ..policies.overload import PATIENT_TURN, Evidence

if TYPE_CHECKING:
    from .capacity import ClassUse
    from .endpoints import Endpoint
    from .slots import Slot

__all__ = (
    "ArrivalOrder",
    "ClassQueue",
    "FifoQueue",
    "NewestFirst",
    "Parker",
    "Queue",
    "Request",
)


class Parker(Protocol):
    """The object in which a caller sleeps. ``wake`` never blocks. It may be called early, late, twice or needlessly."""

    def wake(self) -> None: ...


class Request:
    """A caller, from its call of acquire() until it is served, failed or gone.

    ``outcome`` is set once, under the lock: an error or a :class:`Slot`. The slot's connection is in use; or in doubt,
    and the caller checks it first; or not open yet, and the caller connects (``connect_in_caller``).
    """

    # defaults on the class: a request stores only what differs, and is created in a fifth of the time
    caller_class: CallerClass | None = None
    """None where the pool has no classes."""
    ticket = 0
    """Order of arrival over all endpoints."""
    parker: Parker | None = None
    """Created by the shell when the caller has to sleep."""
    context: Context | None = None
    """A copy of the caller's context variables, taken when it starts to wait; its connect runs in this context."""
    outcome: Slot | BaseException | None = None
    gone = False
    rechecking = False
    """The caller has been woken for an idle connection and looks at it next."""
    checking = 0.0
    """Seconds spent on checks of connections for this caller."""
    connecting = 0.0
    """Seconds spent on connects that the caller made itself."""
    told = False
    """The listeners have been called for the start of the lease."""
    busy = False
    """The caller is checking the connection that is its outcome."""

    def __init__(self, endpoint: Endpoint, since: float, holder: Hashable = 0) -> None:
        self.endpoint = endpoint
        self.since = since
        self.holder = holder

    @property
    def queued(self) -> bool:
        """Whether the request is in the queue of its endpoint. Called under the lock."""
        return self in self.endpoint.requests

    def __repr__(self) -> str:
        return f"<Request {self.ticket} {self.outcome!r}>"


class ArrivalOrder:
    """The order in which the oldest caller is next. Each operation takes O(1)."""

    __slots__ = ("remove", "requests")

    def __init__(self, requests: OrderedDict[Request, None]) -> None:
        self.requests = requests
        self.remove: Callable[[Request], object] = requests.__delitem__  # remove a served caller, in C

    def add(self, request: Request) -> None:
        """Add a caller behind all others."""
        self.requests[request] = None

    def move_first(self, request: Request) -> None:
        """Put a caller whose connection proved unusable before all others."""
        self.requests.move_to_end(request, last=False)

    def first(self, slot: Slot | None = None) -> Request | None:
        """Return the next caller, or None."""
        return next(iter(self.requests), None)

    def waits_less(self, window: float, now: float) -> bool:
        """Whether no caller waits, or the next one has waited for less than ``window`` seconds."""
        return not self.requests or now - next(iter(self.requests)).since < window

    def surplus(self, newcomer: Request) -> Request:
        """Return the caller to refuse when ``max_waiting`` is exceeded: the newcomer."""
        return newcomer


class NewestFirst:
    """The order during an overload: the oldest caller that has time left is next, otherwise the newest caller.

    One turn in ``PATIENT_TURN`` goes to the oldest of all, if it is patient. :mod:`poolkit.policies.overload` has the
    rule and its reasons. The newest caller has just arrived, so its ``since`` serves as the present time. Each
    operation takes O(1), amortised.
    """

    __slots__ = ("_young", "patient", "requests", "served", "young")

    def __init__(self, requests: OrderedDict[Request, None]) -> None:
        self.requests = requests
        self._young: deque[Request] = deque()  # by age; first() removes callers that are gone or too old
        self.served = 0
        self.young = 0.0  # seconds that a caller may have waited to have time left
        self.patient = math.inf  # seconds after which a caller does not count as one that gives up

    def add(self, request: Request) -> None:
        """Add a caller."""
        self.requests[request] = None
        self._young.append(request)

    def move_first(self, request: Request) -> None:
        """Put a caller whose connection proved unusable before all others."""
        self.requests.move_to_end(request, last=False)
        self._young.appendleft(request)

    def first(self, slot: Slot | None = None) -> Request | None:
        """Return the next caller, or None."""
        requests, young = self.requests, self._young
        if not requests:
            return None
        newest, oldest = next(reversed(requests)), next(iter(requests))
        if self.served % PATIENT_TURN == 0 and newest.since - oldest.since > self.patient:
            return oldest
        while young:
            first = young[0]
            if first in requests and newest.since - first.since <= self.young:
                return first
            young.popleft()
        return newest

    def remove(self, request: Request) -> None:
        """Remove a caller that is served."""
        self.served += 1
        del self.requests[request]

    def waits_less(self, window: float, now: float) -> bool:
        """Whether no caller waits. A newcomer has no need to overtake: it may be the next caller itself."""
        return not self.requests

    def surplus(self, newcomer: Request) -> Request:
        """Return the caller to refuse when ``max_waiting`` is exceeded: the oldest, which has the least time left."""
        return next(iter(self.requests))


class FifoQueue:
    """The queue without classes: every caller may have any connection. Each operation takes O(1).

    Its ``order`` decides which caller is next: an :class:`ArrivalOrder`, or during an overload a :class:`NewestFirst`,
    which :mod:`.overload` sets.
    """

    __slots__ = ("add", "evidence", "first", "first_for", "order", "queued_at", "remove", "requests", "waits")

    def __init__(self, requests: OrderedDict[Request, None] | None = None) -> None:
        # a dict in order of arrival finds the oldest caller in O(1), and removes a cancelled one in O(1)
        self.requests: OrderedDict[Request, None] = OrderedDict() if requests is None else requests
        self.waits = 0  # callers that have waited here, counted once each
        self.queued_at = 0.0  # when a caller last entered the empty queue
        self.evidence: Evidence | None = None  # of callers that gave up
        self.follow(ArrivalOrder(self.requests))

    def follow(self, order: Order) -> None:
        """Let this order decide which caller is next."""
        self.order = order
        self.add: Callable[[Request], None] = order.add  # add a caller
        self.remove: Callable[[Request], object] = order.remove  # remove a caller that is served
        self.first: Callable[[], Request | None] = order.first  # the next caller for one more connection
        self.first_for: Callable[[Slot], Request | None] = order.first  # the next for this one, or a stream of it

    def __len__(self) -> int:
        return len(self.requests)

    def move_first(self, request: Request) -> None:
        """Put a caller whose connection proved unusable before all others."""
        self.order.move_first(request)

    def discard(self, request: Request) -> None:
        """Remove a caller, if it is there."""
        self.requests.pop(request, None)

    def first_of_each(self) -> list[Request]:
        """Return the callers that may be next, in the order of service."""
        first = self.first()
        return [] if first is None else [first]

    def admits(self, request: Request) -> bool:
        """Whether the caller may have one more connection in use."""
        return True

    def may_have(self, request: Request, slot: Slot) -> bool:
        """Whether the caller may have this connection, or a further stream of it."""
        return True

    def admit(self, one: CallerClass | None) -> bool:
        """Charge a connection to a caller that is served without queueing; whether it may have one."""
        return True

    @property
    def wanting(self) -> bool:
        """Whether a caller waits that may have a connection. Without the lock, the answer may be out of date."""
        return bool(self.requests)

    def served_before(self, request: Request, now: float, window: float) -> bool:
        """Whether a newcomer may take an idle connection before waiting callers. ``window``: the barging window."""
        return self.order.waits_less(window, now)

    def beside(self, request: Request) -> OrderedDict[Request, None]:
        """Return the callers among which this one has its position."""
        return self.requests

    def line_of(self, one: CallerClass | None) -> FifoQueue:
        """Return the queue of the callers of this class."""
        return self

    def claimant(self, served: int) -> Request:
        """Return the caller for which one more connection would be opened. ``served``: callers that connects in
        progress will serve.
        """
        return next(islice(self.requests, served, None), None) or next(iter(self.requests))

    def gaining(self, limit: int) -> int:
        """Return how many callers would be served in a pool of ``limit`` connections."""
        return len(self.requests)

    def count(self, one: CallerClass) -> int:
        """Return how many callers of the class wait."""
        return 0

    def barred(self, limit: int) -> list[CallerClass]:
        """Return the classes with waiting callers that may have no further connection in a pool of this limit."""
        return []

    def needed(self, opening: int, streams: int, *, extra: int = 0, beside: int = 0) -> int:
        """Return how many connects the callers need and may have, besides the ``opening`` ones.

        ``streams``: leases that one connection is expected to serve; ``extra``: callers besides the waiting ones;
        ``beside``: connects beyond the number that suffices.
        """
        return connects_wanted(len(self.requests) + extra, opening, streams) + beside

    def rebuild(self) -> None:
        """After an interruption: rebuild the queue from ``requests``."""

    def check(self) -> None:
        """Raise AssertionError unless the queue is consistent."""


class ClassQueue:
    """The queue with classes: a queue for each class, besides the one of all callers.

    Each operation takes O(classes). ``requests`` has all callers in order of arrival, as in a :class:`FifoQueue`.
    """

    __slots__ = ("by_class", "policy", "queued_at", "requests", "use", "waits")

    def __init__(self, requests: OrderedDict[Request, None], use: ClassUse) -> None:
        self.requests = requests
        self.use = use
        self.policy = use.classes
        self.waits = 0
        self.queued_at = 0.0
        self.by_class: dict[CallerClass, FifoQueue] = {}
        self.renew()
        self.rebuild()

    def renew(self) -> None:
        """After new settings: keep or create the queue of each class. The dict is replaced, not changed, because it is
        also read without the lock.
        """
        known = self.policy.known.values()
        old = self.by_class
        self.by_class = {one: old[one] if one in old else FifoQueue() for one in known}

    def __len__(self) -> int:
        return len(self.requests)

    def _class_of(self, request: Request) -> CallerClass:
        """Return the caller's class: the default one if it names none, or one that has been removed."""
        one = request.caller_class
        if one is None or one not in self.by_class:
            one = request.caller_class = self.policy.default
        return one

    def add(self, request: Request) -> None:
        """Add a caller behind all others."""
        one = self._class_of(request)
        line = self.by_class[one]
        if not line.requests:
            line.queued_at = request.since
        if not request.ticket:
            one.waits += 1
            line.waits += 1
        self.requests[request] = None
        line.add(request)

    def move_first(self, request: Request) -> None:
        """Put a caller whose connection proved unusable before all others."""
        self.requests.move_to_end(request, last=False)
        self.by_class[self._class_of(request)].move_first(request)

    def discard(self, request: Request) -> None:
        """Remove a caller, if it is there."""
        self.requests.pop(request, None)
        one = request.caller_class
        if one is not None and one in self.by_class:
            self.by_class[one].discard(request)

    def remove(self, request: Request) -> None:
        """Remove a caller that is served."""
        del self.requests[request]
        self.by_class[self._class_of(request)].remove(request)

    def first_of_each(self) -> list[Request]:
        """Return the first caller of each class, in the order of service."""
        rank = self.policy.rank
        firsts = [(rank(one), line.first_of_each()[0]) for one, line in self.by_class.items() if line.requests]
        firsts.sort(key=lambda first: (first[0], first[1].ticket))
        return [request for _, request in firsts]

    def first(self) -> Request | None:
        """Return the next caller that may have one more connection, or None."""
        return next((one for one in self.first_of_each() if self.admits(one)), None)

    def first_for(self, slot: Slot) -> Request | None:
        """Return the next caller that may have this connection, or a further stream of it."""
        return next((one for one in self.first_of_each() if self.may_have(one, slot)), None)

    def admits(self, request: Request) -> bool:
        """Whether the caller's class may have one more connection in use."""
        return self.policy.admits(self._class_of(request), self.use.limit())

    def may_have(self, request: Request, slot: Slot) -> bool:
        """Whether the caller's class may have this connection, or a further stream of it."""
        if slot.leases:
            return self.policy.may_join(self._class_of(request), slot.owner)
        return self.admits(request)

    def admit(self, one: CallerClass | None) -> bool:
        """Charge a connection to a caller that is served without queueing; whether it may have one."""
        return one is not None and one in self.by_class and self.policy.admit(one, self.use.limit())

    @property
    def wanting(self) -> bool:
        """Whether a caller waits that may have a connection. Without the lock, the answer may be out of date."""
        admits, limit = self.policy.admits, self.use.limit()
        return any(line.requests and admits(one, limit) for one, line in self.by_class.items())

    def served_before(self, request: Request, now: float, window: float) -> bool:
        """Whether a newcomer may take an idle connection before waiting callers: only if none of its own class waits.
        Waiting callers of other classes would have taken the connection if they were allowed to.
        """
        return not self.by_class[self._class_of(request)].requests

    def beside(self, request: Request) -> OrderedDict[Request, None]:
        """Return the callers among which this one has its position: those of its class."""
        return self.by_class[self._class_of(request)].requests

    def line_of(self, one: CallerClass | None) -> FifoQueue:
        """Return the queue of the callers of this class."""
        return self.by_class[self.policy.default if one is None or one not in self.by_class else one]

    def claimant(self, served: int) -> Request:
        """Return the caller for which one more connection would be opened."""
        return self.first() or next(iter(self.requests))

    def count(self, one: CallerClass) -> int:
        """Return how many callers of the class wait."""
        return len(self.by_class[one]) if one in self.by_class else 0

    def barred(self, limit: int) -> list[CallerClass]:
        """Return the classes with waiting callers that may have no further connection in a pool of this limit."""
        return [one for one, line in self.by_class.items() if line.requests and not self.policy.admits(one, limit)]

    def gaining(self, limit: int) -> int:
        """Return how many callers would be served in a pool of ``limit`` connections. Callers whose class is at its own
        limit do not count.
        """
        return sum(len(line) for one, line in self.by_class.items() if self.policy.admits(one, limit))

    def needed(self, opening: int, streams: int, *, extra: int = 0, beside: int = 0) -> int:
        """See :meth:`FifoQueue.needed`."""
        wanted = connects_wanted(len(self.requests) + extra, opening, streams) + beside
        if not wanted:
            return 0
        needs = [(one, math.ceil(len(line) / streams) + beside) for one, line in self.by_class.items() if line.requests]
        return min(wanted, self.use.room(needs, opening))

    def rebuild(self) -> None:
        """After an interruption: rebuild the queue from ``requests``."""
        for line in self.by_class.values():
            line.requests.clear()
        for request in self.requests:
            self.by_class[self._class_of(request)].add(request)

    def check(self) -> None:
        """Raise AssertionError unless the queue is consistent."""
        queued = sum(len(line) for line in self.by_class.values())
        assert queued == len(self.requests), "a request stands in no queue, or in two"
        for one, line in self.by_class.items():
            assert all(w.caller_class is one and w in self.requests for w in line.requests), (
                "a request stands in the wrong queue"
            )


Order = ArrivalOrder | NewestFirst
"""Both classes have the same methods."""

Queue = FifoQueue | ClassQueue
"""Both classes have the same methods. An endpoint has one of them, which :mod:`.capacity` creates."""
