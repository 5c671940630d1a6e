"""A token bucket: a limit on a burst and on the rate."""

from __future__ import annotations

__all__ = ("Allowance",)


class Allowance:
    """Lets ``burst`` through at once and ``burst`` in each ``per`` seconds; counts what it holds back."""

    __slots__ = ("_at", "_burst", "_per", "_tokens", "held_back")

    def __init__(self, burst: int, per: float, now: float) -> None:
        self._burst = burst
        self._per = per
        self._tokens = float(burst)
        self._at = now
        self.held_back = 0

    def take(self, now: float) -> int | None:
        """Take one. Returns None if it is suppressed, otherwise the number suppressed before it."""
        self._tokens = min(float(self._burst), self._tokens + max(0.0, now - self._at) * self._burst / self._per)
        self._at = now
        if self._tokens < 1.0:
            self.held_back += 1
            return None
        self._tokens -= 1.0
        held, self.held_back = self.held_back, 0
        return held
