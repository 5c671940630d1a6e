"""After a failover old sessions may find themselves on a server that only reads: they are replaced when they return."""

from __future__ import annotations

from typing import Any

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext

__all__ = ("ReadOnlyServer", "watch")

_READ_ONLY_TRANSACTION = "25006"  # PostgreSQL documentation, appendix A


class ReadOnlyServer(Exception):  # never raised: it tells the engine why a record comes back
    """The server behind the connection refuses to write."""


def watch(dialect: Any) -> None:
    """Notice errors of this dialect that say so; of PostgreSQL, which alone tells a standby from a wish to read."""
    if getattr(dialect, "name", "") == "postgresql":
        event.listen(dialect, "handle_error", _notice)


def _notice(context: ExceptionContext) -> None:
    error: Any = context.original_exception
    if getattr(error, "sqlstate", None) != _READ_ONLY_TRANSACTION or context.connection is None:
        return
    fairy: Any = context.connection.connection
    record: Any = getattr(fairy, "_connection_record", None)
    # a Record of ours; another pool may serve the same dialect
    if hasattr(record, "misled") and _is_wrong(record.driver_connection):
        record.misled = ReadOnlyServer()


def _is_wrong(driver: Any) -> bool:
    """Whether the server is read-only, rather than that this transaction was meant to be.

    PostgreSQL 14 and later report it; "off" in both: the application itself asked for a read-only transaction.
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
    told = settings()  # asyncpg
    return any(getattr(told, name, None) != "off" for name in ("in_hot_standby", "default_transaction_read_only"))
