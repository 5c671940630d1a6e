"""Opens the connections of both pools, for the engine's connectors and for ``ensure_connection()``."""

from __future__ import annotations

import os
import socket
import time
import traceback
from typing import Any

from .._attempts import Attempt
from .._hang_up import Connecting, is_socket
from .._time_limits import caller_limit
from . import _errors
from ._base import count
from ._connection_watch import IDLE, AsyncConnectionWatch, ConnectionWatch, disconnect_now
from ._driver import PACKAGE, async_record_created, record_created
from ._handshake import async_connect_limit, connect_limit

__all__ = ("ensure", "open_connection", "open_connection_async")


def open_connection(pool: Any, limit: float | None, attempt: Attempt) -> Any:
    """Create a connection and connect it. Each attempt may take ``limit`` seconds, and its handshake as long.

    The progress of the connect is reported to ``attempt``.
    """
    started = time.monotonic()
    try:
        # under the lock: a maintenance notification that is being handled either sees this connection, or has
        # changed the arguments for it
        with pool._lock:
            connection = pool.make_connection()
            watch = pool._watches[id(connection)] = ConnectionWatch(connection, pool._lock)
            _use_later_limit(pool, watch.inner)
    except Exception as error:  # noqa: BLE001  re-raised as a mapped error
        raise _errors.connect_error(error)  # noqa: B904  its cause is set already
    try:
        left = caller_limit(pool.poolkit.config, limit)
        if not _connect(connection, watch, limit, left, attempt):
            connection.disconnect()  # it holds data for somebody else, or the server has closed it
            if not _connect(connection, watch, limit, left, attempt):
                raise _errors.unready(connection)
    except BaseException:
        pool._watches.pop(id(connection), None)
        raise
    watch.state, watch.opened_at = IDLE, time.monotonic()
    count(pool, watch, IDLE)
    record_created(pool, time.monotonic() - started)
    return connection


def _connect(
    connection: Any, watch: ConnectionWatch, limit: float | None, left: float | None, attempt: Attempt
) -> bool:
    """Connect, and return whether there is no unread data then. On an error close the socket.

    ``limit``, ``left`` and ``attempt`` are those of :func:`connect_limit`.
    """
    try:
        if watch.inspectable:
            with connect_limit(watch.inner, Connecting(PACKAGE), limit, left, attempt):
                connection.connect()
        else:
            attempt.opening()
            connection.connect()
        watch.opened()
        return watch.clean()
    except BaseException as error:
        connection.disconnect()
        _close_sockets_of(watch.inner, error)
        mapped = _errors.connect_error(error)
        if mapped is error:
            raise
        raise mapped  # noqa: B904  its cause is set already


def _use_later_limit(pool: Any, connection: Any) -> None:
    """Use a ``connect_timeout`` that was given after the pool was made, in place of the connection's argument."""
    seconds = pool.poolkit.config.connect_timeout
    if seconds != pool._first_limit and hasattr(connection, "socket_connect_timeout"):
        connection.socket_connect_timeout = seconds


def _close_sockets_of(connection: Any, error: BaseException) -> None:
    """Close the sockets that an interrupted ``connect()`` of this connection left in its frames.

    redis-py and ``ssl`` close what they opened if an OSError ends the connect. After a KeyboardInterrupt or the
    exception of a signal handler, the session would last for as long as the traceback is referenced.
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
    except AttributeError:  # its constructor was interrupted: close() needs attributes that are not set yet
        fileno = sock.detach()
        if fileno >= 0:
            os.close(fileno)


async def open_connection_async(pool: Any) -> Any:
    """Create a connection and connect it."""
    started = time.monotonic()
    try:
        connection = pool.make_connection()
        _use_later_limit(pool, connection)
    except Exception as error:  # noqa: BLE001  re-raised as a mapped error
        raise _errors.connect_error(error)  # noqa: B904  its cause is set already
    watch = pool._watches[id(connection)] = AsyncConnectionWatch(connection, pushes=_pushes(pool))
    try:
        await pool.ensure_connection(connection)
        await async_record_created(pool, time.monotonic() - started)
    except BaseException:
        pool._watches.pop(id(connection), None)
        disconnect_now(connection)
        raise
    watch.state, watch.opened_at = IDLE, time.monotonic()
    count(pool, watch, IDLE)
    return connection


async def ensure(pool: Any, connection: Any) -> None:
    """Connect the connection if it is not connected. Reconnect it if it has unread data."""
    watch = pool._watches.get(id(connection)) or AsyncConnectionWatch(connection, pushes=_pushes(pool))
    if watch.inspectable and connection.is_connected:
        ready = watch.clean() or await watch.look()
    else:
        ready = await _connect_async(pool, connection, watch)
    if not ready:  # it holds data for somebody else, or the server has closed it
        await connection.disconnect()
        if not await _connect_async(pool, connection, watch):
            raise _errors.unready(connection)


async def _connect_async(pool: Any, connection: Any, watch: AsyncConnectionWatch) -> bool:
    """Connect, and return whether there is no unread data then. On an error or a cancellation close the socket."""
    try:
        if watch.opened_at and not watch.inspectable:  # called at each checkout, as only connect() knows its state
            await connection.connect()
        else:
            async with async_connect_limit(connection, pool.poolkit.config.connect_timeout):
                await connection.connect()
        watch.opened()
        return (watch.inspectable and watch.clean()) or await watch.look()
    except BaseException as error:
        disconnect_now(connection)
        mapped = _errors.connect_error(error)
        if mapped is error:
            raise
        raise mapped  # noqa: B904  its cause is set already


def _pushes(pool: Any) -> bool:
    """Return whether the server may send maintenance notifications."""
    enabled = getattr(pool, "maint_notifications_enabled", None)  # redis-py 7
    return enabled is not None and bool(enabled())
