"""The object that the engine pools: SQLAlchemy's connection record, a slot that can connect, empty and reconnect."""

from __future__ import annotations

import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from sqlalchemy.pool import Pool as SQLAlchemyPool
from sqlalchemy.pool.base import _ConnectionRecord

from poolkit import AcquireTimeout, ConfigError, Connector, deadline
from poolkit.connector import Verdict, default_classify

from .._errors import release_locals
from .._hang_up import Connecting
from .._time_limits import caller_limit, shortest
from ._connect_time import Attempt
from ._errors import LeaseOverdue, NotLeased, connect_error, lease_cut, overdue
from ._exchange import Emptied, exchange, patience
from ._look import looks_alive
from ._readonly import ReadOnlyServer
from ._thread_bound import refuse_thread_bound

if TYPE_CHECKING:
    from ._pool import BasePool

__all__ = ("Record", "RecordChecks", "RecordConnector")


class Record(_ConnectionRecord):
    """SQLAlchemy's record, with the state that the engine needs."""

    loop: Any = None
    """The event loop to which its connection belongs (async pools)."""
    moved: bool = False
    """Whether its connection belonged to another event loop than its user."""
    broken: BaseException | None = None
    """Why its connection must be aborted and not closed gracefully."""
    ending: Any = None
    """A task or future that is done when nothing is left of its last connection. Only then its slot is free."""
    wrong_server: BaseException | None = None
    """Whether the server of its connection turned out to be the wrong one."""

    attempt: Attempt | None = None
    """The current or last connect."""
    asked: float = 0.0
    """When its user asked for a connection, in monotonic seconds; 0: it has no user yet."""

    def __init__(self, pool: BasePool, most: float | None = None) -> None:
        self.pool: BasePool = pool
        self.most = most  # seconds that a caller has left that connects the record itself; None: no limit
        super().__init__(pool, connect=False)

    spare: bool = False
    """Whether its slot was given back without a connection. The next connect may use the record again."""
    renewed: bool = False
    """Whether it has had a connection before."""

    def open(self) -> None:
        """Connect: for the first time, or after its slot was given back without a connection."""
        self.connect()

    def renew(self, most: float | None) -> None:
        """Prepare an empty record for another connect."""
        self.most, self.spare, self.renewed, self.asked = most, False, True, 0.0
        self.close()
        self.info.clear()

    def left(self) -> float | None:
        """Return the seconds that its user may still wait for a connection, at least 0 (None: no limit)."""
        if not self.asked:
            return None
        limit = patience(self.pool)
        return shortest(None if limit is None else max(0.0, self.asked + limit - time.monotonic()), deadline.left())

    def too_late(self, why: str) -> BaseException:
        """Return the error of its user, whose time was up before it had a connection."""
        waited = time.monotonic() - self.asked
        return self.pool._translate(AcquireTimeout(f"{self.pool.poolkit.name}: no connection in {waited:.2f} s; {why}"))

    def _checkin_failed(self, err: BaseException, _fairy_was_created: bool = True) -> None:
        """As in SQLAlchemy, except that a connect in progress continues and keeps its slot."""
        if self.ending is None:
            super()._checkin_failed(err, _fairy_was_created)
            return
        self.fairy_ref = None
        try:
            self._tell_of_checkin(None)
        finally:
            give_back = partial(self.pool._do_return_conn, self)
            if not self.pool._endings.delay(self, give_back):
                give_back()

    def checkin(self, _fairy_was_created: bool = True) -> None:
        """As in SQLAlchemy. If a listener fails, the connection is closed, and its slot becomes free."""
        if self.fairy_ref is None and _fairy_was_created:
            super().checkin(_fairy_was_created)  # warns
            return
        self.fairy_ref = None
        connection = self.dbapi_connection
        try:
            self._tell_of_checkin(connection)
        except BaseException:
            self.pool._do_return_conn(self, discard=True)
            raise
        self.pool._do_return_conn(self)

    def _tell_of_checkin(self, connection: Any) -> None:
        """Call the finalizers and listeners. ``connection``: the driver's; None: it was closed."""
        while self.finalize_callback:
            finalizer = self.finalize_callback.pop()
            if connection is not None:
                finalizer(connection)
        if self.pool.dispatch.checkin:
            self.pool.dispatch.checkin(connection, self)

    def begun(self, attempt: Attempt) -> None:
        """Record that the driver is about to be called, and how much time it has."""

    def opened(self, connection: Any) -> None:
        """Record that the driver has opened ``connection``. "connect" events follow."""
        if self.attempt is not None:
            self.attempt.opened(connection)
        self.pool._endings.opened(connection)
        if not self.pool.poolkit.config.connect_in_caller:
            refuse_thread_bound(self.pool.poolkit.name, connection)

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:
        """As in SQLAlchemy, and remember the end of the connection."""
        if self.dbapi_connection is None:
            return
        key = id(self.dbapi_connection)
        try:
            super().invalidate(e, soft)
        finally:
            self.ending = self.pool._endings.of(key)

    def over(self) -> bool:
        """Record that the connect has ended, and return whether it exceeded its limit."""
        return False

    # the one place of SQLAlchemy (2.0 and 2.1) through which it reconnects
    def _ConnectionRecord__connect(self) -> None:  # noqa: N802  its name in SQLAlchemy
        """Do not reconnect in place: see :mod:`._exchange`."""
        self.dbapi_connection = None
        raise Emptied

    def current(self) -> Any:
        """Return the connection. Raise :class:`Emptied` if there is none, or it was outdated and is closed now."""
        key = id(self.dbapi_connection)
        try:
            return super().get_connection()
        except BaseException:
            if self.dbapi_connection is None and self.ending is None:
                self.ending = self.pool._endings.of(key)  # its close goes on: the server still has its session
            raise

    def get_connection(self) -> Any:
        """As in SQLAlchemy. If the connection is lost or outdated, its user gets another record."""
        try:
            return self.current()
        except Emptied:
            pass
        if self.fairy_ref is not None:
            return exchange(self)
        self.connect()  # for a caller that has taken the record without a checkout
        return self.dbapi_connection

    def connect(self) -> None:
        """Connect as SQLAlchemy does, events included, in the calling thread or greenlet.

        An interrupted connect leaves no session, even if its traceback is kept.
        """
        before = sys.exc_info()[1]
        attempt = self.attempt = Attempt(self.pool.poolkit.config, self.most)
        attempt.connecting = Connecting(getattr(getattr(self.pool._dialect, "dbapi", None), "__name__", ""))
        connect: Any = super()
        late = False
        try:
            try:
                connect._ConnectionRecord__connect()
            finally:
                late = self.over()
            if late:  # it ended at the moment at which its socket was shut down
                raise overdue(self.pool._dialect, attempt.seconds)
        except BaseException as error:  # noqa: BLE001  re-raised, possibly as another error
            half, self.dbapi_connection = self.dbapi_connection, None
            if half is not None:  # interrupted in a "connect" event: SQLAlchemy before 2.0.58 leaves it open
                SQLAlchemyPool._close_connection(self.pool, half, terminate=True)
            release_locals(error, before)
            raised: BaseException = error
            if isinstance(error, Exception):
                raised = overdue(self.pool._dialect, attempt.seconds) if late else connect_error(error)
            try:
                if raised is error:
                    raise
                raise raised from (error if late else raised.__cause__)
            finally:
                del raised  # breaks the cycle of error, traceback and this frame, which could keep a connection open


