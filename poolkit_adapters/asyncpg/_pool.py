"""The pool: asyncpg's interface on poolkit's engine."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import pool as driver

import poolkit
from poolkit import AsyncPool, ConfigError, PoolConfig, PoolError
from poolkit.events import Listener

from .._options import split_options
from . import _settings as defaults
from ._connector import AsyncpgConnector
from ._errors import PoolClosed, UsageError, WrongLoop, told
from ._leases import Leases, note_wrong_server
from ._proxy import PoolConnectionProxy
from ._session import Session

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolkitPool", "create_pool")

_CONNECTION: Any = asyncpg.Connection
_RECORD: Any = asyncpg.Record
_HAS_INIT_SIZE = hasattr(driver.Pool, "get_init_size")  # asyncpg 0.32
_OF_RESET = ("reset", "_reset", "get_reset_query")


class _Acquire(driver.PoolAcquireContext):  # type: ignore[misc]  # asyncpg has no types
    """``async with pool.acquire()``, or ``await pool.acquire()``."""

    connection: Any
    done: bool
    pool: PoolkitPool

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_val: BaseException | None = None,
        exc_tb: TracebackType | None = None,
    ) -> None:
        self.done = True
        connection, self.connection = self.connection, None
        if isinstance(exc_val, asyncpg.ReadOnlySQLTransactionError):
            note_wrong_server(connection)
        await self.pool.release(connection)


class PoolkitPool(driver.Pool):  # type: ignore[misc]  # asyncpg has no types
    """Replaces ``asyncpg.Pool``. Safe for concurrent tasks of one event loop.

    Takes every argument of ``asyncpg.create_pool()``, with the same meaning and default. Also takes every setting of
    :class:`~poolkit.PoolConfig`, as a keyword or in ``config=``, and ``name``, ``listeners`` and ``debug`` as
    :class:`~poolkit.AsyncPool` does. It must be awaited or entered before its first use, as asyncpg's pool. Raises
    ConfigError (a ValueError) for a wrong argument.
    """

    _closed: bool
    _closing: bool
    _initialized: bool

    def __init__(
        self,
        *connect_args: Any,
        init_size: int | None = None,
        min_size: int = defaults.MIN_SIZE,
        max_size: int = defaults.MAX_SIZE,
        max_queries: int = defaults.MAX_QUERIES,
        max_inactive_connection_lifetime: float = defaults.MAX_INACTIVE,
        connect: Callable[..., Awaitable[Any]] | None = None,
        setup: Callable[[Any], Awaitable[Any]] | None = None,
        init: Callable[[Any], Awaitable[Any]] | None = None,
        reset: Callable[[Any], Awaitable[Any]] | None = None,
        loop: asyncio.AbstractEventLoop | None = None,
        connection_class: Any = _CONNECTION,
        record_class: Any = _RECORD,
        config: PoolConfig | None = None,
        name: str | None = None,
        listeners: Iterable[Listener] = (),
        debug: bool = False,
        **connect_kwargs: Unpack[defaults.ConnectKeywords],
    ) -> None:
        settings, keywords = split_options(connect_kwargs)
        if max_inactive_connection_lifetime < 0:
            raise ConfigError(
                f"max_inactive_connection_lifetime={max_inactive_connection_lifetime!r}: must be 0 or more",
                "max_inactive_connection_lifetime",
            )
        own = connect is not None and connect is not asyncpg.connect
        defaults.check_sizes(config, init_size, min_size, max_size)
        prepared = defaults.pool_config(
            config, settings, min_size=min_size, max_size=max_size, max_inactive=max_inactive_connection_lifetime,
            timeout=None if own else keywords.get("timeout"),
        )  # fmt: skip
        first = defaults.check_arguments(init_size, max_queries, prepared, keywords, own_connect=own)
        for title, callback in (("connect", connect), ("setup", setup), ("init", init), ("reset", reset)):
            if callback is not None and not callable(callback):
                raise ConfigError(f"{title}={callback!r}: must be a coroutine function", title)
        sizes = {"init_size": first} if _HAS_INIT_SIZE else {}
        super().__init__(
            *connect_args, **sizes, min_size=0, max_size=max(1, first), max_queries=max_queries,
            max_inactive_connection_lifetime=max_inactive_connection_lifetime, connect=connect, setup=setup, init=init,
            reset=reset, loop=loop or _NoLoop(), connection_class=connection_class, record_class=record_class,
            **keywords,
        )  # fmt: skip
        self._initsize = first
        self._given_loop = loop
        self._loop = loop
        self._resets_itself = any(
            getattr(connection_class, one, None) is not getattr(asyncpg.Connection, one) for one in _OF_RESET
        )
        self._at_once = False  # whether connections are dropped without a word: terminate() was called
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self._connector = AsyncpgConnector(self)
        self._engine: AsyncPool[Session] = AsyncPool(
            self._connector, prepared, name=name, listeners=listeners, debug=debug
        )
        self._leases = Leases(self, self._engine)

    @property
    def poolkit(self) -> AsyncPool[Session]:
        """The underlying engine: ``stats()``, ``explain()``, ``suspend()``, ``reconfigure()``, events."""
        return self._engine

    @property
    def name(self) -> str:
        """The name of the pool in logs, errors and metrics."""
        return self._engine.name

    # -- opening and closing --------------------------------------------------------------------------------------

    async def _initialize(self) -> None:
        """Open ``init_size`` connections. Raises the error of a connect."""
        loop = asyncio.get_running_loop()
        if self._given_loop is not None and self._given_loop is not loop:
            raise WrongLoop(f"{self.name}: the pool was created with loop=..., which is not the running event loop")
        self._loop = loop
        try:
            if self._initsize:
                await self._engine.warm_up(self._initsize)
        except BaseException as error:
            self._terminate_now()
            if isinstance(error, PoolError):
                raise told(error) from error.__cause__
            raise

    def _schedule_min_size_maintenance(self) -> None:
        """Nothing to do: the engine keeps ``min_size`` connections open."""

    def _check_init(self) -> None:
        if self._initialized and not self._closed:
            return
        if self._closed:
            raise PoolClosed("pool is closed")
        if self._initializing:
            raise UsageError(
                "pool is being initialized, but not yet ready: likely there is a race between creating a pool and "
                "using it"
            )
        raise UsageError("pool is not initialized")

    async def close(self) -> None:
        """Wait until all connections have been released, then close them and the pool.

        Waits without a limit, as asyncpg's pool; for a limit use ``pool.poolkit.drain(timeout)``. If this is cancelled,
        the pool is terminated.
        """
        if self._closed:
            return
        self._check_init()
        self._closing = True
        warning = asyncio.get_running_loop().call_later(60, self._warn_on_long_close)
        try:
            ended = asyncio.ensure_future(self._engine.drain(None))
            await asyncio.sleep(0)  # from here on the engine opens no more
            self._connector.connects.stop()
            await ended
        except BaseException:
            self.terminate()
            raise
        finally:
            warning.cancel()
            self._closed = True
            self._closing = False

    def terminate(self) -> None:
        """Drop all connections at once, those in use as well, and close the pool."""
        if not self._closed:
            self._check_init()
            self._closed = True
            self._terminate_now()

    def _terminate_now(self) -> None:
        self._at_once = True
        ended = self._engine.drain(0)  # never waits
        try:
            ended.send(None)
        except StopIteration:
            pass
        except poolkit.UsageError:  # called outside of the event loop
            for session in list(self._sessions):
                self._connector.abort(session)
        finally:
            ended.close()
            self._connector.connects.stop()

    async def expire_connections(self) -> None:
        """Replace all connections: idle ones now, those in use when they are released."""
        self._engine.clear()

    def is_closing(self) -> bool:
        """Return whether the pool is closing or closed."""
        return bool(self._closed or self._closing or self._engine.closed)

    # -- sizes ----------------------------------------------------------------------------------------------------

    def get_size(self) -> int:
        """Return the number of open connections."""
        stats = self._engine.stats()
        return stats.size - stats.connecting - stats.closing

    def get_idle_size(self) -> int:
        """Return the number of connections that are not in use."""
        return self._engine.stats().idle

    def get_min_size(self) -> int:
        """Return how many connections are kept open."""
        return self._engine.config.min_size

    def get_max_size(self) -> int:
        """Return how many connections may exist at the same time. 0: no limit."""
        return self._engine.config.max_size or 0

    def get_init_size(self) -> int:
        """Return how many connections are opened when the pool is awaited."""
        return int(self._initsize)

    # -- connections ----------------------------------------------------------------------------------------------

    def acquire(self, *, timeout: float | None = None) -> _Acquire:
        """``async with pool.acquire() as connection``, or ``connection = await pool.acquire()``.

        ``timeout`` limits, in seconds, waiting, checking, connecting and ``setup`` together (None: ``acquire_timeout``,
        by default no limit); it also limits the reset at the release.
        """
        return _Acquire(self, timeout)

    async def _acquire(self, timeout: float | None) -> PoolConnectionProxy:
        if self._closing or not self._initialized or self._closed:
            if self._closing:
                raise PoolClosed("pool is closing")
            self._check_init()
        return await self._leases.take(timeout)

    async def release(self, connection: Any, *, timeout: float | None = None) -> None:
        """Give a connection back. What was changed in its session is undone first.

        ``timeout`` limits the reset, in seconds (None: that of ``acquire``; at most ``check_timeout``). The pool owns
        the connection from this call on, even if the call is cancelled. Raises NotLeased for what is not a
        connection of this pool, and the error of the reset, whose connection is closed.
        """
        await self._leases.give_back(connection, timeout)

    # -- asyncpg's caches -----------------------------------------------------------------------------------------

    def _drop_statement_cache(self) -> None:
        for session in list(self._sessions):
            if (connection := session.current()) is not None:
                connection._drop_local_statement_cache()

    def _drop_type_cache(self) -> None:
        for session in list(self._sessions):
            if (connection := session.current()) is not None and not connection.is_closed():
                connection._drop_local_type_cache()


class _NoLoop:
    """Stands for the event loop of a pool that has not been used yet. Without it asyncpg would look for a loop."""


def create_pool(
    dsn: str | None = None,
    *,
    init_size: int | None = None,
    min_size: int = defaults.MIN_SIZE,
    max_size: int = defaults.MAX_SIZE,
    max_queries: int = defaults.MAX_QUERIES,
    max_inactive_connection_lifetime: float = defaults.MAX_INACTIVE,
    connect: Callable[..., Awaitable[Any]] | None = None,
    setup: Callable[[Any], Awaitable[Any]] | None = None,
    init: Callable[[Any], Awaitable[Any]] | None = None,
    reset: Callable[[Any], Awaitable[Any]] | None = None,
    loop: asyncio.AbstractEventLoop | None = None,
    connection_class: Any = _CONNECTION,
    record_class: Any = _RECORD,
    config: PoolConfig | None = None,
    name: str | None = None,
    listeners: Iterable[Listener] = (),
    debug: bool = False,
    **connect_kwargs: Unpack[defaults.ConnectKeywords],
) -> PoolkitPool:
    """Replaces ``asyncpg.create_pool()``. Arguments and errors as :class:`PoolkitPool`."""
    return PoolkitPool(
        dsn, init_size=init_size, min_size=min_size, max_size=max_size, max_queries=max_queries,
        max_inactive_connection_lifetime=max_inactive_connection_lifetime, connect=connect, setup=setup, init=init,
        reset=reset, loop=loop, connection_class=connection_class, record_class=record_class, config=config, name=name,
        listeners=listeners, debug=debug, **connect_kwargs,
    )  # fmt: skip
