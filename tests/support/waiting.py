"""How long tests wait for something that must happen, and the one loop that does it."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ("PATIENCE", "until")

PATIENCE = 60.0
"""Seconds that a test waits for something that must happen: long, because only a failing test uses it up."""


def until(condition: Callable[[], object], what: str = "it happens") -> None:
    """Wait for what another thread or process does. AssertionError after PATIENCE seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)
