"""Endpoints in the order of their oldest waiters."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .lane import Lane

__all__ = ("WaitingLanes",)


class WaitingLanes:
    """A set of lanes that knows which of them has the oldest waiter. Each operation is O(log n), amortised.

    The place of a lane is the ticket of its oldest waiter at the time of :meth:`add`; whoever changes the queue of a
    lane adds or discards it again.
    """

    __slots__ = ("_heap", "places")

    def __init__(self) -> None:
        self._heap: list[tuple[int, Lane]] = []  # holds places that are out of date, too: skipped when they come first
        self.places: dict[Lane, int] = {}

    def __len__(self) -> int:
        return len(self.places)

    def add(self, lane: Lane) -> None:
        """Add a lane that has waiters, or move it to its new place."""
        ticket = lane.oldest().ticket
        if self.places.get(lane) != ticket:
            self.places[lane] = ticket
            heappush(self._heap, (ticket, lane))
            if len(self._heap) > 2 * len(self.places) + 16:
                self._heap = [(place, one) for one, place in self.places.items()]
                heapify(self._heap)

    def discard(self, lane: Lane) -> None:
        """Remove a lane, if it is there."""
        self.places.pop(lane, None)

    def first(self) -> Lane | None:
        """The lane with the oldest waiter."""
        heap, places = self._heap, self.places
        while heap:
            ticket, lane = heap[0]
            if places.get(lane) == ticket:
                return lane
            heappop(heap)
        return None
