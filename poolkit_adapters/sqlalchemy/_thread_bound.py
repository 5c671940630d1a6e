"""Connections that only the thread that opened them may use, such as those of sqlite3 by default."""

from __future__ import annotations

import sys
import threading
from typing import Any

from poolkit import ConfigError

__all__ = ("refuse_thread_bound",)


def refuse_thread_bound(pool: str, connection: Any) -> None:
    """Close ``connection``, which the calling thread has opened, and raise ConfigError if no other thread may use it.

    Otherwise each caller would fail at its first statement, with an error of the driver that names only threads.
    """
    sqlite: Any = sys.modules.get("sqlite3")
    if sqlite is None or not isinstance(connection, sqlite.Connection):
        return
    refused: list[Exception] = []

    def use() -> None:
        try:
            connection.cursor().close()
        except sqlite.ProgrammingError as error:  # sqlite3 has no attribute that tells
            refused.append(error)

    other = threading.Thread(target=use)
    other.start()
    other.join()
    if refused:
        connection.close()
        raise ConfigError(
            f"{pool}: connect_in_caller=False: the creator opens connections that only their own thread may use; "
            "set connect_in_caller=True, or give sqlite3.connect() check_same_thread=False",
            "connect_in_caller",
        ) from refused[0]
