"""Opens connections for a pool."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import pool as driver

from poolkit.errors import said

from .._errors import release_locals
from .._options import replaces_limit_of_driver
from ._errors import PoolClosed
from ._initial import initial_state
from ._session import Session

if TYPE_CHECKING:
    from ._ending import Endings
    from ._pool import PoolkitPool

__all__ = ("Connects",)


class Connects:
    """The connects of one pool that are in progress, and what failed ones have left at the server."""

    def __init__(self, pool: weakref.ref[PoolkitPool], endings: Endings) -> None:
        self._pool = pool
        self._endings = endings
        self._running: set[asyncio.Task[Any]] = set()
        self._left: dict[object, asyncio.Task[None]] = {}

    async def open(self, timeout: float | None) -> Session:
        """Open a connection and call the application's ``init``."""
        pool, task = self._pool(), asyncio.current_task()
        assert task is not None  # asyncpg needs asyncio
        if pool is None:
            raise PoolClosed("cannot open a connection: the pool no longer exists; keep a reference to the pool")
        self._running.add(task)
        try:
            return await self._prepared(pool, await self._opened(pool, timeout))
        except Exception as error:
            if pool._initialized and not pool.poolkit.stats().waiting:  # no caller hears of it
                driver.logger.warning(
                    "Failed to restore the pool connection floor of %r; retrying: %s", pool.name, said(error)
                )
            raise
        finally:
            self._running.discard(task)

    def stop(self) -> None:
        """Cancel the connects in progress. A connect in a caller continues; the closed pool then refuses the caller."""
        pool = self._pool()
        if pool is not None and not pool.poolkit.config.connect_in_caller:
            for task in tuple(self._running):
                if not task.get_loop().is_closed():
                    task.cancel()

    def leftover(self) -> Any:
        """Return the task that ends the connection of the current task, whose ``init`` failed, if any."""
        return self._left.pop(asyncio.current_task(), None)

    async def _opened(self, pool: PoolkitPool, timeout: float | None) -> Any:
        pool._loop = loop = asyncio.get_running_loop()
        keywords = dict(pool._connect_kwargs)
        replaced = "timeout" not in keywords or replaces_limit_of_driver(pool.poolkit.config)
        if replaced and pool._connect is asyncpg.connect:
            keywords["timeout"] = timeout
        good = pool._connection_class
        try:
            connection = await pool._connect(
                *pool._connect_args, loop=loop, connection_class=good, record_class=pool._record_class, **keywords
            )
        except BaseException as error:
            release_locals(error)
            raise
        if not isinstance(connection, good):
            names = [
                kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
                for kind in (good, type(connection))
            ]
            raise asyncpg.InterfaceError(
                f"expected pool connect callback to return an instance of '{names[0]}', got '{names[1]}'"
            )
        return connection

    async def _prepared(self, pool: PoolkitPool, connection: Any) -> Session:
        session = Session(connection, pool, pool.poolkit)
        pool._sessions.add(session)
        try:
            if pool._init is not None:
                await pool._init(connection)
                session.touched = True  # what it has set is reset after the first lease, as in asyncpg's pool
            used = pool._init is not None or pool._connect is not asyncpg.connect
            if used and pool._reset is None and not pool._resets_itself and not connection.is_closed():
                session.initial = await initial_state(connection)
            if connection.is_closed():
                raise asyncpg.ConnectionDoesNotExistError("connection was closed during pool initialization")
        except BaseException as error:
            ended = isinstance(error, Exception) and not isinstance(error, asyncio.TimeoutError)
            if connection.is_closed() or (ended and session.is_quiet()):
                connection.terminate()
            else:  # init may still be executing a statement
                self._left[asyncio.current_task()] = self._endings.end(connection)
            raise
        if hasattr(connection, "_pool_holder"):  # asyncpg 0.32
            connection._pool_holder = weakref.ref(session)
        return session
