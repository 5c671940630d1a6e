"""The asynchronous pool. It needs asyncio, as psycopg does."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
import warnings
import weakref
from asyncio import get_running_loop
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncContextDecorator
from os import getpid
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import psycopg
import psycopg_pool
from psycopg_pool.abc import ACT

from poolkit import AsyncPool, ConfigError, PoolConfig, PoolError, Verdict
from poolkit.errors import ConnectFailed as EngineConnectFailed
from poolkit.errors import LeaseOverdue as EngineLeaseOverdue
from poolkit.errors import PoolClosed as EnginePoolClosed
from poolkit.errors import shown
from poolkit.events import Event, EventKind

from . import _config as defaults
from ._async_connector import AsyncPsycopgConnector
from ._errors import LeaseOverdue, PoolClosed, UsageError, classify
from ._failures import failed, foreign, is_ready, not_opened, not_ready, refused, stats_of
from ._io import is_clean, is_inside, limited_rollback, ping_async
from ._leased import verdict_on
from ._session import Session, no_loop, note_wrong_server, was_cut
from ._shared import PSYCOPG_VERSION, PoolBase, cut_block_error, entered_twice, logger, new_sizes, prepare

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncPoolkitConnectionPool",)

T = TypeVar("T")
S = TypeVar("S", bound="AsyncPoolkitConnectionPool[Any]")

_CONNECTION: Any = psycopg.AsyncConnection


class _ReturningConnection(psycopg.AsyncConnection[Any]):
    """Adds ``close_returns`` to psycopg before 3.3."""

    async def close(self) -> None:
        pool: Any = getattr(self, "_pool", None)
        if pool is not None:
            await pool.putconn(self)
        else:
            await super().close()


class _Block(Generic[ACT], AsyncContextDecorator):
    """The block of ``pool.connection()``. At its end it commits or rolls back, and returns the connection.

    One object serves one block at a time. As a decorator of a function, each call of the function has its own block.
    """

    __slots__ = ("_connection", "_entered", "_pool", "_timeout")

    def __init__(self, pool: AsyncPoolkitConnectionPool[ACT], timeout: float | None) -> None:
        self._pool = pool
        self._timeout = timeout
        self._entered = threading.Lock()  # the tasks may belong to loops in several threads

    def _recreate_cm(self) -> _Block[ACT]:
        return _Block(self._pool, self._timeout)

    async def __aenter__(self) -> ACT:
        if not self._entered.acquire(False):
            raise entered_twice(self._pool)
        try:
            connection: Any = await self._pool.getconn(timeout=self._timeout)
        except BaseException:
            self._entered.release()
            raise
        self._connection = connection
        connection._poolkit_block = id(self)  # not the block itself, which refers to the connection
        try:
            await connection.__aenter__()
        except BaseException:
            self._entered.release()
            await self._pool.putconn(connection)
            raise
        return cast("ACT", connection)

    async def __aexit__(
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
                    swallowed = await connection.__aexit__(kind, error, traceback)
        except BaseException as late:
            error = late
            raise
        finally:
            if error is not None:
                note_wrong_server(connection, error)
            cut = was_cut(connection)
            try:
                await self._pool.putconn(connection)
            except LeaseOverdue:
                if error is None:  # otherwise do not replace the block's own error
                    raise
            if cut and (error is None or isinstance(error, psycopg.Error)):
                # on a closed connection psycopg commits nothing and raises no error
                raise cut_block_error(self._pool.name, connection, error)
        return swallowed


class _Background:
    """The tasks of a pool. Each goes on if the caller that started it is cancelled."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task in the running event loop."""
        for task in tuple(self.tasks):
            if task.get_loop().is_closed():  # the task cannot continue, so leave it to the garbage collector
                self.tasks.discard(task)
        task = get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


def _lease(pool: AsyncPoolkitConnectionPool[ACT], timeout: float | None) -> Coroutine[Any, Any, Session[ACT]]:
    return pool._engine.acquire() if timeout is None else pool._engine.acquire(max(0.0, timeout))


