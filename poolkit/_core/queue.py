"""The callers that want a connection, and which of them is next.

At one endpoint that is the oldest caller, or the first of the class that comes first.

A queue knows nothing of connections but their ``owner`` and ``leases``. The rules about classes of callers are in
:mod:`poolkit.policies.classes`. While many callers give up, :mod:`.overload` has the newest come first.
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
    """Where a caller sleeps. ``wake`` never blocks and may come early, late, twice or for nothing."""

    def wake(self) -> None: ...


class Request:
    """A caller from the moment it asks until it is served, failed or gone.

    ``outcome`` is set once, under the lock: a :class:`Slot` (in use; or in doubt, to be checked first; or
    permission to connect, for drivers that connect in the caller) or an error.
    """

    # on the class: only what differs is written down, and a request is made in a fifth of the time
    caller_class: CallerClass | None = None
    """None where the pool has no classes."""
    ticket = 0
    """Order of arrival over all endpoints."""
    parker: Parker | None = None
    """Made by the shell when the caller has to sleep."""
    context: Context | None = None
    """A copy of the caller's context variables, from the moment it waits: its connect runs in them."""
    outcome: Slot | BaseException | None = None
    gone = False
    rechecking = False
    """Told of an idle connection: this request looks at it next."""
    checking = 0.0
    """Seconds that went to checks of connections that were meant for this caller."""
    connecting = 0.0
    """Seconds that went to connects that the caller made itself."""
    grace = 0.0
    """Seconds that the caller waits beyond its timeout, because a connect for it is going on."""
    told = False
    """The listeners know that the lease has begun."""
    busy = False
    """The caller checks the connection that is its outcome."""

    def __init__(self, endpoint: Endpoint, since: float, holder: Hashable = 0) -> None:
        self.endpoint = endpoint
        self.since = since
        self.holder = holder

    @property
    def queued(self) -> bool:
        """Whether it stands in the queue of its endpoint. Under the lock."""
        return self in self.endpoint.requests

    def __repr__(self) -> str:
        return f"<Request {self.ticket} {self.outcome!r}>"


class ArrivalOrder:
    """The oldest caller is next. Each operation is O(1)."""

    __slots__ = ("remove", "requests")

    def __init__(self, requests: OrderedDict[Request, None]) -> None:
        self.requests = requests
        self.remove: Callable[[Request], object] = requests.__delitem__  # a caller that is served; without a call

    def add(self, request: Request) -> None:
        """Add a caller behind all others."""
        self.requests[request] = None

    def move_first(self, request: Request) -> None:
        """Put a caller that was served badly before all others."""
        self.requests.move_to_end(request, last=False)

    def first(self, slot: Slot | None = None) -> Request | None:
        """The next caller; None: nobody waits."""
        return next(iter(self.requests), None)

    def waits_less(self, window: float, now: float) -> bool:
        """Whether nobody waits, or the next caller has waited for less than ``window`` seconds."""
        return not self.requests or now - next(iter(self.requests)).since < window

    def surplus(self, newcomer: Request) -> Request:
        """Who has to leave when a newcomer is one too many (``max_waiting``): the newcomer."""
        return newcomer


class NewestFirst:
    """While many callers give up: the oldest of those who have time left is next, else the newest.

    Now and then it is the oldest of all, if it is patient. The rule and its reasons: :mod:`poolkit.policies.overload`.
    The newest caller came a moment ago, so its ``since`` is the time by which ages are judged. Each operation is O(1),
    amortised.
    """

    __slots__ = ("_young", "patient", "requests", "served", "young")

    def __init__(self, requests: OrderedDict[Request, None]) -> None:
        self.requests = requests
        self._young: deque[Request] = deque()  # by age; who is gone or too old is left out when it comes first
        self.served = 0
        self.young = 0.0  # seconds that a caller may have waited to have time left
        self.patient = math.inf  # seconds after which a caller is not one of those who give up

    def add(self, request: Request) -> None:
        """Add a caller."""
        self.requests[request] = None
        self._young.append(request)

    def move_first(self, request: Request) -> None:
        """Put a caller that was served badly before all others."""
        self.requests.move_to_end(request, last=False)
        self._young.appendleft(request)

    def first(self, slot: Slot | None = None) -> Request | None:
        """The next caller; None: nobody waits."""
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
        """Whether nobody waits: no newcomer is served before those who do, for it may be next itself."""
        return not self.requests

    def surplus(self, newcomer: Request) -> Request:
        """Who has to leave when a newcomer is one too many (``max_waiting``): the oldest has the least time left."""
        return next(iter(self.requests))


