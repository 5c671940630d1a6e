"""Endpoints in the order of their oldest requests."""

from __future__ import annotations

from heapq import heapify, heappop, heappush

from .endpoint import Endpoint

__all__ = ("WaitingEndpoints",)


class WaitingEndpoints:
    """A set of endpoints that knows which of them has the oldest request. Each operation is O(log n), amortised.

    The place of an endpoint is the ticket of its oldest request at the time of :meth:`add`; whoever changes the queue
    of an endpoint adds or discards it again.
    """

    __slots__ = ("_heap", "places")

    def __init__(self) -> None:
        # holds places that are out of date, too: skipped when they come first. The id breaks ties: two objects of one
        # endpoint, the second made after the first was removed, may hold the ticket of the same request.
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
        """The endpoint with the oldest request."""
        heap, places = self._heap, self.places
        while heap:
            ticket, _, endpoint = heap[0]
            if places.get(endpoint) == ticket:
                return endpoint
            heappop(heap)
        return None
