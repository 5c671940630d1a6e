"""Network streams through a proxy, and writes that a cancellation does not cut off.

*A proxy that answers byte by byte.* httpcore limits each read of the proxy's answer to ``CONNECT``, and no read of a
SOCKS proxy's. So the streams of a pool with a proxy limit everything until the connection is open: together it takes no
longer than the connect timeout.

*A cancelled write.* A request that is cancelled during a write would leave an incomplete frame on an HTTP/2 connection
(with TLS: a missing record), and the server could only close the connection for all requests. So a write that has
started continues, for a short time at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from ._driver import httpcore

__all__ = ("ABANDONED", "AsyncWatchedBackend", "Watchable", "WatchedBackend", "first_step", "write_to_the_end")

T = TypeVar("T")


class Watchable:
    """A network stream that knows until when its connection must be open."""

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
        if self.opens_until is None:
            return self._stream.read(max_bytes, timeout)
        return self._in_time(self._stream.read, max_bytes, timeout)

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
    """A network backend whose connections are those to a proxy."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.NetworkStream:
        """Call the wrapped backend."""
        until = _deadline(timeout)
        return _Stream(self._backend.connect_tcp(host, port, timeout, *args, **kwargs), until)

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        """Call the wrapped backend."""
        return self._backend.connect_unix_socket(*args, **kwargs)

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


async def write_to_the_end(write: Callable[[], Coroutine[Any, Any, None]], close: Callable[[], Any]) -> None:
    """Await ``write()`` without passing a cancellation of the caller on to it.

    The cancelled caller ends at once. The write continues for at most :data:`ABANDONED` seconds. Then ``close()``
    closes the connection, because a part of a frame may have been sent.
    """
    if asyncio._get_running_loop() is None:
        await write_to_the_end_on_trio(write, close)
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


async def write_to_the_end_on_trio(write: Callable[[], Coroutine[Any, Any, None]], close: Callable[[], Any]) -> None:
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

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        if self.opens_until is None:
            return await self._stream.read(max_bytes, timeout)
        return await self._in_time(self._stream.read, max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if self.opens_until is None:
            await self._stream.write(buffer, timeout)
        else:
            await self._in_time(self._stream.write, buffer, timeout)

    async def _in_time(
        self, work: Callable[[Any, float | None], Coroutine[Any, Any, T]], what: Any, timeout: float | None
    ) -> T:
        try:
            return await work(what, self._limit(timeout))
        except _TIMEOUTS as error:
            raise self._error(error) from error

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
    """A network backend whose connections are those to a proxy."""

    def __init__(self, backend: httpcore.AsyncNetworkBackend) -> None:
        self._backend = backend

    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *args: Any, **kwargs: Any
    ) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend."""
        until = _deadline(timeout)
        return _AsyncStream(await self._backend.connect_tcp(host, port, timeout, *args, **kwargs), until)

    async def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.AsyncNetworkStream:
        """Call the wrapped backend."""
        return await self._backend.connect_unix_socket(*args, **kwargs)

    async def sleep(self, seconds: float) -> None:
        """Call the wrapped backend."""
        await self._backend.sleep(seconds)
