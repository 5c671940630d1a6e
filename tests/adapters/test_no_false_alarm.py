"""The log of ``poolkit.churn`` names pools that the application makes again and again, or forgets while they are
connected. What drivers and poolkit do by themselves is not among it, nor is one update of a cluster (see
tests/cluster/test_churn.py).
"""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis
import redis.asyncio
import redis.cluster
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from poolkit import Pool, _misuse
from poolkit.policies.churn import Churn
from poolkit.testing import FakeConnector
from poolkit.testing.servers import HTTPServer, PostgresServer, RedisCluster, RedisServer
from poolkit_adapters.httpx import AsyncPoolkitTransport, PoolkitTransport
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool
from poolkit_adapters.sqlalchemy import AsyncPoolkitPool, PoolkitPool

LIMIT = 3
"""Pools from one place that are too many here; 20 in a program."""

Servers = dict[str, Any]


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(_misuse, "_misuse", Churn(limit=LIMIT))
    gc.collect()  # so that pools of earlier tests are reported before
    Pool(FakeConnector()).close()
    caplog.clear()
    caplog.set_level(logging.WARNING, "poolkit.churn")
    return caplog


@pytest.fixture
def servers(redis_server: RedisServer, http_server: HTTPServer, postgres: PostgresServer) -> Servers:
    return {"redis": redis_server, "http": http_server.url, "postgres": postgres}


def redis_reset(servers: Servers, times: int) -> None:
    with PoolkitConnectionPool(host="127.0.0.1", port=servers["redis"].port) as pool:
        for _ in range(times):
            redis.Redis(connection_pool=pool).ping()
            pool.reset()


def redis_reset_of_a_closed_engine(servers: Servers, times: int) -> None:
    with PoolkitConnectionPool(host="127.0.0.1", port=servers["redis"].port) as pool:
        for _ in range(times):
            pool.poolkit.close()
            pool.reset()


def redis_async_reset(servers: Servers, times: int) -> None:
    async def run() -> None:
        async with AsyncPoolkitConnectionPool(host="127.0.0.1", port=servers["redis"].port) as pool:
            for number in range(times):
                await redis.asyncio.Redis(connection_pool=pool).ping()
                if number % 2:
                    await pool.poolkit.close()
                pool.reset()

    asyncio.run(run())


def redis_disconnect(servers: Servers, times: int) -> None:
    with PoolkitConnectionPool(host="127.0.0.1", port=servers["redis"].port) as pool:
        for _ in range(times):
            redis.Redis(connection_pool=pool).ping()
            pool.disconnect()


def httpx_begun_anew(servers: Servers, times: int) -> None:
    transport = PoolkitTransport()
    for _ in range(times):
        transport.handle_request(httpx.Request("GET", servers["http"])).close()
        transport.close()


def httpx_async_begun_anew(servers: Servers, times: int) -> None:
    async def run() -> None:
        transport = AsyncPoolkitTransport()
        for _ in range(times):
            response = await transport.handle_async_request(httpx.Request("GET", servers["http"]))
            await response.aread()
            await response.aclose()
            await transport.aclose()

    asyncio.run(run())


def sqlalchemy_dispose(servers: Servers, times: int) -> None:
    engine = create_engine(servers["postgres"].sqlalchemy_url("psycopg"), poolclass=PoolkitPool)
    for number in range(times):
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        engine.dispose(close=number % 2 == 0)
    engine.dispose()


def sqlalchemy_recreate(servers: Servers, times: int) -> None:
    engine = create_engine(servers["postgres"].sqlalchemy_url("psycopg"), poolclass=PoolkitPool)
    pool = engine.pool
    for _ in range(times):
        pool = pool.recreate()
        pool.dispose()
    engine.dispose()


def sqlalchemy_async_dispose(servers: Servers, times: int) -> None:
    async def run() -> None:
        engine = create_async_engine(servers["postgres"].sqlalchemy_url("asyncpg"), poolclass=AsyncPoolkitPool)
        for _ in range(times):
            async with engine.connect() as connection:
                await connection.execute(text("select 1"))
            await engine.dispose()

    asyncio.run(run())


def a_loop_after_another(servers: Servers, times: int) -> None:
    pool = AsyncPoolkitConnectionPool(host="127.0.0.1", port=servers["redis"].port)

    async def run() -> None:
        await redis.asyncio.Redis(connection_pool=pool).ping()
        await pool.disconnect()

    for _ in range(times):
        asyncio.run(run())


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize(
    "act",
    [
        redis_reset, redis_reset_of_a_closed_engine, redis_async_reset, redis_disconnect, httpx_begun_anew,
        httpx_async_begun_anew, sqlalchemy_dispose, sqlalchemy_recreate, sqlalchemy_async_dispose, a_loop_after_another,
    ],
)  # fmt: skip
def test_pools_that_the_application_did_not_create_cause_no_warning(
    act: Callable[[Servers, int], None], servers: Servers, log: pytest.LogCaptureFixture
) -> None:
    act(servers, LIMIT * 2)
    gc.collect()
    Pool(FakeConnector()).close()  # the next pool logs what finalizers have reported
    assert log.messages == []


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_pools_of_a_redis_cluster_are_those_of_one_client(
    redis_cluster: RedisCluster, log: pytest.LogCaptureFixture
) -> None:
    """It creates one for each node, and drops them when nodes leave."""
    kind: Any = functools.partial(PoolkitConnectionPool, timeout=3)
    client = redis.cluster.RedisCluster.from_url(redis_cluster.url, connection_pool_class=kind)
    client.set("a", "b")
    assert len(client.get_nodes()) == LIMIT
    for node in client.get_nodes():
        assert isinstance(node.redis_connection.connection_pool, PoolkitConnectionPool)
        node.redis_connection.ping()
        node.redis_connection = None  # as if the node had left the cluster
    gc.collect()
    Pool(FakeConnector()).close()
    assert log.messages == []
    client.close()


@pytest.mark.parametrize("kind", [PoolkitConnectionPool, AsyncPoolkitConnectionPool, PoolkitTransport])
def test_pools_that_the_application_creates_repeatedly_cause_a_warning(
    kind: Any, log: pytest.LogCaptureFixture
) -> None:
    for _ in range(LIMIT):
        kind()
    assert [message for message in log.messages if "pools were created at" in message and __file__ in message]


def test_pools_that_are_each_made_once_are_no_churn(log: pytest.LogCaptureFixture) -> None:
    """The pool counts by the application's line, not by the driver's constructor."""
    pools = [
        PoolkitConnectionPool(),
        PoolkitConnectionPool(),
        PoolkitConnectionPool(),
        PoolkitConnectionPool(),
    ]
    assert log.messages == []
    for pool in pools:
        pool.close()
