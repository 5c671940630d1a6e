"""When a connection is too old, and when an idle one may be closed for callers of another pool, endpoint or loop."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ("LONGEST", "NEVER", "SETTLED", "evictable_at", "expiry", "rotation_lead")

NEVER = float("inf")
"""A time that never comes."""

SETTLED = 0.1
"""Seconds for which a connection is unused before it is closed for callers elsewhere that have their share. To open
another one takes milliseconds: a connection that is used again within this time costs less where it is."""

LONGEST = 1.0
"""Seconds after which a caller may have any idle connection of another pool, endpoint or event loop, even one that is
in use again and again."""


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


def evictable_at(*, unused_since: float = NEVER, waiting_since: float = NEVER) -> float:
    """When an idle connection may be closed for a caller elsewhere that has its share: after the connection has been
    unused for ``SETTLED`` seconds, or the caller has waited for ``LONGEST``.

    Callers below their share need not wait for that. Without this rule, busy pools or endpoints would take connections
    from each other between any two leases, and close and open one each time. A place that knows only one of the two
    times gives only that one.
    """
    return min(unused_since + SETTLED, waiting_since + LONGEST)
