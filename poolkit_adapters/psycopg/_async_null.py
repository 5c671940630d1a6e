"""The asynchronous pool that keeps no idle connections."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import psycopg_pool
from psycopg_pool.abc import ACT

from poolkit.errors import ConnectFailed as EngineConnectFailed

from ._async import AsyncPoolkitConnectionPool, _lease
from ._errors import AcquireTimeout, CheckFailed
from ._failures import not_connectable
from ._leased import unwanted
from ._session import Session
from ._shared import RETRY_PAUSE, null_arguments

__all__ = ("AsyncPoolkitNullConnectionPool",)


async def _lease_checked(pool: AsyncPoolkitConnectionPool[ACT], timeout: float | None) -> Session[ACT]:
    """Lease a connection. Replace one that did not pass the check, within the time of the caller."""
    if timeout is None:
        timeout = pool._engine.config.acquire_timeout
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return await _lease(pool, left)
        except CheckFailed as error:
            if deadline is not None and time.monotonic() + RETRY_PAUSE >= deadline:
                raise AcquireTimeout(f"{pool.name}: no connection passed the check in {timeout:g} s") from error
        await asyncio.sleep(RETRY_PAUSE)


async def _until_accepted(pool: AsyncPoolkitConnectionPool[Any], timeout: float) -> None:
    """Open and close one connection, to test that the server accepts it."""
    deadline = time.monotonic() + timeout
    while True:
        pool._probes += 1
        before = pool._counters.total("_opening_ms")
        try:
            await pool._engine.warm_up(1, timeout=max(0.0, deadline - time.monotonic()))
            pool._probes_ms += pool._counters.total("_opening_ms") - before
            return
        except EngineConnectFailed as error:
            if time.monotonic() + RETRY_PAUSE >= deadline:
                raise not_connectable(pool, timeout, error) from error.__cause__
        await asyncio.sleep(RETRY_PAUSE)


class AsyncPoolkitNullConnectionPool(AsyncPoolkitConnectionPool[ACT], psycopg_pool.AsyncNullConnectionPool[ACT]):
    """Replaces ``psycopg_pool.AsyncNullConnectionPool``.

    Works as :class:`~poolkit_adapters.psycopg.PoolkitNullConnectionPool`, with ``async`` and ``await``.
    """

    _null = True
    _acquire = _lease_checked
    _become_ready = _until_accepted
    if not TYPE_CHECKING:  # a type checker finds the same arguments in the base

        @null_arguments(AsyncPoolkitConnectionPool.__init__)
        def __init__(self, *conninfo: Any, **arguments: Any) -> None:
            super().__init__(*conninfo, **arguments)

    async def putconn(self, conn: ACT) -> None:
        """Give a connection to a waiting caller, or close it if none waits."""
        session = unwanted(self, conn)
        if session is not None:
            self._engine.release_nowait(session, discard=True)
        else:
            await super().putconn(conn)

    async def check(self) -> None:
        """Do nothing, because there are no idle connections."""
