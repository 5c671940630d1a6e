"""Reads and writes an open TCP connection of asyncio directly, without the layers of anyio.

httpcore reads through anyio. That costs two cancel scopes, a timer and two changes of the selector for each read, and
a turn of the event loop for each write and lock: a seventh to a quarter of the CPU time of an httpx request. So once
httpcore's backend has opened a TCP connection under asyncio, and anyio has done the TLS handshake if there is one, its
transport gets the protocol of this module. Connecting, TLS handshakes, Unix sockets, trio and custom backends are
unchanged, and so is TLS through a proxy.

The event loop reads the socket all the time, so it soon notices a server that closes an idle connection.
"""

from __future__ import annotations

import asyncio
import ssl
import warnings
from collections import deque
from typing import TYPE_CHECKING, Any

from .._hang_up import is_socket
from ._driver import AnyIOStream, httpcore
from ._http11_async import AsyncDirect

if TYPE_CHECKING:
    from ._link import Link

__all__ = ("AsyncioBackend", "AsyncioStream", "drop_lock")

MOST = 256 * 1024
"""Bytes that may be buffered before reading pauses, and that may be written before other tasks get a turn."""

NEVER = float("inf")


class _Wire(asyncio.Protocol):
    """The data that has arrived, and the tasks that wait for it.

    Has no reference to the stream, so that a dropped stream can close the socket.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> None:
        self.loop = loop
        self.transport = transport
        self.parts: deque[bytes] = deque()
        self.size = 0  # bytes in them
        self.ended = False  # nothing more will arrive
        self.lost: Exception | None = None
        self.held = False  # reading is paused
        self.full = False  # writing is paused
        self.reader: asyncio.Future[None] | None = None
        self.writers: set[asyncio.Future[None]] = set()  # any number of tasks may write, each all of its bytes at once
        self.deadline = NEVER  # of the reader
        self.timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        self.arrived(bytes(data))

    def arrived(self, data: bytes) -> None:
        """Keep data for the reader. Pause reading if too much is kept."""
        self.parts.append(data)
        self.size += len(data)
        self.wake()
        if self.size > MOST and not self.held:
            self.held = True
            self.transport.pause_reading()

    def sealed(self, buffer: bytes) -> bytes:
        """Return the bytes to send for ``buffer``."""
        return buffer

    def cut(self) -> bool:
        """Return whether the last data that arrived was incomplete, so that the rest of it is still to come."""
        return False

    def eof_received(self) -> bool:
        self.ended = True
        self.wake()
        return True  # keep the transport open for writing

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        self.lost = exc
        self.wake()
        self.resume_writing()

    def pause_writing(self) -> None:
        self.full = True

    def resume_writing(self) -> None:
        self.full = False
        for writer in self.writers:
            if not writer.done():
                writer.set_result(None)

    def wake(self) -> None:
        """Wake the reading task."""
        if self.reader is not None and not self.reader.done():
            self.reader.set_result(None)

    async def arrival(self, timeout: float | None) -> None:
        """Wait until data or the end of the stream has arrived. Raises TimeoutError after ``timeout`` seconds."""
        if self.reader is not None:
            raise httpcore.ReadError("two tasks are reading from one connection; only one at a time may read")
        self.reader = self.loop.create_future()
        self.deadline = NEVER if timeout is None else self.loop.time() + timeout
        if timeout is not None and (self.timer is None or self.timer.when() > self.deadline):
            self.set_timer()
        try:
            await self.reader
        finally:
            self.reader = None

    def set_timer(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
        self.timer = self.loop.call_at(self.deadline, self.late)

    def late(self) -> None:
        """Fail the current read if it is overdue. One timer serves many reads, most of which have ended before."""
        self.timer = None
        if self.reader is None or self.reader.done() or self.deadline == NEVER:
            return
        if self.loop.time() < self.deadline:
            self.set_timer()
        else:
            self.reader.set_exception(TimeoutError())

    def part(self, most: int) -> bytes:
        """Return up to ``most`` bytes that have arrived."""
        part = self.parts.popleft()
        if len(part) > most:
            self.parts.appendleft(part[most:])
            part = part[:most]
        self.size -= len(part)
        if self.held and self.size <= MOST:
            self.held = False
            self.transport.resume_reading()
        return part


class _SecureWire(_Wire):
    """The same with TLS, whose handshake is done. ``tls``: anyio's stream, whose TLS object is used from now on."""

    def __init__(self, loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, tls: Any) -> None:
        super().__init__(loop, transport)
        self._secure: ssl.SSLObject = tls._ssl_object
        self._incoming: ssl.MemoryBIO = tls._read_bio
        self._outgoing: ssl.MemoryBIO = tls._write_bio
        self._rest = b""  # the start of a record: OpenSSL gets whole ones only, so that cut() knows

    def data_received(self, data: bytes) -> None:
        data = self._rest + data if self._rest else bytes(data)
        end, size = 0, len(data)
        while end + 5 <= size:
            after = end + 5 + int.from_bytes(data[end + 3 : end + 5], "big")
            if after > size:
                break
            end = after
        self._rest = data[end:]
        if not end:
            return
        self._incoming.write(memoryview(data)[:end])
        parts = []
        try:
            while part := self._secure.read(MOST):
                parts.append(part)
            self.ended = True  # the peer has closed TLS
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self.ended = True
            self.lost = error
        if self._outgoing.pending:  # an answer of the TLS layer itself
            self.transport.write(self._outgoing.read())
        if parts:
            self.arrived(b"".join(parts))
        elif self.ended:
            self.wake()

    def sealed(self, buffer: bytes) -> bytes:
        view = memoryview(buffer)
        while view:
            view = view[self._secure.write(view) :]
        return self._outgoing.read()

    def cut(self) -> bool:
        return bool(self._rest)

    def rest(self) -> bytes:
        """Remove and return the start of a record."""
        rest, self._rest = self._rest, b""
        return rest


