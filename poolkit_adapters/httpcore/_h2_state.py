"""The state of one HTTP/2 connection, for threads and tasks alike. Does no I/O.

poolkit has an HTTP/2 connection of its own in the place of httpcore's, whose locks let one request hold up the others:
a limit of streams that the server lowers, an upload that waits for a window and a cancelled request can each stop all
requests of the connection. The frames are made and parsed by ``h2``, as in httpcore.

*Graceful shutdown by the server.* RFC 9113, 6.8: after a GOAWAY the streams up to the number in it still complete. The
server has not processed the others, which may be sent again elsewhere. ``h2`` accepts no frame after a GOAWAY, so a
GOAWAY without an error is handled here and hidden from it. A GOAWAY with an error ends the connection.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import hpack
import hyperframe.exceptions

from ._driver import Trace, httpcore
from ._h2_headers import RequestHeaders

if TYPE_CHECKING:
    from ._link import Exchange

__all__ = (
    "LOGGER",
    "SILENT",
    "Crowded",
    "FrameWatch",
    "State",
    "Stream",
    "again",
    "timeout_of_step",
    "tracer_of",
)

LOCAL_STREAMS = 100
"""The most streams that are open on one connection, whatever the server allows. httpcore has the same limit."""

STREAM_WINDOW = 2**22
"""Bytes of one response that may arrive before its reader takes them."""

CONNECTION_WINDOW = 2**24
"""The same for all responses together. It holds several streams' windows, so that one slow reader does not stop the
others."""

_ACKNOWLEDGED_AT_ONCE = 2**18
"""Bytes of completed responses that are acknowledged together."""

_LARGEST_FRAME = 2**14
_MOST_STREAMS = 3  # RFC 9113, 6.5.2: SETTINGS_MAX_CONCURRENT_STREAMS
_CANCEL = 8  # RFC 9113, 7: the stream is no longer needed
_HEADER = 9  # bytes of a frame's header (RFC 9113, 4.1): length, type, flags, stream
_GOAWAY = 7

_MALFORMED = (
    h2.exceptions.H2Error, hpack.HPACKError, hyperframe.exceptions.HyperframeError, ValueError, LookupError, TypeError,
    AttributeError, ArithmeticError, AssertionError,
)  # fmt: skip
"""What h2 and its parts raise for malformed data: the first kinds, or what their code trips over."""

LOGGER = logging.getLogger(f"{httpcore.__name__}.http2")
"""The logger of httpcore's own connection: debug lines appear where its users expect them."""


class Crowded(httpcore.ConnectionNotAvailable):  # type: ignore[misc, unused-ignore]
    """The server has lowered its limit meanwhile: the request was not sent, and the connection is well."""


