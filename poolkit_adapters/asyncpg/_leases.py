"""The leases of a pool: acquire, release, and the end of a lease whose connection was closed or lost."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Awaitable, Callable
from os import getpid
from typing import TYPE_CHECKING, Any

import poolkit
from poolkit import AsyncPool, PoolError, deadline
from poolkit.errors import shown

from .._time_limits import shortest
from ._errors import AcquireTimeout, NotLeased, PoolClosed, ReadOnlyServer, told
from ._proxy import PoolConnectionProxy
from ._session import Session

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("Leases", "note_wrong_server")


class Leases:
    """Takes sessions from the engine for callers, and gives them back."""

    def __init__(self, pool: PoolkitPool, engine: AsyncPool[Session]) -> None:
        self._pool = weakref.ref(pool)
        self._engine = engine
        self._setup: Callable[[Any], Awaitable[Any]] | None = pool._setup
        self._max_queries: int = pool._max_queries

    async def take(self, timeout: float | None) -> PoolConnectionProxy:
        """Lease a connection. Raises the adapter's errors, and those of a connect and of ``setup``."""
        pool, setup = self._pool(), self._setup
        assert pool is not None  # it calls this
        until = None if setup is None else self._until(timeout)
        try:
            session = await (self._engine.acquire() if timeout is None else self._engine.acquire(max(0.0, timeout)))
        except PoolError as error:
            raise self._told(pool, error) from error.__cause__
        if until is not None and time.monotonic() >= until:
            # a caller that is too late must not cost the pool a connection: it has not been used yet
            self._engine.release_nowait(session)
            raise AcquireTimeout(f"{self._engine.name}: no time is left for setup")
        connection = session.connection
        session.connection = None  # from here on only the caller refers to the connection: see Session
        proxy = PoolConnectionProxy(session, connection, pool)
        session.proxy = weakref.ref(proxy)
        session._timeout = timeout
        connection._proxy = proxy if connection._termination_listeners else session
        if setup is not None:
            await self._set_up(setup, proxy, session, until)
        return proxy

    def _until(self, timeout: float | None) -> float | None:
        """Return when ``setup`` must end. Without a timeout of the call, ``acquire_timeout`` limits it, too, and a
        ``poolkit.deadline`` block does in any case.

        A caller that never waits (0) gets a connection that is idle: its ``setup`` has the time of a connect.
        """
        config, seconds = self._engine.config, timeout
        if timeout is None:
            seconds = config.connect_timeout if config.acquire_timeout == 0 else config.acquire_timeout
        limit = shortest(seconds, deadline.left())
        return None if limit is None else time.monotonic() + limit

    def _told(self, pool: PoolkitPool, error: PoolError) -> BaseException:
        if isinstance(error, poolkit.PoolClosed) and (pool._closing or pool._closed):
            return PoolClosed("pool is closing" if pool._closing else "pool is closed")
        return told(error)

    async def _set_up(
        self,
        setup: Callable[[Any], Awaitable[Any]],
        proxy: PoolConnectionProxy,
        session: Session,
        until: float | None,
    ) -> None:
        """Call the application's ``setup``. If it fails, the connection is closed."""
        try:
            work = setup(proxy)
            if until is None:
                await work
            else:
                await asyncio.wait_for(work, max(0.0, until - time.monotonic()))
        except BaseException as error:
            if proxy._con is not None:
                session.connection, session.proxy = proxy._con, None
                self._engine.release_nowait(session, discard=True)
            if isinstance(error, asyncio.TimeoutError) and until is not None and time.monotonic() >= until:
                raise AcquireTimeout(f"{self._engine.name}: setup did not end within the caller's time") from error
            raise

    async def give_back(self, proxy: Any, timeout: float | None) -> None:
        """See :meth:`.PoolkitPool.release`."""
        if not isinstance(proxy, PoolConnectionProxy) or proxy._holder._pool is not self._pool():
            raise NotLeased(
                f"Pool.release() received invalid connection: {shown(repr(proxy))} is not a member of this pool"
            )
        session, connection = proxy._holder, proxy._con
        if connection is None:
            return  # released already
        if connection._listeners or connection._log_listeners:
            connection._on_release()  # warns about them
        else:
            connection._pool_release_ctr += 1  # its statements and cursors are no longer valid
        _take_back(proxy)
        session.failure = None
        if timeout is not None:
            session._timeout = timeout
        how = self._verdict_on(session, connection)
        if how is None:
            await self._engine.release(session)
        else:
            await self._engine.release(session, **how)
        failure, session.failure = session.failure, None
        if failure is not None:
            raise failure

    def _verdict_on(self, session: Session, connection: Any) -> dict[str, Any] | None:
        """Return the arguments for the engine's release of a returned connection, or None if it can be used again."""
        if session.pid != getpid():
            return {"discard": False}  # the parent process owns it: the engine handles that
        if connection.is_closed():
            return {"discard": True} if session.closing else {"error": ConnectionAbortedError()}
        if session.wrong_server:
            return {"error": ReadOnlyServer()}
        if session.prepared or session.protocol.queries_count >= self._max_queries:
            return {"discard": True}
        return None

    def ended(self, session: Session) -> None:
        """Free the slot of a connection that was closed by its user, or lost, in use or idle."""
        if session.connection is not None:
            self._engine.discard_idle(lambda one: one is session)
            return
        proxy = None if session.proxy is None else session.proxy()
        if proxy is None:
            return  # dropped: the slot is free when the connection is collected
        _take_back(proxy)
        how: dict[str, Any] = {"discard": True} if session.closing else {"error": ConnectionAbortedError()}
        self._engine.release_nowait(session, **how)


def _take_back(proxy: Any) -> None:
    """End a proxy: its connection is the session's again."""
    connection, session = proxy._con, proxy._holder
    proxy._con = connection._proxy = None
    session.connection = connection
    session.proxy = None


def note_wrong_server(proxy: Any) -> None:
    """After a failed block: the server refuses writes, and not only this transaction."""
    connection = proxy._con
    if connection is not None and not connection.is_closed():
        server = connection.get_settings()
        asked = [getattr(server, one, None) for one in ("in_hot_standby", "default_transaction_read_only")]
        proxy._holder.wrong_server = asked != ["off", "off"]
