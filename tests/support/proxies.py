"""Proxies that clients know of: HTTP (forwarding and CONNECT) and SOCKS5, on loopback, in one thread each."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from urllib.parse import urlsplit

from poolkit.testing.servers import free_port
from tests.support.loops import LoopServer

__all__ = ("HTTPProxy", "SOCKSProxy")


class _Proxy(LoopServer):
    """A proxy that relays until either side closes."""

    scheme = ""
    ends = (OSError, EOFError, ValueError)

    def __init__(self) -> None:
        super().__init__("test-proxy", free_port())
        self.targets: list[tuple[str, int]] = []

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"

    async def _dial(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.targets.append((host, port))
        reader, writer = await asyncio.open_connection(host, port)
        self._writers.append(writer)
        return reader, writer

    async def _relay(
        self,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        ways = [
            asyncio.create_task(_copy(client[0], server[1])),
            asyncio.create_task(_copy(server[0], client[1])),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            server[1].close()


class HTTPProxy(_Proxy):
    """CONNECT makes a tunnel. A request with an absolute address is forwarded; the connection then belongs to
    that server, which is what clients that keep one connection per origin do with it."""

    scheme = "http"

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        back: asyncio.Task[None] | None = None
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, _, rest = head.partition("\r\n")
                method, target, version = line.split(" ")
                if method == "CONNECT":
                    host, _, port = target.rpartition(":")
                    server = await self._dial(host, int(port))
                    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    await self._relay((reader, writer), server)
                    return
                parts = urlsplit(target)
                if server is None or back is None:
                    server = await self._dial(parts.hostname or "", parts.port or 80)
                    back = asyncio.create_task(_copy_then_close(server[0], writer))
                path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
                server[1].write(f"{method} {path} {version}\r\n{rest}".encode("latin-1"))
                length = [line for line in rest.lower().split("\r\n") if line.startswith("content-length:")]
                if length:
                    server[1].write(await reader.readexactly(int(length[0].partition(":")[2])))
                await server[1].drain()
        finally:
            if back is not None:
                back.cancel()
                await asyncio.gather(back, return_exceptions=True)
            if server is not None:
                server[1].close()


class SOCKSProxy(_Proxy):
    """SOCKS 5, CONNECT only; without authentication, or with the user and password given."""

    scheme = "socks5"

    def __init__(self, user: str = "", password: str = "") -> None:
        super().__init__()
        self._secret = (user.encode(), password.encode()) if user else None

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, count = await reader.readexactly(2)
        methods = await reader.readexactly(count)
        method = 2 if self._secret else 0
        if method not in methods:
            writer.write(b"\x05\xff")
            return
        writer.write(bytes([5, method]))
        if self._secret:
            await reader.readexactly(1)
            given = tuple([await reader.readexactly((await reader.readexactly(1))[0]) for _ in range(2)])
            writer.write(b"\x01\x00" if given == self._secret else b"\x01\x01")
            if given != self._secret:
                return
        _, command, _, kind = await reader.readexactly(4)
        if kind == 1:
            host = ".".join(map(str, await reader.readexactly(4)))
        elif kind == 3:
            host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
        else:
            writer.write(b"\x05\x08\x00\x01" + bytes(6))
            return
        (port,) = struct.unpack("!H", await reader.readexactly(2))
        if command != 1:
            writer.write(b"\x05\x07\x00\x01" + bytes(6))
            return
        try:
            server = await self._dial(host, port)
        except OSError:
            writer.write(b"\x05\x05\x00\x01" + bytes(6))
            return
        writer.write(b"\x05\x00\x00\x01" + bytes(6))
        await self._relay((reader, writer), server)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def _copy_then_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await _copy(reader, writer)
    writer.close()
