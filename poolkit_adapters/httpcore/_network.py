"""Network streams for HTTP/2 connections and for those through a proxy.

HTTP/2: the end of one request must not end the other requests.

*Graceful shutdown by the server.* RFC 9113, 6.8: after a GOAWAY the streams up to the number in it still complete. The
server has not processed the other ones, which may be sent again elsewhere. httpcore fails all of them, because its
HTTP/2 library accepts no frame after a GOAWAY. So where HTTP/2 is possible, these classes wrap the network streams of
a pool. They hide a GOAWAY without an error from httpcore, notify the link, and reset the streams that the server did
not process, for which httpcore has the right error. A GOAWAY with an error passes through.

*A cancelled write.* A request that is cancelled during a write would leave an incomplete frame on the wire (with TLS:
a missing record), and the server could only close the connection for all requests. So a write that has started goes
on, for a short time at most.

*A proxy that answers byte by byte.* httpcore limits each read of the proxy's answer to ``CONNECT``, and no read of a
SOCKS proxy's. So the streams of a pool with a proxy limit everything until the connection is open: together it takes no
longer than the connect timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

from ._driver import httpcore

__all__ = ("ABANDONED", "AsyncWatchedBackend", "FrameWatch", "Watchable", "WatchedBackend", "first_step")

T = TypeVar("T")

_HEADER = 9  # bytes of a frame's header (RFC 9113, 4.1): length, type, flags, stream
_GOAWAY = 7
_RST_STREAM_REFUSED = b"\x00\x00\x04\x03\x00%b\x00\x00\x00\x07"


class FrameWatch:
    """Splits incoming data into frames. Not thread-safe.

    Calls ``goodbye(last)`` for a GOAWAY without an error, which returns the streams after ``last`` to reset.
    """

    __slots__ = ("_goodbye", "_rest")

    def __init__(self, goodbye: Callable[[int], Iterable[int]]) -> None:
        self._goodbye = goodbye
        self._rest = b""

    def feed(self, data: bytes) -> bytes:
        """Return the complete frames of ``data`` for httpcore. Keep the start of a frame until its end arrives."""
        data = self._rest + data if self._rest else data
        start = position = 0
        seen = []
        while len(data) - position >= _HEADER:
            end = position + _HEADER + int.from_bytes(data[position : position + 3], "big")
            if end > len(data):
                break
            if data[position + 3] == _GOAWAY and not any(data[position + 13 : position + 17]):  # error code 0
                last = int.from_bytes(data[position + 9 : position + 13], "big") & 0x7FFFFFFF
                seen.append(data[start:position])
                seen.extend(_RST_STREAM_REFUSED % stream.to_bytes(4, "big") for stream in self._goodbye(last))
                start = end
            position = end
        self._rest = data[position:]
        seen.append(data[start:position])
        return b"".join(seen)


class Watchable:
    """A network stream whose frames can be watched once it is known to carry HTTP/2."""

    watch: FrameWatch | None = None
    heard_at = float("-inf")
    """Time of the last received data on the monotonic clock. Only set for tasks, and while the stream is watched."""
    opens_until: float | None = None
    """When the connection must be open, on the monotonic clock. None: it is open, or has no limit."""

    def _limit(self, timeout: float | None) -> float | None:
        """Return the limit of one operation. Raises ConnectTimeout if there is no time left to open the connection."""
        if self.opens_until is None:
            return timeout
        left = self.opens_until - time.monotonic()
        if left <= 0:
            raise httpcore.ConnectTimeout("the proxy did not open the connection in time")
        return left if timeout is None else min(left, timeout)

    def _error(self, error: Exception) -> Exception:
        """Return the error for an operation that has timed out: that of the connect, if it was cut to its limit."""
        if self.opens_until is not None and time.monotonic() >= self.opens_until:
            return httpcore.ConnectTimeout("the proxy did not open the connection in time")
        return error


_TIMEOUTS = (httpcore.ReadTimeout, httpcore.WriteTimeout)


class _Stream(Watchable, httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream, opens_until: float | None = None) -> None:
        self._stream = stream
        self.opens_until = opens_until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            if self.opens_until is None:
                data = self._stream.read(max_bytes, timeout)
            else:
                data = self._in_time(self._stream.read, max_bytes, timeout)
            if self.watch is None or not data:
                return data
            data = self.watch.feed(data)
            if data:
                return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.opens_until is None:
            self._stream.write(buffer, timeout)
        else:
            self._in_time(self._stream.write, buffer, timeout)

    def _in_time(self, work: Callable[[Any, float | None], T], what: Any, timeout: float | None) -> T:
        try:
            return work(what, self._limit(timeout))
        except _TIMEOUTS as error:
            raise self._error(error) from error

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._stream.start_tls(ssl_context, server_hostname, self._limit(timeout)), self.opens_until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class WatchedBackend(httpcore.NetworkBackend):
    """A network backend whose streams can be watched. ``proxied``: its connections are those to a proxy."""

    def __init__(self, backend: httpcore.NetworkBackend, *, proxied: bool) -> None:
        self._backend = backend
        self._proxied = proxied

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        """Call the wrapped backend."""
        until = _deadline(timeout) if self._proxied else None
        return _Stream(self._backend.connect_tcp(host, port, timeout, *args, **kwargs), until)

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """Call the wrapped backend."""
        return _Stream(self._backend.connect_unix_socket(*args, **kwargs), None)

    def sleep(self, seconds: float) -> None:
        """Call the wrapped backend."""
        self._backend.sleep(seconds)


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def first_step(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Run ``call()`` up to its first suspension only. That is enough to close a transport."""
    with contextlib.suppress(Exception):
        coroutine = call()
        try:
            coroutine.send(None)
        except StopIteration:
            pass
        finally:
            coroutine.close()


