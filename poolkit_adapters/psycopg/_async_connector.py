"""What the engine needs to know of psycopg's asynchronous connections."""

from __future__ import annotations

import asyncio
import inspect
import sys
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
from ._errors import CheckFailed, ConnectTimeout, InvalidCallback, PoolClosed, classify
from ._io import Canceller, is_alive, is_clean, ping_async
from ._session import Session
from ._shared import left_in, logger

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn

    from ._async import AsyncPoolkitConnectionPool

__all__ = ("AsyncPsycopgConnector",)

_IDLE, _ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE

_CANCEL_TIMEOUT = 1.5  # seconds for telling the server to stop a statement; below the default check_timeout


async def _try_cancel(pgconn: PGconn, canceller: Canceller, *, timeout: float = _CANCEL_TIMEOUT) -> None:
    """Stop the statement: called by psycopg in the task that was cancelled in the middle of it.

    psycopg itself waits five seconds for an answer to the cancel request, then five more for the end of the statement.
    A server that does not answer the request will not end the statement either: the connection is given up.
    """
    interruption = sys.exc_info()[1]
    try:
        await asyncio.wait_for(Canceller(pgconn).cancel_async(), min(timeout, _CANCEL_TIMEOUT))
    except asyncio.TimeoutError:
        canceller.unheard = True
        logger.warning("no answer to a cancel request in %g s: closing the connection", _CANCEL_TIMEOUT)
        pgconn.finish()
        if interruption is not None:
            raise interruption from None
    except Exception as error:  # noqa: BLE001  psycopg waits for the end of the statement all the same
        logger.warning("query cancellation failed: %s", said(error))


def _timer(delay: float, call: Callable[[], None]) -> Callable[[], object]:
    return asyncio.get_running_loop().call_later(delay, call).cancel


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

    def __init__(self, pool: AsyncPoolkitConnectionPool[Any]) -> None:
        self._ref = weakref.ref(pool)
        self._ledger = pool._ledger
        self._ask = None if pool._plain_check else pool._ask
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
        connection._try_cancel = partial(_try_cancel, connection.pgconn, session.canceller)  # type: ignore[method-assign]
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
            self.abort(session)
            raise
        return session

    def abort(self, session: Session[psycopg.AsyncConnection[Any]]) -> None:
        """Say goodbye and close the socket; libpq does not wait for anything here."""
        connection = session.current()
        if connection is not None:
            connection._pool = None
        session.pgconn.finish()

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
            await self._stop(session)
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

    async def _stop(self, session: Session[psycopg.AsyncConnection[Any]]) -> None:
        """It came back in the middle of something: the server is told to stop. Until then the connection keeps its
        place in the pool, so that no more than ``max_size`` sessions are ever at work.
        """
        logger.warning("closing returned connection: %s", shown(session.connection))
        if session.canceller.unheard:
            return
        try:
            await asyncio.wait_for(session.canceller.cancel_async(), _CANCEL_TIMEOUT)
        except Exception as error:  # noqa: BLE001 - whatever it is, the connection goes
            logger.info("cannot cancel on %s: %s", shown(session.connection), said(error))

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
