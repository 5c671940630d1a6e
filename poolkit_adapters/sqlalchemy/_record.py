"""What the engine pools here: SQLAlchemy's connection record, a slot that can connect, be emptied and reconnect."""

from __future__ import annotations

import sys
import traceback
from typing import TYPE_CHECKING, Any

from sqlalchemy import exc
from sqlalchemy.pool import Pool as SQLAlchemyPool
from sqlalchemy.pool.base import _ConnectionRecord

from poolkit import Connector
from poolkit.connector import Verdict, default_classify

from .._errors import name_missing_descriptor
from ._connect_time import Attempt
from ._look import looks_alive
from ._readonly import ReadOnlyServer

if TYPE_CHECKING:
    from ._pool import BasePool

__all__ = ("CheckedRecordConnector", "Record", "RecordConnector", "let_go")


class Record(_ConnectionRecord):
    """SQLAlchemy's record, with what the engine has to know of it."""

    loop: Any = None
    """The event loop in which its connection lives (async pools)."""
    broken: BaseException | None = None
    """Why its connection must be cut rather than closed in good order."""
    ending: Any = None
    """The task that still ends the connection it held last (async pools); the slot is not free before."""
    misled: BaseException | None = None
    """Set when the server behind its connection turned out to be the wrong one."""

    attempt: Attempt | None = None
    """The connect that is under way, or was the last one."""

    def __init__(self, pool: BasePool) -> None:
        self.pool = pool
        super().__init__(pool, connect=False)

    def open(self) -> None:
        """Connect for the first time; afterwards SQLAlchemy reconnects by itself."""
        self._ConnectionRecord__connect()

    def opened(self, connection: Any) -> None:
        """The driver has opened ``connection``; "connect" events follow."""
        if self.attempt is not None:
            self.attempt.opened(connection)

    def over(self) -> bool:
        """The connect is over, in whatever way; whether it has used up its time."""
        return False

    # the one place of SQLAlchemy (2.0 and 2.1) through which each connect and reconnect goes, events included
    def _ConnectionRecord__connect(self) -> None:  # noqa: N802  its name in SQLAlchemy
        """As in SQLAlchemy; a connect that is interrupted leaves no open session, whoever keeps its traceback."""
        before = sys.exc_info()[1]
        attempt = self.attempt = Attempt(self.pool.poolkit.config)
        connect: Any = super()
        late = False
        try:
            try:
                connect._ConnectionRecord__connect()
            finally:
                late = self.over()
            if late:  # it was done in the moment in which its socket was shut down
                raise self.pool._overdue(attempt)
        except BaseException as error:
            half, self.dbapi_connection = self.dbapi_connection, None
            if half is not None:  # interrupted in a "connect" event: SQLAlchemy before 2.0.58 leaves it open
                SQLAlchemyPool._close_connection(self.pool, half, terminate=True)
            if not isinstance(error, self.pool._driver_errors):
                let_go(error, before)
            else:
                name_missing_descriptor(error)
            if late and isinstance(error, Exception):
                raise self.pool._overdue(attempt) from error
            raise


def let_go(error: BaseException, before: BaseException | None = None) -> None:
    """Empty the frames through which ``error`` came: a connection that was being opened hangs on them.

    psycopg, for one, has no other reference to it, and whoever keeps the traceback (a log, a test runner, the
    garbage collector) would keep the session at the server. ``before``: an error that was being handled when the
    connect began; it and what led to it are somebody else's.
    """
    seen: list[BaseException] = []
    todo: list[BaseException | None] = [error]
    while todo:
        one = todo.pop()
        if one is None or one is before or one in seen:
            continue
        seen.append(one)
        traceback.clear_frames(one.__traceback__)
        todo += (one.__cause__, one.__context__)


class _Inherited:
    """What a forked child finds in place of a connection that its parent had checked out."""

    def rollback(self) -> None:
        """Nothing: the transaction is the parent's."""

    commit = close = rollback

    def __getattr__(self, name: str) -> Any:
        raise exc.InvalidRequestError(
            "This connection was checked out before fork() and belongs to the parent process; "
            "get a new one from the engine"
        )


class RecordConnector(Connector[Record]):
    """Opens and closes records. SQLAlchemy's events, its log lines and the dialect's ways are all in there."""

    packages = ("sqlalchemy",)
    must_be_closed = False  # as under QueuePool, an engine may be dropped
    connect_in_caller = True  # as under QueuePool: thread-bound drivers, and errors, stay with their caller

    def __init__(self, pool: BasePool) -> None:
        self.pool = pool
        self.close_in_caller = not pool._is_asyncio

    def connect(self, timeout: float | None) -> Record:
        """Open a connection; its time limit is the driver's own (see ``limit_connects``)."""
        return self.pool._create_connection()

    def close(self, connection: Record) -> None:
        """Close what the record holds, if it holds anything; cut it if it is in use or known to be broken."""
        if self.pool._elsewhere(connection):
            self.pool._move(connection, None)
        elif connection.broken is not None or connection.in_use:
            error, connection.broken = connection.broken, None
            connection.invalidate(error)
        else:
            connection.close()

    def leftover(self, error: BaseException) -> Any:
        """The task that sees to its end a connect whose caller was cancelled."""
        return self.pool._leftover()

    def classify(self, error: BaseException) -> Verdict:
        """SQLAlchemy judges the driver's errors itself; what is left is the server that only reads."""
        return Verdict.RETIRE if isinstance(error, ReadOnlyServer) else default_classify(error)

    def forget(self, connection: Record) -> None:
        """In a forked child: whoever holds the connection here can only put it away, and nothing is sent.

        The parent's driver connection stays in the record, which the engine keeps alive for ever.
        """
        fairy: Any = None if connection.fairy_ref is None else connection.fairy_ref()
        connection.fairy_ref = None
        if fairy is not None:
            fairy.dbapi_connection = _Inherited()
            fairy._connection_record = None
            finalizer = getattr(fairy, "_finalizer", None)  # 2.0 has none: its weak reference was fairy_ref
            if finalizer is not None:
                finalizer.detach()


class CheckedRecordConnector(RecordConnector):
    """Used when ``check_after_idle`` or ``keepalive`` asks for checks; QueuePool makes none by itself."""

    def peek(self, connection: Record) -> bool:
        """Whether nobody has hung up, as far as the socket tells without asking the server."""
        if connection.dbapi_connection is None or self.pool._elsewhere(connection):
            return True  # an empty slot; or it will be replaced anyway
        return looks_alive(connection.driver_connection)

    def check(self, connection: Record, timeout: float | None) -> bool:
        """The dialect's ping, with its events, bounded by ``timeout`` where the driver's socket can be reached."""
        dbapi_connection = connection.dbapi_connection
        if dbapi_connection is None or self.pool._elsewhere(connection):
            return True
        connection.broken = ConnectionAbortedError("check interrupted")
        try:
            alive = self.pool._ping(connection, dbapi_connection, timeout)
        except Exception as error:
            connection.broken = error
            raise
        connection.broken = None if alive else ConnectionAbortedError("the ping failed")
        return alive
