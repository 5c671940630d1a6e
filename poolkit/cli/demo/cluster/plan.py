"""What happens when, and how much is asked."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("ADDED", "KILLED", "NODES", "SLOWED", "Plan")

NODES = ("a", "b", "c", "d", "e")
KILLED, SLOWED, ADDED = "b", "c", "e"
"""Who is killed, who gets slow, and who is not there at first."""


@dataclass(frozen=True)
class Plan:
    """The load of each cluster, and the pauses between its troubles as shares of the whole time."""

    seconds: float
    """Length of the whole; what servers take for their ends and starts comes on top."""
    callers: int = 12
    """Threads that ask."""
    pause: float = 0.02
    """Seconds between two requests of one caller, on average."""
    work: float = 0.03
    """Seconds that a server takes for one request."""
    slow: float = 0.3
    """The same of the slowed one (where it does not stand still for moments instead)."""
    size: int = 4
    """Connections to each node."""
    timeout: float = 5.0
    """Seconds that a caller grants."""

    before: float = 0.25
    without: float = 0.2
    back: float = 0.2
    added: float = 0.15
    slowed: float = 0.2
