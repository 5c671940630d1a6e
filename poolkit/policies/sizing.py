"""How many connections to open now."""

from __future__ import annotations

import math

__all__ = ("dials_wanted", "pace", "patience")


def dials_wanted(waiting: int, connecting: int, streams: int) -> int:
    """Further connects that ``waiting`` callers need, beside the ``connecting`` ones on their way.

    ``streams`` is the number of leases that one new connection is expected to serve (1 unless multiplexed).
    """
    return max(0, math.ceil(waiting / streams) - connecting)


def pace(connect_time: float | None) -> float:
    """Seconds that a burst waits after its first dial before it dials for everybody.

    While connections are in use they may come back sooner than new ones can be opened; a quarter of the usual
    connect time shows which it is. Opening 15 connections for callers whom 5 serve in 20 ms is what most pools
    do; opening one at a time is the other mistake. Bounded, so that neither a very fast nor a very slow server
    makes the pause absurd.
    """
    if connect_time is None:
        return 0.01
    return min(0.05, max(0.001, connect_time / 4))


def patience(connect_time: float | None) -> float:
    """Seconds for which callers count on a connect that is to carry them all, before there is another beside it.

    One lost packet must not hold up everybody who would share the connection. Twice the usual time says that
    something is amiss, but not sooner than after a quarter of a second, which is when Chromium starts its backup
    connect (net/socket, TransportClientSocketPool). Bounded: a server that has become slow on the whole is not to be
    trusted with all the time that the callers have.
    """
    if connect_time is None:
        return 0.25
    return min(0.5, max(0.25, 2 * connect_time))
