"""Everything for one endpoint: idle connections, waiters, generation, dialer."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from .dialer import Dialer
from .entry import Entry
from .queue import Queue
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
        "queue",
        "queued_at",
        "size",
        "spare",
        "streams",
        "waiters",
    )

    def __init__(self, key: Hashable, dialer: Dialer, queue: Queue) -> None:
        self.key = key
        self.dialer = dialer
        self.idle: deque[Entry] = deque()
        self.spare: dict[Entry, None] = {}  # in use, with a stream to spare; in the same order
        self.queue = queue
        self.waiters = queue.waiters  # of all classes, in order of arrival; stays the same when the queue is replaced
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

    @property
    def unused(self) -> bool:
        """Whether the lane can be forgotten."""
        return not self.size and not self.waiters
