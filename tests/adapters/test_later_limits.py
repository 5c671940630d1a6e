"""A connect timeout that is given to a running pool reaches the driver, whatever the driver was given before."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit.testing.servers import PostgresServer, RedisServer
from poolkit_adapters import asyncpg as apg
from poolkit_adapters import psycopg as pg
from poolkit_adapters import redis as rd
from poolkit_adapters.dbapi import PooledDatabase
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

FIRST, LATER = 7, 9
"""Seconds. No connect takes so long here."""


class Servers:
    def __init__(self, postgres: PostgresServer, redis: RedisServer) -> None:
        self.postgres, self.redis = postgres, redis
        self.conninfo = psycopg.conninfo.make_conninfo(**postgres.dsn)


def own(word: str, given: str) -> dict[str, Any]:
    """Return the driver's arguments: its own limit, if it is given that."""
    return {word: FIRST} if given == "driver" else {}


def setting(given: str) -> dict[str, Any]:
    return {"connect_timeout": FIRST} if given == "setting" else {}


def change(pool: Any) -> None:
    pool.reconfigure(connect_timeout=LATER)
    pool.clear()


def of_libpq(connection: Any) -> float:
    return float(connection.info.get_parameters().get("connect_timeout", 0))


def of_database(servers: Servers, given: str) -> list[float]:
    arguments = own("connect_timeout", given)
    with PooledDatabase(psycopg, servers.conninfo, connect_kwargs=arguments, **setting(given)) as db:
        with db.connect() as connection:
            first = of_libpq(connection)
        change(db.poolkit)
        with db.connect() as connection:
            return [first, of_libpq(connection)]


def of_psycopg(servers: Servers, given: str) -> list[float]:
    arguments: dict[str, Any] = {"kwargs": own("connect_timeout", given), "min_size": 0, "max_size": 1}
    with pg.PoolkitConnectionPool(servers.conninfo, **arguments, **setting(given)) as pool:
        with pool.connection() as connection:
            first = of_libpq(connection)
        change(pool.poolkit)
        with pool.connection() as connection:
            return [first, of_libpq(connection)]


def of_async_psycopg(servers: Servers, given: str) -> list[float]:
    arguments: dict[str, Any] = {"kwargs": own("connect_timeout", given), "min_size": 0, "max_size": 1}

    async def main() -> list[float]:
        async with pg.AsyncPoolkitConnectionPool(servers.conninfo, **arguments, **setting(given)) as pool:
            async with pool.connection() as connection:
                first = of_libpq(connection)
            change(pool.poolkit)
            async with pool.connection() as connection:
                return [first, of_libpq(connection)]

    return asyncio.run(main())


def of_sqlalchemy(servers: Servers, given: str) -> list[float]:
    url, arguments = servers.postgres.sqlalchemy_url("psycopg"), own("connect_timeout", given)
    engine = create_engine(url, poolclass=PoolkitPool, connect_args=arguments, **setting(given))
    with engine.connect() as connection:
        first = of_libpq(connection.connection.driver_connection)
    pool: Any = engine.pool
    change(pool.poolkit)
    with engine.connect() as connection:
        later = of_libpq(connection.connection.driver_connection)
    engine.dispose()  # the next pool has the settings of this one
    with engine.connect() as connection:
        assert of_libpq(connection.connection.driver_connection) == later
    engine.dispose()
    return [first, later]


def of_async_sqlalchemy(servers: Servers, given: str) -> list[float]:
    seen: list[float] = []
    url, arguments = servers.postgres.sqlalchemy_url("asyncpg"), own("timeout", given)

    def note(dialect: Any, record: Any, arguments: Any, keywords: Any) -> None:
        seen.append(keywords.get("timeout", 0))

    async def main() -> None:
        engine = create_async_engine(url, poolclass=AsyncPoolkitPool, connect_args=arguments, **setting(given))
        event.listen(engine.sync_engine, "do_connect", note)
        async with engine.connect():
            pass
        pool: Any = engine.pool
        change(pool.poolkit)
        async with engine.connect():
            pass
        await engine.dispose()

    asyncio.run(main())
    return seen


def of_asyncpg(servers: Servers, given: str) -> list[float]:
    seen: list[float] = []
    connect = asyncpg.connect

    def note(*args: Any, **keywords: Any) -> Any:
        seen.append(keywords.get("timeout", 0))
        return connect(*args, **keywords)

    async def main() -> None:
        arguments: dict[str, Any] = {"dsn": servers.postgres.sqlalchemy_url("x").replace("+x", ""), "min_size": 0}
        async with apg.create_pool(**arguments, connect=note, **own("timeout", given), **setting(given)) as pool:
            async with pool.acquire():
                pass
            change(pool.poolkit)
            async with pool.acquire():
                pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg, "connect", note)
        asyncio.run(main())
    return seen


def of_redis(servers: Servers, given: str) -> list[float]:
    place: dict[str, Any] = {"host": servers.redis.host, "port": servers.redis.port}
    pool = rd.PoolkitConnectionPool(**place, **own("socket_connect_timeout", given), **setting(given))
    seen = []
    for _ in range(2):
        connection: Any = pool.get_connection()
        seen.append(connection.socket_connect_timeout)
        pool.release(connection)
        change(pool.poolkit)
    pool.close()
    return seen


def of_async_redis(servers: Servers, given: str) -> list[float]:
    place: dict[str, Any] = {"host": servers.redis.host, "port": servers.redis.port}
    seen: list[float] = []

    async def main() -> None:
        pool = rd.AsyncPoolkitConnectionPool(**place, **own("socket_connect_timeout", given), **setting(given))
        for _ in range(2):
            connection: Any = await pool.get_connection()
            seen.append(connection.socket_connect_timeout)
            await pool.release(connection)
            change(pool.poolkit)
        await pool.aclose()

    asyncio.run(main())
    return seen


@pytest.mark.parametrize(
    "limits",
    [
        of_database, of_psycopg, of_async_psycopg, of_sqlalchemy, of_async_sqlalchemy, of_asyncpg, of_redis,
        of_async_redis,
    ],
    ids=lambda limits: limits.__name__,
)  # fmt: skip
@pytest.mark.parametrize("given", ["", "driver", "setting"])
def test_a_connect_timeout_that_is_given_later_reaches_the_driver(
    limits: Any, given: str, postgres: PostgresServer, redis_server: RedisServer
) -> None:
    first, later = limits(Servers(postgres, redis_server), given)
    assert later == LATER
    assert first == FIRST if given else first != LATER
