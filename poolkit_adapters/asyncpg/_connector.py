"""The engine's connector for asyncpg's connections."""

from __future__ import annotations

import select
import weakref
from typing import TYPE_CHECKING, Any

from poolkit import AsyncConnector, Verdict

from ._connecting import Connects
from ._ending import Endings
from ._errors import LeaseOverdue, classify
from ._restoring import Restorer
from ._session import Session

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("AsyncpgConnector",)

_HUNG_UP = getattr(select, "POLLRDHUP", 0)  # Linux: the peer has closed, even if unread data remains


class AsyncpgConnector(AsyncConnector[Session]):
    """Opens, checks, resets and closes connections, in tasks of the engine's own."""

    opens_later = True  # awaiting the pool fills it
    reports_errors = True  # asyncpg connects in its caller, who hears of a failure at once
    overdue_error = LeaseOverdue
    packages = ("asyncpg",)

    def __init__(self, pool: PoolkitPool) -> None:
        self._pool = weakref.ref(pool)
        self._restorer = Restorer()
        self._endings = Endings(self._pool)
        self.connects = Connects(self._pool, self._endings)

    async def connect(self, timeout: float | None) -> Session:
        """Open a connection and call the application's ``init``."""
        return await self.connects.open(timeout)

    def leftover(self, error: BaseException) -> Any:
        """Return the task that ends a new connection whose ``init`` failed, if any."""
        return self.connects.leftover()

    def peek(self, session: Session) -> bool:
        """Return whether the server has not closed the connection, without waiting."""
        connection = session.connection
        if connection is None or connection.is_closed():
            return False
        transport = getattr(connection, "_transport", None)
        sock = None if transport is None else transport.get_extra_info("socket")
        number = -1 if sock is None else sock.fileno()
        if number < 0 or not hasattr(select, "poll"):
            return True  # not asyncpg's own transport, or a platform on which the loop alone notices an end
        poll = select.poll()
        poll.register(number, _HUNG_UP)  # an error and a hang-up are always reported
        return not poll.poll(0)

    async def check(self, session: Session, timeout: float | None) -> bool:
        """Make one round trip."""
        session.silent = True
        await session.connection.execute("SELECT 1")  # asyncpg cannot execute an empty query
        session.silent = False
        session.expected = session.protocol.queries_count
        return True

    def needs_reset(self, session: Session) -> bool:
        """Return whether the returned connection may not be as it was before its lease."""
        pool = self._pool()
        return pool is None or self._restorer.is_needed(pool, session)

    async def reset(self, session: Session) -> None:
        """Bring the connection back to its initial state."""
        await self._restorer.restore(self._pool(), session)

    async def close(self, session: Session) -> None:
        """Close the connection in an orderly way. The engine limits the time, and aborts it after that."""
        connection = self._endings.detach(session)
        if connection is not None:
            await connection.close()

    def abort(self, session: Session) -> Any:
        """Drop the connection.

        If a statement may be running, return a task: it asks the server to stop, and is done when the server has ended
        the session, or after ``check_timeout`` seconds.
        """
        return self._endings.abort(session)

    def forget(self, session: Session) -> None:
        """In a forked child: keep the parent's connection alive, because its finalizer would talk to the server."""
        session.connection = session.current()

    def classify(self, error: BaseException) -> Verdict:
        """See :func:`._errors.classify`."""
        return classify(error)
