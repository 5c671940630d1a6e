"""One pooled connection and one request on it: the part of both pools that does no I/O."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from copy import copy
from typing import Any, Generic, Protocol, TypeVar

from ._driver import httpcore
from ._errors import UnsupportedProtocol
from ._look import innermost, look_at
from ._network import Watchable

__all__ = (
    "REREADABLE",
    "Exchange",
    "Key",
    "Link",
    "Replays",
    "key_of",
    "left",
    "network_stream",
    "peek",
    "shut",
    "spend_if_ambiguous",
    "takes_over",
    "timeout_of",
)

L = TypeVar("L")

Key = tuple[bytes, bytes, int]
"""Scheme, host and port: httpcore's Origin, which has no hash."""

REPLAYS = 100
"""How often one request is sent again at most, so that a server that refuses every stream cannot block it forever."""

AT_ONCE = 3
"""How often a request is sent again without a pause and regardless of the deadline."""

PAUSES = (0.005, 0.1)
"""Seconds to wait after further refusals: the first pause, which doubles each time, and the longest pause."""

_PORTS = {b"http": 80, b"https": 443, b"ws": 80, b"wss": 443}
_REFUSED_STREAM = 7  # RFC 9113, 7: the server has done nothing for this stream
_NETWORK_EVENTS = frozenset({"connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete"})

# RFC 9110, 9.2.2: these may be sent again if the connection died and it is unknown whether they arrived
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"QUERY", b"PUT", b"DELETE"})


class Connector(Protocol):
    """The part of the pool's connector that an exchange needs."""

    opener: Any

    def failed(self, link: Any, since: float, error: BaseException) -> None:
        """Take note of a request that started at ``since`` and failed."""


class Link(Generic[L]):
    """A connection of httpcore and what the pool knows about it."""

    __slots__ = (
        "__weakref__", "answered", "capacity", "connection", "direct", "http2", "key", "look", "process", "shortcut",
        "streams",
    )  # fmt: skip

    def __init__(self, connection: L, key: Key) -> None:
        self.connection = connection
        self.direct = connection  # the object that handles requests
        self.shortcut: Any = None  # HTTP/1.1: sends further requests without httpcore's layers
        self.look: Callable[[], bool] | None = None  # created when the connection is reused for the first time
        self.key = key
        self.process = os.getpid()  # a forked child has a copy, and must leave the socket to its parent
        self.http2: Any = None  # poolkit's HTTP/2 connection, once it is known to be one
        self.capacity = 0  # requests that it carries at the same time; 0: unknown, because it is still being opened
        self.answered = False  # whether it has delivered a response, so that the next request reuses it
        self.streams: list[Any] = []  # httpcore's network streams, the innermost first

    def ready(self) -> bool:
        """Return whether a request may be sent: the peer has not closed the connection or sent unrequested data.

        Runs at each checkout, whatever the settings. See _look.py.
        """
        if self.http2 is not None and not self.http2.is_available():
            return False
        look = self.look
        try:
            if look is None:
                if not self.capacity:  # the request opens the connection
                    return True
                look = self.look = look_at(self.connection, self.http2 is not None)
            return look()
        except Exception:  # noqa: BLE001  a custom stream may raise anything; in doubt, close the connection
            return False

    def take(self) -> bytes:
        """Return the bytes of a response that have arrived, without waiting. Raises any error for a custom stream."""
        if self.look is None:
            self.look = look_at(self.connection, http2=False)
        data: bytes = self.look.take()  # type: ignore[attr-defined]
        return data

    def answering(self) -> bool:
        """Return whether an incomplete response head has arrived (HTTP/1.1)."""
        parsed: Any = getattr(innermost(self.connection), "_h11_state", None)
        return parsed is not None and bool(parsed.trailing_data[0])

    def end(self, exchange: Exchange | None, error: BaseException) -> dict[str, Any]:
        """End a request that failed with ``error``. Return the arguments with which its lease is closed."""
        if (
            self.http2 is not None
            and exchange is not None
            and self.http2.give_up(exchange.stream, error, exchange.alive)
        ):
            return {}  # the connection can carry other requests
        if not self.capacity and not isinstance(error, Exception):
            return {"discard": True}  # a caller that is gone says nothing about the server
        return {"error": error}

    def __repr__(self) -> str:
        return repr(self.connection)


