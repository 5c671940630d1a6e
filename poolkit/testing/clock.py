"""A clock that a test moves."""

from __future__ import annotations

__all__ = ("ManualClock",)


class ManualClock:
    """``clock()`` returns the time in seconds; :meth:`advance` moves it. Pass it as ``Pool(..., clock=clock)``."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move the clock forward by ``seconds``. Raises ValueError for a negative number."""
        if seconds < 0:
            raise ValueError(f"advance({seconds!r}): must be 0 or more; the clock cannot move backwards")
        self.now += seconds
