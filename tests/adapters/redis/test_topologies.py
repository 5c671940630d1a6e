"""Sentinels and clusters of Redis."""

from __future__ import annotations

import functools
import gc
import inspect
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel

import poolkit
from poolkit.testing.servers import RedisCluster, RedisSentinel, RedisServer
from poolkit_adapters.redis import (
    AsyncPoolkitSentinelConnectionPool,
    PoolkitConnectionPool,
    PoolkitSentinelConnectionPool,
)

from .support import in_threads, unique


@pytest.fixture(autouse=True)
def _dropped_pools_are_collected_here() -> Iterator[None]:
    """redis-py drops the pools of nodes that it no longer knows, and does not close them. In which order the collector
    finalizes a socket and its connection is open, so it may warn; without this, in the middle of another test.
    """
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_sentinel_directs_the_pool(redis_sentinel: RedisSentinel) -> None:
    sentinel = redis.sentinel.Sentinel([(redis_sentinel.host, redis_sentinel.port)])
    master = sentinel.master_for(
        "main", connection_pool_class=PoolkitSentinelConnectionPool, max_connections=2, timeout=5
    )
    assert isinstance(master.connection_pool, PoolkitConnectionPool)
    first = master.client_id()
    assert {master.client_id() for _ in range(5)} == {first}
    assert in_threads(6, lambda index: master.set("sentinel", index)) == []
    assert master.connection_pool.poolkit.stats().connects <= 2
    assert master.connection_pool.master_address == (redis_sentinel.master.host, redis_sentinel.master.port)
    master.connection_pool.close()


def test_another_master_gets_all_connections(redis_sentinel: RedisSentinel) -> None:
    """As in redis-py, idle connections to the old master are closed at once, and used ones when they are released."""
    with RedisServer() as other:
        sentinel = redis.sentinel.Sentinel([(redis_sentinel.host, redis_sentinel.port)])
        now = [(redis_sentinel.master.host, redis_sentinel.master.port)]
        sentinel.discover_master = lambda name: now[0]
        master = sentinel.master_for("main", connection_pool_class=PoolkitSentinelConnectionPool, max_connections=3)
        pool = master.connection_pool
        idle, used, lost = (pool.get_connection() for _ in range(3))
        pool.release(idle)
        now[0] = (other.host, other.port)
        lost.disconnect()
        pool.release(lost)
        pool.release(used)  # the sentinel has not been asked yet
        fresh = [pool.get_connection() for _ in range(3)]
        assert (other.host, other.port) in {(connection.host, connection.port) for connection in fresh}
        for connection in fresh:
            pool.release(connection)
        again = [pool.get_connection() for _ in range(3)]
        assert {(connection.host, connection.port) for connection in again} == {(other.host, other.port)}
        for connection in again:
            pool.release(connection)
        pool.close()


@pytest.mark.anyio
async def test_sentinel_directs_the_async_pool(redis_sentinel: RedisSentinel) -> None:
    sentinel = redis.asyncio.sentinel.Sentinel([(redis_sentinel.host, redis_sentinel.port)])
    master = sentinel.master_for("main", connection_pool_class=AsyncPoolkitSentinelConnectionPool, max_connections=2)
    first = await master.client_id()
    assert {await master.client_id() for _ in range(5)} == {first}
    held = [await master.connection_pool.get_connection() for _ in range(2)]
    with pytest.raises(redis.exceptions.MaxConnectionsError):  # redis-py's sentinel pool does not wait either
        await master.connection_pool.get_connection()
    for connection in held:
        await master.connection_pool.release(connection)
    await master.connection_pool.aclose()
    for client in sentinel.sentinels:
        await client.aclose()


def test_an_eager_sentinel_pool_is_refused() -> None:
    sentinel = redis.sentinel.Sentinel([("127.0.0.1", 1)])
    with pytest.raises(poolkit.ConfigError, match="warm_up"):
        PoolkitSentinelConnectionPool("main", sentinel, start="eager")


def test_cluster_nodes_have_pools_of_poolkit(redis_cluster: RedisCluster) -> None:
    name = unique()
    made: list[Any] = []

    def make(**kwargs: Any) -> PoolkitConnectionPool:
        made.append(PoolkitConnectionPool(**kwargs, idle_timeout=60))
        return made[-1]

    cluster = redis.RedisCluster.from_url(
        redis_cluster.url, connection_pool_class=make, max_connections=2, timeout=5, client_name=name
    )
    assert in_threads(6, lambda index: [cluster.set(f"key-{index}-{n}", n) for n in range(20)]) == []
    assert sum(len(cluster.keys("key-*", target_nodes=node)) for node in cluster.get_primaries()) == 120
    with cluster.pipeline() as pipe:
        for number in range(20):
            pipe.get(f"key-0-{number}")
        assert pipe.execute() == [b"%d" % number for number in range(20)]
    assert len(made) >= 3
    for server in redis_cluster.nodes:
        pools = sum(pool.connection_kwargs["port"] == server.port for pool in made)  # valkey-py has one at the start
        assert 0 < len(server.client_list(name)) <= 2 * pools
    cluster.close()
    for pool in made:
        pool.close()


def test_an_exhausted_node_is_not_taken_for_a_dead_one(redis_cluster: RedisCluster) -> None:
    """redis-py's blocking pool raises a plain ConnectionError, so the cluster reads its topology again for nothing."""
    if "MaxConnectionsError" not in inspect.getsource(redis.cluster):
        pytest.skip("this redis-py takes every ConnectionError for a dead node")
    pool_class = functools.partial(PoolkitConnectionPool, max_connections=1)
    cluster = redis.RedisCluster.from_url(redis_cluster.url, connection_pool_class=pool_class)
    cluster.set("key", "value")
    node = cluster.get_node_from_key("key")
    pool = node.redis_connection.connection_pool
    held = pool.get_connection()
    pool.timeout = 0.01
    with pytest.raises(redis.exceptions.MaxConnectionsError):
        cluster.get("key")
    assert cluster.get_node_from_key("key").redis_connection.connection_pool is pool
    pool.release(held)
    assert cluster.get("key") == b"value"
    cluster.close()


def test_the_timeout_of_a_thread_that_holds_another_nodes_connection_names_that_cause(
    redis_cluster: RedisCluster,
) -> None:
    """Pipelines over several nodes in several threads block each other so, when there are fewer connections."""
    kind: Any = functools.partial(PoolkitConnectionPool, timeout=1)
    client = redis.RedisCluster.from_url(redis_cluster.url, connection_pool_class=kind, max_connections=1)
    first, second, *_ = (node.redis_connection.connection_pool for node in client.get_nodes())
    with ThreadPoolExecutor(1) as other:
        theirs = other.submit(second.get_connection).result()
        with pytest.raises(poolkit.AcquireTimeout) as alone:
            second.get_connection()
        assert "another node" not in str(alone.value)
        mine = first.get_connection()
        with pytest.raises(poolkit.AcquireTimeout, match="already holds a connection to another node") as crossed:
            second.get_connection()
        assert isinstance(crossed.value, redis.exceptions.MaxConnectionsError)
        assert first.poolkit.name in str(crossed.value)
        first.release(mine)
        second.release(theirs)
    client.close()
