"""The pool for redis-py's asyncio clients."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from poolkit import AsyncPool, PoolConfig
from poolkit.errors import NotLeased, PoolError
from poolkit.events import Listener
from poolkit_adapters.redis import _errors
from poolkit_adapters.redis._base import PoolBase
from poolkit_adapters.redis._connectors import TaskConnector
from poolkit_adapters.redis._driver import (
    GET_CONNECTION_ARGS_DEPRECATED,
    AsyncConnection,
    AsyncConnectionPool,
    AsyncReAuthListener,
    AsyncReleasedEvent,
    async_record_created,
    async_record_wait,
    async_waits_recorded,
)
from poolkit_adapters.redis._guard import IDLE, USED, AsyncGuard, State, disconnect_now
from poolkit_adapters.redis._handshake import handshake_limit_async
from poolkit_adapters.redis._settings import (
    DEFAULT_LIMIT,
    DEFAULT_TIMEOUT,
    warn_arguments,
)

__all__ = ("AsyncPoolkitConnectionPool",)

CLOSE_TIMEOUT = 5.0
"""Seconds that ``disconnect()`` waits for the peers to take note; the sockets are closed by then in any case."""


class AsyncPoolkitConnectionPool(PoolBase[AsyncPool[Any], AsyncGuard], AsyncConnectionPool):  # type: ignore[misc]
    """Stands in for ``redis.asyncio.BlockingConnectionPool``; with ``timeout=0`` for ``redis.asyncio.ConnectionPool``.

    ::

        client = redis.asyncio.Redis(connection_pool=AsyncPoolkitConnectionPool(host="localhost", max_connections=20))

    Arguments and errors as :class:`PoolkitConnectionPool`. For one event loop: that of its first use. May be made
    outside of a loop; when its loop has ended, the next one begins with connections of its own.
    """

    _released_event = AsyncReleasedEvent
    _re_auth_listener = AsyncReAuthListener

    def __init__(
        self,
        max_connections: int | None = DEFAULT_LIMIT,
        timeout: float | None = DEFAULT_TIMEOUT,
        connection_class: Any = AsyncConnection,
        queue_class: Any = asyncio.LifoQueue,
        *,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        **connection_kwargs: Any,
    ) -> None:
        super().__init__(
            **self._settle(
                connection_kwargs, max_connections=max_connections, timeout=timeout, connection_class=connection_class,
                queue_class=queue_class, config=config, name=name, listeners=listeners, debug=debug,
            )
        )  # fmt: skip
        self._begin()

    def _begin(self) -> None:
        config = self._first_config() if self._engine is None else self._engine.config
        connector = TaskConnector(self)
        connector.counted = self._engine is None  # else this is reset() of a closed pool, and no other was made
        self._engine = AsyncPool(connector, config, **self._engine_args)

    def reset(self) -> None:
        """Begin anew with no connections. Those in use are their users' own from now on and are closed when they are
        released; callers who wait go on within their time, with new ones. Certificates are read again.
        """
        self._shared.forget()
        old = self.poolkit
        if old.closed:
            self._begin()
        old.clear()  # the same engine goes on, and whoever waits at it stays in its queue
        for guard in list(self._guards.values()):
            if guard.state is USED:
                del self._guards[id(guard.connection)]
                self._count(guard, None)
                old.detach(guard.connection)
                self._former.add(guard.connection)

    # -- connections ------------------------------------------------------------------------------------------------

    async def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connection that stands and from which nothing is to be read; give it back with :meth:`release`.

        Raises :class:`RedisAcquireTimeout` (a ``redis.MaxConnectionsError``) when none comes free in ``timeout``
        seconds, and what redis-py raises when it cannot connect.
        """
        if GET_CONNECTION_ARGS_DEPRECATED and (command_name is not None or keys or options):
            warn_arguments()
        started = time.monotonic() if async_waits_recorded() else None
        try:
            connection = await self._engine.acquire()  # type: ignore[union-attr]
        except PoolError as error:
            raise _errors.pool_error(error) from error.__cause__
        guard = self._guards[id(connection)]
        if started is not None:
            await self._record(async_record_wait, connection, started)
        if not guard.clean():  # last: nothing is awaited between this and the caller's turn
            await self._ensure(connection)
        guard.state = USED
        if started is not None:
            self._count(guard, USED)
        return connection

    async def _ensure(self, connection: Any) -> None:
        """As :meth:`ensure_connection`, for a connection on lease: it is given back if that fails."""
        try:
            await self.ensure_connection(connection)
        except BaseException:
            self.poolkit.release_nowait(connection, discard=True)
            raise

    async def ensure_connection(self, connection: Any) -> None:
        """Connect the connection if it is not, and anew if anything is to be read from it."""
        guard = self._guards.get(id(connection)) or AsyncGuard(connection, pushes=self._pushes())
        if guard.watched and connection.is_connected:
            ready = guard.clean() or await guard.look()
        else:
            ready = await self._connect(connection, guard)
        if not ready:
            await self._renew(connection, guard)

    def _pushes(self) -> bool:
        """Whether maintenance notifications may come."""
        enabled = getattr(self, "maint_notifications_enabled", None)  # redis-py 7
        return enabled is not None and bool(enabled())

    async def _renew(self, connection: Any, guard: AsyncGuard) -> None:
        """Connect anew, where something that is not for the next caller can be read, or nothing ever again."""
        await connection.disconnect()
        if not await self._connect(connection, guard):
            raise _errors.unready(connection)

    async def _connect(self, connection: Any, guard: AsyncGuard) -> bool:
        """Connect; whether nothing is to be read then. An exception, a cancellation too, leaves no socket open."""
        try:
            if guard.watched and connection.socket_timeout is None:
                with handshake_limit_async(connection, self.poolkit.config.connect_timeout):
                    await connection.connect()
            else:
                await connection.connect()
            guard.opened()
            return guard.clean() or await guard.look()
        except BaseException as error:
            disconnect_now(connection)
            mapped = _errors.connect_error(error)
            if mapped is error:
                raise
            raise mapped  # noqa: B904  has its cause

    async def _open(self) -> Any:
        """Make a connection and connect it."""
        started = time.monotonic()
        try:
            connection = self.make_connection()
        except Exception as error:  # noqa: BLE001  raised again
            raise _errors.connect_error(error)  # noqa: B904  has its cause
        guard = self._guards[id(connection)] = AsyncGuard(connection, pushes=self._pushes())
        try:
            await self.ensure_connection(connection)
            await async_record_created(self, time.monotonic() - started)
        except BaseException:
            self._guards.pop(id(connection), None)
            disconnect_now(connection)
            raise
        guard.state = IDLE
        self._count(guard, IDLE)
        return connection

    async def _record(self, record: Any, connection: Any, started: float) -> None:
        """Tell redis-py's metrics how long something took; whoever is cancelled here has no connection yet."""
        try:
            await record(self, time.monotonic() - started)
        except BaseException:
            self.poolkit.release_nowait(connection, discard=True)
            raise

    def make_connection(self) -> Any:
        """A new connection object, not connected and not in the pool."""
        return self._shared.make(self.connection_class, self.connection_kwargs)

    async def release(self, connection: Any) -> None:
        """Give a connection back. It is in the pool's hands, or closed, when this ends in whatever way.

        Raises ``KeyError`` for one that is not in use, as redis-py does. Kept only if it is connected, not marked
        for reconnect, and its session is as it was: one with another database selected, an open transaction or a
        subscription is closed.
        """
        guard = self._guards.get(id(connection))
        if guard is None or guard.connection is not connection or guard.state is not USED:
            if self._former.take(connection):
                disconnect_now(connection)
                return
            raise _errors.RedisNotLeased(
                f"{self.poolkit.name}: release of a connection that is not in use: it is foreign, or was released "
                "already"
            )
        guard.state = IDLE
        keep = False
        try:
            keep = self.owns_connection(connection) and guard.sound()
            if AsyncReleasedEvent is not None and self._must_tell(connection, keep):
                told, keep = keep, False  # an exception leaves it in an unknown state
                await self._event_dispatcher.dispatch_async(AsyncReleasedEvent(connection))
                keep = told and guard.sound()
        finally:
            if guard.counted is not None:
                self._count(guard, IDLE)
            try:
                if not keep and guard.failed():  # the idle ones may be dead as well
                    self.poolkit.release_nowait(connection, error=_errors.network_failed())
                else:
                    self._engine.release_nowait(connection, discard=not keep)  # type: ignore[union-attr]
            except NotLeased:  # reset() while the listeners were told
                self._former.take(connection)
                disconnect_now(connection)

    def owns_connection(self, connection: Any) -> bool:
        """Whether the connection may be kept; the sentinels' pool has its own opinion."""
        return True

    def can_get_connection(self) -> bool:
        """Whether a connection is to be had without waiting for one to come back."""
        stats = self.poolkit.stats()
        limit = self.max_connections
        return stats.idle > 0 or limit is None or stats.size < limit

    def get_available_connection(self) -> Any:
        """Not here: a connection of poolkit's is always connected, which takes an ``await``."""
        raise _errors.RedisUsageError(
            "use 'await get_connection()': poolkit hands out no connection that is not connected"
        )

    async def disconnect(self, inuse_connections: bool = True) -> None:
        """Close idle connections, and with ``inuse_connections`` cut those in use, in whatever task. The pool
        stays usable.
        """
        waiting: list[asyncio.Future[None]] = []
        loop = asyncio.get_running_loop()

        def note(connection: Any) -> bool:
            guard = self._guards.get(id(connection))
            if guard is not None:
                guard.closed = loop.create_future()
                waiting.append(guard.closed)
            return True

        closed = self.poolkit.discard_idle(note)
        used = self._in_state(State.USED, State.OPENING) if inuse_connections else []
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
        """Authenticate all connections anew: idle ones before their next use, those in use when they come back."""
        for guard in list(self._guards.values()):
            guard.connection.set_re_auth_token(token)
            guard.doubt = True

    # -- what redis-py's maintenance notifications and metrics look at ------------------------------------------------

    def set_in_maintenance(self, in_maintenance: bool) -> None:
        """Nothing to do: a notification's handler changes the pool between two turns of the loop."""

    async def update_active_connections_for_reconnect(self) -> None:
        """Replace the connections in use when they come back."""
        for connection in self._get_in_use_connections():
            connection.mark_for_reconnect()

    async def _disconnect_connections(self, connections: Iterable[Any]) -> None:
        """Idle connections that the server asked to leave: closed by the engine, not under somebody's hands."""
        chosen = {id(connection) for connection in connections}
        self.poolkit.discard_idle(lambda connection: id(connection) in chosen)
