"""How long tests wait for something that must happen, and the one loop that does it."""

from __future__ import annotations

import time
from collections.abc import Callable

import anyio

__all__ = ("PATIENCE", "until", "until_async")

PATIENCE = 60.0
"""Seconds that a test waits for something that must happen: long, because only a failing test uses it up."""


def until(condition: Callable[[], object], what: str = "it happens") -> None:
    """Wait for what another thread or process does. AssertionError after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


async def until_async(
    condition: Callable[[], object], what: str = "it happens", tell: Callable[[], object] = str
) -> None:
    """As :func:`until`, for what another task, thread or process does; ``tell()`` is added to the error."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what} {tell()}"
        await anyio.sleep(0.002)
