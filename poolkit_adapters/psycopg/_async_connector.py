"""What the engine needs to know of psycopg's asynchronous connections."""

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

from .._errors import name_missing_descriptor, release_locals
from ._books import Outage
from ._ending import CANCEL_TIMEOUT, try_cancel_async
from ._errors import CheckFailed, ConnectTimeout, InvalidCallback, PoolClosed, classify
from ._io import is_alive, is_clean, ping_async
from ._names import with_addresses_async
from ._session import Session
from ._shared import Leftovers, left_in, logger

if TYPE_CHECKING:
    from ._async import AsyncPoolkitConnectionPool

__all__ = ("AsyncPsycopgConnector",)

_IDLE, _ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE


def _timer(delay: float, call: Callable[[], None]) -> Callable[[], object]:
    return asyncio.get_running_loop().call_later(delay, call).cancel


def _me() -> object:
    try:
        return asyncio.current_task()
    except RuntimeError:  # the collector ends the task of a loop that is gone
        return None


async def _value(source: Any) -> Any:
    """A value, or what a callable or coroutine function gives."""
    result = source() if callable(source) else source
    return await result if inspect.isawaitable(result) else result


async def _call(callback: Callable[[Any], Any], connection: object, name: str) -> None:
    result = callback(connection)
    if not inspect.isawaitable(result):
        raise InvalidCallback(f"{name}={callback!r}: an asynchronous pool needs a coroutine function", name)
    await result


class AsyncPsycopgConnector(AsyncConnector["Session[psycopg.AsyncConnection[Any]]"]):
    """Runs in the engine's own tasks, except for the connects of a null pool."""

    opens_later = True  # open() fills the pool
    any_loop = True  # psycopg looks for the running loop whenever it waits

    def __init__(self, pool: AsyncPoolkitConnectionPool[Any]) -> None:
        self._ref = weakref.ref(pool)
        self._ledger = pool._ledger
        self._ask = None if pool._plain_check else pool._ask
        self._left = Leftovers()
        self.outage = Outage(pool.reconnect_timeout, self._report)

    async def connect(self, timeout: float | None) -> Session[psycopg.AsyncConnection[Any]]:
        """Open, configure and check a connection."""
        pool = self._ref()
        if pool is None:
            raise PoolClosed("the pool is gone")
        begun = time.monotonic()
        try:
            session = await self._open(pool, timeout)
        except Exception as error:
            logger.warning("error connecting in %r: %s", pool.name, said(error))
            self.outage.failed(_timer)
            raise
        finally:
            self._ledger.add("_opening_ms", (time.monotonic() - begun) * 1000)
        self.outage.over()
        return session

    async def _open(
        self, pool: AsyncPoolkitConnectionPool[Any], timeout: float | None
    ) -> Session[psycopg.AsyncConnection[Any]]:
        conninfo, kwargs = pool._parameters(await _value(pool.conninfo), await _value(pool.kwargs), timeout)
        self._ledger.add("connections_num")
        begun = time.monotonic()
        try:
            kwargs = await with_addresses_async(conninfo, kwargs, timeout)
            connection: psycopg.AsyncConnection[Any] = await pool.connection_class.connect(conninfo, **kwargs)
        except BaseException as error:
            self._ledger.add("connections_errors")
            release_locals(error)
            name_missing_descriptor(error)
            if isinstance(error, psycopg.errors.ConnectionTimeout):
                seconds = kwargs.get("connect_timeout", timeout)
                raise ConnectTimeout(f"{pool.name}: {said(error)} ({seconds} s)") from error
            raise
        self._ledger.add("connections_ms", (time.monotonic() - begun) * 1000)
        session = pool._adopt(connection)
        connection._try_cancel = partial(try_cancel_async, connection.pgconn, session.ending)  # type: ignore[method-assign]
        try:
            if pool._configure is not None:
                await _call(pool._configure, connection, "configure")
                if not is_clean(connection.pgconn):
                    raise left_in(connection, "configure callback", pool._configure)
            if pool._ask is not None:
                try:
                    await self.check(session, None)
                except Exception as error:
                    raise CheckFailed(f"a new connection failed the check: {said(error)}") from error
        except BaseException:
            self._left.put(_me(), self.abort(session))
            raise
        return session

    def leftover(self, error: BaseException) -> Any:
        """The session of a new connection that was given up in the middle of a callback's statement."""
        return self._left.take(_me())

    def abort(self, session: Session[psycopg.AsyncConnection[Any]]) -> Any:
        """Say goodbye and close the socket; libpq does not wait for anything here. In the middle of a statement: a
        future that is done when the server has ended the session, or ``check_timeout`` seconds have passed.
        """
        ending = session.ending
        ending.look(session.pgconn)
        if session.connection is None:  # dropped by its user, or on lease: then its user will give it back
            session.cut = True
        else:
            session.connection._pool = None
        session.pgconn.finish()
        if ending.at_work and ending.begun is None:
            pool = self._ref()
            # not in a task: the loop may end, and nobody would say that the place is free
            ending.begun = ending.begin_thread(CANCEL_TIMEOUT if pool is None else pool._engine.config.check_timeout)
        return ending.begun

    def peek(self, session: Session[psycopg.AsyncConnection[Any]]) -> bool:
        """Whether the server has not hung up."""
        connection = session.connection
        return connection is not None and is_alive(connection)

    async def check(self, session: Session[psycopg.AsyncConnection[Any]], timeout: float | None) -> bool:
        """One round trip, or the user's callback."""
        connection: Any = session.connection
        try:
            if self._ask is None:
                await ping_async(connection)
            else:
                await _call(self._ask, connection, "check")
                if connection.pgconn.transaction_status != _IDLE:
                    await connection.rollback()
        except Exception as error:
            logger.info("connection failed check: %s", said(error))
            raise
        return True

    async def clean(self, session: Session[psycopg.AsyncConnection[Any]]) -> bool:
        """End the transaction that a returned connection is in, call the user's callback; False: it is closed."""
        pool = self._ref()
        connection: Any = session.connection
        if pool is None:
            return False
        if connection.pgconn.transaction_status == _ACTIVE or connection.closed:
            logger.warning("closing returned connection: %s", shown(connection))
            return self._drop(pool, session)
        if not is_clean(connection.pgconn):
            logger.warning("rolling back returned connection: %s", shown(connection))
            try:
                await connection.rollback()
            except Exception as error:  # noqa: BLE001 - whatever it is, the connection goes
                logger.warning("rollback failed: %s. Discarding connection %s", describe(error), shown(connection))
                return self._drop(pool, session)
        if pool._reset is not None:
            try:
                await _call(pool._reset, connection, "reset")
                if not is_clean(connection.pgconn):
                    raise left_in(connection, "reset callback", pool._reset)
            except Exception as error:  # noqa: BLE001 - whatever it is, the connection goes
                logger.warning("error resetting connection: %s", said(error))
                return self._drop(pool, session)
        return is_clean(connection.pgconn) or self._drop(pool, session)

    def _drop(self, pool: AsyncPoolkitConnectionPool[Any], session: Session[psycopg.AsyncConnection[Any]]) -> bool:
        self.abort(session)
        pool._lost(session)
        return False

    def classify(self, error: BaseException) -> Verdict:
        """See :func:`._errors.classify`."""
        return classify(error)

    def _report(self) -> None:
        pool = self._ref()
        if pool is not None and not pool.closed:
            logger.warning("reconnection attempt in pool %r failed after %s sec", pool.name, pool.reconnect_timeout)
            pool._in_background(pool.reconnect_failed())