async def _until_filled(pool: AsyncPoolkitConnectionPool[Any], timeout: float) -> None:
    """Wait until ``min_size`` connections are open."""
    loop = get_running_loop()
    deadline = time.monotonic() + timeout
    changed = asyncio.Event()
    last: list[BaseException] = []

    def listen(event: Event) -> None:
        if event.kind is EventKind.CONNECT_FAILED and event.error is not None:
            last[:] = [event.error]
        loop.call_soon_threadsafe(changed.set)

    pool._engine.add_listener(listen)
    try:
        if not pool._eager:
            await _fill(pool)
        while True:
            if is_ready(stats := stats_of(pool)):
                break
            if last and not stats.idle and not stats.in_use and classify(last[0]) is Verdict.FATAL:
                raise not_ready(pool, 0.0, stats, last[0])
            if deadline <= time.monotonic():
                raise not_ready(pool, timeout, stats, last[0] if last else None)
            timer = loop.call_later(deadline - time.monotonic(), changed.set)
            try:
                await changed.wait()
            finally:
                timer.cancel()
            changed.clear()
    finally:
        pool._engine.remove_listener(listen)


class AsyncPoolkitConnectionPool(PoolBase["AsyncPool[Session[ACT]]"], psycopg_pool.AsyncConnectionPool[ACT]):
    """Replaces ``psycopg_pool.AsyncConnectionPool``.

    Works as :class:`~poolkit_adapters.psycopg.PoolkitConnectionPool`, with ``async`` and ``await``. ``conninfo`` and
    ``kwargs`` may be coroutine functions; the callbacks must be. Tasks of any asyncio event loop may use it, also of
    several loops in different threads at the same time. A pending rollback, reset or check runs in a task of the pool,
    so the cancellation of a caller does not interrupt it.
    """

    connection_class: type[ACT]

    # a null pool has others
    _acquire = _lease
    _become_ready = _until_filled

    def __init__(
        self,
        conninfo: str | Callable[[], str] | Callable[[], Awaitable[str]] = "",
        *,
        connection_class: type[ACT] = _CONNECTION,
        kwargs: dict[str, Any] | Callable[[], dict[str, Any]] | Callable[[], Awaitable[dict[str, Any]]] | None = None,
        min_size: int = defaults.MIN_SIZE,
        max_size: int | None = None,
        open: bool | None = None,  # noqa: A002 - psycopg_pool's name
        configure: Callable[[ACT], Awaitable[None]] | None = None,
        check: Callable[[ACT], Awaitable[None]] | None = None,
        reset: Callable[[ACT], Awaitable[None]] | None = None,
        name: str | None = None,
        close_returns: bool = False,
        timeout: float = defaults.TIMEOUT,
        max_waiting: int = defaults.MAX_WAITING,
        max_lifetime: float = defaults.MAX_LIFETIME,
        max_idle: float = defaults.MAX_IDLE,
        reconnect_timeout: float = 300.0,
        reconnect_failed: Callable[[psycopg_pool.AsyncConnectionPool[Any]], Awaitable[None] | None] | None = None,
        num_workers: int = defaults.NUM_WORKERS,
        config: PoolConfig | None = None,
        **settings: Unpack[defaults.PoolKeywords],
    ) -> None:
        defaults.check_class(
            connection_class, psycopg.AsyncConnection, psycopg.Connection,
            "AsyncPoolkitConnectionPool", "PoolkitConnectionPool",
        )  # fmt: skip
        if close_returns and PSYCOPG_VERSION < (3, 3):
            if connection_class is not _CONNECTION:
                raise ConfigError(
                    "close_returns=True with your own connection_class needs psycopg 3.3 or newer", "close_returns"
                )
            connection_class = cast("type[ACT]", _ReturningConnection)
        prepared = prepare(
            self, config, {**settings}, sync=False, conninfo=conninfo, kwargs=kwargs, min_size=min_size,
            max_size=max_size, configure=configure, check=check, reset=reset, timeout=timeout, max_waiting=max_waiting,
            max_lifetime=max_lifetime, max_idle=max_idle, reconnect_timeout=reconnect_timeout,
            reconnect_failed=reconnect_failed, num_workers=num_workers,
        )  # fmt: skip
        self.conninfo = conninfo
        self.kwargs = kwargs
        self.connection_class = connection_class
        self.close_returns = close_returns
        self._configure, self._check_callback, self._reset = configure, check, reset
        self._reconnect_failed = cast("Any", reconnect_failed)
        # psycopg_pool's own check does the same as the default one
        self._default_check = check in (self.check_connection, psycopg_pool.AsyncConnectionPool.check_connection)
        self._connector = AsyncPsycopgConnector(self)
        self._connector.connect_in_caller = self._null
        self._engine: AsyncPool[Session[ACT]] = AsyncPool(cast("Any", self._connector), prepared, name=name or None)
        self.name = self._engine.name
        self._background = _Background()
        self._open_implicit = open is None
        if open is None or open:
            _open_here(self, warn=open is not None)

    # -- opening and closing --------------------------------------------------------------------------------------

    async def open(self, wait: bool = False, timeout: float = 30.0) -> None:
        """Admit callers and start to connect. With ``wait=True``, call :meth:`wait` with ``timeout`` in seconds.

        Raises PoolClosed for a closed pool, which cannot be opened again.
        """
        if self._engine.closed:
            raise PoolClosed(f"the pool {self.name!r} has been closed and cannot be reused; create a new pool")
        try:
            get_running_loop()
        except RuntimeError:
            raise UsageError(
                f"pool {self.name!r} cannot be opened: psycopg needs asyncio, and no asyncio event loop is running"
            ) from None
        if not self._opened:
            self._opened = True
            if self._eager:
                await _fill(self)
        if wait:
            await self.wait(timeout)

    async def close(self, timeout: float = 5.0) -> None:
        """Close the pool. Waiting callers get PoolClosed at once; connections in use are closed on their return.

        Waits ``timeout`` seconds for idle ones to close. To let leases end first, use ``pool.poolkit.drain(timeout)``.
        """
        self._connector.outage.end()
        if self._opened:
            await self._engine.close(max(0.0, timeout))

    async def wait(self, timeout: float = 30.0) -> None:
        """Wait until ``min_size`` connections are open. A null pool opens and closes one, to test that the server
        accepts it.

        Raises AcquireTimeout after ``timeout`` seconds. The pool keeps trying.
        """
        _check_admitted(self)
        await self._become_ready(timeout)

    async def __aenter__(self: S) -> S:
        self._open_implicit = False
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # -- connections ----------------------------------------------------------------------------------------------

    def connection(self, timeout: float | None = None) -> _Block[ACT]:  # type: ignore[override]
        """``async with pool.connection() as conn``: committed (or rolled back) and returned at the end.

        Arguments and errors as :meth:`getconn`.
        """
        return _Block(self, timeout)

    async def getconn(self, timeout: float | None = None) -> ACT:
        """Lease a connection. Give it back with :meth:`putconn`.

        ``timeout``, in seconds, replaces the pool's; 0 does not wait. Raises AcquireTimeout, ServerUnavailable,
        PoolBusy and PoolClosed, and ConnectFailed at once if waiting cannot help.
        """
        if not self._opened or self._open_implicit:
            _check_admitted(self)
        begun = time.monotonic()
        try:
            session = await self._acquire(timeout)
            connection: ACT = session.connection  # type: ignore[assignment]  # the pool has it
            session.connection = None  # at once: from here on only the caller refers to the connection, see Session
        except PoolError as error:
            raise failed(self, error) from error.__cause__
        except BaseException as error:  # noqa: BLE001  re-raised as a mapped error
            raise not_opened(self, error)  # noqa: B904  its cause is set already
        finally:
            spent = time.monotonic() - begun
            if spent > 1e-4:  # a shorter time is no wait
                self._counters.add("requests_wait_ms", spent * 1000)
        if session.loop() is not get_running_loop():
            _move(session, connection)
        connection._pool = self
        connection._poolkit_session = session  # type: ignore[attr-defined]
        return connection

    async def putconn(self, conn: ACT) -> None:
        """Give a connection back. An open transaction is rolled back, with a warning in the log.

        The pool owns the connection from this call on, even if the call is cancelled. Raises ValueError for a
        connection that is not leased from this pool.
        """
        if getattr(conn, "_pool", None) is not self:
            raise foreign(self, conn)
        session: Session[ACT] = conn._poolkit_session  # type: ignore[attr-defined]
        mine: Any = session.ref()  # conn itself, or the connection that a subclass wrapped
        session.connection = mine
        mine._pool = mine._poolkit_session = mine._poolkit_block = None
        if self._reset is None and not session.wrong_server and not is_inside(mine) and is_clean(session.pgconn):
            overdue = self._engine.release_nowait(session)
        elif (how := verdict_on(self, session)) is not None:
            overdue = self._engine.release_nowait(session, **how)
        else:
            overdue = await asyncio.shield(self._background.run(_clean(self, session)))
        if overdue is not None:
            raise overdue

    # -- maintenance ----------------------------------------------------------------------------------------------

    async def resize(self, min_size: int, max_size: int | None = None) -> None:
        """Change the sizes at once. Surplus connections in use are closed when they are returned."""
        self._engine.reconfigure(**new_sizes(self, min_size, max_size))

    async def drain(self) -> None:
        """Replace all connections: idle ones now, those in use when they are returned."""
        self._engine.clear()

    async def check(self) -> None:
        """Check the idle connections, one at a time, and replace those that are dead or expired.

        If this is cancelled, the current check goes on in a task of the pool.
        """
        _check_admitted(self)
        await _test_idle(self)

    @staticmethod
    async def check_connection(conn: ACT) -> None:
        """Make one round trip on ``conn``. Raises psycopg.OperationalError if it is dead. May be given as ``check``."""
        try:
            await ping_async(conn)
        except asyncio.CancelledError:
            conn.pgconn.finish()  # its state is unknown
            raise

    async def reconnect_failed(self) -> None:
        """Call the callback. Runs each time no connection could be opened for ``reconnect_timeout`` seconds."""
        if self._reconnect_failed is not None:
            result = self._reconnect_failed(self)
            if inspect.isawaitable(result):
                await result


