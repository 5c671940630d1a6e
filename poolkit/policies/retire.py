"""When a connection is too old, idle for too long, or in doubt."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ("NEVER", "expiry", "rotation_lead")

NEVER = float("inf")
"""A time that never comes."""


def expiry(born: float, lifetime: float | None, jitter: float, random: Callable[[], float]) -> float:
    """When a connection opened at ``born`` reaches its maximum lifetime.

    The jitter only shortens lifetimes, because ``max_lifetime`` may be a limit of the server.
    """
    if lifetime is None:
        return NEVER
    return born + lifetime * (1.0 - jitter * random())


def rotation_lead(lifetime: float | None) -> float:
    """How long in seconds before its end of life a connection's replacement is opened."""
    if lifetime is None:
        return 0.0
    return min(10.0, lifetime * 0.05)
