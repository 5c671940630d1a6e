"""An HTTP/2 connection for threads.

One of the threads that wait for their responses reads from the connection on behalf of all, and hands over when its own
response is there. Nobody waits for a lock while another thread reads or sends: each thread waits for its own stream,
with its own timeout.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NoReturn

from poolkit.errors import LeaseOverdue

from ._driver import httpcore
from ._h2_headers import has_body, status_and_headers
from ._h2_state import (
    SILENT,
    State,
    Stream,
    again,
    timeout_of_step,
    tracer_of,
)

if TYPE_CHECKING:
    from ._link import Exchange

__all__ = ("H2Connection",)

ABANDONED = 2.0
"""Seconds that a thread tries to send what is not its own request."""

_MOST = 65536
_SyncStream: Any = httpcore._backends.sync.SyncStream  # type: ignore[attr-defined]


class _Wire:
    """Any network stream. One thread may read while another one writes."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, timeout: float | None) -> bytes:
        """Return what has arrived, b"" at the end. Raises ReadTimeout and ReadError."""
        return self._stream.read(_MOST, timeout)

    def write(self, data: bytes, timeout: float | None) -> None:
        """Send everything. Raises WriteTimeout and WriteError."""
        self._stream.write(data, timeout)


class _SocketWire(_Wire):
    """httpcore's stream on one socket.

    The socket does not block, and every wait is a poll. In httpcore, a thread that writes changes the timeout of the
    one that reads. And one TLS connection must not be read and written at the same moment: here a lock separates the
    calls, but no wait.
    """

    def __init__(self, stream: httpcore.NetworkStream, sock: socket.socket) -> None:
        super().__init__(stream)
        sock.settimeout(0)
        self._socket = sock
        self._fd = sock.fileno()
        self._pending = sock.pending if isinstance(sock, ssl.SSLSocket) else _nothing
        self._lock = threading.Lock()
        self._arrivals = select.poll()
        self._arrivals.register(self._fd, select.POLLIN)

    def read(self, timeout: float | None) -> bytes:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            ready = bool(self._pending())
        while True:
            if not ready and not self._arrivals.poll(_milliseconds(deadline)):
                raise httpcore.ReadTimeout("timed out")
            try:
                with self._lock:
                    return self._socket.recv(_MOST)
            except (BlockingIOError, ssl.SSLWantReadError):
                ready = False
            except ssl.SSLWantWriteError:
                self._writable(deadline, httpcore.ReadTimeout)
            except (OSError, ValueError) as error:
                raise httpcore.ReadError(error) from error

    def write(self, data: bytes, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        rest = memoryview(data)
        while rest:
            try:
                with self._lock:
                    sent = self._socket.send(rest)
            except (BlockingIOError, ssl.SSLWantWriteError):
                self._writable(deadline, httpcore.WriteTimeout)
            except ssl.SSLWantReadError:  # a new key is on its way, which the reading thread takes
                time.sleep(0.001)
                if deadline is not None and time.monotonic() > deadline:
                    raise httpcore.WriteTimeout("timed out") from None
            except (OSError, ValueError) as error:
                raise httpcore.WriteError(error) from error
            else:
                rest = rest[sent:]

    def _writable(self, deadline: float | None, error: type[Exception]) -> None:
        room = select.poll()
        room.register(self._fd, select.POLLOUT)
        if not room.poll(_milliseconds(deadline)):
            raise error("timed out")


def _nothing() -> int:
    return 0


def _milliseconds(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, (deadline - time.monotonic()) * 1000)


def _wire_of(stream: Any) -> _Wire:
    inner = stream
    while hasattr(inner, "opens_until"):  # poolkit's own, around the streams of a pool with a proxy
        inner = inner._stream
    if type(inner) is _SyncStream and hasattr(select, "poll"):
        return _SocketWire(stream, inner._sock)
    return _Wire(stream)


_OURS = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, httpcore.ConnectionNotAvailable)


class _Guard:
    """The lock of the state.

    Ctrl-C or a soft time limit may interrupt a thread in the middle of a change. Then the connection ends: the table of
    compressed headers may hold what the server never gets, for example, and the next request would be another one.

    Reentrant, because a signal handler or the garbage collector may close the connection in a thread that holds it.
    """

    __slots__ = ("_lock", "_state")

    def __init__(self, state: State) -> None:
        self._state = state
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        try:
            if kind is not None and not issubclass(kind, _OURS):
                self._state.fail(httpcore.ReadError("a thread was interrupted while it worked on the connection"))
        finally:
            self._lock.release()


