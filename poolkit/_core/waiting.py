"""Endpoints in the order of their oldest waiters."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .lane import Lane

__all__ = ("WaitingLanes",)


class WaitingLanes:
    """A set of endpoints that knows which of them has the oldest waiter. Each operation is O(log n), amortised.

    The place of an endpoint is the ticket of its oldest waiter at the time of :meth:`add`; whoever changes the queue
    of an endpoint adds or discards it again.
    """

    __slots__ = ("_heap", "places")

    def __init__(self) -> None:
        # holds places that are out of date, too: skipped when they come first. The id breaks ties: two objects of one
        # endpoint, the second made after the first was removed, may hold the ticket of the same waiter.
        self._heap: list[tuple[int, int, Lane]] = []
        self.places: dict[Lane, int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def add(self, lane: Lane) -> None:
        """Add an endpoint that has waiters, or move it to its new place."""
        ticket = lane.oldest().ticket
        if self.places.get(lane) != ticket:
            self.places[lane] = ticket
            heappush(self._heap, (ticket, id(lane), lane))
            if len(self._heap) > 2 * len(self.places) + 16:
                self._heap = [(place, id(one), one) for one, place in self.places.items()]
                heapify(self._heap)

    def discard(self, lane: Lane) -> None:
        """Remove an endpoint, if it is there."""
        self.places.pop(lane, None)

    def first(self) -> Lane | None:
        """The endpoint with the oldest waiter."""
        heap, places = self._heap, self.places
        while heap:
            ticket, _, lane = heap[0]
            if places.get(lane) == ticket:
                return lane
            heappop(heap)
        return None
