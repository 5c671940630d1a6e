"""The synchronous pool that keeps no idle connections."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg_pool
from psycopg_pool.abc import CT

from poolkit.errors import ConnectFailed as EngineConnectFailed

from ._errors import AcquireTimeout, CheckFailed
from ._failures import not_connectable
from ._leased import unwanted
from ._session import Session
from ._shared import RETRY_PAUSE, null_arguments
from ._sync import PoolkitConnectionPool, _lease

__all__ = ("PoolkitNullConnectionPool",)


def _lease_checked(pool: PoolkitConnectionPool[CT], timeout: float | None) -> Session[CT]:
    """Lease a connection. Replace one that did not pass the check, within the time of the caller."""
    if timeout is None:
        timeout = pool._engine.config.acquire_timeout
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return _lease(pool, left)
        except CheckFailed as error:
            if deadline is not None and time.monotonic() + RETRY_PAUSE >= deadline:
                raise AcquireTimeout(f"{pool.name}: no connection passed the check in {timeout:g} s") from error
        time.sleep(RETRY_PAUSE)


def _until_accepted(pool: PoolkitConnectionPool[Any], timeout: float) -> None:
    """Open and close one connection, to test that the server accepts it."""
    deadline = time.monotonic() + timeout
    while True:
        pool._probes += 1
        before = pool._counters.total("_opening_ms")
        try:
            pool._engine.warm_up(1, timeout=max(0.0, deadline - time.monotonic()))
            pool._probes_ms += pool._counters.total("_opening_ms") - before
            return
        except EngineConnectFailed as error:
            if time.monotonic() + RETRY_PAUSE >= deadline:
                raise not_connectable(pool, timeout, error) from error.__cause__
        time.sleep(RETRY_PAUSE)


class PoolkitNullConnectionPool(PoolkitConnectionPool[CT], psycopg_pool.NullConnectionPool[CT]):
    """Replaces ``psycopg_pool.NullConnectionPool``. Thread-safe.

    Opens at most ``max_size`` connections at the same time (0: no limit), and keeps none. A returned connection goes to
    the next waiting caller, or is closed if none waits. Connects in the calling thread and raises psycopg's own errors
    there. Takes the arguments of :class:`PoolkitConnectionPool`; ``min_size`` must be 0.
    """

    _null = True
    _acquire = _lease_checked
    _become_ready = _until_accepted
    if not TYPE_CHECKING:  # a type checker finds the same arguments in the base

        @null_arguments(PoolkitConnectionPool.__init__)
        def __init__(self, *conninfo: Any, **arguments: Any) -> None:
            super().__init__(*conninfo, **arguments)

    def putconn(self, conn: CT) -> None:
        """Give a connection to a waiting caller, or close it if none waits."""
        session = unwanted(self, conn)
        if session is not None:
            self._engine.release(session, discard=True)
        else:
            super().putconn(conn)

    def check(self) -> None:
        """Do nothing, because there are no idle connections."""