class H2Connection(httpcore.ConnectionInterface):
    """An open HTTP/2 connection, from the first byte of the protocol on. Thread-safe."""

    def __init__(self, origin: httpcore.Origin, stream: httpcore.NetworkStream, held: tuple[type, ...]) -> None:
        self.state = State()
        self._origin = origin
        self._network_stream = stream
        self._held = held  # types of bodies in memory
        self._wire = _wire_of(stream)
        self._lock = _Guard(self.state)  # never held while anything waits
        self._writing = threading.Lock()
        self._reading = False
        self._parked: dict[int, Stream] = {}  # streams whose threads wait while another one reads
        self._closed = False

    # -- a request ----------------------------------------------------------------------------------------------------

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request of the pool, whose hook is its trace."""
        return self.send(request, request.extensions["trace"])

    def send(self, request: httpcore.Request, exchange: Exchange) -> httpcore.Response:
        """Send a request and return the response as soon as its head is there.

        Raises httpcore's errors, and ConnectionNotAvailable if the server has certainly not processed the request. The
        caller must call :meth:`give_up` after any error.
        """
        traced = tracer_of(exchange.user_trace)
        body = has_body(request)
        eager = body and type(request.stream) in self._held
        state = self.state
        state.tell(exchange)
        info: dict[str, Any] = {"request": request, "stream_id": state.next_id()}
        write = timeout_of_step(request, "write")
        if not state.sent:
            with traced("send_connection_init", {"request": request}):
                self._flush(write)
        with traced("send_request_headers", info):
            with self._lock:
                stream = state.open(request, exchange, complete=not body)
            if not eager:
                self._flush(write)
        info["stream_id"] = stream.id
        with traced("send_request_body", info):
            if body:
                self._send_body(stream, request, write, eager=eager)
        with traced("receive_response_headers", info) as step:
            if stream.head is None:
                self._wait(stream, stream.answered, timeout_of_step(request, "read"))
            if stream.head is None:
                raise again(stream.error)  # type: ignore[arg-type]
            status, headers = status_and_headers(stream.head)
            if step is not SILENT:
                step.return_value = status, headers
        return httpcore.Response(
            status=status,
            headers=headers,
            content=_Body(self, stream, request, exchange, traced),
            extensions={"http_version": b"HTTP/2", "network_stream": self._network_stream, "stream_id": stream.id},
        )

    def _send_body(self, stream: Stream, request: httpcore.Request, timeout: float | None, *, eager: bool) -> None:
        parts = iter(request.stream)  # type: ignore[arg-type]
        try:
            self._send_parts(parts, stream, request, eager=eager)
        finally:
            close = getattr(parts, "close", None)
            if close is not None:
                close()
        with self._lock:
            if stream.error is None and not stream.ended:
                self.state.end(stream)
        self._flush(timeout)
        if stream.error is not None and stream.head is None:
            raise again(stream.error)

    def _send_parts(self, parts: Iterator[bytes], stream: Stream, request: httpcore.Request, *, eager: bool) -> None:
        for chunk in parts:
            if not self._send_chunk(stream, memoryview(chunk), request, eager=eager):
                break

    def _send_chunk(self, stream: Stream, rest: memoryview, request: httpcore.Request, *, eager: bool) -> bool:
        """Return False if the server wants no more of the body."""
        timeout = timeout_of_step(request, "write")
        while rest:
            with self._lock:
                if stream.error is not None or stream.ended:
                    return False
                count = self.state.send(stream, rest)
            rest = rest[count:]
            if rest or not eager:
                self._flush(timeout)
            if not count:
                self._wait(stream, stream.writable, timeout_of_step(request, "read"))
        return True

    def read_part(self, stream: Stream, request: httpcore.Request) -> bytes:
        """Return the next part of a response, b"" at its end."""
        if not stream.readable():
            self._wait(stream, stream.readable, timeout_of_step(request, "read"))
        with self._lock:
            data = self.state.take(stream)
        if self.state.unsent():
            self._flush(timeout_of_step(request, "write"), wait=False)
        return data

    def give_up(self, stream: Stream | None, error: BaseException | None, alive: float | None) -> bool:
        """End a request, whose stream may not be complete. Return whether the connection can carry other ones.

        ``alive``: see :meth:`.State.usable_after`.
        """
        if error is not None and not isinstance(error, Exception):  # Ctrl-C may have come at any moment
            return False
        with self._lock:
            usable = self.state.usable_after(stream, error, alive)
            if stream is not None:
                self.state.drop(stream)
        if usable and self.state.unsent():
            try:
                self._flush(ABANDONED, wait=False)
            except (httpcore.NetworkError, httpcore.TimeoutException):
                return False
        return usable

    # -- reading and writing ------------------------------------------------------------------------------------------

    def _flush(self, timeout: float | None, *, wait: bool = True) -> None:
        """Send what the state has to send. Without ``wait``, a thread that is just sending does it."""
        state, writing = self.state, self._writing
        while state.unsent():
            if not writing.acquire(wait, -1 if timeout is None or not wait else timeout):
                if wait:
                    raise httpcore.WriteTimeout("timed out")
                return  # that thread looks again after it has released the lock
            try:
                with self._lock:
                    data = state.output()
                if data:
                    self._wire.write(data, timeout)
            except BaseException as error:  # a part of a frame may have been sent
                with self._lock:
                    state.fail(error if isinstance(error, _OURS) else httpcore.WriteError("a write was interrupted"))
                raise
            finally:
                writing.release()

    def _wait(self, stream: Stream, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until ``done()``, and read for all others meanwhile, unless another thread does so.

        Raises ReadTimeout.
        """
        begun = stream.waits_since = time.monotonic()
        deadline = None if timeout is None else begun + timeout
        while True:
            with self._lock:
                if done():
                    return
                leads = not self._reading
                if leads:
                    self._reading = True
                else:
                    turn = threading.Lock()
                    turn.acquire()
                    stream.wake = turn.release
                    self._parked[stream.id] = stream
            if leads:
                self._lead(done, deadline)
                return
            in_time = False
            try:
                in_time = turn.acquire(timeout=-1 if deadline is None else max(0.0, deadline - time.monotonic()))
            finally:
                with self._lock:
                    stream.wake = None
                    self._parked.pop(stream.id, None)
                    if not in_time:  # it may have been this thread's turn
                        self._wake_next()
            if not in_time and not done():
                raise httpcore.ReadTimeout("timed out")

    def _lead(self, done: Callable[[], bool], deadline: float | None) -> None:
        """Read until ``done()``, then let another waiting thread read."""
        state = self.state
        try:
            while True:
                if done():
                    break
                try:
                    data = self._wire.read(None if deadline is None else max(0.0, deadline - time.monotonic()))
                    with self._lock:
                        news = state.receive(data)
                except httpcore.ReadTimeout:
                    raise
                except _OURS as error:
                    with self._lock:
                        state.fail(error)
                    continue
                except BaseException:  # what was read may be lost
                    with self._lock:
                        state.fail(httpcore.ReadError("the reading thread was interrupted"))
                    raise
                if news:
                    state.announce()
                self._flush_unsent()
        finally:
            with self._lock:
                self._reading = False
                self._wake_next()

    def _flush_unsent(self) -> None:
        if self.state.unsent():
            with contextlib.suppress(httpcore.NetworkError, httpcore.TimeoutException):  # told by fail()
                self._flush(ABANDONED, wait=False)

    def _wake_next(self) -> None:
        """Let another waiting thread read, if none does."""
        if self._reading:
            return
        for stream in self._parked.values():
            if stream.wake is not None:
                stream.woken()
                return

    # -- for httpcore -------------------------------------------------------------------------------------------------

    def can_handle_request(self, origin: httpcore.Origin) -> bool:
        """Return whether this is a connection to ``origin``."""
        return origin == self._origin

    def is_available(self) -> bool:
        """Return whether another request may be sent."""
        return not self._closed and self.state.accepts_more()

    def has_expired(self) -> bool:
        """Return whether the connection has ended. The pool knows about idle times."""
        return self.state.error is not None

    def is_idle(self) -> bool:
        """Return whether no request is in progress."""
        return not self._closed and not self.state.streams

    def is_closed(self) -> bool:
        """Return whether the connection is closed."""
        return self._closed

    def can_multiplex(self) -> bool:
        """Return True: many requests at the same time."""
        return True

    def info(self) -> str:
        """Return a description for the repr of httpcore's classes."""
        word = "CLOSED" if self._closed else "ACTIVE" if self.state.streams else "IDLE"
        return f"{str(self._origin)!r}, HTTP/2, {word}, Request Count: {self.state.sent}"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} [{self.info()}]>"

    def close(self) -> None:
        """Close the connection. Threads that wait for responses get an error."""
        self._closed = True
        self._network_stream.close()
        with self._lock:
            self.state.fail(httpcore.ReadError("the connection was closed"))