class AsyncioStream(httpcore.AsyncNetworkStream):
    """An open TCP connection. ``below`` is the stream with which httpcore's backend opened it.

    Takes the transport over at the first read or write. If TLS starts before that, it never does.

    ``direct``: TLS on this connection is read and written by this module, too. ``tls``: TLS has been started, by this
    stream of anyio.
    """

    def __init__(
        self,
        below: httpcore.AsyncNetworkStream,
        transport: asyncio.Transport,
        former: Any,
        *,
        direct: bool = False,
        tls: Any = None,
    ) -> None:
        self._below = below
        self._transport = transport
        self._former = former
        self._direct = direct
        self._tls = tls
        self._wire: _Wire | None = None
        self._closed = False
        self._written = 0  # bytes since this task last let other tasks run

    def _open(self) -> _Wire:
        if self._closed:
            raise httpcore.ReadError("the connection was closed")
        loop = asyncio.get_running_loop()
        wire = _Wire(loop, self._transport) if self._tls is None else self._secure_wire(loop)
        self._wire = wire
        self._transport.set_protocol(wire)
        if not wire.held:
            self._transport.resume_reading()
        return wire

    def _secure_wire(self, loop: asyncio.AbstractEventLoop) -> _Wire:
        """Return the protocol for a connection with TLS, with what has arrived after the handshake."""
        former, wire = self._former, _SecureWire(loop, self._transport, self._tls)
        arrived = self._tls._read_bio.read() + b"".join(former.read_queue)
        former.read_queue.clear()
        if arrived:
            wire.data_received(arrived)
        if getattr(former, "is_at_eof", False) or former.exception is not None:  # older anyio lacks the first
            wire.ended = True
            wire.lost = former.exception
        return wire

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        wire = self._wire or self._open()
        if not wire.parts and not wire.ended:
            try:
                await wire.arrival(timeout)
            except TimeoutError as error:
                raise httpcore.ReadTimeout(error) from error
            self._written = 0
        if wire.parts:
            return wire.part(max_bytes)
        if self._closed:
            raise httpcore.ReadError("the connection was closed")
        if wire.lost is not None:
            raise httpcore.ReadError(wire.lost) from wire.lost
        return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        wire = self._wire or self._open()
        if wire.full:
            await self._drained(wire, timeout)
        if self._transport.is_closing():
            raise httpcore.WriteError(wire.lost or "the connection was closed") from wire.lost
        try:
            data = wire.sealed(buffer)
        except ssl.SSLError as error:  # TLS has ended, or has failed before
            raise httpcore.WriteError(error) from error
        self._transport.write(data)
        if wire.full:
            await self._drained(wire, timeout)
            return
        self._written += len(buffer)
        if self._written > MOST:
            self._written = 0
            await asyncio.sleep(0)

    async def _drained(self, wire: _Wire, timeout: float | None) -> None:
        """Wait until everything written has been sent."""
        self._written = 0
        writer = wire.loop.create_future()
        wire.writers.add(writer)
        timer = None if timeout is None else wire.loop.call_later(timeout, _expire, writer)
        try:
            await writer
        except TimeoutError as error:
            raise httpcore.WriteTimeout(error) from error
        finally:
            wire.writers.discard(writer)
            if timer is not None:
                timer.cancel()
        if wire.lost is not None or self._closed:
            raise httpcore.WriteError(wire.lost or "the connection was closed") from wire.lost

    async def aclose(self) -> None:
        self._closed = True
        if self._wire is None:
            await self._below.aclose()
            return
        if self._wire.timer is not None:
            self._wire.timer.cancel()
        self._transport.abort()
        await asyncio.sleep(0)  # the loop closes the socket in this turn

    async def start_tls(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Give the connection back to the wrapped stream, and start TLS there."""
        wire, self._closed = self._wire, True
        if wire is not None:
            self._give_back(wire)
        stream = await self._below.start_tls(*args, **kwargs)
        tls: Any = getattr(stream, "_stream", None)
        known = all(hasattr(tls, name) for name in ("_ssl_object", "_read_bio", "_write_bio"))
        if not (self._direct and known and type(stream) is AnyIOStream):
            return stream
        if tls._ssl_object.selected_alpn_protocol() == "h2":  # see _h2_async.py
            return stream
        return AsyncioStream(stream, self._transport, self._former, tls=tls)

    def _give_back(self, wire: _Wire) -> None:
        if wire.timer is not None:
            wire.timer.cancel()
        if not wire.held:
            self._transport.pause_reading()
        self._transport.set_protocol(self._former)
        if isinstance(wire, _SecureWire):
            if wire.parts:  # decrypted already, and TLS cannot start with data of the server
                raise httpcore.ConnectError("the server sent data before the TLS handshake")
            arrived = [wire.rest()]
        else:
            arrived = list(wire.parts)
        for part in filter(None, arrived):
            self._former.data_received(part)
        if wire.ended:
            self._former.eof_received()

    def take(self) -> bytes:
        """Return the data that the event loop has read. Raises EOFError at the end of the stream."""
        wire = self._wire
        if wire is None or self.ended():
            raise EOFError
        parts = []
        while wire.parts:
            parts.append(wire.part(MOST))
        return b"".join(parts)

    def pending(self) -> bool:
        """Return whether the event loop has read unrequested data or the end of the stream."""
        return self.ended() or (self._wire is not None and (bool(self._wire.parts) or self._wire.cut()))

    def secure(self) -> bool:
        """Return whether the connection has TLS."""
        return self._tls is not None

    def fed(self, data: bytes) -> bool:
        """Handle bytes that were read from the socket. Return whether there is anything for the caller now."""
        wire = self._wire
        if wire is None:
            raise EOFError
        wire.data_received(data)
        return self.pending()

    def ended(self) -> bool:
        """Return whether the event loop has seen the end of the stream."""
        return self._closed or self._transport.is_closing() or (self._wire is not None and self._wire.ended)

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable" and self.pending():
            return True
        return self._below.get_extra_info(info)

    def __del__(self) -> None:
        wire = getattr(self, "_wire", None)
        if wire is None or self._closed or self._transport.is_closing():
            return
        warnings.warn(f"unclosed {self!r}", ResourceWarning, stacklevel=2, source=self)
        if not wire.loop.is_closed():
            wire.loop.call_soon_threadsafe(self._transport.abort)


def _expire(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_exception(TimeoutError())


def close_leftovers(error: BaseException | None) -> None:
    """Close what a connect of anyio had opened when it was cancelled or timed out.

    Before anyio 4.16 a connect that is cancelled just when it succeeds loses the stream. Only the frames of the
    error's traceback still refer to its socket, which stays open for as long as the error is referenced.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        trace = error.__traceback__
        while trace is not None:
            if trace.tb_frame.f_globals.get("__name__", "").startswith("anyio."):
                for value in list(trace.tb_frame.f_locals.values()):
                    if is_socket(value):
                        value.close()
                    elif hasattr(getattr(value, "_transport", None), "abort"):
                        value._transport.abort()
            trace = trace.tb_next
        error = error.__cause__ or error.__context__


class AsyncioBackend(httpcore.AsyncNetworkBackend):
    """Wraps a backend, and reads and writes its TCP connections with this module.

    ``tls``: also those with TLS. Not for a pool with a proxy, which may start TLS in TLS.
    """

    def __init__(self, backend: httpcore.AsyncNetworkBackend, *, tls: bool = False) -> None:
        self._backend = backend
        self._tls = tls

    async def connect_tcp(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend, and close its socket if it fails."""
        try:
            stream = await self._backend.connect_tcp(*args, **kwargs)
        except BaseException as error:
            close_leftovers(error)
            raise
        if type(stream) is not AnyIOStream:
            return stream
        inner = stream._stream
        transport: Any = getattr(inner, "_transport", None)
        former: Any = getattr(inner, "_protocol", None)
        if not hasattr(transport, "set_protocol") or not hasattr(former, "read_event"):
            return stream  # an unknown version of anyio
        if former.read_event.is_set():
            return stream  # anyio has read data or the end of the stream already, before it paused reading
        return AsyncioStream(stream, transport, former, direct=self._tls)

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend, and close its socket if it fails."""
        try:
            return await self._backend.connect_unix_socket(*args, **kwargs)
        except BaseException as error:
            close_leftovers(error)
            raise

    async def sleep(self, seconds: float) -> None:
        """Call the wrapped backend."""
        await self._backend.sleep(seconds)


class _NoLock:
    """Replaces httpcore's ``AsyncLock``, each use of which costs a turn of the event loop."""

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, *exc: object) -> None:
        pass


def drop_lock(link: Link[httpcore.AsyncConnectionInterface]) -> None:
    """Remove httpcore's lock from an open HTTP/1.1 connection, which the pool gives to one request at a time.

    This is safe, because the code under those locks never suspends. Requests take the shortcut.
    """
    outer: Any = link.connection
    inner: Any = getattr(outer, "_connection", None)
    if type(outer) is httpcore.AsyncHTTPConnection and type(inner) is httpcore.AsyncHTTP11Connection:
        vars(inner)["_state_lock"] = _NoLock()
        stream = inner._network_stream
        if type(stream) is AsyncioStream and stream._wire is None:
            stream._open()  # what arrives before the first request is seen, and does not wait in anyio's layers
        link.direct = inner
        link.shortcut = AsyncDirect(inner)
