"""What a pool can do, whether it is open, and what it has counted."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..events import CloseReason

__all__ = ("LOOK_EVERY", "Counts", "Features", "Phase")

LOOK_EVERY = 5.0  # seconds between two looks at idle connections for a peer that has hung up


class Phase(Enum):
    """Whether the pool admits callers."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True)
class Features:
    """What the connector can do and how the pool uses it."""

    checks: bool = False  # has check()
    peeks: bool = False  # has peek()
    keyed: bool = False  # many endpoints, the key is given with each acquire
    reports_errors: bool = False  # callers that no connection can serve hear of a failed connect at once
    elsewhere: bool = False  # callers can go to another pool: they hear of a failed connect at once


class Counts:
    """Running totals of what leaves no trace in the slots. Written under the lock."""

    __slots__ = (
        "busy", "checks", "closes", "connect_errors", "connects", "failed_checks", "leaks", "overloads",
        "reclaimed", "timeouts", "uses", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connects = self.connect_errors = self.checks = self.failed_checks = 0
        self.timeouts = self.leaks = 0
        self.waits = 0  # at endpoints that are gone; the queues of the others count theirs
        self.overloads = 0  # times that a queue became overloaded
        self.reclaimed = 0  # slots that interrupted threads have left in nobody's hands
        self.uses = 0  # of connections that are gone; the others keep their own ledger
        self.busy = 0.0
        self.closes: dict[CloseReason, int] = dict.fromkeys(CloseReason, 0)
