"""What a user of the pool gets: asyncpg's proxy, which also notes what is executed."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import pool as driver
from asyncpg import transaction as driver_transaction
from asyncpg.connection import Connection

from ._session import QUERIES, Session

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("PoolConnectionProxy",)

_TEXTS = ("cursor", "prepare")
"""Their text is executed later."""
_LISTENERS = ("add_listener", "add_log_listener", "add_termination_listener")
_HARMLESS = frozenset({
    "add_query_logger", "get_reset_query", "get_server_pid", "get_server_version", "get_settings", "is_closed",
    "is_in_transaction", "query_logger", "reload_schema_state", "remove_log_listener", "remove_query_logger",
    "remove_termination_listener", "transaction",
})  # fmt: skip


class _Call:
    """A call on the connection, in a ``with`` block. Meanwhile the connection must not go to anybody else.

    ``harmless``: whether its query certainly leaves nothing behind. Such a query is expected only once the connection
    has counted it: a call that fails before it reaches the server, or is never awaited, must not hide another query.
    """

    __slots__ = ("_before", "_harmless", "_session")

    def __init__(self, session: Session, harmless: bool) -> None:
        self._session = session
        self._harmless = harmless

    def __enter__(self) -> None:
        self._session.running += 1
        self._before = self._session.protocol.queries_count

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        session = self._session
        session.running -= 1
        if kind is not None:
            session.touched = True  # nobody knows how far it came
        elif self._harmless and session.protocol.queries_count != self._before:
            session.expected += 1


class _Transaction(driver_transaction.Transaction):  # type: ignore[misc]  # asyncpg has no types
    """A transaction whose begin and end are noted once the connection has counted them."""

    __slots__ = ()

    async def start(self) -> None:
        await self._noted(super().start)

    async def commit(self) -> None:
        await self._noted(super().commit)

    async def rollback(self) -> None:
        await self._noted(super().rollback)

    async def __aexit__(self, *exc: Any) -> None:
        await self._noted(super().__aexit__, *exc)

    async def _noted(self, method: Callable[..., Awaitable[None]], *args: Any) -> None:
        proxy = self._connection._proxy
        if proxy is None:  # released: asyncpg refuses the call
            await method(*args)
            return
        session = proxy._holder
        with _Call(session, session.judge("")):
            await method(*args)


_Note = Callable[["PoolConnectionProxy", tuple[Any, ...], dict[str, Any]], bool]
"""Notes a call that is about to be made. Returns whether its query certainly leaves nothing behind."""


def _mark(function: Any) -> Any:
    """Let ``inspect.iscoroutinefunction`` know that a plain function returns a coroutine."""
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        return mark(function)
    function._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)  # Python before 3.12
    return function


def _noted(name: str, note: _Note) -> Any:
    """Return the method of that name of a connection, with ``note`` called first. Raises an error after the release.

    A coroutine runs when it is awaited, perhaps after the release. So it looks again.
    """
    method = getattr(Connection, name)

    def call(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Any:
        connection = self._con
        if connection is None:
            raise _released(name)
        note(self, args, keywords)
        return getattr(connection, name)(*args, **keywords)

    async def wait(self: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        connection = self._con
        if connection is None:
            raise _released(name)
        with _Call(self._holder, note(self, args, keywords)):
            return await getattr(connection, name)(*args, **keywords)

    def call_and_wait(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Awaitable[Any]:
        if self._con is None:
            raise _released(name)
        return wait(self, args, keywords)

    if inspect.iscoroutinefunction(method):
        return _mark(functools.update_wrapper(call_and_wait, method))
    return functools.update_wrapper(call, method)


def _transaction(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Any:
    connection = self._con
    if connection is None:
        raise _released("transaction")
    made = connection.transaction(*args, **keywords)
    if type(made) is driver_transaction.Transaction:
        made.__class__ = _Transaction
    else:
        self._holder.touched = True
    return made


def _released(name: str) -> Exception:
    error: Exception = asyncpg.InterfaceError(
        f"cannot call Connection.{name}(): connection has been released back to the pool"
    )
    return error


def _note_query(name: str) -> _Note:
    """The text of the query is the first argument of the method of that name."""
    first = list(inspect.signature(getattr(Connection, name)).parameters)[1]

    def note(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
        return proxy._holder.judge(args[0] if args else keywords.get(first))

    return note


def _note_text(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    proxy._holder.judge(args[0] if args else keywords.get("query"))
    return False  # it is executed later


def _note_listener(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    proxy._con._proxy = proxy  # callbacks are called with the proxy
    return _touch(proxy, args, keywords)


def _note_end(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    proxy._holder.closing = True
    return False


def _touch(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    proxy._holder.touched = True
    return False


def _methods() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dir(Connection):
        if name.startswith("_") or not inspect.isfunction(getattr(Connection, name)):
            continue
        if name in QUERIES:
            found[name] = _noted(name, _note_query(name))
        elif name in _TEXTS:
            found[name] = _noted(name, _note_text)
        elif name in _LISTENERS:
            found[name] = _noted(name, _note_listener)
        elif name in ("close", "terminate"):
            found[name] = _noted(name, _note_end)
        elif name == "transaction":
            found[name] = functools.update_wrapper(_transaction, Connection.transaction)
        elif name not in _HARMLESS:
            found[name] = _noted(name, _touch)
    return found


class PoolConnectionProxy(driver.PoolConnectionProxy):  # type: ignore[misc]  # asyncpg has no types
    """A connection of asyncpg on lease. After its release every call raises ``asyncpg.InterfaceError``.

    A subclass of asyncpg's class of the same name. Not thread-safe, and for one task at a time, as a connection.
    """

    __slots__ = ("__weakref__", "_poolkit_pool")

    def __init__(self, session: Session, connection: Any, pool: PoolkitPool) -> None:
        self._con = connection  # type: ignore[misc]  # asyncpg's slots
        self._holder = session  # type: ignore[misc]
        self._poolkit_pool = pool  # a pool must not be collected during a lease

    def __getattr__(self, name: str) -> Any:
        """Return what else the connection has, such as the methods of the application's ``connection_class``."""
        value = getattr(self._con, name)
        if callable(value) and not name.startswith("_"):
            self._holder.touched = True
        return value


for _name, _method in _methods().items():
    setattr(PoolConnectionProxy, _name, _method)
