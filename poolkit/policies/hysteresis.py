"""Decide when an alert begins and ends, without switching at each crossing of the threshold."""

from __future__ import annotations

__all__ = ("Hysteresis",)


class Hysteresis:
    """An alert begins when a value has been above ``above`` for ``after`` seconds. It ends when the value is at or
    below ``below``.

    Between the two thresholds nothing changes, so a value that fluctuates around one of them raises one alert, not
    many.
    """

    __slots__ = ("_above", "_after", "_below", "_since", "raised")

    def __init__(self, above: float, below: float, after: float = 0.0) -> None:
        self._above = above
        self._below = below
        self._after = after
        self._since: float | None = None
        self.raised = False

    def update(self, value: float, now: float) -> bool:
        """Record a value. Returns whether that raised or ended the alert (see ``raised``)."""
        if self.raised:
            if value <= self._below:
                self.raised, self._since = False, None
                return True
            return False
        if value <= self._above:
            self._since = None
            return False
        if self._since is None:
            self._since = now
        if now - self._since < self._after:
            return False
        self.raised = True
        return True
