"""Checks whether the next request may be sent on an open connection.

HTTP/1.1 does not number requests and responses: the first bytes that arrive are taken for the response. So a
connection may carry a request only if, at that moment, it has no unread data and the peer has not closed it. The data
may be in h11, in a TLS layer, in the event loop's queue or in the socket. Without this check the next caller could get
a late or second response, and a request could go to a server that has closed the connection.

The check costs one system call and reads nothing from a plain socket. With TLS, bytes in the socket may belong to the
TLS layer itself (TLS 1.3: session tickets, new keys), so the layer gets them. The connection is then rejected only if
the layer returns data for the caller, the end of the stream, or has an incomplete record.

An HTTP/2 connection may be readable at any time (settings, pings), and its streams are numbered. There the check only
looks for the end of the stream.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

from .._hang_up import is_socket
from ._asyncio_stream import AsyncioStream
from ._driver import httpcore
from ._network import Watchable

__all__ = ("innermost", "look_at")

_MOST = 64 * 1024
"""Bytes that one check reads from a TLS connection at most. If the peer has sent more, the check fails."""
_POLL: Callable[[], Any] | None = getattr(select, "poll", None)  # absent on Windows
_HANG_UP: int = getattr(select, "POLLRDHUP", 0)  # only on Linux; elsewhere POLLHUP and POLLERR are enough
_KNOWN = frozenset({httpcore.Request.__module__.partition(".")[0], __name__.partition(".")[0]})


def innermost(connection: Any) -> Any:
    """Return httpcore's connection that speaks HTTP, below those that open it or use a proxy."""
    while hasattr(connection, "_connection"):
        connection = connection._connection
    return connection


def look_at(connection: Any, http2: bool) -> Callable[[], bool]:
    """Return the check for an open connection of httpcore: a function that returns whether a request may be sent.

    It does not block. Call it only while nothing else reads from the connection (HTTP/2: at any time).
    """
    inner = innermost(connection)
    stream = getattr(inner, "_network_stream", None)
    if stream is None:  # a custom connection: use the method that every connection has
        return lambda: not connection.has_expired()
    layers: list[_Records | _Secure] = []
    bottom = _find_socket(stream, layers)
    if http2 or hasattr(inner, "_h2_state"):  # the latter: httpcore's own connection, made by the user
        return _still_there(bottom or _named(stream))
    parsed = getattr(inner, "_h11_state", None)
    if bottom is None:
        pending = getattr(stream.get_extra_info("ssl_object"), "pending", _no_bytes)  # stays the same object
        return lambda: (
            (parsed is None or not parsed.trailing_data[0])
            and not stream.get_extra_info("is_readable")
            and not pending()
        )
    look = _Look(bottom, layers, parsed)
    if _all_known(stream):
        return look
    return lambda: look() and not _readable(stream)  # a custom stream may buffer bytes itself


class _Look:
    __slots__ = ("_bottom", "_layers", "_parsed")

    def __init__(self, bottom: _Descriptor, layers: list[_Records | _Secure], parsed: Any) -> None:
        self._bottom = bottom
        self._layers = layers
        self._parsed = parsed

    def __call__(self) -> bool:
        parsed = self._parsed
        if parsed is not None and parsed.trailing_data[0]:
            return False
        if not self._layers:
            return not self._bottom.readable()
        if not self._bottom.readable() and not any(layer.holds() for layer in self._layers):
            return True
        try:
            return not self.take()
        except (OSError, EOFError, ValueError):  # end, failure or incomplete record; SSLError is an OSError
            return False

    def take(self) -> bytes:
        """Return the bytes for h11 that have arrived. Does not wait.

        Raises EOFError at the end of the stream and if too much has arrived, OSError, or ValueError for an incomplete
        TLS record. Some bytes may be lost then, so the connection must be closed.
        """
        if not self._layers:
            return self._bottom.take() if self._bottom.readable() else b""  # a socket for threads may block
        data = b"" if isinstance(self._layers[0], _Secure) else self._bottom.take()
        for layer in self._layers:
            data = layer.read(data)
        return data