class StandIn:
    """Replaces a connection that its user must no longer use. It has no session that could be ended."""


class _Inherited(StandIn):
    """Replaces, in a forked child, a connection that the parent had checked out."""

    def rollback(self) -> None:
        """Do nothing, because the transaction belongs to the parent."""

    commit = close = rollback

    def __getattr__(self, name: str) -> Any:
        raise NotLeased(
            "This connection was checked out before fork() and belongs to the parent process; "
            "get a new one from the engine"
        )


class _Cut(StandIn):
    """Replaces a connection that the pool closed during its lease, for its user.

    Some drivers raise no error when a closed connection commits (asyncpg under SQLAlchemy). The work of the
    transaction would then be lost silently.
    """

    def __init__(self, connection: Any, driver_errors: Any, pool: str) -> None:
        self._closed_connection = connection
        self._driver_errors = driver_errors
        self._text = (
            f"pool {pool!r} closed this connection while it was in use (on_leak='reclaim', a budget, or the end of the "
            "pool); uncommitted changes are lost"
        )

    def commit(self) -> None:
        """Raise an error, because the changes are lost."""
        raise lease_cut(self._driver_errors, self._text)

    def cursor(self, *arguments: Any, **keywords: Any) -> Any:
        """Raise an error, because the connection is closed."""
        raise lease_cut(self._driver_errors, self._text)

    def rollback(self) -> None:
        """Do nothing, because the server has rolled back."""

    close = rollback

    def __getattr__(self, name: str) -> Any:
        return getattr(self._closed_connection, name)


