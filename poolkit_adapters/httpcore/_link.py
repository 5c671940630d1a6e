"""One pooled connection and one request on it: what both twins know without doing I/O."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from copy import copy
from typing import Any, Generic, Protocol, TypeVar
from weakref import WeakValueDictionary

import httpcore

from ._errors import UnsupportedProtocol
from ._look import innermost, look_at
from ._network import FrameWatch, Watchable

__all__ = (
    "HELD",
    "Exchange",
    "Key",
    "Link",
    "Replays",
    "key_of",
    "left",
    "peek",
    "shut",
    "stream_only",
    "takes_over",
    "timeout_of",
)

L = TypeVar("L")

Key = tuple[bytes, bytes, int]
"""Scheme, host and port: httpcore's Origin, which has no hash."""

REPLAYS = 100
"""How often one request is sent again at most: a server that refuses every stream must not keep us for ever."""

AT_ONCE = 3
"""How often it is sent again whatever the time, and without a pause."""

PAUSES = (0.005, 0.1)
"""Seconds before a server that has refused a request so often is asked once more: the first pause, which doubles each
time, and the longest."""

LOCAL_STREAMS = 100
"""Streams that httpcore itself has open on one HTTP/2 connection at most, whatever the server allows."""

_MAX_CONCURRENT_STREAMS = 3  # RFC 9113, 6.5.2
_REFUSED_STREAM = 7  # RFC 9113, 7: the server has done nothing for this stream
_NETWORK_EVENTS = frozenset({"connect_tcp.complete", "connect_unix_socket.complete", "start_tls.complete"})

# RFC 9110, 9.2.2: these may be sent again when the connection died and nobody knows whether they arrived
_IDEMPOTENT = frozenset({b"GET", b"HEAD", b"OPTIONS", b"TRACE", b"PUT", b"DELETE"})


class Lease(Protocol):
    """The part of a lease that an exchange needs."""

    def set_capacity(self, leases: int) -> None:
        """Tell the pool how many requests the connection carries at once."""


class Link(Generic[L]):
    """A connection of httpcore's with what the pool has learnt about it."""

    __slots__ = (
        "answered",
        "capacity",
        "connection",
        "direct",
        "exchanges",
        "http2",
        "key",
        "last_stream",
        "look",
        "starting",
        "streams",
    )

    def __init__(self, connection: L, key: Key) -> None:
        self.connection = connection
        self.direct = connection  # what is asked to carry a request
        self.look: Callable[[], bool] | None = None  # made when the connection is first used again
        self.key = key
        self.http2 = False
        self.capacity = 0  # requests that it carries at once; 0: not known, for it is only now being opened
        self.answered = False  # it has carried a request to its answer: the next one finds it reused
        self.streams: list[Any] = []  # httpcore's network streams, the innermost first
        # HTTP/2: the requests under way by stream; weak, so that a response that is dropped can be collected
        self.exchanges: WeakValueDictionary[int, Exchange] = WeakValueDictionary()
        # HTTP/2 in threads: httpcore takes the number of a stream and opens that stream without a lock between, so
        # that two requests could share a stream, and with it their answers
        self.starting = threading.Lock()
        self.last_stream: int | None = None  # HTTP/2: the server has said goodbye; it serves streams up to this one

    def open_to_more(self) -> bool:
        """HTTP/2: whether another request may be sent."""
        connection: Any = self.connection
        return self.last_stream is None and bool(connection.is_available())

    def ready(self) -> bool:
        """Whether a request may be sent: the peer has not closed the connection, nor said what nobody asked for.

        Asked at each checkout, whatever the settings: see _look.py.
        """
        if self.http2 and not self.open_to_more():
            return False
        look = self.look
        try:
            if look is None:
                if not self.capacity:  # the request opens it
                    return True
                look = self.look = look_at(self.connection, self.http2)
            return look()
        except Exception:  # noqa: BLE001  a stream of the user's own that cannot tell: when in doubt it is closed
            return False

    def answering(self) -> bool:
        """HTTP/1.1: whether a part of an answer's head has arrived that is not whole."""
        parsed: Any = getattr(innermost(self.connection), "_h11_state", None)
        return parsed is not None and bool(parsed.trailing_data[0])

    def goodbye(self, last: int) -> list[int]:
        """The server will serve streams up to ``last`` and no others; the answer: those under way beyond it."""
        self.last_stream = last
        known = self.exchanges.valuerefs()  # copied in one step: requests of other threads come and go
        under_way = [exchange for ref in known if (exchange := ref()) is not None]
        for exchange in under_way:
            exchange.lease.set_capacity(0)  # says it for all of them; a lease that is closed by now says nothing
        return [exchange.stream_id for exchange in under_way if exchange.stream_id > last]

    def __repr__(self) -> str:
        return repr(self.connection)


