"""The synchronous pool."""

from __future__ import annotations

import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ContextDecorator
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import psycopg
import psycopg_pool
from psycopg_pool.abc import CT

from poolkit import ConfigError, Pool, PoolConfig, PoolError, Verdict
from poolkit.errors import ConnectFailed as EngineConnectFailed
from poolkit.errors import shown
from poolkit.events import Event, EventKind

from . import _config as defaults
from ._connector import PsycopgConnector
from ._errors import LeaseOverdue, PoolClosed, classify
from ._failures import failed, foreign, is_ready, not_opened, not_ready, refused, stats_of
from ._io import is_clean, is_inside, limited_rollback, ping
from ._leased import verdict_on
from ._session import Session, note_wrong_server, was_cut
from ._shared import PSYCOPG_VERSION, PoolBase, cut_block_error, entered_twice, logger, new_sizes, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolkitConnectionPool",)

S = TypeVar("S", bound="PoolkitConnectionPool[Any]")
_CONNECTION: Any = psycopg.Connection


class _ReturningConnection(psycopg.Connection[Any]):
    """Adds ``close_returns`` to psycopg before 3.3."""

    def close(self) -> None:
        pool = getattr(self, "_pool", None)
        if pool is not None:
            pool.putconn(self)
        else:
            super().close()


