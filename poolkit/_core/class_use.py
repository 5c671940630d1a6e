"""Which class of callers has how many connections in use. A pool without classes has a :class:`NoClasses`.

The numbers are in :class:`~poolkit.policies.classes.Classes`; here they meet slots. A class's ``held`` is the number of
slots whose ``owner`` it is.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable

from ..config import PoolConfig
from ..policies.classes import CallerClass, Classes
from .endpoint import Endpoint
from .queue import ClassQueue, FifoQueue
from .request import Request
from .slot import CLOSED, CLOSING, IDLE, IN_USE, RESETTING, Slot

__all__ = ("ClassUse", "NoClasses", "Use", "configured")


class NoClasses:
    """All callers are equal: nothing is charged to anybody."""

    classes: Classes | None = None

    def new_queue(self, requests: OrderedDict[Request, None] | None = None) -> FifoQueue:
        """The queue of one endpoint."""
        return FifoQueue(requests)

    def charge(self, slot: Slot, request: Request) -> None:
        """Give the caller the connection, or a further lease of it."""

    def charge_lease(self, slot: Slot, request: Request) -> None:
        """The same, for a lease that begins now."""

    def uncharge(self, slot: Slot) -> None:
        """Nobody uses the connection any more."""

    def widened(self) -> bool:
        """Whether a class may have more than was noted."""
        return False

    def note(self) -> None:
        """Note what each class has, when everybody has got what it may have."""

    def recount(self, slots: Iterable[Slot]) -> None:
        """After an interruption: what follows from the slots."""
        for slot in slots:
            slot.owner = None

    def check(self, slots: Iterable[Slot]) -> None:
        """Raise AssertionError unless the numbers agree with the slots."""
        owned = any(slot.owner is not None for slot in slots)
        assert not owned, "a connection belongs to a class of callers that does not exist"


class ClassUse:
    """The use of connections by classes.

    ``limit``: the pool's limit now. ``coming``: connections that are neither idle nor being closed nor checked in the
    background. ``by_caller``: whether a connection that is opened is charged to the class of the caller that opens it.
    """

    def __init__(
        self, classes: Classes, limit: Callable[[], int], coming: Callable[[], int], *, by_caller: Callable[[], bool]
    ) -> None:
        self.classes = classes
        self.limit = limit
        self._coming = coming
        self._by_caller = by_caller
        self._noted: list[int] = []

    def new_queue(self, requests: OrderedDict[Request, None] | None = None) -> ClassQueue:
        """The queue of one endpoint."""
        return ClassQueue(OrderedDict() if requests is None else requests, self)

    def room(self, needs: Iterable[tuple[CallerClass, int]], opening: int) -> int:
        """How many connects the classes may have that need so many each; ``opening`` connects of the endpoint are going
        on.
        """
        opening = 0 if self._by_caller() else opening
        return self.classes.room(needs, self.limit(), max(0, self._unowned() - opening)) - opening

    def _unowned(self) -> int:
        """Connections that will be somebody's before long: those being opened that are nobody's yet."""
        held = sum([one.held for one in self.classes.known.values()])
        return max(0, self._coming() - held)

    def charge(self, slot: Slot, request: Request) -> None:
        """Give the caller the connection, or a further lease of it."""
        one = request.caller_class
        if one is None:
            return
        if slot.owner is None:
            self.classes.take(one)
            slot.owner = one
        elif slot.leases:
            self.classes.join(one, slot.owner)

    def charge_lease(self, slot: Slot, request: Request) -> None:
        """The same, for a lease that begins now."""
        if request.caller_class is not None:
            self.charge(slot, request)
            request.caller_class.acquires += 1

    def uncharge(self, slot: Slot) -> None:
        """Nobody uses the connection any more."""
        owner, slot.owner = slot.owner, None
        if owner is not None:
            self.classes.give(owner)

    def widened(self) -> bool:
        """Whether a class may have more than was noted."""
        before, now = self._noted, self._numbers()
        return len(before) != len(now) or any(one < other for one, other in zip(now, before, strict=True))

    def note(self) -> None:
        """Note what each class has, when everybody has got what it may have.

        Earlier would be wrong: what is given out after it and comes back before the next look would not be noticed.
        """
        self._noted = self._numbers()

    def _numbers(self) -> list[int]:
        return [self._unowned(), *(one.held for one in self.classes.known.values())]

    def recount(self, slots: Iterable[Slot]) -> None:
        """After an interruption: the numbers that follow from the slots."""
        for one in self.classes.known.values():
            one.held = 0
        for slot in slots:
            if slot.state in (IDLE, CLOSING, CLOSED):
                slot.owner = None
            elif slot.owner is not None:
                slot.owner.held += 1
        self.classes.count()

    def check(self, slots: Iterable[Slot]) -> None:
        """Raise AssertionError unless the numbers agree with the slots."""
        slots = list(slots)
        known = self.classes.known.values()
        owners = Counter(slot.owner for slot in slots if slot.owner is not None)
        assert owners.keys() <= set(known), "a connection belongs to a class that does not exist"
        for one in known:
            assert one.held == owners[one], f"class {one.name!r}: held {one.held} != {owners[one]}"
        committed = sum(max(one.held, one.reserved) for one in known)
        assert self.classes.committed == committed, f"committed {self.classes.committed} != {committed}"
        unused = any(slot.owner is not None and slot.state in (IDLE, CLOSING) for slot in slots)
        assert not unused, "an unused connection belongs to a class"


Use = NoClasses | ClassUse
"""Both have the same methods, except for :meth:`ClassUse.room`, which only queues of classes ask for."""


def configured(
    old: Use,
    config: PoolConfig,
    endpoints: Iterable[Endpoint],
    slots: Iterable[Slot],
    make: Callable[[Classes], ClassUse],
) -> Use:
    """What new settings make of ``old``, at any time: callers keep the class that they came with. Each endpoint has the
    queue that belongs to it.
    """
    endpoints = list(endpoints)
    if config.classes is None:
        if isinstance(old, NoClasses):
            return old
        use = NoClasses()
        use.recount(slots)
        for endpoint in endpoints:
            _replace_queue(endpoint, use)
        return use
    if isinstance(old, ClassUse):
        busy = {w.caller_class for endpoint in endpoints for w in endpoint.requests if w.caller_class is not None}
        old.classes.configure(config.classes, config.default_class, busy)
        for endpoint in endpoints:
            assert isinstance(endpoint.queue, ClassQueue)
            endpoint.queue.renew()
        return old
    made = make(Classes())
    made.classes.configure(config.classes, config.default_class, ())
    default = made.classes.default  # who came without a class is of the default one
    for endpoint in endpoints:
        for request in endpoint.requests:
            request.caller_class = default
        _replace_queue(endpoint, made)
    for slot in slots:
        if slot.state in (IN_USE, RESETTING):
            slot.owner = default
    made.recount(slots)
    return made


def _replace_queue(endpoint: Endpoint, use: Use) -> None:
    old = endpoint.queue
    endpoint.queue = use.new_queue(endpoint.requests)
    endpoint.queue.waits, endpoint.queue.queued_at = old.waits, old.queued_at
