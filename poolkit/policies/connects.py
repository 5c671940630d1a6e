"""Connects: how many to begin now, when to try again after some that failed, and when to stop trying for a while."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import Enum

from ..config import BackoffConfig, BreakerConfig

__all__ = ("Breaker", "BreakerState", "connects_wanted", "default_bound", "full_jitter", "growth", "pace", "patience")


_SHORTEST = 0.001


def connects_wanted(waiting: int, connecting: int, streams: int) -> int:
    """Further connects that ``waiting`` callers need, beside the ``connecting`` ones on their way.

    ``streams`` is the number of leases that one new connection is expected to serve (1 unless multiplexed).
    """
    return max(0, math.ceil(waiting / streams) - connecting)


def pace(connect_time: float | None) -> float:
    """Seconds between the first connect of a burst and the second.

    Connections in use may be returned sooner than new ones can be opened; a quarter of the usual connect time shows
    which is the case. Most pools open 15 connections where 5 would serve the callers in 20 ms. Opening one at a time is
    the opposite mistake. The pause is bounded, so that it stays sensible for very fast and very slow servers.
    """
    if connect_time is None:
        return 0.01
    return min(0.05, max(_SHORTEST, connect_time / 4))


def growth(pause: float, opening: int) -> float:
    """Seconds after the begin of a burst at which one more connect may begin beside the ``opening`` ones.

    The first one begins after ``pause``, and each further one after half of the previous pause. So all connects of a
    burst begin within half a connect time, and a burst that ends earlier has opened only a few. Callers that have
    waited longer get their connects at once. Pauses below a millisecond are not worth a timer.
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


def full_jitter(config: BackoffConfig, failures: int, random: Callable[[], float]) -> float:
    """Seconds to wait after ``failures`` failed connects in a row (1 or more).

    "Full jitter" (M. Brooker, AWS Architecture Blog, 2015): uniform between 0 and the exponential bound, so that
    processes that lost a server together do not reconnect together.
    """
    # 2**60 exceeds any cap; without the bound the power would overflow after days of failures
    bound = min(config.cap, config.base * 2.0 ** min(failures - 1, 60))
    return bound * random()


class BreakerState(Enum):
    """Which connects the breaker permits."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


class Breaker:
    """Counts failed connects in a row. It is informed of each success and failure and asked before each connect."""

    __slots__ = ("config", "failures", "opened_at", "state")

    def __init__(self, config: BreakerConfig | None) -> None:
        self.config = config
        self.state = BreakerState.CLOSED
        self.failures = 0
        self.opened_at = 0.0

    def may_open(self, now: float, connecting: int) -> bool:
        """Whether a connect may start now; an open breaker lets one probe through when its time has come."""
        if self.config is None or self.state is BreakerState.CLOSED:
            return True
        if self.state is BreakerState.OPEN and now >= self.opened_at + self.config.reset_timeout:
            self.state = BreakerState.HALF_OPEN
        return self.state is BreakerState.HALF_OPEN and connecting == 0

    def is_open(self, now: float) -> bool:
        """Whether callers that need a connect must fail at once."""
        if self.config is None:
            return False
        return self.state is BreakerState.OPEN and now < self.opened_at + self.config.reset_timeout

    def retry_after(self, now: float) -> float:
        """Seconds until the next probe."""
        if self.config is None or self.state is not BreakerState.OPEN:
            return 0.0
        return max(0.0, self.opened_at + self.config.reset_timeout - now)

    def succeeded(self) -> bool:
        """Record a successful connect. Returns True if that closed the breaker."""
        closed = self.state is not BreakerState.CLOSED
        self.state = BreakerState.CLOSED
        self.failures = 0
        return closed

    def failed(self, now: float) -> bool:
        """Record a failed connect. Returns True if that opened the breaker."""
        self.failures += 1
        if self.config is None:
            return False
        if self.state is BreakerState.HALF_OPEN or (
            self.state is BreakerState.CLOSED and self.failures >= self.config.failure_threshold
        ):
            self.state = BreakerState.OPEN
            self.opened_at = now
            return True
        return False


def default_bound(timeout: float | None) -> float | None:
    """Seconds after which a connect in a thread is given up that should end within ``timeout`` seconds.

    Some drivers round the limit up, or have it for each of several addresses.
    """
    return None if timeout is None else 2 * timeout + 1.0