def _no_bytes() -> int:
    return 0


def _readable(stream: Any) -> bool:
    if stream.get_extra_info("is_readable"):
        return True
    pending = getattr(stream.get_extra_info("ssl_object"), "pending", None)
    return pending is not None and bool(pending())


def _named(stream: Any) -> _Descriptor | None:
    sock = stream.get_extra_info("socket")
    return _Descriptor(sock) if hasattr(sock, "fileno") else None


def _still_there(bottom: _Descriptor | None) -> Callable[[], bool]:
    return lambda: bottom is None or not bottom.hung_up()


def _all_known(stream: Any) -> bool:
    """Return whether all wrappers are httpcore's or poolkit's, which buffer no bytes themselves."""
    while isinstance(stream, Watchable):
        stream = stream._stream  # type: ignore[attr-defined]
    return type(stream).__module__.partition(".")[0] in _KNOWN


def _find_socket(stream: Any, layers: list[_Records | _Secure]) -> _Descriptor | None:
    """Return the socket below ``stream``, or None. Fill ``layers`` with the TLS layers above it, lowest first."""
    while stream is not None:
        if isinstance(stream, AsyncioStream):
            return _Sealed(stream) if stream.secure() else _Plain(stream)
        if isinstance(stream, ssl.SSLSocket):
            layers.insert(0, _Secure(stream))
            return _Descriptor(stream)
        if is_socket(stream):
            return _Descriptor(stream)
        if hasattr(stream, "_ssl_object") and hasattr(stream, "transport_stream"):  # anyio's TLS, trio's
            incoming = getattr(stream, "_read_bio", None) or getattr(stream, "_incoming", None)
            if incoming is None:
                return None
            layers.insert(0, _Records(stream._ssl_object, incoming))
            stream = stream.transport_stream
        elif hasattr(stream, "ssl_obj") and hasattr(stream, "_incoming"):  # httpcore's TLS in TLS for threads
            layers.insert(0, _Records(stream.ssl_obj, stream._incoming))
            stream = stream._sock
        elif hasattr(getattr(stream, "_protocol", None), "read_queue"):  # anyio on asyncio
            return _Queued(stream)
        elif hasattr(stream, "_raw_socket"):  # anyio's unix sockets, and anyio on trio
            return _Descriptor(stream._raw_socket)
        elif hasattr(getattr(stream, "socket", None), "fileno"):  # trio
            return _Descriptor(stream.socket)
        else:
            stream = getattr(stream, "_sock", None) or getattr(stream, "_stream", None)
    return None


class _Descriptor:
    """A socket from which nothing else reads at the moment."""

    __slots__ = ("_fd", "_poll", "_socket")

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._poll = _POLL() if _POLL is not None else None
        if self._poll is not None and self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)

    def readable(self) -> bool:
        """Return whether there are bytes, the end of the stream or an error. Also true for a closed socket."""
        if self._fd < 0 or self._socket.fileno() != self._fd:
            return True
        if self._poll is None:
            return bool(select.select([self._fd], [], [], 0)[0])
        return bool(self._poll.poll(0))

    def hung_up(self) -> bool:
        """Return whether the peer has closed its side, as far as the system reports it, or the socket is closed."""
        if self._fd < 0 or self._socket.fileno() != self._fd:
            return True
        if _POLL is None:
            return False
        poll = _POLL()  # not self._poll: threads that share the connection may check at the same time
        poll.register(self._fd, _HANG_UP)
        return bool(poll.poll(0))

    def take(self) -> bytes:
        """Return what has arrived. Raises EOFError at the end, and OSError (also if the system lacks such reads)."""
        if self._socket.fileno() != self._fd:  # closed: another socket may have the descriptor by now
            raise EOFError
        try:
            data = os.read(self._fd, _MOST)
        except BlockingIOError:
            return b""
        if not data or len(data) == _MOST:
            raise EOFError
        return data


