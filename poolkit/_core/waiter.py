"""A caller who wants a connection."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..policies.classes import CallerClass
    from .entry import Entry
    from .lane import Lane

__all__ = ("Parker", "Waiter")


class Parker(Protocol):
    """Where a caller sleeps. ``wake`` never blocks and may come early, late, twice or for nothing."""

    def wake(self) -> None: ...


class Waiter:
    """A caller from the moment he asks until he is served, failed or gone.

    ``outcome`` is set once, under the lock: an :class:`Entry` (in use; or in doubt, to be checked first; or
    permission to connect, for drivers that connect in the caller) or an error.
    """

    __slots__ = (
        "busy", "caller_class", "checking", "connecting", "gone", "holder", "lane", "nudged", "outcome", "parker",
        "queued", "since", "ticket",
    )  # fmt: skip

    def __init__(self, lane: Lane, since: float, holder: Hashable = 0) -> None:
        self.lane = lane
        self.since = since
        self.holder = holder
        self.caller_class: CallerClass | None = None  # None where the pool has no classes
        self.ticket = 0  # order of arrival over all lanes
        self.parker: Parker | None = None  # made by the shell when the caller has to sleep
        self.outcome: Entry | BaseException | None = None
        self.queued = False
        self.gone = False
        self.nudged = False
        self.checking = 0.0  # seconds that went to checks of connections that were meant for him
        self.connecting = 0.0  # ... and to connects that he made himself
        self.busy = False  # he checks the connection that is his outcome

    def __repr__(self) -> str:
        return f"<Waiter {self.ticket} {self.outcome!r}>"
