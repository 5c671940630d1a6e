"""``connect_in_caller=True``: a caller that connects itself gets its error at its deadline, before the driver's."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import redis
import redis.asyncio
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import ConnectFailed
from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters import redis as rd
from poolkit_adapters import sqlalchemy as sa
from poolkit_adapters.dbapi import PooledDatabase
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE, until_async

pytestmark = [
    pytest.mark.anyio, pytest.mark.filterwarnings("ignore::poolkit.PoolConfigWarning"), pytest.mark.timeout(240),
]  # fmt: skip
SOON = 0.5
LONG = 3600
"""A limit of the driver in seconds, which must not be what ends a connect."""

Made = tuple[Any, Callable[[], Any], Callable[[], Any]]
"""The engine, one exchange with the server, and the function that closes the pool."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def through(postgres: PostgresServer, redis_server: RedisServer) -> Iterator[Callable[[str], FaultProxy]]:
    proxies: list[FaultProxy] = []

    def make(kind: str) -> FaultProxy:
        server = redis_server if kind.startswith("redis") else postgres
        proxies.append(FaultProxy(server.host, server.port).start())
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.stop()


def url(postgres: PostgresServer, proxy: FaultProxy, driver: str) -> str:
    made = make_url(postgres.sqlalchemy_url(driver)).set(host=proxy.host, port=proxy.port)
    return made.render_as_string(hide_password=False)


def sqlalchemy(postgres: PostgresServer, proxy: FaultProxy, driver: str) -> Made:
    engine = create_engine(
        url(postgres, proxy, driver), poolclass=sa.PoolkitPool, pool_size=1, max_overflow=0, pool_timeout=SOON,
        connect_in_caller=True, connect_args={"connect_timeout": LONG},
    )  # fmt: skip

    def call() -> Any:
        with engine.connect() as connection:
            return connection.scalar(text("select 1"))

    return engine.pool.poolkit, call, engine.dispose  # type: ignore[attr-defined]


def sqlalchemy_async(postgres: PostgresServer, proxy: FaultProxy, driver: str) -> Made:
    argument = "timeout" if driver == "asyncpg" else "connect_timeout"
    engine = create_async_engine(
        url(postgres, proxy, driver), poolclass=sa.AsyncPoolkitPool, pool_size=1, max_overflow=0, pool_timeout=SOON,
        connect_in_caller=True, connect_args={argument: LONG},
    )  # fmt: skip

    async def call() -> Any:
        async with engine.connect() as connection:
            return await connection.scalar(text("select 1"))

    return engine.pool.poolkit, call, engine.dispose  # type: ignore[attr-defined]


def dbapi(postgres: PostgresServer, proxy: FaultProxy, driver: str) -> Made:
    database = PooledDatabase(
        psycopg, connect_kwargs={**postgres.dsn, "port": proxy.port, "connect_timeout": LONG}, max_size=1,
        acquire_timeout=SOON, connect_in_caller=True,
    )  # fmt: skip

    def call() -> Any:
        with database.connect() as connection:
            return connection.cursor().execute("select 1").fetchone()[0]

    return database.poolkit, call, database.close


def redis_py(_: PostgresServer, proxy: FaultProxy, driver: str) -> Made:
    kind: Any = rd.PoolkitConnectionPool if driver == "sync" else rd.AsyncPoolkitConnectionPool
    pool = kind(
        host=proxy.host, port=proxy.port, max_connections=1, timeout=SOON, socket_connect_timeout=LONG,
        socket_timeout=LONG, connect_in_caller=True,
    )  # fmt: skip
    client: Any = (redis if driver == "sync" else redis.asyncio).Redis(connection_pool=pool)
    return pool.poolkit, client.ping, pool.close if driver == "sync" else pool.aclose


SUBJECTS: dict[str, tuple[Callable[..., Made], str]] = {
    "sqlalchemy-psycopg": (sqlalchemy, "psycopg"),
    "sqlalchemy-psycopg_async": (sqlalchemy_async, "psycopg_async"),
    "sqlalchemy-asyncpg": (sqlalchemy_async, "asyncpg"),
    "dbapi-psycopg": (dbapi, "psycopg"),
    "redis": (redis_py, "sync"),
    "redis-async": (redis_py, "async"),
}


async def value(result: Any) -> Any:
    return await result if inspect.isawaitable(result) else result


@pytest.mark.parametrize("in_caller", [True, False])
async def test_a_connect_that_the_driver_cancels_is_an_error_for_its_caller(in_caller: bool) -> None:
    """asyncpg may cancel it at its own time limit. The caller was not cancelled."""

    async def cancelled() -> Any:
        raise asyncio.CancelledError

    engine = create_async_engine(
        "postgresql+asyncpg://", poolclass=sa.AsyncPoolkitPool, async_creator=cancelled, connect_in_caller=in_caller
    )
    with pytest.raises(ConnectFailed, match="the connect was cancelled"):
        await engine.connect()
    await engine.dispose()


@pytest.mark.parametrize("name", SUBJECTS)
async def test_a_caller_that_connects_itself_gets_its_error_at_its_deadline(
    name: str, postgres: PostgresServer, through: Callable[[str], FaultProxy]
) -> None:
    make, driver = SUBJECTS[name]
    proxy = through(name)
    engine, call, end = make(postgres, proxy, driver)
    proxy.mode = "hold"
    with pytest.raises(Exception):  # noqa: B017  each driver has its own; which one is tested elsewhere
        await value(call())
    await until_async(lambda: not engine.stats().size, "the place is back", engine.stats)
    proxy.mode = "pass"
    engine.reconfigure(acquire_timeout=PATIENCE)
    assert await value(call()) in (1, True)
    await value(end())
