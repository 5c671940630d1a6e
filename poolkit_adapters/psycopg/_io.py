"""Looks at a connection that psycopg itself does not offer: without blocking, or within a deadline."""

from __future__ import annotations

import asyncio
import select
import time
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus, ExecStatus, PipelineStatus, PollingStatus, TransactionStatus

if TYPE_CHECKING:
    from psycopg.pq.abc import PGcancelConn, PGconn

__all__ = ("Canceller", "is_alive", "is_clean", "ping", "ping_async")

_IDLE = int(TransactionStatus.IDLE)  # plain numbers compare in half the time
_NO_PIPELINE = int(PipelineStatus.OFF)


def is_clean(pgconn: PGconn) -> bool:
    """Whether the connection stands between two transactions with nothing under way."""
    return pgconn.transaction_status == _IDLE and pgconn.pipeline_status == _NO_PIPELINE


def _ready(fd: int, timeout: float | None, *, write: bool = False) -> bool:
    """Whether ``fd`` can be read (or written) within ``timeout`` seconds. ``poll`` needs no descriptor of its own."""
    if hasattr(select, "poll"):
        poll = select.poll()
        poll.register(fd, select.POLLIN | (select.POLLOUT if write else 0))
        return bool(poll.poll(None if timeout is None else max(0.0, timeout) * 1000))
    ready = select.select([fd], [fd] if write else [], [], timeout)
    return bool(ready[0] or ready[1])


def is_alive(pgconn: PGconn) -> bool:
    """A look at an idle connection that asks the server nothing and never blocks.

    An idle connection may well have something to read: a notification, a notice, a changed parameter. libpq takes
    that in (and keeps notifications for the next user); only the end of the stream means that the server is gone.
    """
    try:
        for _ in range(3):  # the server's last words come before the end of the stream
            if pgconn.status != ConnStatus.OK:
                return False
            if not _ready(pgconn.socket, 0.0):
                return True
            pgconn.consume_input()
    except (psycopg.Error, OSError, ValueError):
        return False
    return pgconn.status == ConnStatus.OK


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


def ping(pgconn: PGconn, timeout: float | None) -> None:
    """One round trip within ``timeout`` seconds; raises psycopg.OperationalError or TimeoutError."""
    deadline = None if timeout is None else time.monotonic() + timeout
    _begin_ping(pgconn)
    errors: list[str] = []
    while True:
        unsent = bool(pgconn.flush())
        left = None if deadline is None else deadline - time.monotonic()
        if (left is not None and left <= 0) or not _ready(pgconn.socket, left, write=unsent):
            raise TimeoutError(f"no answer in {timeout:g} s")
        if _answered(pgconn, errors):
            return


async def ping_async(pgconn: PGconn) -> None:
    """As :func:`ping`; whoever cancels it must drop the connection."""
    loop = asyncio.get_running_loop()
    _begin_ping(pgconn)
    errors: list[str] = []
    while True:
        unsent = bool(pgconn.flush())
        await _wait_for(loop, pgconn.socket, write=unsent)
        if _answered(pgconn, errors):
            return


async def _wait_for(loop: asyncio.AbstractEventLoop, fd: int, *, read: bool = True, write: bool = False) -> None:
    ready: asyncio.Future[Any] = loop.create_future()

    def wake() -> None:
        if not ready.done():
            ready.set_result(None)

    if read:
        loop.add_reader(fd, wake)
    if write or not read:
        loop.add_writer(fd, wake)
    try:
        await ready
    finally:
        loop.remove_reader(fd)
        loop.remove_writer(fd)


class Canceller:
    """Stops the statement of one connection, even after psycopg has closed its socket.

    Interrupted while it waits for the end of a cancelled statement, psycopg drops the connection on the spot, and
    the server works on. What a cancel request needs is therefore kept aside from the start.
    """

    def __init__(self, pgconn: PGconn) -> None:
        self._conn: PGcancelConn | None = None
        self._old = None
        if psycopg.capabilities.has_cancel_safe():
            self._conn = pgconn.cancel_conn()
        else:  # libpq before 17
            self._old = pgconn.get_cancel()

    def cancel(self) -> None:
        """Blocks until the server has heard it; libpq's ``connect_timeout`` applies."""
        if self._conn is not None:
            self._conn.blocking()
        elif self._old is not None:
            self._old.cancel()

    async def cancel_async(self) -> None:
        """The same without blocking the event loop."""
        conn = self._conn
        if conn is None:
            await asyncio.to_thread(self.cancel)
            return
        loop = asyncio.get_running_loop()
        conn.start()
        try:
            while (status := conn.poll()) != PollingStatus.OK:
                if status == PollingStatus.FAILED:
                    raise psycopg.OperationalError(conn.get_error_message())
                await _wait_for(loop, conn.socket, read=status == PollingStatus.READING)
        finally:
            conn.finish()
