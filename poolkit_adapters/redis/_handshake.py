"""Limits the handshake of a connection, even if the application sets no limit for its commands."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from poolkit_adapters.redis._driver import async_connection, exceptions

__all__ = ("async_handshake_limit", "handshake_limit")


@contextmanager
def handshake_limit(connection: Any, seconds: float | None) -> Iterator[None]:
    """Limit each reply to ``seconds`` while ``connection``, which has ``socket_timeout=None``, connects in this block.

    None sets no limit. redis-py's ``socket_connect_timeout`` covers the TCP connect only; what follows (TLS in
    threads, HELLO, AUTH) has ``socket_timeout``. With ``socket_timeout=None``, which blocking commands need, a server
    that accepts and never replies would block the caller and its slot in the pool forever.
    """
    connection.socket_timeout = seconds
    try:
        yield
    finally:
        connection.socket_timeout = None
        sock = getattr(connection, "_sock", None)  # None if the connect failed
        if sock is not None:
            sock.settimeout(None)
            parser: Any = connection._parser
            if hasattr(parser, "_socket_timeout"):  # hiredis
                parser._socket_timeout = None
            buffer: Any = getattr(parser, "_buffer", None)
            if hasattr(buffer, "socket_timeout"):
                buffer.socket_timeout = None


@contextmanager
def async_handshake_limit(connection: Any, seconds: float | None) -> Iterator[None]:
    """As :func:`handshake_limit`, for asyncio.

    Only the reads have the limit: with a ``socket_timeout`` redis-py writes in ``asyncio.wait_for()``, which before
    Python 3.12 loses a cancellation that arrives when the write ends.
    """
    read: Any = connection.read_response

    async def read_response(*args: Any, **kwargs: Any) -> Any:
        try:
            async with async_connection.async_timeout(seconds):
                return await read(*args, **kwargs)
        except asyncio.TimeoutError:
            raise exceptions.TimeoutError(f"no answer to the handshake in {seconds:g} s") from None

    connection.read_response = read_response
    try:
        yield
    finally:
        del connection.read_response
