"""The pool for redis-py's asyncio clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterable
from sys import exc_info
from typing import TYPE_CHECKING, Any

from poolkit import AsyncPool
from poolkit.errors import NotLeased, PoolError

from . import _errors
from ._base import PoolBase, count, first_config, in_state, must_notify
from ._connection_watch import ANSWERED, IDLE, USED, AsyncConnectionWatch, disconnect_now, lease_begins, passing_through
from ._connectors import TaskConnector
from ._driver import (
    GET_CONNECTION_ARGS_DEPRECATED,
    AsyncConnection,
    AsyncConnectionPool,
    AsyncReAuthListener,
    AsyncReleasedEvent,
    async_connection,
    async_record_wait,
    async_waits_recorded,
)
from ._opening import ensure
from ._other_library import refuse_other_client
from ._settings import warn_arguments
from ._shared import check_limit, time_left

if TYPE_CHECKING:
    from ._keywords import FromURL

__all__ = ("AsyncPoolkitConnectionPool", "cleaned", "take")

CLOSE_TIMEOUT = 5.0
"""Seconds that ``disconnect()`` waits for the servers to close their ends. Our sockets are closed by then anyway."""


async def cleaned(
    pool: AsyncPoolkitConnectionPool, watch: AsyncConnectionWatch, started: float, timeout: float | None = -1.0
) -> AsyncConnectionWatch:
    """Return a leased connection that is clean, in place of one in doubt, within ``timeout`` seconds from ``started``.

    A ``timeout`` below 0 stands for the pool's own. The result may be the same connection. Connections that are not
    clean are given back, and on an error all of them.
    """
    engine: Any = pool._engine  # there is one, because the connection is leased
    unready = False
    while True:
        try:
            if not watch.inspectable:  # only its own connect() knows whether it is connected
                await pool.ensure_connection(watch.connection)
                return watch
            timeout = pool.timeout if timeout is not None and timeout < 0 else timeout
            if watch.clean() or await _looked(watch, check_limit(timeout, started, engine.config.check_timeout)):
                return watch
        except BaseException:
            engine.release_nowait(watch.connection, discard=True)
            raise
        engine.release_nowait(watch.connection, discard=True)
        if watch.opened_at > started:
            if unready:
                raise _errors.unready(watch.connection)
            unready = True
        try:
            watch = pool._watches[id(await engine.acquire(time_left(timeout, started)))]
        except PoolError as error:
            raise _errors.pool_error(error)  # noqa: B904  its cause is set already


async def _looked(watch: AsyncConnectionWatch, seconds: float | None) -> bool:
    """Examine a connection in doubt, and return whether it is clean. False if that is not known in time."""
    if not watch.connection.is_connected:
        return False
    try:
        async with async_connection.async_timeout(seconds):
            return await watch.look()
    except asyncio.TimeoutError:
        return False


class AsyncPoolkitConnectionPool(PoolBase[AsyncPool[Any], AsyncConnectionWatch], AsyncConnectionPool):  # type: ignore[misc]
    """Replaces ``redis.asyncio.BlockingConnectionPool``, and with ``timeout=0`` ``redis.asyncio.ConnectionPool``.

    ::

        client = redis.asyncio.Redis(connection_pool=AsyncPoolkitConnectionPool(host="localhost", max_connections=20))

    Takes the arguments and raises the errors of :class:`PoolkitConnectionPool`. Belongs to one event loop, the one
    that uses it first, and may be created outside any loop. When that loop has ended, the next loop starts with new
    connections. Safe for concurrent tasks of that loop.
    """

    _released_event = AsyncReleasedEvent
    _re_auth_listener = AsyncReAuthListener
    _connection_class = AsyncConnection
    _queue_class = asyncio.LifoQueue
    from_url: FromURL[AsyncPoolkitConnectionPool]  # redis-py's own method, with keywords that a type checker knows

    def reset(self) -> None:
        """Drop all connections and start again without any.

        Connections in use no longer belong to the pool and are closed when they are released. Waiting callers keep
        their deadlines and get new connections. Certificates are read again.
        """
        self._shared.forget()
        old = self._engine
        if old is None or old.closed:
            _begin(self)
        if old is None:
            return
        old.clear()  # keep the same engine, so that waiting callers keep their places in its queue
        for watch in list(self._watches.values()):
            if watch.state is USED:
                del self._watches[id(watch.connection)]
                count(self, watch, None)
                old.detach(watch.connection)
                self._former.add(watch.connection)

    # -- connections ------------------------------------------------------------------------------------------------

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """Return an open connection with no unread data. Give it back with :meth:`release`.

        Raises :class:`AcquireTimeout` (a ``redis.MaxConnectionsError``) if none becomes free within ``timeout``
        seconds, and redis-py's errors, with poolkit's types added, if it cannot connect.
        """
        if GET_CONNECTION_ARGS_DEPRECATED:
            if command_name is not None or keys or options:
                refuse_other_client()
                warn_arguments()
        elif command_name is None:
            refuse_other_client()
        started, recorded = time.monotonic(), async_waits_recorded()
        try:
            connection = await self._engine.acquire()  # type: ignore[union-attr]
        except PoolError as error:
            raise _errors.pool_error(error)  # noqa: B904  its cause is set already
        watch = self._watches[id(connection)]
        if recorded:
            await _record(self, async_record_wait, connection, started)
        if not watch.clean():  # last: nothing is awaited between this check and the return to the caller
            watch = await cleaned(self, watch, started)
        lease_begins(watch)
        if recorded:
            count(self, watch, USED)
        return watch.connection

    async def ensure_connection(self, connection: Any) -> None:
        """Connect the connection if it is not connected. Reconnect it if it has unread data."""
        await ensure(self, connection)

    def make_connection(self) -> Any:
        """Return a new connection object that is neither connected nor in the pool."""
        return self._shared.make(self.connection_class, self.connection_kwargs)

    def release(self, connection: Any) -> Coroutine[Any, Any, None]:
        """Give a connection back. However this call ends, the connection is in the pool again or closed.

        Raises ``KeyError`` for a connection that is not in use, as redis-py does. The pool keeps the connection only
        if it is connected, not marked for reconnect, and its session is unchanged. It closes one with another
        database selected, an open transaction or a subscription.
        """
        return self._release(connection, exc_info()[1])  # read here, as a pipeline runs the coroutine in another task

    async def _release(self, connection: Any, passing: BaseException | None) -> None:
        watch = self._watches.get(id(connection))
        if watch is None or watch.connection is not connection or watch.state is not USED:
            if self._former.take(connection):
                disconnect_now(connection)
                return
            raise _errors.NotLeased(
                f"{self.poolkit.name}: release() of a connection that is not in use: it belongs to another pool, or "
                "was released already"
            )
        watch.state = IDLE
        keep, overdue = False, None
        if watch.handled is not None:
            passing = passing_through(watch, passing)
        try:
            certain = passing is None or isinstance(passing, ANSWERED)  # see the synchronous pool
            keep = self.owns_connection(connection) and (watch.reusable() if certain else watch.doubt())
            if AsyncReleasedEvent is not None and must_notify(self, connection, keep):
                reusable, keep = keep, False  # an exception of a listener leaves the connection in an unknown state
                await self._event_dispatcher.dispatch_async(AsyncReleasedEvent(connection))
                keep = reusable and watch.reusable()
        finally:
            if watch.counted is not None:
                count(self, watch, IDLE)
            try:
                if not keep and watch.failed():  # the idle connections may be dead as well: report the error
                    self.poolkit.release_nowait(connection, error=_errors.network_failed())
                else:
                    overdue = self._engine.release_nowait(connection, discard=not keep)  # type: ignore[union-attr]
            except NotLeased:  # reset() was called while the listeners ran
                self._former.take(connection)
                disconnect_now(connection)
        if overdue is not None and passing is None:  # it must not replace an error that is being raised
            raise overdue

    def owns_connection(self, connection: Any) -> bool:
        """Return whether the pool may keep the connection. The Sentinel pool overrides this."""
        return True

    def can_get_connection(self) -> bool:
        """Return whether a connection is available without waiting for a release."""
        stats = self.poolkit.stats()
        limit = self.max_connections
        return stats.idle > 0 or limit is None or stats.size < limit

    def get_available_connection(self) -> Any:
        """Raise :class:`UsageError`: this pool hands out connected connections only, which needs ``await``."""
        raise _errors.UsageError(
            "get_available_connection() is not supported: poolkit hands out connected connections only; use "
            "'await get_connection()'"
        )

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close idle connections, and with ``inuse_connections`` disconnect those in use by any task.

        The pool stays usable. It opens no connections, not even ``min_size``, until its next use.
        """
        waiting: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()

        def note(connection: Any) -> bool:
            watch = self._watches.get(id(connection))
            if watch is not None:
                watch.closed = loop.create_future()
                waiting.append(watch.closed)
            return True

        closed = self.poolkit.discard_idle(note, rest=True)
        used = in_state(self, USED) if inuse_connections else []
        results = await asyncio.gather(*(connection.disconnect() for connection in used), return_exceptions=True)
        if closed:
            await asyncio.wait(waiting, timeout=CLOSE_TIMEOUT)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def re_auth_callback(self, token: Any) -> None:
        """Re-authenticate all connections: idle ones before their next use, those in use when they are released."""
        for watch in list(self._watches.values()):
            watch.connection.set_re_auth_token(token)
            watch.recheck = True

    # -- used by redis-py's maintenance notifications and metrics -----------------------------------------------------

    def set_in_maintenance(self, in_maintenance: bool) -> None:
        """Do nothing: the handler of a notification awaits nothing, so no other task runs while it changes the pool."""

    async def update_active_connections_for_reconnect(self) -> None:
        """Mark the connections in use, so that they are replaced when they are released."""
        for connection in self._in_use_connections:
            connection.mark_for_reconnect()

    async def _disconnect_connections(self, connections: Iterable[Any]) -> None:
        """Close idle connections that the server asked to leave. The engine closes them, so none is in use."""
        chosen = {id(connection) for connection in connections}
        self.poolkit.discard_idle(lambda connection: id(connection) in chosen)


def _begin(pool: AsyncPoolkitConnectionPool) -> None:
    """Give the pool an engine, a new one after the first was closed."""
    config = first_config(pool) if pool._engine is None else pool._engine.config
    connector = TaskConnector(pool)
    connector.counted = pool._engine is None  # reset() of a closed pool must not count as another new pool
    pool._engine = AsyncPool(connector, config, **pool._engine_args)


async def _record(pool: AsyncPoolkitConnectionPool, record: Any, connection: Any, started: float) -> None:
    """Report a duration to redis-py's metrics. If the caller is cancelled here, discard the connection."""
    try:
        await record(pool, time.monotonic() - started)
    except BaseException:
        pool.poolkit.release_nowait(connection, discard=True)
        raise


async def take(pool: AsyncPoolkitConnectionPool, timeout: float) -> Any:
    """Return a connection as ``get_connection()`` does, within ``timeout`` seconds."""
    started = time.monotonic()
    try:
        connection = await pool.poolkit.acquire(timeout)
    except PoolError as error:
        raise _errors.pool_error(error)  # noqa: B904  its cause is set already
    watch = await cleaned(pool, pool._watches[id(connection)], started, timeout)
    lease_begins(watch)
    return watch.connection
