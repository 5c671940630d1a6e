"""The asynchronous pool that keeps no idle connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import psycopg_pool
from psycopg_pool.abc import ACT

from poolkit import PoolConfig
from poolkit.errors import ConnectFailed as EngineConnectFailed

from . import _config as defaults
from ._async import _CONNECTION, AsyncPoolkitConnectionPool, _check_admitted
from ._errors import AcquireTimeout, CheckFailed
from ._failures import not_connectable
from ._leased import unwanted
from ._session import Session
from ._shared import RETRY_PAUSE

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("AsyncPoolkitNullConnectionPool",)


class AsyncPoolkitNullConnectionPool(AsyncPoolkitConnectionPool[ACT], psycopg_pool.AsyncNullConnectionPool[ACT]):
    """Replaces ``psycopg_pool.AsyncNullConnectionPool``.

    Works as :class:`~poolkit_adapters.psycopg.PoolkitNullConnectionPool`, with ``async`` and ``await``.
    """

    _null = True

    def __init__(
        self,
        conninfo: str | Callable[[], str] | Callable[[], Awaitable[str]] = "",
        *,
        connection_class: type[ACT] = _CONNECTION,
        kwargs: dict[str, Any] | Callable[[], dict[str, Any]] | Callable[[], Awaitable[dict[str, Any]]] | None = None,
        min_size: int = defaults.NULL_MIN_SIZE,
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
        super().__init__(
            conninfo, connection_class=connection_class, kwargs=kwargs, min_size=min_size, max_size=max_size,
            open=open, configure=configure, check=check, reset=reset, name=name,
            close_returns=False,  # as in psycopg_pool: close() closes, and the pool would do the same
            timeout=timeout, max_waiting=max_waiting, max_lifetime=max_lifetime, max_idle=max_idle,
            reconnect_timeout=reconnect_timeout, reconnect_failed=reconnect_failed, num_workers=num_workers,
            config=config, **settings,
        )  # fmt: skip

    async def wait(self, timeout: float = 30.0) -> None:
        """Open and close one connection, to test that the server accepts it.

        Raises AcquireTimeout after ``timeout`` seconds.
        """
        _check_admitted(self)
        deadline = time.monotonic() + timeout
        while True:
            self._probes += 1
            before = self._counters.total("_opening_ms")
            try:
                await self._engine.warm_up(1, timeout=max(0.0, deadline - time.monotonic()))
                self._probes_ms += self._counters.total("_opening_ms") - before
                return
            except EngineConnectFailed as error:
                if time.monotonic() + RETRY_PAUSE >= deadline:
                    raise not_connectable(self, timeout, error) from error.__cause__
            await asyncio.sleep(RETRY_PAUSE)

    async def _acquire(self, timeout: float | None) -> Session[ACT]:
        if timeout is None:
            timeout = self._engine.config.acquire_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return await super()._acquire(left)
            except CheckFailed as error:
                if deadline is not None and time.monotonic() + RETRY_PAUSE >= deadline:
                    raise AcquireTimeout(f"{self.name}: no connection passed the check in {timeout:g} s") from error
            await asyncio.sleep(RETRY_PAUSE)

    async def putconn(self, conn: ACT) -> None:
        """Give a connection to a waiting caller, or close it if none waits."""
        session = unwanted(self, conn)
        if session is not None:
            self._engine.release_nowait(session, discard=True)
        else:
            await super().putconn(conn)

    async def check(self) -> None:
        """Do nothing, because there are no idle connections."""
