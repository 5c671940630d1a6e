"""The pool for threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from poolkit import Connector, Lease, Pool
from poolkit.errors import LeaseOverdue, PoolError

from .._attempts import Attempts
from ._base import ConnectorMixin, PoolBase
from ._driver import httpcore
from ._errors import error_for_caller
from ._http11_sync import Answer, take_shortcut
from ._link import (
    Exchange,
    Key,
    Link,
    Replays,
    key_of,
    left,
    shut,
    spend_if_ambiguous,
    takes_over,
    timeout_of,
)
from ._names import ON_ADDRESSES, NamesBackend
from ._network import WatchedBackend
from ._opening import ASKED, NOBODY, Opening, error_of_wait
from ._rest import read_rest

__all__ = ("PoolkitConnectionPool",)

_Link = Link[httpcore.ConnectionInterface]


class _Connector(ConnectorMixin[httpcore.ConnectionInterface], Connector[_Link]):
    close_in_caller = True  # HTTP has no closing message, so a close is one system call

    def __init__(self, owner: Any) -> None:
        super().__init__(owner)
        self._attempts = Attempts()
        self.connect_bound, self.give_up = self._attempts.bound, self._attempts.give_up

    def connect_to(self, key: Key, timeout: float | None) -> _Link:
        """Open a connection, within the limit of the request that asks for it or else within ``timeout`` seconds."""
        opening = self.opener.begin(_Opening, key, timeout)
        link = opening.link
        if opening.part is None:
            return link
        token = None
        try:
            with self._attempts.under_way() as attempt:
                if opening.limit is not None:
                    attempt.extend(self.opener.longest(opening))
                    token = ON_ADDRESSES.set(lambda count: attempt.extend(self.opener.longest(opening, count)))
                attempt.opening(partial(shut, link))
                opening.part.handle_request(opening.request())
            if opening.finish():
                self.opener.on_http11(key)
                take_shortcut(link)
        except BaseException as error:  # noqa: BLE001  raised again
            self.close(link)
            raised = self.opener.error(error)
            raise raised from raised.__cause__
        finally:
            if token is not None:
                ON_ADDRESSES.reset(token)
        return link

    def close(self, connection: _Link) -> None:
        """Close the socket. A thread that reads from it wakes up with an error."""
        self.links.pop(id(connection), None)
        shut(connection)
        with contextlib.suppress(Exception):
            connection.connection.close()
        for stream in connection.streams:  # also after a failed handshake or tunnel, when httpcore has dropped it
            with contextlib.suppress(Exception):
                stream.close()

    abort = close


class _Opening(Opening[httpcore.ConnectionInterface]):
    def __call__(self, event: str, info: dict[str, Any]) -> Any:
        self.note(event, info)
        return None if self.user_trace is None else self.user_trace(event, info)


class _Hook(Exchange):
    def __call__(self, event: str, info: dict[str, Any]) -> Any:
        self.note(event, info)
        return None if self.user_trace is None else self.user_trace(event, info)


def _backend_of(backend: httpcore.NetworkBackend, *, own: bool, http2: bool, proxied: bool) -> httpcore.NetworkBackend:
    """Return the network backend of a pool. ``own``: it is httpcore's, because the caller gave none."""
    if own:
        backend = NamesBackend(backend)
    return WatchedBackend(backend) if proxied else backend


