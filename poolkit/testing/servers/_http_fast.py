"""A small HTTP/1.1 server for load tests: keep-alive, Content-Length and chunked bodies, nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from http import HTTPStatus
from typing import Any

from poolkit.testing.servers._http_app import Application

__all__ = ("serve_fast",)


async def serve_fast(application: Application, listener: socket.socket, context: ssl.SSLContext | None) -> None:
    """Serve on the listening socket until cancelled."""
    book = application.book

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        address = writer.get_extra_info("peername")
        book.opened(address[1], writer)
        try:
            while await _exchange(application, address, reader, writer):
                pass
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):
            pass  # the client is gone or does not speak HTTP: only this connection ends
        finally:
            book.closed(address[1])
            writer.close()

    server = await asyncio.start_server(accepted, sock=listener, ssl=context, backlog=1024)
    async with server:
        await server.serve_forever()


async def _exchange(
    application: Application,
    address: tuple[str, int],
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
) -> bool:
    """Answer one request; return whether the connection stays open."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return False
    request, *lines = head[:-4].decode("latin-1").split("\r\n")
    method, target, version = request.split(" ")
    headers = {}
    for line in lines:
        key, _, value = line.partition(":")
        headers[key.lower()] = value.strip()
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = await _body(headers, reader)
    path, _, query = target.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "client": address,
    }
    keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
    answer = _Answer(writer, head_only=method == "HEAD")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    await application(scope, receive, answer.send)
    return keep and not answer.closing


async def _body(headers: dict[str, str], reader: asyncio.StreamReader) -> bytes:
    if "chunked" in headers.get("transfer-encoding", "").lower():
        parts = []
        while size := int((await reader.readline()).split(b";")[0], 16):
            parts.append(await reader.readexactly(size))
            await reader.readexactly(2)
        while (await reader.readline()).strip():
            pass  # trailers
        return b"".join(parts)
    length = int(headers.get("content-length", "0"))
    return await reader.readexactly(length) if length else b""


class _Answer:
    """Writes what the application sends. The head is sent together with the first piece of the body."""

    def __init__(self, writer: asyncio.StreamWriter, *, head_only: bool) -> None:
        self.closing = False
        self._writer = writer
        self._head_only = head_only
        self._head = b""
        self._chunked = False

    async def send(self, message: Any) -> None:
        """Take one ASGI message."""
        if message["type"] == "http.response.start":
            self._start(message["status"], message["headers"])
            return
        data, more = message.get("body", b""), message.get("more_body", False)
        out, self._head = self._head, b""
        if not self._head_only:
            if self._chunked:
                out += b"%x\r\n%s\r\n" % (len(data), data) if data else b""
                out += b"" if more else b"0\r\n\r\n"
            else:
                out += data
        self._writer.write(out)
        if more or len(out) > 65536:
            await self._writer.drain()

    def _start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        phrase = ""
        with contextlib.suppress(ValueError):
            phrase = HTTPStatus(status).phrase
        names = {name for name, _ in headers}
        self._chunked = b"content-length" not in names
        self.closing = (b"connection", b"close") in headers
        lines = [b"HTTP/1.1 %d %s" % (status, phrase.encode())]
        lines += [b"%s: %s" % header for header in headers]
        if self._chunked:
            lines.append(b"transfer-encoding: chunked")
        self._head = b"\r\n".join(lines) + b"\r\n\r\n"