class RecordChecks:
    """The checks that ``check_after_idle`` or ``keepalive`` requires. QueuePool makes none by itself."""

    def __init__(self, pool: BasePool) -> None:
        self._io = pool._io

    def peek(self, connection: Record) -> bool:
        """Return whether the socket shows that the connection is alive, without sending anything."""
        if connection.dbapi_connection is None or self._io.elsewhere(connection):
            return True  # an empty slot, or a connection that will be replaced anyway
        return looks_alive(connection.driver_connection)

    def check(self, connection: Record, timeout: float | None) -> bool:
        """Run the dialect's ping with its events. ``timeout`` applies if the driver's socket can be reached."""
        dbapi_connection = connection.dbapi_connection
        if dbapi_connection is None or self._io.elsewhere(connection):
            return True
        connection.broken = ConnectionAbortedError("the check was interrupted")
        try:
            alive = self._io.ping(dbapi_connection, timeout)
        except Exception as error:
            connection.broken = error
            raise
        connection.broken = None if alive else ConnectionAbortedError("the ping failed")
        return alive


class RecordConnector(Connector[Record]):
    """Opens and closes records, including SQLAlchemy's events, its log lines and the dialect's behavior."""

    packages = ("sqlalchemy",)
    overdue_error = LeaseOverdue
    must_be_closed = False  # as with QueuePool, an engine may be dropped
    reports_errors = True  # as with QueuePool, a failed connect is an error of its caller

    def __init__(self, pool: BasePool, checks: RecordChecks | None) -> None:
        self.pool = pool
        self.close_in_caller = not pool._is_asyncio
        if checks is not None:
            self.peek, self.check = checks.peek, checks.check  # type: ignore[method-assign]
        self.connect_bound, self.give_up = pool._io.connect_bound, pool._io.give_up

    def connect(self, timeout: float | None) -> Record:
        """Open a connection. The driver's own limit applies (see ``limit_connects``).

        Where callers connect themselves, ``timeout`` is not longer than the caller may wait.
        """
        return self.pool._create_connection(caller_limit(self.pool.poolkit.config, timeout))

    def close(self, connection: Record) -> None:
        """Close the record's connection, if any. Abort it if it is in use or known to be broken."""
        if connection.spare:
            self.pool._spare.append(connection)
            return
        if self.pool._io.left(connection):
            return
        if connection.broken is not None or connection.in_use:
            error, connection.broken = connection.broken, None
            self._cut(connection)
            connection.invalidate(error)
        else:
            connection.close()

    def _cut(self, record: Record) -> None:
        """Make sure that the user of the connection gets an error."""
        fairy: Any = None if record.fairy_ref is None else record.fairy_ref()
        if fairy is not None and fairy.dbapi_connection is not None:
            driver_errors = getattr(self.pool._dialect, "loaded_dbapi", None)
            fairy.dbapi_connection = _Cut(fairy.dbapi_connection, driver_errors, self.pool.poolkit.name)

    def leftover(self, error: BaseException) -> Any:
        """Return the task that ends a connect whose caller was cancelled."""
        return self.pool._io.leftover()

    def classify(self, error: BaseException) -> Verdict:
        """Classify a read-only server. SQLAlchemy itself classifies the driver's errors."""
        if isinstance(error, ConfigError):
            return Verdict.FATAL  # see refuse_thread_bound
        return Verdict.RETIRE if isinstance(error, ReadOnlyServer) else default_classify(error)

    def forget(self, connection: Record) -> None:
        """In a forked child, replace the connection by one that can only be dropped. Send nothing.

        The parent's driver connection stays in the record, which the engine keeps alive forever.
        """
        fairy: Any = None if connection.fairy_ref is None else connection.fairy_ref()
        connection.fairy_ref = None
        if fairy is not None:
            fairy.dbapi_connection = _Inherited()
            fairy._connection_record = None
            finalizer = getattr(fairy, "_finalizer", None)  # 2.0 has none: its weak reference was fairy_ref
            if finalizer is not None:
                finalizer.detach()
