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

from ._session import Session

if TYPE_CHECKING:
    from ._pool import PoolkitPool

__all__ = ("PoolConnectionProxy",)

_QUERIES = ("execute", "executemany", "fetch", "fetchval", "fetchrow", "fetchmany")
"""Each is counted by the connection as one query, of the text that is its first argument."""
_TEXTS = ("cursor", "prepare")
"""Their text is executed later."""
_LISTENERS = ("add_listener", "add_log_listener", "add_termination_listener")
_HARMLESS = frozenset({
    "add_query_logger", "get_reset_query", "get_server_pid", "get_server_version", "get_settings", "is_closed",
    "is_in_transaction", "query_logger", "reload_schema_state", "remove_log_listener", "remove_query_logger",
    "remove_termination_listener", "transaction",
})  # fmt: skip


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
        harmless, before = session.judge(""), session.protocol.queries_count
        session.running += 1
        try:
            await method(*args)
        except BaseException:
            session.touched = True
            raise
        finally:
            session.running -= 1
        if harmless and session.protocol.queries_count != before:
            session.expected += 1


def _at_once(name: str, function: Callable[..., Awaitable[Any]]) -> Any:
    """Let a coroutine function raise at the call, and not at the await, if the connection was released, as asyncpg."""

    def call(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Awaitable[Any]:
        if self._con is None:
            raise _released(name)
        return function(self, *args, **keywords)

    functools.update_wrapper(call, getattr(Connection, name))
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        return mark(call)
    call._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)  # type: ignore[attr-defined]  # before 3.12
    return call


def _noted(name: str, note: Callable[[PoolConnectionProxy, tuple[Any, ...], dict[str, Any]], None]) -> Any:
    """Return the method of that name of a connection, with ``note`` called first.

    The body of a coroutine runs when it is awaited, perhaps after the release. So it looks again.
    """
    method = getattr(Connection, name)

    def call(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Any:
        connection = self._con
        if connection is None:
            raise _released(name)
        note(self, args, keywords)
        return getattr(connection, name)(*args, **keywords)

    async def call_and_wait(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Any:
        connection, session = self._con, self._holder
        if connection is None:
            raise _released(name)
        note(self, args, keywords)
        session.running += 1
        try:
            return await getattr(connection, name)(*args, **keywords)
        except BaseException:
            session.touched = True  # nobody knows how far it came
            raise
        finally:
            session.running -= 1

    return (
        _at_once(name, call_and_wait) if inspect.iscoroutinefunction(method) else functools.update_wrapper(call, method)
    )


def _query(name: str) -> Any:
    """Return a method that executes the text that is its first argument.

    A query is expected only once the connection has counted it. A call that fails before it reaches the server, or is
    never awaited, must not hide another query.
    """
    method = getattr(Connection, name)
    first = list(inspect.signature(method).parameters)[1]

    async def call(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Any:
        connection, session = self._con, self._holder
        if connection is None:
            raise _released(name)
        harmless = session.judge(args[0] if args else keywords.get(first))
        protocol = session.protocol
        before = protocol.queries_count
        session.running += 1
        try:
            result = await getattr(connection, name)(*args, **keywords)
        except BaseException:
            session.touched = True
            raise
        finally:
            session.running -= 1
        if harmless and protocol.queries_count != before:
            session.expected += 1
        return result

    return _at_once(name, call)


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


def _note_text(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    proxy._holder.judge(args[0] if args else keywords.get("query"))


def _note_listener(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    proxy._con._proxy = proxy  # callbacks are called with the proxy
    proxy._holder.touched = True


def _note_end(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    proxy._holder.closing = True


def _touch(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    proxy._holder.touched = True


def _methods() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in dir(Connection):
        if name.startswith("_") or not inspect.isfunction(getattr(Connection, name)):
            continue
        if name in _QUERIES:
            found[name] = _query(name)
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