def key_of(request: httpcore.Request) -> Key:
    """Return the origin of a request. Raises UnsupportedProtocol as httpcore's pool does."""
    url = request.url
    scheme, default = url.scheme, _PORTS.get(url.scheme)
    if default is None:
        if not scheme:
            raise UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol.")
        raise UnsupportedProtocol(f"Request URL has an unsupported protocol '{scheme.decode()}://'.")
    return scheme, url.host, url.port or default


def timeout_of(request: httpcore.Request, total: float | None) -> float | None:
    """Return how many seconds the request may wait for a connection (None: no limit).

    ``total``: the pool's limit for the wait and the connect together.
    """
    timeouts: dict[str, float | None] = request.extensions.get("timeout") or {}
    wait = timeouts.get("pool", total)
    if total is None:
        return wait
    return total if wait is None else min(wait, total)


def network_stream(event: str, info: dict[str, Any]) -> Any:
    """Return the network stream that a trace event reports, or None."""
    return info["return_value"] if event.partition(".")[2] in _NETWORK_EVENTS else None


class Exchange:
    """One request, and what httpcore's trace events report about its connection.

    The first request of a connection has it as its trace, to learn when the connection is open and which protocol it
    uses. Each request of an HTTP/2 connection has one.
    """

    __slots__ = (
        "__weakref__", "alive", "connector", "lease", "link", "request", "sent", "stream", "user_trace",
    )  # fmt: skip

    def __init__(
        self, link: Link[Any], lease: Any, request: httpcore.Request, connector: Connector, alive: float | None
    ) -> None:
        self.link = link
        self.lease = lease
        self.request = request
        self.connector = connector
        self.alive = alive  # seconds of silence after which an HTTP/2 connection may be dead; None: no limit
        self.sent = False
        self.stream: Any = None  # of an HTTP/2 connection
        self.user_trace: Any = request.extensions.get("trace")

    def traced(self, hook: Any, connect_timeout: float | None) -> httpcore.Request:
        """Return the request with ``hook`` as its trace, and with the pool's connect timeout if it has none."""
        extensions = {**self.request.extensions, "trace": hook}
        timeouts = extensions.get("timeout") or {}
        if connect_timeout is not None and timeouts.get("connect") is None and not self.link.capacity:
            extensions["timeout"] = {**timeouts, "connect": connect_timeout}
        request = copy(self.request)
        request.extensions = extensions
        return request

    def note(self, event: str, info: dict[str, Any]) -> None:
        """Handle one trace event."""
        source, _, step = event.partition(".")
        if step == "send_request_headers.started":
            if source == "http2" or info["request"].method != b"CONNECT" or self.request.method == b"CONNECT":
                self.sent = True  # and not only the request for a tunnel
                self.opened()
        else:
            stream = network_stream(event, info)
            if stream is not None:
                self.link.streams.append(stream)

    def failed(self, error: BaseException) -> None:
        """Record that the response broke off."""
        self.connector.failed(self.link, self.lease.since, error)

    def opened(self) -> None:
        """Record that the connection is open. It carries one request at a time until its settings say otherwise."""
        link = self.link
        if not link.capacity:
            for stream in link.streams:
                if isinstance(stream, Watchable):
                    stream.opens_until = None
            link.capacity = 1
            if link.http2 is None:
                self.connector.opener.on_http11(link.key)
            self.lease.set_capacity(1)

    def unprocessed(self, error: BaseException) -> bool:
        """Return whether the server has certainly not processed this request (RFC 9113, 8.7)."""
        if isinstance(error, httpcore.ConnectionNotAvailable):
            return True
        reason = _reason(error)
        last = getattr(reason, "last_stream_id", None)  # GOAWAY
        if last is not None:
            return self.stream is None or self.stream.id > last
        return getattr(reason, "error_code", None) == _REFUSED_STREAM


def _reason(error: BaseException) -> object:
    """Return the HTTP/2 event that an error was created from, or None."""
    return error.args[0] if isinstance(error, httpcore.RemoteProtocolError) and error.args else None