def _open_here(pool: AsyncPoolkitConnectionPool[Any], *, warn: bool) -> None:
    if warn:
        _warn_open(pool)
    try:
        get_running_loop()
    except RuntimeError:
        raise UsageError(
            f"the constructor of {type(pool).__name__} cannot open the pool outside an event loop; use open=False "
            "and await pool.open()"
        ) from None
    pool._opened = True
    if pool._eager:
        pool._background.run(_fill(pool))


async def _fill(pool: AsyncPoolkitConnectionPool[Any]) -> None:
    try:
        await pool._engine.warm_up(timeout=0)  # in the background
    except (EngineConnectFailed, EnginePoolClosed):
        pass


def _warn_open(pool: AsyncPoolkitConnectionPool[Any]) -> None:
    warnings.warn(
        f"{type(pool).__name__} was opened by its constructor, which psycopg_pool will no longer support: use "
        "open=False and await pool.open(), or use the pool in an async with block",
        RuntimeWarning,
        stacklevel=4,
    )


def _check_admitted(pool: AsyncPoolkitConnectionPool[Any]) -> None:
    if pool.closed:
        raise refused(pool)
    if pool._open_implicit:
        pool._open_implicit = False
        _warn_open(pool)


async def _clean(pool: AsyncPoolkitConnectionPool[Any], session: Session[Any]) -> EngineLeaseOverdue | None:
    """Reset a returned connection. Runs in a task of the pool, because the caller may be cancelled."""
    how: dict[str, Any] = {"discard": True}
    try:
        if await asyncio.wait_for(pool._connector.clean(session), pool._engine.config.check_timeout):
            how = {}
    except asyncio.TimeoutError:
        logger.warning("reset did not end in time, closing the connection: %s", shown(session.connection))
    finally:
        overdue = pool._engine.release_nowait(session, **how)
    return overdue


