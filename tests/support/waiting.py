"""How long tests wait for something that must happen, and the functions that wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import pytest

__all__ = ("PATIENCE", "leak_warning", "until", "until_async")

PATIENCE = 60.0
"""Seconds that a test waits for something that must happen: long, because only a failing test uses it up."""


def until(condition: Callable[[], object], what: str = "it happens") -> None:
    """Wait until another thread or process makes the condition true. Raises AssertionError after PATIENCE seconds."""
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


@contextmanager
def leak_warning(match: str | None = None) -> Iterator[pytest.WarningsRecorder]:
    """Expect the ResourceWarning of a dropped lease within the block, and wait for it at the end of the block.

    Whichever thread works in the pool at that moment gives the warning: it may be a thread of the pool, after the
    lease's place is free.
    """
    with pytest.warns(ResourceWarning, match=match) as caught:
        yield caught
        until(lambda: len(caught), "the dropped lease is told of")
