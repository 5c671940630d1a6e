"""The engine's record of a connection: what was done on it, and whether its user still has it."""

from __future__ import annotations

import os
import weakref
from functools import partial
from inspect import getattr_static
from typing import TYPE_CHECKING, Any

import asyncpg

from ._initial import FRESH
from ._statements import leaves_nothing, prepares

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("QUERIES", "Session")

QUERIES = ("execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany")
"""Methods of a connection that it counts as one query each, of the text that is their first argument."""
_METHODS = {
    name: getattr_static(asyncpg.Connection, name, None)
    for name in (*QUERIES, "transaction", "_execute", "_do_execute", "_executemany")
}
"""The methods that execute queries, as asyncpg has them."""


class Session:
    """One server session: the object that the engine pools instead of asyncpg's connection.

    It refers to the connection strongly only while it is in the pool (``connection``). During a lease only the user's
    proxy, statements and transactions refer to it. When the last reference is gone, the weak reference calls
    :func:`_dropped` and the slot becomes free.

    It also takes the place of asyncpg's ``PoolConnectionHolder``: a proxy's ``_holder``, to which asyncpg turns when a
    connection is closed or its caches are out of date.

    ``expected`` is the number of queries on the connection that certainly left nothing behind. If the connection has
    counted more, something was executed that the pool has not seen: by a statement, a callback, through ``_con``.

    ``hooked``: the application's class overrides a method that executes queries. Then no text tells what is executed.
    """

    __slots__ = (
        "__weakref__", "_pool_ref", "_timeout", "closing", "connection", "expected", "failure", "hooked", "initial",
        "pid", "prepared", "protocol", "proxy", "ref", "running", "silent", "touched", "wrong_server",
    )  # fmt: skip

    def __init__(self, connection: Any, pool: PoolkitPool, engine: Any) -> None:
        self.connection: Any = connection  # None: leased
        self.protocol = connection._protocol
        self.ref = weakref.ref(connection, partial(_dropped, weakref.ref(engine), id(self)))
        self.proxy: weakref.ref[Any] | None = None  # the current lease
        self.pid = os.getpid()  # a forked child must not use it
        self.initial = FRESH  # what a reset comes back to
        self.hooked = any(getattr_static(connection, name, None) is not method for name, method in _METHODS.items())
        self.expected = 0
        self.touched = False
        self.prepared = False  # whether it may hold a statement prepared by SQL
        self.running = 0  # calls that have not returned
        self.closing = False  # whether its user closes it
        self.silent = False  # whether the server did not answer a reset or a check
        self.wrong_server = False
        self.failure: BaseException | None = None  # of the last reset
        self._timeout: float | None = None  # the limit of the reset that the caller has asked for
        self._pool_ref = weakref.ref(pool)

    def current(self) -> Any:
        """Return the connection, in the pool or leased, or None if its user has dropped it."""
        return self.ref() if self.connection is None else self.connection

    def judge(self, text: object) -> bool:
        """Note a text that is about to be executed. Return whether its query certainly leaves nothing behind."""
        if leaves_nothing(text) and not self.hooked:
            return True
        self.touched = True
        if not self.prepared:
            self.prepared = prepares(text)
        return False

    def is_clean(self) -> bool:
        """Return whether the returned connection certainly is as it was before its lease."""
        connection, protocol = self.connection, self.protocol
        count = protocol.queries_count
        if (
            self.touched
            or self.running
            or count != self.expected
            or connection._top_xact is not None
            or protocol.is_in_transaction()
            or protocol._is_cancelling()
        ):
            return False
        self.expected = count
        return True

    def is_quiet(self) -> bool:
        """Return whether no statement is being cancelled and no transaction is open."""
        return not (self.protocol._is_cancelling() or self.protocol.is_in_transaction())

    def cleaned(self) -> None:
        """Record that the session was reset: nothing is left of earlier statements."""
        self.expected = self.protocol.queries_count
        self.touched = self.prepared = False

    # -- what asyncpg's connections and proxies know as their holder ---------------------------------------------

    @property
    def _holder(self) -> Session:
        """The session stands for the proxy as well, so that the connection does not keep its proxy alive."""
        return self

    @property
    def _con(self) -> Any:
        return self.current()

    @property
    def _pool(self) -> PoolkitPool | None:
        return self._pool_ref()

    def is_connected(self) -> bool:
        """Return whether the connection is open."""
        connection = self.current()
        return connection is not None and not connection.is_closed()

    def is_idle(self) -> bool:
        """Return whether the connection is not leased."""
        return self.connection is not None

    def _release_on_close(self) -> None:
        """Called by asyncpg when the connection was closed by its user, or lost."""
        pool = self._pool_ref()
        if pool is not None and self.pid == os.getpid():
            pool._leases.ended(self)

    def __repr__(self) -> str:
        return f"<Session of {self.current()!r}>"


def _dropped(engine: weakref.ref[Any], key: int, _: object) -> None:
    """Free the slot of a leased connection that was garbage-collected and can therefore not be returned."""
    pool = engine()
    if pool is not None:
        pool.release_dropped(key)
