"""Who is next among the callers that wait for one endpoint: the oldest one, or the first of the class that comes first.

A queue knows nothing of connections but their ``owner`` and ``leases``. The rules about classes of callers are in
:mod:`poolkit.policies.classes`.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from ..policies.classes import CallerClass
from ..policies.sizing import connects_wanted
from .request import Request

if TYPE_CHECKING:
    from .class_use import ClassUse
    from .slot import Slot

__all__ = ("ClassQueue", "FifoQueue", "Queue")


class FifoQueue:
    """Callers in order of arrival; all may have any connection. Each operation is O(1)."""

    __slots__ = ("remove", "requests")

    def __init__(self, requests: OrderedDict[Request, None] | None = None) -> None:
        # a dict by order of arrival: oldest first in O(1), cancelled in O(1) wherever it stands
        self.requests: OrderedDict[Request, None] = OrderedDict() if requests is None else requests
        self.remove: Callable[[Request], object] = self.requests.__delitem__  # a caller that is there; without a call

    def __len__(self) -> int:
        return len(self.requests)

    def add(self, request: Request) -> None:
        """Add a caller behind all others."""
        self.requests[request] = None

    def move_first(self, request: Request) -> None:
        """Put a caller that was served badly before all others."""
        self.requests.move_to_end(request, last=False)

    def discard(self, request: Request) -> None:
        """Remove a caller, if it is there."""
        self.requests.pop(request, None)

    def first(self) -> Request | None:
        """The next caller that may have one more connection; None: nobody waits that may."""
        return next(iter(self.requests), None)

    def first_for(self, slot: Slot) -> Request | None:
        """The next caller that may have this connection, or a further stream of it."""
        return next(iter(self.requests), None)

    def first_of_each(self) -> list[Request]:
        """The callers that may be next, in the order in which they are to be served."""
        return [next(iter(self.requests))] if self.requests else []

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
        return not self.requests or now - next(iter(self.requests)).since < window

    def beside(self, request: Request) -> OrderedDict[Request, None]:
        """The callers among which this one has its position."""
        return self.requests

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

    __slots__ = ("by_class", "policy", "requests", "use")

    def __init__(self, requests: OrderedDict[Request, None], use: ClassUse) -> None:
        self.requests = requests
        self.use = use
        self.policy = use.classes
        self.by_class: dict[CallerClass, OrderedDict[Request, None]] = {}
        self.renew()
        self.rebuild()

    def renew(self) -> None:
        """The settings have changed: a queue for each class. A new dict: it is read without the lock, too."""
        known = self.policy.known.values()
        self.by_class = {one: self.by_class.get(one) or OrderedDict() for one in known}

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
        if not request.ticket:
            one.waits += 1
        self.requests[request] = None
        self.by_class[one][request] = None

    def move_first(self, request: Request) -> None:
        """Put a caller that was served badly before all others."""
        self.requests.move_to_end(request, last=False)
        self.by_class[self._class_of(request)].move_to_end(request, last=False)

    def discard(self, request: Request) -> None:
        """Remove a caller, if it is there."""
        self.requests.pop(request, None)
        one = request.caller_class
        if one is not None and one in self.by_class:
            self.by_class[one].pop(request, None)

    def remove(self, request: Request) -> None:
        """Remove a caller that is there."""
        self.discard(request)

    def first_of_each(self) -> list[Request]:
        """The first caller of each class, in the order in which they are to be served."""
        rank = self.policy.rank
        firsts = [(rank(one), next(iter(queue))) for one, queue in self.by_class.items() if queue]
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
        return any(queue and admits(one, limit) for one, queue in self.by_class.items())

    def served_before(self, request: Request, now: float, window: float) -> bool:
        """Whether a newcomer may look for an idle connection before those who wait: not before those of its own class.
        The others would have taken it, if they were allowed to.
        """
        return not self.by_class[self._class_of(request)]

    def beside(self, request: Request) -> OrderedDict[Request, None]:
        """The callers among which this one has its position: those of its class."""
        return self.by_class[self._class_of(request)]

    def claimant(self, served: int) -> Request:
        """For whom one more connection would be opened."""
        return self.first() or next(iter(self.requests))

    def count(self, one: CallerClass) -> int:
        """How many callers of the class wait."""
        return len(self.by_class.get(one, ()))

    def barred(self, limit: int) -> list[CallerClass]:
        """The classes that wait and may not have one more connection in a pool of ``limit`` connections."""
        return [one for one, queue in self.by_class.items() if queue and not self.policy.admits(one, limit)]

    def gaining(self, limit: int) -> int:
        """How many callers would be served in a pool of ``limit`` connections: not those whose class is at its own
        limit.
        """
        return sum(len(queue) for one, queue in self.by_class.items() if self.policy.admits(one, limit))

    def needed(self, opening: int, streams: int, *, extra: int = 0, beside: int = 0) -> int:
        """See :meth:`FifoQueue.needed`."""
        wanted = connects_wanted(len(self.requests) + extra, opening, streams) + beside
        if not wanted:
            return 0
        needs = [(one, math.ceil(len(queue) / streams) + beside) for one, queue in self.by_class.items() if queue]
        return min(wanted, self.use.room(needs, opening))

    def rebuild(self) -> None:
        """After an interruption: what follows from ``requests``."""
        for queue in self.by_class.values():
            queue.clear()
        for request in self.requests:
            self.by_class[self._class_of(request)][request] = None

    def check(self) -> None:
        """Raise AssertionError unless the queue is consistent."""
        queued = sum(len(queue) for queue in self.by_class.values())
        assert queued == len(self.requests), "a request stands in no queue, or in two"
        for one, queue in self.by_class.items():
            assert all(w.caller_class is one and w in self.requests for w in queue), (
                "a request stands in the wrong queue"
            )


Queue = FifoQueue | ClassQueue
"""Both have the same methods. An endpoint has one or the other; :mod:`.class_use` makes it."""
