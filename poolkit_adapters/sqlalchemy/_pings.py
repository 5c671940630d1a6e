"""The dialect's ping, and that of ``pre_ping`` within its time limits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy.pool.base import _ConnDialect

if TYPE_CHECKING:
    from ._pool import BasePool
    from ._record import Record

__all__ = ("ask", "pre_ask")


def ask(dialect: Any, dbapi_connection: Any) -> bool:
    """Run the dialect's ping with its events. A pool without a dialect has none, and counts as alive."""
    if isinstance(dialect, _ConnDialect):
        return True
    ping = getattr(dialect, "_do_ping_w_event", None) or dialect.do_ping  # the latter in the first 2.0
    return bool(ping(dbapi_connection))


def pre_ask(pool: BasePool, record: Record, dbapi_connection: Any) -> bool:
    """Run the ping of ``pre_ping``, within ``check_timeout`` and the time that the caller has left.

    Without any time left there is no ping: an idle connection is handed out even after the deadline.
    """
    limit, left = pool.poolkit.config.check_timeout, record.left()
    if left == 0.0:
        return True
    callers = left is not None and (limit is None or left < limit)
    try:
        return pool._io.ping(dbapi_connection, left if callers else limit)
    except TimeoutError as error:
        pool.logger.info("Pool pre-ping on connection %s failed: %s", dbapi_connection, error)
        if not callers:
            return False  # a lost connection: SQLAlchemy invalidates all idle ones
        failure, cause = record.too_late("the ping did not end in time"), error.__cause__
    raise failure from cause  # says nothing about the other connections
