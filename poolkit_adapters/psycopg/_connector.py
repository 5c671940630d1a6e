"""The engine's connector for psycopg's synchronous connections."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import TransactionStatus

from poolkit import Connector, Verdict
from poolkit.errors import describe, said, shown

from .._attempts import Attempt, Attempts
from .._errors import release_locals
from .._psycopg_ending import CANCEL_TIMEOUT, is_interrupted
from .._time_limits import Watch, rest_of
from ._counters import Outage
from ._errors import CheckFailed, ConnectTimeout, LeaseOverdue, PoolClosed, classify
from ._io import is_alive, is_clean, is_inside, ping
from ._leased import adopted, lost
from ._names import longest_connect, with_addresses
from ._session import Session
from ._shared import Leftovers, left_in, logger, reconnect_timeout_of, report_outage

if TYPE_CHECKING:
    from ._sync import PoolkitConnectionPool

__all__ = ("PsycopgConnector",)

_IDLE, _ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE


def _timer(delay: float, call: Callable[[], None]) -> Callable[[], object]:
    timer = threading.Timer(delay, call)
    timer.daemon = True
    timer.start()
    return timer.cancel


class PsycopgConnector(Connector["Session[psycopg.Connection[Any]]"]):
    """Opens, checks and closes connections. Its reference to the pool is weak, so background threads do not keep it."""

    opens_later = True  # open() fills the pool
    overdue_error = LeaseOverdue

    def __init__(self, pool: PoolkitConnectionPool[Any]) -> None:
        self._ref = weakref.ref(pool)
        self._counters = pool._counters
        self._check_callback = None if pool._default_check else pool._check_callback
        self._left = Leftovers()
        self._watch = Watch()
        self._attempts = Attempts()
        self.connect_bound, self.give_up = self._attempts.bound, self._attempts.give_up
        self.outage = Outage(partial(reconnect_timeout_of, self._ref), self._report)

    def connect(self, timeout: float | None) -> Session[psycopg.Connection[Any]]:
        """Open, configure and check a connection."""
        pool = self._ref()
        if pool is None:
            raise PoolClosed("cannot open a connection: the pool no longer exists; keep a reference to the pool")
        begun = time.monotonic()
        try:
            with self._attempts.under_way() as attempt:
                session = self._open(pool, timeout, attempt)
        except Exception as error:
            logger.warning("error connecting in %r: %s", pool.name, said(error))
            self.outage.failed(_timer)
            raise
        finally:
            self._counters.add("_opening_ms", (time.monotonic() - begun) * 1000)
        self.outage.end()
        return session

    def _open(
        self, pool: PoolkitConnectionPool[Any], timeout: float | None, attempt: Attempt
    ) -> Session[psycopg.Connection[Any]]:
        conninfo = pool.conninfo() if callable(pool.conninfo) else pool.conninfo
        kwargs = pool.kwargs() if callable(pool.kwargs) else pool.kwargs
        conninfo, kwargs = conninfo or "", dict(kwargs or {})
        self._counters.add("connections_num")
        begun = time.monotonic()
        try:
            kwargs = with_addresses(conninfo, kwargs, timeout, pool._engine.config)
            longest = 0.0
            if timeout is not None:
                longest = longest_connect(conninfo, kwargs)
                attempt.extend(max(2 * timeout, longest) + 1.0)
            attempt.opening()
            connection: psycopg.Connection[Any] = pool.connection_class.connect(conninfo, **kwargs)
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
            if timeout is not None:
                attempt.extend(2 * timeout + 1.0)
            attempt.opened(partial(self._watch.cut, connection))
            if pool._configure is not None:
                left = rest_of(timeout, longest, begun, "configure callback")
                if left is not None:
                    attempt.extend(2 * left + 1.0)
                with self._watch.limit(connection, left, "configure callback"):
                    pool._configure(connection)
                if not is_clean(connection.pgconn):
                    raise left_in(connection, "configure callback", pool._configure)
            if pool._check_callback is not None:
                limit = pool._engine.config.check_timeout
                if limit is None:
                    attempt.opening()  # nothing would end its session
                elif timeout is not None:
                    attempt.extend(limit + 1.0)
                try:
                    self.check(session, limit)
                except Exception as error:
                    raise CheckFailed(f"a new connection failed the check: {said(error)}") from error
        except BaseException:
            self._left.put(threading.get_ident(), self.abort(session))
            raise
        return session

    def leftover(self, error: BaseException) -> Any:
        """Return the session of a new connection that was closed during a statement of a callback, if any."""
        return self._left.take(threading.get_ident())

    def abort(self, session: Session[psycopg.Connection[Any]]) -> Any:
        """Close the connection; libpq does not wait here.

        If a statement is running, return a future. It is done when the server has ended the session, or after
        ``check_timeout`` seconds.
        """
        ending = session.ending
        ending.look(session.pgconn, interrupted=is_interrupted(session.current()))
        connection = session.connection
        if connection is None:  # dropped by its user, or leased and given back later
            session.cut = True
            session.pgconn.finish()
        else:
            connection._pool = None
            connection.close()
        pool = self._ref()
        return ending.begin(CANCEL_TIMEOUT if pool is None else pool._engine.config.check_timeout)

    def peek(self, session: Session[psycopg.Connection[Any]]) -> bool:
        """Return False if the server has closed the connection. Never waits."""
        connection = session.connection
        return connection is not None and is_alive(connection)

    def check(self, session: Session[psycopg.Connection[Any]], timeout: float | None) -> bool:
        """Make one round trip, or call the user's callback."""
        connection: Any = session.connection
        try:
            if self._check_callback is None:
                ping(connection, timeout)
            else:
                with self._watch.limit(connection, timeout, "check callback"):
                    self._check_callback(connection)
                    if connection.pgconn.transaction_status != _IDLE:
                        connection.rollback()
        except Exception as error:
            logger.info("connection failed check: %s", said(error))
            raise
        return True

    def clean(self, session: Session[psycopg.Connection[Any]]) -> bool:
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
                with self._watch.limit(connection, pool._engine.config.check_timeout, "rollback"):
                    connection.rollback()
            except Exception as error:  # noqa: BLE001 - after any error the connection is closed
                logger.warning("rollback failed: %s. Discarding connection %s", describe(error), shown(connection))
                return self._drop(pool, session)
        if pool._reset is not None:
            try:
                with self._watch.limit(connection, pool._engine.config.check_timeout, "reset"):
                    pool._reset(connection)
                if not is_clean(connection.pgconn):
                    raise left_in(connection, "reset callback", pool._reset)
            except Exception as error:  # noqa: BLE001 - after any error the connection is closed
                logger.warning("error resetting connection: %s", said(error))
                return self._drop(pool, session)
        return is_clean(connection.pgconn) or self._drop(pool, session)

    def _drop(self, pool: PoolkitConnectionPool[Any], session: Session[psycopg.Connection[Any]]) -> bool:
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
            try:
                pool.reconnect_failed()
            except Exception:  # noqa: BLE001 - logged; it is the application's
                logger.exception("reconnect_failed of pool %r raised an error", pool.name)
