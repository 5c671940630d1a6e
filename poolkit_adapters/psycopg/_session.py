"""The engine's record of a connection, which detects that a user has dropped the connection."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import psycopg

from .._psycopg_ending import limit_cancel
from ._errors import behind_wrong_server

__all__ = ("Session", "no_loop", "note_wrong_server", "was_cut")

ConnectionT = TypeVar("ConnectionT", bound="psycopg.BaseConnection[Any]")


def no_loop() -> None:
    """Stands for the event loop of a session that no loop has used yet."""


class Session(Generic[ConnectionT]):
    """One server session: the object that the engine pools instead of psycopg's connection.

    The user gets psycopg's connection itself, which has no finalizer for the pool. If the engine held that connection
    during a lease, nothing could detect that its user has dropped it. So the session refers to it strongly only while
    it is in the pool (``connection``). During a lease only the user refers to it. When the last reference is gone, the
    weak reference calls :func:`_dropped` and its slot becomes free. The session keeps libpq's ``pgconn`` meanwhile, so
    that the server's session ends only when the engine closes it.

    During a lease the connection refers to its session (``connection._poolkit_session``). In the pool it does not,
    because that would be a reference cycle: a dropped pool would leave its connections to the garbage collector.
    """

    __slots__ = ("connection", "cut", "ending", "loop", "pgconn", "pid", "ref", "wrong_server")

    def __init__(self, connection: ConnectionT, engine: Any) -> None:
        self.connection: ConnectionT | None = connection  # None: leased
        self.pgconn = connection.pgconn
        self.ending = limit_cancel(connection)
        self.loop: Callable[[], Any] = no_loop  # async: a weak reference to the event loop that used it last
        self.pid = os.getpid()  # a forked child must not use it
        self.wrong_server = False
        self.cut = False  # whether the pool closed it during its lease
        self.ref = weakref.ref(connection, partial(_dropped, weakref.ref(engine), id(self)))

    def current(self) -> ConnectionT | None:
        """Return the connection, in the pool or leased, or None if its user has dropped it."""
        return self.ref() if self.connection is None else self.connection

    def __getattr__(self, name: str) -> Any:
        """Return an attribute of psycopg's connection, for code that leases from the engine (``pool.poolkit``)."""
        if name in Session.__slots__ or (connection := self.current()) is None:
            raise AttributeError(name)
        return getattr(connection, name)

    def __repr__(self) -> str:
        return f"<Session of {self.current()!r}>"


def _dropped(engine: weakref.ref[Any], key: int, _: object) -> None:
    """Free the slot of a leased connection that was garbage collected, because nobody can give it back."""
    pool = engine()
    if pool is not None:
        pool.release_dropped(key)


def note_wrong_server(connection: Any, error: BaseException | None) -> bool:
    """Return whether ``error``, of a failed block, means that the server refuses writes. Mark the session then."""
    if connection.closed or not behind_wrong_server(connection, error):
        return False
    connection._poolkit_session.wrong_server = True
    return True


def was_cut(connection: Any) -> bool:
    """Return whether the pool closed this connection during its current lease."""
    session: Session[Any] | None = getattr(connection, "_poolkit_session", None)
    return session is not None and session.cut
