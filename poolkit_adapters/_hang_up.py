"""Ends a connection at its socket, which needs no cooperation of the peer or the driver."""

from __future__ import annotations

import socket
from typing import Any

__all__ = ("finish", "hang_up", "is_socket")

_SOCKET = socket.socket


def is_socket(value: Any) -> bool:
    """Whether ``value`` is a socket of this process's kind: the standard library's, or gevent's after its patch.

    While a test of the application has a function in the place of ``socket.socket``, ``isinstance`` would raise
    TypeError, and hide the error that is being handled.
    """
    kind: Any = socket.socket
    return isinstance(value, _SOCKET) or (isinstance(kind, type) and isinstance(value, kind))


def hang_up(driver: Any) -> bool:
    """Shut down the socket of a driver's connection, so that a pending read or write on it fails.

    The descriptor stays open and belongs to the driver. Call this only where nothing can close the connection at the
    same time: in its own event loop, or while the operation that uses it is held. SQLite has no socket, so a running
    statement is interrupted instead. Returns False if the driver gives no access to its socket. Never raises.
    """
    try:
        number = _descriptor(driver)
    except Exception:  # noqa: BLE001  closed already, which each driver reports with an error of its own
        return True
    if number is None:
        return _interrupt(driver)
    if number >= 0:
        # not shutdown() of the driver's socket object: uvloop's have none, and under TLS it would end only TLS
        sock = socket.socket(fileno=number)
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer has closed it already
        finally:
            sock.detach()
    return True


def finish(driver: Any) -> None:
    """Call :func:`hang_up`, and close a psycopg connection, which otherwise cannot be closed without an event loop."""
    hang_up(driver)
    pgconn = getattr(driver, "pgconn", None)
    if pgconn is not None:
        pgconn.finish()


def _descriptor(driver: Any) -> int | None:
    """Return the descriptor of the socket (-1: closed), or None if it cannot be found."""
    writer = getattr(driver, "_writer", None)  # aiomysql
    transport = getattr(driver, "_transport", None) or getattr(writer, "transport", None)  # asyncpg, asyncmy
    if transport is not None:
        sock = transport.get_extra_info("socket")
    elif callable(getattr(driver, "fileno", None)):  # psycopg, psycopg2, mysqlclient
        sock = driver
    else:
        broker = getattr(driver, "_socket", None)  # MySQL Connector in pure Python
        sock = getattr(driver, "_usock", None) or getattr(driver, "_sock", None)  # pg8000; PyMySQL
        sock = sock or getattr(broker, "sock", None)
    return None if sock is None else int(sock.fileno())


def _interrupt(driver: Any) -> bool:
    sqlite = getattr(driver, "_conn", driver)  # aiosqlite keeps sqlite3's connection there
    interrupt = getattr(sqlite, "interrupt", None)
    if not callable(interrupt):
        return False
    try:
        interrupt()
    except Exception:  # noqa: BLE001  closed already
        pass
    return True
