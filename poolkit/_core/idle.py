"""Idle connections: one is taken, put back, or one too many. Pure order; whether one may be used is decided elsewhere.

An endpoint's ``idle`` runs from the longest unused (left) to the last used (right). Other threads take connections from
it and put them back without the lock, if the pool has one endpoint. Its ``spare`` has connections in use that may serve
further leases (multiplexed ones), in the same order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from .endpoint import Endpoint
from .slot import IDLE, Slot

if TYPE_CHECKING:
    from .size import Size

__all__ = ("IdleSlots", "KeyedIdleSlots", "OneIdleSlots")


class IdleSlots(Protocol):
    """Either of the two."""

    def __len__(self) -> int:
        """Idle connections of all endpoints."""

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        """Remove the next idle connection."""

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        """Remove all idle connections of an endpoint; they must go somewhere. Those that stay keep their order."""

    def take_out(self, slot: Slot) -> bool:
        """Remove this one; False if another thread has just taken it."""

    def put(self, slot: Slot) -> None:
        """Add a connection as the last used one."""

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        """Put back what :meth:`take_all` took, in the same order, before what has come since."""

    def remove(self, slot: Slot) -> None:
        """The connection is closed or used, and in no list any more."""

    def full(self, size: Size) -> bool:
        """Whether no further connection may be idle."""

    def make_room(self, size: Size) -> Slot | None:
        """Remove the connection that has to be closed before a further one may be idle."""

    def too_many(self, size: Size) -> bool:
        """Whether more are idle than may be."""

    def take_surplus(self) -> Slot | None:
        """Remove the longest unused one; None if there is none, or another thread was faster."""


class OneIdleSlots:
    """The idle connections of a pool with one endpoint."""

    __slots__ = ("only", "order")

    def __init__(self) -> None:
        self.only: Endpoint
        self.order: OrderedDict[Slot, None] = OrderedDict()  # empty: the endpoint's own order says it all

    def __len__(self) -> int:
        return len(self.only.idle)

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        try:
            return endpoint.idle.pop() if lifo else endpoint.idle.popleft()
        except IndexError:
            return None

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        taken: list[Slot] = []
        while True:
            try:
                taken.append(endpoint.idle.popleft())
            except IndexError:
                return taken

    def take_out(self, slot: Slot) -> bool:
        try:
            slot.endpoint.idle.remove(slot)
        except ValueError:
            return False
        return True

    def put(self, slot: Slot) -> None:
        slot.endpoint.idle.append(slot)

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        endpoint.idle.extendleft(reversed(slots))

    def remove(self, slot: Slot) -> None:
        pass

    def full(self, size: Size) -> bool:
        return size.max_idle < size.limit and len(self.only.idle) >= size.max_idle

    def make_room(self, size: Size) -> Slot | None:
        return None

    def too_many(self, size: Size) -> bool:
        # whoever waits is told of them, and takes them
        return len(self.only.idle) > size.max_idle and not self.only.requests

    def take_surplus(self) -> Slot | None:
        return self.take(self.only, lifo=False)


class KeyedIdleSlots:
    """Those of a pool with many endpoints, which also has an order over all of them."""

    __slots__ = ("order",)

    def __init__(self) -> None:
        self.order: OrderedDict[Slot, None] = OrderedDict()  # longest unused first

    def __len__(self) -> int:
        return len(self.order)

    def take(self, endpoint: Endpoint, *, lifo: bool) -> Slot | None:
        if not endpoint.idle:
            return None
        slot = endpoint.idle.pop() if lifo else endpoint.idle.popleft()
        self.order.pop(slot, None)
        return slot

    def take_all(self, endpoint: Endpoint) -> list[Slot]:
        taken = list(endpoint.idle)  # they stay in the order over all endpoints
        endpoint.idle.clear()
        return taken

    def take_out(self, slot: Slot) -> bool:
        slot.endpoint.idle.remove(slot)
        self.order.pop(slot, None)
        return True

    def put(self, slot: Slot) -> None:
        self.order[slot] = None
        slot.endpoint.idle.append(slot)

    def put_back(self, endpoint: Endpoint, slots: list[Slot]) -> None:
        for slot in reversed(slots):
            if slot not in self.order:
                self.order[slot] = None
                self.order.move_to_end(slot, last=False)
            endpoint.idle.appendleft(slot)

    def remove(self, slot: Slot) -> None:
        self.order.pop(slot, None)

    def full(self, size: Size) -> bool:
        return size.max_idle <= 0

    def make_room(self, size: Size) -> Slot | None:
        if len(self.order) < size.max_idle:
            return None
        oldest = next(iter(self.order))
        self.take_out(oldest)
        return oldest

    def too_many(self, size: Size) -> bool:
        return len(self.order) > size.max_idle

    def reorder(self, endpoints: Iterable[Endpoint]) -> None:
        """After an interruption: the order follows from the endpoints and what is left of it."""
        for slot in [slot for slot in self.order if slot.state is not IDLE]:
            del self.order[slot]
        for endpoint in endpoints:
            for slot in endpoint.idle:
                if slot.state is IDLE and slot not in self.order:
                    self.order[slot] = None

    def take_surplus(self) -> Slot | None:
        slot = next((slot for slot in self.order if not slot.endpoint.requests), None)
        if slot is not None:
            self.take_out(slot)
        return slot
