"""The pool for redis-py's synchronous clients."""

from __future__ import annotations

import os
import threading
import time
import weakref
from queue import LifoQueue
from sys import exc_info
from typing import TYPE_CHECKING, Any

from poolkit import Pool
from poolkit.errors import AcquireTimeout, LeaseOverdue, NotLeased, PoolError
from poolkit.policies.members import snapshot
from poolkit.runtimes.fork import Stage, after_fork

from .._time_limits import Watch as TimeLimits
from . import _errors
from ._base import PoolBase, count, first_config, in_state, must_notify
from ._connection_watch import ANSWERED, IDLE, USED, ConnectionWatch, State, lease_begins, passing_through
from ._connectors import SyncConnector
from ._driver import (
    GET_CONNECTION_ARGS_DEPRECATED,
    CacheProxy,
    Connection,
    ConnectionPool,
    ReAuthListener,
    ReleasedEvent,
    record_wait,
    shared_cache,
    waits_recorded,
)
from ._other_library import refuse_other_client
from ._settings import warn_arguments
from ._shared import check_limit, made_by_cluster_client, time_left

if TYPE_CHECKING:
    from ._keywords import FromURL

__all__ = ("PoolkitConnectionPool", "take")

_pools: weakref.WeakSet[Any] = weakref.WeakSet()
_authentications = TimeLimits()


def _checked(watch: ConnectionWatch, seconds: float | None) -> bool:
    """Return whether the connection is clean. A pending ``AUTH`` is sent first, within ``seconds``."""
    try:
        with _authentications.limit(watch.inner, seconds, "AUTH"):
            return watch.clean()
    except TimeoutError:
        return False


def _explain_crossing(pool: PoolkitConnectionPool, error: AcquireTimeout) -> None:
    """Add the cause to the message if this thread holds a connection to another node.

    A pipeline over several nodes takes one connection after the other, in the order of its commands, and gives
    none back before it has all of them.
    """
    for other in snapshot(_pools):
        engine = other._engine
        if other is pool or not other._of_cluster or engine is None:
            continue
        if engine.held_by_caller():
            cause = (
                f"this thread already holds a connection to another node ({engine.name}), as a pipeline over "
                "several nodes does: threads that each hold one and wait for another block each other; set "
                "max_connections to at least the number of threads"
            )
            error.args = (f"{error.args[0]}; {cause}", *error.args[1:])
            return


class _Queue:
    """Replaces the queue of ``BlockingConnectionPool`` for programs that read it."""

    def __init__(self, pool: PoolkitConnectionPool) -> None:
        self._pool = pool

    @property
    def queue(self) -> list[Any]:
        """The idle connections."""
        return in_state(self._pool, State.IDLE)

    def qsize(self) -> int:
        """Return how many connections are available without waiting."""
        stats = self._pool.poolkit.stats()
        return stats.idle + max(0, int(self._pool.max_connections) - stats.size)