def key_of(request: httpcore.Request) -> Key:
    """The origin of a request. Raises UnsupportedProtocol as httpcore's pool does."""
    scheme = request.url.scheme
    if scheme not in (b"http", b"https", b"ws", b"wss"):
        if not scheme:
            raise UnsupportedProtocol("Request URL is missing an 'http://' or 'https://' protocol.")
        raise UnsupportedProtocol(f"Request URL has an unsupported protocol '{scheme.decode()}://'.")
    origin = request.url.origin
    return scheme, origin.host, origin.port


def timeout_of(request: httpcore.Request, default: float | None) -> float | None:
    """How long the request may wait for a connection, in seconds; None: for ever."""
    timeouts: dict[str, float | None] = request.extensions.get("timeout") or {}
    return timeouts.get("pool", default)


class Exchange:
    """One request, and what httpcore's trace events tell about it and its connection.

    It listens on the first request of a connection, to learn when that stands and what it speaks, and on every
    request of an HTTP/2 connection, because any of them may be the one that reads the server's settings.
    """

    __slots__ = (
        "__weakref__", "in_settings", "lease", "link", "on_plain", "request", "sent", "stream_id", "user_trace",
    )  # fmt: skip

    def __init__(
        self, link: Link[Any], lease: Lease, request: httpcore.Request, on_plain: Callable[[Key], None]
    ) -> None:
        self.link = link
        self.lease = lease
        self.request = request
        self.on_plain = on_plain
        self.sent = False
        self.in_settings = False  # it is dealing with the server's settings, for all
        self.stream_id = 0
        self.user_trace: Any = request.extensions.get("trace")

    def traced(self, hook: Any, connect_timeout: float | None) -> httpcore.Request:
        """The request with ``hook`` listening, and the pool's own limit for connecting if it brings none."""
        extensions = {**self.request.extensions, "trace": hook}
        timeouts = extensions.get("timeout") or {}
        if connect_timeout is not None and timeouts.get("connect") is None and not self.link.capacity:
            extensions["timeout"] = {**timeouts, "connect": connect_timeout}
        request = copy(self.request)
        request.extensions = extensions
        return request

    def note(self, event: str, info: dict[str, Any]) -> None:
        """One trace event. Raises ConnectionNotAvailable to keep a request from a server that said goodbye."""
        source, _, step = event.partition(".")
        if step == "send_request_headers.started":
            if source == "http2":
                self.stream_id = info["stream_id"]
                self._not_too_late()
                self.sent = True
            elif info["request"].method != b"CONNECT" or self.request.method == b"CONNECT":  # not a tunnel's
                self.sent = True
                self.stands()
        elif step == "send_request_headers.complete":
            if source == "http2":
                self.link.exchanges[self.stream_id] = self
                self._not_too_late()
        elif step == "receive_remote_settings.started":
            self.in_settings = True
        elif step == "receive_remote_settings.complete":
            self.in_settings = False
            self._settings(info["return_value"])
        elif step == "send_connection_init.started":
            self.link.http2 = True
            stream = self.link.streams[-1] if self.link.streams else None  # None: the user's own opened it
            if isinstance(stream, Watchable):
                stream.watch = FrameWatch(self.link.goodbye)
        elif step in _NETWORK_EVENTS:
            self.link.streams.append(info["return_value"])

    def _not_too_late(self) -> None:
        last = self.link.last_stream
        if last is not None and self.stream_id > last:
            raise httpcore.ConnectionNotAvailable

    def over(self) -> None:
        """The request is done with its stream."""
        self.link.exchanges.pop(self.stream_id, None)

    def stands(self) -> None:
        """The connection is open; it carries one request at a time until we hear otherwise."""
        link = self.link
        if not link.capacity:
            link.capacity = 1
            if not link.http2:
                self.on_plain(link.key)
            self.lease.set_capacity(1)

    def _settings(self, event: Any) -> None:
        # Without a limit in the server's settings httpcore keeps to the one stream it begins with.
        changed = event.changed_settings.get(_MAX_CONCURRENT_STREAMS)
        capacity = self.link.capacity or 1 if changed is None else min(changed.new_value, LOCAL_STREAMS)
        if capacity != self.link.capacity:
            self.link.capacity = capacity
            self.lease.set_capacity(capacity)

    def unprocessed(self, error: BaseException) -> bool:
        """Whether it is certain that the server has done nothing for this request (RFC 9113, 8.7)."""
        if isinstance(error, httpcore.ConnectionNotAvailable):
            return True
        goodbye = self.link.last_stream
        if goodbye is not None and self.stream_id > goodbye and isinstance(error, httpcore.ProtocolError):
            return True  # whatever it met while it was being sent: the stream was closed under it
        reason = _reason(error)
        last = getattr(reason, "last_stream_id", None)  # GOAWAY
        if last is not None:
            return self.stream_id == 0 or self.stream_id > last
        return getattr(reason, "error_code", None) == _REFUSED_STREAM


