"""A program with the one changed line uses the same connection again and again."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
import redis.asyncio

from poolkit.testing.servers import Certificates, RedisServer
from poolkit_adapters.redis import AsyncPoolkitConnectionPool, PoolkitConnectionPool

from .support import ports, unique


@pytest.fixture
def ca(certificates: Certificates, tmp_path: Path) -> str:
    """The path of the authority's certificate."""
    return str(certificates.write(tmp_path)[0])


def test_sync_program_with_one_changed_line(redis_server: RedisServer) -> None:
    name = unique()
    pool = PoolkitConnectionPool(host=redis_server.host, port=redis_server.port, client_name=name)
    with redis.Redis(connection_pool=pool) as client:
        seen = set()
        for number in range(20):
            client.set("one-line", number)
            assert client.get("one-line") == b"%d" % number
            seen |= ports(redis_server, name)
        assert len(seen) == 1
        with client.pipeline() as pipe:
            assert pipe.incr("one-line").get("one-line").execute() == [20, b"20"]
        assert ports(redis_server, name) == seen
    pool.close()
    assert ports(redis_server, name) == set()


@pytest.mark.anyio
async def test_async_program_with_one_changed_line(redis_server: RedisServer) -> None:
    name = unique()
    pool = AsyncPoolkitConnectionPool(host=redis_server.host, port=redis_server.port, client_name=name)
    async with redis.asyncio.Redis(connection_pool=pool) as client:
        seen = set()
        for number in range(20):
            await client.set("one-line-async", number)
            assert await client.get("one-line-async") == b"%d" % number
            seen |= ports(redis_server, name)
        assert len(seen) == 1
        async with client.pipeline() as pipe:
            assert await pipe.incr("one-line-async").get("one-line-async").execute() == [20, b"20"]
        assert ports(redis_server, name) == seen
    await pool.aclose()
    assert ports(redis_server, name) == set()


def test_a_closed_pool_goes_on_as_redis_pys_does(redis_server: RedisServer) -> None:
    name = unique()
    with PoolkitConnectionPool.from_url(redis_server.url, client_name=name) as pool:
        client = redis.Redis(connection_pool=pool)
        client.ping()
        (before,) = ports(redis_server, name)
        pool.close()
        client.ping()
        (after,) = ports(redis_server, name)
        assert before != after


def test_the_positional_arguments_of_the_blocking_pool(redis_server: RedisServer) -> None:
    with PoolkitConnectionPool(3, 1.5, redis.UnixDomainSocketConnection, path=redis_server.socket_path) as pool:
        assert redis.Redis(connection_pool=pool).ping()
        assert (pool.max_connections, pool.timeout) == (3, 1.5)
        settings = pool.poolkit.describe()
        assert settings["max_size"].value == 3
        assert settings["acquire_timeout"].value == 1.5


@pytest.mark.anyio
async def test_unix_socket_async(redis_server: RedisServer) -> None:
    pool = AsyncPoolkitConnectionPool.from_url(redis_server.unix_url, max_connections=2)
    async with redis.asyncio.Redis.from_pool(pool) as client:
        assert await client.ping()


def test_tls(redis_server: RedisServer, ca: str) -> None:
    with PoolkitConnectionPool.from_url(
        f"rediss://localhost:{redis_server.tls_port}", ssl_ca_certs=ca, client_name=unique()
    ) as pool:
        client = redis.Redis(connection_pool=pool)
        first = client.client_id()
        assert {client.client_id() for _ in range(10)} == {first}


@pytest.mark.anyio
async def test_tls_async(redis_server: RedisServer, ca: str) -> None:
    pool = AsyncPoolkitConnectionPool.from_url(f"rediss://localhost:{redis_server.tls_port}", ssl_ca_certs=ca)
    async with redis.asyncio.Redis.from_pool(pool) as client:
        first = await client.client_id()
        assert {await client.client_id() for _ in range(10)} == {first}


def test_poolkits_settings_in_the_url(redis_server: RedisServer) -> None:
    with PoolkitConnectionPool.from_url(
        redis_server.url + "?max_connections=7&timeout=3&idle_timeout=60&max_lifetime=none&min_size=1"
    ) as pool:
        config = pool.poolkit.config
        assert (config.max_size, config.acquire_timeout) == (7, 3.0)
        assert (config.idle_timeout, config.max_lifetime, config.min_size) == (60, None, 1)