class PoolkitConnectionPool(
    PoolBase[Pool[Any], httpcore.ConnectionInterface, httpcore.NetworkBackend], httpcore.ConnectionPool
):
    """Replaces ``httpcore.ConnectionPool``. Thread-safe, and safe after ``fork()``.

    Takes every argument of the class that it replaces, with the same meaning and default. Also takes the settings of
    :class:`poolkit.PoolConfig`, as keywords or as ``config``, and ``name`` and ``listeners`` as :class:`poolkit.Pool`
    does. Raises :class:`poolkit.ConfigError` for a wrong value.

    A request waits at most ``extensions["timeout"]["pool"]`` seconds for a connection. Then it raises an error that is
    both a :class:`poolkit.AcquireTimeout` and an ``httpcore.PoolTimeout``.
    """

    _answer_kind = Answer
    _kinds = (_Connector, Pool)
    _backend_of = staticmethod(_backend_of)

    def handle_request(self, request: httpcore.Request) -> httpcore.Response:
        """Send a request. When its response is closed, the connection is free for the next request."""
        found = self.answer(request)
        if isinstance(found, httpcore.Response):
            return found
        return httpcore.Response(status=found.status, headers=found.headers, content=found, extensions=found.extensions)

    def answer(self, request: httpcore.Request) -> httpcore.Response | Answer:
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
                lease = engine.lease(wait, key=key)
            except PoolError as error:
                raised = error_of_wait(error, self._errors)
                raise raised from raised.__cause__
            finally:
                ASKED.set(NOBODY)
            link: _Link = lease.connection
            if not link.ready():  # the server has closed it meanwhile, or sent unrequested data
                replays = replays or Replays(request, self._rereadable, deadline)
                if replays.passes_over(link):
                    lease.close(discard=True)
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
                    response = link.http2.send(request, hook)
                elif prepared is None:
                    response = link.connection.handle_request(sent)
                else:
                    found = shortcut.exchange(request, prepared)
                    if not isinstance(found, httpcore.Response):
                        link.answered = True
                        return self._answer_kind(request, found, lease, self._connector)
                    self._connector.odd.add()
                    response = found
            except BaseException as error:  # noqa: BLE001 - re-raised unless the request is sent again
                lease.close(**link.end(hook, error))
                self._connector.failed(link, lease.since, error)
                replays = replays or Replays(request, self._rereadable, deadline)
                if not replays.allow(error, link, hook):
                    opening = hook is not None and not hook.sent and not link.capacity
                    raised = error_for_caller(error, opening, self._errors)
                    raise raised from raised.__cause__
            else:
                return self._answered(response, request, lease, hook)
            if replays.pause:
                time.sleep(replays.pause)
            wait = left(deadline)

    def _answered(
        self, response: httpcore.Response, request: httpcore.Request, lease: Lease[_Link], hook: Exchange | None
    ) -> httpcore.Response:
        link = lease.connection
        link.answered = True
        spend_if_ambiguous(link, response)
        if hook is not None:
            hook.opened()
            if link.http2 is not None:
                return response  # its body closes the lease
        body = _Body(response.stream, link, lease, self._connector)
        if takes_over(request, response, link):
            self._connector.links.pop(id(link), None)
            lease.detach()
            body.lease = None
        return httpcore.Response(
            status=response.status, headers=response.headers, content=body, extensions=response.extensions
        )

    def close(self) -> None:
        """Close all connections, including those in use. Waiting requests fail.

        As with httpcore's own pool, a later request opens the pool again.
        """
        engine = self._reopening.take()
        if engine is not None:
            engine.drain(0)
            engine.close()


class _Body:
    """The stream of a response. Closing it gives the connection back."""

    __slots__ = ("_closed", "_connector", "_done", "_link", "_reading", "_stream", "lease")

    def __init__(self, stream: Any, link: _Link, lease: Lease[_Link], connector: ConnectorMixin[Any]) -> None:
        self._connector = connector
        self._stream = stream
        self._link = link
        self.lease: Lease[_Link] | None = lease  # None: detached
        self._done = False
        self._reading = False
        self._closed = False

    def __iter__(self) -> Iterator[bytes]:
        parts = iter(self._stream)  # kept: at its own end it would close an unread response, before close() below
        try:
            self._read_on()
            for part in parts:
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
                self.close()
            if lease is not None:
                self._connector.failed(self._link, lease.since, error)
            raise

    def _read_on(self) -> None:
        """Raise ReadError if the response was closed, because the connection may carry another request by now."""
        self._reading = True
        if self._closed:
            raise httpcore.ReadError("the response was closed")

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        reusable = False
        try:
            if not (self._done or self._reading or self.lease is None):
                read_rest(self._link)
            self._stream.close()
            reusable = self._link.connection.is_available()
        finally:
            if self.lease is not None:
                self.lease.close(discard=not reusable)