class FifoQueue:
    """Callers that may all have any connection. Each operation is O(1).

    Who is next is up to its ``order``: a :class:`ArrivalOrder`, and while many callers give up a :class:`NewestFirst`
    (:mod:`.overload` sees to that).
    """

    __slots__ = ("add", "evidence", "first", "first_for", "order", "queued_at", "remove", "requests", "waits")

    def __init__(self, requests: OrderedDict[Request, None] | None = None) -> None:
        # a dict by order of arrival: oldest first in O(1), cancelled in O(1) wherever it stands
        self.requests: OrderedDict[Request, None] = OrderedDict() if requests is None else requests
        self.waits = 0  # callers that have waited here, counted once each
        self.queued_at = 0.0  # when the first of those who wait entered the empty queue
        self.evidence: Evidence | None = None  # of callers that gave up
        self.follow(ArrivalOrder(self.requests))

    def follow(self, order: Order) -> None:
        """Let this order decide who is next."""
        self.order = order
        self.add: Callable[[Request], None] = order.add  # a caller
        self.remove: Callable[[Request], object] = order.remove  # a caller that is served
        self.first: Callable[[], Request | None] = order.first  # that may have one more connection
        self.first_for: Callable[[Slot], Request | None] = order.first  # that may have this one, or a stream of it

    def __len__(self) -> int:
        return len(self.requests)

    def move_first(self, request: Request) -> None:
        """Put a caller that was served badly before all others."""
        self.order.move_first(request)

    def discard(self, request: Request) -> None:
        """Remove a caller, if it is there."""
        self.requests.pop(request, None)

    def first_of_each(self) -> list[Request]:
        """The callers that may be next, in the order in which they are to be served."""
        first = self.first()
        return [] if first is None else [first]

    def admits(self, request: Request) -> bool:
        """Whether the caller may have one more connection in use."""
        return True

    def may_have(self, request: Request, slot: Slot) -> bool:
        """Whether the caller may have this connection, or a further stream of it."""
        return True

    def admit(self, one: CallerClass | None) -> bool:
        """Charge a connection to a caller that is served without a place in the queue: whether it may have one."""
        return True

    @property
    def wanting(self) -> bool:
        """Whether anybody waits that may have a connection. Called without the lock, too: then it is a guess."""
        return bool(self.requests)

    def served_before(self, request: Request, now: float, window: float) -> bool:
        """Whether a newcomer may look for an idle connection before those who wait. ``window``: the barging window."""
        return self.order.waits_less(window, now)

    def beside(self, request: Request) -> OrderedDict[Request, None]:
        """The callers among which this one has its position."""
        return self.requests

    def line_of(self, one: CallerClass | None) -> FifoQueue:
        """The queue in which callers of this class have an order of their own."""
        return self

    def claimant(self, served: int) -> Request:
        """For whom one more connection would be opened, when so many callers are served by those being opened."""
        return next(islice(self.requests, served, None), None) or next(iter(self.requests))

    def gaining(self, limit: int) -> int:
        """How many callers would be served in a pool of ``limit`` connections."""
        return len(self.requests)

    def count(self, one: CallerClass) -> int:
        """How many callers of the class wait."""
        return 0

    def barred(self, limit: int) -> list[CallerClass]:
        """The classes that wait and may not have one more connection in a pool of ``limit`` connections."""
        return []

    def needed(self, opening: int, streams: int, *, extra: int = 0, beside: int = 0) -> int:
        """Further connects that the callers need and may have, besides those that are ``opening``.

        ``streams``: leases that one connection is expected to serve; ``extra``: callers in addition to those that wait;
        ``beside``: connects in addition to those that would do.
        """
        return connects_wanted(len(self.requests) + extra, opening, streams) + beside

    def rebuild(self) -> None:
        """After an interruption: what follows from ``requests``."""

    def check(self) -> None:
        """Raise AssertionError unless the queue is consistent."""


