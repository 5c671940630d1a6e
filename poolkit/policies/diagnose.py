"""Tell why callers wait, by documented rules: numbers in, one line out. The first rule that matches is the diagnosis.

``docs/guides/explain.md`` has the rules as a table. Leaks and a slow server differ in one point: while leases leak,
other connections are still taken and returned; when the server is slow, none is returned. The rules cannot distinguish
a leak from holders that are blocked one by one by a lock outside the pool while other callers continue.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from enum import Enum

__all__ = ("OFTEN", "Cause", "Diagnosis", "Held", "Symptoms", "diagnose")

OFTEN = 10  # leases that must have ended before a usual duration is known
OVERDUE = 10.0  # a lease of so many usual durations is long: more than a large query
SLOWER = 3.0  # the same for the average of all leases: more than a busy hour
SHORTEST = 0.1  # seconds: a shorter lease is never called long
UNKNOWN = 0  # the identity of a caller that cannot be distinguished from others
PATIENCE = 1.0  # seconds without a reply to a connect, while the pool has no connection


class Cause(str, Enum):
    """What is wrong."""

    SUSPENDED = "suspended"
    SERVER_DOWN = "server down"
    SELF_DEADLOCK = "self-deadlock"
    LEAKING = "leaking"
    SERVER_SLOW = "server slow"
    CLASS_LIMIT = "class limit"
    TOO_SMALL = "too small"


@dataclass(frozen=True)
class Diagnosis:
    """The cause, and the numbers that support it."""

    cause: Cause
    reason: str

    def __str__(self) -> str:
        return f"{self.cause.value}: {self.reason}"


@dataclass(frozen=True)
class Held:
    """A current lease. ``ended``: the thread or task that took it no longer exists."""

    seconds: float
    holder: Hashable
    name: str = "somebody"
    place: str | None = None
    ended: bool = False
    reported: bool = False  # as held longer than leak_after

    @property
    def where(self) -> str:
        """By whom, and where if that is known."""
        return self.name if self.place is None else f"{self.name} at {self.place}"


@dataclass(frozen=True)
class Symptoms:
    """The input of the rules. Times are in seconds. ``usual_use``: mean duration of a lease since the pool was created.
    ``recent_use``: the same for the last minute or so. Both are None if too few leases ended. ``returned_ago``: time
    since the last return.
    """

    limit: int
    live: int = 0
    waiting: int = 0
    suspended: bool = False
    failures: int = 0  # connects that failed in a row
    breaker_open: bool = False
    last_error: str = "none"
    connecting_for: float = 0.0  # the oldest connect under way
    held: Sequence[Held] = ()  # longest first
    taken: int | None = None  # connections on lease; None: as many as leases
    waiters: frozenset[Hashable] = field(default_factory=frozenset)  # identities of those who wait
    returns: int = 0  # leases that came back since the pool was made
    usual_use: float | None = None
    recent_use: float | None = None
    returned_ago: float | None = None
    acquires_per_second: float = 0.0
    barred: str = ""  # waiting classes of callers that may not use the free capacity, and what they have

    @property
    def in_use(self) -> int:
        """Connections on lease; each may serve several leases."""
        return len(self.held) if self.taken is None else self.taken


def diagnose(seen: Symptoms, asking: Hashable = None) -> Diagnosis | None:
    """Return why callers wait; None if no caller has to wait. ``asking``: the identity of the caller that asks.

    A lease held longer than ``leak_after`` is reported as long as it is held, whether or not a caller waits.
    """
    if seen.suspended:
        return Diagnosis(Cause.SUSPENDED, "the pool hands out no connections until resume()")
    waiting = bool(seen.waiting) or asking is not None
    stands = bool(seen.held) and seen.held[0].reported
    return (
        _server_down(seen, waiting)
        or (_deadlock(seen, asking) if waiting else None)
        or (_leaking(seen) if waiting or stands or seen.in_use >= seen.limit else None)
        or (_slow(seen) if waiting else None)
        or (_class_limit(seen) if waiting else None)
        or (_too_small(seen) if waiting else None)
    )


def _server_down(seen: Symptoms, waiting: bool) -> Diagnosis | None:
    missed = waiting and seen.live < seen.limit  # more connections are wanted, and may be opened
    if seen.breaker_open or (seen.failures and (missed or not seen.live)):
        many = f"{seen.failures} connect{'s' if seen.failures > 1 else ''} in a row failed"
        return Diagnosis(Cause.SERVER_DOWN, f"{many}, the last with {seen.last_error}")
    if waiting and not seen.live and seen.connecting_for >= PATIENCE:
        return Diagnosis(Cause.SERVER_DOWN, f"no answer to a connect for {seen.connecting_for:.1f} s")
    return None


def _deadlock(seen: Symptoms, asking: Hashable) -> Diagnosis | None:
    own = [held for held in seen.held if held.holder == asking != UNKNOWN]
    if own and len(own) == len(seen.held) and seen.in_use >= seen.limit:
        own_leases = f"all {len(own)} leases" if len(own) > 1 else "the only lease"
        return Diagnosis(
            Cause.SELF_DEADLOCK,
            f"{own[0].name} waits for a connection while it holds {own_leases} of this pool",
        )
    waiters = seen.waiters if asking is None else seen.waiters | {asking}
    if seen.in_use >= seen.limit and all(held.holder != UNKNOWN and held.holder in waiters for held in seen.held):
        return Diagnosis(
            Cause.SELF_DEADLOCK,
            f"each of the {len({held.holder for held in seen.held})} holders waits for one more connection, "
            "so none is returned",
        )
    return None


def _leaking(seen: Symptoms) -> Diagnosis | None:
    late = _overdue(seen)
    forgotten = [held for held in seen.held if held.ended and held.seconds >= late]
    if forgotten:
        return Diagnosis(
            Cause.LEAKING,
            f"{_of(forgotten, seen)} held by a thread or task that has ended: {forgotten[0].where}, "
            f"for {forgotten[0].seconds:.1f} s",
        )
    suspects = [held for held in seen.held if _kept_while_others_returned(held, seen)]
    if suspects and (len(suspects) * 2 >= len(seen.held) or suspects[0].reported):
        text = (
            f"{_of(suspects, seen)} kept while others are returned; longest held {suspects[0].seconds:.1f} s by "
            f"{suspects[0].where}"
        )
        if seen.usual_use is not None:
            text += f", usually {_short(seen.usual_use)}"
        return Diagnosis(Cause.LEAKING, text)
    return None


def _of(some: Sequence[Held], seen: Symptoms) -> str:
    return f"{len(some)} of {len(seen.held)} leases {'are' if len(some) > 1 else 'is'}"


def _overdue(seen: Symptoms) -> float:
    return max(SHORTEST, OVERDUE * (seen.usual_use or 0.0))


def _kept_while_others_returned(held: Held, seen: Symptoms) -> bool:
    """Leases that were overdue, or reported, when another lease was last returned."""
    if seen.returned_ago is None:
        return False
    by_then = held.seconds - seen.returned_ago
    if held.reported:
        return by_then > 0
    return seen.usual_use is not None and by_then >= _overdue(seen)


def _slow(seen: Symptoms) -> Diagnosis | None:
    if seen.in_use >= seen.live and seen.live < seen.limit and seen.connecting_for >= PATIENCE:
        return Diagnosis(Cause.SERVER_SLOW, f"a connect has been in progress for {seen.connecting_for:.1f} s")
    usual, recent = seen.usual_use, seen.recent_use
    if usual is None or not seen.held:
        return None
    overdue = [held for held in seen.held if held.seconds >= _overdue(seen)]
    if overdue and len(overdue) * 2 >= len(seen.held):
        return Diagnosis(
            Cause.SERVER_SLOW,
            f"no connection is returned: {_of(overdue, seen)} held for up to {overdue[0].seconds:.1f} s, usually "
            f"{_short(usual)}",
        )
    if recent is not None and recent >= max(SHORTEST, SLOWER * usual):
        return Diagnosis(Cause.SERVER_SLOW, f"a lease recently took {_short(recent)}, usually {_short(usual)}")
    return None


def _class_limit(seen: Symptoms) -> Diagnosis | None:
    if not seen.barred:
        return None
    return Diagnosis(Cause.CLASS_LIMIT, f"the rest is kept for other classes of callers; {seen.barred}")


def _too_small(seen: Symptoms) -> Diagnosis | None:
    if len(seen.held) < seen.limit and seen.live < seen.limit:
        return None  # there is room: they wait for connects
    use = seen.recent_use if seen.recent_use is not None else seen.usual_use
    text = f"all {seen.limit} connections are in use, each returned"
    if use is None:
        text = f"all {seen.limit} connections are in use"
    else:
        text += f" after {_short(use)} on average"
    if use and seen.acquires_per_second:
        text += f" (so {seen.limit / use:.0f} leases/s at most)"
    return Diagnosis(Cause.TOO_SMALL, text + "; poolkit size computes how many are needed")


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
