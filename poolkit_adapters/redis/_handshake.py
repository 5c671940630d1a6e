"""The handshake of a connection has a limit, also where the application wants none for its commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poolkit_adapters.redis._driver import exceptions

__all__ = ("handshake_limit", "handshake_limit_async")


@contextmanager
def handshake_limit(connection: Any, seconds: float | None) -> Iterator[None]:
    """A block in which ``connection``, which has ``socket_timeout=None``, connects, and waits at most ``seconds`` for
    each answer (None: no limit).

    redis-py's ``socket_connect_timeout`` ends when TCP is connected; TLS (in threads), HELLO, AUTH and the like that
    follow have ``socket_timeout``. With ``socket_timeout=None``, for blocking commands, a server that accepts and says
    nothing would keep its caller and the place in the pool for good.
    """
    connection.socket_timeout = seconds
    try:
        yield
    finally:
        connection.socket_timeout = None
        sock = getattr(connection, "_sock", None)  # None where the connect has failed
        if sock is not None:
            sock.settimeout(None)
            parser: Any = connection._parser
            if hasattr(parser, "_socket_timeout"):  # hiredis
                parser._socket_timeout = None
            buffer: Any = getattr(parser, "_buffer", None)
            if hasattr(buffer, "socket_timeout"):
                buffer.socket_timeout = None


@contextmanager
def handshake_limit_async(connection: Any, seconds: float | None) -> Iterator[None]:
    """As :func:`handshake_limit`, in the running event loop: the connection's transport is aborted.

    Not with ``socket_timeout``: redis-py puts ``wait_for()`` around each write then, which loses cancellations before
    Python 3.12. TCP and TLS have ``socket_connect_timeout``. The timer goes on for redis-py's further attempts.
    """
    if seconds is None:
        yield
        return
    loop = asyncio.get_running_loop()
    late = False
    timer: asyncio.TimerHandle

    def time_is_up() -> None:
        nonlocal timer, late
        timer = loop.call_later(seconds, time_is_up)
        writer = connection._writer
        if writer is not None:  # TCP is connected
            late = True
            writer.transport.abort()

    timer = loop.call_later(seconds, time_is_up)
    try:
        yield
    except exceptions.ConnectionError as error:
        if not late:
            raise
        raise exceptions.TimeoutError(f"no answer to the handshake in {seconds:g} s") from error
    finally:
        timer.cancel()
