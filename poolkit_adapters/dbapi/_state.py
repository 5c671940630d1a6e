"""Which methods and attributes change a session, and which changes can be undone.

One rule applies to every module. Methods known to change nothing beyond the transaction are allowed. For methods with
a known way to read the old value, that value is restored on return. After any other method the connection is closed on
return, because the state that its next user would find is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import ModuleType, NoneType
from typing import Any

__all__ = (
    "RECONNECTING",
    "SHORTCUTS",
    "STATELESS",
    "changeable",
    "left_in_transaction",
    "restorable",
    "still_in_memory",
)

SHORTCUTS = frozenset({"execute", "executemany", "executescript", "callproc"})
"""Statements without a cursor. ``reset`` handles what SQL changes, as with a cursor."""

STATELESS = SHORTCUTS | {
    # transactions, which the reset rolls back
    "begin", "start_transaction", "transaction", "pipeline", "xid", "tpc_begin", "tpc_prepare", "tpc_commit",
    "tpc_rollback", "tpc_recover", "tpc_end", "tpc_forget",
    # statements in another form
    "query", "cmd_query", "cmd_query_iter", "run", "lobject", "blobopen", "notifies", "show_warnings", "info_query",
    "fetch_df_all", "fetch_df_batches", "gettype",
    # queries about the connection
    "is_connected", "is_healthy", "is_secure", "isexecuting", "fileno", "thread_id", "stat", "insert_id",
    "affected_rows", "field_count", "warning_count", "errno", "error", "sqlstate", "get_autocommit", "getinfo",
    "getlimit", "getconfig", "get_backend_pid", "get_transaction_status", "get_parameter_status",
    "get_dsn_parameters", "get_server_info", "get_server_version", "get_host_info", "get_proto_info",
    "get_character_set_info", "character_set_name", "isset_client_flag", "cmd_statistics", "cmd_process_info",
    # conversions and copies
    "escape", "escape_string", "literal", "string_literal", "encode_oson", "decode_oson", "iterdump", "backup",
    "serialize",
    # methods that stop a statement
    "cancel", "cancel_safe", "interrupt", "kill", "cmd_process_kill",
}  # fmt: skip
"""Methods that change nothing beyond the transaction. What some return ends with the lease, see ``_results.py``."""

RECONNECTING = frozenset({"ping", "cmd_ping"})
"""Methods in which some modules open a new session, which lacks the settings of ``setup``."""

_VALUES = (NoneType, bool, int, float, complex, str, bytes, tuple, frozenset, Enum, type)
_READ_ONLY = frozenset(
    {"info", "messages", "notices", "notifies", "notifications", "parameter_statuses", "warning", "warnings"}
)

_RESTORED: dict[str, dict[str, str]] = {
    "psycopg": {
        "set_autocommit": "autocommit",
        "set_isolation_level": "isolation_level",
        "set_read_only": "read_only",
        "set_deferrable": "deferrable",
    },
    "pymysql": {"autocommit": "get_autocommit", "select_db": "db"},
    "MySQLdb": {"autocommit": "get_autocommit"},
}
"""For each module: methods that set a value, and the method or attribute that returns it."""


def restorable(module: ModuleType) -> dict[str, str]:
    """Return the methods of a module that a call with the old value undoes, each with the name that returns it."""
    return _RESTORED.get(module.__name__, {})


def changeable(name: str, value: object) -> bool:
    """Return whether an attribute's value is an object that can change the connection (such as ``adapters``)."""
    return not (isinstance(value, _VALUES) or callable(value) or name in _READ_ONLY)


_IN_TRANSACTION: dict[str, Callable[[Any], bool]] = {
    # with autocommit=False (Python 3.12) sqlite3 starts the next transaction at once, so one is always open
    "sqlite3": lambda connection: connection.in_transaction and getattr(connection, "autocommit", None) is not False,
    "psycopg": lambda connection: connection.info.transaction_status != 0 or connection.info.pipeline_status != 0,
    "psycopg2": lambda connection: connection.get_transaction_status() != 0,
    "pymysql": lambda connection: bool(connection.server_status & 1),
    "mariadb": lambda connection: bool(connection.server_status & 1),
    "mysql.connector": lambda connection: bool(connection.in_transaction),
    "oracledb": lambda connection: bool(connection.transaction_in_progress),
}


def left_in_transaction(module: ModuleType, connection: Any) -> bool:
    """Return whether a transaction is open that cannot be ended. False also if the module does not report it.

    In autocommit mode the ``rollback()`` of some modules (psycopg2, sqlite3) does nothing, even if a ``BEGIN`` was
    executed as a statement. Then a ``ROLLBACK`` statement ends the transaction.
    """
    ask = _IN_TRANSACTION.get(module.__name__)
    if ask is None or not ask(connection):
        return False
    cursor = connection.cursor()
    try:
        cursor.execute("ROLLBACK")
    finally:
        cursor.close()
    return ask(connection)


def still_in_memory(module: ModuleType, database: object) -> bool:
    """Return whether closing a connection would delete the database: a SQLite database in memory ends with it."""
    return module.__name__ == "sqlite3" and (
        database in (":memory:", b":memory:", "") or (isinstance(database, str) and "mode=memory" in database)
    )
