"""The engine's connectors, which open, check and close the connections of redis-py."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from poolkit import AsyncConnector, Connector, PoolError, Verdict

from .._attempts import Attempts
from .._errors import release_locals
from .._time_limits import Watch, caller_limit
from . import _errors
from ._base import count
from ._connection_watch import USED, AsyncConnectionWatch, ConnectionWatch, disconnect_now
from ._driver import PACKAGE, async_connection, exceptions, metering
from ._opening import open_connection, open_connection_async

__all__ = ("SyncConnector", "TaskConnector")

_checks = Watch()


class SyncConnector(Connector[Any]):
    """The connector of :class:`PoolkitConnectionPool`."""

    packages = (PACKAGE,)  # frames of this package are skipped when the place of a caller is reported
    reports_errors = True  # as redis-py's own pools do
    close_in_caller = True  # closing a socket does not block
    overdue_error = _errors.LeaseOverdue
    own_metrics = staticmethod(metering)  # redis-py reports its connections itself, and they must not count twice

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._watches: dict[int, ConnectionWatch] = pool._watches
        self._attempts = Attempts()
        self.connect_bound, self.give_up = self._attempts.bound, self._attempts.give_up

    def connect(self, timeout: float | None) -> Any:
        pool = self._pool()
        if pool is None:
            raise _errors.PoolClosed(
                "cannot open a connection: the pool no longer exists; keep a reference to the pool"
            )
        try:
            with self._attempts.under_way() as attempt:
                return open_connection(pool, timeout, attempt)
        except BaseException as error:
            del pool  # the engine remembers the error, and its frames must not keep the pool or the connection alive
            release_locals(error)
            raise

    def close(self, connection: Any) -> None:
        pool = self._pool()
        watch = self._watches.pop(id(connection), None)
        if pool is not None and watch is not None:
            count(pool, watch, None)
            if watch.state is USED:
                _forbid_reconnect(watch.inner, pool.poolkit.name)
        connection.disconnect()

    abort = close

    def peek(self, connection: Any) -> bool:
        watch = self._watches.get(id(connection))
        return watch is None or watch.uncertain or watch.clean()  # an uncertain one is examined when it is handed out

    def check(self, connection: Any, timeout: float | None) -> bool:
        watch = self._watches.get(id(connection))
        if watch is None or not watch.inspectable:
            return True
        inner = watch.inner
        with _checks.limit(inner, timeout, "PING"):  # the socket's own limit, if any, is one for each read
            inner.send_command("PING", check_health=False)
            return inner.read_response() in (b"PONG", "PONG")

    def classify(self, error: BaseException) -> Verdict:
        return _errors.classify(error)

    def forget(self, connection: Any) -> None:
        # in a forked child: only close the descriptor; a shutdown would end the parent's session, and another thread
        # of the parent may hold one of redis-py's locks
        watch = self._watches.get(id(connection))
        sock = getattr(watch.inner, "_sock", None) if watch is not None and watch.inspectable else None
        if sock is not None:
            sock.close()


class TaskConnector(AsyncConnector[Any]):
    """The connector of :class:`AsyncPoolkitConnectionPool`."""

    packages = (PACKAGE,)
    reports_errors = True  # as redis-py's own pools do
    bounds_connects = True  # each attempt has its own limits, and "retry" says how many there are
    overdue_error = _errors.LeaseOverdue
    own_metrics = staticmethod(metering)

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._watches: dict[int, AsyncConnectionWatch] = pool._watches

    async def connect(self, timeout: float | None) -> Any:
        pool = self._pool()
        if pool is None:
            raise _errors.PoolClosed(
                "cannot open a connection: the pool no longer exists; keep a reference to the pool"
            )
        try:
            left = caller_limit(pool.poolkit.config, timeout)
            if left is None:
                return await open_connection_async(pool)
            return await _within(left, partial(open_connection_async, pool))
        except BaseException as error:
            del pool  # see SyncConnector
            release_locals(error)
            raise

    async def close(self, connection: Any) -> None:
        watch = self._forget(connection)
        try:
            await connection.disconnect()
        finally:
            self._ended(watch)

    def abort(self, connection: Any) -> None:
        watch = self._forget(connection)
        try:
            if watch is not None and watch.loop.is_closed():
                watch.drop()
            else:
                disconnect_now(connection)
        finally:
            self._ended(watch)

    def _forget(self, connection: Any) -> AsyncConnectionWatch | None:
        pool = self._pool()
        watch = self._watches.pop(id(connection), None)
        if pool is not None and watch is not None:
            count(pool, watch, None)
            if watch.state is USED:
                _forbid_reconnect_async(connection, pool.poolkit.name)
        return watch

    def _ended(self, watch: AsyncConnectionWatch | None) -> None:
        if watch is not None and watch.closed is not None and not watch.closed.done():
            watch.closed.set_result(None)

    def peek(self, connection: Any) -> bool:
        watch = self._watches.get(id(connection))
        # a connection that is not clean is examined when it is handed out, which may take a turn of the loop
        return watch is None or not watch.inspectable or watch.clean() or not watch.ended()

    async def check(self, connection: Any, timeout: float | None) -> bool:
        watch = self._watches.get(id(connection))
        if watch is None or not watch.inspectable:
            return True
        await connection.send_command("PING", check_health=False)
        return await connection.read_response() in (b"PONG", "PONG")

    def classify(self, error: BaseException) -> Verdict:
        return _errors.classify(error)

    def forget(self, connection: Any) -> None:
        watch = self._watches.pop(id(connection), None)
        if watch is not None:
            watch.drop()


async def _within(seconds: float, open_: Callable[[], Awaitable[Any]]) -> Any:
    """Connect for the calling task, which has ``seconds`` left."""
    try:
        async with async_connection.async_timeout(seconds):
            return await open_()
    except asyncio.TimeoutError as error:
        if isinstance(error, PoolError):  # of redis-py's own limit
            raise
        late = exceptions.TimeoutError(f"no connection in {seconds:g} s (timeout)")
        raise _errors.connect_error(late) from error


def _forbid_reconnect(connection: Any, pool: str) -> None:
    """Stop a connection that the pool closed while it was in use from reconnecting.

    redis-py reconnects in the next command. No pool would own that session: it would exceed the size of the pool and
    stay open until the object is garbage collected.
    """

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise _errors.lease_cut(pool)

    _replace_connects(connection, refuse)


def _forbid_reconnect_async(connection: Any, pool: str) -> None:
    """Do the same as :func:`_forbid_reconnect` for an asyncio connection."""

    async def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise _errors.lease_cut(pool)

    _replace_connects(connection, refuse)


def _replace_connects(connection: Any, refuse: Any) -> None:
    for name in ("connect", "connect_check_health"):  # the latter is what a command calls since redis-py 6
        if hasattr(connection, name):
            with contextlib.suppress(AttributeError):  # a custom class with __slots__
                setattr(connection, name, refuse)
