"""Connections that enter a pool: new ones, and those that a caller returns."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, cast

from psycopg.pq import TransactionStatus

from poolkit.errors import shown

from .._psycopg_ending import is_interrupted
from ._errors import ReadOnlyServer
from ._session import Session
from ._shared import logger

if TYPE_CHECKING:
    from ._shared import PoolBase

__all__ = ("adopted", "lost", "unwanted", "verdict_on")


def adopted(pool: PoolBase[Any], connection: Any) -> Session[Any]:
    """Return the session of a new connection. Its ``_pool`` attribute switches off psycopg's warning about leaks."""
    connection._pool = connection._poolkit_session = connection._poolkit_block = None
    return Session(connection, pool._engine)


def lost(pool: PoolBase[Any], session: Session[Any]) -> None:
    """Count a returned connection that cannot be used again."""
    pool._counters.add("returns_bad")
    logger.warning("discarding closed connection: %s", shown(session.connection))


def unwanted(pool: PoolBase[Any], connection: Any) -> Session[Any] | None:
    """In a null pool, return the session of a returned connection that no caller waits for. It will be closed."""
    session: Session[Any] | None = getattr(connection, "_poolkit_session", None)
    if session is None or connection._pool is not pool or session.pid != os.getpid():
        return None
    if pool._engine.stats().waiting or session.pgconn.transaction_status == TransactionStatus.ACTIVE:
        return None
    if is_interrupted(connection):
        return None
    session.connection = mine = cast("Any", session.ref())
    mine._pool = mine._poolkit_session = mine._poolkit_block = None
    if connection.closed:
        lost(pool, session)
    return session


def verdict_on(pool: PoolBase[Any], session: Session[Any]) -> dict[str, Any] | None:
    """Return the arguments for the engine's release of a returned connection, or None if it needs a reset first."""
    if session.pid != os.getpid():
        return {}  # the parent process owns it: the engine handles that, and this process must not use it
    connection: Any = session.connection
    if session.cut:  # its user got psycopg's error, or does not need the connection any more
        return {"discard": True}
    if connection.closed:
        if is_interrupted(connection):
            return None
        lost(pool, session)
        # if it broke during its lease, and was not closed by the user, the other ones may be dead as well
        return {"error": ConnectionAbortedError()} if connection.broken else {"discard": True}
    if session.wrong_server:
        return {"error": ReadOnlyServer()}
    return None
