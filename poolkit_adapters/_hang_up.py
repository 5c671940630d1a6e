"""Ends a connection at its socket, which needs no cooperation of the peer or the driver."""

from __future__ import annotations

import os
import socket
import sys
import threading
from types import FrameType
from typing import Any
from weakref import proxy

__all__ = ("Connecting", "finish", "hang_up", "is_reachable", "is_socket")

_SOCKET = socket.socket
_IN_PYTHON = {"mysql", "pg8000", "pymysql", "redis", "valkey"}
"""Packages of drivers whose limits are limits of each read."""


def is_socket(value: Any) -> bool:
    """Return whether ``value`` is a socket: the standard library's, or gevent's after its patch.

    While a test of the application has a function in the place of ``socket.socket``, ``isinstance`` would raise
    TypeError, and hide the error that is being handled.
    """
    kind: Any = socket.socket
    return isinstance(value, _SOCKET) or (isinstance(kind, type) and isinstance(value, kind))


class Connecting:
    """A connect of a driver written in Python. Create it in the function that then calls the driver.

    Most of these drivers limit each read of the handshake, so a server that sends a byte now and then holds a connect
    forever. The driver's connection cannot be reached before it is open, so the socket is looked up where the driver
    keeps it meanwhile: in the variables of the functions that are running, and in the objects whose methods they are.
    Drivers written in C keep it elsewhere; their libraries limit the whole connect. Their frames are not even read:
    before Python 3.13 that leaves a copy of the variables in the frame, which would keep a half-open connection.
    """

    def __init__(self, driver: str) -> None:
        self._package = driver.partition(".")[0]
        self._thread = threading.get_ident()
        greenlets: Any = sys.modules.get("greenlet")
        # weak: of a thread that has ended, greenlet frees the main greenlet although somebody holds it, unless
        # gc.get_referrers() finds who that is; during a collection it does not, and the collector then crashes
        self._greenlet = None if greenlets is None else proxy(greenlets.getcurrent())
        self._caller = id(sys._getframe(1))  # not the frame itself, which would be a cycle
        self._shut: set[socket.socket] = set()
        self.pause = 0.1
        """Seconds until a connect that goes on is ended again. Each further pause is longer."""
        self.over = True
        """Whether the driver's function has returned, or was not called yet."""

    def hang_up(self) -> None:
        """Shut down the sockets on which the driver waits. It may open another one, for the host's next address."""
        if self.over:
            return
        for sock in self._sockets():
            self._shut.add(sock)
            try:
                _SOCKET.shutdown(sock, socket.SHUT_RDWR)  # of the socket itself, also under TLS
            except OSError:
                pass  # closed meanwhile, or not connected yet, which ends the attempt too

    def ended(self) -> bool:
        """Close the sockets that were shut down, and return whether there were any. Call it in the same thread."""
        self.over = True
        shut, self._shut = self._shut, set()
        for sock in shut:
            number = sock.detach()  # close() would wait for the files that the driver has made of it
            if number >= 0:
                os.close(number)
        return bool(shut)

    def _sockets(self) -> set[socket.socket]:
        frames = self._frames() if self._package in _IN_PYTHON else []
        while frames and frames[-1].f_globals.get("__name__", "").partition(".")[0] != self._package:
            frames.pop()  # not a frame of the driver: one that calls the driver
        found: set[socket.socket] = set()
        for frame in frames:
            values = frame.f_locals
            own = getattr(values.get("self"), "__dict__", {})
            found.update(value for value in (*values.values(), *own.values()) if is_socket(value))
        return found

    def _frames(self) -> list[FrameType]:
        """Yield the frames of the connect, the innermost one first."""
        # a greenlet that does not run now (under gevent, while it waits) has its own stack
        try:
            frame = getattr(self._greenlet, "gr_frame", None)
        except ReferenceError:  # it has ended
            frame = None
        frame = frame or sys._current_frames().get(self._thread)
        found: list[FrameType] = []
        while frame is not None and id(frame) != self._caller:
            found.append(frame)
            frame = frame.f_back
        return [] if frame is None else found


def hang_up(driver: Any) -> bool:
    """Shut down the socket of a driver's connection, so that a pending read or write on it fails.

    The descriptor stays open and belongs to the driver. Call this only where nothing can close the connection at the
    same time: in its own event loop, or while the operation that uses it is held. SQLite has no socket, so a running
    statement is interrupted instead. Returns False if the driver gives no access to its socket. Never raises.
    """
    if isinstance(driver, Connecting):
        driver.hang_up()
        return True
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


def is_reachable(driver: Any) -> bool:
    """Return whether :func:`hang_up` ends this open connection's session, as its socket can be found. Never raises.

    It calls nothing of the connection, which may be a test's or a tracer's object that records each call.
    """
    try:
        return _socket_holder(driver) is not None
    except Exception:  # noqa: BLE001  a driver that refuses
        return False


def finish(driver: Any) -> None:
    """Call :func:`hang_up`, and close a psycopg connection, which otherwise cannot be closed without an event loop."""
    hang_up(driver)
    pgconn = getattr(driver, "pgconn", None)
    if pgconn is not None:
        pgconn.finish()


def _descriptor(driver: Any) -> int | None:
    """Return the descriptor of the socket (-1: closed), or None if it cannot be found."""
    holder = _socket_holder(driver)
    sock = holder.get_extra_info("socket") if hasattr(holder, "get_extra_info") else holder
    return None if sock is None else int(sock.fileno())


def _socket_holder(driver: Any) -> Any:
    """Return the transport, the socket, or the connection that has its descriptor; None if there is none of them."""
    writer = getattr(driver, "_writer", None)  # aiomysql
    transport = getattr(driver, "_transport", None) or getattr(writer, "transport", None)  # asyncpg, asyncmy
    if transport is not None:
        return transport
    if callable(getattr(driver, "fileno", None)):  # psycopg, psycopg2, mysqlclient
        return driver
    broker = getattr(driver, "_socket", None)  # MySQL Connector in pure Python
    sock = getattr(driver, "_usock", None) or getattr(driver, "_sock", None)  # pg8000; PyMySQL
    return sock or getattr(broker, "sock", None)


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