class _Body:
    """The body of a response. Closing it gives the lease back."""

    __slots__ = ("_closed", "_connection", "_done", "_exchange", "_request", "_stream", "_traced")

    def __init__(
        self, connection: H2Connection, stream: Stream, request: httpcore.Request, exchange: Exchange, traced: Any
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._request = request
        self._exchange = exchange
        self._traced = traced
        self._done = False
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        connection, stream, request = self._connection, self._stream, self._request
        info = {"request": request, "stream_id": stream.id}
        try:
            with self._traced("receive_response_body", info):
                while True:
                    if self._closed:
                        raise httpcore.ReadError("the response was closed")
                    data = connection.read_part(stream, request)
                    if not data:
                        break
                    yield data
            self._done = True
        except BaseException as error:  # noqa: BLE001  raised again
            self._failed(error)

    def _failed(self, error: BaseException) -> NoReturn:
        if not self._closed:
            with contextlib.suppress(LeaseOverdue):  # it must not replace the error
                self._close(None if isinstance(error, GeneratorExit) else error)
            self._exchange.failed(error)
        raise error

    def close(self) -> None:
        if not self._closed:
            self._close(None)

    def _close(self, error: BaseException | None) -> None:
        self._closed = True
        exchange = self._exchange
        usable = False
        try:
            with self._traced("response_closed", {"stream_id": self._stream.id}):
                alive = None if self._done else exchange.alive
                usable = self._connection.give_up(self._stream, error, alive)
        finally:
            exchange.lease.close(discard=not usable)
