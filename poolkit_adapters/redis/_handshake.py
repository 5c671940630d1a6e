"""The handshake of a connection has a limit, also where the application wants none for its commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ("handshake_limit",)


@contextmanager
def handshake_limit(connection: Any, seconds: float | None) -> Iterator[None]:
    """A block in which ``connection`` connects, and waits at most ``seconds`` for each answer (None: no limit).

    redis-py's ``socket_connect_timeout`` ends when TCP is connected; TLS (in threads), HELLO, AUTH and the like that
    follow have ``socket_timeout``. With ``socket_timeout=None``, for blocking commands, a server that accepts and says
    nothing would keep its caller and the place in the pool for good.
    """
    if seconds is None or getattr(connection, "socket_timeout", seconds) is not None:
        yield
        return
    connection.socket_timeout = seconds
    try:
        yield
    finally:
        connection.socket_timeout = None
        sock = getattr(connection, "_sock", None)  # None where the connect has failed, and under asyncio
        if sock is not None:
            sock.settimeout(None)
            parser: Any = connection._parser
            if hasattr(parser, "_socket_timeout"):  # hiredis
                parser._socket_timeout = None
            buffer: Any = getattr(parser, "_buffer", None)
            if hasattr(buffer, "socket_timeout"):
                buffer.socket_timeout = None