class FrameWatch:
    """Splits incoming data into frames. Not thread-safe.

    Calls ``goodbye(last)`` for a GOAWAY without an error, and removes it.
    """

    __slots__ = ("_goodbye", "_rest")

    def __init__(self, goodbye: Callable[[int], object]) -> None:
        self._goodbye = goodbye
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the complete frames of ``data``. Keep the start of a frame until its end arrives."""
        data = self._rest + data if self._rest else data
        start = position = 0
        seen = []
        while len(data) - position >= _HEADER:
            length = int.from_bytes(data[position : position + 3], "big")
            end = position + _HEADER + length
            if length > _LARGEST_FRAME:  # not allowed: h2 refuses it now, instead of after 16 MB
                end = len(data)
            elif end > len(data):
                break
            elif data[position + 3] == _GOAWAY and length >= 8 and not any(data[position + 13 : position + 17]):
                seen.append(data[start:position])  # error code 0
                start = end
                self._goodbye(int.from_bytes(data[position + 9 : position + 13], "big") & 0x7FFFFFFF)
            position = end
        self._rest = data[position:]
        if not seen:
            return data[:position]
        seen.append(data[start:position])
        return b"".join(seen)


class Stream:
    """One request on a connection, and what has arrived for it."""

    __slots__ = (
        "blocked", "complete", "ended", "error", "exchange", "head", "id", "parts", "unread", "waits_since", "wake",
    )  # fmt: skip

    def __init__(self, number: int, exchange: Exchange, *, complete: bool) -> None:
        self.id = number
        self.exchange = weakref.ref(exchange)  # weak, so that a dropped response can be garbage collected
        self.complete = complete  # the request has been sent to its end
        self.head: list[Any] | None = None
        self.parts: list[bytes] = []
        self.unread = 0  # bytes of the server's windows that they use
        self.ended = False  # the response is complete
        self.error: Exception | None = None  # nothing more will arrive
        self.blocked = False  # the server's windows are full
        self.waits_since = 0.0
        self.wake: Callable[[], object] | None = None  # set while a caller waits for this stream

    def answered(self) -> bool:
        """Return whether the head of the response or an error is there."""
        return self.head is not None or self.error is not None

    def readable(self) -> bool:
        """Return whether a part of the body, its end or an error is there."""
        return bool(self.parts) or self.ended or self.error is not None

    def writable(self) -> bool:
        """Return whether more of the request may be sent, or need not be sent."""
        return not self.blocked or self.ended or self.error is not None

    def woken(self) -> None:
        """Wake the caller that waits for this stream."""
        wake, self.wake = self.wake, None
        if wake is not None:
            wake()


class State:
    """Not thread-safe: threads call it under the connection's lock."""

    def __init__(self) -> None:
        config = h2.config.H2Configuration(
            validate_inbound_headers=False, normalize_inbound_headers=False,
            validate_outbound_headers=False, normalize_outbound_headers=False,  # see RequestHeaders
        )  # fmt: skip
        self.h2 = h2.connection.H2Connection(config)
        codes = h2.settings.SettingCodes
        # not by update_settings(), which would send the default values before these
        self.h2.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                codes.ENABLE_PUSH: 0, codes.MAX_CONCURRENT_STREAMS: LOCAL_STREAMS, codes.MAX_HEADER_LIST_SIZE: 65536,
                codes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
            },
        )  # fmt: skip
        del self.h2.local_settings[codes.ENABLE_CONNECT_PROTOCOL]  # httpcore: some servers reject it
        self.h2.initiate_connection()
        self.h2.increment_flow_control_window(CONNECTION_WINDOW)
        self.streams: dict[int, Stream] = {}
        self.capacity = 0
        """Requests that the server accepts at the same time. 0 before its settings have arrived."""
        self.last: int | None = None
        """After a GOAWAY: the last stream that the server serves."""
        self.error: Exception | None = None
        """Why the connection has ended."""
        self.heard_at = float("-inf")
        """Time of the last received data on the monotonic clock."""
        self.sent = 0
        self._unusable = False
        self._headers = RequestHeaders()
        self._owed = 0
        self._news = False
        self._watch = FrameWatch(self._goodbye)

    # -- requests -----------------------------------------------------------------------------------------------------

    def accepts_more(self) -> bool:
        """Return whether another request may be sent, apart from the number of streams."""
        return self.error is None and self.last is None and not self._unusable

    def next_id(self) -> int:
        """Return the number that the next stream probably gets."""
        highest: int = self.h2.highest_outbound_stream_id
        return highest + 2 if highest else 1

    def open(self, request: httpcore.Request, exchange: Exchange, *, complete: bool) -> Stream:
        """Open a stream with the head of a request. ``complete``: no body follows.

        Raises ConnectionNotAvailable if nothing was sent, and LocalProtocolError for headers that must not be sent.
        """
        if self.error is not None and not self.capacity:  # it never worked: the caller learns why
            raise again(self.error)
        if not self.accepts_more():
            raise httpcore.ConnectionNotAvailable
        head = self._headers.of(request)
        try:
            number = self.h2.get_next_available_stream_id()
            self.h2.send_headers(number, head, end_stream=complete)
        except h2.exceptions.TooManyStreamsError as error:
            raise Crowded from error
        except h2.exceptions.NoAvailableStreamIDError as error:
            self._unusable = True
            raise httpcore.ConnectionNotAvailable from error
        except h2.exceptions.ProtocolError as error:
            self._unusable = True  # the table of compressed headers may hold what the server never gets
            raise httpcore.LocalProtocolError(error) from error
        stream = self.streams[number] = Stream(number, exchange, complete=complete)
        exchange.stream, exchange.sent = stream, True
        self.sent += 1
        return stream

    def send(self, stream: Stream, data: memoryview) -> int:
        """Send the start of ``data``, and return how many bytes that are. 0: the server's windows are full."""
        connection = self.h2
        try:
            size = min(len(data), connection.local_flow_control_window(stream.id), connection.max_outbound_frame_size)
            if size > 0:
                connection.send_data(stream.id, bytes(data[:size]))
        except h2.exceptions.ProtocolError as error:
            raise httpcore.LocalProtocolError(error) from error
        stream.blocked = size <= 0
        return max(size, 0)

    def end(self, stream: Stream) -> None:
        """End the body of a request."""
        stream.complete = True
        try:
            self.h2.end_stream(stream.id)
        except h2.exceptions.ProtocolError as error:  # a body that is shorter than its content-length
            raise httpcore.LocalProtocolError(error) from error

    def take(self, stream: Stream) -> bytes:
        """Return the data that has arrived (b"": the end), and let the server send more. Raises the stream's error."""
        parts = stream.parts
        if not parts:
            if stream.error is not None and not stream.ended:
                raise again(stream.error)
            return b""
        data = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._acknowledge(stream)
        return data

    def drop(self, stream: Stream) -> None:
        """Forget a stream whose request needs it no longer, and cancel it if it has not ended (RFC 9113, 8.7)."""
        if self.streams.pop(stream.id, None) is None or self.error is not None:
            return
        if stream.error is None and not (stream.ended and stream.complete):
            try:
                self.h2.reset_stream(stream.id, _CANCEL)
            except h2.exceptions.ProtocolError:  # it has ended
                pass
            stream.error = httpcore.ReadError("the response was closed")
            stream.woken()
        if stream.unread:
            self._acknowledge(stream)

    def _acknowledge(self, stream: Stream) -> None:
        count, stream.unread = stream.unread, 0
        if stream.ended or stream.error is not None:  # only the connection's window counts from now on
            self._owed += count
            if self._owed < _ACKNOWLEDGED_AT_ONCE:
                return
            count, self._owed = self._owed, 0
        try:
            if count:
                self.h2.acknowledge_received_data(count, stream.id)
        except h2.exceptions.ProtocolError:  # the connection has ended
            pass

    # -- what arrives -------------------------------------------------------------------------------------------------

    def unsent(self) -> bool:
        """Return whether there are bytes to send."""
        return bool(self.h2._data_to_send)

    def output(self) -> bytes:
        """Return the bytes to send."""
        return self.h2.data_to_send()

    def receive(self, data: bytes) -> bool:
        """Take data from the server (b"": the end), and wake those that it concerns.

        Return whether :meth:`announce` is due.
        """
        self._news = False
        if not data:
            self.fail(httpcore.RemoteProtocolError("Server disconnected"))
            return False
        self.heard_at = time.monotonic()
        try:
            frames = self._watch.feed(data)
            events = self.h2.receive_data(frames) if frames else ()
        except _MALFORMED as error:
            self.fail(httpcore.RemoteProtocolError(str(error)))
            return False
        streams = self.streams
        for event in events:
            stream = streams.get(getattr(event, "stream_id", 0) or 0)
            if stream is not None:
                if stream.error is None:
                    _arrived(stream, event)
                if stream.wake is not None:
                    stream.woken()
            elif isinstance(event, h2.events.DataReceived):
                self._owed += event.flow_controlled_length or 0  # of a stream that was dropped, not reset
            elif isinstance(event, h2.events.RemoteSettingsChanged):
                self._settings(event)
            elif isinstance(event, h2.events.WindowUpdated):
                self._unblock()
            elif isinstance(event, h2.events.ConnectionTerminated):
                self.fail(httpcore.RemoteProtocolError(event))
        return self._news

    def fail(self, error: Exception) -> None:
        """End the connection: all its requests fail with ``error``. Further calls do nothing."""
        if self.error is None:
            self.error = error
            for stream in list(self.streams.values()):
                if stream.error is None:
                    stream.error = error
                stream.woken()

    def _settings(self, event: h2.events.RemoteSettingsChanged) -> None:
        changed = event.changed_settings.get(_MOST_STREAMS)
        if changed is not None:
            self.capacity = min(changed.new_value, LOCAL_STREAMS)
            self._unusable = self._unusable or not self.capacity
        elif not self.capacity:
            self.capacity = LOCAL_STREAMS
        self._news = True
        self._unblock()  # the first window of each stream is a setting

    def _unblock(self) -> None:
        for stream in list(self.streams.values()):
            if stream.blocked:
                stream.blocked = False
                stream.woken()

    def _goodbye(self, last: int) -> None:
        self.last = last if self.last is None else min(last, self.last)
        self._news = True
        for stream in list(self.streams.values()):
            if stream.id > last and not stream.ended:
                stream.error = httpcore.ConnectionNotAvailable()
                stream.woken()

    # -- reports to the pool ----------------------------------------------------------------------------------------

    def usable_after(self, stream: Stream | None, error: BaseException | None, alive: float | None) -> bool:
        """Return whether the connection can carry other requests after one that was given up, for ``error`` or None.

        Return False if the connection has been silent for longer than ``alive`` seconds (None: no limit), or for half
        of the wait of a request that timed out. It may be dead, and the next callers must not discover that one after
        the other.
        """
        if not self.accepts_more():
            return False
        if stream is None or (stream.error is not None and stream.error is not self.error):
            return True  # nothing was sent, or the server has ended this stream alone
        if isinstance(error, httpcore.ReadTimeout):
            return self.heard_at > (stream.waits_since + time.monotonic()) / 2
        if isinstance(error, (httpcore.NetworkError, httpcore.TimeoutException)):
            return False
        return alive is None or time.monotonic() - self.heard_at <= alive

    def tell(self, exchange: Exchange) -> None:
        """Tell the pool what changed while there was no request."""
        link, capacity = exchange.link, self.capacity
        if capacity and capacity != link.capacity:
            link.capacity = capacity
            exchange.lease.set_capacity(capacity)

    def announce(self) -> None:
        """Tell the pool how many requests the connection carries. Threads hold no lock meanwhile."""
        capacity = self.capacity if self.accepts_more() else 0
        for stream in list(self.streams.values()):
            exchange = stream.exchange()
            if exchange is not None:  # one call is enough, but does nothing if its lease has ended by now
                exchange.link.capacity = capacity or exchange.link.capacity
                exchange.lease.set_capacity(capacity)


