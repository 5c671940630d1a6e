"""What a sync pool does with its server: connect, ping, roll back and close, each within its time limit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from poolkit.runtimes import Runtime, ThreadRuntime

from .._hang_up import Connecting
from .._time_limits import Watch, rollback_limit
from ._connect_time import Attempt
from ._errors import LATE_ROLLBACK, rollback_cut
from ._exchange import opened
from ._pings import ask
from ._record import Record

if TYPE_CHECKING:
    from ._pool import BasePool

__all__ = ("ServerIO", "ThreadIO")

_THREADS = ThreadRuntime()


class ServerIO(Protocol):
    """The part of a pool that waits for the server: in threads, or in greenlets of an event loop."""

    runtime: Any
    """The runtime of the engine."""

    def connected(self, most: float | None) -> Record:
        """Return a record with a new connection. ``most``: seconds that a caller has left, None: no limit."""

    def leftover(self) -> Any:
        """Return the task that ends what the last failed connect left on the server, or None."""

    def ping(self, dbapi_connection: Any, timeout: float | None) -> bool:
        """Ping the server within ``timeout`` seconds. Raises TimeoutError."""

    def roll_back(self, dbapi_connection: Any) -> None:
        """Roll back within :func:`rollback_limit`, so that a vanished server cannot block a slot forever."""

    def close(self, connection: Any, close: Callable[[], None], *, terminate: bool) -> None:
        """End a connection. ``close()`` does what SQLAlchemy does."""

    def elsewhere(self, record: Record) -> bool:
        """Return whether the record's connection belongs to another event loop and cannot be used here."""

    def left(self, record: Record) -> bool:
        """Empty the record if its connection is :meth:`elsewhere`, and return whether it was."""


class WatchedRecord(Record):
    """A record whose connect, "connect" events included, ends in time whatever the server does or does not send."""

    _watched: Any = None

    def __init__(self, pool: BasePool, most: float | None, io: ThreadIO) -> None:
        self._io = io
        super().__init__(pool, most)

    def begun(self, attempt: Attempt) -> None:
        """Do the same as :meth:`Record.begun`. From now on the socket is shut down at the deadline."""
        self._begin_watch(attempt.connecting)

    def opened(self, connection: Any) -> None:
        """Do the same as :meth:`Record.opened`."""
        self.over()
        super().opened(connection)
        self._begin_watch(connection)

    def _begin_watch(self, driver: Any) -> None:
        left = None if self.attempt is None else self.attempt.left()
        if left is not None:
            self._watched = driver
            self._io.watch.begin(driver, left)

    def over(self) -> bool:
        """Do the same as :meth:`Record.over`."""
        watched, self._watched = self._watched, None
        if watched is None:
            return False
        cut = self._io.watch.end(watched)
        if isinstance(watched, Connecting):
            return cut
        return self.attempt is not None and self.attempt.left() == 0.0


class ThreadIO:
    """Waits in the calling thread; a :class:`Watch` shuts the socket down at the deadline."""

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool
        self.runtime: Runtime = _THREADS
        self.watch = Watch()

    def connected(self, most: float | None) -> Record:
        """See :meth:`ServerIO.connected`."""
        return opened(self._pool, lambda: WatchedRecord(self._pool, most, self), most)

    def leftover(self) -> Any:
        """Return None: a connect in a thread ends before its caller continues."""
        return None

    def ping(self, dbapi_connection: Any, timeout: float | None) -> bool:
        """See :meth:`ServerIO.ping`."""
        with self.watch.limit(dbapi_connection, timeout, "ping"):
            return ask(self._pool._dialect, dbapi_connection)

    def roll_back(self, dbapi_connection: Any) -> None:
        """See :meth:`ServerIO.roll_back`."""
        pool = self._pool
        limit = rollback_limit(pool.poolkit.config.check_timeout, pool._server)
        if limit is None:
            dbapi_connection.rollback()
            return
        watch = self.watch
        watch.begin(dbapi_connection, limit)
        try:
            dbapi_connection.rollback()
        finally:
            late = watch.end(dbapi_connection)
            if late:
                pool.logger.warning(LATE_ROLLBACK, dbapi_connection, limit)
        if late:  # the reply arrived at the deadline, but the socket is already shut down
            raise rollback_cut(pool._dialect, pool.poolkit.name, limit)

    def close(self, connection: Any, close: Callable[[], None], *, terminate: bool) -> None:
        """See :meth:`ServerIO.close`. Ends the time limit first: another socket may get the descriptor from here on."""
        self.watch.end(connection)
        self._pool._endings.close(connection, close)

    def elsewhere(self, record: Record) -> bool:
        """Return False: any thread can use any connection."""
        return False

    def left(self, record: Record) -> bool:
        """Return False: any thread can use any connection."""
        return False
