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
    """Run the ping of ``pre_ping``, within ``check_timeout`` and the time that the caller has left."""
    limits = [limit for limit in (pool.poolkit.config.check_timeout, record.left()) if limit is not None]
    try:
        return pool._io.ping(dbapi_connection, min(limits, default=None))
    except TimeoutError as error:
        pool.logger.info("Pool pre-ping on connection %s failed: %s", dbapi_connection, error)
        return False