ABANDONED = 2.0
"""Seconds that a write may still take after its caller was cancelled. Then the connection is closed."""


async def _write_to_the_end(write: Callable[[], Coroutine[Any, Any, None]], close: Callable[[], Any]) -> None:
    """Await ``write()`` without passing a cancellation of the caller on to it.

    The cancelled caller ends at once. The write goes on for at most :data:`ABANDONED` seconds. Then ``close()`` closes
    the connection, because a part of a frame may have been sent.
    """
    if asyncio._get_running_loop() is None:
        await _write_to_the_end_on_trio(write, close)
        return
    task = asyncio.ensure_future(write())
    _writes.add(task)
    task.add_done_callback(_written)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            task.add_done_callback(lambda task: first_step(close) if task.cancelled() else None)
            timer = asyncio.get_running_loop().call_later(ABANDONED, task.cancel)
            task.add_done_callback(lambda _: timer.cancel())
        raise


async def _write_to_the_end_on_trio(write: Callable[[], Coroutine[Any, Any, None]], close: Callable[[], Any]) -> None:
    import trio

    scope, done = trio.CancelScope(), trio.Event()
    failure: list[Exception] = []

    async def work() -> None:
        try:
            with scope:
                await write()
        except Exception as error:  # noqa: BLE001  re-raised in the caller, if it still waits
            failure.append(error)
        finally:
            done.set()
            if scope.cancelled_caught:
                first_step(close)

    trio.lowlevel.spawn_system_task(work)
    try:
        await done.wait()
    except trio.Cancelled:
        scope.deadline = trio.current_time() + ABANDONED
        raise
    if failure:
        raise failure[0]


def _lock() -> Any:
    if asyncio._get_running_loop() is not None:
        return asyncio.Lock()
    import trio

    return trio.Lock()


_writes: set[asyncio.Future[None]] = set()
"""The running writes. The event loop itself keeps only weak references to them."""


def _written(task: asyncio.Future[None]) -> None:
    _writes.discard(task)
    if not task.cancelled():
        task.exception()  # marks it as retrieved, because a cancelled caller does not


class _AsyncStream(Watchable, httpcore.AsyncNetworkStream):
    def __init__(self, stream: httpcore.AsyncNetworkStream, opens_until: float | None = None) -> None:
        self._stream = stream
        self.opens_until = opens_until
        self._turn: Any = None  # one write at a time; made in the first write, which knows the event loop

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        while True:
            if self.opens_until is None:
                data = await self._stream.read(max_bytes, timeout)
            else:
                data = await self._in_time(self._stream.read, max_bytes, timeout)
            if self.watch is None or not data:
                return data
            self.heard_at = time.monotonic()
            data = self.watch.feed(data)
            if data:
                return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.opens_until is not None:
            await self._in_time(self._stream.write, buffer, timeout)
        elif self.watch is None:
            await self._stream.write(buffer, timeout)
        elif buffer:
            await _write_to_the_end(partial(self._write, buffer, timeout), self._stream.aclose)

    async def _in_time(
        self, work: Callable[[Any, float | None], Coroutine[Any, Any, T]], what: Any, timeout: float | None
    ) -> T:
        try:
            return await work(what, self._limit(timeout))
        except _TIMEOUTS as error:
            raise self._error(error) from error

    async def _write(self, buffer: bytes, timeout: float | None) -> None:
        """Write after the writes whose callers were cancelled: httpcore's lock was freed by their callers."""
        if self._turn is None:
            self._turn = _lock()
        async with self._turn:
            await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        secure = await self._stream.start_tls(ssl_context, server_hostname, self._limit(timeout))
        return _AsyncStream(secure, self.opens_until)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class AsyncWatchedBackend(httpcore.AsyncNetworkBackend):
    """A network backend whose streams can be watched. ``proxied``: its connections are those to a proxy."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend, *, proxied: bool) -> None:
        self._backend = backend
        self._proxied = proxied

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend."""
        until = _deadline(timeout) if self._proxied else None
        return _AsyncStream(await self._backend.connect_tcp(host, port, timeout, *args, **kwargs), until)

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend."""
        return _AsyncStream(await self._backend.connect_unix_socket(*args, **kwargs), None)

    async def sleep(self, seconds: float) -> None:
        """Call the wrapped backend."""
        await self._backend.sleep(seconds)
