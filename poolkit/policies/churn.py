"""Detect programs that create many pools where one should be shared."""

from __future__ import annotations

from collections import OrderedDict, deque

__all__ = ("Churn",)


class Churn:
    """Counts the pools created at each place in the code, and reports a place once if there are too many."""

    __slots__ = ("_limit", "_places", "_window")

    def __init__(self, limit: int = 20, window: float = 10.0) -> None:
        """More than ``limit`` pools from one place in ``window`` seconds count as a mistake. A program with one pool
        for each shard or tenant creates fewer at a time, in a loop at its start.
        """
        self._limit = limit
        self._window = window
        self._places: OrderedDict[tuple[str, int], deque[float] | None] = OrderedDict()

    def made(self, place: tuple[str, int], now: float) -> bool:
        """Record that a pool was created here. Returns whether to report the place, once for each place."""
        times = self._places.setdefault(place, deque(maxlen=self._limit))
        if times is None:
            return False
        self._places.move_to_end(place)
        while len(self._places) > 1000:
            self._places.popitem(last=False)
        times.append(now)
        if len(times) < self._limit or now - times[0] > self._window:
            return False
        self._places[place] = None
        return True
