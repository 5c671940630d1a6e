"""Whether a connection that comes back is still in a transaction: the driver knows, SQLAlchemy only believes.

SQLAlchemy's reset rolls back the transaction that it has begun. Where it does not know of one (its ``begin`` was
cancelled half-way, the application sent BEGIN itself in autocommit mode), the next user would work inside that
transaction, and what that user commits would never be seen by anybody.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy.pool.base import reset_none

__all__ = ("OpenTransaction", "transaction_test")

Test = Callable[[Any], bool]


class OpenTransaction(Exception):  # never raised: the reason that SQLAlchemy's "invalidate" event and log line tell
    """The connection came back in the middle of a transaction."""


_BUSY = frozenset({1, 2, 3})  # libpq's PQTRANS_ACTIVE, INTRANS, INERROR; a dead connection (4) is in none


def _psycopg(driver: Any) -> bool:
    return int(driver.pgconn.transaction_status) in _BUSY


def _psycopg2(driver: Any) -> bool:
    return driver.get_transaction_status() in _BUSY


def _asyncpg(driver: Any) -> bool:
    # after a cancelled statement, which may have been the BEGIN, the server's answer is still on its way
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
"""By the name of SQLAlchemy's driver. None of them asks the server. The other drivers (pyodbc, mysqlclient, ...)
do not tell."""


def transaction_test(dialect: Any, reset: Any) -> Test | None:
    """How to ask a DBAPI connection of this dialect whether it is in a transaction; None: there is no way.

    ``reset``: the pool's ``reset_on_return``. With None the application asked for open transactions to be handed
    on; what is refused even then is a transaction that SQLAlchemy's own adapter does not know of (asyncpg).
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
        except Exception:  # noqa: BLE001  closed, or made by a creator= of the application's: it does not tell
            return False

    return in_transaction


def _unknown_to_adapter(connection: Any) -> bool:
    """asyncpg: the server is in a transaction that SQLAlchemy will never commit: it has not seen its beginning."""
    try:
        known = connection._transaction is not None and getattr(connection, "_started", True)  # the latter in 2.0
        return not known and connection.isolation_level != "autocommit" and _asyncpg(connection._connection)
    except AttributeError:
        return False  # not SQLAlchemy's adapter
