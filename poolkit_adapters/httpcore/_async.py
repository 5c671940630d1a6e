"""The pool for tasks, on asyncio and trio."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import time
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from poolkit import AsyncConnector, AsyncLease, AsyncPool, PoolConfig
from poolkit.errors import LeaseOverdue, PoolError

from ._asyncio_stream import AsyncioBackend, drop_lock
from ._base import ConnectorMixin, PoolBase
from ._driver import httpcore
from ._errors import error_for_caller
from ._http11_async import AsyncAnswer
from ._link import (
    Exchange,
    Key,
    Link,
    Replays,
    key_of,
    left,
    spend_if_ambiguous,
    takes_over,
    timeout_of,
)
from ._names import AsyncNamesBackend
from ._network import AsyncWatchedBackend, first_step
from ._opening import ASKED, NOBODY, Opening, error_of_wait, until_nobody_waits
from ._rest import read_rest

__all__ = ("AsyncPoolkitConnectionPool",)

_Link = Link[httpcore.AsyncConnectionInterface]


class _Connector(ConnectorMixin[httpcore.AsyncConnectionInterface], AsyncConnector[_Link]):
    bounds_connects = True  # within the limit of the request that asks for the connection

    async def connect_to(self, key: Key, timeout: float | None) -> _Link:
        """Open a connection, within the limit of the request that asks for it or else within ``timeout`` seconds."""
        opening = self.opener.begin(_Opening, key, timeout)
        link = opening.link
        if opening.part is None:
            return link
        try:
            connect = partial(opening.part.handle_async_request, opening.request())
            if opening.limit is None:
                await until_nobody_waits(key, connect, self.opener.waiting)
            else:
                await connect()
            if opening.finish():
                self.opener.on_http11(key)
                drop_lock(link)
        except BaseException as error:  # noqa: BLE001  raised again
            self.abort(link)
            raised = self.opener.error(error)
            raise raised from raised.__cause__
        return link

    async def close(self, link: _Link) -> None:
        """Close the connection and all its network streams."""
        self.links.pop(id(link), None)
        try:
            await link.connection.aclose()
        finally:
            self.abort(link)

    def abort(self, link: _Link) -> None:
        """Close the transport without a suspension, so that no cancellation can interrupt it."""
        self.links.pop(id(link), None)
        if link.http2 is not None:
            link.http2.abort()
        for stream in link.streams:  # also after a failed handshake or tunnel, when httpcore has dropped it
            first_step(stream.aclose)


class _Opening(Opening[httpcore.AsyncConnectionInterface]):
    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        self.note(event, info)
        if self.user_trace is not None:
            await _called(self.user_trace, event, info)


class _Hook(Exchange):
    async def __call__(self, event: str, info: dict[str, Any]) -> None:
        self.note(event, info)
        if self.user_trace is not None:
            await _called(self.user_trace, event, info)


async def _called(trace: Any, event: str, info: dict[str, Any]) -> None:
    result = trace(event, info)
    if not inspect.iscoroutine(result):
        raise TypeError("The `trace` callback of an asynchronous request must be an asynchronous function.")
    await result


async def _sleep(seconds: float) -> None:
    if asyncio._get_running_loop() is None:
        import trio

        await trio.sleep(seconds)
    else:
        await asyncio.sleep(seconds)


def _backend_of(
    backend: httpcore.AsyncNetworkBackend, *, own: bool, http2: bool, proxied: bool
) -> httpcore.AsyncNetworkBackend:
    """Return the network backend of a pool. ``own``: it is httpcore's, because the caller gave none."""
    if own:
        backend = AsyncioBackend(AsyncNamesBackend(backend), tls=not proxied)
    return AsyncWatchedBackend(backend) if proxied else backend


