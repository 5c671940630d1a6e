"""Requests of tasks on an open HTTP/1.1 connection, without httpcore's layers. See _http11.py."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator
from typing import Any

from poolkit import AsyncLease
from poolkit.errors import LeaseOverdue

from ._driver import async_http11, httpcore
from ._http11 import Incoming, head_ends, parse
from ._http11_exchange import MOST, AnswerBase, DirectBase, Prepared, check_length
from ._network import first_step

__all__ = ("AsyncAnswer", "AsyncDirect")

_States = async_http11.HTTPConnectionState


class AsyncDirect(DirectBase):
    """Sends requests of tasks. See :class:`DirectBase`."""

    __slots__ = ()

    _http11 = async_http11

    async def exchange(self, request: httpcore.Request, prepared: Prepared) -> Incoming | httpcore.Response:
        """Send a request. Return its response, or httpcore's."""
        connection = self.connection
        if connection._state is not _States.IDLE:
            raise httpcore.ConnectionNotAvailable
        connection._state = _States.ACTIVE
        connection._request_count += 1
        connection._expire_at = None
        timeouts: dict[str, float | None] = request.extensions.get("timeout") or {}
        first, length, body = prepared
        data = b""
        try:
            try:
                await self.stream.write(first, timeouts.get("write"))
                if length is not None:
                    await self._send_body(request, length, body, timeouts.get("write"))
            except httpcore.WriteError:  # the server may have answered and stopped reading, so read that
                self.hand_over(request, data, sent=False)
                return self.response(request, await connection._receive_response_headers(request=request))
            end = 0
            while True:
                if end:
                    break
                part = await self.stream.read(MOST, timeouts.get("read"))
                if not part:
                    raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
                data = data + part if data else part
                end = head_ends(data)
            found = parse(data, end, request.method == b"HEAD") if end > 0 else None
            if found is not None:
                return found
            self.hand_over(request, data)
            return self.response(request, await connection._receive_response_headers(request=request))
        except BaseException:
            self.broken_off(data)
            self.abort()
            raise

    async def _send_body(
        self, request: httpcore.Request, length: int, body: bytes | None, timeout: float | None
    ) -> None:
        write = self.stream.write
        if body is not None:
            await write(body, timeout)
            return
        parts = aiter(request.stream)  # type: ignore[arg-type]
        left = length
        try:
            async for part in parts:
                if length < 0:
                    if part:
                        await write(b"%x\r\n%b\r\n" % (len(part), part), timeout)
                    continue
                left -= len(part)
                check_length(left, ended=False)
                await write(bytes(part), timeout)
        finally:
            if inspect.isasyncgen(parts):  # otherwise it stays suspended after an error
                await parts.aclose()
        if length < 0:
            await write(b"0\r\n\r\n", timeout)
        else:
            check_length(left, ended=True)

    def read(self, timeout: float | None) -> Any:
        """Read what has arrived, b"" at the end of the stream. Raises httpcore's errors."""
        return self.stream.read(MOST, timeout)

    def abort(self) -> None:
        """Close the connection without a suspension, so that no cancellation can interrupt it."""
        self.connection._state = _States.CLOSED
        first_step(self.stream.aclose)


class AsyncAnswer(AnswerBase[AsyncLease[Any]]):
    """A response to a task."""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        request, found, lease = self._request, self._found, self._lease  # close() lets go of them
        try:
            self._check()
            body = found.body
            parts, found.parts = found.parts, ()
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
                data = await self._link.shortcut.read((request.extensions.get("timeout") or {}).get("read"))
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

    def _by_h11(self) -> Any:
        """Return the stream of the rest of the body. It also owns the lease from now on."""
        from ._async import _Body  # that module imports this one

        if self._rest is None:
            self._connector.odd.add()
            stream = self._link.shortcut.rest_by_h11(self._request, self._found)
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
            self._link.shortcut.release()
            overdue = self._lease.close_nowait()
        else:
            self._link.shortcut.abort()
            overdue = self._lease.close_nowait(discard=True)
        self._let_go()
        if overdue is not None:
            raise overdue