async def _test_idle(pool: AsyncPoolkitConnectionPool[Any]) -> None:
    held: list[tuple[Session[Any], float]] = []
    try:
        for _ in range(pool._engine.stats().idle):
            try:
                session = await pool._engine.acquire(0)
            except PoolError:
                break
            # with "lifo", the connection returned last would be the next one taken
            keep = held if pool._engine.config.order == "lifo" else None
            await asyncio.shield(pool._background.run(_test(pool, session, keep)))
    finally:
        for session, begun in held:
            pool._engine.release_nowait(session)
            pool._counters.leave_out(begun)


async def _test(pool: AsyncPoolkitConnectionPool[Any], session: Session[Any], held: list[Any] | None) -> None:
    begun = time.monotonic()
    error: Exception | None = ConnectionAbortedError()
    try:
        await asyncio.wait_for(ping_async(cast("Any", session.connection)), pool._engine.config.check_timeout)
        error = None
    except Exception:  # noqa: BLE001 - after any error the connection is closed
        pool._counters.add("connections_lost")
        logger.warning("discarding broken connection: %s", shown(session.connection))
    finally:
        if error is None and held is not None:
            held.append((session, begun))
        else:
            pool._engine.release_nowait(session, error=error)
            pool._counters.leave_out(begun)


def _move(session: Session[Any], connection: Any) -> None:
    """Prepare a connection for another event loop: asyncio binds the connection's lock to a loop at its first wait."""
    if session.loop is not no_loop:
        connection.lock = asyncio.Lock()
    session.loop = weakref.ref(get_running_loop())
