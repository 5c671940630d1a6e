"""Classes of callers in every adapter, on real servers: the driver's API is unchanged; the class is in the context."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import httpx
import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

import poolkit
from poolkit import ClassConfig, ConfigError, Pool, priority
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool as AsyncPsycopgPool
from poolkit_adapters.psycopg import PoolkitConnectionPool as PsycopgPool
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool
from tests.support.waiting import PATIENCE, until

CLASSES = {"health": ClassConfig(reserved=1), "bulk": ClassConfig()}
SYNC = ("sqlalchemy", "psycopg", "dbapi", "redis", "httpx")
ASYNC = ("sqlalchemy", "psycopg", "redis", "httpx")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Servers:
    def __init__(self, postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer) -> None:
        self.postgres, self.redis, self.http = postgres, redis_server, http_server


@pytest.fixture
def servers(postgres: PostgresServer, redis_server: RedisServer, http_server: HTTPServer) -> Servers:
    return Servers(postgres, redis_server, http_server)


def named(name: str) -> Any:
    """Return the engine of that name behind an adapter."""
    [pool] = [pool for pool in poolkit.pools() if pool.name == name]
    return pool


@contextlib.contextmanager
def opened(adapter: str, servers: Servers, **settings: Any) -> Iterator[tuple[Any, Callable[[], Any]]]:
    """Return the engine behind an adapter, with at most three connections, and a context manager that uses one."""
    if adapter == "sqlalchemy":
        engine = create_engine(
            servers.postgres.sqlalchemy_url(), poolclass=PoolkitPool, pool_size=3, max_overflow=0,
            pool_timeout=PATIENCE, **settings,
        )  # fmt: skip

        @contextlib.contextmanager
        def use() -> Iterator[object]:
            with engine.connect() as connection:
                yield connection.execute(text("SELECT 1")).scalar()

        yield engine.pool.poolkit, use  # type: ignore[attr-defined]
        engine.dispose()
        engine.pool.poolkit.close()  # type: ignore[attr-defined]
    elif adapter == "psycopg":
        with PsycopgPool(
            servers.postgres.url, min_size=0, max_size=3, timeout=PATIENCE, open=True, name="classes", **settings
        ) as pool:

            @contextlib.contextmanager
            def use() -> Iterator[object]:
                with pool.connection() as connection:
                    yield connection.execute("SELECT 1").fetchone()

            yield named("classes"), use
    elif adapter == "dbapi":
        database = PooledDatabase(psycopg, servers.postgres.url, max_size=3, acquire_timeout=PATIENCE, **settings)

        @contextlib.contextmanager
        def use() -> Iterator[object]:
            with contextlib.closing(database.connect()) as connection:
                yield connection.cursor().execute("SELECT 1")

        yield database.poolkit, use
        database.close()
    elif adapter == "redis":
        connections = PoolkitConnectionPool.from_url(servers.redis.url, max_connections=3, timeout=PATIENCE, **settings)

        @contextlib.contextmanager
        def use() -> Iterator[object]:
            with redis.Redis(connection_pool=connections).pipeline() as pipe:
                pipe.watch("something")  # from here on it has its own connection
                yield pipe.get("something")

        yield connections.poolkit, use
        connections.disconnect()
        connections.poolkit.close()
    else:
        transport = PoolkitTransport(limits=httpx.Limits(max_connections=3), name="classes", **settings)
        with httpx.Client(transport=transport, timeout=PATIENCE) as web:

            @contextlib.contextmanager
            def use() -> Iterator[object]:
                with web.stream("GET", f"{servers.http.url}/bytes?n=100000") as answer:
                    yield answer.status_code

            yield named("classes"), use


@contextlib.asynccontextmanager
async def opened_async(adapter: str, servers: Servers) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    if adapter == "sqlalchemy":
        engine = create_async_engine(
            servers.postgres.sqlalchemy_url("asyncpg"), poolclass=AsyncPoolkitPool, pool_size=3, max_overflow=0,
            pool_timeout=PATIENCE, classes=CLASSES,
        )  # fmt: skip

        @contextlib.asynccontextmanager
        async def use() -> AsyncIterator[object]:
            async with engine.connect() as connection:
                yield (await connection.execute(text("SELECT 1"))).scalar()

        yield engine.pool.poolkit, use  # type: ignore[attr-defined]
        await engine.dispose()
    elif adapter == "psycopg":
        async with AsyncPsycopgPool(
            servers.postgres.url, min_size=0, max_size=3, timeout=PATIENCE, open=False, name="classes", classes=CLASSES
        ) as pool:

            @contextlib.asynccontextmanager
            async def use() -> AsyncIterator[object]:
                async with pool.connection() as connection:
                    yield await connection.execute("SELECT 1")

            yield named("classes"), use
    elif adapter == "redis":
        connections = AsyncPoolkitConnectionPool.from_url(
            servers.redis.url, max_connections=3, timeout=PATIENCE, classes=CLASSES
        )
        client = redis.asyncio.Redis(connection_pool=connections)

        @contextlib.asynccontextmanager
        async def use() -> AsyncIterator[object]:
            async with client.pipeline() as pipe:
                await pipe.watch("something")
                yield await pipe.get("something")

        yield connections.poolkit, use
        await client.aclose()
        await connections.poolkit.close()
    else:
        transport = AsyncPoolkitTransport(limits=httpx.Limits(max_connections=3), name="classes", classes=CLASSES)
        async with httpx.AsyncClient(transport=transport, timeout=PATIENCE) as web:

            @contextlib.asynccontextmanager
            async def use() -> AsyncIterator[object]:
                async with web.stream("GET", f"{servers.http.url}/bytes?n=100000") as answer:
                    yield answer.status_code

            yield named("classes"), use


@pytest.mark.parametrize("adapter", SYNC)
def test_a_health_check_is_answered_while_bulk_work_has_all_it_may_have(adapter: str, servers: Servers) -> None:
    with opened(adapter, servers, classes=CLASSES) as (pool, use):
        served = threading.Event()

        def bulk() -> None:
            with priority("bulk"), use():
                served.set()

        waiting = threading.Thread(target=bulk)
        with contextlib.ExitStack() as held:
            with priority("bulk"):
                for _ in range(2):
                    held.enter_context(use())
            waiting.start()
            until(lambda: pool.stats().classes["bulk"].waiting)
            for _ in range(3):
                with priority("health"), use():
                    assert pool.stats().classes["health"].in_use == 1
            assert not served.is_set()
            assert pool.stats().classes["bulk"].waiting == 1
        waiting.join(PATIENCE)
        assert served.is_set()
        assert pool.stats().classes["health"].acquires == 3


@pytest.mark.anyio
@pytest.mark.parametrize("adapter", ASYNC)
async def test_in_tasks_a_health_check_is_answered_beside_bulk_work(adapter: str, servers: Servers) -> None:
    async with opened_async(adapter, servers) as (pool, use), anyio.create_task_group() as group:
        served = anyio.Event()

        async def bulk() -> None:
            async with use():
                served.set()

        async with contextlib.AsyncExitStack() as held:
            with priority("bulk"):
                for _ in range(2):
                    await held.enter_async_context(use())
                group.start_soon(bulk)
            with anyio.fail_after(PATIENCE):
                while not pool.stats().classes["bulk"].waiting:
                    await anyio.sleep(0.001)
                for _ in range(3):
                    with priority("health"):
                        async with use():
                            assert pool.stats().classes["health"].in_use == 1
            assert not served.is_set()
        with anyio.fail_after(PATIENCE):
            await served.wait()


@pytest.mark.parametrize("adapter", SYNC)
def test_an_unknown_class_is_the_same_clear_error_through_every_adapter(adapter: str, servers: Servers) -> None:
    with (
        opened(adapter, servers, classes=CLASSES) as (_, use),
        priority("blk"),
        pytest.raises(ConfigError, match=r"priority\('blk'\): no such class of callers; did you mean 'bulk'\?"),
        use(),
    ):
        pass


@pytest.mark.parametrize("adapter", ["psycopg", "redis"])
def test_shares_hold_on_a_server_under_load(adapter: str, servers: Servers) -> None:
    """Weights 3 and 1, 8 threads of each on 3 connections, all asking again at once: 3/4 of 800 leases, to within 1/16
    (a thread that has been served needs a moment to queue again, so its class may be missing now and then).
    """
    classes = {"web": ClassConfig(weight=3), "bulk": ClassConfig()}
    with opened(adapter, servers, classes=classes) as (pool, use):
        with contextlib.ExitStack() as held, priority("web"):
            for _ in range(3):
                held.enter_context(use())
            over = threading.Event()

            def work(name: str) -> None:
                with priority(name):
                    while not over.is_set():
                        with use():
                            pass

            threads = [threading.Thread(target=work, args=(name,)) for name in ("web", "bulk") for _ in range(8)]
            for thread in threads:
                thread.start()
            until(lambda: pool.stats().waiting == 16)
        before = {name: one.acquires for name, one in pool.stats().classes.items()}
        until(lambda: sum(one.acquires for one in pool.stats().classes.values()) - sum(before.values()) >= 800)
        after = {name: one.acquires for name, one in pool.stats().classes.items()}
        over.set()
        for thread in threads:
            thread.join()
        web, bulk = (after[name] - before[name] for name in ("web", "bulk"))
        assert abs(web / (web + bulk) - 0.75) < 1 / 16, (web, bulk)


def test_bulk_work_in_a_storm_never_delays_a_health_check_beyond_its_own_query(postgres: PostgresServer) -> None:
    """Every check finds the reserved connection free, so none of them waits in the queue."""
    database = PooledDatabase(psycopg, postgres.url, max_size=3, classes=CLASSES)
    over = threading.Event()

    def bulk() -> None:
        with priority("bulk"):
            while not over.is_set():
                with contextlib.closing(database.connect()) as connection:
                    connection.cursor().execute("SELECT pg_sleep(0.005)")

    database.poolkit.warm_up(3)
    threads = [threading.Thread(target=bulk) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: database.poolkit.stats().classes["bulk"].waits > 20)
    before = database.poolkit.stats().classes["health"].waits
    with priority("health"):
        for _ in range(50):
            with contextlib.closing(database.connect()) as connection:
                connection.cursor().execute("SELECT 1")
    stats = database.poolkit.stats()
    over.set()
    for thread in threads:
        thread.join()
    assert stats.classes["health"].waits == before
    assert stats.classes["bulk"].waiting
    pool: Pool[Any] = database.poolkit
    pool.check_books()
    database.close()
