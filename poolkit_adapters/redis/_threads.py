"""The pool for redis-py's synchronous clients."""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Iterable
from queue import LifoQueue
from typing import Any

from poolkit import Pool, PoolConfig
from poolkit.errors import LeaseOverdue, NotLeased, PoolError
from poolkit.events import Listener
from poolkit_adapters.redis import _errors
from poolkit_adapters.redis._base import PoolBase
from poolkit_adapters.redis._connectors import SyncConnector, close_sockets_of
from poolkit_adapters.redis._driver import (
    GET_CONNECTION_ARGS_DEPRECATED,
    CacheProxy,
    Connection,
    ConnectionPool,
    ReAuthListener,
    ReleasedEvent,
    record_created,
    record_wait,
    waits_recorded,
)
from poolkit_adapters.redis._guard import IDLE, USED, Guard, State
from poolkit_adapters.redis._handshake import handshake_limit
from poolkit_adapters.redis._settings import (
    DEFAULT_LIMIT,
    DEFAULT_TIMEOUT,
    warn_arguments,
)
from poolkit_adapters.redis._shared import made_by_cluster_client

__all__ = ("PoolkitConnectionPool",)

_pools: weakref.WeakSet[Any] = weakref.WeakSet()


class _Queue:
    """What a program sees where ``BlockingConnectionPool`` has its queue: the idle connections and the free places."""

    def __init__(self, pool: PoolkitConnectionPool) -> None:
        self._pool = pool

    @property
    def queue(self) -> list[Any]:
        """The idle connections."""
        return self._pool._in_state(State.IDLE)

    def qsize(self) -> int:
        """How many connections can be had without waiting."""
        stats = self._pool.poolkit.stats()
        return stats.idle + max(0, int(self._pool.max_connections) - stats.size)


