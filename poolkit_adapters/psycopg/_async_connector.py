"""The engine's connector for psycopg's asynchronous connections."""

from __future__ import annotations

import asyncio
import inspect
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from poolkit import AsyncConnector, Verdict
from poolkit.errors import describe, said, shown

from .._errors import release_locals
from .._psycopg_ending import CANCEL_TIMEOUT, is_interrupted
from ._counters import Outage
from ._errors import CheckFailed, ConnectTimeout, InvalidCallback, LeaseOverdue, PoolClosed, classify
from ._io import is_alive, is_clean, is_inside, ping_async
from ._leased import adopted, lost
from ._names import with_addresses_async
from ._session import Session
from ._shared import Leftovers, left_in, logger, reconnect_timeout_of, report_outage

if TYPE_CHECKING:
    from ._async import AsyncPoolkitConnectionPool

__all__ = ("AsyncPsycopgConnector",)

_IDLE, _ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE


def _timer(delay: float, call: Callable[[], None]) -> Callable[[], object]:
    return asyncio.get_running_loop().call_later(delay, call).cancel


def _me() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # the garbage collector ends a task whose loop no longer exists
        return None


async def _value(source: Any) -> Any:
    """Return the value, or the result of a function or coroutine function."""
    result = source() if callable(source) else source
    return await result if inspect.isawaitable(result) else result


async def _call(callback: Callable[[Any], Any], connection: object, name: str) -> None:
    result = callback(connection)
    if not inspect.isawaitable(result):
        raise InvalidCallback(f"{name}={callback!r}: must be a coroutine function in an asynchronous pool", name)
    await result


async def _tell(pool: AsyncPoolkitConnectionPool[Any]) -> None:
    try:
        await pool.reconnect_failed()
    except Exception:  # noqa: BLE001 - logged; it is the application's
        logger.exception("reconnect_failed of pool %r raised an error", pool.name)


