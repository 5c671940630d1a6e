"""A resolver that a test controls, in place of the system's."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from tests.support.waiting import PATIENCE

__all__ = ("ANSWERS", "SILENT", "Resolver")

ANSWERS = "answers.test"
"""A name that has the addresses which :attr:`Resolver.addresses` lists."""
SILENT = "silent.test"
"""A name for which there is no answer until the test ends or :meth:`Resolver.answer` is called."""


class Resolver:
    """Stands in for ``socket.getaddrinfo``; other names go to the system's resolver."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses = ["127.0.0.1"]
        self.asked: list[str] = []
        self.over = threading.Event()
        self._answers = False
        self._system = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def answer(self) -> None:
        """Answer for the silent name too: pending lookups fail with "try again"."""
        self._answers = True
        self.over.set()

    def __call__(self, host: Any, *args: Any, **kwargs: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name == SILENT and not self._answers:
            self.asked.append(name)
            self.over.wait(PATIENCE)
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        if name in (ANSWERS, SILENT):
            self.asked.append(name)
            if not self.addresses:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [answer for address in self.addresses for answer in self._system(address, *args, **kwargs)]
        return self._system(host, *args, **kwargs)
