"""The end of a psycopg connection that is given up in the middle of a statement, under every adapter.

libpq's ``finish()`` sends a Terminate message and closes the socket. The server reads that message only after its
statement; until then the session exists and counts against the server's limit. Therefore a second descriptor keeps the
socket, the server is asked to stop the statement, and the end of the stream shows that the session has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import threading
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg.pq import PipelineStatus, PollingStatus, TransactionStatus

from poolkit.errors import said

from ._readiness import ready, wait_for

if TYPE_CHECKING:
    from psycopg.pq.abc import PGcancelConn, PGconn

__all__ = ("CANCEL_TIMEOUT", "Ending", "is_interrupted", "limit_cancel", "observed_ending")

logger = logging.getLogger("psycopg")  # these records replace psycopg's own

CANCEL_TIMEOUT = 1.5
"""Seconds for stopping a statement, after which the connection is given up; below the default ``check_timeout``."""


class _Request:
    """One cancel request. Everything it needs is taken at the start: psycopg may close the connection meanwhile."""

    def __init__(self, pgconn: PGconn) -> None:
        self._conn: PGcancelConn | None = None
        self._old = None
        if psycopg.capabilities.has_cancel_safe():
            self._conn = pgconn.cancel_conn()
        else:  # libpq before 17
            self._old = pgconn.get_cancel()

    def send(self, timeout: float) -> None:
        """Block until the server has received the request. Raises TimeoutError after ``timeout`` seconds."""
        if self._conn is None:
            self._send_old(timeout)
            return
        deadline = time.monotonic() + timeout
        with contextlib.closing(self._steps(self._conn)) as steps:
            for fd, write in steps:
                _wait_until_ready(fd, deadline, timeout, write=write)

    async def send_async(self) -> None:
        """Do the same without blocking the event loop. The caller sets a time limit."""
        if self._conn is None:
            await asyncio.to_thread(self._send_old, CANCEL_TIMEOUT)
            return
        loop = asyncio.get_running_loop()
        with contextlib.closing(self._steps(self._conn)) as steps:
            for fd, write in steps:
                await wait_for(loop, fd, read=not write, write=write)

    @staticmethod
    def _steps(conn: PGcancelConn) -> Generator[tuple[int, bool], None, None]:
        """Yield what to wait for next: a descriptor, and whether it must be writable."""
        try:
            conn.start()
            while True:
                status = conn.poll()
                if status == PollingStatus.OK:
                    break
                if status == PollingStatus.FAILED:
                    raise psycopg.OperationalError(conn.get_error_message())
                yield conn.socket, status != PollingStatus.READING
        finally:
            conn.finish()

    def _send_old(self, timeout: float) -> None:
        """Send the request with ``PQcancel``, which has no time limit, and limit it here."""
        errors: list[Exception] = []

        def cancel() -> None:
            try:
                if self._old is not None:
                    self._old.cancel()
            except Exception as error:  # noqa: BLE001 - raised in the thread that waits
                errors.append(error)

        thread = threading.Thread(target=cancel, name="poolkit-cancel", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            raise TimeoutError(f"no answer to a cancel request in {timeout:g} s")
        if errors:
            raise errors[0]


class Ending:
    """What is needed to end the session of one connection after psycopg or the pool has closed the connection."""

    __slots__ = ("_fd", "_request", "at_work", "begun", "unheard")

    def __init__(self, pgconn: PGconn) -> None:
        self._fd = -1  # first: the finalizer needs it, also if the next line raises
        self._request = _Request(pgconn)
        self.at_work = False  # the connection was, or may be, closed during a statement
        self.unheard = False  # the server has not answered a cancel request, so do not send another one
        self.begun: Any = None  # the future that is done when the session has ended; None: not started

    def hold(self, pgconn: PGconn) -> None:
        """Keep the socket: a statement is running, and the connection may be closed at any moment."""
        self.at_work = True
        if self._fd < 0:
            try:
                self._fd = socket.dup(pgconn.socket)
            except (psycopg.Error, OSError):  # closed already, or no descriptor is free: only the request can be sent
                pass

    def let_go(self) -> None:
        """Release the socket: the statement has ended."""
        self.at_work = False
        fd, self._fd = self._fd, -1
        if fd >= 0:
            socket.close(fd)

    __del__ = let_go

    def look(self, pgconn: Any, *, interrupted: bool) -> None:
        """Record whether a statement is running, before the pool closes the connection.

        ``interrupted``: psycopg has closed it itself, in the middle of a statement. A cancel request that arrived
        between BEGIN and the statement did not stop the statement, so the server is asked once more.
        """
        if pgconn.pgconn_ptr is None:  # closed by psycopg, or by its user
            self.at_work = self.at_work or interrupted
            return
        if pgconn.transaction_status == TransactionStatus.ACTIVE or (
            pgconn.transaction_status != TransactionStatus.UNKNOWN and pgconn.pipeline_status != PipelineStatus.OFF
        ):
            self.hold(pgconn)
        else:
            self.let_go()

    @contextlib.contextmanager
    def _stream(self) -> Iterator[socket.socket | None]:
        fd, self._fd = self._fd, -1
        if fd < 0:
            yield None
            return
        with socket.socket(fileno=fd) as stream:
            yield stream

    def wait(self, limit: float | None) -> None:
        """Block until the server has ended the session, at most ``limit`` seconds."""
        deadline = None if limit is None else time.monotonic() + limit
        with self._stream() as stream:
            if not self.unheard:
                try:
                    self._request.send(CANCEL_TIMEOUT if limit is None else min(limit, CANCEL_TIMEOUT))
                except Exception as error:  # noqa: BLE001 - the statement may end by itself
                    logger.info("cannot cancel: %s", said(error))
            try:
                if stream is not None:
                    _read_to_the_end(stream, deadline)
            except TimeoutError:
                _late(limit)
            except OSError:
                pass  # reset: it has ended

    def begin(self, limit: float | None) -> Any:
        """Wait for the end of the session in a thread, if a statement is running. Call it after the close.

        Returns a future that is done when the server has ended the session, or after ``limit`` seconds. None: nothing
        is running, or no thread can be started.
        """
        if self.at_work and self.begun is None:
            self.begun = self._begin_thread(limit)  # not in a task: if the loop ended, nothing would free the slot
        return self.begun

    def _begin_thread(self, limit: float | None) -> Future[None] | None:
        done: Future[None] = Future()

        def run() -> None:
            try:
                self.wait(limit)
            finally:
                done.set_result(None)

        try:
            threading.Thread(target=run, name="poolkit-ending", daemon=True).start()
        except (RuntimeError, MemoryError):
            self.let_go()
            return None
        return done


def _wait_until_ready(fd: int, deadline: float, timeout: float, *, write: bool) -> None:
    """Wait for a descriptor of a cancel request. Raises TimeoutError at ``deadline``."""
    if not ready(fd, deadline - time.monotonic(), write=write):
        raise TimeoutError(f"no answer to a cancel request in {timeout:g} s")


def _read_to_the_end(stream: socket.socket, deadline: float | None) -> None:
    """Read until the server closes the connection. Raises TimeoutError at ``deadline``."""
    while True:
        stream.settimeout(None if deadline is None else max(0.001, deadline - time.monotonic()))
        if not stream.recv(65536):
            return


def _late(limit: float | None) -> None:
    logger.warning("the server has not ended a session in %g s after its connection was closed", limit)


def limit_cancel(connection: psycopg.BaseConnection[Any]) -> Ending:
    """Limit what psycopg does when a statement on ``connection`` is cancelled or interrupted: see :func:`_try_cancel`.

    Returns the connection's ending, which :func:`observed_ending` finds again.
    """
    ending = Ending(connection.pgconn)
    mine: Any = connection
    asynchronous = isinstance(connection, psycopg.AsyncConnection)
    mine._try_cancel = partial(_try_cancel_async if asynchronous else _try_cancel, connection.pgconn, ending)
    mine._poolkit_ending = ending
    return ending


def observed_ending(connection: Any) -> Ending | None:
    """Call this before ``connection`` is closed. Returns its ending, which knows then whether a statement is running.

    None: :func:`limit_cancel` was not called for it.
    """
    ending: Ending | None = getattr(connection, "_poolkit_ending", None)
    if ending is not None:
        ending.look(connection.pgconn, interrupted=is_interrupted(connection))
    return ending


def is_interrupted(connection: Any) -> bool:
    """Return whether psycopg itself has closed the connection in the middle of a statement."""
    return connection is not None and bool(connection.broken) and connection.pgconn.pgconn_ptr is None


def _try_cancel(pgconn: PGconn, ending: Ending, *, timeout: float = CANCEL_TIMEOUT) -> None:
    """Stop the statement. psycopg calls this in the thread that was interrupted in the middle of it.

    psycopg itself waits five seconds for an answer to the cancel request, then five more for the end of the statement.
    Older releases wait for that end without a limit. A server that answers neither in time will not do so later either:
    the connection is given up.
    """
    interruption = sys.exc_info()[1]
    ending.hold(pgconn)
    deadline = time.monotonic() + min(timeout, CANCEL_TIMEOUT)
    answered = False
    try:
        with _failed_request():
            _Request(pgconn).send(deadline - time.monotonic())
        answered = True
        # libpq may have read the whole reply before. Nothing is read here: psycopg waits for what is in the socket
        if pgconn.is_busy() and not ready(pgconn.socket, deadline - time.monotonic()):
            raise TimeoutError
    except TimeoutError:
        _give_up(pgconn, ending, answered, interruption)
    else:
        ending.let_go()


async def _try_cancel_async(pgconn: PGconn, ending: Ending, *, timeout: float = CANCEL_TIMEOUT) -> None:
    """As :func:`_try_cancel`, in the task that was cancelled; a second cancellation leaves the rest to the pool."""
    interruption = sys.exc_info()[1]
    ending.hold(pgconn)
    answered = False

    async def stop() -> None:
        nonlocal answered
        with _failed_request():
            await _Request(pgconn).send_async()
        answered = True
        if pgconn.is_busy():  # see _try_cancel
            await wait_for(asyncio.get_running_loop(), pgconn.socket)

    try:
        await asyncio.wait_for(stop(), min(timeout, CANCEL_TIMEOUT))
    except (TimeoutError, asyncio.TimeoutError):  # one class since Python 3.11
        _give_up(pgconn, ending, answered, interruption)
    else:
        ending.let_go()


@contextlib.contextmanager
def _failed_request() -> Iterator[None]:
    """Log a cancel request that the server has refused. The statement may end by itself, so wait for that anyway."""
    try:
        yield
    except TimeoutError:
        raise
    except Exception as error:  # noqa: BLE001  libpq's and the system's errors
        logger.warning("query cancellation failed: %s", said(error))


def _give_up(pgconn: PGconn, ending: Ending, answered: bool, interruption: BaseException | None) -> None:
    ending.unheard = not answered
    what = "end of a cancelled statement" if answered else "answer to a cancel request"
    logger.warning("no %s in %g s: closing the connection", what, CANCEL_TIMEOUT)
    pgconn.finish()
    if interruption is not None:
        raise interruption from None
