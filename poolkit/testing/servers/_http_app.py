"""The application of :class:`HTTPServer`: a few routes with known behaviour, and the server's counters."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import parse_qs

__all__ = ("Application", "Book", "Closable")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class Closable(Protocol):
    """One accepted connection, which the server can close."""

    def close(self) -> None:
        """Close the connection after everything that was written is sent."""

    def is_closing(self) -> bool:
        """Whether the connection is closed or closing."""
        ...


class Book:
    """The server's counters: TCP connections by the client's port, and requests."""

    def __init__(self) -> None:
        self.connections: dict[int, Closable] = {}
        self.accepted = 0
        self.max_open = 0
        self.requests = 0
        self.active = 0
        self.max_active = 0

    def opened(self, port: int, connection: Closable) -> None:
        """Record that a connection from this client port was accepted, and its TLS handshake is done."""
        self.connections[port] = connection
        self.accepted += 1
        self.max_open = max(self.max_open, self.open)

    def closed(self, port: int) -> None:
        """Record that the connection from this client port is closed."""
        self.connections.pop(port, None)

    @property
    def open(self) -> int:
        """TCP connections open now. The protocol layer may keep its record of a closed connection for longer."""
        return sum(not connection.is_closing() for connection in self.connections.values())

    def numbers(self) -> dict[str, int]:
        """Return the counters under the names of ``HTTPStats``."""
        return {
            "accepted": self.accepted,
            "open": self.open,
            "max_open": self.max_open,
            "requests": self.requests,
            "max_active": self.max_active,
        }


class Application:
    """An ASGI 3 application; its routes are described in :class:`poolkit.testing.servers.HTTPServer`."""

    def __init__(self, book: Book) -> None:
        self.book = book

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no such protocol here: {scope['type']}")
        self.book.requests += 1
        self.book.active += 1
        self.book.max_active = max(self.book.max_active, self.book.active)
        try:
            await self._answer(scope, receive, send)
        finally:
            self.book.active -= 1

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        query = {key: values[-1] for key, values in parse_qs(scope["query_string"].decode()).items()}
        client = scope.get("client") or ("", 0)
        port, version = int(client[1] or 0), str(scope.get("http_version", ""))
        facts: dict[str, object] = {"client_port": port, "http_version": version}
        path = scope["path"]

        async def head(status: int, kind: bytes, length: int | None, *more: tuple[bytes, bytes]) -> None:
            headers = [(b"content-type", kind), (b"x-client-port", str(port).encode()), *more]
            if length is not None:
                headers.append((b"content-length", str(length).encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})

        async def reply(data: dict[str, object], status: int = 200, *more: tuple[bytes, bytes]) -> None:
            body = json.dumps(data).encode()
            await head(status, b"application/json", len(body), *more)
            await send({"type": "http.response.body", "body": body})

        if path == "/":
            await reply({"server": "poolkit", **facts})
        elif path == "/echo":
            await reply({"key": query.get("key"), **facts})
        elif path == "/sleep":
            await asyncio.sleep(float(query.get("ms", "0")) / 1000)
            await reply({"slept_ms": float(query.get("ms", "0")), **facts})
        elif path == "/bytes":
            body = b"x" * int(query.get("n", "0"))
            await head(200, b"application/octet-stream", len(body))
            await send({"type": "http.response.body", "body": body})
        elif path == "/stream":
            await head(200, b"text/plain", None)
            for number in range(int(query.get("chunks", "10"))):
                await asyncio.sleep(float(query.get("ms", "0")) / 1000)
                chunk = f"chunk {number}\n".encode()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        elif path == "/upload":
            length = 0
            while True:
                message = await receive()
                length += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body"):
                    break
            await reply({"length": length, **facts})
        elif path == "/close":
            # HTTP/2 has no such header: there the connection closes after the answer
            more = () if version.startswith("2") else ((b"connection", b"close"),)
            await reply(facts, 200, *more)
            self._close_soon(port)
        elif path == "/close-all":
            count = len(self.book.connections)
            await reply({"closed": count, **facts})
            self.close_all()
        elif path == "/status":
            await reply(facts, int(query.get("code", "200")))
        elif path == "/stats":
            await reply({**self.book.numbers(), **facts})
        else:
            await reply({"error": "no such route", "path": path, **facts}, 404)

    def close_all(self) -> None:
        """Close every connection, 20 ms from now."""
        for port in list(self.book.connections):
            self._close_soon(port)

    def _close_soon(self, port: int) -> None:
        connection = self.book.connections.get(port)
        if connection is not None:
            # the protocol layer writes the answer in a task of its own, so wait until that is done
            asyncio.get_running_loop().call_later(0.02, connection.close)
