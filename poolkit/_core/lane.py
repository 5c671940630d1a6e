"""Everything for one endpoint: idle connections, waiters, generation, dialer."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from ..policies.classes import CallerClass
from .dialer import Dialer
from .entry import Entry
from .waiter import Waiter

__all__ = ("Lane",)


class Lane:
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
        "queued_at",
        "queues",
        "size",
        "streams",
        "waiters",
    )

    def __init__(self, key: Hashable, dialer: Dialer) -> None:
        self.key = key
        self.dialer = dialer
        self.idle: deque[Entry] = deque()
        # a dict by order of arrival: oldest first in O(1), cancelled in O(1) wherever it stands
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()
        # the same waiters by their classes, where the pool has any
        self.queues: dict[CallerClass, OrderedDict[Waiter, None]] = {}
        self.generation = 0
        self.size = 0  # entries in any state
        self.live = 0  # entries that are of use or can come back to be
        self.connecting = 0
        self.last_failed_check = float("-inf")
        self.queued_at = 0.0  # when the first of those who wait entered the empty queue
        self.streams = 1  # leases that one further connection is expected to serve
        self.evictions = 0  # idle connections of other lanes that are being closed for this one

    def oldest(self) -> Waiter:
        """The waiter who has waited longest; the queue must not be empty."""
        return next(iter(self.waiters))

    def join(self, waiter: Waiter, *, front: bool = False) -> None:
        """Add the waiter to the queue."""
        self.waiters[waiter] = None
        if front:
            self.waiters.move_to_end(waiter, last=False)
        if self.queues:
            assert waiter.caller_class is not None
            queue = self.queues[waiter.caller_class]
            queue[waiter] = None
            if front:
                queue.move_to_end(waiter, last=False)

    def leave(self, waiter: Waiter) -> None:
        """Remove the waiter from the queue."""
        self.waiters.pop(waiter, None)
        if self.queues and waiter.caller_class is not None:
            self.queues[waiter.caller_class].pop(waiter, None)

    @property
    def unused(self) -> bool:
        """Whether the lane can be forgotten."""
        return not self.size and not self.waiters
