"""Undoes what a lease has left in its session."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

from ._initial import FRESH, is_not_its_sql, look
from ._session import Session

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("Restorer",)


class _NotAsBefore(Exception):
    """The session holds what its user has left beside what ``init`` has made, and no statement separates the two."""


class Restorer:
    """The reset of returned connections."""

    def __init__(self) -> None:
        self._plain = False  # whether the server knows only the driver's own query

    def is_needed(self, pool: PoolkitPool, session: Session) -> bool:
        """Return whether the returned connection may not be as it was before its lease."""
        if pool._reset is not None or pool._resets_itself or not session.is_clean():
            return True
        connection = session.connection
        if connection._log_listeners or connection._listeners:
            connection._log_listeners.clear()
            connection._listeners.clear()
        return False

    async def restore(self, pool: PoolkitPool | None, session: Session) -> None:
        """Bring the connection back to its initial state, within the limit that the caller of ``release`` gave.

        An error is also noted in the session: it is raised in the caller of ``release``, as in asyncpg's pool.
        """
        try:
            await asyncio.wait_for(self._clean(pool, session), session._timeout)
        except (asyncio.CancelledError, asyncio.TimeoutError) as error:
            session.silent = True
            late = isinstance(error, asyncio.TimeoutError)
            session.failure = error if late else asyncio.TimeoutError("no answer to the reset within check_timeout")
            raise
        except _NotAsBefore:  # the user's business is done, and the connection is closed
            raise
        except Exception as error:
            if not session.connection.is_closed():  # the caller is not concerned by a connection that was lost
                session.failure = error
            raise

    async def _clean(self, pool: PoolkitPool | None, session: Session) -> None:
        connection, protocol = session.connection, session.protocol
        if pool is None or connection.is_closed():
            raise ConnectionAbortedError("the connection is closed")
        if protocol._is_cancelling():
            await protocol._wait_for_cancellation()
        if pool._resets_itself and pool._reset is None:
            await connection.reset()
        else:
            await connection._reset()  # ends the transaction
            if pool._reset is not None:
                await pool._reset(connection)
            else:
                await self._undo(session)
        if session.running or protocol.is_in_transaction():
            raise asyncpg.InterfaceError("the connection is still in use, or in a transaction, after its reset")
        session.cleaned()

    async def _undo(self, session: Session) -> None:
        """Undo what belongs to the session, in one round trip, and keep what ``connect`` and ``init`` have set."""
        connection, initial = session.connection, session.initial
        query = connection.get_reset_query()
        if not query:
            return
        if initial is not FRESH or not self._plain:
            try:
                await connection.execute(initial.before + query + initial.after)
                if initial.kept is not None and await look(connection) != initial.kept:
                    raise _NotAsBefore("the user has left temporary objects, or has used a sequence")
                return
            except asyncpg.PostgresError as error:
                if initial is not FRESH or not is_not_its_sql(error):
                    raise
        await connection.execute(query)  # a server that only resembles PostgreSQL
        self._plain = True
