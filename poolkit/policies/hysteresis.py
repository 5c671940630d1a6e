"""When an alert begins and ends: not at each crossing of a line."""

from __future__ import annotations

__all__ = ("Hysteresis",)


class Hysteresis:
    """Begins when a value has been above ``above`` for ``after`` seconds, ends when it is at or below ``below``.

    Between the two lines nothing changes, so a value that trembles around one of them raises one alert and not fifty.
    """

    __slots__ = ("_above", "_after", "_below", "_since", "raised")

    def __init__(self, above: float, below: float, after: float = 0.0) -> None:
        self._above = above
        self._below = below
        self._after = after
        self._since: float | None = None
        self.raised = False

    def update(self, value: float, now: float) -> bool:
        """Take in a value; whether that raised or ended the alert (see ``raised``)."""
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