class PoolkitConnectionPool(PoolBase[Pool[Any], ConnectionWatch], ConnectionPool):  # type: ignore[misc]
    """Replaces ``redis.BlockingConnectionPool``, and with ``timeout=0`` ``redis.ConnectionPool``.

    ::

        client = redis.Redis(connection_pool=PoolkitConnectionPool(host="localhost", max_connections=20))

    Args:
        max_connections: connections that may exist at the same time (the engine's ``max_size``).
        timeout: seconds until the caller has a connection (``acquire_timeout``), whether it waits for another caller,
            for a check or for a connect. 0 never waits: each caller opens its own connection, as with
            ``redis.ConnectionPool``. None waits forever. A connect that takes longer than its caller waits goes on,
            with redis-py's ``socket_connect_timeout`` and ``retry``.
        connection_class: redis-py's class of connections.
        queue_class: ``LifoQueue`` (the last used connection first) or ``Queue`` (``order="fifo"``).
        config: poolkit's settings. Single ones may be given as keywords (``idle_timeout=60``).
        name: name of the pool, for messages, statistics and events.
        listeners: functions called for each :class:`poolkit.Event`.
        debug: record where each connection is acquired, for reports of leaks.
        connection_kwargs: arguments of ``connection_class``, as in redis-py.

    Raises:
        ConfigError: a wrong setting.

    Thread-safe. A forked child starts with connections of its own. ``release()`` never waits, so finalizers may call
    it. Errors of :meth:`get_connection` inherit from both poolkit's and redis-py's errors.
    """

    _released_event = ReleasedEvent
    _re_auth_listener = ReAuthListener
    _of_cluster = False
    """Whether redis-py's ``RedisCluster`` created this pool for one of its nodes."""

    _connection_class = Connection
    _queue_class = LifoQueue
    from_url: FromURL[PoolkitConnectionPool]  # redis-py's own method, with keywords that a type checker knows

    def reset(self) -> None:
        """Drop all connections and start again without any.

        Connections in use no longer belong to the pool and are closed when they are released. Waiting callers keep
        their deadlines and get new connections. Certificates are read again.
        """
        if not hasattr(self, "_lock"):  # redis-py before 6 creates it in this method
            self._lock: Any = threading.RLock()
        _pools.add(self)
        self.pid = os.getpid()
        self._shared.forget()
        old = self._engine
        if old is None or old.closed:
            _begin(self)
        if old is not None:
            _start_again(self, old)

    # -- connections ------------------------------------------------------------------------------------------------

    def get_connection(self, command_name: Any = None, *keys: Any, **options: Any) -> Any:
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
        started = time.monotonic()
        connection = take(self, self.poolkit.config.acquire_timeout, started)
        if waits_recorded():
            count(self, self._watches[id(connection)], USED)
            record_wait(self, time.monotonic() - started)
        return connection

    def make_connection(self) -> Any:
        """Return a new connection object that is neither connected nor in the pool."""
        connection = self._shared.make(self.connection_class, self.connection_kwargs)
        return connection if self.cache is None else CacheProxy(connection, self.cache, self._lock)

    def release(self, connection: Any) -> None:
        """Give a connection back. As in redis-py, one of another pool or one released already is ignored.

        The pool keeps the connection only if it is connected, not marked for reconnect, and its session is unchanged.
        It closes one with another database selected, an open transaction or a subscription.
        """
        watch = self._watches.get(id(connection))
        if watch is None or watch.connection is not connection or watch.state is not USED:
            # a connection from before reset(), or one of the parent process, for which this only closes the descriptor
            if self._former.take(connection) or getattr(connection, "pid", self.pid) != self.pid:
                connection.disconnect()
            return
        watch.state = IDLE
        keep = False
        passing = exc_info()[1]
        if watch.handled is not None:
            passing = passing_through(watch, passing)
        try:
            if passing is not None and not isinstance(passing, ANSWERED):
                # a signal handler or a callback may have raised it between a request and its reply
                keep = self.owns_connection(connection) and watch.doubt()
            elif self.owns_connection(connection):
                keep = watch.reusable()
                if ReleasedEvent is not None and must_notify(self, connection, keep):
                    reusable, keep = keep, False  # an exception leaves it in an unknown state
                    # before another caller can get the connection: the default listener re-authenticates it
                    self._event_dispatcher.dispatch(ReleasedEvent(connection))
                    keep = reusable and watch.reusable()
        finally:
            if watch.counted is not None:
                count(self, watch, IDLE)
            try:
                if keep:
                    self._engine.release(connection)  # type: ignore[union-attr]
                elif watch.failed():  # the idle connections may be dead as well: report the error
                    self._engine.release(connection, error=_errors.network_failed())  # type: ignore[union-attr]
                else:
                    self._engine.release(connection, discard=True)  # type: ignore[union-attr]
            except LeaseOverdue:  # it must not replace an error that is being raised
                if passing is None:
                    raise
            except NotLeased:  # reset() ran at this moment, or two threads released the connection at once
                if self._watches.get(id(connection)) is not watch:
                    self._former.take(connection)
                    connection.disconnect()

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close idle connections, and with ``inuse_connections`` disconnect those in use by any thread.

        The pool stays usable. It opens no connections, not even ``min_size``, until its next use.
        """
        self.poolkit.discard_idle(rest=True)
        if inuse_connections:
            for connection in in_state(self, USED):
                connection.disconnect()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def re_auth_callback(self, token: Any) -> None:
        """Re-authenticate all connections: idle ones before their next use, those in use when they are released."""
        for watch in list(self._watches.values()):
            watch.inner.set_re_auth_token(token)
            watch.recheck = True

    # -- used by redis-py's maintenance notifications and metrics -----------------------------------------------------

    @property
    def pool(self) -> _Queue:
        """The queue of the blocking pool, for programs that read it."""
        return _Queue(self)

    def set_in_maintenance(self, in_maintenance: bool) -> None:
        """Do nothing: connections are created under the lock that the handler of the notification holds."""

    def update_connections_settings(
        self,
        *,
        matching_pattern: Any = "connected_address",
        matching_address: str | None = None,
        matching_notification_hash: int | None = None,
        include_free_connections: bool = True,
        **changes: Any,
    ) -> None:
        """Update connections as redis-py does, but from one snapshot, so that none is missed while it is released."""
        states = State if include_free_connections else (State.USED, State.OPENING)
        wanted = matching_pattern, matching_address, matching_notification_hash
        with self._lock:
            for connection in in_state(self, *states):
                _update_if_wanted(self, connection, wanted, changes)

    def disconnect_free_connections(self, moving_address_src: str | None = None) -> None:
        """Close the idle connections to an address, or all idle ones if it is None."""
        idle = in_state(self, State.IDLE)
        chosen = {id(c) for c in idle if self._should_update_connection(c, "connected_address", moving_address_src)}
        self.poolkit.discard_idle(lambda connection: id(connection) in chosen)


def _update_if_wanted(
    pool: PoolkitConnectionPool, connection: Any, wanted: tuple[Any, str | None, int | None], changes: dict[str, Any]
) -> None:
    if pool._should_update_connection(connection, *wanted):
        pool.update_connection_settings(connection, **changes)


def _begin(pool: PoolkitConnectionPool) -> None:
    """Give the pool an engine, a new one after the first was closed."""
    old = pool._engine
    connector = SyncConnector(pool)
    pool._of_cluster = pool._of_cluster or made_by_cluster_client()
    connector.must_be_closed = not pool._of_cluster
    connector.counted = old is None and not pool._of_cluster
    pool._engine = Pool(connector, first_config(pool) if old is None else old.config, **pool._engine_args)


def _start_again(pool: PoolkitConnectionPool, engine: Pool[Any]) -> None:
    """Replace all connections. The same engine stays, so that waiting callers keep their places in its queue."""
    watches = list(pool._watches.values())  # before clear(): connections opened from here on may stay
    engine.clear()
    for watch in watches:
        if watch.state is USED:
            _leave_to_user(pool, engine, watch)


def _leave_to_user(pool: PoolkitConnectionPool, engine: Pool[Any], watch: ConnectionWatch) -> None:
    """Take the connection out of the pool and leave it to its user."""
    connection = watch.connection
    # in this order: release() in another thread finds it in _former, or notices that its watch is gone
    pool._former.add(connection)
    pool._watches.pop(id(connection), None)
    count(pool, watch, None)
    try:
        engine.detach(connection)
    except NotLeased:  # another thread has just released it, and the engine has closed it
        pool._former.take(connection)


def take(pool: PoolkitConnectionPool, timeout: float | None, started: float) -> Any:
    """Lease a clean connection within ``timeout`` seconds from ``started`` on."""
    engine, left, unready = pool.poolkit, timeout, False
    while True:
        try:
            connection = engine.acquire(left)
        except PoolError as error:
            if pool._of_cluster and isinstance(error, AcquireTimeout):
                _explain_crossing(pool, error)
            raise _errors.pool_error(error)  # noqa: B904  its cause is set already
        watch = pool._watches[id(connection)]
        try:
            if watch.recheck:
                ready = _checked(watch, check_limit(timeout, started, engine.config.check_timeout))
            else:
                ready = watch.clean()
            if ready:
                lease_begins(watch)
                return connection
        except BaseException:
            engine.release(connection, discard=True)
            raise
        engine.release(connection, discard=True)  # take another one in the time that is left
        if watch.opened_at > started:
            if unready:
                raise _errors.unready(connection)
            unready = True
        left = time_left(timeout, started)


def _renew(pool: PoolkitConnectionPool) -> None:
    """In the child, replace the locks, which a thread of the parent may hold. The engine has restarted already."""
    pool._lock = threading.RLock()
    pool._fork_lock = threading.RLock()
    for connection in in_state(pool, State.OPENING):  # nobody closes it here: only a thread of the parent knows it
        sock = getattr(connection, "_sock", None)
        if sock is not None:
            sock.close()
    pool._watches.clear()
    pool.pid = os.getpid()
    cache = shared_cache(pool)
    if cache is not None:
        cache.flush()  # its invalidations arrive at the parent's connections only


def _after_fork_in_child() -> None:
    for pool in snapshot(_pools):
        _renew(pool)


after_fork(Stage.ADAPTERS, _after_fork_in_child)