class Replays:
    """Counts how often a request was sent again, and decides whether it may be sent once more.

    It may be sent again if the server has certainly not processed it. It may also be sent again if it is idempotent
    (RFC 9110, 9.2.2) and a *reused* connection was lost before any part of the response arrived. Then the server has
    most likely closed an idle connection just when the request was sent, and may have closed other ones too. The first
    AT_ONCE times ignore the deadline. Later ones need time left until ``deadline``, which limits the wait for a
    connection. REPLAYS is the limit.
    """

    __slots__ = ("_count", "_deadline", "_refusals", "_request", "_rereadable", "_unused", "pause")

    def __init__(self, request: httpcore.Request, held: tuple[type, ...], deadline: float | None) -> None:
        self._request = request
        self._rereadable = held
        self._deadline = deadline
        self._count = 0
        self._refusals = 0
        self._unused = 0
        self.pause = 0.0
        """Seconds to wait before the request is sent again."""

    def passes_over(self, link: Link[Any]) -> bool:
        """Return whether to take another connection than this one, which the server has closed or sent something on.

        One new connection may have been idle meanwhile. If the next one is no better, the server does that to every
        new connection: then the request is sent, and its caller learns what the server says.
        """
        self._unused += not link.answered
        return link.answered or self._unused <= 1

    def allow(self, error: BaseException, link: Link[Any], exchange: Exchange | None) -> bool:
        """Return whether to send the request again after ``error``, on another connection and after ``pause``."""
        self._count += 1
        if self._count > REPLAYS:
            return False
        certain = (
            isinstance(error, httpcore.ConnectionNotAvailable) if exchange is None else exchange.unprocessed(error)
        )
        self.pause = 0.0
        if certain:
            self._refusals += 1
            if self._refusals > AT_ONCE:  # the server is alive but refuses it now: wait
                first, longest = PAUSES
                self.pause = min(first * 2.0 ** (self._refusals - AT_ONCE - 1), longest)
        elif not link.answered or not _lost(self._request, error) or link.answering():
            return False
        if self._count > AT_ONCE and self._deadline is not None and time.monotonic() + self.pause > self._deadline:
            return False
        return self._can_resend_body(exchange is None or exchange.sent)

    def _can_resend_body(self, sent: bool) -> bool:
        if not sent or isinstance(self._request.stream, self._rereadable):
            return True
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._request.headers)


def _lost(request: httpcore.Request, error: BaseException) -> bool:
    if request.method not in _IDEMPOTENT:
        return False
    gone = isinstance(error, httpcore.RemoteProtocolError) and str(error).startswith("Server disconnected")
    return gone or isinstance(error, (httpcore.ReadError, httpcore.WriteError))


REREADABLE: tuple[type, ...] = (type(httpcore.Request("GET", "http://localhost/").stream),)
"""Types of bodies that are in memory and can be read again."""


def left(deadline: float | None) -> float | None:
    """Return the seconds until ``deadline`` on the monotonic clock, at least 0 (None: no limit)."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def takes_over(request: httpcore.Request, response: httpcore.Response, link: Link[Any]) -> bool:
    """Return whether the connection uses another protocol than HTTP from now on (an upgrade, a tunnel)."""
    if link.http2 is not None:
        return False
    return response.status == 101 or (request.method == b"CONNECT" and 200 <= response.status < 300)


def spend_if_ambiguous(link: Link[Any], response: httpcore.Response) -> None:
    """Let a connection carry no further request if its response states two lengths (RFC 9112, 6.3).

    h11 prefers the chunks. If the server, or a proxy on the way, means the other length, the rest of the response would
    be taken for the next one.
    """
    if not link.http2:
        names = {name.lower() for name, _ in response.headers}
        if b"content-length" in names and b"transfer-encoding" in names:
            link.look = _never


def _never() -> bool:
    return False


def peek(link: Link[Any]) -> bool:
    """Return False if the server has closed the idle connection or it holds unrequested data."""
    return not link.connection.is_closed() and link.ready()


def shut(link: Link[Any]) -> None:
    """Wake any thread that is blocked in a read of the connection."""
    for stream in link.streams:
        with contextlib.suppress(Exception):
            stream.get_extra_info("socket").shutdown(2)
