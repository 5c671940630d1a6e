"""A caller who wants a connection."""

from __future__ import annotations

from collections.abc import Hashable
from contextvars import Context
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..policies.classes import CallerClass
    from .endpoint import Endpoint
    from .slot import Slot

__all__ = ("Parker", "Request")


class Parker(Protocol):
    """Where a caller sleeps. ``wake`` never blocks and may come early, late, twice or for nothing."""

    def wake(self) -> None: ...


class Request:
    """A caller from the moment it asks until it is served, failed or gone.

    ``outcome`` is set once, under the lock: a :class:`Slot` (in use; or in doubt, to be checked first; or
    permission to connect, for drivers that connect in the caller) or an error.
    """

    # on the class: only what differs is written down, and a request is made in a fifth of the time
    caller_class: CallerClass | None = None
    """None where the pool has no classes."""
    ticket = 0
    """Order of arrival over all endpoints."""
    parker: Parker | None = None
    """Made by the shell when the caller has to sleep."""
    context: Context | None = None
    """A copy of the caller's context variables, from the moment it waits: its connect runs in them."""
    outcome: Slot | BaseException | None = None
    gone = False
    rechecking = False
    """Told of an idle connection: this request looks at it next."""
    checking = 0.0
    """Seconds that went to checks of connections that were meant for this caller."""
    connecting = 0.0
    """Seconds that went to connects that the caller made itself."""
    told = False
    """The listeners know that the lease has begun."""
    busy = False
    """The caller checks the connection that is its outcome."""

    def __init__(self, endpoint: Endpoint, since: float, holder: Hashable = 0) -> None:
        self.endpoint = endpoint
        self.since = since
        self.holder = holder

    @property
    def queued(self) -> bool:
        """Whether it stands in the queue of its endpoint. Under the lock."""
        return self in self.endpoint.requests

    def __repr__(self) -> str:
        return f"<Request {self.ticket} {self.outcome!r}>"
