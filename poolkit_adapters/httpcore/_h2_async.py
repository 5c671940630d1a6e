"""An HTTP/2 connection for tasks, on asyncio and trio. Safe for concurrent tasks of one event loop.

Under asyncio, with httpcore's own backend, the transport delivers what arrives to the connection, and takes what it
sends without a suspension: see :class:`_Push`. So a cancelled task never leaves an incomplete frame, and a connection
learns of a GOAWAY while it is idle. With any other stream, one of the waiting tasks reads on behalf of all, and hands
over when its own response is there: see :class:`_Pull`.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from poolkit.errors import LeaseOverdue

from ._asyncio_stream import AsyncioStream
from ._driver import AnyIOStream, httpcore
from ._h2_headers import has_body, status_and_headers
from ._h2_state import SILENT, State, Stream, again, timeout_of_step, tracer_of
from ._network import ABANDONED, first_step, write_to_the_end

if TYPE_CHECKING:
    from ._link import Exchange

__all__ = ("AsyncH2Connection",)

_MOST = 65536
_EXPECTED = (httpcore.NetworkError, httpcore.TimeoutException, OSError)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


async def _parked(stream: Stream, timeout: float | None) -> bool:
    """Wait until the stream is woken. Return False after ``timeout`` seconds."""
    if asyncio._get_running_loop() is None:
        import trio

        event = trio.Event()
        stream.wake = event.set
        try:
            with trio.move_on_after(float("inf") if timeout is None else timeout):
                await event.wait()
            return event.is_set()
        finally:
            stream.wake = None
    loop = asyncio.get_running_loop()
    future: asyncio.Future[bool] = loop.create_future()
    stream.wake = partial(_settle, future, True)
    timer = None if timeout is None else loop.call_later(timeout, _settle, future, False)
    try:
        return await future
    finally:
        stream.wake = None
        if timer is not None:
            timer.cancel()


def _settle(future: asyncio.Future[bool], value: bool) -> None:
    if not future.done():
        future.set_result(value)


class _Pull:
    """Reads and writes any network stream. One of the tasks that wait reads for all."""

    def __init__(self, connection: AsyncH2Connection, stream: httpcore.AsyncNetworkStream) -> None:
        self._state = connection.state
        self._stream = stream
        self._reading = False
        self._waiting: dict[int, Stream] = {}
        self._turn: Any = None  # one write at a time; made in the first write, which knows the event loop

    async def wait(self, stream: Stream, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until ``done()``. Raises ReadTimeout."""
        stream.waits_since = time.monotonic()
        deadline = None if timeout is None else stream.waits_since + timeout
        while not done():
            if not self._reading:
                await self._lead(done, deadline)
                return
            self._waiting[stream.id] = stream
            in_time = False
            try:
                in_time = await _parked(stream, _left(deadline))
            finally:
                self._waiting.pop(stream.id, None)
                if not in_time:  # it may have been this task's turn
                    self._wake_next()
            if not in_time and not done():
                raise httpcore.ReadTimeout("timed out")

    async def _lead(self, done: Callable[[], bool], deadline: float | None) -> None:
        state = self._state
        self._reading = True
        try:
            while True:
                if done():
                    break
                try:
                    data = await self._stream.read(_MOST, _left(deadline))
                except httpcore.ReadTimeout:
                    raise
                except Exception as error:  # noqa: BLE001  a custom stream may raise anything
                    state.fail(error)
                    continue
                if state.receive(data):
                    state.announce()
                await self._flush_unsent()
        finally:
            self._reading = False
            self._wake_next()

    async def _flush_unsent(self) -> None:
        if self._state.unsent():
            with contextlib.suppress(*_EXPECTED):  # fail() tells of it
                await self.flush(ABANDONED)

    def _wake_next(self) -> None:
        """Let another waiting task read, if none does."""
        if self._reading:
            return
        for stream in self._waiting.values():
            if stream.wake is not None:
                stream.woken()
                return

    async def flush(self, timeout: float | None) -> None:
        """Send what the state has to send. Raises WriteTimeout and WriteError."""
        await write_to_the_end(partial(self._write, timeout), self._stream.aclose)

    async def _write(self, timeout: float | None) -> None:
        if self._turn is None:
            self._turn = _lock()
        async with self._turn:
            data = self._state.output()
            if not data:
                return
            try:
                await self._stream.write(data, timeout)
            except BaseException as error:  # a part of a frame may have been sent
                self._state.fail(error if isinstance(error, Exception) else httpcore.WriteError("interrupted"))
                raise

    def flush_soon(self) -> None:
        """Send what the state has to send in the background, for a limited time."""
        _in_background(partial(self._write, ABANDONED))

    def abort(self) -> None:
        """Close the stream without a suspension."""
        first_step(self._stream.aclose)


