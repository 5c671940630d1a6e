"""Ends connections, of which some are in the middle of a statement."""

from __future__ import annotations

import asyncio
import weakref
from typing import TYPE_CHECKING, Any

from .._hang_up import hang_up
from ._session import Session

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("Endings",)

_LIMIT = 2.0


class Endings:
    """The ends of one pool's connections."""

    def __init__(self, pool: weakref.ref[PoolkitPool]) -> None:
        self._pool = pool
        self._tasks: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references

    def detach(self, session: Session) -> Any:
        """Detach the connection from asyncpg's callbacks, invalidate its proxy, and return the connection."""
        connection = session.current()
        proxy, session.proxy = session.proxy, None
        user = None if proxy is None else proxy()
        if user is not None:
            user._con = None
        if connection is not None:
            connection._proxy = None
            if hasattr(connection, "_pool_holder"):
                connection._pool_holder = None
            session.connection = connection
        return connection

    def abort(self, session: Session) -> Any:
        """Drop the connection. See :meth:`.AsyncpgConnector.abort`."""
        leased = session.connection is None
        connection = self.detach(session)
        if connection is None:
            if not session.protocol.is_closed():
                session.protocol.abort()
            return None
        loop = connection._loop
        if loop.is_closed():
            hang_up(connection)
            connection._aborted = True  # its finalizer would complain of a loop that is gone
            return None
        if asyncio._get_running_loop() is not loop:
            loop.call_soon_threadsafe(connection.terminate)
            return None
        pool = self._pool()
        busy = leased or session.running or session.failure is not None or not session.is_quiet()
        if connection.is_closed() or session.silent or pool is None or pool._at_once or not busy:
            connection.terminate()
            return None
        return self.end(connection)

    def end(self, connection: Any) -> asyncio.Task[None]:
        """Return a task that asks the server to stop, and is done when it has, or after ``check_timeout`` seconds."""
        task = asyncio.get_running_loop().create_task(self._close(connection))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _close(self, connection: Any) -> None:
        pool = self._pool()
        limit = _LIMIT if pool is None else pool.poolkit.config.check_timeout
        del pool
        try:
            await asyncio.wait_for(connection.close(), limit)
        except Exception:  # noqa: BLE001  whatever happened, the connection goes
            pass
        finally:
            connection.terminate()