class _Block(Generic[CT], ContextDecorator):
    """The block of ``pool.connection()``. At its end it commits or rolls back, and returns the connection.

    One object serves one block at a time. As a decorator of a function, each call of the function has its own block.
    """

    __slots__ = ("_connection", "_entered", "_pool", "_timeout")

    def __init__(self, pool: PoolkitConnectionPool[Any], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._entered = threading.Lock()

    def _recreate_cm(self) -> _Block[CT]:
        return _Block(self._pool, self._timeout)

    def __enter__(self) -> CT:
        if not self._entered.acquire(False):
            raise entered_twice(self._pool)
        try:
            connection: Any = self._pool.getconn(timeout=self._timeout)
        except BaseException:
            self._entered.release()
            raise
        self._connection = connection
        connection._poolkit_block = id(self)  # not the block itself, which refers to the connection
        try:
            connection.__enter__()
        except BaseException:
            self._entered.release()
            self._pool.putconn(connection)
            raise
        return cast("CT", connection)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        connection = self._connection
        self._entered.release()
        if connection._poolkit_block != id(self):
            return None  # given back inside the block
        swallowed: bool | None = None
        try:
            if connection._poolkit_session.pid == getpid():  # a forked child must not use its parent's socket
                with limited_rollback(connection, self._pool._engine.config.check_timeout, error):
                    swallowed = connection.__exit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            if error is not None:
                note_wrong_server(connection, error)
            cut = was_cut(connection)
            try:
                self._pool.putconn(connection)
            except LeaseOverdue:
                if error is None:  # otherwise do not replace the block's own error
                    raise
            if cut and (error is None or isinstance(error, psycopg.Error)):
                # on a closed connection psycopg commits nothing and raises no error
                raise cut_block_error(self._pool.name, connection, error)
        return swallowed


def _lease(pool: PoolkitConnectionPool[CT], timeout: float | None) -> Session[CT]:
    return pool._engine.acquire() if timeout is None else pool._engine.acquire(max(0.0, timeout))


def _until_filled(pool: PoolkitConnectionPool[Any], timeout: float) -> None:
    """Wait until ``min_size`` connections are open."""
    deadline = time.monotonic() + timeout
    changed = threading.Event()
    last: list[BaseException] = []

    def listen(event: Event) -> None:
        if event.kind is EventKind.CONNECT_FAILED and event.error is not None:
            last[:] = [event.error]
        changed.set()

    pool._engine.add_listener(listen)
    try:
        if not pool._eager:
            _fill(pool._engine)
        while True:
            if is_ready(stats := stats_of(pool)):
                break
            if last and not stats.idle and not stats.in_use and classify(last[0]) is Verdict.FATAL:
                raise not_ready(pool, 0.0, stats, last[0])
            if not changed.wait(max(0.0, deadline - time.monotonic())):
                raise not_ready(pool, timeout, stats, last[0] if last else None)
            changed.clear()
    finally:
        pool._engine.remove_listener(listen)


class PoolkitConnectionPool(PoolBase["Pool[Session[CT]]"], psycopg_pool.ConnectionPool[CT]):
    """Replaces ``psycopg_pool.ConnectionPool``. Thread-safe, and safe after ``fork()``.

    The arguments are psycopg_pool's, with its meaning and defaults (times in seconds). Two names mean something else
    in poolkit's settings: ``max_idle`` is a time here, and ``max_waiting=0`` means no limit. Any other setting of
    :class:`~poolkit.PoolConfig` may be a keyword. ``config=`` replaces psycopg_pool's defaults. ``num_workers``, if
    given, limits the connects at the same time (``max_connecting``).

    Raises :class:`~poolkit.ConfigError` (a ValueError) for a wrong argument or setting.
    """

    connection_class: type[CT]

    # a null pool has others
    _acquire = _lease
    _become_ready = _until_filled

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        connection_class: type[CT] = _CONNECTION,
        kwargs: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        min_size: int = defaults.MIN_SIZE,
        max_size: int | None = None,
        open: bool | None = None,  # noqa: A002 - psycopg_pool's name
        configure: Callable[[CT], None] | None = None,
        check: Callable[[CT], None] | None = None,
        reset: Callable[[CT], None] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = defaults.TIMEOUT,
        max_waiting: int = defaults.MAX_WAITING,
        max_lifetime: float = defaults.MAX_LIFETIME,
        max_idle: float = defaults.MAX_IDLE,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Callable[[psycopg_pool.ConnectionPool[Any]], None] | None = None,
        num_workers: int = defaults.NUM_WORKERS,
        config: PoolConfig | None = None,
        **settings: Unpack[defaults.PoolKeywords],
    ) -> None:
        defaults.check_class(
            connection_class, psycopg.Connection, psycopg.AsyncConnection,
            "PoolkitConnectionPool", "AsyncPoolkitConnectionPool",
        )  # fmt: skip
        if close_returns and PSYCOPG_VERSION < (3, 3):
            if connection_class is not _CONNECTION:
                raise ConfigError(
                    "close_returns=True with your own connection_class needs psycopg 3.3 or newer", "close_returns"
                )
            connection_class = cast("type[CT]", _ReturningConnection)
        prepared = prepare(
            self, config, {**settings}, sync=True, conninfo=conninfo, kwargs=kwargs, min_size=min_size,
            max_size=max_size, configure=configure, check=check, reset=reset, timeout=timeout, max_waiting=max_waiting,
            max_lifetime=max_lifetime, max_idle=max_idle, reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed, num_workers=num_workers,
        )  # fmt: skip
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.connection_class = connection_class
        self.close_returns = close_returns
        self._configure, self._check_callback, self._reset = configure, check, reset
        self._reconnect_failed = reconnect_failed
        # psycopg_pool's own check does the same as the default one, but without a time limit
        self._default_check = check in (self.check_connection, psycopg_pool.ConnectionPool.check_connection)
        self._connector = PsycopgConnector(self)
        self._connector.connect_in_caller = self._null
        self._engine: Pool[Session[CT]] = Pool(cast("Any", self._connector), prepared, name=name or None)
        self.name = self._engine.name
        if open is None:
            open = self._open_implicit = True  # noqa: A001
        if open:
            PoolkitConnectionPool.open(self)

    # -- opening and closing --------------------------------------------------------------------------------------

    def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Admit callers and start to connect. With ``wait=True``, call :meth:`wait` with ``timeout`` in seconds.

        Raises PoolClosed for a closed pool, which cannot be opened again.
        """
        if self._engine.closed:
            raise PoolClosed(f"the pool {self.name!r} has been closed and cannot be reused; create a new pool")
        if not self._opened:
            self._opened = True
            if self._eager:
                _fill(self._engine)
        if wait:
            self.wait(timeout)

    def close(self, timeout: float = 5.0) -> None:
        """Close the pool. Waiting callers get PoolClosed at once; connections in use are closed on their return.

        Waits at most ``timeout`` seconds, in total, until the idle ones are closed. To let leases end first, use
        ``pool.poolkit.drain(timeout)``.
        """
        self._connector.outage.end()
        if self._opened:
            self._engine.close(max(0.0, timeout))

    def wait(self, timeout: float = 30.0) -> None:
        """Wait until ``min_size`` connections are open. A null pool opens and closes one, to test that the server
        accepts it.

        Raises AcquireTimeout after ``timeout`` seconds. The pool keeps trying.
        """
        _check_admitted(self)
        self._become_ready(timeout)

    def __enter__(self: S) -> S:
        self._open_implicit = False
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # -- connections ----------------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> _Block[CT]:  # type: ignore[override]
        """``with pool.connection() as conn``: a connection, committed (or rolled back) and returned at the end.

        Arguments and errors as :meth:`getconn`.
        """
        return _Block(self, timeout)

    def getconn(self, timeout: float | None = None) -> CT:
        """Lease a connection. Give it back with :meth:`putconn`.

        ``timeout``, in seconds, replaces the pool's; 0 does not wait. Raises AcquireTimeout, ServerUnavailable,
        PoolBusy and PoolClosed, and ConnectFailed at once if waiting cannot help.
        """
        if not self._opened or self._open_implicit:
            _check_admitted(self)
        begun = time.monotonic()
        try:
            session = self._acquire(timeout)
            connection: Any = session.connection
            session.connection = None  # at once: from here on only the caller refers to the connection, see Session
        except PoolError as error:
            raise failed(self, error) from error.__cause__
        except BaseException as error:  # noqa: BLE001  re-raised as a mapped error
            raise not_opened(self, error)  # noqa: B904  its cause is set already
        finally:
            spent = time.monotonic() - begun
            if spent > 1e-4:  # a shorter time is no wait
                self._counters.add("requests_wait_ms", spent * 1000)
        connection._pool = self
        connection._poolkit_session = session
        return cast("CT", connection)

    def putconn(self, conn: CT) -> None:
        """Give a connection back. An open transaction is rolled back, with a warning in the log.

        Raises ValueError for a connection that is not leased from this pool.
        """
        if getattr(conn, "_pool", None) is not self:
            raise foreign(self, conn)
        session: Session[CT] = conn._poolkit_session  # type: ignore[attr-defined]
        mine: Any = session.ref()  # conn itself, or the connection that a subclass wrapped
        if self._reset is None and not session.wrong_server and not is_inside(mine) and is_clean(session.pgconn):
            mine._pool = mine._poolkit_session = mine._poolkit_block = None
            session.connection = mine  # last: until here a caller that is interrupted drops the connection
            self._engine.release(session)
        else:
            mine._pool = mine._poolkit_session = mine._poolkit_block = None
            _reset_and_release(self, session, mine)

    # -- maintenance ----------------------------------------------------------------------------------------------

    def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes at once. Surplus connections in use are closed when they are returned."""
        self._engine.reconfigure(**new_sizes(self, min_size, max_size))

    def drain(self) -> None:
        """Replace all connections: idle ones now, those in use when they are returned."""
        self._engine.clear()

    def check(self) -> None:
        """Check the idle connections, one at a time, and replace those that are dead or expired."""
        _check_admitted(self)
        _test_idle(self)

    @staticmethod
    def check_connection(conn: CT) -> None:
        """Make one round trip on ``conn``. Raises psycopg.OperationalError if it is dead. May be given as ``check``."""
        ping(conn, None)

    def reconnect_failed(self) -> None:
        """Call the callback. Runs each time no connection could be opened for ``reconnect_timeout`` seconds."""
        if self._reconnect_failed is not None:
            self._reconnect_failed(self)


