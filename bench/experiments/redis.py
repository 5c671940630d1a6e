"""*redis*: GET on a real Redis with the pools of redis-py and of valkey-py, and the adapters."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import threading
import time
from functools import cache, partial
from typing import Any

from bench.load import by_tasks, by_threads, record
from bench.turns import Run, quiet_gc
from poolkit.testing.servers import RedisServer

__all__ = ("async_client_of", "async_pools", "client_of", "pool_of", "run", "sync_pools")

_SIZE = 16


def run(bench: Run) -> None:
    """GET by threads and by tasks, then what it costs to take and give back a real connection."""
    seconds, repeat = bench.pick(0.05, 0.15, 0.1), bench.pick(1, 1, 30)
    bench.say("starting Redis")
    with RedisServer() as server:
        with server.connect() as admin:
            admin.set("key", "value")
        for callers in (1, 16):
            bench.say(f"{callers} threads on {_SIZE} connections")
            for turn in bench.turns(list(sync_pools()), repeat):
                with turn as name:
                    pool = pool_of(sync_pools()[name], server)
                    try:
                        found = by_threads(partial(client_of(pool).get, "key"), callers, seconds)
                        record(bench, name, found, world="threads", callers=callers)
                    finally:
                        pool.disconnect()
        for callers in (1, 16):
            bench.say(f"{callers} tasks on {_SIZE} connections")
            for turn in bench.turns(list(async_pools()), repeat):
                with turn as name:
                    asyncio.run(_load(bench, name, server, callers, seconds))
        bench.say("taking and giving back a real connection")
        number = bench.pick(20, 500, 500)
        for turn in bench.turns(list(sync_pools()), repeat):
            with turn as name:
                pool = pool_of(sync_pools()[name], server)
                try:
                    bench.add(name, "cycle", "us", _cycle(pool, number), world="threads")
                finally:
                    pool.disconnect()
        for turn in bench.turns(list(async_pools()), repeat):
            with turn as name:
                asyncio.run(_async_cycle(bench, name, server, number))


@cache
def sync_pools() -> dict[str, Any]:
    """The kinds of pool, by name."""
    import redis

    from poolkit_adapters.redis import PoolkitConnectionPool

    return {
        "redis-py BlockingConnectionPool": redis.BlockingConnectionPool,
        "redis-py ConnectionPool": redis.ConnectionPool,
        "redis-py -> poolkit": PoolkitConnectionPool,
        "redis-py, a connection for each thread": _no_pool(),
        **_of_valkey(""),
    }


def _no_pool() -> Any:
    """The lower bound for any pool: each thread keeps its connection, without any check."""
    import redis

    class NoPool(redis.ConnectionPool):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "max_connections": 1000})
            self._mine = threading.local()

        def get_connection(self, *arguments: Any, **settings: Any) -> Any:
            try:
                return self._mine.connection
            except AttributeError:
                self._mine.connection = super().get_connection()
                return self._mine.connection

        def release(self, connection: Any) -> None:
            """Do nothing: the thread keeps the connection."""

    return NoPool


@cache
def async_pools() -> dict[str, Any]:
    """The kinds of pool, by name."""
    import redis.asyncio

    from poolkit_adapters.redis import AsyncPoolkitConnectionPool

    return {
        "redis-py BlockingConnectionPool": redis.asyncio.BlockingConnectionPool,
        "redis-py ConnectionPool": redis.asyncio.ConnectionPool,
        "redis-py -> poolkit": AsyncPoolkitConnectionPool,
        "redis-py, a connection for each task": _no_async_pool(),
        **_of_valkey(".asyncio"),
    }


def _of_valkey(world: str) -> dict[str, Any]:
    """The pools of valkey-py, where it is installed: it needs Python 3.11."""
    if importlib.util.find_spec("valkey") is None:
        return {}
    driver: Any = importlib.import_module(f"valkey{world}")
    adapter: Any = importlib.import_module("poolkit_adapters.valkey")
    return {
        "valkey-py BlockingConnectionPool": driver.BlockingConnectionPool,
        "valkey-py ConnectionPool": driver.ConnectionPool,
        "valkey-py -> poolkit": adapter.AsyncPoolkitConnectionPool if world else adapter.PoolkitConnectionPool,
    }


def _no_async_pool() -> Any:
    """The same for tasks."""
    import redis.asyncio

    class NoPool(redis.asyncio.ConnectionPool):
        def __init__(self, **settings: Any) -> None:
            super().__init__(**{**settings, "max_connections": 1000})
            self._mine: dict[Any, Any] = {}

        async def get_connection(self, *arguments: Any, **settings: Any) -> Any:
            me = asyncio.current_task()
            if me not in self._mine:
                self._mine[me] = await super().get_connection()  # type: ignore[no-untyped-call]
            return self._mine[me]

        async def release(self, connection: Any) -> None:
            """Do nothing: the task keeps the connection."""

    return NoPool


def pool_of(kind: Any, server: RedisServer, size: int = _SIZE) -> Any:
    """A pool of this kind."""
    return kind.from_url(server.url, max_connections=size)


def client_of(pool: Any) -> Any:
    """A client on the pool."""
    return _library_of(pool).Redis(connection_pool=pool)


def async_client_of(pool: Any) -> Any:
    """A client on the pool."""
    library = _library_of(pool)
    kind = library.asyncio.Valkey if library.__name__ == "valkey" else library.asyncio.Redis
    return kind(connection_pool=pool)


def _library_of(pool: Any) -> Any:
    """The package that the pool's connections are of."""
    return importlib.import_module(pool.connection_class.__module__.partition(".")[0])


async def _load(bench: Run, name: str, server: RedisServer, callers: int, seconds: float) -> None:
    pool = pool_of(async_pools()[name], server)
    client = async_client_of(pool)
    try:
        found = await by_tasks(lambda: client.get("key"), callers, seconds, seconds / 5)
        record(bench, name, found, world="tasks", callers=callers)
    finally:
        await pool.disconnect()


def _cycle(pool: Any, number: int) -> float:
    take = _taking(pool)
    pool.release(take())
    best = float("inf")
    with quiet_gc():
        for _ in range(5):
            begun = time.process_time_ns()
            for _ in range(number):
                pool.release(take())
            best = min(best, (time.process_time_ns() - begun) / number)
    return best / 1000


async def _async_cycle(bench: Run, name: str, server: RedisServer, number: int) -> None:
    pool = pool_of(async_pools()[name], server)
    try:
        take = _taking(pool)
        await pool.release(await take())
        best = float("inf")
        with quiet_gc():
            for _ in range(5):
                begun = time.process_time_ns()
                for _ in range(number):
                    await pool.release(await take())
                best = min(best, (time.process_time_ns() - begun) / number)
        bench.add(name, "cycle", "us", best / 1000, world="tasks")
    finally:
        await pool.disconnect()


def _taking(pool: Any) -> Any:
    """A function that takes a connection, as the library's client does: valkey-py's names its command."""
    return partial(pool.get_connection, "GET") if _library_of(pool).__name__ == "valkey" else pool.get_connection