class ClassQueue:
    """Callers of several classes: a queue for each class beside the one of all callers.

    Each operation is O(classes). ``requests`` has all callers in order of arrival, as in a :class:`FifoQueue`.
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
        """The settings have changed: a queue for each class. A new dict: it is read without the lock, too."""
        known = self.policy.known.values()
        old = self.by_class
        self.by_class = {one: old[one] if one in old else FifoQueue() for one in known}

    def __len__(self) -> int:
        return len(self.requests)

    def _class_of(self, request: Request) -> CallerClass:
        """A caller that names no class, or one that has been removed, is of the default one."""
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
        """Put a caller that was served badly before all others."""
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
        """The first caller of each class, in the order in which they are to be served."""
        rank = self.policy.rank
        firsts = [(rank(one), line.first_of_each()[0]) for one, line in self.by_class.items() if line.requests]
        firsts.sort(key=lambda first: (first[0], first[1].ticket))
        return [request for _, request in firsts]

    def first(self) -> Request | None:
        """The next caller that may have one more connection; None: nobody waits that may."""
        return next((one for one in self.first_of_each() if self.admits(one)), None)

    def first_for(self, slot: Slot) -> Request | None:
        """The next caller that may have this connection, or a further stream of it."""
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
        """Charge a connection to a caller that is served without a place in the queue: whether it may have one."""
        return one is not None and one in self.by_class and self.policy.admit(one, self.use.limit())

    @property
    def wanting(self) -> bool:
        """Whether anybody waits that may have a connection. Called without the lock, too: then it is a guess."""
        admits, limit = self.policy.admits, self.use.limit()
        return any(line.requests and admits(one, limit) for one, line in self.by_class.items())

    def served_before(self, request: Request, now: float, window: float) -> bool:
        """Whether a newcomer may look for an idle connection before those who wait: not before those of its own class.
        The others would have taken it, if they were allowed to.
        """
        return not self.by_class[self._class_of(request)].requests

    def beside(self, request: Request) -> OrderedDict[Request, None]:
        """The callers among which this one has its position: those of its class."""
        return self.by_class[self._class_of(request)].requests

    def line_of(self, one: CallerClass | None) -> FifoQueue:
        """The queue in which callers of this class have an order of their own."""
        return self.by_class[self.policy.default if one is None or one not in self.by_class else one]

    def claimant(self, served: int) -> Request:
        """For whom one more connection would be opened."""
        return self.first() or next(iter(self.requests))

    def count(self, one: CallerClass) -> int:
        """How many callers of the class wait."""
        return len(self.by_class[one]) if one in self.by_class else 0

    def barred(self, limit: int) -> list[CallerClass]:
        """The classes that wait and may not have one more connection in a pool of ``limit`` connections."""
        return [one for one, line in self.by_class.items() if line.requests and not self.policy.admits(one, limit)]

    def gaining(self, limit: int) -> int:
        """How many callers would be served in a pool of ``limit`` connections: not those whose class is at its own
        limit.
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
        """After an interruption: what follows from ``requests``."""
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
"""Both have the same methods."""

Queue = FifoQueue | ClassQueue
"""Both have the same methods. An endpoint has one or the other; :mod:`.capacity` makes it."""
