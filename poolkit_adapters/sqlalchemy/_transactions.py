"""Tests with the driver whether a returned connection is still in a transaction.

SQLAlchemy's reset rolls back the transactions that SQLAlchemy has started. It may not know of one: its ``begin`` was
cancelled half-way, or the application sent BEGIN itself in autocommit mode. The next user would then work inside that
transaction, and its commits would be lost.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.pool.base import reset_none

__all__ = ("OpenTransaction", "transaction_test")

Test = Callable[[Any], bool]


class OpenTransaction(Exception):  # never raised: the reason in SQLAlchemy's "invalidate" event and log line
    """The connection was returned in the middle of a transaction."""


_BUSY = frozenset({1, 2, 3})  # libpq's PQTRANS_ACTIVE, INTRANS, INERROR; a dead connection (4) has no transaction


def _psycopg(driver: Any) -> bool:
    return int(driver.pgconn.transaction_status) in _BUSY


def _psycopg2(driver: Any) -> bool:
    return driver.get_transaction_status() in _BUSY


def _asyncpg(driver: Any) -> bool:
    # after a cancelled statement, which may be the BEGIN, the server's reply has not arrived yet
    return bool(driver.is_in_transaction() or driver._protocol._is_cancelling())


def _pg8000(driver: Any) -> bool:
    return bool(driver._in_transaction)


def _attribute(driver: Any) -> bool:
    return bool(driver.in_transaction)


def _server_status(driver: Any) -> bool:
    return bool(driver.server_status & 1)  # SERVER_STATUS_IN_TRANS of the MySQL protocol


def _method(driver: Any) -> bool:
    return bool(driver.get_transaction_status())


def _oracledb(driver: Any) -> bool:
    return bool(driver.transaction_in_progress)


_TESTS: dict[str, Test] = {
    "aiomysql": _method,
    "aiosqlite": _attribute,
    "asyncmy": _method,
    "asyncpg": _asyncpg,
    "mysqlconnector": _attribute,
    "oracledb": _oracledb,
    "pg8000": _pg8000,
    "psycopg": _psycopg,
    "psycopg2": _psycopg2,
    "psycopg2cffi": _psycopg2,
    "psycopg_async": _psycopg,
    "pymysql": _server_status,
    "pysqlcipher": _attribute,
    "pysqlite": _attribute,
}
"""Tests by the name of SQLAlchemy's driver. None of them sends the server anything. Other drivers (pyodbc,
mysqlclient, ...) do not report it."""


def transaction_test(dialect: Any, reset: Any) -> Test | None:
    """Return a test whether a DBAPI connection of this dialect is in a transaction, or None if there is no test.

    ``reset`` is the pool's ``reset_on_return``. With None the application wants open transactions passed on. Even then
    a transaction is refused that SQLAlchemy's own adapter does not know of (asyncpg).
    """
    test = _TESTS.get(getattr(dialect, "driver", ""))
    if test is None:
        return None
    if reset is reset_none:
        return _unknown_to_adapter if test is _asyncpg else None
    of_driver = test
    unwrap = dialect.get_driver_connection if dialect.is_async else None

    def in_transaction(connection: Any) -> bool:
        try:
            return of_driver(connection if unwrap is None else unwrap(connection))
        except Exception:  # noqa: BLE001  it is closed, or the application's creator= made an unknown type
            return False

    return in_transaction


def _unknown_to_adapter(connection: Any) -> bool:
    """Return whether asyncpg is in a transaction that SQLAlchemy will never commit, because it did not start it."""
    try:
        known = connection._transaction is not None and getattr(connection, "_started", True)  # the latter in 2.0
        return not known and connection.isolation_level != "autocommit" and _asyncpg(connection._connection)
    except AttributeError:
        return False  # not SQLAlchemy's adapter
