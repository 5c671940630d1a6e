"""Replaces connections to a server that turned out to be read-only, as after a failover, when they are returned."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext

__all__ = ("ReadOnlyServer", "watch")

_READ_ONLY_TRANSACTION = "25006"  # PostgreSQL documentation, appendix A


class ReadOnlyServer(Exception):  # never raised: it tells the engine why a record is returned
    """The server of the connection refuses writes."""


def watch(dialect: Any) -> None:
    """Watch for errors of a read-only server. Only PostgreSQL distinguishes a standby from a read-only transaction."""
    if getattr(dialect, "name", "") == "postgresql":
        event.listen(dialect, "handle_error", _notice)


def _notice(context: ExceptionContext) -> None:
    error: Any = context.original_exception
    if getattr(error, "sqlstate", None) != _READ_ONLY_TRANSACTION or context.connection is None:
        return
    fairy: Any = context.connection.connection
    record: Any = getattr(fairy, "_connection_record", None)
    # only for poolkit's Record: another pool may use the same dialect
    if hasattr(record, "wrong_server") and _is_wrong(record.driver_connection):
        record.wrong_server = ReadOnlyServer()


def _is_wrong(driver: Any) -> bool:
    """Return whether the server is read-only, and not only this transaction.

    PostgreSQL 14 and later report both settings. If both are "off", the application asked for a read-only transaction.
    """
    pgconn = getattr(driver, "pgconn", None)
    if pgconn is not None:  # psycopg
        return {
            pgconn.parameter_status(b"in_hot_standby"),
            pgconn.parameter_status(b"default_transaction_read_only"),
        } != {b"off"}
    settings = getattr(driver, "get_settings", None)
    if settings is None:
        return False
    reported = settings()  # asyncpg
    return any(getattr(reported, name, None) != "off" for name in ("in_hot_standby", "default_transaction_read_only"))