def _reason(error: BaseException) -> object:
    """The event of HTTP/2 that an error was made of, if so."""
    return error.args[0] if isinstance(error, httpcore.RemoteProtocolError) and error.args else None


def stream_only(link: Link[Any], error: BaseException) -> bool:
    """Whether the server ended this one stream of an HTTP/2 connection that is sound."""
    reason = _reason(error)
    reset = hasattr(reason, "error_code") and not hasattr(reason, "last_stream_id")
    return reset and link.http2 and bool(link.connection.is_available())


class Replays:
    """How often a request has been sent again, and whether it may be once more.

    It may, if the server has certainly not worked on it; and if a *reused* connection was lost before any of the
    answer was seen and doing it twice does no more than doing it once (RFC 9110, 9.2.2): the server has most likely
    closed an idle connection at the moment when the request left, and it may have closed others beside it. A few times
    whatever the time, then while the wait for a connection (``deadline``) lasts, REPLAYS times at most.
    """

    __slots__ = ("_count", "_deadline", "_held", "_refusals", "_request", "pause")

    def __init__(self, request: httpcore.Request, held: tuple[type, ...], deadline: float | None) -> None:
        self._request = request
        self._held = held
        self._deadline = deadline
        self._count = 0
        self._refusals = 0
        self.pause = 0.0
        """Seconds to wait before the request is sent again."""

    def allow(self, error: BaseException, link: Link[Any], exchange: Exchange | None) -> bool:
        """Whether to send the request again after ``error``, on another connection, and after ``pause``."""
        self._count += 1
        if self._count > REPLAYS:
            return False
        certain = (
            isinstance(error, httpcore.ConnectionNotAvailable) if exchange is None else exchange.unprocessed(error)
        )
        self.pause = 0.0
        if certain:
            self._refusals += 1
            if self._refusals > AT_ONCE:  # the server is there and does not want it now: it is given time
                first, longest = PAUSES
                self.pause = min(first * 2.0 ** (self._refusals - AT_ONCE - 1), longest)
        elif not link.answered or not _lost(self._request, error) or link.answering():
            return False
        if self._count > AT_ONCE and self._deadline is not None and time.monotonic() + self.pause > self._deadline:
            return False
        return self._body_is_there(exchange is None or exchange.sent)

    def _body_is_there(self, sent: bool) -> bool:
        if not sent or isinstance(self._request.stream, self._held):
            return True
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self._request.headers)


def _lost(request: httpcore.Request, error: BaseException) -> bool:
    if request.method not in _IDEMPOTENT:
        return False
    gone = isinstance(error, httpcore.RemoteProtocolError) and str(error).startswith("Server disconnected")
    return gone or isinstance(error, (httpcore.ReadError, httpcore.WriteError))


HELD: tuple[type, ...] = (type(httpcore.Request("GET", "http://localhost/").stream),)
"""Bodies that are held in memory and can be read again."""


def left(deadline: float | None) -> float | None:
    """Seconds until ``deadline`` by the monotonic clock, not below 0; None: for ever."""
    return None if deadline is None else max(0.0, deadline - time.monotonic())


def takes_over(request: httpcore.Request, response: httpcore.Response, link: Link[Any]) -> bool:
    """Whether the connection speaks something else than HTTP from here on (an upgrade, a tunnel)."""
    if link.http2:
        return False
    return response.status == 101 or (request.method == b"CONNECT" and 200 <= response.status < 300)


def peek(link: Link[Any]) -> bool:
    """False if the idle connection has been closed by the server, or holds bytes that nobody asked for."""
    return not link.connection.is_closed() and link.ready()


def shut(link: Link[Any]) -> None:
    """Wake whoever is blocked in a read of the connection."""
    for stream in link.streams:
        with contextlib.suppress(Exception):
            stream.get_extra_info("socket").shutdown(2)