class AsyncPoolkitConnectionPool(
    PoolBase[AsyncPool[Any], httpcore.AsyncConnectionInterface, httpcore.AsyncNetworkBackend],
    httpcore.AsyncConnectionPool,
):
    """Replaces ``httpcore.AsyncConnectionPool``, on asyncio and trio. Safe for concurrent tasks of one event loop.

    Takes every argument of the class that it replaces, with the same meaning and default. Also takes the settings of
    :class:`poolkit.PoolConfig`, as keywords or as ``config``, and ``name`` and ``listeners`` as
    :class:`poolkit.AsyncPool` does. Raises :class:`poolkit.ConfigError` for a wrong value.

    A request waits at most ``extensions["timeout"]["pool"]`` seconds for a connection. Then it raises an error that is
    both a :class:`poolkit.AcquireTimeout` and an ``httpcore.PoolTimeout``.
    """

    _answer_kind = AsyncAnswer
    _kinds = (_Connector, AsyncPool)
    _backend_of = staticmethod(_backend_of)

    async def handle_async_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request. When its response is closed, the connection is free for the next request."""
        found = await self.answer(request)
        if isinstance(found, httpcore.Response):
            return found
        return httpcore.Response(status=found.status, headers=found.headers, content=found, extensions=found.extensions)

    async def answer(self, request: httpcore.Request) -> httpcore.Response | AsyncAnswer:
        """Do the same, but return the response of a reused HTTP/1.1 connection without httpcore's layers."""
        key = key_of(request)
        engine = self._reopening.get()
        config = engine.config
        wait = timeout_of(request, config.acquire_timeout)
        deadline = None if wait is None else time.monotonic() + wait
        replays: Replays | None = None
        while True:
            ASKED.set(request.extensions)
            try:
                lease = await engine.lease(wait, key=key)
            except PoolError as error:
                raised = error_of_wait(error, self._errors)
                raise raised from raised.__cause__
            finally:
                ASKED.set(NOBODY)
            link: _Link = lease.connection
            if not link.ready():  # the server has closed it meanwhile, or sent unrequested data
                replays = replays or Replays(request, self._rereadable, deadline)
                if replays.passes_over(link):
                    lease.close_nowait(discard=True)
                    wait = left(deadline)
                    continue
            hook, sent = None, request
            if link.http2 is not None or not link.capacity:
                hook = _Hook(link, lease, request, self._connector, config.check_after_idle)
                if link.http2 is None:
                    sent = hook.traced(hook, config.connect_timeout)
            shortcut = link.shortcut
            try:
                prepared = None if shortcut is None else shortcut.prepared(request, self._rereadable)
                if link.http2 is not None:
                    response = await link.http2.send(request, hook)
                elif prepared is None:
                    response = await link.direct.handle_async_request(sent)
                else:
                    found = await shortcut.exchange(request, prepared)
                    if not isinstance(found, httpcore.Response):
                        link.answered = True
                        return self._answer_kind(request, found, lease, self._connector, config)
                    self._connector.odd.add()
                    response = found
            except BaseException as error:  # noqa: BLE001 - re-raised unless the request is sent again
                lease.close_nowait(**link.end(hook, error))
                self._connector.failed(link, lease.since, error)
                replays = replays or Replays(request, self._rereadable, deadline)
                if not replays.allow(error, link, hook):
                    opening = hook is not None and not hook.sent and not link.capacity
                    raised = error_for_caller(error, opening, self._errors)
                    raise raised from raised.__cause__
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
        spend_if_ambiguous(link, response)
        if hook is not None:
            hook.opened()
            if link.http2 is not None:
                return response  # its body closes the lease
        body = _Body(response.stream, link, lease, config, self._connector)
        if takes_over(request, response, link):
            self._connector.links.pop(id(link), None)
            lease.detach()
            body.lease = None
        return httpcore.Response(
            status=response.status, headers=response.headers, content=body, extensions=response.extensions
        )

    async def aclose(self) -> None:
        """Close all connections, including those in use. Waiting requests fail.

        As with httpcore's own pool, a later request opens the pool again.
        """
        engine = self._reopening.take()
        if engine is not None:
            try:
                await engine.drain(0)
                await engine.close()
            except PoolError as error:
                raise self._errors.adapted(error) from error.__cause__


class _Body:
    """The stream of a response. Closing it gives the connection back."""

    __slots__ = (
        "_closed", "_connector", "_done", "_keep", "_link", "_reading", "_stream", "lease",
    )  # fmt: skip

    def __init__(
        self,
        stream: Any,
        link: _Link,
        lease: AsyncLease[_Link],
        config: PoolConfig,
        connector: ConnectorMixin[Any],
    ) -> None:
        self._connector = connector
        self._stream = stream
        self._link = link
        self._keep = config.max_idle != 0  # False: no connection stays idle, so close it before close() returns
        self.lease: AsyncLease[_Link] | None = lease  # None: detached
        self._done = False
        self._reading = False
        self._closed = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        parts = aiter(self._stream)  # kept: at its own end it would close an unread response, before aclose() below
        try:
            self._read_on()
            async for part in parts:
                self._reading = False
                yield part
                self._read_on()
            self._reading = False
            self._done = True
        except BaseException as error:
            if self._closed:
                raise
            lease = self.lease
            with contextlib.suppress(LeaseOverdue):  # it must not replace the error
                await self.aclose()
            if lease is not None:
                self._connector.failed(self._link, lease.since, error)
            raise

    def _read_on(self) -> None:
        """Raise ReadError if the response was closed, because the connection may carry another request by now."""
        self._reading = True
        if self._closed:
            raise httpcore.ReadError("the response was closed")

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        link = self._link
        reusable = False
        try:
            if not (self._done or self._reading or self.lease is None):
                read_rest(link)
            await self._stream.aclose()
            reusable = link.connection.is_available() and self._keep
        finally:  # even after a cancellation the lease must end
            overdue = None if self.lease is None else self.lease.close_nowait(discard=not reusable)
        if overdue is not None:
            raise overdue
