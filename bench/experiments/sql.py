"""*sql*: SELECT 1 on a real PostgreSQL, through SQLAlchemy and psycopg, with each pool."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

from bench.load import by_tasks, by_threads, record
from bench.turns import Run, quiet_gc
from poolkit.testing.servers import PostgresServer

__all__ = ("ASYNC", "SYNC", "run")

_SIZE = 4

Get = Callable[[], Any]
AsyncGet = Callable[[], Awaitable[Any]]


def run(bench: Run) -> None:
    """Threads, then tasks, then what it costs to take and give back a real connection."""
    seconds, repeat = bench.pick(0.05, 0.2, 0.3), bench.pick(1, 1, 11)
    bench.say("starting PostgreSQL")
    with PostgresServer(max_connections=60) as server:
        for callers in bench.pick((1,), (1,), (1, 16)):
            bench.say(f"{callers} threads on {_SIZE} connections")
            for turn in bench.turns(list(SYNC), repeat):
                with turn as name, SYNC[name](server) as (request, _, _):
                    record(bench, name, by_threads(request, callers, seconds), world="threads", callers=callers)
        for callers in bench.pick((1,), (1,), (1, 16)):
            bench.say(f"{callers} tasks on {_SIZE} connections")
            for turn in bench.turns(list(ASYNC), repeat):
                with turn as name:
                    asyncio.run(_load(bench, name, server, callers, seconds))
        bench.say("taking and giving back a real connection")
        number = bench.pick(20, 500, 1000)
        for turn in bench.turns(("psycopg_pool", "psycopg -> poolkit"), repeat):
            with turn as name, SYNC[name](server) as (_, get, put):
                bench.add(name, "cycle", "us", _cycle(get, put, number), world="threads")
        for turn in bench.turns(("psycopg_pool", "psycopg -> poolkit", "asyncpg", "asyncpg -> poolkit"), repeat):
            with turn as name:
                asyncio.run(_async_cycle(bench, name, server, number))


async def _load(bench: Run, name: str, server: PostgresServer, callers: int, seconds: float) -> None:
    async with ASYNC[name](server) as (request, _, _):
        found = await by_tasks(request, callers, seconds, seconds / 5)
        record(bench, name, found, world="tasks", callers=callers)


def _cycle(get: Get, put: Callable[[Any], object], number: int) -> float:
    put(get())
    best = float("inf")
    with quiet_gc():
        for _ in range(5):
            begun = time.process_time_ns()
            for _ in range(number):
                put(get())
            best = min(best, (time.process_time_ns() - begun) / number)
    return best / 1000


async def _async_cycle(bench: Run, name: str, server: PostgresServer, number: int) -> None:
    # asyncpg sends a query at each release: fewer of them
    number = number if name != "asyncpg" else max(1, number // 10)
    async with ASYNC[name](server) as (_, get, put):
        await put(await get())
        best = float("inf")
        with quiet_gc():
            for _ in range(5):
                begun = time.process_time_ns()
                for _ in range(number):
                    await put(await get())
                best = min(best, (time.process_time_ns() - begun) / number)
        bench.add(name, "cycle", "us", best / 1000, world="tasks")


# Each gives: one request; and, where that is a way to use it, take and give back.


def _sqlalchemy(pool: str, **options: Any) -> Any:
    @contextmanager
    def opened(server: PostgresServer, size: int = _SIZE) -> Iterator[Any]:
        import sqlalchemy

        from poolkit_adapters.sqlalchemy import PoolkitPool

        kind = PoolkitPool if pool == "poolkit" else sqlalchemy.QueuePool
        settings: dict[str, Any] = {"poolclass": kind, "pool_size": size, "max_overflow": 0, **options}
        engine = sqlalchemy.create_engine(server.sqlalchemy_url("psycopg"), **settings)
        statement = sqlalchemy.text("select 1")

        def request() -> None:
            with engine.connect() as connection:
                connection.execute(statement).scalar()

        try:
            yield request, None, None
        finally:
            engine.dispose()

    return opened


def _async_sqlalchemy(driver: str, pool: str) -> Any:
    @asynccontextmanager
    async def opened(server: PostgresServer, size: int = _SIZE) -> AsyncIterator[Any]:
        import sqlalchemy
        from sqlalchemy.ext.asyncio import create_async_engine

        from poolkit_adapters.sqlalchemy import AsyncPoolkitPool

        kind = AsyncPoolkitPool if pool == "poolkit" else sqlalchemy.AsyncAdaptedQueuePool
        settings: dict[str, Any] = {"poolclass": kind, "pool_size": size, "max_overflow": 0}
        engine = create_async_engine(server.sqlalchemy_url(driver), **settings)
        statement = sqlalchemy.text("select 1")

        async def request() -> None:
            async with engine.connect() as connection:
                await connection.scalar(statement)

        try:
            yield request, None, None
        finally:
            await engine.dispose()

    return opened


def _psycopg(pool: str) -> Any:
    @contextmanager
    def opened(server: PostgresServer, size: int = _SIZE) -> Iterator[Any]:
        import psycopg_pool

        from poolkit_adapters.psycopg import PoolkitConnectionPool

        kind: Any = PoolkitConnectionPool if pool == "poolkit" else psycopg_pool.ConnectionPool
        with kind(server.url, min_size=size, max_size=size, open=True) as subject:
            subject.wait(30)

            def request() -> None:
                with subject.connection() as connection:
                    connection.execute("select 1").fetchone()

            yield request, subject.getconn, subject.putconn

    return opened


def _async_psycopg(pool: str) -> Any:
    @asynccontextmanager
    async def opened(server: PostgresServer, size: int = _SIZE) -> AsyncIterator[Any]:
        import psycopg_pool

        from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool

        kind: Any = AsyncPoolkitConnectionPool if pool == "poolkit" else psycopg_pool.AsyncConnectionPool
        async with kind(server.url, min_size=size, max_size=size, open=False) as subject:
            await subject.wait(30)

            async def request() -> None:
                async with subject.connection() as connection:
                    await (await connection.execute("select 1")).fetchone()

            yield request, subject.getconn, subject.putconn

    return opened


def _asyncpg(pool: str) -> Any:
    @asynccontextmanager
    async def opened(server: PostgresServer, size: int = _SIZE) -> AsyncIterator[Any]:
        import asyncpg

        from poolkit_adapters.asyncpg import create_pool

        create: Any = create_pool if pool == "poolkit" else asyncpg.create_pool
        async with create(server.url, min_size=size, max_size=size) as subject:

            async def request() -> None:
                async with subject.acquire() as connection:
                    await connection.fetchval("select 1")

            yield request, subject.acquire, subject.release

    return opened


SYNC: dict[str, Any] = {
    "SQLAlchemy QueuePool": _sqlalchemy("own"),
    "SQLAlchemy QueuePool, pre_ping": _sqlalchemy("own", pool_pre_ping=True),
    "SQLAlchemy -> poolkit": _sqlalchemy("poolkit"),
    "SQLAlchemy -> poolkit, checks": _sqlalchemy("poolkit", check_after_idle=1.0),
    "psycopg_pool": _psycopg("own"),
    "psycopg -> poolkit": _psycopg("poolkit"),
}
ASYNC: dict[str, Any] = {
    "SQLAlchemy (psycopg) AsyncAdaptedQueuePool": _async_sqlalchemy("psycopg", "own"),
    "SQLAlchemy (psycopg) -> poolkit": _async_sqlalchemy("psycopg", "poolkit"),
    "SQLAlchemy (asyncpg) AsyncAdaptedQueuePool": _async_sqlalchemy("asyncpg", "own"),
    "SQLAlchemy (asyncpg) -> poolkit": _async_sqlalchemy("asyncpg", "poolkit"),
    "psycopg_pool": _async_psycopg("own"),
    "psycopg -> poolkit": _async_psycopg("poolkit"),
    "asyncpg": _asyncpg("own"),
    "asyncpg -> poolkit": _asyncpg("poolkit"),
}
