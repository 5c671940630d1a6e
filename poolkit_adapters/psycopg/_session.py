"""What the engine keeps of a connection, so that a connection that its user drops is noticed."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, TypeVar

import psycopg

from ._ending import Ending
from ._errors import behind_wrong_server

__all__ = ("Session", "no_loop", "note_wrong_server", "was_cut")

ConnectionT = TypeVar("ConnectionT", bound="psycopg.BaseConnection[Any]")


def no_loop() -> None:
    """Stands for the event loop of a session that none has used yet."""


class Session(Generic[ConnectionT]):
    """One server session: the object that the engine pools in the place of psycopg's connection.

    The user gets psycopg's connection itself, which has no pool-specific finalizer. If the engine held that
    connection while it is on lease, nobody could notice that its user has dropped it. So the session holds it
    strongly only while the pool has it (``connection``). While it is on lease, the user's references are the only
    ones: when the last is gone, the weak reference calls :func:`_dropped` and the pool gets its place back. The
    session keeps libpq's ``pgconn`` meanwhile, so that the server's session ends only when the engine closes it.

    On lease the connection leads to its session (``connection._poolkit_session``); in the pool it does not, or both
    would be a reference cycle, and a pool that was dropped would leave its connections to the garbage collector.
    """

    __slots__ = ("connection", "cut", "ending", "loop", "pgconn", "pid", "ref", "wrong_server")

    def __init__(self, connection: ConnectionT, engine: Any) -> None:
        self.connection: ConnectionT | None = connection  # None: on lease
        self.pgconn = connection.pgconn
        self.ending = Ending(connection.pgconn)
        self.loop: Callable[[], Any] = no_loop  # async: a weak reference to the event loop that used it last
        self.pid = os.getpid()  # in a forked child nobody may speak on it
        self.wrong_server = False
        self.cut = False  # the pool has closed it while it was on lease
        self.ref = weakref.ref(connection, partial(_dropped, weakref.ref(engine), id(self)))

    def current(self) -> ConnectionT | None:
        """The connection, in the pool or on lease; None if its user has dropped it."""
        return self.ref() if self.connection is None else self.connection

    def __getattr__(self, name: str) -> Any:
        """Whatever psycopg's connection has, for code that asks the engine (``pool.poolkit``) for a lease itself."""
        if name in Session.__slots__ or (connection := self.current()) is None:
            raise AttributeError(name)
        return getattr(connection, name)

    def __repr__(self) -> str:
        return f"<Session of {self.current()!r}>"


def _dropped(engine: weakref.ref[Any], key: int, _: object) -> None:
    """A connection has been collected: if it was on lease, nobody can give it back any more."""
    pool = engine()
    if pool is not None:
        pool.release_dropped(key)


def note_wrong_server(connection: Any, error: BaseException | None) -> bool:
    """After a block that failed: note on its session that the server refuses to write, if ``error`` says so."""
    if connection.closed or not behind_wrong_server(connection, error):
        return False
    connection._poolkit_session.wrong_server = True
    return True


def was_cut(connection: Any) -> bool:
    """Whether the pool has closed this connection while it was on lease, and it has not been given back since."""
    session: Session[Any] | None = getattr(connection, "_poolkit_session", None)
    return session is not None and session.cut