def _lock() -> Any:
    if asyncio._get_running_loop() is not None:
        return asyncio.Lock()
    import trio

    return trio.Lock()


def _in_background(write: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if asyncio._get_running_loop() is None:
        import trio

        async def on_trio() -> None:
            with contextlib.suppress(*_EXPECTED), trio.move_on_after(ABANDONED):
                await write()

        trio.lowlevel.spawn_system_task(on_trio)
        return

    async def work() -> None:
        with contextlib.suppress(*_EXPECTED, asyncio.TimeoutError):
            await asyncio.wait_for(write(), ABANDONED)

    task = asyncio.ensure_future(work())
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)


_tasks: set[asyncio.Future[None]] = set()
"""The running tasks. The event loop itself keeps only weak references to them."""


class _Tls:
    """The TLS layer of a connection, taken from anyio."""

    __slots__ = ("_incoming", "_outgoing", "_secure")

    def __init__(self, secure: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._secure = secure
        self._incoming = incoming
        self._outgoing = outgoing

    def decrypted(self, data: bytes) -> tuple[bytes, bool]:
        """Return the data for the layer above, and whether the stream has ended. Raises SSLError."""
        self._incoming.write(data)
        parts = []
        try:
            while part := self._secure.read(_MOST):
                parts.append(part)
        except ssl.SSLWantReadError:
            return parts[0] if len(parts) == 1 else b"".join(parts), False
        except ssl.SSLZeroReturnError:
            pass
        return b"".join(parts), True

    def encrypted(self, data: bytes) -> bytes:
        """Return the bytes for the layer below. Raises SSLError."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._secure.write(rest) :]
        return self._outgoing.read()

    def pending(self) -> bytes:
        """Return what the layer itself has to send."""
        return self._outgoing.read() if self._outgoing.pending else b""


class _Push(asyncio.Protocol):
    """Gets the data of a connection from its transport, and writes to it.

    Has no reference to the connection, so that a dropped connection can close the socket.
    """

    def __init__(self, connection: AsyncH2Connection, transport: Any, tls: _Tls | None) -> None:
        self._state = connection.state
        self._connection = weakref.ref(connection, self._dropped)
        self._transport = transport
        self._tls = tls
        self._loop = asyncio.get_running_loop()
        self._full = False  # the transport holds as much as it takes
        self._writers: list[asyncio.Future[bool]] = []
        self._planned = False

    def _dropped(self, _: object) -> None:
        """Close the socket of a connection that nobody refers to."""
        if not self._transport.is_closing() and not self._loop.is_closed():
            warnings.warn(f"unclosed {self._transport!r}", ResourceWarning, stacklevel=2)
            self._loop.call_soon_threadsafe(self._transport.abort)

    def start(self, data: bytes, *, ended: bool) -> None:
        """Take the transport over. ``data`` has already been read."""
        self._transport.set_protocol(self)
        self.data_received(data)
        if ended:
            self.eof_received()
        else:
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        state, tls, ended = self._state, self._tls, False
        if tls is not None:
            try:
                data, ended = tls.decrypted(data)
            except (ssl.SSLError, ValueError) as error:
                state.fail(httpcore.ReadError(error))
                return
            out = tls.pending()
            if out:
                self._transport.write(out)
        if data:
            if state.receive(data):
                state.announce()
            if state.unsent():
                self._write()
        if ended:
            state.receive(b"")

    def eof_received(self) -> bool:
        self._state.receive(b"")
        return True  # the pool closes the transport

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None:
            self._state.receive(b"")
        else:
            self._state.fail(httpcore.ReadError(exc))
        self.resume_writing()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        writers, self._writers = self._writers, []
        for writer in writers:
            _settle(writer, True)

    async def wait(self, stream: Stream, done: Callable[[], bool], timeout: float | None) -> None:
        """Wait until ``done()``. Raises ReadTimeout."""
        since = stream.waits_since = time.monotonic()
        while not done():
            left = None if timeout is None else max(0.0, since + timeout - time.monotonic())
            if not await _parked(stream, left) and not done():
                raise httpcore.ReadTimeout("timed out")

    def _write(self) -> None:
        self._planned = False
        data = self._state.output()
        if not data or self._transport.is_closing():
            return
        try:
            self._transport.write(data if self._tls is None else self._tls.encrypted(data))
        except (ssl.SSLError, OSError, RuntimeError) as error:
            self._state.fail(httpcore.WriteError(error))

    async def flush(self, timeout: float | None) -> None:
        """Send what the state has to send. Raises WriteTimeout and WriteError."""
        if self._full:
            await self._room(timeout)
        self._write()
        if self._full:
            await self._room(timeout)
        error = self._state.error
        if error is not None and isinstance(error, httpcore.NetworkError):
            raise httpcore.WriteError(*error.args) from error

    async def _room(self, timeout: float | None) -> None:
        """Wait until everything written has been sent."""
        writer: asyncio.Future[bool] = self._loop.create_future()
        self._writers.append(writer)
        timer = None if timeout is None else self._loop.call_later(timeout, _settle, writer, False)
        try:
            if not await writer:
                raise httpcore.WriteTimeout("timed out")
        finally:
            if timer is not None:
                timer.cancel()

    def flush_soon(self) -> None:
        """Send what the state has to send in this turn of the event loop."""
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._write)

    def abort(self) -> None:
        """Close the transport without a suspension."""
        self._transport.abort()


def _wire_of(connection: AsyncH2Connection, stream: Any) -> _Pull | _Push:
    """Return what reads and writes the stream: by its transport, if that is an asyncio transport under known layers."""
    inner = stream
    while hasattr(inner, "opens_until"):  # poolkit's own, around the streams of a pool with a proxy
        inner = inner._stream
    if asyncio._get_running_loop() is None:
        return _Pull(connection, stream)
    if type(inner) is AsyncioStream:
        if inner._wire is not None or inner._closed or inner.secure():
            return _Pull(connection, stream)
        push = _Push(connection, inner._transport, None)
        push.start(b"", ended=False)
        return push
    if type(inner) is not AnyIOStream:
        return _Pull(connection, stream)
    inner, tls = inner._stream, None  # type: ignore[union-attr, unused-ignore]
    if hasattr(inner, "transport_stream"):
        parts = [getattr(inner, name, None) for name in ("_ssl_object", "_read_bio", "_write_bio")]
        if None in parts:
            return _Pull(connection, stream)
        tls, inner = _Tls(*parts), inner.transport_stream  # type: ignore[arg-type]
    transport: Any = getattr(inner, "_transport", None)
    former: Any = getattr(inner, "_protocol", None)
    if not hasattr(transport, "set_protocol") or not hasattr(former, "read_queue"):
        return _Pull(connection, stream)  # TLS in TLS, a Unix socket, an unknown version of anyio
    if former.exception is not None or transport.is_closing():
        return _Pull(connection, stream)
    push = _Push(connection, transport, tls)
    push.start(b"".join(former.read_queue), ended=bool(former.is_at_eof))
    return push


class AsyncH2Connection(httpcore.AsyncConnectionInterface):
    """An open HTTP/2 connection, from the first byte of the protocol on."""

    def __init__(self, origin: httpcore.Origin, stream: httpcore.AsyncNetworkStream, held: tuple[type, ...]) -> None:
        self.state = State()
        self._origin = origin
        self._network_stream = stream
        self._held = held  # types of bodies in memory
        self._closed = False
        self._wire = _wire_of(self, stream)

    # -- a request ----------------------------------------------------------------------------------------------------

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request of the pool, whose hook is its trace."""
        return await self.send(request, request.extensions["trace"])

    async def send(self, request: httpcore.Request, exchange: Exchange) -> httpcore.Response:
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
            async with traced("send_connection_init", {"request": request}):
                await self._wire.flush(write)
        async with traced("send_request_headers", info):
            stream = state.open(request, exchange, complete=not body)
            info["stream_id"] = stream.id
            if not eager:
                await self._wire.flush(write)
        async with traced("send_request_body", info):
            if body:
                await self._send_body(stream, request, write, eager=eager)
        async with traced("receive_response_headers", info) as step:
            if stream.head is None:
                await self._wire.wait(stream, stream.answered, timeout_of_step(request, "read"))
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

    async def _send_body(
        self, stream: Stream, request: httpcore.Request, timeout: float | None, *, eager: bool
    ) -> None:
        parts = aiter(request.stream)  # type: ignore[arg-type]
        try:
            await self._send_parts(parts, stream, request, eager=eager)
        finally:
            close = getattr(parts, "aclose", None)
            if close is not None:
                await close()
        if stream.error is None and not stream.ended:
            self.state.end(stream)
        await self._wire.flush(timeout)
        if stream.error is not None and stream.head is None:
            raise again(stream.error)

    async def _send_parts(
        self, parts: AsyncIterator[bytes], stream: Stream, request: httpcore.Request, *, eager: bool
    ) -> None:
        async for chunk in parts:
            if not await self._send_chunk(stream, memoryview(chunk), request, eager=eager):
                break

    async def _send_chunk(self, stream: Stream, rest: memoryview, request: httpcore.Request, *, eager: bool) -> bool:
        """Return False if the server wants no more of the body."""
        wire, timeout = self._wire, timeout_of_step(request, "write")
        while rest:
            if stream.error is not None or stream.ended:
                return False
            count = self.state.send(stream, rest)
            rest = rest[count:]
            if rest or not eager:
                await wire.flush(timeout)
            if not count:
                await wire.wait(stream, stream.writable, timeout_of_step(request, "read"))
        return True

    async def read_part(self, stream: Stream, request: httpcore.Request) -> bytes:
        """Return the next part of a response, b"" at its end."""
        if not stream.readable():
            await self._wire.wait(stream, stream.readable, timeout_of_step(request, "read"))
        data = self.state.take(stream)
        if self.state.unsent():
            await self._wire.flush(timeout_of_step(request, "write"))
        return data

    def give_up(self, stream: Stream | None, error: BaseException | None, alive: float | None) -> bool:
        """End a request, whose stream may not be complete. Return whether the connection can carry other ones.

        Does not suspend. ``alive``: see :meth:`.State.usable_after`.
        """
        usable = self.state.usable_after(stream, error, alive)
        if stream is not None:
            self.state.drop(stream)
        if usable and self.state.unsent():
            self._wire.flush_soon()
        return usable

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

    def abort(self) -> None:
        """Close the connection without a suspension."""
        self._closed = True
        self.state.fail(httpcore.ReadError("the connection was closed"))
        self._wire.abort()

    async def aclose(self) -> None:
        """Close the connection. Tasks that wait for responses get an error."""
        self.abort()
        await self._network_stream.aclose()


class _Body:
    """The body of a response. Closing it gives the lease back."""

    __slots__ = ("_closed", "_connection", "_done", "_exchange", "_request", "_stream", "_traced")

    def __init__(
        self, connection: AsyncH2Connection, stream: Stream, request: httpcore.Request, exchange: Exchange, traced: Any
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._request = request
        self._exchange = exchange
        self._traced = traced
        self._done = False
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        connection, stream, request = self._connection, self._stream, self._request
        try:
            async with self._traced("receive_response_body", {"request": request, "stream_id": stream.id}):
                while True:
                    if self._closed:
                        raise httpcore.ReadError("the response was closed")
                    data = await connection.read_part(stream, request)
                    if not data:
                        break
                    yield data
            self._done = True
        except BaseException as error:  # noqa: BLE001  raised again
            self._failed(error)

    def _failed(self, error: BaseException) -> NoReturn:
        if not self._closed:
            self._end(error)
            self._exchange.failed(error)
        raise error

    async def aclose(self) -> None:
        if self._closed:
            return
        try:
            async with self._traced("response_closed", {"stream_id": self._stream.id}):
                pass
        finally:
            overdue = self._end(None)
        if overdue is not None:
            raise overdue

    def _end(self, error: BaseException | None) -> LeaseOverdue | None:
        self._closed = True
        exchange = self._exchange
        alive = None if self._done else exchange.alive
        usable = self._connection.give_up(self._stream, error, alive)
        overdue: LeaseOverdue | None = exchange.lease.close_nowait(discard=not usable)
        return overdue