class _Queued(_Descriptor):
    """anyio's protocol under asyncio, where the event loop may have read ahead."""

    __slots__ = ("_protocol", "_transport")

    def __init__(self, stream: Any) -> None:
        super().__init__(stream._transport.get_extra_info("socket"))
        self._protocol = stream._protocol
        self._transport = stream._transport

    def readable(self) -> bool:
        return bool(self._protocol.read_queue) or self.ended() or super().readable()

    def hung_up(self) -> bool:
        return self.ended() or super().hung_up()

    def ended(self) -> bool:
        """Return whether the event loop has seen the end of the stream."""
        protocol = self._protocol
        if getattr(protocol, "is_at_eof", False) or protocol.exception is not None:
            return True
        return bool(self._transport.is_closing())

    def take(self) -> bytes:
        if self.ended():
            raise EOFError
        queue = self._protocol.read_queue
        data = b"".join(queue)
        queue.clear()
        self._protocol.read_event.clear()
        return data + super().take()


class _Plain(_Descriptor):
    """The socket of poolkit's own stream."""

    __slots__ = ("_stream",)

    def __init__(self, stream: AsyncioStream) -> None:
        super().__init__(stream.get_extra_info("socket"))
        self._stream = stream

    def readable(self) -> bool:
        return self._stream.pending() or super().readable()

    def hung_up(self) -> bool:
        return self._stream.ended() or super().hung_up()

    def take(self) -> bytes:
        return self._stream.take() + super().take()


class _Sealed(_Plain):
    """The same with TLS. Records of the TLS layer itself (TLS 1.3: session tickets, new keys) are nothing to read."""

    __slots__ = ()

    def readable(self) -> bool:
        if self._stream.pending():
            return True
        data = _Descriptor.take(self) if _Descriptor.readable(self) else b""
        return bool(data) and self._stream.fed(data)

    def take(self) -> bytes:
        if _Descriptor.readable(self):
            data = _Descriptor.take(self)
            if data:
                self._stream.fed(data)
        return self._stream.take()


def _whole(data: bytes) -> bool:
    """Return whether ``data`` ends with a complete TLS record. The rest of one would start the next response."""
    at = 0
    while at + 5 <= len(data):
        at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
    return at == len(data)


class _Records:
    """A TLS layer with buffers in memory."""

    __slots__ = ("_incoming", "_secure")

    def __init__(self, secure: ssl.SSLObject, incoming: ssl.MemoryBIO) -> None:
        self._secure = secure
        self._incoming = incoming

    def holds(self) -> bool:
        """Return whether the layer holds unread bytes."""
        return bool(self._incoming.pending or self._secure.pending())

    def read(self, data: bytes) -> bytes:
        """Decrypt ``data`` for the layer above. Raises EOFError, SSLError, or ValueError for an incomplete record."""
        data = self._incoming.read() + data
        if not _whole(data):
            raise ValueError
        self._incoming.write(data)
        return _drained(self._secure.read)


class _Secure:
    """A TLS layer on a socket."""

    __slots__ = ("_socket",)

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._socket = sock

    def holds(self) -> bool:
        """Return whether the layer holds unread bytes."""
        return bool(self._socket.pending())

    def read(self, data: bytes) -> bytes:
        """Read from the socket and decrypt it for the layer above. Raises EOFError and SSLError."""
        before = self._socket.gettimeout()
        self._socket.settimeout(0)
        try:
            with contextlib.suppress(BlockingIOError):
                seen = socket.socket.recv(self._socket, _MOST, socket.MSG_PEEK)
                if not seen or not _whole(seen):
                    raise EOFError
            return _drained(self._socket.recv)
        finally:
            self._socket.settimeout(before)


def _drained(read: Callable[[int], bytes]) -> bytes:
    parts = []
    try:
        while part := read(_MOST):
            parts.append(part)
    except ssl.SSLWantReadError:
        return b"".join(parts)
    raise EOFError
