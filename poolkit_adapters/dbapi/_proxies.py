"""Proxies of the module's connections and cursors, which become unusable when the lease ends."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any

from poolkit.errors import LeaseOverdue

from ._results import Result, proxy_of
from ._state import SHORTCUTS, changeable

if TYPE_CHECKING:
    from poolkit import Lease, PoolError

    from ._database import PooledDatabase
from poolkit.runtimes.fork import Stage, after_fork

__all__ = ("LeaseState", "PooledConnection", "PooledCursor")

# reading these starts no transaction
_HARMLESS = frozenset({"description", "rowcount", "arraysize", "lastrowid", "rownumber", "messages", "closed"})

_forks = 0
"""Number of forks since the first process. Calling os.getpid() twice would cost a tenth of a lease."""


def _forked() -> None:
    global _forks
    _forks += 1


after_fork(Stage.RUNTIME, _forked)


class LeaseState:
    """What has happened to a leased connection."""

    __slots__ = ("broken", "called", "changed", "dependents", "forks", "saved", "touched", "used")

    def __init__(self) -> None:
        self.forks = _forks
        # cursors, iterators, blobs, ...: a WeakSet costs more than the whole lease
        self.dependents: list[Callable[[], Any]] = []
        self.used = False
        self.touched = False  # since the last commit or rollback
        self.broken = False
        self.saved: dict[str, Any] = {}  # attributes that were set, with their old values
        self.called: dict[str, Any] = {}  # methods that set a value, with the old value
        self.changed: str | None = None  # name of what may have changed the session permanently

    def touch(self) -> None:
        """Record that a statement may have started a transaction."""
        self.used = self.touched = True

    def note_call(self, database: PooledDatabase, real: Any, name: str) -> None:
        """Record that a method of the connection is about to be called."""
        self.touch()
        if name in database._stateless:
            return
        getter = database._restorable.get(name)
        if getter is None:
            self.changed = f"{name}()"
        elif name not in self.called:
            old = getattr(real, getter)
            self.called[name] = old() if callable(old) else old

    def note(self, dependent: Any) -> None:
        """Record a new object that uses the connection: a proxy, or an object of the module with a ``close()``."""
        dependents = self.dependents
        try:
            dependents.append(weakref.ref(dependent))
        except TypeError:  # it cannot be referred to weakly
            dependents.append(lambda: dependent)
        count = len(dependents)
        if count >= 16 and not count & (count - 1):  # at 16, 32, 64, ...: drop the dead ones
            dependents[:] = [ref for ref in dependents if ref() is not None]

    def end_dependents(self) -> None:
        """Close what still exists. The newest first: a block may have opened others within an older one."""
        for ref in reversed(self.dependents):
            dependent = ref()
            if dependent is None:
                continue
            if isinstance(dependent, (PooledCursor, Result)):
                dependent._end()
            else:
                with contextlib.suppress(Exception):
                    dependent.close()

    def drop_dependents(self) -> list[Any]:
        """Make the proxies unusable, and call nothing of the module: a reply may be half read.

        Returns what they stood for, to be kept until the close.
        """
        proxies = [dependent for ref in self.dependents if (dependent := ref()) is not None]
        return [one._drop() for one in proxies if isinstance(one, (PooledCursor, Result))]


class PooledConnection:
    """A leased connection of the module. All its attributes are available; :meth:`close` gives it back.

    On return an open transaction is rolled back, attributes that were set (``autocommit``, ``row_factory``, ...) get
    their old values, and cursors, iterators, blobs and blocks end. The connection is closed if a method may have
    changed the session permanently (``set_charset()``, ``create_function()``, ...). Any later use of this object raises
    an error that is poolkit's UsageError and the module's InterfaceError and ProgrammingError. As a context manager it
    commits, or rolls back after an exception, and then gives the connection back. That includes sqlite3, whose own
    ``with`` keeps the connection open.

    Only one thread at a time may use it, as with any module of ``threadsafety`` 1. It may be another thread than the
    one that leased it.
    """

    __slots__ = ("__weakref__", "_database", "_lease", "_state")

    def __init__(self, database: PooledDatabase, lease: Lease[Any]) -> None:
        put = object.__setattr__
        put(self, "_database", database)
        put(self, "_lease", lease)
        put(self, "_state", LeaseState())

    @property
    def _real(self) -> Any:
        lease = self._lease
        if lease is None:
            raise self._misused("this connection was already returned to its pool")
        return lease.connection

    def _misused(self, text: str) -> PoolError:
        database: PooledDatabase = self._database
        return database._misused(text)

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception:
            raise
        except BaseException:  # KeyboardInterrupt and the like, perhaps in the middle of a reply
            self._state.broken = True
            raise

    # -- PEP 249 --------------------------------------------------------------------------------------------------

    def cursor(self, *args: Any, **kwargs: Any) -> PooledCursor:
        """Return a cursor. It keeps the lease of this connection open while it exists, and is closed with it."""
        return self._wrap(self._call(self._real.cursor, *args, **kwargs))

    def _wrap(self, cursor: Any) -> PooledCursor:
        proxy = PooledCursor(self, cursor)
        self._state.note(proxy)
        return proxy

    def commit(self) -> None:
        """Commit the transaction."""
        self._call(self._real.commit)
        self._state.touched = False

    def rollback(self) -> None:
        """Roll the transaction back."""
        self._call(self._real.rollback)
        self._state.touched = False

    def close(self) -> None:
        """Return the connection to the pool. A second call does nothing."""
        lease = self._lease
        if lease is not None:
            object.__setattr__(self, "_lease", None)
            state = self._state
            if state.forks != _forks:
                lease.close()  # the parent process owns it: the engine handles that, and nothing may be sent on it
                return
            if state.used or state.broken or state.dependents:
                self._database._give_back(lease, state=state)
            else:
                lease.close()

    def detach(self) -> Any:
        """Take the module's own connection out of the pool permanently and return it. The caller must close it."""
        real = self._real
        self._lease.detach()
        object.__setattr__(self, "_lease", None)
        return real

    def __enter__(self) -> PooledConnection:
        self._real  # noqa: B018 - raises if it is closed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._lease is None:
            return
        try:
            if self._state.forks != _forks:
                pass
            elif error is None:
                self.commit()
            elif isinstance(error, Exception) and not self._state.broken:
                with contextlib.suppress(Exception), self._database._limited(self._real, "rollback"):
                    self.rollback()  # must not replace the first error; close() tries again
        finally:
            try:
                self.close()
            except LeaseOverdue:
                if error is None:  # otherwise do not replace the first error
                    raise

    # -- all other attributes of the module's connection ----------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        real = self._real
        value = getattr(real, name)
        if name in _HARMLESS:
            return value
        self._state.touch()
        if getattr(value, "__self__", None) is not real:  # not a method
            if changeable(name, value):
                self._state.changed = name
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            real = self._real
            self._state.note_call(self._database, real, name)
            result = self._call(getattr(real, name), *args, **kwargs)
            if result is real:
                return self
            if name in SHORTCUTS and hasattr(result, "fetchone"):
                return self._wrap(result)
            return proxy_of(self, name, result)

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        real, state = self._real, self._state
        if name not in state.saved:
            try:
                old = getattr(real, name)
            except AttributeError:  # it is write-only (as some of oracledb's), or does not exist yet
                state.changed = name
            else:
                state.saved[name] = old
        state.touch()
        setattr(real, name, value)

    def __repr__(self) -> str:
        return f"<PooledConnection {'closed' if self._lease is None else repr(self._lease.connection)}>"


