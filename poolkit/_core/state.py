"""The features of a pool, its phase, and its counters."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from ..events import CloseReason

__all__ = ("LOOK_EVERY", "Counts", "Features", "Phase")

LOOK_EVERY = 5.0  # seconds between two looks at an idle connection for one that the peer has closed


class Phase(Enum):
    """Whether the pool admits callers."""

    OPEN = "open"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True)
class Features:
    """Abilities of the connector, and how the pool uses it."""

    checks: bool = False  # has check()
    peeks: bool = False  # has peek()
    keyed: bool = False  # many endpoints; each acquire names the key of one
    lazy: bool = False  # the first user of a connection may have to open it
    reports_errors: bool = False  # after a failed connect, callers that no connection can serve fail at once
    elsewhere: bool = False  # callers can go to another pool: after a failed connect they fail at once

    @property
    def on_demand(self) -> bool:
        """Whether connections are opened only for callers: the pool knows no key, or cannot open them by itself."""
        return self.keyed or self.lazy


class Counts:
    """Totals that cannot be computed from the existing slots. Written under the lock."""

    __slots__ = (
        "busy", "checks", "closes", "connect_errors", "connects", "failed_checks", "leaks", "overloads",
        "reclaimed", "reported", "timeouts", "uses", "waits",
    )  # fmt: skip

    def __init__(self) -> None:
        self.connects = self.connect_errors = self.checks = self.failed_checks = 0
        self.timeouts = self.leaks = 0
        self.waits = 0  # of endpoints that are gone; each existing queue counts its own
        self.overloads = 0  # times that a queue became overloaded
        self.reclaimed = 0  # slots that were reclaimed from interrupted threads
        self.uses = 0  # of connections that are gone; each existing slot counts its own
        self.busy = 0.0
        self.reported: tuple[int, float] = (0, 0.0)  # uses and busy seconds of all connections, as last reported
        self.closes: dict[CloseReason, int] = dict.fromkeys(CloseReason, 0)
