"""Groups of real Redis servers, through the adapters of redis-py and valkey-py."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import redis

from poolkit.cluster import Node
from poolkit.testing.servers import RedisServer
from poolkit_adapters import redis as with_redis
from tests.support.waiting import until

from .test_drivers import POOL, QUICK, nodes_of, roles_of

pytestmark = pytest.mark.timeout(120)  # the first test starts four servers


class Both:
    """A group and its clients, synchronous or asynchronous, behind a blocking interface."""

    def __init__(self, kind: str, servers: list[RedisServer], **settings: Any) -> None:
        self.loop = asyncio.new_event_loop() if kind == "asyncio" else None
        group: Any = with_redis.AsyncPoolkitServerGroup if self.loop else with_redis.PoolkitServerGroup
        self.group = group(nodes_of(servers), pool=POOL, cluster=QUICK, name="cache", decode_responses=True, **settings)

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        if self.loop is None:
            return function(*args)

        async def run() -> Any:
            result = function(*args)
            return await result if inspect.isawaitable(result) else result

        return self.loop.run_until_complete(run())

    def close(self) -> None:
        self.call(self.group.close)
        if self.loop is not None:
            self.loop.close()


@pytest.fixture(params=["threads", "asyncio"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def replicate(master: RedisServer, *replicas: RedisServer) -> None:
    for replica in replicas:
        with replica.connect() as client:
            client.replicaof(master.host, master.port)
    for replica in replicas:
        until(lambda replica=replica: _link(replica) == "up")


def _link(server: RedisServer) -> Any:
    with server.connect() as client:
        return client.info("replication").get("master_link_status")


def test_redis_writes_go_to_the_primary_and_reads_to_replicas_through_a_failover(
    kind: str, redis_four: list[RedisServer]
) -> None:
    """Real replication; after one READONLY the next command goes to the new primary."""
    first, second, third = redis_four[:3]
    replicate(first, second, third)
    both = Both(kind, [first, second, third])
    try:
        writes, reads = both.group.client("primary"), both.group.client("replica")
        assert both.call(writes.set, "key", "1") is True
        with first.connect() as admin:
            admin.wait(2, 5000)
        until(lambda: both.call(reads.ping) and None not in roles_of(both.group).values())
        ports = {both.call(reads.config_get, "port")["port"] for _ in range(20)}
        assert ports == {str(second.port), str(third.port)}
        assert both.call(reads.get, "key") == "1"
        with second.connect() as admin:
            admin.replicaof("NO", "ONE")
        replicate(second, first, third)
        with pytest.raises(redis.ReadOnlyError):
            both.call(writes.set, "key", "2")
        assert both.call(writes.set, "key", "2") is True
        with second.connect() as admin:
            assert admin.get("key") == "2"
        wanted = {"s0": "replica", "s1": "primary", "s2": "replica"}
        until(lambda: both.call(reads.ping) and roles_of(both.group) == wanted)
    finally:
        both.close()


def test_a_redis_that_dies_costs_the_commands_in_flight_and_comes_back(
    kind: str, redis_four: list[RedisServer]
) -> None:
    """Its idle connections are closed after the first error; pipelines and transactions work."""
    both = Both(kind, redis_four, roles=False)
    try:
        client = both.group.client()
        ports = {both.call(client.config_get, "port")["port"] for _ in range(60)}
        assert len(ports) == 4
        redis_four[0].kill()
        errors = 0
        for _ in range(60):
            try:
                both.call(client.ping)
            except redis.ConnectionError:
                errors += 1
        assert errors <= 3
        pipe = client.pipeline()
        pipe.set("a", 1).incr("a")
        assert both.call(pipe.execute) == [True, 2]
        redis_four[0].start()

        def back() -> bool:
            return str(both.call(client.config_get, "port")["port"]) == str(redis_four[0].port)

        until(back)
        assert all(node.leases == 0 for node in both.group.stats().nodes)
        both.group.check_books()
    finally:
        both.close()


def test_when_no_redis_answers_the_error_is_redis_pys_and_names_them_all(kind: str) -> None:
    """It is raised at once."""
    dead = [Node("x", "127.0.0.1:1"), Node("y", "127.0.0.1:2")]
    group: Any = with_redis.PoolkitServerGroup if kind == "threads" else with_redis.AsyncPoolkitServerGroup

    def ask() -> None:
        made = group(dead, pool=POOL, cluster=QUICK, roles=False)
        result = made.client().ping()
        if inspect.isawaitable(result):
            asyncio.run(_await(result))

    with pytest.raises(redis.ConnectionError) as caught:
        ask()
    assert isinstance(caught.value, with_redis.NoServerAvailable)
    assert set(caught.value.errors) == {"x", "y"}


async def _await(what: Awaitable[Any]) -> Any:
    return await what
