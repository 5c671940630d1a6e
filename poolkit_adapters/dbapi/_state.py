"""What a user can change in a session through methods and attributes, and which of it can be undone.

The rule is the same for every module: what is known to change nothing that outlives a transaction passes; what is known
to have a counterpart that tells the old value is put back on return; after anything else the connection is closed on
return, because nobody can tell what its next user would find.
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
"""Statements without a cursor. What they change is SQL's, as with a cursor: see ``reset``."""

STATELESS = SHORTCUTS | {
    # transactions, which are rolled back
    "begin", "start_transaction", "transaction", "pipeline", "xid", "tpc_begin", "tpc_prepare", "tpc_commit",
    "tpc_rollback", "tpc_recover", "tpc_end", "tpc_forget",
    # statements in another form
    "query", "cmd_query", "cmd_query_iter", "run", "lobject", "blobopen", "notifies", "show_warnings", "info_query",
    "fetch_df_all", "fetch_df_batches", "createlob", "gettype",
    # questions
    "is_connected", "is_healthy", "is_secure", "isexecuting", "fileno", "thread_id", "stat", "insert_id",
    "affected_rows", "field_count", "warning_count", "errno", "error", "sqlstate", "get_autocommit", "getinfo",
    "getlimit", "getconfig", "get_backend_pid", "get_transaction_status", "get_parameter_status",
    "get_dsn_parameters", "get_server_info", "get_server_version", "get_host_info", "get_proto_info",
    "get_character_set_info", "character_set_name", "isset_client_flag", "cmd_statistics", "cmd_process_info",
    # conversions and copies
    "escape", "escape_string", "literal", "string_literal", "encode_oson", "decode_oson", "iterdump", "backup",
    "serialize",
    # what stops a statement
    "cancel", "cancel_safe", "interrupt", "kill", "cmd_process_kill",
}  # fmt: skip
"""Methods that change nothing which outlives the transaction."""

RECONNECTING = frozenset({"ping", "cmd_ping"})
"""Some modules open a new session in these, without the settings that ``setup`` has made."""

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
"""For each module: methods that set a value, and the method or attribute that tells it."""


def restorable(module: ModuleType) -> dict[str, str]:
    """The methods of a module whose effect can be undone by a call with the old value, and what tells that value."""
    return _RESTORED.get(module.__name__, {})


def changeable(name: str, value: object) -> bool:
    """Whether the value of an attribute is an object through which the connection can be changed (``adapters``)."""
    return not (isinstance(value, _VALUES) or callable(value) or name in _READ_ONLY)


_IN_TRANSACTION: dict[str, Callable[[Any], bool]] = {
    # with autocommit=False (Python 3.12) sqlite3 begins the next transaction at once: there is always one
    "sqlite3": lambda connection: connection.in_transaction and getattr(connection, "autocommit", None) is not False,
    "psycopg": lambda connection: connection.info.transaction_status != 0 or connection.info.pipeline_status != 0,
    "psycopg2": lambda connection: connection.get_transaction_status() != 0,
    "pymysql": lambda connection: bool(connection.server_status & 1),
    "mariadb": lambda connection: bool(connection.server_status & 1),
    "mysql.connector": lambda connection: bool(connection.in_transaction),
    "oracledb": lambda connection: bool(connection.transaction_in_progress),
}


def left_in_transaction(module: ModuleType, connection: Any) -> bool:
    """Whether a transaction is open that cannot be ended; False also where the module cannot tell.

    In autocommit mode the ``rollback()`` of some modules (psycopg2, sqlite3) does nothing, even if a ``BEGIN`` was
    executed as a statement. Then the transaction is ended by a statement as well.
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
    """Whether closing a connection would lose the database: SQLite keeps it in memory, for this connection."""
    return module.__name__ == "sqlite3" and (
        database in (":memory:", b":memory:", "") or (isinstance(database, str) and "mode=memory" in database)
    )
