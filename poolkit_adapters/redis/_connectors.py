"""The engine's hands: redis-py's connections as the pools make them."""

from __future__ import annotations

import contextlib
import os
import socket
import traceback
import weakref
from typing import Any

from poolkit import AsyncConnector, Connector, Verdict
from poolkit_adapters._hang_up import is_socket
from poolkit_adapters.redis import _errors
from poolkit_adapters.redis._driver import metering
from poolkit_adapters.redis._guard import USED, AsyncGuard, Guard, disconnect_now

__all__ = ("SyncConnector", "TaskConnector", "close_sockets_of")


class SyncConnector(Connector[Any]):
    """Of :class:`PoolkitConnectionPool`."""

    packages = ("redis",)  # whose constructor and clients stand between
    connect_in_caller = True  # redis-py's retries, sentinels and tests expect it there
    close_in_caller = True  # closing a socket does not block
    overdue_error = _errors.RedisLeaseOverdue
    own_metrics = staticmethod(metering)  # redis-py reports its connections itself: nothing is counted twice

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._guards: dict[int, Guard] = pool._guards

    def connect(self, timeout: float | None) -> Any:
        pool = self._pool()
        if pool is None:
            raise _errors.RedisPoolClosed("the pool is gone")
        return pool._open()

    def close(self, connection: Any) -> None:
        pool = self._pool()
        guard = self._guards.pop(id(connection), None)
        if pool is not None and guard is not None:
            pool._count(guard, None)
            if guard.state is USED:
                _cut(guard.inner, pool.poolkit.name)
        connection.disconnect()

    abort = close

    def peek(self, connection: Any) -> bool:
        guard = self._guards.get(id(connection))
        return guard is None or guard.clean()

    def check(self, connection: Any, timeout: float | None) -> bool:
        guard = self._guards.get(id(connection))
        if guard is None or not guard.watched:
            return True
        inner = guard.inner
        inner.send_command("PING", check_health=False)
        if not inner.can_read(timeout):
            raise TimeoutError(f"no answer to PING in {timeout} s")
        return inner.read_response() in (b"PONG", "PONG")

    def classify(self, error: BaseException) -> Verdict:
        return _errors.classify(error)

    def forget(self, connection: Any) -> None:
        # in a forked child: close(fd), no shutdown, and none of redis-py's locks
        guard = self._guards.get(id(connection))
        sock = getattr(guard.inner, "_sock", None) if guard is not None and guard.watched else None
        if sock is not None:
            sock.close()


class TaskConnector(AsyncConnector[Any]):
    """Of :class:`AsyncPoolkitConnectionPool`."""

    packages = ("redis",)
    connect_in_caller = True  # redis-py's retries, sentinels and tests expect it there
    own_metrics = staticmethod(metering)

    def __init__(self, pool: Any) -> None:
        self._pool = weakref.ref(pool)
        self._guards: dict[int, AsyncGuard] = pool._guards

    async def connect(self, timeout: float | None) -> Any:
        pool = self._pool()
        if pool is None:
            raise _errors.RedisPoolClosed("the pool is gone")
        return await pool._open()

    async def close(self, connection: Any) -> None:
        guard = self._forget(connection)
        try:
            await connection.disconnect()
        finally:
            self._ended(guard)

    def abort(self, connection: Any) -> None:
        guard = self._forget(connection)
        try:
            if guard is not None and guard.loop.is_closed():
                guard.drop()
            else:
                disconnect_now(connection)
        finally:
            self._ended(guard)

    def _forget(self, connection: Any) -> AsyncGuard | None:
        pool = self._pool()
        guard = self._guards.pop(id(connection), None)
        if pool is not None and guard is not None:
            pool._count(guard, None)
            if guard.state is USED:
                _cut_async(connection, pool.poolkit.name)
        return guard

    def _ended(self, guard: AsyncGuard | None) -> None:
        if guard is not None and guard.closed is not None and not guard.closed.done():
            guard.closed.set_result(None)

    def peek(self, connection: Any) -> bool:
        guard = self._guards.get(id(connection))
        # an unusual one is looked at when it is handed out, which may take a turn of the loop
        return guard is None or not guard.watched or guard.clean() or not guard.ended()

    async def check(self, connection: Any, timeout: float | None) -> bool:
        guard = self._guards.get(id(connection))
        if guard is None or not guard.watched:
            return True
        await connection.send_command("PING", check_health=False)
        return await connection.read_response() in (b"PONG", "PONG")

    def classify(self, error: BaseException) -> Verdict:
        return _errors.classify(error)

    def forget(self, connection: Any) -> None:
        guard = self._guards.pop(id(connection), None)
        if guard is not None:
            guard.drop()


def _cut(connection: Any, pool: str) -> None:
    """Keep a connection that is closed under its user from opening again.

    redis-py connects by itself in the next command. That session would be nobody's: beyond the pool's size, and open
    until the object is collected.
    """

    def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise _errors.lease_cut(pool)

    _replace_connects(connection, refuse)


def _cut_async(connection: Any, pool: str) -> None:
    """As :func:`_cut`."""

    async def refuse(*arguments: Any, **keywords: Any) -> Any:
        raise _errors.lease_cut(pool)

    _replace_connects(connection, refuse)


def _replace_connects(connection: Any, refuse: Any) -> None:
    for name in ("connect", "connect_check_health"):  # the latter is what a command calls since redis-py 6
        if hasattr(connection, name):
            with contextlib.suppress(AttributeError):  # a class of somebody else's, with slots
                setattr(connection, name, refuse)


def close_sockets_of(connection: Any, error: BaseException) -> None:
    """Close the sockets that an interrupted ``connect()`` of this connection has left in its frames.

    redis-py and ``ssl`` close what they have opened if an OSError ends the connect. After a KeyboardInterrupt, or the
    exception of a signal handler, the session would last as long as anybody keeps the traceback.
    """
    inside = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        values = dict(frame.f_locals)
        own = values.get("self") is connection
        inside = inside or (own and frame.f_code.co_name == "_connect")
        if own or inside:
            for value in values.values():
                if is_socket(value):
                    _close(value)


def _close(sock: socket.socket) -> None:
    try:
        sock.close()
    except AttributeError:  # interrupted in its constructor: close() misses what was not set yet
        fileno = sock.detach()
        if fileno >= 0:
            os.close(fileno)
