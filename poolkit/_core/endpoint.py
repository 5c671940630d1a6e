"""Everything for one endpoint: idle connections, requests, generation, dialer."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable

from .dialer import Dialer
from .queue import Queue
from .request import Request
from .slot import Slot

__all__ = ("Endpoint",)


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

    @property
    def unused(self) -> bool:
        """Whether the endpoint can be forgotten."""
        return not self.size and not self.requests
