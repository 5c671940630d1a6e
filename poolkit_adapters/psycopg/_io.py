"""Looks at a connection that psycopg itself does not offer: without blocking, or within a deadline."""

from __future__ import annotations

import asyncio
import logging
import select
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PipelineStatus, TransactionStatus

from poolkit.errors import shown

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ("is_alive", "is_clean", "ping", "ping_async", "ready", "wait_for")

logger = logging.getLogger("psycopg.pool")

_IDLE = int(TransactionStatus.IDLE)  # plain numbers compare in half the time
_NO_PIPELINE = int(PipelineStatus.OFF)


def is_clean(pgconn: PGconn) -> bool:
    """Whether the connection stands between two transactions with nothing under way."""
    return pgconn.transaction_status == _IDLE and pgconn.pipeline_status == _NO_PIPELINE


def ready(fd: int, timeout: float | None, *, write: bool = False) -> bool:
    """Whether ``fd`` can be read (or written) within ``timeout`` seconds. ``poll`` needs no descriptor of its own."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN | (select.POLLOUT if write else 0))
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))
    usable = select.select([fd], [fd] if write else [], [], timeout)
    return bool(usable[0] or usable[1])


def is_alive(connection: psycopg.BaseConnection[Any]) -> bool:
    """A look at an idle connection that asks the server nothing and never blocks.

    An idle connection may well have something to read: a notification, a notice, a changed parameter. libpq takes
    that in, and notifications are kept for the next user. The server is gone after a FATAL error, a reset or the end
    of the stream.
    """
    pgconn = connection.pgconn
    try:
        for _ in range(3):  # the server's last words come before the end of the stream
            if pgconn.status != ConnStatus.OK:
                return False
            if not ready(pgconn.socket, 0.0):
                return True
            if _read_fatal(pgconn):
                return False
            _keep_notifications(connection)
    except (psycopg.Error, OSError, ValueError):
        return False
    return pgconn.status == ConnStatus.OK


def _read_fatal(pgconn: PGconn) -> bool:
    """Take in what has arrived; whether it contains a FATAL error, which libpq reports as a notice between statements.

    The end of the stream follows a FATAL error, but may not have arrived with it.
    """
    fatal: list[bool] = []
    handler = pgconn.notice_handler

    def note(result: PGresult) -> None:
        if result.error_field(DiagnosticField.SEVERITY_NONLOCALIZED) in (b"FATAL", b"PANIC"):
            fatal.append(True)
        if handler is not None:
            handler(result)

    pgconn.notice_handler = note
    try:
        pgconn.consume_input()
        pgconn.is_busy()  # consume_input() only reads; this parses
    finally:
        pgconn.notice_handler = handler
    return bool(fatal)


def _keep_notifications(connection: psycopg.BaseConnection[Any]) -> None:
    """Hand the notifications that libpq has read to psycopg, as psycopg does after each statement.

    psycopg calls the connection's handlers, or keeps them for ``notifies()``. Left in libpq they would wait for the
    next traffic on the connection.
    """
    if not (connection._notify_handlers or hasattr(connection, "_notifies_backlog")):
        return  # psycopg before 3.3 keeps none: there libpq is the safer place
    pgconn = connection.pgconn
    while (notification := pgconn.notifies()) is not None:
        try:
            if pgconn.notify_handler is not None:
                pgconn.notify_handler(notification)
        except Exception:
            logger.exception("error processing a notification on %s", shown(connection))


def _begin_ping(pgconn: PGconn) -> None:
    if not is_clean(pgconn):
        raise psycopg.OperationalError("the idle connection is not in a clean state")
    # an empty query: no transaction, no snapshot, no plan, no prepared statement; also through pgbouncer
    pgconn.send_query(b"")


def _answered(pgconn: PGconn, errors: list[str]) -> bool:
    """Take in what has arrived; True when the answer is complete. A dying server's last words go to ``errors``."""
    pgconn.consume_input()
    while not pgconn.is_busy():
        result = pgconn.get_result()
        if result is None:
            if errors:
                raise psycopg.OperationalError(errors[0])
            return True
        if result.status == ExecStatus.FATAL_ERROR:
            errors.append(result.get_error_message())
    return False


def ping(connection: psycopg.BaseConnection[Any], timeout: float | None) -> None:
    """One round trip within ``timeout`` seconds; raises psycopg.OperationalError or TimeoutError."""
    pgconn = connection.pgconn
    deadline = None if timeout is None else time.monotonic() + timeout
    _begin_ping(pgconn)
    errors: list[str] = []
    while True:
        unsent = bool(pgconn.flush())
        left = None if deadline is None else deadline - time.monotonic()
        if (left is not None and left <= 0) or not ready(pgconn.socket, left, write=unsent):
            raise TimeoutError(f"no answer in {timeout:g} s")
        if _answered(pgconn, errors):
            _keep_notifications(connection)
            return


async def ping_async(connection: psycopg.BaseConnection[Any]) -> None:
    """As :func:`ping`; whoever cancels it must drop the connection."""
    pgconn = connection.pgconn
    loop = asyncio.get_running_loop()
    _begin_ping(pgconn)
    errors: list[str] = []
    while True:
        unsent = bool(pgconn.flush())
        await wait_for(loop, pgconn.socket, write=unsent)
        if _answered(pgconn, errors):
            _keep_notifications(connection)
            return


async def wait_for(loop: asyncio.AbstractEventLoop, fd: int, *, read: bool = True, write: bool = False) -> None:
    """Sleep until ``fd`` can be read (or written)."""
    usable: asyncio.Future[Any] = loop.create_future()

    def wake() -> None:
        if not usable.done():
            usable.set_result(None)

    if read:
        loop.add_reader(fd, wake)
    if write or not read:
        loop.add_writer(fd, wake)
    try:
        await usable
    finally:
        loop.remove_reader(fd)
        loop.remove_writer(fd)
