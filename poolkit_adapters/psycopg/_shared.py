"""What the sync and the async pool have in common: everything that never waits."""

from __future__ import annotations

import logging
import math
import os
from typing import Any, Generic, TypeVar, cast

import psycopg
from psycopg.pq import TransactionStatus

import poolkit
from poolkit import PoolConfig, PoolError, PoolStats
from poolkit.errors import said, shown

from .._errors import both
from .._psycopg_ending import is_interrupted
from ._config import check_callback, check_conninfo, numbered, pool_config, sizes
from ._counters import Counters
from ._errors import (
    ERRORS,
    AcquireTimeout,
    LeaseCut,
    NotLeased,
    PoolClosed,
    ReadOnlyServer,
    ServerUnavailable,
)
from ._session import Session

__all__ = ("Leftovers", "PoolBase", "cut_block_error", "left_in", "logger")

logger = logging.getLogger("psycopg.pool")

RETRY_PAUSE = 0.1
"""Seconds between two attempts of a null pool, which retries in its caller and not in the background."""

PSYCOPG_VERSION = tuple(int(part) for part in psycopg.__version__.split(".")[:2])


def status_name(connection: psycopg.BaseConnection[Any]) -> str:
    """Return the name of a connection's transaction status."""
    return TransactionStatus(connection.pgconn.transaction_status).name


def left_in(connection: psycopg.BaseConnection[Any], who: str, callback: object) -> psycopg.ProgrammingError:
    """Return the error for a callback that left a transaction open."""
    return psycopg.ProgrammingError(
        f"{who} {callback!r} left the connection in status {status_name(connection)}; it must end its transaction"
    )


def cut_block_error(pool: str, connection: psycopg.BaseConnection[Any], error: BaseException | None) -> BaseException:
    """Return the error for a ``connection()`` block during which the pool closed the connection.

    That is the block's own error of psycopg with poolkit's class added, or a LeaseCut if the block had no error.
    """
    text = (
        f"pool {pool!r} closed this connection while it was in use (on_leak='reclaim', a budget, or the end of the "
        f"pool); uncommitted changes are lost: {shown(repr(connection))}"
    )
    if error is None:
        return LeaseCut(text)
    told = both(LeaseCut, error)
    told.__notes__ = [*getattr(told, "__notes__", ()), text]  # type: ignore[attr-defined]
    return told


E = TypeVar("E", bound=Any)  # the engine: Pool or AsyncPool