class PoolkitConnectionPool(PoolBase[Pool[Any], Guard], ConnectionPool):  # type: ignore[misc]
    """Stands in for ``redis.BlockingConnectionPool``; with ``timeout=0`` for ``redis.ConnectionPool``.

    ::

        client = redis.Redis(connection_pool=PoolkitConnectionPool(host="localhost", max_connections=20))

    Args:
        max_connections: connections that exist at once (the engine's ``max_size``).
        timeout: seconds to wait for a connection while all are in use (``acquire_timeout``): 0 never waits,
            None waits for ever. Opening one has its own time, redis-py's ``socket_connect_timeout``.
        connection_class: redis-py's class of connections.
        queue_class: ``LifoQueue`` (the last used connection first) or ``Queue`` (``order="fifo"``).
        config: poolkit's settings; single ones may be given as keywords (``idle_timeout=60``).
        name: of the pool, in messages, statistics and events.
        listeners: called for each :class:`poolkit.Event`.
        debug: note the place of each acquire, for the report of a leak.
        connection_kwargs: for ``connection_class``, as in redis-py.

    Raises:
        ConfigError: a setting that cannot be meant.

    Thread-safe; a forked child begins with connections of its own. ``release()`` never waits and may be called by
    finalizers. Errors of :meth:`get_connection` are poolkit's and redis-py's at once.
    """

    _released_event = ReleasedEvent
    _re_auth_listener = ReAuthListener

    def __init__(
        self,
        max_connections: int | None = DEFAULT_LIMIT,
        timeout: float | None = DEFAULT_TIMEOUT,
        connection_class: Any = Connection,
        queue_class: Any = LifoQueue,
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
        _pools.add(self)

    @classmethod
    def from_url(cls, url: str, **kwargs: Any) -> Any:
        """A pool for a URL: ``redis://``, ``rediss://`` or ``unix://``; the query may hold settings of poolkit too."""
        return super().from_url(url, **kwargs)

    def reset(self) -> None:
        """Begin anew with no connections. Those in use are their users' own from now on and are closed when they are
        released; callers who wait go on within their time, with new ones. Certificates are read again.
        """
        if not hasattr(self, "_lock"):  # redis-py before 6 makes it here
            self._lock: Any = threading.RLock()
        self.pid = os.getpid()
        self._shared.forget()
        old = self._engine
        if old is None or old.closed:
            config = self._first_config() if old is None else old.config
            connector = SyncConnector(self)
            connector.must_be_closed = not made_by_cluster_client()
            connector.counted = old is None and connector.must_be_closed
            self._engine = Pool(connector, config, **self._engine_args)
        if old is not None:
            guards = list(self._guards.values())  # first: what is opened from here on may stay
            old.clear()  # the same engine goes on, and whoever waits at it stays in its queue
            for guard in guards:
                if guard.state is USED:
                    self._let_go(old, guard)

    def _let_go(self, engine: Pool[Any], guard: Guard) -> None:
        """The connection is its user's own."""
        connection = guard.connection
        # in this order: release() in another thread finds it among the former ones, or sees that its guard is gone
        self._former.add(connection)
        self._guards.pop(id(connection), None)
        self._count(guard, None)
        try:
            engine.detach(connection)
        except NotLeased:  # it came back in this very moment, and the engine has closed it
            self._former.take(connection)

    # -- connections ------------------------------------------------------------------------------------------------

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
        """A connection that stands and from which nothing is to be read; give it back with :meth:`release`.

        Raises :class:`RedisAcquireTimeout` (a ``redis.MaxConnectionsError``) when none comes free in ``timeout``
        seconds, and what redis-py raises when it cannot connect.
        """
        if GET_CONNECTION_ARGS_DEPRECATED and (command_name is not None or keys or options):
            warn_arguments()
        started = time.monotonic() if waits_recorded() else None
        engine = self._engine
        try:
            connection = engine.acquire()  # type: ignore[union-attr]
        except PoolError as error:
            raise _errors.pool_error(error) from error.__cause__
        guard = self._guards[id(connection)]
        try:
            if not guard.clean():
                self._renew(connection, guard)  # as redis-py does
        except BaseException:
            engine.release(connection, discard=True)  # type: ignore[union-attr]
            raise
        guard.state = USED
        if started is not None:
            self._count(guard, USED)
            record_wait(self, time.monotonic() - started)
        return connection

    def _renew(self, connection: Any, guard: Guard) -> None:
        """Connect anew, where something that is not for the next caller can be read, or nothing ever again."""
        connection.disconnect()
        if not self._connect(connection, guard):
            raise _errors.unready(connection)

    def _connect(self, connection: Any, guard: Guard) -> bool:
        """Connect; whether nothing is to be read then. An exception leaves no socket open."""
        try:
            with handshake_limit(guard.inner, self.poolkit.config.connect_timeout):
                connection.connect()
            guard.opened()
            return guard.clean()
        except BaseException as error:
            connection.disconnect()
            close_sockets_of(guard.inner, error)
            mapped = _errors.connect_error(error)
            if mapped is error:
                raise
            raise mapped  # noqa: B904  has its cause

    def _open(self) -> Any:
        """Make a connection and connect it."""
        started = time.monotonic()
        try:
            with self._lock:  # a maintenance notification that is being worked on sees it, or is in its arguments
                connection = self.make_connection()
                guard = self._guards[id(connection)] = Guard(connection, self._lock)
        except Exception as error:  # noqa: BLE001  raised again
            raise _errors.connect_error(error)  # noqa: B904  has its cause
        try:
            if not self._connect(connection, guard):
                self._renew(connection, guard)
        except BaseException:
            self._guards.pop(id(connection), None)
            raise
        guard.state = IDLE
        self._count(guard, IDLE)
        record_created(self, time.monotonic() - started)
        return connection

    def make_connection(self) -> Any:
        """A new connection object, not connected and not in the pool."""
        connection = self._shared.make(self.connection_class, self.connection_kwargs)
        return connection if self.cache is None else CacheProxy(connection, self.cache, self._lock)

    def release(self, connection: Any) -> None:
        """Give a connection back; a foreign one, or one released already, is ignored as redis-py does.

        Kept only if it is connected, not marked for reconnect, and its session is as it was: one with another
        database selected, an open transaction or a subscription is closed.
        """
        guard = self._guards.get(id(connection))
        if guard is None or guard.connection is not connection or guard.state is not USED:
            # one of before reset(), or the parent's (of that, close(fd) and no more)
            if self._former.take(connection) or getattr(connection, "pid", self.pid) != self.pid:
                connection.disconnect()
            return
        guard.state = IDLE
        keep = False
        passing = sys.exc_info()[1]
        try:
            # on the way of an interrupt: it may have struck between a request and its reply, where redis-py has no
            # handler, and a reply that has not arrived yet shows nowhere
            if self.owns_connection(connection) and (passing is None or isinstance(passing, Exception)):
                keep = guard.sound()
                if ReleasedEvent is not None and self._must_tell(connection, keep):
                    told, keep = keep, False  # an exception leaves it in an unknown state
                    # before anybody else can get the connection: the default listener authenticates anew
                    self._event_dispatcher.dispatch(ReleasedEvent(connection))
                    keep = told and guard.sound()
        finally:
            if guard.counted is not None:
                self._count(guard, IDLE)
            try:
                if keep:
                    self._engine.release(connection)  # type: ignore[union-attr]
                elif guard.failed():  # the idle ones may be dead as well
                    self._engine.release(connection, error=_errors.network_failed())  # type: ignore[union-attr]
                else:
                    self._engine.release(connection, discard=True)  # type: ignore[union-attr]
            except LeaseOverdue as error:  # not out of a block that ends with an error of its own
                if passing is None:
                    raise _errors.pool_error(error) from error.__cause__
            except NotLeased:  # reset() at this moment, or two threads released it at once
                if self._guards.get(id(connection)) is not guard:
                    self._former.take(connection)
                    connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close idle connections, and with ``inuse_connections`` cut those in use, in whatever thread. The pool
        stays usable.
        """
        self.poolkit.discard_idle()
        if inuse_connections:
            for connection in self._get_in_use_connections():
                connection.disconnect()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def re_auth_callback(self, token: Any) -> None:
        """Authenticate all connections anew: idle ones before their next use, those in use when they come back."""
        for guard in list(self._guards.values()):
            guard.inner.set_re_auth_token(token)
            guard.doubt = True

    # -- what redis-py's maintenance notifications and metrics look at ------------------------------------------------

    @property
    def pool(self) -> _Queue:
        """For programs that look into the blocking pool's queue."""
        return _Queue(self)

    @property
    def _created_connections(self) -> int:
        return len(self._guards)

    def set_in_maintenance(self, in_maintenance: bool) -> None:
        """Nothing to do: a connection is made under the lock that the notification's handler holds."""

    def update_connections_settings(
        self,
        *,
        matching_pattern: Any = "connected_address",
        matching_address: str | None = None,
        matching_notification_hash: int | None = None,
        include_free_connections: bool = True,
        **changes: Any,
    ) -> None:
        """As in redis-py, but of one picture: no connection is missed because it changed hands meanwhile."""
        states = State if include_free_connections else (State.USED, State.OPENING)
        with self._lock:
            for connection in self._in_state(*states):
                if self._should_update_connection(
                    connection, matching_pattern, matching_address, matching_notification_hash
                ):
                    self.update_connection_settings(connection, **changes)

    def disconnect_free_connections(self, moving_address_src: str | None = None) -> None:
        """Close the idle connections to an address (None: all)."""
        idle = self._in_state(State.IDLE)
        chosen = {id(c) for c in idle if self._should_update_connection(c, "connected_address", moving_address_src)}
        self.poolkit.discard_idle(lambda connection: id(connection) in chosen)

    def _after_fork(self) -> None:
        """In the child: the engine has begun anew; so do the locks, which somebody may have held."""
        self._lock = threading.RLock()
        self._fork_lock = threading.RLock()
        self._guards.clear()
        self.pid = os.getpid()
        if self.cache is not None:
            self.cache.flush()  # the parent's connections get the news about it


def _after_fork_in_child() -> None:
    for pool in list(_pools):
        pool._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
