"""Connections that end after their caller has gone on. Each keeps its slot until it has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._record import StandIn

if TYPE_CHECKING:
    from ._pool import BasePool
    from ._record import Record

__all__ = ("Endings",)

_PSYCOPG = frozenset({"psycopg", "psycopg_async"})


class Endings:
    """The ends of one pool's connections, as futures or tasks.

    psycopg's ``close()`` does not wait for the server, not even under asyncio. If the connection is closed during a
    statement, its session continues at the server. So its slot is taken until the session has ended, for at most
    ``check_timeout`` seconds.
    """

    def __init__(self, pool: BasePool) -> None:
        self._pool = pool
        self._running: dict[int, Any] = {}  # by the id of the connection
        self._delayed: set[Record] = set()
        self.closes_at_once = getattr(pool._dialect, "driver", "") in _PSYCOPG
        """Whether the driver's ``close()`` never waits for the server, although it is a coroutine under asyncio."""

    def __len__(self) -> int:
        """Return how many returned connections keep their slots."""
        return len(self._delayed)

    def opened(self, connection: Any) -> None:
        """Limit what the driver does when a statement on its new connection is cancelled."""
        if self.closes_at_once:
            from psycopg import BaseConnection  # only with psycopg installed

            from .._psycopg_ending import limit_cancel

            driver = self.driver_of(connection)
            if isinstance(driver, BaseConnection):  # not what a creator= or an event of the application's has wrapped
                limit_cancel(driver)

    def driver_of(self, connection: Any) -> Any:
        """Return the driver's connection, whose socket can be reached."""
        try:
            return self._pool._dialect.get_driver_connection(connection)
        except AttributeError:  # opened by a creator= of the application's
            return connection

    def close(self, connection: Any, close: Callable[[], None]) -> None:
        """Call ``close()``, and observe what it leaves at the server."""
        if not self.closes_at_once or isinstance(connection, StandIn):
            close()
            return
        from .._psycopg_ending import observed_ending

        ending = observed_ending(self.driver_of(connection))
        try:
            close()
        finally:
            if ending is not None:
                self.add(connection, ending.begin(self._pool.poolkit.config.check_timeout))

    def add(self, connection: Any, end: Any) -> None:
        """Record ``end``, a future that is done when nothing of the connection is left. None: nothing is left."""
        if end is not None:
            key = id(connection)
            self._running[key] = end
            # refers to the connection, so that no other one gets its id meanwhile
            end.add_done_callback(lambda _, connection=connection: self._running.pop(key, None))

    def of(self, key: int) -> Any:
        """Return the end of the connection with this ``id()``, or None if nothing is left of it."""
        return self._running.get(key)

    def delay(self, record: Record, give_back: Callable[[], None]) -> bool:
        """Return False if nothing is left of the record's last connection. Otherwise call ``give_back`` later."""
        end, record.ending = record.ending, None
        if end is None or end.done():
            return False

        def ended(_: Any) -> None:
            self._delayed.discard(record)
            give_back()

        self._delayed.add(record)
        end.add_done_callback(ended)
        return True
