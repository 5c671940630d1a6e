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
    """A caller from the moment it asks until it is served, failed or gone.

    ``outcome`` is set once, under the lock: an :class:`Entry` (in use; or in doubt, to be checked first; or
    permission to connect, for drivers that connect in the caller) or an error.
    """

    # on the class: only what differs is written down, and a waiter is made in a fifth of the time
    caller_class: CallerClass | None = None
    """None where the pool has no classes."""
    ticket = 0
    """Order of arrival over all lanes."""
    parker: Parker | None = None
    """Made by the shell when the caller has to sleep."""
    outcome: Entry | BaseException | None = None
    gone = False
    nudged = False
    """Told of an idle connection: this waiter looks at it next."""
    checking = 0.0
    """Seconds that went to checks of connections that were meant for this caller."""
    connecting = 0.0
    """Seconds that went to connects that the caller made itself."""
    busy = False
    """The caller checks the connection that is its outcome."""

    def __init__(self, lane: Lane, since: float, holder: Hashable = 0) -> None:
        self.lane = lane
        self.since = since
        self.holder = holder

    @property
    def queued(self) -> bool:
        """Whether it stands in the queue of its lane. Under the lock."""
        return self in self.lane.waiters

    def __repr__(self) -> str:
        return f"<Waiter {self.ticket} {self.outcome!r}>"
