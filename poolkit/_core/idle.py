"""Idle connections: one is taken, put back, or one too many. Pure order; whether one may be used is decided elsewhere.

An endpoint's ``idle`` runs from the longest unused (left) to the last used (right). Other threads take connections from
it and put them back without the lock, if the pool has one endpoint. Its ``spare`` has connections in use that may serve
further leases (multiplexed ones), in the same order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from .entry import IDLE, Entry
from .lane import Lane

if TYPE_CHECKING:
    from .size import Size

__all__ = ("IdleSlots", "KeyedIdleSlots", "OneIdleSlots")


class IdleSlots(Protocol):
    """Either of the two."""

    def __len__(self) -> int:
        """Idle connections of all endpoints."""

    def take(self, endpoint: Lane, *, lifo: bool) -> Entry | None:
        """Remove the next idle connection."""

    def take_all(self, endpoint: Lane) -> list[Entry]:
        """Remove all idle connections of an endpoint; they must go somewhere. Those that stay keep their order."""

    def take_out(self, entry: Entry) -> bool:
        """Remove this one; False if another thread has just taken it."""

    def put(self, entry: Entry) -> None:
        """Add a connection as the last used one."""

    def put_back(self, endpoint: Lane, entries: list[Entry]) -> None:
        """Put back what :meth:`take_all` took, in the same order, before what has come since."""

    def forget(self, entry: Entry) -> None:
        """The connection is closed or used, and in no list any more."""

    def full(self, size: Size) -> bool:
        """Whether no further connection may be idle."""

    def make_room(self, size: Size) -> Entry | None:
        """Remove the connection that has to be closed before a further one may be idle."""

    def too_many(self, size: Size) -> bool:
        """Whether more are idle than may be."""

    def take_surplus(self) -> Entry | None:
        """Remove the longest unused one; None if there is none, or another thread was faster."""


class OneIdleSlots:
    """The idle connections of a pool with one endpoint."""

    __slots__ = ("only", "order")

    def __init__(self) -> None:
        self.only: Lane
        self.order: OrderedDict[Entry, None] = OrderedDict()  # empty: the endpoint's own order says it all

    def __len__(self) -> int:
        return len(self.only.idle)

    def take(self, endpoint: Lane, *, lifo: bool) -> Entry | None:
        try:
            return endpoint.idle.pop() if lifo else endpoint.idle.popleft()
        except IndexError:
            return None

    def take_all(self, endpoint: Lane) -> list[Entry]:
        taken: list[Entry] = []
        while True:
            try:
                taken.append(endpoint.idle.popleft())
            except IndexError:
                return taken

    def take_out(self, entry: Entry) -> bool:
        try:
            entry.lane.idle.remove(entry)
        except ValueError:
            return False
        return True

    def put(self, entry: Entry) -> None:
        entry.lane.idle.append(entry)

    def put_back(self, endpoint: Lane, entries: list[Entry]) -> None:
        endpoint.idle.extendleft(reversed(entries))

    def forget(self, entry: Entry) -> None:
        pass

    def full(self, size: Size) -> bool:
        return size.max_idle < size.limit and len(self.only.idle) >= size.max_idle

    def make_room(self, size: Size) -> Entry | None:
        return None

    def too_many(self, size: Size) -> bool:
        # whoever waits is told of them, and takes them
        return len(self.only.idle) > size.max_idle and not self.only.waiters

    def take_surplus(self) -> Entry | None:
        return self.take(self.only, lifo=False)


class KeyedIdleSlots:
    """Those of a pool with many endpoints, which also has an order over all of them."""

    __slots__ = ("order",)

    def __init__(self) -> None:
        self.order: OrderedDict[Entry, None] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self.order)

    def take(self, endpoint: Lane, *, lifo: bool) -> Entry | None:
        if not endpoint.idle:
            return None
        entry = endpoint.idle.pop() if lifo else endpoint.idle.popleft()
        self.order.pop(entry, None)
        return entry

    def take_all(self, endpoint: Lane) -> list[Entry]:
        taken = list(endpoint.idle)  # they stay in the order over all endpoints
        endpoint.idle.clear()
        return taken

    def take_out(self, entry: Entry) -> bool:
        entry.lane.idle.remove(entry)
        self.order.pop(entry, None)
        return True

    def put(self, entry: Entry) -> None:
        self.order[entry] = None
        entry.lane.idle.append(entry)

    def put_back(self, endpoint: Lane, entries: list[Entry]) -> None:
        for entry in reversed(entries):
            if entry not in self.order:
                self.order[entry] = None
                self.order.move_to_end(entry, last=False)
            endpoint.idle.appendleft(entry)

    def forget(self, entry: Entry) -> None:
        self.order.pop(entry, None)

    def full(self, size: Size) -> bool:
        return size.max_idle <= 0

    def make_room(self, size: Size) -> Entry | None:
        if len(self.order) < size.max_idle:
            return None
        oldest = next(iter(self.order))
        self.take_out(oldest)
        return oldest

    def too_many(self, size: Size) -> bool:
        return len(self.order) > size.max_idle

    def reorder(self, endpoints: Iterable[Lane]) -> None:
        """After an interruption: the order follows from the endpoints and what is left of it."""
        for entry in [entry for entry in self.order if entry.state is not IDLE]:
            del self.order[entry]
        for endpoint in endpoints:
            for entry in endpoint.idle:
                if entry.state is IDLE and entry not in self.order:
                    self.order[entry] = None

    def take_surplus(self) -> Entry | None:
        entry = next((entry for entry in self.order if not entry.lane.waiters), None)
        if entry is not None:
            self.take_out(entry)
        return entry
