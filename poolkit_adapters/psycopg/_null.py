"""The synchronous pool that keeps no idle connections."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import psycopg_pool
from psycopg_pool.abc import CT

from poolkit import PoolConfig
from poolkit.errors import ConnectFailed as EngineConnectFailed

from . import _config as defaults
from ._errors import AcquireTimeout, CheckFailed
from ._failures import not_connectable
from ._leased import unwanted
from ._session import Session
from ._shared import RETRY_PAUSE
from ._sync import _CONNECTION, PoolkitConnectionPool, _check_admitted

if TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ("PoolkitNullConnectionPool",)


class PoolkitNullConnectionPool(PoolkitConnectionPool[CT], psycopg_pool.NullConnectionPool[CT]):
    """Replaces ``psycopg_pool.NullConnectionPool``. Thread-safe.

    Opens at most ``max_size`` connections at the same time (0: no limit), and keeps none. A returned connection goes to
    the next waiting caller, or is closed if none waits. Connects in the calling thread and raises psycopg's own errors
    there. Takes the arguments of :class:`PoolkitConnectionPool`; ``min_size`` must be 0.
    """

    _null = True

    def __init__(
        self,
        conninfo: str | Callable[[], str] = "",
        *,
        connection_class: type[CT] = _CONNECTION,
        kwargs: dict[str, Any] | Callable[[], dict[str, Any]] | None = None,
        min_size: int = defaults.NULL_MIN_SIZE,
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
        super().__init__(
            conninfo, connection_class=connection_class, kwargs=kwargs, min_size=min_size, max_size=max_size,
            open=open, configure=configure, check=check, reset=reset, name=name,
            close_returns=False,  # as in psycopg_pool: close() closes, and the pool would do the same
            timeout=timeout, max_waiting=max_waiting, max_lifetime=max_lifetime, max_idle=max_idle,
            reconnect_timeout=reconnect_timeout, reconnect_failed=reconnect_failed, num_workers=num_workers,
            config=config, **settings,
        )  # fmt: skip

    def wait(self, timeout: float = 30.0) -> None:
        """Open and close one connection, to test that the server accepts it.

        Raises AcquireTimeout after ``timeout`` seconds.
        """
        _check_admitted(self)
        deadline = time.monotonic() + timeout
        while True:
            self._probes += 1
            before = self._counters.total("_opening_ms")
            try:
                self._engine.warm_up(1, timeout=max(0.0, deadline - time.monotonic()))
                self._probes_ms += self._counters.total("_opening_ms") - before
                return
            except EngineConnectFailed as error:
                if time.monotonic() + RETRY_PAUSE >= deadline:
                    raise not_connectable(self, timeout, error) from error.__cause__
            time.sleep(RETRY_PAUSE)

    def _acquire(self, timeout: float | None) -> Session[CT]:
        if timeout is None:
            timeout = self._engine.config.acquire_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                return super()._acquire(left)
            except CheckFailed as error:
                if deadline is not None and time.monotonic() + RETRY_PAUSE >= deadline:
                    raise AcquireTimeout(f"{self.name}: no connection passed the check in {timeout:g} s") from error
            time.sleep(RETRY_PAUSE)

    def putconn(self, conn: CT) -> None:
        """Give a connection to a waiting caller, or close it if none waits."""
        session = unwanted(self, conn)
        if session is not None:
            self._engine.release(session, discard=True)
        else:
            super().putconn(conn)

    def check(self) -> None:
        """Do nothing, because there are no idle connections."""
