"""Events of a pool as plain records, and the listeners that receive them.

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

    __hash__ = object.__hash__  # Enum's own __hash__ is a Python function, called for each possible event

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
    OVERLOAD_BEGAN = "overload began"
    OVERLOAD_ENDED = "overload ended"
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
    """One event of a pool. Fields that do not apply are None.

    ``at`` is the time in seconds of the pool's clock. ``connection_id`` numbers the connections of a pool in the order
    of their creation, from 1. ``duration`` is in seconds: of the connect (ready), of the wait (acquired, acquire
    failed), of the lease (released, lease leaked), of the connection's life (closed). ``key`` is the endpoint of a
    keyed pool.
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
"""A function that is called for each event, in order, never under the pool's lock. It runs in the thread or task of the
event. A listener that raises is logged once and removed.

If it has an attribute ``kinds``, a collection of :class:`EventKind`, it is called for these kinds only.
"""

OF_EACH_LEASE = frozenset({EventKind.ACQUIRE_STARTED, EventKind.ACQUIRED, EventKind.RELEASED})
"""The kinds of event that every lease emits. Without a listener for them, acquire and release cost the same as without
any listener; ``stats()`` has the numbers in any case."""


def kinds_of(listener: Listener) -> frozenset[EventKind]:
    """The kinds of event that ``listener`` wants: its ``kinds``, or all. Raises ConfigError for invalid kinds."""
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
