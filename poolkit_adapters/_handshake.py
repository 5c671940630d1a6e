"""Limits the handshake of drivers whose own connect limit covers too little or too much.

PyMySQL's ``connect_timeout`` covers only the TCP connect. A server that accepts and then never replies would block the
caller and its slot in the pool forever. pg8000's ``timeout`` covers too much: it would also end every later statement
that takes longer. For both, the driver's own arguments limit each reply while the session opens. Afterwards the
connection gets the limits that the application asked for. The whole connect has a limit too, see
:class:`~._hang_up.Connecting`; this one does without the frames of the driver.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ("Restore", "limit_answers")

Restore = Callable[[Any], None]
"""A function that is called with the driver's open connection."""


def limit_answers(driver: str, keywords: dict[str, Any], seconds: float) -> Restore | None:
    """Limit each reply to ``seconds`` while ``driver`` (a module's name) opens a session.

    Changes ``keywords``, which the caller then passes to the driver's ``connect()``. Returns a function that must be
    called with the new connection, or None if there is nothing to restore.
    """
    way = _WAYS.get(driver.partition(".")[0])
    return None if way is None else way(keywords, seconds)


def _pymysql(keywords: dict[str, Any], seconds: float) -> Restore:
    own = {name: keywords.get(name) for name in ("read_timeout", "write_timeout")}
    for name, value in own.items():
        keywords[name] = seconds if value is None else min(value, seconds)

    def restore(connection: Any) -> None:
        for name, value in own.items():  # PyMySQL sets them on the socket before each read and write
            setattr(connection, f"_{name}", value)

    return restore


def _pg8000(keywords: dict[str, Any], seconds: float) -> Restore | None:
    if keywords.get("timeout") is not None:
        return None  # the application's own limit, which stays in effect
    keywords["timeout"] = seconds

    def restore(connection: Any) -> None:
        connection._usock.settimeout(None)

    return restore


_WAYS: dict[str, Callable[[dict[str, Any], float], Restore | None]] = {"pymysql": _pymysql, "pg8000": _pg8000}
