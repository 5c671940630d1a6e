"""One budget under every adapter, on real servers: an idle connection of one is closed for another."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import httpx
import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import Budget
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool as AsyncPsycopgPool
from poolkit_adapters.psycopg import PoolkitConnectionPool as PsycopgPool
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@contextlib.contextmanager
def users(
    budget: Budget, postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> Iterator[dict[str, Callable[[], object]]]:
    """Return, for each synchronous adapter, a function that uses one connection for a moment."""
    engine = create_engine(postgres.sqlalchemy_url(), poolclass=PoolkitPool, budget=budget)
    client = redis.Redis(connection_pool=PoolkitConnectionPool.from_url(redis_server.url, budget=budget))
    web = httpx.Client(transport=PoolkitTransport(budget=budget))
    pool = PsycopgPool(postgres.url, min_size=1, max_size=4, budget=budget, open=True)
    database = PooledDatabase(psycopg, postgres.url, budget=budget)

    def sqlalchemy_() -> object:
        with engine.connect() as connection:
            return connection.execute(text("SELECT 1")).scalar()

    def psycopg_() -> object:
        with pool.connection() as connection:
            return connection.execute("SELECT 1").fetchone()

    def dbapi_() -> object:
        with contextlib.closing(database.connect()) as connection:
            return connection.cursor().execute("SELECT 1")

    yield {
        "sqlalchemy": sqlalchemy_,
        "redis": client.ping,
        "httpx": lambda: web.get(f"{http_server.url}/"),
        "psycopg": psycopg_,
        "dbapi": dbapi_,
    }
    engine.dispose()
    engine.pool.poolkit.close()
    client.close()
    web.close()
    pool.close()
    database.close()


def test_five_adapters_share_a_budget_of_two(
    postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> None:
    """One permit is reserved for psycopg's min_size; the other four adapters take turns with the second one."""
    budget = Budget(2)
    with users(budget, postgres, redis_server, http_server) as use:
        for _ in range(2):
            for call in use.values():
                call()
                assert budget.stats().held <= 2
        parts = {part.pool: part for part in budget.stats().pools}
        assert len(parts) == 5
        assert sorted(part.reserved for part in parts.values()) == [0, 0, 0, 0, 1]
    assert budget.stats().held == 0


@pytest.mark.anyio
async def test_the_asynchronous_adapters_share_one_budget_with_a_synchronous_one(
    postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer
) -> None:
    """Tasks and threads: the one idle connection moves from adapter to adapter."""
    budget = Budget(1)
    engine = create_async_engine(postgres.sqlalchemy_url("asyncpg"), poolclass=AsyncPoolkitPool, budget=budget)
    client = redis.asyncio.Redis(connection_pool=AsyncPoolkitConnectionPool.from_url(redis_server.url, budget=budget))
    database = PooledDatabase(psycopg, postgres.url, budget=budget)

    def in_a_thread() -> Any:
        with contextlib.closing(database.connect()) as connection:
            return connection.cursor().execute("SELECT 1")

    pool = AsyncPsycopgPool(postgres.url, min_size=0, max_size=4, budget=budget, open=False)
    async with httpx.AsyncClient(transport=AsyncPoolkitTransport(budget=budget)) as web, pool:
        for _ in range(2):
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
            await client.ping()
            assert (await web.get(f"{http_server.url}/")).status_code == 200
            await anyio.to_thread.run_sync(in_a_thread)
            async with pool.connection() as plain:
                await plain.execute("SELECT 1")
            assert budget.stats().held == 1
    await client.aclose()
    await engine.dispose()
    await anyio.to_thread.run_sync(database.close)
