"""Requests of tasks on an open HTTP/1.1 connection, without httpcore's layers. See _http11.py."""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import h11

from poolkit import AsyncLease, PoolConfig
from poolkit.errors import LeaseOverdue

from ._driver import DRIVER, async_http11, httpcore
from ._http11 import Heads, Incoming, hand_over, head_ends, parse
from ._network import first_step

if TYPE_CHECKING:
    from ._base import ConnectorMixin
    from ._link import Link

__all__ = ("AsyncAnswer", "AsyncDirect")

_logger = logging.getLogger(f"{DRIVER}.http11")  # httpcore's, which logs each step at DEBUG
_States = async_http11.HTTPConnectionState

MOST = 64 * 1024
"""Bytes of one read, and of a body that is sent together with its head."""


class AsyncDirect:
    """Sends requests over the network stream of an idle connection of httpcore.

    The connection stays in charge: it learns when a request begins and ends, and takes over an exchange that is not in
    the usual form.
    """

    __slots__ = ("_heads", "_stream", "connection")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self._heads = Heads()
        self._stream: httpcore.AsyncNetworkStream = connection._network_stream

    def prepared(self, request: httpcore.Request, held: tuple[type, ...]) -> tuple[bytes, int, bytes | None] | None:
        """Return the head of a request, the length of its body (-1: chunked) and the body if it is one of ``held``.

        None: httpcore must send it, because it is traced, logged or in an unusual form.
        """
        if "trace" in request.extensions or _logger.isEnabledFor(logging.DEBUG):
            return None
        encoded = self._heads.encode(request.method, request.url.target, request.headers)
        if encoded is None:
            return None
        head, length = encoded
        if not isinstance(request.stream, held):
            return head, length, None
        body = b"".join(request.stream)  # type: ignore[arg-type]
        if length < 0:
            body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        elif length != len(body):
            return None
        return head, length, body

    async def exchange(
        self, request: httpcore.Request, prepared: tuple[bytes, int, bytes | None]
    ) -> tuple[Incoming, Sequence[bytes]] | httpcore.Response:
        """Send a request. Return its response and the first parts of the body, or httpcore's response."""
        connection = self.connection
        if connection._state is not _States.IDLE:
            raise httpcore.ConnectionNotAvailable
        connection._state = _States.ACTIVE
        connection._request_count += 1
        connection._expire_at = None
        timeouts: dict[str, float | None] = request.extensions.get("timeout") or {}
        data = b""
        try:
            try:
                await self._send(request, prepared, timeouts.get("write"))
            except httpcore.WriteError:  # the server may have answered and closed, so read that
                pass
            end = 0
            while True:
                if end:
                    break
                part = await self._stream.read(MOST, timeouts.get("read"))
                if not part:
                    raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
                data = data + part if data else part
                end = head_ends(data)
            found = parse(data, end, request.method == b"HEAD") if end > 0 else None
            if found is None:
                return await self._by_h11(request, data)
            return found, found.body.feed(data[end + 4 :])
        except BaseException:
            if data and connection._h11_state.trailing_data == (b"", False):
                connection._h11_state.receive_data(data)  # part of a response: the request must not be sent again
            self.abort()
            raise

    async def _send(
        self, request: httpcore.Request, prepared: tuple[bytes, int, bytes | None], timeout: float | None
    ) -> None:
        head, length, body = prepared
        write = self._stream.write
        if body is not None:
            if len(body) <= MOST:
                await write(head + body, timeout)
            else:
                await write(head, timeout)
                await write(body, timeout)
            return
        await write(head, timeout)
        parts = aiter(request.stream)  # type: ignore[arg-type]
        left = length
        try:
            async for part in parts:
                if length < 0:
                    if part:
                        await write(b"%x\r\n%b\r\n" % (len(part), part), timeout)
                    continue
                left -= len(part)
                if left < 0:
                    raise h11.LocalProtocolError("Too much data for declared Content-Length")
                await write(bytes(part), timeout)
        finally:
            if inspect.isasyncgen(parts):  # otherwise it stays suspended after an error
                await parts.aclose()
        if length < 0:
            await write(b"0\r\n\r\n", timeout)
        elif left:
            raise h11.LocalProtocolError("Too little data for declared Content-Length")

    async def _by_h11(self, request: httpcore.Request, data: bytes) -> httpcore.Response:
        """Let httpcore's connection receive the response, of which ``data`` has arrived."""
        connection = self.connection
        hand_over(connection._h11_state, request.method, data)
        version, status, reason, headers, _ = await connection._receive_response_headers(request=request)
        return httpcore.Response(
            status=status,
            headers=headers,
            content=async_http11.HTTP11ConnectionByteStream(connection, request),
            extensions={"http_version": version, "reason_phrase": reason, "network_stream": self._stream},
        )

    def rest_by_h11(self, request: httpcore.Request, found: Incoming) -> Any:
        """Let httpcore's connection receive the rest of a chunked body. Return the stream of it."""
        connection = self.connection
        hand_over(connection._h11_state, request.method, found.body.odd or b"", chunks=True, keep=found.keep)
        return async_http11.HTTP11ConnectionByteStream(connection, request)

    def read(self, timeout: float | None) -> Any:
        """Read what has arrived, b"" at the end of the stream. Raises httpcore's errors."""
        return self._stream.read(MOST, timeout)

    @property
    def stream(self) -> httpcore.AsyncNetworkStream:
        """The network stream."""
        return self._stream

    def release(self) -> None:
        """Record that the exchange has ended and the connection can carry the next one."""
        connection = self.connection
        connection._state = _States.IDLE
        if connection._keepalive_expiry is not None:
            connection._expire_at = time.monotonic() + connection._keepalive_expiry

    def abort(self) -> None:
        """Close the connection without a suspension, so that no cancellation can interrupt it."""
        self.connection._state = _States.CLOSED
        first_step(self._stream.aclose)


