"""What the engine pools here: SQLAlchemy's connection record, a slot that can connect, be emptied and reconnect."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import Pool as SQLAlchemyPool
from sqlalchemy.pool.base import _ConnectionRecord

from poolkit import Connector
from poolkit.connector import Verdict, default_classify

from .._errors import name_missing_descriptor, release_locals
from ._connect_time import Attempt
from ._errors import PoolLeaseOverdue, PoolNotLeased, connect_error, lease_cut
from ._look import looks_alive
from ._readonly import ReadOnlyServer

if TYPE_CHECKING:
    from ._pool import BasePool

__all__ = ("CheckedRecordConnector", "Record", "RecordConnector")


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
        except BaseException as error:  # noqa: BLE001  raised again, perhaps as another
            half, self.dbapi_connection = self.dbapi_connection, None
            if half is not None:  # interrupted in a "connect" event: SQLAlchemy before 2.0.58 leaves it open
                SQLAlchemyPool._close_connection(self.pool, half, terminate=True)
            release_locals(error, before)
            name_missing_descriptor(error)
            told: BaseException = error
            if isinstance(error, Exception):
                told = self.pool._overdue(attempt) if late else connect_error(error)
            try:
                if told is error:
                    raise
                raise told from (error if late else told.__cause__)
            finally:
                del told  # no cycle of error, traceback and this frame: a half-open connection may hang on it


class _Inherited:
    """What a forked child finds in place of a connection that its parent had checked out."""

    def rollback(self) -> None:
        """Nothing: the transaction is the parent's."""

    commit = close = rollback

    def __getattr__(self, name: str) -> Any:
        raise PoolNotLeased(
            "This connection was checked out before fork() and belongs to the parent process; "
            "get a new one from the engine"
        )


class _Cut:
    """What the user of a connection finds in its place when the pool has closed it under that user.

    Some drivers say nothing when a closed connection is to commit (asyncpg under SQLAlchemy): the work of the
    transaction would be lost, and nobody would know.
    """

    def __init__(self, connection: Any, driver_errors: Any, pool: str) -> None:
        self._closed_connection = connection
        self._driver_errors = driver_errors
        self._text = (
            f"pool {pool!r} closed this connection while it was in use (on_leak='reclaim', a budget, or the end of the "
            "pool); what was not committed before is lost"
        )

    def commit(self) -> None:
        """Refuse: there is nothing left to be committed."""
        raise lease_cut(self._driver_errors, self._text)

    def cursor(self, *arguments: Any, **keywords: Any) -> Any:
        """Refuse."""
        raise lease_cut(self._driver_errors, self._text)

    def rollback(self) -> None:
        """Nothing: the server has rolled back."""

    close = rollback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._closed_connection, name)


class RecordConnector(Connector[Record]):
    """Opens and closes records. SQLAlchemy's events, its log lines and the dialect's ways are all in there."""

    packages = ("sqlalchemy",)
    overdue_error = PoolLeaseOverdue
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
            self._cut(connection)
            connection.invalidate(error)
        else:
            connection.close()

    def _cut(self, record: Record) -> None:
        """Let whoever has the connection still hear that it is closed."""
        fairy: Any = None if record.fairy_ref is None else record.fairy_ref()
        if fairy is not None and fairy.dbapi_connection is not None:
            driver_errors = getattr(self.pool._dialect, "loaded_dbapi", None)
            fairy.dbapi_connection = _Cut(fairy.dbapi_connection, driver_errors, self.pool.poolkit.name)

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
