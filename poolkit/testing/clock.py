"""A clock that stands still until it is told to move."""

from __future__ import annotations

__all__ = ("ManualClock",)


class ManualClock:
    """``clock()`` gives the time in seconds; ``advance`` moves it on. Pass it as ``Pool(..., clock=clock)``."""

    def __init__(self, start: float = 1000.0) -> None:
        self.now = start

    def __call__(self) -> float:
        """Give the time in seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let ``seconds`` pass; never backwards."""
        if seconds < 0:
            raise ValueError(f"advance({seconds!r}): time does not run backwards")
        self.now += seconds
