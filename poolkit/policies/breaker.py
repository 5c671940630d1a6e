"""Circuit breaker: closed, open, half-open (M. Nygard, "Release It!")."""

from __future__ import annotations

from enum import Enum

from ..config import BreakerConfig

__all__ = ("Breaker", "BreakerState")


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
        """Whether callers who would need a connect must fail at once."""
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
