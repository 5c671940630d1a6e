"""The pool for tasks, on asyncio and trio."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator
from typing import Any

import httpcore

from poolkit import AsyncConnector, AsyncLease, AsyncPool, PoolConfig
from poolkit.errors import PoolError

from .._errors import name_missing_descriptor
from ._base import ConnectorMixin, PoolBase
from ._errors import left_with
from ._giveup import give_up
from ._link import (
    Exchange,
    Key,
    Link,
    Replays,
    key_of,
    left,
    stream_only,
    takes_over,
    timeout_of,
)
from ._names import AsyncNamesBackend
from ._network import AsyncWatchedBackend, first_step
from ._plain import PlainBackend, unlock

__all__ = ("AsyncPoolkitConnectionPool",)

_Link = Link[httpcore.AsyncConnectionInterface]


class _Connector(ConnectorMixin[httpcore.AsyncConnectionInterface], AsyncConnector[_Link]):
    async def connect_to(self, key: Key, timeout: float | None) -> _Link:
        """A connection that opens in its first request; ``timeout`` is the request's business."""
        return self.make(key)

    async def close(self, link: _Link) -> None:
        """Close the connection and every stream that was opened for it."""
        self.links.pop(id(link), None)
        try:
            await link.connection.aclose()
        finally:
            self.abort(link)

    def abort(self, link: _Link) -> None:
        """Close the transport without waiting for anything, so that no cancellation can come between."""
        self.links.pop(id(link), None)
        for stream in link.streams:  # also after a failed handshake or tunnel, where httpcore has let go of it
            first_step(stream.aclose)


class _Hook(Exchange):
    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        self.note(event, info)
        if self.user_trace is not None:
            told = self.user_trace(event, info)
            if not inspect.iscoroutine(told):
                raise TypeError("The callback of the `trace` extension must be an asynchronous function here.")
            await told


async def _sleep(seconds: float) -> None:
    if asyncio._get_running_loop() is None:
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def _backend_of(backend: httpcore.AsyncNetworkBackend, *, own: bool, http2: bool) -> httpcore.AsyncNetworkBackend:
    """The network backend of a pool; ``own``: it is httpcore's, nobody gave one."""
    if own:
        backend = PlainBackend(AsyncNamesBackend(backend))
    return AsyncWatchedBackend(backend) if http2 else backend


class AsyncPoolkitConnectionPool(
    PoolBase[AsyncPool[Any], httpcore.AsyncConnectionInterface, httpcore.AsyncNetworkBackend],
    httpcore.AsyncConnectionPool,
):
    """Stands in for ``httpcore.AsyncConnectionPool``, on asyncio and trio. Task-safe.

    Takes every argument of the class it stands in for, with the same meaning and default, and besides them the
    settings of :class:`poolkit.PoolConfig` as keywords or as ``config``; ``name`` and ``listeners`` as
    :class:`poolkit.AsyncPool`. Raises :class:`poolkit.ConfigError` for a value that cannot be meant.

    A request waits at most ``extensions["timeout"]["pool"]`` seconds for a connection; the error then is both a
    :class:`poolkit.AcquireTimeout` and an ``httpcore.PoolTimeout``.
    """

    _kinds = (_Connector, AsyncPool)
    _backend_of = staticmethod(_backend_of)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request; its connection is free for the next one when the response is closed."""
        key = key_of(request)
        engine = self._reopening.get()
        config = engine.config
        wait = timeout_of(request, config.acquire_timeout)
        deadline = None if wait is None else time.monotonic() + wait
        replays: Replays | None = None
        while True:
            try:
                lease = await engine.lease(wait, key=key)
            except PoolError as error:
                raise self._errors.adapted(error) from error.__cause__
            link: _Link = lease.connection
            if not link.ready():  # the server has gone meanwhile, or said what nobody asked for
                lease.close_nowait(discard=True)
                wait = left(deadline)
                continue
            hook, sent = None, request
            if link.http2 or not link.capacity:
                hook = _Hook(link, lease, request, self._connector.on_plain)
                sent = hook.traced(hook, config.connect_timeout)
            try:
                response = await link.direct.handle_async_request(sent)
            except BaseException as error:  # noqa: BLE001 - raised again unless the request is replayed
                sound = stream_only(link, error)
                if hook is not None:
                    hook.over()
                    sound = sound or (not isinstance(error, Exception) and give_up(link, hook, config.check_after_idle))
                lease.close_nowait(error=None if sound else error)
                self._connector.failed(link, lease.since, error)
                if isinstance(error, httpcore.ConnectError):
                    name_missing_descriptor(error)
                replays = replays or Replays(request, self._held, deadline)
                if not replays.allow(error, link, hook):
                    told = left_with(error, hook is not None and not hook.sent and not link.capacity, self._errors)
                    raise told from told.__cause__
            else:
                return self._answered(response, request, lease, hook, config)
            if replays.pause:
                await _sleep(replays.pause)
            wait = left(deadline)

    def _answered(
        self,
        response: httpcore.Response,
        request: httpcore.Request,
        lease: AsyncLease[_Link],
        hook: Exchange | None,
        config: PoolConfig,
    ) -> httpcore.Response:
        link = lease.connection
        link.answered = True
        if hook is not None:
            hook.stands()
            if not link.http2:
                unlock(link)
        body = _Body(response.stream, link, lease, hook, config, self._connector)
        if takes_over(request, response, link):
            self._connector.links.pop(id(link), None)
            lease.detach()
            body.lease = None
        return httpcore.Response(
            status=response.status, headers=response.headers, content=body, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close all connections, those in use too. Requests that wait for one fail. As with httpcore's own pool, a
        later request begins anew.
        """
        engine = self._reopening.take()
        if engine is not None:
            try:
                await engine.drain(0)
                await engine.close()
            except PoolError as error:
                raise self._errors.adapted(error) from error.__cause__


class _Body:
    """The response's stream; closing it gives the connection back."""

    __slots__ = ("_alive", "_closed", "_connector", "_done", "_failed", "_hook", "_keep", "_link", "_stream", "lease")

    def __init__(
        self,
        stream: Any,
        link: _Link,
        lease: AsyncLease[_Link],
        hook: Exchange | None,
        config: PoolConfig,
        connector: ConnectorMixin[Any],
    ) -> None:
        self._connector = connector
        self._stream = stream
        self._hook = hook
        self._link = link
        self._keep = config.max_idle != 0  # False: none is kept idle, so it is closed before close() returns
        self._alive = config.check_after_idle
        self.lease: AsyncLease[_Link] | None = lease  # None: detached
        self._done = False
        self._failed = False
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for part in self._stream:
                yield part
            self._done = True
        except BaseException as error:
            self._failed = isinstance(error, Exception)
            lease = self.lease
            await self.aclose()
            if lease is not None:
                self._connector.failed(self._link, lease.since, error)
            raise

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        link, hook = self._link, self._hook
        if hook is not None:
            hook.over()
        sound = False
        try:
            await self._stream.aclose()
            sound = link.connection.is_available() and (self._done if link.http2 else self._keep)
        finally:  # if this is cancelled, in whatever way, no state is left half-way
            if not sound and hook is not None and not self._failed:
                sound = give_up(link, hook, self._alive)
            if self.lease is not None:
                self.lease.close_nowait(discard=not sound)
