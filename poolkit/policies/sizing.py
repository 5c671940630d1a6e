"""How many connections to open now."""

from __future__ import annotations

import math

__all__ = ("connects_wanted", "growth", "pace", "patience")


_SHORTEST = 0.001


def connects_wanted(waiting: int, connecting: int, streams: int) -> int:
    """Further connects that ``waiting`` callers need, beside the ``connecting`` ones on their way.

    ``streams`` is the number of leases that one new connection is expected to serve (1 unless multiplexed).
    """
    return max(0, math.ceil(waiting / streams) - connecting)


def pace(connect_time: float | None) -> float:
    """Seconds between the first connect of a burst and the second.

    Connections in use may be returned sooner than new ones can be opened; a quarter of the usual connect time shows
    which is the case. Most pools open 15 connections for callers that 5 connections serve in 20 ms; opening one at a
    time is the opposite mistake. The pause is bounded, so that it stays sensible for very fast and very slow servers.
    """
    if connect_time is None:
        return 0.01
    return min(0.05, max(_SHORTEST, connect_time / 4))


def growth(pause: float, opening: int) -> float:
    """Seconds after the begin of a burst at which one more connect may begin beside the ``opening`` ones.

    The first comes after ``pause``, and each further one after half of the time before it. So all connects of a burst
    begin within half a connect time, and a burst that ends earlier has opened only a few. Callers that have queued for
    longer get theirs at once. Pauses below a millisecond are not worth a timer.
    """
    last = pause * 0.5 ** (opening - 1)
    return 2 * pause - (last if last >= _SHORTEST else 0.0)


def patience(connect_time: float | None) -> float:
    """Seconds for which callers wait for a connect that they will share, before another one starts in parallel.

    One lost packet must not delay all callers that would share the connection. Twice the usual time indicates a
    problem, but not before a quarter of a second, which is when Chromium starts its backup connect (net/socket,
    TransportClientSocketPool). The time is bounded, because a server that has become slow must not use up the callers'
    whole timeout.
    """
    if connect_time is None:
        return 0.25
    return min(0.5, max(0.25, 2 * connect_time))