class PoolBase(Generic[E]):
    """Settings, attributes, statistics and errors of both pools. Comes before psycopg_pool's class among the bases."""

    _null = False
    _probes = 0  # connects of wait(), and their time in ms
    _probes_ms = 0.0
    _engine: E
    name: str

    def _prepare(
        self, config: PoolConfig | None, settings: dict[str, Any], *, sync: bool, **arguments: Any
    ) -> PoolConfig:
        """Check every argument, and return the engine's settings."""
        for name in ("configure", "check", "reset", "reconnect_failed"):
            check_callback(name, arguments[name], synchronous=sync)
        del arguments["configure"], arguments["reset"], arguments["reconnect_failed"]
        self.reconnect_timeout = numbered("reconnect_timeout", arguments.pop("reconnect_timeout"))
        conninfo, kwargs = arguments.pop("conninfo"), arguments.pop("kwargs")
        self.num_workers = int(arguments["num_workers"])
        result = pool_config(config, settings, null=self._null, **arguments)
        self._eager = result.start == "eager"
        self._counters = Counters()
        self._opened = False
        self._open_implicit = False
        return check_conninfo(conninfo, kwargs, result)

    # -- attributes of psycopg_pool, taken from the settings in effect --------------------------------------------

    @property
    def poolkit(self) -> E:
        """The underlying engine: ``stats()``, ``explain()``, ``suspend()``, ``reconfigure()``, events."""
        return self._engine

    @property
    def _config(self) -> PoolConfig:
        return self._engine.config  # type: ignore[no-any-return]

    @property
    def min_size(self) -> int:
        """Connections kept open."""
        return self._config.min_size

    @property
    def max_size(self) -> int:
        """Connections that may exist at the same time. 0 in a null pool means no limit."""
        return self._config.max_size or 0

    @property
    def timeout(self) -> float:
        """Seconds that getconn waits by default (infinity: no limit)."""
        return _or_inf(self._config.acquire_timeout)

    @timeout.setter
    def timeout(self, value: float) -> None:
        self._engine.reconfigure(acquire_timeout=value)

    @property
    def max_waiting(self) -> int:
        """Callers that may wait at the same time (0: no limit)."""
        return self._config.max_waiting or 0

    @max_waiting.setter
    def max_waiting(self, value: int) -> None:
        self._engine.reconfigure(max_waiting=value or None)

    @property
    def max_lifetime(self) -> float:
        """Seconds after which a connection is replaced."""
        return _or_inf(self._config.max_lifetime)

    @max_lifetime.setter
    def max_lifetime(self, value: float) -> None:
        self._engine.reconfigure(max_lifetime=value)

    @property
    def max_idle(self) -> float:
        """Seconds after which an unused connection above ``min_size`` is closed."""
        return _or_inf(self._config.idle_timeout)

    @max_idle.setter
    def max_idle(self, value: float) -> None:
        self._engine.reconfigure(idle_timeout=value)

    @property
    def closed(self) -> bool:
        """Whether the pool is closed or not open yet."""
        return not self._opened or bool(self._engine.closed)

    def _sizes(self, min_size: int, max_size: int | None) -> dict[str, Any]:
        low, high = sizes(min_size, max_size, null=self._null)
        logger.info("resizing %r to min_size=%s max_size=%s", self.name, low, high)
        return {"min_size": low, "max_size": high}

    # -- statistics -----------------------------------------------------------------------------------------------

    def get_stats(self) -> dict[str, int]:
        """Return measures and counters under psycopg_pool's names. Thread-safe, and never waits for I/O."""
        return self._report(pop=False)

    def pop_stats(self) -> dict[str, int]:
        """Return the same as :meth:`get_stats`, and reset the counters to zero."""
        return self._report(pop=True)

    def _report(self, *, pop: bool) -> dict[str, int]:
        counters = self._counters
        if self._null:  # a caller that only had to connect was neither queued nor waiting
            own = counters.total("connections_num") - self._probes
            own_ms = counters.total("_opening_ms") - self._probes_ms
            return counters.report(self._engine.stats(), own_connects=own, own_connects_ms=own_ms, pop=pop)
        return counters.report(self._engine.stats(), pop=pop)

    # -- errors ---------------------------------------------------------------------------------------------------

    def _refuse(self) -> PoolClosed:
        state = "already closed" if self._opened else "not open yet"
        return PoolClosed(f"the pool {self.name!r} is {state}")

    def _failed(self, error: PoolError) -> PoolError:
        """Count a failed getconn, and return the error to raise."""
        if isinstance(error, poolkit.PoolClosed) and "while this caller waited" not in str(error):
            return self._refuse()
        self._counters.add("requests_errors")
        return ERRORS.adapted(error)

    def _not_opened(self, error: BaseException) -> BaseException:
        """Count a failed connect of a null pool, which connects in its caller, and return the error to raise."""
        self._counters.add("requests_errors")
        return ERRORS.joined(poolkit.ConnectFailed, error) if isinstance(error, Exception) else error

    def _foreign(self, connection: Any) -> NotLeased:
        pool = getattr(connection, "_pool", None)
        origin = f"it belongs to pool {pool.name!r}" if pool else "it is not leased from any pool"
        return NotLeased(f"cannot return connection to pool {self.name!r}, {origin}: {shown(repr(connection))}")

    def _not_ready(
        self, timeout: float, stats: PoolStats, error: BaseException | None
    ) -> AcquireTimeout | ServerUnavailable:
        have = stats.size - stats.connecting - stats.closing
        text = f"pool {self.name!r} is not ready after {timeout:g} s: {have} of {stats.min_size} connections are open"
        kind = ServerUnavailable if error is not None and not have else AcquireTimeout
        failure = kind(f"{text}; last connect error: {stats.last_connect_error or 'none'}")
        failure.__cause__ = error
        return failure

    def _not_connectable(self, timeout: float, error: BaseException) -> ServerUnavailable:
        failure = ServerUnavailable(f"pool {self.name!r} could not connect within {timeout:g} s: {said(error, 1000)}")
        failure.__cause__ = error.__cause__
        return failure

    def _is_ready(self, stats: PoolStats) -> bool:
        return stats.size - stats.connecting - stats.closing >= stats.min_size

    # -- connections ----------------------------------------------------------------------------------------------

    def _adopt(self, connection: Any) -> Session[Any]:
        """Return the session of a new connection. Its ``_pool`` attribute turns psycopg's warning about leaks off."""
        connection._pool = connection._poolkit_session = connection._poolkit_block = None
        return Session(connection, self._engine)

    def _lost(self, session: Session[Any]) -> None:
        """Count a returned connection that cannot be used again."""
        self._counters.add("returns_bad")
        logger.warning("discarding closed connection: %s", shown(session.connection))

    def _unwanted(self, connection: Any) -> Session[Any] | None:
        """In a null pool, return the session of a returned connection that no caller waits for. It will be closed."""
        session: Session[Any] | None = getattr(connection, "_poolkit_session", None)
        if session is None or connection._pool is not self or session.pid != os.getpid():
            return None
        if self._engine.stats().waiting or session.pgconn.transaction_status == TransactionStatus.ACTIVE:
            return None
        if is_interrupted(connection):
            return None
        session.connection = mine = cast("Any", session.ref())
        mine._pool = mine._poolkit_session = mine._poolkit_block = None
        if connection.closed:
            self._lost(session)
        return session

    def _verdict_on(self, session: Session[Any]) -> dict[str, Any] | None:
        """Return the arguments for the engine's release of a returned connection, or None if it needs a reset first."""
        if session.pid != os.getpid():
            return {}  # the parent process owns it: the engine handles that, and this process must not use it
        connection: Any = session.connection
        if session.cut:  # its user got psycopg's error, or no longer needs it
            return {"discard": True}
        if connection.closed:
            if is_interrupted(connection):
                return None
            self._lost(session)
            # if it broke during its lease, and was not closed by the user, the other ones may be dead as well
            return {"error": ConnectionAbortedError()} if connection.broken else {"discard": True}
        if session.wrong_server:
            return {"error": ReadOnlyServer()}
        return None


class Leftovers:
    """Sessions that failed connects have left on the server, by thread or task, until the engine takes them."""

    def __init__(self) -> None:
        self._left: dict[object, Any] = {}

    def put(self, caller: object, left: Any) -> None:
        """Store what a failing connect of the caller leaves behind: a future, or None."""
        if left is not None:
            self._left[caller] = left

    def take(self, caller: object) -> Any:
        """See :meth:`poolkit.Connector.leftover`."""
        return self._left.pop(caller, None)


def _or_inf(value: float | None) -> float:
    return math.inf if value is None else value
