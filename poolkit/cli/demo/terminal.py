"""The output of the demos, and their end by a signal."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from rich.console import Console

__all__ = ("console_for", "terminable")


def console_for(as_json: bool) -> Console:
    """Standard output, or standard error if standard output is for the numbers."""
    console = Console(file=sys.stderr if as_json else sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 110)  # a file or pipe has no edge
    return console


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM end the servers on the way out, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