class AsyncAnswer:
    """A response whose head has arrived, and the stream of its body. Closing it gives the connection back."""

    def __init__(
        self,
        request: httpcore.Request,
        found: Incoming,
        parts: Sequence[bytes],
        lease: AsyncLease[Link[Any]],
        config: PoolConfig,
        connector: ConnectorMixin[Any],
    ) -> None:
        self._request: Any = request
        self._found: Any = found
        self._parts = parts  # of the body, that have arrived with the head
        self._link = link = lease.connection
        self._direct: AsyncDirect = link.shortcut
        self._lease: Any = lease
        self._config = config
        self._connector = connector
        self._rest: Any = None  # the stream of the rest of the body, if h11 parses it
        self._reading = False
        self._closed = False
        self.status = found.status
        self.headers: Sequence[tuple[bytes, bytes]] = found.headers

    @property
    def extensions(self) -> dict[str, Any]:
        """Those of httpcore's response, while the answer is open."""
        reason, stream = self._found.reason, self._direct.stream
        return {"http_version": b"HTTP/1.1", "reason_phrase": reason, "network_stream": stream}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        request, found, lease = self._request, self._found, self._lease  # close() lets go of them
        try:
            self._check()
            body = found.body
            parts, self._parts = self._parts, ()
            while True:
                for part in parts:
                    yield part
                    self._check()
                if body.done:
                    return
                if body.failed is not None:
                    raise body.failed
                if body.odd is not None:
                    break
                self._reading = True
                data = await self._direct.read((request.extensions.get("timeout") or {}).get("read"))
                self._reading = False
                self._check()
                if data:
                    parts = body.feed(data)
                else:
                    parts = ()
                    body.end()
            async for part in self._by_h11():
                yield part
        except BaseException as error:
            if not self._closed:
                with contextlib.suppress(LeaseOverdue):  # it must not replace the error
                    await self.aclose()
                if self._rest is None:
                    self._connector.failed(self._link, lease.since, error)
            if isinstance(error, Exception):  # others are raised as they are, also while the interpreter shuts down
                self._raise(error)
            raise

    def _check(self) -> None:
        """Raise ReadError if the response was closed, because the connection may carry another request by now."""
        if self._closed:
            raise httpcore.ReadError("the response was closed")

    def _raise(self, error: BaseException) -> NoReturn:
        """Raise an error of the body for its reader."""
        raise error

    def _by_h11(self) -> Any:
        """Return the stream of the rest of the body. It also owns the lease from now on."""
        from ._async import _Body  # that module imports this one

        if self._rest is None:
            self._connector.odd.add()
            stream = self._direct.rest_by_h11(self._request, self._found)
            self._rest = _Body(stream, self._link, self._lease, self._config, self._connector)
        return self._rest

    async def aclose(self) -> None:
        """Give the connection back, or close it if the response is incomplete."""
        if self._closed:
            return
        self._closed = True
        body = self._found.body
        if not (body.done or self._reading or body.odd is not None):
            self._take_rest()
        if body.odd is not None:
            await self._by_h11().aclose()
            return
        if body.done and self._found.keep and not body.surplus and self._config.max_idle != 0:
            self._direct.release()
            overdue = self._lease.close_nowait()
        else:
            self._direct.abort()
            overdue = self._lease.close_nowait(discard=True)
        # httpx holds a closed response in a reference cycle: what is kept here would be left to the garbage collector
        self._request = self._found = self._lease = None
        self.headers = ()
        if overdue is not None:
            raise overdue

    def _take_rest(self) -> None:
        """Read the response to its end, if the end has arrived. See _rest.py."""
        if self._link.process != os.getpid():
            return
        with contextlib.suppress(Exception):  # the end of the stream, a custom stream: the body stays incomplete
            if data := self._link.take():
                self._found.body.feed(data)
