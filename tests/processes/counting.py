"""The fault proxy, counting the bytes that each client connection has sent, and holding up new ones on command."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from tests.faults.proxy import FaultProxy

__all__ = ("CountingProxy",)


class CountingProxy(FaultProxy):
    """``sent[port]``: bytes from the client on that port; ``ended``: ports of the clients that have hung up."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(host, port)
        self.sent: Counter[int] = Counter()
        self.ended: set[int] = set()
        self.hold_new = False
        self.held = 0
        self._gate = asyncio.Event()

    async def _serve(self, link: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.hold_new:
            self.held += 1
            try:
                await self._gate.wait()
            finally:
                self.held -= 1
        await super()._serve(link, reader, writer)

    async def _copy(self, link: Any, reader: Any, writer: Any, *, replies: bool) -> None:
        await super()._copy(link, reader if replies else _Counted(self, link.port, reader), writer, replies=replies)

    def let_go(self) -> None:
        """Serve those that were held up."""
        self.hold_new = False
        self._loop.call(self._gate.set)


class _Counted:
    def __init__(self, proxy: CountingProxy, port: int, reader: asyncio.StreamReader) -> None:
        self.proxy, self.port, self.reader = proxy, port, reader

    async def read(self, limit: int) -> bytes:
        data = await self.reader.read(limit)
        self.proxy.sent[self.port] += len(data)
        if not data:
            self.proxy.ended.add(self.port)
        return data
