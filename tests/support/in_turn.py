"""Callers who wait for a connection and the one that serves them, in one thread and in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolkit.runtimes.threads import ThreadRuntime

__all__ = ("OneThread",)


class _Served:
    """Where a caller sleeps whom another one serves at once, in the same thread."""

    def __init__(self, give: Callable[[], None]) -> None:
        self.wake = lambda: None
        self._give = give

    def wait(self, timeout: float | None) -> None:
        self._give()


class OneThread(ThreadRuntime):
    """A caller that has to wait calls ``give`` instead of sleeping; housekeeping and the rest are unchanged."""

    give: Callable[[], None] | None = None

    def parker(self) -> Any:
        return super().parker() if self.give is None else _Served(self.give)
