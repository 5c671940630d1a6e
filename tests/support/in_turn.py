"""Waiting callers and the one that serves them, in one thread and in a fixed order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from poolkit.runtimes.threads import ThreadRuntime

__all__ = ("OneThread",)


class _Served:
    """The parker of a caller that another one serves at once, in the same thread."""

    def __init__(self, give: Callable[[], None]) -> None:
        self.wake = lambda: None
        self._give = give

    def wait(self, timeout: float | None) -> None:
        self._give()


class OneThread(ThreadRuntime):
    """A caller that must wait calls ``give`` instead of sleeping. Everything else is unchanged."""

    give: Callable[[], None] | None = None

    def parker(self) -> Any:
        return super().parker() if self.give is None else _Served(self.give)