class PooledCursor:
    """A cursor of the module. It is closed when its connection is returned."""

    __slots__ = ("__weakref__", "_connection", "_cursor")

    def __init__(self, connection: PooledConnection, cursor: Any) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_cursor", cursor)

    @property
    def _real(self) -> Any:
        if self._cursor is None:
            raise self._connection._misused("the connection of this cursor was already returned to its pool")
        return self._cursor

    @property
    def connection(self) -> PooledConnection:
        """The leased connection of this cursor."""
        connection: PooledConnection = self._connection
        return connection

    def _drop(self) -> Any:
        cursor = self._cursor
        object.__setattr__(self, "_cursor", None)
        return cursor

    def _end(self) -> None:
        cursor = self._drop()
        if cursor is not None:
            with contextlib.suppress(Exception):
                cursor.close()

    def close(self) -> None:
        """Close the cursor. The connection stays leased."""
        if self._cursor is not None:
            self._connection._call(self._cursor.close)

    def __enter__(self) -> PooledCursor:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        iterator = iter(self._real)
        while True:
            self._real  # noqa: B018 - raises after the connection was returned
            try:
                row = self._connection._call(next, iterator)
            except StopIteration:
                return
            yield row

    def __next__(self) -> Any:
        return self._connection._call(next, self._real)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        if name in _HARMLESS or not callable(value):
            return value
        connection = self._connection

        def method(*args: Any, **kwargs: Any) -> Any:
            real = self._real
            connection._state.touch()
            result = connection._call(getattr(real, name), *args, **kwargs)
            if result is real:
                return self
            return result if name.startswith("fetch") else proxy_of(connection, name, result)  # rows may be of any type

        return method

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._real, name, value)

    def __repr__(self) -> str:
        return f"<PooledCursor {self._cursor!r}>"
