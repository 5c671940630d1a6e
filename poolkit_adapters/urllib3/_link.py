"""One pooled connection: what the pool knows about it, and whether the next request may use it.

HTTP/1.1 does not number its responses: the client takes the first bytes that arrive for the response. So the pool
leases a connection only if there is nothing to read from it and the peer has not closed it. This check is one system
call.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
from collections.abc import Callable
from typing import Any

from urllib3.connection import HTTPConnection
from urllib3.exceptions import ProtocolError
from urllib3.util.ssltransport import SSLTransport

__all__ = ("Link", "Response", "ambiguous")

_MOST = 64 * 1024
"""The most bytes that one check reads from a TLS connection. If the peer has sent more, the connection is closed."""
_MOST_INTERIM = 100
"""The most informational responses before the final one."""
_OWN_LOOK = HTTPConnection.is_connected
_read_status: Callable[[Any], tuple[str, int, str]] = http.client.HTTPResponse._read_status  # type: ignore[attr-defined]


class _Ended(socket.SocketIO):
    """A source without further data, for the file of a response that is complete."""

    def readinto(self, b: Any) -> None:
        return None


class Response(http.client.HTTPResponse):
    """http.client's response, with three differences.

    It skips every informational response. http.client skips only 100, and takes 103 (Early Hints) for the final one.
    http.client also reads ahead. A complete response records whether further bytes were read. If the connection ends
    within a head, or between two, the request was processed: the error is not that of a closed connection.
    """

    leftover = False
    """Whether the connection must not be used again, because further bytes were read."""
    _begun = False
    """Whether a status line has arrived."""

    def begin(self) -> None:
        try:
            super().begin()
        except ConnectionError as error:
            if self._begun:
                raise ProtocolError("the connection ended before the head of the final response", error) from error
            raise

    def _read_status(self) -> tuple[str, int, str]:
        found = _read_status(self)
        self._begun = True
        if found[1] < 200:
            return self._after_interim(found)
        return found

    def _after_interim(self, found: tuple[str, int, str]) -> tuple[str, int, str]:
        """Skip informational responses. Return the status line of the first other one, which may be ``found``.

        Raises HTTPException if there are too many, or if their heads are too long.
        """
        size = 0
        for _ in range(_MOST_INTERIM + 1):
            if found[1] >= 200 or found[1] == http.client.SWITCHING_PROTOCOLS:
                return found
            line = b""
            while line not in (b"\r\n", b"\n"):
                line = self.fp.readline(_MOST)
                size += len(line)
                if size > _MOST:
                    raise http.client.HTTPException(f"informational responses of more than {_MOST} bytes")
                if not line:
                    raise http.client.RemoteDisconnected("the connection was closed in an informational response")
            found = _read_status(self)
        raise http.client.HTTPException(f"more than {_MOST_INTERIM} informational responses")

    def _close_conn(self) -> None:
        file: Any = self.fp
        if file is not None and self.will_close is False:
            source = getattr(file, "raw", None)
            if type(source) is socket.SocketIO:  # not a custom socket's
                source.__class__ = _Ended  # so that peek() shows what was read ahead, but does not read from the socket
                self.leftover = bool(file.peek())
        super()._close_conn()  # type: ignore[misc]  # not in the stubs


class Link:
    """A connection of urllib3. Used by one thread at a time."""

    __slots__ = ("_closed", "_poll", "_polled", "answered", "asked", "connection", "opened", "response", "spent")

    def __init__(self, connection: Any) -> None:
        self.connection = connection
        self.asked: float | None = None  # when its first request began to wait; None: acquire_timeout does not apply
        self.opened = False  # whether it has ever been connected
        self.answered = False  # whether it has delivered a response
        self.response: Any = None  # http.client's response to the last request
        self.spent = False
        """Whether more follows the last response (another protocol after 101, the final response), or may follow."""
        self._closed = False
        self._poll: Any = None
        self._polled = -1  # the descriptor

    def ready(self) -> bool:
        """Return whether a request may be sent now: there is nothing to read, and the peer has not closed it."""
        if not self.opened:
            return True  # the request opens it
        connection = self.connection
        try:
            if type(connection).is_connected is not _OWN_LOOK and not connection.is_connected:
                return False
            sock = connection.sock
            if type(sock) is socket.socket and sock.fileno() == self._polled >= 0:
                return not self._poll.poll(0)  # does the same as _quiet(), with fewer calls
            return self._quiet(sock)
        except Exception:  # noqa: BLE001  a custom socket may raise anything; in doubt, close the connection
            return False

    def reusable(self) -> bool:
        """Return whether another request may follow: the response is complete, and the connection stays open."""
        if self._closed or not self.opened or self.spent or self.connection.sock is None:
            return False
        response = self.response
        if response is None:
            return True
        if not response.isclosed():
            if response.chunked or response.length != 0:
                return False
            response.close()  # complete, but the empty body was not read, and http.client waits for that
        return not getattr(response, "leftover", False)

    def close(self, *, wake: bool = False) -> None:
        """Close the socket. ``wake``: a thread that reads from it wakes up with an error. Never raises."""
        if self._closed:
            return
        self._closed = True
        sock = getattr(self.connection, "sock", None)
        try:
            if wake and isinstance(sock, socket.socket):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)  # SSLSocket's own drops the TLS state of the reader
        except OSError:
            pass  # no longer connected
        try:
            self.connection.close()
        except Exception:  # noqa: BLE001  there is nothing left to do
            pass

    def _quiet(self, sock: Any) -> bool:
        number = -1 if sock is None else sock.fileno()
        if number < 0:
            return False
        if not self._readable(number):
            return not _holds(sock)
        return isinstance(sock, ssl.SSLSocket) and _only_of_tls(sock)

    def _readable(self, number: int) -> bool:
        if not hasattr(select, "poll"):
            return bool(select.select([number], [], [], 0)[0])
        if number != self._polled:
            self._poll, self._polled = select.poll(), number
            self._poll.register(number, select.POLLIN)
        return bool(self._poll.poll(0))

    def __repr__(self) -> str:
        return repr(self.connection)


def ambiguous(response: Any) -> bool:
    """Return whether the length of a response with chunks is in doubt (RFC 9112, 6.1 and 6.3): it may be an attack.

    http.client knows chunks only by a single header with the value "chunked". It takes ``Content-Length`` bytes for the
    body if the value is "gzip, chunked", or the header is there twice. The rest would answer the next request.
    """
    known = getattr(getattr(response, "_original_response", None), "chunked", False)
    return not known or response.version < 11 or "content-length" in response.headers


def _holds(sock: Any) -> bool:
    """Return whether a TLS layer holds bytes that it has already read from the socket."""
    if isinstance(sock, ssl.SSLSocket):
        return sock.pending() > 0
    if isinstance(sock, SSLTransport):  # TLS in TLS
        return bool(sock.sslobj.pending() or sock.incoming.pending)
    pending = getattr(getattr(sock, "connection", None), "pending", None)  # pyOpenSSL
    number = 0 if pending is None else pending()
    return isinstance(number, int) and number > 0


def _only_of_tls(sock: ssl.SSLSocket) -> bool:
    """Let the TLS layer read its own messages (session tickets, new keys). Return whether there was nothing else.

    Return False for an incomplete record, which could be the start of a response.
    """
    before = sock.gettimeout()
    sock.settimeout(0)
    try:
        seen = socket.socket.recv(sock, _MOST, socket.MSG_PEEK)
        if not seen or not _whole(seen):
            return False
        sock.recv(1)
    except (ssl.SSLWantReadError, BlockingIOError):
        return sock.pending() == 0
    finally:
        sock.settimeout(before)
    return False


def _whole(data: bytes) -> bool:
    """Return whether ``data`` ends with a complete TLS record."""
    at = 0
    while at + 5 <= len(data):
        at += 5 + int.from_bytes(data[at + 3 : at + 5], "big")
    return at == len(data)