def _test_idle(pool: PoolkitConnectionPool[Any]) -> None:
    held: list[tuple[Session[Any], float]] = []
    try:
        for _ in range(pool._engine.stats().idle):
            try:
                session = pool._engine.acquire(0)
            except PoolError:
                break
            # with "lifo", the connection returned last would be the next one taken
            keep = held if pool._engine.config.order == "lifo" else None
            _test(pool, session, keep)
    finally:
        for session, begun in held:
            pool._engine.release(session)
            pool._counters.leave_out(begun)


def _test(pool: PoolkitConnectionPool[Any], session: Session[Any], held: list[Any] | None) -> None:
    """Check a connection for ``check()``. Release it, or add it to ``held``, with the time, if it is alive."""
    begun = time.monotonic()
    connection: Any = session.connection
    error: Exception | None = ConnectionAbortedError()
    try:
        ping(connection, pool._engine.config.check_timeout)
        error = None
    except Exception:  # noqa: BLE001 - after any error the connection is closed
        pool._counters.add("connections_lost")
        logger.warning("discarding broken connection: %s", shown(connection))
    finally:
        if error is None and held is not None:
            held.append((session, begun))
        else:
            pool._engine.release(session, error=error)
            pool._counters.leave_out(begun)


def _fill(engine: Pool[Any]) -> None:
    try:
        engine.warm_up(timeout=0)  # in the background
    except EngineConnectFailed:
        pass


def _check_admitted(pool: PoolkitConnectionPool[Any]) -> None:
    """Raise PoolClosed unless the pool is open. Warn once if its constructor has opened it unasked."""
    if pool.closed:
        raise refused(pool)
    if pool._open_implicit:
        pool._open_implicit = False
        warnings.warn(
            f"{type(pool).__name__} was opened by its constructor because open= was not given; psycopg_pool will "
            "change that default: give open=True or open=False, or use the pool in a with block",
            DeprecationWarning,
            stacklevel=3,
        )


def _reset_and_release(pool: PoolkitConnectionPool[Any], session: Session[Any], connection: Any) -> None:
    """Check, reset or close a returned connection, in the returning thread. It keeps its slot meanwhile."""
    how: dict[str, Any] = {"discard": True}
    try:
        session.connection = connection
        if (verdict := verdict_on(pool, session)) is not None:
            how = verdict
        elif pool._connector.clean(session):
            how = {}
    finally:
        pool._engine.release(session, **how)
