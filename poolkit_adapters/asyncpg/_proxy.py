"""What a user of the pool gets: asyncpg's proxy, which also notes what is executed."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg import pool as driver
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


async def _running(session: Session, call: Awaitable[Any]) -> Any:
    """Await a call, during which the connection must not go to anybody else."""
    session.running += 1
    try:
        return await call
    finally:
        session.running -= 1


def _mark(function: Any) -> Any:
    """Let ``inspect.iscoroutinefunction`` know that a plain function returns a coroutine."""
    mark = getattr(inspect, "markcoroutinefunction", None)
    if mark is not None:
        return mark(function)
    function._is_coroutine = getattr(asyncio.coroutines, "_is_coroutine", None)  # Python before 3.12
    return function


def _noted(name: str, note: Callable[[PoolConnectionProxy, tuple[Any, ...], dict[str, Any]], None]) -> Any:
    """Return the method of that name of a connection, with ``note`` called first."""
    method = getattr(Connection, name)
    waits = inspect.iscoroutinefunction(method)

    def call(self: PoolConnectionProxy, *args: Any, **keywords: Any) -> Any:
        connection = self._con
        if connection is None:
            raise _released(name)
        note(self, args, keywords)
        result = getattr(connection, name)(*args, **keywords)
        return _running(self._holder, result) if waits else result

    functools.update_wrapper(call, method)
    return _mark(call) if waits else call


def _query(name: str) -> Any:
    """Return a method that executes the text that is its first argument."""
    method = getattr(Connection, name)

    def call(self: PoolConnectionProxy, query: Any, *args: Any, **keywords: Any) -> Any:
        connection = self._con
        if connection is None:
            raise _released(name)
        session = self._holder
        session.note(query)
        return _running(session, getattr(connection, name)(query, *args, **keywords))

    return _mark(functools.update_wrapper(call, method))


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


def _note_transaction(proxy: PoolConnectionProxy, args: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    proxy._holder.expected += 2  # its begin and its end


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
            found[name] = _noted(name, _note_transaction)
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
