"""Who holds what, since when, and where that was taken."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Union

if TYPE_CHECKING:
    from .slot import Slot

__all__ = ("Held", "LeaseRecord")


class LeaseRecord:
    """One of several leases of one connection. Written by the thread or task that begins the lease.

    The only lease of a connection needs no record beside it: a :class:`~.slot.Slot` has the same fields, which
    costs nothing where connections go from hand to hand.
    """

    __slots__ = ("holder", "place", "reported", "since", "slot")

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.since = 0.0  # by the pool's clock, seconds
        self.holder: Hashable = 0  # identity of the thread or task: no reference, that would keep a dropped lease alive
        self.place: tuple[str, int] | None = None  # file and line, if that is noted
        self.reported = False  # as held longer than leak_after

    @property
    def connection(self) -> Any:
        """The driver's object."""
        return self.slot.connection

    @property
    def capacity(self) -> int:
        """How many leases the connection serves."""
        return self.slot.capacity


Held = Union["Slot", LeaseRecord]
"""What the register of leases holds."""
