"""A resolver that the run can make hang."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any

__all__ = ("NAME", "Resolver", "resolver")

NAME = "reliability.test"


class Resolver:
    """Replaces ``socket.getaddrinfo`` of this process."""

    def __init__(self) -> None:
        self._system = socket.getaddrinfo
        self._answers = threading.Event()
        self._answers.set()

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (NAME, NAME.encode()):
            self._answers.wait(60)
            host = "127.0.0.1"
        return self._system(host, *args, **kwargs)

    def hang(self) -> None:
        """Give no answer from now on, not even to calls that are running."""
        self._answers.clear()

    def answer(self) -> None:
        """Answer all calls that wait."""
        self._answers.set()


@contextlib.contextmanager
def resolver() -> Iterator[Resolver]:
    """Replace the resolver of this process during the block."""
    made = Resolver()
    before, socket.getaddrinfo = socket.getaddrinfo, made
    try:
        yield made
    finally:
        made.answer()
        socket.getaddrinfo = before
