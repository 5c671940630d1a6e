"""Requests of threads on an open HTTP/1.1 connection, without httpcore's layers. See _http11.py."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from poolkit import Lease
from poolkit.errors import LeaseOverdue

from ._driver import SyncStream, httpcore, sync_http11
from ._http11 import Incoming, head_ends, parse
from ._http11_exchange import MOST, AnswerBase, DirectBase, Prepared, check_length

if TYPE_CHECKING:
    from ._link import Link

__all__ = ("Answer", "Direct", "take_shortcut")

_States = sync_http11.HTTPConnectionState


def take_shortcut(link: Link[Any]) -> None:
    """Let further requests on an open connection take the shortcut, if it is httpcore's and speaks HTTP/1.1."""
    outer: Any = link.connection
    inner: Any = getattr(outer, "_connection", None)
    if type(outer) is httpcore.HTTPConnection and type(inner) is httpcore.HTTP11Connection:
        link.shortcut = Direct(inner)


class Direct(DirectBase):
    """Sends requests of threads. See :class:`DirectBase`."""

    __slots__ = ("_socket",)

    _http11 = sync_http11

    def __init__(self, connection: Any) -> None:
        super().__init__(connection)
        # of httpcore's own stream, whose methods only convert errors and set the timeout each time
        self._socket: Any = self.stream._sock if type(self.stream) is SyncStream else None

    def exchange(self, request: httpcore.Request, prepared: Prepared) -> Incoming | httpcore.Response:
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
                self._write(first, timeouts.get("write"))
                if length is not None:
                    self._send_body(request, length, body, timeouts.get("write"))
            except httpcore.WriteError:  # the server may have answered and stopped reading, so read that
                self.hand_over(request, data, sent=False)
                return self.response(request, connection._receive_response_headers(request=request))
            end = 0
            while True:
                if end:
                    break
                part = self.read(timeouts.get("read"))
                if not part:
                    raise httpcore.RemoteProtocolError("Server disconnected without sending a response.")
                data = data + part if data else part
                end = head_ends(data)
            found = parse(data, end, request.method == b"HEAD") if end > 0 else None
            if found is not None:
                return found
            self.hand_over(request, data)
            return self.response(request, connection._receive_response_headers(request=request))
        except BaseException:
            self.broken_off(data)
            self.abort()
            raise

    def _send_body(self, request: httpcore.Request, length: int, body: bytes | None, timeout: float | None) -> None:
        write = self._write
        if body is not None:
            write(body, timeout)
            return
        left = length
        for part in request.stream:  # type: ignore[union-attr]
            if length < 0:
                if part:
                    write(b"%x\r\n%b\r\n" % (len(part), part), timeout)
                continue
            left -= len(part)
            check_length(left, ended=False)
            write(bytes(part), timeout)
        if length < 0:
            write(b"0\r\n\r\n", timeout)
        else:
            check_length(left, ended=True)

    def read(self, timeout: float | None) -> Any:
        """Read what has arrived, b"" at the end of the stream. Raises httpcore's errors."""
        sock = self._socket
        if sock is None:
            return self.stream.read(MOST, timeout)
        try:
            if sock.gettimeout() != timeout:
                sock.settimeout(timeout)
            return sock.recv(MOST)
        except TimeoutError as error:
            raise httpcore.ReadTimeout(error) from error
        except OSError as error:
            raise httpcore.ReadError(error) from error

    def _write(self, data: bytes, timeout: float | None) -> None:
        sock = self._socket
        if sock is None:
            self.stream.write(data, timeout)
            return
        try:
            if sock.gettimeout() != timeout:
                sock.settimeout(timeout)
            sent = sock.send(data) if data else 0
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        except OSError as error:
            raise httpcore.WriteError(error) from error
        if sent < len(data):
            self.stream.write(data[sent:], timeout)

    def abort(self) -> None:
        """Record that the connection cannot carry another exchange. The pool closes it."""
        self.connection._state = _States.CLOSED


class Answer(AnswerBase[Lease[Any]]):
    """A response to a thread."""

    def __iter__(self) -> Iterator[bytes]:
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
                data = self._link.shortcut.read((request.extensions.get("timeout") or {}).get("read"))
                self._reading = False
                self._check()
                if data:
                    parts = body.feed(data)
                else:
                    parts = ()
                    body.end()
            for part in self._by_h11():
                yield part
        except BaseException as error:
            if not self._closed:
                with contextlib.suppress(LeaseOverdue):  # it must not replace the error
                    self.close()
                if self._rest is None:
                    self._connector.failed(self._link, lease.since, error)
            if isinstance(error, Exception):  # others are raised as they are, also while the interpreter shuts down
                self._raise(error)
            raise

    def _by_h11(self) -> Any:
        """Return the stream of the rest of the body. It also owns the lease from now on."""
        from ._sync import _Body  # that module imports this one

        if self._rest is None:
            self._connector.odd.add()
            stream = self._link.shortcut.rest_by_h11(self._request, self._found)
            self._rest = _Body(stream, self._link, self._lease, self._connector)
        return self._rest

    def close(self) -> None:
        """Give the connection back, or close it if the response is incomplete."""
        if self._closed:
            return
        self._closed = True
        body = self._found.body
        if not (body.done or self._reading or body.odd is not None):
            self._take_rest()
        if body.odd is not None:
            self._by_h11().close()
            return
        if body.done and self._found.keep and not body.surplus:
            self._link.shortcut.release()
            self._lease.close()
        else:
            self._link.shortcut.abort()
            self._lease.close(discard=True)
        self._let_go()
