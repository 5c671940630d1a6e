"""Whether the next request may be sent on an open connection.

HTTP/1.1 does not number requests and answers: the bytes that are read first are taken for the answer. So a connection
carries a request only if, at that moment, nothing is to be read from it and the peer has not closed it. Bytes count
wherever they are: in h11, in a layer of TLS, in the event loop's queue or in the socket. Without this rule a late or
second answer goes to the next caller, and a request is sent to a server that has hung up.

The look costs one system call. It reads nothing from a plain socket. With TLS, bytes in the socket may be the layer's
own business (TLS 1.3: session tickets, new keys), so they are given to the layer; only what it has for the caller, the
end of the stream, or half a record speaks against the connection.

An HTTP/2 connection may well be readable (settings, pings), and its streams are numbered: there only the peer's end
counts.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

import httpcore

from .._hang_up import is_socket
from ._network import Watchable
from ._plain import PlainStream

__all__ = ("innermost", "look_at")

_MOST = 64 * 1024
"""Bytes that a look takes from a TLS connection at most; a peer that has sent more is not waited for."""
_POLL: Callable[[], Any] | None = getattr(select, "poll", None)  # absent on Windows
_HANG_UP: int = getattr(select, "POLLRDHUP", 0)  # elsewhere than on Linux, POLLHUP and POLLERR have to do
_KNOWN = frozenset({httpcore.Request.__module__.partition(".")[0], __name__.partition(".")[0]})


def innermost(connection: Any) -> Any:
    """The connection of httpcore's that speaks HTTP, below those that open it or go through a proxy."""
    while hasattr(connection, "_connection"):
        connection = connection._connection
    return connection


def look_at(connection: Any, http2: bool) -> Callable[[], bool]:
    """Return the look for an open connection of httpcore's: a callable that returns whether a request may be sent.

    It does not block, and is called while nobody else reads from the connection (HTTP/2: at any time).
    """
    inner = innermost(connection)
    stream = getattr(inner, "_network_stream", None)
    if stream is None:  # a connection of the user's own: what every one of them can tell
        return lambda: not connection.has_expired()
    layers: list[_Records | _Secure] = []
    bottom = _dig(stream, layers)
    if http2:
        return _still_there(bottom or _named(stream))
    parsed = getattr(inner, "_h11_state", None)
    if bottom is None:
        pending = getattr(stream.get_extra_info("ssl_object"), "pending", _no_bytes)  # the same as long as it is open
        return lambda: (
            (parsed is None or not parsed.trailing_data[0])
            and not stream.get_extra_info("is_readable")
            and not pending()
        )
    look = _Look(bottom, layers, parsed)
    if _all_known(stream):
        return look
    return lambda: look() and not _readable(stream)  # a stream of the user's own may hold bytes back itself


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
            data = b"" if isinstance(self._layers[0], _Secure) else self._bottom.take()
            for layer in self._layers:
                data = layer.read(data)
        except (OSError, EOFError, ValueError):  # ended, broken, or half a record: SSLError is an OSError
            return False
        return not data


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
    """Whether all covers are httpcore's or ours, which hold no bytes themselves."""
    while isinstance(stream, Watchable):
        stream = stream._stream  # type: ignore[attr-defined]
    return type(stream).__module__.partition(".")[0] in _KNOWN


def _dig(stream: Any, layers: list[_Records | _Secure]) -> _Descriptor | None:
    """Find the socket below ``stream``, and the layers of TLS between, the lowest first. None: not to be found."""
    while stream is not None:
        if isinstance(stream, PlainStream):
            return _Plain(stream)
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
    """A socket from which nobody else reads now."""

    __slots__ = ("_fd", "_poll", "_socket")

    def __init__(self, sock: Any) -> None:
        self._socket = sock
        self._fd = sock.fileno()
        self._poll = _POLL() if _POLL is not None else None
        if self._poll is not None and self._fd >= 0:
            self._poll.register(self._fd, select.POLLIN)

    def readable(self) -> bool:
        """Whether bytes are there, or the end, or an error; also if the socket was closed."""
        if self._fd < 0 or self._socket.fileno() != self._fd:
            return True
        if self._poll is None:
            return bool(select.select([self._fd], [], [], 0)[0])
        return bool(self._poll.poll(0))

    def hung_up(self) -> bool:
        """Whether the peer has closed its side, as far as the system tells, or the socket was closed."""
        if self._fd < 0 or self._socket.fileno() != self._fd:
            return True
        if _POLL is None:
            return False
        poll = _POLL()  # not the one above: threads that share the connection may look at once
        poll.register(self._fd, _HANG_UP)
        return bool(poll.poll(0))

    def take(self) -> bytes:
        """What is there. Raises EOFError at the end, OSError (also where the system cannot read like this)."""
        if self._socket.fileno() != self._fd:  # closed: the number may be another's by now
            raise EOFError
        try:
            data = os.read(self._fd, _MOST)
        except BlockingIOError:
            return b""
        if not data or len(data) == _MOST:
            raise EOFError
        return data


class _Queued(_Descriptor):
    """Under asyncio, anyio's protocol: the event loop may have read more than was asked for."""

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
        """Whether the event loop knows of the end."""
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
    """A stream of ours."""

    __slots__ = ("_stream",)

    def __init__(self, stream: PlainStream) -> None:
        super().__init__(stream.get_extra_info("socket"))
        self._stream = stream

    def readable(self) -> bool:
        return self._stream.pending() or super().readable()

    def hung_up(self) -> bool:
        return self._stream.ended() or super().hung_up()


def _whole(data: bytes) -> bool:
    """Whether ``data`` are whole records of TLS. The rest of a half one would be read as the next answer's begin."""
    at = 0
    while at + 5 <= len(data):
        at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
    return at == len(data)


class _Records:
    """A layer of TLS over buffers in memory."""

    __slots__ = ("_incoming", "_secure")

    def __init__(self, secure: ssl.SSLObject, incoming: ssl.MemoryBIO) -> None:
        self._secure = secure
        self._incoming = incoming

    def holds(self) -> bool:
        """Whether it has bytes that were not asked for."""
        return bool(self._incoming.pending or self._secure.pending())

    def read(self, data: bytes) -> bytes:
        """What the layer makes of ``data`` for the one above. Raises EOFError, SSLError, ValueError (half a record)."""
        data = self._incoming.read() + data
        if not _whole(data):
            raise ValueError
        self._incoming.write(data)
        return _drained(self._secure.read)


class _Secure:
    """A layer of TLS over a socket."""

    __slots__ = ("_socket",)

    def __init__(self, sock: ssl.SSLSocket) -> None:
        self._socket = sock

    def holds(self) -> bool:
        """As that of the other."""
        return bool(self._socket.pending())

    def read(self, data: bytes) -> bytes:
        """As that of the other; takes from the socket itself."""
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
