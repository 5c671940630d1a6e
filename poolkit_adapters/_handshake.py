"""Drivers whose limit for connecting covers only the TCP connection: here the session that follows gets one too.

PyMySQL's ``connect_timeout`` ends when TCP is connected. A server that accepts and then says nothing would keep the
caller, and the place in the pool, for good. pg8000's ``timeout`` is the opposite: it would go on to cut every statement
that takes longer. Both are mended in the same way: while the session is opened each answer has a limit, through the
driver's own arguments; afterwards the connection has those that the application asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ("Restore", "limit_answers")

Restore = Callable[[Any], None]
"""Takes the driver's open connection."""


def limit_answers(driver: str, keywords: dict[str, Any], seconds: float) -> Restore | None:
    """Let no answer take longer than ``seconds`` while ``driver`` (a module's name) opens a session.

    Changes ``keywords``, which are then given to the driver's ``connect()``. What it returns must be called with the
    new connection; None: there is nothing to do.
    """
    way = _WAYS.get(driver.partition(".")[0])
    return None if way is None else way(keywords, seconds)


def _pymysql(keywords: dict[str, Any], seconds: float) -> Restore:
    own = {name: keywords.get(name) for name in ("read_timeout", "write_timeout")}
    for name, value in own.items():
        keywords[name] = seconds if value is None else min(value, seconds)

    def restore(connection: Any) -> None:
        for name, value in own.items():  # it compares them with what the socket has before each read and write
            setattr(connection, f"_{name}", value)

    return restore


def _pg8000(keywords: dict[str, Any], seconds: float) -> Restore | None:
    if keywords.get("timeout") is not None:
        return None  # the application's own, which is to last
    keywords["timeout"] = seconds

    def restore(connection: Any) -> None:
        connection._usock.settimeout(None)

    return restore


_WAYS: dict[str, Callable[[dict[str, Any], float], Restore | None]] = {"pymysql": _pymysql, "pg8000": _pg8000}