class AsyncPsycopgConnector(AsyncConnector["Session[psycopg.AsyncConnection[Any]]"]):
    """Opens, checks and closes connections, in the engine's own tasks except for the connects of a null pool."""

    opens_later = True  # open() fills the pool
    overdue_error = LeaseOverdue
    any_loop = True  # psycopg looks for the running loop whenever it waits

    def __init__(self, pool: AsyncPoolkitConnectionPool[Any]) -> None:
        self._ref = weakref.ref(pool)
        self._counters = pool._counters
        self._check_callback = None if pool._default_check else pool._check_callback
        self._left = Leftovers()
        self.outage = Outage(partial(reconnect_timeout_of, self._ref), self._report)

    async def connect(self, timeout: float | None) -> Session[psycopg.AsyncConnection[Any]]:
        """Open, configure and check a connection."""
        pool = self._ref()
        if pool is None:
            raise PoolClosed("cannot open a connection: the pool no longer exists; keep a reference to the pool")
        begun = time.monotonic()
        try:
            session = await self._open(pool, timeout)
        except Exception as error:
            logger.warning("error connecting in %r: %s", pool.name, said(error))
            self.outage.failed(_timer)
            raise
        finally:
            self._counters.add("_opening_ms", (time.monotonic() - begun) * 1000)
        self.outage.end()
        return session

    async def _open(
        self, pool: AsyncPoolkitConnectionPool[Any], timeout: float | None
    ) -> Session[psycopg.AsyncConnection[Any]]:
        conninfo, kwargs = await _value(pool.conninfo) or "", dict(await _value(pool.kwargs) or {})
        self._counters.add("connections_num")
        begun = time.monotonic()
        try:
            kwargs = await with_addresses_async(conninfo, kwargs, timeout, pool._engine.config)
            connection: psycopg.AsyncConnection[Any] = await pool.connection_class.connect(conninfo, **kwargs)
        except BaseException as error:
            self._counters.add("connections_errors")
            release_locals(error)
            if isinstance(error, psycopg.errors.ConnectionTimeout):
                seconds = kwargs.get("connect_timeout", timeout)
                raise ConnectTimeout(f"{pool.name}: {said(error)} ({seconds} s)") from error
            raise
        self._counters.add("connections_ms", (time.monotonic() - begun) * 1000)
        session = adopted(pool, connection)
        try:
            if pool._configure is not None:
                await _call(pool._configure, connection, "configure")
                if not is_clean(connection.pgconn):
                    raise left_in(connection, "configure callback", pool._configure)
            if pool._check_callback is not None:
                try:
                    await self.check(session, None)
                except Exception as error:
                    raise CheckFailed(f"a new connection failed the check: {said(error)}") from error
        except BaseException:
            self._left.put(_me(), self.abort(session))
            raise
        return session

    def leftover(self, error: BaseException) -> Any:
        """Return the session of a new connection that was closed during a statement of a callback, if any."""
        return self._left.take(_me())

    def abort(self, session: Session[psycopg.AsyncConnection[Any]]) -> Any:
        """Close the connection; libpq does not wait here.

        If a statement is running, return a future. It is done when the server has ended the session, or after
        ``check_timeout`` seconds.
        """
        ending = session.ending
        ending.look(session.pgconn, interrupted=is_interrupted(session.current()))
        if session.connection is None:  # dropped by its user, or leased and given back later
            session.cut = True
        else:
            session.connection._pool = None
        session.pgconn.finish()
        pool = self._ref()
        return ending.begin(CANCEL_TIMEOUT if pool is None else pool._engine.config.check_timeout)

    def peek(self, session: Session[psycopg.AsyncConnection[Any]]) -> bool:
        """Return False if the server has closed the connection. Never waits."""
        connection = session.connection
        return connection is not None and is_alive(connection)

    async def check(self, session: Session[psycopg.AsyncConnection[Any]], timeout: float | None) -> bool:
        """Make one round trip, or call the user's callback."""
        connection: Any = session.connection
        try:
            if self._check_callback is None:
                await ping_async(connection)
            else:
                await _call(self._check_callback, connection, "check")
                if connection.pgconn.transaction_status != _IDLE:
                    await connection.rollback()
        except Exception as error:
            logger.info("connection failed check: %s", said(error))
            raise
        return True

    async def clean(self, session: Session[psycopg.AsyncConnection[Any]]) -> bool:
        """End the transaction of a returned connection and call the user's callback. Return False if it was closed."""
        pool = self._ref()
        connection: Any = session.connection
        if pool is None:
            return False
        if connection.pgconn.transaction_status == _ACTIVE or connection.closed or is_inside(connection):
            logger.warning("closing returned connection: %s", shown(connection))
            return self._drop(pool, session)
        if not is_clean(connection.pgconn):
            logger.warning("rolling back returned connection: %s", shown(connection))
            try:
                await connection.rollback()
            except Exception as error:  # noqa: BLE001 - after any error the connection is closed
                logger.warning("rollback failed: %s. Discarding connection %s", describe(error), shown(connection))
                return self._drop(pool, session)
        if pool._reset is not None:
            try:
                await _call(pool._reset, connection, "reset")
                if not is_clean(connection.pgconn):
                    raise left_in(connection, "reset callback", pool._reset)
            except Exception as error:  # noqa: BLE001 - after any error the connection is closed
                logger.warning("error resetting connection: %s", said(error))
                return self._drop(pool, session)
        return is_clean(connection.pgconn) or self._drop(pool, session)

    def _drop(self, pool: AsyncPoolkitConnectionPool[Any], session: Session[psycopg.AsyncConnection[Any]]) -> bool:
        self.abort(session)
        lost(pool, session)
        return False

    def classify(self, error: BaseException) -> Verdict:
        """See :func:`._errors.classify`."""
        return classify(error)

    def _report(self) -> None:
        pool = self._ref()
        if pool is not None and not pool.closed:
            report_outage(pool)
            pool._background.run(_tell(pool))
