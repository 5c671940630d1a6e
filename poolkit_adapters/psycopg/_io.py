"""Checks of a connection that psycopg does not offer: without blocking, or with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus, PipelineStatus, TransactionStatus

from poolkit.errors import shown

from .._hang_up import hang_up
from .._readiness import ready, wait_for
from .._time_limits import Watch

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

__all__ = ("is_alive", "is_clean", "is_inside", "limited_rollback", "ping", "ping_async")

logger = logging.getLogger("psycopg.pool")

_IDLE = int(TransactionStatus.IDLE)  # plain numbers compare in half the time
_NO_PIPELINE = int(PipelineStatus.OFF)
_NO_LIMIT = contextlib.nullcontext()
_rollbacks = Watch()


def is_clean(pgconn: PGconn) -> bool:
    """Return whether the connection is outside a transaction and idle."""
    return pgconn.transaction_status == _IDLE and pgconn.pipeline_status == _NO_PIPELINE


def is_inside(connection: Any) -> bool:
    """Return whether psycopg counts the connection as inside a two-phase transaction or a ``transaction()`` block.

    The server may know of neither: a transaction that is prepared is not its session's, and a statement (``COMMIT``)
    may have ended that of the block. psycopg would refuse the next user's ``commit()`` and ``transaction()``.
    """
    return connection._tpc is not None or connection._num_transactions != 0


def is_alive(connection: psycopg.BaseConnection[Any]) -> bool:
    """Return whether an idle connection is alive. Sends nothing to the server and never blocks.

    An idle connection may have unread data: a notification, a notice, a changed parameter. libpq reads it, and
    notifications are kept for the next user. The connection is dead after a FATAL error, a reset or the end of the
    stream.
    """
    pgconn = connection.pgconn
    try:
        for _ in range(3):  # the server's last messages come before the end of the stream
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
    """Read what has arrived, and return whether it contains a FATAL error.

    Between statements libpq reports such an error as a notice. The end of the stream follows, but may arrive later.
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
        pgconn.is_busy()  # parses what consume_input() has read
    finally:
        pgconn.notice_handler = handler
    return bool(fatal)


def _keep_notifications(connection: psycopg.BaseConnection[Any]) -> None:
    """Pass the notifications that libpq has read on to psycopg, as psycopg does after each statement.

    psycopg calls the connection's handlers, or keeps them for ``notifies()``. In libpq they would wait until the next
    traffic on the connection.
    """
    if not (connection._notify_handlers or hasattr(connection, "_notifies_backlog")):
        return  # psycopg before 3.3 keeps none, so leave them in libpq
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
    """Read what has arrived, and return True if the reply is complete. Add the server's errors to ``errors``."""
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
    """Make one round trip within ``timeout`` seconds. Raises psycopg.OperationalError or TimeoutError."""
    pgconn = connection.pgconn
    deadline = None if timeout is None else time.monotonic() + timeout
    _begin_ping(pgconn)
    errors: list[str] = []
    while True:
        unsent = bool(pgconn.flush())
        left = None if deadline is None else deadline - time.monotonic()
        if (left is not None and left <= 0) or not ready(pgconn.socket, left, write=unsent):
            raise TimeoutError(f"no reply to the check within {timeout:g} s")
        if _answered(pgconn, errors):
            _keep_notifications(connection)
            return


def limited_rollback(
    connection: Any, seconds: float | None, error: BaseException | None
) -> contextlib.AbstractContextManager[None]:
    """Limit the end of a block of ``connection`` that failed with ``error``: psycopg rolls back, without a limit.

    After ``seconds`` (None: no limit) the connection is hung up, which psycopg logs; the block's own error stays. For a
    block without an error there is no limit: its commit is the application's, and takes as long as it needs.
    """
    return _NO_LIMIT if error is None or seconds is None else _hung_up_after(connection, seconds)


@contextlib.contextmanager
def _hung_up_after(connection: Any, seconds: float) -> Iterator[None]:
    if isinstance(connection, psycopg.AsyncConnection):
        timer = asyncio.get_running_loop().call_later(seconds, hang_up, connection)
        try:
            yield
        finally:
            timer.cancel()
    else:
        _rollbacks.begin(connection, seconds)
        try:
            yield
        finally:
            _rollbacks.end(connection)


async def ping_async(connection: psycopg.BaseConnection[Any]) -> None:
    """Do the same as :func:`ping` for asyncio. After a cancellation the connection must be dropped."""
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
