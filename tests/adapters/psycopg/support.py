"""Both twins behind one interface: scenarios are coroutines, and run on either pool."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from poolkit.testing.servers import PostgresServer
from poolkit_adapters.psycopg import (
    AsyncPoolkitConnectionPool,
    AsyncPoolkitNullConnectionPool,
    PoolkitConnectionPool,
    PoolkitNullConnectionPool,
)
from tests.support.waiting import PATIENCE

POOLS = {False: (PoolkitConnectionPool, PoolkitNullConnectionPool),
         True: (AsyncPoolkitConnectionPool, AsyncPoolkitNullConnectionPool)}  # fmt: skip


async def do(result: Any) -> Any:
    """Return the value of a call, awaited if the twin is asynchronous."""
    return await result if inspect.isawaitable(result) else result


class _Entered:
    def __init__(self, manager: Any) -> None:
        self._manager = manager

    async def __aenter__(self) -> Any:
        manager = self._manager
        return await manager.__aenter__() if hasattr(manager, "__aenter__") else manager.__enter__()

    async def __aexit__(self, *exc: Any) -> Any:
        manager = self._manager
        return await manager.__aexit__(*exc) if hasattr(manager, "__aexit__") else manager.__exit__(*exc)


def within(manager: Any) -> Any:
    """Enter a block on either twin: ``async with within(pool.connection()) as connection``."""
    return _Entered(manager)


class Twin:
    """One of the two pools, with helpers for tests."""

    def __init__(self, postgres: PostgresServer, *, asynchronous: bool) -> None:
        self.postgres = postgres
        self.asynchronous = asynchronous
        self.pool_class, self.null_class = POOLS[asynchronous]
        self.connection_class: Any = psycopg.AsyncConnection if asynchronous else psycopg.Connection

    def pool(self, conninfo: Any = None, **arguments: Any) -> Any:
        arguments.setdefault("open", False)
        return self.pool_class(self.postgres.url if conninfo is None else conninfo, **arguments)

    def null(self, conninfo: Any = None, **arguments: Any) -> Any:
        arguments.setdefault("open", False)
        return self.null_class(self.postgres.url if conninfo is None else conninfo, **arguments)

    def callback(self, function: Callable[..., Awaitable[Any]]) -> Any:
        """Return a callback for this twin, made from a coroutine function."""
        if self.asynchronous:
            return function

        def run(*args: Any) -> Any:
            try:
                function(*args).send(None)  # type: ignore[attr-defined]  # nothing in it really waits
            except StopIteration as stop:
                return stop.value
            raise AssertionError("a synchronous callback cannot wait")

        return run

    async def together(self, work: Callable[[int], Awaitable[Any]], count: int) -> list[Any]:
        """Run ``work(0) ... work(count - 1)`` at once, in threads or in tasks. Return results or exceptions."""
        if self.asynchronous:
            return list(await asyncio.gather(*(work(n) for n in range(count)), return_exceptions=True))
        results: list[Any] = [None] * count

        def run(n: int) -> None:
            try:
                results[n] = asyncio.run(work(n))  # type: ignore[arg-type]
            except BaseException as error:
                results[n] = error

        threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    async def pause(self, seconds: float) -> None:
        if self.asynchronous:
            await asyncio.sleep(seconds)
        else:
            time.sleep(seconds)

    async def until(self, condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "what was waited for did not happen"
            await self.pause(0.01)


def pid(connection: Any) -> int:
    """Return the process id of the backend that serves this connection."""
    return int(connection.info.backend_pid)


class Admin:
    """Queries the server outside any pool."""

    def __init__(self, postgres: PostgresServer) -> None:
        self.connection = psycopg.connect(postgres.url, autocommit=True)

    def sessions(self, application: str, *, active: bool = False) -> set[int]:
        statement = "select pid from pg_stat_activity where application_name = %s"
        if active:
            statement += " and state = 'active' and query not ilike 'begin%%'"
        return {row[0] for row in self.connection.execute(statement, [application])}

    def kill(self, *pids: int) -> None:
        for number in pids:
            self.connection.execute("select pg_terminate_backend(%s, 5000)", [number])

    def close(self) -> None:
        self.connection.close()
