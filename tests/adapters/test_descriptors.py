"""A process without a free descriptor gets an error that says so, even if its driver (libpq) reports nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from poolkit.testing.servers import HTTPServer, PostgresServer, RedisServer

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the module resource")

PROGRAM = """
import asyncio, os, resource, sys, warnings
import asyncpg, httpcore, httpx, psycopg, psycopg_pool, redis, redis.asyncio, trio
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine
from poolkit_adapters import asyncpg as with_asyncpg
from poolkit_adapters.dbapi import PooledDatabase
from poolkit import Connector, Pool
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from poolkit_adapters.psycopg import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.redis import AsyncPoolkitConnectionPool as AsyncRedisPool, PoolkitConnectionPool as RedisPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

warnings.simplefilter("ignore")
way, address, url = sys.argv[1:]


def fill():
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    taken = []
    try:
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return taken


async def http():
    async with httpx.AsyncClient(transport=AsyncPoolkitTransport()) as client:
        first = await client.get(address)  # imports what it needs
    async with httpx.AsyncClient(transport=AsyncPoolkitTransport()) as client:
        client._transport.poolkit.stats()
        taken = fill()
        try:
            await client.get(address)
        except Exception as error:
            told.append(str(error))
        for number in taken:
            os.close(number)


def sync(pool, take):
    taken = fill()
    try:
        take(pool)
    except Exception as error:
        told.append(str(error))
    for number in taken:
        os.close(number)


async def tasks(pool, take):
    taken = fill()
    try:
        await take(pool)
    except Exception as error:
        told.append(str(error))
    for number in taken:
        os.close(number)


async def psycopg_tasks():
    async with AsyncPoolkitConnectionPool(address, min_size=0, max_size=1, timeout=0.5, open=False) as pool:
        await tasks(pool, lambda pool: pool.getconn())


async def asyncpg_tasks():
    async with with_asyncpg.create_pool(address, min_size=0, max_size=1) as pool:
        await tasks(pool, lambda pool: pool.acquire(timeout=0.5))


async def sqlalchemy_tasks():
    engine = create_async_engine(url.replace("+psycopg", "+asyncpg"), poolclass=AsyncPoolkitPool)
    await tasks(engine, lambda engine: engine.connect().start())


async def redis_tasks():
    pool = AsyncRedisPool.from_url(address)
    await tasks(redis.asyncio.Redis(connection_pool=pool), lambda client: client.ping())


told = []
LOOPS = {"psycopg-async": psycopg_tasks, "asyncpg": asyncpg_tasks, "sqlalchemy-async": sqlalchemy_tasks,
         "redis-async": redis_tasks}
if way == "asyncio":
    asyncio.run(http())
elif way == "trio":
    trio.run(http)
elif way == "httpx":
    class Quiet(httpcore.NetworkBackend):  # says as little as libpq
        def connect_tcp(self, *args, **kwargs):
            try:
                return httpcore.SyncBackend().connect_tcp(*args, **kwargs)
            except httpcore.ConnectError:
                raise httpcore.ConnectError("no connection") from None

    with httpx.Client(transport=PoolkitTransport(network_backend=Quiet())) as client:
        sync(client, lambda client: client.get(address))
elif way == "engine":
    class Own(Connector):
        def connect(self, timeout):
            try:
                return open(os.devnull)
            except OSError:
                raise ValueError("no connection") from None

    sync(Pool(Own()), lambda pool: pool.acquire(timeout=0.5))
elif way in LOOPS:
    asyncio.run(LOOPS[way]())
elif way == "redis":
    sync(redis.Redis(connection_pool=RedisPool.from_url(address)), lambda client: client.ping())
elif way == "psycopg":
    with PoolkitConnectionPool(address, min_size=0, max_size=1, timeout=0.5) as pool:
        sync(pool, lambda pool: pool.getconn())
elif way == "sqlalchemy":
    sync(create_engine(url, poolclass=PoolkitPool), lambda engine: engine.connect())
else:
    sync(PooledDatabase(psycopg, address), lambda database: database.connect(timeout=0.5))
print(told)
"""


WAYS = ["asyncio", "trio", "httpx", "engine", "psycopg", "psycopg-async", "sqlalchemy", "sqlalchemy-async", "asyncpg",
        "redis", "redis-async", "dbapi"]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_too_many_open_files_is_named(
    postgres: PostgresServer, http_server: HTTPServer, redis_server: RedisServer, way: str
) -> None:
    """Runs in a process of its own that has used all its descriptors."""
    import psycopg

    conninfo = psycopg.conninfo.make_conninfo(**postgres.dsn)
    addresses = {"asyncio": http_server.url, "trio": http_server.url, "httpx": http_server.url, "asyncpg": postgres.url}
    address = redis_server.url if way.startswith("redis") else addresses.get(way, conninfo)
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), way, address, postgres.sqlalchemy_url("psycopg")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert "Too many open files" in done.stdout, done.stdout + done.stderr[-2000:]