def _arrived(stream: Stream, event: Any) -> None:
    if isinstance(event, h2.events.DataReceived):
        stream.unread += event.flow_controlled_length or 0
        if event.data:
            stream.parts.append(event.data)
    elif isinstance(event, h2.events.ResponseReceived):
        stream.head = event.headers
    elif isinstance(event, h2.events.StreamEnded):
        stream.ended = True
    elif isinstance(event, h2.events.StreamReset):
        if not stream.ended:
            stream.error = httpcore.RemoteProtocolError(event)
        stream.complete = True
    elif isinstance(event, h2.events.WindowUpdated):
        stream.blocked = False


def again(error: Exception) -> Exception:
    """Return the error for one of several callers that get the same one: each has a traceback of its own."""
    try:
        own = type(error)(*error.args)
    except Exception:  # noqa: BLE001  a class of a custom network backend
        return error
    own.__cause__ = error
    return own


def timeout_of_step(request: httpcore.Request, step: str) -> float | None:
    """Return the timeout of one step of the request in seconds: ``"read"`` or ``"write"``."""
    timeouts: dict[str, float | None] = request.extensions.get("timeout") or {}
    return timeouts.get(step)


class _Silent:
    """In the place of httpcore's ``Trace`` for a request that nobody traces."""

    __slots__ = ()

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    async def __aenter__(self) -> _Silent:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass


SILENT = _Silent()


def _silent(*_: object) -> Any:
    return SILENT


class _Traced:
    """In the place of a request, for httpcore's ``Trace``."""

    def __init__(self, trace: Any) -> None:
        self.extensions = {"trace": trace} if trace is not None else {}


def tracer_of(trace: Any) -> Callable[[str, dict[str, Any]], Any]:
    """Return a function that makes the context managers which report steps as httpcore does.

    ``trace`` is the function that the request has in its extensions, or None.
    """
    if trace is None and not LOGGER.isEnabledFor(logging.DEBUG):
        return _silent
    return lambda step, info: Trace(step, LOGGER, _Traced(trace), info)  # type: ignore[arg-type]
