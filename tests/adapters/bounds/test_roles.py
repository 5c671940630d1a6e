"""A node that does not answer the question for its role: the question ends, and the cluster works without the node."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

import pytest

from poolkit import PoolConfig
from poolkit.cluster import ClusterConfig, Node
from poolkit.testing.servers import PostgresServer, RedisServer
from tests.faults.proxy import FaultProxy
from tests.support.waiting import PATIENCE

QUICK = ClusterConfig(eject_for=0.1, eject_max=0.1, slow_start=0, role_interval=0.05, probe_timeout=0.5,
                      acquire_timeout=PATIENCE, wait_for_node=PATIENCE, balance="round_robin")  # fmt: skip
POOL = PoolConfig(max_size=2, connect_timeout=2.0, check_timeout=0.5)
POSTGRES = {
    "psycopg": "threads", "psycopg-async": "asyncio", "sqlalchemy-psycopg": "threads", "sqlalchemy-psycopg2": "threads",
    "sqlalchemy-pg8000": "threads", "sqlalchemy-asyncpg": "asyncio", "sqlalchemy-psycopg_async": "asyncio",
}  # fmt: skip
WORLDS = {**POSTGRES, "redis": "threads", "redis-async": "asyncio"}


def cluster_of(driver: str, server: Any, nodes: list[Node]) -> Any:
    if driver.startswith("psycopg"):
        from poolkit_adapters import psycopg as adapter

        kind: Any = adapter.AsyncPoolkitCluster if "async" in driver else adapter.PoolkitCluster
        conninfo = f"dbname={server.dbname} user={server.user} password={server.password}"
        return kind(nodes, conninfo, pool=POOL, config=QUICK)
    if driver.startswith("sqlalchemy"):
        from poolkit_adapters import sqlalchemy as with_sqlalchemy

        name = driver.partition("-")[2]
        pytest.importorskip(name.removesuffix("_async"))
        kind = with_sqlalchemy.PoolkitCluster if POSTGRES[driver] == "threads" else with_sqlalchemy.AsyncPoolkitCluster
        return kind(server.sqlalchemy_url(name), nodes, pool=POOL, cluster=QUICK)
    from poolkit_adapters import redis as with_redis

    kind = with_redis.AsyncPoolkitServerGroup if "async" in driver else with_redis.PoolkitServerGroup
    # no socket_timeout, as for callers who block in BLPOP
    return kind(nodes, pool=POOL, cluster=QUICK, socket_timeout=None)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # pg8000's
@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", ["silent", "hold"])
@pytest.mark.parametrize("driver", WORLDS)
def test_a_question_for_the_role_ends(
    driver: str,
    mode: Any,
    request: pytest.FixtureRequest,
    fault_proxy: Callable[[str, int], FaultProxy],
) -> None:
    """The peer ignores it, or answers much later. The other node serves callers meanwhile."""
    server: PostgresServer | RedisServer
    server = request.getfixturevalue("postgres" if driver in POSTGRES else "redis_server")
    proxy = fault_proxy(server.host, server.port)
    nodes = [Node("far", f"{proxy.host}:{proxy.port}"), Node("near", f"{server.host}:{server.port}")]
    loop = asyncio.new_event_loop() if WORLDS[driver] == "asyncio" else None

    def call(function: Callable[..., Any], *arguments: Any, **keywords: Any) -> Any:
        if loop is None:
            return function(*arguments, **keywords)

        async def run() -> Any:
            result = function(*arguments, **keywords)
            return await result if inspect.isawaitable(result) else result

        return loop.run_until_complete(asyncio.wait_for(run(), 2 * PATIENCE))

    cluster = cluster_of(driver, server, nodes)

    def served() -> str:
        lease = call(cluster.lease, role="primary")
        name: str = lease.node.name
        call(lease.close)
        return name

    def until(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain until {what}: {cluster.explain()}"
            call(asyncio.sleep if loop is not None else time.sleep, 0.01)

    def far() -> Any:
        return cluster.stats().nodes[0]

    try:
        served()
        until(lambda: [node.role for node in cluster.stats().nodes] == ["primary"] * 2, "both roles are known")
        failures = far().failures
        proxy.mode = mode
        until(lambda: far().failures > failures or far().state != "usable", "the question has failed")
        until(lambda: far().state != "usable" or far().role is None, "the node gets nobody")
        assert {served() for _ in range(4)} == {"near"}
        until(lambda: far().pool.in_use == 0, "no place is taken by a question")
        proxy.mode = "pass"
        until(lambda: far().state == "usable" and far().role == "primary", "the node is back")
        until(lambda: served() == "far", "it serves")
    finally:
        proxy.mode = "pass"
        call(cluster.close)
        if loop is not None:
            loop.run_until_complete(asyncio.sleep(0.05))
            loop.close()
