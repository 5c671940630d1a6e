"""The parts of a request on an open HTTP/1.1 connection that threads and tasks have in common. Does no I/O."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

import h11

from ._driver import DRIVER, httpcore
from ._http11 import Heads, Incoming, hand_over

if TYPE_CHECKING:
    from ._base import ConnectorMixin
    from ._link import Link

__all__ = ("MOST", "AnswerBase", "DirectBase", "Prepared", "check_length")

_logger = logging.getLogger(f"{DRIVER}.http11")  # httpcore's, which logs each step at DEBUG

MOST = 64 * 1024
"""Bytes of one read, and of a body that is sent together with its head."""

Prepared = tuple[bytes, "int | None", "bytes | None"]
"""The first bytes of a request, the length of a body that is sent after them (None: it is among them or there is none,
-1: in chunks), and this body if it is in memory."""

L = TypeVar("L", bound=Any)  # the lease


class DirectBase:
    """Sends requests over the network stream of an idle connection of httpcore.

    The connection stays in charge: it learns when a request begins and ends, and takes over an exchange that is not in
    the usual form.
    """

    __slots__ = ("_heads", "connection", "stream")

    _http11: Any
    """httpcore's module of these connections."""

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.stream: Any = connection._network_stream
        self._heads = Heads()

    def prepared(self, request: httpcore.Request, held: tuple[type, ...]) -> Prepared | None:
        """Return the parts of a request as they are sent. ``held``: types of bodies that are in memory.

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
        return (head + body, None, None) if len(body) <= MOST else (head, length, body)

    def hand_over(self, request: httpcore.Request, data: bytes, *, sent: bool = True) -> None:
        """Let httpcore's connection receive the response, of which ``data`` has arrived.

        ``sent``: its request is sent completely. Otherwise httpcore closes the connection after the response.
        """
        hand_over(self.connection._h11_state, request.method, data, sent=sent)

    def response(self, request: httpcore.Request, received: tuple[Any, ...]) -> httpcore.Response:
        """Return the response whose head httpcore's connection has received."""
        version, status, reason, headers, _ = received
        return httpcore.Response(
            status=status,
            headers=headers,
            content=self._http11.HTTP11ConnectionByteStream(self.connection, request),
            extensions={"http_version": version, "reason_phrase": reason, "network_stream": self.stream},
        )

    def rest_by_h11(self, request: httpcore.Request, found: Incoming) -> Any:
        """Let httpcore's connection receive the rest of a chunked body. Return the stream of it."""
        connection = self.connection
        hand_over(connection._h11_state, request.method, found.body.odd or b"", chunks=True, keep=found.keep)
        return self._http11.HTTP11ConnectionByteStream(connection, request)

    def broken_off(self, data: bytes) -> None:
        """Record that an exchange has failed after ``data`` had arrived."""
        state = self.connection._h11_state
        if data and state.trailing_data == (b"", False):
            state.receive_data(data)  # part of a response: the request must not be sent again

    def release(self) -> None:
        """Record that the exchange has ended and the connection can carry the next one."""
        connection = self.connection
        connection._state = self._http11.HTTPConnectionState.IDLE
        if connection._keepalive_expiry is not None:
            connection._expire_at = time.monotonic() + connection._keepalive_expiry


def check_length(left: int, *, ended: bool) -> None:
    """Raise h11's error if a body differs from its stated length. ``left``: bytes that are still to be sent."""
    if left < 0:
        raise h11.LocalProtocolError("Too much data for declared Content-Length")
    if ended and left:
        raise h11.LocalProtocolError("Too little data for declared Content-Length")


class AnswerBase(Generic[L]):
    """A response whose head has arrived, and the stream of its body. Closing it gives the connection back."""

    def __init__(
        self, request: httpcore.Request, found: Incoming, lease: L, connector: ConnectorMixin[Any], config: Any = None
    ) -> None:
        self._request: Any = request
        self._found: Any = found
        self._link: Link[Any] = lease.connection
        self._lease: Any = lease
        self._connector = connector
        self._config = config
        self._rest: Any = None  # the stream of the rest of the body, if h11 parses it
        self._reading = False
        self._closed = False
        self.status = found.status
        self.headers: Sequence[tuple[bytes, bytes]] = found.headers

    @property
    def extensions(self) -> dict[str, Any]:
        """Those of httpcore's response, while the answer is open."""
        stream = self._link.shortcut.stream
        return {"http_version": b"HTTP/1.1", "reason_phrase": self._found.reason, "network_stream": stream}

    def _check(self) -> None:
        """Raise ReadError if the response was closed, because the connection may carry another request by now."""
        if self._closed:
            raise httpcore.ReadError("the response was closed")

    def _raise(self, error: BaseException) -> NoReturn:
        """Raise an error of the body for its reader."""
        raise error

    def _let_go(self) -> None:
        """Drop what a closed response needs no more.

        httpx holds a closed response in a reference cycle: what is kept here would be left to the garbage collector.
        """
        self._request = self._found = self._lease = None
        self.headers = ()

    def _take_rest(self) -> None:
        """Read the response to its end, if the end has arrived. See _rest.py."""
        if self._link.process != os.getpid():
            return
        with contextlib.suppress(Exception):  # the end of the stream, a custom stream: the body stays incomplete
            if data := self._link.take():
                self._found.body.feed(data)
