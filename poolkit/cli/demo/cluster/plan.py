"""The schedule of events, and the load."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("ADDED", "KILLED", "NODES", "SLOWED", "Plan")

NODES = ("a", "b", "c", "d", "e")
KILLED, SLOWED, ADDED = "b", "c", "e"
"""The node that is killed, the one that becomes slow, and the one that is added later."""


@dataclass(frozen=True)
class Plan:
    """The load of each cluster, and the pauses between events as shares of the whole time."""

    seconds: float
    """Seconds of load, without the time that servers take to start and stop."""
    callers: int = 12
    """Threads that send requests."""
    pause: float = 0.02
    """Seconds between two requests of one caller, on average."""
    work: float = 0.03
    """Seconds that a server takes for one request."""
    slow: float = 0.3
    """The same of the slowed one (where it does not stand still for moments instead)."""
    size: int = 4
    """Connections to each node."""
    timeout: float = 5.0
    """Timeout of a request, in seconds."""

    before: float = 0.25
    without: float = 0.2
    back: float = 0.2
    added: float = 0.15
    slowed: float = 0.2
