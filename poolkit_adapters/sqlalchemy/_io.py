"""What a sync pool does with its server: connect, ping, roll back and close, each within its time limit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from poolkit.runtimes import Runtime, ThreadRuntime

from .._attempts import Attempts
from .._hang_up import Connecting, is_reachable
from .._time_limits import Watch, rollback_limit, whole_connect
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
        """Return a record with a new connection. ``most``: the seconds that the caller has left (None: no limit)."""

    def connect_bound(self, thread: int, timeout: float | None) -> float | None:
        """Return the seconds after which a connect is given up that has not returned. See poolkit's ``Connector``."""

    def give_up(self, thread: int) -> bool:
        """End a connect that is given up, and return whether it has no session. See poolkit's ``Connector``."""

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

    def connect(self) -> None:
        """Do the same as :meth:`Record.connect`.

        Until it is known, the application's ``creator`` or "do_connect" listener may have opened a connection.
        """
        with self._io.attempts.under_way() as progress:
            progress.opening()
            super().connect()

    def begun(self, attempt: Attempt) -> None:
        """Do the same as :meth:`Record.begun`. From now on the socket is shut down at the deadline."""
        self._begin_watch(attempt.connecting)

    def opened(self, connection: Any) -> None:
        """Do the same as :meth:`Record.opened`."""
        self.over()
        super().opened(connection)
        self._begin_watch(connection)
        progress = self._io.attempts.here()
        if progress is not None and is_reachable(connection):
            progress.opened(partial(self._io.watch.cut, connection))

    def _begin_watch(self, driver: Any) -> None:
        left = None if self.attempt is None else self.attempt.left()
        if left is not None:
            progress = self._io.attempts.here()
            if progress is not None:
                progress.extend(2 * left + 1.0)  # libpq rounds up
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
        self.attempts = Attempts()

    def connected(self, most: float | None) -> Record:
        """See :meth:`ServerIO.connected`."""
        return opened(self._pool, lambda: WatchedRecord(self._pool, most, self), most)

    def connect_bound(self, thread: int, timeout: float | None) -> float | None:
        """See :meth:`ServerIO.connect_bound`."""
        return self.attempts.bound(thread, whole_connect(self._pool.poolkit.config) if timeout is None else timeout)

    def give_up(self, thread: int) -> bool:
        """See :meth:`ServerIO.give_up`."""
        return self.attempts.give_up(thread)

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
