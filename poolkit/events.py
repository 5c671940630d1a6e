"""What happened in a pool, as plain records, and who is told.

Names and order follow MongoDB's *Connection Monitoring and Pooling* vocabulary: a connection is released
before it is closed, a pool is cleared before its stale connections are closed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from enum import Enum

from .errors import ConfigError

__all__ = ("OF_EACH_LEASE", "CloseReason", "Event", "EventKind", "FailReason", "Listener", "kinds_of")


class EventKind(Enum):
    """The kinds of event, in the order of a connection's life."""

    __hash__ = object.__hash__  # Enum's own is a Python function, called for each thing that could be told

    POOL_CREATED = "pool created"
    POOL_READY = "pool ready"
    POOL_SUSPENDED = "pool suspended"
    POOL_RECONFIGURED = "pool reconfigured"
    POOL_RESIZED = "pool resized"
    POOL_CLEARED = "pool cleared"
    POOL_CLOSED = "pool closed"
    CONNECTION_CREATED = "connection created"
    CONNECTION_READY = "connection ready"
    CONNECT_FAILED = "connect failed"
    CONNECTION_CLOSED = "connection closed"
    ACQUIRE_STARTED = "acquire started"
    ACQUIRE_FAILED = "acquire failed"
    ACQUIRED = "acquired"
    RELEASED = "released"
    LEASE_LEAKED = "lease leaked"
    BREAKER_OPENED = "breaker opened"
    BREAKER_CLOSED = "breaker closed"
    ALERT_RAISED = "alert raised"
    ALERT_CLEARED = "alert cleared"


class CloseReason(str, Enum):
    """Why the pool closed a connection."""

    IDLE = "idle"
    STALE = "stale"
    EXPIRED = "expired"
    ERROR = "error"
    DISCARDED = "discarded"
    LEAKED = "leaked"
    SURPLUS = "surplus"
    POOL_CLOSED = "pool closed"


class FailReason(str, Enum):
    """Why an acquire failed."""

    TIMEOUT = "timeout"
    CONNECTION_ERROR = "connection error"
    POOL_CLOSED = "pool closed"
    BUSY = "busy"
    SUSPENDED = "suspended"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class Event:
    """One thing that happened. Fields that do not apply are None.

    ``connection_id`` numbers the connections of a pool in the order of their creation, from 1.
    ``duration`` is in seconds: of the connect (ready), of the wait (acquired, acquire failed), of the lease
    (released, lease leaked), of the connection's life (closed). ``key`` is the lane (endpoint) of a keyed pool.
    """

    kind: EventKind
    pool: str
    at: float
    connection_id: int | None = None
    duration: float | None = None
    reason: CloseReason | FailReason | None = None
    error: BaseException | None = None
    detail: str | None = None
    key: Hashable = None


Listener = Callable[[Event], object]
"""Called for each event, in order, never under the pool's lock. One that raises is logged once and dropped.

It may have an attribute ``kinds``, a collection of :class:`EventKind`: then it is called for these only.
"""

OF_EACH_LEASE = frozenset({EventKind.ACQUIRE_STARTED, EventKind.ACQUIRED, EventKind.RELEASED})
"""What every lease tells. As long as nobody listens to these, acquire and release cost what they cost without
listeners; the numbers are in ``stats()`` all the same."""


def kinds_of(listener: Listener) -> frozenset[EventKind]:
    """The kinds of event that ``listener`` wants: its ``kinds``, or all. ConfigError if they are not kinds."""
    kinds = getattr(listener, "kinds", None)
    if kinds is None:
        return frozenset(EventKind)
    try:
        wanted = frozenset(kinds)
    except TypeError:
        wanted = frozenset({kinds})
    if not all(isinstance(kind, EventKind) for kind in wanted):
        raise ConfigError(f"listener {listener!r}: kinds={kinds!r} must be a collection of EventKind", "listeners")
    return wanted
